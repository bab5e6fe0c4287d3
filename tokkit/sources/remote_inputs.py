"""What lies where a URL points: one object, what is below a folder, or what a pattern matches.

Folders are gone through one by one, as on a disk, so that a folder of pictures beside documents is not listed. Patterns are
those of :mod:`glob`. On a web server, which lists nothing, a URL names one file. A URL that holds a password, a token or a
query is refused: URLs are written down beside the output.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tokkit.errors import TransientError
from tokkit.sources.remote import RemotePath, is_url
from tokkit.sources.seen import IgnoredFile, ProblemError, is_output, picture_folders

_MAGIC = re.compile(r"[*?\[]")
_WEB = ("http", "https")
_LOCAL = ("file", "local")
_WITH_USER = ("sftp", "ssh", "abfs", "abfss", "hdfs", "smb")  # whose URLs name a user or a container before the @


@dataclass(frozen=True, slots=True)
class Listed:
    """What was found: as the fields of the same names of one INPUT."""

    root: RemotePath
    files: list[RemotePath]
    single: bool
    ignored: list[IgnoredFile] = field(default_factory=list)


def list_input(url: str) -> Listed | None:
    """What a URL names; None for one of this machine.

    Raises:
        ProblemError: nothing is there, or the URL is none that is taken.
        OSError: the store does not answer, or refuses to.
    """
    scheme = url.partition("://")[0].lower()
    if scheme in _LOCAL:
        return None
    _check(url, scheme)
    path = RemotePath(url.rstrip("/"))
    if scheme in _WEB:
        if _MAGIC.search(url) or url.endswith("/") or not path.is_file():
            raise ProblemError("a web server lists no folders: name each file, or there is no such file")
        return Listed(path.parent, [path], True)
    there = None if url.endswith("/") else _file_or_folder(path)
    if there == "file":
        return Listed(path.parent, [path], True)
    if there == "folder" or (url.endswith("/") and path.entries()):
        files, ignored = _walk(path, top=True)
        return Listed(path, files, False, ignored)
    if not _MAGIC.search(url.partition("://")[2]):
        raise ProblemError("no such object, and none below it")
    return _glob(path)


def _check(url: str, scheme: str) -> None:
    rest = url.partition("://")[2]
    host, *parts = rest.rstrip("/").split("/")
    user, at, _ = host.rpartition("@")
    if at and (":" in user or scheme not in _WITH_USER):
        raise ProblemError(
            "a URL with credentials would be written down beside the output: leave them out, and give them by the "
            "environment or by fsspec's configuration"
        )
    if scheme in _WEB and ("?" in rest or "#" in rest):
        raise ProblemError("a URL with a query may hold a token, and would be written down beside the output: it is not taken")
    if _MAGIC.search(host):
        raise ProblemError("the bucket or host cannot be a pattern")
    if any(part in ("", ".", "..") for part in parts):
        raise ProblemError("the URL has an empty part, or . or ..")


def without_secrets(typed: str) -> str:
    """What was typed, without what may be a password or a token in a URL."""
    return re.sub(r"(https?://[^?#]*)[?#].*", r"\1?...", re.sub(r"(://)[^/@]*@", r"\1...@", typed), flags=re.DOTALL)


@contextmanager
def telling_of_stores() -> Iterator[None]:
    """Say what a store's refusal or silence means: a wrong input, or one to try again later."""
    try:
        yield
    except OSError as error:
        if not is_url(str(error.filename)):
            raise
        if isinstance(error, FileNotFoundError):
            raise ProblemError(f"{error.filename} is not there (any more)") from None
        if isinstance(error, PermissionError):
            raise ProblemError(
                f"access to {error.filename} is denied: are there credentials for it, and the right ones?"
            ) from None
        raise TransientError(
            f"{error.filename}: {error.strerror}; nothing was changed, run the same command again when it answers"
        ) from error


def _file_or_folder(path: RemotePath) -> str:
    try:
        return "folder" if path.stat().folder else "file"
    except FileNotFoundError:
        return ""


def _walk(folder: RemotePath, *, top: bool) -> tuple[list[RemotePath], list[IgnoredFile]]:
    """Objects below a folder, as a disk's would be looked through: hidden ones and the output of runs are left out."""
    entries = {path.name: stat for path, stat in folder.entries().items() if not path.name.startswith(".")}
    if not top and "config.json" in entries and is_output(folder):
        return [], []
    names = [name for name, stat in entries.items() if not stat.folder]
    folders = sorted(name for name, stat in entries.items() if stat.folder)
    stores = picture_folders(folder, folders, names)
    files: list[RemotePath] = [folder / name for name in sorted(names)]
    ignored: list[IgnoredFile] = []
    for name in folders:
        if name not in stores:
            below, skipped = _walk(folder / name, top=False)
            files += below
            ignored += skipped
    return files, ignored


def _glob(pattern: RemotePath) -> Listed:
    anchor, rest = pattern.split()
    parts = rest.strip("/").split("/")
    fixed = next(place for place, part in enumerate(parts) if _MAGIC.search(part))
    root = RemotePath(anchor)
    for part in parts[:fixed]:
        root /= part
    files: dict[RemotePath, None] = {}
    ignored: list[IgnoredFile] = []
    matches = sorted(set(_matches(root, parts[fixed:])))
    for path in matches:
        there = _file_or_folder(path)
        if there == "file":
            files[path] = None
        elif there and "**" not in parts:  # with ** the folder's objects are matches themselves
            below, skipped = _walk(path, top=True)
            files.update(dict.fromkeys(below))
            ignored += skipped
    if not matches:
        raise ProblemError("the pattern matches nothing")
    return Listed(root, list(files), False, ignored)


def _matches(folder: RemotePath, parts: list[str]) -> Iterator[RemotePath]:
    part, rest = parts[0], parts[1:]
    if not _MAGIC.search(part):
        if rest:
            yield from _matches(folder / part, rest)
        elif _file_or_folder(folder / part):
            yield folder / part
        return
    try:
        entries = folder.entries()
    except (FileNotFoundError, NotADirectoryError):
        return
    if part == "**":
        yield from _matches(folder, rest or ["*"])
    for path, stat in entries.items():
        hidden = path.name.startswith(".") and not part.startswith(".")
        if part == "**":
            if stat.folder and not hidden:
                yield from _matches(path, parts)
        elif not hidden and fnmatchcase(path.name, part):
            if not rest:
                yield path
            elif stat.folder:
                yield from _matches(path, rest)
