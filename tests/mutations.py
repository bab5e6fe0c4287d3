"""Changes to files, drawn from a random generator: any bytes, and what a format's own structure invites.

Random changes mostly break the outermost layer (a checksum, a compressed stream) and never come to what lies within. So those
of a format take it apart, change a part, and put it together again with its lengths and checksums right.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial

Mutation = Callable[[bytes, random.Random], bytes]

LARGEST = 4 << 20
SPANS = (1, 1, 2, 4, 8, 16, 64, 512, 4096)
NUMBERS = (0, 1, 2, 7, 127, 128, 255, 256, 511, 512, 513, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
WIDE_NUMBERS = (*NUMBERS, 2**33, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
DIGITS = (
    b"0",
    b"-1",
    b"1",
    b"00000000000",
    b"4294967295",
    b"9223372036854775807",
    b"99999999999999999999",
    b"1e9",
    b"0x10",
    b"",
)


# ---- any bytes


def _range(data: bytes | bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data) or 1)
    return start, min(len(data), start + rng.choice(SPANS))


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 4, 32))):
        if out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def replace_bytes(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    filler = rng.choice((b"\0", b"\xff", b" ", b"A", b'"', b"\n", None))
    return data[:start] + (rng.randbytes(stop - start) if filler is None else filler * (stop - start)) + data[stop:]


def leave_out(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:start] + data[stop:]


def repeat_part(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    return data[:stop] + data[start:stop] * rng.choice((1, 1, 2, 9, 200)) + data[stop:]


def move_part(data: bytes, rng: random.Random) -> bytes:
    start, stop = _range(data, rng)
    rest = data[:start] + data[stop:]
    place = rng.randint(0, len(rest))
    return rest[:place] + data[start:stop] + rest[place:]


def insert_noise(data: bytes, rng: random.Random) -> bytes:
    place = rng.randint(0, len(data))
    return data[:place] + rng.randbytes(rng.choice(SPANS)) + data[place:]


def cut_end(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((rng.randrange(len(data) or 1), len(data) - min(len(data), rng.choice(SPANS))))]


def cut_begin(data: bytes, rng: random.Random) -> bytes:
    return data[rng.choice(SPANS) :]


def twice(data: bytes, rng: random.Random) -> bytes:
    return data + data[: rng.choice((len(data), rng.randrange(len(data) or 1)))]


def set_number(data: bytes, rng: random.Random) -> bytes:
    """Some bytes as a binary number at an extreme, of either byte order."""
    code = rng.choice("BHIQ")
    number = rng.choice(WIDE_NUMBERS) % (1 << 8 * struct.calcsize(code))
    packed = struct.pack(rng.choice("<>") + code, number)
    place = rng.randrange(len(data) or 1)
    return data[:place] + packed + data[place + len(packed) :]


def set_digits(data: bytes, rng: random.Random) -> bytes:
    """A written number at an extreme."""
    place = rng.randrange(len(data) or 1)
    start = next((i for i in range(place, min(len(data), place + 4000)) if 48 <= data[i] <= 57), None)
    if start is None:
        return data
    stop = start
    while stop < len(data) and 48 <= data[stop] <= 57:
        stop += 1
    return data[:start] + rng.choice(DIGITS) + data[stop:]


RANDOM: tuple[Mutation, ...] = (
    flip_bits,
    replace_bytes,
    leave_out,
    repeat_part,
    move_part,
    insert_noise,
    cut_end,
    cut_begin,
    twice,
    set_number,
    set_digits,
)


def anyhow(data: bytes, rng: random.Random) -> bytes:
    """One random change; of nothing comes a little noise."""
    return rng.choice(RANDOM)(data, rng) if data else rng.randbytes(rng.randrange(20))


def inserting(*tokens: bytes) -> Mutation:
    """Puts one of the tokens somewhere, or in the place of other bytes."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        place, token = rng.randint(0, len(data)), rng.choice(tokens)
        return data[:place] + token + data[place + rng.choice((0, 0, len(token))) :]

    return mutate


