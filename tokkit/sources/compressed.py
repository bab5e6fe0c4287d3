"""Compressed files by their endings (gzip, zstd, bzip2, and zip of one file), piece by piece, naming the damage."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from tokkit.errors import ItemError
from tokkit.sources.gzipstream import GzipDamage as StreamDamage
from tokkit.sources.gzipstream import gunzip
from tokkit.sources.opening import Location, for_arrow, located
from tokkit.sources.untrusted import printable

__all__ = ["DAMAGE_ERRORS", "StreamDamage", "decompress", "is_compressed", "open_decompressed", "peek"]

SUFFIXES = (".gz", ".tgz", ".zip", ".zst", ".bz2")
_PIECE = 1 << 20
_BZ2_CHUNK = 1 << 14
_ZSTD_PIECE = 1 << 16  # what a damage takes along
_ZSTD_AHEAD = 1 << 16  # of the file: what the library reads before it decompresses

# What readers raise for bytes at fault; an OSError with an errno is the disk's fault and not among them.
DAMAGE_ERRORS = (EOFError, OSError, zlib.error, zipfile.BadZipFile, ItemError)


def is_compressed(name: str) -> bool:
    """Whether a file's name says that it is compressed."""
    return name.lower().endswith(SUFFIXES)


def decompress(file: BinaryIO, name: str) -> Iterator[tuple[int, bytes] | StreamDamage]:
    """Pairs of (bytes of the file consumed so far, decompressed piece), ended by a damage if there is one."""
    lower = name.lower()
    if lower.endswith(".bz2"):
        return unbz2(file)
    return unzip(file) if lower.endswith(".zip") else unzstd(file) if lower.endswith(".zst") else gunzip(file)


@contextlib.contextmanager
def open_decompressed(path: str, name: str) -> Iterator[BinaryIO]:
    """The file's content as a stream, by the standard library's own readers; raises one of ``DAMAGE_ERRORS`` for damage."""
    lower = name.lower()
    if lower.endswith(".zip"):
        with located(path).open("rb") as file, _opened(file, located(path).stat().st_size) as (_, stream):
            yield stream
    elif lower.endswith(".zst"):
        import pyarrow as pa

        with for_arrow(path) as given, pa.CompressedInputStream(given, "zstd") as stream:
            yield io.BufferedReader(stream, _PIECE)
    elif lower.endswith(".bz2"):
        with located(path).open("rb") as file, bz2.BZ2File(file) as stream:
            yield stream  # type: ignore[misc]
    elif lower.endswith((".gz", ".tgz")):
        with located(path).open("rb") as file, gzip.GzipFile(fileobj=file) as stream:
            yield stream  # type: ignore[misc]
    else:
        with located(path).open("rb") as stream:
            yield stream


def peek(path: Location, length: int) -> bytes | None:
    """The first bytes of the content, as many as the first ``length`` bytes give; None where not even that can be read."""
    with path.open("rb") as file:
        if not is_compressed(path.name):
            return file.read(length)
        head = file if path.name.lower().endswith(".zip") else io.BytesIO(file.read(length))
        found = b""
        for piece in decompress(head, path.name):
            if isinstance(piece, StreamDamage) or len(found) >= length:
                return found[:length] or None
            found += piece[1]
        return found[:length]


