"""Grids and sizes equal the published functions, as transformers has them, over a table of sizes and by chance."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.errors import ItemError
from tokkit.features import tilings

SIZES = [
    (336, 336), (1, 1), (480, 640), (640, 480), (1080, 1920), (1920, 1080), (100, 3000), (3000, 100), (672, 672), (673, 671),
    (337, 335), (500, 1000), (1000, 500), (28, 28), (27, 29), (448, 448), (896, 448), (560, 560), (560, 1120), (1121, 559),
    (4000, 6000), (13, 2000), (333, 1000), (720, 1280), (56, 11000), (224, 224), (1344, 336), (70, 126), (98, 42),
]  # fmt: skip
PINPOINTS = [list(p) for p in tilings.LLAVA_NEXT_PINPOINTS]
MORE_PINPOINTS = [[384 * a, 384 * b] for a in range(1, 7) for b in range(1, 7)]  # LLaVA-OneVision's

side = st.integers(1, 5000)


def _anyres(size: tuple[int, int], pinpoints: list[list[int]]) -> None:
    import numpy as np
    import torch
    from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
    from transformers.models.llava_next.modeling_llava_next import unpad_image

    best = tilings.best_pinpoint(size, [(a, b) for a, b in pinpoints])
    assert best == select_best_resolution(size, pinpoints)
    theirs = get_patch_output_size(np.empty((3, *size), dtype=np.bool_), best, "channels_first")
    assert tilings.fitted(size, best) == theirs
    raster = (best[0] // 14, best[1] // 14)
    marked = torch.arange(raster[0] * raster[1]).reshape(1, *raster)
    top, bottom, left, right = tilings.unpadded(size, raster)
    assert torch.equal(marked[:, top:bottom, left:right], unpad_image(marked, size))


def _internvl(size: tuple[int, int], least: int, most: int) -> None:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    columns, rows = get_optimal_tiled_canvas(size, (448, 448), least, most)
    assert tilings.internvl_grid(size, (448, 448), least, most) == (rows, columns)


def _native(size: tuple[int, int], factor: int, least: int, most: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    try:
        theirs = smart_resize(*size, factor=factor, min_pixels=least, max_pixels=most)
    except ValueError:
        with pytest.raises(ItemError, match="image-aspect-ratio"):
            tilings.smart_resize(size, factor, least, most)
        return
    assert tilings.smart_resize(size, factor, least, most) == theirs


def _llama(size: tuple[int, int], tile: int, most: int) -> None:
    from transformers.models.mllama import image_processing_pil_mllama as reference

    height, width = reference.get_optimal_tiled_canvas(*size, most, tile)
    grid = tilings.llama_canvas(size, tile, most)
    assert (grid[0] * tile, grid[1] * tile) == (height, width)
    assert tilings.llama_fitted(size, grid, tile) == reference.get_image_size_fit_to_canvas(*size, height, width, tile)
    assert tilings.llama_grids(most) == reference.get_all_supported_aspect_ratios(most)


def _naflex(size: tuple[int, int], most: int) -> None:
    from transformers.models.siglip2.image_processing_pil_siglip2 import get_image_size_for_max_num_patches

    assert tilings.naflex_size(size, 16, most) == get_image_size_for_max_num_patches(*size, 16, most)


@pytest.mark.parametrize("size", SIZES)
def test_the_table_of_sizes(size: tuple[int, int]) -> None:
    _anyres(size, PINPOINTS)
    _anyres(size, MORE_PINPOINTS)
    for bounds in ((1, 12), (1, 6), (4, 24)):
        _internvl(size, *bounds)
    _native(size, 28, 56 * 56, 28 * 28 * 1280)
    _native(size, 28, 4 * 28 * 28, 16384 * 28 * 28)
    _llama(size, 560, 4)
    _naflex(size, 256)


@settings(max_examples=60, deadline=None)
@given(st.tuples(side, side))
def test_sizes_by_chance(size: tuple[int, int]) -> None:
    _anyres(size, PINPOINTS)
    _internvl(size, 1, 12)
    _native(size, 28, 56 * 56, 28 * 28 * 1280)
    _llama(size, 448, 6)
    _naflex(size, 64)


def test_published_values() -> None:
    assert tilings.best_pinpoint((480, 640), tilings.LLAVA_NEXT_PINPOINTS) == (672, 672)
    assert tilings.internvl_grid((800, 1300), (448, 448), 1, 12) == (2, 3)
    assert tilings.smart_resize((480, 640), 28, 56 * 56, 28 * 28 * 1280) == (476, 644)
    assert tilings.llama_canvas((560, 1120), 560, 4) == (1, 2)
    assert tilings.llama_grids(4) == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (2, 2), (3, 1), (4, 1)]