def splicing(*others: bytes) -> Mutation:
    """The begin of the file and the end of another."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        other = rng.choice(others)
        return data[: rng.randint(0, len(data))] + other[rng.randint(0, len(other)) :]

    return mutate


def in_blocks(size: int) -> Mutation:
    """Blocks of ``size`` bytes left out, doubled, exchanged or emptied."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        blocks = [data[i : i + size] for i in range(0, len(data), size)] or [b""]
        a, b = rng.randrange(len(blocks)), rng.randrange(len(blocks))
        match rng.randrange(5):
            case 0:
                del blocks[a]
            case 1:
                blocks.insert(b, blocks[a])
            case 2:
                blocks[a], blocks[b] = blocks[b], blocks[a]
            case 3:
                blocks[a] = bytes(len(blocks[a]))
            case _:
                blocks[a:a] = blocks[min(a, b) : max(a, b) + 1]
        return b"".join(blocks)

    return mutate


# ---- JSON, line by line or whole

STRANGE = (
    None,
    True,
    False,
    0,
    -1,
    1.5,
    1e308,
    2**63,
    2**200,
    -(2**53) - 1,
    "",
    " ",
    "\0",
    "\ud800",
    "\ufeff",
    "../../etc/passwd",
    "/etc/passwd",
    "<image>",
    "\u2028",
    "a" * 5000,
    "\U0001f98a",
    "\n",
    "\r\n",
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"text": {}},
)
RAW = ("NaN", "-Infinity", "1" * 5000, "[" * 300 + "]" * 300, "[" * 9000, '"\\ud800"', '{"a":1,"a":2}', "1e999", "-", "'x'")


def change_value(value: object, rng: random.Random) -> object:
    """A JSON value with one thing in it changed: replaced, left out, renamed, doubled."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        found = dict(value)
        key = rng.choice(list(found))
        match rng.randrange(6):
            case 0:
                del found[key]
            case 1:
                found[str(rng.choice((key.upper(), "", key + "s", "text", "id", "image")))] = found.pop(key)
            case 2:
                found[key] = rng.choice(list(found.values()))
            case _:
                found[key] = change_value(found[key], rng)
        return found
    if isinstance(value, list) and value and rng.random() < 0.85:
        items = list(value)
        place = rng.randrange(len(items))
        match rng.randrange(5):
            case 0:
                del items[place]
            case 1:
                items.insert(place, items[rng.randrange(len(items))])
            case 2:
                items = items * rng.choice((2, 50))
            case _:
                items[place] = change_value(items[place], rng)
        return items
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.5:
        return rng.choice((value + 1, value - 1, -value, value * 10**9, float(value), str(value), value + 0.5))
    return rng.choice(STRANGE)


def _dumped(value: object, rng: random.Random) -> bytes:
    text = json.dumps(value, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.1:
        text = text.replace(json.dumps(rng.choice(("url", "text", "caption", 0, None))), rng.choice(RAW), 1)
    return text.encode("utf-8", "surrogatepass")


def json_value(data: bytes, rng: random.Random) -> bytes:
    """A file that is one JSON value, changed within."""
    try:
        return _dumped(change_value(json.loads(data), rng), rng)
    except (ValueError, RecursionError):
        return anyhow(data, rng)


def json_line(data: bytes, rng: random.Random) -> bytes:
    """JSON lines of which one is changed within."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    try:
        lines[place] = _dumped(change_value(json.loads(lines[place]), rng), rng)
    except (ValueError, RecursionError):
        lines[place] = rng.choice((b"", b"\r", b" ", b"null", b"[]", b"\xef\xbb\xbf{}", b"\xff\xfe"))
    return rng.choice((b"\n", b"\n", b"\n", b"\r\n")).join(lines)


# ---- compressed files


