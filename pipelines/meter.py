"""What a run says of itself while it goes and when it ends: progress, ``run/metrics.jsonl``, the reject budget, the summary."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tokkit.documents import Outcome
from tokkit.errors import BudgetExceeded
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.work import STAGES, Work

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig

REJECT_RATIO_AFTER = 1000  # documents before --max-reject-ratio is looked at
NOTE_EVERY = 10.0  # seconds between two lines of metrics.jsonl that are no unit's


class Meter:
    """Adds up what the workers report: the progress line, ``run/metrics.jsonl``, the reject budget and the summary.

    ``run/metrics.jsonl`` has a line for each unit that this process has done (``"event": "unit"``), and every ten seconds one
    with all that it has done so far (``"event": "progress"``). The work of attempts that came to nothing is taken off again,
    and told by itself in the summary, whose other amounts are those of the commit records.

    Attributes:
        records: of all units that are known to be done, by index; it is given those there were at the beginning.
    """

    def __init__(
        self,
        config: ShardConfig,
        progress: Progress,
        records: dict[int, CommitRecord],
        todo: Sequence[PlannedUnit],
        workers: int,
    ) -> None:
        self._config, self._progress, self.records = config, progress, records
        self._todo, self._workers = todo, workers
        self._resumed = len(records)
        self._mine: dict[int, CommitRecord] = {}  # units that were done here
        self._elsewhere: set[int] = set()
        self._counts, self._reasons = Counter[str](), Counter[str]()
        for record in records.values():
            self._count(record)
        self._work, self._lost = Work(), Work()
        self._metrics = config.out / "run" / "metrics.jsonl"
        self._begin = self._noted = time.monotonic()

    def __enter__(self) -> Meter:
        self._unit = "documents" if self._config.limit is not None else "MB"
        self._total = sum(self._size(planned) for planned in self._todo)
        self._task = self._progress.start("encode", self._total, self._unit)
        self._file = self._metrics.open("a", encoding="ascii")
        try:
            self._check_budget()  # of what earlier runs committed
        except BudgetExceeded:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.finish(self._task)
        self._file.close()

    def _size(self, planned: PlannedUnit) -> float:
        """What a unit adds to the bar."""
        return float(planned.quota or 0) if self._unit == "documents" else planned.unit.bytes / 1e6

    def _count(self, record: CommitRecord) -> None:
        self._counts.update(record.documents)
        self._reasons.update(record.reasons)

    def _discount(self, record: CommitRecord) -> None:
        self._counts -= Counter(record.documents)
        self._reasons -= Counter(record.reasons)

    def again(self, units: Sequence[PlannedUnit]) -> None:
        """Some units have to be done again, or for the first time, before the run is through."""
        for planned in units:
            record = self.records.pop(planned.index, None)
            if record is not None:
                self._discount(record)
            if planned.index in self._mine:
                self.lost(_work_of(self._mine.pop(planned.index)))
            elif planned.index in self._elsewhere:
                self._elsewhere.remove(planned.index)
                self._task.advance(-self._size(planned))
            else:
                self._resumed -= record is not None
                self._total += self._size(planned)
                self._task.total(self._total)

    def lost(self, work: Work) -> None:
        """Work that was reported, and came to nothing."""
        self._lost.add(work)
        self._advance(work, -1)
        self._show()

    def _advance(self, work: Work, sign: int = 1) -> None:
        self._task.advance(sign * (work.documents if self._unit == "documents" else work.bytes / 1e6))

    def report(self, work: Work) -> None:
        self._work.add(work)
        self._show()
        self._advance(work)
        if time.monotonic() - self._noted >= NOTE_EVERY:
            self._noted = time.monotonic()
            self._note("progress", self._so_far())

    def _show(self) -> None:
        """The figures beside the bar."""
        work, elapsed = self._work.without(self._lost), max(time.monotonic() - self._begin, 1e-9)
        by_kind = ", ".join(f"{kind} {count / elapsed:,.0f}" for kind, count in work.kinds.most_common() if kind != "marker")
        shown = {
            "docs": f"{work.documents:,} ({work.documents / elapsed:,.0f}/s)",
            "tokens": f"{work.tokens:,} ({work.tokens / elapsed:,.0f}/s{': ' + by_kind if len(work.kinds) > 2 else ''})",
        }
        if work.images:
            busy = work.seconds.get("encode", 0.0) / (elapsed * max(1, self._workers))
            told = f"encoding {busy:.0%} of the time"
            if work.encoder_batches:
                busy, full = self._encoder(elapsed)
                told = f"encoder busy {busy:.0%}, queue {full:.0%} full"
            shown["images"] = f"{work.images:,} ({work.images / elapsed:,.0f}/s, {told})"
        if work.sounds:
            shown["sounds"] = f"{work.sounds:,} ({work.sounds / elapsed:,.1f}/s)"
        for outcome in (Outcome.REJECTED, Outcome.FILTERED, Outcome.DUPLICATE, Outcome.FAILED_UPSTREAM):
            if self._counts[outcome] or outcome == Outcome.REJECTED:
                shown[outcome.value.replace("_", " ")] = f"{self._counts[outcome]:,}"
        self._task.fields(**shown)

    def _so_far(self) -> dict[str, object]:
        """What this run has done since it began, for ``run/metrics.jsonl``."""
        seconds, work = time.monotonic() - self._begin, self._work.without(self._lost)
        entry = {
            "seconds": round(seconds, 3),
            "documents": work.documents,
            "images": work.images,
            "sounds": work.sounds,
            "tokens_by_kind": dict(sorted(work.kinds.items())),
            "input_bytes": round(work.bytes),
            "outcomes": {str(k): n for k, n in sorted(self._counts.items())},
            "stage_seconds": {k: round(v, 3) for k, v in work.seconds.items()},
        }
        if self._work.encoder_batches:
            entry["encoder"] = self._encoder_entry(seconds)
        return entry

    def _note(self, event: str, entry: dict[str, object]) -> None:
        self._file.write(json.dumps({"event": event, "time": round(time.time(), 3), **entry}) + "\n")
        self._file.flush()

    def _encoder(self, seconds: float) -> tuple[float, float]:
        """Share of the time that the encoder process was busy, and how full its queue was in the mean when it took a batch."""
        return self._work.encoder_seconds / max(seconds, 1e-9), self._work.encoder_fill / self._work.encoder_batches

    def _encoder_entry(self, seconds: float) -> dict[str, float]:
        busy, full = self._encoder(seconds)
        return {"batches": self._work.encoder_batches, "busy": round(busy, 4), "queue_fill": round(full, 4)}

    def elsewhere(self, planned: PlannedUnit) -> None:
        """A unit that another process has done, and tells of: there is less to do here."""
        self._elsewhere.add(planned.index)
        self._task.advance(self._size(planned))

    def done(self, planned: PlannedUnit, record: CommitRecord) -> None:
        self.records[planned.index] = record
        self._count(record)
        if planned.index not in self._elsewhere:
            self._mine[planned.index] = record
            unit = {
                "unit": planned.index,
                "source": planned.unit.source,
                "file": planned.unit.file,
                "documents": record.documents,
                "tokens": sum(s.tokens for s in record.splits.values()),
            }
            self._note("unit", unit)
        self._show()
        self._check_budget()

    def _check_budget(self) -> None:
        total, rejected = self._counts.total(), self._counts[Outcome.REJECTED]
        if total >= REJECT_RATIO_AFTER and rejected > self._config.max_reject_ratio * total:
            rejects = {k: n for k, n in self._reasons.items() if k.startswith("document/rejected/")}
            common = max(sorted(rejects), key=lambda k: rejects[k])
            raise BudgetExceeded(
                f"{rejected} of {total} documents were rejected, more than --max-reject-ratio "
                f"{self._config.max_reject_ratio:g}; most often {common.rsplit('/', 1)[1]} ({rejects[common]}). "
                f"The rejects are in run/payloads/*.rejects.jsonl; mend the input or raise the ratio"
            )

    def summary(self, seconds: float, trial: dict[str, object] | None) -> dict[str, object]:
        """This run's own figures: what it did, how fast, and which stage took the time.

        Amounts are those of the units that were done here, as committed; ``stage_seconds`` all that was spent, and ``lost`` the
        work of attempts that came to nothing.
        """
        stages = {stage: round(self._work.seconds.get(stage, 0.0), 3) for stage in STAGES}
        busiest = max(stages, key=lambda s: stages[s])
        work = Work()
        for record in self._mine.values():
            work.add(_work_of(record))
        entry: dict[str, object] = {
            "units": len(self._mine),
            "resumed_units": self._resumed,
            "units_done_elsewhere": len(self._elsewhere),
            "workers": self._workers,
            "seconds": round(seconds, 3),
            **_amounts(work),
            "input_bytes": round(work.bytes),
            "lost": _amounts(self._lost),
            "stage_seconds": stages,
            "bound_by": busiest if stages[busiest] > 0 else None,
        }
        if self._work.encoder_batches:
            entry["encoder"] = self._encoder_entry(seconds)
        if trial is not None and work.bytes > 0:
            scale = float(str(trial["input_bytes"])) / work.bytes
            entry["estimated_hours"] = round(seconds * scale / 3600, 4)
        return entry


def _amounts(work: Work) -> dict[str, int]:
    return {"documents": work.documents, "images": work.images, "sounds": work.sounds, "tokens": work.tokens}


def _work_of(record: CommitRecord) -> Work:
    """What a unit came to, as committed: pictures are those that were encoded and are in the output."""
    work = Work(documents=sum(record.documents.values()), images=record.items.get("image", {}).get(Outcome.COMMITTED, 0))
    work.sounds = record.items.get("audio", {}).get(Outcome.COMMITTED, 0)
    for split in record.splits.values():
        work.kinds.update(split.tokens_by_kind)
    work.bytes = record.unit.bytes * record.consumed
    return work
