"""What a training of image tokenizers is put together from: networks, losses, optimisation, as the options have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokkit.errors import DataError, UsageError
from tokkit.metrics.lpips import load_lpips
from tokkit.metrics.ssim import WINDOW
from tokkit.pipelines.train_vq_config import TrainVQConfig
from tokkit.pipelines.training_job import check_unchanged
from tokkit.storage import sha256_file
from tokkit.tokenizers.folder import CONFIG_FILE
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.importers.load import import_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import amended, configure
from tokkit.tokenizers.image.storage import read_image_tokenizer
from tokkit.training.discriminators import BlurDiscriminator, FeatureDiscriminator, PatchDiscriminator
from tokkit.training.engine import Optimisation, Phases, seeded
from tokkit.training.image_task import Critics, Objective, fresh_tokenizer
from tokkit.training.networks import FrozenBackbone, LogitDistance

SMALL = 128  # pixels below which PatchGAN halves twice and not three times, to have more than a few logits


@dataclass(frozen=True)
class Start:
    """What a training begins with: a configuration, and a tokenizer where its weights are gone on from."""

    config: ImageTokenizerConfig
    tokenizer: ImageTokenizer | None = None

    @property
    def identity(self) -> str | None:
        """Fingerprint of the weights that are gone on from."""
        return self.tokenizer.fingerprint if self.tokenizer is not None else None


def start_of(config: TrainVQConfig) -> Start:
    """What the options say to begin with.

    Raises:
        ConfigError, UsageError: options that cannot work; every one is listed.
        DataError: ``init_from`` is damaged, or not a tokenizer.
    """
    if config.init_from is None:
        overrides = {"origin": f"trained by tokkit train-vq from preset {config.preset}"} | config.overrides
        return Start(configure(config.preset, overrides, config.resolution))
    found = _tokenizer(config.init_from)
    where = f"--init-from {config.init_from}"
    if not found.has_decoder:
        raise UsageError(f"{where}: holds an encoder only, which cannot be trained to reconstruct")
    origin = f"fine-tuned by tokkit train-vq from {found.config.name} ({found.fingerprint[:12]})"
    wanted = amended(found.config, where, {"origin": origin} | config.overrides, config.resolution)
    _same_network(found.config, wanted, where)
    with torch.random.fork_rng(devices=[]):
        tokenizer = ImageTokenizer(wanted)
    tokenizer.load_state_dict(found.weights(), strict=False)  # of one configuration
    return Start(wanted, tokenizer)


def _tokenizer(path: Path) -> ImageTokenizer:
    """A tokenizer of ours, or a released checkpoint."""
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        try:
            return read_image_tokenizer(path)
        except DataError:
            if "format" in (path / CONFIG_FILE).read_text("utf-8", "replace"):
                raise
    return import_image_tokenizer(path).tokenizer


def _same_network(found: ImageTokenizerConfig, wanted: ImageTokenizerConfig, where: str) -> None:
    """Overrides may change what only training looks at, and the pictures' size; the weights fit nothing else."""
    sections = {
        "architecture": (found.architecture.model_dump(), wanted.architecture.model_dump()),
        "quantizer": (
            found.quantizer.model_dump(exclude=set(found.quantizer.TRAINING)),
            wanted.quantizer.model_dump(exclude=set(wanted.quantizer.TRAINING)),
        ),
    }
    check_unchanged(where, sections)


def built_tokenizer(start: Start, config: TrainVQConfig, device: str) -> ImageTokenizer:
    """The network to train, on its device."""
    tokenizer = start.tokenizer or fresh_tokenizer(start.config, config.seed)
    tokenizer.to(device)
    if device == "cuda":
        tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tokenizer.recompute_activations(config.recompute)
    if config.compile:
        tokenizer.encoder.compile()
        if tokenizer.decoder is not None:
            tokenizer.decoder.compile()
    return tokenizer


def built_critics(config: TrainVQConfig, size: int, device: str) -> tuple[Critics, dict[str, str]]:
    """Discriminator and perceptual networks, and what identifies the files that they come from.

    Raises:
        DataError, UsageError: a file is missing, damaged or of another network; pictures are too small for one.
    """
    if config.best_by == "ssim" and size < WINDOW:
        raise UsageError(f"--best-by ssim: pictures of {size} px are too small to measure SSIM ({WINDOW} at least)")
    files: dict[str, str] = {}
    lpips = logits = None
    if config.lpips_vgg is not None and config.lpips_heads is not None:
        lpips, digests = load_lpips(config.lpips_vgg, config.lpips_heads)
        files |= {f"lpips_{role}": digest for role, digest in digests.items()}
        lpips.to(device)
    if config.logit_model is not None:
        logits = LogitDistance(config.logit_model).to(device)
        files["logit_model"] = _digest(config.logit_model)
    with seeded(config.seed, 1):
        discriminator = _discriminator(config, size, device)
    if discriminator is not None:
        discriminator.to(device).train()
        if isinstance(discriminator, FeatureDiscriminator) and config.gan_model is not None:
            files["gan_model"] = _digest(config.gan_model)
        if config.compile:
            discriminator.compile()
    return Critics(discriminator, lpips, logits), files


def _discriminator(config: TrainVQConfig, size: int, device: str) -> nn.Module | None:
    recipe = config.resolved_recipe
    if recipe.gan == "none":
        return None
    if recipe.gan == "features":
        assert config.gan_model is not None
        return FeatureDiscriminator(FrozenBackbone(config.gan_model).to(device))
    if size < 32:
        raise UsageError(f"--gan {recipe.gan}: pictures of {size} px are too small for it (32 at least)")
    if recipe.gan == "patch":
        return PatchDiscriminator(recipe.channels, layers=2 if size < SMALL else 3)
    return BlurDiscriminator(recipe.channels, stages=4 if size >= SMALL else 3)


def _digest(folder: Path) -> str:
    weights = folder / "model.safetensors"
    return sha256_file(weights if weights.is_file() else folder / "config.json")


def objective_of(config: TrainVQConfig) -> Objective:
    """The losses' weights."""
    return Objective(
        loss=config.resolved_recipe.loss,
        reconstruction=config.reconstruction_weight,
        lpips=config.lpips_weight,
        logits=config.logit_weight,
        gan_loss=config.gan_loss,
        gan_weight=config.gan_weight,
        adaptive=config.gan_adaptive,
        lecam=config.lecam,
    )


def optimisation_of(config: TrainVQConfig, device: str) -> Optimisation:
    """The optimiser's side."""
    recipe = config.resolved_recipe
    return Optimisation(
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        discriminator_lr=config.discriminator_lr,
        warmup=config.warmup,
        accumulate=config.accumulate,
        average=recipe.ema,
        precision=precision_of(config, device),
        phases=Phases(None if recipe.gan == "none" else config.gan_start, config.gan_lead_in),
    )


def precision_of(config: TrainVQConfig, device: str) -> Any:
    """What the networks run in."""
    return config.precision or ("bf16" if device == "cuda" else "float32")
