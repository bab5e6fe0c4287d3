"""Commit records and reject lists of an output that documents are removed from (:mod:`tokkit.pipelines.remove`)."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tokkit.documents import Outcome
from tokkit.errors import DataError
from tokkit.pipelines.ledger import CommitRecord, Ledger, SplitCounts
from tokkit.pipelines.remove_list import Removed
from tokkit.shards.manifest import REMOVED, RunManifest, ShardFile
from tokkit.storage import fsync, pretty_json, remove_attempts, same_file, sha256_file, write_atomic


def reject_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a reject list; none where there is no such file."""
    if not path.exists():
        return
    with path.open(encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            try:
                entry = json.loads(line)
                _ = entry["level"], entry["source"], entry["locator"]
            except (ValueError, TypeError, KeyError):
                raise DataError(f"{path} line {number} is no reject; `tokkit verify` says what is damaged") from None
            yield entry


def write_records(directory: Path, out: Path, before: RunManifest, removed: Sequence[Removed]) -> list[CommitRecord]:
    """All commit records and reject lists of the new version; returns the records."""
    units: dict[int, list[Removed]] = defaultdict(list)
    for document in removed:
        units[document.unit].append(document)
    old, new = Ledger(directory), Ledger(out)
    for folder in (new.commits, new.rejects):
        folder.mkdir(exist_ok=True)
        remove_attempts(folder)
    records = []
    for index in range(before.units):
        record = old.read(index)
        if record is None:
            raise DataError(f"{directory} lacks commits/{index:05d}.json; `tokkit verify` says what is damaged")
        commit, rejects = f"commits/{index:05d}.json", f"rejects/{index:05d}.jsonl"
        if index not in units:
            same_file(directory / commit, out / commit)
            if (directory / rejects).exists():
                same_file(directory / rejects, out / rejects)
        else:
            lines = _lines(directory / rejects, units[index])
            write_atomic(out / rejects, lines)
            record = _without(record, units[index], out / rejects)
            write_atomic(out / commit, pretty_json(record.model_dump(mode="json")))
        records.append(record)
    for folder in (new.commits, new.rejects):
        fsync(folder)
    return records


def _lines(path: Path, removed: Sequence[Removed]) -> bytes:
    """A unit's reject list with the lines of what is removed behind those that were there."""
    lost: dict[str, set[int]] = defaultdict(set)
    locators = {document.locator for document in removed}
    for entry in reject_lines(path):
        if entry["level"] == "item" and entry["locator"] in locators:
            lost[entry["locator"]].add(entry["item"])
    lines = []
    failure = {"outcome": Outcome.FILTERED, "reason": REMOVED, "message": "taken out of a finished output"}
    for document in removed:
        names = {"source": document.source, "locator": document.locator, "id": document.id}
        # A document's items are numbered in order, and those that were lost before have their lines already.
        numbers = (n for n in range(len(document.items) + len(lost[document.locator])) if n not in lost[document.locator])
        for number, (modality, digest) in zip(numbers, document.items, strict=True):
            item = {"item": number, "modality": modality, "ref": f"hash {digest}"}
            lines.append({"level": "item", **names, **item, **failure})
        lines.append({"level": "document", **names, **failure})
    there = path.read_bytes() if path.exists() else b""
    return there + b"".join(json.dumps(line).encode("ascii") + b"\n" for line in lines)


def _without(record: CommitRecord, removed: Sequence[Removed], rejects: Path) -> CommitRecord:
    """A unit's record with these documents removed. Its payload stays what the unit was encoded to, but for the reject list."""
    items: dict[str, Counter[str]] = {modality: Counter(counts) for modality, counts in record.items.items()}
    reasons, splits = Counter(record.reasons), dict(record.splits)
    for document in removed:
        counts = splits[document.split]
        splits[document.split] = SplitCounts(
            documents=counts.documents - 1,
            tokens=counts.tokens - document.tokens,
            tokens_by_kind=_less(counts.tokens_by_kind, document.kinds),
        )
        for modality, _ in document.items:
            items[modality].update({Outcome.COMMITTED: -1, Outcome.FILTERED: 1})
            reasons[f"item/{Outcome.FILTERED}/{REMOVED}"] += 1
        reasons[f"document/{Outcome.FILTERED}/{REMOVED}"] += 1
    number = len(removed)
    documents = Counter(record.documents)
    documents.update({Outcome.COMMITTED: -number, Outcome.FILTERED: number})
    stated = ShardFile(name=record.payload["rejects"].name, bytes=rejects.stat().st_size, sha256=sha256_file(rejects))
    return record.model_copy(
        update={
            "payload": {**record.payload, "rejects": stated},
            "documents": _less(documents, {}),
            "items": {modality: _less(counts, {}) for modality, counts in items.items()},
            "reasons": _less(reasons, {}),
            "splits": splits,
            "kept_markers": record.kept_markers - sum(document.gaps for document in removed),
        }
    )


def _less(counts: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """The difference, keys sorted, without what comes to nothing."""
    return {str(key): left for key in sorted(counts) if (left := counts[key] - other.get(key, 0))}
