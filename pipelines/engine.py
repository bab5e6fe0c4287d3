"""The local engine: units to worker processes, any worker, any order.

With one worker the units are done in this process. With more, each worker is a fresh process (spawn: torch and fork do not mix)
with a pipe of its own; it is given one unit at a time and sends back reports, and the commit record once the unit is committed.
Workers commit by themselves, so nothing is lost with the parent; a worker whose parent is gone leaves.

What can go wrong, and what follows:

* a transient error (time-out, memory, I/O) puts the unit aside; it is tried once more, alone, after all others, and if it fails
  again the run stops resumable;
* a worker that is killed stops the run resumable: everything committed stays, the same command goes on;
* any other error stops the run at once, with its message (a tokkit error) or its traceback (a fault in the program).
"""

from __future__ import annotations

import errno
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from tokkit.errors import ResumableStop, TokkitError, TransientError
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.unit import UnitJob, UnitProcessor
from tokkit.pipelines.work import Report, Work

TRANSIENT = (TransientError, OSError, MemoryError)
Done = Callable[[PlannedUnit, CommitRecord], None]


class WorkerError(Exception):
    """A programming error in a worker process; the message is its traceback."""


def run_units(job: UnitJob, units: Sequence[PlannedUnit], workers: int, report: Report, done: Done) -> None:
    """Do all units; returns when every one is committed.

    Args:
        report: called with the work done since the last call, from any worker.
        done: called once a unit is committed.

    Raises:
        ResumableStop: something outside of the data stood in the way; what is committed stays.
        TokkitError: a budget was exceeded, or a tokenizer cannot be loaded.
    """
    if not units:
        return
    if workers == 1:
        aside = _run_here(job, units, report, done)
    else:
        aside = _Pool(job, min(workers, len(units)), report, done).run(units)
    if aside:
        still = _run_here(job, [planned for planned, _ in aside], report, done)
        if still:
            planned, problem = still[0]
            more = f" (and {len(still) - 1} more units)" if len(still) > 1 else ""
            raise ResumableStop(
                f"{planned.unit.source}/{planned.unit.file} cannot be read or encoded just now{more}: {problem}\n"
                f"everything else is committed; run the same command again when the cause is gone"
            )


Aside = list[tuple[PlannedUnit, str]]


def _run_here(job: UnitJob, units: Sequence[PlannedUnit], report: Report, done: Done) -> Aside:
    """Do units in this process; returns those that met a transient error."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    aside: Aside = []
    try:
        processor = UnitProcessor(job)
        for planned in units:
            try:
                record = processor.process(planned, report)
            except TRANSIENT as error:
                _stop_if_full(error)
                aside.append((planned, _message(error)))
                continue
            done(planned, record)
    finally:
        torch.set_num_threads(threads)
    return aside


# ---- worker processes


@dataclass(frozen=True, slots=True)
class _Failed:
    """A unit that met an error. ``error`` is None for a programming error, of which only the traceback is kept."""

    transient: bool
    error: TokkitError | None
    message: str


def _work(job: UnitJob, connection: Connection, parent: int) -> None:
    """A worker's life: take a unit, do it, say so; leave when told to or when the parent is gone."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    try:
        processor = UnitProcessor(job)
        while (planned := connection.recv()) is not None:
            try:
                connection.send(processor.process(planned, connection.send))
            except TRANSIENT as error:
                _stop_if_full(error)
                connection.send(_Failed(True, None, _message(error)))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        return
    except TokkitError as error:
        connection.send(_Failed(False, _picklable(error), str(error)))
    except BaseException:
        connection.send(_Failed(False, None, traceback.format_exc()))


def _stop_if_full(error: BaseException) -> None:
    """No other unit fares better on a full or read-only disk: stop at once, rather than encode everything in vain."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        raise ResumableStop(
            f"{error.filename or 'the output'}: {error.strerror}; what is committed is safe, "
            f"run the same command again when there is space"
        ) from error


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def _message(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _picklable(error: TokkitError) -> TokkitError:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TokkitError(str(error))
    return error


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Ctrl-C reaches the whole process group: workers inherit that they ignore it, their parent ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _Pool:
    """Worker processes and what each is at."""

    def __init__(self, job: UnitJob, workers: int, report: Report, done: Done) -> None:
        self._job, self._count, self._report, self._done = job, workers, report, done
        self._workers: dict[Connection, BaseProcess] = {}
        self._at: dict[Connection, PlannedUnit] = {}
        self._aside: Aside = []

    def run(self, units: Sequence[PlannedUnit]) -> Aside:
        # The largest first: the last units to end are small ones.
        self._queue = deque(sorted(units, key=lambda p: (-p.unit.bytes, p.index)))
        context = get_context("spawn")
        try:
            for _ in range(self._count):
                mine, theirs = context.Pipe()
                process = context.Process(target=_work, args=(self._job, theirs, os.getpid()), daemon=True)
                with _no_interrupts():
                    process.start()
                theirs.close()
                self._workers[mine] = process
                self._give(mine)
            while self._at:
                for connection in wait(list(self._at)):
                    assert isinstance(connection, Connection)
                    self._receive(connection)
            return self._aside
        finally:
            self._end()

    def _give(self, connection: Connection) -> None:
        """Hand a worker its next unit, if there is one."""
        self._at.pop(connection, None)
        if self._queue:
            planned = self._queue.popleft()
            self._at[connection] = planned
            try:
                connection.send(planned)
            except BrokenPipeError:
                raise self._died(connection) from None

    def _receive(self, connection: Connection) -> None:
        try:
            message = connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died(connection) from None
        if isinstance(message, Work):
            self._report(message)
        elif isinstance(message, CommitRecord):
            self._done(self._at[connection], message)
            self._give(connection)
        elif message.transient:
            self._aside.append((self._at[connection], message.message))
            self._give(connection)
        elif message.error is not None:
            raise message.error
        else:
            raise WorkerError(f"in a worker process:\n{message.message}")

    def _died(self, connection: Connection) -> ResumableStop:
        process = self._workers[connection]
        process.join(timeout=5)
        unit = self._at[connection].unit
        code = process.exitcode
        how = f"was killed by signal {-code}" if code is not None and code < 0 else f"left with exit code {code}"
        return ResumableStop(
            f"a worker process {how} while it was at {unit.source}/{unit.file} (out of memory is a common cause)\n"
            f"everything committed is safe; run the same command again to go on, with fewer --workers if memory was short"
        )

    def _end(self) -> None:
        """Let idle workers go and stop the others."""
        for connection, process in self._workers.items():
            if connection not in self._at:
                try:
                    connection.send(None)
                    process.join(timeout=5)
                except OSError:
                    pass
            connection.close()
        for process in self._workers.values():
            if process.is_alive():
                process.terminate()
            process.join()
