"""Leases in an object store, for processes that share an output there: :mod:`tokkit.pipelines.leases`, by a store's means.

A lease is an object ``run/leases/NAME``, created if absent; its content says who holds it, and it is never written again. That
its holder lives is told by one object for each process, ``run/alive/TOKEN``, which it rewrites every quarter of the lease time:
one request, however many leases it holds. Whoever wants a lease looks at that object: where it does not change for the lease
time, by the clock of the one who looks, or is not there, the lease is stale. So no clock has to agree with another, and a
process that comes later waits for one lease time before it takes over what a dead one held. Of a holder on the same host it is
known at once, as with files.

A stale lease is removed by who has created ``run/leases/.NAME.TOKEN``, with its holder's token, and found the lease unchanged
after that; then it is created anew, which again only one can do. As everywhere, leases only save work.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tokkit.object_store import ObjectStore
from tokkit.pipelines.leases import POLL_SECONDS, Leases, Owner

FOLDER = "run/leases"
ALIVE = "run/alive"
SLOWEST_POLL = 2.0


@dataclass(frozen=True, slots=True)
class _Found:
    """A lease as it was found."""

    content: bytes
    stale: bool

    @property
    def owner(self) -> Owner | None:
        return _owner(self.content)


@dataclass(slots=True)
class _Sign:
    """What a process last told, since when it has been the same, and when it was last looked at."""

    content: bytes | None
    since: float
    looked: float


class StoredLeases(Leases):
    """The leases of one process on one output in a store.

    Args:
        store: the output's place.
        seconds: after which a process that gives no sign is taken to be dead.
    """

    def __init__(self, store: ObjectStore, seconds: float) -> None:
        super().__init__(Path(FOLDER), seconds)
        self._store = store
        self._mine: set[str] = set()
        self._others_had: set[str] = set()
        self._signs: dict[str, _Sign] = {}
        self._beats = 0
        self.poll_seconds = min(max(POLL_SECONDS, seconds / 30), SLOWEST_POLL, seconds / 4)

    def __enter__(self) -> StoredLeases:
        self._tell()
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        with suppress(OSError):  # whoever wants what is left takes it over once it is stale
            for name in sorted(self._mine):
                self._give_back(name)
            self._heart.join(self.seconds)  # else its last word may come after the object is removed
            self._store.remove([f"{ALIVE}/{self.owner.token}"])

    def acquire(self, name: str) -> bool:
        if name not in self._others_had and self._make(name):
            return True
        found = self._found(name)
        if found is None:
            self._others_had.discard(name)
            return self._make(name)
        self._others_had.add(name)  # so it is only looked at next time
        return found.stale and self._remove(name, found) and self._make(name)

    def release(self, name: str) -> None:
        with suppress(OSError):
            self._give_back(name)

    def _give_back(self, name: str) -> None:
        if name in self._mine and self._is_held(name):
            self._store.remove([f"{FOLDER}/{name}"])
        self._mine.discard(name)  # only now: a signal may come before

    def mine(self, name: str) -> bool:
        return name in self._mine and self._is_held(name)

    def holder(self, name: str) -> str:
        content = self._store.get(f"{FOLDER}/{name}")
        owner = None if content is None else _owner(content)
        return "another process" if owner is None else f"process {owner.pid} on {owner.host.split('/')[0]}"

    def others_at_work(self) -> bool:
        return any(found is not None and not found.stale for found in map(self._found, self._others()))

    def sweep(self) -> None:
        for name in self._others():
            found = self._found(name)
            if found is not None and found.stale:
                self._remove(name, found)
        signs = [name.removeprefix(f"{ALIVE}/") for name in self._store.listed(ALIVE)]
        self._store.remove([f"{ALIVE}/{token}" for token in signs if token != self.owner.token and self._is_silent(token)])

    # ---- objects

    def _make(self, name: str) -> bool:
        self._mine.add(name)  # at once: a signal may end the wait for the answer, and what is ours has to be given back
        if self._store.create(f"{FOLDER}/{name}", str(self.owner).encode()):
            return True
        self._mine.discard(name)
        return False

    def _is_held(self, name: str) -> bool:
        return self._store.get(f"{FOLDER}/{name}") == str(self.owner).encode()

    def _others(self) -> list[str]:
        names = [path.removeprefix(f"{FOLDER}/") for path in self._store.listed(FOLDER)]
        return [name for name in names if not name.startswith(".") and name not in self._mine]

    def _found(self, name: str) -> _Found | None:
        content = self._store.get(f"{FOLDER}/{name}")
        return None if content is None else _Found(content, self._is_stale(content))

    def _is_stale(self, content: bytes) -> bool:
        owner = _owner(content)
        if owner is None:
            return True  # objects appear whole: this is nobody's
        return owner.is_dead(self.owner.host) or (owner.token != self.owner.token and self._is_silent(owner.token))

    def _is_silent(self, token: str) -> bool:
        """Whether a process has given no sign for the lease time, as far as this one has looked."""
        sign, now = self._signs.get(token), time.monotonic()
        if sign is None or now - sign.looked >= self.poll_seconds:
            told, before = self._store.get(f"{ALIVE}/{token}"), sign
            sign = self._signs[token] = _Sign(told, now, now)
            if before is not None and before.content == told:
                sign.since = before.since
        return sign.content is None or sign.looked - sign.since > self.seconds

    def _remove(self, name: str, found: _Found) -> bool:
        """Remove the stale lease that was found; False where another was faster."""
        owner = found.owner
        claim = f"{FOLDER}/.{name}.{owner.token if owner else 'unknown'}"
        if not self._store.create(claim, str(self.owner).encode()):
            made = self._store.get(claim)
            if made is not None and self._is_stale(made):
                self._store.remove([claim])  # its maker died at it; the next look takes over
            return False
        try:
            if self._store.get(f"{FOLDER}/{name}") != found.content or not self._is_stale(found.content):
                return False
            self._store.remove([f"{FOLDER}/{name}"])
            return True
        finally:
            self._store.remove([claim])

    def _tell(self) -> None:
        self._beats += 1
        self._store.write(f"{ALIVE}/{self.owner.token}", f"{self._beats}\n".encode())

    def _beat(self) -> None:
        while not self._ended.wait(self.seconds / 4):
            # A store that fails for a while makes leases stale at worst.
            with suppress(OSError):
                self._tell()


def _owner(content: bytes) -> Owner | None:
    return Owner.parse(content.decode("utf-8", "replace"))
