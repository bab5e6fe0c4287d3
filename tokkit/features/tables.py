"""The two tables of a feature shard, and what writes such tables with the same bytes however their rows arrive.

``NAME.documents.parquet`` has a row for each document, ``NAME.parquet`` a row for each media item, in the documents' order: the
index into ``NAME.bin``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP = 8192

_STRETCH = pa.struct([pa.field("start", pa.int64(), nullable=False), pa.field("length", pa.int64(), nullable=False)])
_TILE = pa.struct([pa.field(name, pa.int32(), nullable=False) for name in ("first", "rows", "columns")])

DOCUMENTS = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("locator", pa.string(), nullable=False),
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("hash", pa.string(), nullable=False),
        pa.field("metadata", pa.string()),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("given", pa.list_(pa.field("item", _STRETCH, nullable=False)), nullable=False),
        pa.field("items", pa.int32(), nullable=False),
        pa.field("features", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ],
    metadata={"tokkit": "feature-documents", "version": "1"},
)

ITEMS = pa.schema(
    [
        pa.field("document", pa.int64(), nullable=False),
        pa.field("item", pa.int32(), nullable=False),
        pa.field("modality", pa.string(), nullable=False),
        pa.field("hash", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("grid", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        pa.field("tiles", pa.list_(pa.field("item", _TILE, nullable=False)), nullable=False),
        pa.field("newlines", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        pa.field("thw", pa.list_(pa.field("item", pa.int32(), nullable=False))),
        pa.field("valid", pa.int32()),
        pa.field("extra", pa.string()),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("dim", pa.int32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("scale", pa.int64()),
        pa.field("pooled", pa.int64()),
        pa.field("pooled_dim", pa.int32(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("error", pa.float32(), nullable=False),
    ],
    metadata={"tokkit": "feature-items", "version": "1"},
)


def table_of(schema: pa.Schema, rows: Sequence[Mapping[str, object]]) -> pa.Table:
    """Rows as a table; lone surrogates in texts are written as escapes, since Parquet text is UTF-8."""
    arrays = []
    for field in schema:
        values = [row[field.name] for row in rows]
        if field.type == pa.string():
            values = [_utf8(value) if isinstance(value, str) else value for value in values]
        arrays.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(arrays, schema=schema)


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class TableWriter:
    """Writes a table in row groups of :data:`ROW_GROUP` rows each, the last one smaller."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._schema, self._waiting = schema, schema.empty_table()
        self._writer = pq.ParquetWriter(path, schema, compression="zstd", store_schema=True, write_statistics=True)

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting = pa.concat_tables([self._waiting, table])
        if self._waiting.num_rows >= ROW_GROUP:
            self._flush(self._waiting.num_rows // ROW_GROUP * ROW_GROUP)

    def _flush(self, rows: int) -> None:
        self._waiting = self._waiting.combine_chunks()
        self._writer.write_table(self._waiting.slice(0, rows), row_group_size=ROW_GROUP)
        self._waiting = self._waiting.slice(rows)

    def close(self) -> None:
        """Write what is left."""
        if self._waiting.num_rows:
            self._flush(self._waiting.num_rows)
        self._writer.close()

    def abandon(self) -> None:
        """Close without the rest."""
        self._writer.close()
