"""``tokkit shard``: corpora in, packed-ready token shards out, every document exactly once.

The job, in order: claim the output directory for this configuration, plan the units, do every unit that has no commit record
(:mod:`tokkit.pipelines.engine`), account for every document, coalesce the payloads into shards, write the manifest, and, where
asked for, a packing plan; last a report that shows some documents decoded back from their tokens. Every step may be cut short;
the same command goes on where it stopped, and the result is byte for byte that of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokkit.dedup.decisions import Decisions
from tokkit.errors import DataError, FingerprintMismatch, ResumableStop, UsageError
from tokkit.filters import absolute_spec
from tokkit.pipelines.calibration import CODE_CALIBRATION, Calibration, calibrate
from tokkit.pipelines.completion import Run, commit_records, committed, complete, trial
from tokkit.pipelines.dedup import Deduplicator, check_dedup
from tokkit.pipelines.duplicates import DuplicateTable, outdated
from tokkit.pipelines.encoder_service import EncoderServices, encoder_devices
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.fingerprint import claim_directory, claimed
from tokkit.pipelines.finish import add_counts, coalesce
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.lacking import lacking
from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.meter import Meter
from tokkit.pipelines.mixed import admit, measure
from tokkit.pipelines.output import CALIBRATION, ENVIRONMENTS, Output, placed
from tokkit.pipelines.pack_ahead import refuse_pictures_too_long
from tokkit.pipelines.placing import OnDevices
from tokkit.pipelines.plan import INPUTS, UNITS, Plan, PlannedUnit, check_inputs, make_plan
from tokkit.pipelines.prepare import FILTERS, Setup, prepare
from tokkit.pipelines.product import EncoderField, EncoderKind, Product
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.ray_encoders import Encoding, RayEncoders, cut
from tokkit.pipelines.ray_workers import RayCluster, SameEnvironment
from tokkit.pipelines.shard_config import ShardConfig
from tokkit.pipelines.sharing import SharedUnits
from tokkit.pipelines.sounds import sound_batch
from tokkit.pipelines.stores import FOLDER as STORES
from tokkit.pipelines.stores import index_stores
from tokkit.pipelines.task import UnitTask
from tokkit.pipelines.unit import UnitJob, load_encoder, load_sound_batches
from tokkit.shards.manifest import LayoutEntry, Manifest, Split, file_entry, load_manifest
from tokkit.sources.resolve import ResolvedInputs, absolute_input, resolve_inputs
from tokkit.storage import fingerprint_of, pretty_json, write_atomic

if TYPE_CHECKING:
    from tokkit.pipelines.pack import SplitResult

__all__ = ["TOKENS", "PartResult", "ShardConfig", "ShardResult", "TokenShards", "encode_units", "opened", "shard", "shard_part"]


@dataclass(frozen=True)
class ShardResult:
    """What a run came to.

    Attributes:
        out: the directory, or the URL.
        manifest: its manifest.
        summary: this run's own figures (seconds, throughput by stage), as in ``run/summary.json``.
        packs: what ``--pack`` came to, by split.
    """

    out: Path | str
    manifest: Manifest
    summary: dict[str, object]
    packs: dict[str, SplitResult]


@dataclass(frozen=True)
class PartResult:
    """What one part of a run came to.

    Attributes:
        committed, units: of the whole run, by whomever.
        summary: this process's own figures.
    """

    out: Path | str
    committed: int
    units: int
    summary: dict[str, object]


def shard(config: ShardConfig, progress: Progress) -> ShardResult:
    """Run the job; see the module's docstring.

    Raises:
        UsageError, ConfigError: the inputs or options are wrong.
        FingerprintMismatch: ``out`` belongs to another configuration, or the input has changed.
        ResumableStop: stopped by something outside of the data; run again.
        BudgetExceeded: too many rejects.
        VerificationError: the outcomes do not add up.
    """
    with opened(config, progress, TOKENS) as run:
        summary = encode_units(run)
        packs = complete(run)
        return ShardResult(config.place, load_manifest(config.out), summary, packs)


def shard_part(config: ShardConfig, progress: Progress) -> PartResult:
    """Do the units of ``config.shard_index`` only; :func:`tokkit.pipelines.finish_run.finish` does the rest.

    Raises:
        As :func:`shard`.
    """
    with opened(config, progress, TOKENS) as run:
        summary = encode_units(run)
        return PartResult(config.place, len(committed(run)), len(run.plan.units), summary)


@contextmanager
def opened(config: ShardConfig, progress: Progress, product: Product, *, recorded: bool = False) -> Iterator[Run]:
    """Claim the output directory and plan the run, or find that done; for the length of a ``with`` block.

    Args:
        product: what the run makes.
        recorded: nothing is to be encoded, so the numeric environment is the recorded one, whatever this machine's is, and the
            user's functions are not loaded.
    """
    check_dedup(config)
    resolved = resolve_inputs(config.inputs, config.source_options)
    with ExitStack() as stack:
        with _resumable(config):
            output = stack.enter_context(placed(config))
            output.begin(CONFIG, f"run/{INPUTS}")
        before = claimed(config.out / CONFIG) if recorded else None
        setup = product.prepare(config, resolved, None if before is None else before["semantic"].get(FILTERS, {}))
        if before is not None:
            setup = replace(setup, numeric=before["numeric"])
        with _resumable(config):
            try:
                _claim(config, setup, resolved, output)
                if fingerprint_of(setup.numeric) != claimed(config.out / CONFIG)["numeric_fingerprint"]:
                    admit(config.out, setup.numeric)
                    output.share(ENVIRONMENTS)
            except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
                raise UsageError(f"{config.out} cannot be written to: {error.strerror}") from None
            with output.leases(config.lease_seconds) as leases:
                yield _planned(config, setup, resolved, output, leases, progress, product, recorded=recorded)


@contextmanager
def _resumable(config: ShardConfig) -> Iterator[None]:
    """What stands in the way from outside stops the run; it can be gone on with."""
    try:
        yield
    except OSError as error:
        where, what = error.filename2 or error.filename or config.out, error.strerror or error
        raise ResumableStop(
            f"{where}: {what}; what is committed is safe, run the same command again when the cause is gone"
        ) from error


def _claim(config: ShardConfig, setup: Setup, resolved: ResolvedInputs, output: Output) -> None:
    """See :func:`~tokkit.pipelines.fingerprint.claim_directory`."""
    try:
        claim_directory(config.out, setup.semantic, setup.numeric, allow_mixed=config.allow_mixed)
        if not output.offer(CONFIG):  # another was faster
            claim_directory(config.out, setup.semantic, setup.numeric, allow_mixed=config.allow_mixed)
    except FingerprintMismatch:
        # A file that is damaged now may be taken for one of another format, which is told as what it is: a changed input.
        before = claimed(config.out / CONFIG)["semantic"]
        planned = (config.out / "run" / INPUTS).exists()
        if planned and fingerprint_of({**before, "sources": setup.semantic["sources"]}) == fingerprint_of(setup.semantic):
            check_inputs(resolved, config.out / "run")
        raise


def _planned(
    config: ShardConfig,
    setup: Setup,
    resolved: ResolvedInputs,
    output: Output,
    leases: Leases,
    progress: Progress,
    product: Product,
    *,
    recorded: bool,
) -> Run:
    """Plan the run or take up its plan, one process at a time."""
    folder, ledger = config.out / "run", output.ledger()
    with leases.hold("plan", lambda holder: progress.log(f"waiting for {holder}, which plans the run")):
        ledger.create()
        if not leases.others_at_work():  # else their attempts lie among the leftovers: these are removed at the end
            ledger.clean()
        if not recorded:
            write_atomic(folder / "job.json", pretty_json(_job_entry(config)))
            output.push("run/job.json")
        else:
            output.pull("run/job.json")
        product.begin(config.out, setup)
        output.push(*(name for name in ("vocabulary.json",) if (config.out / name).exists()))
        plan = _plan(config, resolved, output, progress)
        if resolved.stores is not None:
            output.pull(f"run/{STORES}/")
            index_stores(resolved.stores, progress, strict=config.strict)
            output.share(f"run/{STORES}/")
        announce_ignored(resolved, progress)
        lines = (json.dumps({"path": entry.path, "why": entry.why}) + "\n" for entry in resolved.ignored)
        write_atomic(folder / "ignored.jsonl", "".join(lines))
        output.push("run/ignored.jsonl")
    return Run(config, setup, resolved, plan, ledger, leases, progress, product, output, recorded=recorded)


def _plan(config: ShardConfig, resolved: ResolvedInputs, output: Output, progress: Progress) -> Plan:
    names = [f"run/{name}" for name in (INPUTS, UNITS)]  # in the order in which they are written
    output.pull(*names)
    new = not (config.out / names[1]).exists()
    plan = make_plan(resolved, config.out / "run", unit_bytes=config.unit_bytes, limit=config.limit, progress=progress)
    if new:
        for name in names:
            output.push(name)
    return plan


def _job_entry(config: ShardConfig) -> dict[str, object]:
    """The resolved options, with absolute paths: for people, and so that other commands find the tokenizers."""
    entry = config.model_dump(mode="json", exclude={"shard_index", "shard_count", "scratch"})
    for key in ("inputs", "images"):
        entry[key] = [absolute_input(typed) for typed in getattr(config, key)]
    entry["filters"] = [absolute_spec(spec) for spec in config.filters]
    for key in entry.keys() - ({"out"} if config.store is not None else set()):
        if isinstance(path := getattr(config, key), Path):
            entry[key] = str(path.resolve())
    return entry


# ---- encoding


@contextmanager
def _encoders(
    run: Run, workers: int, meter: Meter, hosting: RayCluster | None
) -> Iterator[EncoderServices | RayEncoders | None]:
    """Encoder processes for the workers, where the options ask for them: here, or as actors with the workers around them."""
    config, device = run.config, run.setup.device
    by_itself = config.encoders == "auto" and device.startswith("cuda")
    if by_itself and hosting is not None:  # GPUs that are asked for workers are for these to encode on
        by_itself = config.gpus_per_worker is None
    kinds = run.product.encoders(run)
    if not kinds or workers == 0 or not (by_itself or config.encoders == "process"):
        yield None
        return
    if hosting is not None:
        with _encoder_actors(run, kinds, workers, meter, hosting) as encoders:
            yield encoders
        return
    with EncoderServices.started(
        kinds,
        encoder_devices(device, config.encoder_processes),
        depth=config.queue_depth,
        workers=workers,
        report=meter.report,
        stall_seconds=config.stall_seconds,
    ) as services:
        yield services


def _encoder_actors(
    run: Run, kinds: Mapping[EncoderField, EncoderKind], workers: int, meter: Meter, cluster: RayCluster
) -> RayEncoders:
    config, setup = run.config, run.setup
    on_gpus = setup.device.startswith("cuda")
    size = cut(cluster.nodes, config.encoder_processes, workers, on_gpus=on_gpus)
    run.progress.log(f"encoders on Ray: {size.groups}, each with {size.workers} workers on its node")
    device = "cuda:0" if on_gpus else setup.device  # an actor sees only the GPU that it was given
    asked = Encoding(kinds, device, config.queue_depth, config.stall_seconds, setup.environment, setup.numeric)
    return RayEncoders(cluster, asked, size, meter.report)


def encode_units(run: Run) -> dict[str, object]:
    """Do the units that are not done, with whoever else is at work on them; returns this process's summary."""
    told = f"{run.config.place} is complete already"
    if not run.complete:
        try:
            return _encode_missing(run)
        except (OSError, DataError, ResumableStop):
            # A process that was suspended while another finished finds its files gone; that is no error then.
            if not run.complete:
                raise
        told = f"{run.config.place} was brought to its end by another process"
    run.progress.log(told)
    return {"resumed_units": len(run.plan.units), "units": 0}


