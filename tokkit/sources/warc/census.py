"""Counting the documents of a range apart from reading it.

The range is unpacked by the standard library's gzip reader and gone through line by line: each header says how many bytes
follow it. Records are judged by their headers (:mod:`tokkit.sources.warc.kinds`); no page is parsed, and nothing is looked for
behind a damage. Where anything is not as it should be, nothing can be known.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections import Counter
from typing import BinaryIO, Protocol, cast

from tokkit.sources.base import Alive, Census, Unit, silent
from tokkit.sources.opening import located
from tokkit.sources.warc.kinds import Kind, is_http, kind_of
from tokkit.sources.warc.views import BOMB_BYTES, BOMB_RATIO

_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+\d{3}[ \t\r\n]")
_FOLD = re.compile(rb"\r?\n[ \t]+")
_MAX_LINE = 1 << 16
_PIECE = 1 << 16


class _UnknowableError(Exception):
    """The range is not as it should be."""


def count(unit: Unit, kinds: frozenset[Kind], alive: Alive = silent) -> Census:
    """How many records of the range are of one of ``kinds``, and what the others are; ``alive`` is called all the while."""
    if unit.bytes == 0:
        return Census(None)
    found: Counter[str] = Counter()
    with located(unit.path).open("rb") as file:
        part = _Range(file, unit.start, unit.stop)
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(unit.start)
        lines = _Lines(part, gzip.GzipFile(fileobj=cast("BinaryIO", part)) if packed else part, alive)
        try:
            while (kind := _next(lines)) is not None:
                found[kind] += 1
        except (_UnknowableError, EOFError, gzip.BadGzipFile, zlib.error):
            return Census(None)
    documents = sum(found.pop(kind.value, 0) for kind in kinds)
    return Census(documents, others=dict(sorted(found.items())))


def _next(lines: _Lines) -> str | None:
    """The kind of the next record, or its type where it is no document; None at the end."""
    line = lines.line()
    while line in (b"\n", b"\r\n"):
        line = lines.line()
    if not line:
        return None
    if re.fullmatch(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n", line):
        fields = _fields(lines)
        block = lines.take(_length(fields.get(b"content-length", b"")))
        own = _text(fields.get(b"content-type", b""))
        found = _text(fields.get(b"warc-type", b"")).lower()
    else:
        words = line.rstrip(b"\r\n").split(b" ")
        if len(words) < 5 or b":" not in words[0]:
            raise _UnknowableError
        block = lines.take(_length(words[-1]))
        declared = next((word for word in words[2:-1] if b"/" in word or word in _NO_TYPE), b"")
        fields, own = {}, "" if declared in _NO_TYPE else _text(declared)
        found = "warcinfo" if line.startswith(b"filedesc:") else "response"
    if not found:
        raise _UnknowableError
    kind = _kind(found, own, fields, block)
    return found if kind is Kind.OTHER else kind.value


_NO_TYPE = (b"no-type", b"unknown", b"-")


def _kind(found: str, own: str, fields: dict[bytes, bytes], block: bytes) -> Kind:
    arc = not fields
    declared = "" if is_http(own) else own
    if (arc or is_http(own) or not own) and _STATUS.match(block):
        head = _FOLD.sub(b" ", re.split(rb"\r?\n\r?\n", block, maxsplit=1)[0])
        answered = next((line for line in head.split(b"\n") if re.match(rb"(?i)\s*content-type\s*:", line)), b":")
        declared = _text(answered.partition(b":")[2].strip()) or (own if arc else "")
    elif not own and found != "response":
        declared = "unknown"
    return kind_of(found, declared, _text(fields.get(b"warc-identified-payload-type", b"")))


def _text(value: bytes) -> str:
    """Bytes that are no text stay visible, so that none passes for a space."""
    return value.decode("utf-8", "backslashreplace")


def _fields(lines: _Lines) -> dict[bytes, bytes]:
    """Named fields up to the empty line; the first of each name."""
    found: dict[bytes, bytes] = {}
    size, last = 0, b""
    while (line := lines.line()).strip(b"\r\n"):
        size += len(line)
        if size > _MAX_LINE:
            raise _UnknowableError
        name, colon, value = line.partition(b":")
        if line[:1] in b" \t" and last:
            found[last] += b" " + line.strip()
            continue
        name = name.strip().lower()
        last = b"" if name in found or not colon else name
        if last:
            found[last] = value.strip()
    if not line:
        raise _UnknowableError
    return found


def _length(digits: bytes) -> int:
    if not (digits.isdigit() and len(digits) <= 18):
        raise _UnknowableError
    return int(digits)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Range:
    """The bytes ``[start, stop)`` of a file, as a stream."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self._file, self._left = file, stop - start
        self.given = 0
        file.seek(start)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        self.given += len(data)
        return data


class _Lines:
    """Lines and stretches of a stream; what unpacks to too many times its size is no archive."""

    def __init__(self, source: _Range, stream: _Readable, alive: Alive) -> None:
        self._source, self._stream, self._alive = source, stream, alive
        self._rest, self._out = b"", 0

    def line(self) -> bytes:
        """The next line with its newline; empty at the end."""
        while b"\n" not in self._rest:
            if len(self._rest) > _MAX_LINE:
                raise _UnknowableError
            piece = self._more()
            if not piece:
                break
            self._rest += piece
        line, newline, self._rest = self._rest.partition(b"\n")
        return line + newline

    def take(self, size: int) -> bytes:
        """The beginning of the next ``size`` bytes, all of which are gone over."""
        opening = self._rest[: min(size, _MAX_LINE)]
        left = size - len(self._rest)
        self._rest = self._rest[size:]
        while left > 0:
            piece = self._more()
            if not piece:
                raise _UnknowableError
            if len(opening) < _MAX_LINE:
                opening += piece[: min(left, _MAX_LINE - len(opening))]
            self._rest = piece[left:]
            left -= len(piece)
        return opening

    def _more(self) -> bytes:
        self._alive()
        piece = self._stream.read(_PIECE)
        self._out += len(piece)
        if self._out > BOMB_BYTES and self._out > BOMB_RATIO * self._source.given:
            raise _UnknowableError
        return piece
