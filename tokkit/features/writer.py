"""Writing a feature shard: ``NAME.bin``, ``NAME.parquet``, ``NAME.tokens.bin`` and ``NAME.documents.parquet``.

* ``.bin``: the features of each item, ``[length, dim]`` little endian, every item at a multiple of :data:`ALIGNMENT` bytes;
  behind them the scales of an int8 item (float32 ``[length]``) and the pooled embedding, where there are any.
* ``.tokens.bin``: the text ids of the documents, int32 little endian, one document after another.
* the tables: :mod:`tokkit.features.tables`.

A work unit's payload and a finished shard are of the same form; putting payloads together copies their bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokkit.failpoints import failpoint
from tokkit.features.base import ItemFeatures
from tokkit.features.precision import DTYPES, Stored, StoredDtype, store
from tokkit.features.tables import DOCUMENTS, ITEMS, TableWriter, table_of
from tokkit.shards.manifest import ShardFile
from tokkit.storage import attempt_name, fsync, sha256_file

ALIGNMENT = 64
SUFFIXES = ("bin", "parquet", "tokens.bin", "documents.parquet")
TOKEN_DTYPE = np.dtype("<i4")
Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Item:
    """A media item of a document, encoded.

    Attributes:
        number: which of the document's media items it is, counted from 0 as the source has them.
        position: text tokens of the document that stand before it.
        stored: its features; None where the item is missing and only its place is kept.
        pooled: its pooled embedding, in the stored form of a single token of fp16 or bf16.
        width, height: of the picture as it came; of a clip its samples, and 1.
    """

    number: int
    modality: str
    hash: str
    position: int
    stored: Stored | None = None
    dtype: StoredDtype = "fp16"
    features: ItemFeatures | None = None
    pooled: Stored | None = None
    width: int = 0
    height: int = 0

    @property
    def length(self) -> int:
        """Tokens."""
        return 0 if self.stored is None else len(self.stored.values)


def item_of(features: ItemFeatures, dtype: StoredDtype, modality: str, width: int = 0, height: int = 0) -> Item:
    """An item from what the encoder gave; its number, hash and position are still to be filled in.

    Raises:
        ItemError: the features cannot be stored.
    """
    pooled = None
    if features.pooled is not None:
        pooled = store(features.pooled.reshape(1, -1), "fp16" if dtype == "int8" else dtype)
    stored = store(features.features, dtype)
    return Item(0, modality, "", 0, stored, dtype, features, pooled, width, height)


@dataclass(frozen=True, eq=False)
class DocumentEntry:
    """A document: what the table says of it (the columns up to ``metadata``), its text ids, and its items in their order.

    Attributes:
        given: stretches (start, length) of ``ids`` that a trainer is not to learn.
    """

    row: dict[str, object]
    ids: Ids
    items: Sequence[Item]
    given: Sequence[tuple[int, int]] = ()


class _Stream:
    """A file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("xb")
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        """Append; returns where it begins."""
        begin = self.size
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)
        return begin

    def align(self) -> None:
        """Fill up to the next multiple of the alignment."""
        if rest := -self.size % ALIGNMENT:
            self.write(bytes(rest))


def _bytes(array: npt.NDArray[np.generic], dtype: np.dtype) -> memoryview:
    """An array's bytes, little endian."""
    return np.ascontiguousarray(array, dtype=dtype).reshape(-1).view(np.uint8).data


