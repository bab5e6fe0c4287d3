"""Work done ahead in threads: decoding, cropping and scaling leave Python's lock, so that a device need not wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokkit.training.augmentation import BatchMaker

AHEAD = 4  # steps

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(items: Iterable[Item], work: Callable[[Item], Result], threads: int) -> Iterator[Result]:
    """What ``work`` makes of each item, in the order of the items, done in threads a few items ahead; 1: in this one."""
    if threads <= 1:
        yield from map(work, items)
        return
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class Prefetched:
    """The same batches as ``batches``, which are a function of the step's number.

    Args:
        own: the parts of a batch (of ``parts``) that this process asks for.
        threads: that make them.
    """

    def __init__(self, batches: BatchMaker, own: range, parts: int, threads: int) -> None:
        self.batches, self.own, self.parts = batches, own, parts
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="crops")
        self._coming: dict[tuple[int, int], list[Future[NDArray[np.uint8]]]] = {}

    def part(self, step: int, part: int, parts: int) -> NDArray[np.uint8]:
        """See :meth:`BatchMaker.part`."""
        if parts != self.parts:
            return self.batches.part(step, part, parts)
        for ahead in range(step, step + AHEAD):
            for own in self.own:
                if (ahead, own) not in self._coming and (ahead, own) >= (step, part):
                    numbers = self.batches.numbers(ahead, own, parts)
                    self._coming[ahead, own] = [self._pool.submit(self.batches.sample, n) for n in numbers]
        return np.stack([future.result() for future in self._coming.pop((step, part))])

    def state(self) -> dict[str, Any]:
        """Nothing: which pictures a step sees is said by its number."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """What was made for other steps is dropped."""
        self._coming.clear()

    def close(self) -> None:
        """Let the threads end."""
        self._pool.shutdown(wait=False, cancel_futures=True)
