"""Where each picture of the stores is: a sorted file of 128-bit keys, mapped into memory by whoever looks something up.

``keys.bin`` holds the first half of each key as u8, rising; ``entries.bin`` the rest, in the same order: the second half of the
key, the number of the file, where in it (``place`` and ``more``: see :mod:`tokkit.sources.stores.listing`), and a note: 0 for a
picture, else what became of it. Together 38 bytes an entry. Of one key those that may be had come first, then in the order of
the stores and of their files. ``stores.json``, written last, says what the index is of, and holds the notes.

It is made in bounded memory: entries are put aside by their first eight bits, and each part is sorted by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tokkit.dedup.spill import Spill
from tokkit.documents import Failure, Outcome
from tokkit.errors import DataError
from tokkit.sources.base import ContainerDamage
from tokkit.storage import fingerprint_of, read_json, replacing, write_atomic

NAME = "stores.json"
VERSION = 1
MEMORY = 1 << 28
MOST_ENTRIES = 16  # of one key that are looked at
_PARTS = 256
_BLOCK = 1 << 16
_ALL = np.dtype([("hi", "<u8"), ("lo", "<u8"), ("file", "<u4"), ("place", "<u8"), ("more", "<u8"), ("note", "<u2")])
_REST = np.dtype([("lo", "<u8"), ("file", "<u4"), ("place", "<u8"), ("more", "<u8"), ("note", "<u2")])


class Entry(NamedTuple):
    """Where a picture is, or the number of the note that says why it is nowhere."""

    file: int
    place: int
    more: int
    note: int = 0


Row = tuple[bytes, int, int, int, int]  # a key, and the fields of its entry


@dataclass
class Notes:
    """Failures by number, from 1; of so many that a number does not hold them, the rest are told without their message."""

    known: dict[Failure, int] = field(default_factory=dict)

    def number(self, outcome: Outcome, reason: str, message: str) -> int:
        """The number of a failure."""
        failure = Failure(outcome, reason, message[:300])
        if failure not in self.known and len(self.known) >= 60_000:
            failure = Failure(outcome, reason if len(self.known) < 65_000 else "failed-to-download", "")
        return self.known.setdefault(failure, len(self.known) + 1)


@dataclass(frozen=True)
class StoreSummary:
    """What the index knows of a store: entries that may be had, those that failed, and what of its files cannot be read."""

    entries: int
    failed: int
    damage: tuple[ContainerDamage, ...]


class StoreIndex:
    """An index, mapped."""

    def __init__(self, folder: Path, identity: str) -> None:
        said = read_json(folder / NAME)
        try:
            if (said["version"], said["identity"]) != (VERSION, identity):
                raise DataError(f"{folder} is an index of other stores")
            count = int(said["count"])
            self.notes = [Failure(Outcome(o), reason, message) for o, reason, message in said["notes"]]
            self.summaries = [
                StoreSummary(s["entries"], s["failed"], tuple(ContainerDamage(**d) for d in s["damage"]))
                for s in said["stores"]
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{folder / NAME} is damaged: {error!r}") from None
        self._keys: npt.NDArray[np.uint64] = _mapped(folder / "keys.bin", np.dtype("<u8"), count)
        self._rest = _mapped(folder / "entries.bin", _REST, count)

    def find(self, key: bytes) -> list[Entry]:
        """The entries of a key, best first."""
        hi, lo = np.frombuffer(key, ">u8").astype("<u8")
        first = int(np.searchsorted(self._keys, hi, "left"))
        last = min(int(np.searchsorted(self._keys, hi, "right")), first + MOST_ENTRIES)
        rows = self._rest[first:last]
        return [Entry(*map(int, list(row)[1:])) for row in rows if row["lo"] == lo]


def _mapped(path: Path, dtype: np.dtype, count: int) -> npt.NDArray:
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise DataError(f"{path} is missing") from None
    if size != count * dtype.itemsize:
        raise DataError(f"{path} has {size} bytes, not those of {count} entries")
    return np.memmap(path, dtype, "r").view(np.ndarray) if count else np.zeros(0, dtype)


def write_index(
    folder: Path,
    identity: str,
    rows: Iterable[Row],
    firsts: Sequence[int],
    notes: Notes,
    damage: list[list[ContainerDamage]],
    memory: int = MEMORY,
) -> None:
    """Write the index of entries that come in the order of stores and files.

    Args:
        firsts: by store, the number of its first file.
        damage: by store; looked at when ``rows`` have been gone through, as are the ``notes``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).unlink(missing_ok=True)
    counts = np.zeros((len(firsts), 2), np.int64)
    source = iter(rows)
    with Spill(folder / "scratch", _ALL, _PARTS, memory) as spill:
        while block := list(islice(source, _BLOCK)):
            keys, *columns = zip(*block, strict=True)
            table = np.zeros(len(block), _ALL)
            halves = np.frombuffer(b"".join(keys), ">u8").reshape(-1, 2)
            table["hi"], table["lo"] = halves[:, 0], halves[:, 1]
            for name, column in zip(Entry._fields, columns, strict=True):
                table[name] = column
            store = np.searchsorted(firsts, table["file"], "right") - 1
            np.add.at(counts, (store, (table["note"] > 0).astype(np.int64)), 1)
            spill.add(table, table["hi"] >> np.uint64(56))
        with replacing(folder / "keys.bin") as of_keys, replacing(folder / "entries.bin") as of_rest:
            _write_sorted(spill, of_keys, of_rest)
        count = spill.rows
    said = {
        "version": VERSION,
        "identity": identity,
        "count": count,
        "notes": [[failure.outcome, failure.reason, failure.message] for failure in notes.known],
        "stores": [
            {"entries": good, "failed": failed, "damage": [asdict(d) for d in damage[number]]}
            for number, (good, failed) in enumerate(counts.tolist())
        ],
    }
    write_atomic(folder / NAME, json.dumps(said, ensure_ascii=True))


def _write_sorted(spill: Spill, keys: Path, rest: Path) -> None:
    with keys.open("wb") as of_keys, rest.open("wb") as of_rest:
        for part in range(_PARTS):
            blocks = list(spill.read(part, 1 << 20))
            if blocks:
                table = np.concatenate(blocks)
                # lexsort is stable: what is equal stays in the order of stores and files
                table = table[np.lexsort((table["note"] > 0, table["lo"], table["hi"]))]
                left = np.empty(len(table), _REST)
                for name in _REST.names or ():
                    left[name] = table[name]
                of_keys.write(np.ascontiguousarray(table["hi"]).tobytes())
                of_rest.write(left.tobytes())


def identity_of(stores: Iterable[tuple[str, str, list[tuple[str, int, int]]]]) -> str:
    """The fingerprint of what an index is of: name and kind of each store, and name, size and time of each of its files."""
    return fingerprint_of([VERSION, [[name, kind, files] for name, kind, files in stores]])
