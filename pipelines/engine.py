"""The local engine: units to worker processes, any worker, any order, whatever becomes of the workers.

The units of a run go through a pool of worker processes (:mod:`tokkit.pipelines.pool`). With ``workers`` 0 they are done in
this process instead, for debugging: then nothing outlives a crash. What can go wrong, and what follows:

* a transient error (time-out, memory, I/O) puts the unit aside; it is tried once more, alone, after all others, and if it fails
  again the run stops resumable;
* a worker that dies is replaced, one that says nothing of its progress for ``stall_seconds`` is killed and replaced; the unit
  is tried again, and after its second death it is examined alone (:mod:`tokkit.pipelines.poison`): a document that kills each
  time is left out as poison, anything else leaves the run resumable;
* units that other processes are at (:mod:`tokkit.pipelines.leases`) are left to them, and taken over where these have died;
* a full or read-only disk stops the run at once, resumable; everything committed stays;
* any other error stops the run at once, with its message (a tokkit error) or its traceback (a fault in the program).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from tokkit.errors import ResumableStop
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.poison import Examiner
from tokkit.pipelines.pool import Pool, Trouble, UnitQueue
from tokkit.pipelines.task import Alone, Result, Service, Sharing, UnitTask, UnitWork
from tokkit.pipelines.threads import one_thread
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.worker import TRANSIENT, Hosting, WorkerError, message_of, stop_if_full

__all__ = ["STALL_SECONDS", "UnitTask", "UnitWork", "WorkerError", "run_units"]

STALL_SECONDS = 300.0
REST = "everything else is committed"
SHOWN = 10  # units that a message names


def run_units(
    task: UnitTask[Result],
    units: Sequence[PlannedUnit],
    workers: int,
    report: Report,
    done: Callable[[PlannedUnit, Result], None],
    *,
    sharing: Sharing[Result] | None = None,
    stall_seconds: float = STALL_SECONDS,
    service: Service | None = None,
    alone: UnitTask[Result] | None = None,
    lost: Report = lambda work: None,
    rest: str = REST,
    hosting: Hosting | None = None,
) -> None:
    """Do all units; returns when every one is done.

    Args:
        task: what is to be done with each.
        workers: processes; 0 does the units in this one.
        report: called with the work done since the last call, from any worker.
        done: called with a unit and its result once it is done, here or elsewhere (a task that commits has committed by then).
        sharing: where other processes are at work on the same units.
        stall_seconds: a worker that says nothing of its progress for so long is taken to hang.
        service: what the task needs beside its workers; it is closed once these are through.
        alone: does the same as the task, without the service: for units that are put aside, so that it is their own process
            which dies of them.
        lost: called with the work of an attempt that came to nothing, all of which had been reported: it is done again, or
            was only a probe.
        hosting: where the workers live, if not here (:mod:`tokkit.pipelines.ray_workers`); units that are put aside are
            examined here in any case.
        rest: what is to be told of all other units where some cannot be done.

    Raises:
        ResumableStop: something outside of the data stood in the way; what is committed stays.
        TokkitError: a budget was exceeded, or a tokenizer cannot be loaded.
    """
    if not units:
        return
    sharing, alone = sharing or Alone(), alone or task
    queue = UnitQueue(units, sharing, done)
    undone: list[tuple[PlannedUnit, str]] = []
    if workers == 0:
        undone = _run_here(alone, queue, report, lost)
    else:
        troubles = Pool(task, min(workers, len(units)), queue, report, lost, stall_seconds, service, hosting).run()
        if service is not None:
            service.close()
        for trouble in troubles:
            if queue.done_elsewhere(trouble.planned):
                continue
            outcome = Examiner(alone, sharing, report, lost, stall_seconds, trouble).settle()
            if not isinstance(outcome, str):
                queue.done(trouble.planned, outcome.result)
            elif not queue.done_elsewhere(trouble.planned):
                undone.append((trouble.planned, outcome))
    if undone:
        raise ResumableStop(_told(undone, rest))


def _told(undone: list[tuple[PlannedUnit, str]], rest: str) -> str:
    lines = [
        f"{planned.unit.source}/{planned.unit.file} cannot be read or encoded just now: {problem}"
        for planned, problem in undone[:SHOWN]
    ]
    if len(undone) > SHOWN:
        lines.append(f"(and {len(undone) - SHOWN} more units)")
    lines.append(f"{rest}; run the same command again when the cause is gone")
    return "\n".join(lines)


def _run_here(task: UnitTask[Result], queue: UnitQueue[Result], report: Report, lost: Report) -> list[tuple[PlannedUnit, str]]:
    """Do units in this process; returns those that met a transient error twice, and the error."""
    work = task.open()
    with one_thread():
        aside: list[Trouble] = []
        while len(queue):
            planned = queue.next()
            if planned is None:
                time.sleep(queue.poll_seconds)
            elif (problem := _try(work, planned, queue, report, lost)) is not None:
                aside.append(Trouble(planned, problem))
        again = [(trouble.planned, _try(work, trouble.planned, queue, report, lost)) for trouble in aside]
        return [(planned, problem) for planned, problem in again if problem is not None]


def _try(work: UnitWork[Result], planned: PlannedUnit, queue: UnitQueue[Result], report: Report, lost: Report) -> str | None:
    """Do a unit; the message of a transient error, or None."""
    told = Work()

    def hear(amounts: Work) -> None:
        told.add(amounts)
        report(amounts)

    try:
        result = work.process(planned, hear)
    except TRANSIENT as error:
        stop_if_full(error)
        lost(told)
        return None if queue.done_elsewhere(planned) else message_of(error)
    queue.done(planned, result)
    return None
