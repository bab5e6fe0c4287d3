"""Learning rate along a run whose length may be a number of steps, a time, or whichever ends first."""

from __future__ import annotations

from math import cos, pi


def progress(step: int, steps: int | None, seconds: float, max_seconds: float | None) -> float:
    """How much of the run is over, 0 to 1: by steps or by time, whichever is further. At least one must be bounded."""
    if steps is None and max_seconds is None:
        raise ValueError("a run is bounded by steps, by time, or by both")
    return min(1.0, max(step / steps if steps else 0.0, seconds / max_seconds if max_seconds else 0.0))


def cosine_with_warmup(done: float, warmup: float, floor: float = 0.02) -> float:
    """Factor on the peak learning rate: linear from 0 over the first ``warmup`` of the run, then half a cosine to ``floor``.

    Args:
        done: how much of the run is over, 0 to 1.
        warmup: share of the run, below 1; 0 begins at the peak.
        floor: the factor at the end.
    """
    if done < warmup:
        return max(done / warmup, 1e-3)
    return floor + (1 - floor) * 0.5 * (1 + cos(pi * (done - warmup) / (1 - warmup)))
