"""From record to record, saying exactly where one is damaged, and going on behind it.

A record is taken only where what follows its block is what must follow: the line ends that close it, and then another header
or the end. So a wrong ``Content-Length`` is found out at once, and does not shift everything behind it. What is not understood
is a :class:`Broken` stretch up to the next thing that looks like a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tokkit.sources.warc.http import MAX_HTTP_HEADER
from tokkit.sources.warc.members import Member, next_member, read_member
from tokkit.sources.warc.records import MAX_HEADER, Header, HeaderError, find_record, parse_header
from tokkit.sources.warc.views import GzipView, View

_FIRST_LOOK = 4096
_SCAN = 1 << 20
_OVERLAP = 1 << 17
_CLOSING = 64  # bytes looked at for the line ends between two records
_CLOSED: dict[bool, tuple[bytes, ...]] = {False: (b"\r\n\r\n", b"\n\n"), True: (b"\n", b"\r\n")}  # by whether it is an ARC


@dataclass(frozen=True, slots=True)
class Place:
    """Where a record lies: the byte of the file where it, or the gzip member or stream that holds it, begins, and how many
    bytes into what comes out of that."""

    start: int
    inner: int = 0

    def __str__(self) -> str:
        return f"{self.start}+{self.inner}" if self.inner else str(self.start)


@dataclass(frozen=True, slots=True)
class Record:
    """A record that was found.

    Attributes:
        place: where it begins.
        stop: the byte of the file behind it, as exactly as that can be told.
        header: its header.
        opening: the first bytes of its block, enough for an HTTP header.
        block: its block, or None where it has more than the bytes that were asked for.
        sound: True; a :class:`Broken` has False.
    """

    place: Place
    stop: int
    header: Header
    opening: bytes
    block: bytes | None
    sound: bool = True


@dataclass(frozen=True, slots=True)
class Broken:
    """A stretch of the file, bytes ``[start, stop)``, that is no record."""

    start: int
    stop: int
    reason: str
    message: str
    sound: bool = False


class _NoRecordError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def walk_view(view: View, offset: int, stop: int | None, keep: int) -> Iterator[Record | Broken]:
    """The records that begin in ``[offset, stop)`` of a view (None: to its end); blocks longer than ``keep`` are not read."""
    while (stop is None or offset < stop) and view.reaches(offset + 1):
        try:
            header, closing, closed = _record_at(view, offset)
        except _NoRecordError as problem:
            following, reason = _find(view, offset + 1), problem.reason
            if following is not None and reason == "warc-truncated":
                reason = "warc-wrong-length"  # it swallows what follows
            end = view.place(following) if following is not None else _end_of(view)
            yield Broken(view.place(offset), max(end, view.place(offset)), reason, problem.message)
            if following is None:
                return
            offset = following
            continue
        begin = offset + header.size
        block = view.at(begin, header.length) if header.length <= keep else None
        place = Place(view.start, offset) if isinstance(view, GzipView) else Place(offset)
        opening = view.at(begin, min(header.length, MAX_HTTP_HEADER)) if block is None else block[:MAX_HTTP_HEADER]
        yield Record(place, view.place(closing), header, opening, block)
        if not closed and not isinstance(view, GzipView):  # a sound gzip stream is whole, however carelessly it was written
            message = "the line ends that close the last record are missing: the archive was probably cut off"
            yield Broken(closing, closing, "warc-no-end", message)
        offset = closing


def _end_of(view: View) -> int:
    """The byte of the file where a view that was read to its end ends."""
    return view.place(1 << 62, end=True)


def _record_at(view: View, offset: int) -> tuple[Header, int, bool]:
    """The header at ``offset``, where the next record must begin, and whether the record is closed as it must be."""
    data = view.at(offset, _FIRST_LOOK)
    try:
        try:
            header = parse_header(data)
        except HeaderError:
            if len(data) < _FIRST_LOOK:
                raise
            header = parse_header(view.at(offset, MAX_HEADER))
    except HeaderError as error:
        raise _NoRecordError("warc-truncated" if error.cut else "warc-invalid-header", str(error)) from None
    end = offset + header.size + header.length
    if not view.reaches(end):
        raise _NoRecordError("warc-truncated", f"the record claims {header.length} bytes, and the archive ends before")
    tail = view.at(end, _CLOSING)
    lines = _line_ends(tail)
    closed = tail.startswith(_CLOSED[header.arc])
    at_end = lines == len(tail) < _CLOSING
    # Closed as it must be, what follows is told on its own, whatever it is.
    if not (closed or at_end or find_record(view.at(end, _FIRST_LOOK), lines) == lines):
        raise _NoRecordError("warc-wrong-length", _wrong_length(header))
    return header, end + lines, closed or not at_end


def _wrong_length(header: Header) -> str:
    return f"the record claims {header.length} bytes, and no record follows behind them"


def _line_ends(tail: bytes) -> int:
    """How many bytes of line ends ``tail`` begins with."""
    return len(tail) - len(tail.lstrip(b"\r\n"))


def _find(view: View, offset: int) -> int | None:
    """The next place at or behind ``offset`` (above 0) with something that looks like a record header."""
    while data := view.at(offset - 1, _SCAN + _OVERLAP):  # with the byte before, which tells where a line begins
        found = find_record(data, 1)
        if found >= 0:
            return offset - 1 + found
        if len(data) < _SCAN + _OVERLAP:
            break
        offset += _SCAN
    return None


def records_of_member(member: Member, keep: int) -> Iterator[Record | Broken]:
    """The records of a sound gzip member: one, but for writers that put several into it.

    A record's block must end within the member. What else is in there is broken, and with it the record, unless that closes
    as it must.
    """
    data, inner = member.data, 0
    while data[inner : inner + _CLOSING].strip(b"\r\n"):
        try:
            header = parse_header(data[inner : inner + MAX_HEADER])
        except HeaderError as error:
            yield Broken(member.start, member.stop, "warc-invalid-header", str(error))
            return
        begin = inner + header.size
        end = begin + header.length
        if end > member.size:
            message = f"the record claims {header.length} bytes, and its gzip member has {member.size - begin}"
            yield Broken(member.start, member.stop, "warc-wrong-length", message)
            return
        tail = data[end : end + _CLOSING]
        lines = _line_ends(tail)
        whole = lines == len(tail) or tail.startswith(_CLOSED[header.arc])
        if not whole and find_record(data[: end + _FIRST_LOOK], end + lines) != end + lines:
            yield Broken(member.start, member.stop, "warc-wrong-length", _wrong_length(header))
            return
        block = data[begin:end] if header.length <= keep and end <= len(data) else None
        opening = data[begin : min(end, begin + MAX_HTTP_HEADER)]
        yield Record(Place(member.start, inner), member.stop, header, opening, block)
        inner = end + lines
        if inner >= len(data) and member.size > inner + _CLOSING:
            message = f"{member.size - inner} bytes behind the record in its gzip member, which are more than are kept of one"
            yield Broken(member.start, member.stop, "warc-member-too-large", message)
            return


def walk_members(file: BinaryIO, start: int, stop: int, size: int, keep: int) -> Iterator[Record | Broken]:
    """The records of the members that begin in ``[start, stop)`` of a file of ``size`` bytes."""
    place, stop = start, min(stop, size)  # a file that has become shorter is told of by whoever watches it
    while place < stop:
        member = read_member(file, place, keep + MAX_HEADER + MAX_HTTP_HEADER)
        if member.damage is not None:
            reason, message = member.damage
            if reason == "gzip-trailing-garbage" and (behind := _behind_zeros(file, place, size)) is not None:
                place = behind
                continue
            following = next_member(file, place + 1, size)
            yield Broken(place, following, reason, message)
            place = following
            continue
        yield from records_of_member(member, keep)
        place = member.stop


def _behind_zeros(file: BinaryIO, place: int, size: int) -> int | None:
    """Where zeros that begin at ``place`` end, if a member or the file's end follows: they are padding."""
    file.seek(place)
    while chunk := file.read(1 << 16):
        rest = chunk.lstrip(b"\0")
        if rest:
            place += len(chunk) - len(rest)
            return place if rest.startswith(b"\x1f\x8b") and len(rest) < len(chunk) else None
        place += len(chunk)
    return place


def walk_stream(file: BinaryIO, size: int, keep: int, view: GzipView) -> Iterator[Record | Broken]:
    """The records of a file that is one gzip stream; behind a damage, those of the next member that opens with a record."""
    while True:
        broken: Broken | None = None
        nothing = True
        for found in walk_view(view, 0, None, keep):
            if isinstance(found, Broken) and found.stop >= _end_of(view) and view.damage is not None:
                broken = found  # the damage of the stream is why
                break
            nothing = False
            yield found
        if view.damage is None:
            return
        damage = view.damage
        start = broken.start if broken is not None else view.start if nothing else damage.start
        following = next_member(file, max(damage.start, view.start + 1), size)
        message = damage.message + ("; the record that it breaks off in goes with it" if broken is not None else "")
        yield Broken(start, following, damage.reason, message)
        if following >= size:
            return
        view = GzipView(file, following, size)
