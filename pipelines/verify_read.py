"""Reading shards without keeping anything of them: a memory-mapped index, and single documents by number."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.errors import DataError
from tokkit.shards.manifest import Shard
from tokkit.shards.megatron import DTYPE_CODES, HEADER, MAGIC
from tokkit.shards.native import ROW_GROUP, map_tokens
from tokkit.vocabulary import Ids


class Index:
    """A Megatron index, memory-mapped.

    Attributes:
        dtype: of the tokens.
        count: number of documents D.
        lengths: int32 [D], tokens; ``pointers`` int64 [D], byte offsets; ``borders`` int64 [D + 1], documents as sequences.

    Raises:
        DataError: not such a file, or of another size than its header says.
    """

    def __init__(self, path: Path) -> None:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEADER.size)
        if len(head) < HEADER.size or head[:9] != MAGIC:
            raise DataError(f"{path.name} is not a Megatron index")
        _, version, code, self.count, borders = HEADER.unpack(head)
        dtype = next((d for d, c in DTYPE_CODES.items() if c == code), None)
        if version != 1 or dtype is None or borders != self.count + 1 or size != HEADER.size + 12 * self.count + 8 * borders:
            raise DataError(f"{path.name} is not an index of {self.count} documents: its header and its size disagree")
        self.dtype = dtype
        at = HEADER.size
        self.lengths = self._map(path, "<i4", at, self.count)
        self.pointers = self._map(path, "<i8", at + 4 * self.count, self.count)
        self.borders = self._map(path, "<i8", at + 12 * self.count, borders)

    @staticmethod
    def _map(path: Path, dtype: str, offset: int, count: int) -> npt.NDArray[Any]:
        if not count:
            return np.zeros(0, dtype=dtype)
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=(count,)).view(np.ndarray)


class DocumentReader:
    """Documents of a split by number; the row group and the files that were used last are kept open.

    Args:
        directory: of the output; its shards have been found whole.
        split: their split.
        shards: all of them, as the manifest has them.
        folder, table: where they are, and the suffix of their document tables.
    """

    def __init__(
        self, directory: Path, split: str, shards: Sequence[Shard], folder: str = "tokens", table: str = "parquet"
    ) -> None:
        self._base, self._shards, self._table = directory / folder / split, shards, table
        self._edges = np.cumsum([0, *(s.documents for s in shards)])
        self._group: tuple[int, int, pa.Table] | None = None
        self._open: tuple[int, Index, Ids] | None = None

    def row(self, number: int) -> dict[str, Any]:
        """A document's row of the table."""
        shard, place = self._find(number)
        group, row = divmod(place, ROW_GROUP)
        if self._group is None or self._group[:2] != (shard, group):
            with pq.ParquetFile(self._base / self._shards[shard].files[self._table].name) as file:
                self._group = shard, group, file.read_row_group(group)
        return self._group[2].slice(row, 1).to_pylist()[0]

    def tokens(self, number: int) -> Ids:
        """A document's tokens: a view of the memory map."""
        shard, place = self._find(number)
        if self._open is None or self._open[0] != shard:
            files = self._shards[shard].files
            index = Index(self._base / files["idx"].name)
            self._open = shard, index, map_tokens(self._base / files["bin"].name, index.dtype)
        _, index, tokens = self._open
        begin = int(index.pointers[place]) // index.dtype.itemsize
        return tokens[begin : begin + int(index.lengths[place])]

    def _find(self, number: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._edges, number, side="right")) - 1
        return shard, number - int(self._edges[shard])
