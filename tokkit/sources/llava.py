"""LLaVA: conversations about pictures, as one JSON list or as JSON lines.

An entry has ``conversations``, turns of ``from`` and ``value``, and ``image``, the path of a picture or a list of them (also
under the name ``images``). The placeholders ``<image>`` (LLaVA) and ``<|image|>`` (Lumina-mGPT) stand for the pictures in
their order, and there must be as many of them. Paths are relative to the file's folder, else to the source's root, else to
``images/`` beside the file. A conversation is about its pictures: without any one of them it is not committed.

Turns become text by a plain template, one line a turn::

    System: ...
    User: ...
    Assistant: ...

A trainer is to learn what the assistant says, its pictures too, and the line's end behind it. The rest is given: its ``loss``
is False.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar

from tokkit.documents import Document, Failure, Image, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, InputFile, Unit, UnitReader, silent
from tokkit.sources.json_list import ListDamage, count_elements, elements
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.media_files import FilesBelow
from tokkit.sources.opening import Location, located
from tokkit.sources.stores.lookup import PictureStores, instead
from tokkit.sources.untrusted import failed_document, metadata_of, printable

ROLES = {"system": "System", "human": "User", "user": "User", "gpt": "Assistant", "assistant": "Assistant"}
_PLACEHOLDER = re.compile(r"<image>|<\|image\|>")
_FIELDS = ("id", "image", "images", "conversations")
_MAX_NAME = 2048


class LlavaSource(LineSource):
    """Conversations. A JSON list is one unit: only reading it from its begin tells where its entries are."""

    format: ClassVar[str] = "llava"
    counts_media: ClassVar[bool] = True

    def line_reader(self, *, media: bool) -> LineDocument:
        """An entry as a conversation."""
        return _Entries(FilesBelow(self.root), self.root, self.options.stores, media=media).document

    def file_units(self, file: InputFile, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of lines; a JSON list is one unit."""
        if _is_list(file.name):
            yield Unit(self.name, file.name, file.path, 0, file.size, file.size)
        else:
            yield from super().file_units(file, unit_bytes)

    def read(self, unit: Unit) -> UnitReader:
        """A document an entry; the locator is ``FILE@OFFSET``, its first byte."""
        return _ListReader(unit, self.line_reader(media=True)) if _is_list(unit.file) else super().read(unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the list's commas, and the pictures of the entries that are documents."""
        if not _is_list(unit.file):
            return super().census(unit, alive)
        with located(unit.path).open("rb") as file:
            count = count_elements(file, alive)
        if count is None:
            return Census(None)
        reader = _ListReader(unit, self.line_reader(media=False))
        items: Counter[str] = Counter()
        for found in reader:
            alive()
            if isinstance(found, Document) and found.failure is None and found.media:
                items["image"] += len(found.media)
        return Census(count, dict(items))


def _is_list(name: str) -> bool:
    return name.lower().endswith(".json")


class _ListReader(UnitReader):
    def __init__(self, unit: Unit, document: LineDocument) -> None:
        self._unit, self._document = unit, document

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        size = located(unit.path).stat().st_size
        with located(unit.path).open("rb") as file:
            for found in elements(file):
                if isinstance(found, ListDamage):
                    self.consumed = 1.0
                    yield ContainerDamage(unit.file, found.start, size, found.reason, found.message)
                    return
                offset, element = found
                self.consumed = min(1.0, (offset + len(element)) / size)
                yield self._document(unit, offset, element)
        self.consumed = 1.0


class _Entries:
    def __init__(self, files: FilesBelow, root: Location, stores: PictureStores | None, *, media: bool) -> None:
        self._files, self._root, self._stores, self._media = files, root, stores, media

    def document(self, unit: Unit, offset: int, entry: bytes | None) -> Document:
        """The conversation that an entry is, or the failure that stands for it."""
        locator = f"{unit.file}@{offset}"
        try:
            fields = fields_of(entry)
            names = _pictures(fields)
            segments = list(self._segments(unit, _turns(fields), names))
        except ItemError as error:
            return failed_document(unit.source, locator, error.reason, error.message)
        given = fields.get("id")
        identifier = printable(str(given)) if isinstance(given, str | int) and given != "" else locator
        others = metadata_of({name: value for name, value in fields.items() if name not in _FIELDS})
        return Document(identifier, unit.source, locator, tuple(segments), metadata=others, whole=True)

    def _segments(self, unit: Unit, turns: list[tuple[str, str]], names: list[str]) -> Iterator[Segment]:
        placeholders = sum(len(_PLACEHOLDER.findall(said)) for _, said in turns)
        if placeholders != len(names):
            raise ItemError("placeholder-count", f"{placeholders} placeholders for {len(names)} pictures")
        if not any(role == "Assistant" and said for role, said in turns):
            raise ItemError("no-assistant-turn", "the assistant says nothing: there is nothing to learn")
        pictures = iter(names)
        given = ""  # text that is not to be learnt, up to here
        for role, said in turns:
            texts = _PLACEHOLDER.split(f" {said}\n")
            learn = role == "Assistant"
            given += f"{role}:"
            for place, text in enumerate(texts):
                if place or learn:
                    if given:
                        yield Text(given, loss=False)
                        given = ""
                    if place:
                        yield self._picture(unit, next(pictures), learn)
                if learn and text:
                    yield Text(text)
                elif not learn:
                    given += text
        if given:
            yield Text(given, loss=False)

    def _picture(self, unit: Unit, name: str, learn: bool) -> Image:
        ref, folder = printable(name[:_MAX_NAME]), located(unit.path).parent
        if not self._media:
            return Image(b"", ref, loss=learn)
        found: bytes | Failure = b""
        for place in dict.fromkeys((folder, self._root, folder / "images")):
            found = self._files.read(place, name, "image")
            if not isinstance(found, Failure) or found.reason != "image-not-found":
                break
        urls = (name,) if name.startswith(("http://", "https://")) else ()
        found, store = instead(self._stores, found, urls=urls, name="" if urls else name)
        if isinstance(found, Failure):
            return Image(None, ref, found, loss=learn)
        return Image(found, ref, loss=learn, store=store)


def _pictures(fields: Mapping[str, object]) -> list[str]:
    """The pictures' paths; raises ItemError ``image-not-understood``."""
    given = fields.get("image") if fields.get("image") is not None else fields.get("images")
    names: list[str] = []
    for place, name in enumerate([] if given is None else given if isinstance(given, list) else [given]):
        if not isinstance(name, str) or not name:
            raise ItemError("image-not-understood", f"picture {place} is a {type(name).__name__}, not a path")
        names.append(name)
    return names


def _turns(fields: Mapping[str, object]) -> list[tuple[str, str]]:
    """Role and text of the turns.

    Raises:
        ItemError: ``no-conversation``, ``turn-not-understood`` or ``role-not-known``.
    """
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ItemError("no-conversation", "no list of turns called conversations")
    found = []
    for place, turn in enumerate(turns):
        role, said = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(said, str):
            raise ItemError("turn-not-understood", f"turn {place} has no texts from and value")
        if role not in ROLES:
            raise ItemError("role-not-known", f"turn {place} is from {printable(role[:40])!r}; known are {', '.join(ROLES)}")
        found.append((ROLES[role], said))
    return found