def within_gzip(inner: Mutation, *, members: bool = False) -> Mutation:
    """What is compressed, changed; with ``members`` that of one member, others left as they are."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        parts = gzip_members(data)
        if not parts:
            return anyhow(data, rng)
        if not members:
            return gzip.compress(inner(b"".join(parts), rng), 1, mtime=0)
        place = rng.randrange(len(parts))
        parts[place] = inner(parts[place], rng)
        if rng.random() < 0.2:
            parts[place : place + 2] = [b"".join(parts[place : place + 2])]
        return b"".join(gzip.compress(part, 1, mtime=0) for part in parts)

    return mutate


def gzip_members(data: bytes) -> list[bytes]:
    """What the members hold, up to the first that is damaged."""
    parts = []
    with contextlib.suppress(zlib.error):
        while data:
            machine = zlib.decompressobj(31)
            parts.append(machine.decompress(data))
            data = machine.unused_data
    return parts


def gzip_header(data: bytes, rng: random.Random) -> bytes:
    """Flags and optional fields of a gzip header, or the trailer."""
    out = bytearray(data)
    if len(out) < 20:
        return anyhow(data, rng)
    if rng.random() < 0.3:
        out[-rng.randint(1, 8)] ^= 1 << rng.randrange(8)
        return bytes(out)
    flags = rng.choice((1, 2, 4, 8, 16, 4 | 8 | 16, 32, 255))
    out[3] = flags
    extra = b""
    if flags & 4:
        length = rng.choice((0, 3, 65535))
        extra += struct.pack("<H", length) + b"x" * rng.choice((length, 1))
    extra += b"name\0" * bool(flags & 8) + b"note\0" * bool(flags & 16) + b"\0\0" * bool(flags & 2)
    return bytes(out[:10]) + extra + bytes(out[10:])


def within_zip(inner: Mutation) -> Mutation:
    """The zipped file changed, or the archive around it."""

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                name = archive.namelist()[0]
                content = archive.read(name)
        except Exception:  # it is broken already
            return anyhow(data, rng)
        content = inner(content, rng) if rng.random() < 0.7 else content
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))) as archive:
            archive.writestr(rng.choice((name, name, "../x", "d/")), content)
            if rng.random() < 0.15:
                archive.writestr("second", b"x")
            archive.comment = rng.choice((b"", b"", b"PK\5\6" * 9))
        return out.getvalue()

    return mutate


def zip_directory(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the central directory and its end, where offsets, sizes and flags are."""
    start = max(0, len(data) - rng.choice((22, 60, 120)))
    return data[:start] + rng.choice((flip_bits, set_number, replace_bytes))(data[start:] or b"x", rng)


def within_zstd(inner: Mutation) -> Mutation:
    """What is compressed, changed."""
    import pyarrow as pa

    def mutate(data: bytes, rng: random.Random) -> bytes:
        try:
            with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
                content = stream.read(1 << 24)
        except OSError:
            return anyhow(data, rng)
        content = inner(content, rng)
        frames = [content] if rng.random() < 0.7 else [content[:100], content[100:]]
        packed = b"".join(pa.compress(frame, "zstd", asbytes=True) for frame in frames)
        return packed + rng.choice((b"", b"", b"\x50\x2a\x4d\x18\4\0\0\0skip", b"\0\0"))

    return mutate


# ---- tar


