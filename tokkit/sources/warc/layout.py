"""How an archive is compressed: not at all, record by record, or as one stream. Told by its bytes, not by its name."""

from __future__ import annotations

from enum import StrEnum
from typing import BinaryIO

from tokkit.sources.warc.members import is_record_wise, next_member
from tokkit.sources.warc.records import begins_record


class Layout(StrEnum):
    """What the bytes of an archive are."""

    PLAIN = "plain"
    MEMBERS = "members"  # each record a gzip member: what crawlers write, and what can be cut
    STREAM = "stream"  # gzip over the whole


def layout_of(file: BinaryIO, size: int) -> Layout:
    """The layout of an open archive."""
    file.seek(0)
    opening = file.read(1 << 13)
    if opening.startswith(b"\x1f\x8b"):
        return Layout.MEMBERS if is_record_wise(file, size) else Layout.STREAM
    if begins_record(opening):
        return Layout.PLAIN
    # Damaged at its very beginning, or no archive at all.
    return Layout.MEMBERS if next_member(file, 0, size) < size else Layout.PLAIN
