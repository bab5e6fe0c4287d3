"""The end of a run, once every unit is committed: from commit records to a finished directory, by exactly one process.

Account for every document, coalesce the payloads into shards, publish the rejects, write the manifest; then a packing plan
where asked for, and the report. Whoever finds everything committed asks for the lease ``finish``; the others wait for it and
find the work done. All of it is a function of the commit records and payloads and every file is replaced atomically, so an end
that is cut short, or done by two because the first was suspended and lost its lease, comes to the same bytes.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tokkit
from tokkit.dedup.decisions import Decisions
from tokkit.errors import MediaTooLongError, ResumableStop, TokkitError
from tokkit.failpoints import failpoint
from tokkit.pipelines.calibration import calibrations
from tokkit.pipelines.dedup import current_decisions
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.fingerprint import claimed
from tokkit.pipelines.finish import account, add_counts, add_nested, extrapolate, folder_digest, publish_rejects
from tokkit.pipelines.index_files import FOLDER as INDEX
from tokkit.pipelines.leases import LeaseLostError, Leases
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.mixed import mixture
from tokkit.pipelines.output import CALIBRATION, ENVIRONMENTS, RESULTS, Output
from tokkit.pipelines.plan import Plan
from tokkit.pipelines.prepare import Setup
from tokkit.pipelines.product import Product
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.stores import store_totals
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import RunManifest
from tokkit.sources.resolve import ResolvedInputs
from tokkit.storage import fingerprint_of, record_json, remove_attempts, write_atomic

if TYPE_CHECKING:
    from tokkit.pipelines.pack import SplitResult
    from tokkit.pipelines.shard import ShardConfig

FINISH = "finish"


@dataclass(frozen=True)
class Run:
    """A run that has claimed its directory and has its plan; with ``recorded`` it encodes nothing."""

    config: ShardConfig
    setup: Setup
    resolved: ResolvedInputs
    plan: Plan
    ledger: Ledger
    leases: Leases
    progress: Progress
    product: Product
    output: Output
    recorded: bool = False

    @property
    def complete(self) -> bool:
        """Whether there is a manifest."""
        return self.ledger.complete


def complete(run: Run) -> dict[str, SplitResult]:
    """Bring a run whose units are all committed to its end, or wait for the process that does; returns its packing plans.

    Raises:
        MediaTooLongError: everything is finished but for the packing plan, which no sequence length asked for can have.
        ResumableStop: units are missing; the message names them.
        VerificationError: the outcomes do not add up, or a payload is not what was committed.
    """
    waiting = f"waiting for {{}}, which brings {run.config.place} to its end"
    while True:
        with run.leases.hold(FINISH, lambda holder: run.progress.log(waiting.format(holder))):
            try:
                packs, refused = _complete(run)
            except (LeaseLostError, OSError, TokkitError):
                # A file that vanished or changed under a process that is not alone is no error: it looks again.
                if run.leases.mine(FINISH):
                    raise
            else:
                break
        run.progress.log("this process was suspended, and another went on with the end of the run")
    if refused is not None:
        raise _without_plan(run, refused) from None
    return packs


def _without_plan(run: Run, refused: MediaTooLongError) -> MediaTooLongError:
    """The error at the end of a run that has all but its packing plan."""
    place, pack = run.config.place, f"tokkit pack {run.config.place} --seq-len"
    return MediaTooLongError(
        f"{place} is finished, but for its packing plan: {refused.problem}",
        refused.needs,
        f"Nothing is to be encoded again: `{pack} {refused.needs}` plans sequences that hold them, and "
        f"`{pack} {run.config.pack} --too-long leave-out` leaves these documents out",
    )


def _complete(run: Run) -> tuple[dict[str, SplitResult], MediaTooLongError | None]:
    """The packing plans, or why there are none though such were asked for; all else is done in both cases."""
    out = run.config.out
    if not run.complete:
        run.output.pull(ENVIRONMENTS, CALIBRATION)
        records = committed(run)
        missing = [planned.index for planned in run.plan.units if planned.index not in records]
        if missing:
            raise ResumableStop(_missing(run, missing))
        manifest = _assemble(run, [records[planned.index] for planned in run.plan.units])
        failpoint("before-manifest")
        write_atomic(out / MANIFEST, record_json(manifest.model_dump(mode="json")))
        run.output.push(MANIFEST)
        failpoint("after-manifest")
    run.output.pull("report.html")
    packs, refused = dict[str, "SplitResult"](), None
    try:
        packs = run.product.pack(run)
    except MediaTooLongError as error:  # no reason to leave a long run without its report
        refused = error
    run.output.push("packs/")
    failpoint("before-report")
    run.product.report(run)
    run.output.push("report.html")
    failpoint("after-report")
    _still_mine(run)
    for folder in (out, run.ledger.commits, run.ledger.rejects, run.ledger.poisons):
        remove_attempts(folder)
    for folder in (run.ledger.payloads, out / "run" / INDEX):
        shutil.rmtree(folder, ignore_errors=True)
    run.output.settle()
    run.leases.sweep()
    return packs, refused


def committed(run: Run) -> dict[int, CommitRecord]:
    """The records of the units that are done, by index; none where duplicates have to be looked for first."""
    decisions = current_decisions(run) if run.config.dedup else None
    if decisions is None and run.config.dedup and not run.complete:
        return {}
    return commit_records(run.ledger, run.plan, decisions)


def commit_records(ledger: Ledger, plan: Plan, decisions: Decisions | None = None) -> dict[int, CommitRecord]:
    """The commit records of a plan's units, by index; with ``decisions`` only those that were made under these."""
    digests = {} if decisions is None else {planned.index: decisions.digest(planned.index) for planned in plan.units}
    return ledger.all_done(plan.units, digests)