def tar_header(data: bytes, rng: random.Random) -> bytes:
    """One field of one header, with the header's checksum put right."""
    places = [i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b"ustar"]
    if not places:
        return anyhow(data, rng)
    place = rng.choice(places)
    block = bytearray(data[place : place + 512])
    match rng.randrange(7):
        case 0 | 1:
            octal = b"%011o" % rng.choice((0, 1, 511, 512, 513, 10**6, 8**11 - 1))
            block[124:136] = rng.choice(
                (octal + b"\0", octal + b" ", b"-0000000001\0", b"\xff" * 12, b"\x80" + bytes(10) + b"\7")
            )
        case 2:
            block[124:136] = bytes([rng.choice((0x80, 0xFF))]) + rng.randbytes(11)
        case 3:
            block[156:157] = rng.choice(
                (b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"L", b"K", b"x", b"g", b"S", b"V", b"Z")
            )
        case 4:
            names = (
                b"",
                b"a",
                b"a.",
                b".jpg",
                b"/a.jpg",
                b"../a.jpg",
                b"x" * 100,
                b"\xff.jpg",
                b"a\0b.jpg",
                b"000000000.jpg",
                b"a/.txt",
            )
            block[0:100] = rng.choice(names).ljust(100, b"\0")
        case 5:
            block[345:500] = rng.choice((b"p/q", b"..", b"\xff", b"/")).ljust(155, b"\0")
        case _:
            at = rng.randrange(512)
            block[at] = rng.randrange(256)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return data[:place] + bytes(block) + data[place + 512 :]


def tar_pax(data: bytes, rng: random.Random) -> bytes:
    """A pax extension header in front of a member, right or wrong."""
    places = [i for i in range(0, len(data) - 511, 512) if data[i + 257 : i + 262] == b"ustar"]
    if not places:
        return anyhow(data, rng)
    texts = (
        b"path=../x.jpg",
        b"path=",
        b"size=0",
        b"size=99999999999999999999",
        b"size=-5",
        b"size=1.5",
        b"size= 7",
        b"hdrcharset=BINARY",
        b"GNU.sparse.major=1",
        b"GNU.sparse.map=1,2,3",
        b"GNU.sparse.size=9",
        b"mtime=x",
        b"path=\xff\xfe.jpg",
        b"a=" + b"b" * 600,
    )
    body = b""
    for text in rng.sample(texts, rng.randint(1, 3)):
        record = b" " + text + b"\n"
        length = len(record) + len(str(len(record) + 2))
        body += rng.choice((str(length), str(length), str(length), "0", "999", "-3", "x", "")).encode() + record
    info = tarfile.TarInfo("pax")
    info.size, info.type = len(body), rng.choice((tarfile.XHDTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE))
    extension = info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")
    place = rng.choice(places)
    return data[:place] + extension + data[place:]


# ---- parquet


