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
from tokkit.packing.plan import ALGORITHM_VERSION, plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.rows import TokenFiles, load_rows, write_rows
from tokkit.packing.split import MAX_SEQ_LEN, needs_spans
from tokkit.packing.store import RECORD, StoredPlan, load_plan, pack_folder, save_plan
from tokkit.pipelines.progress import Progress
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import TokenShards, open_shards
from tokkit.storage import exclusive, is_attempt
from tokkit.vocabulary import UnifiedVocabulary


class PackConfig(BaseModel):
    """What ``tokkit pack`` is asked for.

    Attributes:
        directory: a finished directory of token shards.
        seq_len: tokens of a sequence.
        name: of the plan; by default ``seq{seq_len}-{split_policy}``, and ``-max{max_documents}`` where there is such a bound.
        split_policy: which documents are cut (:mod:`tokkit.packing.split`).
        max_documents: that share a sequence, at most.
        materialize: also write the rows themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    seq_len: int = Field(ge=2, le=MAX_SEQ_LEN)
    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=128)
    split_policy: SplitPolicy = SplitPolicy.OVERLONG
    max_documents: int | None = Field(default=None, ge=1)
    materialize: bool = False

    @model_validator(mode="after")
    def _fill_has_no_bound(self) -> PackConfig:
        if self.max_documents is not None and self.split_policy is SplitPolicy.FILL:
            raise PydanticCustomError("max_documents", "max_documents cannot be asked for with split policy fill")
        return self

    @property
    def plan_name(self) -> str:
        bound = "" if self.max_documents is None else f"-max{self.max_documents}"
        return self.name or f"seq{self.seq_len}-{self.split_policy}{bound}"


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
    """What the lengths come to, and the media length that matters, if any; JSON-compatible."""

    advice: list[Advice]
    media: MediaLength | None


def advise_seq_len(config: AdviseConfig, progress: Progress) -> AdviseResult:
    """Say what sequence lengths would come to for a directory's documents; writes nothing.

    Raises:
        DataError: the directory is not finished, damaged, or has no such split.
    """
    shards = open_shards(config.directory, config.split)
    if not shards.num_documents:
        raise DataError(f"split {config.split} of {config.directory} has no documents")
    progress.log(f"reading the spans of {shards.num_documents:,} documents")
    media = common_media(shards.lengths, shards.spans)
    seq_lens = sorted(set(config.seq_lens)) or candidates(media)
    with progress.task("plan", total=len(seq_lens), unit="lengths") as task:
        found = []
        for seq_len in seq_lens:
            found += advise(shards.lengths, shards.spans, [seq_len], config.split_policy)
            task.advance(1)
    return AdviseResult(found, media)


def pack(config: PackConfig, progress: Progress) -> PackResult:
    """Make sure that every split of a directory has the plan that is asked for.

    Raises:
        DataError: the directory is not finished, or a file in it is damaged.
        FingerprintMismatch: the name is taken by a plan with other settings, or for other shards; nothing is written then.
        UsageError: another process is packing this directory.
        VerificationError: documents or tokens do not add up; nothing is written of that split then.
        VocabularyError: rows are asked for, and the vocabulary has no padding marker.
    """
    directory, name = config.directory, config.plan_name
    splits = list(load_manifest(directory).splits)
    with _only_one(directory):
        _remove_attempts(directory / "packs" / name)
        shards = {split: open_shards(directory, split) for split in splits}
        stored = {split: _existing(config, shards[split]) for split in splits}
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
        "algorithm version": (record.algorithm_version, ALGORITHM_VERSION),
    }
    differences = [f"{key} {old} there, {new} asked for" for key, (old, new) in wanted.items() if old != new]
    if differences:
        raise FingerprintMismatch(
            f"{folder / RECORD} is another plan of that name ({'; '.join(differences)}): choose another --name or remove "
            f"{folder.parent}"
        )
    return plan


def _write_plan(config: PackConfig, shards: TokenShards, progress: Progress) -> StoredPlan:
    spans = None
    if needs_spans(shards.lengths, config.seq_len, config.split_policy):
        progress.log(f"pack {shards.split}: reading the spans of {shards.num_documents:,} documents")
        spans = shards.spans
    plan = plan_packs(shards.lengths, spans, config.seq_len, config.split_policy, config.max_documents)
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
