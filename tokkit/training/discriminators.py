"""Networks that tell pictures from their reconstructions; all give logits, one for each of many places.

* :class:`PatchDiscriminator`: PatchGAN (arXiv:1611.07004), strided 4x4 convolutions.
* :class:`BlurDiscriminator`: the stronger one of VQGAN+ (MaskBit, arXiv:2409.16211): at each of its stages a 3x3 convolution
  and a halving through a binomial blur, so that nothing aliases, then a small head on a 16x16 grid at most.
* :class:`FeatureDiscriminator`: heads on the features of a frozen backbone (DINO, DINOv2), after arXiv:2111.01007.

Normalisation is GroupNorm everywhere, also where the papers have BatchNorm: logits of a picture then do not depend on what else
is in the batch or on how many processes there are.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

from tokkit.training.networks import FrozenBackbone

DiscriminatorKind = Literal["none", "patch", "blur", "features"]

SLOPE = 0.2
HEAD_SIDE = 16


def _norm(channels: int) -> nn.GroupNorm:
    groups = next(n for n in (32, 16, 8, 4, 2, 1) if channels % n == 0)
    return nn.GroupNorm(groups, channels)


class PatchDiscriminator(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, 1, H / 2^layers - 2, W / 2^layers - 2]``; each sees 70 pixels a side with 3 layers.

    Args:
        channels: width after the first layer; doubled by each of the others, up to eightfold.
        layers: halvings.
    """

    def __init__(self, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            parts += [
                nn.Conv2d(width, wider, 4, stride=stride, padding=1, bias=False),
                _norm(wider),
                nn.LeakyReLU(SLOPE),
            ]
            width = wider
        self.layers = nn.Sequential(*parts, nn.Conv2d(width, 1, 4, padding=1))

    def forward(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.layers(pictures)
        return logits


class BlurHalving(nn.Module):
    """Half the sides through a binomial filter (1 3 3 1), each channel by itself (arXiv:1904.11486)."""

    _kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        kernel = torch.outer(taps, taps)
        self.register_buffer("_kernel", (kernel / kernel.sum()).view(1, 1, 4, 4), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        kernel = self._kernel.to(x.dtype).expand(channels, 1, 4, 4)
        return functional.conv2d(functional.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=channels)


class BlurDiscriminator(nn.Module):
    """``[B, 3, H, W]`` to logits ``[B, 1, h, w]`` with h and w at most 16.

    Args:
        channels: width after the first convolution; doubled by each stage, up to fourfold.
        stages: halvings; the smaller side of pictures must be at least 2 to this power, times 2.
    """

    def __init__(self, channels: int = 128, stages: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 5, padding=2)
        widths = [channels * min(2**stage, 4) for stage in range(stages + 1)]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                BlurHalving(),
                _norm(b),
                nn.LeakyReLU(SLOPE),
            )
            for a, b in pairwise(widths)
        )
        last = widths[-1]
        self.head = nn.Sequential(nn.Conv2d(last, last, 1), nn.LeakyReLU(SLOPE), nn.Conv2d(last, 1, 5, padding=2))

    def forward(self, pictures: Tensor) -> Tensor:
        x = functional.leaky_relu(self.stem(pictures), SLOPE)
        for stage in self.stages:
            x = stage(x)
        if max(x.shape[2:]) > HEAD_SIDE:
            x = functional.adaptive_avg_pool2d(x, (min(HEAD_SIDE, x.shape[2]), min(HEAD_SIDE, x.shape[3])))
        logits: Tensor = self.head(x)
        return logits


class FeatureDiscriminator(nn.Module):
    """Small trained heads on several layers of a frozen transformer: ``[B, 3, H, W]`` to logits ``[B, layers x tokens]``.

    Args:
        backbone: frozen, on the device already; gradients go through it to the pictures. It is not kept in checkpoints.
        width: of a head's hidden layer.
    """

    def __init__(self, backbone: FrozenBackbone, width: int = 256) -> None:
        super().__init__()
        # in a list, so that it is no part of this module: neither of its state nor of what is trained
        self._frozen = [backbone]
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv1d(backbone.width, width, 1)),
                nn.LeakyReLU(SLOPE),
                _Mixing(width),
                spectral_norm(nn.Conv1d(width, 1, 1)),
            )
            for _ in backbone.layers
        )

    def forward(self, pictures: Tensor) -> Tensor:
        found = self._frozen[0](pictures)
        return torch.cat([head(tokens.transpose(1, 2)).flatten(1) for head, tokens in zip(self.heads, found, strict=True)], 1)


class _Mixing(nn.Module):
    """A residual convolution over nine neighbouring tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = spectral_norm(nn.Conv1d(width, width, 9, padding=4, padding_mode="circular"))
        self.norm = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = functional.leaky_relu(self.norm(self.conv(x)), SLOPE)
        return (x + mixed) * 0.5**0.5
