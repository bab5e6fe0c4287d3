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
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from tokkit.audio_layouts import AudioLayout
from tokkit.conditions import parse_conditions
from tokkit.dedup.decisions import Decisions
from tokkit.errors import DataError, FingerprintMismatch, ResumableStop, UsageError
from tokkit.filters import absolute_spec, check_specs
from tokkit.interleave import ImageLayout, PairOrder
from tokkit.media.audio import AudioLimits
from tokkit.media.images import ImageLimits
from tokkit.media.waveforms import AudioPreprocessing
from tokkit.packing.policy import SplitPolicy
from tokkit.pipelines.assembly import MissingImage
from tokkit.pipelines.calibration import calibrate
from tokkit.pipelines.completion import Run, commit_records, committed, complete, trial
from tokkit.pipelines.dedup import (
    OF_PICTURES,
    DedupKind,
    Deduplicator,
    check_dedup,
    duplicate_table,
    normal_kinds,
)
from tokkit.pipelines.duplicates import DuplicateTable, outdated
from tokkit.pipelines.encoder_service import EncoderService, EncoderServices, encoder_devices
from tokkit.pipelines.engine import STALL_SECONDS, run_units
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.fingerprint import claim_directory, claimed
from tokkit.pipelines.finish import coalesce
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.meter import Meter
from tokkit.pipelines.mixed import admit, measure
from tokkit.pipelines.plan import INPUTS, PlannedUnit, check_inputs, make_plan
from tokkit.pipelines.prepare import FILTERS, Setup, prepare
from tokkit.pipelines.product import Product
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.settings import Size
from tokkit.pipelines.sharing import SharedUnits
from tokkit.pipelines.stores import index_stores, picture_stores
from tokkit.pipelines.unit import UnitJob, load_encoder
from tokkit.precision import Acceleration, Precision
from tokkit.repair import Repair, normal_repairs
from tokkit.shards.manifest import LayoutEntry, Manifest, Split, file_entry, load_manifest
from tokkit.sources.base import AltText, SourceOptions
from tokkit.sources.resolve import ResolvedInputs, absolute_input, resolve_inputs
from tokkit.storage import fingerprint_of, pretty_json, write_atomic

if TYPE_CHECKING:
    from tokkit.pipelines.pack import SplitResult


