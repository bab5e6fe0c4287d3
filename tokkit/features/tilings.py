"""From a picture's size to the grid that a vision encoder sees it in: pure arithmetic, in the published models' own rounding.

    anyres      LLaVA-1.5-HD and LLaVA-NeXT (arXiv:2310.03744): the pinpoint that keeps most of the picture, padded around it
    internvl    InternVL 1.5 (arXiv:2404.16821): the grid of the nearest aspect ratio, the picture stretched to it
    native      Qwen2-VL (arXiv:2409.12191): sides rounded to whole merged patches between a least and a largest area
    llama       Llama 3.2 Vision: the canvas of tiles that the picture fits in, padded right and below
    naflex      SigLIP 2 NaFlex (arXiv:2502.14786): the largest size of at most so many patches

Sizes are (height, width) throughout, grids (rows, columns). The order of comparisons and each rounding decide ties, and so
which grid a picture gets; ``tests/test_features_tilings.py`` holds them against transformers' functions over many sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tokkit.errors import ItemError
from tokkit.features.base import Grid

Size = tuple[int, int]

# LLaVA-NeXT's own, for tiles of 336 pixels.
LLAVA_NEXT_PINPOINTS: tuple[Size, ...] = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))

MAX_ASPECT_RATIO = 200  # of Qwen2-VL: a longer picture is refused


def best_pinpoint(size: Size, pinpoints: Sequence[Size]) -> Size:
    """The pinpoint at which most pixels of the picture survive; of equals, the one with the least area beyond them."""
    height, width = size
    best, most, least_waste = pinpoints[0], -1, math.inf
    for candidate in pinpoints:
        scale = min(candidate[1] / width, candidate[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        waste = candidate[0] * candidate[1] - kept
        if kept > most or (kept == most and waste < least_waste):
            best, most, least_waste = candidate, kept, waste
    return best


def fitted(size: Size, target: Size) -> Size:
    """The picture's size scaled to fit a target, the shorter side rounded up (LLaVA-NeXT)."""
    height, width = size
    across, down = target[1] / width, target[0] / height
    if across < down:
        return min(math.ceil(height * across), target[0]), target[1]
    return target[0], min(math.ceil(width * down), target[1])


def unpadded(size: Size, raster: Grid) -> tuple[int, int, int, int]:
    """What is picture, not padding, in a raster of tokens: (top, bottom, left, right), ends excluded (LLaVA-NeXT)."""
    height, width = size
    rows, columns = raster
    if width / height > columns / rows:
        padding = (rows - int(round(height * (columns / width), 7))) // 2
        return padding, rows - padding, 0, columns
    padding = (columns - int(round(width * (rows / height), 7))) // 2
    return 0, rows, padding, columns - padding


def internvl_grid(size: Size, tile: Size, min_tiles: int, max_tiles: int) -> Grid:
    """The grid of between so many tiles whose aspect ratio is nearest.

    Of equals a later, larger grid is taken while the picture has more than half of its area.
    """
    height, width = size
    grids = [
        (columns, rows)
        for columns in range(1, max_tiles + 1)
        for rows in range(1, max_tiles + 1)
        if min_tiles <= columns * rows <= max_tiles
    ]
    grids.sort(key=lambda grid: grid[0] * grid[1])  # stable: by columns within one area
    best, nearest = (1, 1), math.inf
    for columns, rows in grids:
        distance = abs(width / height - columns / rows)
        large_enough = width * height > 0.5 * tile[0] * tile[1] * columns * rows
        if distance < nearest or (distance == nearest and large_enough):
            best, nearest = (columns, rows), distance
    return best[1], best[0]


def smart_resize(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """Both sides as multiples of ``factor``, rounded half to even, with an area between the two bounds (Qwen2-VL).

    Raises:
        ItemError: one side is more than 200 times the other.
    """
    height, width = size
    if max(size) / min(size) > MAX_ASPECT_RATIO:
        raise ItemError(
            "image-aspect-ratio", f"{width} x {height} pixels: one side is more than {MAX_ASPECT_RATIO} times the other"
        )
    rounded = round(height / factor) * factor, round(width / factor) * factor
    if rounded[0] * rounded[1] > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        return tuple(max(factor, math.floor(side / beta / factor) * factor) for side in size)  # type: ignore[return-value]
    if rounded[0] * rounded[1] < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        return tuple(math.ceil(side * beta / factor) * factor for side in size)  # type: ignore[return-value]
    return rounded


def llama_grids(max_tiles: int) -> list[Grid]:
    """All grids of at most so many tiles; a grid's aspect ratio id is its index here plus one, 0 is padding."""
    return [(a, b) for a in range(1, max_tiles + 1) for b in range(1, max_tiles + 1) if a * b <= max_tiles]


def llama_canvas(size: Size, tile: int, max_tiles: int) -> Grid:
    """The grid that enlarges the picture least; where none holds it, the one that shrinks it least. Of equals, the smallest."""
    height, width = size
    grids = llama_grids(max_tiles)
    scales = [min(rows * tile / height, columns * tile / width) for rows, columns in grids]
    enlarging = [scale for scale in scales if scale >= 1]
    chosen = min(enlarging) if enlarging else max(scales)
    return min((grid for grid, scale in zip(grids, scales, strict=True) if scale == chosen), key=lambda grid: grid[0] * grid[1])


def llama_fitted(size: Size, grid: Grid, tile: int) -> Size:
    """The size that the picture is scaled to within its canvas: enlarged to a tile at most, its shorter side rounded down."""
    height, width = size
    target_height = min(max(height, tile), grid[0] * tile)
    target_width = min(max(width, tile), grid[1] * tile)
    down, across = target_height / height, target_width / width
    if across < down:
        return min(math.floor(height * across) or 1, target_height), target_width
    return target_height, min(math.floor(width * down) or 1, target_width)


def naflex_size(size: Size, patch: int, max_patches: int) -> Size:
    """The largest size in whole patches that keeps the aspect ratio and has at most so many patches, found by bisection."""

    def scaled(scale: float, side: int) -> int:
        return int(max(patch, math.ceil(side * scale / patch) * patch))

    epsilon = 1e-5
    low, high = epsilon / 10, 100.0
    while high - low >= epsilon:
        scale = (low + high) / 2
        if (scaled(scale, size[0]) / patch) * (scaled(scale, size[1]) / patch) <= max_patches:
            low = scale
        else:
            high = scale
    return scaled(low, size[0]), scaled(low, size[1])
