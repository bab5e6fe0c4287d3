"""Leases: who is at what, where several processes or machines share one output directory.

A lease is a file ``run/leases/NAME``, created if absent; its content says who holds it. A thread of the holder touches its
leases every quarter of the lease time. One that was not touched for the whole of it is stale: its holder died, was suspended,
or has lost the file system. Whoever wants it renames it away under a name of its own, which only one can, and creates it anew.

* Time is the file system's own: "now" is the modification time of a file in the same folder that was touched just now, so
  clocks of hosts need not agree. A lease is opened to look at it, since NFS keeps attributes but asks again at each open.
* A holder on this host (same boot, same process namespace) whose process is gone is known to be dead at once, so the same
  command goes on without waiting after a kill.
* Of those who judge a lease stale only one may remove it: who has created the file ``.NAME.TOKEN``, with its holder's token,
  and found the lease unchanged after that. (Should its holder have woken up and given it back just then, what was renamed may
  be the lease of a third: it is linked back in its place.)

Leases only save work. A unit that two processes do at once, because a holder was suspended and woke up, or because all of this
failed, is committed once: payloads are named by their content, and the commit record is created if absent.
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tokkit.storage import attempt_name

CLOCK = ".clock"
POLL_SECONDS = 0.5  # between two looks at a lease that one waits for; less where the lease time is short


def this_host() -> str:
    """A name for where process ids mean the same: host, boot and process namespace."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return "/".join(parts)


def started(pid: int) -> str | None:
    """When a process began, in the kernel's ticks; ``gone`` where there is none, None where the system does not tell."""
    try:
        # The name, in parentheses, may hold anything; the state is the first field behind it, the start the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except FileNotFoundError:
        return "gone" if Path("/proc/self/stat").exists() else None
    except OSError:
        return None
    return "gone" if fields[0] in "ZX" else fields[19]


