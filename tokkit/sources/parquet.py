"""What the parquet formats share: units of row groups, batch-wise reading in bounded memory, and damage told from failure.

A file whose footer cannot be read is one unit, whose reading yields the damage. A row group that breaks while it is read
gives up its remaining rows as damage, and reading goes on with the next.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.documents import Document
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, Source, Unit, UnitReader, silent
from tokkit.sources.opening import for_arrow, located
from tokkit.sources.parquet_footer import GroupPlace, group_places
from tokkit.sources.untrusted import failed_document, metadata_of, not_utf8_message, printable

BATCH_ROWS = 16
_AT_ONCE = 16 << 20  # bytes of a batch whose rows are made all at once
_NO_ROW = (ValueError, OverflowError, pa.ArrowException)  # what a row raises that Python cannot hold

# What Arrow raises over a file: an OSError with an errno is the disk's fault, all else the file's (a name that is not UTF-8).
UNREADABLE = (pa.ArrowException, OSError, UnicodeDecodeError)

Row = dict[str, object]


def is_damage(error: Exception) -> bool:
    """True where the file's content is at fault, False where the disk or the system is (those errors carry an errno)."""
    return not isinstance(error, OSError) or error.errno is None


def tidy_message(error: Exception, path: str, name: str) -> str:
    """The first line of an Arrow error, with the file's name in place of where it lies on this machine."""
    first, *_ = str(error).splitlines() or [type(error).__name__]
    return first.replace(path, name)


def rows_of(batch: pa.RecordBatch) -> Iterator[Row | ItemError]:
    """The rows of a batch, one by one; in place of a row that Python cannot hold, the error that says why."""
    batch = _without_nanoseconds(batch)
    if batch.nbytes <= _AT_ONCE:
        try:
            rows: list[Row] = batch.to_pylist()
        except _NO_ROW:
            pass  # which one it is, is told below
        else:
            yield from rows
            return
    for place in range(batch.num_rows):
        try:
            yield batch.slice(place, 1).to_pylist()[0]
        except UnicodeDecodeError as error:
            yield ItemError("text-not-utf8", not_utf8_message(error))
        except _NO_ROW as error:
            yield ItemError("row-unreadable", str(error))


def _without_nanoseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Python's dates end at microseconds: finer ones become text."""
    for place, field in enumerate(batch.schema):
        if pa.types.is_temporal(field.type) and getattr(field.type, "unit", "") == "ns":
            batch = batch.set_column(place, field.name, pc.cast(batch.column(place), pa.string()))
    return batch


def has_binary(kind: pa.DataType) -> bool:
    """True for binary columns and for nested ones with binary inside: metadata cannot hold them."""
    if pa.types.is_nested(kind):
        return any(has_binary(kind.field(place).type) for place in range(kind.num_fields))
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)


