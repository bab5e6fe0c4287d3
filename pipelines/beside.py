"""A job in a process of its own, beside what this one does meanwhile."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from tokkit.errors import TokkitError, TransientError
from tokkit.pipelines.progress import Progress, SilentProgress

C = TypeVar("C")
R = TypeVar("R")


@contextmanager
def beside(job: Callable[[C, Progress], R], config: C) -> Iterator[Callable[[], R]]:
    """Run ``job`` with ``config`` in another process, which says nothing of its progress.

    Yields:
        what waits for the job and gives its result. It raises what the job raised, or TransientError where the process died.
        Whoever leaves earlier ends the process.
    """
    context = multiprocessing.get_context("spawn")  # threads of this process must not be copied
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(sending, job, config), daemon=True)
    process.start()
    sending.close()

    def result() -> R:
        try:
            done, found = receiving.recv()
        except EOFError:
            process.join()
            raise TransientError(f"a process of its own for {job.__name__} ended with {process.exitcode}") from None
        if not done:
            raise found
        return found

    try:
        yield result
    finally:
        process.terminate()
        process.join()
        receiving.close()


def _run(sending: Connection, job: Callable[[Any, Progress], object], config: object) -> None:
    found: tuple[bool, object]
    try:
        found = True, job(config, SilentProgress())
    except TokkitError as error:
        found = False, error
    with suppress(BrokenPipeError):  # nobody waits any more
        sending.send(found)
