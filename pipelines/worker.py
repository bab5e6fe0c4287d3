"""A worker process: how it lives, and what its parent sees of it.

It is a fresh process (spawn: torch and fork do not mix) with a pipe of its own. It loads what the task needs, says that it is
ready, is given an order, and sends back amounts of work and then the result. Workers commit by themselves, so nothing is lost
with the parent; a worker whose parent is gone leaves.
"""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import mkstemp
from typing import Generic, Protocol

from tokkit.errors import ResumableStop, TokkitError, TransientError
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.task import ProbingWork, Result, UnitTask, UnitWork
from tokkit.pipelines.work import Report, Work

TRANSIENT = (TransientError, OSError, MemoryError)
LOADING_SECONDS = 300.0  # that a worker may take to load, at least: it cannot tell how far it is
ENDING_SECONDS = 5.0  # that a process may take to end
OF_THE_SAMPLE = {"SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL"}


class WorkerError(Exception):
    """A programming error in a worker process; the message is its traceback."""


# ---- what goes over the pipe


@dataclass(frozen=True, slots=True)
class Do:
    """Do this unit."""

    planned: PlannedUnit


@dataclass(frozen=True, slots=True)
class Probe:
    """Try the documents at ``[first, last)`` of this unit."""

    planned: PlannedUnit
    first: int
    last: int


Order = Do | Probe


@dataclass(frozen=True, slots=True)
class Ready:
    """Everything is loaded."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[Result]):
    """The order is carried out; of a probe the result is its number of documents."""

    result: Result


@dataclass(frozen=True, slots=True)
class Failed:
    """An error. ``error`` is None for a programming error, of which only the traceback is kept."""

    transient: bool
    error: TokkitError | None
    message: str


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that is no more; ``cause`` is a signal's name, ``exit code N``, or ``hang``."""

    cause: str

    @property
    def of_the_sample(self) -> bool:
        """Whether the cause is of a kind that a sample has; the others (memory, time) say nothing of it."""
        return self.cause in OF_THE_SAMPLE or self.cause.startswith("exit code")

    def __str__(self) -> str:
        if self.cause == "hang":
            return "gave no sign of life"
        return f"left with {self.cause}" if self.cause.startswith("exit") else f"was killed by {self.cause}"


LOST = Death("the loss of its node, or of its actor")  # of a worker elsewhere; it says nothing of what it was at
LEFT_ALONE = Death("the loss of the encoder beside it")  # likewise; whoever keeps the encoder up says when it is too often

Message = Ready | Work | Finished[Result] | Failed | Death


# ---- in the worker


def _work(task_file: str, connection: Connection, parent: int) -> None:
    """A worker's life: take an order, carry it out, say so; leave when told to or when the parent is gone."""
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # for torch, where the task loads it
    try:
        task = pickle.loads(Path(task_file).read_bytes())
        Path(task_file).unlink(missing_ok=True)
        work = _opened(task)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        # What is loaded stays, and documents are freed by their reference counts: the collector need not look often.
        gc.freeze()
        gc.set_threshold(20_000, 20, 20)
        _tell(connection, Ready())
        while (order := _hear(connection)) is not None:
            _tell(connection, _carried_out(work, order, lambda amounts: _tell(connection, amounts)))
    except (_ParentIsGoneError, KeyboardInterrupt):
        return
    except TokkitError as error:
        connection.send(Failed(False, picklable(error), str(error)))
    except BaseException:
        connection.send(Failed(False, None, traceback.format_exc()))


class _ParentIsGoneError(Exception):
    """The pipe is closed. An error of its own: an EOFError or a ConnectionError may as well be the work's."""


def _hear(connection: Connection) -> Order | None:
    try:
        order: Order | None = connection.recv()
    except (EOFError, ConnectionError):
        raise _ParentIsGoneError from None
    return order


def _tell(connection: Connection, message: object) -> None:
    try:
        connection.send(message)
    except ConnectionError:
        raise _ParentIsGoneError from None


def _opened(task: UnitTask[Result]) -> UnitWork[Result]:
    """Load what the task needs; what stands in the way of that from outside stops the run resumable."""
    try:
        return task.open()
    except TRANSIENT as error:
        stop_if_full(error)
        raise ResumableStop(
            f"a worker cannot load what it needs: {message_of(error)}; what is committed is safe, run the same command again "
            f"when the cause is gone"
        ) from error


