"""What the line formats share: ranges of bytes at line starts, compressed files as one unit, and counts of lines.

A plain file is cut into ranges of bytes at line starts; a compressed one (:mod:`tokkit.sources.compressed`) is one unit. Ranges
do not know line numbers, so the locator of a line is ``FILE@OFFSET``: its first byte in the (decompressed) file.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from typing import BinaryIO, ClassVar

from tokkit.documents import Document, modality_of
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, InputFile, Source, Unit, UnitReader, silent
from tokkit.sources.compressed import DAMAGE_ERRORS, StreamDamage, decompress, is_compressed, open_decompressed
from tokkit.sources.lines import LineSplitter, line_start, read_lines
from tokkit.sources.opening import located
from tokkit.sources.untrusted import MAX_ITEM_BYTES, parse_json

LineDocument = Callable[[Unit, int, bytes | None], Document]

_BOM = b"\xef\xbb\xbf"
_ALIVE_BYTES = 4 << 20  # that a count goes through between two signs of life


class LineSource(Source):
    """Documents that are lines; blank lines are none."""

    counts_media: ClassVar[bool] = False
    """Whether lines have media, which the census then counts by taking each line apart without opening a file."""

    @abstractmethod
    def line_reader(self, *, media: bool) -> LineDocument:
        """A function from a unit, a line's offset and the line (None: too long to be read) to the document that the line is.

        Args:
            media: False where only the number of media items is asked for, and no file needs to be opened.
        """

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of bytes at line starts; a compressed file is one."""
        for file in self.files:
            yield from self.file_units(file, unit_bytes)

    def file_units(self, file: InputFile, unit_bytes: int) -> Iterator[Unit]:
        """The units of one file."""
        cuts = [0]
        if not is_compressed(file.name) and file.size > unit_bytes:
            with located(file.path).open("rb") as stream:
                while (cut := line_start(stream, cuts[-1] + unit_bytes, file.size)) < file.size:
                    cuts.append(cut)
        for start, stop in zip(cuts, [*cuts[1:], file.size], strict=True):
            yield Unit(self.name, file.name, file.path, start, stop, stop - start)

    def read(self, unit: Unit) -> UnitReader:
        """A document a line."""
        document = self.line_reader(media=True)
        return _CompressedReader(unit, document) if is_compressed(unit.file) else _PlainReader(unit, document)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the lines that are not blank, and the media items of those that are documents."""
        if is_compressed(unit.file) and unit.bytes == 0:
            return Census(None)  # some decompressors take no bytes for an empty stream
        items: Counter[str] = Counter()
        document = self.line_reader(media=False) if self.counts_media else None
        try:
            with open_decompressed(unit.path, unit.file) as stream:
                stop = None if is_compressed(unit.file) else unit.stop
                count = 0
                for offset, line in _foreign_lines(stream, unit.start, stop, alive, keep=document is not None):
                    count += 1
                    if document is not None:
                        found = document(unit, offset, line)
                        items.update(modality_of(s) for s in found.segments if found.failure is None)
        except DAMAGE_ERRORS as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            return Census(None)
        items.pop("text", None)
        return Census(count, dict(items))


def _foreign_lines(
    stream: BinaryIO, place: int, stop: int | None, alive: Alive, *, keep: bool
) -> Iterator[tuple[int, bytes | None]]:
    """Offset and line of all that are not blank up to ``stop``, as the file object's own ``readline`` cuts them.

    Without ``keep`` a line is told of by its first part that is not blank.
    """
    if not stream.seekable():
        assert place == 0
    else:
        stream.seek(place)
    parts: list[bytes] = []
    start, size, blank, told = place, 0, True, place
    while stop is None or place < stop:
        part = stream.readline(1 << 20)
        if not part:
            break
        begins_file, place = place == 0, place + len(part)
        if place - told >= _ALIVE_BYTES:
            told = place
            alive()
        said = part.removeprefix(_BOM) if begins_file else part
        if begins_file:
            start += len(part) - len(said)
        if said.strip():
            blank = False
        size += len(said)
        if keep and size <= MAX_ITEM_BYTES + 1:
            parts.append(said)
        if part.endswith(b"\n"):
            if not blank:
                yield start, _joined(parts, size) if keep else b""
            parts, start, size, blank = [], place, 0, True
    if not blank:
        yield start, _joined(parts, size) if keep else b""


def _joined(parts: list[bytes], size: int) -> bytes | None:
    line = b"".join(parts).removesuffix(b"\n")
    return line if size <= MAX_ITEM_BYTES + 1 and len(line) <= MAX_ITEM_BYTES else None


class _PlainReader(UnitReader):
    def __init__(self, unit: Unit, document: LineDocument) -> None:
        self._unit, self._document = unit, document

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit, document = self._unit, self._document
        with located(unit.path).open("rb") as file:
            for offset, line in read_lines(file, unit.start, unit.stop):
                end = offset + (0 if line is None else len(line))
                self.consumed = min(1.0, (end - unit.start) / max(1, unit.stop - unit.start))
                yield document(unit, offset, line)
        self.consumed = 1.0


class _CompressedReader(UnitReader):
    def __init__(self, unit: Unit, document: LineDocument) -> None:
        self._unit, self._document = unit, document

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit, document = self._unit, self._document
        size = located(unit.path).stat().st_size
        splitter = LineSplitter()
        line_begins = done = given = 0  # bytes of the compressed file: known to the piece, which is what decompression can tell
        with located(unit.path).open("rb") as file:
            for piece in decompress(file, unit.file):
                if isinstance(piece, StreamDamage):
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
                    yield document(unit, offset, line)
                given += len(data)
        for offset, line in splitter.rest():
            yield document(unit, offset, line)
        self.consumed = 1.0


def fields_of(line: bytes | None) -> dict[str, object]:
    """The JSON object that a line is.

    Raises:
        ItemError: ``line-too-long``, ``not-an-object``, or what :func:`~tokkit.sources.untrusted.parse_json` raises.
    """
    if line is None:
        raise ItemError("line-too-long", f"more than {MAX_ITEM_BYTES} bytes in one line")
    fields = parse_json(line)
    if not isinstance(fields, dict):
        raise ItemError("not-an-object", f"a JSON {type(fields).__name__}, not an object")
    return fields
