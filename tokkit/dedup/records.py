"""What the parts of deduplication hand to one another: fixed-width records.

A *label* is something that two documents or two media items may share: a content hash, the hash of a text, the hash of an
item's bytes, or a component of pictures that look alike. A *place* is (unit, position, item): the number of the work unit, the
number of the document among those that its reader yields, and the number of the media item in it (-1: the document itself).
Places are compared in that order, which is the order of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

# Kinds of labels, in the order in which they are asked about.
CONTENT, TEXT, BYTES, LOOKS = range(4)

KEY = np.dtype("S16")  # 128 bits of SHA-256, as bytes; NumPy compares them whole where both sides have 16

_PLACE: list[tuple[str, Any]] = [("unit", "<u4"), ("position", "<u4"), ("item", "<i4")]

REFERENCE = np.dtype([("key", KEY), *_PLACE, ("kind", "u1")])  # a place and what it is labelled with
PICTURE = np.dtype([("hash", "<u8"), *_PLACE])  # a picture and its perceptual hash
LABELLED = np.dtype([("label", "<i8"), *_PLACE, ("kind", "u1")])  # a place with a label that some other place shares
DECISION = np.dtype(
    [
        ("position", "<u4"),
        ("item", "<i4"),
        ("kind", "u1"),
        ("of_unit", "<u4"),
        ("of_position", "<u4"),
        ("of_item", "<i4"),
    ]
)  # a duplicate, by which kind of label, and the place of which it is one

Records = npt.NDArray[Any]
Emit = Callable[[Records], None]
