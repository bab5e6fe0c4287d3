"""Parquet as img2dataset writes it: the pictures in a binary column, one pair a row, and rows that were never downloaded.

A row has ``key``, ``status`` and the picture in a column that is called as its file would end (``jpg``, ``png``, ``webp``).
The text is ``txt``, else ``caption``; all other columns that are not binary are metadata, as a tar's ``.json`` is.
A row without a picture counts as what its ``status`` says: failed upstream, with that as the reason, as where it stands in the
table beside a tar (:mod:`tokkit.sources.sidecar`). One that claims success all the same is rejected.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.documents import Document, Failure, Image, Outcome, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Unit
from tokkit.sources.parquet import ParquetSource, RowReader, has_binary
from tokkit.sources.untrusted import MAX_ITEM_BYTES, failed_document, metadata_of, printable, slug

NEEDED = ("key", "status")
TEXT_COLUMNS = ("txt", "caption")
SUCCESS = "success"
_NAMES = ("jpg", "jpeg", "png", "webp", "avif", "image", "bytes")


class Img2datasetSource(ParquetSource):
    """Pairs of a picture and its caption."""

    format: ClassVar[str] = "img2dataset"

    def plan(self, schema: pa.Schema) -> RowReader:
        """Rows of this schema as pairs."""
        column, names = picture_column(schema), ", ".join(schema.names)
        if column is None or not set(NEEDED) <= set(schema.names):
            raise ItemError("columns-missing", f"no columns key and status, or no binary one; there are: {names}")
        return _Rows(schema, column)


def picture_column(schema: pa.Schema) -> str | None:
    """The column that holds the pictures' bytes."""
    wanted = [name for name in _NAMES if name in schema.names]
    found = [*wanted, *(name for name in schema.names if name not in wanted)]
    return next(
        (name for name in found if has_binary(schema.field(name).type) and not pa.types.is_nested(schema.field(name).type)),
        None,
    )


def is_img2dataset(schema: pa.Schema) -> bool:
    """Whether a table has what img2dataset writes of every row, and the pictures themselves."""
    return set(NEEDED) <= set(schema.names) and picture_column(schema) is not None


class _Rows(RowReader):
    pair = True

    def __init__(self, schema: pa.Schema, column: str) -> None:
        self._column = column
        self._others = [field.name for field in schema if not has_binary(field.type)]
        self.columns = [name for name in schema.names if name == column or name in self._others]

    def document(self, unit: Unit, locator: str, row: Mapping[str, object]) -> Document:
        data, key, status = row[self._column], row["key"], row["status"]
        identifier = printable(str(key)) if isinstance(key, str | int) and key != "" else locator
        metadata = metadata_of({name: row[name] for name in self._others if name != "txt"})
        if not isinstance(data, bytes):
            outcome, reason = Outcome.FAILED_UPSTREAM, slug(str(status) if status is not None else "no-status")
            message = str(metadata.get("error_message") or "")
            if status == SUCCESS:
                outcome, reason = Outcome.REJECTED, "missing-from-table"
                message = "downloaded according to its row, which has no picture"
            return failed_document(
                unit.source, locator, reason, message, outcome=outcome, id=identifier, pair=True, metadata=metadata
            )
        image = Image(data, self._column)
        if len(data) > MAX_ITEM_BYTES:
            image = Image(None, self._column, Failure(Outcome.REJECTED, "image-too-large", f"{len(data)} bytes"))
        text = next((t for name in TEXT_COLUMNS if isinstance(t := row.get(name), str) and t), "")
        segments: tuple[Image | Text, ...] = (image, Text(text)) if text else (image,)
        return Document(identifier, unit.source, locator, segments, pair=True, metadata=metadata)

    def count_items(self, parquet: pq.ParquetFile, group: int, alive: Alive) -> dict[str, int] | None:
        """Pictures that are not null; None where some row's text cannot be read, for then the row is no document."""
        try:
            parquet.read_row_group(group, columns=self._others, use_threads=False).validate(full=True)
        except pa.ArrowInvalid:
            return None
        count = 0
        for batch in parquet.iter_batches(64, [group], [self._column], use_threads=False):
            alive()
            count += batch.num_rows - batch.column(0).null_count
        return {"image": count} if count else {}
