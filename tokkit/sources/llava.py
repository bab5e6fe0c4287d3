"""LLaVA: conversations about pictures, as one JSON list or as JSON lines.

An entry has ``conversations``, turns of ``from`` and ``value``, and ``image``, the path of a picture or a list of them (also
under the name ``images``). The placeholders ``<image>`` (LLaVA) and ``<|image|>`` (Lumina-mGPT) stand for the pictures in
their order, and there must be as many of them. Paths are relative to the file's folder, else to the source's root, else to
``images/`` beside the file. A conversation is about its pictures: without any one of them it is not committed.

Turns are written down by a chat template (:mod:`tokkit.chat_templates`), by default the plain one, one line a turn::

    System: ...
    User: ...
    Assistant: ...

A trainer is to learn what the assistant says, its pictures too, and what ends its turn. The rest is given: its ``loss`` is
False.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import ClassVar

from tokkit.chat_templates import ChatTemplate, Role
from tokkit.documents import Document, Failure, Image, Media, Segment, SpecialToken, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, InputFile, Unit, UnitReader, silent
from tokkit.sources.json_list import ListDamage, count_elements, elements
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.media_files import FilesBelow
from tokkit.sources.opening import Location, located
from tokkit.sources.stores.lookup import PictureStores, instead
from tokkit.sources.untrusted import failed_document, metadata_of, printable

ROLES: dict[str, Role] = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_PLACEHOLDER = re.compile(r"<image>|<\|image\|>")
_FIELDS = ("id", "image", "images", "conversations")
_MAX_NAME = 2048


class LlavaSource(LineSource):
    """Conversations. A JSON list is one unit: only reading it from its begin tells where its entries are."""

    format: ClassVar[str] = "llava"
    counts_media: ClassVar[bool] = True

    def line_reader(self, *, media: bool) -> LineDocument:
        """An entry as a conversation."""
        files, options = FilesBelow(self.root), self.options
        return _Entries(files, self.root, options.stores, options.chat_template, media=media).document

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
    def __init__(
        self, files: FilesBelow, root: Location, stores: PictureStores | None, template: ChatTemplate, *, media: bool
    ) -> None:
        self._files, self._root, self._stores, self._media = files, root, stores, media
        self._template = template

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

    def _segments(self, unit: Unit, turns: list[tuple[Role, str]], names: list[str]) -> Iterator[Segment]:
        placeholders = sum(len(_PLACEHOLDER.findall(said)) for _, said in turns)
        if placeholders != len(names):
            raise ItemError("placeholder-count", f"{placeholders} placeholders for {len(names)} pictures")
        pictures = iter(names)
        found = _Segments(self._template)
        for spoken, learn, part in _written(self._template, turns):
            if isinstance(part, SpecialToken):
                found.put(SpecialToken(part.name, loss=learn))
                continue
            for place, text in enumerate(_PLACEHOLDER.split(part) if spoken else [part]):
                if place:
                    found.put(self._picture(unit, next(pictures), learn))
                found.say(text, learn)
        return found.all()

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


class _Segments:
    """Puts the segments of a conversation together: texts that are alike to a trainer, with nothing between them, are one."""

    def __init__(self, template: ChatTemplate) -> None:
        self._together = template.encode == "together"
        self._found: list[Segment] = []
        self._text, self._learn = "", False

    def say(self, text: str, learn: bool) -> None:
        if text and learn != self._learn:
            self._close()
            self._learn = learn
        self._text += text

    def put(self, segment: Media | SpecialToken) -> None:
        self._close()
        self._found.append(segment)  # type: ignore[arg-type]

    def all(self) -> Iterator[Segment]:
        self._close()
        return iter(self._found)

    def _close(self) -> None:
        if self._text:
            before = self._found[-1] if self._found else None
            continues = self._together and self._learn and isinstance(before, Text) and not before.loss
            self._found.append(Text(self._text, self._learn, continues))
        self._text = ""


def _written(template: ChatTemplate, turns: list[tuple[Role, str]]) -> Iterator[tuple[bool, bool, str | SpecialToken]]:
    """The conversation by a template: whether somebody says it, whether it is to be learnt, and the text or special token.

    Raises:
        ItemError: ``role-not-in-template`` or ``no-assistant-turn``.
    """
    if template.trim:
        turns = [(role, said.strip()) for role, said in turns]
    if not any(role == "assistant" and said for role, said in turns):
        raise ItemError("no-assistant-turn", "the assistant says nothing: there is nothing to learn")

    def own(string: str, *, learn: bool = False) -> Iterator[tuple[bool, bool, str | SpecialToken]]:
        for part in template.parts(string):
            yield False, learn, part

    yield from own(template.bos)
    system = template.system
    if system is not None and system.default is not None and turns[0][0] != "system":
        yield from own(system.before)
        yield False, False, system.default
        yield from own(system.after)
    for role, said in turns:
        around = getattr(template, role)
        if around is None:
            raise ItemError("role-not-in-template", f"the chat template has no turn of the {role}")
        yield from own(around.before)
        learn = role == "assistant"
        if learn:
            yield from own(template.assistant.begin, learn=True)
        yield True, learn, said
        if learn:
            yield from own(template.assistant.end, learn=True)
        yield from own(around.after)


def _pictures(fields: Mapping[str, object]) -> list[str]:
    """The pictures' paths; raises ItemError ``image-not-understood``."""
    given = fields.get("image") if fields.get("image") is not None else fields.get("images")
    names: list[str] = []
    for place, name in enumerate([] if given is None else given if isinstance(given, list) else [given]):
        if not isinstance(name, str) or not name:
            raise ItemError("image-not-understood", f"picture {place} is a {type(name).__name__}, not a path")
        names.append(name)
    return names


def _turns(fields: Mapping[str, object]) -> list[tuple[Role, str]]:
    """Role and text of the turns.

    Raises:
        ItemError: ``no-conversation``, ``turn-not-understood`` or ``role-not-known``.
    """
    turns = fields.get("conversations")
    if not isinstance(turns, list) or not turns:
        raise ItemError("no-conversation", "no list of turns called conversations")
    found: list[tuple[Role, str]] = []
    for place, turn in enumerate(turns):
        role, said = (turn.get("from"), turn.get("value")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(said, str):
            raise ItemError("turn-not-understood", f"turn {place} has no texts from and value")
        if role not in ROLES:
            raise ItemError("role-not-known", f"turn {place} is from {printable(role[:40])!r}; known are {', '.join(ROLES)}")
        found.append((ROLES[role], said))
    return found
