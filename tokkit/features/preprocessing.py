"""From a decoded picture to the float views that a vision encoder takes, as its ``preprocessor_config.json`` says.

transformers' image processors are a family with one core: convert to RGB on white, resize with Pillow, crop at the centre,
scale the bytes, subtract a mean and divide by a deviation. The last three act on single bytes, so they are one table of 256
floats a channel here, computed as the processors compute (scaled in float64, normalised in float32); the views are equal to
theirs to the last bit. What else a processor does (tiles, sizes of whole patches) is its tiling:
:mod:`tokkit.features.tilings`.

Everything here needs Pillow and NumPy only, and an :class:`ImagePreparer` can be sent to worker processes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from tokkit.errors import DataError, ItemError, UsageError
from tokkit.features import tilings
from tokkit.features.base import FeatureOptions, Grid, Prepared, Tiling, View, ViewKind
from tokkit.features.tilings import Size
from tokkit.media.transforms import FILTERS, Filter, flatten
from tokkit.storage import read_json

WHITE = (255, 255, 255)
MAX_PIXELS = 1 << 27  # of a picture on its way: a line of one pixel must not become gigabytes when its shorter side is enlarged
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALF = (0.5, 0.5, 0.5)

FILTER_NUMBERS: dict[int, Filter] = {1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box"}

_CLIP = {"resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD, "size": 224, "crop_size": 224, "do_center_crop": True}
_HALF = {"resample": 2, "image_mean": HALF, "image_std": HALF, "size": 224}

# What a processor does where its file does not say. ``shortest`` tells how a bare number for the size is meant.
PROCESSORS: dict[str, dict[str, Any]] = {
    "CLIP": {**_CLIP, "shortest": True},
    "Bit": {**_CLIP, "shortest": True},
    "Llava": {**_CLIP, "shortest": True},
    "LlavaNext": {**_CLIP, "shortest": True, "tiling": "anyres", "image_grid_pinpoints": tilings.LLAVA_NEXT_PINPOINTS},
    "Siglip": {**_HALF, "resample": 3},
    "Blip": {**_CLIP, "size": 384, "do_center_crop": False},
    "ViT": _HALF,
    "GotOcr2": {**_CLIP, "size": 384, "do_center_crop": False},
    "Siglip2": {**_HALF, "tiling": "naflex", "patch_size": 16, "max_num_patches": 256},
    "Qwen2VL": {
        **_CLIP,
        "tiling": "native",
        "size": {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280},
        "patch_size": 14,
        "merge_size": 2,
        "temporal_patch_size": 2,
    },
    "Mllama": {**_HALF, "tiling": "llama", "max_image_tiles": 4},
}
SUFFIXES = ("ImageProcessorFast", "ImageProcessorPil", "ImageProcessor", "FeatureExtractor")


class ImagePreprocessing(BaseModel):
    """What a processor's file comes to.

    Attributes:
        processor: whose rules these are (``CLIP``, ``Siglip``, ``Qwen2VL``, ...).
        shortest: length that the shorter side is scaled to, the other rounded down; or
        size: that the picture is stretched to, (height, width). Both None: not resized. Of ``native``, neither is used.
        crop: cut out at the centre afterwards; what is missing is black.
        filter: of every resize.
        scale, mean, std: a byte v enters the network as (scale v - mean) / std; None where a step is left out.
        pad_square: first pad to a square with the mean colour.
        tiling: that the processor itself has.
        pinpoints, patch, merge, temporal, min_pixels, max_pixels, max_patches, max_tiles: of that tiling.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    processor: str
    shortest: int | None = None
    size: Size | None = None
    crop: Size | None = None
    filter: Filter = "bicubic"
    scale: float | None = 1 / 255
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    pad_square: bool = False
    tiling: Tiling | str = "none"
    pinpoints: tuple[Size, ...] | None = None
    patch: int | None = None
    merge: int | None = None
    temporal: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_patches: int | None = None
    max_tiles: int | None = None

    @property
    def output(self) -> Size:
        """Height and width of every view, where all have the same. DataError where they have not."""
        found = self.crop or self.size
        if found is None:
            raise DataError(f"{self.processor}: its pictures are neither cropped nor stretched, so they have no one shape")
        return found

    def table(self) -> NDArray[np.float32]:
        """float32 ``[3, 256]``: what each byte enters the network as."""
        levels = np.tile(np.arange(256, dtype=np.float64), (3, 1))
        values = (levels * self.scale if self.scale is not None else levels).astype(np.float32)
        if self.mean is None or self.std is None:
            return values
        return (values - np.array(self.mean, np.float32)[:, None]) / np.array(self.std, np.float32)[:, None]


