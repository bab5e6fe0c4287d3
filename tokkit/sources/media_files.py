"""Media that documents name instead of hold: files below the source's root, and members of picture tars, by URL map.

Names come from untrusted rows. A path is opened only where it resolves, symbolic links included, to a regular file below the
root. URLs are looked up in a map that whoever downloaded them wrote; nothing is downloaded here.

A picture store belongs to the parquet files that share its prefix: ``P-00000-of-00002.parquet`` goes with
``P_url_map.jsonl`` (objects {url, file, status}) and ``P_images.tar``, or else the folders ``P_images/`` and ``images/``.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from tokkit.documents import Failure, Outcome
from tokkit.errors import ItemError
from tokkit.sources.base import ContainerDamage, InputFile
from tokkit.sources.lines import read_lines
from tokkit.sources.opening import Location, is_below, joined
from tokkit.sources.remote import RemotePath, RemoteStat
from tokkit.sources.tarindex import Member, tar_index
from tokkit.sources.untrusted import MAX_ITEM_BYTES, parse_json, printable, slug

_NAMELESS = {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EISDIR}
_SHARD = re.compile(r"(.+?)-\d+-of-\d+")


def prefix_name(parquet: str) -> str:
    """``P-00000-of-00002.parquet`` -> ``P``: what the names of the file's companions begin with."""
    stem = PurePosixPath(parquet).stem
    match = _SHARD.fullmatch(stem)
    return match[1] if match else stem


def map_file(prefix: Location) -> Location:
    """Where the URL map of a prefix lies, if there is one."""
    return prefix.with_name(f"{prefix.name}_url_map.jsonl")


def store_file(prefix: Location) -> Location:
    """Where the picture tar of a prefix lies, if there is one."""
    return prefix.with_name(f"{prefix.name}_images.tar")


def not_found(kind: str, message: str) -> Failure:
    """The failure of a file that should be there and is not."""
    return Failure(Outcome.FAILED_UPSTREAM, f"{kind}-not-found", printable(message))


class FilesBelow:
    """Reads files below ``root``, and none outside.

    In an object store, where nothing resolves names, they are made out by their slashes and dots alone.
    """

    def __init__(self, root: Location) -> None:
        self._root = root if isinstance(root, RemotePath) else Path(os.path.realpath(root))

    def read(self, folder: Location, name: str, kind: str) -> bytes | Failure:
        """The file ``name``, relative to ``folder``, or why there is none (``path-outside-source``, ``KIND-not-found``).

        Raises:
            OSError: for the surroundings: a file that is there, but cannot be read.
        """
        if Path(name).is_absolute():
            return Failure(Outcome.REJECTED, "path-outside-source", printable(f"{name}: an absolute path"))
        try:
            path = joined(folder, name)
            if not is_below(path, self._root):
                return Failure(Outcome.REJECTED, "path-outside-source", printable(f"{name}: leads out of the source's folder"))
            return self._read(path, name, kind)
        except ValueError as error:  # NUL, or characters that no file name can have
            return not_found(kind, f"{name!r}: {error}")
        except OSError as error:
            if error.errno not in _NAMELESS:
                raise
            return not_found(kind, f"{name}: {os.strerror(error.errno or 0)}")

    def _read(self, path: Location, name: str, kind: str) -> bytes | Failure:
        status = path.stat()
        if status.folder if isinstance(status, RemoteStat) else not stat.S_ISREG(status.st_mode):
            return not_found(kind, f"{name}: not a regular file")
        if status.st_size > MAX_ITEM_BYTES:
            return Failure(Outcome.REJECTED, f"{kind}-too-large", f"{status.st_size} bytes; at most {MAX_ITEM_BYTES} are read")
        return path.read_bytes()


def is_there(path: Location) -> bool:
    """Whether a file is there; none is by a name that no file can have.

    Raises:
        OSError: for the surroundings.
    """
    try:
        return path.is_file()
    except OSError as error:
        if error.errno not in _NAMELESS:
            raise
        return False


@dataclass(frozen=True, slots=True)
class _Download:
    file: str | None
    status: str


