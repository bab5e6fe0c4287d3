"""Workers that encode by themselves, dealt out to the GPUs of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

from tokkit.pipelines.task import Result, UnitTask
from tokkit.pipelines.unit import UnitJob
from tokkit.pipelines.worker import AnyWorker, Processes, Worker


class OnDevices(Processes):
    """Workers are processes of this one; each new one gets the device that the fewest living ones have.

    Args:
        devices: of one model, so that it does not matter which one encodes.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self._devices = list(devices)
        self._placed: list[tuple[Worker[object], str]] = []

    def worker(self, task: UnitTask[Result], stall_seconds: float) -> AnyWorker[Result]:
        self._placed = [(worker, device) for worker, device in self._placed if worker.alive]
        held = [device for _, device in self._placed]
        device = min(self._devices, key=held.count)
        if isinstance(task, UnitJob):
            task = cast("UnitTask[Result]", replace(task, device=device))
        worker: Worker[Result] = Worker(task, stall_seconds)
        self._placed.append((cast("Worker[object]", worker), device))
        return worker
