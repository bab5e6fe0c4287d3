"""Tables of text, ``.csv`` and ``.tsv``: one document a row, read as the :mod:`csv` module does (its ``excel`` dialects).

The first row names the columns; the text is ``text``, else ``content``, else ``caption``, and all other columns are metadata. A
quoted field may hold line ends, so a file cannot be cut and is one unit; the locator is ``FILE@OFFSET``, the row's first byte.
A row that cannot be read is rejected by itself. Where a quote is never closed, everything behind it would be one field: that
is damage, from the row's first byte to the end of the file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO, ClassVar

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, Source, Unit, UnitReader, silent
from tokkit.sources.opening import located, text_lines
from tokkit.sources.untrusted import MAX_ITEM_BYTES, failed_document, metadata_of, not_utf8_message, printable

TEXT_COLUMNS = ("text", "content", "caption")
_BOM = b"\xef\xbb\xbf"
_ENDLESS = ("unexpected end of data", "field larger than field limit")


class CsvSource(Source):
    """Text documents, one a row."""

    format: ClassVar[str] = "csv"

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """One unit a file."""
        for file in self.files:
            yield Unit(self.name, file.name, file.path, 0, file.size, file.size)

    def read(self, unit: Unit) -> UnitReader:
        """A document a row; rows without fields (blank lines) are none."""
        return _CsvReader(unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the rows of the file, read as text; those that break count as one each."""
        _allow_long_fields()
        with text_lines(unit.path, errors="surrogateescape", newline="\n") as lines:
            bounded = iter(lambda: _not_too_long(lines.readline(MAX_ITEM_BYTES + 1)), "")
            rows = csv.reader(bounded, dialect_of(unit.file), strict=True)
            try:
                heading = next(rows, None)
            except csv.Error:
                return Census(None)
            if heading is None or text_column(heading) is None:
                return Census(None)
            count = 0
            while True:
                alive()
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    if str(error).startswith(_ENDLESS):
                        return Census(None)
                    row = [""]
                if row is None:
                    return Census(count, {})
                count += bool(row)


def dialect_of(name: str) -> str:
    """The :mod:`csv` module's dialect of a file."""
    return "excel-tab" if name.lower().endswith(".tsv") else "excel"


def text_column(heading: list[str]) -> str | None:
    """The column that holds the text; None where there is none, or where it comes twice."""
    name = next((name for name in TEXT_COLUMNS if name in heading), None)
    return name if name is not None and heading.count(name) == 1 else None


def heading_of(head: bytes, name: str) -> list[str]:
    """The names of the columns in the begin of a file; none where it has no heading that could be read."""
    try:
        text = head.removeprefix(_BOM).decode("utf-8", "replace")
        return next(csv.reader(io.StringIO(text, newline=""), dialect_of(name), strict=True), [])
    except csv.Error:
        return []


def _not_too_long(line: str) -> str:
    if len(line) > MAX_ITEM_BYTES:
        raise csv.Error(f"field larger than field limit: a line of more than {MAX_ITEM_BYTES} bytes")
    return line


def _allow_long_fields() -> None:
    csv.field_size_limit(MAX_ITEM_BYTES)  # of the process; the module's own limit of 128 KiB is less than many documents have


class _CsvReader(UnitReader):
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        _allow_long_fields()
        size = located(unit.path).stat().st_size
        with located(unit.path).open("rb") as file:
            lines = _Lines(file)
            rows = csv.reader(lines, dialect_of(unit.file), strict=True)
            try:
                heading = next(rows, [])
            except csv.Error as error:
                self.consumed = 1.0
                yield ContainerDamage(unit.file, 0, size, "csv-heading-unreadable", printable(str(error)))
                return
            column = text_column(heading)
            if column is None:
                self.consumed = 1.0
                message = f"no one column {', '.join(TEXT_COLUMNS)}; there are: {', '.join(heading)[:200]}"
                yield ContainerDamage(unit.file, 0, size, "columns-missing", printable(message))
                return
            while True:
                begin = lines.place
                row: list[str] | ItemError | None
                try:
                    row = next(rows, None)
                except csv.Error as error:
                    if str(error).startswith(_ENDLESS):
                        self.consumed = 1.0
                        message = f"a quote is not closed, or a field has more than {MAX_ITEM_BYTES} characters ({error})"
                        yield ContainerDamage(unit.file, begin, size, "csv-quote-unclosed", message)
                        return
                    row = ItemError("csv-invalid", str(error))
                if row is None:
                    break
                self.consumed = min(1.0, lines.place / max(1, size))
                if row:
                    yield _document(unit, begin, heading, column, row)
        self.consumed = 1.0


class _Lines:
    """The lines of a file as text, bytes that are not UTF-8 as lone surrogates; ``place`` is the next line's first byte."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.place = 0
        if file.read(len(_BOM)) == _BOM:
            self.place = len(_BOM)
        else:
            file.seek(0)

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MAX_ITEM_BYTES + 1)
        if not line:
            raise StopIteration
        if len(line) > MAX_ITEM_BYTES:
            raise csv.Error(f"field larger than field limit: a line of more than {MAX_ITEM_BYTES} bytes")
        self.place += len(line)
        return line.decode("utf-8", "surrogateescape")


def _document(unit: Unit, begin: int, heading: list[str], column: str, row: list[str] | ItemError) -> Document:
    locator = f"{unit.file}@{begin}"
    try:
        if isinstance(row, ItemError):
            raise row
        if len(row) != len(heading):
            raise ItemError("csv-field-count", f"{len(row)} fields, where the heading has {len(heading)}")
        fields = dict(zip(heading, row, strict=True))
        for name, value in fields.items():
            _check(name, value)
        text = fields.pop(column)
        if not text:
            raise ItemError("empty-document", f"the column {column!r} is empty")
    except ItemError as error:
        return failed_document(unit.source, locator, error.reason, error.message)
    return Document(fields.get("id") or locator, unit.source, locator, (Text(text),), metadata=metadata_of(fields))


def _check(name: str, value: str) -> None:
    if "\0" in value:
        raise ItemError("csv-nul", f"a NUL in the column {printable(name)!r}")
    if not value.isascii():
        try:
            value.encode("utf-8", "surrogateescape").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ItemError("text-not-utf8", f"the column {printable(name)!r}: {not_utf8_message(error)}") from None
