"""What may be asked of packing; by itself, so that naming it does not load the kernels."""

from __future__ import annotations

from enum import StrEnum


class SplitPolicy(StrEnum):
    """Which documents are cut (:mod:`tokkit.packing.split`, :mod:`tokkit.packing.fill`)."""

    NEVER = "never"
    OVERLONG = "overlong"
    FILL = "fill"


class TooLong(StrEnum):
    """What becomes of a document with media longer than a sequence (:mod:`tokkit.packing.too_long`)."""

    ERROR = "error"
    LEAVE_OUT = "leave-out"
