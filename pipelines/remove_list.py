"""What is to be removed: lists of names, and the documents of an output that they name.

A name is a document's id, its locator (with or without ``SOURCE/`` before it), a URL (or any other field kept with
``--metadata``), the content hash of a document, or the hash of a media item in it. Names are compared as they are, character by
character: only the whole of a name ever matches.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.errors import DataError, UsageError

NAMES = ("id", "url", "locator", "hash")  # the columns of a table that hold names, where --column chooses none
TABLE_COLUMNS = ("id", "source", "locator", "unit", "tokens", "hash", "metadata", "spans")  # what a match is told by


@dataclass(frozen=True, slots=True)
class Removed:
    """A committed document that is removed.

    Attributes:
        unit: it was read in.
        split: it stands in.
        source, locator, id: its names.
        tokens: it has.
        kinds: tokens by modality, and those outside of spans as ``marker``.
        items: (modality, hash) of each of its media items, in order.
        gaps: places of missing pictures.
    """

    unit: int
    split: str
    source: str
    locator: str
    id: str
    tokens: int
    kinds: dict[str, int]
    items: tuple[tuple[str, str], ...]
    gaps: int


def read_names(paths: Sequence[Path], column: str | None = None) -> set[str]:
    """The names in lists: text with one a line, or a table (.csv, .tsv, .jsonl, .parquet) with columns of names.

    Args:
        column: of tables, the one to take; else all of :data:`NAMES` that are there.

    Raises:
        DataError: a list cannot be read, or is a table without such a column.
        UsageError: there is no name in them at all.
    """
    found: set[str] = set()
    for path in paths:
        try:
            found.update(_names_of(path, column))
        except (OSError, UnicodeDecodeError, csv.Error, pa.ArrowException, ValueError) as error:
            raise DataError(f"{path} cannot be read as a list of names: {error}") from None
    found.discard("")
    if not found:
        raise UsageError(f"no name in {', '.join(map(str, paths))}: nothing to remove")
    return found


def _names_of(path: Path, column: str | None) -> Iterator[str]:
    kind = path.suffix.lower()
    if kind == ".parquet":
        with pq.ParquetFile(path) as file:
            wanted = _columns(path, file.schema_arrow.names, column)
            for batch in file.iter_batches(columns=wanted):
                for values in batch.columns:
                    yield from (str(value) for value in values.to_pylist() if value is not None)
    elif kind in (".csv", ".tsv"):
        with path.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, delimiter="\t" if kind == ".tsv" else ",", strict=True)
            header = next(rows, [])
            places = [header.index(name) for name in _columns(path, header, column)]
            for row in rows:
                yield from (row[place] for place in places if place < len(row))
    elif kind in (".jsonl", ".ndjson"):
        with path.open(encoding="utf-8-sig") as text:
            for number, line in enumerate(text, 1):
                entry = json.loads(line) if line.strip() else {}
                if not isinstance(entry, dict):
                    raise DataError(f"{path} line {number} is no JSON object")
                wanted = [column] if column is not None else [name for name in NAMES if name in entry]
                yield from (str(entry[name]) for name in wanted if entry.get(name) is not None)
    else:
        with path.open(encoding="utf-8-sig", newline="\n") as text:
            yield from (line.rstrip("\r\n") for line in text)


def _columns(path: Path, there: Sequence[str], column: str | None) -> list[str]:
    wanted = [column] if column is not None else [name for name in NAMES if name in there]
    if not wanted or wanted[0] not in there:
        missing = f"no column {column!r}" if column is not None else f"none of the columns {', '.join(NAMES)}; say --column"
        raise DataError(f"{path} has {missing}; there are: {', '.join(there)[:200]}")
    return wanted


class Matcher:
    """Finds the documents that names stand for.

    Args:
        names: to look for.
        fields: of the metadata that the shards hold, those whose values are names.

    Attributes:
        found: the names that stood for a document.
    """

    def __init__(self, names: Collection[str], fields: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._values = pa.array(sorted(self._names), pa.large_string())
        self._fields = tuple(fields)
        self.found: set[str] = set()

    def rows(self, table: pa.Table) -> npt.NDArray[np.int64]:
        """The rows of a document table (:data:`TABLE_COLUMNS`) that a name stands for, ascending."""
        hit = np.zeros(table.num_rows, dtype=bool)
        full = pc.binary_join_element_wise(table.column("source"), table.column("locator"), "/")
        for column in (table.column("id"), table.column("locator"), table.column("hash"), full):
            self._mark(column, np.arange(table.num_rows), hit)
        spans = table.column("spans").combine_chunks()
        hashes = pc.struct_field(spans.flatten(), "item_hash")
        self._mark(hashes, np.repeat(np.arange(table.num_rows), np.diff(spans.offsets.to_numpy())), hit)
        if self._fields and table.column("metadata").null_count < table.num_rows:
            told = [(row, value) for row, text in enumerate(table.column("metadata").to_pylist()) for value in self._told(text)]
            if told:
                self._mark(pa.array([value for _, value in told]), np.array([row for row, _ in told]), hit)
        return np.flatnonzero(hit)

    def _told(self, metadata: str | None) -> Iterator[str]:
        fields = json.loads(metadata) if metadata is not None else {}
        return (str(fields[name]) for name in self._fields if fields.get(name) is not None)

    def _mark(self, values: pa.Array | pa.ChunkedArray, rows: npt.NDArray[np.int64], hit: npt.NDArray[np.bool_]) -> None:
        """Mark the rows of the values that are names, and the names as found."""
        same = pc.is_in(values.cast(pa.large_string()), self._values).to_numpy(zero_copy_only=False)
        hit[rows[same]] = True
        self.found.update(pc.unique(values.filter(pa.array(same))).to_pylist())


def described(table: pa.Table, rows: npt.NDArray[np.int64], split: str) -> list[Removed]:
    """What is to be known of these rows of a document table."""
    found = []
    for row in table.take(pa.array(rows)).to_pylist():
        kinds = {"marker": row["tokens"]}
        for span in row["spans"]:
            kinds["marker"] -= span["length"]
            kinds[span["modality"]] = kinds.get(span["modality"], 0) + span["length"]
        media = [span for span in row["spans"] if span["modality"] != "text"]
        items = tuple((span["modality"], span["item_hash"]) for span in media if span["codebooks"])
        names = row["source"], row["locator"], row["id"]
        found.append(Removed(row["unit"], split, *names, row["tokens"], kinds, items, len(media) - len(items)))
    return found
