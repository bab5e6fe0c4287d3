"""Checkpoints in other projects' layouts, written here from a tokenizer's own weights; apart from the importer's renaming."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tokkit.media.transforms import Preprocessing
from tokkit.tokenizers.image.config import CnnArchitecture, ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.quantizer_config import VqQuantizer


def tokenizer_of(
    architecture: CnnArchitecture, codes: int = 64, dim: int = 8, normalize: bool = False, size: int = 32, seed: int = 0
) -> ImageTokenizer:
    """A tokenizer with every weight drawn: no two blocks alike, as fresh norms and biases would be."""
    config = ImageTokenizerConfig(
        name="ours",
        architecture=architecture,
        quantizer=VqQuantizer(codebook_size=codes, codebook_dim=dim, normalize=normalize, rotation_trick=dim > 1),
        preprocessing=Preprocessing(size=size),
    )
    tokenizer = ImageTokenizer(config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in tokenizer.state_dict().items():
        fan_in = tensor[0].numel() if tensor.ndim == 4 else 1
        drawn = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
        state[name] = (
            1 + 0.1 * drawn if "norm" in name and name.endswith("weight") else (0.1 if tensor.ndim == 1 else 1.0) * drawn
        )
    tokenizer.load_state_dict(state)
    tokenizer.eval().requires_grad_(False)
    noise = torch.rand((4, 3, 32, 32), generator=generator) * 2 - 1
    tokenizer.quantizer.codebook.copy_(spread(tokenizer.quant_conv(tokenizer.encoder(noise)), codes, generator))  # type: ignore[operator]
    return tokenizer


def spread(features: Tensor, codes: int, generator: torch.Generator | None = None) -> Tensor:
    """A codebook ``[codes, D]`` drawn from features ``[B, D, h, w]``: pictures then get many different codes."""
    rows = features.permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    chosen = rows[torch.randint(0, len(rows), (codes,), generator=generator)]
    return chosen + 0.05 * rows.std() * torch.randn(chosen.shape, generator=generator)


def architecture_of(
    multipliers: tuple[int, ...] = (1, 2),
    blocks: int = 1,
    attention: tuple[bool, ...] | None = None,
    middle_attention: bool = True,
    z: int = 32,
    kernel: int = 1,
    decoder: bool = True,
) -> CnnArchitecture:
    """A network of the shape that taming and LlamaGen build."""
    return CnnArchitecture(
        channels=32,
        multipliers=multipliers,
        encoder_blocks=blocks,
        decoder_blocks=blocks + 1 if decoder else 0,
        attention=attention or (False,) * len(multipliers),
        middle_blocks=2,
        middle_attention=middle_attention,
        z_channels=z,
        projection_kernel=kernel,  # type: ignore[arg-type]
    )


def taming_names(tokenizer: ImageTokenizer) -> dict[str, Tensor]:
    """The weights under taming's names: decoder levels from the highest resolution, blocks of the middle counted from 1."""
    levels = len(tokenizer.config.architecture.multipliers)
    middle = ["block_1", "attn_1", "block_2"] if tokenizer.config.architecture.middle_attention else ["block_1", "block_2"]
    found = {}
    for name, tensor in tokenizer.weights().items():
        parts = name.replace(".shortcut.", ".nin_shortcut.").split(".")
        if parts[1] == "levels":
            level = int(parts[2]) if parts[0] == "encoder" else levels - 1 - int(parts[2])
            kind = {"blocks": "block", "attentions": "attn"}.get(parts[3], parts[3])
            if kind == "resample":
                kind = "downsample" if parts[0] == "encoder" else "upsample"
            parts = [parts[0], "down" if parts[0] == "encoder" else "up", str(level), kind, *parts[4:]]
        elif parts[1] == "middle":
            parts = [parts[0], "mid", middle[int(parts[2])], *parts[3:]]
        found[".".join(parts).replace("quantizer.codebook", "quantize.embedding.weight")] = tensor.clone()
    return found


def llamagen_names(tokenizer: ImageTokenizer) -> dict[str, Tensor]:
    """The weights under LlamaGen's names: decoder levels from the lowest resolution, with its usage buffer."""
    found = {}
    for name, tensor in tokenizer.weights().items():
        parts = name.replace(".shortcut.", ".nin_shortcut.").split(".")
        if parts[1] == "levels":
            kind = {"blocks": "res", "attentions": "attn"}.get(parts[3], parts[3])
            if kind == "resample":
                kind = "downsample" if parts[0] == "encoder" else "upsample"
            parts = [parts[0], "conv_blocks", parts[2], kind, *parts[4:]]
        elif parts[1] == "middle":
            parts = [parts[0], "mid", *parts[2:]]
        found[".".join(parts).replace("quantizer.codebook", "quantize.embedding.weight")] = tensor.clone()
    return found | {"quantize.codebook_used": torch.zeros(65536)}


def taming_file(path: Path, weights: Mapping[str, Tensor], **beside: object) -> Path:
    """A trainer's checkpoint: weights under ``state_dict``, with its losses, among the trainer's own entries."""
    losses = {"loss.discriminator.main.0.weight": torch.zeros(4), "loss.perceptual_loss.lin0.model.1.weight": torch.zeros(4)}
    entries = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.0.8", "state_dict": {**weights, **losses}}
    torch.save(entries | beside, path)
    return path
