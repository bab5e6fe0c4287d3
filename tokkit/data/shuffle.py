"""A seeded permutation of 0..n-1 of which any element can be asked for: no list of n numbers is ever made.

A Feistel network on pairs: with A = ceil(sqrt(n)) and B = ceil(n / A) an index is the pair (a, b) of Z_A x Z_B, and each round
adds a hash of one half to the other, which can be undone and so is a bijection. Pairs beyond n are sent through again until
they fall inside ("cycle walking"; there are fewer than A of them, so this is rare). The order is a pure function of
(seed, epoch, n): the same on every rank, in every worker, after every restart.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.packing.kernels import histogram, order_by_length

ROUNDS = 6  # an even number; four pass the usual tests

Array = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Keys = npt.NDArray[np.uint64]


@nb.njit(cache=True, nogil=True)
def _mix(value: np.uint64) -> np.uint64:
    """A 64-bit finaliser (the constants of splitmix64)."""
    value += np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))


@nb.njit(cache=True, nogil=True)
def _element(index: int, n: int, size_a: int, size_b: int, keys: Keys) -> int:
    """Element ``index`` of a permutation of ``n``."""
    number = np.uint64(index)
    many_a, many_b = np.uint64(size_a), np.uint64(size_b)
    while True:
        a, b = number // many_b, number % many_b
        for r in range(0, ROUNDS, 2):
            a = (a + _mix(b ^ keys[r]) % many_a) % many_a
            b = (b + _mix(a ^ keys[r + 1]) % many_b) % many_b
        number = a * many_b + b
        if number < np.uint64(n):
            return int(np.int64(number))


@nb.njit(cache=True, nogil=True)
def _elements(indices: Array, n: int, size_a: int, size_b: int, keys: Keys) -> Array:
    """Several; -1 for an index that is none."""
    found = np.empty(indices.size, dtype=np.int64)
    for i in range(indices.size):
        inside = 0 <= indices[i] < n
        found[i] = _element(indices[i], n, size_a, size_b, keys) if inside else -1
    return found


def _sides(n: int) -> tuple[int, int]:
    """A and B."""
    size_a = math.isqrt(max(n - 1, 0)) + 1
    return size_a, max(-(-n // size_a), 1)


def _keys(seed: int, epoch: int) -> Keys:
    """uint64 [ROUNDS]."""
    digest = hashlib.sha512(f"tokkit-permutation-1:{seed}:{epoch}".encode("ascii")).digest()
    return np.frombuffer(digest[: 8 * ROUNDS], dtype="<u8").astype(np.uint64)


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
        self._settings = n, *_sides(n), _keys(seed, epoch)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        """Element ``index``, 0 <= index < n; IndexError outside."""
        if not 0 <= index < self.n:
            raise IndexError(f"element {index} of a permutation of {self.n}")
        return int(_element(index, *self._settings))

    def take(self, indices: Array) -> Array:
        """Several elements, int64; -1 where there is none of that index."""
        return _elements(indices, *self._settings)


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

    def take(self, indices: Array) -> Array:
        """Several elements, int64; -1 where there is none of that index."""
        return np.array([self[n] if 0 <= n < len(self) else -1 for n in indices.tolist()], dtype=np.int64)

    def _sorted(self, number: int) -> npt.NDArray[np.int64]:
        first = number * self._window
        elements = self._order.take(np.arange(first, min(first + self._window, len(self)), dtype=np.int64))
        elements = elements[np.lexsort((elements, self._costs[elements]))]
        whole = len(elements) // self._group
        drawn = Permutation(whole, self._order.seed, self._order.epoch * 1_000_003 + number)
        groups = elements[: whole * self._group].reshape(whole, self._group)[drawn.take(np.arange(whole, dtype=np.int64))]
        return np.concatenate([groups.reshape(-1), elements[whole * self._group :]])


def _keys_of_length(seed: int, epoch: int, length: int) -> Keys:
    """Of the permutation of the pieces of one length."""
    digest = hashlib.sha256(f"tokkit-redraw-1:{seed}:{length}".encode("ascii")).digest()
    return _keys(int.from_bytes(digest[:8], "little"), epoch)


@nb.njit(cache=True, nogil=True)
def _draw(
    slots: Array,
    order: npt.NDArray[np.integer],
    rank: npt.NDArray[np.integer],
    first: Array,
    lengths: Ids,
    sides: Array,
    keys: Keys,
) -> Array:
    found = np.empty(slots.size, dtype=np.int64)
    for i in range(slots.size):
        length = lengths[slots[i]]
        begin, count = first[length], first[length + 1] - first[length]
        if count == 1:
            found[i] = slots[i]
        else:
            within = np.int64(rank[slots[i]]) - begin
            found[i] = order[begin + _element(within, count, sides[length, 0], sides[length, 1], keys[length])]
    return found


@dataclass(frozen=True, eq=False)
class Slots:
    """Where a plan has pieces of one length, so that they can be drawn into one another's places.

    Attributes:
        order: int64 [N], pieces by length, those of one length in order.
        rank: int64 [N], where each piece stands in ``order``.
        first: int64 [seq_len + 2], where each length begins in ``order``.
        lengths: int32 [N], of the pieces.
        drawn: what draws of an epoch have in common, kept.
    """

    order: npt.NDArray[np.int64]
    rank: npt.NDArray[np.int64]
    first: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    drawn: dict[tuple[int, int], tuple[Array, Keys]] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int32]) -> Slots:
        """Of pieces of these lengths."""
        lengths = np.ascontiguousarray(lengths, dtype=np.int32)
        counts = histogram(lengths, int(lengths.max(initial=0)))
        order = order_by_length(lengths, counts)
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return cls(order, rank, np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(counts)]), lengths)

    def draw(self, slots: Array, seed: int, epoch: int) -> Array:
        """The pieces that stand in an epoch where ``slots`` stand in the plan: of the same lengths, each exactly once."""
        sides, keys = self._tables(seed, epoch)
        for length in np.unique(self.lengths[slots]).tolist():
            if not sides[length, 0]:
                keys[length] = _keys_of_length(seed, epoch, length)
                sides[length] = _sides(int(self.first[length + 1] - self.first[length]))
        return _draw(slots, self.order, self.rank, self.first, self.lengths, sides, keys)

    def _tables(self, seed: int, epoch: int) -> tuple[Array, Keys]:
        """By length A, B and the keys of its permutation, zeros where not asked for so far; of one epoch at a time."""
        if (seed, epoch) not in self.drawn:
            self.drawn.clear()
            lengths = len(self.first)
            self.drawn[seed, epoch] = np.zeros((lengths, 2), dtype=np.int64), np.zeros((lengths, ROUNDS), dtype=np.uint64)
        return self.drawn[seed, epoch]
