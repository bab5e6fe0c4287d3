"""What the trainings of pictures and of sounds share around their inputs: counting, rejects, and who does what."""

from __future__ import annotations

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from tokkit.pipelines.progress import Progress, Task
from tokkit.pipelines.training_config import TrainingConfig
from tokkit.storage import write_atomic
from tokkit.training.engine import World
from tokkit.training.items import Reject

REJECTS_FILE = "rejects.jsonl"

Item = TypeVar("Item")


def workers_of(config: TrainingConfig, device: str) -> int:
    """Processes or threads that prepare batches."""
    if config.workers is not None:
        return config.workers
    return max(1, (os.cpu_count() or 1) - 2) if device == "cuda" else 1 if config.stream else 0


def parts_of(config: TrainingConfig, world: World) -> tuple[range, int]:
    """This process's parts of a batch, and how many there are in all."""
    first = world.rank * config.accumulate
    return range(first, first + config.accumulate), world.size * config.accumulate


def counted(items: Iterable[Item], task: Task) -> Iterator[Item]:
    """The same items, each told of as it comes."""
    for item in items:
        yield item
        task.advance(1)


def write_rejects(out: Path, rejects: Iterable[Reject], reasons: Mapping[str, int], world: World, progress: Progress) -> None:
    """Those of an input that was read once."""
    if world.main:
        write_atomic(out / REJECTS_FILE, "".join(_line(reject) for reject in rejects))
    for reason, count in reasons.items():
        progress.log(f"not used: {count} x {reason} (listed in {REJECTS_FILE})")


class StreamedRejects:
    """What a stream could not use, a line each as they are found; in the end in the order of their names."""

    def __init__(self, out: Path, resumed: bool) -> None:
        self.path = out / REJECTS_FILE
        self._lock = threading.Lock()
        if not resumed or not self.path.exists():
            self.path.write_bytes(b"")
        self._known = {row["locator"] for row in self._rows()}

    def add(self, reject: Reject) -> None:
        """From any thread and, by whole lines, from any process."""
        with self._lock:
            if reject.locator not in self._known:
                self._known.add(reject.locator)
                with self.path.open("a", encoding="ascii") as file:
                    file.write(_line(reject))

    def settle(self) -> Mapping[str, int]:
        """Put the file into order; returns the counts by reason."""
        with self._lock:
            rows = {str(row["locator"]): row for row in self._rows()}
            write_atomic(self.path, "".join(json.dumps(rows[name], ensure_ascii=True) + "\n" for name in sorted(rows)))
        return dict(Counter(str(row["reason"]) for row in rows.values()).most_common())

    def _rows(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.path.read_text("ascii").splitlines() if line.endswith("}")]


def _line(reject: Reject) -> str:
    return json.dumps(asdict(reject), ensure_ascii=True) + "\n"
