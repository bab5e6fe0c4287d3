"""The ledger of an output in an object store: :mod:`tokkit.pipelines.ledger`, with the truth in the store.

A payload is written to a folder of this machine, uploaded under a name with its checksum, and becomes real through the commit
record, which the store creates only if it is absent. What is read comes from the store too: one record at a time while units
are shared out, all of them by one listing and a request for each that is not known yet. Copies lie in the working folder, so
that everything which works on files goes on to do so.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokkit.errors import VerificationError
from tokkit.failpoints import failpoint
from tokkit.object_store import Listed, ObjectStore, in_threads
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.plan import PlannedUnit, Poison
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import ShardFile
from tokkit.sources.base import Unit
from tokkit.storage import attempt_name, pretty_json

COMMITS, PAYLOADS, POISON = "commits", "run/payloads", "run/poison"
KEPT = 6  # downloaded files of payloads that are kept at a time: those of one, and some more


class StoredLedger(Ledger):
    """The commit records and payloads of one output in a store.

    Args:
        out: the working folder on this machine.
    """

    def __init__(self, out: Path, store: ObjectStore) -> None:
        super().__init__(out)
        self._store = store
        self._marks: dict[str, int] = {}  # of the commit records that lie in the working folder, as they were listed
        self._sizes: dict[str, int] = {}  # of payloads, as they were listed
        self._fetched: OrderedDict[Path, None] = OrderedDict()
        self._complete = self._listing = False
        self.create()

    def clean(self) -> None:
        super().clean()
        self._store.abandon_uploads()

    def commit(self, record: CommitRecord) -> bool:
        files = list(record.payload.values())
        try:
            for file in files:
                self._store.upload(_key(file), self.payloads / file.name)
            failpoint("before-record")
            return self._store.create(_name(record.unit.index), pretty_json(record.model_dump(mode="json")).encode())
        finally:
            for file in files:
                (self.payloads / file.name).unlink(missing_ok=True)

    def read(self, unit_index: int) -> CommitRecord | None:
        if not self._listing:  # else it is here as it was listed just now
            self._keep(_name(unit_index), self._store.get(_name(unit_index)))
        return super().read(unit_index)

    def all_done(self, units: Sequence[PlannedUnit], decisions: Mapping[int, str]) -> dict[int, CommitRecord]:
        listed = self._store.listed(COMMITS)
        self._sizes = {name: entry.bytes for name, entry in self._store.listed(PAYLOADS).items()}
        for path in self.commits.iterdir():
            if f"{COMMITS}/{path.name}" not in listed:
                path.unlink(missing_ok=True)
        changed = [name for name, entry in listed.items() if self._marks.get(name) != entry.mark]
        in_threads(lambda name: self._fetch(name, listed[name]), changed)
        self._listing = True
        try:
            return super().all_done([p for p in units if _name(p.index) in listed], decisions)
        finally:
            self._listing = False

    def _fetch(self, name: str, entry: Listed) -> None:
        content = self._store.get(name)
        self._keep(name, content)
        if content is not None:
            self._marks[name] = entry.mark

    def _keep(self, name: str, content: bytes | None) -> None:
        """Have the working folder hold what the store does; it need not outlive a power cut."""
        path = self.out / name
        self._marks.pop(name, None)
        if content is None:
            path.unlink(missing_ok=True)
            return
        temporary = attempt_name(path)
        temporary.write_bytes(content)
        temporary.replace(path)

    @property
    def complete(self) -> bool:
        if not self._complete:
            content = self._store.get(MANIFEST)
            if content is not None:
                self._keep(MANIFEST, content)
                self._complete = True
        return self._complete

    def payload(self, file: ShardFile) -> Path:
        path = self.payloads / file.name
        if path in self._fetched:
            self._fetched.move_to_end(path)
        if path.exists():
            return path
        try:
            self._store.download(_key(file), path)
        except FileNotFoundError:
            raise VerificationError(f"{self._store.url}/{_key(file)}, which a commit record names, is gone") from None
        self._fetched[path] = None
        while len(self._fetched) > KEPT:
            self._fetched.popitem(last=False)[0].unlink(missing_ok=True)
        return path

    def _is_there(self, file: ShardFile) -> bool:
        known = self._sizes.get(_key(file))
        return (self._store.size(_key(file)) if known is None else known) == file.bytes

    def forget(self, unit_index: int) -> None:
        if self._path(unit_index).exists():  # as it was just read: there, and no commit
            self._store.remove([_name(unit_index)])
        self._marks.pop(_name(unit_index), None)
        super().forget(unit_index)

    def poison(self, unit_index: int, unit: Unit) -> tuple[Poison, ...]:
        name = f"{POISON}/{unit_index:05d}.json"
        self._keep(name, self._store.get(name))
        return super().poison(unit_index, unit)

    def all_poison(self) -> dict[int, list[int]]:
        in_threads(lambda name: self._keep(name, self._store.get(name)), self._store.listed(POISON))
        return super().all_poison()

    def add_poison(self, unit_index: int, unit: Unit, poison: Sequence[Poison]) -> None:
        super().add_poison(unit_index, unit, poison)
        path = self.poisons / f"{unit_index:05d}.json"
        self._store.write(f"{POISON}/{path.name}", path.read_bytes())


def _name(unit_index: int) -> str:
    return f"{COMMITS}/{unit_index:05d}.json"


def _key(file: ShardFile) -> str:
    """What a file of a payload is called in the store: by its content, so that no other attempt writes another one there."""
    return f"{PAYLOADS}/{file.sha256[:16]}-{file.name}"
