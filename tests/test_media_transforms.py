"""From pictures to tokenizer inputs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from tokkit.media.transforms import Preprocessing, ShortestSide


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 300), height=st.integers(1, 300), size=st.integers(1, 96))
def test_any_picture_gives_the_square(width: int, height: int, size: int) -> None:
    pixels = Preprocessing(size=size).apply(Image.new("RGB", (width, height), (10, 20, 30)))
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert (pixels == (10, 20, 30)).all()


def test_resizing_then_cropping_with_offsets_rounded_down() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 161, 3), dtype=np.uint8))
    resized = np.asarray(picture.resize((round(161 * 32 / 90), 32), Image.Resampling.LANCZOS))
    left = (resized.shape[1] - 32) // 2
    assert np.array_equal(Preprocessing(size=32).apply(picture), resized[:, left : left + 32])


def test_a_picture_of_the_right_size_is_untouched() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    assert np.array_equal(Preprocessing(size=32).apply(picture), np.asarray(picture))


def test_filters_differ() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), dtype=np.uint8))
    outputs = {
        name: Preprocessing(size=32, resize=ShortestSide(filter=name)).apply(picture).tobytes()
        for name in ("lanczos", "bicubic", "bilinear", "box")
    }
    assert len(set(outputs.values())) == 4


def test_transparency_shows_the_background() -> None:
    clear = Image.new("RGBA", (16, 16), (200, 0, 0, 0))
    assert (Preprocessing(size=16).apply(clear) == 255).all()
    assert (Preprocessing(size=16, background=(1, 2, 3)).apply(clear) == (1, 2, 3)).all()


def test_it_is_part_of_a_frozen_configuration() -> None:
    preprocessing = Preprocessing(size=16)
    assert Preprocessing.model_validate_json(preprocessing.model_dump_json()) == preprocessing
    with pytest.raises(ValidationError):
        Preprocessing.model_validate({"size": 16, "filter": "lanczos"})


def test_workers_need_no_torch() -> None:
    code = "import sys, tokkit.media.images, tokkit.media.transforms; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
