"""Whether every key is there once, for more keys than fit into memory.

A key is hashed to 16 bytes (BLAKE2b); hash and reference (8 bytes: where the key was met) go to one of several temporary files,
chosen by the hash, so that equal keys meet in one file. Each file is then sorted by itself. Memory: one file's keys, about
``PARTITION`` of them (100 MB while they are sorted; more only beyond ``PARTITION * FILES``, 268 million keys); disk: 24 bytes a
key in the system's folder for temporary files. Two different keys have one hash with a probability of 2**-128 a pair.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from types import TracebackType
from typing import IO

import numpy as np
import numpy.typing as npt

PARTITION = 1 << 20  # keys sorted at a time, about
FILES = 256  # open at a time, at most
ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("ref", "<i8")])


class Once:
    """Collects keys, then tells which came more than once. A context manager: leaving it removes the temporary files.

    Args:
        expected: about how many keys there will be; decides the number of files.
    """

    def __init__(self, expected: int) -> None:
        count = min(FILES, -(-max(expected, 1) // PARTITION))
        self._files: list[IO[bytes]] = [tempfile.TemporaryFile() for _ in range(count)]  # noqa: SIM115 - closed by __exit__
        self.count = 0

    def add(self, keys: Iterable[bytes], references: npt.NDArray[np.int64]) -> None:
        """Add keys and, for each, a number to find it by."""
        digests = b"".join([blake2b(key, digest_size=16).digest() for key in keys])
        entries = np.empty(len(references), dtype=ENTRY)
        entries["high"], entries["low"] = np.frombuffer(digests, dtype="<u8").reshape(-1, 2).T
        entries["ref"] = references
        self.count += len(entries)
        part = (entries["high"] % np.uint64(len(self._files))).astype(np.int64)
        if len(self._files) > 1:
            order = np.argsort(part, kind="stable")
            entries, part = entries[order], part[order]
        for number in np.unique(part):
            first, last = np.searchsorted(part, [number, number + 1])
            self._files[number].write(entries[first:last].tobytes())

    def repeated(self) -> Iterator[list[int]]:
        """The references of each key that came more than once, lowest first."""
        for file in self._files:
            file.seek(0)
            entries = np.frombuffer(file.read(), dtype=ENTRY)
            order = np.lexsort((entries["ref"], entries["low"], entries["high"]))
            high, low = entries["high"][order], entries["low"][order]
            same = np.flatnonzero((high[1:] == high[:-1]) & (low[1:] == low[:-1]))
            for run in np.split(same, np.flatnonzero(np.diff(same) > 1) + 1) if same.size else []:
                yield [int(r) for r in entries["ref"][order[run[0] : run[-1] + 2]]]

    def __enter__(self) -> Once:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for file in self._files:
            file.close()
