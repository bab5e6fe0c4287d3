"""Means over the steps between two lines of a training log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Meter:
    """Gathers the figures of steps. Tensors are only looked at when somebody asks, so that a GPU is not waited for each step.

    Attributes:
        steps: taken in.
        begin: when gathering began (``time.monotonic``).
        waited: seconds of that in which the next batch was waited for.
    """

    steps: int = 0
    begin: float = field(default_factory=time.monotonic)
    waited: float = 0.0
    _sums: dict[str, float] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _pending: list[dict[str, Tensor]] = field(default_factory=list)

    def add(self, figures: Mapping[str, Tensor]) -> None:
        """Take in one step's figures, scalars; not every step has to have the same."""
        self.steps += 1
        self._pending.append(dict(figures))

    @property
    def means(self) -> dict[str, float]:
        """The mean of each figure over the steps that had it."""
        self._settle()
        return {name: value / self._counts[name] for name, value in self._sums.items()}

    def _settle(self) -> None:
        """Add up what is pending, one by one in float64: the same sum wherever it was looked at."""
        for figures in self._pending:
            values = torch.stack([value.double() for value in figures.values()]).tolist() if figures else []
            for name, value in zip(figures, values, strict=True):
                self._sums[name] = self._sums.get(name, 0.0) + value
                self._counts[name] = self._counts.get(name, 0) + 1
        self._pending.clear()

    def state(self) -> dict[str, Any]:
        """Plain numbers that :meth:`restored` goes on from."""
        self._settle()
        return {"steps": self.steps, "seconds": self.seconds, "waited": self.waited, "sums": self._sums, "counts": self._counts}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Meter:
        """One that goes on where another was; from an empty ``state`` one that begins."""
        meter = cls(begin=time.monotonic() - state.get("seconds", 0.0), waited=state.get("waited", 0.0))
        meter.steps = int(state.get("steps", 0))
        meter._sums, meter._counts = dict(state.get("sums", {})), dict(state.get("counts", {}))
        return meter

    @property
    def seconds(self) -> float:
        """Time since gathering began, never 0."""
        return max(time.monotonic() - self.begin, 1e-9)
