"""Verification of the sums: what became of every document and media item, from four places that must agree.

The commit records say what became of each unit's documents; the reject lists name those that were not committed, one by one;
the shards hold those that were; the manifest adds everything up, source by source, and carries the sources' own counts, which
were taken apart from the reading. Records and lists are read one at a time, and of each unit about a kilobyte is kept.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tokkit.documents import Outcome
from tokkit.errors import TokkitError
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.verify_files import environments_of, file_problem
from tokkit.pipelines.verify_once import Once
from tokkit.pipelines.verify_tokens import UnitPlace, UnitSums
from tokkit.shards.manifest import RunManifest
from tokkit.vocabulary import MODALITIES

REJECTED = 1 << 62  # references of reject lines: this, plus the unit's number times LINES, plus the line's
LINES = 1 << 32

Nested = dict[str, Counter[str]]


@dataclass(slots=True)
class _Sums:
    """What commit records add up to, for a source or for all."""

    units: int = 0
    documents: Counter[str] = field(default_factory=Counter)
    items: Nested = field(default_factory=dict)
    reasons: Counter[str] = field(default_factory=Counter)
    counted_items: Counter[str] = field(default_factory=Counter)
    counted_documents: int | None = 0
    container_errors: int = 0
    counted_others: Counter[str] = field(default_factory=Counter)
    images_from: Counter[str] = field(default_factory=Counter)
    kept_markers: int = 0

    def add(self, record: CommitRecord) -> None:
        self.units += 1
        self.documents.update(record.documents)
        for modality, counts in record.items.items():
            self.items.setdefault(modality, Counter()).update(counts)
        self.reasons.update(record.reasons)
        self.counted_items.update(record.counted_items)
        self.counted_others.update(record.counted_others)
        self.images_from.update(record.images_from)
        self.kept_markers += record.kept_markers
        known = self.counted_documents is not None and record.counted_documents is not None
        self.counted_documents = (self.counted_documents or 0) + (record.counted_documents or 0) if known else None
        self.container_errors += record.container_errors


@dataclass(slots=True)
class UnitRecord:
    """What a commit record says that the shards must hold: documents and tokens by split, committed items by modality, and
    places of missing pictures."""

    splits: dict[str, tuple[int, int, dict[str, int]]]
    items: dict[str, int]
    kept_markers: int = 0


@dataclass
class Records:
    """What reading the commit records and reject lists came to.

    Attributes:
        places: by unit.
        units: by unit.
        numeric: by unit, the fingerprint of its numeric environment.
        lists: names of the files that ``rejects/`` must have.
        unknown: names of the reject lists of units whose records could not be read.
    """

    places: list[UnitPlace] = field(default_factory=list)
    units: list[UnitRecord] = field(default_factory=list)
    numeric: list[str] = field(default_factory=list)
    lists: set[str] = field(default_factory=set)
    unknown: set[str] = field(default_factory=set)
    sources: dict[str, _Sums] = field(default_factory=dict)
    all: _Sums = field(default_factory=_Sums)

    @property
    def complete(self) -> bool:
        """Whether every record could be read."""
        return not self.unknown


def read_records(directory: Path, manifest: RunManifest, once: Once, result: VerifyResult) -> Records:
    """Read every commit record and reject list; the names of documents that were not committed go to ``once``."""
    ledger, records = Ledger(directory), Records()
    for index in range(manifest.units):
        name = f"commits/{index:05d}.json"
        try:
            record = ledger.read(index)
        except (TokkitError, OSError) as error:
            result.problem(Code.COMMIT, name, str(error).replace(f"{directory}/", "").removeprefix(f"{name} "))
            record = None
        if record is not None and record.unit.index != index:
            result.problem(Code.COMMIT, name, f"is the record of unit {record.unit.index}")
            record = None
        if record is None or not {"bin", "parquet", "rejects"} <= record.payload.keys():
            if record is not None:
                result.problem(Code.COMMIT, name, "names no token file, document table or reject list")
            records.unknown.add(f"{index:05d}.jsonl")
            records.places.append(UnitPlace("", ""))
            records.units.append(UnitRecord({}, {}))
            records.numeric.append("")
            continue
        _one(directory, record, manifest, once, records, result)
        result.look("units")
    return records


def _one(
    directory: Path, record: CommitRecord, manifest: RunManifest, once: Once, records: Records, result: VerifyResult
) -> None:
    unit, where = record.unit, f"commits/{record.unit.index:05d}.json"
    records.places.append(UnitPlace(unit.source, unit.file))
    splits = {name: (s.documents, s.tokens, s.tokens_by_kind) for name, s in record.splits.items()}
    committed_items = {m: counts.get(Outcome.COMMITTED, 0) for m, counts in record.items.items()}
    records.units.append(UnitRecord(splits, committed_items, record.kept_markers))
    records.numeric.append(record.numeric)
    records.all.add(record)
    records.sources.setdefault(unit.source, _Sums()).add(record)
    if record.numeric not in environments_of(manifest):
        result.problem(Code.FINGERPRINT, where, "was encoded in another numeric environment than the manifest's")
    committed = sum(s.documents for s in record.splits.values())
    if committed != record.documents.get(Outcome.COMMITTED, 0):
        result.problem(Code.OUTCOMES, where, f"its splits have {committed} documents, and it committed {record.documents}")
    found = sum(record.documents.values())
    if not record.container_errors and record.counted_documents is not None:
        if record.counted_documents != found:
            result.problem(Code.OUTCOMES, where, f"{record.counted_documents} documents counted, {found} with an outcome")
        for modality, counted in record.counted_items.items():
            items = sum(record.items.get(modality, {}).values())
            if items != counted:
                result.problem(Code.OUTCOMES, where, f"{counted} {modality} items counted, {items} with an outcome")
    stated = record.payload["rejects"]
    path = directory / "rejects" / f"{unit.index:05d}.jsonl"
    if stated.bytes:
        records.lists.add(path.name)
        problem = file_problem(path, stated.bytes, stated.sha256)
        if problem is not None:
            code = Code.REJECTS if problem[0] == Code.CHECKSUM else problem[0]
            result.problem(code, f"rejects/{path.name}", problem[1])
        else:
            _rejects(path, record, once, result)
    elif record.reasons:
        result.problem(Code.OUTCOMES, where, f"has {sum(record.reasons.values())} rejects and no list of them")


def _rejects(path: Path, record: CommitRecord, once: Once, result: VerifyResult) -> None:
    """Compare a reject list with its unit's counts."""
    name = f"rejects/{path.name}"
    reasons, documents, items = Counter[str](), Counter[str](), Counter[tuple[str, str]]()
    keys: list[bytes] = []
    lines: list[int] = []
    with path.open(encoding="ascii") as file:
        number = 0
        try:
            for number, line in enumerate(file, 1):
                entry = json.loads(line)
                middle = "" if entry["level"] == "container" else f"{entry['outcome']}/"
                reasons[f"{entry['level']}/{middle}{entry['reason']}"] += 1
                if entry["level"] == "document":
                    documents[entry["outcome"]] += 1
                    keys.append(f"{entry['source']}\0{entry['locator']}".encode("utf-8", "backslashreplace"))
                    lines.append(number)
                elif entry["level"] == "item":
                    items[entry["modality"], entry["outcome"]] += 1
                if entry["source"] != record.unit.source:
                    result.problem(Code.REJECTS, name, f"line {number} is of source {entry['source']!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            result.problem(Code.REJECTS, name, f"line {number + isinstance(error, UnicodeDecodeError)} is no reject: {error!r}")
            return
    result.look("rejects", sum(reasons.values()))
    once.add(keys, REJECTED + record.unit.index * LINES + np.array(lines, dtype=np.int64))
    expected_items = {(m, o): n for m, c in record.items.items() for o, n in c.items() if o != Outcome.COMMITTED and n}
    for what, listed, stated in (
        ("rejects by reason", dict(reasons), record.reasons),
        ("documents", dict(documents), {o: n for o, n in record.documents.items() if o != Outcome.COMMITTED and n}),
        ("media items", dict(items), expected_items),
    ):
        if listed != stated:
            result.problem(Code.OUTCOMES, name, f"lists {_counts(listed)} {what}, its commit record says {_counts(stated)}")


def _counts(counts: dict) -> str:
    return f"{sum(counts.values())} ({', '.join(f'{k}: {n}' for k, n in sorted(counts.items(), key=str)[:6])})"


def check_sums(manifest: RunManifest, records: Records, result: VerifyResult) -> None:
    """Compare what the commit records add up to with the manifest."""
    if not records.complete:
        result.skipped.append("the manifest's sums: not every commit record could be read")
        return
    named = {source.name for source in manifest.sources}
    for name in sorted(records.sources.keys() - named):
        result.problem(Code.OUTCOMES, "manifest.json", f"does not name source {name!r}, which commit records are of")
    for source in manifest.sources:
        mine = records.sources.get(source.name, _Sums())
        stated = _Sums(
            source.units,
            Counter(source.documents),
            {m: Counter(c) for m, c in source.items.items()},
            Counter(source.reasons),
            Counter(source.counted_items),
            source.counted_documents,
            source.container_errors,
            Counter(source.counted_others),
            Counter(source.images_from),
            source.kept_markers,
        )
        _compare(f"source {source.name}", mine, stated, result)
    total = records.all
    stated = _Sums(
        manifest.units,
        Counter(manifest.documents),
        {m: Counter(c) for m, c in manifest.items.items()},
        total.reasons,
        total.counted_items,
        total.counted_documents,
        manifest.container_errors,
        total.counted_others,
        Counter({store.name: store.found for store in manifest.stores if store.found}),
        total.kept_markers,
    )
    _compare("all sources", total, stated, result)
    units = Counter(records.numeric)
    for name, stated_units in environments_of(manifest).items():
        if units[name] != stated_units:
            message = f"says that {stated_units} units were encoded in {name[:12]}; by the commit records it is {units[name]}"
            result.problem(Code.FINGERPRINT, "manifest.json", message)
    for split in sorted({name for unit in records.units for name in unit.splits} | manifest.splits.keys()):
        _compare_split(split, manifest, records, result)


def _compare(where: str, added: _Sums, stated: _Sums, result: VerifyResult) -> None:
    for name in _Sums.__dataclass_fields__:
        here, there = getattr(added, name), getattr(stated, name)
        if here != there:
            message = (
                f"{name.replace('_', ' ')}: the commit records add up to {_plain(here)}, the manifest says {_plain(there)}"
            )
            result.problem(Code.OUTCOMES, where, message)


def _plain(value: object) -> object:
    """Counts as plain dictionaries, to be shown."""
    return {k: _plain(v) for k, v in sorted(value.items())} if isinstance(value, dict) else value


def _compare_split(split: str, manifest: RunManifest, records: Records, result: VerifyResult) -> None:
    documents = tokens = 0
    kinds = Counter[str]()
    for unit in records.units:
        if split in unit.splits:
            documents, tokens = documents + unit.splits[split][0], tokens + unit.splits[split][1]
            kinds.update(unit.splits[split][2])
    where = f"split {split}"
    if split not in manifest.splits:
        result.problem(
            Code.OUTCOMES, where, f"has {documents} documents by the commit records, and the manifest has no such split"
        )
        return
    whole = manifest.splits[split]
    if (documents, tokens, dict(kinds)) != (whole.documents, whole.tokens, whole.tokens_by_kind):
        result.problem(
            Code.OUTCOMES,
            where,
            f"the commit records add up to {documents} documents, {tokens} tokens, {dict(kinds)}; the manifest says "
            f"{whole.documents}, {whole.tokens}, {whole.tokens_by_kind}",
        )
    by_shard = sum(s.documents for s in whole.shards), sum(s.tokens for s in whole.shards)
    if by_shard != (whole.documents, whole.tokens) or sum(whole.tokens_by_kind.values()) != whole.tokens:
        result.problem(Code.OUTCOMES, where, "documents or tokens by shard or by kind do not add up to the split's")


def check_units(records: Records, sums: UnitSums, result: VerifyResult) -> None:
    """Compare what the shards hold of each unit with its commit record."""
    items = np.zeros((sums.units, len(MODALITIES)), dtype=np.int64)
    for split in sums.spans:
        items += sums.spans[split]
    for index, unit in enumerate(records.units):
        where = f"unit {index}"
        for split in sorted(unit.splits.keys() | sums.documents.keys()):
            documents, tokens, kinds = unit.splits.get(split, (0, 0, {}))
            held = {"marker": 0} | dict.fromkeys(MODALITIES, 0)
            found = 0
            if split in sums.documents:
                found = int(sums.documents[split][index])
                held = {"marker": int(sums.marker[split][index])}
                held |= dict(zip(MODALITIES, sums.tokens[split][index].tolist(), strict=True))
            if found != documents:
                message = f"{found} documents in {split}, its commit record says {documents}"
                result.problem(Code.OUTCOMES, where, message)
            elif {k: n for k, n in held.items() if n} != {k: n for k, n in kinds.items() if n} or sum(held.values()) != tokens:
                shown = {k: n for k, n in held.items() if n}
                message = f"tokens by kind in {split} are {shown}, its commit record says {kinds}, {tokens} in all"
                result.problem(Code.OUTCOMES, where, message)
        for modality in MODALITIES[1:]:
            spans, committed = int(items[index, MODALITIES.index(modality)]), unit.items.get(modality, 0)
            if spans != committed:
                message = f"{spans} {modality} spans in the shards, its commit record has {committed} committed items"
                result.problem(Code.OUTCOMES, where, message)
        gaps = sum(int(counts[index]) for counts in sums.gaps.values())
        if gaps != unit.kept_markers:
            message = f"{gaps} places of missing pictures in the shards, its commit record says {unit.kept_markers}"
            result.problem(Code.OUTCOMES, where, message)
