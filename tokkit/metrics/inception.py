"""The Inception v3 network that FID is measured with: ``pt_inception-2015-12-05``.

These are the weights of the original TensorFlow graph with the tensor names of torchvision's ``Inception3``. The graph differs
from torchvision's network in two things: average poolings leave the padding out of the count, and the last block pools by
maximum. Pictures are brought to 299x299 by bilinear interpolation without antialiasing, and to [-1, 1]. Other choices there
(a resize with antialiasing, torchvision's own weights) give figures that are not comparable.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.metrics.weights import fill, read_weight_file

FEATURES = 2048
SIDE = 299

Size = int | tuple[int, int]


class Convolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Size, stride: int = 1, padding: Size = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.bn(self.conv(x)))


class Branches(nn.Module):
    """Some chains of convolutions side by side; subclasses name the convolutions as torchvision does and join the chains."""

    def run(self, x: Tensor, *names: str) -> Tensor:
        """``x`` through the convolutions of these names."""
        for name in names:
            x = self.get_submodule(name)(x)
        return x

    def run_numbered(self, x: Tensor, prefix: str, count: int) -> Tensor:
        """``x`` through ``prefix_1`` to ``prefix_COUNT``."""
        return self.run(x, *(f"{prefix}_{i}" for i in range(1, count + 1)))

    def chain(self, prefix: str, widths: Iterable[int], kernels: Iterable[Size], last_stride: int = 1) -> None:
        """Add ``prefix_1``, ``prefix_2``, ... of these widths (the input's first); sides are kept but for ``last_stride``."""
        sizes = list(kernels)
        for i, ((inputs, outputs), kernel) in enumerate(zip(pairwise(widths), sizes, strict=True), start=1):
            stride = last_stride if i == len(sizes) else 1
            padding = _same(kernel) if stride == 1 else 0
            self.add_module(f"{prefix}_{i}", Convolution(inputs, outputs, kernel, stride, padding))


class BlockA(Branches):
    """1x1, 5x5, double 3x3 and average pooling, at 35x35."""

    def __init__(self, inputs: int, pool: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(inputs, 64, 1)
        self.chain("branch5x5", (inputs, 48, 64), (1, 5))
        self.chain("branch3x3dbl", (inputs, 64, 96, 96), (1, 3, 3))
        self.branch_pool = Convolution(inputs, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.branch1x1(x), self.run_numbered(x, "branch5x5", 2), self.run_numbered(x, "branch3x3dbl", 3)]
        return torch.cat([*branches, self.branch_pool(_average(x))], 1)


class BlockB(Branches):
    """Reduction to 17x17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(inputs, 384, 3, stride=2)
        self.chain("branch3x3dbl", (inputs, 64, 96, 96), (1, 3, 3), last_stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch3x3(x), self.run_numbered(x, "branch3x3dbl", 3), functional.max_pool2d(x, 3, 2)], 1)


class BlockC(Branches):
    """1x1 and factorised 7x7, at 17x17."""

    def __init__(self, inputs: int, middle: int) -> None:
        super().__init__()
        row, column = (1, 7), (7, 1)
        self.branch1x1 = Convolution(inputs, 192, 1)
        self.chain("branch7x7", (inputs, middle, middle, 192), (1, row, column))
        self.chain("branch7x7dbl", (inputs, *[middle] * 4, 192), (1, column, row, column, row))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.branch1x1(x), self.run_numbered(x, "branch7x7", 3), self.run_numbered(x, "branch7x7dbl", 5)]
        return torch.cat([*branches, self.branch_pool(_average(x))], 1)


class BlockD(Branches):
    """Reduction to 8x8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.chain("branch3x3", (inputs, 192, 320), (1, 3), last_stride=2)
        self.chain("branch7x7x3", (inputs, 192, 192, 192, 192), (1, (1, 7), (7, 1), 3), last_stride=2)

    def forward(self, x: Tensor) -> Tensor:
        branches = [self.run_numbered(x, "branch3x3", 2), self.run_numbered(x, "branch7x7x3", 4)]
        return torch.cat([*branches, functional.max_pool2d(x, 3, 2)], 1)


class BlockE(Branches):
    """1x1 and split 3x3, at 8x8."""

    def __init__(self, inputs: int, max_pooling: bool) -> None:
        super().__init__()
        self.max_pooling = max_pooling
        self.branch1x1 = Convolution(inputs, 320, 1)
        self.branch3x3_1 = Convolution(inputs, 384, 1)
        self.chain("branch3x3dbl", (inputs, 448, 384), (1, 3))
        for name in ("branch3x3_2", "branch3x3dbl_3"):
            self.add_module(f"{name}a", Convolution(384, 384, (1, 3), padding=(0, 1)))
            self.add_module(f"{name}b", Convolution(384, 384, (3, 1), padding=(1, 0)))
        self.branch_pool = Convolution(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        single, double = self.branch3x3_1(x), self.run_numbered(x, "branch3x3dbl", 2)
        split = [self.run(single, f"branch3x3_2{s}") for s in "ab"] + [self.run(double, f"branch3x3dbl_3{s}") for s in "ab"]
        pooled = functional.max_pool2d(x, 3, 1, 1) if self.max_pooling else _average(x)
        return torch.cat([self.branch1x1(x), *split, self.branch_pool(pooled)], 1)


class Inception(nn.Module):
    """The network up to its last pooling; weights are random until :func:`load_inception` fills them."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = BlockA(192, 32), BlockA(256, 64), BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (BlockC(768, m) for m in (128, 160, 160, 192))
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b, self.Mixed_7c = BlockE(1280, max_pooling=False), BlockE(2048, max_pooling=True)

    def forward(self, pictures: Tensor) -> Tensor:
        """float32 ``[B, 3, H, W]`` in [0, 1] to features float32 ``[B, 2048]``."""
        x = functional.interpolate(pictures, (SIDE, SIDE), mode="bilinear", align_corners=False) * 2 - 1
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(functional.max_pool2d(x, 3, 2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(functional.max_pool2d(x, 3, 2))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        return self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x))).mean((2, 3))

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Features float32 ``[B, 2048]`` of uint8 ``[B, H, W, 3]``."""
        return self(pictures.permute(0, 3, 1, 2).to(torch.float32) / 255)


def load_inception(path: Path) -> tuple[Inception, str]:
    """Read the network from a file with torchvision's names; the classifier in it is not read.

    Returns:
        The network, ready to measure, and the SHA-256 of the file.

    Raises:
        DataError: the file is missing, damaged, or holds other weights.
    """
    with torch.random.fork_rng(devices=[]):
        network = Inception()
    file = read_weight_file(path)
    fill(network, file, {name: name for name in network.state_dict() if not name.endswith("num_batches_tracked")})
    return network.eval().requires_grad_(False), file.sha256


def _same(kernel: Size) -> Size:
    return kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2)


def _average(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
