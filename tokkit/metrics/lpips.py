"""Learned perceptual distance (LPIPS, Zhang et al., arXiv:1801.03924) over a VGG16 trunk.

Both pictures go through VGG16; the activations after the last ReLU of each of its five stages are scaled to unit length over
channels; the squared differences, weighted per channel by a linear head, are averaged over positions and added up over stages.
Figures of other trunks (AlexNet, SqueezeNet) are not comparable, so results name the net: :data:`NET`.

Weights come from two files: the trunk as torchvision names it (``features.N.weight`` and ``.bias``; a classifier beside it is
not read), and the heads as the lpips package names them (``lin0.model.1.weight`` to ``lin4.model.1.weight``, version 0.1).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.metrics.weights import fill, read_weight_file

NET = "vgg16"
HEADS_VERSION = "0.1"

# Output channels of the 3x3 convolutions of each stage; max pooling stands between stages.
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# What the network was trained on: inputs in [-1, 1] are shifted and scaled by these, channel by channel.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10

# Four poolings must leave at least one position.
MIN_SIDE = 16


class Lpips(nn.Module):
    """The network; weights are random until :func:`load_lpips` fills them."""

    _shift: Tensor
    _scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for widths in STAGES:
            stage = nn.ModuleList()
            for width in widths:
                stage.append(nn.Conv2d(channels, width, 3, padding=1))
                channels = width
            self.stages.append(stage)
        self.heads = nn.ParameterList(nn.Parameter(torch.rand(1, widths[-1], 1, 1)) for widths in STAGES)
        self.register_buffer("_shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("_scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair, with gradients to both.

        Args:
            original, reconstruction: float32 ``[B, 3, H, W]`` in [-1, 1], sides at least 16.

        Returns:
            float32 ``[B]``, 0 for equal pictures.
        """
        if original.shape != reconstruction.shape or original.ndim != 4 or min(original.shape[2:]) < MIN_SIDE:
            raise ValueError(f"lpips compares pictures [B, 3, H, W] of one shape, sides {MIN_SIDE} or more")
        total = original.new_zeros(len(original))
        for head, x, y in zip(self.heads, self.features(original), self.features(reconstruction), strict=True):
            total = total + ((_unit(x) - _unit(y)).square() * head).sum(1).mean((1, 2))
        return total

    def features(self, pictures: Tensor) -> list[Tensor]:
        """float32 ``[B, 3, H, W]`` in [-1, 1] to the activations of the five stages."""
        x = (pictures - self._shift) / self._scale
        found = []
        for number, stage in enumerate(self.stages):
            if number:
                x = functional.max_pool2d(x, 2)
            for convolution in stage.children():
                x = functional.relu(convolution(x))
            found.append(x)
        return found

    @torch.no_grad()
    def distance(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Distance of each pair of uint8 ``[B, H, W, 3]``, as float64 ``[B]``."""
        pair = (p.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1 for p in (original, reconstruction))
        return self(*pair).to(torch.float64)


def load_lpips(trunk: Path, heads: Path) -> tuple[Lpips, dict[str, str]]:
    """Read the network from a VGG16 trunk and linear heads.

    Returns:
        The network, ready to measure, and the SHA-256 of either file by role (``trunk``, ``heads``).

    Raises:
        DataError: a file is missing, damaged, or holds other weights.
    """
    with torch.random.fork_rng(devices=[]):
        network = Lpips()
    trunk_file, heads_file = read_weight_file(trunk), read_weight_file(heads)
    fill(network, trunk_file, trunk_names())
    fill(network, heads_file, {f"heads.{i}": f"lin{i}.model.1.weight" for i in range(len(STAGES))})
    return network.eval().requires_grad_(False), {"trunk": trunk_file.sha256, "heads": heads_file.sha256}


def trunk_names() -> dict[str, str]:
    """Names of the convolutions: ours to torchvision's, which numbers convolutions, ReLUs and poolings together."""
    names, position = {}, 0
    for s, widths in enumerate(STAGES):
        for c in range(len(widths)):
            for kind in ("weight", "bias"):
                names[f"stages.{s}.{c}.{kind}"] = f"features.{position}.{kind}"
            position += 2
        position += 1
    return names


def _unit(features: Tensor) -> Tensor:
    return features / (features.square().sum(1, keepdim=True).sqrt() + EPS)
