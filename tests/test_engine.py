"""The engine: whatever becomes of its workers, units are done or the run stops resumable, and it always comes to an end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_tasks import Memory, Toy, Unwilling, units

from tokkit.errors import ResumableStop
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.plan import PlannedUnit, Poison
from tokkit.pipelines.work import Work
from tokkit.pipelines.worker import Death, Worker, WorkerError, listen


def run(task: object, count: int, workers: int = 2, **options: object) -> dict[int, list[int]]:
    """Do the units of a task; their results by index, or what came of them before the run stopped."""
    results: dict[int, list[int]] = {}
    try:
        run_units(task, units(count), workers, lambda work: None, collector(results), **options)  # type: ignore[arg-type]
    except ResumableStop as stop:
        stop.results = results  # type: ignore[attr-defined]
        raise
    return results


def collector(results: dict[int, list[int]]) -> Callable[[PlannedUnit, list[int]], None]:
    return lambda planned, result: results.__setitem__(planned.index, result)


def begun(folder: Path, unit: int) -> int:
    """How often a unit was begun as a whole."""
    return len((folder / f"begun-{unit}").read_text().splitlines())


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit3", "exit0", "oserror"])
def test_a_worker_that_dies_is_replaced_and_its_unit_done(tmp_path: Path, how: str) -> None:
    memory = Memory()
    found = run(Toy(tmp_path, faults={(1, 7): f"once:{how}"}), 4, sharing=memory)
    assert found == {i: list(range(20)) for i in range(4)}
    assert [begun(tmp_path, i) for i in range(4)] == [1, 2, 1, 1]
    assert not memory.poison


@pytest.mark.parametrize("behind", [0, pytest.param(9, marks=pytest.mark.slow)])
def test_documents_that_kill_are_found_and_left_out(tmp_path: Path, behind: int) -> None:
    """Three in one unit, of which one is worked on only long after it was read."""
    faults = {(1, 3): "SIGSEGV", (1, 97): "SIGABRT", (1, 149): "exit9"}
    memory = Memory()
    found = run(Toy(tmp_path, documents=150, faults=faults, behind=behind), 3, sharing=memory)
    assert found.pop(1) == [i for i in range(150) if i not in (3, 97, 149)]
    assert found == {i: list(range(150)) for i in (0, 2)}
    assert memory.poison == {1: (Poison(3, "SIGSEGV"), Poison(97, "SIGABRT"), Poison(149, "exit code 9"))}
    assert begun(tmp_path, 1) == 4


def test_what_is_known_to_kill_is_not_tried_again(tmp_path: Path) -> None:
    known = [PlannedUnit(p.index, p.unit, None, (Poison(3, "SIGSEGV"),)) for p in units(1)]
    results: dict[int, list[int]] = {}
    run_units(Toy(tmp_path, faults={(0, 3): "SIGSEGV"}), known, 1, lambda work: None, collector(results))
    assert len(results[0]) == 19
    assert begun(tmp_path, 0) == 1


@pytest.mark.parametrize(
    ("how", "says"),
    [("SIGKILL", "was killed by SIGKILL"), pytest.param("hang", "gave no sign of life", marks=pytest.mark.slow)],
)
def test_memory_and_time_reject_nothing(tmp_path: Path, how: str, says: str) -> None:
    """The run does all else, then stops resumable, and names the document."""
    memory = Memory()
    with pytest.raises(
        ResumableStop, match=rf"source/file-1 .*{says} at document 4 of the unit, file-1#3, also when alone"
    ) as caught:
        run(Toy(tmp_path, faults={(1, 3): how}), 3, sharing=memory, stall_seconds=1)
    assert set(caught.value.results) == {0, 2}  # type: ignore[attr-defined]
    assert not memory.poison


def test_a_worker_that_hangs_once_is_replaced(tmp_path: Path) -> None:
    assert set(run(Toy(tmp_path, faults={(1, 7): "once:hang"}), 3, stall_seconds=1)) == {0, 1, 2}


def test_what_kills_while_it_is_read_cannot_be_left_out(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match=r"source/file-1 .*SIGSEGV at document 4 .*already while reading it"):
        run(Toy(tmp_path, faults={(1, 3): "SIGSEGV"}, when_read=True), 2)


def test_a_document_that_dies_in_different_ways_is_no_poison(tmp_path: Path) -> None:
    memory = Memory()
    faults = {(0, 3): "once:SIGABRT", (0, 5): "SIGKILL"}
    with pytest.raises(ResumableStop, match="document 6 "):
        run(Toy(tmp_path, faults=faults), 1, sharing=memory)
    assert not memory.poison


def test_a_transient_error_that_stays_stops_the_run_at_its_end(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match=r"source/file-1 .*Input/output error") as caught:
        run(Toy(tmp_path, faults={(1, 3): "oserror"}), 3)
    assert set(caught.value.results) == {0, 2}  # type: ignore[attr-defined]
    assert begun(tmp_path, 1) == 2


@pytest.mark.parametrize("how", ["SIGSEGV", "exit1"])
def test_workers_that_die_while_they_load_are_not_replaced_for_ever(tmp_path: Path, how: str) -> None:
    with pytest.raises(ResumableStop, match="end before they begin"):
        run(Toy(tmp_path, loading=how), 9)
    assert len((tmp_path / "loaded").read_text().splitlines()) <= 4


def test_a_machine_without_memory_is_left_soon(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match=r"in a row were killed by SIGKILL.*fewer --workers"):
        run(Toy(tmp_path, faults={(i, 0): "SIGKILL" for i in range(50)}), 50)
    assert len(list(tmp_path.glob("begun-*"))) <= 8


def test_too_much_poison_is_not_looked_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.pipelines.poison.PROBES", 12)
    with pytest.raises(ResumableStop, match="more documents than are looked for"):
        run(Toy(tmp_path, faults={(0, i): "SIGABRT" for i in range(20)}), 1)


def test_work_that_cannot_be_probed_stops_resumable(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match="cannot be tried document by document") as caught:
        run(Unwilling(), 3)
    assert set(caught.value.results) == {0, 2}  # type: ignore[attr-defined]


def test_silence_while_the_parent_was_suspended_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(Toy(tmp_path), stall_seconds=10)
    while not worker.ready:
        for one in listen([worker], 1.0):
            one.receive()
    worker.order = object()  # type: ignore[assignment]
    monotonic, jumps = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + jumps[0])

    def suspended(connections: object, seconds: float) -> list[object]:
        jumps[0] += 1000
        return []

    monkeypatch.setattr("tokkit.pipelines.worker.wait", suspended)
    listen([worker], 1.0)
    assert not worker.stalled()
    jumps[0] += 1000
    assert worker.stalled()
    worker.kill()


def test_the_largest_unit_is_begun_first_and_all_are_begun_once(tmp_path: Path) -> None:
    order: list[int] = []

    class Sharing(Memory):
        def take(self, planned: PlannedUnit):  # type: ignore[no-untyped-def]
            order.append(planned.index)
            return super().take(planned)

    run(Toy(tmp_path), 7, sharing=Sharing())
    assert order == list(range(7))  # units() makes the first the largest


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_ctrl_c_and_sigterm_leave_no_worker_behind(tmp_path: Path, number: str) -> None:
    """A worker that hangs in C would not see an exception: it is ended from outside, promptly."""
    program = f"""
        import os, signal, sys, threading, time
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from pathlib import Path
        from engine_tasks import Toy, units
        from tokkit.pipelines.engine import run_units

        def stop(*args):
            raise KeyboardInterrupt

        def soon():
            while len(list(Path({str(tmp_path)!r}).glob("begun-*"))) < 2:
                time.sleep(0.01)
            Path({str(tmp_path / "signalled")!r}).touch()
            os.kill(os.getpid(), signal.{number})

        if __name__ == "__main__":
            signal.signal(signal.SIGTERM, stop)
            threading.Thread(target=soon, daemon=True).start()
            task = Toy(Path({str(tmp_path)!r}), faults={{(0, 3): "hang", (1, 3): "hang"}})
            try:
                run_units(task, units(2), 2, lambda work: None, lambda planned, result: None)
            except KeyboardInterrupt:
                sys.exit(75)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    done = subprocess.run([sys.executable, tmp_path / "program.py"], check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode == 75, done.stderr
    assert time.time() - (tmp_path / "signalled").stat().st_mtime < 4.5
    for unit in (0, 1):
        assert not Path(f"/proc/{(tmp_path / f'begun-{unit}').read_text().strip()}").exists()


def test_a_worker_that_dies_before_it_has_read_its_task_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task of many sources is larger than a pipe takes: its parent must not wait for a reader that is no more."""
    from multiprocessing import popen_spawn_posix

    def dies_at_once(path: bytes, arguments: list[bytes], descriptors: list[int]) -> int:
        return int(spawn(b"/bin/true", [b"true"], descriptors))

    spawn = popen_spawn_posix.util.spawnv_passfds  # type: ignore[attr-defined]
    monkeypatch.setattr(popen_spawn_posix.util, "spawnv_passfds", dies_at_once)  # type: ignore[attr-defined]
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    faults = {(0, position): "SIGSEGV" + " " * 100 for position in range(10_000)}
    heard: list[object] = []
    thread = threading.Thread(target=lambda: heard.append(Worker(Toy(tmp_path, faults=faults), 5).receive()), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert heard == [Death("exit code 0")]
    assert not list(tmp_path.glob("tokkit-task-*"))


def test_an_eof_error_of_the_work_is_a_fault_of_the_program_and_no_poison(tmp_path: Path) -> None:
    """It must not be taken for the end of the pipe: the worker would leave, and the document be blamed."""
    memory = Memory()
    with pytest.raises(WorkerError, match="EOFError: Compressed file ended"):
        run(Toy(tmp_path, faults={(0, 7): "eoferror"}), 2, sharing=memory)
    assert not memory.poison


def test_an_io_error_while_a_worker_loads_leaves_the_run_resumable(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match=r"cannot load what it needs: .*Input/output error"):
        run(Toy(tmp_path, loading="oserror"), 2)


def test_a_long_command_line_does_not_hold_up_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import popen_spawn_posix

    def dies_at_once(path: bytes, arguments: list[bytes], descriptors: list[int]) -> int:
        return int(spawn(b"/bin/true", [b"true"], descriptors))

    spawn = popen_spawn_posix.util.spawnv_passfds  # type: ignore[attr-defined]
    monkeypatch.setattr(popen_spawn_posix.util, "spawnv_passfds", dies_at_once)  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "argv", ["tokkit", "shard", *(f"corpus/{n:060d}.tar" for n in range(5000))])
    heard: list[object] = []
    thread = threading.Thread(target=lambda: heard.append(Worker(Toy(tmp_path), 5).receive()), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert heard == [Death("exit code 0")]
    assert len(sys.argv) == 5002


def test_a_process_that_has_closed_its_pipe_and_does_not_end_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokkit.pipelines.worker.ENDING_SECONDS", 1.0)
    worker = Worker(Toy(tmp_path, loading="deaf"), 5)
    heard: list[object] = []
    thread = threading.Thread(target=lambda: heard.append(worker.receive()), daemon=True)
    thread.start()
    thread.join(timeout=30)
    assert heard == [Death("hang")]
    assert not worker._process.is_alive()


@pytest.mark.parametrize("where", ["pickle", "start"])
def test_a_worker_that_cannot_be_started_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def fails(process: object) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    if where == "start":
        monkeypatch.setattr("tokkit.pipelines.worker.start", fails)
    task = Toy(tmp_path, faults={(0, 0): "exit3"} if where == "start" else {(0, 0): lambda: None})  # type: ignore[dict-item]
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(BlockingIOError if where == "start" else Exception, match=r"unavailable|pickle"):
        Worker(task, 5)
    assert not list(tmp_path.iterdir())
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(("workers", "fault"), [(0, "once:oserror"), (2, "once:oserror"), (2, "once:SIGSEGV"), (2, "SIGSEGV")])
def test_work_that_came_to_nothing_is_taken_back(tmp_path: Path, workers: int, fault: str) -> None:
    """What was reported less what was lost is what was done: whole units, whatever died and was tried in between."""
    reported, lost = Work(), Work()
    results: dict[int, list[int]] = {}
    task = Toy(tmp_path, faults={(1, 7): fault})
    run_units(task, units(3), workers, reported.add, collector(results), lost=lost.add)
    assert set(results) == {0, 1, 2}
    assert reported.without(lost).documents == 60
    assert lost.documents > 0


def test_what_is_told_of_the_other_units_is_the_callers_word(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match=r"(?s)source/file-1.*\nall else is counted; run the same command"):
        run(Toy(tmp_path, faults={(1, 3): "oserror"}), 3, rest="all else is counted")
