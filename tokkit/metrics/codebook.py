"""How much of a codebook is used.

Both figures depend on how many codes they are taken over: a window of N codes cannot show more than N of them. They are taken
over the newest ``window`` codes, a number fixed in advance, so that figures along a run are comparable.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


def usage(counts: NDArray[np.int64]) -> float:
    """Share of the codes that occur at all, 0 to 1. ``counts`` is int64 ``[codebook_size]``."""
    return float(np.count_nonzero(counts) / counts.size)


def perplexity(counts: NDArray[np.int64]) -> float:
    """``exp`` of the entropy (nats) of the code distribution: the number of equally frequent codes that would be as varied."""
    total = counts.sum()
    if total == 0:
        return 0.0
    share = counts[counts > 0] / total
    return float(np.exp(-(share * np.log(share)).sum()))


class CodebookWindow:
    """Counts over the newest codes.

    Args:
        codebook_size: number of codes.
        window: codes to look back on; whole batches are kept, so up to one batch more than this is counted.
    """

    def __init__(self, codebook_size: int, window: int) -> None:
        self.window = window
        self.counts = np.zeros(codebook_size, dtype=np.int64)
        self._batches: deque[NDArray[np.int64]] = deque()
        self._held = 0

    def add(self, codes: NDArray[np.integer]) -> None:
        """Take in a batch of codes of any shape and forget the oldest batches that the window no longer needs."""
        batch = np.asarray(codes, dtype=np.int64).ravel()
        self._batches.append(batch)
        self._held += batch.size
        self.counts += np.bincount(batch, minlength=self.counts.size)
        while self._held - self._batches[0].size >= self.window:
            oldest = self._batches.popleft()
            self._held -= oldest.size
            self.counts -= np.bincount(oldest, minlength=self.counts.size)

    @property
    def usage(self) -> float:
        """Share of the codes that occur in the window, 0 to 1."""
        return usage(self.counts)

    @property
    def perplexity(self) -> float:
        """Perplexity of the codes in the window, between 1 and the codebook's size."""
        return perplexity(self.counts)
