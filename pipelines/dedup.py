"""``--dedup``: the pass that finds out what comes again, before anything is encoded.

Every unit is indexed (:mod:`tokkit.pipelines.indexing`), by the same workers that encode later; then one file of decisions is
made from all indexes (:mod:`tokkit.dedup.find`). Both lie in ``run/index`` until the run is finished. An index is a function of
its unit, and the decisions are one of the indexes, so neither workers nor restarts nor the memory given change a byte of them:
what is there and whole is taken, what is not is made again.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from tokkit.dedup.decisions import Decisions
from tokkit.dedup.index import UnitIndex
from tokkit.dedup.perceptual import require_imagehash
from tokkit.errors import DataError
from tokkit.failpoints import failpoint
from tokkit.pipelines.duplicates import DECISIONS, DuplicateTable, index_path
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.indexing import IndexedUnit, IndexTask, identity
from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import Ledger
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.task import Busy, Done, Mine
from tokkit.pipelines.work import Work
from tokkit.storage import remove_attempts

if TYPE_CHECKING:
    from tokkit.pipelines.completion import Run
    from tokkit.pipelines.shard import ShardConfig

DedupKind = Literal["documents", "texts", "images", "near-images"]
KINDS: tuple[DedupKind, ...] = ("documents", "texts", "images", "near-images")

FOLDER = "index"
_SCRATCH = "scratch-"


def normal_kinds(kinds: list[DedupKind]) -> list[DedupKind]:
    """Each kind once, in a fixed order; pictures that look alike include pictures with the same bytes."""
    wanted = {*kinds, "images"} if "near-images" in kinds else set(kinds)
    return [kind for kind in KINDS if kind in wanted]


def check_dedup(config: ShardConfig) -> None:
    """Raise UsageError where something that the kinds asked for need is not installed."""
    if "near-images" in config.dedup:
        require_imagehash()


@dataclass(frozen=True)
class DedupSummary:
    """This run's own figures: seconds of both steps, documents and pictures indexed now, and duplicates by kind."""

    index_seconds: float
    group_seconds: float
    documents: int
    images: int
    stage_seconds: dict[str, float]
    duplicates: dict[str, int]


def deduplicate(run: Run, workers: int) -> tuple[DuplicateTable, DedupSummary]:
    """Index what is not indexed, with whoever else is at work on it, and decide.

    Raises:
        ResumableStop, BudgetExceeded, TokkitError: as :func:`tokkit.pipelines.engine.run_units`.
    """
    folder = run.config.out / "run" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if not run.leases.others_at_work():
        _clean(folder)
    begin = time.monotonic()
    work = _index(run, workers, folder)
    failpoint("indexed")
    indexed = time.monotonic()
    with run.leases.hold("dedup", lambda holder: run.progress.log(f"waiting for {holder}, which looks for duplicates")):
        decisions = _decisions(run, folder)
    failpoint("decided")
    kinds = zip(KINDS, decisions.by_kind(), strict=True)
    by_kind: dict[str, int] = {kind: int(count) for kind, count in kinds if kind in run.config.dedup}
    return DuplicateTable(folder, tuple(p.unit.source for p in run.plan.units)), DedupSummary(
        index_seconds=round(indexed - begin, 3),
        group_seconds=round(time.monotonic() - indexed, 3),
        documents=work.documents,
        images=work.images,
        stage_seconds={stage: round(seconds, 3) for stage, seconds in sorted(work.seconds.items())},
        duplicates=by_kind,
    )


def _clean(folder: Path) -> None:
    """Remove what attempts that never came to their end left."""
    remove_attempts(folder)
    for path in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


def _index(run: Run, workers: int, folder: Path) -> Work:
    """Index the units that are not; returns the work done here."""
    config, plan = run.config, run.plan
    sharing = SharedIndexing(run.ledger, run.leases, folder)
    missing = [planned for planned in plan.units if sharing.find(planned) is None]
    if missing and len(missing) < len(plan.units):
        run.progress.log(f"going on: {len(plan.units) - len(missing)} of {len(plan.units)} units are indexed")
    refusing = run.setup.tokenizers["text"].kind != "sentencepiece"
    task = IndexTask(config, plan.sources, run.setup.vocabulary, folder, refusing)
    done, units = Work(), Counter[str]()
    with run.progress.task("index", total=sum(p.unit.bytes for p in missing) / 1e6, unit="MB") as bar:

        def report(work: Work) -> None:
            bar.advance(work.bytes / 1e6)
            done.add(work)
            bar.fields(docs=f"{done.documents:,}", images=f"{done.images:,}")

        def indexed(planned: PlannedUnit, unit: IndexedUnit) -> None:
            units["done"] += 1
            bar.fields(units=f"{units['done']:,}")

        run_units(task, missing, workers, report, indexed, sharing=sharing, stall_seconds=config.stall_seconds)
    return done


class SharedIndexing:
    """Units to be indexed, shared between processes: done is what has an index, and one is at a unit who has its lease."""

    def __init__(self, ledger: Ledger, leases: Leases, folder: Path) -> None:
        self._ledger, self._leases, self._folder = ledger, leases, folder
        self.poll_seconds = leases.poll_seconds

    def take(self, planned: PlannedUnit) -> Mine | Busy | Done[IndexedUnit]:
        found = self.find(planned)
        if found is None:
            if not self._leases.acquire(_lease(planned)):
                return Busy()
            found = self.find(planned)  # written and given back in between
            if found is None:
                return Mine(replace(planned, poison=self._ledger.poison(planned.index, planned.unit)))
            self._leases.release(_lease(planned))
        return Done(found)

    def find(self, planned: PlannedUnit) -> IndexedUnit | None:
        with suppress(DataError, FileNotFoundError):
            index = UnitIndex.open(index_path(self._folder, planned.index), identity(planned))
            return IndexedUnit(planned.index, index.documents)
        return None

    def drop(self, planned: PlannedUnit) -> None:
        self._leases.release(_lease(planned))

    def poisoned(self, planned: PlannedUnit) -> None:
        self._ledger.add_poison(planned.index, planned.unit, planned.poison)


def _lease(planned: PlannedUnit) -> str:
    return f"index-{planned.index:05d}"


def _decisions(run: Run, folder: Path) -> Decisions:
    """The decisions, made now or before."""
    config, target, units = run.config, folder / DECISIONS, len(run.plan.units)
    with suppress(DataError, FileNotFoundError):
        return Decisions.open(target, units, check=True)
    from tokkit.dedup.find import find_duplicates

    with (
        run.progress.task("group", unit="steps") as bar,
        TemporaryDirectory(prefix=_SCRATCH, dir=folder, ignore_cleanup_errors=True) as scratch,
    ):
        find_duplicates(
            [index_path(folder, planned.index) for planned in run.plan.units],
            target,
            scratch=Path(scratch),
            memory=config.dedup_memory,
            distance=config.near_distance if "near-images" in config.dedup else None,
            tick=bar.advance,
        )
    return Decisions.open(target, units)
