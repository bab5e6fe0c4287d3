"""How far a fast mode's features agree with float32's (:mod:`tokkit.pipelines.calibration`).

Agreement is 1 less the relative error: the root mean square of the difference over that of float32's features, over all tokens
that were encoded both ways. An item's pooled embedding counts as one more token. Items whose features are not finite in float32
itself are left out: the run rejects them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokkit.shards.manifest import FeatureCalibrationEntry
from tokkit.storage import fingerprint_of

if TYPE_CHECKING:
    from tokkit.features.base import ItemFeatures, Prepared
    from tokkit.pipelines.completion import Run
    from tokkit.pipelines.features_batches import FeatureBatches

DIGITS = 9  # of the figures that are written down


@dataclass
class FeatureSums:
    """Sums of squares, and the worst that was met."""

    items: int = 0
    tokens: int = 0
    squares: float = 0.0
    difference: float = 0.0
    worst: float = 0.0
    cosine: float = 1.0
    overflowed: int = 0

    @property
    def seen(self) -> int:
        return self.items

    def add(self, other: FeatureSums) -> None:
        """Add what was counted elsewhere."""
        for name in ("items", "tokens", "squares", "difference", "overflowed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.worst, self.cosine = max(self.worst, other.worst), min(self.cosine, other.cosine)

    def compare(self, fast: NDArray[np.float64], exact: NDArray[np.float64]) -> None:
        """Count an item's tokens ``[tokens, dim]``, those of both ways."""
        squares, difference = float((exact**2).sum()), float(((fast - exact) ** 2).sum())
        lengths = np.linalg.norm(fast, axis=1) * np.linalg.norm(exact, axis=1)
        cosines = (fast * exact).sum(axis=1)[lengths > 0] / lengths[lengths > 0]
        self.add(
            FeatureSums(1, len(exact), squares, difference, _relative(difference, squares), float(min(cosines, default=1.0)), 0)
        )

    @property
    def error(self) -> float:
        """The relative error of all."""
        return _relative(self.difference, self.squares)


def _relative(difference: float, squares: float) -> float:
    if not difference:
        return 0.0
    return math.sqrt(difference / squares) if squares else 1.0


class FeaturesTwice:
    """Encodes in the fast mode and in float32, and counts how far they are apart."""

    def __init__(self, fast: FeatureBatches) -> None:
        self.fast, self.sums = fast, FeatureSums()

    @property
    def overflowed(self) -> int:
        return self.fast.overflowed

    def encode_padded(self, items: Sequence[Prepared], batch_size: int) -> list[ItemFeatures]:
        found = self.fast.encode_padded(items, batch_size)
        for ours, exact in zip(found, self.fast.exact.encode(items, batch_size), strict=True):
            a, b = _tokens(ours), _tokens(exact)
            if np.isfinite(b).all():
                self.sums.compare(a, b)
        return found


def _tokens(features: ItemFeatures) -> NDArray[np.float64]:
    """An item's tokens; with a pooled embedding of another dimension beside them, both filled up with zeros."""
    rows = [np.asarray(features.features, dtype=np.float64)]
    if features.pooled is not None:
        rows.append(np.asarray(features.pooled, dtype=np.float64).reshape(1, -1))
    width = max(row.shape[1] for row in rows)
    return np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]))) for row in rows])


class FeatureCalibration:
    """As a :class:`~tokkit.pipelines.calibration.Calibration`."""

    def sums(self) -> FeatureSums:
        return FeatureSums()

    def twice(self, processor: Any) -> Any:
        return FeaturesTwice(processor.batches)

    def entry(self, run: Run, sums: FeatureSums) -> FeatureCalibrationEntry:
        return FeatureCalibrationEntry(
            numeric=fingerprint_of(run.setup.numeric),
            precision=run.config.precision,
            acceleration=run.config.acceleration,
            items=sums.items,
            tokens=sums.tokens,
            error=round(sums.error, DIGITS),
            worst_error=round(sums.worst, DIGITS),
            cosine=round(sums.cosine, DIGITS),
            overflowed=sums.overflowed,
        )


FEATURE_CALIBRATION = FeatureCalibration()
