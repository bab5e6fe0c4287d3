"""Batches of noise: for measuring networks where there are no pictures and no sounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class NoiseBatches:
    """uint8 noise of one size, the same whatever the step.

    Args:
        size: side of the pictures.
        count: pictures of a part.
    """

    def __init__(self, size: int, count: int = 1) -> None:
        self._pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)

    def part(self, step: int, part: int, parts: int) -> NDArray[np.uint8]:
        """See :class:`tokkit.training.image_task.Batches`."""
        return self._pixels

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to go on from."""

    def close(self) -> None:
        """Nothing is under way."""


class NoiseCrops:
    """One crop of float32 noise, the same whatever the step (:class:`tokkit.training.audio.task.Crops`).

    Args:
        channels, length: of the crop.
    """

    batch_size = 1

    def __init__(self, channels: int, length: int) -> None:
        self.length = length
        self._waves = (0.1 * np.random.default_rng(0).standard_normal((1, channels, length))).astype(np.float32)

    def part(self, step: int, part: int, parts: int) -> NDArray[np.float32]:
        """``[1, channels, length]``."""
        return self._waves

    def sample(self, number: int) -> NDArray[np.float32]:
        """The same."""
        return self._waves

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to go on from."""

    def close(self) -> None:
        """Nothing is under way."""
