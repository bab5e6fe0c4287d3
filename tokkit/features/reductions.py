"""Fewer tokens, or longer ones: what is done to a view's features before they are stored.

Averages, shuffles and stacks are fixed arithmetic on a view's raster; a resampler is a small network read from a checkpoint
(:mod:`tokkit.features.resamplers`). Each is applied to a whole batch of one shape, so what a view becomes does not depend on
its neighbours. The arithmetic of token counts (:func:`reduced_grid`) needs no tensors, so sizes are known before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokkit.errors import UsageError
from tokkit.features.base import AveragePooling, FrameStacking, Grid, PixelShuffle, Reduction

if TYPE_CHECKING:
    from torch import Tensor


def reduced_grid(reductions: Sequence[Reduction], grid: Grid) -> Grid:
    """The raster that a view's raster becomes; resamplers are not asked for here.

    Raises:
        UsageError: a pixel shuffle's factor does not divide the raster.
    """
    rows, columns = grid
    for step in reductions:
        if isinstance(step, AveragePooling):
            rows, columns = -(-rows // step.size), -(-columns // step.size)
        elif isinstance(step, PixelShuffle):
            if rows % step.factor or columns % step.factor:
                raise UsageError(f"pixel shuffle by {step.factor} does not divide a raster of {rows} x {columns} tokens")
            rows, columns = rows // step.factor, columns // step.factor
        elif isinstance(step, FrameStacking):
            columns = -(-columns // step.frames)
    return rows, columns


def reduced_dim(reductions: Sequence[Reduction], dim: int) -> int:
    """The dimension of a token afterwards."""
    for step in reductions:
        if isinstance(step, PixelShuffle):
            dim *= step.factor**2
        elif isinstance(step, FrameStacking):
            dim *= step.frames
    return dim


def reduce(reductions: Sequence[Reduction], tokens: Tensor) -> Tensor:
    """float ``[B, rows, columns, D]`` to what it becomes, step by step (:func:`reduced_grid`, :func:`reduced_dim`)."""
    for step in reductions:
        if isinstance(step, AveragePooling):
            tokens = average(tokens, step.size)
        elif isinstance(step, PixelShuffle):
            tokens = shuffle(tokens, step.factor)
        elif isinstance(step, FrameStacking):
            tokens = stack(tokens, step.frames)
    return tokens


def average(tokens: Tensor, size: int) -> Tensor:
    """Means over squares; those at the right and lower edge are over the tokens that there are."""
    from torch.nn.functional import avg_pool2d

    window = (min(size, tokens.shape[1]), min(size, tokens.shape[2]))  # a sequence of frames is one row
    pooled = avg_pool2d(tokens.permute(0, 3, 1, 2), window, stride=size, ceil_mode=True, count_include_pad=False)
    return pooled.permute(0, 2, 3, 1)


def shuffle(tokens: Tensor, factor: int) -> Tensor:
    """Blocks of ``factor`` by ``factor`` tokens side by side in one vector, row by row."""
    B, rows, columns, D = tokens.shape
    blocks = tokens.reshape(B, rows // factor, factor, columns // factor, factor, D).permute(0, 1, 3, 2, 4, 5)
    return blocks.reshape(B, rows // factor, columns // factor, factor * factor * D)


def stack(tokens: Tensor, frames: int) -> Tensor:
    """Consecutive columns side by side in one vector; the last one filled up with zeros."""
    from torch.nn.functional import pad

    B, rows, columns, D = tokens.shape
    padded = pad(tokens, (0, 0, 0, -columns % frames))
    return padded.reshape(B, rows, -1, frames * D)
