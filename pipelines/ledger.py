"""The ledger: what has been committed, and what became of every document.

A unit is done when ``commits/NNNNN.json`` exists. The record names the unit's payload under ``run/payloads`` with checksums
and carries all counts; it is created if absent, in one atomic step, after the payload is safely on disk. Payloads are named by
their content, so a second attempt at a unit (a killed run's, a slow worker's) ends at the same names with the same bytes, and
whoever creates the record first wins without harm.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokkit.documents import Document, Failure, Media, Outcome, modality_of
from tokkit.errors import DataError, VerificationError
from tokkit.pipelines.plan import PlannedUnit, Poison
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import Counts, ShardFile
from tokkit.sources.base import ContainerDamage, Unit
from tokkit.storage import create_if_absent, pretty_json, read_json, remove_attempts, replacing, sha256_file, write_atomic


class UnitEntry(BaseModel):
    """The unit as commit records keep it: no absolute path."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    index: int
    source: str
    format: str
    file: str
    start: int
    stop: int
    bytes: int


def sorted_counts(counts: Counter[str]) -> dict[str, int]:
    """Counts by name, in the order of the names."""
    return {str(key): counts[key] for key in sorted(counts)}


class SplitCounts(BaseModel):
    """Documents and tokens that a unit adds to a split."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents: int
    tokens: int
    tokens_by_kind: Counts


class CommitRecord(BaseModel):
    """The content of ``commits/NNNNN.json``.

    Attributes:
        unit: what was read.
        payload: by suffix (``bin``, ``parquet``, ``rejects``), the files it came to.
        documents: documents by outcome.
        items: media items by modality and outcome.
        reasons: rejected, filtered... documents and items by ``level/outcome/reason``.
        container_errors: damaged stretches of the container.
        counted_documents, counted_items: the source's census, taken apart from the reading; None where it cannot be known.
        counted_others: by the same census, what is no document, by kind.
        images_from: pictures that were found in a store of ``--images``, by store, whatever became of them.
        kept_markers: missing pictures whose markers stand in their place.
        consumed: share of the unit that was read (below 1 only in a trial).
        splits: what the unit adds to each split.
        numeric: fingerprint of the numeric environment it was encoded in.
        decisions: digest of what had been decided about duplicates in the unit; None without ``--dedup``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: int = 1
    unit: UnitEntry
    payload: dict[str, ShardFile]
    documents: Counts
    items: dict[str, Counts]
    reasons: Counts
    container_errors: int
    counted_documents: int | None
    counted_items: Counts
    counted_others: Counts = Field(default_factory=dict)
    consumed: float
    splits: dict[str, SplitCounts]
    numeric: str
    decisions: str | None = None
    images_from: Counts = Field(default_factory=dict)
    kept_markers: int = 0


@dataclass
class Tally:
    """Counts outcomes while a unit is read, and collects its reject lines."""

    source: str
    documents: Counter[str] = field(default_factory=Counter)
    items: dict[str, Counter[str]] = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    container_errors: int = 0
    lines: list[str] = field(default_factory=list)
    images_from: Counter[str] = field(default_factory=Counter)
    kept_markers: int = 0

    def committed(self, documents: int) -> None:
        """So many documents themselves; their items are told apart with :meth:`item`."""
        self.documents[Outcome.COMMITTED] += documents

    def document(self, document: Document, failure: Failure) -> None:
        """A document that is not committed."""
        self.documents[failure.outcome] += 1
        self._line("document", document, failure)

    def item(self, document: Document, index: int, media: Media, failure: Failure | None) -> None:
        """A media item: committed, or why not."""
        modality = modality_of(media)  # type: ignore[arg-type]
        counts = self.items.setdefault(modality, Counter())
        counts[Outcome.COMMITTED if failure is None else failure.outcome] += 1
        if media.store:
            self.images_from[media.store] += 1
        if failure is not None:
            self._line("item", document, failure, item=index, modality=modality, ref=media.ref)

    def withdraw(self, document: Document, index: int, media: Media, failure: Failure | None) -> None:
        """A media item that was told as committed, of a document that turned out not to be."""
        counts = self.items[modality_of(media)]  # type: ignore[arg-type]
        counts[Outcome.COMMITTED] -= 1
        if not counts[Outcome.COMMITTED]:
            del counts[Outcome.COMMITTED]
        if media.store:
            self.images_from[media.store] -= 1
        self.item(document, index, media, failure)

    def damage(self, damage: ContainerDamage) -> None:
        """A stretch of the container that could not be read."""
        self.container_errors += 1
        self.reasons[f"container/{damage.reason}"] += 1
        entry = {
            "level": "container",
            "source": self.source,
            "locator": damage.locator,
            "reason": damage.reason,
            "message": damage.message,
            "bytes": [damage.start, damage.stop],
        }
        self.lines.append(json.dumps(entry))

    def _line(self, level: str, document: Document, failure: Failure, **more: object) -> None:
        self.reasons[f"{level}/{failure.outcome}/{failure.reason}"] += 1
        entry = {
            "level": level,
            "source": document.source,
            "locator": document.locator,
            "id": document.id,
            **more,
            "outcome": failure.outcome,
            "reason": failure.reason,
            "message": failure.message,
        }
        if failure.of is not None:
            entry["of"] = {key: value for key, value in asdict(failure.of).items() if value is not None}
        self.lines.append(json.dumps(entry))


class PoisonEntry(BaseModel):
    """See :class:`~tokkit.pipelines.plan.Poison`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    position: int
    cause: str


class PoisonRecord(BaseModel):
    """The content of ``run/poison/NNNNN.json``: the documents of a unit that kill the process which works on them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    file: str
    start: int
    stop: int
    documents: list[PoisonEntry]


