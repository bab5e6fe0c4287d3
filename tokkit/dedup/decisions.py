"""The file of decisions: which documents and items of each unit are duplicates, and of which.

64 bytes of header (magic, version, CRC-32 of the rest, units, rows), DECISION records in order of (unit, position, item), and
where each unit's begin, u8 [units + 1].
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tokkit.dedup.records import DECISION, Records
from tokkit.errors import DataError

_HEADER = struct.Struct("<8sIIQQ32x")
_MAGIC = b"TKDEDUP\0"
_VERSION = 1


class DecisionWriter:
    """Writes decisions as they come, in unit order."""

    def __init__(self, file: BinaryIO, units: int) -> None:
        self._file, self._counts, self._rows, self._crc = file, np.zeros(units, np.int64), 0, 0
        file.write(bytes(_HEADER.size))

    def add(self, decisions: Records, units: npt.NDArray[np.int64]) -> None:
        self._write(decisions.tobytes())
        self._counts += np.bincount(units, minlength=len(self._counts))
        self._rows += len(decisions)

    def finish(self) -> None:
        self._write(np.concatenate([[0], np.cumsum(self._counts)]).astype("<u8").tobytes())
        self._file.seek(0)
        self._file.write(_HEADER.pack(_MAGIC, _VERSION, self._crc, len(self._counts), self._rows))

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)


class Decisions:
    """A file of decisions, mapped: what :func:`tokkit.dedup.find.find_duplicates` wrote."""

    def __init__(self, rows: Records, edges: npt.NDArray[np.uint64]) -> None:
        self._rows, self._edges = rows, edges

    @classmethod
    def open(cls, path: Path, units: int, *, check: bool = False) -> Decisions:
        """Map a file of a run of ``units`` units; ``check`` reads all of it and compares the checksum.

        Raises:
            DataError: it is damaged.
            FileNotFoundError: there is none.
        """
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise DataError(f"{path} is damaged: it is too short")
        magic, version, crc, found, rows = _HEADER.unpack(head)
        end = _HEADER.size + rows * DECISION.itemsize
        if (magic, version, found) != (_MAGIC, _VERSION, units) or path.stat().st_size != end + 8 * (units + 1):
            raise DataError(f"{path} is damaged, or of another run")
        mapped = np.memmap(path, np.uint8, "r")
        if check and zlib.crc32(mapped[_HEADER.size :].data) != crc:
            raise DataError(f"{path} is damaged: its checksum is another")
        return cls(np.ndarray((rows,), DECISION, mapped, _HEADER.size), np.ndarray((units + 1,), np.dtype("<u8"), mapped, end))

    def __len__(self) -> int:
        return len(self._rows)

    def of_unit(self, unit: int) -> Records:
        """The DECISION records of a unit, in order of (position, item)."""
        return self._rows[int(self._edges[unit]) : int(self._edges[unit + 1])]

    def by_kind(self) -> npt.NDArray[np.int64]:
        """How many duplicates there are by each kind of label, [4]."""
        return np.bincount(self._rows["kind"], minlength=4)
