"""What may be asked of packing; by itself, so that naming it does not load the kernels."""

from __future__ import annotations

from enum import StrEnum


class SplitPolicy(StrEnum):
    """What becomes of documents longer than a sequence."""

    NEVER = "never"
    OVERLONG = "overlong"
