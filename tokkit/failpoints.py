"""Places where a test can have the process die: what comes after must be able to begin with what lies there then.

``TOKKIT_FAILPOINT=NAME[@SUBJECT][:N][=ACTION]``, several separated by commas, read once from the environment (which worker
processes inherit). The N-th time (default the first) that a process passes the point of that name, for that subject where one
is named, it does to itself what ACTION says: ``kill`` (default; SIGKILL, as the kernel does for lack of memory), ``segv``,
``abort``, ``term``, ``stop`` (suspended until it gets SIGCONT), ``exit`` (at once with code 3) or ``hang``. Unset, a point
costs a call and a comparison.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from dataclasses import dataclass

VARIABLE = "TOKKIT_FAILPOINT"
SIGNALS = {
    "kill": signal.SIGKILL,
    "segv": signal.SIGSEGV,
    "abort": signal.SIGABRT,
    "term": signal.SIGTERM,
    "stop": signal.SIGSTOP,
}


@dataclass(frozen=True)
class Failpoint:
    """``action`` is done at the ``nth`` passing of ``name`` (with ``subject``, where that is not empty)."""

    name: str
    subject: str
    nth: int
    action: str


def parse(text: str) -> list[Failpoint]:
    """Read the variable's value; ValueError where it is of another form."""
    found = []
    for part in filter(None, text.split(",")):
        match = re.fullmatch(r"([a-z-]+)(?:@(.+?))?(?::(\d+))?(?:=([a-z]+))?", part)
        if match is None or (match[4] or "kill") not in {*SIGNALS, "exit", "hang"}:
            raise ValueError(f"{VARIABLE}: {part!r} is not NAME[@SUBJECT][:N][=ACTION]")
        found.append(Failpoint(match[1], match[2] or "", int(match[3] or 1), match[4] or "kill"))
    return found


_points = parse(os.environ.get(VARIABLE, ""))
_passed: Counter[Failpoint] = Counter()


def failpoint(name: str, subject: str = "") -> None:
    """Pass the point ``name``."""
    if not _points:
        return
    for point in _points:
        if point.name == name and point.subject in ("", subject):
            _passed[point] += 1
            if _passed[point] == point.nth:
                _act(point.action)


def _act(action: str) -> None:
    if action == "exit":
        os._exit(3)
    if action == "hang":
        while True:
            time.sleep(3600)
    os.kill(os.getpid(), SIGNALS[action])
