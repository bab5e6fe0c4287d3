"""JSON lines: one text document a line, plain or gzip.

A plain file is cut into ranges of bytes at line starts; a gzip file is one unit. Ranges do not know line numbers, so the
locator is ``FILE@OFFSET``: the line's first byte in the (decompressed) file. The text is the field ``text``, else
``content``, else ``raw_content``; all other fields are metadata.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, ClassVar

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, Source, Unit, UnitReader, silent
from tokkit.sources.gzipstream import GzipDamage, gunzip
from tokkit.sources.lines import LineSplitter, line_start, read_lines
from tokkit.sources.untrusted import MAX_ITEM_BYTES, failed_document, metadata_of, parse_json, printable

TEXT_FIELDS = ("text", "content", "raw_content")
_BOM = b"\xef\xbb\xbf"
_ALIVE_BYTES = 4 << 20  # that a count goes through between two signs of life


class JsonlSource(Source):
    """Text documents, one a line."""

    format: ClassVar[str] = "jsonl"

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of bytes at line starts; a gzip file is one."""
        for file in self.files:
            cuts = [0]
            if not _is_gzip(file.name) and file.size > unit_bytes:
                with Path(file.path).open("rb") as stream:
                    while (cut := line_start(stream, cuts[-1] + unit_bytes, file.size)) < file.size:
                        cuts.append(cut)
            for start, stop in zip(cuts, [*cuts[1:], file.size], strict=True):
                yield Unit(self.name, file.name, file.path, start, stop, stop - start)

    def read(self, unit: Unit) -> UnitReader:
        """A document a line; blank lines are none."""
        return _GzipReader(unit) if _is_gzip(unit.file) else _PlainReader(unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the lines that are not blank."""
        if _is_gzip(unit.file) and unit.bytes == 0:
            return Census(None)  # gzip's own reader takes no bytes for an empty stream
        try:
            with gzip.open(unit.path) if _is_gzip(unit.file) else Path(unit.path).open("rb") as stream:
                stream.seek(unit.start)
                stop = None if _is_gzip(unit.file) else unit.stop
                return Census(_count_lines(stream, unit.start, stop, alive))  # type: ignore[arg-type]
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return Census(None)


def _is_gzip(name: str) -> bool:
    return name.lower().endswith(".gz")


def _count_lines(stream: BinaryIO, place: int, stop: int | None, alive: Alive) -> int:
    """Lines that are not blank up to ``stop``, read cut by the file object's own ``readline``."""
    count, blank, told = 0, True, place
    while stop is None or place < stop:
        part = stream.readline(1 << 20)
        if not part:
            break
        said = part.removeprefix(_BOM) if place == 0 else part
        place += len(part)
        if place - told >= _ALIVE_BYTES:
            told = place
            alive()
        if said.strip() and blank:
            count, blank = count + 1, False
        if part.endswith(b"\n"):
            blank = True
    return count


class _PlainReader(UnitReader):
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        with Path(unit.path).open("rb") as file:
            for offset, line in read_lines(file, unit.start, unit.stop):
                end = offset + (0 if line is None else len(line))
                self.consumed = min(1.0, (end - unit.start) / max(1, unit.stop - unit.start))
                yield line_document(unit, offset, line)
        self.consumed = 1.0


class _GzipReader(UnitReader):
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        size = Path(unit.path).stat().st_size
        splitter = LineSplitter()
        line_begins = done = given = 0  # bytes of the compressed file: known to the piece, which is what decompression can tell
        with Path(unit.path).open("rb") as file:
            for piece in gunzip(file):
                if isinstance(piece, GzipDamage):
                    start = line_begins if splitter.pending else piece.start
                    message = piece.message + ("; the last line, which is incomplete, goes with it" if splitter.pending else "")
                    self.consumed = 1.0
                    yield ContainerDamage(unit.file, start, size, piece.reason, message)
                    return
                before, (done, data) = done, piece
                for offset, line in splitter.feed(data):
                    within = (offset + len(line or b"") - given) / max(1, len(data))  # of what came out of this piece
                    self.consumed = min(1.0, (before + (done - before) * min(1.0, within)) / max(1, size))
                    line_begins = before
                    yield line_document(unit, offset, line)
                given += len(data)
        for offset, line in splitter.rest():
            yield line_document(unit, offset, line)
        self.consumed = 1.0


def line_document(unit: Unit, offset: int, line: bytes | None) -> Document:
    """The document that a line is, or the failure that stands for it; None for a line that is too long to be read."""
    locator = f"{unit.file}@{offset}"
    try:
        if line is None:
            raise ItemError("line-too-long", f"more than {MAX_ITEM_BYTES} bytes in one line")
        fields = parse_json(line)
        if not isinstance(fields, dict):
            raise ItemError("not-an-object", f"a JSON {type(fields).__name__}, not an object")
        name = _text_field(fields)
        text = fields.pop(name)
        if not isinstance(text, str):
            raise ItemError("text-not-a-string", f"the field {name!r} is {str(text)[:40]!r}")
        if not text:
            raise ItemError("empty-document", f"the field {name!r} is empty")
    except ItemError as error:
        return failed_document(unit.source, locator, error.reason, error.message)
    given = fields.get("id")
    identifier = printable(str(given)) if isinstance(given, str | int) and given != "" else locator
    return Document(identifier, unit.source, locator, (Text(text),), metadata=metadata_of(fields))


def _text_field(fields: dict[str, object]) -> str:
    """The first text field that holds a string, else the first that is there at all."""
    there = [name for name in TEXT_FIELDS if name in fields]
    if not there:
        names = ", ".join(list(fields)[:8])
        raise ItemError("no-text", f"none of the fields {', '.join(TEXT_FIELDS)}; there are: {names[:200]}")
    return next((name for name in there if isinstance(fields[name], str)), there[0])
