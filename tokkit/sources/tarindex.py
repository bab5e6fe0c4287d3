"""Walk the headers of a tar, from one to the next, and say exactly where and why the walk ended.

The readers that exist end quietly at a damaged header, at a missing end and at a second archive glued behind the first. This
walk knows the same formats (ustar, GNU long names, pax, base-256 sizes; header fields by :meth:`tarfile.TarInfo.frombuf`)
and tells. Only headers are read: data is seeked over, or, where the tar is compressed, gone over
(:mod:`tokkit.sources.tarstream`). Names are decoded for people and for grouping, never used as paths.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from tokkit.sources.opening import located
from tokkit.sources.warc.views import FileView

BLOCK = 512
_MAX_EXTENSION_BYTES = 2**20
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_OF_A_MEMBER = ("path", "size")  # what a global header cannot say
_SPARSE = "GNU.sparse."
_KINDS = {
    tarfile.DIRTYPE: "folder",
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
    tarfile.GNUTYPE_SPARSE: "sparse file",
}


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a tar.

    Attributes:
        name: as in the archive, without a leading ``./``; bytes that are not UTF-8 are written as escapes.
        kind: ``file``, ``folder``, or what it is otherwise (``symbolic link``).
        offset: of its first header block, extension headers included.
        data: offset of its first byte of data.
        size: bytes of data.
    """

    name: str
    kind: str
    offset: int
    data: int
    size: int


@dataclass(frozen=True, slots=True)
class TarDamage:
    """Where a walk ended too early: what lies from ``start`` to the end of the file was not read.

    Attributes:
        start: first byte that was not understood: of the member that is cut short, of the invalid header.
        reason, message: as in :class:`~tokkit.sources.base.ContainerDamage`.
        member: name of the member that is cut short, where that is the damage.
        behind_end: the archive ended as it should, and something follows.
    """

    start: int
    reason: str
    message: str
    member: str | None = None
    behind_end: bool = False


@dataclass(frozen=True, slots=True)
class TarIndex:
    """All whole members of a tar, in order, and the damage that ended the walk, if any."""

    members: tuple[Member, ...]
    damage: TarDamage | None
    size: int


class _DamageFoundError(Exception):
    def __init__(self, start: int, reason: str, message: str, *, member: str | None = None, behind_end: bool = False) -> None:
        super().__init__(message)
        self.damage = TarDamage(start, reason, message, member, behind_end)


def tar_index(path: str) -> TarIndex:
    """Index the tar at ``path``; the last few are remembered until the file changes. Raises OSError for the surroundings."""
    stat = located(path).stat()
    return _tar_index(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _tar_index(path: str, size: int, mtime_ns: int) -> TarIndex:
    with located(path).open("rb") as file:
        return index_of(FileView(file, size))


class Bytes(Protocol):
    """What is walked: bytes by offset, each asked for about where the last ones were or further on."""

    def at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only where the bytes end."""

    def reaches(self, offset: int) -> bool:
        """Whether there are ``offset`` bytes at least."""

    @property
    def size(self) -> int:
        """How many there are; known once :meth:`reaches` was false."""


def index_of(data: Bytes) -> TarIndex:
    """The index of a tar's bytes, wherever they come from."""
    members: list[Member] = []
    damage = None
    try:
        for member in _walk(data):
            members.append(member)  # one by one: what came before the damage is kept
    except _DamageFoundError as found:
        damage = found.damage
    return TarIndex(tuple(members), damage, data.size)


def _walk(data: Bytes) -> Iterator[Member]:
    _check_start(data)
    offset = 0
    while True:
        header = _header(data, offset)
        if header is None:
            _check_end(data, offset)
            return
        member, offset = _member(data, header, offset)
        yield member


def _check_start(data: Bytes) -> None:
    if not data.reaches(1):
        raise _DamageFoundError(0, "tar-empty", "the file has no bytes; even a tar without members has 1024")
    magic = data.at(0, 6)
    for prefix, name in _COMPRESSED.items():
        if magic.startswith(prefix):
            raise _DamageFoundError(0, "tar-compressed", f"compressed with {name}, though named .tar: decompress it first")


def _header(data: Bytes, offset: int) -> tarfile.TarInfo | None:
    """The header block at ``offset``, or None for a block of zeros."""
    block = data.at(offset, BLOCK)
    if not block:
        raise _DamageFoundError(
            data.size, "tar-no-end", "the two zero blocks that end a tar are missing: it was probably cut off"
        )
    if len(block) < BLOCK:
        raise _DamageFoundError(offset, "tar-truncated", f"the file ends within a header, {len(block)} bytes into it")
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "backslashreplace")
    except tarfile.HeaderError as error:
        if not any(block):
            return None
        raise _DamageFoundError(offset, "tar-invalid-header", f"no tar header at byte {offset}: {error}") from None
    if header.size < 0:
        raise _DamageFoundError(offset, "tar-invalid-header", f"the header at byte {offset} claims a negative size")
    return header


def _check_end(data: Bytes, offset: int) -> None:
    """The archive ends with two zero blocks, and nothing but zeros behind them."""
    if not data.reaches(offset + 2 * BLOCK):
        raise _DamageFoundError(offset, "tar-no-end", "the file ends within the two zero blocks that end a tar")
    place = offset
    while chunk := data.at(place, 1 << 20):
        if any(chunk):
            behind = place + len(chunk) - len(chunk.lstrip(b"\0"))
            if behind < offset + 2 * BLOCK:
                raise _DamageFoundError(
                    offset, "tar-invalid-header", f"a single block of zeros at byte {offset} within the archive"
                )
            message = f"data at byte {behind}, behind the end of the archive: two tars glued together?"
            raise _DamageFoundError(behind - behind % BLOCK, "tar-data-behind-end", message, behind_end=True)
        place += len(chunk)