def _encode_missing(run: Run) -> dict[str, object]:
    with _hosting(run) as hosting:
        here = os.cpu_count() or 1
        workers = (here if hosting is None else hosting.cores) if run.config.workers is None else run.config.workers
        return _encode_on(run, hosting, workers)


@contextmanager
def _hosting(run: Run) -> Iterator[RayCluster | None]:
    """Where workers live, if not on this machine."""
    config = run.config
    if config.engine == "local":
        yield None
        return
    gpus = (config.gpus_per_worker or 1.0) if run.setup.device.startswith("cuda") else 0.0
    with RayCluster(config.ray_address, gpus=gpus) as cluster:
        yield cluster


def _encode_on(run: Run, hosting: RayCluster | None, workers: int) -> dict[str, object]:
    config = run.config
    deduplicator: Deduplicator | None = None
    decisions: Decisions | None = None
    records = committed(run)
    if config.dedup and _to_do(run, records):
        deduplicator = Deduplicator(run, workers)
        decisions = deduplicator.decide()
        records = commit_records(run.ledger, run.plan, decisions)
    if records:
        run.progress.log(f"going on: {len(records)} of {len(run.plan.units)} units are committed")
    run.output.pull(ENVIRONMENTS, CALIBRATION)
    measure(run, [records[index] for index in sorted(records)])
    calibrate(run, run.plan.units)
    run.output.share(ENVIRONMENTS)
    run.output.share(CALIBRATION)
    missing = _to_do(run, records)
    meter = Meter(config, run.progress, records, missing, workers)
    begin = time.monotonic()
    with meter:
        while missing:
            _do(run, missing, workers, meter, decisions, None if deduplicator is None else deduplicator.table(), hosting)
            if decisions is None or not outdated(decisions, run.ledger):
                break
            run.progress.log("something that kills was found: what others are duplicates of is decided anew, without it")
            deduplicator = deduplicator or Deduplicator(run, workers)
            decisions = deduplicator.decide()
            records = commit_records(run.ledger, run.plan, decisions)
            missing = _to_do(run, records)
            meter.again(missing)
    done = [meter.records[index] for index in sorted(meter.records)]
    summary = meter.summary(time.monotonic() - begin, trial(config, done))
    summary["warnings"] = lacking(add_counts(r.reasons for r in done), add_counts(r.documents for r in done))
    if deduplicator is not None:
        summary["dedup"] = asdict(deduplicator.summary())
    write_atomic(config.out / "run" / "summary.json", pretty_json(summary))
    run.output.push("run/summary.json")
    return summary