class ShardConfig(BaseModel):
    """The options of a run.

    Attributes:
        inputs: paths, globs, folders or URLs, optionally ``FORMAT:`` prefixed.
        out: output directory; one that an earlier run of the same configuration left unfinished is gone on with.
        vocabulary_from: a released model's ``tokenizer.json``, whose ids the shards are to have
            (:mod:`tokkit.released_vocabularies`); without one a vocabulary is built around the text tokenizer.
        text_tokenizer: SentencePiece ``.model`` or Hugging Face ``tokenizer.json``; ``vocabulary_from`` where that is given.
        image_tokenizer: a tokenizer folder; without one pictures are filtered.
        audio_tokenizer: likewise for sounds.
        text_vocab_size: ids kept for text where the model has more embedding rows than the tokenizer has ids.
        text_engine: what encodes a ``tokenizer.json``: its library, or gigatoken, checked against it.
        image_layout: see :mod:`tokkit.interleave`; None takes the released model's own, or ``plain``.
        audio_layout: see :mod:`tokkit.audio_layouts`.
        audio_delays: steps by which each codebook is late in the layout ``delay``; None is 0, 1, 2...
        audio_books: codebooks that are kept, the coarsest first; None keeps all that the tokenizer has.
        audio_preprocessing: how channels are mixed, rates converted and loudness set (:mod:`tokkit.media.waveforms`).
        pair_order: order of media and text in pairs; ``random`` is half and half, drawn per document.
        text_joiner: stands between texts that become neighbours because the media item between them was left out.
        alt_text: whether the alternative text of a picture stands in an interleaved document as text, before or after it.
        images: picture stores that are asked for pictures which do not lie beside the corpus, in order
            (:mod:`tokkit.sources.stores.kinds`).
        missing_image: what becomes of an interleaved document with a picture that is not to be had or cannot be read: it goes
            on without it, it is not committed, or the picture's markers stay in its place with nothing between them.
        fix_text: what is repaired in texts, before anything else is done with them (:mod:`tokkit.repair`).
        filters: the user's own functions, which are asked about each document in this order (:mod:`tokkit.filters`).
        min_characters, max_characters: of all texts of a document; those outside are filtered.
        min_images, max_images: pictures of a document that are there and within ``image_limits``; those outside are filtered.
        where: conditions that documents must satisfy (:mod:`tokkit.conditions`); others are filtered.
        metadata: fields of the source that are kept per document.
        val_fraction: share of documents (by content hash) held out as split ``val``.
        seed: of every drawn choice.
        batch_size: pictures in each call of the encoder; the last batch of a unit is padded to it.
        unit_bytes: input bytes that a work unit covers, where the format can be cut.
        shard_tokens: tokens after which an output shard is closed.
        workers: processes; None takes one a core, 0 does the units in this one (for debugging: nothing outlives a crash).
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ``cuda``, which ``auto`` is where there is one, means all GPUs of the
            first one's model, each with an encoder process.
        precision: of the network that encodes pictures (:mod:`tokkit.precision`).
        acceleration: how it is run (:mod:`tokkit.tokenizers.image.bulk`).
        min_agreement: share of float32's codes that a fast mode must keep on the run's own pictures, else it is refused.
        encoders: ``in-worker``: each worker loads the image tokenizer; ``process``: processes do, and encode for all;
            ``auto``: a process for each GPU, the workers on a CPU (and where there are no worker processes).
        encoder_processes: how many on a CPU, or on one GPU that is named.
        queue_depth: batches that a worker may have under way at an encoder process.
        dedup: what to look for twins of (:mod:`tokkit.pipelines.dedup`); duplicates are left out and say of which.
        near_distance: bits of 64 in which the perceptual hashes of pictures that count as the same may differ.
        dedup_memory: bytes that grouping keeps to; what does not fit goes to files under ``run/``.
        limit: a trial over at most this many documents, spread over the input by bytes, that extrapolates to the whole.
        strict: stop at the first reject.
        max_reject_ratio: stop where more than this share of the documents is rejected (looked at after 1,000).
        max_consecutive_rejects: stop after this many rejected documents in a row within a work unit.
        pack: also make a packing plan of this sequence length.
        report_documents: documents that report.html shows decoded back from their tokens.
        lease_seconds: time after which a process that gives no sign is taken for dead by others on the same output.
        stall_seconds: time without progress after which a worker process is killed and its unit tried again.
        allow_mixed: go on with an output of another numeric environment; how far the two agree is measured and written down.
        shard_index, shard_count: do only every ``shard_count``-th unit, from ``shard_index`` (see :func:`shard_part`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(min_length=1)
    out: Path
    vocabulary_from: Path | None = None
    text_tokenizer: Path = Field(default=None, validate_default=True)
    image_tokenizer: Path | None = None
    audio_tokenizer: Path | None = None
    text_vocab_size: int | None = Field(default=None, ge=1)
    text_engine: Literal["library", "gigatoken"] = "library"
    image_layout: ImageLayout | None = None
    audio_layout: AudioLayout = "flat"
    audio_delays: list[int] | None = None
    audio_books: int | None = Field(default=None, ge=1)
    audio_preprocessing: AudioPreprocessing = Field(default_factory=AudioPreprocessing)
    pair_order: PairOrder = "image-first"
    text_joiner: str = "\n\n"
    alt_text: AltText = "none"
    images: list[str] = Field(default_factory=list)
    missing_image: MissingImage = "drop-image"
    fix_text: list[Repair] = Field(default_factory=list)
    filters: list[str] = Field(default_factory=list)
    min_characters: int | None = Field(default=None, ge=0)
    max_characters: int | None = Field(default=None, ge=0)
    min_images: int | None = Field(default=None, ge=0)
    max_images: int | None = Field(default=None, ge=0)
    where: list[str] = Field(default_factory=list)
    metadata: list[str] = Field(default_factory=list)
    val_fraction: float = Field(default=0.0, ge=0.0, lt=1.0)
    seed: int = 0
    image_limits: ImageLimits = Field(default_factory=ImageLimits)
    audio_limits: AudioLimits = Field(default_factory=AudioLimits)
    batch_size: int = Field(default=16, ge=1, le=4096)
    unit_bytes: Size = Field(default=64 << 20, ge=1)
    shard_tokens: Size = Field(default=256 << 20, ge=1)
    workers: int | None = Field(default=None, ge=0, le=1024)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Precision = "fp32"
    acceleration: Acceleration = "none"
    min_agreement: float = Field(default=0.98, ge=0.0, le=1.0)
    encoders: Literal["auto", "in-worker", "process"] = "auto"
    encoder_processes: int = Field(default=1, ge=1, le=64)
    queue_depth: int = Field(default=2, ge=1, le=64)
    dedup: list[DedupKind] = Field(default_factory=list)
    near_distance: int = Field(default=4, ge=0, le=16)
    dedup_memory: Size = Field(default=1 << 30, ge=1 << 20)
    limit: int | None = Field(default=None, ge=1)
    strict: bool = False
    max_reject_ratio: float = Field(default=0.5, gt=0.0, le=1.0)
    max_consecutive_rejects: int = Field(default=1000, ge=1)
    pack: int | None = Field(default=None, ge=2)
    pack_split: SplitPolicy = SplitPolicy.OVERLONG
    report_documents: int = Field(default=8, ge=0, le=1000)
    lease_seconds: float = Field(default=60.0, ge=0.5, le=86400)
    stall_seconds: float = Field(default=STALL_SECONDS, ge=1, le=86400)
    allow_mixed: bool = False
    shard_index: int | None = Field(default=None, ge=0)
    shard_count: int | None = Field(default=None, ge=1, validate_default=True)

    @field_validator("text_tokenizer", mode="before")
    @classmethod
    def _of_the_model(cls, path: object, info: ValidationInfo) -> object:
        if path is not None or "vocabulary_from" not in info.data:  # not there where it is wrong itself
            return path or Path()
        if info.data["vocabulary_from"] is None:
            raise PydanticCustomError(
                "missing", "name one; only with --vocabulary-from it may be left out, the model has its own"
            )
        return info.data["vocabulary_from"]

    @field_validator("fix_text")
    @classmethod
    def _in_order(cls, kinds: list[Repair]) -> list[Repair]:
        return normal_repairs(kinds)

    @field_validator("filters")
    @classmethod
    def _name_functions(cls, filters: list[str]) -> list[str]:
        check_specs(filters)
        return filters

    @field_validator("max_characters", "max_images")
    @classmethod
    def _above_the_least(cls, most: int | None, info: ValidationInfo) -> int | None:
        least = info.data.get(str(info.field_name).replace("max", "min"))
        if most is not None and least is not None and most < least:
            raise ValueError(f"less than the least, {least}")
        return most

    @field_validator("where")
    @classmethod
    def _are_conditions(cls, where: list[str]) -> list[str]:
        parse_conditions(where)
        return where

    @field_validator("audio_delays")
    @classmethod
    def _of_delay(cls, delays: list[int] | None, info: ValidationInfo) -> list[int] | None:
        if delays is None:
            return None
        if info.data.get("audio_layout") != "delay":
            raise ValueError("only with --audio-layout delay")
        if not delays or min(delays) != 0 or max(delays) > 1024:
            raise ValueError("steps from 0 to 1024, and at least one codebook is not late")
        return delays

    @field_validator("missing_image")
    @classmethod
    def _needs_pictures(cls, missing: MissingImage, info: ValidationInfo) -> MissingImage:
        if missing == "keep-marker" and "image_tokenizer" in info.data and info.data["image_tokenizer"] is None:
            raise ValueError("without --image-tokenizer there are no pictures in the output, and so no markers of missing ones")
        return missing

    @field_validator("encoders")
    @classmethod
    def _for_workers(cls, encoders: str, info: ValidationInfo) -> str:
        if encoders == "process" and info.data.get("workers") == 0:
            raise ValueError("--workers 0 does everything in one process, so no other can encode for it")
        return encoders

    @field_validator("dedup")
    @classmethod
    def _normal(cls, kinds: list[DedupKind], info: ValidationInfo) -> list[DedupKind]:
        pictures = [kind for kind in kinds if kind in OF_PICTURES]
        if pictures and "image_tokenizer" in info.data and info.data["image_tokenizer"] is None:  # not there where it is wrong
            raise ValueError(
                f"{pictures[0]} compares pictures, and without --image-tokenizer there are none in the output: name one, or "
                f"leave {pictures[0]} out"
            )
        return normal_kinds(kinds)

    @field_validator("shard_count")
    @classmethod
    def _above_its_index(cls, count: int | None, info: ValidationInfo) -> int | None:
        index = info.data.get("shard_index")
        if (count is None) != (index is None):
            raise ValueError("--shard-index and --shard-count go together")
        if count is not None and index is not None and index >= count:
            raise ValueError(f"there is no part {index} of {count}: parts are counted from 0")
        return count

    @field_validator("vocabulary_from", "text_tokenizer", "image_tokenizer", "audio_tokenizer")
    @classmethod
    def _exists(cls, path: Path | None) -> Path | None:
        if path is not None and not path.exists():
            raise ValueError("no such file or folder")
        return path

    @property
    def fast(self) -> bool:
        """Whether pictures are encoded in a mode that may give other codes than plain float32."""
        return (self.precision, self.acceleration) != ("fp32", "none")

    @property
    def source_options(self) -> SourceOptions:
        """What is asked of the sources; looks the picture stores' files up, as they are now."""
        stores = picture_stores(self.images, self.out)
        return SourceOptions(alt_text=self.alt_text, stores=stores)


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


