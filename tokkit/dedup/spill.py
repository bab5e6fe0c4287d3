"""Records routed to partitions that lie on disk as soon as they do not fit into memory.

The first half of every external hash table: records are put aside by a part of their key, so that everything about one key ends
in one partition, and a partition is small enough to be looked at in memory. While all records fit into the buffer nothing is
written at all.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokkit.dedup.records import Records

MOST_PARTITIONS = 4096
SHARE = 8  # of the memory given, the part that one buffer or one partition may take: sorting takes several times that


def partitions_for(rows: int, dtype: np.dtype, memory: int) -> int:
    """Partitions so that each is likely to take at most an eighth of ``memory`` bytes (4,096 at most)."""
    return max(1, min(MOST_PARTITIONS, -(-rows * dtype.itemsize * SHARE // max(memory, 1))))


def rows_of(dtype: np.dtype, memory: int) -> int:
    """Rows that are an eighth of ``memory`` bytes."""
    return max(1, memory // SHARE // dtype.itemsize)


class Spill:
    """Appends records to numbered partitions; each is read back in the order in which it was given.

    Args:
        folder: made when it is first needed; removed by :meth:`close`.
        dtype: of the records.
        partitions: how many there are.
        memory: bytes; an eighth of it is buffered.
    """

    def __init__(self, folder: Path, dtype: np.dtype, partitions: int, memory: int) -> None:
        self.dtype, self.partitions, self.rows = dtype, partitions, 0
        self.spilled = 0
        self._folder, self._most = folder, rows_of(dtype, memory)
        self._buffer: list[tuple[Records, npt.NDArray[np.int64]]] = []
        self._buffered = 0
        self._on_disk = np.zeros(partitions, np.int64)

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def add(self, records: Records, partition: npt.NDArray[Any]) -> None:
        """Append ``records`` [n] to the partitions given for each, ``partition`` [n]."""
        for first in range(0, len(records), self._most):
            block = records[first : first + self._most]
            if self._buffered + len(block) > self._most:
                self._flush()
            self._buffer.append((block, partition[first : first + self._most].astype(np.int64)))
            self._buffered += len(block)
        self.rows += len(records)

    def read(self, partition: int, rows: int) -> Iterator[Records]:
        """The records of a partition, at most ``rows`` at a time; never an empty block.

        Raises:
            OSError: what was put on disk is not there any more.
        """
        path, total = self._path(partition), int(self._on_disk[partition])
        if total:
            if path.stat().st_size != total * self.dtype.itemsize:
                raise OSError(errno.EIO, "not as long as it was written; did something write to it?", str(path))
            with path.open("rb") as file:
                for first in range(0, total, rows):
                    yield np.fromfile(file, self.dtype, min(rows, total - first))
        for records, numbers in self._buffer:
            mine = records[numbers == partition]
            for first in range(0, len(mine), rows):
                yield mine[first : first + rows]

    def close(self) -> None:
        """Forget everything."""
        self._buffer, self._buffered, self._on_disk = [], 0, np.zeros(self.partitions, np.int64)
        if self._folder.exists():
            shutil.rmtree(self._folder)

    def _path(self, partition: int) -> Path:
        return self._folder / f"{partition:04d}"

    def _flush(self) -> None:
        """Write the buffer out, sorted by partition (stable: a partition keeps the order in which it was filled)."""
        if not self._buffered:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        numbers = np.concatenate([n for _, n in self._buffer])
        order = np.argsort(numbers, kind="stable")
        records = np.concatenate([r for r, _ in self._buffer])[order]
        edges = np.searchsorted(numbers[order], np.arange(self.partitions + 1))
        for partition in np.flatnonzero(np.diff(edges)):
            with self._path(int(partition)).open("ab") as file:
                file.write(records[edges[partition] : edges[partition + 1]].tobytes())  # tofile hides the cause of an error
        self._on_disk += np.diff(edges)
        self.spilled += self._buffered
        self._buffer, self._buffered = [], 0


def spilled_array(path: Path, dtype: npt.DTypeLike, length: int, memory: int) -> npt.NDArray[Any]:
    """An array of zeros: in memory where it takes at most an eighth of ``memory`` bytes, else a file, mapped."""
    kind = np.dtype(dtype)
    if length * kind.itemsize * SHARE <= memory:
        return np.zeros(length, kind)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # whole, so that a full disk is an error here and not a SIGBUS at some later write
            os.posix_fallocate(file.fileno(), 0, length * kind.itemsize)
        else:
            file.truncate(length * kind.itemsize)
    return np.memmap(path, kind, "r+", shape=(length,))