def _carried_out(work: UnitWork[Result], order: Order, report: Report) -> Finished[Result] | Finished[int] | Failed:
    try:
        if isinstance(order, Do):
            return Finished(work.process(order.planned, report))
        if isinstance(work, ProbingWork):
            return Finished(work.probe(order.planned, report, order.first, order.last))
    except TRANSIENT as error:
        stop_if_full(error)
        return Failed(True, None, message_of(error))
    return Failed(True, None, "this kind of work cannot be tried document by document")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def stop_if_full(error: BaseException) -> None:
    """No other unit fares better on a full or read-only disk: stop at once, rather than encode everything in vain."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        again = "it can be written to" if error.errno == errno.EROFS else "there is space"
        raise ResumableStop(
            f"{error.filename or 'the output'}: {os.strerror(error.errno)}; what is committed is safe, "
            f"run the same command again when {again}"
        ) from error


def message_of(error: BaseException) -> str:
    """An exception's message, or its name where it has none."""
    return str(error) or type(error).__name__


def picklable(error: TokkitError) -> TokkitError:
    """An error that can go over a pipe."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TokkitError(str(error))
    return error


# ---- in the parent


class AnyWorker(ABC, Generic[Result]):
    """A worker, seen from its parent, wherever it is.

    Attributes:
        order: what it is at; None while it loads or waits.
        ready: it has loaded.
        told: the work that it has reported of its order, or, once that is carried out or it has died, of the last one.
        heard: monotonic time of the last sign of life.
    """

    def __init__(self, stall_seconds: float) -> None:
        self.order: Order | None = None
        self.ready = False
        self.told = Work()
        self.heard = time.monotonic()
        self._stall_seconds = stall_seconds

    @property
    def documents(self) -> int:
        """That it has taken of its order, as far as it has told."""
        return self.told.documents

    def give(self, order: Order) -> None:
        """Have it carry out an order."""
        self.order, self.told, self.heard = order, Work(), time.monotonic()
        self._send(order)

    def stalled(self) -> bool:
        """Whether it should have been heard of."""
        if self.ready and self.order is None:
            return False
        limit = self._stall_seconds if self.ready else max(self._stall_seconds, LOADING_SECONDS)
        return time.monotonic() - self.heard > limit

    def _note(self, message: Message[Result]) -> Message[Result]:
        """Keep what a message says of the worker."""
        self.heard = time.monotonic()
        if isinstance(message, Ready):
            self.ready = True
        elif isinstance(message, Work):
            self.told.add(message)
        elif not isinstance(message, Death):
            self.order = None
        return message

    @abstractmethod
    def _send(self, order: Order) -> None: ...

    @abstractmethod
    def receive(self) -> Message[Result]:
        """The next message; waits for it."""

    @abstractmethod
    def kill(self) -> Death:
        """End it at once."""

    @abstractmethod
    def leave(self) -> None:
        """Ask it to leave, if it waits for an order; else have it stop at once."""

    @abstractmethod
    def bury(self) -> None:
        """Wait for the end of one that was told to leave, not for ever."""


class Hosting(Protocol):
    """Where workers live."""

    def worker(self, task: UnitTask[Result], stall_seconds: float) -> AnyWorker[Result]:
        """A new worker, which begins to load."""

    def listen(self, workers: Sequence[AnyWorker[Result]], seconds: float) -> list[AnyWorker[Result]]:
        """Wait until some of these have said something, at most so long; returns these."""


class Worker(AnyWorker[Result]):
    """A worker process of this one."""

    def __init__(self, task: UnitTask[Result], stall_seconds: float) -> None:
        super().__init__(stall_seconds)
        context = get_context("spawn")
        self.connection, theirs = context.Pipe()
        # Not as an argument: multiprocessing writes these into a pipe whose other end it holds itself, and where they are more
        # than the pipe takes and the worker is killed before it reads them, it would wait for ever.
        descriptor, self._task_file = mkstemp(prefix="tokkit-task-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                pickle.dump(task, file)
            self._process = context.Process(target=_work, args=(self._task_file, theirs, os.getpid()), daemon=True)
            start(self._process)
        except BaseException:
            self._remove_task_file()
            self.connection.close()
            raise
        finally:
            theirs.close()
        self.heard = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.is_alive()

    def _send(self, order: Order) -> None:
        with suppress(BrokenPipeError):  # it has died: the next look at the pipe says so
            self.connection.send(order)

    def receive(self) -> Message[Result]:
        try:
            message: Message[Result] = self.connection.recv()
        except (EOFError, OSError):  # OSError: it died in the middle of a message
            return self._buried()
        return self._note(message)

    def kill(self) -> Death:
        self._process.kill()
        self._buried()
        return Death("hang")

    def _remove_task_file(self) -> None:
        Path(self._task_file).unlink(missing_ok=True)

    def _buried(self) -> Death:
        """Of one whose end of the pipe is closed."""
        self._remove_task_file()
        self.connection.close()
        return Death("hang") if end(self._process) else death_of(self._process.exitcode or 0)

    def leave(self) -> None:
        if self.connection.closed:
            return
        if self.ready and self.order is None:
            with suppress(OSError):
                self.connection.send(None)
        else:
            self._process.terminate()
        self.connection.close()

    def bury(self) -> None:
        self._remove_task_file()
        end(self._process)


def end(process: BaseProcess) -> bool:
    """Wait for the end of a process, not for ever: one that does not come to it is killed. Returns whether it was.

    One that even a kill does not end now, because it waits for a device, is left to end when it can.
    """
    if _ended(process):
        return False
    process.kill()
    _ended(process)
    return True


def _ended(process: BaseProcess) -> bool:
    """Wait for a while; not by ``join``, which waits without limit for a process that has closed all its files."""
    latest = time.monotonic() + ENDING_SECONDS
    wait([process.sentinel], ENDING_SECONDS)
    while process.is_alive():
        if time.monotonic() > latest:
            return False
        time.sleep(0.01)
    return True


def death_of(code: int) -> Death:
    """What a process died of, by its exit code (that of a signal is negative)."""
    if code >= 0:
        return Death(f"exit code {code}")
    try:
        return Death(signal.Signals(-code).name)
    except ValueError:  # a real-time signal
        return Death(f"signal {-code}")


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


def start(process: BaseProcess) -> None:
    """Start a process that ignores Ctrl-C, without this one's arguments.

    multiprocessing writes these too into the pipe that it holds both ends of (see :class:`Worker`), and they may be the names
    of thousands of files.
    """
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        with _no_interrupts():
            process.start()
    finally:
        sys.argv = arguments


def listen(workers: Sequence[Worker[Result]], seconds: float) -> list[Worker[Result]]:
    """Wait until some have said something, at most so long; returns these.

    Where this process itself was suspended meanwhile, and its workers with it, their silence does not count.
    """
    begin = time.monotonic()
    heard = set(wait([worker.connection for worker in workers], seconds))
    overslept = time.monotonic() - begin - seconds
    if overslept > 1:
        for worker in workers:
            worker.heard += overslept
    return [worker for worker in workers if worker.connection in heard]


class Processes:
    """Workers are processes of this one."""

    def worker(self, task: UnitTask[Result], stall_seconds: float) -> AnyWorker[Result]:
        return Worker(task, stall_seconds)

    def listen(self, workers: Sequence[AnyWorker[Result]], seconds: float) -> list[AnyWorker[Result]]:
        mine = [worker for worker in workers if isinstance(worker, Worker)]
        return [*listen(mine, seconds)]


def carry_out(worker: Worker[Result], order: Order, report: Report) -> Finished[Result] | Failed | Death:
    """Have one worker carry out one order, and wait for the outcome."""
    given = False
    while True:
        if worker.ready and not given:
            worker.give(order)
            given = True
        for _ in listen([worker], 1.0):
            message = worker.receive()
            if isinstance(message, Work):
                report(message)
            elif not isinstance(message, Ready):
                return message
        if worker.stalled():
            return worker.kill()


def raise_error(message: object) -> None:
    """Raise what a worker reported as an error that is not transient."""
    if isinstance(message, Failed):
        if message.error is not None:
            raise message.error
        raise WorkerError(f"in a worker process:\n{message.message}")
