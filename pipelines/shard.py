"""``tokkit shard``: corpora in, packed-ready token shards out, every document exactly once.

The job, in order: claim the output directory for this configuration, plan the units, do every unit that has no commit record
(:mod:`tokkit.pipelines.engine`), account for every document, coalesce the payloads into shards, write the manifest, and, where
asked for, a packing plan; last a report that shows some documents decoded back from their tokens. Every step may be cut short;
the same command goes on where it stopped, and the result is byte for byte that of a run that was never stopped.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, field_validator

import tokkit
from tokkit.documents import Outcome
from tokkit.errors import ResumableStop, UsageError
from tokkit.interleave import ImageLayout, PairOrder
from tokkit.media.images import ImageLimits
from tokkit.packing.split import SplitPolicy
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.fingerprint import claim_directory
from tokkit.pipelines.finish import account, add_counts, add_nested, coalesce, extrapolate, folder_digest, publish_rejects
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.meter import Meter
from tokkit.pipelines.plan import Plan, PlannedUnit, make_plan
from tokkit.pipelines.prepare import Setup, prepare
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.unit import UnitJob
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import LayoutEntry, Manifest, load_manifest
from tokkit.sources.resolve import ResolvedInputs, resolve_inputs
from tokkit.storage import fingerprint_of, pretty_json, remove_attempts, write_atomic

if TYPE_CHECKING:
    from tokkit.pipelines.pack import SplitResult


class ShardConfig(BaseModel):
    """The options of a run.

    Attributes:
        inputs: paths, globs or folders, optionally ``FORMAT:`` prefixed.
        out: output directory; one that an earlier run of the same configuration left unfinished is gone on with.
        text_tokenizer: SentencePiece ``.model`` or Hugging Face ``tokenizer.json``.
        image_tokenizer: a tokenizer folder; without one pictures are filtered.
        text_vocab_size: ids kept for text where the model has more embedding rows than the tokenizer has ids.
        image_layout: see :mod:`tokkit.interleave`.
        pair_order: order of media and text in pairs; ``random`` is half and half, drawn per document.
        text_joiner: stands between texts that become neighbours because the media item between them was left out.
        metadata: fields of the source that are kept per document.
        val_fraction: share of documents (by content hash) held out as split ``val``.
        seed: of every drawn choice.
        batch_size: pictures in each call of the encoder; the last batch of a unit is padded to it.
        unit_bytes: input bytes that a work unit covers, where the format can be cut.
        shard_tokens: tokens after which an output shard is closed.
        workers: processes; None takes one a core.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        limit: a trial over at most this many documents, spread over the input by bytes, that extrapolates to the whole.
        strict: stop at the first reject.
        max_reject_ratio: stop where more than this share of the documents is rejected (looked at after 1,000).
        max_consecutive_rejects: stop after this many rejected documents in a row within a work unit.
        pack: also make a packing plan of this sequence length.
        report_documents: documents that report.html shows decoded back from their tokens.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(min_length=1)
    out: Path
    text_tokenizer: Path
    image_tokenizer: Path | None = None
    text_vocab_size: int | None = Field(default=None, ge=1)
    image_layout: ImageLayout = "plain"
    pair_order: PairOrder = "image-first"
    text_joiner: str = "\n\n"
    metadata: list[str] = Field(default_factory=list)
    val_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    seed: int = 0
    image_limits: ImageLimits = Field(default_factory=ImageLimits)
    batch_size: int = Field(default=16, ge=1, le=4096)
    unit_bytes: int = Field(default=64 << 20, ge=1)
    shard_tokens: int = Field(default=256 << 20, ge=1)
    workers: int | None = Field(default=None, ge=1, le=1024)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    limit: int | None = Field(default=None, ge=1)
    strict: bool = False
    max_reject_ratio: float = Field(default=0.5, gt=0.0, le=1.0)
    max_consecutive_rejects: int = Field(default=1000, ge=1)
    pack: int | None = Field(default=None, ge=2)
    pack_split: SplitPolicy = SplitPolicy.OVERLONG
    report_documents: int = Field(default=8, ge=0, le=1000)

    @field_validator("text_tokenizer", "image_tokenizer")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.exists():
            raise ValueError("no such file or folder")
        return path


@dataclass(frozen=True)
class ShardResult:
    """What a run came to.

    Attributes:
        out: the directory.
        manifest: its manifest.
        summary: this run's own figures (seconds, throughput by stage), as in ``run/summary.json``.
        packs: what ``--pack`` came to, by split.
    """

    out: Path
    manifest: Manifest
    summary: dict[str, object]
    packs: dict[str, SplitResult]


def shard(config: ShardConfig, progress: Progress) -> ShardResult:
    """Run the job; see the module's docstring.

    Raises:
        UsageError, ConfigError: the inputs or options are wrong.
        FingerprintMismatch: ``out`` belongs to another configuration, or the input has changed.
        ResumableStop: stopped by something outside of the data; run again.
        BudgetExceeded: too many rejects.
        VerificationError: the outcomes do not add up.
    """
    resolved = resolve_inputs(config.inputs)
    setup = prepare(config, resolved)
    try:
        return _shard(config, setup, resolved, progress)
    except OSError as error:
        raise ResumableStop(
            f"{error.filename or config.out}: {error.strerror or error}; what is committed is safe, "
            f"run the same command again when the cause is gone"
        ) from error