def unzip(file: BinaryIO) -> Iterator[tuple[int, bytes] | StreamDamage]:
    """The one file of a zip archive; see :func:`decompress`."""
    size = file.seek(0, io.SEEK_END)
    begin = 0
    try:
        with _opened(file, size) as (member, stream):
            begin, whole = min(member.header_offset, size), max(1, member.file_size)
            given = 0
            while piece := stream.read(_PIECE):
                given += len(piece)
                yield min(size, begin + min(member.compress_size, member.compress_size * given // whole)), piece
    except ItemError as error:
        yield StreamDamage(0, error.reason, error.message)
        return
    except DAMAGE_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield StreamDamage(begin, "zip-damaged", printable(f"the archive cannot be read: {error}"))
        return
    yield size, b""


def unzstd(file: BinaryIO) -> Iterator[tuple[int, bytes] | StreamDamage]:
    """A zstd stream of any number of frames; see :func:`decompress`. A damage may take up to a piece before it along."""
    import pyarrow as pa

    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if size == 0:
        yield StreamDamage(0, "zstd-truncated", "the file has no bytes")
        return
    before = 0
    with pa.CompressedInputStream(pa.PythonFile(file, "rb"), "zstd") as stream:
        while True:
            try:
                piece = stream.read(_ZSTD_PIECE)
            except OSError as error:
                if error.errno is not None:
                    raise
                reason = "zstd-truncated" if "truncated" in str(error).lower() else "zstd-damaged"
                yield StreamDamage(max(0, before - _ZSTD_AHEAD), reason, str(error))
                return
            if not piece:
                break
            before = file.tell()
            yield before, piece
    yield size, b""


class _Within:
    """A file for :mod:`zipfile` in which a damaged offset is damage, where the system would call it an error of its own."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.tell = file.tell

    def read(self, size: int = -1) -> bytes:
        return self._file.read(self._size if size < 0 else min(size, self._size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._file.tell(), io.SEEK_END: self._size}[whence]
        if not 0 <= place <= self._size:
            raise OSError(f"it points to byte {place} of {self._size}")  # without a number: no fault of the disk's
        return self._file.seek(place)

    def seekable(self) -> bool:
        return True


@contextlib.contextmanager
def _opened(file: BinaryIO, size: int) -> Iterator[tuple[zipfile.ZipInfo, BinaryIO]]:
    """The one file of an archive and what it holds; raises one of ``DAMAGE_ERRORS`` for damage."""
    with contextlib.ExitStack() as stack:
        try:
            archive = stack.enter_context(zipfile.ZipFile(_Within(file, size)))
            member = _only_member(archive)
            stream = stack.enter_context(archive.open(member))
        except (
            ValueError,
            IndexError,
            OverflowError,
            RuntimeError,
            struct.error,
        ) as error:  # of a directory that makes no sense
            raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error
        yield member, stream  # type: ignore[misc]


def unbz2(file: BinaryIO) -> Iterator[tuple[int, bytes] | StreamDamage]:
    """A bzip2 file of any number of streams; see :func:`decompress`. A damage takes the rest of its block along."""
    machine, given, place, any_stream = bz2.BZ2Decompressor(), False, 0, False
    while data := file.read(_BZ2_CHUNK):
        while data:
            if not given and any_stream and not data.strip(b"\0"):
                place, data = place + len(data), b""  # zeros are padding
                break
            try:
                piece = machine.decompress(data, _PIECE)
                while not machine.needs_input and not machine.eof:
                    yield place, piece
                    piece = machine.decompress(b"", _PIECE)
            except OSError as error:
                reason = "bzip2-trailing-garbage" if any_stream and not given else "bzip2-damaged"
                yield StreamDamage(place, reason, str(error))
                return
            given = True
            place += len(data) - len(machine.unused_data)
            yield place, piece
            data = machine.unused_data
            if machine.eof:
                machine, given, any_stream = bz2.BZ2Decompressor(), False, True
    if given or not any_stream:
        yield StreamDamage(place, "bzip2-truncated", "the file ends within the compressed stream")


def _only_member(archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    if min((member.header_offset for member in archive.infolist()), default=0) > 0:
        raise ItemError("zip-not-one-file", "something precedes the archive, perhaps another one: unpack it first")
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise ItemError("zip-not-one-file", f"{len(members)} files in the archive, where one is expected: unpack it first")
    if members[0].flag_bits & 1 or members[0].compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ItemError("zip-not-understood", "encrypted, or not compressed by deflate: unpack it first")
    return members[0]