@dataclass(slots=True)
class UrlStore:
    """The pictures of one prefix by URL. Loaded once per reader: the map's entries and the tar's index are in memory.

    Attributes:
        prefix: what the names of the map and of the tar begin with.
        folder: the prefix' folder relative to the source's root, for locators.
        has_map: False where nobody downloaded anything.
        damage: what could not be read of the map and of the tar.
    """

    prefix: Location
    folder: PurePosixPath
    has_map: bool = False
    damage: list[ContainerDamage] = field(default_factory=list)
    _entries: dict[str, _Download] = field(default_factory=dict)
    _members: dict[str, Member] | None = None
    _tar: BinaryIO | None = None
    _pictures: Location | None = None

    @classmethod
    def load(cls, prefix: Location, folder: PurePosixPath) -> UrlStore:
        """Read the map and the index of the tar beside it; either may be missing."""
        store = cls(prefix, folder)
        if map_file(prefix).is_file():
            store.has_map = True
            store._load_map(map_file(prefix))
        if store.has_map and store_file(prefix).is_file():
            store._load_tar(store_file(prefix))
        return store

    def close(self) -> None:
        """Close the tar."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None

    def read(self, url: str, files: FilesBelow) -> bytes | Failure:
        """The bytes downloaded from ``url``, or the failure that says why there are none."""
        entry = self._entries.get(url)
        if entry is None:
            why = f"not in {map_file(self.prefix).name}" if self.has_map else "no URL map lies beside the parquet"
            return Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", why)
        if entry.status != "success":
            return Failure(Outcome.FAILED_UPSTREAM, slug(entry.status), printable(f"status {entry.status} in the URL map"))
        if entry.file is None:
            return not_found("image", "the URL map names no file")
        if self._members is not None:
            return self._from_tar(entry.file)
        if self._pictures is None:
            own = self.prefix.with_name(f"{self.prefix.name}_images")
            self._pictures = own if own.is_dir() else self.prefix.with_name("images")
        return files.read(self._pictures, entry.file, "image")

    def _from_tar(self, name: str) -> bytes | Failure:
        member = (self._members or {}).get(name.removeprefix("./"))
        if member is None or member.kind != "file":
            return not_found("image", f"{name}: not a file of {store_file(self.prefix).name}")
        if member.size > MAX_ITEM_BYTES:
            return Failure(Outcome.REJECTED, "image-too-large", f"{member.size} bytes; at most {MAX_ITEM_BYTES} are read")
        if self._tar is None:
            self._tar = store_file(self.prefix).open("rb")
        self._tar.seek(member.data)
        data = self._tar.read(member.size)
        if len(data) != member.size:
            raise OSError(errno.EIO, "shorter than when it was indexed; did something write to it?", self._tar.name)
        return data

    def _load_map(self, path: Location) -> None:
        name, size = (self.folder / path.name).as_posix(), path.stat().st_size
        with path.open("rb") as file:
            for offset, line in read_lines(file, 0, size):
                try:
                    if line is None:
                        raise ItemError("line-too-long", "longer than any entry")
                    entry = parse_json(line)
                    if not isinstance(entry, dict) or not isinstance(entry.get("url"), str):
                        raise ItemError("not-an-entry", "no object with a url")
                except ItemError as error:
                    length = 0 if line is None else len(line)
                    message = f"the entry at byte {offset} is lost: {error.message}"
                    self.damage.append(ContainerDamage(name, offset, offset + length, "url-map-entry-unreadable", message))
                    continue
                self._add(entry)

    def _add(self, entry: dict[str, object]) -> None:
        url, file, status = str(entry["url"]), entry.get("file"), entry.get("status", "success")
        known = self._entries.get(url)
        if known is None or known.status != "success":  # of several tries, the one that worked
            self._entries[url] = _Download(file if isinstance(file, str) else None, str(status))

    def _load_tar(self, path: Location) -> None:
        index = tar_index(str(path))
        self._members = {member.name: member for member in index.members}
        if index.damage is not None:
            name = (self.folder / path.name).as_posix()
            self.damage.append(
                ContainerDamage(name, index.damage.start, index.size, index.damage.reason, printable(index.damage.message))
            )


def companions_of(prefix: Location, folder: PurePosixPath) -> Iterator[InputFile]:
    """The URL map and the picture tar of a prefix, as far as they are there."""
    wanted = [map_file(prefix), store_file(prefix)] if map_file(prefix).is_file() else []
    for path in wanted:
        if path.is_file():
            status = path.stat()
            yield InputFile((folder / path.name).as_posix(), str(path), status.st_size, status.st_mtime_ns)
