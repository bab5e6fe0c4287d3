"""Progress that one can watch in a terminal and read in a log file.

Everything goes to standard error, so that standard output stays machine-readable. In a terminal a live rich display shows one
bar a task; elsewhere (a file, a batch system) each task writes a plain line now and then, at growing intervals, and one at its
end. Jobs are given a :class:`Progress` and never look at the terminal themselves.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Task(ABC):
    """One bar: a quantity that grows to ``total`` (unknown: None) and some named figures beside it."""

    @abstractmethod
    def advance(self, amount: float = 1) -> None:
        """Add to what is done."""

    @abstractmethod
    def fields(self, **values: str) -> None:
        """Replace or add figures shown beside the bar."""

    @abstractmethod
    def total(self, total: float) -> None:
        """Set what the whole is, once it is known."""


class Progress(ABC):
    """Where a job tells how far it is."""

    @abstractmethod
    def log(self, message: str) -> None:
        """One line that stays."""

    @abstractmethod
    def start(self, name: str, total: float | None, unit: str) -> Task:
        """Begin a task; use :meth:`task`, which also ends it."""

    @abstractmethod
    def finish(self, task: Task) -> None:
        """End a task."""

    @contextmanager
    def task(self, name: str, total: float | None = None, unit: str = "") -> Iterator[Task]:
        """A task for the length of a ``with`` block."""
        task = self.start(name, total, unit)
        try:
            yield task
        finally:
            self.finish(task)


class SilentProgress(Progress):
    """Says nothing: for tests and for use as a library."""

    class _Task(Task):
        def advance(self, amount: float = 1) -> None:
            pass

        def fields(self, **values: str) -> None:
            pass

        def total(self, total: float) -> None:
            pass

    def log(self, message: str) -> None:
        pass

    def start(self, name: str, total: float | None, unit: str) -> Task:
        return self._Task()

    def finish(self, task: Task) -> None:
        pass


def duration(seconds: float) -> str:
    """``41 s``, ``3:07 min`` or ``2:15 h``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02d} h"


def amount(value: float, scale: float) -> str:
    """A number for people: whole, but with decimals where the whole of it (``scale``) is a small fraction."""
    if scale >= 10 or float(scale).is_integer():
        return f"{value:,.0f}"
    return f"{value:.2f}"


def write_line(out: TextIO, line: str) -> None:
    """Write a line, or nothing where nobody reads it any more: work must not fail because its progress is not watched."""
    with suppress(OSError, ValueError):
        out.write(line + "\n")
        out.flush()


class LineTask(Task):
    """A task that reports in plain lines: the first after ``every`` seconds, later ones at most ``every`` seconds apart."""

    def __init__(self, out: TextIO, name: str, total: float | None, unit: str, every: float) -> None:
        self._out, self._name, self._total, self._unit = out, name, total, unit
        self._every = every
        self._begin = self._last = time.monotonic()
        self._done = 0.0
        self._values: dict[str, str] = {}

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._last >= self._every:
            self._last = now
            self.write()

    def fields(self, **values: str) -> None:
        self._values.update(values)

    def total(self, total: float) -> None:
        self._total = total

    def write(self, last: bool = False) -> None:
        """One line: how much of what, the figures, elapsed and expected time."""
        elapsed = time.monotonic() - self._begin
        unit = f" {self._unit}" if self._unit else ""
        if self._total:
            share = 100 * self._done / self._total
            done = f"{amount(self._done, self._total)}/{amount(self._total, self._total)}{unit} ({share:.0f} %)"
            parts = [f"{share:.0f} %" if self._unit == "%" else done]
        else:
            parts = [f"{amount(self._done, self._done)}{unit}"]
        parts += [f"{k} {v}" for k, v in self._values.items()]
        parts.append(f"{duration(elapsed)} elapsed")
        if not last and self._total and self._done:
            parts.append(f"{duration(elapsed * (self._total / self._done - 1))} left")
        write_line(self._out, f"{self._name}: {', '.join(parts)}")


class LineProgress(Progress):
    """Plain lines, for logs and pipes.

    Args:
        out: where to write (standard error by default).
        every: seconds between two lines of one task.
    """

    def __init__(self, out: TextIO | None = None, every: float = 10.0) -> None:
        self._out = out or sys.stderr
        self._every = every

    def log(self, message: str) -> None:
        write_line(self._out, message)

    def start(self, name: str, total: float | None, unit: str) -> Task:
        return LineTask(self._out, name, total, unit, self._every)

    def finish(self, task: Task) -> None:
        if isinstance(task, LineTask):
            task.write(last=True)


class _BarTask(Task):
    def __init__(self, bars: RichProgress, task_id: TaskID, name: str) -> None:
        self.bars, self.id, self.name = bars, task_id, name
        self._values: dict[str, str] = {}

    def advance(self, amount: float = 1) -> None:
        self.bars.advance(self.id, amount)

    def fields(self, **values: str) -> None:
        self._values.update(values)
        self.bars.update(self.id, figures="  ".join(f"{k} {v}" for k, v in self._values.items()))

    def total(self, total: float) -> None:
        self.bars.update(self.id, total=total)


class TerminalProgress(Progress):
    """Live bars on a terminal; they stay on the screen when their task ends."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._console = Console(stderr=True)
        self._bars = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TextColumn("/"),
            TimeRemainingColumn(),
            TextColumn("[cyan]{task.fields[figures]}"),
            console=self._console,
        )
        self._open = 0

    def log(self, message: str) -> None:
        self._console.print(message, highlight=False, markup=False)

    def start(self, name: str, total: float | None, unit: str) -> Task:
        if self._open == 0:
            self._bars.start()
        self._open += 1
        return _BarTask(self._bars, self._bars.add_task(name, total=total, unit=unit, figures=""), name)

    def finish(self, task: Task) -> None:
        self._open -= 1
        if self._open == 0:
            self._bars.stop()  # prints the bars as they stand
            for done in list(self._bars.task_ids):
                self._bars.remove_task(done)


def default_progress(quiet: bool = False) -> Progress:
    """Bars on a terminal, lines elsewhere, nothing where asked for quiet."""
    if quiet or sys.stderr is None:
        return SilentProgress()
    return TerminalProgress() if sys.stderr.isatty() else LineProgress()