def places_of(path: str, groups: int, size: int) -> list[GroupPlace]:
    """Where the row groups lie; where that cannot be told, each may be anywhere in the file."""
    try:
        found = group_places(path)
    except ValueError:
        found = []
    return found if len(found) == groups else [GroupPlace(0, size, size // groups) for _ in range(groups)]


def names_problem(schema: pa.Schema) -> str:
    """Why columns cannot be told apart by their names; empty where they can."""
    repeated = [name for name, count in Counter(schema.names).items() if count > 1]
    return f"several columns are called {', '.join(repeated)}"[:500] if repeated else ""


def light_leaves(parquet: pq.ParquetFile, name: str) -> list[str]:
    """Paths of what a column of media holds besides the media's bytes, its texts above all; of the bytes where it has no more.

    They are read where the column is only counted: a text that is not UTF-8 makes its row a failure.
    """
    schema = parquet.schema
    leaves = [schema.column(place) for place in range(len(schema))]
    mine = [leaf for leaf in leaves if leaf.path == name or leaf.path.startswith(f"{name}.")]
    light = [leaf.path for leaf in mine if "BYTE_ARRAY" not in leaf.physical_type or leaf.logical_type.type == "STRING"]
    return light or [leaf.path for leaf in mine[:1]]


class RowReader(ABC):
    """Makes documents of the rows of one schema. Formats subclass it; an instance serves one unit.

    Attributes:
        columns: the columns to read.
        pair: what failed documents say of themselves (see :class:`~tokkit.documents.Document`).
    """

    columns: list[str]
    pair: bool

    @abstractmethod
    def document(self, unit: Unit, locator: str, row: Mapping[str, object]) -> Document:
        """The document of a row; raises ItemError where the row is none."""

    @abstractmethod
    def count_items(self, parquet: pq.ParquetFile, group: int, alive: Alive) -> dict[str, int] | None:
        """Media items in a row group, by modality, counted by column; None where that cannot be told."""

    def ends(self, unit: Unit) -> Iterator[ContainerDamage]:
        """Damage of companions that this unit answers for, after its documents."""
        yield from ()

    def close(self) -> None:  # noqa: B027 - most readers hold no files
        """Close what the reader opened."""


class ParquetSource(Source):
    """A source whose files are parquet and whose documents are rows; locators are ``FILE:ROW``."""

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of row groups of about ``unit_bytes`` compressed bytes."""
        for file in self.files:
            try:
                with for_arrow(file.path) as given:
                    metadata = pq.read_metadata(given)
            except UNREADABLE as error:
                if not is_damage(error):
                    raise
                yield Unit(self.name, file.name, file.path, 0, 1, file.size)
                continue
            start, size = 0, 0
            groups = metadata.num_row_groups
            for group, place in enumerate(places_of(file.path, groups, file.size)):
                size += place.bytes
                if size >= unit_bytes or group == groups - 1:
                    yield Unit(self.name, file.name, file.path, start, group + 1, size)
                    start, size = group + 1, 0
            if groups == 0:
                yield Unit(self.name, file.name, file.path, 0, 0, file.size)

    @abstractmethod
    def plan(self, schema: pa.Schema) -> RowReader:
        """How to make documents of rows of this schema.

        Raises:
            ItemError: ``columns-missing``, where the schema is not of this format.
        """

    def row_reader(self, schema: pa.Schema) -> RowReader:
        """As :meth:`plan`; raises ItemError ``columns-ambiguous`` as well."""
        problem = names_problem(schema)
        if problem:
            raise ItemError("columns-ambiguous", printable(problem))
        return self.plan(schema)

    def read(self, unit: Unit) -> UnitReader:
        """One document a row."""
        return _ParquetReader(self, unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Rows by the footer; media items by their columns' own validity, where the format can tell."""
        try:
            with for_arrow(unit.path) as given, pq.ParquetFile(given) as parquet:
                reader = self.row_reader(parquet.schema_arrow)
                metadata = parquet.metadata
                groups = range(unit.start, min(unit.stop, metadata.num_row_groups))
                documents = sum(metadata.row_group(group).num_rows for group in groups)
                return Census(documents, _items(reader, parquet, groups, alive))
        except (*UNREADABLE, ItemError) as error:
            if not is_damage(error):
                raise
            return Census(None)


def _items(reader: RowReader, parquet: pq.ParquetFile, groups: Iterable[int], alive: Alive) -> dict[str, int]:
    """Media items in the row groups; empty where those of one cannot be told."""
    items: dict[str, int] = {}
    for group in groups:
        alive()
        counted = reader.count_items(parquet, group, alive)
        if counted is None:
            return {}
        for modality, count in counted.items():
            items[modality] = items.get(modality, 0) + count
    return items


class _ParquetReader(UnitReader):
    def __init__(self, source: ParquetSource, unit: Unit) -> None:
        self._source = source
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        size = located(unit.path).stat().st_size
        with for_arrow(unit.path) as given:
            yield from self._documents(given, size)

    def _documents(self, given: str | BinaryIO, size: int) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        try:
            parquet = pq.ParquetFile(given, buffer_size=1 << 20, pre_buffer=False)
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            message = tidy_message(error, unit.path, unit.file)
            self.consumed = 1.0
            yield ContainerDamage(unit.file, 0, size, "parquet-unreadable", message)
            return
        with parquet:
            try:
                reader = self._source.row_reader(parquet.schema_arrow)
            except ItemError as error:
                mine = places_of(unit.path, parquet.metadata.num_row_groups, size)[unit.start : unit.stop]
                start, stop = (min(p.start for p in mine), max(p.stop for p in mine)) if mine else (0, size)
                self.consumed = 1.0
                yield ContainerDamage(unit.file, start, stop, error.reason, error.message)
                return
            with contextlib.closing(reader):
                yield from self._rows(parquet, reader, size)
                self.consumed = 1.0
                yield from reader.ends(unit)

    def _rows(self, parquet: pq.ParquetFile, reader: RowReader, size: int) -> Iterator[Document | ContainerDamage]:
        unit, metadata = self._unit, parquet.metadata
        counts = [max(0, metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
        total = max(1, sum(counts[unit.start : unit.stop]))
        done = 0
        for group in range(unit.start, min(unit.stop, len(counts))):
            first = sum(counts[:group])
            row, end = first, first + counts[group]
            problem = ""
            try:
                for batch in parquet.iter_batches(BATCH_ROWS, [group], reader.columns, use_threads=False):
                    if batch.num_rows > end - row:
                        problem = "more rows follow than are stated"
                    for fields in rows_of(batch.slice(0, end - row)):
                        document = self._document(reader, f"{unit.file}:{row}", fields)
                        row += 1
                        done += 1
                        self.consumed = done / total
                        yield document
            except UNREADABLE as error:
                if not is_damage(error):
                    raise
                problem = tidy_message(error, unit.path, unit.file)
            if row < end or problem:
                place = places_of(unit.path, len(counts), size)[group]
                message = f"rows {row} to {end - 1} cannot be read: " if row < end else f"behind row {end - 1}: "
                message += problem or "fewer rows are there than are stated"
                yield ContainerDamage(unit.file, place.start, place.stop, "parquet-unreadable", message)
                done += end - row

    def _document(self, reader: RowReader, locator: str, fields: Row | ItemError) -> Document:
        unit = self._unit
        try:
            if isinstance(fields, ItemError):
                raise fields
            return reader.document(unit, locator, fields)
        except ItemError as error:
            return failed_document(unit.source, locator, error.reason, error.message, pair=reader.pair)


def other_fields(row: Mapping[str, object], used: frozenset[str]) -> dict[str, object]:
    """The columns that the document itself does not use, as its metadata."""
    return metadata_of({key: value for key, value in row.items() if key not in used})
