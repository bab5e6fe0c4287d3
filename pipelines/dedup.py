"""``--dedup``: the pass that finds out what comes again, before anything is encoded.

Every unit is indexed (:mod:`tokkit.pipelines.indexing`), by the same workers that encode later; then one file of decisions is
made from all indexes (:mod:`tokkit.dedup.find`). Both lie in ``run/index`` until the run is finished
(:mod:`tokkit.pipelines.index_files`). An index is a function of its unit and of what is known there to kill, and the decisions
are one of the indexes, so neither workers nor restarts nor the memory given change a byte of them: what is there and whole is
taken, what is not is made again.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

from tokkit.dedup.decisions import Decisions
from tokkit.dedup.perceptual import require_imagehash
from tokkit.errors import DataError, ResumableStop
from tokkit.failpoints import failpoint
from tokkit.pipelines.duplicates import DuplicateTable, basis_of
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.index_files import IndexFiles
from tokkit.pipelines.indexing import IndexedUnit, IndexTask, identity
from tokkit.pipelines.leases import LeaseLostError, Leases
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

OF_PICTURES: tuple[DedupKind, ...] = ("images", "near-images")

LEASE = "dedup"
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


def current_decisions(run: Run) -> Decisions | None:
    """The decisions that are there, if they rest on what is known now."""
    with suppress(DataError, FileNotFoundError):
        basis, files = basis_of(run.ledger.all_poison()), run.output.indexes()
        files.bring([files.decisions(basis)])
        return Decisions.open(files.decisions(basis), len(run.plan.units), basis=basis, check=True)
    return None


class Deduplicator:
    """Indexes and decides, with whoever else is at work on it, and adds up what that took.

    It is asked again where a document was found to kill while it was encoded: others may be duplicates of that one, and it will
    not be in the output. Its unit is then indexed without it, and everything is decided anew; so the decisions are those of a
    run that knew of the document from the beginning.
    """

    def __init__(self, run: Run, workers: int) -> None:
        self._run, self._workers = run, workers
        self._files = run.output.indexes()
        self._work, self._index_seconds, self._group_seconds = Work(), 0.0, 0.0
        self._by_kind: dict[str, int] = {}
        self._poison: Mapping[int, Sequence[int]] = {}  # that the newest decisions rest on

    def decide(self) -> Decisions:
        """Index what is not indexed and decide, unless that is done.

        Raises:
            ResumableStop, BudgetExceeded, TokkitError: as :func:`tokkit.pipelines.engine.run_units`.
        """
        run = self._run
        while not run.complete:
            self._files.folder.mkdir(parents=True, exist_ok=True)
            if not run.leases.others_at_work():
                _clean(self._files.folder)
            poison = run.ledger.all_poison()
            begin = time.monotonic()
            self._index()
            failpoint("indexed")
            self._index_seconds += time.monotonic() - begin
            begin = time.monotonic()
            with run.leases.hold(LEASE, lambda holder: run.progress.log(f"waiting for {holder}, which looks for duplicates")):
                decisions = self._group(poison)
            self._group_seconds += time.monotonic() - begin
            if decisions is not None:
                failpoint("decided")
                kinds = zip(KINDS, decisions.by_kind(), strict=True)
                self._poison = poison
                self._by_kind = {kind: int(count) for kind, count in kinds if kind in run.config.dedup}
                return decisions
        raise ResumableStop(f"another process has brought {run.config.out} to its end")

    def table(self) -> DuplicateTable:
        """What workers need to look up what was decided last."""
        sources = tuple(planned.unit.source for planned in self._run.plan.units)
        return DuplicateTable(self._files, sources, self._poison)

    def summary(self) -> DedupSummary:
        """What it took so far."""
        return DedupSummary(
            index_seconds=round(self._index_seconds, 3),
            group_seconds=round(self._group_seconds, 3),
            documents=self._work.documents,
            images=self._work.images,
            stage_seconds={stage: round(seconds, 3) for stage, seconds in sorted(self._work.seconds.items())},
            duplicates=self._by_kind,
        )

    def _index(self) -> None:
        """Index the units that are not."""
        run = self._run
        config, plan = run.config, run.plan
        sharing = SharedIndexing(run.ledger, run.leases, self._files)
        missing = sharing.missing(plan.units)
        if missing and len(missing) < len(plan.units):
            run.progress.log(f"going on: {len(plan.units) - len(missing)} of {len(plan.units)} units are indexed")
        refusing = run.setup.tokenizers["text"].kind != "sentencepiece"
        setup = run.setup
        task = IndexTask(
            config,
            plan.sources,
            setup.vocabulary,
            self._files,
            refusing,
            setup.filters,
            sounds=setup.sounds,
            pictures=setup.pictures,
        )
        units = Counter[str]()
        with run.progress.task("index", total=sum(p.unit.bytes for p in missing) / 1e6, unit="MB") as bar:

            def show() -> None:
                bar.fields(docs=f"{self._work.documents:,}", images=f"{self._work.images:,}")

            def report(work: Work) -> None:
                bar.advance(work.bytes / 1e6)
                self._work.add(work)
                show()

            def lost(work: Work) -> None:
                bar.advance(-work.bytes / 1e6)
                self._work = self._work.without(work)
                show()

            def indexed(planned: PlannedUnit, unit: IndexedUnit) -> None:
                units["done"] += 1
                bar.fields(units=f"{units['done']:,}")

            run_units(
                task,
                missing,
                self._workers,
                report,
                indexed,
                sharing=sharing,
                stall_seconds=config.stall_seconds,
                lost=lost,
                rest="everything else is indexed, but nothing is encoded before all of it is",
            )

    def _group(self, poison: Mapping[int, Sequence[int]]) -> Decisions | None:
        """The decisions, made now or before; None where the indexes have to be looked at again first.

        That is so where something was found to kill meanwhile, and where this process was suspended and has lost its lease, and
        maybe its files, to another.
        """
        run, files, basis = self._run, self._files, basis_of(poison)
        if basis_of(run.ledger.all_poison()) != basis:
            return None
        there = current_decisions(run)
        if there is not None:
            return there
        from tokkit.dedup.find import find_duplicates

        target, units = files.decisions(basis), run.plan.units
        indexes = [files.index(planned.index, poison.get(planned.index, ())) for planned in units]
        try:
            files.bring(indexes)
            with (
                run.progress.task("group", unit="steps") as bar,
                TemporaryDirectory(prefix=_SCRATCH, dir=files.folder, ignore_cleanup_errors=True) as scratch,
            ):

                def tick() -> None:
                    if not run.leases.mine(LEASE):
                        raise LeaseLostError
                    bar.advance()

                find_duplicates(
                    indexes,
                    target,
                    scratch=Path(scratch),
                    memory=run.config.dedup_memory,
                    distance=run.config.near_distance if "near-images" in run.config.dedup else None,
                    basis=basis,
                    tick=tick,
                )
            failpoint("grouped")
            files.share(target)
            return Decisions.open(target, len(units), basis=basis)
        except (LeaseLostError, OSError, DataError):
            if run.leases.mine(LEASE):
                raise
            return None


def _clean(folder: Path) -> None:
    """Remove what attempts that never came to their end left."""
    remove_attempts(folder)
    for path in folder.glob(f"{_SCRATCH}*"):
        shutil.rmtree(path, ignore_errors=True)


class SharedIndexing:
    """Units to be indexed, shared between processes: done is what has an index, and one is at a unit who has its lease.

    Where another process has finished the whole run and removed the indexes, everything is done.
    """

    def __init__(self, ledger: Ledger, leases: Leases, files: IndexFiles) -> None:
        self._ledger, self._leases, self._files = ledger, leases, files
        self.poll_seconds = leases.poll_seconds

    def take(self, planned: PlannedUnit) -> Mine | Busy | Done[IndexedUnit]:
        found = self.find(planned)
        if found is None:
            if not self._leases.acquire(_lease(planned)):
                return Busy()
            found = self.find(planned)  # written and given back in between
            if found is None:
                return Mine(self._known(planned))
            self._leases.release(_lease(planned))
        return Done(found)

    def find(self, planned: PlannedUnit) -> IndexedUnit | None:
        there = self._present({planned.index: [p.position for p in self._known(planned).poison]}, [planned])
        return IndexedUnit(planned.index) if there or self._ledger.complete else None

    def missing(self, units: Sequence[PlannedUnit]) -> list[PlannedUnit]:
        """Those that have no index."""
        if self._ledger.complete:
            return []
        there = self._present(self._ledger.all_poison(), units)
        return [planned for planned in units if planned.index not in there]

    def _present(self, poison: Mapping[int, Sequence[int]], units: Sequence[PlannedUnit]) -> set[int]:
        """The numbers of those that have an index which rests on what is known."""
        known = {planned.index: poison.get(planned.index, ()) for planned in units}
        paths = {index: self._files.index(index, positions) for index, positions in known.items()}
        there = self._files.present({paths[p.index]: identity(p, known[p.index]) for p in units})
        return {index for index, path in paths.items() if path in there}

    def _known(self, planned: PlannedUnit) -> PlannedUnit:
        """With the documents that are known to kill."""
        return replace(planned, poison=self._ledger.poison(planned.index, planned.unit))

    def drop(self, planned: PlannedUnit) -> None:
        self._leases.release(_lease(planned))

    def poisoned(self, planned: PlannedUnit) -> None:
        self._ledger.add_poison(planned.index, planned.unit, planned.poison)


def _lease(planned: PlannedUnit) -> str:
    return f"index-{planned.index:05d}"
