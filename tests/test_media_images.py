"""Untrusted picture bytes: every file becomes pixels or a reasoned reject, and nothing else."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokkit.errors import ItemError, TransientError, UnwantedItem
from tokkit.media.images import ImageLimits, decode_image, is_wanted

ANY_SIZE = ImageLimits(min_side=1, max_aspect=1e9)

REASONS = {
    "image-empty",
    "image-unrecognised",
    "image-truncated",
    "image-too-large",
    "image-too-small",
    "image-too-long",
    "image-aspect",
    "image-damaged",
}
UNWANTED = {"image-too-small", "image-too-long", "image-aspect"}


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(width: int = 64, height: int = 48) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 3 % 256, y * 5 % 256, (x + y) * 2 % 256], axis=-1).astype(np.uint8))


def reason(data: bytes, limits: ImageLimits = ANY_SIZE) -> str:
    with pytest.raises(ItemError) as caught:
        decode_image(data, limits)
    assert caught.value.reason in REASONS
    assert isinstance(caught.value, UnwantedItem) == (caught.value.reason in UNWANTED)
    return caught.value.reason


def test_every_bad_file_is_decoded_or_rejected_as_the_manifest_leads_one_to_expect(shared_data: Path) -> None:
    lines = (shared_data / "bad" / "MANIFEST.jsonl").read_text().splitlines()
    entries = [e for e in map(json.loads, lines) if e["file"].startswith("images/")]
    assert len(entries) == 68
    for entry in entries:
        data = (shared_data / "bad" / entry["file"]).read_bytes()
        if entry["observed"].startswith("Pillow: "):
            assert decode_image(data, ANY_SIZE).mode in ("RGB", "RGBA"), entry["file"]
        else:
            reason(data)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("truncated_half.jpg", "image-truncated"),
        ("no_eoi.jpg", "image-truncated"),
        ("header_only.jpg", "image-truncated"),
        ("zero_byte.jpg", "image-empty"),
        ("html_saved_as.jpg", "image-unrecognised"),
        ("vector.svg", "image-unrecognised"),
        ("bomb_30000x30000_1bit.png", "image-too-large"),
        ("bomb_header_only_60000x60000_rgb.png", "image-too-large"),
        ("pillow_decompression_bomb.gif", "image-too-large"),
        ("pillow_png_decompression_dos.png", "image-damaged"),
        ("pngsuite_xhdn0g08.png", "image-damaged"),
        ("one_pixel.png", "image-too-small"),
        ("strip_20000x2.png", "image-too-small"),
    ],
)
def test_reasons(shared_data: Path, name: str, expected: str) -> None:
    assert reason((shared_data / "bad" / "images" / name).read_bytes(), ImageLimits()) == expected


def test_every_well_formed_picture_is_decoded(shared_data: Path) -> None:
    rejected = {}
    for path in sorted((shared_data / "image_formats").iterdir()):
        try:
            image = decode_image(path.read_bytes(), ANY_SIZE)
            assert image.mode in ("RGB", "RGBA")
            assert np.asarray(image).dtype == np.uint8
        except ItemError as error:
            rejected[path.name] = error.reason
    assert rejected == {"hopper.ico": "image-unrecognised"}  # icons are decoded while Pillow opens them


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_cut_files_are_rejected_never_filled(kind: str) -> None:
    data = encoded(photo(), kind)
    for share in (0.2, 0.5, 0.8):
        assert reason(data[: int(len(data) * share)]) in ("image-truncated", "image-damaged", "image-unrecognised")


@settings(deadline=None, max_examples=150)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "JPEG2000"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    cut=st.floats(0, 1),
)
def test_altered_bytes_give_pixels_or_an_item_error(kind: str, changes: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(encoded(photo(24, 16), kind))
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(ItemError, TransientError):
        image = decode_image(bytes(data[: int(cut * len(data)) or None]), ImageLimits(max_pixels=1 << 20, min_side=1))
        assert image.mode in ("RGB", "RGBA")
        assert image.width * image.height <= 1 << 20


def test_the_size_in_the_header_is_checked_before_any_pixel_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(photo(200, 100))

    def refuse(self: Image.Image) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert reason(data, ImageLimits(max_pixels=19_999)) == "image-too-large"
    assert reason(data, ImageLimits(min_side=101)) == "image-too-small"
    assert reason(data, ImageLimits(min_pixels=20_001)) == "image-too-small"
    assert reason(data, ImageLimits(max_side=199)) == "image-too-long"
    assert reason(data, ImageLimits(max_aspect=1.9)) == "image-aspect"
    assert reason(data, ImageLimits(max_bytes=len(data) - 1)) == "image-too-large"


def test_limits_are_inclusive() -> None:
    data = encoded(photo(200, 100))
    limits = ImageLimits(max_bytes=len(data), max_pixels=20_000, min_pixels=20_000, min_side=100, max_side=200, max_aspect=2)
    assert is_wanted(data, limits)
    assert decode_image(data, limits).size == (200, 100)


@given(
    width=st.integers(1, 60),
    height=st.integers(1, 60),
    limits=st.builds(
        ImageLimits,
        max_bytes=st.sampled_from([90, 1 << 20]),
        max_pixels=st.integers(900, 3600),
        min_pixels=st.integers(1, 900),
        min_side=st.integers(1, 20),
        max_side=st.none() | st.integers(20, 60),
        max_aspect=st.floats(1, 8),
    ),
)
def test_what_is_wanted_by_its_header_is_what_is_decoded(width: int, height: int, limits: ImageLimits) -> None:
    data = encoded(Image.new("L", (width, height)))
    try:
        decode_image(data, limits)
        decoded = True
    except ItemError:
        decoded = False
    short, long = sorted((width, height))
    inside = limits.min_pixels <= width * height <= limits.max_pixels and limits.min_side <= short
    inside = inside and long <= (limits.max_side or long) and long <= limits.max_aspect * short
    assert is_wanted(data, limits) == decoded == (inside and len(data) <= limits.max_bytes)


def test_impossible_limits_are_refused() -> None:
    for wrong in ({"min_pixels": 9, "max_pixels": 8}, {"min_side": 9, "max_side": 8}, {"max_side": 0}, {"min_pixels": 0}):
        with pytest.raises(ValueError, match="limits"):
            ImageLimits(**wrong)
    with pytest.raises(ValueError, match="max_pixels"):
        ImageLimits(max_pixels=10**9)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_once(orientation: int, kind: str) -> None:
    upright = photo(48, 32)
    back = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # the transpose that orientation undoes
    stored = upright if back is None else upright.transpose(Image.Transpose(back))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    decoded = decode_image(encoded(stored, kind, exif=exif, **options), ANY_SIZE)
    assert decoded.size == upright.size
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(upright)).max() <= (12 if kind == "JPEG" else 0)


def test_16_bit_gray_is_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    decoded = np.asarray(decode_image(encoded(Image.fromarray(ramp)), ANY_SIZE))
    assert np.array_equal(decoded[..., 0], np.round(ramp / 257).astype(np.uint8))
    header = b"P5 64 64 65535\n"
    assert np.array_equal(np.asarray(decode_image(header + ramp.astype(">u2").tobytes(), ANY_SIZE)), decoded)


def test_transparency_survives_in_every_kind_of_file() -> None:
    rgba = photo().convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(rgba.size))
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    gray_alpha = rgba.convert("LA")
    for data in (encoded(rgba), encoded(palette, transparency=1), encoded(gray_alpha), encoded(palette, "GIF", transparency=1)):
        decoded = decode_image(data, ANY_SIZE)
        assert decoded.mode == "RGBA"
        assert np.asarray(decoded)[..., 3].min() < 5
    assert decode_image(encoded(photo().convert("L"), transparency=0), ANY_SIZE).mode == "RGBA"
    assert decode_image(encoded(palette), ANY_SIZE).mode == "RGB"


def test_a_16_bit_transparent_colour_is_found(shared_data: Path) -> None:
    alpha = np.asarray(decode_image((shared_data / "image_formats" / "pngsuite_tbbn2c16.png").read_bytes(), ANY_SIZE))[..., 3]
    assert 0 < (alpha == 0).mean() < 1


def test_the_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        r, g, b = np.asarray(decode_image(data, ANY_SIZE))[8, 8, :3].astype(int)
        assert (r > 240, g < 15, b < 15) == (True, True, True), kind


def test_cmyk_is_not_inverted(shared_data: Path) -> None:
    pixels = np.asarray(decode_image((shared_data / "bad" / "images" / "cmyk_adobe.jpg").read_bytes(), ANY_SIZE))
    assert pixels.mean() > 200  # a map on white paper


def test_values_without_an_agreed_range_are_rejected() -> None:
    assert reason(encoded(Image.new("F", (16, 16), 0.5), "TIFF")) == "image-unrecognised"
    assert reason(encoded(Image.new("I", (16, 16), 7), "TIFF")) == "image-unrecognised"


def test_lack_of_memory_is_not_the_pictures_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(self: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", no_memory)
    with pytest.raises(TransientError):
        decode_image(encoded(photo()), ANY_SIZE)
