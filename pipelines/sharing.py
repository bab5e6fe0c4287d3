"""Units shared between the processes that are at work on one output: by leases, with the ledger telling what is done."""

from __future__ import annotations

from dataclasses import replace

from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.meter import Meter
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.task import Busy, Done, Mine


class SharedUnits:
    """The units of ``tokkit shard``: done is what has a commit record, and one is at a unit who has its lease.

    Args:
        meter: is told of units that other processes have committed.
    """

    def __init__(self, ledger: Ledger, leases: Leases, meter: Meter) -> None:
        self._ledger, self._leases, self._meter = ledger, leases, meter
        self.poll_seconds = leases.poll_seconds

    def take(self, planned: PlannedUnit) -> Mine | Busy | Done[CommitRecord]:
        name = _lease(planned)
        record = self.find(planned)
        if record is None:
            if not self._leases.acquire(name):
                return Busy()
            record = self.find(planned)  # committed and given back in between
            if record is None:
                self._ledger.forget(planned.index)
                return Mine(replace(planned, poison=self._ledger.poison(planned.index, planned.unit)))
            self._leases.release(name)
        self._meter.elsewhere(planned)
        return Done(record)

    def find(self, planned: PlannedUnit) -> CommitRecord | None:
        return self._ledger.done(planned.index, planned.unit)

    def drop(self, planned: PlannedUnit) -> None:
        self._leases.release(_lease(planned))

    def poisoned(self, planned: PlannedUnit) -> None:
        self._ledger.add_poison(planned.index, planned.unit, planned.poison)


def _lease(planned: PlannedUnit) -> str:
    return f"{planned.index:05d}"
