"""Features as they are stored, float16, bfloat16 or int8 with a scale for each token, and how far off that is.

bfloat16 is kept as its upper 16 bits of a float32 (uint16), which NumPy has no type for. An int8 token is ``round(x / scale)``
with ``scale = max|x| / 127``: the error of an element is at most half a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokkit.errors import ItemError

StoredDtype = Literal["fp16", "bf16", "int8"]
DTYPES: dict[str, np.dtype] = {"fp16": np.dtype("<f2"), "bf16": np.dtype("<u2"), "int8": np.dtype("i1")}
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Stored:
    """Features ``[n, dim]`` in their stored form.

    Attributes:
        values: float16, uint16 (bfloat16) or int8.
        scales: float32 [n], of int8; else None.
        error: root of the mean square error over root of the mean square, of all elements; 0 where all are 0.
    """

    values: npt.NDArray[np.generic]
    scales: Floats | None
    error: float


def to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """float32 to bfloat16, to the nearest, ties to even."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


def from_bfloat16(values: npt.NDArray[np.uint16]) -> Floats:
    """bfloat16 to float32, exactly."""
    return (values.astype(np.uint32) << 16).view(np.float32)


def as_float32(features: npt.NDArray[np.generic]) -> Floats:
    """Features as an encoder gives them: float32, float16, or bfloat16 as uint16."""
    if features.dtype == np.uint16:
        return from_bfloat16(features)  # type: ignore[arg-type]
    return np.ascontiguousarray(features, dtype=np.float32)


def store(features: npt.NDArray[np.generic], dtype: StoredDtype) -> Stored:
    """Bring features ``[n, dim]`` to their stored form.

    Raises:
        ItemError: they are not finite, or beyond what the form can hold.
    """
    exact = as_float32(features)
    if not np.isfinite(exact).all():
        raise ItemError("features-not-finite", "the encoder gave features that are not finite")
    if dtype == "int8":
        scales = np.abs(exact).max(axis=1, initial=0.0).astype(np.float32) / np.float32(127)
        safe = np.where(scales > 0, scales, np.float32(1))
        values: npt.NDArray[np.generic] = np.clip(np.rint(exact / safe[:, None]), -127, 127).astype(np.int8)
        return Stored(values, scales, _error(exact, restore(values, dtype, scales)))
    with np.errstate(over="ignore"):
        values = to_bfloat16(exact) if dtype == "bf16" else exact.astype(np.float16)
    kept = restore(values, dtype)
    if not np.isfinite(kept).all():
        largest = float(np.abs(exact).max())
        message = f"features up to {largest:.4g} are beyond {dtype}; --dtype bf16 or int8 holds more"
        raise ItemError("features-overflow", message)
    return Stored(values, None, _error(exact, kept))


def restore(values: npt.NDArray[np.generic], dtype: str, scales: Floats | None = None) -> Floats:
    """Stored features as float32."""
    if dtype == "int8":
        assert scales is not None  # an int8 item has them
        return values.astype(np.float32) * scales[:, None]
    return from_bfloat16(values) if dtype == "bf16" else values.astype(np.float32)  # type: ignore[arg-type]


def _error(exact: Floats, kept: Floats) -> float:
    power = float(np.square(exact, dtype=np.float64).sum())
    return float(np.sqrt(np.square(exact - kept, dtype=np.float64).sum() / power)) if power else 0.0
