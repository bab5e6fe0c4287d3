"""Tars that are compressed as a whole: read as streams, never unpacked, and yet grouped as a plain tar is.

What belongs to a sample is only known once all names are (:mod:`tokkit.sources.samples`), so a stream is gone through twice:
once for the headers, once for the data. Members that wait for the rest of their sample are held in memory, ``HELD_BYTES`` of
them at most. Where samples lie further apart than that (a tar written column by column), the stream is gone through again for
the next samples that fit: any order of members is read, in bounded memory, and what lies together is read once.
"""

from __future__ import annotations

import errno
import tarfile
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from tokkit.sources.base import Alive, silent
from tokkit.sources.compressed import StreamDamage, decompress
from tokkit.sources.samples import Sample
from tokkit.sources.tarindex import Member, TarDamage, TarIndex, index_of
from tokkit.sources.warc.views import BOMB_BYTES, BOMB_RATIO

HELD_BYTES = 256 << 20
_PIECE = 1 << 20
_SPACING = 256 << 10  # of the places that are remembered
_KEEP = 64 << 10  # bytes gone by that may be asked for again: a header, or the block before

Members = Callable[[], Iterable[tuple[int, Callable[[], bytes]]]]


class StreamView:
    """What comes out of a compressed file, by offsets that rise (but for ``_KEEP`` bytes).

    Attributes:
        size: bytes that came out so far; all of them once ``ended``.
        damage: what ended the stream too early, or stands behind its end.
    """

    def __init__(self, file: BinaryIO, name: str, alive: Alive = silent) -> None:
        self._pieces = decompress(file, name)
        self._name, self._alive = name, alive
        self._kept: deque[tuple[int, bytes]] = deque()  # offset, piece
        self._marks: list[tuple[int, int]] = [(0, 0)]  # bytes that came out, bytes of the file that had gone in
        self.size = 0
        self.ended = False
        self.damage: StreamDamage | None = None

    def at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only where the stream ends."""
        while self.size < offset + size and not self.ended:
            self._advance(offset)
        assert not self._kept or self._kept[0][0] <= offset, "what has gone by is not kept"
        parts = []
        for start, piece in reversed(self._kept):
            if start < offset + size:
                parts.append(piece[max(0, offset - start) : offset + size - start])
            if start <= offset:
                break
        return b"".join(reversed(parts))

    def reaches(self, offset: int) -> bool:
        """Whether that many bytes come out."""
        while self.size < offset and not self.ended:
            self._advance(offset)
        return self.size >= offset

    def place(self, offset: int) -> int:
        """A byte of the file up to which everything before ``offset`` had not yet come out."""
        return self._marks[max(0, bisect_right(self._marks, (offset, 1 << 62)) - 1)][1]

    def _advance(self, wanted: int) -> None:
        self._alive()
        found = next(self._pieces, None)
        if found is None:
            self.ended = True
        elif isinstance(found, StreamDamage):
            self.ended, self.damage = True, found
        else:
            done, piece = found
            if piece:
                self._kept.append((self.size, piece))
                self.size += len(piece)
            if self.size - self._marks[-1][0] >= _SPACING:
                self._marks.append((self.size, done))
            if self.size > BOMB_BYTES and self.size > BOMB_RATIO * done:
                message = f"{done} bytes unpack to more than {BOMB_RATIO} times as many: a bomb?"
                self.ended, self.damage = True, StreamDamage(done, f"{_kind(self._name)}-bomb", message)
            floor = min(wanted, self.size - _KEEP)
            while len(self._kept) > 1 and self._kept[1][0] <= floor:
                self._kept.popleft()


def _kind(name: str) -> str:
    return {"zst": "zstd", "bz2": "bzip2"}.get(name.lower().rpartition(".")[2], "gzip")


def stream_index(view: StreamView) -> TarIndex:
    """The index of a compressed tar; where the stream is damaged, that is the damage, wherever the walk ended."""
    index = index_of(view)
    if view.damage is None:
        return index
    if index.damage is None:
        damage = TarDamage(view.size, view.damage.reason, view.damage.message, behind_end=True)
    elif view.ended and index.damage.reason in ("tar-truncated", "tar-no-end", "tar-empty", "tar-data-behind-end"):
        told = index.damage
        damage = TarDamage(told.start, view.damage.reason, view.damage.message, told.member, told.behind_end)
    else:
        damage = index.damage
    return TarIndex(index.members, damage, view.size)


def in_order(
    samples: Sequence[Sample], wanted: Callable[[Sample], list[Member]], members: Members, held_bytes: int | None = None
) -> Iterator[tuple[Sample, dict[int, bytes]]]:
    """Each sample, in their order, with the wanted members' bytes by offset.

    Args:
        members: goes through the archive: a member's offset, and a function that reads it, to be called before the next.

    Raises:
        OSError: the archive lacks what it had when it was indexed.
    """
    bound = HELD_BYTES if held_bytes is None else held_bytes
    parts = [wanted(sample) for sample in samples]
    owners = {member.offset: number for number, of_sample in enumerate(parts) for member in of_sample}
    sizes = [sum(member.size for member in of_sample) for of_sample in parts]
    place = 0  # the next sample to give
    while place < len(samples):
        found: dict[int, dict[int, bytes]] = {}
        admitted, held, full = place, 0, False
        begun = place
        for offset, read in members():
            number = owners.get(offset)
            if number is None or number < place:
                continue
            while number >= admitted and not full:
                full = held > 0 and held + sizes[admitted] > bound
                if not full:
                    held += sizes[admitted]
                    admitted += 1
            if number < admitted:
                found.setdefault(number, {})[offset] = read()
            while place < admitted and len(found.get(place, ())) == len(parts[place]):
                yield samples[place], found.pop(place, {})
                held -= sizes[place]
                place += 1
            if full and place == admitted:
                break
        while place < len(samples) and not parts[place]:
            yield samples[place], {}
            place += 1
        if place == begun:
            raise OSError(errno.EIO, "shorter than when it was indexed; did something write to it?")


class Forward:
    """A stream as a file that :mod:`tarfile` reads: it seeks forward by reading, and back by ``_KEEP`` bytes at most.

    Raises:
        tarfile.ReadError: it is sent further back.
        EOFError: it unpacks to too many times ``packed``, its bytes in the file.
    """

    def __init__(self, stream: BinaryIO, packed: int, alive: Alive = silent) -> None:
        self._stream, self._packed, self._alive = stream, packed, alive
        self._kept = b""
        self._out = self._place = 0

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence != 0 or offset < self._out - len(self._kept):
            raise tarfile.ReadError("a stream does not go back")
        while self._out < offset and self._more(min(_PIECE, offset - self._out)):
            pass
        self._place = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        if size < 0:
            raise ValueError("a stream may be endless")
        behind = self._out - self._place
        parts = [self._kept[len(self._kept) - behind :][:size]] if behind > 0 else []
        left = size - sum(map(len, parts))
        while left > 0 and behind >= 0 and (piece := self._more(min(_PIECE, left))):
            parts.append(piece)
            left -= len(piece)
        data = b"".join(parts)
        self._place += len(data)
        return data

    def _more(self, size: int) -> bytes:
        self._alive()
        piece = self._stream.read(size)
        self._out += len(piece)
        self._kept = (self._kept + piece)[-_KEEP:]
        if self._out > BOMB_BYTES and self._out > BOMB_RATIO * self._packed:
            raise EOFError("a bomb")
        return piece
