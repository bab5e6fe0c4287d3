"""One record's header, WARC 0.17 to 1.1 (ISO 28500) or ARC 1 and 2.

A WARC record is a version line, named fields, an empty line, ``Content-Length`` bytes and two line ends. An ARC record is one
line (URL, IP, date, type... length), ``length`` bytes and one newline. Headers are untrusted: bounded, decoded with escapes,
and never taken for a header unless they have what a header must have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokkit.sources.untrusted import printable

MAX_HEADER = 1 << 16
MAX_LENGTH = 1 << 50  # what claims more is no length

_VERSION = re.compile(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_ARC_LINE = re.compile(
    rb"([A-Za-z][A-Za-z0-9+.-]{0,30}:[^\n]{1,60000}?) (\S{1,100}) (\d{8,17}) (\S{1,200})((?: \S{1,2000}){0,6}?) (\d{1,18})\r?\n"
)
_WARC_START = re.compile(rb"WARC/\d\.\d{1,2}[ \t]*\r?\n[A-Za-z0-9-]+:")
_ARC_START = re.compile(
    rb"[A-Za-z][A-Za-z0-9+.-]{0,30}:[^\n]{1,60000}? \S{1,100} \d{14} \S{1,200}(?: \S{1,2000}){0,6}? \d{1,18}\r?\n"
)


@dataclass(frozen=True, slots=True)
class Header:
    """A record's header.

    Attributes:
        size: bytes of the header.
        length: bytes of the block behind it.
        fields: named fields, names in lower case, the first of each name; of an ARC record as a WARC record would have them.
        arc: from an ARC file: what follows the block is one newline.
    """

    size: int
    length: int
    fields: Mapping[str, str]
    arc: bool

    @property
    def type(self) -> str:
        """``response``, ``revisit``... in lower case."""
        return self.fields.get("warc-type", "").lower()

    @property
    def url(self) -> str:
        """The target's URL; empty where there is none. Some writers put it between angle brackets."""
        return self.fields.get("warc-target-uri", "").removeprefix("<").removesuffix(">")

    @property
    def content_type(self) -> str:
        """The block's type, parameters and all."""
        return self.fields.get("content-type", "")


class HeaderError(Exception):
    """There is no record header; the message says why not. ``cut`` where there may be one that the bytes end in."""

    def __init__(self, message: str, *, cut: bool = False) -> None:
        super().__init__(message)
        self.cut = cut


def parse_header(data: bytes) -> Header:
    """The header that ``data`` (at least ``MAX_HEADER`` bytes, or all there are) begins with; raises HeaderError."""
    if _VERSION.match(data):
        return _warc_header(data)
    arc = _ARC_LINE.match(data)
    if arc is not None:
        return _arc_header(arc)
    if len(data) < 200 and (b"WARC/1.".startswith(data[:7]) or data.startswith(b"WARC/")):
        raise HeaderError("the bytes end within a record header", cut=True)
    raise HeaderError(f"no record begins with {data[:24]!r}")


def begins_record(data: bytes) -> bool:
    """Whether ``data`` begins with what looks like a record header."""
    return _VERSION.match(data) is not None or _ARC_LINE.match(data) is not None


def find_record(data: bytes, start: int) -> int:
    """The first place at or behind ``start`` that looks like a record header (of an ARC: at the beginning of a line); or -1."""
    warc = data.find(b"WARC/", start)
    while warc >= 0 and not _WARC_START.match(data, warc):
        warc = data.find(b"WARC/", warc + 1)
    stop = warc if warc >= 0 else len(data)
    line = start if start == 0 or data[start - 1] == 10 else data.find(b"\n", start, stop) + 1
    while line < stop and (line > 0 or start == 0):
        if _ARC_START.match(data, line):
            return line
        newline = data.find(b"\n", line, stop)
        if newline < 0:
            break
        line = newline + 1
    return warc


def _warc_header(data: bytes) -> Header:
    end = _END.search(data, 0, MAX_HEADER)
    if end is None:
        if len(data) >= MAX_HEADER:
            raise HeaderError(f"a record header of more than {MAX_HEADER} bytes")
        raise HeaderError("the bytes end within a record header", cut=True)
    lines = data[: end.start()].split(b"\n")[1:]
    if any(line.startswith(b"WARC/") for line in lines):
        raise HeaderError("a record header within a record header")
    fields = parse_fields(lines)
    length = fields.get("content-length", "")
    if not (length.isascii() and length.isdigit() and len(length) <= 18) or int(length) > MAX_LENGTH:
        raise HeaderError(f"the Content-Length is {length[:40]!r}" if length else "a record header without Content-Length")
    if not fields.get("warc-type"):
        raise HeaderError("a record header without WARC-Type")
    return Header(end.end(), int(length), fields, arc=False)


def _arc_header(line: re.Match[bytes]) -> Header:
    url, address, date, kind, _, length = (text(part) for part in line.groups())
    fields = {"warc-type": "response", "warc-target-uri": url, "warc-ip-address": address, "warc-date": _iso(date)}
    if url.startswith("filedesc:"):
        fields |= {"warc-type": "warcinfo"}
    if kind not in ("no-type", "unknown", "-"):
        fields["content-type"] = kind
    return Header(line.end(), int(length), fields, arc=True)


def parse_fields(lines: list[bytes]) -> dict[str, str]:
    """``Name: value`` lines, names in lower case; the first of each name, folded lines joined."""
    fields: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (b" ", b"\t") and name:
            fields[name] += " " + text(line.strip())
            continue
        key, colon, value = line.partition(b":")
        name = text(key.strip()).lower() if colon else ""
        if name and name in fields:
            name = ""
        elif name:
            fields[name] = text(value.strip())
    return fields


def text(data: bytes) -> str:
    """Bytes of a header as text that any file format can hold."""
    return printable(data.decode("utf-8", "backslashreplace")).replace("\0", "\\x00")


def _iso(date: str) -> str:
    """``20140216050221`` as ``2014-02-16T05:02:21Z``."""
    if len(date) < 14:
        return date
    return f"{date[:4]}-{date[4:6]}-{date[6:8]}T{date[8:10]}:{date[10:12]}:{date[12:14]}Z"
