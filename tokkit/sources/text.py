"""Plain text: one UTF-8 file is one document, kept byte for byte behind its byte order mark (newlines included)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, Source, Unit, UnitReader, silent
from tokkit.sources.opening import located
from tokkit.sources.untrusted import MAX_ITEM_BYTES, decode_text, failed_document


class TextSource(Source):
    """Text files; the locator is the file's name, the unit the file."""

    format: ClassVar[str] = "text"

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """One unit a file: a document is not cut."""
        for file in self.files:
            yield Unit(self.name, file.name, file.path, 0, 1, file.size)

    def read(self, unit: Unit) -> UnitReader:
        """The file's document."""
        return _TextReader(unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """A file is a document, whatever it holds."""
        return Census(1, {})


class _TextReader(UnitReader):
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        self.consumed = 1.0
        with located(unit.path).open("rb") as file:
            data = file.read(MAX_ITEM_BYTES + 1)
        try:
            if len(data) > MAX_ITEM_BYTES:
                raise ItemError("text-too-large", f"more than {MAX_ITEM_BYTES} bytes in one document")
            text = decode_text(data)
            if not text:
                raise ItemError("empty-document", "the file has no text")
            yield Document(unit.file, unit.source, unit.file, (Text(text),))
        except ItemError as error:
            yield failed_document(unit.source, unit.file, error.reason, error.message)