def _member(data: Bytes, header: tarfile.TarInfo, start: int) -> tuple[Member, int]:
    """The member whose first header block, at ``start``, is ``header``, and the offset of the next."""
    offset = start
    records: dict[str, str] = {}
    seen: set[bytes] = set()
    while header.type in _LONG or header.type in _PAX:
        extension = header.type if header.type in (*_LONG, tarfile.XGLTYPE) else tarfile.XHDTYPE
        if extension in seen and extension != tarfile.XGLTYPE:  # readers differ in which they take
            raise _DamageFoundError(start, "tar-invalid-header", f"two extension headers for one member, at byte {start}")
        seen.add(extension)
        body = _extension(data, header, start, offset)
        if extension == tarfile.GNUTYPE_LONGNAME:
            _add(records, {"path": _long_name(body, header.size, start)}, start)
        elif extension == tarfile.XHDTYPE:
            _add(records, _pax_records(body[: header.size], start), start)
        elif extension == tarfile.XGLTYPE:
            more = _pax_records(body[: header.size], start)
            if any(key in _OF_A_MEMBER or key.startswith(_SPARSE) for key in more):
                raise _DamageFoundError(start, "tar-invalid-header", f"one name or size for all members, at byte {start}")
        offset += BLOCK + _padded(header.size)
        following = _header(data, offset)
        if following is None:
            raise _DamageFoundError(start, "tar-invalid-header", f"no member follows the extension header at byte {start}")
        header = following
    begin = offset + BLOCK
    if header.type == tarfile.GNUTYPE_SPARSE:
        begin = _behind_sparse_map(data, offset)
    length = _size(header, records, start)
    kind = _KINDS.get(header.type, "file")
    if any(key.startswith(_SPARSE) for key in records):
        kind = "sparse file"
    if kind not in ("file", "sparse file"):
        length = 0  # links, folders and devices have no data, whatever their size field says
    name = tidy_name(records.get("path", header.name))
    if not data.reaches(begin + length):
        message = f"the file ends within the member {name!r}: {begin + length - data.size} of its {length} bytes are missing"
        raise _DamageFoundError(start, "tar-truncated", message, member=name)
    return Member(name, kind, start, begin, length), begin + _padded(length)


def _add(records: dict[str, str], more: dict[str, str], start: int) -> None:
    """What a further extension header says of a member."""
    if records.keys() & more.keys():
        raise _DamageFoundError(start, "tar-invalid-header", f"two names for one member, at byte {start}")
    records.update(more)


def _long_name(body: bytes, length: int, start: int) -> str:
    """The name in an extension header of ``length`` bytes, which some writers end with a NUL and others with the padding."""
    name = body.split(b"\0", 1)[0]
    if len(name) > length:
        raise _DamageFoundError(start, "tar-invalid-header", f"the long name at byte {start} goes on behind its length")
    return name.decode("utf-8", "backslashreplace")


def tidy_name(name: str) -> str:
    """A member's name without the ``./`` that ``tar .`` puts before it."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _extension(data: Bytes, header: tarfile.TarInfo, start: int, offset: int) -> bytes:
    if header.size > _MAX_EXTENSION_BYTES:
        raise _DamageFoundError(start, "tar-invalid-header", f"an extension header of {header.size} bytes at byte {offset}")
    body = data.at(offset + BLOCK, _padded(header.size))
    if len(body) < _padded(header.size):
        raise _DamageFoundError(start, "tar-truncated", f"the file ends within the extension header at byte {offset}")
    return body


def _pax_records(body: bytes, start: int) -> dict[str, str]:
    """``LENGTH KEY=VALUE\\n`` records; LENGTH counts the record itself."""
    records: dict[str, str] = {}
    place = 0
    while place < len(body) and body[place] != 0:
        digits, space, _ = body[place : place + 20].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = body[place + len(digits) + 1 : place + length]
        key, equals, value = record.partition(b"=")
        if not equals or not record.endswith(b"\n") or place + length > len(body):
            raise _DamageFoundError(start, "tar-invalid-header", f"malformed pax records at byte {start}")
        records[key.decode("utf-8", "backslashreplace")] = value[:-1].decode("utf-8", "backslashreplace")
        place += length
    return records


def _size(header: tarfile.TarInfo, records: dict[str, str], start: int) -> int:
    text = records.get("size")
    if text is None:
        return header.size
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise _DamageFoundError(start, "tar-invalid-header", f"the pax size at byte {start} is no number")
    return int(text)


def _behind_sparse_map(data: Bytes, offset: int) -> int:
    """An old GNU sparse file continues its map in further blocks: byte 482 of the header, then byte 504 of each, says so."""
    block, flag = data.at(offset, BLOCK), 482
    while len(block) == BLOCK and block[flag]:
        offset += BLOCK
        block, flag = data.at(offset, BLOCK), 504
    if not data.reaches(offset + BLOCK):
        raise _DamageFoundError(offset, "tar-truncated", "the file ends within the map of a sparse file")
    return offset + BLOCK


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
