"""How much of a codebook is used.

Both figures depend on how many codes they are taken over: a window of N codes cannot show more than N of them. They are taken
over the newest ``window`` codes, a number fixed in advance, so that figures along a run are comparable.

Of a tokenizer with K codebooks, each is counted by itself; usage and perplexity are then means over the codebooks.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray


def count_codes(codes: NDArray[np.integer], codebook_size: int, codebooks: int = 1) -> NDArray[np.int64]:
    """How often each code occurs: int64 ``[K, codebook_size]``.

    Args:
        codes: of any shape with one codebook, else ``[B, K, ...]``.
        codebook_size: codes of a codebook.
        codebooks: K.
    """
    by_book = np.asarray(codes, dtype=np.int64)
    if codebooks > 1:
        by_book = by_book + np.arange(codebooks).reshape(1, -1, *[1] * (by_book.ndim - 2)) * codebook_size
    return np.bincount(by_book.ravel(), minlength=codebooks * codebook_size).reshape(codebooks, codebook_size)


def usage(counts: NDArray[np.int64]) -> float:
    """Share of the codes that occur at all, 0 to 1. ``counts`` is int64 ``[codebook_size]`` or ``[K, codebook_size]``."""
    return float(np.count_nonzero(counts) / counts.size)


def perplexity(counts: NDArray[np.int64]) -> float:
    """``exp`` of the entropy (nats) of the code distribution: the number of equally frequent codes that would be as varied."""
    return float(np.mean([_perplexity(book) for book in np.atleast_2d(counts)]))


def _perplexity(counts: NDArray[np.int64]) -> float:
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
        codebooks: codebooks at each position.
    """

    def __init__(self, codebook_size: int, window: int, codebooks: int = 1) -> None:
        self.window, self.codebooks = window, codebooks
        self.counts = np.zeros((codebooks, codebook_size), dtype=np.int64)
        self._batches: deque[NDArray[np.integer]] = deque()
        self._held = 0

    def add(self, codes: NDArray[np.integer]) -> None:
        """Take in a batch of codes (:func:`count_codes`) and forget the oldest batches that the window no longer needs."""
        batch = np.asarray(codes, dtype=np.int32)
        self._batches.append(batch)
        self._held += batch.size
        self.counts += self._count(batch)
        while self._held - self._batches[0].size >= self.window * self.codebooks:
            oldest = self._batches.popleft()
            self._held -= oldest.size
            self.counts -= self._count(oldest)

    def _count(self, codes: NDArray[np.integer]) -> NDArray[np.int64]:
        return count_codes(codes, self.counts.shape[1], self.codebooks)

    @property
    def batches(self) -> list[NDArray[np.integer]]:
        """The batches that are counted, int32, oldest first: added to a new window they give the same figures."""
        return list(self._batches)

    @property
    def usage(self) -> float:
        """Share of the codes that occur in the window, 0 to 1."""
        return usage(self.counts)

    @property
    def perplexity(self) -> float:
        """Perplexity of the codes in the window, between 1 and the codebook's size."""
        return perplexity(self.counts)
