"""Parquet of text: one document a row, as most text corpora are published.

The text is the first string column of ``text``, ``content`` and ``raw_content``; ``id`` is the id, all other columns are
metadata. Schemas with binary columns are left alone: what their rows mean is not for this format to guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Unit
from tokkit.sources.parquet import ParquetSource, RowReader, has_binary, other_fields
from tokkit.sources.untrusted import printable

TEXT_COLUMNS = ("text", "content", "raw_content")


class TextParquetSource(ParquetSource):
    """Text documents, one a row."""

    format: ClassVar[str] = "text_parquet"

    def plan(self, schema: pa.Schema) -> RowReader:
        """Rows of this schema as text."""
        column = text_column(schema)
        if column is None:
            names = ", ".join(schema.names)
            raise ItemError("columns-missing", f"no string column {', '.join(TEXT_COLUMNS)}; there are: {names}")
        return _TextRows(column, [field.name for field in schema if not has_binary(field.type)])


def text_column(schema: pa.Schema) -> str | None:
    """The column that holds the text, if there is one."""
    return next((name for name in TEXT_COLUMNS if name in schema.names and _is_string(schema.field(name).type)), None)


def is_text(schema: pa.Schema) -> bool:
    """True for a schema with a text column and nothing binary."""
    return text_column(schema) is not None and not any(has_binary(field.type) for field in schema)


def _is_string(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


class _TextRows(RowReader):
    pair = False

    def __init__(self, column: str, columns: list[str]) -> None:
        self.columns = columns
        self._column = column
        self._used = frozenset((column,))

    def document(self, unit: Unit, locator: str, row: Mapping[str, object]) -> Document:
        text, given = row[self._column], row.get("id")
        if not isinstance(text, str):
            raise ItemError("text-not-a-string", f"the column {self._column!r} is null")
        if not text:
            raise ItemError("empty-document", f"the column {self._column!r} is empty")
        identifier = printable(str(given)) if isinstance(given, str | int) and given != "" else locator
        return Document(identifier, unit.source, locator, (Text(text),), metadata=other_fields(row, self._used))

    def count_items(self, parquet: pq.ParquetFile, group: int, alive: Alive) -> dict[str, int] | None:
        """There are none."""
        return {}
