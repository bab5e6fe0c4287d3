"""Common Voice: tables ``train.tsv``, ``validated.tsv``... with columns ``path`` and ``sentence``, and the folder ``clips/``.

A row is a line, and a quotation mark in it is a character like any other, as the corpus is written. The clip is looked for in
``clips/`` beside the table, then beside it. The tables overlap (``validated.tsv`` holds most of the others' rows): name those
that are wanted. All other columns are metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import InputFile, Unit
from tokkit.sources.line_source import LineDocument, LineSource
from tokkit.sources.lines import line_start
from tokkit.sources.opening import located
from tokkit.sources.sounds import SoundFiles
from tokkit.sources.untrusted import MAX_ITEM_BYTES, decode_text, failed_document, metadata_of, printable

PATH, SENTENCE = "path", "sentence"
CLIPS = "clips"
_MAX_HEADING = 1 << 16


class CommonVoiceSource(LineSource):
    """Sounds with the sentences that were read, one a row."""

    format: ClassVar[str] = "common_voice"
    counts_media: ClassVar[bool] = True

    def file_units(self, file: InputFile, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of rows; the heading is in none."""
        with located(file.path).open("rb") as stream:
            cuts = [len(stream.readline(_MAX_HEADING))]
            while (cut := line_start(stream, cuts[-1] + unit_bytes, file.size)) < file.size:
                cuts.append(cut)
        for start, stop in zip(cuts, [*cuts[1:], file.size], strict=True):
            yield Unit(self.name, file.name, file.path, start, stop, stop - start)

    def line_reader(self, *, media: bool) -> LineDocument:
        """A row as a pair."""
        files = SoundFiles(self.root, media=media)
        headings: dict[str, list[str]] = {}

        def document(unit: Unit, offset: int, line: bytes | None) -> Document:
            locator = f"{unit.file}@{offset}"
            if unit.path not in headings:
                with located(unit.path).open("rb") as table:
                    headings[unit.path] = heading_of(table.readline(_MAX_HEADING))
            try:
                fields = _row(headings[unit.path], line)
            except ItemError as error:
                return failed_document(unit.source, locator, error.reason, error.message, pair=True)
            folder, name = located(unit.path).parent, fields.pop(PATH)
            sound = files.sound((folder / CLIPS, folder), name)
            text = Text(fields.pop(SENTENCE))
            kept = metadata_of({key: value for key, value in fields.items() if value})
            return Document(printable(name), unit.source, locator, (sound, text), pair=True, metadata=kept)

        return document


def heading_of(line: bytes) -> list[str]:
    """The names of the columns."""
    return line.decode("utf-8-sig", "replace").rstrip("\r\n").split("\t")


def is_common_voice(heading: list[str]) -> bool:
    """Whether a table's columns are Common Voice's."""
    return PATH in heading and SENTENCE in heading and "client_id" in heading


def _row(heading: list[str], line: bytes | None) -> dict[str, str]:
    if line is None:
        raise ItemError("line-too-long", f"more than {MAX_ITEM_BYTES} bytes in one line")
    if not {PATH, SENTENCE} <= set(heading):
        raise ItemError("columns-missing", f"no columns {PATH} and {SENTENCE} in the heading")
    values = decode_text(line).rstrip("\r").split("\t")
    if len(values) != len(heading):
        raise ItemError("field-count", f"{len(values)} fields, where the heading has {len(heading)}")
    fields = dict(zip(heading, values, strict=True))
    if not fields[PATH] or not fields[SENTENCE]:
        raise ItemError("empty-document", f"no {SENTENCE if fields[PATH] else PATH}")
    return fields