def ranges(numbers: list[int]) -> str:
    """``0, 3-5, 9`` for sorted numbers."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, one)) for one in runs)


def _missing(run: Run, missing: list[int]) -> str:
    if run.config.dedup and current_decisions(run) is None:
        return (
            f"{run.config.out}: what comes again is not decided, or has to be decided anew because a document was found to "
            f"kill; run the same `tokkit shard` or `tokkit features` command, then again"
        )
    first = run.plan.units[missing[0]].unit
    shown = ranges(missing)
    return (
        f"{run.config.out}: {len(missing)} of {len(run.plan.units)} units are not committed: "
        f"{shown if len(shown) < 200 else shown[:200] + '...'} (the first is of {first.source}/{first.file}); "
        f"run the same `tokkit shard` or `tokkit features` command for these, then again"
    )


def _still_mine(run: Run) -> None:
    if not run.leases.mine(FINISH):
        raise LeaseLostError


def _assemble(run: Run, records: list[CommitRecord]) -> RunManifest:
    """Account for everything, write the shards and rejects; the manifest of these."""
    config, setup, ledger = run.config, run.setup, run.ledger
    sources = account(run.plan, records)
    mixed = mixture(run, records)
    run.output.share(ENVIRONMENTS)
    began = claimed(config.out / CONFIG)
    _still_mine(run)
    splits = run.product.coalesce(run, records)
    _still_mine(run)
    publish_rejects(ledger, records)
    _still_mine(run)
    run.output.replace(*RESULTS)
    _still_mine(run)
    common: dict[str, Any] = {
        "tokkit": tokkit.__version__,
        "semantic": setup.semantic,
        "semantic_fingerprint": fingerprint_of(setup.semantic),
        "numeric": began["numeric"],
        "numeric_fingerprint": began["numeric_fingerprint"],
        "calibrations": calibrations(config.out),
        "mixed": mixed,
        "tokenizers": setup.tokenizers,
        "trial": trial(config, records),
        "sources": sources,
        "stores": store_totals(run.resolved.stores, add_counts(s.images_from for s in sources)),
        "ignored": add_counts({entry.why: 1} for entry in run.resolved.ignored),
        "units": len(run.plan.units),
        "documents": add_counts(s.documents for s in sources),
        "items": add_nested(s.items for s in sources),
        "container_errors": sum(s.container_errors for s in sources),
        "splits": splits,
        "commits": folder_digest(ledger.commits),
        "rejects": folder_digest(ledger.rejects),
    }
    return run.product.manifest(run, common)


def trial(config: ShardConfig, records: list[CommitRecord]) -> dict[str, object] | None:
    """What a trial says of the whole input; None of a run that is none."""
    return None if config.limit is None else {"limit": config.limit, **extrapolate(records)}
