"""Units shared between the processes that are at work on one output: by leases, with the ledger telling what is done."""

from __future__ import annotations

from dataclasses import replace

from tokkit.dedup.decisions import Decisions
from tokkit.pipelines.duplicates import outdated
from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.meter import Meter
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.task import Busy, Done, Mine


class SharedUnits:
    """The units of ``tokkit shard``: done is what has a commit record, and one is at a unit who has its lease.

    Args:
        meter: is told of units that other processes have committed.
        decisions: about duplicates, where the run looks for these: a record that was made under others is none, but where
            these are not the newest themselves.
    """

    def __init__(self, ledger: Ledger, leases: Leases, meter: Meter, decisions: Decisions | None = None) -> None:
        self._ledger, self._leases, self._meter, self._decisions = ledger, leases, meter, decisions
        self.poll_seconds = leases.poll_seconds

    def take(self, planned: PlannedUnit) -> Mine | Busy | Done[CommitRecord]:
        name = _lease(planned)
        record = self._record(planned)
        if record is None:
            if not self._leases.acquire(name):
                return Busy()
            record = self._record(planned)  # committed and given back in between
            if record is None:
                self._ledger.forget(planned.index)
                return Mine(replace(planned, poison=self._ledger.poison(planned.index, planned.unit)))
            self._leases.release(name)
        self._meter.elsewhere(planned)
        return Done(record)

    def find(self, planned: PlannedUnit) -> CommitRecord | None:
        record = self._record(planned)
        if record is not None:
            self._meter.elsewhere(planned)
        return record

    def _record(self, planned: PlannedUnit) -> CommitRecord | None:
        if self._decisions is None:
            return self._ledger.done(planned.index, planned.unit)
        record = self._ledger.done(planned.index, planned.unit, self._decisions.digest(planned.index))
        if record is None and outdated(self._decisions, self._ledger):
            # Another process may have decided anew and done the unit: that it is right is found out when this one has, too.
            return self._ledger.done(planned.index, planned.unit)
        return record

    def drop(self, planned: PlannedUnit) -> None:
        self._leases.release(_lease(planned))

    def poisoned(self, planned: PlannedUnit) -> None:
        self._ledger.add_poison(planned.index, planned.unit, planned.poison)


def _lease(planned: PlannedUnit) -> str:
    return f"{planned.index:05d}"
