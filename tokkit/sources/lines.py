"""Lines of a byte stream with their offsets, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from tokkit.sources.untrusted import MAX_ITEM_BYTES

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"


class LineSplitter:
    """Cuts a stream that arrives in pieces into lines.

    ``feed`` yields (offset of the line, line without its newline) for each line that a piece completes, None in place of a
    line longer than ``limit``; blank lines are left out. ``rest`` yields the last line where no newline ends it. A byte order
    mark at offset 0 belongs to no line, but counts in the offsets.
    """

    def __init__(self, offset: int = 0, limit: int = MAX_ITEM_BYTES) -> None:
        self._limit = limit
        self._start = offset
        self._pieces: list[bytes] = []
        self._length = 0
        self._blank = True

    @property
    def pending(self) -> bool:
        """True within a line that is not blank."""
        return not self._blank

    def feed(self, piece: bytes) -> Iterator[tuple[int, bytes | None]]:
        """The lines that ``piece`` completes."""
        place = 0
        while (newline := piece.find(b"\n", place)) >= 0:
            if self._length or self._start == 0 or newline - place > self._limit:
                self._append(piece[place:newline])
                yield from self.rest()
            else:  # all of it is here, and it begins no file
                line, start = piece[place:newline], self._start
                self._start += newline - place
                if line and not line.isspace():
                    yield start, line
            self._start += 1
            place = newline + 1
        self._append(piece[place:])

    def rest(self) -> Iterator[tuple[int, bytes | None]]:
        """The line so far, if it is not blank; the next one begins behind it."""
        line = b"".join(self._pieces) if self._length <= self._limit else None
        start, blank = self._start, self._blank
        self._start += self._length
        self._pieces, self._length, self._blank = [], 0, True
        if start == 0 and line is not None and line.startswith(_BOM):
            start, line = len(_BOM), line[len(_BOM) :]
            blank = not line.strip()
        if not blank:
            yield start, line

    def _append(self, piece: bytes) -> None:
        if not piece:
            return
        self._length += len(piece)
        self._blank = self._blank and not piece.strip()
        if self._length <= self._limit:
            self._pieces.append(piece)
        else:
            self._pieces.clear()  # too long already: only its length matters now


def read_lines(file: BinaryIO, start: int, stop: int, limit: int = MAX_ITEM_BYTES) -> Iterator[tuple[int, bytes | None]]:
    """The lines between byte ``start``, where one begins, and ``stop``, where one ends (or the file does)."""
    splitter = LineSplitter(start, limit)
    file.seek(start)
    left = stop - start
    while left > 0 and (piece := file.read(min(_CHUNK, left))):
        left -= len(piece)
        yield from splitter.feed(piece)
    yield from splitter.rest()


def line_start(file: BinaryIO, offset: int, size: int) -> int:
    """The first byte at or behind ``offset`` where a line begins; ``size`` where none does."""
    if offset <= 0:
        return 0
    place = offset - 1
    file.seek(place)
    while place < size and (piece := file.read(min(_CHUNK, size - place))):
        newline = piece.find(b"\n")
        if newline >= 0:
            return place + newline + 1
        place += len(piece)
    return size
