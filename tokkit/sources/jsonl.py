"""JSON lines: one text document a line, plain or compressed (:mod:`tokkit.sources.line_source`).

The text is the field ``text``, else ``content``, else ``raw_content``; all other fields are metadata.
"""

from __future__ import annotations

from typing import ClassVar

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Unit
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.untrusted import failed_document, metadata_of, printable

TEXT_FIELDS = ("text", "content", "raw_content")


class JsonlSource(LineSource):
    """Text documents, one a line."""

    format: ClassVar[str] = "jsonl"

    def line_reader(self, *, media: bool) -> LineDocument:
        """A line as a text document."""
        return line_document


def line_document(unit: Unit, offset: int, line: bytes | None) -> Document:
    """The document that a line is, or the failure that stands for it; None for a line that is too long to be read."""
    locator = f"{unit.file}@{offset}"
    try:
        fields = fields_of(line)
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
    if type(fields.get(TEXT_FIELDS[0])) is str:  # as almost everywhere
        return TEXT_FIELDS[0]
    there = [name for name in TEXT_FIELDS if name in fields]
    if not there:
        names = ", ".join(list(fields)[:8])
        raise ItemError("no-text", f"none of the fields {', '.join(TEXT_FIELDS)}; there are: {names[:200]}")
    return next((name for name in there if isinstance(fields[name], str)), there[0])
