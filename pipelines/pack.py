"""The job behind ``tokkit pack``: plan every split of a finished directory of token shards, and write the plans.

Tokens are encoded once and packed as often as one likes: a plan reads lengths (and spans, where documents are to be cut), takes
milliseconds, and is named. The same command again finds its plan and does nothing; a name that is taken by a plan with other
settings, or for other shards, is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from tokkit.errors import DataError, FingerprintMismatch, UsageError, VerificationError
from tokkit.packing.account import account
from tokkit.packing.advise import Advice, MediaLength, advise, candidates, common_media
from tokkit.packing.cuts import held_whole
from tokkit.packing.gather import TokenFiles
from tokkit.packing.plan import algorithm_version, plan_packs
from tokkit.packing.policy import SplitPolicy, TooLong
from tokkit.packing.rows import load_rows, write_rows
from tokkit.packing.split import MAX_SEQ_LEN, needs_spans
from tokkit.packing.store import RECORD, StoredPlan, load_plan, pack_folder, save_plan
from tokkit.packing.too_long import media_too_long, refusal
from tokkit.pipelines.progress import Progress
from tokkit.places import Place
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import TokenShards, open_shards
from tokkit.storage import exclusive, is_attempt
from tokkit.vocabulary import UnifiedVocabulary


class PackConfig(BaseModel):
    """What ``tokkit pack`` is asked for.

    Attributes:
        directory: a finished directory of token shards.
        seq_len: tokens of a sequence.
        name: of the plan; by default ``seq{seq_len}-{split_policy}``, and ``-max{max_documents}``, ``-align{align}`` and
            ``-mixing{mixing}`` where these are asked for.
        split_policy: which documents are cut (:mod:`tokkit.packing.split`).
        max_documents: that share a sequence, at most.
        align: let every document take a multiple of so many places (:mod:`tokkit.data.aligned`).
        mixing: share of the documents that are taken in a drawn order (:mod:`tokkit.packing.mixing`).
        too_long: what becomes of documents with media longer than a sequence (:mod:`tokkit.packing.too_long`).
        materialize: also write the rows themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    seq_len: int = Field(ge=2, le=MAX_SEQ_LEN)
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    split_policy: SplitPolicy = SplitPolicy.OVERLONG
    max_documents: int | None = Field(default=None, ge=1)
    align: int = Field(default=1, ge=1)
    mixing: float = Field(default=0.0, ge=0, le=1)
    too_long: TooLong = TooLong.ERROR
    materialize: bool = False

    @model_validator(mode="after")
    def _settings_agree(self) -> PackConfig:
        if self.split_policy is SplitPolicy.FILL and self.max_documents is not None:
            raise PydanticCustomError("max_documents", "max_documents cannot be asked for with split policy fill")
        if self.seq_len % self.align:
            raise PydanticCustomError("align", f"seq_len {self.seq_len} is no multiple of {self.align}")
        return self

    @property
    def plan_name(self) -> str:
        more = "" if self.max_documents is None else f"-max{self.max_documents}"
        more += f"-align{self.align}" if self.align > 1 else ""
        more += f"-mixing{self.mixing:g}" if self.mixing else ""
        return self.name or f"seq{self.seq_len}-{self.split_policy}{more}"


@dataclass(frozen=True)
class SplitResult:
    """The plan of one split; JSON-compatible.

    Attributes:
        folder: where it lies.
        written: False where it was there already.
        materialized: whether it has rows.
        left_out: number of documents in no pack, by reason; ``left_out_tokens`` are theirs.
        efficiency: tokens / (packs * seq_len).
        bound_volume, bound_martello_toth: no packing of these pieces has fewer packs.
        by_source, by_modality: what was cut, left out and padded (:mod:`tokkit.packing.account`).
    """

    folder: str
    written: bool
    materialized: bool
    seq_len: int
    documents: int
    packed_documents: int
    cut_documents: int
    left_out: dict[str, int]
    tokens: int
    left_out_tokens: int
    padding: int
    pieces: int
    packs: int
    max_pieces: int
    efficiency: float
    bound_volume: int
    bound_martello_toth: int
    by_source: dict[str, dict[str, int]]
    by_modality: dict[str, dict[str, int]]


@dataclass(frozen=True)
class PackResult:
    """What :func:`pack` did: the plan's name, and its splits by name."""

    name: str
    splits: dict[str, SplitResult]


