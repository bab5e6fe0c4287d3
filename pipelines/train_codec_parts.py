"""What a training of audio tokenizers is put together from: network, losses, optimisation, as the options have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tokkit.errors import UsageError
from tokkit.pipelines.train_codec_config import TrainCodecConfig
from tokkit.pipelines.training_job import check_unchanged
from tokkit.tokenizers.audio import is_audio_tokenizer
from tokkit.tokenizers.audio.config import AudioTokenizerConfig
from tokkit.tokenizers.audio.importers.load import import_audio_tokenizer
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.tokenizers.audio.presets import amended, configure
from tokkit.tokenizers.audio.storage import read_audio_tokenizer
from tokkit.training.audio.discriminator import build_discriminator
from tokkit.training.audio.task import CodecObjective, CodecTask, Crops, fresh_codec
from tokkit.training.engine import Optimisation, Phases, World, seeded


@dataclass(frozen=True)
class Start:
    """What a training begins with: a configuration, and a tokenizer where its weights are gone on from."""

    config: AudioTokenizerConfig
    tokenizer: EncodecTokenizer | None = None

    @property
    def identity(self) -> str | None:
        """Fingerprint of the weights that are gone on from."""
        return self.tokenizer.fingerprint if self.tokenizer is not None else None


def start_of(config: TrainCodecConfig) -> Start:
    """What the options say to begin with.

    Raises:
        ConfigError, UsageError: options that cannot work; every one is listed.
        DataError: ``init_from`` is damaged, or not a tokenizer.
    """
    if config.init_from is None:
        overrides = {"origin": f"trained by tokkit train-codec from preset {config.preset}"} | config.overrides
        start, where = Start(configure(config.preset, overrides)), f"preset {config.preset}"
    else:
        where = f"--init-from {config.init_from}"
        start = _gone_on_from(config.init_from, config.overrides, where)
    if start.config.segment is not None:
        raise UsageError(f"{where}: codecs that work in segments can be imported, but not trained")
    most, books = max(config.books or (1,)), start.config.quantizer.codebooks
    if most > books:
        raise UsageError(f"--books {most}: the codec has {books} codebook{'s' if books > 1 else ''}")
    return start


def _gone_on_from(path: Path, overrides: dict[str, Any], where: str) -> Start:
    """Of a tokenizer of ours or a released checkpoint; what the weights do not fit cannot be changed."""
    found = read_audio_tokenizer(path) if is_audio_tokenizer(path) else import_audio_tokenizer(path).tokenizer
    origin = f"fine-tuned by tokkit train-codec from {found.config.name} ({found.fingerprint[:12]})"
    wanted = amended(found.config, where, {"origin": origin} | overrides)
    told = {"name", "licence", "origin", "architecture", "quantizer"}
    check_unchanged(
        where,
        {
            "": (found.config.model_dump(exclude=told), wanted.model_dump(exclude=told)),
            "architecture": (found.config.architecture.model_dump(), wanted.architecture.model_dump()),
            "quantizer": (found.config.quantizer.model_dump(), wanted.quantizer.model_dump()),
        },
    )
    with torch.random.fork_rng(devices=[]):
        tokenizer = EncodecTokenizer(wanted)
    tokenizer.load_weights(found.weights())
    return Start(wanted, tokenizer)


def built_codec(start: Start, config: TrainCodecConfig, device: str) -> EncodecTokenizer:
    """The network to train, on its device."""
    return (start.tokenizer or fresh_codec(start.config, config.seed)).to(device)


def crop_of(config: TrainCodecConfig, tokenizer: AudioTokenizerConfig) -> int:
    """Samples of a crop: whole frames."""
    samples = max(1, round(config.resolved_recipe.crop * tokenizer.sample_rate))
    return -(-samples // tokenizer.hop) * tokenizer.hop


def built_task(
    config: TrainCodecConfig, start: Start, codec: EncodecTokenizer, crops: Crops, world: World | None = None
) -> CodecTask:
    """The codec with its losses and, where there is one, the discriminator.

    Raises:
        UsageError: crops are too short for the discriminator.
    """
    return CodecTask(
        codec,
        crops,
        CodecObjective(
            time=config.time_weight,
            mel=config.mel_weight,
            adversarial=config.gan_weight,
            features=config.feature_weight,
            commitment=config.commitment_weight,
            quantize_from=config.quantize_from,
            books=config.books or _powers(codec.codebooks),
        ),
        _discriminator(config, codec, crops.length),
        world=world,
        accumulate=config.accumulate,
        seed=config.seed,
        fresh=start.tokenizer is None,
    )


def _discriminator(config: TrainCodecConfig, codec: EncodecTokenizer, length: int) -> nn.Module | None:
    recipe = config.resolved_recipe
    if recipe.gan_start >= 1:
        return None
    windows = tuple(window for window in recipe.windows if window <= length)
    if not windows:
        raise UsageError(f"--crop {recipe.crop:g}: {length} samples are too few for the discriminator")
    with seeded(config.seed, 1):
        discriminator: nn.Module = build_discriminator(codec.channels, recipe.filters, windows)
    return discriminator.to(codec.device).train()


def optimisation_of(config: TrainCodecConfig) -> Optimisation:
    """The optimiser's side."""
    recipe = config.resolved_recipe
    return Optimisation(
        lr=recipe.lr,
        betas=config.betas,
        weight_decay=config.weight_decay,
        discriminator_lr=config.discriminator_lr,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        accumulate=config.accumulate,
        average=recipe.ema,
        phases=Phases(recipe.gan_start if recipe.gan_start < 1 else None, config.gan_lead_in),
    )


def _powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and ``most`` itself; of very many none that is less than a sixteenth."""
    powers = {1 << k for k in range(most.bit_length()) if 1 << k <= most} | {most}
    return tuple(sorted(n for n in powers if n >= most // 16))
