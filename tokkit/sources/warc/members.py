"""Archives in which every record is a gzip member of its own: reading a member, finding the next, cutting.

A member is decompressed as a whole, up to a bound of what is kept, and its checksum is looked at: a record of a sound member
is sound. Where a member is damaged, the next one is looked for by its magic number, and taken where it opens with a record
header.

**Cuts.** A file is cut into units without decompressing it all: from each target on, the first member is taken from which an
unbroken chain of sound members with records leads on for more than ``CHAIN`` bytes, or to the file's end. That is exact:
compressed data can contain another archive's members byte for byte only in deflate's stored blocks, which are never longer
than 65,535 bytes, so a chain that long begins at a true member. Whether a place is a cut depends on the bytes from there on
only, and reading from the file's beginning comes by it: every record is in exactly one range.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tokkit.sources.warc.records import HeaderError, begins_record, parse_header
from tokkit.sources.warc.views import BOMB_BYTES, BOMB_RATIO

MAGIC = b"\x1f\x8b\x08"
CHAIN = 1 << 17
OPENING = 1 << 13
_CHUNK = 1 << 16
_PIECE = 1 << 20
_SCAN = 1 << 20
_GZIP = 31
_LINE_ENDS = 64  # bytes that may close a record


@dataclass(frozen=True, slots=True)
class Member:
    """A gzip member.

    Attributes:
        start, stop: its bytes in the file; of a damaged one ``stop`` is where the damage is.
        data: what came out of it, the first ``keep`` bytes.
        size: bytes that came out of it in all.
        damage: reason and message where it is damaged.
    """

    start: int
    stop: int
    data: bytes
    size: int
    damage: tuple[str, str] | None = None


def read_member(file: BinaryIO, start: int, keep: int) -> Member:
    """Decompress the member at ``start`` to its end, keeping at most about ``keep`` bytes."""
    machine = zlib.decompressobj(_GZIP)
    kept: list[bytes] = []
    size, place, have, data = 0, start, 0, b""
    file.seek(start)
    while not machine.eof:
        if not data:
            data = file.read(_CHUNK)
            if not data:
                message = "the file ends within the compressed stream"
                return Member(start, place, b"".join(kept), size, ("gzip-truncated", message))
        try:
            piece = machine.decompress(data, _PIECE)
        except zlib.error as error:
            if place == start and not data.startswith(MAGIC):
                message = f"what stands at byte {start} is no gzip member"
                return Member(start, start, b"", 0, ("gzip-trailing-garbage", message))
            message = f"the compressed stream breaks: {error}"
            return Member(start, place, b"".join(kept), size, ("gzip-damaged", message))
        left = machine.unused_data if machine.eof else machine.unconsumed_tail
        place += len(data) - len(left)
        data = left
        size += len(piece)
        if have < keep:
            kept.append(piece)
            have += len(piece)
        if size > BOMB_BYTES and size > BOMB_RATIO * (place - start):
            message = f"{place - start} bytes unpack to more than {BOMB_RATIO} times as many: a bomb?"
            return Member(start, place, b"", size, ("gzip-bomb", message))
    return Member(start, place, b"".join(kept), size)


def head_of_member(file: BinaryIO, start: int, size: int) -> bytes:
    """The first bytes that come out of a member, ``size`` or somewhat fewer; whatever there is of a damaged one."""
    file.seek(start)
    machine = zlib.decompressobj(_GZIP)
    try:
        return machine.decompress(file.read(max(1024, size)), size)
    except zlib.error:
        return b""


def _head_of_damaged(file: BinaryIO, start: int, size: int) -> bytes:
    """As :func:`head_of_member`, of a damaged member what comes out of it before it breaks."""
    file.seek(start)
    machine, head = zlib.decompressobj(_GZIP), b""
    try:
        while len(head) < size and (data := file.read(64)):
            head += machine.decompress(data, size)
    except zlib.error:
        pass
    return head


def candidates(file: BinaryIO, start: int, stop: int, *, damaged: bool = False) -> Iterator[tuple[int, bytes]]:
    """Places in ``[start, stop)`` where a gzip member may begin that opens with a record header, and what it opens with.

    Args:
        damaged: also those that break so early that they would not be taken up again from there.
    """
    place, tail = start, b""
    while place < stop:
        file.seek(place)
        chunk = file.read(min(_SCAN, stop - place + len(MAGIC) - 1))
        if not chunk:
            return
        data, begin = tail + chunk, place - len(tail)
        found = data.find(MAGIC)
        while found >= 0:
            if begin + found < stop and data[found + 3 : found + 4] < b"\x20":
                opening = head_of_member(file, begin + found, OPENING)
                if damaged and not opening:
                    opening = _head_of_damaged(file, begin + found, OPENING)
                if begins_record(opening) or _in_long_line(opening):
                    yield begin + found, opening
            found = data.find(MAGIC, found + 1)
        place += len(chunk)
        tail = data[-(len(MAGIC) - 1) :]


def _in_long_line(opening: bytes) -> bool:
    """An ARC header whose URL is longer than what was looked at."""
    return opening.startswith((b"http://", b"https://")) and b"\n" not in opening


def next_member(file: BinaryIO, start: int, stop: int) -> int:
    """The first of the :func:`candidates`, or ``stop``."""
    return next((place for place, _ in candidates(file, start, stop)), stop)


def is_record_wise(file: BinaryIO, size: int) -> bool:
    """Whether the first member holds one record and no more, and further members open with records."""
    head = head_of_member(file, 0, _SCAN)
    try:
        first = parse_header(head)
    except HeaderError:
        return next_member(file, 1, size) < size
    end = first.size + first.length
    behind = head[end:].lstrip(b"\r\n")
    if behind:
        return False
    member = read_member(file, 0, 0)
    if member.damage is None and (member.size > end + _LINE_ENDS or member.stop >= size):
        return member.size <= end + _LINE_ENDS
    if member.damage is None and b"WARC/".startswith(head_of_member(file, member.stop, 5)):
        return True  # the next member is cut short
    return next_member(file, 1 if member.damage is not None else member.stop, size) < size


def cut(file: BinaryIO, size: int, unit_bytes: int) -> list[int]:
    """Where the units of a file of members begin, the first at 0."""
    cuts = [0]
    target = unit_bytes
    while target < size:
        found = _cut_at(file, target, size)
        if found is None:
            break
        cuts.append(found)
        target = found + unit_bytes
    return cuts


def _cut_at(file: BinaryIO, target: int, size: int) -> int | None:
    """The first true member at or behind ``target`` that can be told to be one."""
    while target < size:
        candidate = next_member(file, target, size)
        if candidate >= size:
            return None
        failed = _chain(file, candidate, size)
        if failed is None:
            return candidate
        target = max(candidate + 1, failed)
    return None


def _chain(file: BinaryIO, start: int, size: int) -> int | None:
    """None where sound members with records follow one another from ``start`` as far as they must, else where they end."""
    place = start
    while place < size:
        member = read_member(file, place, OPENING)
        if member.damage is not None or not begins_record(member.data):
            return place
        place = member.stop
        if place - start > CHAIN:
            return None
    return None
