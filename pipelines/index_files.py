"""Where the indexes and decisions of ``--dedup`` lie: in ``run/index`` of a folder that every process sees, or of a store.

An index is a function of its unit and of what is known there to kill, the decisions are one of what is known to kill anywhere.
In a folder each has one name, and what lies under it says what it rests on. In a store (:class:`StoredIndexFiles`) the name
says it, so a process that knows less, because it was suspended, writes to another name, and an object that is there is the one
that is wanted. There a file is written on this machine's disk, uploaded whole, and downloaded by whoever maps it: all indexes
by the process that decides, the decisions by all, and an index by a worker that looks up a document of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tokkit.dedup.index import UnitIndex
from tokkit.errors import DataError
from tokkit.object_store import ObjectStore, in_threads
from tokkit.storage import fingerprint_of

FOLDER = "index"
DECISIONS = "decisions"
TRANSFERS = 4  # files on their way at a time

_DIGITS = 16  # of a digest in a name


@dataclass(frozen=True)
class IndexFiles:
    """The files of one output, in a folder; picklable."""

    folder: Path

    def index(self, unit: int, poison: Sequence[int] = ()) -> Path:
        """Where a unit's index lies on this machine.

        Args:
            poison: positions of its documents that are known to kill.
        """
        return self.folder / f"{unit:05d}.index"

    def decisions(self, basis: bytes) -> Path:
        """Where the decisions lie on this machine that rest on ``basis``."""
        return self.folder / DECISIONS

    def present(self, wanted: Mapping[Path, object]) -> Collection[Path]:
        """Those indexes that are there whole, by whomever; ``wanted`` says of each what it must be of."""
        found = set()
        for path, identity in wanted.items():
            with suppress(DataError, FileNotFoundError):
                UnitIndex.open(path, identity)
                found.add(path)
        return found

    def share(self, path: Path) -> None:
        """Have a file, which was written here, where every process sees it."""

    def bring(self, paths: Iterable[Path]) -> None:
        """Have files here that another process may have written.

        Raises:
            FileNotFoundError: one is not there.
        """


@dataclass(frozen=True)
class StoredIndexFiles(IndexFiles):
    """The files of one output in a store; ``folder`` is the part of a working folder that they are written and mapped in."""

    store: ObjectStore

    def index(self, unit: int, poison: Sequence[int] = ()) -> Path:
        rests_on = f"-{fingerprint_of(sorted(poison))[:_DIGITS]}" if poison else ""
        return self.folder / f"{unit:05d}{rests_on}.index"

    def decisions(self, basis: bytes) -> Path:
        return self.folder / f"{DECISIONS}-{basis.hex()[:_DIGITS]}"

    def present(self, wanted: Mapping[Path, object]) -> Collection[Path]:
        if len(wanted) == 1:
            return [path for path in wanted if self.store.size(_key(path)) is not None]
        listed = self.store.listed(f"run/{FOLDER}")
        return {path for path in wanted if _key(path) in listed}

    def share(self, path: Path) -> None:
        self.store.upload(_key(path), path)

    def bring(self, paths: Iterable[Path]) -> None:
        # What lies here under its name is what the store has under it.
        missing = [path for path in paths if not path.exists()]
        in_threads(lambda path: self.store.download(_key(path), path), missing, TRANSFERS)


def _key(path: Path) -> str:
    return f"run/{FOLDER}/{path.name}"
