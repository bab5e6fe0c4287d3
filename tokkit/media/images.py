"""Untrusted picture bytes to a PIL picture in RGB or RGBA.

Order of the checks: length of the file, signature, size by the header, and only then the pixels. Pillow opens a file by its
header; nothing is decoded until the size has passed the bounds given by the caller.

What is done to the pixels:

* of an animation the first frame; of a multi-page file the first page;
* EXIF orientation is applied (unreadable EXIF is the same as none);
* palette, gray, bilevel, CMYK and YCbCr become RGB, or RGBA where the file has any transparency;
* 16-bit gray is scaled to 8 bits with rounding; 16-bit colour is reduced by Pillow's decoders to its high bytes;
* ICC profiles are ignored: samples are taken as sRGB, as almost every training corpus does. CMYK is converted by the plain
  complement, without a profile.

Only formats on an explicit list are tried: those that Pillow decodes itself and whose size is known from the header alone.
That leaves out EPS and WMF (external programs), and ICO and ICNS (their embedded pictures are decoded while opening).
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, UnidentifiedImageError

from tokkit.errors import ItemError, TransientError, UnwantedItem

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF", "JPEG2000", "MPO", "QOI", "PPM", "DDS")

# Pillow refuses pictures above twice this figure while opening them, whatever the caller wants.
PILLOW_MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)

EXIF_ORIENTATION = 0x0112
TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Sizes are checked here, and broken metadata is tolerated on purpose: Pillow's warnings about both would only fill the log.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """Bounds on a picture, checked before its pixels are decoded.

    What is above the first two cannot be decoded safely, and is an error; the others say which pictures are wanted. All are
    about sides and their product, which EXIF's turns leave as they are.

    Attributes:
        max_bytes: length of the encoded file.
        max_pixels: width times height (at most 178,956,970: Pillow opens nothing larger).
        min_pixels: width times height.
        min_side: pixels of the shorter side.
        max_side: pixels of the longer side; None is no bound.
        max_aspect: longer side over shorter side.
    """

    max_bytes: int = 64 * 2**20
    max_pixels: int = 64 * 2**20
    min_pixels: int = 1
    min_side: int = 8
    max_side: int | None = None
    max_aspect: float = 20.0

    def __post_init__(self) -> None:
        least = (self.max_bytes, self.min_pixels, self.min_side, self.max_aspect, 1 if self.max_side is None else self.max_side)
        if min(least) < 1 or not 1 <= self.max_pixels <= PILLOW_MAX_PIXELS:
            raise ValueError(f"limits must be at least 1, and max_pixels at most {PILLOW_MAX_PIXELS:,}: {self}")
        if self.min_pixels > self.max_pixels or (self.max_side is not None and self.min_side > self.max_side):
            raise ValueError(f"no picture is within these limits: {self}")


DEFAULT_LIMITS = ImageLimits()


def decode_image(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Image.Image:
    """Decode one picture.

    Returns:
        A loaded picture of mode RGB, or RGBA where the file has an alpha channel or a transparent colour.

    Raises:
        ItemError: ``image-empty``, ``image-unrecognised``, ``image-truncated``, ``image-too-large`` or ``image-damaged``.
        UnwantedItem: ``image-too-small``, ``image-too-long`` or ``image-aspect``.
        TransientError: out of memory, which says nothing of the picture.
    """
    image = _opened(data, limits)
    try:
        image.load()
        turn = TRANSPOSE.get(_orientation(image))
        converted = _to_rgb(image)
        return converted.transpose(turn) if turn is not None else converted
    except ItemError:
        raise
    except Exception as error:
        raise _blame(error) from error


def is_wanted(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> bool:
    """Whether a picture can be opened and is within the bounds, as far as its header tells; nothing is decoded.

    Raises:
        TransientError: out of memory, which says nothing of the picture.
    """
    try:
        _opened(data, limits)
    except ItemError:
        return False
    return True


def _opened(data: bytes, limits: ImageLimits) -> Image.Image:
    """The picture by its header, within the bounds; see :func:`decode_image` for what is raised."""
    if not data:
        raise ItemError("image-empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise ItemError("image-too-large", f"{len(data):,} bytes, more than {limits.max_bytes:,}")
    image = _open(data)
    _check_size(image.size, limits)
    return image


@cache
def _formats() -> tuple[str, ...]:
    """The listed formats that this build of Pillow has (AVIF and JPEG 2000 are optional in it)."""
    Image.init()
    return tuple(f for f in FORMATS if f in Image.OPEN)


def _open(data: bytes) -> Image.Image:
    """Read the header."""
    formats = _formats()
    try:
        return Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        # Pillow says "cannot identify" of a file with a known signature and a broken header as well.
        known = [f for f in formats if (accept := Image.OPEN[f][1]) is not None and accept(data[:16]) is True]
        if known:
            raise ItemError("image-damaged", f"{known[0]} with an unreadable header ({len(data):,} bytes)") from error
        raise ItemError("image-unrecognised", f"none of {', '.join(formats)}; begins with {data[:16]!r}") from error
    except Exception as error:
        raise _blame(error) from error


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    short, long = sorted(size)
    if short < 1:
        raise ItemError("image-damaged", f"{width}x{height} by its header")
    if width * height > limits.max_pixels:
        raise ItemError("image-too-large", f"{width}x{height} by its header, more than {limits.max_pixels:,} pixels")
    if short < limits.min_side:
        raise UnwantedItem("image-too-small", f"{width}x{height}, shorter side below {limits.min_side:,}")
    if width * height < limits.min_pixels:
        raise UnwantedItem("image-too-small", f"{width}x{height}, fewer than {limits.min_pixels:,} pixels")
    if limits.max_side is not None and long > limits.max_side:
        raise UnwantedItem("image-too-long", f"{width}x{height}, longer side above {limits.max_side:,}")
    if long > limits.max_aspect * short:
        raise UnwantedItem("image-aspect", f"{width}x{height}, sides more than {limits.max_aspect:g} to 1")


def _blame(error: Exception) -> Exception:
    """What a failure inside Pillow means. Bad bytes show as many exception types, so only memory is told apart by type."""
    message = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return TransientError(f"no memory to decode a picture ({message})")
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return ItemError("image-too-large", str(error))
    if isinstance(error, EOFError) or "truncated" in str(error).lower():
        return ItemError("image-truncated", message)
    return ItemError("image-damaged", message)


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8. Asked after ``load``: Pillow's TIFF reader turns the picture itself and then clears the tag."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # any damage inside EXIF, by any exception: the pixels are sound, so the tag is as good as absent
        return 1
    return value if isinstance(value, int) else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGB", "RGBA") and "transparency" not in image.info:
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return _from_gray16(image)
    if image.mode in ("I", "F", "LAB"):
        raise ItemError("image-unrecognised", f"{image.format} of mode {image.mode}, whose range of values is not agreed upon")
    if image.mode == "RGB" and isinstance(image.info["transparency"], tuple):
        colour = image.info["transparency"]
        # A 16-bit PNG's transparent colour stays 16-bit in Pillow, while its samples became their high bytes.
        image.info["transparency"] = tuple(v >> 8 for v in colour) if max(colour) > 255 else colour
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _from_gray16(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255 with rounding; a transparent value becomes alpha."""
    values = np.asarray(image).astype(np.uint32)
    gray = ((np.minimum(values, 65535) * 255 + 32767) // 65535).astype(np.uint8)
    picture = Image.fromarray(gray).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        picture.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return picture
