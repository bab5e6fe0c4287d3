"""Decompress a gzip file piece by piece, giving out every byte before a damage and naming the damage.

Members that follow one another are one stream (RFC 1952), as ``gzip`` and ``cat`` make them; zeros behind the last are padding.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_CHUNK = 1 << 14  # of the file: as exactly as a damage can be placed
_PIECE = 1 << 20  # decompressed
_GZIP = 31  # zlib's window bits for a gzip header and checksum


@dataclass(frozen=True, slots=True)
class GzipDamage:
    """The stream cannot be read on from byte ``start`` of the compressed file."""

    start: int
    reason: str
    message: str


def gunzip(file: BinaryIO) -> Iterator[tuple[int, bytes] | GzipDamage]:
    """Pairs of (bytes of the file consumed so far, decompressed piece), ended by a damage if there is one."""
    machine = zlib.decompressobj(_GZIP)
    started = False  # within a member
    any_member = False
    place = 0
    data = b""
    while True:
        if not data:
            data = file.read(_CHUNK)
        if not started:
            padding = len(data) - len(data.lstrip(b"\0")) if any_member else 0
            data, place = data[padding:], place + padding
            if not data and padding:
                continue
            if data and not (b"\x1f\x8b".startswith(data[:2])):
                yield _not_gzip(place, any_member)
                return
        if not data:
            if started or not any_member:
                yield GzipDamage(place, "gzip-truncated", "the file ends within the compressed stream")
            return
        started = True
        before = machine.copy()
        try:
            piece = machine.decompress(data, _PIECE)
        except zlib.error as error:
            good, used = _bytes_before_error(before, data)
            yield place + used, good
            yield GzipDamage(place + used, "gzip-damaged", f"the compressed stream breaks: {error}")
            return
        left = machine.unconsumed_tail or machine.unused_data
        place += len(data) - len(left)
        data = left
        yield place, piece
        if machine.eof:
            machine, started, any_member = zlib.decompressobj(_GZIP), False, True


def _not_gzip(place: int, any_member: bool) -> GzipDamage:
    if any_member:
        return GzipDamage(place, "gzip-trailing-garbage", f"what follows at byte {place} is no gzip member")
    return GzipDamage(place, "gzip-invalid", "not gzip, though its name says so: rename or compress it")


def _bytes_before_error(machine: zlib._Decompress, data: bytes) -> tuple[bytes, int]:
    """Feed ``data`` byte by byte up to the error: what came out, and how many bytes went in."""
    good = []
    for place in range(len(data)):
        try:
            good.append(machine.decompress(data[place : place + 1]))
        except zlib.error:
            return b"".join(good), place
    return b"".join(good), len(data)