class AdviseConfig(BaseModel):
    """What ``tokkit pack --advise`` is asked for.

    Attributes:
        directory: a finished directory of token shards.
        seq_lens: sequence lengths to look at; none: the usual ones, and those that fit the media.
        split: whose documents.
        split_policy: which documents are cut.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    seq_lens: tuple[Annotated[int, Field(ge=2, le=MAX_SEQ_LEN)], ...] = ()
    split: str = "train"
    split_policy: SplitPolicy = SplitPolicy.OVERLONG


@dataclass(frozen=True)
class AdviseResult:
    """What the lengths come to; JSON-compatible.

    Attributes:
        media: the media length that matters, if any.
        longest_media: tokens of the longest picture, sound or video that is not cut, which a sequence must hold; of sounds that
            may be cut, of a frame with a marker; 0 without any.
    """

    advice: list[Advice]
    media: MediaLength | None
    longest_media: int


def advise_seq_len(config: AdviseConfig, progress: Progress, place: Place | None = None) -> AdviseResult:
    """Say what sequence lengths would come to for a directory's documents; writes nothing.

    Args:
        place: where its shards lie, if not there.

    Raises:
        DataError: the directory is not finished, damaged, or has no such split.
    """
    shards = open_shards(config.directory, config.split, place)
    if not shards.num_documents:
        raise DataError(f"split {config.split} of {config.directory} has no documents")
    progress.log(f"reading the spans of {shards.num_documents:,} documents")
    media = common_media(shards.lengths, shards.spans, config.split_policy)
    seq_lens = sorted(set(config.seq_lens)) or candidates(media)
    with progress.task("plan", total=len(seq_lens), unit="lengths") as task:
        found = []
        for seq_len in seq_lens:
            found += advise(shards.lengths, shards.spans, [seq_len], config.split_policy)
            task.advance(1)
    return AdviseResult(found, media, int(held_whole(shards.spans, config.split_policy).max(initial=0)))


def pack(config: PackConfig, progress: Progress, place: Place | None = None) -> PackResult:
    """Make sure that every split of a directory has the plan that is asked for.

    Args:
        place: where its shards lie, if not there.

    Raises:
        DataError: the directory is not finished, or a file in it is damaged.
        FingerprintMismatch: the name is taken by a plan with other settings, or for other shards; nothing is written then.
        MediaTooLongError: documents have media longer than a sequence, and are not to be left out; nothing is written then.
        UsageError: another process is packing this directory.
        VerificationError: documents or tokens do not add up; nothing is written of that split then.
        VocabularyError: rows are asked for, and the vocabulary has no padding marker.
    """
    directory, name = config.directory, config.plan_name
    splits = list(load_manifest(directory).splits)
    with _only_one(directory):
        _remove_attempts(directory / "packs" / name)
        shards = {split: open_shards(directory, split, place) for split in splits}
        stored = {split: _existing(config, shards[split]) for split in splits}
        if config.too_long is TooLong.ERROR:
            _refuse_too_long(config, shards)
        results = {}
        for split in splits:
            plan = stored[split]
            written = plan is None
            if plan is None:
                plan = _write_plan(config, shards[split], progress)
            _remove_attempts(plan.folder)
            if config.materialize and load_rows(plan) is None:
                _write_rows(plan, shards[split], progress)
                written = True
            results[split] = _result(plan, written)
            _tell(name, split, results[split], progress)
    return PackResult(name, results)


@contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    """Hold the directory's packing lock: what temporary folders there are then belong to no living process."""
    (directory / "run").mkdir(exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(directory / "run" / "pack.lock"))
        except BlockingIOError:
            raise UsageError(f"another process is packing {directory}; wait for it to end") from None
        yield


def _remove_attempts(folder: Path) -> None:
    """Remove what a run that was killed left behind."""
    if folder.is_dir():
        for path in folder.iterdir():
            if is_attempt(path):
                shutil.rmtree(path)


def _refuse_too_long(config: PackConfig, shards: dict[str, TokenShards]) -> None:
    """Raise where media are longer than a sequence."""
    found = {
        split: media
        for split, of in shards.items()
        if of.num_documents and int(of.lengths.max()) > config.seq_len  # else their spans need not be read
        if (media := media_too_long(of.lengths, of.spans, config.seq_len, config.split_policy)) is not None
    }
    if found:
        raise refusal(found, config.seq_len, config.align)


