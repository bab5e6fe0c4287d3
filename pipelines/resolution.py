"""The options that say which sizes pictures are encoded at (:mod:`tokkit.media.resolutions`), of every job that encodes some.

``resolution_policy`` chooses the rule; ``buckets`` goes with ``bucket``, ``min_area`` and ``max_area`` with ``native``. What is
not given follows from the tokenizer: buckets of about the area of its square at the common aspect ratios, areas from the square
of a quarter of its side to that of twice its side.
"""

from __future__ import annotations

from typing import Annotated, Protocol

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from tokkit.errors import UsageError
from tokkit.interleave import ImageLayout, Layout
from tokkit.media.resolutions import (
    LONGEST_SIDE,
    MOST_AREA,
    MOST_BUCKETS,
    Buckets,
    Fitting,
    Native,
    Policy,
    buckets_for,
    parse_size,
    told,
)
from tokkit.media.transforms import Preprocessing

# The options that decide the output where the policy is not ``crop``.
OPTIONS = ("resolution_policy", "buckets", "min_area", "max_area")
COMMON_GRID = 128  # the longest side of a grid that a vocabulary has ids for, whatever the sizes are


def split_list(value: object) -> object:
    """``a,b`` as a list; what is no text is left as it is."""
    return value.split(",") if isinstance(value, str) else value


def normal_buckets(texts: list[str]) -> list[str]:
    """Buckets in one order and without repeats: the order in which they are named decides nothing."""
    sizes = sorted({parse_size(text) for text in texts})
    if not sizes or len(sizes) > MOST_BUCKETS:
        raise ValueError(f"name 1 to {MOST_BUCKETS} sizes")
    if max(max(size) for size in sizes) > LONGEST_SIDE:
        raise ValueError(f"a side of more than {LONGEST_SIDE:,} pixels")
    return told(sizes)


def parsed_area(value: object) -> object:
    """``512x512`` as its number of pixels; what is no such text is left as it is."""
    if isinstance(value, str) and "x" in value.lower():
        width, height = parse_size(value)
        return width * height
    return value


BucketList = Annotated[list[str], BeforeValidator(split_list), AfterValidator(normal_buckets)]
Area = Annotated[int, BeforeValidator(parsed_area), Field(ge=1, le=MOST_AREA)]


class ResolutionOptions(Protocol):
    """A configuration with these options."""

    @property
    def resolution_policy(self) -> Policy: ...
    @property
    def buckets(self) -> list[str] | None: ...
    @property
    def min_area(self) -> int | None: ...
    @property
    def max_area(self) -> int | None: ...


def check_options(options: ResolutionOptions) -> None:
    """Raise a validation error for options that do not go together."""
    if options.buckets is not None and options.resolution_policy != "bucket":
        raise PydanticCustomError("resolution", "buckets: goes with --resolution-policy bucket")
    for name, area in (("min_area", options.min_area), ("max_area", options.max_area)):
        if area is not None and options.resolution_policy != "native":
            raise PydanticCustomError("resolution", "{name}: goes with --resolution-policy native", {"name": name})
    if options.min_area is not None and options.max_area is not None and options.min_area > options.max_area:
        raise PydanticCustomError("resolution", "max_area: less than min_area")


def fitting_of(options: ResolutionOptions, preprocessing: Preprocessing, factor: int) -> Fitting:
    """What brings pictures to the size at which a tokenizer encodes them.

    Args:
        preprocessing, factor: the tokenizer's, and the pixels that one code stands for along a side.

    Raises:
        UsageError: sizes that the tokenizer cannot take.
    """
    size = preprocessing.size
    if options.resolution_policy == "crop":
        return Fitting(preprocessing)
    if options.resolution_policy == "bucket":
        named = options.buckets
        sizes = tuple(map(parse_size, named)) if named is not None else buckets_for(size, factor)
        if wrong := [s for s in sizes if s[0] % factor or s[1] % factor]:
            raise UsageError(
                f"--buckets {', '.join(told(wrong))}: sides must be multiples of {factor}, the pixels that one code of the "
                f"image tokenizer stands for along a side"
            )
        return Fitting(preprocessing, Buckets(sizes))
    least, most = options.min_area, options.max_area
    if most is None:
        most = min(max((2 * size) ** 2, least or 0), MOST_AREA)
    if least is None:
        least = min(max(size // 4, factor) ** 2, most)
    if most < factor**2:
        raise UsageError(f"--max-area {most}: less than the {factor} x {factor} pixels that one code stands for")
    return Fitting(preprocessing, Native(factor, least, most))


def semantic_entry(fitting: Fitting) -> dict[str, object]:
    """The options as they decide the output, for its semantic fingerprint; nothing for squares of the tokenizer's own size."""
    if isinstance(fitting.sizes, Buckets):
        return {"resolution_policy": "bucket", "buckets": told(fitting.sizes.sizes)}
    if isinstance(fitting.sizes, Native):
        return {"resolution_policy": "native", "min_area": fitting.sizes.min_area, "max_area": fitting.sizes.max_area}
    return {}


def largest_grid(fitting: Fitting | None, factor: int, max_aspect: float) -> int:
    """The longest side of a grid that the vocabulary must have an id for."""
    longest = 0 if fitting is None or fitting.sizes is None else fitting.sizes.longest(max_aspect) // factor
    return max(COMMON_GRID, longest)


def layout_of(name: ImageLayout, fitting: Fitting, factor: int) -> Layout:
    """The layout for these sizes.

    Raises:
        UsageError: it could not be read back.
    """
    if name != "plain":
        return Layout(name)
    size = fitting.preprocessing.size
    sizes = [(size, size)] if fitting.sizes is None else fitting.sizes.sizes if isinstance(fitting.sizes, Buckets) else []
    if len(sizes) == 1:
        width, height = sizes[0]
        return Layout(name, (height // factor, width // factor))
    if not sizes or any(width != height for width, height in sizes):
        raise UsageError(
            "--image-layout plain has nothing that tells the shape of a picture, and with this --resolution-policy there are "
            "several: name grid_rows, grid, rows or emu3, as far as the vocabulary has ids for it, or bare, for shapes that "
            "are in the document table only"
        )
    return Layout(name)
