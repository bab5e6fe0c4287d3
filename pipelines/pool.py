"""The pool: units to worker processes, any worker, any order; a worker that dies or hangs is replaced.

A unit whose worker died is tried once more; after a second death it is put aside, for :mod:`tokkit.pipelines.poison`. So is one
that met a transient error. A worker that is at something and says nothing of it for ``stall_seconds`` is killed, and has died.
Any other error ends the run, with its message (a tokkit error) or its traceback (a fault in the program).
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic

from tokkit.errors import ResumableStop
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.task import Done, Mine, Result, Service, Sharing, UnitTask
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.worker import (
    LEFT_ALONE,
    LOST,
    AnyWorker,
    Death,
    Do,
    Finished,
    Hosting,
    Order,
    Processes,
    Ready,
    raise_error,
)

DEATHS_OF_A_UNIT = 2  # then it is put aside
STILLBORN_IN_A_ROW = 3  # workers that die before they are ready


@dataclass
class Trouble:
    """A unit that is put aside: by a transient error (``message``), or because its worker died (``deaths``)."""

    planned: PlannedUnit
    message: str = ""
    deaths: list[Death] = field(default_factory=list)
    documents: int = 0  # that the worker had taken when it died


class UnitQueue(Generic[Result]):
    """The units that are to be done, in the order in which they are begun, and those that other processes are at.

    Args:
        done: called with a unit and its result once it is done, here or elsewhere.
    """

    def __init__(
        self, units: Iterable[PlannedUnit], sharing: Sharing[Result], done: Callable[[PlannedUnit, Result], None]
    ) -> None:
        # The largest first: the last units to end are small ones.
        self._todo = deque(sorted(units, key=lambda p: (-p.unit.bytes, p.index)))
        self._again: deque[PlannedUnit] = deque()  # ours already
        self._elsewhere: deque[PlannedUnit] = deque()
        self._sharing, self._done = sharing, done
        self._next_look = 0.0

    def __len__(self) -> int:
        return len(self._again) + len(self._todo) + len(self._elsewhere)

    @property
    def poll_seconds(self) -> float:
        return self._sharing.poll_seconds

    def next(self) -> PlannedUnit | None:
        """A unit to do; None where there is none just now."""
        if self._again:
            return self._again.popleft()
        if not self._todo and time.monotonic() >= self._next_look:
            self._todo, self._elsewhere = self._elsewhere, deque()
            self._next_look = time.monotonic() + self.poll_seconds
        while self._todo:
            planned = self._todo.popleft()
            taken = self._sharing.take(planned)
            if isinstance(taken, Mine):
                return taken.planned
            if isinstance(taken, Done):
                self._done(planned, taken.result)
            else:
                self._elsewhere.append(planned)
        return None

    def put_back(self, planned: PlannedUnit) -> None:
        """To be tried once more."""
        self._again.append(planned)

    def done_elsewhere(self, planned: PlannedUnit) -> bool:
        """Whether a unit that failed here is done: where this process was suspended, another has taken its units over.

        It may also have removed what this one was writing, so such a failure means nothing.
        """
        result = self._sharing.find(planned)
        if result is not None:
            self.done(planned, result)
        return result is not None

    def done(self, planned: PlannedUnit, result: Result) -> None:
        self._done(planned, result)
        self._sharing.drop(planned)


class Pool(Generic[Result]):
    """``count`` worker processes, kept up, and what each is at.

    Args:
        report: called with the work done, as workers tell of it.
        lost: called with the work of an attempt that came to nothing, which had been reported.
        hosting: where workers live; processes of this one unless told otherwise.
    """

    def __init__(
        self,
        task: UnitTask[Result],
        count: int,
        queue: UnitQueue[Result],
        report: Report,
        lost: Report,
        stall_seconds: float,
        service: Service | None = None,
        hosting: Hosting | None = None,
    ) -> None:
        self._task, self._count, self._queue, self._service = task, count, queue, service
        self._report, self._lost, self._stall_seconds = report, lost, stall_seconds
        self._hosting: Hosting = hosting or Processes()
        self._workers: list[AnyWorker[Result]] = []
        self._deaths: defaultdict[int, list[Death]] = defaultdict(list)
        self._troubles: list[Trouble] = []
        self._stillborn = self._killed = 0

    def run(self) -> list[Trouble]:
        """Do the units; returns those that are put aside."""
        try:
            while True:
                if self._service is not None:
                    self._service.tend()
                while len(self._workers) < self._count and len(self._queue):
                    self._workers.append(self._hosting.worker(self._task, self._stall_seconds))
                for worker in self._workers:
                    if worker.ready and worker.order is None and (planned := self._queue.next()) is not None:
                        worker.give(Do(planned))
                if not len(self._queue) and not any(worker.order for worker in self._workers):
                    return self._troubles
                for worker in self._hosting.listen(self._workers, min(1.0, self._queue.poll_seconds)):
                    self._hear(worker)
                for worker in [w for w in self._workers if w.stalled()]:
                    self._bury(worker, worker.order, worker.kill())
        finally:
            self._end()

    def _hear(self, worker: AnyWorker[Result]) -> None:
        order = worker.order
        message = worker.receive()
        if isinstance(message, Ready):
            self._stillborn = 0
        elif isinstance(message, Work):
            self._report(message)
        elif isinstance(message, Death):
            self._bury(worker, order, message)
        elif order is None:
            raise_error(message)
        elif isinstance(message, Finished):
            self._killed = 0
            self._queue.done(order.planned, message.result)
        elif message.transient:
            self._lost(worker.told)
            self._troubles.append(Trouble(order.planned, message.message))
        else:
            raise_error(message)

    def _bury(self, worker: AnyWorker[Result], order: Order | None, death: Death) -> None:
        """Take a dead worker off the list, and decide what becomes of its unit."""
        self._workers.remove(worker)
        if not worker.ready and death != LEFT_ALONE:
            self._stillborn += 1
            # All that load may be lost with one node.
            if self._stillborn >= (max(6, 3 * self._count) if death == LOST else STILLBORN_IN_A_ROW):
                raise ResumableStop(
                    f"worker processes end before they begin: the last {death}. If memory is short, use fewer --workers; what "
                    f"is committed is safe"
                )
        if death.cause == "SIGKILL":
            self._killed += 1
            if self._killed > max(6, 3 * self._count):
                raise ResumableStop(
                    f"{self._killed} worker processes in a row were killed by SIGKILL, as the kernel does when memory is "
                    f"short: run the same command again with fewer --workers; what is committed is safe"
                )
        if order is None:
            return
        self._lost(worker.told)
        deaths = self._deaths[order.planned.index]
        deaths.append(death)
        if len(deaths) < DEATHS_OF_A_UNIT:
            self._queue.put_back(order.planned)
        else:
            self._troubles.append(Trouble(order.planned, deaths=deaths, documents=worker.documents))

    def _end(self) -> None:
        """Let idle workers go and stop the others."""
        for worker in self._workers:
            worker.leave()
        for worker in self._workers:
            worker.bury()
