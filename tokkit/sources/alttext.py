"""Alternative texts of pictures as texts of the document, where a run asks for them."""

from __future__ import annotations

from collections.abc import Iterable

from tokkit.documents import Image, Segment, Text
from tokkit.sources.base import AltText


def with_alt_text(segments: Iterable[Segment], where: AltText) -> tuple[Segment, ...]:
    """The segments, and the alternative text of each picture ``before`` or ``after`` it.

    It is put there also where the picture is missing. A text beside the picture that says the same, as captions often do,
    is not said twice.
    """
    given = tuple(segments)
    if where == "none":
        return given
    found: list[Segment] = []
    for place, segment in enumerate(given):
        beside = given[max(0, place - 1) : place + 2]
        said = any(isinstance(other, Text) and segment_says(other.text, segment) for other in beside)
        told = [Text(segment.alt)] if isinstance(segment, Image) and segment.alt and not said else []
        found += [*told, segment] if where == "before" else [segment, *told]
    return tuple(found)


def segment_says(text: str, picture: Segment) -> bool:
    """Whether a text begins or ends with a picture's alternative text."""
    if not isinstance(picture, Image) or not picture.alt:
        return False
    tidy = " ".join(text.split())
    return tidy.startswith(picture.alt) or tidy.endswith(picture.alt)
