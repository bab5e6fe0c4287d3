"""Reading what an index entry points at, from files that must still be the ones that were indexed."""

from __future__ import annotations

import errno
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.documents import Failure, Outcome
from tokkit.errors import FingerprintMismatch
from tokkit.sources.base import InputFile
from tokkit.sources.img2dataset import picture_column
from tokkit.sources.media_files import FilesBelow
from tokkit.sources.opening import Location
from tokkit.sources.parquet import is_damage, tidy_message
from tokkit.sources.stores.index import Entry, StoreIndex
from tokkit.sources.stores.kinds import Store
from tokkit.sources.stores.names import key_of
from tokkit.sources.untrusted import MAX_ITEM_BYTES, printable
from tokkit.sources.warc.pictures import ArchiveFile, PictureStore
from tokkit.sources.warc.walk import Place, Record

MOST_OPEN = 64
GROUP_BYTES = 64 << 20  # of a row group that is kept while others of its rows may be asked for
SUFFIXES = ("jpg", "png", "webp", "jpeg", "avif")  # that img2dataset writes files with


def changed(path: str) -> FingerprintMismatch:
    """The error for a file that is not the one that was indexed."""
    return FingerprintMismatch(
        f"{path} has changed since the picture stores were indexed: restore it and run the same command again, or write to "
        f"another --out"
    )


def too_large(size: int) -> Failure:
    """The failure of a picture that is not read."""
    return Failure(Outcome.REJECTED, "image-too-large", f"{size} bytes; at most {MAX_ITEM_BYTES} are read")


class StoreFiles:
    """The stores' files by number, open as long as they are asked for again soon.

    Attributes:
        used: numbers of those that were read since :meth:`check` was called.
    """

    def __init__(self, files: list[InputFile]) -> None:
        self._files = files
        self._open: OrderedDict[int, BinaryIO | ArchiveFile | _Table] = OrderedDict()
        self.used: set[int] = set()

    def check(self) -> None:
        """Raise FingerprintMismatch where a file that was read has changed; OSError where it is gone."""
        for number in sorted(self.used):
            file = self._files[number]
            stat = Path(file.path).stat()
            if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
                raise changed(file.path)
        self.used.clear()

    def close(self) -> None:
        """Close what is open."""
        for opened in self._open.values():
            opened.close()
        self._open.clear()

    def member(self, entry: Entry) -> bytes | Failure:
        """A member of a tar."""
        if entry.more > MAX_ITEM_BYTES:
            return too_large(entry.more)
        tar = self._opened(entry.file)
        assert not isinstance(tar, ArchiveFile | _Table)
        tar.seek(entry.place)
        data = tar.read(entry.more)
        if len(data) != entry.more:
            self.check()
            raise OSError(errno.EIO, "shorter than when it was indexed; did something write to it?", tar.name)
        return data

    def row(self, entry: Entry) -> bytes | Failure:
        """The picture of a table's row."""
        table = self._opened(entry.file)
        assert isinstance(table, _Table)
        try:
            return table.picture(entry.place)
        except (pa.ArrowException, OSError) as error:
            if not is_damage(error):
                raise
            self.check()
            file = self._files[entry.file]
            return Failure(Outcome.REJECTED, "store-damaged", printable(tidy_message(error, file.path, file.name)))

    def record(self, entry: Entry) -> Record | None:
        """A record of an archive; None where it is damaged."""
        archive = self._opened(entry.file)
        assert isinstance(archive, ArchiveFile)
        return archive.record(Place(entry.place, entry.more))

    def name(self, number: int) -> str:
        """A file's name."""
        return self._files[number].name

    def _opened(self, number: int) -> BinaryIO | ArchiveFile | _Table:
        self.used.add(number)
        found = self._open.pop(number, None)
        if found is None:
            file = self._files[number]
            stat = Path(file.path).stat()
            if (stat.st_size, stat.st_mtime_ns) != (file.size, file.mtime_ns):
                raise changed(file.path)
            found = _open(file)
            while len(self._open) >= MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open[number] = found
        return found


def _open(file: InputFile) -> BinaryIO | ArchiveFile | _Table:
    name = file.name.lower()
    if name.endswith(".tar"):
        return Path(file.path).open("rb")
    return _Table(file) if name.endswith(".parquet") else ArchiveFile(file.path)