class Ledger:
    """The commit records and payloads of one output directory."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.commits = out / "commits"
        self.rejects = out / "rejects"
        self.payloads = out / "run" / "payloads"
        self.poisons = out / "run" / "poison"

    def create(self) -> None:
        """Make the folders."""
        for folder in (self.commits, self.rejects, self.payloads, self.poisons):
            folder.mkdir(parents=True, exist_ok=True)

    def clean(self) -> None:
        """Remove what attempts that never came to their end left; only while no other process is at work."""
        for folder in (self.out, self.commits, self.rejects, self.payloads, self.poisons):
            remove_attempts(folder)

    def commit(self, record: CommitRecord) -> bool:
        """Make a unit's payload real. Returns False where another attempt had done so before."""
        return create_if_absent(self._path(record.unit.index), pretty_json(record.model_dump(mode="json")))

    def read(self, unit_index: int) -> CommitRecord | None:
        """A unit's record, or None; DataError where there is one that cannot be read."""
        path = self._path(unit_index)
        if not path.exists():
            return None
        try:
            return CommitRecord.model_validate(read_json(path))
        except ValidationError as error:
            raise DataError(f"{path} is damaged: {error.errors()[0]['msg']}") from None

    def done(self, unit_index: int, unit: Unit, decisions: str | None = None) -> CommitRecord | None:
        """The record of a unit whose payload is there; a record that names a payload which is not is no commit.

        Nor is one that was made when something else was decided about the unit's duplicates than what ``decisions`` is the
        digest of; None takes any. Once there is a manifest the payloads are in the shards, and may be gone, and what the
        manifest was made from is final.
        """
        record = self.read(unit_index)
        if record is None:
            return None
        entry = record.unit
        if (entry.source, entry.file, entry.start, entry.stop) != (unit.source, unit.file, unit.start, unit.stop):
            raise VerificationError(f"{self._path(unit_index)} is of another unit ({entry.source}/{entry.file})")
        if decisions in (None, record.decisions) and all(self._is_there(file) for file in record.payload.values()):
            return record
        # The manifest is looked for second: a process that has just written it removes the payloads next.
        return record if self.complete else None

    def all_done(self, units: Sequence[PlannedUnit], decisions: Mapping[int, str]) -> dict[int, CommitRecord]:
        """The records of the units that are done, by index; ``decisions`` are digests by index, of those that are decided."""
        found = {p.index: self.done(p.index, p.unit, decisions.get(p.index)) for p in units}
        return {index: record for index, record in found.items() if record is not None}

    @property
    def complete(self) -> bool:
        """Whether there is a manifest."""
        return (self.out / MANIFEST).exists()

    def payload(self, file: ShardFile) -> Path:
        """Where a committed file of a payload can be read."""
        return self.payloads / file.name

    def _is_there(self, file: ShardFile) -> bool:
        path = self.payloads / file.name
        return path.exists() and path.stat().st_size == file.bytes

    def forget(self, unit_index: int) -> None:
        """Remove a record that is no commit, so that the unit is done again; only with the unit's lease."""
        self._path(unit_index).unlink(missing_ok=True)

    def poison(self, unit_index: int, unit: Unit) -> tuple[Poison, ...]:
        """The documents of a unit that are known to kill."""
        path = self.poisons / f"{unit_index:05d}.json"
        if not path.exists():
            return ()
        record = _poison_record(path)
        if (record.source, record.file, record.start, record.stop) != (unit.source, unit.file, unit.start, unit.stop):
            raise VerificationError(f"{path} is of another unit ({record.source}/{record.file}); remove it")
        return tuple(Poison(entry.position, entry.cause) for entry in record.documents)

    def all_poison(self) -> dict[int, list[int]]:
        """Of each unit that has any, the positions of the documents that are known to kill."""
        paths = sorted(path for path in self.poisons.glob("*.json") if path.stem.isdecimal())
        return {int(path.stem): [entry.position for entry in _poison_record(path).documents] for path in paths}

    def add_poison(self, unit_index: int, unit: Unit, poison: Sequence[Poison]) -> None:
        """Write down which documents of a unit kill, so that a later run does not die of them again.

        What is known stays known: a process that was suspended may not know all of it.
        """
        known = {p.position: p for p in (*self.poison(unit_index, unit), *poison)}
        documents = [PoisonEntry(position=p, cause=known[p].cause) for p in sorted(known)]
        record = PoisonRecord(source=unit.source, file=unit.file, start=unit.start, stop=unit.stop, documents=documents)
        write_atomic(self.poisons / f"{unit_index:05d}.json", pretty_json(record.model_dump(mode="json")))

    def write_lines(self, unit_index: int, lines: list[str]) -> ShardFile:
        """Write a unit's reject lines as part of its payload."""
        name = f"{unit_index:05d}.rejects.jsonl"
        with replacing(self.payloads / name) as temporary:
            temporary.write_text("".join(line + "\n" for line in lines), encoding="ascii")
            return ShardFile(name=name, bytes=temporary.stat().st_size, sha256=sha256_file(temporary))

    def _path(self, unit_index: int) -> Path:
        return self.commits / f"{unit_index:05d}.json"


def _poison_record(path: Path) -> PoisonRecord:
    try:
        return PoisonRecord.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path} is damaged: {error.errors()[0]['msg']}; remove it") from None


def unit_entry(index: int, unit: Unit, format_name: str) -> UnitEntry:
    """The unit as commit records keep it."""
    return UnitEntry(
        index=index,
        source=unit.source,
        format=format_name,
        file=unit.file,
        start=unit.start,
        stop=unit.stop,
        bytes=unit.bytes,
    )