def _existing(config: PackConfig, shards: TokenShards) -> StoredPlan | None:
    """The plan of this name and split, where there is one and it is the one asked for."""
    folder = pack_folder(config.directory, config.plan_name, shards.split)
    if not folder.exists():
        return None
    plan = load_plan(folder, shards=shards.fingerprint)
    record = plan.record
    wanted = {
        "seq_len": (record.seq_len, config.seq_len),
        "split policy": (record.policy.value, config.split_policy.value),
        "max documents": (record.max_documents, config.max_documents),
        "align": (record.align, config.align),
        "mixing": (record.mixing, config.mixing),
        "algorithm version": (record.algorithm_version, _algorithm_version(config, shards)),
    }
    differences = [f"{key} {old} there, {new} asked for" for key, (old, new) in wanted.items() if old != new]
    if differences:
        raise FingerprintMismatch(
            f"{folder / RECORD} is another plan of that name ({'; '.join(differences)}): choose another --name or remove "
            f"{folder.parent}"
        )
    return plan


def _algorithm_version(config: PackConfig, shards: TokenShards) -> int:
    """The version that a plan of these shards has. Their spans are read only where they decide it."""
    cut = needs_spans(shards.lengths, config.seq_len, config.split_policy)
    return algorithm_version(shards.spans if cut else None, config.seq_len, config.split_policy)


def _write_plan(config: PackConfig, shards: TokenShards, progress: Progress) -> StoredPlan:
    spans = None
    if needs_spans(shards.lengths, config.seq_len, config.split_policy):
        progress.log(f"pack {shards.split}: reading the spans of {shards.num_documents:,} documents")
        spans = shards.spans
    bounds = config.split_policy, config.max_documents
    plan = plan_packs(shards.lengths, spans, config.seq_len, *bounds, align=config.align, mixing=config.mixing)
    packed = plan.num_tokens + plan.left_out.num_tokens
    if packed != shards.num_tokens:
        raise VerificationError(
            f"packing lost count: {shards.num_tokens:,} tokens in split {shards.split}, {packed:,} packed or left out"
        )
    cost = account(plan.pieces, plan.pack_offsets, plan.seq_len, plan.left_out, shards)
    return save_plan(
        plan, config.directory, config.plan_name, shards.split, shards.fingerprint, cost.by_source, cost.by_modality
    )


def _write_rows(plan: StoredPlan, shards: TokenShards, progress: Progress) -> None:
    pad_id = UnifiedVocabulary.load(shards.directory / "vocabulary.json").marker("padding")
    with progress.task(f"materialize {shards.split}", total=plan.num_packs, unit="rows") as task:
        write_rows(plan, TokenFiles.of(shards), shards.dtype, pad_id, task.advance)


def _result(plan: StoredPlan, written: bool) -> SplitResult:
    record, counts = plan.record, plan.record.counts
    return SplitResult(
        folder=str(plan.folder),
        written=written,
        materialized=load_rows(plan) is not None,
        seq_len=record.seq_len,
        documents=counts.documents,
        packed_documents=counts.packed_documents,
        cut_documents=counts.cut_documents,
        left_out={reason.value: n for reason, n in record.left_out.items()},
        tokens=counts.tokens,
        left_out_tokens=counts.left_out_tokens,
        padding=counts.padding,
        pieces=counts.pieces,
        packs=counts.packs,
        max_pieces=counts.max_pieces,
        efficiency=record.efficiency,
        bound_volume=record.bounds.volume,
        bound_martello_toth=record.bounds.martello_toth,
        by_source={name: counts.model_dump() for name, counts in record.by_source.items()},
        by_modality={name: counts.model_dump() for name, counts in record.by_modality.items()},
    )


def _tell(name: str, split: str, result: SplitResult, progress: Progress) -> None:
    did = "" if result.written else " (already there)"
    progress.log(
        f"pack {name}/{split}{did}: {result.packs:,} sequences of {result.seq_len:,}, {100 * result.efficiency:.3f} % full, "
        f"at least {result.bound_martello_toth:,} needed; {result.cut_documents:,} documents cut"
    )
    if result.left_out:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in result.left_out.items())
        progress.log(f"pack {name}/{split}: left out {reasons} ({result.left_out_tokens:,} tokens; see left_out.jsonl)")