def _shard(config: ShardConfig, setup: Setup, resolved: ResolvedInputs, progress: Progress) -> ShardResult:
    try:
        claim_directory(config.out, setup.semantic, setup.numeric)
    except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{config.out} cannot be written to: {error.strerror}") from None
    with _locked(config.out):
        remove_attempts(config.out)
        write_atomic(config.out / "run" / "job.json", pretty_json(_job_entry(config)))
        setup.vocabulary.save(config.out / "vocabulary.json")
        plan = make_plan(resolved, config.out / "run", unit_bytes=config.unit_bytes, limit=config.limit, progress=progress)
        announce_ignored(resolved, progress)
        lines = (json.dumps({"path": entry.path, "why": entry.why}) + "\n" for entry in resolved.ignored)
        write_atomic(config.out / "run" / "ignored.jsonl", "".join(lines))
        if (config.out / MANIFEST).exists():
            progress.log(f"{config.out} is complete already")
            summary: dict[str, object] = {"resumed_units": len(plan.units), "units": 0}
        else:
            summary = _encode(config, setup, resolved, plan, progress)
            write_atomic(config.out / "run" / "summary.json", pretty_json(summary))
        packs = _pack(config, progress)
        _report(config, progress)
        shutil.rmtree(config.out / "run" / "payloads", ignore_errors=True)
    return ShardResult(config.out, load_manifest(config.out), summary, packs)


def _job_entry(config: ShardConfig) -> dict[str, object]:
    """The resolved options, with absolute paths: for people, and so that other commands find the tokenizers."""
    entry = config.model_dump(mode="json")
    for key in ("text_tokenizer", "image_tokenizer", "out"):
        path = getattr(config, key)
        entry[key] = None if path is None else str(path.resolve())
    return entry


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """One run at a time on a directory; the lock goes with the process, however that ends."""
    (out / "run").mkdir(parents=True, exist_ok=True)
    with (out / "run" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another process is at work on {out}") from None
        yield


# ---- encoding


def _encode(config: ShardConfig, setup: Setup, resolved: ResolvedInputs, plan: Plan, progress: Progress) -> dict[str, object]:
    """Do the units that are not done, account for all and write the shards and the manifest; returns the run's summary."""
    ledger = Ledger(config.out)
    ledger.create()
    ledger.clean()
    records, missing = _committed(ledger, plan, progress)
    job = UnitJob(config, plan.sources, setup.vocabulary, setup.layout, setup.device, fingerprint_of(setup.numeric))
    workers = config.workers or os.cpu_count() or 1
    meter = Meter(config, progress, plan, records, len(missing))
    begin = time.monotonic()
    with meter:
        run_units(job, missing, workers, meter.report, meter.done)
    seconds = time.monotonic() - begin
    ordered = [records[planned.index] for planned in plan.units]
    sources = account(plan, ordered)
    splits = coalesce(config.out, ledger, ordered, setup.vocabulary.dtype, config.shard_tokens, progress)
    publish_rejects(ledger, ordered)
    trial = None if config.limit is None else {"limit": config.limit, **extrapolate(ordered)}
    manifest = Manifest(
        tokkit=tokkit.__version__,
        dtype=setup.vocabulary.dtype.name,
        vocabulary_size=setup.vocabulary.size,
        vocabulary_fingerprint=setup.vocabulary.fingerprint,
        layout=LayoutEntry(image=setup.layout.image, image_grid=setup.layout.image_grid),
        semantic=setup.semantic,
        semantic_fingerprint=fingerprint_of(setup.semantic),
        numeric=setup.numeric,
        numeric_fingerprint=fingerprint_of(setup.numeric),
        tokenizers=setup.tokenizers,
        trial=trial,
        sources=sources,
        ignored=add_counts({entry.why: 1} for entry in resolved.ignored),
        units=len(plan.units),
        documents=add_counts(s.documents for s in sources),
        items=add_nested(s.items for s in sources),
        container_errors=sum(s.container_errors for s in sources),
        splits=splits,
        commits=folder_digest(ledger.commits),
        rejects=folder_digest(ledger.rejects),
    )
    write_atomic(config.out / MANIFEST, pretty_json(manifest.model_dump(mode="json")))
    if not manifest.documents.get(Outcome.COMMITTED):
        progress.log("no document was committed: see the reasons")
    return meter.summary(seconds, workers, trial)


def _committed(ledger: Ledger, plan: Plan, progress: Progress) -> tuple[dict[int, CommitRecord], list[PlannedUnit]]:
    """The records of units that are done, and the units that are not."""
    records: dict[int, CommitRecord] = {}
    missing: list[PlannedUnit] = []
    for planned in plan.units:
        record = ledger.done(planned.index, planned.unit)
        if record is None:
            ledger.forget(planned.index)
            missing.append(planned)
        else:
            records[planned.index] = record
    if records:
        progress.log(f"going on: {len(records)} of {len(plan.units)} units are committed")
    return records, missing


# ---- after the shards


def _pack(config: ShardConfig, progress: Progress) -> dict[str, SplitResult]:
    if config.pack is None:
        return {}
    from tokkit.pipelines.pack import PackConfig, pack

    return pack(PackConfig(directory=config.out, seq_len=config.pack, split_policy=config.pack_split), progress).splits


def _report(config: ShardConfig, progress: Progress) -> None:
    if (config.out / "report.html").exists() and config.pack is None:
        return
    from tokkit.pipelines.report import ReportConfig, write_report

    write_report(ReportConfig(directory=config.out, documents=config.report_documents), progress)
