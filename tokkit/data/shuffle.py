"""A seeded permutation of 0..n-1 of which any element can be asked for: no list of n numbers is ever made.

A Feistel network on pairs: with A = ceil(sqrt(n)) and B = ceil(n / A) an index is the pair (a, b) of Z_A x Z_B, and each round
adds a hash of one half to the other, which can be undone and so is a bijection. Pairs beyond n are sent through again until
they fall inside ("cycle walking"; there are fewer than A of them, so this is rare). The order is a pure function of
(seed, epoch, n): the same on every rank, in every worker, after every restart.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tokkit.packing.kernels import histogram, order_by_length

ROUNDS = 6  # an even number; four pass the usual tests, two more cost a microsecond
_MASK = (1 << 64) - 1


def _mix(value: int) -> int:
    """A 64-bit finaliser (the constants of splitmix64)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


class Permutation:
    """A permutation of ``range(n)``.

    Args:
        n: number of elements.
        seed, epoch: any integers; another pair is another order.
    """

    def __init__(self, n: int, seed: int, epoch: int = 0) -> None:
        if n < 0:
            raise ValueError(f"a permutation of {n} elements")
        self.n, self.seed, self.epoch = n, seed, epoch
        self._a = math.isqrt(max(n - 1, 0)) + 1
        self._b = max(-(-n // self._a), 1)
        digest = hashlib.sha512(f"tokkit-permutation-1:{seed}:{epoch}".encode("ascii")).digest()
        self._keys = [int.from_bytes(digest[8 * r : 8 * r + 8], "little") for r in range(ROUNDS)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        """Element ``index``, 0 <= index < n; IndexError outside."""
        if not 0 <= index < self.n:
            raise IndexError(f"element {index} of a permutation of {self.n}")
        size_a, size_b = self._a, self._b
        while True:
            a, b = divmod(index, size_b)
            for r in range(0, ROUNDS, 2):
                a = (a + _mix(b ^ self._keys[r])) % size_a
                b = (b + _mix(a ^ self._keys[r + 1])) % size_b
            index = a * size_b + b
            if index < self.n:
                return index


class GroupedOrder:
    """A permutation in which elements of about the same cost stand together, in groups.

    The elements of a permutation are taken in windows; those of a window are sorted by cost and cut into groups, and the groups
    are put in a drawn order. So neighbours cost about the same, and what comes near what is still drawn.

    Args:
        order: the permutation.
        costs: int64 [n], of each element.
        group: elements that stand together.
        window: elements that are sorted together; a multiple of ``group``.
    """

    def __init__(self, order: Permutation, costs: npt.NDArray[np.int64], group: int, window: int) -> None:
        if group < 1 or window < group or window % group:
            raise ValueError(f"groups of {group} in windows of {window}")
        self._order, self._costs, self._group, self._window = order, costs, group, window
        self._number, self._elements = -1, np.zeros(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> int:
        """Element ``index``, 0 <= index < n; IndexError outside."""
        if not 0 <= index < len(self):
            raise IndexError(f"element {index} of a permutation of {len(self)}")
        number, within = divmod(index, self._window)
        if number != self._number:
            self._number, self._elements = number, self._sorted(number)
        return int(self._elements[within])

    def _sorted(self, number: int) -> npt.NDArray[np.int64]:
        first = number * self._window
        elements = np.array([self._order[n] for n in range(first, min(first + self._window, len(self)))], dtype=np.int64)
        elements = elements[np.lexsort((elements, self._costs[elements]))]
        whole = len(elements) // self._group
        drawn = Permutation(whole, self._order.seed, self._order.epoch * 1_000_003 + number)
        groups = elements[: whole * self._group].reshape(whole, self._group)[[drawn[n] for n in range(whole)]]
        return np.concatenate([groups.reshape(-1), elements[whole * self._group :]])


@lru_cache(maxsize=4096)
def _of_length(count: int, seed: int, epoch: int, length: int) -> Permutation:
    """The permutation of the pieces of one length."""
    digest = hashlib.sha256(f"tokkit-redraw-1:{seed}:{length}".encode("ascii")).digest()
    return Permutation(count, int.from_bytes(digest[:8], "little"), epoch)


@dataclass(frozen=True, eq=False)
class Slots:
    """Where a plan has pieces of one length, so that they can be drawn into one another's places.

    Attributes:
        order: int64 [N], pieces by length, those of one length in order.
        rank: int64 [N], where each piece stands in ``order``.
        first: int64 [seq_len + 2], where each length begins in ``order``.
        lengths: int32 [N], of the pieces.
    """

    order: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int32]) -> Slots:
        """Of pieces of these lengths."""
        lengths = np.ascontiguousarray(lengths, dtype=np.int32)
        counts = histogram(lengths, int(lengths.max(initial=0)))
        order = order_by_length(lengths, counts)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return cls(order, rank, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)]), lengths)

    def draw(self, slot: int, seed: int, epoch: int) -> int:
        """The piece that stands in an epoch where ``slot`` stands in the plan: one of the same length, each exactly once."""
        length = int(self.lengths[slot])
        first, count = int(self.first[length]), int(self.first[length + 1] - self.first[length])
        if count == 1:
            return slot
        return int(self.order[first + _of_length(count, seed, epoch, length)[int(self.rank[slot]) - first]])