@dataclass(frozen=True)
class PartResult:
    """What one part of a run came to.

    Attributes:
        committed, units: of the whole run, by whomever.
        summary: this process's own figures.
    """

    out: Path
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
        return ShardResult(config.out, load_manifest(config.out), summary, packs)


def shard_part(config: ShardConfig, progress: Progress) -> PartResult:
    """Do the units of ``config.shard_index`` only; :func:`tokkit.pipelines.finish_run.finish` does the rest.

    Raises:
        As :func:`shard`.
    """
    with opened(config, progress, TOKENS) as run:
        summary = encode_units(run)
        return PartResult(config.out, len(committed(run)), len(run.plan.units), summary)


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
    before = claimed(config.out / CONFIG) if recorded else None
    setup = product.prepare(config, resolved, None if before is None else before["semantic"].get(FILTERS, {}))
    if before is not None:
        setup = replace(setup, numeric=before["numeric"])
    try:
        try:
            _claim(config, setup, resolved)
            if fingerprint_of(setup.numeric) != claimed(config.out / CONFIG)["numeric_fingerprint"]:
                admit(config.out, setup.numeric)
        except (PermissionError, FileNotFoundError, NotADirectoryError) as error:
            raise UsageError(f"{config.out} cannot be written to: {error.strerror}") from None
        with Leases(config.out / "run" / "leases", config.lease_seconds) as leases:
            yield _planned(config, setup, resolved, leases, progress, product, recorded=recorded)
    except OSError as error:
        where, what = error.filename2 or error.filename or config.out, error.strerror or error
        raise ResumableStop(
            f"{where}: {what}; what is committed is safe, run the same command again when the cause is gone"
        ) from error


