"""Which size a picture is brought to before it is encoded: one square for all, the nearest of a list, or about its own.

=========  ====================================================  ======================================================
policy     size                                                  what is lost
=========  ====================================================  ======================================================
``crop``   the tokenizer's square                                what the square does not cover
``bucket`` of a list, the one whose aspect ratio is nearest      a little at two sides (Lumina-mGPT, SDXL)
``native`` its own, within bounds on the area                    less than one position of the grid at each side (Emu3)
=========  ====================================================  ======================================================

Sizes are (width, height) in pixels, multiples of the tokenizer's downsampling factor. They follow from the picture's own size
by integer arithmetic, so that they are the same everywhere. How a picture is resized is the tokenizer's own rule, whatever the
size (:class:`~tokkit.media.transforms.Preprocessing`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokkit.errors import UnwantedItem
from tokkit.media.transforms import Preprocessing

Policy = Literal["crop", "bucket", "native"]
Size = tuple[int, int]

LONGEST_SIDE = 8192  # of a bucket, in pixels
MOST_AREA = 1 << 26  # of a picture, in pixels
MOST_BUCKETS = 256
MOST_POSITIONS = 32767  # along one side of a grid: what the document table holds

# Aspect ratios of cameras, films and screens, which the buckets that are made up for a tokenizer come near to.
ASPECTS = tuple(Fraction(*ratio) for ratio in ((1, 1), (5, 4), (4, 3), (3, 2), (16, 9), (2, 1), (3, 1)))


class Sizes(Protocol):
    """What decides the size of a picture."""

    def of(self, width: int, height: int) -> Size:
        """The size that a picture of ``width`` x ``height`` pixels is brought to; raises UnwantedItem where there is none."""

    def longest(self, max_aspect: float) -> int:
        """The longest side of any size, in pixels, of pictures whose sides are at most so many times one another's."""


@dataclass(frozen=True)
class Buckets:
    """The nearest of a list.

    Attributes:
        sizes: rising, without repeats.
    """

    sizes: tuple[Size, ...]

    def of(self, width: int, height: int) -> Size:
        """The one whose aspect ratio is nearest; of those that are as near as each other the largest that the picture fills
        without being enlarged, or else the smallest."""

        def rank(size: Size) -> tuple[Fraction, bool, int, int]:
            across, down = size[0] * height, size[1] * width
            enlarges = size[0] > width or size[1] > height
            area = size[0] * size[1]
            return Fraction(max(across, down), min(across, down)), enlarges, area if enlarges else -area, size[0]

        return min(self.sizes, key=rank)

    def longest(self, max_aspect: float) -> int:
        return max(max(size) for size in self.sizes)


@dataclass(frozen=True)
class Native:
    """The picture's own size, rounded down to the factor, within bounds.

    A picture whose area is within bounds is not resized, only cut. A larger one is reduced to the largest grid of its aspect
    ratio that ``max_area`` allows, a smaller one enlarged to the smallest that ``min_area`` asks for. Where no grid of its
    aspect ratio is between the two, it is the largest that ``max_area`` allows.

    Attributes:
        factor: pixels of one position of the grid, along a side.
        min_area, max_area: of what is encoded, in pixels.
    """

    factor: int
    min_area: int
    max_area: int

    def of(self, width: int, height: int) -> Size:
        least, most = -(-self.min_area // self.factor**2), self.max_area // self.factor**2
        rows, columns, wanted = height // self.factor, width // self.factor, 0
        if rows * columns > most:
            # At the scale at which the area is max_area; since sides are rounded down there may be room for more.
            rows = isqrt(self.max_area * height // width) // self.factor
            columns = isqrt(self.max_area * width // height) // self.factor
            wanted = most + 1
        elif rows * columns < least:
            wanted = least
        while rows * columns < wanted:
            down, across = (rows + 1) * width, (columns + 1) * height  # the scales at which a side gains a position
            more = rows + (down <= across), columns + (across <= down)
            if more[0] * more[1] > most or max(more) > MOST_POSITIONS:
                break
            rows, columns = more
        if not rows or not columns or max(rows, columns) > MOST_POSITIONS:
            raise UnwantedItem(
                "image-resolution",
                f"{width} x {height} pixels: of at most {self.max_area:,} pixels in its aspect ratio, the shorter side has "
                f"less than the {self.factor} that one code stands for",
            )
        return columns * self.factor, rows * self.factor

    def longest(self, max_aspect: float) -> int:
        most = self.max_area // self.factor**2
        bounds = (min(most // rows, int((rows + 1) * max_aspect) + 1) for rows in range(1, isqrt(most) + 1))
        return min(max(bounds), MOST_POSITIONS) * self.factor


@dataclass(frozen=True)
class Fitting:
    """From a decoded picture to what the tokenizer encodes; picklable.

    Attributes:
        preprocessing: the tokenizer's own.
        sizes: what decides the size; None is the tokenizer's square.
    """

    preprocessing: Preprocessing
    sizes: Sizes | None = None

    def apply(self, image: Image.Image) -> NDArray[np.uint8]:
        """An RGB or RGBA picture as uint8 ``[H, W, 3]``; raises UnwantedItem where the policy has no size for it."""
        if self.sizes is None:
            return self.preprocessing.apply(image)
        width, height = self.sizes.of(*image.size)
        beyond = image.width - width, image.height - height
        cut = isinstance(self.sizes, Native) and all(0 <= pixels < self.sizes.factor for pixels in beyond)
        return self.preprocessing.fit(image, width, height, scaled=not cut)


def parse_size(text: str) -> Size:
    """``320x192`` as (width, height); ValueError for anything else."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size; write width x height in pixels, for example 320x192")
    return int(found[1]), int(found[2])


def told(sizes: Iterable[Size]) -> list[str]:
    """Sizes as :func:`parse_size` reads them."""
    return [f"{width}x{height}" for width, height in sizes]


def buckets_for(size: int, factor: int) -> tuple[Size, ...]:
    """Buckets of about the area of a tokenizer's square, and never more, at the common aspect ratios.

    For each ratio of :data:`ASPECTS`, lying and standing, the nearest of the grids that fill the area of ``size`` x ``size``
    pixels best. Small grids have few ratios to offer, so there may be fewer of them.
    """
    positions = (size // factor) ** 2
    # Of every width up to the square's side the tallest grid that the area allows.
    grids = [(positions // side, side) for side in range(1, isqrt(positions) + 1)]
    chosen = {min(grids, key=lambda grid, ratio=ratio: _apart(Fraction(*grid), ratio)) for ratio in ASPECTS}  # type: ignore[misc]
    both = chosen | {(short, long) for long, short in chosen}
    return tuple(sorted((columns * factor, rows * factor) for columns, rows in both))


def _apart(one: Fraction, other: Fraction) -> Fraction:
    """How far two ratios are apart: 1 where they are equal."""
    return max(one / other, other / one)
