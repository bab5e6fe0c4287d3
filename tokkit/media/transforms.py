"""From a decoded picture to the square of bytes that an image tokenizer takes.

The resize rule, its filter, the rounding of the crop and the colour behind transparency all change codes, so they belong to
the tokenizer and are stored in its configuration; they are not options of a run. Everything here runs in worker processes and
needs Pillow and NumPy only; bytes become floats inside the tokenizer.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

Filter = Literal["lanczos", "bicubic", "bilinear", "box"]

FILTERS: dict[Filter, Image.Resampling] = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}

Colour = tuple[int, int, int]


class ShortestSide(BaseModel):
    """Scale so that the shorter side has the asked-for length, in one step; sides are rounded half to even."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shortest-side"] = "shortest-side"
    filter: Filter = "lanczos"

    def resize(self, image: Image.Image, length: int) -> Image.Image:
        """Resize an RGB picture to a shorter side of ``length`` pixels, up or down."""
        scale = length / min(image.size)
        width, height = (max(length, round(scale * side)) for side in image.size)
        return image if (width, height) == image.size else image.resize((width, height), FILTERS[self.filter])


class Preprocessing(BaseModel):
    """How a picture becomes a tokenizer's input: flatten, resize, crop at the centre (offsets rounded down).

    Attributes:
        size: side of the square, in pixels.
        resize: how the shorter side comes to that length.
        background: what lies behind transparent pixels.
        mean, std: a byte ``v`` enters the network as ``(v / 255 - mean) / std``; the defaults give [-1, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=1, le=8192)
    resize: ShortestSide = ShortestSide()
    background: Colour = (255, 255, 255)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Turn an RGB or RGBA picture into uint8 ``[size, size, 3]``. The same picture gives the same bytes everywhere."""
        resized = self.resize.resize(flatten(image, self.background), self.size)
        left, top = (resized.width - self.size) // 2, (resized.height - self.size) // 2
        return np.array(resized.crop((left, top, left + self.size, top + self.size)))


def flatten(image: Image.Image, background: Colour) -> Image.Image:
    """Lay an RGBA picture on a plain colour; an RGB picture is returned as it is. Raises ValueError for other modes."""
    if image.mode == "RGB":
        return image
    if image.mode != "RGBA":
        raise ValueError(f"expected a picture of mode RGB or RGBA, not {image.mode}")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")
