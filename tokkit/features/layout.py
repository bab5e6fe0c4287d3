"""Where each view's tokens stand in an item's features: arithmetic on positions, without tensors.

The encoder gives tokens view by view; :func:`arrange` says in which order they are stored, which runs of them are rasters, and
where a learned newline goes. Counting tokens before a run and laying them out in one are the same function.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokkit.features import tilings
from tokkit.features.base import Grid, Merge
from tokkit.features.tilings import Size


@dataclass(frozen=True, slots=True, eq=False)
class Arrangement:
    """How an item's features come from its views' tokens, one view after the other.

    Attributes:
        tokens: how many there are.
        order: int64 ``[tokens]``, positions in the views' tokens; None where they stay as they are.
        grid, tiles, newlines: as in :class:`tokkit.features.base.ItemFeatures`.
    """

    tokens: int
    order: NDArray[np.int64] | None
    grid: Grid | None
    tiles: tuple[tuple[int, int, int], ...]
    newlines: NDArray[np.int32] | None


def arrange(rasters: Sequence[Grid], prefix: int) -> Arrangement:
    """Views one after the other, each with ``prefix`` tokens before its raster."""
    tiles, first = [], 0
    for rows, columns in rasters:
        tiles.append((first + prefix, rows, columns))
        first += prefix + rows * columns
    return Arrangement(first, None, rasters[0] if len(rasters) == 1 else None, tuple(tiles), None)


def arrange_anyres(rasters: Sequence[Grid], tiles: Grid, size: Size, merge: Merge) -> Arrangement:
    """A base view and the tiles of a picture of ``size``; merged into one raster with newlines, unless ``merge`` is ``flat``.

    In the merged raster tokens stand row by row over the whole canvas; with ``spatial_unpad``, rows or columns that are nothing
    but padding are left out, as LLaVA-NeXT does.
    """
    if merge == "flat":
        return arrange(rasters, 0)
    rows, columns = rasters[0]
    base = rows * columns
    canvas = base + np.arange(tiles[0] * tiles[1] * base).reshape(*tiles, rows, columns).transpose(0, 2, 1, 3)
    raster = canvas.reshape(tiles[0] * rows, tiles[1] * columns)
    if merge == "spatial_unpad":
        top, bottom, left, right = tilings.unpadded(size, (raster.shape[0], raster.shape[1]))
        raster = raster[top:bottom, left:right]
    height, width = raster.shape
    newlines = base + width * np.arange(1, height + 1)
    order = np.concatenate([np.arange(base), raster.ravel()])
    return Arrangement(len(order), order, None, ((0, rows, columns), (base, height, width)), newlines.astype(np.int32))
