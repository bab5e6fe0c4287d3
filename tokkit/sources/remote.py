"""Inputs that lie in an object store or on a web server, by URL, through fsspec.

:class:`RemotePath` has the part of :class:`pathlib.Path` that the sources use, so a source does not know where its files lie.
An open file asks for ranges of bytes: what is read in one go comes in requests that grow up to ``MAX_REQUEST``, what is jumped
to in small ones, so that a unit costs little more than its own bytes. A request that fails is made again, with waits that
double, and is given up as an ``OSError`` of the surroundings: a unit is put aside then, never a document rejected.

Which endpoint, which credentials: fsspec's own configuration says that (``FSSPEC_*`` in the environment, ``~/.config/fsspec``),
and what the packages behind it look at by themselves. None of it is ever part of a URL here.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import posixpath
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from tokkit.errors import UsageError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

T = TypeVar("T")

MIN_REQUEST = 64 << 10
MAX_REQUEST = 8 << 20
CALL_SECONDS = 60.0  # that one request may take
GIVE_UP_SECONDS = 120.0  # from the first failure of a request on
FIRST_WAIT = 0.5
TRIES = 6

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}
_WEB = ("http", "https")

# What tells one state of an object from another, best first: the store's own mark of the content, else when it was written.
_MARKS = ("etag", "generation", "versionid", "md5", "content-md5", "contenthash", "checksum")
_TIMES = ("lastmodified", "last-modified", "last_modified", "mtime", "modified", "timemodified", "updated", "created")


def is_url(text: str) -> bool:
    """Whether an input's path is a URL."""
    return _URL.match(text) is not None


@dataclass(frozen=True, slots=True)
class RemoteStat:
    """What is known of an object, under the names that :class:`os.stat_result` has for it.

    Attributes:
        st_size: bytes.
        st_mtime_ns: a number that changes when the object does: made of its ETag, or else of when it was written.
        folder: it is none, but others lie below it.
    """

    st_size: int
    st_mtime_ns: int
    folder: bool = False


