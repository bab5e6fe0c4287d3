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

from tokkit.media.transforms import BoxHalving, Preprocessing, ShortestSide, flatten


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


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


def test_box_halving_stops_before_the_last_step() -> None:
    """Halved (sides rounded down) while the shorter side is at least twice the length, then one bicubic step."""
    image = noise(205, 403)
    halved = image.resize((102, 201), Image.Resampling.BOX).resize((51, 100), Image.Resampling.BOX)
    wanted = halved.resize((32, round(100 * (32 / 51))), Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(BoxHalving().resize(image, 32)), np.asarray(wanted))
    twice = noise(64, 90)
    assert np.array_equal(np.asarray(BoxHalving().resize(twice, 32)), np.asarray(twice.resize((32, 45), Image.Resampling.BOX)))
    small = noise(63, 80)
    assert np.array_equal(
        np.asarray(BoxHalving().resize(small, 32)), np.asarray(ShortestSide(filter="bicubic").resize(small, 32))
    )


def test_rules_for_transparency() -> None:
    """White with fractions cut off, white with rounding, and the colour that is stored under it."""
    image = Image.new("RGBA", (1, 1), (100, 0, 255, 129))
    exact = [255 * (1 - 129 / 255) + 129 / 255 * v for v in (100, 0, 255)]
    truncated = np.asarray(flatten(image, "white-truncated"))[0, 0].tolist()
    assert truncated == [int(v) for v in exact]
    assert np.asarray(flatten(image, (255, 255, 255)))[0, 0].tolist() == [round(v) for v in exact] != truncated
    assert np.asarray(flatten(image, "dropped"))[0, 0].tolist() == [100, 0, 255]
    opaque = Image.fromarray(np.arange(768, dtype=np.uint8).reshape(16, 16, 3)).convert("RGBA")
    assert np.array_equal(np.asarray(flatten(opaque, "white-truncated")), np.asarray(opaque.convert("RGB")))
