"""Rows of different lengths that lie one after another in one array."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Value = TypeVar("Value", bound=np.generic)


def split_rows(values: npt.NDArray[Value], lengths: npt.NDArray[np.int64]) -> list[npt.NDArray[Value]]:
    """The rows, as views: ``values`` [T] cut into pieces of ``lengths`` [N], which sum up to T."""
    ends = np.cumsum(lengths).tolist()
    return [values[start:end] for start, end in zip([0, *ends], ends, strict=False)]