def parquet_footer(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the footer (Thrift), its length and the closing mark left as they are, or the length itself."""
    if len(data) < 16 or data[-4:] != b"PAR1":
        return anyhow(data, rng)
    length = struct.unpack("<I", data[-8:-4])[0]
    start = len(data) - 8 - length
    if start < 4 or rng.random() < 0.05:
        return data[:-8] + struct.pack("<I", rng.choice(NUMBERS)) + data[-4:]
    footer = rng.choice((flip_bits, flip_bits, set_number, replace_bytes, move_part, leave_out))(data[start:-8], rng)
    return data[:start] + footer + struct.pack("<I", len(footer)) + data[-4:]


def parquet_pages(data: bytes, rng: random.Random) -> bytes:
    """Bytes of the pages and their headers."""
    if len(data) < 16:
        return anyhow(data, rng)
    length = struct.unpack("<I", data[-8:-4])[0]
    stop = max(8, min(len(data) - 8, len(data) - 8 - length))
    changed = rng.choice((flip_bits, set_number, replace_bytes))(data[4:stop], rng)[: stop - 4].ljust(stop - 4, b"\0")
    return data[:4] + changed + data[stop:]


def parquet_rows(data: bytes, rng: random.Random) -> bytes:
    """Other rows, names or types of columns, written anew."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(data), use_threads=False)
        place = rng.randrange(max(1, table.num_columns))
        field = table.schema.field(place)
        kind = rng.choice(
            (field.type, field.type, pa.string(), pa.binary(), pa.int64(), pa.list_(pa.string()), pa.large_string())
        )
        match rng.randrange(5):
            case 0:
                table = table.rename_columns([rng.choice((name, name, "text", "images", "x")) for name in table.column_names])
            case 1:
                table = table.remove_column(place)
            case 2:
                table = pa.concat_tables([table, table.slice(rng.randrange(max(1, table.num_rows)))])
            case _:
                values = table.column(place).to_pylist()
                values = [change_value(value, rng) if rng.random() < 0.4 else value for value in values]
                table = table.set_column(place, field.name, pa.array(values, kind))
    except Exception:  # no such table can be, or there is none any more
        return anyhow(data, rng)
    out = io.BytesIO()
    codec = rng.choice(("snappy", "gzip", "zstd", "none", "brotli", "lz4"))
    version = rng.choice(("1.0", "2.0"))
    pq.write_table(table, out, row_group_size=rng.choice((1, 2, 5, 100)), compression=codec, data_page_version=version)
    return out.getvalue()


# ---- web archives

FIELDS = (
    b"WARC-Type: response",
    b"WARC-Type: resource",
    b"WARC-Type: conversion",
    b"WARC-Type: revisit",
    b"WARC-Type: x",
    b"WARC-Truncated: length",
    b"Content-Length: 5",
    b"Content-Length: -1",
    b"Content-Length: 99999999999999999999",
    b"Content-Length: ",
    b"Content-Encoding: gzip",
    b"Content-Encoding: br, gzip",
    b"Transfer-Encoding: chunked",
    b"Content-Type: text/html; charset=utf-16",
    b"Content-Type: application/http",
    b"WARC-Segment-Number: 2",
    b"WARC-Refers-To-Target-URI: http://a/",
    b"Location: /0.png",
    b"WARC-Target-URI: \xff",
    b" folded: x",
    b"WARC-Record-ID: <urn:uuid:\xff>",
    b"WARC-Date: x",
    b"no colon",
    b": empty",
    b"Content-Type: text/html; charset=\xff",
)


def header_line(data: bytes, rng: random.Random) -> bytes:
    """A header line of a record, or of the HTTP message in it, put in, replaced or left out."""
    lines = data.split(b"\r\n")
    heads = [i for i, line in enumerate(lines) if b": " in line[:40]] or [0]
    place = rng.choice(heads)
    match rng.randrange(3):
        case 0:
            lines.insert(place, rng.choice(FIELDS))
        case 1:
            lines[place] = rng.choice(FIELDS)
        case _:
            del lines[place]
    return b"\r\n".join(lines)


def records_shuffled(data: bytes, rng: random.Random) -> bytes:
    """Records of a plain archive left out, doubled, exchanged."""
    records = [b"WARC/1.0\r\n" + part for part in data.split(b"WARC/1.0\r\n")[1:]]
    if not records:
        return anyhow(data, rng)
    a, b = rng.randrange(len(records)), rng.randrange(len(records))
    records[a] = rng.choice((records[b], records[b] + records[a], b"", records[a].replace(b"WARC/1.0", b"WARC/1.1", 1)))
    return b"".join(records)


HTML = (
    b"<table>",
    b"</table>",
    b"<!--",
    b"-->",
    b"<script>",
    b"<svg>",
    b"<math>",
    b"<img src=0.png srcset='1.png 2x, ,'>",
    b"<base href='//['>",
    b"<a href='http://[::1'>",
    b"<template>",
    b"<plaintext>",
    b"<style>",
    b"&#x110000;",
    b"&#0;",
    b"<p " + b"a=1 " * 60 + b">",
    b"<div>" * 400,
    b"<img src='data:image/png;base64,AAAA'>",
    b"<img src='data:,%'>",
    b"<meta charset=utf-7>",
    b"<frameset>",
    b"<select><option>",
    b"\0",
    b"<img src='http://a:99999/x.png'>",
    b"<img src='\xff'>",
    b"<ul><li><ol reversed start=-99999999999>",
    b"<li value=99999999999999>",
)


# ---- pictures


def png_chunk(data: bytes, rng: random.Random) -> bytes:
    """One chunk of a PNG changed, left out, doubled or moved, with its checksum right."""
    chunks = []
    place = 8
    while place + 12 <= len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        chunks.append((data[place + 4 : place + 8], data[place + 8 : place + 8 + length]))
        place += 12 + length
    if not chunks:
        return anyhow(data, rng)
    a, b = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    kind, body = chunks[a]
    match rng.randrange(6):
        case 0:
            del chunks[a]
        case 1:
            chunks.insert(b, chunks[a])
        case 2:
            names = (
                b"IHDR",
                b"PLTE",
                b"IDAT",
                b"IEND",
                b"tRNS",
                b"acTL",
                b"fcTL",
                b"fdAT",
                b"iCCP",
                b"eXIf",
                b"zTXt",
                b"iTXt",
                b"cHRM",
                b"pHYs",
            )
            chunks.insert(a, (rng.choice(names), rng.choice((body, rng.randbytes(rng.randrange(40))))))
        case 3 if kind == b"IDAT":
            with contextlib.suppress(zlib.error):
                chunks[a] = (kind, zlib.compress(anyhow(zlib.decompress(body), rng)))
        case _:
            chunks[a] = (kind, anyhow(body, rng))
    packed = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks)
    return data[:8] + b"".join(packed)


