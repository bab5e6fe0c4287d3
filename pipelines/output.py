"""Where an output lies: in a folder that every process sees, or below a prefix of an object store.

Everything a run writes goes to a folder of this machine first, and most of what it does needs no more to be known: this module
is where the two ways part. In a folder the output is what lies there, and an :class:`Output` has nothing to do. In a store
(:class:`StoredOutput`) the folder is only where this process works, a fresh one that goes with it; files are brought there
before they are needed (``pull``), and put into the store once they are written (``push``, ``offer``, ``share``). What decides
anything lies in the store alone: the claim, plan, leases and commit records. The ledger and the leases are those of
:mod:`tokkit.pipelines.object_ledger` and :mod:`~tokkit.pipelines.object_leases`; all else is the same code.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tokkit.errors import DataError, TokkitError, UsageError
from tokkit.object_store import Listed, ObjectStore, in_threads, is_url, object_store
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.index_files import FOLDER as INDEX
from tokkit.pipelines.index_files import IndexFiles, StoredIndexFiles
from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import Ledger
from tokkit.pipelines.object_leases import StoredLeases
from tokkit.pipelines.object_ledger import PAYLOADS, StoredLedger
from tokkit.pipelines.progress import Progress
from tokkit.places import Place
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.sources.remote import RemotePath
from tokkit.storage import exclusive, is_attempt

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig

RUN = "run/"
METRICS = "run/metrics"  # each process's own
ENVIRONMENTS, CALIBRATION = "run/environments/", "run/calibration/"
RESULTS = ("tokens/", "features/", "rejects/")  # what the end of a run makes of the payloads
LOCK = ".lock"
TRANSFERS = 4  # files on their way at a time
ABOUT = (CONFIG, MANIFEST, "vocabulary.json", "run/job.json")  # what a finished output says of itself
INPUTS_OF_VERIFY = ("run/job.json", "run/inputs.jsonl")


class Output:
    """An output in a folder: what is written there is in the output."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def leases(self, seconds: float) -> Leases:
        return Leases(self.folder / "run" / "leases", seconds)

    def ledger(self) -> Ledger:
        return Ledger(self.folder)

    def indexes(self) -> IndexFiles:
        """Where the indexes of ``--dedup`` lie."""
        return IndexFiles(self.folder / "run" / INDEX)

    def begin(self, claim: str, *names: str) -> None:
        """Have the file here that says whose the output is, if there is one, and others that are needed to judge it.

        Raises:
            UsageError: there is none, but something else.
        """

    def pull(self, *names: str) -> None:
        """Have files, and what lies in folders (names with a slash at the end), here as they are in the output now."""

    def push(self, *names: str) -> None:
        """Put files that were written here, or all of a folder, into the output."""

    @property
    def result(self) -> Place:
        """Where shards can be read."""
        return self.folder

    def give(self, *paths: Path) -> None:
        """Put files of a shard, which are as they will be, into the output; they need not be here any longer."""

    def replace(self, *folders: str) -> None:
        """Put all files of folders into the output, and leave nothing in these there but them and what was given."""

    def offer(self, name: str) -> bool:
        """Put a file that was created here into the output unless it is there; False, and theirs is here, where it was."""
        return True

    def share(self, folder: str) -> None:
        """Put the files of a folder that are in the output not yet there."""

    def settle(self) -> None:
        """The manifest is there: remove what only the run needed."""


