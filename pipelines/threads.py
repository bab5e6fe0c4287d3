"""How many threads torch uses: one where many processes work side by side, or whichever number is faster just now.

On a machine of its own a training step gains from every core. Beside other processes it may lose tenfold: OpenMP's threads
wait for one another, and each of them may be waiting for a core. So the choice is measured while the work goes on, and measured
again now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

WINDOW_SECONDS = 0.7  # of one measurement
WINDOW_STEPS = 2  # at least
RECHECK = 20  # windows of the faster choice between two looks at the other


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for torch, where it is loaded: rounding depends on their number, and workers share the cores."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class ThreadChooser:
    """Decides after each step how many threads the next one gets.

    Args:
        choices: numbers of threads, the first to be tried first; a single one is simply kept.
        apply: called with a number of threads to put it in force.
        clock: seconds, for tests.
    """

    def __init__(
        self, choices: Sequence[int], apply: Callable[[int], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._choices, self._apply, self._clock = list(dict.fromkeys(choices)), apply, clock
        self._rates: dict[int, float] = {}
        self._windows = 0
        self._use(self._choices[0])

    def stepped(self) -> None:
        """Tell that a step is done."""
        self._steps += 1
        elapsed = self._clock() - self._begin
        if len(self._choices) == 1 or elapsed < WINDOW_SECONDS or self._steps < WINDOW_STEPS:
            return
        self._rates[self.threads] = self._steps / elapsed
        self._windows += 1
        untried = [choice for choice in self._choices if choice not in self._rates]
        best = max(self._rates, key=lambda choice: self._rates[choice])
        if untried:
            self._use(untried[0])
        elif self.threads == best and self._windows >= RECHECK:
            self._windows = 0
            others = [choice for choice in self._choices if choice != best]
            self._use(others[0])
        else:
            self._use(best)

    def _use(self, threads: int) -> None:
        self.threads = threads
        self._apply(threads)
        self._steps, self._begin = 0, self._clock()