def _to_do(run: Run, records: Mapping[int, CommitRecord]) -> list[PlannedUnit]:
    """The units that have no record, of this process's part."""
    index, count = run.config.shard_index or 0, run.config.shard_count or 1
    return [planned for planned in run.plan.units if planned.index not in records and planned.index % count == index]


def _do(
    run: Run,
    missing: list[PlannedUnit],
    workers: int,
    meter: Meter,
    decisions: Decisions | None,
    duplicates: DuplicateTable | None,
    hosting: RayCluster | None,
) -> None:
    """Do units, under what is decided about duplicates, where these are looked for."""
    job = run.product.job(run, duplicates)
    with _encoders(run, min(workers, len(missing)), meter, hosting) as service:
        actors = service if isinstance(service, RayEncoders) else None
        run_units(
            _task(run, job, service, hosting),
            missing,
            workers if actors is None else min(workers, actors.workers),
            meter.report,
            meter.done,
            sharing=SharedUnits(run.ledger, run.leases, meter, decisions),
            stall_seconds=run.config.stall_seconds,
            service=service,
            alone=job,
            lost=meter.lost,
            hosting=actors or hosting or _placed(run),
        )


def _task(
    run: Run, job: UnitJob, service: EncoderServices | RayEncoders | None, hosting: RayCluster | None
) -> UnitTask[CommitRecord]:
    """The job, with whoever encodes for its workers."""
    if isinstance(service, RayEncoders):  # where they are is known beside them, and they look at their node's environment
        return replace(job, preprocessing=run.setup.preprocessing)
    if service is not None:
        ends = service.endpoints
        return replace(
            job,
            encoders=ends.get("encoders", ()),
            sound_encoders=ends.get("sound_encoders", ()),
            preprocessing=run.setup.preprocessing,
        )
    if hosting is not None and run.setup.environment is not None:
        return SameEnvironment(job, run.setup.environment, run.setup.numeric)
    return job


