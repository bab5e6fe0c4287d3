"""What deduplication knows of a work unit: a file of fixed-width columns.

A line of JSON (format, identity of the unit, columns, CRC-32 of what follows), padded to a multiple of 64 bytes, then the
columns one after another. By document, in the order in which the reader yields them:

    flags       u1   TAKES_PART, IS_PAIR, HAS_TEXT
    sound       u4   media items that would be committed
    place       u8   where the document's locator ends in ``locators``
    content     S16  content hash                                    \\
    text        S16  hash of its text                                 | only those that the run asks for
    item_*      position u4, item u4, bytes S16, looks u8             /

The item columns have a row for each sound media item of a document that takes part; ``looks`` is 0 for an item that has no
perceptual hash. The file is a function of the unit and of the options, so any attempt at a unit writes the same bytes.
"""

from __future__ import annotations

import json
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tokkit.dedup.records import KEY
from tokkit.errors import DataError
from tokkit.storage import canonical_json, replacing

FORMAT = "tokkit-dedup-index"
TAKES_PART, IS_PAIR, HAS_TEXT = 1, 2, 4
_ALIGN = 64


@dataclass(frozen=True, slots=True)
class ItemKeys:
    """What a sound media item is labelled with: ``bytes`` is 16 bytes, ``looks`` a perceptual hash or 0."""

    item: int
    bytes: bytes
    looks: int = 0


class IndexBuilder:
    """Gathers a unit's documents; columns that the run does not ask for stay empty.

    Args:
        content, text, items, looks: which labels the run asks for.
    """

    def __init__(self, *, content: bool, text: bool, items: bool, looks: bool) -> None:
        self._content, self._text, self._items, self._looks = content, text, items, looks
        self.documents = 0
        self._flags, self._sound, self._place = array("B"), array("I"), array("Q")
        self._locators = bytearray()
        self._keys = {"content": bytearray(), "text": bytearray(), "item_bytes": bytearray()}
        self._item_position, self._item_item, self._item_looks = array("I"), array("I"), array("Q")

    def leave_out(self, locator: str) -> None:
        """A document that takes no part: it is not committed, whatever else there is."""
        self._document(locator, 0, 0, bytes(KEY.itemsize), bytes(KEY.itemsize))

    def add(
        self, locator: str, *, pair: bool, has_text: bool, content: bytes, text: bytes, sound: int, items: list[ItemKeys]
    ) -> None:
        """A document that would be committed if there were no other.

        Args:
            content, text: 16 bytes each, where the run asks for them; the hash of a text that is not there does not count.
            sound: its media items that would be committed; ``items`` has the keys of each, if the run asks for any.
        """
        flags = TAKES_PART | (IS_PAIR if pair else 0) | (HAS_TEXT if has_text else 0)
        if self._items:
            for keys in items:
                self._item_position.append(self.documents)
                self._item_item.append(keys.item)
                self._keys["item_bytes"] += keys.bytes
                if self._looks:
                    self._item_looks.append(keys.looks)
        self._document(locator, flags, sound, content, text)

    def _document(self, locator: str, flags: int, sound: int, content: bytes, text: bytes) -> None:
        self.documents += 1
        self._flags.append(flags)
        self._sound.append(sound)
        self._locators += locator.encode("utf-8", "surrogatepass")
        self._place.append(len(self._locators))
        if self._content:
            self._keys["content"] += content
        if self._text:
            self._keys["text"] += text

    def write(self, path: Path, identity: object) -> None:
        """Write the file, whole or not at all; ``identity`` is what :meth:`UnitIndex.open` will be asked for."""
        columns = {
            "flags": np.frombuffer(self._flags, "u1"),
            "sound": np.array(self._sound, "<u4"),
            "place": np.array(self._place, "<u8"),
            "locators": np.frombuffer(bytes(self._locators), "u1"),
            "content": np.frombuffer(bytes(self._keys["content"]), KEY),
            "text": np.frombuffer(bytes(self._keys["text"]), KEY),
            "item_position": np.array(self._item_position, "<u4"),
            "item_item": np.array(self._item_item, "<u4"),
            "item_bytes": np.frombuffer(bytes(self._keys["item_bytes"]), KEY),
            "item_looks": np.array(self._item_looks, "<u8"),
        }
        crc = 0
        for column in columns.values():
            crc = zlib.crc32(column.tobytes(), crc)
        entry = {
            "format": FORMAT,
            "version": 1,
            "identity": identity,
            "crc32": crc,
            "columns": [[name, column.dtype.str, len(column)] for name, column in columns.items()],
        }
        line = canonical_json(entry).encode("ascii")
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(line + b" " * (-(len(line) + 1) % _ALIGN) + b"\n")
            for column in columns.values():
                file.write(column.tobytes())


class UnitIndex:
    """A unit's index, mapped.

    Attributes:
        flags, sound, content...: the columns; empty where the run does not ask for them.
    """

    def __init__(self, path: Path, columns: dict[str, npt.NDArray[Any]]) -> None:
        self.path, self._columns = path, columns
        self.flags, self.sound = columns["flags"], columns["sound"]
        self.content, self.text = columns["content"], columns["text"]
        self.item_position, self.item_item = columns["item_position"], columns["item_item"]
        self.item_bytes, self.item_looks = columns["item_bytes"], columns["item_looks"]

    @classmethod
    def open(cls, path: Path, identity: object = None, *, check: bool = False) -> UnitIndex:
        """Map a file.

        Args:
            identity: what it must be of; None takes any.
            check: also read all of it and compare the checksum.

        Raises:
            DataError: it is damaged, or of something else.
            FileNotFoundError: there is none.
        """
        with path.open("rb") as file:
            line = file.readline(1 << 20)
        try:
            entry = json.loads(line)
            if entry["format"] != FORMAT or entry["version"] != 1:
                raise ValueError("another format or version")
            shapes = [(str(name), np.dtype(kind), int(count)) for name, kind, count in entry["columns"]]
            crc, found = int(entry["crc32"]), entry["identity"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path} is damaged: {error}") from None
        if path.stat().st_size != len(line) + sum(kind.itemsize * count for _, kind, count in shapes):
            raise DataError(f"{path} is damaged: it is not as long as it says")
        if identity is not None and found != json.loads(canonical_json(identity)):
            raise DataError(f"{path} is of something else: {found}")
        mapped = np.memmap(path, np.uint8, "r")
        if check and zlib.crc32(mapped[len(line) :].data) != crc:
            raise DataError(f"{path} is damaged: its checksum is another")
        columns: dict[str, npt.NDArray[Any]] = {}
        begin = len(line)
        for name, kind, count in shapes:
            end = begin + kind.itemsize * count
            # Columns of bytes may leave the next one off its alignment; NumPy copes.
            columns[name] = np.ndarray((count,), kind, mapped, begin) if count else np.empty(0, kind)
            begin = end
        return cls(path, columns)

    @property
    def documents(self) -> int:
        """Documents that the reader yields."""
        return len(self.flags)

    def locator(self, position: int) -> str:
        """The locator of a document."""
        place = self._columns["place"]
        begin = int(place[position - 1]) if position else 0
        text = self._columns["locators"][begin : int(place[position])].tobytes()
        return text.decode("utf-8", "surrogatepass")
