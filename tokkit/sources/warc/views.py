"""Bytes of an archive by offset: of a plain file as they lie there, of a gzip stream as they come out of it.

A :class:`GzipView` goes through its stream once and remembers the decompressor's state at up to ``CHECKPOINTS`` places, more
and more widely spaced as the stream turns out longer, so that what lies behind can be read again without beginning anew:
bounded memory (about 12 MB), and at most a small share of the stream to be decompressed for one picture.
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from typing import BinaryIO, Protocol

from tokkit.sources.gzipstream import GzipDamage

CHECKPOINTS = 256
BOMB_BYTES = 256 << 20  # output from which on the ratio below is looked at
BOMB_RATIO = 200
_SPACING = 1 << 20
_CHUNK = 1 << 14  # of the file: as exactly as a damage can be placed
_PIECE = 1 << 20
_KEEP = 2 << 20
_GZIP = 31


class View(Protocol):
    """Bytes by offset."""

    damage: GzipDamage | None

    def at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only where the bytes end."""

    def reaches(self, offset: int) -> bool:
        """Whether there are ``offset`` bytes at least."""

    def place(self, offset: int, *, end: bool = False) -> int:
        """The byte of the file that an offset lies at, or just behind (``end``)."""


class FileView:
    """A plain file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.damage: GzipDamage | None = None
        self._file, self.size = file, size

    def at(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def reaches(self, offset: int) -> bool:
        return offset <= self.size

    def place(self, offset: int, *, end: bool = False) -> int:
        return min(offset, self.size)


class GzipView:
    """What comes out of the gzip members that begin at ``start`` and follow one another, up to the file's end or a damage."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._size = file, size
        self.start = start
        self.damage: GzipDamage | None = None
        self._machine = zlib.decompressobj(_GZIP)
        self._in = start  # of the file: where the next input lies
        self._out = 0  # bytes that came out
        self._window = b""  # the last of them
        self._ended = False
        self._final = size  # where the stream ends, once that is known
        self._furthest = 0  # bytes known to come out
        self._spacing = _SPACING
        self._checkpoints: list[tuple[int, int, zlib._Decompress, bool]] = []
        self._pairs: list[tuple[int, int]] = [(0, start)]
        self._fresh = True  # between two members

    def at(self, offset: int, size: int) -> bytes:
        if offset < self._out - len(self._window):
            self._rewind(offset)
        while self._out < offset + size and not self._ended:
            self._advance()
        begin = offset - (self._out - len(self._window))
        if begin < 0:  # longer than what is kept
            return self._again(offset, size)
        return self._window[begin : begin + size]

    def reaches(self, offset: int) -> bool:
        while self._furthest < offset and not self._ended:
            self._advance()
        return self._furthest >= offset

    def place(self, offset: int, *, end: bool = False) -> int:
        found = bisect_right(self._pairs, (offset, self._size + 1))
        if end:
            return self._pairs[found][1] if found < len(self._pairs) else self._final
        return self._pairs[max(0, found - 1)][1]

    def _again(self, offset: int, size: int) -> bytes:
        """A long stretch, of which the beginning is no longer kept."""
        self._rewind(offset)
        parts: list[bytes] = []
        left = size
        while left > 0:
            if self._out <= offset:
                if self._ended:
                    break
                self._advance()
                continue
            begin = offset - (self._out - len(self._window))
            part = self._window[begin : begin + left]
            if not part:
                break
            parts.append(part)
            offset += len(part)
            left -= len(part)
        return b"".join(parts)

    def _rewind(self, offset: int) -> None:
        place = bisect_right([entry[0] for entry in self._checkpoints], offset) - 1
        if place >= 0:
            out, where, machine, fresh = self._checkpoints[place]
            self._out, self._in, self._machine, self._fresh = out, where, machine.copy(), fresh
        else:
            self._out, self._in, self._machine, self._fresh = 0, self.start, zlib.decompressobj(_GZIP), True
        self._window, self._ended = b"", False

    def _advance(self) -> None:
        """Decompress one more piece."""
        self._remember()
        self._file.seek(self._in)
        data = self._file.read(_CHUNK)
        if self._fresh:
            data = self._between(data)
            if self._ended or not data:
                return
        if not data:
            self._end(GzipDamage(self._in, "gzip-truncated", "the file ends within the compressed stream"))
            return
        before = self._machine.copy()
        try:
            piece = self._machine.decompress(data, _PIECE)
        except zlib.error as error:
            piece, used = _good(before, data)
            self._in += used
            self._give(piece)
            self._end(GzipDamage(self._in, "gzip-damaged", f"the compressed stream breaks: {error}"))
            return
        # What is not consumed is read again from the file, so that a state of the machine is a place in the file.
        self._in += len(data) - len(self._machine.unused_data if self._machine.eof else self._machine.unconsumed_tail)
        self._fresh = False
        self._give(piece)
        if self._machine.eof:
            self._machine, self._fresh = zlib.decompressobj(_GZIP), True
        if self._out > BOMB_BYTES and self._out > BOMB_RATIO * (self._in - self.start):
            message = f"{self._in - self.start} bytes unpack to more than {BOMB_RATIO} times as many: a bomb?"
            self._end(GzipDamage(self._in, "gzip-bomb", message))

    def _between(self, data: bytes) -> bytes:
        """Between two members: zeros are padding; what is no member is the end, or a damage."""
        padding = len(data) - len(data.lstrip(b"\0")) if self._out else 0
        if padding:
            self._in += padding
            data = data[padding:]
            if not data:
                return b""
        if not data:
            self._end(None)
        elif not data.startswith(b"\x1f\x8b"):
            message = f"what follows at byte {self._in} is no gzip member"
            self._end(GzipDamage(self._in, "gzip-trailing-garbage", message))
        return data

    def _end(self, damage: GzipDamage | None) -> None:
        self._ended, self.damage, self._final = True, damage, self._in

    def _give(self, piece: bytes) -> None:
        self._out += len(piece)
        self._furthest = max(self._furthest, self._out)
        self._window = (self._window + piece)[-_KEEP:] if len(self._window) > _KEEP else self._window + piece
        if self._out - self._pairs[-1][0] >= _CHUNK:
            self._pairs.append((self._out, self._in))

    def _remember(self) -> None:
        if self._checkpoints and self._out < self._checkpoints[-1][0] + self._spacing:
            return
        if self._out < self._furthest:
            return
        self._checkpoints.append((self._out, self._in, self._machine.copy(), self._fresh))
        if len(self._checkpoints) > CHECKPOINTS:
            self._checkpoints = self._checkpoints[::2]
            self._spacing *= 2


def _good(machine: zlib._Decompress, data: bytes) -> tuple[bytes, int]:
    """Feed ``data`` in halves up to the error: what came out, and how many bytes went in."""
    good: list[bytes] = []
    used, step = 0, len(data)
    while step:
        before = machine.copy()
        try:
            good.append(machine.decompress(data[used : used + step]))
            used += step
            if used >= len(data):
                break
        except zlib.error:
            machine = before
            step //= 2
    return b"".join(good), used
