"""Where a parquet file's row groups lie, read from its footer without Arrow.

Arrow's own objects for column chunks end the whole process over some damaged footers (an exception that its binding does not
catch), and a file's plan is made in the process that runs everything. What is needed is little: of each column chunk its first
page and its length. The footer is one Thrift structure in the compact protocol
(https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md, fields of
https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift); all other fields are skipped.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from tokkit.sources.opening import located

_MARK = b"PAR1"
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_MAX_DEPTH = 32

# FileMetaData.row_groups, RowGroup.columns, ColumnChunk.meta_data; and of ColumnMetaData
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3
_COMPRESSED_SIZE, _DATA_PAGE, _DICTIONARY_PAGE = 7, 9, 11


@dataclass(frozen=True, slots=True)
class GroupPlace:
    """Where a row group lies.

    Attributes:
        start, stop: the bytes of its column chunks in the file, first to last.
        bytes: what the chunks take, compressed.
    """

    start: int
    stop: int
    bytes: int


def group_places(path: str) -> list[GroupPlace]:
    """The row groups of the file at ``path``, as its footer has them and within the file.

    Raises:
        ValueError: there is no such footer (an encrypted one is none, either).
        OSError: for the surroundings.
    """
    with located(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = struct.unpack("<I", tail[:4])[0] if len(tail) == 8 and tail[4:] == _MARK else size
        if length > size - 8:
            raise ValueError("no parquet footer")
        file.seek(size - 8 - length)
        footer = _Footer(file.read(length))
    try:
        footer.file()
    except (IndexError, OverflowError) as error:
        raise ValueError(f"the footer breaks off: {error}") from None
    return [_within(chunks, size) for chunks in footer.groups]


def _within(chunks: list[dict[int, int]], size: int) -> GroupPlace:
    starts = [chunk.get(_DICTIONARY_PAGE) or chunk.get(_DATA_PAGE, 0) for chunk in chunks]
    lengths = [max(0, chunk.get(_COMPRESSED_SIZE, 0)) for chunk in chunks]
    start = min(size, max(0, min(starts, default=0)))
    stop = max((begin + length for begin, length in zip(starts, lengths, strict=True)), default=size)
    return GroupPlace(start, min(size, max(start, stop)), min(size, sum(lengths)))


class _Footer:
    """A walk through the structure. ``groups`` has, for each row group, the wanted fields of its column chunks."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        self.groups: list[list[dict[int, int]]] = []

    def file(self) -> None:
        previous = 0
        while field := self._field(previous):
            previous, kind = field
            if previous == _ROW_GROUPS and kind == _LIST:
                self.groups += [self._group() for _ in range(self._list_of_structs())]
            else:
                self._skip(kind)

    def _group(self) -> list[dict[int, int]]:
        chunks: list[dict[int, int]] = []
        previous = 0
        while field := self._field(previous):
            previous, kind = field
            if previous == _COLUMNS and kind == _LIST:
                chunks += [self._chunk() for _ in range(self._list_of_structs())]
            else:
                self._skip(kind)
        return chunks

    def _chunk(self) -> dict[int, int]:
        found: dict[int, int] = {}
        previous = 0
        while field := self._field(previous):
            previous, kind = field
            if previous == _META_DATA and kind == _STRUCT:
                found |= self._numbers()
            else:
                self._skip(kind)
        return found

    def _numbers(self) -> dict[int, int]:
        """The long integers of a structure by their fields."""
        found: dict[int, int] = {}
        previous = 0
        while field := self._field(previous):
            previous, kind = field
            if kind == _I64:
                found[previous] = self._zigzag()
            else:
                self._skip(kind)
        return found

    def _field(self, previous: int) -> tuple[int, int] | None:
        """Number and type of the next field; None at the structure's end."""
        head = self._byte()
        if head == 0:
            return None
        return (previous + (head >> 4) if head >> 4 else self._zigzag()), head & 15

    def _list(self) -> tuple[int, int]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._varint()
        if count > len(self._data) - self._place:  # each element takes a byte at least
            raise ValueError(f"a list of {count} elements in {len(self._data)} bytes")
        return count, head & 15

    def _list_of_structs(self) -> int:
        count, kind = self._list()
        if count and kind != _STRUCT:
            raise ValueError("a list of other things than structures")
        return count

    def _skip(self, kind: int, depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise ValueError("nested too deeply")
        if kind in (_TRUE, _FALSE):
            return
        if kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _BYTE:
            self._byte()
        elif kind == _DOUBLE:
            self._forward(8)
        elif kind == _BINARY:
            self._forward(self._varint())
        elif kind in (_LIST, _SET):
            count, element = self._list()
            for _ in range(count):
                self._skip(_BYTE if element in (_TRUE, _FALSE) else element, depth + 1)
        elif kind == _STRUCT:
            previous = 0
            while field := self._field(previous):
                previous, inner = field
                self._skip(inner, depth + 1)
        else:  # a map, which no field of a footer is, or no type at all
            raise ValueError(f"a field of type {kind}")

    def _forward(self, count: int) -> None:
        self._place += count
        if self._place > len(self._data):
            raise ValueError("a field goes on behind the footer's end")

    def _byte(self) -> int:
        found = self._data[self._place]
        self._place += 1
        return found

    def _varint(self) -> int:
        number = shift = 0
        while True:
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
            shift += 7
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    def _zigzag(self) -> int:
        number = self._varint()
        return (number >> 1) ^ -(number & 1)
