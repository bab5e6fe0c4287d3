"""Building blocks of the convolutional image tokenizers; all work on ``[B, C, H, W]``.

The order of operations is VQGAN's (Esser et al., arXiv:2012.09841): norm, SiLU, convolution, twice, plus a shortcut; strided
convolutions pad at the right and bottom only; upsampling repeats pixels and convolves.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tokkit.tokenizers.image.config import CnnArchitecture


def group_norm(channels: int, architecture: CnnArchitecture) -> nn.GroupNorm:
    """The architecture's GroupNorm for a width."""
    return nn.GroupNorm(architecture.norm_groups, channels, eps=architecture.norm_eps)


class ResidualBlock(nn.Module):
    """Two normalised 3x3 convolutions beside a shortcut (1x1 where the width changes)."""

    def __init__(self, inputs: int, outputs: int, architecture: CnnArchitecture) -> None:
        super().__init__()
        self.norm1 = group_norm(inputs, architecture)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = group_norm(outputs, architecture)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        h = self.conv2(functional.silu(self.norm2(h)))
        return self.shortcut(x) + h


class AttentionBlock(nn.Module):
    """Single-head self-attention over all positions, beside the identity."""

    def __init__(self, channels: int, architecture: CnnArchitecture) -> None:
        super().__init__()
        self.norm = group_norm(channels, architecture)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        q, k, v = (layer(normed).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(mixed)


class Downsample(nn.Module):
    """Halve both sides by a strided 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double both sides by repetition and a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The residual blocks of one resolution, attention where asked for, then a change of resolution or none."""

    def __init__(
        self, inputs: int, outputs: int, blocks: int, attention: bool, resample: nn.Module | None, architecture: CnnArchitecture
    ) -> None:
        super().__init__()
        widths = [inputs] + [outputs] * blocks
        self.blocks = nn.ModuleList(ResidualBlock(a, b, architecture) for a, b in pairwise(widths))
        self.attentions = nn.ModuleList(AttentionBlock(outputs, architecture) for _ in range(blocks if attention else 0))
        self.resample = resample if resample is not None else nn.Identity()
        self.recompute = False  # activations of a block are computed again in the backward pass instead of kept

    def forward(self, x: Tensor) -> Tensor:
        for i in range(len(self.blocks)):
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(self._block, x, i, use_reentrant=False, preserve_rng_state=False)
            else:
                x = self._block(x, i)
        return self.resample(x)

    def _block(self, x: Tensor, number: int) -> Tensor:
        x = self.blocks[number](x)
        return self.attentions[number](x) if len(self.attentions) else x


def middle(channels: int, architecture: CnnArchitecture) -> nn.Sequential:
    """Blocks at the lowest resolution, with attention after the first where asked for."""
    layers: list[nn.Module] = [ResidualBlock(channels, channels, architecture) for _ in range(architecture.middle_blocks)]
    if architecture.middle_attention:
        layers.insert(1, AttentionBlock(channels, architecture))
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """``[B, 3, H, W]`` to ``[B, z_channels, H / f, W / f]``; levels go from the highest resolution to the lowest."""

    def __init__(self, architecture: CnnArchitecture) -> None:
        super().__init__()
        widths = architecture.widths
        self.stem = nn.PixelUnshuffle(architecture.patch) if architecture.patch > 1 else nn.Identity()
        self.conv_in = nn.Conv2d(3 * architecture.patch**2, architecture.channels, 3, padding=1)
        self.levels = nn.ModuleList()
        inputs = architecture.channels
        for i, width in enumerate(widths):
            resample = Downsample(width) if i < len(widths) - 1 else None
            self.levels.append(
                Level(inputs, width, architecture.encoder_blocks, architecture.attention[i], resample, architecture)
            )
            inputs = width
        self.middle = middle(inputs, architecture)
        self.norm_out = group_norm(inputs, architecture)
        self.conv_out = nn.Conv2d(inputs, architecture.z_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.conv_in(self.stem(pixels))
        for level in self.levels:
            x = level(x)
        return self.conv_out(functional.silu(self.norm_out(self.middle(x))))


class Decoder(nn.Module):
    """``[B, z_channels, h, w]`` to ``[B, 3, f h, f w]``; levels go from the lowest resolution to the highest."""

    def __init__(self, architecture: CnnArchitecture) -> None:
        super().__init__()
        widths = architecture.widths
        inputs = widths[-1]
        self.conv_in = nn.Conv2d(architecture.z_channels, inputs, 3, padding=1)
        self.middle = middle(inputs, architecture)
        self.levels = nn.ModuleList()
        for i in reversed(range(len(widths))):
            resample = Upsample(widths[i]) if i > 0 else None
            self.levels.append(
                Level(inputs, widths[i], architecture.decoder_blocks, architecture.attention[i], resample, architecture)
            )
            inputs = widths[i]
        self.norm_out = group_norm(inputs, architecture)
        self.conv_out = nn.Conv2d(inputs, 3 * architecture.patch**2, 3, padding=1)
        self.stem = nn.PixelShuffle(architecture.patch) if architecture.patch > 1 else nn.Identity()

    def forward(self, z: Tensor) -> Tensor:
        x = self.middle(self.conv_in(z))
        for level in self.levels:
            x = level(x)
        return self.stem(self.conv_out(functional.silu(self.norm_out(x))))
