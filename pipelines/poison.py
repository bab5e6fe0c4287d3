"""Finding the document that kills the process which works on it.

A unit whose worker died or hung twice is done once more alone, with nothing beside it that could have taken its memory. If its
worker dies again, fresh processes try ranges of its documents, from where the worker was when it died: ranges that grow, then
halves of a range that kills, down to single documents. Each of these is tried alone twice more.

* It dies each time, and each time in the same way, one that a sample has (a fault, an abort, an exit): the document is poison.
  That is written down, the unit is done without it, and it becomes a reject.
* It was killed (as the kernel does for lack of memory) or hung: that says nothing of the sample. The unit stays undone, and the
  run stops resumable once everything else is done.
* Reading on beyond it kills too: then it cannot be left out, and the unit stays undone.

All of this is bounded: :data:`ROUNDS` times a unit, :data:`PROBES` processes a unit.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Generic

from tokkit.pipelines.plan import PlannedUnit, Poison
from tokkit.pipelines.pool import Trouble
from tokkit.pipelines.task import Result, Sharing, UnitTask
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.worker import Death, Do, Failed, Finished, Probe, Worker, carry_out, raise_error

ROUNDS = 3  # times that a unit is tried alone, each but the first without what was found to be poison
PROBES = 500  # ranges and documents of a unit that are tried
FIRST_RANGE = 64  # documents; each range is twice as long as the one before
BEFORE = 1024  # documents that may have waited, taken but not written, when the worker died
ALONE = 2  # further times that a document which killed is tried


class _GiveUpError(Exception):
    """No more can be found out; the message says what is known."""


class Examiner(Generic[Result]):
    """Does a unit that was put aside, alone, and finds out what it dies of.

    Args:
        trouble: the unit, and what became of it before.
        report, lost: called with the work done and with that which came to nothing, as ever; that of a probe always does.
    """

    def __init__(
        self,
        task: UnitTask[Result],
        sharing: Sharing[Result],
        report: Report,
        lost: Report,
        stall_seconds: float,
        trouble: Trouble,
    ) -> None:
        self._task, self._sharing, self._stall_seconds = task, sharing, stall_seconds
        self._told, self._lost, self._at = report, lost, ""
        self._planned: PlannedUnit = trouble.planned
        self._worker: Worker[Result] | None = None
        self._documents = self._probes = 0  # documents that the last worker had taken; probes so far
        self._death = Death("hang")  # the last one

    def _report(self, work: Work) -> None:
        self._at = work.at
        self._told(work)

    def settle(self) -> Finished[Result] | str:
        """Do the unit after all.

        Returns:
            its result, or why it cannot be done just now.
        """
        try:
            for _ in range(ROUNDS):
                outcome = self._carry_out(Do(self._planned), fresh=True)
                if isinstance(outcome, Finished):
                    return outcome
                if isinstance(outcome, Failed):
                    return outcome.message
                known = len(self._planned.poison)
                self._search(self._documents)
                if len(self._planned.poison) == known:
                    return f"its worker {outcome} each time, though no document of it does that alone"
            return f"its worker {self._death} again and again"
        except _GiveUpError as known_so_far:
            return str(known_so_far)
        finally:
            self._close()

    def _close(self) -> None:
        if self._worker is not None:
            self._worker.leave()
            self._worker.bury()
            self._worker = None

    def _carry_out(self, order: Do | Probe, *, fresh: bool) -> Finished[Result] | Failed | Death:
        """Have a worker carry out an order: a new one where the last has died, or where ``fresh`` asks for it."""
        if fresh:
            self._close()
        worker = self._worker = self._worker or Worker(self._task, self._stall_seconds)
        outcome = carry_out(worker, order, self._report)
        self._documents = worker.documents
        if isinstance(order, Probe) or not isinstance(outcome, Finished):
            self._lost(worker.told)
        if isinstance(outcome, Death):
            self._worker, self._death = None, outcome
        elif isinstance(outcome, Failed) and not outcome.transient:
            raise_error(outcome)
        return outcome

    # ---- the search

    def _search(self, documents: int) -> None:
        """Look through the unit from where its worker died; where that finds nothing, through what stands before."""
        known, begin = len(self._planned.poison), max(0, documents - BEFORE)
        self._ranges(begin, None)
        if len(self._planned.poison) == known:
            self._ranges(0, begin)

    def _ranges(self, first: int, end: int | None) -> None:
        """Try ranges that grow, up to ``end`` or the unit's end, and look closely at those that kill."""
        size = FIRST_RANGE
        while end is None or first < end:
            last = first + size if end is None else min(first + size, end)
            count = self._probe(first, last)
            if count is None:
                self._halves(first, last)
            elif count < last - first:
                return  # the unit ends here
            first, size = last, size * 2

    def _halves(self, first: int, last: int) -> None:
        """A range that kills: which of its documents do?"""
        if last - first == 1:
            self._single(first)
            return
        # The likeliest is the one that was being taken in; but it may be one before it, whose turn came just then.
        taken = min(max(first, self._documents), last - 1)
        if not self._dies(taken, taken + 1):
            middle = (first + taken + 1) // 2
            for begin, end in ((first, middle), (middle, taken)):
                if begin < end:
                    self._dies(begin, end)
        if taken + 1 < last:
            self._dies(taken + 1, last)

    def _dies(self, first: int, last: int) -> bool:
        """Try a range, and where it kills look for what does; whether it killed."""
        if self._probe(first, last) is not None:
            return False
        self._halves(first, last)
        return True

    def _single(self, position: int) -> None:
        """A document that killed: does it each time, in the same way, and can the unit be read on without it?"""
        causes = {self._death.cause}
        for _ in range(ALONE if self._death.of_the_sample else 1):
            if self._probe(position, position + 1, fresh=True) is not None:
                return  # not by itself
            causes.add(self._death.cause)
        death = self._death
        if self._probe(position + 1, position + 1) is None:
            raise _GiveUpError(f"the worker {death} at document {position + 1:,} of the unit, already while reading it")
        if len(causes) > 1 or not death.of_the_sample:
            raise _GiveUpError(f"the worker {death} at document {position + 1:,} of the unit, {self._at}, also when alone")
        poison = Poison(position, min(causes))
        self._planned = replace(self._planned, poison=tuple(sorted((*self._planned.poison, poison), key=lambda p: p.position)))
        self._sharing.poisoned(self._planned)

    def _probe(self, first: int, last: int, *, fresh: bool = False) -> int | None:
        """Try a range, without what is poison already; the number of documents in it, or None where it kills."""
        self._probes += 1
        if self._probes > PROBES:
            raise _GiveUpError(f"its worker {self._death} at more documents than are looked for ({PROBES} tries)")
        outcome = self._carry_out(Probe(self._planned, first, last), fresh=fresh)
        if isinstance(outcome, Death):
            return None
        if isinstance(outcome, Failed):
            raise _GiveUpError(outcome.message)
        assert isinstance(outcome.result, int)
        return outcome.result
