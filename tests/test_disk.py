"""A disk that fills up at any step of a run, and one that cannot be written to: nothing is damaged, the same command goes on.

The disk is a real one, a small tmpfs. Where mounting is not permitted these tests skip.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from run_world import SILENT, World, ended, wait_for
from shard_corpus import snapshot

from tokkit.dedup.spill import Spill, spilled_array
from tokkit.errors import ResumableStop
from tokkit.packing.store import save_array
from tokkit.pipelines.leases import Leases
from tokkit.pipelines.ledger import Ledger
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.native import ShardWriter
from tokkit.storage import is_attempt, sha256_file

LARGE = 16 << 10  # KiB: more than any run here needs


class Disk:
    """A tmpfs of ``kib`` KiB at ``path``."""

    def __init__(self, path: Path, kib: int) -> None:
        self.path = path
        path.mkdir()
        self._mount("-t", "tmpfs", "-o", f"size={kib}k", "tokkit")
        self.ballast = path / "ballast"

    def _mount(self, *arguments: str) -> None:
        command = ["mount", *arguments, str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"{' '.join(command)}: {done.stderr.strip()}")

    def resize(self, kib: int) -> None:
        self._mount("-o", f"remount,size={kib}k")

    def read_only(self, wanted: bool) -> None:
        self._mount("-o", f"remount,{'ro' if wanted else 'rw'}")

    def fill(self) -> None:
        """Leave not one free page."""
        with self.ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"\0" * 4096)
            except OSError as error:
                assert error.errno == errno.ENOSPC

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.path)], check=True)


def mounted(path: Path, kib: int) -> Disk:
    try:
        return Disk(path, kib)
    except (PermissionError, FileNotFoundError) as error:
        pytest.skip(f"no tmpfs can be mounted here ({error})")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = mounted(tmp_path / "disk", LARGE)
    yield made
    made.close()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    return world.run(world.folder / "clean")


def looked_over(out: Path, clean: dict[str, str]) -> int:
    """What a run that was stopped leaves is sound: files have their final content, commits their payload. How many commits."""
    kept = {name: digest for name, digest in snapshot(out).items() if not is_attempt(Path(name))}
    assert kept.items() <= clean.items()
    ledger, commits = Ledger(out), sorted((out / "commits").glob("*.json")) if (out / "commits").is_dir() else []
    for path in [] if (out / "manifest.json").exists() else commits:
        record = ledger.read(int(path.stem))
        assert record is not None
        for file in record.payload.values():
            assert sha256_file(ledger.payloads / file.name) == file.sha256
    return len([path for path in commits if not is_attempt(path)])


def attempts(out: Path) -> list[str]:
    return [str(path.relative_to(out)) for path in out.rglob("*") if is_attempt(path)]


def told(code: int, errors: str, what: str = "No space left on device") -> None:
    assert code == 75, errors
    assert what in errors
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    assert errors.startswith("tokkit: stopped: ")
    assert len(errors.splitlines()) == 1


# ---- full


STAGES = {
    "planning": "in-plan",
    "payload": "before-payload-rename:7",
    "commit record": "before-commit:3",
    "between units": "after-commit:5",
    "before coalescing": "before-commit:15",
    "coalescing": "in-coalesce:2",
    "rejects": "in-rejects:2",
    "manifest": "before-manifest",
    "packing plan": "after-manifest",
    "report": "before-report",
    "the page itself": "in-report",
}
QUICK = ("commit record", "coalescing")


@pytest.mark.parametrize("stage", [s if s in QUICK else pytest.param(s, marks=pytest.mark.slow) for s in STAGES])
def test_a_disk_that_fills_up_at_some_step(world: World, clean: dict[str, str], disk: Disk, stage: str) -> None:
    """The run is held at a step, the disk filled to its last page, the run let go on."""
    out = disk.path / "out"
    process = world.start(out, 0, point=f"{STAGES[stage]}=stop")
    wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ")
    disk.fill()
    os.kill(process.pid, signal.SIGCONT)
    told(*ended(process))
    committed = looked_over(out, clean)
    assert not attempts(out)
    assert not [path.name for path in (out / "run" / "leases").iterdir() if path.name != ".clock"]
    if stage == "commit record":
        assert committed == 2
    with pytest.raises(ResumableStop, match="No space left on device"):
        world.run(out)
    assert looked_over(out, clean) == committed
    disk.resize(2 * LARGE)
    assert world.run(out) == clean
    assert not attempts(out)
    assert verify(VerifyConfig(directory=out), SILENT).ok


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "shares"), [(0, (0.0, 0.05, 0.3, 0.6, 0.9, 0.99)), (2, (0.1, 0.5))])
def test_disks_of_every_size(
    world: World, clean: dict[str, str], tmp_path: Path, workers: int, shares: tuple[float, ...]
) -> None:
    """From one page to almost enough, each disk enlarged by and by until the run gets through."""
    big = mounted(tmp_path / "big", LARGE)
    try:
        before = os.statvfs(big.path)
        world.run(big.path / "out")
        after = os.statvfs(big.path)
        needed = (before.f_bfree - after.f_bfree) * after.f_bsize >> 10
    finally:
        big.close()
    stopped = 0
    for number, share in enumerate(shares):
        disk = mounted(tmp_path / f"disk{number}", max(4, int(share * needed)))
        try:
            out = disk.path / "out"
            for size in (
                None,
                needed // 2,
                needed,
            ):  # the second is often too small as well: payloads are there twice at the end
                if size is not None:
                    disk.resize(max(size, int(share * needed)))
                try:
                    world.run(out, workers=workers)
                    break
                except ResumableStop as stop:
                    assert "No space left on device" in str(stop)
                    looked_over(out, clean)
                    stopped += 1
            disk.resize(LARGE)
            assert world.run(out, workers=workers) == clean
        finally:
            disk.close()
    assert stopped > len(shares)


@pytest.mark.slow
def test_a_disk_that_fills_up_under_workers_and_an_encoder_process(world: World, clean: dict[str, str], disk: Disk) -> None:
    out = disk.path / "out"
    process = world.start(out, 2, "--encoders", "process")
    wait_for(lambda: len(list((out / "commits").glob("*.json"))) >= 2 if (out / "commits").is_dir() else False)
    disk.fill()
    told(*ended(process))
    looked_over(out, clean)
    disk.resize(2 * LARGE)
    assert ended(world.start(out, 2)) == (0, "")
    assert snapshot(out) == clean


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after-commit", "indexed", "decided"])
def test_a_disk_that_fills_up_while_duplicates_are_looked_for(world: World, disk: Disk, point: str) -> None:
    options = ("--dedup", "images", "--dedup-memory", "1MiB")
    clean = world.run(world.folder / f"dedup-{point}", dedup=["images"], dedup_memory=1 << 20)
    out = disk.path / "out"
    process = world.start(out, 0, *options, point=f"{point}=stop")
    wait_for(lambda: Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] in "TZ")
    disk.fill()
    os.kill(process.pid, signal.SIGCONT)
    told(*ended(process))
    looked_over(out, clean)
    disk.resize(2 * LARGE)
    assert ended(world.start(out, 0, *options)) == (0, "")
    assert snapshot(out) == clean


def test_a_full_disk_is_told_as_such_and_leaves_no_pieces(disk: Disk) -> None:
    """Where libraries hide the cause, crash the process or leave half a file."""
    folder = disk.path / "folder"
    folder.mkdir()
    (folder / "leases").mkdir()
    disk.fill()
    with pytest.raises(OSError, match="No space left"):  # a mapped file would have the process killed at the first write
        spilled_array(folder / "array", np.int64, 1 << 20, 1)
    (folder / "array").unlink()
    with (
        pytest.raises(OSError, match="No space left"),
        Spill(folder / "spill", np.dtype("<i8"), 2, 8) as spill,
    ):
        spill.add(np.arange(100_000), np.zeros(100_000, np.int64))
    with pytest.raises(OSError, match="No space left"):
        save_array(folder / "a.npy", np.arange(100_000))
    (folder / "a.npy").unlink()
    with pytest.raises(OSError, match="No space left"):
        ShardWriter(folder, np.dtype(np.uint16))
    with Leases(folder / "leases", 60) as leases:
        with pytest.raises(OSError, match="No space left"):
            leases.acquire("plan")
        assert [path.name for path in folder.rglob("*") if path.is_file()] == []
        disk.ballast.unlink()
        assert leases.acquire("plan")  # a lease of nobody's would hold it up for a minute


# ---- read-only


@contextmanager
def laid_over(folder: Path) -> Iterator[None]:
    """A read-only view of a folder in its place: permissions do not bind a superuser, a mount does.

    The view is made beside it first, where nobody can have a file open for writing, which would hold the change up.
    """
    view = folder.with_name(f"{folder.name}.view")
    view.mkdir()
    done = subprocess.run(["mount", "--bind", str(folder), str(view)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no bind mounts here ({done.stderr.strip()})")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(view)], check=True)
        subprocess.run(["mount", "--bind", str(view), str(folder)], check=True)
    finally:
        subprocess.run(["umount", "--lazy", str(view)], check=True)
        view.rmdir()
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("already", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_read_only_disk_is_told_and_nothing_changed(world: World, clean: dict[str, str], disk: Disk, already: bool) -> None:
    out = disk.path / "out"
    if already:
        world.part(out, 0, 3)
    before = snapshot(out)
    disk.read_only(True)
    code, errors = ended(world.start(out, 0))
    told(code, errors, "Read-only file system")
    assert str(out) in errors
    assert snapshot(out) == before
    disk.read_only(False)
    assert world.run(out) == clean


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_an_output_that_becomes_read_only_under_a_run(
    world: World, clean: dict[str, str], tmp_path: Path, workers: int
) -> None:
    """A read-only mount is laid over the folder: what is opened from then on cannot be written to."""
    out = tmp_path / "out"
    process = world.start(out, workers, point="" if workers else "after-commit:4=stop")
    wait_for(lambda: len(list((out / "commits").glob("*.json"))) >= 4 if (out / "commits").is_dir() else False)
    with laid_over(out):
        os.kill(process.pid, signal.SIGCONT)
        told(*ended(process), what="Read-only file system")
        assert looked_over(out, clean) < 15
    assert world.run(out) == clean


@pytest.mark.parametrize(
    "folder", ["commits", *(pytest.param(name, marks=pytest.mark.slow) for name in ("tokens", "run/payloads"))]
)
def test_one_folder_that_is_read_only(world: World, clean: dict[str, str], tmp_path: Path, folder: str) -> None:
    """A folder of the output is a mount of its own and cannot be written to: what does not need it is done."""
    out = tmp_path / "out"
    world.part(out, 0, 3)
    (out / folder).mkdir(exist_ok=True)
    with laid_over(out / folder):
        code, errors = ended(world.start(out, 0))
        told(code, errors, "Read-only file system")
        assert folder.split("/")[-1] in errors
        assert looked_over(out, clean) == (15 if folder == "tokens" else 5)
    assert world.run(out) == clean
