"""Folders of picture files: class folders, and pictures with captions beside them, as Hugging Face's ``imagefolder`` has them.

A picture file is a document. Its caption is the file ``NAME.txt`` beside it, else the field ``text`` or ``caption`` of its row
in ``metadata.jsonl`` or ``metadata.csv`` (``file_name`` says whose row it is, relative to the metadata file), taken from the
picture's folder or the nearest above it within the source; without one the picture stands alone. The folder's name is the
metadata field ``label``, unless the row has its own.

What the source calls its files are the folders; a unit is a range of one folder's pictures, sorted by name. A row whose picture
is not there is a document that the corpus was meant to have, and counts as failed upstream.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import ClassVar

from tokkit.documents import Document, Failure, Image, Outcome, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, InputFile, Source, Unit, UnitReader, silent
from tokkit.sources.lines import read_lines
from tokkit.sources.opening import Location, is_below, located, relative_name, text_lines
from tokkit.sources.remote import RemotePath, is_url
from tokkit.sources.samples import is_picture_name
from tokkit.sources.untrusted import MAX_ITEM_BYTES, decode_text, failed_document, metadata_of, parse_json, printable

METADATA_NAMES = ("metadata.jsonl", "metadata.csv")
TEXT_FIELDS = ("text", "caption")
CAPTION = ".txt"  # of the picture of the same name

State = tuple[int, int]  # size and modification time


class ImageFolderSource(Source):
    """Pictures in folders; the locator is the picture's name below the source's root."""

    format: ClassVar[str] = "image_folder"

    def companions(self) -> list[InputFile]:
        """The metadata files (captions of one picture each may be millions)."""
        found = {path: InputFile.of(path, self.root) for file in self.files if (path := self._metadata_of(file.path))}
        return list(found.values())

    def contents(self) -> list[InputFile]:
        """The pictures and captions of each folder: their bytes in all, and a digest of names, sizes and modification times."""
        return [InputFile(file.name, file.path, *_summed_up(_states(located(file.path)))) for file in self.files]

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of each folder's pictures, of about ``unit_bytes``."""
        for file in self.files:
            sizes = picture_sizes(located(file.path))
            start = total = 0
            for place, size in enumerate(sizes):
                total += size
                if total >= unit_bytes or place == len(sizes) - 1:
                    yield Unit(self.name, file.name, file.path, start, place + 1, total)
                    start, total = place + 1, 0

    def read(self, unit: Unit) -> UnitReader:
        """The pictures of the range; the last range adds the rows whose pictures are not there."""
        return _FolderReader(self, unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the folder's entries by name, the rows that name no file, and the pictures whose texts can be read."""
        there = count_pictures(located(unit.path))
        documents = max(0, min(unit.stop, there) - unit.start)
        images = 0
        for document in _FolderReader(self, unit, media=False).pictures():
            alive()
            images += document.failure is None
        missing = self._count_missing(unit) if unit.stop >= there else 0
        return Census(None if missing is None else documents + missing, {"image": images} if images else {})

    def _count_missing(self, unit: Unit) -> int | None:
        """Rows whose picture is not there, as the standard library reads the metadata; None where it cannot."""
        path = self._metadata_of(unit.path)
        if path is None or not self.answers(unit, path):
            return 0
        try:
            if path.suffix == ".csv":
                with text_lines(str(path), newline="") as lines:
                    names = [row["file_name"] for row in csv.DictReader(lines, strict=True)]
            else:
                with text_lines(str(path)) as lines:
                    names = [json.loads(line)["file_name"] for line in lines if line.strip()]
            return sum(not _is_there(path.parent, PurePosixPath(name).as_posix()) for name in {*names})
        except (ValueError, KeyError, TypeError, csv.Error):
            return None

    def _metadata_of(self, folder: str) -> Location | None:
        """The metadata file that speaks of a folder's pictures: in it, or in the nearest folder above."""
        if not is_url(folder):
            return self._look_for_metadata(Path(folder))
        if folder not in self._found:  # to ask a store for it takes long
            self._found[folder] = self._look_for_metadata(RemotePath(folder))
        return self._found[folder]

    @cached_property
    def _found(self) -> dict[str, Location | None]:
        return {}

    def _look_for_metadata(self, here: Location) -> Location | None:
        above = here
        while is_below(above, self.root):
            for name in METADATA_NAMES:
                if (above / name).is_file():
                    return above / name
            if above == above.parent:
                break
            above = above.parent
        return None

    def rows(self, folder: str) -> _Rows | None:
        """The rows of that file."""
        path = self._metadata_of(folder)
        if path is None:
            return None
        stat = path.stat()
        return _read_rows(str(path), relative_name(path, self.root), stat.st_size, stat.st_mtime_ns)

    def answers(self, unit: Unit, metadata: Location) -> bool:
        """True for the one folder that answers for the damage and the missing pictures of a metadata file."""
        first = next((file for file in self.files if self._metadata_of(file.path) == metadata), None)
        return first is not None and first.name == unit.file


def is_picture_entry(entry: os.DirEntry[str]) -> bool:
    """Whether an entry of a folder is one of its pictures."""
    return _is_picture(entry.name) and entry.is_file()


def picture_names(folder: Location) -> list[str]:
    """Names of the pictures in a folder, sorted."""
    if isinstance(folder, RemotePath):
        return sorted(path.name for path, stat in folder.entries().items() if not stat.folder and _is_picture(path.name))
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if is_picture_entry(entry))