def _claim(config: ShardConfig, setup: Setup, resolved: ResolvedInputs) -> None:
    """See :func:`~tokkit.pipelines.fingerprint.claim_directory`."""
    try:
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
    leases: Leases,
    progress: Progress,
    product: Product,
    *,
    recorded: bool,
) -> Run:
    """Plan the run or take up its plan, one process at a time."""
    folder, ledger = config.out / "run", Ledger(config.out)
    with leases.hold("plan", lambda holder: progress.log(f"waiting for {holder}, which plans the run")):
        ledger.create()
        if not leases.others_at_work():  # else their attempts lie among the leftovers: these are removed at the end
            ledger.clean()
        if not recorded:
            write_atomic(folder / "job.json", pretty_json(_job_entry(config)))
        product.begin(config.out, setup)
        plan = make_plan(resolved, folder, unit_bytes=config.unit_bytes, limit=config.limit, progress=progress)
        if resolved.stores is not None:
            index_stores(resolved.stores, progress, strict=config.strict)
        announce_ignored(resolved, progress)
        lines = (json.dumps({"path": entry.path, "why": entry.why}) + "\n" for entry in resolved.ignored)
        write_atomic(folder / "ignored.jsonl", "".join(lines))
    return Run(config, setup, resolved, plan, ledger, leases, progress, product, recorded=recorded)


def _job_entry(config: ShardConfig) -> dict[str, object]:
    """The resolved options, with absolute paths: for people, and so that other commands find the tokenizers."""
    entry = config.model_dump(mode="json", exclude={"shard_index", "shard_count"})
    for key in ("inputs", "images"):
        entry[key] = [absolute_input(typed) for typed in getattr(config, key)]
    entry["filters"] = [absolute_spec(spec) for spec in config.filters]
    for key in type(config).model_fields:
        if isinstance(path := getattr(config, key), Path):
            entry[key] = str(path.resolve())
    return entry


# ---- encoding


