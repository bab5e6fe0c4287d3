"""Means over the steps between two lines of a training log."""

from __future__ import annotations

import time
from collections.abc import Mapping
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

    def state(self) -> dict[str, float]:
        """Plain numbers that :meth:`restored` goes on from."""
        return {"steps": self.steps, "loss": self._loss, "psnr": self._psnr, "seconds": self.seconds}

    @classmethod
    def restored(cls, state: Mapping[str, float]) -> Meter:
        """One that goes on where another was; from an empty ``state`` one that begins."""
        meter = cls(begin=time.monotonic() - state.get("seconds", 0.0))
        meter.steps = int(state.get("steps", 0))
        meter._loss, meter._psnr = state.get("loss", 0.0), state.get("psnr", 0.0)
        return meter

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