class _Table:
    """A table of img2dataset's: with the pictures in a column, or in files beside it."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._parquet = pq.ParquetFile(file.path, buffer_size=1 << 20, pre_buffer=False)
        metadata = self._parquet.metadata
        self._ends = [0]
        for group in range(metadata.num_row_groups):
            self._ends.append(self._ends[-1] + metadata.row_group(group).num_rows)
        self._column = picture_column(self._parquet.schema_arrow)
        self._kept: tuple[int, pa.ChunkedArray] | None = None
        folder = Path(file.path).with_suffix("")
        self._below = FilesBelow(folder), folder

    def close(self) -> None:
        self._parquet.close()
        self._kept = None

    def picture(self, row: int) -> bytes | Failure:
        """The picture of a row of which the table says that it was downloaded."""
        group = next(g for g, end in enumerate(self._ends[1:]) if row < end)
        value = self._value(group, row - self._ends[group], self._column or "key")
        if self._column is None:
            return self._in_folder(value)
        data = value.as_py()
        if not isinstance(data, bytes):
            why = f"row {row} of {self._file.name} says that it was downloaded, and has no picture"
            return Failure(Outcome.REJECTED, "missing-from-store", why)
        return too_large(len(data)) if len(data) > MAX_ITEM_BYTES else data

    def _value(self, group: int, row: int, column: str) -> pa.Scalar:
        if self._kept is not None and self._kept[0] == group:
            return self._kept[1][row]
        info = self._parquet.metadata.row_group(group)
        place = self._parquet.schema_arrow.get_field_index(column)
        if info.num_columns > place and info.column(place).total_uncompressed_size <= GROUP_BYTES:
            table = self._parquet.read_row_group(group, columns=[column], use_threads=False)
            self._kept = group, table.column(0)
            return self._kept[1][row]
        for batch in self._parquet.iter_batches(16, [group], [column], use_threads=False):
            if row < batch.num_rows:
                return batch.column(0)[row]
            row -= batch.num_rows
        raise pa.ArrowInvalid(f"the row group {group} ends before its row")

    def _in_folder(self, key: pa.Scalar) -> bytes | Failure:
        files, folder = self._below
        name = str(key.as_py())
        for suffix in SUFFIXES:
            found = files.read(folder, f"{name}.{suffix}", "image")
            if not isinstance(found, Failure) or found.reason != "image-not-found":
                return found
        why = f"downloaded according to {self._file.name}, but there is no {folder.name}/{printable(name)}.{SUFFIXES[0]}"
        return Failure(Outcome.REJECTED, "missing-from-store", why)


class Folder(FilesBelow):
    """The files of a folder, none of which may be newer than the newest was when it was looked through."""

    def __init__(self, store: Store) -> None:
        super().__init__(store.root)
        self._top, self._newest = store.root, store.files[0].mtime_ns

    def picture(self, name: str) -> bytes | Failure | None:
        """The file of a name below the folder; None where there is none."""
        found = self.read(self._top, name, "image")
        return None if isinstance(found, Failure) and found.reason == "image-not-found" else found

    def _read(self, path: Location, name: str, kind: str) -> bytes | Failure:
        if path.stat().st_mtime_ns > self._newest:
            raise changed(str(path))
        return super()._read(path, name, kind)


class Archives(PictureStore):
    """The archives of a store as one: revisits and redirections are followed through all of them."""

    def __init__(self, store: Store, numbers: range, index: StoreIndex, files: StoreFiles) -> None:
        super().__init__("", store.name)
        self._numbers, self._index, self._files = numbers, index, files
        self._damaged = ""

    def picture(self, url: str) -> bytes | Failure | None:
        """What was captured at a URL; None where the store does not know it."""
        self._damaged = ""
        found = self.at(url, set())
        if self._damaged and not isinstance(found, bytes):
            return Failure(Outcome.REJECTED, "store-damaged", self._damaged)
        return found

    def records(self, key: str) -> Iterator[Record]:
        """The records under a key, in the order of the files."""
        for entry in self._index.find(key_of(key)):
            if entry.file in self._numbers and entry.note == 0:
                record = self._files.record(entry)
                if record is not None:
                    yield record
                else:
                    self._files.check()
                    self._damaged = f"the record at byte {entry.place} of {self._files.name(entry.file)} is damaged"