@contextmanager
def _encoders(run: Run, workers: int, meter: Meter) -> Iterator[EncoderServices | None]:
    """Encoder processes for the workers, where the options ask for them."""
    config, device = run.config, run.setup.device
    wanted = config.encoders == "process" or (config.encoders == "auto" and device.startswith("cuda"))
    if not wanted or config.image_tokenizer is None or workers == 0:
        yield None
        return
    fingerprint = run.setup.tokenizers["image"].fingerprint
    devices = encoder_devices(device, config.encoder_processes)
    with ExitStack() as stack:
        yield EncoderServices(
            tuple(
                stack.enter_context(
                    EncoderService(
                        partial(load_encoder, config, one, fingerprint),
                        batch_size=config.batch_size,
                        depth=config.queue_depth,
                        workers=workers,
                        report=meter.report,
                        stall_seconds=config.stall_seconds,
                    )
                )
                for one in devices
            )
        )


def encode_units(run: Run) -> dict[str, object]:
    """Do the units that are not done, with whoever else is at work on them; returns this process's summary."""
    told = f"{run.config.out} is complete already"
    if not run.complete:
        try:
            return _encode_missing(run)
        except (OSError, DataError, ResumableStop):
            # A process that was suspended while another finished finds its files gone; that is no error then.
            if not run.complete:
                raise
        told = f"{run.config.out} was brought to its end by another process"
    run.progress.log(told)
    return {"resumed_units": len(run.plan.units), "units": 0}


def _encode_missing(run: Run) -> dict[str, object]:
    config = run.config
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    deduplicator: Deduplicator | None = None
    decisions: Decisions | None = None
    records = committed(run)
    if config.dedup and _to_do(run, records):
        deduplicator = Deduplicator(run, workers)
        decisions = deduplicator.decide()
        records = commit_records(run.ledger, run.plan, decisions)
    if records:
        run.progress.log(f"going on: {len(records)} of {len(run.plan.units)} units are committed")
    measure(run, [records[index] for index in sorted(records)])
    calibrate(run, run.plan.units)
    missing = _to_do(run, records)
    meter = Meter(config, run.progress, records, missing, workers)
    begin = time.monotonic()
    with meter:
        while missing:
            _do(run, missing, workers, meter, decisions)
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
    if deduplicator is not None:
        summary["dedup"] = asdict(deduplicator.summary())
    write_atomic(config.out / "run" / "summary.json", pretty_json(summary))
    return summary


def _to_do(run: Run, records: Mapping[int, CommitRecord]) -> list[PlannedUnit]:
    """The units that have no record, of this process's part."""
    index, count = run.config.shard_index or 0, run.config.shard_count or 1
    return [planned for planned in run.plan.units if planned.index not in records and planned.index % count == index]


def _do(run: Run, missing: list[PlannedUnit], workers: int, meter: Meter, decisions: Decisions | None) -> None:
    """Do units, under what is decided about duplicates, where these are looked for."""
    job = run.product.job(run, None if decisions is None else duplicate_table(run))
    with _encoders(run, min(workers, len(missing)), meter) as service:
        run_units(
            job if service is None else replace(job, encoders=service.endpoints, preprocessing=run.setup.preprocessing),
            missing,
            workers,
            meter.report,
            meter.done,
            sharing=SharedUnits(run.ledger, run.leases, meter, decisions),
            stall_seconds=run.config.stall_seconds,
            service=service,
            alone=job,
            lost=meter.lost,
        )


# ---- the product


class TokenShards:
    """Token shards, as a :class:`~tokkit.pipelines.product.Product`."""

    def prepare(self, config: ShardConfig, resolved: ResolvedInputs, filters: dict[str, str] | None) -> Setup:
        return prepare(config, resolved, filters)

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
        )

    def coalesce(self, run: Run, records: list[CommitRecord]) -> dict[str, Split]:
        config = run.config
        return coalesce(config.out, run.ledger, records, run.setup.vocabulary.dtype, config.shard_tokens, run.progress)

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

        return pack(PackConfig(directory=config.out, seq_len=config.pack, split_policy=config.pack_split), run.progress).splits

    def report(self, run: Run) -> None:
        config = run.config
        if (config.out / "report.html").exists() and config.pack is None:
            return
        from tokkit.pipelines.report import ReportConfig, write_report

        write_report(ReportConfig(directory=config.out, documents=config.report_documents), run.progress)


TOKENS = TokenShards()
