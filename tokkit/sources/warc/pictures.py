"""The pictures of an archive by URL.

The index is built once a file and process: a 64-bit hash of each URL (and of each payload digest) with the record's place, 24
bytes an entry, for records that may be a picture, lead to one, or stand for one: sound answers of a type that is not text,
sound or film; redirections; revisits. In a file of gzip members only their beginnings are decompressed for that. What is
found is then read in full and compared with what was asked for, so a hash that two URLs share does no harm.

Of several captures of one URL the first in the file that can be had is taken; where there is none, one by http instead of
https, or the other way round. A redirection is followed to its ``Location``.
A revisit is followed to the record of the same archive that it refers to by URL and date, else to one of the same payload
digest. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import BinaryIO
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import numpy.typing as npt

from tokkit.documents import Failure, Outcome
from tokkit.errors import ItemError
from tokkit.sources.html.pictures import absolute
from tokkit.sources.opening import located
from tokkit.sources.untrusted import MAX_ITEM_BYTES
from tokkit.sources.warc.http import HttpHead, parse_http, payload_of
from tokkit.sources.warc.kinds import HTML_TYPES, essence
from tokkit.sources.warc.layout import Layout, layout_of
from tokkit.sources.warc.members import candidates, read_member
from tokkit.sources.warc.records import MAX_HEADER, Header, HeaderError, parse_header
from tokkit.sources.warc.views import FileView, GzipView
from tokkit.sources.warc.walk import Broken, Place, Record, records_of_member, walk_stream, walk_view

MAX_HOPS = 5
MAX_CAPTURES = 8
_NO_PICTURE = ("text/", "audio/", "video/", "font/", "multipart/")
_NO_PICTURE_TYPES = HTML_TYPES | {
    "application/javascript", "application/x-javascript", "application/json", "application/ld+json", "application/xml",
    "application/pdf", "application/x-shockwave-flash", "application/http", "application/warc-fields",
}  # fmt: skip
_ESCAPE = re.compile("%[0-9a-f]{2}", re.IGNORECASE)
_REDIRECTS = frozenset((301, 302, 303, 307, 308))


@dataclass(frozen=True, slots=True)
class PictureIndex:
    """Hashes, sorted, and beside each the place of a record; of equal hashes in the order of the file."""

    keys: npt.NDArray[np.uint64]
    starts: npt.NDArray[np.int64]
    inners: npt.NDArray[np.int64]

    def places(self, key: str) -> list[Place]:
        """The places under a key, at most ``MAX_CAPTURES``."""
        wanted = np.uint64(_hash(key))
        low, high = np.searchsorted(self.keys, wanted, "left"), np.searchsorted(self.keys, wanted, "right")
        return [Place(int(self.starts[i]), int(self.inners[i])) for i in range(low, min(high, low + MAX_CAPTURES))]


def same_url(url: str) -> str:
    """A URL in the spelling that captures are compared in: ASCII, no fragment, host in lower case, no default port."""
    try:
        parts = urlsplit((url if url.isascii() else absolute(url, "")) or url)
        host = parts.netloc.lower()
        default = {"http": ":80", "https": ":443"}.get(parts.scheme.lower())
        if default:
            host = host.removesuffix(default)
        spelled = urlunsplit((parts.scheme.lower(), host, parts.path or "/", parts.query, ""))
        return _ESCAPE.sub(lambda escape: escape[0].upper(), spelled)
    except ValueError:
        return url


def picture_index(path: str, name: str) -> PictureIndex:
    """The index of the archive at ``path``; the last few are remembered until the file changes."""
    stat = located(path).stat()
    return _picture_index(path, name, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=4)
def _picture_index(path: str, name: str, size: int, mtime_ns: int) -> PictureIndex:
    keys, starts, inners = array("Q"), array("q"), array("q")
    for found in picture_keys(path):
        if isinstance(found, tuple):
            key, place = found
            keys.append(_hash(key))
            starts.append(place.start)
            inners.append(place.inner)
    hashes = np.frombuffer(keys, np.uint64) if keys else np.empty(0, np.uint64)
    order = np.argsort(hashes, kind="stable")
    placed = [np.frombuffer(column, np.int64)[order] if column else np.empty(0, np.int64) for column in (starts, inners)]
    return PictureIndex(hashes[order], *placed)


def picture_keys(path: str, *, damaged: bool = False) -> Iterator[tuple[str, Place] | Broken]:
    """What the records of an archive are found by, each with its place, in the order of the file; and what is broken.

    Of a file of gzip members only the members' beginnings are read, so that what is broken in one is not told here; with
    ``damaged`` those that break early are given a key, too.
    """
    with located(path).open("rb") as file:
        size = located(path).stat().st_size
        for found in _answers(file, size, layout_of(file, size), damaged=damaged):
            if isinstance(found, Broken):
                yield found
            else:
                place, header, head = found
                yield from ((key, place) for key in _keys(header, head))


def last_damage(path: str) -> Broken | None:
    """How a file of gzip members is cut off, if it is; other files are walked as a whole anyway."""
    with located(path).open("rb") as file:
        size = located(path).stat().st_size
        if layout_of(file, size) != Layout.MEMBERS:
            return None
        back, start = 1 << 20, None
        while start is None:
            for place, _ in candidates(file, max(0, size - back), size):
                start = place  # of the last member
            if back >= size:
                break
            back *= 16
        if start is None:
            return None
        while start < size:
            member = read_member(file, start, 0)
            if member.damage is not None:
                reason, message = member.damage
                file.seek(start)
                padding = reason == "gzip-trailing-garbage" and not any(file.read(1 << 20))
                return None if padding else Broken(start, size, reason, message)
            start = member.stop
    return None


def _answers(
    file: BinaryIO, size: int, layout: Layout, *, damaged: bool = False
) -> Iterator[tuple[Place, Header, HttpHead | None] | Broken]:
    """Header and HTTP header of every record, as far as these can be read."""
    if layout == Layout.MEMBERS:
        for start, opening in candidates(file, 0, size, damaged=damaged):
            try:
                header = parse_header(opening)
            except HeaderError:
                continue
            yield Place(start), header, parse_http(opening[header.size : header.size + header.length])
        return
    found = (
        walk_view(FileView(file, size), 0, None, 0)
        if layout == Layout.PLAIN
        else walk_stream(file, size, 0, GzipView(file, 0, size))
    )
    for record in found:
        yield (record.place, record.header, parse_http(record.opening)) if isinstance(record, Record) else record


def _keys(header: Header, head: HttpHead | None) -> Iterator[str]:
    """What a record is found by; nothing for one that is no picture and leads to none."""
    if not header.url:
        return
    if header.type == "revisit" or (header.type == "response" and head is not None and head.status in _REDIRECTS):
        yield f"url:{same_url(header.url)}"
    elif _may_be_picture(header, head):
        yield f"url:{same_url(header.url)}"
        if digest := header.fields.get("warc-payload-digest"):
            yield f"digest:{digest.lower()}"


def _may_be_picture(header: Header, head: HttpHead | None) -> bool:
    if header.type not in ("response", "resource") or (head is not None and head.status not in (200, 203)):
        return False
    kind = essence(head.content_type if head is not None else header.content_type)
    return not kind.startswith(_NO_PICTURE) and kind not in _NO_PICTURE_TYPES


def _hash(key: str) -> int:
    return int.from_bytes(hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


class ArchiveFile:
    """Reads records of one archive by their places; holds it open until it is closed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._size = 0
        self._layout = Layout.PLAIN
        self._streams: dict[int, GzipView] = {}

    def close(self) -> None:
        """Close the archive."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def record(self, place: Place) -> Record | None:
        """The record at a place, or None where it is damaged."""
        if self._file is None:
            self._file = located(self._path).open("rb")
            self._size = located(self._path).stat().st_size
            self._layout = layout_of(self._file, self._size)
        if self._layout == Layout.MEMBERS:
            member = read_member(self._file, place.start, MAX_ITEM_BYTES + 2 * MAX_HEADER)
            if member.damage is not None:
                return None
            found = records_of_member(member, MAX_ITEM_BYTES)
            return next((r for r in found if isinstance(r, Record) and r.place == place), None)
        if self._layout == Layout.PLAIN:
            walked = walk_view(FileView(self._file, self._size), place.start, place.start + 1, MAX_ITEM_BYTES)
        else:
            if place.start not in self._streams:
                self._streams = {place.start: GzipView(self._file, place.start, self._size)}  # one at a time
            walked = walk_view(self._streams[place.start], place.inner, place.inner + 1, MAX_ITEM_BYTES)
        found_there = next(walked, None)
        return found_there if isinstance(found_there, Record) else None


class PictureStore:
    """Reads the pictures of one archive; holds it open until it is closed."""

    def __init__(self, path: str, name: str) -> None:
        self._path, self._name = path, name
        self._archive = ArchiveFile(path)

    def close(self) -> None:
        """Close the archive."""
        self._archive.close()

    def read(self, urls: tuple[str, ...]) -> bytes | Failure:
        """The picture at the first of ``urls`` that the archive has, or the failure that says why there is none.

        Raises:
            OSError: for the surroundings.
        """
        first: Failure | None = None
        for url in (*urls, *map(other_scheme, urls)):
            found = self.at(url, set())
            if isinstance(found, bytes):
                return found
            first = first or found
        return first or Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", f"not among the records of {self._name}")

    def at(self, url: str, seen: set[str]) -> bytes | Failure | None:
        """The picture at a URL, redirections and revisits followed; None where the archive does not know the URL."""
        wanted = same_url(url)
        if wanted in seen or len(seen) > MAX_HOPS:
            return _missing("redirections that lead nowhere")
        seen.add(wanted)
        failure: Failure | None = None
        for record in self.records(f"url:{wanted}"):
            if same_url(record.header.url) != wanted:
                continue  # another URL with the same hash
            head = parse_http(record.opening)
            if record.header.type == "revisit":
                found: bytes | Failure | None = self._revisited(record)
            elif head is not None and head.status in _REDIRECTS:
                target = absolute(head.fields.get("location", ""), record.header.url)
                found = self.at(target, seen) if target else None
                found = found or _missing(f"redirected to {target or 'nowhere'}, which is not in {self._name}")
            else:
                found = _payload(record, head)
            if isinstance(found, bytes):
                return found
            failure = failure or found
        return failure

    def _revisited(self, revisit: Record) -> bytes | Failure:
        """The payload that a revisit says has not changed."""
        fields = revisit.header.fields
        url = same_url(fields.get("warc-refers-to-target-uri", revisit.header.url).strip("<>"))
        date, digest = fields.get("warc-refers-to-date"), fields.get("warc-payload-digest", "").lower()
        for record in self.records(f"url:{url}"):
            theirs = record.header.fields
            same = digest and theirs.get("warc-payload-digest", "").lower() == digest
            if same_url(record.header.url) == url and (same or (date and theirs.get("warc-date") == date)):
                head = parse_http(record.opening)
                if _may_be_picture(record.header, head):
                    return _payload(record, head)
        for record in self.records(f"digest:{digest}") if digest else ():
            if record.header.fields.get("warc-payload-digest", "").lower() == digest:
                return _payload(record, parse_http(record.opening))
        return _missing(f"a revisit of a capture that is not in {self._name}")

    def records(self, key: str) -> Iterator[Record]:
        """The records under a key, in the order of the file; damaged ones are left out."""
        for place in picture_index(self._path, self._name).places(key):
            record = self._archive.record(place)
            if record is not None:
                yield record


def other_scheme(url: str) -> str:
    """``https`` for ``http``, which crawlers that are browsers ask for where pages say the latter, and the other way round."""
    scheme, colon, rest = same_url(url).partition(":")
    return {"http": "https", "https": "http"}.get(scheme, scheme) + colon + rest


def _missing(why: str) -> Failure:
    return Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", why[:500])


def _payload(record: Record, head: HttpHead | None) -> bytes | Failure:
    if record.block is None:
        message = f"{record.header.length} bytes; at most {MAX_ITEM_BYTES} are read"
        return Failure(Outcome.REJECTED, "image-too-large", message)
    if head is None:
        return record.block
    try:
        return payload_of(head, record.block, MAX_ITEM_BYTES)
    except ItemError as error:
        reason = "image-too-large" if error.reason == "payload-too-large" else error.reason
        return Failure(Outcome.REJECTED, reason, error.message)