class FeatureWriter:
    """Writes one shard's files under attempt-unique names; they get their names only in :meth:`finish`.

    Used as a context manager: an exception, or leaving without ``finish``, removes what was written.

    Attributes:
        documents, tokens, features, bytes: written so far: documents, text ids, feature tokens, bytes of ``.bin``.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        base = directory / "shard"
        self._temporary = {suffix: attempt_name(base.with_name(f"shard.{suffix}")) for suffix in SUFFIXES}
        self._streams: list[_Stream] = []
        self._tables: list[TableWriter] = []
        try:
            self._bin = self._opened("bin")
            self._ids = self._opened("tokens.bin")
            for suffix, schema in (("parquet", ITEMS), ("documents.parquet", DOCUMENTS)):
                self._tables.append(TableWriter(self._temporary[suffix], schema))
        except OSError:
            self.__exit__(None, None, None)
            raise
        self.documents = self.tokens = self.features = 0

    def _opened(self, suffix: str) -> _Stream:
        self._streams.append(_Stream(self._temporary[suffix]))
        return self._streams[-1]

    @property
    def bytes(self) -> int:
        return self._bin.size

    def add(self, documents: Sequence[DocumentEntry]) -> None:
        """Append documents with their items."""
        rows, items = [], []
        for document in documents:
            begin, features = self._bin.size, 0
            for item in document.items:
                items.append({"document": self.documents, **self._item(item)})
                features += item.length
            given = [{"start": start, "length": length} for start, length in document.given]
            rows.append(
                {
                    **document.row,
                    "tokens": len(document.ids),
                    "given": given,
                    "items": len(document.items),
                    "features": features,
                    "bytes": self._bin.size - begin,
                }
            )
            self._ids.write(_bytes(document.ids, TOKEN_DTYPE))
            self.documents, self.tokens = self.documents + 1, self.tokens + len(document.ids)
            self.features += features
        self._tables[0].write(table_of(ITEMS, items))
        self._tables[1].write(table_of(DOCUMENTS, rows))

    def _item(self, item: Item) -> dict[str, object]:
        """Write an item's bytes; its row."""
        begin, scale, pooled, pooled_dim, error = self._bin.size, None, None, 0, 0.0
        found, dim = item.features, 0
        if item.stored is not None:
            values = item.stored.values
            dim, error = values.shape[1], item.stored.error
            self._bin.write(_bytes(values, DTYPES[item.dtype]))
            self._bin.align()
            if item.stored.scales is not None:
                scale = self._bin.write(_bytes(item.stored.scales, np.dtype("<f4")))
                self._bin.align()
        if item.pooled is not None:
            pooled_dim = item.pooled.values.shape[1]
            pooled = self._bin.write(_bytes(item.pooled.values, item.pooled.values.dtype))
            self._bin.align()
        return {
            "item": item.number,
            "modality": item.modality,
            "hash": item.hash,
            "position": item.position,
            "width": item.width,
            "height": item.height,
            "grid": None if found is None else found.grid,
            "tiles": [dict(zip(("first", "rows", "columns"), tile, strict=True)) for tile in (found.tiles if found else ())],
            "newlines": None if found is None else found.newlines,
            "thw": None if found is None else found.thw,
            "valid": None if found is None else found.valid,
            "extra": json.dumps(dict(found.extra), sort_keys=True) if found is not None and found.extra else None,
            "offset": begin,
            "length": item.length,
            "dim": dim,
            "dtype": item.dtype,
            "scale": scale,
            "pooled": pooled,
            "pooled_dim": pooled_dim,
            "bytes": self._bin.size - begin,
            "error": error,
        }

    def extend(self, data: npt.NDArray[np.uint8], ids: Ids, items: pa.Table, documents: pa.Table, first: int) -> None:
        """Append documents of another shard: their bytes of ``.bin``, their ids, and their rows.

        Args:
            data: begins with the first of these items.
            items: their ``document`` counts from the other shard's first.
            first: number there of the first of ``documents``.
        """
        here = self._bin.size
        there = items.column("offset")[0].as_py() if items.num_rows else 0
        moves = {"document": self.documents - first} | dict.fromkeys(("offset", "scale", "pooled"), here - there)
        for name, moved in moves.items():
            column = pc.add(items.column(name), pa.scalar(moved, pa.int64()))
            items = items.set_column(ITEMS.get_field_index(name), ITEMS.field(name), column)
        self._bin.write(data.data)
        self._ids.write(_bytes(ids, TOKEN_DTYPE))
        self._tables[0].write(items.cast(ITEMS))
        self._tables[1].write(documents.cast(DOCUMENTS))
        self.documents += documents.num_rows
        self.tokens += len(ids)
        self.features += pc.sum(documents.column("features")).as_py() or 0

    def finish(self, name: str | None = None, *, prefix: str = "") -> dict[str, ShardFile]:
        """Close and fsync the files and give them their names; see :meth:`tokkit.shards.native.ShardWriter.finish`."""
        for table in self._tables:
            table.close()
        for stream in self._streams:
            stream.file.close()
        digests = {"bin": self._bin.digest.hexdigest(), "tokens.bin": self._ids.digest.hexdigest()}
        files = {}
        for suffix in SUFFIXES:
            temporary = self._temporary[suffix]
            fsync(temporary)
            digest = digests[suffix] if suffix in digests else sha256_file(temporary)
            target = self._directory / f"{name or prefix + digest[:16]}.{suffix}"
            files[suffix] = ShardFile(name=target.name, bytes=temporary.stat().st_size, sha256=digest)
            failpoint("before-payload-rename")
            temporary.replace(target)
        fsync(self._directory)
        return files

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # On a full disk closing fails as writing did; what was written must go all the same.
        for close in (*(stream.file.close for stream in self._streams), *(table.abandon for table in self._tables)):
            with suppress(OSError, ValueError, pa.ArrowException):
                close()
        for temporary in self._temporary.values():
            temporary.unlink(missing_ok=True)
