"""The file of decisions: which documents and items of each unit are duplicates, and of which.

64 bytes of header (magic, version, CRC-32 of the rest, units, rows, basis), DECISION records in order of (unit, position,
item), and where each unit's begin, u8 [units + 1]. The basis is a digest of what the decisions rest on besides the units, given
by whoever had them made: on another basis they may be others.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tokkit.dedup.records import DECISION, Records
from tokkit.errors import DataError

BASIS_BYTES = 32

_HEADER = struct.Struct(f"<8sIIQQ{BASIS_BYTES}s")
_MAGIC = b"TKDEDUP\0"
_VERSION = 2


class DecisionWriter:
    """Writes decisions as they come, in unit order; ``basis`` is 32 bytes."""

    def __init__(self, file: BinaryIO, units: int, basis: bytes) -> None:
        self._file, self._counts, self._rows, self._crc, self._basis = file, np.zeros(units, np.int64), 0, 0, basis
        file.write(bytes(_HEADER.size))

    def add(self, decisions: Records, units: npt.NDArray[np.int64]) -> None:
        self._write(decisions.tobytes())
        self._counts += np.bincount(units, minlength=len(self._counts))
        self._rows += len(decisions)

    def finish(self) -> None:
        self._write(np.concatenate([[0], np.cumsum(self._counts)]).astype("<u8").tobytes())
        self._file.seek(0)
        self._file.write(_HEADER.pack(_MAGIC, _VERSION, self._crc, len(self._counts), self._rows, self._basis))

    def _write(self, data: bytes) -> None:
        self._crc = zlib.crc32(data, self._crc)
        self._file.write(data)


class Decisions:
    """A file of decisions, mapped: what :func:`tokkit.dedup.find.find_duplicates` wrote."""

    def __init__(self, rows: Records, edges: npt.NDArray[np.uint64], basis: bytes) -> None:
        self._rows, self._edges, self.basis = rows, edges, basis

    @classmethod
    def open(cls, path: Path, units: int, *, basis: bytes | None = None, check: bool = False) -> Decisions:
        """Map a file of a run of ``units`` units.

        Args:
            basis: what the decisions must rest on; None takes any.
            check: read all of it and compare the checksum.

        Raises:
            DataError: it is damaged, or rests on something else.
            FileNotFoundError: there is none.
        """
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise DataError(f"{path} is damaged: it is too short")
        magic, version, crc, found, rows, rests_on = _HEADER.unpack(head)
        end = _HEADER.size + rows * DECISION.itemsize
        if (magic, version, found) != (_MAGIC, _VERSION, units) or path.stat().st_size != end + 8 * (units + 1):
            raise DataError(f"{path} is damaged, or of another run")
        if basis is not None and rests_on != basis:
            raise DataError(f"{path} rests on something else")
        mapped = np.memmap(path, np.uint8, "r")
        if check and zlib.crc32(mapped[_HEADER.size :].data) != crc:
            raise DataError(f"{path} is damaged: its checksum is another")
        decisions = np.ndarray((rows,), DECISION, mapped, _HEADER.size)
        return cls(decisions, np.ndarray((units + 1,), np.dtype("<u8"), mapped, end), rests_on)

    def __len__(self) -> int:
        return len(self._rows)

    def of_unit(self, unit: int) -> Records:
        """The DECISION records of a unit, in order of (position, item)."""
        return self._rows[int(self._edges[unit]) : int(self._edges[unit + 1])]

    def digest(self, unit: int) -> str:
        """SHA-256 (hex) of a unit's records: another one is another decision about something in it."""
        return hashlib.sha256(self.of_unit(unit).tobytes()).hexdigest()

    def by_kind(self) -> npt.NDArray[np.int64]:
        """How many duplicates there are by each kind of label, [4]."""
        return np.bincount(self._rows["kind"], minlength=4)
