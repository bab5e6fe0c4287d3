"""The source of web archives: WARC, ARC and WET files, plain or gzip.

Every HTML page is one interleaved document: its text and its pictures in reading order, boilerplate left out
(:mod:`tokkit.sources.html`). A picture is looked up among the records of the same file; one that is not there is a failed
item, as with OBELICS, and the document goes on. The locator is ``FILE@OFFSET``: the byte where the record, or its gzip member,
begins; ``FILE@OFFSET+N`` where it does not open that member.

**Units.** A plain file is cut where records begin, by its headers; a file of which each record is a gzip member where members
begin (:mod:`tokkit.sources.warc.members`). A file that is one gzip stream is one unit: nothing behind its first byte can be
decompressed on its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import BinaryIO, ClassVar

from tokkit.documents import Document
from tokkit.sources.base import Alive, Census, ContainerDamage, InputFile, Source, SourceOptions, Unit, UnitReader, silent
from tokkit.sources.html.dom import require_parser
from tokkit.sources.opening import Location, located
from tokkit.sources.untrusted import printable
from tokkit.sources.warc.census import count
from tokkit.sources.warc.kinds import Kind
from tokkit.sources.warc.layout import Layout, layout_of
from tokkit.sources.warc.members import cut
from tokkit.sources.warc.pages import MAX_PAGE_BYTES, PageReader, kind_of_record
from tokkit.sources.warc.views import FileView, GzipView
from tokkit.sources.warc.walk import Broken, Record, walk_members, walk_stream, walk_view


class WarcSource(Source):
    """Pages of web archives, and texts of conversion records."""

    format: ClassVar[str] = "warc"
    kinds: ClassVar[frozenset[Kind]] = frozenset((Kind.PAGE, Kind.TEXT))

    def __init__(self, name: str, root: Location, files: Sequence[InputFile]) -> None:
        super().__init__(name, root, files)
        if Kind.PAGE in self.kinds:
            require_parser()

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of bytes, cut where a record begins."""
        for file in self.files:
            cuts = [0]
            if file.size > unit_bytes:
                with located(file.path).open("rb") as stream:
                    cuts = _cuts(stream, file.size, unit_bytes)
            for start, stop in pairwise([*cuts, file.size]):
                yield Unit(self.name, file.name, file.path, start, stop, stop - start)

    def read(self, unit: Unit) -> UnitReader:
        """A document a page, in the order of the file."""
        return _ArchiveReader(unit, self.kinds, self.options)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the records by their headers, as another reader finds them."""
        return count(unit, self.kinds, alive)


class WetSource(WarcSource):
    """Texts of conversion records only."""

    format: ClassVar[str] = "wet"
    kinds: ClassVar[frozenset[Kind]] = frozenset((Kind.TEXT,))


def _cuts(file: BinaryIO, size: int, unit_bytes: int) -> list[int]:
    layout = layout_of(file, size)
    if layout == Layout.MEMBERS:
        return cut(file, size, unit_bytes)
    cuts = [0]
    if layout == Layout.PLAIN:
        for found in walk_view(FileView(file, size), 0, None, 0):
            if isinstance(found, Record) and found.place.start >= cuts[-1] + unit_bytes:
                cuts.append(found.place.start)
    return cuts


class _ArchiveReader(UnitReader):
    def __init__(self, unit: Unit, kinds: frozenset[Kind], options: SourceOptions) -> None:
        self._unit, self._kinds, self._options = unit, kinds, options

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        pages = PageReader(unit.source, unit.file, unit.path, self._options)
        try:
            with located(unit.path).open("rb") as file:
                for found in self._walk(file):
                    behind = min(1.0, (found.stop - unit.start) / max(1, unit.stop - unit.start))
                    if isinstance(found, Broken):
                        self.consumed = max(self.consumed, behind)
                        yield ContainerDamage(unit.file, found.start, found.stop, found.reason, printable(found.message))
                        continue
                    kind = kind_of_record(found)
                    if kind in self._kinds:
                        document = pages.document(found, kind)
                        self.consumed = max(self.consumed, behind)
                        yield document
        finally:
            pages.close()
        self.consumed = 1.0

    def _walk(self, file: BinaryIO) -> Iterator[Record | Broken]:
        unit = self._unit
        size = located(unit.path).stat().st_size
        if size == 0:
            yield Broken(0, 0, "warc-empty", "the file has no bytes")
            return
        layout = layout_of(file, size)
        if layout == Layout.MEMBERS:
            yield from walk_members(file, unit.start, unit.stop, size, MAX_PAGE_BYTES)
        elif layout == Layout.PLAIN:
            yield from walk_view(FileView(file, size), unit.start, unit.stop, MAX_PAGE_BYTES)
        else:
            yield from walk_stream(file, size, MAX_PAGE_BYTES, GzipView(file, 0, size))
