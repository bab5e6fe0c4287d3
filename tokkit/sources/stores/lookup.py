"""Asking the picture stores of a run for a picture that is not where its corpus has its pictures.

The stores are asked in the order in which they were named; a better URL of a picture (pages name several) comes before a
better store. Of several entries of one key the first that can be had is taken, in the order of the files; where none can, the
first failure tells why.
"""

from __future__ import annotations

import re
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

from tokkit.documents import Failure, Outcome
from tokkit.errors import DataError
from tokkit.sources.base import ContainerDamage, InputFile
from tokkit.sources.stores.index import (
    Entry,
    Notes,
    Row,
    StoreIndex,
    StoreSummary,
    identity_of,
    write_index,
)
from tokkit.sources.stores.kinds import Store
from tokkit.sources.stores.listing import Lister
from tokkit.sources.stores.names import name_key, names_of_url, tidy_path, url_key
from tokkit.sources.stores.reading import Archives, Folder, StoreFiles
from tokkit.sources.untrusted import printable
from tokkit.sources.warc.pictures import other_scheme

NOT_IN_STORE = "not-in-store"
ABSENT = ("not-downloaded", "image-not-found")  # reasons that only say that a picture is not there

_WEB = re.compile(r"(?:https?:)?//", re.IGNORECASE)

Found = tuple[bytes | Failure, str]
Tick = Callable[[int], None]


class PictureStores:
    """The stores of a run; picklable, what is open stays behind.

    Args:
        stores: in the order in which they are asked.
        folder: where their index lies, or is to lie.
    """

    def __init__(self, stores: tuple[Store, ...], folder: Path) -> None:
        self.stores, self.folder = stores, folder
        self._opened: _Opened | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_opened": None}

    @property
    def identity(self) -> str:
        """What an index must be of."""
        return identity_of((s.name, s.kind, [(f.name, f.size, f.mtime_ns) for f in s.files]) for s in self.stores)

    def build(self, tick: Tick = lambda size: None) -> bool:
        """Make the index, unless it is there; returns whether it was made.

        Args:
            tick: called with bytes of the stores' files that are done.
        """
        try:
            StoreIndex(self.folder, self.identity)
        except DataError:
            shutil.rmtree(self.folder, ignore_errors=True)
            notes = Notes()
            damage: list[list[ContainerDamage]] = [[] for _ in self.stores]
            write_index(self.folder, self.identity, self._rows(notes, damage, tick), self._firsts(), notes, damage)
            return True
        return False

    def summaries(self) -> list[StoreSummary]:
        """What the index knows of each store."""
        return self._open().index.summaries

    def instead(self, found: bytes | Failure, *, urls: tuple[str, ...] = (), name: str = "") -> Found:
        """A picture that ``found`` says is missing, from the first store that has it; with the store's name.

        Where none has it, the failure that says most of why: one that only tells that the picture is not there gives way.

        Args:
            urls: where it may be found, best first.
            name: its path, where it has one.

        Raises:
            FingerprintMismatch: a file of a store has changed since it was indexed.
            OSError: for the surroundings.
        """
        if not isinstance(found, Failure) or found.outcome != Outcome.FAILED_UPSTREAM:
            return found, ""
        opened = self._open()
        failure: Failure | None = None
        urls = tuple(f"https:{url}" if url.startswith("//") else url for url in urls if _WEB.match(url))
        references = [(url, "") for url in (*urls, *map(other_scheme, urls))] + [("", name)] * bool(name)
        for url, path in references:
            picture = opened.picture(url, path)
            if picture is not None and not isinstance(picture[0], Failure):
                return picture
            failure = failure or (picture[0] if picture is not None else None)  # type: ignore[assignment]
        if found.reason not in ABSENT:
            return found, ""
        if failure is None:
            failure = Failure(Outcome.FAILED_UPSTREAM, NOT_IN_STORE, f"{found.message}; nor in a store of --images")
        return failure, ""

    def check(self) -> None:
        """What was read of the stores since the last call is still as it was indexed.

        Raises:
            FingerprintMismatch: it is not. OSError: it is gone.
        """
        if self._opened is not None:
            self._opened.files.check()

    def _open(self) -> _Opened:
        if self._opened is None:
            self._opened = _Opened(self.stores, StoreIndex(self.folder, self.identity))
        return self._opened

    def _firsts(self) -> list[int]:
        """By store, the number of its first file in the run."""
        return list(accumulate((len(store.files) for store in self.stores[:-1]), initial=0))

    def _rows(self, notes: Notes, damage: list[list[ContainerDamage]], tick: Tick) -> Iterator[Row]:
        for number, (store, first) in enumerate(zip(self.stores, self._firsts(), strict=True)):
            lister = Lister(store, first, notes, tick)
            yield from lister.rows()
            damage[number] = lister.damage


def instead(stores: PictureStores | None, found: bytes | Failure, *, urls: tuple[str, ...] = (), name: str = "") -> Found:
    """:meth:`PictureStores.instead`, where there are stores."""
    return (found, "") if stores is None else stores.instead(found, urls=urls, name=name)


class _Opened:
    """The stores with their index mapped, in one process."""

    def __init__(self, stores: tuple[Store, ...], index: StoreIndex) -> None:
        self.index = index
        self._stores = stores
        files: list[InputFile] = [file for store in stores for file in store.files]
        self.files = StoreFiles(files)
        ends = [0]
        for store in stores:
            ends.append(ends[-1] + len(store.files))
        self._firsts = ends[:-1]
        self._folders = {n: Folder(store) for n, store in enumerate(stores) if store.kind == "folder"}
        self._archives = {
            n: Archives(store, range(ends[n], ends[n + 1]), index, self.files)
            for n, store in enumerate(stores)
            if store.kind == "warc"
        }

    def picture(self, url: str, name: str) -> Found | None:
        """The picture of a URL or of a name, from the first store that has it, else the first failure; None: none knows it."""
        names = names_of_url(url) if url else tuple(tidy for tidy in (tidy_path(name),) if tidy is not None)
        keys = [url_key(url)] if url else []
        keys += [key for each in names if (key := name_key(each)) is not None]
        entries: dict[int, list[Entry]] = {}
        for key in keys:
            for entry in self.index.find(key):
                entries.setdefault(bisect_right(self._firsts, entry.file) - 1, []).append(entry)
        failure: Failure | None = None
        for number, store in enumerate(self._stores):
            found = self._of_store(number, store, url, names, entries.get(number, []))
            if isinstance(found, bytes):
                return found, store.name
            failure = failure or found
        return None if failure is None else (failure, "")

    def _of_store(
        self, number: int, store: Store, url: str, names: tuple[str, ...], entries: list[Entry]
    ) -> bytes | Failure | None:
        if store.kind == "folder":
            tried = (self._folders[number].picture(name) for name in names)
            return next((found for found in tried if found is not None), None)
        if store.kind == "warc":
            return self._archives[number].picture(url) if entries else None
        failure: Failure | None = None
        for entry in entries:
            found = self._read(entry)
            if isinstance(found, bytes):
                return found
            failure = failure or found
        return failure

    def _read(self, entry: Entry) -> bytes | Failure:
        if entry.note:
            noted = self.index.notes[entry.note - 1]
            return Failure(noted.outcome, noted.reason, printable(noted.message))
        return self.files.member(entry) if self.files.name(entry.file).lower().endswith(".tar") else self.files.row(entry)
