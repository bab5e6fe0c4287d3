"""Leases: one holder at a time, taken over from the dead and the silent, by the file system's clock."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tokkit.pipelines import leases as module
from tokkit.pipelines.leases import Leases, Owner, started, this_host

RACE = """
    import sys, time
    from pathlib import Path
    from tokkit.pipelines.leases import Leases

    folder, start, names = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    with Leases(folder, 30) as leases:
        while time.time() < start:
            pass
        got = [str(n) for n in range(names) if leases.acquire(str(n))]
        print(" ".join(got), flush=True)
        sys.stdin.readline()
"""


def race(folder: Path, names: int, processes: int = 5) -> list[str]:
    """Have processes ask for the same leases at once; the names that each got, all together."""
    start = time.time() + 1.5
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(folder), str(start), str(names)]
    running = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(processes)]
    got = [process.stdout.readline().split() for process in running]  # type: ignore[union-attr]
    for process in running:
        process.communicate("\n")
    return [name for one in got for name in one]


def leave(folder: Path, name: str, owner: Owner, age: float = 0.0) -> None:
    """A lease as another process would have left it."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(str(owner))
    then = time.time() - age
    os.utime(folder / name, (then, then))


def elsewhere() -> Owner:
    return Owner("another-host/boot/pid:[1]", 1, "77", "ab")


def test_each_lease_has_one_holder(tmp_path: Path) -> None:
    got = race(tmp_path / "leases", 200)
    assert sorted(got, key=int) == [str(n) for n in range(200)]
    assert [p.name for p in (tmp_path / "leases").iterdir()] in ([], [".clock"])  # all given back


def test_a_stale_lease_is_taken_over_by_one(tmp_path: Path) -> None:
    for n in range(200):
        leave(tmp_path / "leases", str(n), elsewhere(), age=31)
    assert sorted(race(tmp_path / "leases", 200), key=int) == [str(n) for n in range(200)]


def test_only_silence_makes_a_lease_stale(tmp_path: Path) -> None:
    leave(tmp_path, "5", elsewhere(), age=0.5)
    with Leases(tmp_path, 1.0) as leases:
        assert not leases.acquire("5")
        assert leases.others_at_work()
        assert leases.holder("5") == "process 1 on another-host"
        time.sleep(0.7)
        assert not leases.others_at_work()
        assert leases.acquire("5")


def test_a_held_lease_is_kept_fresh(tmp_path: Path) -> None:
    with Leases(tmp_path, 1.0) as first, Leases(tmp_path, 1.0) as second:
        assert first.acquire("5")
        for _ in range(6):
            time.sleep(0.3)
            assert not second.acquire("5")
        first.release("5")
        assert second.acquire("5")


def test_the_hosts_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file system is a day ahead of this host, and then a day behind: a live lease stays, a silent one is stale."""
    now, shift = Leases._now, [0.0]
    monkeypatch.setattr(Leases, "_now", lambda self: now(self) + shift[0])
    for days in (1, -1):
        shift[0] = 86400 * days
        with Leases(tmp_path / str(days), 30) as leases:
            leave(tmp_path / str(days), "live", elsewhere(), age=10 - shift[0])
            leave(tmp_path / str(days), "dead", elsewhere(), age=31 - shift[0])
            monkeypatch.setattr(time, "time", lambda: 0.0)
            assert not leases.acquire("live")
            assert leases.acquire("dead")
            monkeypatch.undo()
            monkeypatch.setattr(Leases, "_now", lambda self: now(self) + shift[0])


def test_now_is_what_the_file_system_says(tmp_path: Path) -> None:
    with Leases(tmp_path, 30) as leases:
        before = leases._now()
        (tmp_path / "file").touch()
        assert before <= (tmp_path / "file").stat().st_mtime <= leases._now()


@pytest.mark.parametrize("zombie", [False, True])
def test_the_dead_of_this_host_are_known_at_once(tmp_path: Path, zombie: bool) -> None:
    process = subprocess.Popen(["sleep", "60"])
    leave(tmp_path, "5", Owner(this_host(), process.pid, started(process.pid) or "", "ab"))
    with Leases(tmp_path, 30) as leases:
        assert not leases.acquire("5")
        os.kill(process.pid, signal.SIGKILL)
        if zombie:
            while started(process.pid) != "gone":
                time.sleep(0.01)
        else:
            process.wait()
        assert leases.acquire("5")
    process.wait()


def test_another_process_with_the_same_number_is_not_the_holder(tmp_path: Path) -> None:
    leave(tmp_path, "5", Owner(this_host(), os.getpid(), "1", "ab"))
    with Leases(tmp_path, 30) as leases:
        assert leases.acquire("5")


def test_a_lease_that_is_being_written_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "5").write_text("")
    with Leases(tmp_path, 30) as leases:
        assert not leases.acquire("5")


def test_a_holder_that_was_suspended_leaves_the_new_one_alone(tmp_path: Path) -> None:
    with Leases(tmp_path, 3600) as first, Leases(tmp_path, 3600) as second:
        assert first.acquire("5")
        os.utime(tmp_path / "5", (0, 0))
        assert first.mine("5")
        assert second.acquire("5")
        assert not first.mine("5")
        first.release("5")
        assert second.mine("5")
        assert (tmp_path / "5").read_text() == str(second.owner)


def test_a_lease_that_was_taken_over_just_before_is_put_back(tmp_path: Path) -> None:
    """Judged stale by two; the slower one finds that it has renamed the faster one's fresh lease."""
    leave(tmp_path, "5", elsewhere(), age=100)
    with Leases(tmp_path, 30) as slow, Leases(tmp_path, 30) as fast:
        seen = slow._look(tmp_path / "5")
        assert seen is not None
        assert seen.stale
        assert fast.acquire("5")
        assert not slow._take_away(tmp_path / "5", seen)
        assert fast.mine("5")
        assert sorted(p.name for p in tmp_path.iterdir()) == [".clock", "5"]


def test_one_waits_for_a_lease_and_is_told_whose_it_is(tmp_path: Path) -> None:
    told: list[str] = []
    leave(tmp_path, "plan", elsewhere(), age=0.0)
    begin = time.monotonic()
    with Leases(tmp_path, 1.0) as leases:
        with leases.hold("plan", told.append):
            assert leases.mine("plan")
        assert not (tmp_path / "plan").exists()
    assert time.monotonic() - begin > 0.8
    assert told == ["process 1 on another-host"]


def test_stale_leases_are_swept_away(tmp_path: Path) -> None:
    leave(tmp_path, "1", elsewhere(), age=100)
    leave(tmp_path, "2", elsewhere())
    with Leases(tmp_path, 30) as leases:
        assert leases.acquire("3")
        leases.sweep()
        assert sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith(".")) == ["2", "3"]


def test_a_system_without_proc_goes_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "started", lambda pid: None)
    leave(tmp_path, "5", Owner(this_host(), 1 << 22, "1", "ab"))
    with Leases(tmp_path, 30) as leases:
        assert not leases.acquire("5")


@pytest.mark.parametrize("written", [None, 5])
def test_a_lease_that_a_full_disk_does_not_take_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int | None
) -> None:
    """Neither an empty file, which others would wait for, nor an open one."""

    def full(descriptor: int, data: bytes) -> int:
        if written is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return written

    with Leases(tmp_path, 30) as leases:
        before = len(list(Path("/proc/self/fd").iterdir()))
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "write", full)
            with pytest.raises(OSError, match="No space left on device"):
                leases.acquire("5")
        assert len(list(Path("/proc/self/fd").iterdir())) == before
        assert not (tmp_path / "5").exists()
        assert leases.acquire("5")