def picture_sizes(folder: Location) -> list[int]:
    """Their sizes, in the same order."""
    return [size for name, (size, _) in sorted(_states(folder).items()) if _is_picture(name)]


def _states(folder: Location) -> dict[str, State]:
    """Size and modification time of each picture in a folder, and of each caption beside one."""
    found = dict(_listed(folder))
    stems = {os.path.splitext(name)[0] for name in found if _is_picture(name)}  # noqa: PTH122, there may be a million
    return {name: state for name, state in found.items() if _is_picture(name) or name.removesuffix(CAPTION) in stems}


def _listed(folder: Location) -> Iterator[tuple[str, State]]:
    """The pictures of a folder and what may be captions, asked for in one pass over it."""
    if isinstance(folder, RemotePath):
        for path, stat in folder.entries().items():
            if not stat.folder and (_is_picture(path.name) or path.name.endswith(CAPTION)):
                yield path.name, (stat.st_size, stat.st_mtime_ns)
        return
    with os.scandir(folder) as entries:
        for entry in entries:
            if (_is_picture(entry.name) or entry.name.endswith(CAPTION)) and entry.is_file():
                found = entry.stat()
                yield entry.name, (found.st_size, found.st_mtime_ns)


def _summed_up(states: Mapping[str, State]) -> State:
    """Their bytes in all, and a number that changes with any name, size or modification time among them."""
    digest = hashlib.blake2b(digest_size=6)
    for name in sorted(states):
        size, mtime_ns = states[name]
        digest.update(f"{name}\0{size}\0{mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return sum(size for size, _ in states.values()), int.from_bytes(digest.digest())


def count_pictures(folder: Location) -> int:
    """How many they are."""
    if isinstance(folder, RemotePath):
        return sum(not stat.folder and _is_picture(path.name) for path, stat in folder.entries().items())
    with os.scandir(folder) as entries:
        return sum(is_picture_entry(entry) for entry in entries)


def _is_picture(name: str) -> bool:
    if name.startswith(".") or not is_picture_name(name):
        return False
    return name.isascii() or not any("\ud800" <= character <= "\udfff" for character in name)


def _is_there(folder: Location, name: str) -> bool:
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or any(part.startswith(".") for part in parts):  # outside, or hidden: no document
        return False
    try:
        return _is_picture(parts[-1]) and (folder / name).is_file()
    except (ValueError, OSError):
        return False


def folders_of(files: Sequence[Location]) -> tuple[list[Location], set[Location]]:
    """The folders of pictures among ``files``, and those files that are pictures or accompany them.

    Only folders all of whose pictures are among the files: a source reads whole folders.
    """
    given = set(files)
    by_folder: dict[Location, set[str]] = {}
    for path in files:
        if _is_picture(path.name) and path.is_file():
            by_folder.setdefault(path.parent, set()).add(path.name)
    folders = sorted((folder for folder, names in by_folder.items() if names == set(picture_names(folder))), key=str)
    above = {parent for folder in folders for parent in (folder, *folder.parents)}
    used = {folder / name for folder in folders for name in by_folder[folder]}
    used |= {path.with_suffix(CAPTION) for path in used} & given
    used |= {path for path in files if path.name in METADATA_NAMES and path.parent in above}
    return folders, used


@dataclass(slots=True)
class _Rows:
    """A metadata file: rows by ``file_name``, and what could not be read of it."""

    name: str
    by_file: dict[str, dict[str, object]] = field(default_factory=dict)
    damage: list[ContainerDamage] = field(default_factory=list)

    def add(self, row: object, start: int, stop: int) -> None:
        """Take a row, or note that it is none."""
        given = row.get("file_name") if isinstance(row, dict) else None
        if not isinstance(given, str) or not given or not isinstance(row, dict):
            self.note(start, stop, "a row without a file_name")
        elif (name := PurePosixPath(given).as_posix()) in self.by_file:
            self.note(start, stop, f"a second row for {printable(name)!r}; the first is taken")
        else:
            self.by_file[name] = row

    def note(self, start: int, stop: int, message: str) -> None:
        """Note a stretch that is no row."""
        self.damage.append(ContainerDamage(self.name, start, stop, "metadata-row-unreadable", message))


@lru_cache(maxsize=2)
def _read_rows(path: str, name: str, size: int, mtime_ns: int) -> _Rows:
    rows = _Rows(name)
    if path.endswith(".csv"):
        _read_csv(located(path).read_bytes(), rows)
        return rows
    with located(path).open("rb") as file:
        for offset, line in read_lines(file, 0, size):
            stop = offset + len(line or b"")
            try:
                if line is None:
                    raise ItemError("line-too-long", "longer than any row")
                rows.add(parse_json(line), offset, stop)
            except ItemError as error:
                rows.note(offset, stop, f"the row at byte {offset} is lost: {error.message}")
    return rows


def _read_csv(data: bytes, rows: _Rows) -> None:
    try:
        reader = csv.DictReader(io.StringIO(decode_text(data), newline=""), strict=True)
        for row in reader:
            if None in row or None in row.values():
                rows.note(0, len(data), f"line {reader.line_num}: another number of fields than the heading")
            else:
                rows.add(dict(row), 0, len(data))
    except (csv.Error, ItemError) as error:
        rows.note(0, len(data), f"read up to where it breaks: {error}")


class _FolderReader(UnitReader):
    def __init__(self, source: ImageFolderSource, unit: Unit, *, media: bool = True) -> None:
        self._source, self._unit, self._media = source, unit, media
        self._rows = source.rows(unit.path)
        self._folder = located(unit.path)
        self._names = picture_names(self._folder)
        # Of a folder in a store, which names there are is asked for once, not picture by picture.
        self._beside = {path.name for path in self._folder.entries()} if isinstance(self._folder, RemotePath) else None

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        yield from self.pictures()
        self.consumed = 1.0
        if self._unit.stop >= len(self._names) and self._rows is not None:
            metadata = self._source.root / self._rows.name
            if self._source.answers(self._unit, metadata):
                yield from self._rows.damage
                yield from self._missing(metadata.parent, self._rows)

    def pictures(self) -> Iterator[Document]:
        """The documents of the range."""
        unit = self._unit
        for place, name in enumerate(self._names[unit.start : unit.stop], 1):
            self.consumed = place / (unit.stop - unit.start)
            yield self._document(name)

    def _document(self, name: str) -> Document:
        unit, path = self._unit, self._folder / name
        locator = relative_name(path, self._source.root)
        row: dict[str, object] = {}
        if self._rows is not None:
            below = relative_name(path, (self._source.root / self._rows.name).parent)
            row = self._rows.by_file.get(below, {})
        fields: dict[str, object] = {} if path.parent == self._source.root else {"label": path.parent.name}
        fields |= {key: value for key, value in row.items() if key != "file_name"}
        try:
            text = self._caption(path, row)
        except ItemError as error:
            return failed_document(unit.source, locator, error.reason, error.message, pair=True, metadata=metadata_of(fields))
        segments: tuple[Segment, ...] = (self._image(path), *([Text(text)] if text else []))
        return Document(locator, unit.source, locator, segments, pair=True, metadata=metadata_of(fields))

    def _image(self, path: Location) -> Image:
        if not self._media:
            return Image(b"", path.name)
        with path.open("rb") as file:
            data = file.read(MAX_ITEM_BYTES + 1)
        if len(data) > MAX_ITEM_BYTES:
            message = f"more than {MAX_ITEM_BYTES} bytes"
            return Image(None, path.name, Failure(Outcome.REJECTED, "image-too-large", message))
        return Image(data, path.name)

    def _caption(self, picture: Location, row: dict[str, object]) -> str:
        path = picture.with_suffix(CAPTION)
        return _caption(picture, row, beside=path.is_file() if self._beside is None else path.name in self._beside)

    def _missing(self, folder: Location, rows: _Rows) -> Iterator[Document]:
        above = relative_name(folder, self._source.root)
        for name, row in rows.by_file.items():
            if not _is_there(folder, name):
                locator = printable(f"{above}/{name}" if above != "." else name)
                message = f"named by a row of {rows.name}, but not a picture of the folder"
                yield failed_document(
                    self._source.name,
                    locator,
                    "image-not-found",
                    message,
                    outcome=Outcome.FAILED_UPSTREAM,
                    pair=True,
                    metadata=metadata_of(row),
                )


def _caption(picture: Location, row: dict[str, object], *, beside: bool) -> str:
    path = picture.with_suffix(CAPTION)
    if beside:
        with path.open("rb") as file:
            data = file.read(MAX_ITEM_BYTES + 1)
        if len(data) > MAX_ITEM_BYTES:
            raise ItemError("text-too-large", f"{path.name}: more than {MAX_ITEM_BYTES} bytes")
        try:
            return decode_text(data)
        except ItemError as error:
            raise ItemError(error.reason, f"{path.name}: {error.message}") from None
    found = next((row[name] for name in TEXT_FIELDS if row.get(name) not in (None, "")), "")
    if not isinstance(found, str):
        raise ItemError("text-not-a-string", f"the caption in the metadata is a {type(found).__name__}")
    return found
