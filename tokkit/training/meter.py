"""Means over the steps between two lines of a training log."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class Meter:
    """Gathers the figures of steps.

    Attributes:
        steps: taken in.
        lr: learning rate of the newest step.
        begin: when gathering began (``time.monotonic``).
    """

    steps: int = 0
    lr: float = 0.0
    begin: float = field(default_factory=time.monotonic)
    _loss: float = 0.0
    _psnr: float = 0.0

    def add(self, loss: float, psnr: float) -> None:
        """Take in one step's loss and PSNR (dB)."""
        self.steps += 1
        self._loss += loss
        self._psnr += psnr

    @property
    def loss(self) -> float:
        """Mean loss; needs at least one step."""
        return self._loss / self.steps

    @property
    def psnr(self) -> float:
        """Mean PSNR in dB; needs at least one step."""
        return self._psnr / self.steps

    @property
    def seconds(self) -> float:
        """Time since gathering began, never 0."""
        return max(time.monotonic() - self.begin, 1e-9)