class LeaseLostError(Exception):
    """Another process has taken the lease over: this one was suspended."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease: ``host`` as :func:`this_host` has it, the process and when it began, and a random part."""

    host: str
    pid: int
    started: str
    token: str

    @classmethod
    def new(cls) -> Owner:
        return cls(this_host(), os.getpid(), started(os.getpid()) or "0", secrets.token_hex(8))

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        """None where the content is not (yet) whole."""
        parts = text.rstrip("\n").split(" ")
        if len(parts) != 4 or not parts[1].isdecimal() or not text.endswith("\n"):
            return None
        return cls(parts[0], int(parts[1]), parts[2], parts[3])

    def __str__(self) -> str:
        return f"{self.host} {self.pid} {self.started} {self.token}\n"

    def is_dead(self, host: str) -> bool:
        """Known to be gone; False where that cannot be known from ``host``."""
        return self.host == host and started(self.pid) not in (self.started, None)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A lease as it was found: what it says, when it was last touched, and whether it may be taken over."""

    content: bytes
    touched_ns: int
    stale: bool

    @property
    def owner(self) -> Owner | None:
        return Owner.parse(self.content.decode("utf-8", "replace"))


class Leases:
    """The leases of one process in one folder; a context manager that keeps them fresh and gives them back at its end.

    Args:
        folder: made where it is missing.
        seconds: after which a lease that nobody touches is stale.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self.owner = Owner.new()
        self.poll_seconds = min(POLL_SECONDS, seconds / 4)
        self._held: dict[str, int] = {}  # name -> open file
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="leases", daemon=True)

    def __enter__(self) -> Leases:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        for name in list(self._held):
            self.release(name)

    def acquire(self, name: str) -> bool:
        """Take a lease if it is free or stale."""
        path = self.folder / name
        if self._create(path):
            return True
        seen = self._look(path)
        if seen is None:
            return self._create(path)
        return seen.stale and self._take_away(path, seen) and self._create(path)

    def release(self, name: str) -> None:
        """Give a lease back; one that was taken over meanwhile is left to its new holder."""
        with self._lock:
            descriptor = self._held.pop(name, None)
        if descriptor is None:
            return
        if self._is_mine(name, descriptor):
            with suppress(OSError):  # whoever wants it takes it over once it is stale
                (self.folder / name).unlink()
        os.close(descriptor)

    def mine(self, name: str) -> bool:
        """Whether this process holds the lease still: it loses it to others when it is suspended."""
        descriptor = self._held.get(name)
        return descriptor is not None and self._is_mine(name, descriptor)

    @contextmanager
    def hold(self, name: str, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Wait until the lease can be had, hold it for the length of the block; ``waiting`` is told once who has it."""
        while not self.acquire(name):
            if waiting is not None:
                waiting(self.holder(name))
                waiting = None
            time.sleep(self.poll_seconds)
        try:
            yield
        finally:
            self.release(name)

    def holder(self, name: str) -> str:
        """Who has a lease, for people: host and process id."""
        seen = self._look(self.folder / name)
        if seen is None or seen.owner is None:
            return "another process"
        return f"process {seen.owner.pid} on {seen.owner.host.split('/')[0]}"

    def others_at_work(self) -> bool:
        """Whether another process holds a lease that is not stale."""
        for path in self.folder.iterdir():
            if not path.name.startswith(".") and path.name not in self._held:
                seen = self._look(path)
                if seen is not None and not seen.stale:
                    return True
        return False

    def sweep(self) -> None:
        """Remove stale leases: of units that were committed by a process that died before it gave them back."""
        for path in self.folder.iterdir():
            if not path.name.startswith(".") and path.name not in self._held:
                seen = self._look(path)
                if seen is not None and seen.stale:
                    self._take_away(path, seen)

    # ---- files

    def _create(self, path: Path) -> bool:
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644)
        except FileExistsError:
            return False
        content = str(self.owner).encode()
        try:
            if os.write(descriptor, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            # On a full disk: a lease that says of nobody whose it is would hold everybody up until it is stale.
            os.close(descriptor)
            path.unlink(missing_ok=True)
            raise
        with self._lock:
            self._held[path.name] = descriptor
        return True

    def _look(self, path: Path) -> _Seen | None:
        """What lies there; None where nothing does."""
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            touched_ns = os.fstat(descriptor).st_mtime_ns
            content = os.read(descriptor, 4096)
        finally:
            os.close(descriptor)
        owner = Owner.parse(content.decode("utf-8", "replace"))
        dead = owner is not None and owner.is_dead(self.owner.host)
        return _Seen(content, touched_ns, dead or self._now() - touched_ns / 1e9 > self.seconds)

    def _now(self) -> float:
        """The file system's clock, in seconds."""
        descriptor = os.open(self.folder / CLOCK, os.O_CREAT | os.O_RDWR, 0o644)
        try:
            os.utime(descriptor)
            return os.fstat(descriptor).st_mtime
        finally:
            os.close(descriptor)

    def _take_away(self, path: Path, seen: _Seen) -> bool:
        """Remove the stale lease that was seen; False where another was faster."""
        owner = seen.owner
        claim = path.with_name(f".{path.name}.{owner.token if owner else 'unknown'}")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL, 0o644))
        except FileExistsError:
            with suppress(FileNotFoundError):
                if self._now() - claim.stat().st_mtime > self.seconds:
                    claim.unlink()  # its maker died at it; the next look takes over
            return False
        try:
            return self._look(path) == seen and self._rename_away(path, seen)
        finally:
            claim.unlink(missing_ok=True)

    def _rename_away(self, path: Path, seen: _Seen) -> bool:
        aside = attempt_name(path.with_name(f".{path.name}"))
        try:
            path.rename(aside)
        except FileNotFoundError:
            return False
        is_it = (aside.read_bytes(), aside.stat().st_mtime_ns) == (seen.content, seen.touched_ns)
        if not is_it:
            with suppress(FileExistsError):  # taken a third time: its second holder goes on without, which harms nothing
                os.link(aside, path)
        aside.unlink()
        return is_it

    def _is_mine(self, name: str, descriptor: int) -> bool:
        try:
            return (self.folder / name).stat().st_ino == os.fstat(descriptor).st_ino
        except OSError:
            return False

    def _beat(self) -> None:
        while not self._ended.wait(self.seconds / 4):
            with self._lock:
                for descriptor in self._held.values():
                    # A file system that fails for a while makes leases stale at worst. The open file is touched, not the
                    # name: what another has put in its place is not ours to refresh.
                    with suppress(OSError):
                        os.utime(descriptor)
