"""HTTP messages as archives hold them: status, header fields, and the payload with its encodings undone, within bounds.

Archives are not of one mind on what they keep: some undo chunks or compression and leave the header fields that speak of
them. So an encoding is undone only where the payload is in fact encoded that way; else the payload is taken as it lies there.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from tokkit.errors import ItemError, TokkitError
from tokkit.sources.warc.records import parse_fields, text

MAX_HTTP_HEADER = 1 << 16
_STATUS = re.compile(rb"HTTP/\d(?:\.\d)?[ \t]+(\d{3})(?:[ \t][^\n]*)?\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_CHUNK = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\n]{0,1000})?\r?\n")
_MAX_CODINGS = 4
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class HttpHead:
    """The beginning of a response.

    Attributes:
        status: three digits.
        fields: named fields, names in lower case, the first of each name.
        size: bytes up to the payload.
    """

    status: int
    fields: Mapping[str, str]
    size: int

    @property
    def content_type(self) -> str:
        """The header field, parameters and all."""
        return self.fields.get("content-type", "")


def parse_http(block: bytes) -> HttpHead | None:
    """The head of the response that ``block`` begins with, or None where it is no HTTP response."""
    status = _STATUS.match(block)
    if status is None:
        return None
    end = _END.search(block, status.end() - 2, MAX_HTTP_HEADER)
    # A response that ends with its header has nothing else.
    lines = block[status.end() : end.start() if end else MAX_HTTP_HEADER]
    return HttpHead(int(status[1]), parse_fields(lines.split(b"\n")), end.end() if end else len(block))


def payload_of(head: HttpHead, block: bytes, limit: int, *, truncated: bool = False) -> bytes:
    """The payload with chunks put together and compression undone.

    Args:
        limit: bytes that it may come to.
        truncated: the archive says itself that it kept only the beginning: what there is is taken.

    Raises:
        ItemError: ``payload-truncated``, ``content-encoding-damaged``, ``content-encoding-unknown``, ``payload-too-large``.
        TokkitError: brotli is not installed, and the payload is compressed with it.
    """
    data = block[head.size :]
    if "chunked" in head.fields.get("transfer-encoding", "").lower():
        data = _dechunked(data, truncated)
    codings = [name.strip().lower() for name in head.fields.get("content-encoding", "").split(",") if name.strip()]
    if len(codings) > _MAX_CODINGS:
        raise ItemError("content-encoding-unknown", f"{len(codings)} encodings, one over the other")
    for coding in reversed(codings):
        data = _decoded(data, coding, limit, truncated)
    if len(data) > limit:
        raise ItemError("payload-too-large", f"{len(data)} bytes; at most {limit} are read")
    return data


def _dechunked(data: bytes, truncated: bool) -> bytes:
    """Chunks put together; ``data`` itself where it does not begin with the size of one."""
    parts: list[bytes] = []
    place = 0
    while True:
        size = _CHUNK.match(data, place)
        if size is None:
            if not parts and data.strip():  # the archive has put them together already
                return data
            break
        length = int(size[1], 16)
        if length == 0:
            return b"".join(parts)
        part = data[size.end() : size.end() + length]
        parts.append(part)
        place = size.end() + length
        if len(part) < length:
            break
        place += 2 if data[place : place + 2] == b"\r\n" else 1 if data[place : place + 1] == b"\n" else 0
    if truncated:
        return b"".join(parts)
    raise ItemError("payload-truncated", "the last of the chunks that the payload comes in is missing")


def _decoded(data: bytes, coding: str, limit: int, truncated: bool) -> bytes:
    if coding in ("identity", "none", "utf-8", "binary", "8bit") or not data:
        return data
    if coding in ("gzip", "x-gzip"):
        return _inflated(data, 31, limit, truncated) if data.startswith(b"\x1f\x8b") else data
    if coding == "deflate":
        return _deflated(data, limit, truncated)
    if coding == "br":
        return _unbrotlied(data, limit, truncated)
    raise ItemError("content-encoding-unknown", f"the content encoding is {text(coding.encode())[:40]!r}")


def _deflated(data: bytes, limit: int, truncated: bool) -> bytes:
    """``deflate`` is a zlib stream by the standard and a bare one by custom; text that is neither was never compressed."""
    for bits in (15, -15):
        try:
            return _inflated(data, bits, limit, truncated)
        except ItemError as error:
            if error.reason == "payload-too-large":
                raise
    if data.lstrip()[:1] == b"<":
        return data
    raise ItemError("content-encoding-damaged", "the payload says deflate and is not")


def _inflated(data: bytes, bits: int, limit: int, truncated: bool) -> bytes:
    """One or more compressed streams."""
    parts: list[bytes] = []
    size = 0
    while data:
        machine = zlib.decompressobj(bits)
        while not machine.eof:
            try:
                piece = machine.decompress(data, min(_PIECE, limit + 1 - size))
            except zlib.error as error:
                if truncated and parts:
                    return b"".join(parts)
                raise ItemError("content-encoding-damaged", f"the compressed payload breaks: {error}") from None
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise ItemError("payload-too-large", f"it unpacks to more than {limit} bytes")
            data = machine.unconsumed_tail
            if not piece and not data and not machine.eof:
                if truncated:
                    return b"".join(parts)
                raise ItemError("payload-truncated", "the compressed payload ends too early")
        data = machine.unused_data if bits == 31 and machine.unused_data.startswith(b"\x1f\x8b") else b""
    return b"".join(parts)


def _unbrotlied(data: bytes, limit: int, truncated: bool) -> bytes:
    try:
        import brotli
    except ImportError:
        raise TokkitError("a payload is compressed with brotli, which is not installed: pip install brotli") from None
    machine, parts, size = brotli.Decompressor(), [], 0
    try:
        piece = machine.process(data, output_buffer_limit=_PIECE)
        while True:
            parts.append(piece)
            size += len(piece)
            if size > limit:
                raise ItemError("payload-too-large", f"it unpacks to more than {limit} bytes")
            if machine.is_finished() or (not piece and machine.can_accept_more_data()):
                break
            piece = machine.process(b"", output_buffer_limit=_PIECE)
    except brotli.error as error:
        if not parts and data.lstrip()[:1] == b"<":
            return data  # never compressed, or no longer
        if truncated:
            return b"".join(parts)
        raise ItemError("content-encoding-damaged", f"the compressed payload breaks: {error}") from None
    if not machine.is_finished() and not truncated:
        raise ItemError("payload-truncated", "the compressed payload ends too early")
    return b"".join(parts)
