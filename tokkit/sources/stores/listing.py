"""What is in a picture store, for its index: entries by key, and what cannot be read.

What ``place`` and ``more`` of an entry are depends on the file: in a tar the offset and size of the picture's bytes; in a
parquet file the row; in a web archive the record's place. A folder of pictures has no entries: its files are found by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.documents import Outcome
from tokkit.errors import ItemError
from tokkit.sources.base import ContainerDamage, InputFile
from tokkit.sources.parquet import is_damage, places_of, tidy_message
from tokkit.sources.samples import group_samples, lost_samples
from tokkit.sources.stores.index import Notes, Row
from tokkit.sources.stores.kinds import Store
from tokkit.sources.stores.names import key_of, name_key, url_key
from tokkit.sources.tarindex import Member, TarIndex, tar_index
from tokkit.sources.untrusted import parse_json, printable, slug
from tokkit.sources.warc.pictures import last_damage, picture_keys

SUCCESS = "success"
NEEDED = ("url", "key", "status")
MOST_DAMAGE = 1000  # places that are told of, of one store
MOST_NOTED = 10_000
_MAX_JSON = 1 << 20

Alive = Callable[[int], None]


class Lister:
    """Goes through one store.

    Args:
        first: the number of its first file in the run.
        notes: takes what failed.
        alive: called with the bytes of each file that is done.
    """

    def __init__(self, store: Store, first: int, notes: Notes, alive: Alive = lambda size: None) -> None:
        self._store, self._first, self._notes, self._alive = store, first, notes, alive
        self.damage: list[ContainerDamage] = []
        self._noted: dict[tuple[str, str], int] = {}  # notes by status and message, so that most are numbered at once

    def rows(self) -> Iterator[Row]:
        """The entries, file by file; :attr:`damage` is filled meanwhile."""
        kind = self._store.kind
        for number, file in enumerate(self._store.files, self._first):
            if kind == "tar":
                yield from self._members(number, file)
            elif kind == "warc":
                yield from self._records(number, file)
            elif kind == "img2dataset" and file.name.lower().endswith(".tar"):
                yield from self._samples(number, file)
            elif kind == "img2dataset" and self._tar_of(file) is None:
                yield from self._table(number, file)
            self._alive(file.size)

    def _broken(self, file: str, start: int, stop: int, reason: str, message: str) -> None:
        if len(self.damage) < MOST_DAMAGE:
            self.damage.append(ContainerDamage(file, start, stop, reason, printable(message)))

    # ---- tars and archives

    def _index(self, file: InputFile) -> TarIndex:
        index = tar_index(file.path)
        if index.damage is not None:
            self._broken(file.name, index.damage.start, index.size, index.damage.reason, index.damage.message)
        return index

    def _members(self, number: int, file: InputFile) -> Iterator[Row]:
        for member in self._index(file).members:
            key = name_key(member.name) if member.kind == "file" else None
            if key is not None:
                yield key, number, member.data, member.size, 0

    def _records(self, number: int, file: InputFile) -> Iterator[Row]:
        if file.size == 0:
            self._broken(file.name, 0, 0, "warc-empty", "the file has no bytes")
            return
        for found in picture_keys(file.path, damaged=True):
            if isinstance(found, tuple):
                key, place = found
                yield key_of(key), number, place.start, place.inner, 0
            else:
                self._broken(file.name, found.start, found.stop, found.reason, found.message)
        end = last_damage(file.path)
        if end is not None:
            self._broken(file.name, end.start, end.stop, end.reason, end.message)

    # ---- img2dataset

    def _tar_of(self, table: InputFile) -> InputFile | None:
        """The tar that a table goes with."""
        name = table.name[: -len(".parquet")] + ".tar"
        return next((file for file in self._by_name(name)), None)

    def _by_name(self, name: str) -> Iterator[InputFile]:
        if not hasattr(self, "_names"):
            self._names = {file.name: file for file in self._store.files}
        if name in self._names:
            yield self._names[name]

    def _samples(self, number: int, file: InputFile) -> Iterator[Row]:
        """The samples of a tar by URL: as the table beside it says, and those that it does not know as they say themselves."""
        index = self._index(file)
        samples = group_samples(index.members)
        lost = lost_samples(samples, index.damage)
        whole = {s.key: s for s in samples if s.offset not in lost and s.problem is None}
        pictures = {key: m for key, s in whole.items() if (m := next((m for kind, m in s.media if kind == "image"), None))}
        told: set[str] = set()
        table = next(self._by_name(file.name[: -len(".tar")] + ".parquet"), None)
        if table is not None:
            for _, url, key, status, why in self._told(table):
                told.add(key)
                member = pictures.get(key)
                if member is not None and (status == SUCCESS or not status):
                    yield url_key(url), number, member.data, member.size, 0
                elif status == SUCCESS:
                    lacking = "downloaded according to the table beside the tar, but not in the tar"
                    note = self._notes.number(Outcome.REJECTED, "missing-from-tar", lacking)
                    yield url_key(url), number, 0, 0, note
                else:
                    yield url_key(url), number, 0, 0, self._failed(status, why)
        left = [key for key in pictures if key not in told]
        if left:
            with Path(file.path).open("rb") as tar:
                for key in left:
                    fields = whole[key].fields
                    given = self._url_in(tar, file, fields["json"]) if "json" in fields else None
                    if given is not None:
                        yield url_key(given), number, pictures[key].data, pictures[key].size, 0

    def _url_in(self, tar: BinaryIO, file: InputFile, member: Member) -> str | None:
        tar.seek(member.data)
        try:
            if member.size > _MAX_JSON:
                raise ItemError("json-invalid", f"{member.size} bytes")
            fields = parse_json(tar.read(member.size))
        except ItemError as error:
            message = f"{member.name}: {error.message}"
            self._broken(file.name, member.offset, member.data + member.size, "json-invalid", message)
            return None
        url = fields.get("url") if isinstance(fields, dict) else None
        return url if isinstance(url, str) and url else None

    def _failed(self, status: str, message: str) -> int:
        known = self._noted.get((status, message))
        if known is None:
            known = self._notes.number(Outcome.FAILED_UPSTREAM, slug(status or "no-status"), printable(message))
            if len(self._noted) < MOST_NOTED:
                self._noted[status, message] = known
        return known

    def _table(self, number: int, file: InputFile) -> Iterator[Row]:
        """A table that has the pictures itself, or beside which they lie as files."""
        for row, url, _, status, message in self._told(file):
            note = 0 if status == SUCCESS else self._failed(status, message)
            yield url_key(url), number, row, 0, note

    def _told(self, file: InputFile) -> Iterator[tuple[int, str, str, str, str]]:
        """Row, URL, key, status and error message of each row of a table."""
        row = 0
        try:
            with pq.ParquetFile(file.path, buffer_size=1 << 20) as table:
                names = table.schema_arrow.names
                if missing := [name for name in NEEDED if name not in names]:
                    message = f"no table of img2dataset: it has no column {' and no '.join(missing)}"
                    self._broken(file.name, 0, file.size, "columns-missing", message)
                    return
                columns = [*NEEDED, *(["error_message"] if "error_message" in names else [])]
                groups = table.metadata.num_row_groups
                for group in range(groups):
                    begin, count = row, table.metadata.row_group(group).num_rows
                    try:
                        for batch in table.iter_batches(4096, [group], columns, use_threads=False):
                            texts = [batch.column(c).cast(pa.string()).to_pylist() for c in columns]
                            for place, (url, key, status, *said) in enumerate(zip(*texts, strict=True)):
                                if url:
                                    yield row + place, url, key or "", status or "", (said[0] if said else "") or ""
                            row += batch.num_rows
                    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                        if not is_damage(error):
                            raise
                        why = f"rows {row} to {begin + count - 1} cannot be read: {tidy_message(error, file.path, file.name)}"
                        where = places_of(file.path, groups, file.size)[group]
                        self._broken(file.name, where.start, where.stop, "parquet-unreadable", why)
                    row = begin + count
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            self._broken(file.name, 0, file.size, "parquet-unreadable", tidy_message(error, file.path, file.name))
