"""The interfaces between a job and the engine: what is done with a unit, and how units are shared with other processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, runtime_checkable

from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.work import Report

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class UnitWork(Protocol[Result_co]):
    """A task at work in one process, with everything loaded that it needs."""

    def process(self, planned: PlannedUnit, report: Report) -> Result_co:
        """Do a unit, from the beginning, but for the documents in ``planned.poison``.

        ``report`` is called now and then with the work done since the last call. It is also the sign of life: it must come from
        progress, at least every few seconds, never from a clock; but while a :class:`Service` is waited for, which is itself
        watched, a clock will do.
        """


class UnitTask(Protocol[Result_co]):
    """What is to be done with each unit. Picklable, as are the results: each worker process gets a copy and opens it."""

    def open(self) -> UnitWork[Result_co]:
        """Load what the work needs; called once in each process."""


class Service(Protocol):
    """A process beside the workers that their task needs, kept up by their parent."""

    def tend(self) -> None:
        """Look after it; called about every second while workers are at work.

        Raises:
            ResumableStop: it cannot be kept up.
        """

    def close(self) -> None:
        """End it: no worker needs it any more."""


@runtime_checkable
class ProbingWork(Protocol):
    """Work that can be tried on a part of a unit, so that a document that kills the process can be found."""

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        """Do to the documents at positions ``[first, last)`` what ``process`` does, and keep nothing.

        The unit is read from its beginning up to ``last`` documents, and ``report`` is called after each, so that it is known
        which one was being taken in when the process died.

        Returns:
            how many documents there were in the range.
        """


@dataclass(frozen=True, slots=True)
class Mine:
    """The unit is this process's to do; ``planned`` names the documents of it that are known to kill."""

    planned: PlannedUnit


@dataclass(frozen=True, slots=True)
class Busy:
    """Another process is at it."""


@dataclass(frozen=True, slots=True)
class Done(Generic[Result]):
    """It is done: by another process, meanwhile."""

    result: Result


class Sharing(Protocol[Result]):
    """How the units of a run are shared between the processes that are at work on one output."""

    poll_seconds: float  # between two looks at units that others are at

    def take(self, planned: PlannedUnit) -> Mine | Busy | Done[Result]:
        """Ask for a unit."""

    def find(self, planned: PlannedUnit) -> Result | None:
        """The result of a unit that is done, by whomever; None of one that is not."""

    def drop(self, planned: PlannedUnit) -> None:
        """Give a unit back, done or not."""

    def poisoned(self, planned: PlannedUnit) -> None:
        """Write down ``planned.poison``, so that no later attempt dies of it."""


class Alone(Generic[Result]):
    """No sharing: every unit is this process's."""

    poll_seconds = 1.0

    def take(self, planned: PlannedUnit) -> Mine | Busy | Done[Result]:
        return Mine(planned)

    def find(self, planned: PlannedUnit) -> Result | None:
        return None

    def drop(self, planned: PlannedUnit) -> None:
        pass

    def poisoned(self, planned: PlannedUnit) -> None:
        pass