@dataclass(frozen=True, slots=True, order=True)
class RemotePath:
    """An object, or what objects lie below, by its URL without a slash at the end."""

    url: str

    def __str__(self) -> str:
        return self.url

    def split(self) -> tuple[str, str]:
        """What no folder is above of (``s3://bucket``), and the rest with its slash."""
        begin = self.url.index("://") + 3
        slash = self.url.find("/", begin)
        return (self.url, "") if slash < 0 else (self.url[:slash], self.url[slash:])

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        anchor, rest = self.split()
        return rest.rpartition("/")[2] if rest else anchor.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return posixpath.splitext(self.name)[1]

    @property
    def stem(self) -> str:
        return posixpath.splitext(self.name)[0]

    @property
    def parent(self) -> RemotePath:
        anchor, rest = self.split()
        return RemotePath(anchor + rest.rpartition("/")[0])

    @property
    def parents(self) -> list[RemotePath]:
        found = [self]
        while found[-1].parent != found[-1]:
            found.append(found[-1].parent)
        return found[1:]

    def __truediv__(self, below: str) -> RemotePath:
        return self if below in ("", ".") else RemotePath(f"{self.url}/{below}")

    def with_name(self, name: str) -> RemotePath:
        return self.parent / name

    def with_suffix(self, suffix: str) -> RemotePath:
        return self.with_name(self.stem + suffix)

    def is_relative_to(self, above: object) -> bool:
        return isinstance(above, RemotePath) and (self == above or self.url.startswith(above.url + "/"))

    def relative_to(self, above: object) -> _Relative:
        if not isinstance(above, RemotePath) or not self.is_relative_to(above):
            raise ValueError(f"{self} is not below {above}")
        return _Relative(self.url[len(above.url) + 1 :] or ".")

    def stat(self) -> RemoteStat:
        """As the store tells now; raises FileNotFoundError, PermissionError, or another OSError where it does not answer."""
        if (remembered := _remembered(self)) is not None and not remembered.folder:
            return remembered
        fs, path = opened(self.url)

        def ask() -> RemoteStat:
            if not hasattr(fs, "_info"):
                fs.invalidate_cache()
            info = call(fs, "info", path)
            return _folder_stat(self) if info.get("type") == "directory" else _stat_of(info)

        return tried(self.url, ask)

    def is_file(self) -> bool:
        return self._there(folder=False)

    def is_dir(self) -> bool:
        return self._there(folder=True)

    def is_symlink(self) -> bool:
        return False

    def _there(self, *, folder: bool) -> bool:
        try:
            return (_remembered(self) or self.stat()).folder == folder
        except FileNotFoundError:
            return False

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the object for reading bytes."""
        if mode != "rb":
            raise ValueError("objects are only read")
        stat = self.stat()
        if stat.folder:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), self.url)
        return cast("BinaryIO", io.BufferedReader(_Ranges(self, stat.st_size), MIN_REQUEST))

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()

    def entries(self) -> dict[RemotePath, RemoteStat]:
        """What lies in this folder, sorted by URL; folders have no figures here.

        Raises:
            OSError: as :meth:`stat`.
        """
        fs, path = opened(self.url)

        def ask() -> dict[RemotePath, RemoteStat]:
            fs.invalidate_cache()
            return dict(sorted(self._named(call(fs, "ls", path, detail=True), path)))

        found = tried(self.url, ask)
        if _remembering:
            _listed[self] = found
        return found

    def _named(self, infos: Iterable[Mapping[str, Any]], path: str) -> Iterator[tuple[RemotePath, RemoteStat]]:
        above = path.strip("/")
        for info in infos:
            name, folder = str(info["name"]), info.get("type") == "directory"
            below = name.strip("/").removeprefix(above).strip("/") if above else name.strip("/")
            if below and "/" not in below and (folder or not name.endswith("/")):  # an object NAME/ only stands for a folder
                yield self / below, RemoteStat(0, 0, folder=True) if folder else _stat_of(info)


@dataclass(frozen=True, slots=True)
class _Relative:
    """A name below a folder, as far as sources ask for it."""

    text: str

    def as_posix(self) -> str:
        return self.text

    @property
    def parts(self) -> tuple[str, ...]:
        return () if self.text == "." else tuple(self.text.split("/"))


class _Ranges(io.RawIOBase):
    """An object as a file; reads ahead as far as reading goes on."""

    def __init__(self, path: RemotePath, size: int) -> None:
        self._path, self._size = path, size
        self._fs, self._name = opened(path.url)
        self._place = 0
        self._begin, self._data = 0, b""
        self._window = MIN_REQUEST
        self.name = path.url

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), self.name)
        self._place = start + offset
        return self._place

    def readinto(self, target: Any) -> int:
        wanted = min(len(target), self._size - self._place)
        if wanted <= 0:
            return 0
        if not self._begin <= self._place < self._begin + len(self._data):
            self._fetch(wanted)
        begin = self._place - self._begin
        found = self._data[begin : begin + wanted]
        target[: len(found)] = found
        self._place += len(found)
        return len(found)

    def _fetch(self, wanted: int) -> None:
        """Ask for more: twice as much as before where reading goes on about where it was, little where it has jumped."""
        skipped = self._place - (self._begin + len(self._data))
        self._window = min(2 * self._window, MAX_REQUEST) if 0 <= skipped <= self._window else MIN_REQUEST
        stop = min(self._place + min(max(wanted, self._window), MAX_REQUEST), self._size)
        self._begin, self._data = self._place, b""
        self._data = tried(self.name, lambda: self._range(self._place, stop))

    def _range(self, start: int, stop: int) -> bytes:
        more: dict[str, Any] = {"headers": {"Accept-Encoding": "identity"}} if self._path.scheme in _WEB else {}
        data = bytes(call(self._fs, "cat_file", self._name, start=start, end=stop, **more))
        if len(data) != stop - start:
            why = "the server sends whole files, not parts of them" if len(data) > stop - start else "the object ends too early"
            raise OSError(errno.EIO, f"{why} ({len(data)} bytes in place of {stop - start})", self.name)
        return data


def opened(url: str) -> tuple[AbstractFileSystem, str]:
    """The file system of a URL, and how that calls the object."""
    fs = _filesystem(RemotePath(url).scheme, url if RemotePath(url).scheme not in ("s3", "s3a", "gs", "gcs", *_WEB) else "")
    return fs, fs._strip_protocol(url)


@lru_cache(maxsize=64)
def _filesystem(scheme: str, url: str) -> AbstractFileSystem:
    """The file system of a scheme; of those that name a host in the URL, of that host.

    Raises:
        UsageError: fsspec does not know it, or the package that it needs is not installed.
    """
    import fsspec
    from fsspec.asyn import AsyncFileSystem

    try:
        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        how = f'pip install "tokkit[{extra}]"' if extra else str(error)
        raise UsageError(f"{scheme}:// is read with a package that is not installed: {how}") from None
    except ValueError:
        raise UsageError(f"{scheme}:// is no kind of URL that fsspec knows") from None
    host = kind._get_kwargs_from_urls(url) if url else {}
    if issubclass(kind, AsyncFileSystem):
        host["use_listings_cache"] = False  # what was there once says nothing of what is there now
    try:
        return kind(**host)
    except (ImportError, TypeError, ValueError) as error:
        raise UsageError(f"{scheme}:// cannot be opened: {error}") from None
    except OSError as error:  # some connect at once
        raise OSError(errno.EIO, f"the server cannot be reached: {error}", url) from error


def call(fs: AbstractFileSystem, method: str, *args: object, seconds: float | None = CALL_SECONDS, **options: object) -> Any:
    """Call the file system, for at most ``seconds`` where it lets itself be interrupted."""
    from fsspec.asyn import AsyncFileSystem, sync

    if isinstance(fs, AsyncFileSystem):
        if method in ("ls", "find"):
            seconds = None  # of a listing there is no telling how long it takes
        return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=seconds, **options)
    return getattr(fs, method)(*args, **options)


def tried(url: str, call: Callable[[], T]) -> T:
    """What ``call`` returns, at one of ``TRIES`` tries.

    Raises:
        FileNotFoundError, PermissionError: it is not there, or not for us: no further try.
        OSError: with an errno, for everything else.
    """
    begin, wait = time.monotonic(), FIRST_WAIT
    for tries in range(1, TRIES + 1):
        try:
            return call()
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url) from None
        except (PermissionError, IsADirectoryError) as error:
            number = error.errno or errno.EACCES
            raise type(error)(number, os.strerror(number), url) from None
        except UsageError:
            raise
        except Exception as error:  # each file system has errors of its own
            if _status(error) in (401, 403):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), url) from None
            if tries == TRIES or time.monotonic() - begin + wait > GIVE_UP_SECONDS:
                said = (str(error.strerror or error) if isinstance(error, OSError) else str(error)) or "no answer"
                what = f"{type(error).__name__}: {' '.join(said.split())[:300]} ({tries} tries)"
                raise OSError(errno.EIO, what, url) from error
        time.sleep(wait)
        wait *= 2
    raise AssertionError  # the last try returns or raises


def _status(error: Exception) -> int | None:
    status = getattr(error, "status", None)
    return status if isinstance(status, int) else None


def _stat_of(info: Mapping[str, Any]) -> RemoteStat:
    size = info.get("size")
    if not isinstance(size, int):
        raise OSError(errno.EINVAL, "the server does not tell its size", str(info.get("name")))
    return RemoteStat(size, mark_of(info))


def mark_of(info: Mapping[str, Any]) -> int:
    """A number that changes when the object does; the same by a listing and by asking for the object itself."""
    told = {key.lower(): value for key, value in info.items() if value not in (None, "")}
    for key in (*_MARKS, *_TIMES):
        if key in told:
            value = told[key]
            if key in _TIMES:
                value = _seconds(value)
            return _number(f"{key}:{str(value).removeprefix('W/').strip(chr(34))}")
    return 0


def _seconds(value: object) -> object:
    """A time to the second: listings tell it finer than headers do."""
    if isinstance(value, datetime):
        return int(value.timestamp())
    return int(value) if isinstance(value, int | float) else value


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=7).digest(), "big")


def _folder_stat(folder: RemotePath) -> RemoteStat:
    """A folder's own entries say whether it is the same."""
    entries = folder.entries()
    said = "\n".join(f"{path}\t{stat.st_size}\t{stat.st_mtime_ns}" for path, stat in entries.items())
    return RemoteStat(0, _number(said), folder=True)


# ---- what a listing told, while inputs are looked through


_listed: dict[RemotePath, dict[RemotePath, RemoteStat]] = {}
_remembering: list[bool] = []


@contextmanager
def remembering() -> Iterator[None]:
    """For the length of a ``with`` block, what a listing told of a folder's objects is not asked for again one by one."""
    _remembering.append(True)
    try:
        yield
    finally:
        _remembering.pop()
        if not _remembering:
            _listed.clear()


def _remembered(path: RemotePath) -> RemoteStat | None:
    """What a listing told of an entry; raises FileNotFoundError where it would have and did not."""
    siblings = _listed.get(path.parent) if path.parent != path else None
    if siblings is None:
        return None
    if path not in siblings:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path.url)
    return siblings[path]
