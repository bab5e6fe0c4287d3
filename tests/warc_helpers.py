"""Web archives made for tests, and a scanner of their records that shares nothing with the one that is tested."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

from sources_helpers import Result, read_all, source_of

DATE = "2024-05-01T00:00:00Z"


def png(width: int = 16, height: int = 12, colour: int = 0) -> bytes:
    """A true picture."""
    from PIL import Image

    out = io.BytesIO()
    Image.new("RGB", (width, height), (colour % 256, 80, 160)).save(out, "PNG")
    return out.getvalue()


def record(
    kind: str, url: str, block: bytes, content_type: str = "", *more: tuple[str, str], length: int | None = None
) -> bytes:
    """One WARC record; ``length`` is what it claims where that is not true."""
    identity = hashlib.md5(kind.encode() + url.encode() + block).hexdigest()
    fields = [
        ("WARC-Type", kind),
        ("WARC-Record-ID", f"<urn:uuid:{identity}>"),
        ("WARC-Date", DATE),
        *([("WARC-Target-URI", url)] if url else []),
        *([("Content-Type", content_type)] if content_type else []),
        *more,
        ("Content-Length", str(len(block) if length is None else length)),
    ]
    head = "WARC/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    return head.encode() + b"\r\n" + block + b"\r\n\r\n"


def http(
    payload: bytes, content_type: str | None = "text/html; charset=utf-8", status: int = 200, *more: tuple[str, str]
) -> bytes:
    """An HTTP response."""
    fields = [*([("Content-Type", content_type)] if content_type else []), *more]
    head = f"HTTP/1.1 {status} Some Reason\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields)
    return head.encode() + b"\r\n" + payload


def response(
    url: str,
    payload: bytes | str,
    content_type: str | None = "text/html; charset=utf-8",
    status: int = 200,
    *more: tuple[str, str],
) -> bytes:
    """A record of an HTTP response, with its payload's digest."""
    body = payload.encode() if isinstance(payload, str) else payload
    block = http(body, content_type, status, *more)
    return record("response", url, block, "application/http; msgtype=response", ("WARC-Payload-Digest", digest(body)))


def digest(payload: bytes) -> str:
    return "sha1:" + base64.b32encode(hashlib.sha1(payload).digest()).decode()


def page(body: str, title: str = "T") -> str:
    return f"<!DOCTYPE html><html><head><title>{title}</title></head><body>{body}</body></html>"


def arc(records: Iterable[tuple[str, str, bytes]]) -> list[bytes]:
    """ARC records, the first that of the file itself."""
    made = [b"filedesc://x.arc 0.0.0.0 20140216050221 text/plain 75\n" + b"1 0 Test".ljust(74, b" ") + b"\n\n"]
    for url, kind, block in records:
        made.append(f"{url} 127.0.0.1 20140216050221 {kind} {len(block)}\n".encode() + block + b"\n")
    return made


def write(path: Path, records: Iterable[bytes], layout: str = "members") -> Path:
    """An archive: ``plain``, ``members`` (each record a gzip member) or ``stream``."""
    parts = list(records)
    if layout == "members":
        path.write_bytes(b"".join(gzip.compress(part, 6, mtime=0) for part in parts))
    elif layout == "stream":
        path.write_bytes(gzip.compress(b"".join(parts), 6, mtime=0))
    else:
        path.write_bytes(b"".join(parts))
    return path


def read(path: Path, unit_bytes: int = 1 << 40, kind: str = "warc") -> Result:
    return read_all(source_of(kind, path), unit_bytes)


def scan(path: Path) -> list[tuple[str, str, int | None, str]]:
    """(type, URL, HTTP status, HTTP content type) of each WARC record of a sound archive, by splitting at record headers."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        out, rest = [], data
        while rest.strip(b"\0"):
            machine = zlib.decompressobj(31)
            out.append(machine.decompress(rest))
            rest = machine.unused_data
        data = b"".join(out)
    found = []
    while data:
        head, _, behind = data.partition(b"\r\n\r\n")
        fields = {}
        for line in head.decode("latin-1").split("\r\n")[1:]:
            name, _, value = line.partition(":")
            fields.setdefault(name.lower(), value.strip())
        length = int(fields["content-length"])
        block, data = behind[:length], behind[length + 4 :]
        status, kind = None, ""
        if block.startswith(b"HTTP/"):
            lines = block.partition(b"\r\n\r\n")[0].decode("latin-1").splitlines()
            status = int(lines[0].split()[1])
            kind = next((v.partition(":")[2].strip() for v in lines if v.lower().startswith("content-type:")), "")
        found.append(
            (fields["warc-type"], fields.get("warc-target-uri", "").strip("<>"), status, kind or fields.get("content-type", ""))
        )
    return found


def scan_arc(path: Path) -> list[tuple[str, str, int | None, str]]:
    """The same of an ARC: each record a line of URL, address, date, type and length, then so many bytes and a line end."""
    data = gzip.decompress(path.read_bytes()) if path.name.endswith(".gz") else path.read_bytes()
    found = []
    while data:
        head, _, behind = data.partition(b"\n")
        url, _, _, kind, length = head.decode("latin-1").rsplit(" ", 4)
        block, data = behind[: int(length)], behind[int(length) :].lstrip(b"\r\n")
        is_http = block.startswith(b"HTTP/")
        status = int(block.split(None, 2)[1]) if is_http else None
        found.append(("response" if url.startswith("http") else "other", url, status, kind))
    return found


def stored(data: bytes) -> bytes:
    """A gzip member whose deflate stream is stored blocks: ``data`` lies in it as it is, cut every 65,535 bytes."""
    blocks = [data[i : i + 65535] for i in range(0, len(data), 65535)] or [b""]
    body = b"".join(
        bytes([place == len(blocks) - 1]) + struct.pack("<HH", len(block), len(block) ^ 0xFFFF) + block
        for place, block in enumerate(blocks)
    )
    return b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff" + body + struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
