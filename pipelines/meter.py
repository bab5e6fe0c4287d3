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


class Meter:
    """Adds up what the workers report: the progress line, ``run/metrics.jsonl``, the reject budget and the summary."""

    def __init__(
        self,
        config: ShardConfig,
        progress: Progress,
        records: dict[int, CommitRecord],
        todo: Sequence[PlannedUnit],
    ) -> None:
        self._config, self._progress, self._records = config, progress, records
        self._todo = todo
        self._resumed, self._elsewhere = len(records), 0
        self._counts, self._reasons = Counter[str](), Counter[str]()
        for record in records.values():
            self._count(record)
        self._work = Work()
        self._metrics = config.out / "run" / "metrics.jsonl"
        self._begin = time.monotonic()

    def __enter__(self) -> Meter:
        total = sum(p.unit.bytes for p in self._todo) / 1e6
        if self._config.limit is not None:
            total = float(sum(p.quota or 0 for p in self._todo))
        self._unit = "documents" if self._config.limit is not None else "MB"
        self._task = self._progress.start("encode", total, self._unit)
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

    def _count(self, record: CommitRecord) -> None:
        self._counts.update(record.documents)
        self._reasons.update(record.reasons)

    def report(self, work: Work) -> None:
        self._work.add(work)
        elapsed = max(time.monotonic() - self._begin, 1e-9)
        self._task.fields(
            docs=f"{self._work.documents:,}",
            images=f"{self._work.images:,}",
            tokens=f"{self._work.tokens:,} ({self._work.tokens / elapsed:,.0f}/s)",
            rejected=f"{self._counts[Outcome.REJECTED]:,}",
        )
        self._task.advance(work.documents if self._unit == "documents" else work.bytes / 1e6)

    def elsewhere(self, planned: PlannedUnit) -> None:
        """A unit that another process has done: there is less to do here."""
        self._elsewhere += 1
        self._task.advance(planned.quota or 0 if self._unit == "documents" else planned.unit.bytes / 1e6)

    def done(self, planned: PlannedUnit, record: CommitRecord) -> None:
        self._records[planned.index] = record
        self._count(record)
        entry = {
            "time": round(time.time(), 3),
            "unit": planned.index,
            "source": planned.unit.source,
            "file": planned.unit.file,
            "documents": record.documents,
            "tokens": sum(s.tokens for s in record.splits.values()),
            "seconds_so_far": {k: round(v, 3) for k, v in self._work.seconds.items()},
        }
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        self._task.fields(rejected=f"{self._counts[Outcome.REJECTED]:,}")
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

    def summary(self, seconds: float, workers: int, trial: dict[str, object] | None) -> dict[str, object]:
        """This run's own figures: what it did, how fast, and which stage took the time."""
        work = self._work
        stages = {stage: round(work.seconds.get(stage, 0.0), 3) for stage in STAGES}
        busiest = max(stages, key=lambda s: stages[s])
        entry: dict[str, object] = {
            "units": len(self._todo) - self._elsewhere,
            "resumed_units": self._resumed,
            "units_done_elsewhere": self._elsewhere,
            "workers": workers,
            "seconds": round(seconds, 3),
            "documents": work.documents,
            "images": work.images,
            "tokens": work.tokens,
            "input_bytes": round(work.bytes),
            "stage_seconds": stages,
            "bound_by": busiest if stages[busiest] > 0 else None,
        }
        if trial is not None and work.bytes > 0:
            scale = float(str(trial["input_bytes"])) / work.bytes
            entry["estimated_hours"] = round(seconds * scale / 3600, 4)
        return entry