class StoredOutput(Output):
    """An output in a store; ``folder`` is this process's own."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        super().__init__(folder)
        self.store = store
        self._given: set[str] = set()
        self._here: dict[str, int | None] = {}  # files that lie here as in the store: its mark of them, None for what we put

    def leases(self, seconds: float) -> Leases:
        return StoredLeases(self.store, seconds)

    def ledger(self) -> Ledger:
        return StoredLedger(self.folder, self.store)

    def indexes(self) -> IndexFiles:
        return StoredIndexFiles(self.folder / "run" / INDEX, self.store)

    def begin(self, claim: str, *names: str) -> None:
        self.pull(claim, *names)
        others = set() if (self.folder / claim).exists() else self.store.names() - {"run"}
        if claim in others:  # claimed just now
            self.pull(claim)
        elif others:
            raise UsageError(
                f"{self.store.url} is not empty and holds no tokkit output (but {min(others)}, for one); name another --out"
            )

    def pull(self, *names: str) -> None:
        for name in names:
            if name.endswith("/"):
                self._pull_folder(name.rstrip("/"))
                continue
            with suppress(FileNotFoundError):
                (self.folder / name).unlink()
            with suppress(FileNotFoundError):
                self.store.download(name, self.folder / name)

    def _pull_folder(self, folder: str) -> None:
        listed = self.store.listed(folder)

        def missing(name: str, entry: Listed) -> bool:
            return self._here.get(name, -1) not in (None, entry.mark) or not (self.folder / name).exists()

        wanted = [name for name, entry in listed.items() if missing(name, entry)]
        in_threads(lambda name: self.store.download(name, self.folder / name), wanted, TRANSFERS)
        self._here |= {name: listed[name].mark for name in wanted}

    def push(self, *names: str) -> None:
        for name in names:
            in_threads(self._put, self._files(name.rstrip("/")) if name.endswith("/") else [name], TRANSFERS)

    @property
    def result(self) -> Place:
        return RemotePath(self.store.url)

    def give(self, *paths: Path) -> None:
        names = [path.relative_to(self.folder).as_posix() for path in paths]
        in_threads(lambda name: self.store.upload(name, self.folder / name), names, TRANSFERS)
        self._given.update(names)
        for path in paths:
            path.unlink()

    def replace(self, *folders: str) -> None:
        for folder in folders:
            self.push(folder)
            there = self.store.listed(folder.rstrip("/"))
            self.store.remove(sorted(there.keys() - set(self._files(folder.rstrip("/"))) - self._given))

    def _files(self, folder: str) -> list[str]:
        found = sorted(p for p in (self.folder / folder).rglob("*") if p.is_file() and not is_attempt(p))
        return [path.relative_to(self.folder).as_posix() for path in found]

    def _put(self, name: str) -> None:
        self.store.upload(name, self.folder / name)
        self._here[name] = None

    def offer(self, name: str) -> bool:
        mine = self.store.create(name, (self.folder / name).read_bytes())
        if not mine:
            self.pull(name)
        return mine

    def share(self, folder: str) -> None:
        there = self.store.listed(folder.rstrip("/"))
        in_threads(self.offer, [name for name in self._files(folder.rstrip("/")) if name not in there], TRANSFERS)

    def settle(self) -> None:
        for folder in (PAYLOADS, f"run/{INDEX}"):
            self.store.remove(self.store.listed(folder))
        self.store.abandon_uploads()


def output_of(config: ShardConfig) -> Output:
    """A run's output, in any process of the run."""
    return Output(config.out) if config.store is None else StoredOutput(config.out, object_store(config.store))


@contextmanager
def placed(config: ShardConfig) -> Iterator[Output]:
    """The output of a run; for the length of a ``with`` block, in which messages name it and not the working folder.

    Raises:
        UsageError: it cannot lie where it is asked to.
    """
    if config.store is None:
        yield Output(config.out)
        return
    store = object_store(config.store)
    with naming(config.out, config.store):
        store.check()
        with working_folder(config.out):
            try:
                yield StoredOutput(config.out, store)
            finally:
                with suppress(OSError):
                    store.write(f"{METRICS}/{config.out.name}.jsonl", (config.out / "run" / "metrics.jsonl").read_bytes())


# ---- the working folder


@contextmanager
def placed_elsewhere(config: ShardConfig) -> Iterator[ShardConfig]:
    """The options for workers on another machine; for the length of a ``with`` block, where they have a working folder there.

    Raises:
        UsageError: it cannot be made.
    """
    if config.store is None:
        yield config
        return
    folder = work_path(config.store, config.scratch)
    with working_folder(folder):
        yield config.model_copy(update={"out": folder})


