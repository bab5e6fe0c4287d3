"""Tasks for the engine's tests: small, quick to load, and they misbehave where they are told to. Workers import this module."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokkit.pipelines.plan import PlannedUnit, Poison
from tokkit.pipelines.task import Alone
from tokkit.pipelines.work import Report, Work
from tokkit.sources.base import Unit


def units(count: int) -> list[PlannedUnit]:
    return [PlannedUnit(i, Unit("source", f"file-{i}", f"/file-{i}", 0, 1, 100 - i)) for i in range(count)]


def misbehave(how: str) -> None:
    """Die by a signal or an exit code, hang, or raise."""
    if how == "hang":
        time.sleep(3600)
    elif how.startswith("exit"):
        os._exit(int(how[4:]))
    elif how == "deaf":
        os.closerange(3, 256)
        time.sleep(3600)
    elif how == "eoferror":
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")
    elif how == "oserror":
        raise OSError(5, "Input/output error")
    else:
        os.kill(os.getpid(), getattr(signal, how))


@dataclass
class Toy:
    """Units of ``documents`` documents; the result is the positions that were worked on.

    Attributes:
        folder: for marks, and one file a unit with the process ids that have begun it.
        faults: by unit and position, what happens there; ``once:`` before it for the first time only.
        when_read: the fault comes while reading, whether the document is wanted or not.
        behind: documents that are taken in before the first of them is worked on.
        loading: what happens while a worker loads.
    """

    folder: Path
    documents: int = 20
    faults: dict[tuple[int, int], str] = field(default_factory=dict)
    when_read: bool = False
    behind: int = 0
    loading: str = ""

    def open(self) -> ToyWork:
        with (self.folder / "loaded").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.loading:
            misbehave(self.loading)
        return ToyWork(self)


@dataclass
class ToyWork:
    task: Toy

    def process(self, planned: PlannedUnit, report: Report) -> list[int]:
        with (self.task.folder / f"begun-{planned.index}").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return self._go(planned, report, range(self.task.documents))

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        wanted = range(first, min(last, self.task.documents))
        self._go(planned, report, wanted)
        return len(wanted)

    def _go(self, planned: PlannedUnit, report: Report, wanted: range) -> list[int]:
        poison = {p.position for p in planned.poison}
        waiting: list[int] = []
        done: list[int] = []
        for position in range(wanted.stop):
            if self.task.when_read:
                self._fault(planned.index, position)
            if position in wanted and position not in poison:
                waiting.append(position)
            if len(waiting) > self.task.behind:
                done.append(self._work(planned.index, waiting.pop(0)))
            report(Work(documents=1, at=f"{planned.unit.file}#{position}"))
        return done + [self._work(planned.index, position) for position in waiting]

    def _work(self, unit: int, position: int) -> int:
        if not self.task.when_read:
            self._fault(unit, position)
        return position

    def _fault(self, unit: int, position: int) -> None:
        how = self.task.faults.get((unit, position), "")
        mark = self.task.folder / f"mark-{unit}-{position}"
        if how.startswith("once:"):
            if mark.exists():
                return
            mark.touch()
        if how:
            misbehave(how.removeprefix("once:"))


class Memory(Alone[list[int]]):
    """Keeps what was found to be poison."""

    def __init__(self) -> None:
        self.poison: dict[int, tuple[Poison, ...]] = {}

    def poisoned(self, planned: PlannedUnit) -> None:
        self.poison[planned.index] = planned.poison


class Unwilling:
    """A task whose work cannot be probed, and dies."""

    def open(self) -> Unwilling:
        return self

    def process(self, planned: PlannedUnit, report: Report) -> int:
        if planned.index == 1:
            os.abort()
        return planned.index
