"""Sounds that a manifest names: files beside it or below the source's root, and segments of them.

A name comes from an untrusted line, and is opened only where it leads to a regular file below the source's root; an absolute
path (which manifests often have) too. The file read last is kept, since the segments of a recording stand one after another.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokkit.documents import Audio, Failure
from tokkit.errors import ItemError
from tokkit.sources.media_files import FilesBelow
from tokkit.sources.opening import Location, is_below
from tokkit.sources.untrusted import printable

_MAX_NAME = 2048
_LONGEST = 1e9  # seconds; beyond it a number is no time


class SoundFiles:
    """Reads sounds by name.

    Args:
        root: of the source.
        media: False where only the number of sounds is asked for: then no file is opened.
    """

    def __init__(self, root: Location, *, media: bool) -> None:
        self._root, self._media = root, media
        self._files = FilesBelow(root)
        self._last: tuple[tuple[str, ...], bytes | Failure] | None = None

    def sound(self, folders: Sequence[Location], name: str, start: float = 0.0, seconds: float | None = None) -> Audio:
        """The sound called ``name``, relative to the first of ``folders`` that has it, or to the root."""
        ref = printable(name[:_MAX_NAME])
        if not self._media:
            return Audio(b"", ref)
        key = (name, *map(str, folders))
        if self._last is None or self._last[0] != key:
            self._last = key, self._read(folders, name)
        found = self._last[1]
        if isinstance(found, Failure):
            return Audio(None, ref, found)
        return Audio(found, ref, start=start, seconds=seconds)

    def _read(self, folders: Sequence[Location], name: str) -> bytes | Failure:
        if isinstance(self._root, Path) and "\0" not in name and Path(name).is_absolute() and is_below(Path(name), self._root):
            folders, name = (self._root,), os.path.relpath(name, self._root)
        found: bytes | Failure = b""
        for folder in dict.fromkeys((*folders, self._root)):
            found = self._files.read(folder, name, "audio")
            if not isinstance(found, Failure) or found.reason != "audio-not-found":
                break
        return found


def seconds_of(fields: Mapping[str, object], name: str) -> float | None:
    """A time in seconds, from 0 up; None where it is absent or null.

    Raises:
        ItemError: ``time-not-understood``.
    """
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LONGEST:
        raise ItemError("time-not-understood", f"{name} is {printable(repr(value)[:40])}, no time in seconds")
    return float(value)


def transcript_of(fields: dict[str, object], name: str) -> str:
    """A text; empty where it is absent or null.

    Raises:
        ItemError: ``text-not-a-string``.
    """
    value = fields.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ItemError("text-not-a-string", f"{name} is a {type(value).__name__}")
    return value
