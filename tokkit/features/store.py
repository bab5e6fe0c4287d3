"""Reading a feature cache: any item's features in one look into a memory map.

>>> cache = open_cache("features")
>>> cache.features(7)          # the stored values of item 7, [tokens, dim]: a view of the file
>>> cache.dense(7)             # the same as float32
>>> cache.document(3).items    # the items of document 3, with the places at which they stand in its text

Items and documents are numbered through all shards of a split, in the order of the documents. What is needed to find an item,
40 bytes each, is in memory; the rest of the index is read where it is asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.errors import DataError
from tokkit.features.manifest import CacheManifest, load_cache_manifest
from tokkit.features.precision import DTYPES, Floats, from_bfloat16, restore
from tokkit.features.tables import ROW_GROUP
from tokkit.features.writer import TOKEN_DTYPE
from tokkit.places import Place, parquet, read_part
from tokkit.sources.remote import RemotePath

FOLDER = "features"
_PLACES = ["document", "offset", "length", "scale", "pooled"]


@dataclass(frozen=True)
class ItemEntry:
    """What the index says of an item.

    Attributes:
        index: its number in the split; ``document`` is its document's, ``item`` which of that one's media items it is.
        position: text tokens of the document that stand before it.
        length: tokens; 0 where only its place is kept.
        width, height: of the picture as it came; of a clip its samples, and 1.
        grid, tiles, newlines, thw, valid, extra: see :class:`tokkit.features.base.ItemFeatures`.
        error: of the stored form, relative.
    """

    index: int
    document: int
    item: int
    modality: str
    hash: str
    position: int
    length: int
    width: int
    height: int
    grid: tuple[int, int] | None
    tiles: tuple[tuple[int, int, int], ...]
    newlines: tuple[int, ...] | None
    thw: tuple[int, int, int] | None
    valid: int | None
    extra: dict[str, int]
    error: float


@dataclass(frozen=True, eq=False)
class CachedDocument:
    """A document: its text ids int32 [n], the numbers of its items, and before how many ids each of them stands, int64 [m]."""

    index: int
    ids: npt.NDArray[np.int32]
    items: range
    positions: npt.NDArray[np.int64]


class FeatureCache:
    """All shards of one split of a finished feature cache.

    Attributes:
        directory, split, manifest: of the cache.
        dtype, dim: the stored form, and the dimension of a token's features.
        lengths: int64 [M], tokens of each item.
        document_of: int64 [M], the document of each item.
        fingerprint: SHA-256 over the shards' checksums.

    Args:
        place: where the shards lie, if not in the directory; of those in an object store only what is asked for is read.
    """

    def __init__(self, directory: Path, manifest: CacheManifest, split: str, place: Place | None = None) -> None:
        self.directory, self.manifest, self.split = directory, manifest, split
        self.dtype, self.dim = manifest.dtype, manifest.dim
        self._base: Place = (place or directory) / FOLDER / split
        self._shards = manifest.splits[split].shards
        columns = [self._columns(number) for number in range(len(self._shards))]
        counts = [len(column["offset"]) for column in columns]
        self._first_item = np.cumsum([0, *counts])
        self._first_document = np.cumsum([0, *(shard.documents for shard in self._shards)])
        for number, column in enumerate(columns):
            column["document"] = column["document"] + self._first_document[number]
        joined = {name: _joined([column[name] for column in columns]) for name in _PLACES}
        self.lengths, self.document_of = joined["length"], joined["document"]
        self._offset, self._scale, self._pooled = joined["offset"], joined["scale"], joined["pooled"]
        self._shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        digest = hashlib.sha256()
        for shard in self._shards:
            for file in shard.files.values():
                digest.update(file.sha256.encode("ascii"))
        self.fingerprint = digest.hexdigest()
        self._values, self._width = DTYPES[self.dtype], DTYPES[self.dtype].itemsize * self.dim
        self._group: tuple[int, int, pa.Table] | None = None

    def _columns(self, number: int) -> dict[str, npt.NDArray[np.int64]]:
        table = self._table(number, "parquet", _PLACES)
        return {name: pc.fill_null(table.column(name), -1).to_numpy().astype(np.int64) for name in _PLACES}

    def _table(self, number: int, suffix: str, columns: list[str] | None = None) -> pa.Table:
        with parquet(self._base / self._shards[number].files[suffix].name) as source:
            return pq.read_table(source, columns=columns)

    def __getstate__(self) -> dict[str, object]:
        gone = ("_maps", "_token_maps")
        return {key: value for key, value in self.__dict__.items() if key not in gone} | {"_group": None}

    def __len__(self) -> int:
        """Items."""
        return len(self.lengths)

    @property
    def num_documents(self) -> int:
        return int(self._first_document[-1])

    @cached_property
    def _maps(self) -> list[npt.NDArray[np.uint8]]:
        return [self._map(shard.files["bin"].name, shard.files["bin"].bytes, np.dtype("u1")) for shard in self._shards]

    @cached_property
    def _token_maps(self) -> list[npt.NDArray[np.int32]]:
        name = "tokens.bin"
        return [self._map(shard.files[name].name, shard.files[name].bytes, TOKEN_DTYPE) for shard in self._shards]

    def _map(self, name: str, size: int, dtype: np.dtype) -> npt.NDArray:
        path = self._base / name
        assert isinstance(path, Path)
        try:
            found = path.stat().st_size
            if found != size:
                raise DataError(f"{path} has {found:,} bytes, {size:,} were written: restore it from a copy")
            return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if size else np.zeros(0, dtype=dtype)
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None

    def _bytes(self, item: int, begin: int, size: int) -> npt.NDArray[np.uint8]:
        """Bytes of the file of features that an item is in."""
        shard = self._shard_of[item]
        if isinstance(self._base, RemotePath):
            data = read_part(self._base / self._shards[shard].files["bin"].name, begin, size)
            return np.frombuffer(data, np.uint8)
        return self._maps[shard][begin : begin + size]

    # ---- items

    def features(self, item: int) -> npt.NDArray[np.generic]:
        """The stored values of an item ``[tokens, dim]``: a read-only view of the file (bfloat16 as uint16)."""
        begin, length = self._offset[item], int(self.lengths[item])
        data = self._bytes(item, int(begin), length * self._width)
        return data.view(self._values).reshape(length, self.dim)

    def scales(self, item: int) -> Floats | None:
        """The scales float32 ``[tokens]`` of an int8 item; None of other forms."""
        begin = int(self._scale[item])
        if begin < 0:
            return None
        return self._bytes(item, begin, 4 * int(self.lengths[item])).view("<f4")

    def dense(self, item: int) -> Floats:
        """An item's features as float32 ``[tokens, dim]``."""
        scales = self.scales(item)
        return restore(self.features(item), self.dtype, np.zeros(0, np.float32) if scales is None else scales)

    def pooled(self, item: int) -> Floats | None:
        """The pooled embedding of an item as float32 ``[dim']``, where the cache has them."""
        begin, dim = int(self._pooled[item]), self.manifest.pooled_dim
        if begin < 0 or dim is None:
            return None
        data = self._bytes(item, begin, 2 * dim)
        return from_bfloat16(data.view("<u2")) if self.dtype == "bf16" else data.view("<f2").astype(np.float32)

    def entry(self, item: int) -> ItemEntry:
        """What the index says of an item."""
        if not 0 <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        shard = int(self._shard_of[item])
        group, row = divmod(item - int(self._first_item[shard]), ROW_GROUP)
        if self._group is None or self._group[:2] != (shard, group):
            path = self._base / self._shards[shard].files["parquet"].name
            with parquet(path) as source, pq.ParquetFile(source) as file:
                self._group = shard, group, file.read_row_group(group)
        return _entry(item, int(self.document_of[item]), self._group[2].slice(row, 1).to_pylist()[0])

    def entries(self) -> Iterator[ItemEntry]:
        """The index of all items, in order."""
        for item in range(len(self)):
            yield self.entry(item)

    # ---- documents

    @cached_property
    def _documents(self) -> dict[str, npt.NDArray[np.int64]]:
        """By document: where its ids and its items begin."""
        tables = [self._table(number, "documents.parquet", ["tokens", "items"]) for number in range(len(self._shards))]
        tokens = _joined([t.column("tokens").to_numpy() for t in tables])
        items = _joined([t.column("items").to_numpy().astype(np.int64) for t in tables])
        ends = np.cumsum(tokens)
        before = np.concatenate([[0], ends])[self._first_document]  # ids in the shards before
        shard = np.repeat(np.arange(len(self._shards)), np.diff(self._first_document))
        return {
            "tokens": tokens,
            "begin": ends - tokens - before[:-1][shard],
            "shard": shard,
            "items": items,
            "first_item": np.cumsum(items) - items,
        }

    @cached_property
    def positions(self) -> npt.NDArray[np.int64]:
        """int64 [M], of each item: text tokens of its document that stand before it."""
        return self.column("position").astype(np.int64)

    @cached_property
    def _newlines(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        return self._ragged("newlines")

    def newlines(self, item: int) -> npt.NDArray[np.int64]:
        """Before which of an item's features a learned newline goes, int64 [k]."""
        edges, values = self._newlines
        return values[edges[item] : edges[item + 1]]

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """int64 [M, 2], height and width of each picture as it came; of a clip 1, and its samples."""
        return np.stack([self.column("height"), self.column("width")], axis=1).astype(np.int64).reshape(-1, 2)

    @cached_property
    def thw(self) -> npt.NDArray[np.int64]:
        """int64 [M, 3], frames, rows and columns of patches; zeros where there are none."""
        edges, values = self._ragged("thw")
        found = np.zeros((len(self), 3), dtype=np.int64)
        found[np.diff(edges) == 3] = values.reshape(-1, 3)
        return found

    def _ragged(self, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """A column of lists: int64 [M + 1] where each item's begins, and the values of all."""
        counts, values = [np.zeros(1, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
        for table in self.item_tables([name]):
            column = table.column(name)
            counts.append(pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64))
            values.append(pc.list_flatten(column).to_numpy().astype(np.int64))
        return np.cumsum(np.concatenate(counts)), np.concatenate(values)

    def column(self, name: str) -> npt.NDArray:
        """A column of plain numbers of the items' index, for all items."""
        tables = [self._table(number, "parquet", [name]) for number in range(len(self._shards))]
        return _joined([t.column(name).to_numpy() for t in tables])

    @property
    def document_tokens(self) -> npt.NDArray[np.int64]:
        """int64 [D], text tokens of each document."""
        return self._documents["tokens"]

    @property
    def document_items(self) -> npt.NDArray[np.int64]:
        """int64 [D], items of each document."""
        return self._documents["items"]

    def items_of(self, document: int) -> range:
        """The numbers of a document's items."""
        first = int(self._documents["first_item"][document])
        return range(first, first + int(self._documents["items"][document]))

    def ids(self, document: int) -> npt.NDArray[np.int32]:
        """A document's text ids, int32: a read-only view of the file."""
        found = self._documents
        begin, count, shard = (int(found[name][document]) for name in ("begin", "tokens", "shard"))
        if isinstance(self._base, RemotePath):
            size = TOKEN_DTYPE.itemsize
            data = read_part(self._base / self._shards[shard].files["tokens.bin"].name, size * begin, size * count)
            return np.frombuffer(data, TOKEN_DTYPE)
        return self._token_maps[shard][begin : begin + count]

    def document(self, document: int) -> CachedDocument:
        """A document's ids and where its items stand in them."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        items = self.items_of(document)
        return CachedDocument(document, self.ids(document), items, self.positions[items.start : items.stop])

    @cached_property
    def _given(self) -> list[pa.ChunkedArray]:
        return [self._table(n, "documents.parquet", ["given"]).column("given") for n in range(len(self._shards))]

    def given(self, document: int) -> list[tuple[int, int]]:
        """Stretches (start, length) of a document's ids that are not to be learnt."""
        shard = int(self._documents["shard"][document])
        found = self._given[shard][document - int(self._first_document[shard])].as_py()
        return [(entry["start"], entry["length"]) for entry in found]

    def document_tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The document tables, shard by shard."""
        for number in range(len(self._shards)):
            yield self._table(number, "documents.parquet", columns)

    def item_tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The items' index, shard by shard; ``document`` and ``offset`` count within the shard."""
        for number in range(len(self._shards)):
            yield self._table(number, "parquet", columns)


def open_cache(directory: Path | str, split: str = "train") -> FeatureCache:
    """One split of a finished feature cache.

    Raises:
        DataError: the directory is not finished or damaged, or has no such split.
    """
    directory = Path(directory)
    manifest = load_cache_manifest(directory)
    if split not in manifest.splits:
        raise DataError(f"{directory} has no split {split!r}, only {', '.join(manifest.splits) or 'none'}")
    return FeatureCache(directory, manifest, split)


def _entry(index: int, document: int, row: dict) -> ItemEntry:
    kept = {key: row[key] for key in ("item", "modality", "hash", "position", "length", "width", "height", "valid", "error")}
    return ItemEntry(
        index=index,
        document=document,
        grid=None if row["grid"] is None else tuple(row["grid"]),
        tiles=tuple((tile["first"], tile["rows"], tile["columns"]) for tile in row["tiles"]),
        newlines=None if row["newlines"] is None else tuple(row["newlines"]),
        thw=None if row["thw"] is None else tuple(row["thw"]),
        extra={} if row["extra"] is None else json.loads(row["extra"]),
        **kept,
    )


def _joined(arrays: list[npt.NDArray]) -> npt.NDArray:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=np.int64)