def jpeg_segment(data: bytes, rng: random.Random) -> bytes:
    """One segment in front of the pixels changed, left out or doubled; lengths right, or not."""
    segments, place = [], 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = struct.unpack(">H", data[place + 2 : place + 4])[0]
        segments.append((data[place + 1], data[place + 4 : place + 2 + length]))
        place += 2 + length
    if not segments:
        return anyhow(data, rng)
    a, b = rng.randrange(len(segments)), rng.randrange(len(segments))
    mark, body = segments[a]
    match rng.randrange(5):
        case 0:
            del segments[a]
        case 1:
            segments.insert(b, segments[a])
        case 2:
            marks = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)
            segments[a] = (rng.choice(marks), body)
        case _:
            segments[a] = (mark, anyhow(body, rng)[:65000])
    lengths = [len(body) + 2 for _, body in segments]
    if rng.random() < 0.2 and lengths:
        lengths[rng.randrange(len(lengths))] = rng.choice((0, 1, 2, 3, 65535))
    packed = (b"\xff" + bytes([mark]) + struct.pack(">H", n) + body for (mark, body), n in zip(segments, lengths, strict=True))
    return data[:2] + b"".join(packed) + data[place:]


def riff_chunk(data: bytes, rng: random.Random) -> bytes:
    """One chunk of a WebP changed, left out, doubled, with the sizes right."""
    chunks, place = [], 12
    while place + 8 <= len(data):
        length = struct.unpack("<I", data[place + 4 : place + 8])[0]
        chunks.append((data[place : place + 4], data[place + 8 : place + 8 + length]))
        place += 8 + length + length % 2
    if not chunks:
        return anyhow(data, rng)
    a = rng.randrange(len(chunks))
    kind, body = chunks[a]
    match rng.randrange(4):
        case 0:
            chunks.insert(a, chunks[rng.randrange(len(chunks))])
        case 1:
            chunks[a] = (rng.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"ICCP")), body)
        case _:
            chunks[a] = (kind, anyhow(body, rng))
    packed = b"".join(kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2) for kind, body in chunks)
    return b"RIFF" + struct.pack("<I", len(packed) + 4) + b"WEBP" + packed


def header_of(length: int) -> Mutation:
    """Only the first ``length`` bytes."""
    return partial(_in_head, length)


def _in_head(length: int, data: bytes, rng: random.Random) -> bytes:
    return anyhow(data[:length], rng) + data[length:]


def mutated(data: bytes, rng: random.Random, own: Sequence[Mutation]) -> bytes:
    """A few changes one after another, of the format's own and any."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        data = rng.choice(own)(data, rng) if own and rng.random() < 0.7 else anyhow(data, rng)
    return data[:LARGEST]
