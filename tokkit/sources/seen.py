"""What is told of an input's folders while they are looked through, here and in object stores."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokkit.sources import LINES
from tokkit.sources.opening import Location
from tokkit.sources.recognise import recognise

# Formats whose documents name pictures in the folders images/ and *_images/ beside them.
WITH_PICTURE_FOLDERS = ("obelics", "mmc4", "llava")


@dataclass(frozen=True, slots=True)
class IgnoredFile:
    """A file that was seen and is not read: where it lies, and why."""

    path: str
    why: str


class ProblemError(Exception):
    """One input is wrong; gathered into the ConfigError."""


def is_output(folder: Location) -> bool:
    """Whether a folder was written by ``tokkit shard``: output that lies within an input is no input."""
    try:
        with (folder / "config.json").open("rb") as file:
            head = file.read(200)
    except OSError:
        return False
    return b'"tokkit-config"' in head


def picture_folders(here: Location, folders: Iterable[str], names: Iterable[str]) -> set[str]:
    """Those of the folders in ``here`` that hold the pictures of the documents beside them; they are not looked through."""
    candidates = {name for name in folders if names_pictures(name)}
    documents = (here / name for name in names if name.lower().endswith((".parquet", *LINES)))
    if candidates and any(recognise(path).format in WITH_PICTURE_FOLDERS for path in documents if path.is_file()):
        return candidates
    return set()


def names_pictures(name: str) -> bool:
    """Whether a folder may hold the pictures of documents, by its name."""
    return name == "images" or name.endswith("_images")