def _placed(run: Run) -> OnDevices | None:
    """Workers on all GPUs, where each of several encodes by itself."""
    devices = encoder_devices("cuda", 1) if run.setup.device == "cuda" else []
    return OnDevices(devices) if len(devices) > 1 else None


# ---- the product


class TokenShards:
    """Token shards, as a :class:`~tokkit.pipelines.product.Product`."""

    def prepare(self, config: ShardConfig, resolved: ResolvedInputs, filters: dict[str, str] | None) -> Setup:
        setup = prepare(config, resolved, filters)
        if filters is None:  # the run is not at its end yet
            refuse_pictures_too_long(config, setup)
        return setup

    def begin(self, out: Path, setup: Setup) -> None:
        setup.vocabulary.save(out / "vocabulary.json")

    def job(self, run: Run, duplicates: DuplicateTable | None) -> UnitJob:
        setup = run.setup
        return UnitJob(
            run.config,
            run.plan.sources,
            setup.vocabulary,
            setup.layout,
            setup.device,
            fingerprint_of(setup.numeric),
            duplicates,
            fingerprints={kind: entry.fingerprint for kind, entry in setup.tokenizers.items()},
            filters=setup.filters,
            sounds=None if setup.sounds is None or setup.buckets is None else (setup.sounds, setup.buckets),
        )

    def encoders(self, run: Run) -> dict[EncoderField, EncoderKind]:
        config, kinds = run.config, dict[EncoderField, EncoderKind]()
        if config.image_tokenizer is not None:
            load = partial(load_encoder, config, fingerprint=run.setup.tokenizers["image"].fingerprint)
            kinds["encoders"] = EncoderKind(load, config.batch_size)
        clips = sound_batch(config, run.setup.device)
        if config.audio_tokenizer is not None and clips > 1:
            sounds = partial(load_sound_batches, config, fingerprint=run.setup.tokenizers["audio"].fingerprint)
            kinds["sound_encoders"] = EncoderKind(sounds, clips)
        return kinds

    def calibration(self, run: Run) -> Calibration | None:
        return CODE_CALIBRATION if run.config.fast and run.config.image_tokenizer is not None else None

    def coalesce(self, run: Run, records: list[CommitRecord]) -> dict[str, Split]:
        config = run.config
        return coalesce(run.output, run.ledger, records, run.setup.vocabulary.dtype, config.shard_tokens, run.progress)

    def manifest(self, run: Run, common: Mapping[str, Any]) -> Manifest:
        vocabulary, layout = run.setup.vocabulary, run.setup.layout
        return Manifest(
            **common,
            dtype=vocabulary.dtype.name,
            vocabulary_size=vocabulary.size,
            vocabulary_fingerprint=vocabulary.fingerprint,
            vocabulary_origin=vocabulary.origin,
            layout=LayoutEntry.of(layout),
            files={name: file_entry(run.config.out / name) for name in (CONFIG, "vocabulary.json")},
        )

    def pack(self, run: Run) -> dict[str, SplitResult]:
        config = run.config
        if config.pack is None:
            return {}
        from tokkit.pipelines.pack import PackConfig, pack

        wanted = {"seq_len": config.pack, "split_policy": config.pack_split, "too_long": config.pack_too_long}
        return pack(PackConfig.model_validate({"directory": config.out, **wanted}), run.progress, run.output.result).splits

    def report(self, run: Run) -> None:
        config = run.config
        if (config.out / "report.html").exists() and config.pack is None:
            return
        from tokkit.pipelines.report import ReportConfig, write_report

        wanted = ReportConfig(directory=config.out, documents=config.report_documents)
        write_report(wanted, run.progress, run.output.result)


TOKENS = TokenShards()
