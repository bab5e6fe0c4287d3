"""Verification of duplicates: whatever a reject line says that something is a duplicate of is in the shards, or was.

What was there and has been removed since (``tokkit remove``) is told by its own reject line.

Documents and items are known by hashes of their names, which go to partitions (:mod:`tokkit.dedup.spill`); each is looked at by
itself, so memory stays within bounds. Reject lists are read a second time for it, and only where there are duplicates.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa

from tokkit.dedup.exact import partition_of_key
from tokkit.dedup.records import KEY, Records
from tokkit.dedup.spill import Spill, partitions_for, rows_of
from tokkit.documents import Outcome
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.shards.manifest import REMOVED, RunManifest

MEMORY = 512 << 20
_COMMITTED, _LEFT_OUT, _WANTED_DOCUMENT, _WANTED_ITEM = range(4)
_ENTRY = np.dtype([("key", KEY), ("role", "u1"), ("unit", "<u4"), ("line", "<u4")])

Name = tuple[str, str, int | None]  # source, locator, item


def check_originals(
    directory: Path, manifest: RunManifest, tables: Callable[[str], Iterator[pa.Table]], result: VerifyResult
) -> None:
    """Compare the ``of`` of every reject line with the documents that are there and the items that are not.

    Args:
        tables: ``source`` and ``locator`` of a split's documents, in as many tables as there are shards.
    """
    outcomes = [manifest.documents, *manifest.items.values()]
    duplicates = sum(counts.get(Outcome.DUPLICATE, 0) for counts in outcomes)
    if not duplicates:
        return
    names = sum(sum(counts.values()) for counts in outcomes) + 2 * duplicates
    partitions = partitions_for(names, _ENTRY, MEMORY)
    with TemporaryDirectory() as folder, Spill(Path(folder) / "names", _ENTRY, partitions, MEMORY) as spill:

        def add(entries: list[tuple[bytes, int, int, int]]) -> None:
            records = np.array(entries, _ENTRY)
            spill.add(records, partition_of_key(records["key"], partitions))

        for split in manifest.splits:
            for table in tables(split):
                pairs = zip(*(table.column(name).to_pylist() for name in ("source", "locator")), strict=True)
                add([(_key((source, locator, None)), _COMMITTED, 0, 0) for source, locator in pairs])
        for unit in range(manifest.units):
            path = directory / "rejects" / f"{unit:05d}.jsonl"
            if path.exists():
                try:
                    add([(_key(name), role, unit, line) for name, role, line in _names(path)])
                except (ValueError, KeyError, TypeError) as error:
                    result.problem(Code.REJECTS, f"rejects/{path.name}", f"has a line that is no reject: {error!r}")
        for partition in range(partitions):
            blocks = list(spill.read(partition, rows_of(_ENTRY, MEMORY)))
            if blocks:
                _compare(np.concatenate(blocks), result)
    result.look("duplicates' originals", duplicates)


def _key(name: Name) -> bytes:
    return blake2b(json.dumps(name).encode("ascii"), digest_size=KEY.itemsize).digest()


def _names(path: Path) -> Iterator[tuple[Name, int, int]]:
    """What a reject list names, in which role, in which line."""
    with path.open(encoding="ascii") as file:
        for number, line in enumerate(file, 1):
            entry = json.loads(line)
            if entry.get("reason") == REMOVED:  # it was there when the others were left out for its sake
                if entry["level"] == "document":
                    yield (entry["source"], entry["locator"], None), _COMMITTED, number
            elif entry["level"] == "item":
                yield (entry["source"], entry["locator"], entry["item"]), _LEFT_OUT, number
            if (of := entry.get("of")) is not None:
                yield (of["source"], of["locator"], None), _WANTED_DOCUMENT, number
                if "item" in of:
                    yield (of["source"], of["locator"], of["item"]), _WANTED_ITEM, number


def _compare(names: Records, result: VerifyResult) -> None:
    roles = names["role"]
    there = np.isin(names["key"], names["key"][roles == _COMMITTED])
    left_out = np.isin(names["key"], names["key"][roles == _LEFT_OUT])
    for wrong, what in (
        (names[(roles == _WANTED_DOCUMENT) & ~there], "a document that was not committed"),
        (names[(roles == _WANTED_ITEM) & left_out], "a media item that was left out itself"),
    ):
        for entry in wrong:
            message = f"line {entry['line']} is said to be a duplicate of {what}"
            result.problem(Code.REJECTS, f"rejects/{entry['unit']:05d}.jsonl", message)