def read_preprocessing(folder: Path) -> ImagePreprocessing:
    """Read ``preprocessor_config.json`` of a model's folder. DataError where it is missing, damaged or of an unknown kind."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise DataError(f"{folder}: has no {path.name}, so nothing says how pictures become pixels for this model")
    entry = read_json(path)
    if not isinstance(entry, dict):
        raise DataError(f"{path}: not a processor's configuration")
    return parse_preprocessing(entry, str(path))


def parse_preprocessing(entry: Mapping[str, Any], where: str) -> ImagePreprocessing:
    """The same from the file's content; ``where`` names it in errors."""
    name = str(entry.get("image_processor_type") or entry.get("feature_extractor_type") or "")
    kind = next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)
    if kind not in PROCESSORS:
        raise DataError(
            f"{where}: image processor {name or 'without a name'!r} is not known; known are {', '.join(PROCESSORS)}"
        )
    told = {**PROCESSORS[kind], **{key: value for key, value in entry.items() if value is not None}}
    try:
        return _parsed(kind, told)
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{where}: cannot be read as a {kind} processor's configuration: {error}") from None


def _parsed(kind: str, told: Mapping[str, Any]) -> ImagePreprocessing:
    normalised = told.get("do_normalize", True)
    common = {
        "processor": kind,
        "filter": FILTER_NUMBERS[int(told["resample"])],
        "scale": told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else None,
        "mean": _three(told["image_mean"]) if normalised else None,
        "std": _three(told["image_std"]) if normalised else None,
        "tiling": told.get("tiling", "none"),
    }
    if kind == "Qwen2VL":
        size = told["size"]
        least, most = told.get("min_pixels", size.get("shortest_edge")), told.get("max_pixels", size.get("longest_edge"))
        parts = {"patch": told["patch_size"], "merge": told["merge_size"], "temporal": told["temporal_patch_size"]}
        return ImagePreprocessing(**common, **parts, min_pixels=least, max_pixels=most)
    if kind == "Siglip2":
        return ImagePreprocessing(**common, patch=told["patch_size"], max_patches=told["max_num_patches"])
    shortest, size = _size(told["size"], bool(told.get("shortest")) and not told.get("default_to_square", False))
    if not told.get("do_resize", True):
        shortest = size = None
    if kind == "Mllama":
        if size is None or size[0] != size[1]:
            raise ValueError(f"its tiles are {told['size']}, not square")
        return ImagePreprocessing(**common, size=size, max_tiles=told["max_image_tiles"])
    crop = _size(told["crop_size"], False)[1] if told.get("do_center_crop", False) else None
    pinpoints = tuple((int(a), int(b)) for a, b in told["image_grid_pinpoints"]) if "image_grid_pinpoints" in told else None
    pad = kind == "Llava" and bool(told.get("do_pad", False))
    return ImagePreprocessing(**common, shortest=shortest, size=size, crop=crop, pinpoints=pinpoints, pad_square=pad)


def _three(values: Sequence[float] | float) -> tuple[float, float, float]:
    if isinstance(values, int | float):
        return (values, values, values)
    a, b, c = values
    return a, b, c


def _size(told: Mapping[str, int] | Sequence[int] | int, shortest: bool) -> tuple[int | None, Size | None]:
    """A size as processors write it: (length of the shorter side, None) or (None, (height, width))."""
    if isinstance(told, int):
        return (told, None) if shortest else (None, (told, told))
    if isinstance(told, Mapping):
        if told.get("shortest_edge") and not told.get("longest_edge"):
            return told["shortest_edge"], None
        return None, (told["height"], told["width"])
    height, width = told
    return None, (height, width)


