"""From a decoded picture to the rectangle of bytes that an image tokenizer takes: the tokenizer's own square, or any other.

The resize rule, its filter, the rounding of the crop and the colour behind transparency all change codes, so they belong to
the tokenizer and are stored in its configuration; they are not options of a run. Everything here runs in worker processes and
needs Pillow and NumPy only; bytes become floats inside the tokenizer.
"""

from __future__ import annotations

from typing import Annotated, Literal

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

# What becomes of transparency, where it is not a plain colour behind the picture.
AlphaRule = Literal["white-truncated", "dropped"]


class ShortestSide(BaseModel):
    """Scale until a rectangle is just covered, in one step; sides are rounded half to even.

    Of a square this is to give the shorter side the asked-for length.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["shortest-side"] = "shortest-side"
    filter: Filter = "lanczos"

    def resize(self, image: Image.Image, length: int) -> Image.Image:
        """Resize an RGB picture to a shorter side of ``length`` pixels, up or down."""
        return self.cover(image, length, length)

    def cover(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resize an RGB picture, up or down, to the smallest that ``width`` x ``height`` pixels can be cut out of."""
        scale = max(width / image.width, height / image.height)
        size = max(width, round(scale * image.width)), max(height, round(scale * image.height))
        return image if size == image.size else image.resize(size, FILTERS[self.filter])


class BoxHalving(BaseModel):
    """Halve both sides with a box filter while both are at least twice what is asked for; scale the rest in one step.

    The rule of guided-diffusion (ADM, arXiv:2105.05233), which LlamaGen took over. Halved sides are rounded down, scaled ones
    half to even; ``filter`` is that of the last step.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["box-halving"] = "box-halving"
    filter: Filter = "bicubic"

    def resize(self, image: Image.Image, length: int) -> Image.Image:
        """Resize an RGB picture to a shorter side of ``length`` pixels, up or down."""
        return self.cover(image, length, length)

    def cover(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Resize an RGB picture, up or down, to the smallest that ``width`` x ``height`` pixels can be cut out of."""
        while image.width >= 2 * width and image.height >= 2 * height:
            image = image.resize((image.width // 2, image.height // 2), FILTERS["box"])
        return ShortestSide(filter=self.filter).cover(image, width, height)


Resize = Annotated[ShortestSide | BoxHalving, Field(discriminator="kind")]


class Preprocessing(BaseModel):
    """How a picture becomes a tokenizer's input: flatten, resize, crop at the centre (offsets rounded down).

    Attributes:
        size: side of the square, in pixels.
        resize: how the shorter side comes to that length.
        background: what lies behind transparent pixels: a colour (blended with rounding, as Pillow does);
            ``white-truncated``, white blended in float64 with fractions cut off (Chameleon's rule); or ``dropped``: alpha is
            ignored and the colours stored under it show (what reading a file and converting it to RGB comes to).
        mean, std: a byte ``v`` enters the network as ``(v / 255 - mean) / std``; the defaults give [-1, 1].
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: int = Field(ge=1, le=8192)
    resize: Resize = ShortestSide()
    background: Colour | AlphaRule = (255, 255, 255)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """Turn an RGB or RGBA picture into uint8 ``[size, size, 3]``. The same picture gives the same bytes everywhere."""
        return self.fit(image, self.size, self.size)

    def fit(self, image: Image.Image, width: int, height: int, *, scaled: bool = True) -> NDArray[np.uint8]:
        """The same for a rectangle: uint8 ``[height, width, 3]``.

        Args:
            scaled: resize the picture to the smallest that covers it; else cut it out of the pixels as they are, of which there
                must be enough.
        """
        flat = flatten(image, self.background)
        resized = self.resize.cover(flat, width, height) if scaled else flat
        left, top = (resized.width - width) // 2, (resized.height - height) // 2
        return np.array(resized.crop((left, top, left + width, top + height)))


def flatten(image: Image.Image, background: Colour | AlphaRule) -> Image.Image:
    """Make an RGBA picture opaque (:class:`Preprocessing`); an RGB one is returned as it is. ValueError for other modes."""
    if image.mode == "RGB":
        return image
    if image.mode != "RGBA":
        raise ValueError(f"expected a picture of mode RGB or RGBA, not {image.mode}")
    if background == "dropped":
        return image.convert("RGB")
    if background == "white-truncated":
        return _on_white_truncated(image)
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image).convert("RGB")


def _on_white_truncated(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values[..., 3].min() == 255:  # blending would lose a step of some values to float64 rounding
        return image.convert("RGB")
    alpha = values[..., 3:] / 255.0
    return Image.fromarray(((1 - alpha) * 255 + alpha * values[..., :3]).astype(np.uint8))
