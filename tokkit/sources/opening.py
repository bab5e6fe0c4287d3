"""Where an input lies: a path of this machine, or a URL (:mod:`tokkit.sources.remote`), both with the same methods.

Sources take what is written in :class:`~tokkit.sources.base.InputFile` and :class:`~tokkit.sources.base.Unit` through
:func:`located` and then open it, ask for its size or its neighbours, wherever it lies. A local file is opened as ever.
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from tokkit.sources.remote import RemotePath, RemoteStat, is_url

Location = Path | RemotePath


def located(path: str) -> Location:
    """The file or folder that a path or a URL names."""
    return RemotePath(path) if is_url(path) else Path(path)


@contextmanager
def for_arrow(path: str) -> Iterator[str | BinaryIO]:
    """What Arrow's readers take: the path of a local file, which they open themselves, or an open object."""
    if not is_url(path):
        yield path
        return
    with RemotePath(path).open() as file:
        yield file


def joined(folder: Location, name: str) -> Location:
    """Where ``name`` leads from ``folder``, symbolic links followed; in an object store it is made out by the name alone."""
    if isinstance(folder, Path):
        return Path(os.path.realpath(os.path.join(folder, name)))  # noqa: PTH118 - Path would normalise the name first
    if "\0" in name:
        raise ValueError("embedded null byte")
    anchor, rest = folder.split()
    return RemotePath((anchor + posixpath.normpath(f"/{rest}/{name}".replace("//", "/"))).rstrip("/"))


def relative_name(path: Location, root: Location) -> str:
    """The name of ``path`` below ``root``, with forward slashes."""
    if isinstance(path, Path) and isinstance(root, Path):
        return path.relative_to(root).as_posix()
    assert isinstance(path, RemotePath)
    return path.relative_to(root).as_posix()


@contextmanager
def text_lines(path: str, *, newline: str | None = None, errors: str = "strict") -> Iterator[TextIO]:
    """The file as UTF-8 text, without a byte order mark."""
    with (
        located(path).open("rb") as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", errors=errors, newline=newline) as text,
    ):
        yield text


def is_below(path: Location, root: Location) -> bool:
    """Whether ``path`` is ``root`` or lies below it."""
    if isinstance(path, Path):
        return isinstance(root, Path) and path.is_relative_to(root)
    return path.is_relative_to(root)


def state_of(path: Location) -> tuple[int, int]:
    """Size and modification time, or what stands for that: what tells that a file was changed. A folder's size is 0."""
    found = path.stat()
    folder = found.folder if isinstance(found, RemoteStat) else stat.S_ISDIR(found.st_mode)
    return 0 if folder else found.st_size, found.st_mtime_ns