@dataclass(frozen=True)
class ImagePreparer:
    """Turns pictures into views: preprocessing and tiling together. Picklable; needs no model."""

    preprocessing: ImagePreprocessing
    options: FeatureOptions

    def __post_init__(self) -> None:
        own, asked = self.preprocessing.tiling, self.options.tiling
        if own in ("native", "llama", "naflex") and asked is not None and asked != own:
            raise UsageError(
                f"tiling={asked!r}: a {self.preprocessing.processor} model has its own way ({own}) and takes no other"
            )
        if own not in ("native", "llama") and asked in ("native", "llama"):
            needs = {"native": "Qwen2-VL", "llama": "Llama 3.2 Vision"}[asked]
            raise UsageError(f"tiling={asked!r} needs a {needs} model; this one is prepared by {self.preprocessing.processor}")
        if own in ("none", "anyres"):
            _ = self.preprocessing.output  # there is one, or DataError
        if self.options.pad_square and self.tiling != "none":
            raise UsageError(f"pad_square goes with tiling='none', not {self.tiling!r}")
        if self.tiling == "anyres":
            height, width = self.preprocessing.output
            wrong = [f"{a} x {b}" for a, b in self.pinpoints if a % height or b % width]
            if wrong:
                raise UsageError(f"pinpoints {', '.join(wrong)} are no multiples of the encoder's {height} x {width} pixels")

    @property
    def tiling(self) -> str:
        """The one in force."""
        own = self.preprocessing.tiling
        return own if own == "naflex" else self.options.tiling or own

    @property
    def pinpoints(self) -> tuple[Size, ...]:
        """Of ``anyres``."""
        return self.options.pinpoints or self.preprocessing.pinpoints or tilings.LLAVA_NEXT_PINPOINTS

    @property
    def pixel_bounds(self) -> tuple[int, int]:
        """Least and largest area, of ``native``."""
        least, most = self.preprocessing.min_pixels, self.preprocessing.max_pixels
        assert least is not None
        assert most is not None
        return self.options.min_pixels or least, self.options.max_pixels or most

    def grid(self, width: int, height: int) -> Grid | None:
        """Rows and columns of tiles that a picture of this size is cut into; None where it is not cut."""
        size, how = (height, width), self.preprocessing
        if self.tiling == "anyres":
            best = tilings.best_pinpoint(size, self.pinpoints)
            return best[0] // how.output[0], best[1] // how.output[1]
        if self.tiling == "internvl":
            return tilings.internvl_grid(size, how.output, self.options.min_tiles, self.options.max_tiles)
        if self.tiling == "llama":
            return tilings.llama_canvas(size, how.output[0], self._llama_tiles)
        return None

    def sizes(self, width: int, height: int) -> list[Size]:
        """Height and width of each view that a picture of this size becomes.

        Raises:
            ItemError: the model takes no picture of this shape.
        """
        how = self.preprocessing
        if self.tiling == "native":
            assert how.patch is not None
            assert how.merge is not None
            return [tilings.smart_resize((height, width), how.patch * how.merge, *self.pixel_bounds)]
        if self.tiling == "naflex":
            assert how.patch is not None
            assert how.max_patches is not None
            return [tilings.naflex_size((height, width), how.patch, how.max_patches)]
        grid = self.grid(width, height)
        tiles = grid[0] * grid[1] if grid else 0
        whole = {"none": 1, "anyres": 1, "internvl": int(tiles > 1 and self.options.thumbnail), "llama": 0}[self.tiling]
        return [how.output] * (tiles + whole)

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        """An RGB or RGBA picture to its views (:meth:`tokkit.features.base.FeatureEncoder.prepare`)."""
        if not isinstance(media, Image.Image):
            raise TypeError(f"expected a picture, not {type(media).__name__}")
        picture, table = flatten(media, WHITE), self.preprocessing.table()
        grid = self.grid(picture.width, picture.height)
        views = tuple(
            View(normalised(np.asarray(image), table), kind, row, column)
            for image, kind, row, column in self._images(picture, grid)
        )
        return Prepared(views, media.width, media.height, tiles=grid)

    def _images(self, picture: Image.Image, grid: Grid | None) -> list[tuple[Image.Image, ViewKind, int, int]]:
        """The views as pictures of bytes: (picture, kind, row, column)."""
        how = self.preprocessing
        if self.tiling in ("native", "naflex"):
            return [(self._resized(picture, self.sizes(picture.width, picture.height)[0]), "whole", 0, 0)]
        if grid is None:
            return [(self._whole(picture), "whole", 0, 0)]
        size, tile = (picture.height, picture.width), how.output
        canvas = grid[0] * tile[0], grid[1] * tile[1]
        if self.tiling == "anyres":
            fitted = tilings.fitted(size, canvas)
            at = (canvas[1] - fitted[1]) // 2, (canvas[0] - fitted[0]) // 2
            tiles = _tiles(_on_black(self._resized(picture, fitted), canvas, at), grid, tile)
            return [(self._cropped(self._resized(picture, tile)), "base", 0, 0), *tiles]
        if self.tiling == "llama":
            fitted = tilings.llama_fitted(size, grid, tile[0])
            return _tiles(_on_black(self._resized(picture, fitted), canvas, (0, 0)), grid, tile)
        tiles = _tiles(self._resized(picture, canvas), grid, tile)
        if len(tiles) > 1 and self.options.thumbnail:
            tiles.append((self._resized(picture, tile), "thumbnail", 0, 0))
        return tiles

    def _whole(self, picture: Image.Image) -> Image.Image:
        """Pad to a square where asked for, resize, crop: a processor's usual way."""
        how = self.preprocessing
        if (how.pad_square or self.options.pad_square) and picture.width != picture.height:
            side = max(picture.size)
            self._bounded(picture, side, side)
            red, green, blue = (int(x * 255) for x in how.mean or (0.0, 0.0, 0.0))
            square = Image.new("RGB", (side, side), (red, green, blue))
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            picture = square
        if how.shortest is not None:
            short, long = sorted(picture.size)
            longer = int(how.shortest * long / short)
            self._bounded(picture, longer, how.shortest)
            upright = picture.width <= picture.height
            picture = self._resized(picture, (longer, how.shortest) if upright else (how.shortest, longer))
        elif how.size is not None:
            picture = self._resized(picture, how.size)
        return self._cropped(picture)

    def _bounded(self, picture: Image.Image, width: int, height: int) -> None:
        """ItemError where a picture would have more pixels than there may be."""
        if width * height > MAX_PIXELS:
            size = f"{picture.width} x {picture.height} pixels would become {width} x {height} before the crop"
            raise ItemError("image-aspect-ratio", f"{size}; at most {MAX_PIXELS:,} are taken")

    def _resized(self, picture: Image.Image, size: Size) -> Image.Image:
        return picture.resize((size[1], size[0]), FILTERS[self.preprocessing.filter])

    def _cropped(self, picture: Image.Image) -> Image.Image:
        """Cut out at the centre. Offsets are rounded down; where the picture is smaller it lies on black, rounded up."""
        if self.preprocessing.crop is None:
            return picture
        height, width = self.preprocessing.crop
        left, top = (picture.width - width) // 2, (picture.height - height) // 2
        return picture.crop((left, top, left + width, top + height))

    @property
    def _llama_tiles(self) -> int:
        assert self.preprocessing.max_tiles is not None
        return self.preprocessing.max_tiles


def normalised(pixels: NDArray[np.uint8], table: NDArray[np.float32]) -> NDArray[np.float32]:
    """uint8 ``[H, W, 3]`` to float32 ``[3, H, W]`` by a table ``[3, 256]``."""
    views = np.empty((3, *pixels.shape[:2]), np.float32)
    for channel in range(3):
        np.take(table[channel], pixels[..., channel], out=views[channel])
    return views


def _on_black(picture: Image.Image, canvas: Size, at: tuple[int, int]) -> Image.Image:
    black = Image.new("RGB", (canvas[1], canvas[0]))
    black.paste(picture, at)
    return black


def _tiles(canvas: Image.Image, grid: Grid, tile: Size) -> list[tuple[Image.Image, ViewKind, int, int]]:
    height, width = tile
    return [
        (canvas.crop((column * width, row * height, (column + 1) * width, (row + 1) * height)), "tile", row, column)
        for row in range(grid[0])
        for column in range(grid[1])
    ]