def work_path(url: str, scratch: Path | None) -> Path:
    """Where a process may work for an output in a store: a path that no other has."""
    above = scratch or Path(tempfile.gettempdir()) / f"tokkit-{os.getuid()}"
    return above / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{os.getpid()}-{secrets.token_hex(4)}"


@contextmanager
def working_folder(folder: Path) -> Iterator[None]:
    """Make the folder, hold a lock beside it, and remove both at the end; those of dead processes are removed first.

    Raises:
        UsageError: it cannot be made.
    """
    above, lock = folder.parent, folder.with_name(f"{folder.name}{LOCK}")
    try:
        above.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in above.glob(f"*{LOCK}"):
            with suppress(OSError), exclusive(left):  # whoever held it is gone
                shutil.rmtree(left.with_name(left.name.removesuffix(LOCK)), ignore_errors=True)
                left.unlink()
        folder.mkdir(mode=0o700)
        unlocked = lock.with_suffix(".new")
        descriptor = os.open(unlocked, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        unlocked.rename(lock)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made to work in ({error.strerror}): name another folder by --scratch") from None
    try:
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        lock.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def naming(folder: Path, url: str) -> Iterator[None]:
    """Have messages that come out of a ``with`` block name the output where they name the working folder."""
    try:
        yield
    except TokkitError as error:
        error.args = tuple(_named(part, folder, url) for part in error.args)
        raise


def _named(part: object, folder: Path, url: str) -> object:
    return part.replace(str(folder), url) if isinstance(part, str) else part


# ---- reading one that is finished


@contextmanager
def folder_of(place: str, progress: Progress, scratch: Path | None = None) -> Iterator[Path]:
    """A finished output as a folder: where it lies, or for the length of the block a copy of one in a store."""
    if not is_url(place):
        yield Path(place)
        return
    with downloaded(place, progress, scratch) as folder:
        yield folder


@contextmanager
def described(place: str, scratch: Path | None = None) -> Iterator[tuple[Path, Place]]:
    """What a finished output says of itself, as a folder, and where its shards are to be read, for the length of the block.

    Of one in a store the shards stay there; the folder is a working folder with the few files that lie beside them.

    Raises:
        DataError: there is none in the store.
    """
    if not is_url(place):
        yield Path(place), Path(place)
        return
    store, folder = object_store(place), work_path(place, scratch)
    with naming(folder, store.url), working_folder(folder):
        for name in ABOUT:
            with suppress(FileNotFoundError):
                store.download(name, folder / name)
        if not (folder / CONFIG).exists():
            raise DataError(f"{store.url} holds nothing of tokkit's")
        yield folder, RemotePath(store.url)


@contextmanager
def downloaded(url: str, progress: Progress, scratch: Path | None = None) -> Iterator[Path]:
    """A finished output in a store as a folder of this machine, for the length of a ``with`` block.

    Raises:
        DataError: there is none. UsageError: there is no room for it.
    """
    store, folder = object_store(url), work_path(url, scratch)
    with naming(folder, url), working_folder(folder):
        listed = {n: e for n, e in store.listed().items() if not n.startswith(RUN) or n in INPUTS_OF_VERIFY}
        if not listed:
            raise DataError(f"{url} holds nothing of tokkit's")
        total, free = sum(entry.bytes for entry in listed.values()), shutil.disk_usage(folder).free
        if total > free:
            raise UsageError(
                f"{url} has {total / 1e9:,.1f} GB, and there are {free / 1e9:,.1f} GB in {folder.parent}: name a folder with "
                f"more by --scratch"
            )
        with progress.task("download", total=total / 1e6, unit="MB") as task:

            def fetch(name: str) -> None:
                store.download(name, folder / name)
                task.advance(listed[name].bytes / 1e6)

            in_threads(fetch, listed, TRANSFERS)
        yield folder
