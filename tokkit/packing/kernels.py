"""Exact best-fit-decreasing bin packing on the histogram of lengths.

Best-fit-decreasing takes the items longest first and puts each into the open bin with the least room that still holds it, or
opens a new bin. Among bins of equal room the choice is free, and so is the order of items of equal length; therefore only the
*number* of bins at each residual capacity matters, and whole runs of equal items can be placed in one step:

* the fullest bin that holds an item of length l is the one at the smallest residual r >= l;
* having taken the item it is still the fullest one that holds another, as long as one fits: it takes ``r // l`` of them
  at once;
* all bins at residual r with the same history move together.

The time depends on the number of distinct lengths and residuals, not on the number of documents. (The same idea is known from
"longest-pack-first histogram packing" of Krell et al., arXiv 2107.02027; a two-level bitset that finds the next occupied
residual in a few instructions takes the place of its linear search.)

The result is a forest of *nodes*: "these ``bins`` bins took ``repeat`` items of ``length`` on top of what bins of ``parent``
held". A pack is a path from a node to its root. :func:`assign_packs` gives the items of each length to the nodes in item
order, and :func:`canonical_order` numbers the packs. :func:`packs_in_order` does both at once: it lists the packs instead of
looking at the items one by one, so that what it reads and writes lies together, and takes a fraction of the time where items
are many.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.packing.intrinsics import ones, prefetch, trailing_zeros

Array = npt.NDArray[np.int64]

# Rows of the node table (int64 [6, nodes]).
PARENT = 0  # node whose bins went on, -1: bins opened anew
REPEAT = 1  # items of this length that each bin took
BINS = 2  # number of bins
FIRST_BIN = 3  # the parent's bin that became bin 0
FIRST_ITEM = 4  # first of the bins * repeat items, in order of length
GONE = 5  # bins that went on to child nodes (always the lowest ones)
HELD = 6  # items that each bin holds by now
LENGTH = 7  # of these items
FIELDS = 8
NO_BOUND = 1 << 62


@nb.njit(cache=True, nogil=True)
def next_residual(words: npt.NDArray[np.uint64], summary: npt.NDArray[np.uint64], low: int) -> int:
    """The smallest set bit >= low, or -1. ``summary`` has a bit for every word that is not zero."""
    word = low >> 6
    bits = words[word] >> np.uint64(low & 63)
    if bits != 0:
        return low + trailing_zeros(bits)
    word += 1
    group = word >> 6
    if group >= summary.size:
        return -1
    bits = summary[group] >> np.uint64(word & 63)
    if bits != 0:
        word += trailing_zeros(bits)
        return (word << 6) + trailing_zeros(words[word])
    for later in range(group + 1, summary.size):
        if summary[later] != 0:
            word = (later << 6) + trailing_zeros(summary[later])
            return (word << 6) + trailing_zeros(words[word])
    return -1


@nb.njit(cache=True, nogil=True)
def best_fit_decreasing(counts: Array, seq_len: int, most: int = NO_BOUND) -> Array:
    """Place items, given as a histogram, into bins of ``seq_len``.

    Args:
        counts: int64 [seq_len + 1], number of items of each length; those of length 0 are not placed.
        most: items that a bin may hold, at least 1: with so many it is full.

    Returns:
        int64 [FIELDS, nodes]: the node table (rows: see the module's constants).
    """
    nodes = np.empty((FIELDS, 1024), dtype=np.int64)
    following = np.empty(1024, dtype=np.int64)  # next node at the same residual
    used = 0
    head = np.full(seq_len + 1, -1, dtype=np.int64)  # a node at each residual
    words = np.zeros((seq_len >> 6) + 1, dtype=np.uint64)
    summary = np.zeros((words.size + 63) >> 6, dtype=np.uint64)
    item = 0
    for i in range(1, seq_len + 1):
        item += counts[i]
    for length in range(seq_len, 0, -1):
        left = counts[length]
        item -= left
        at = item
        while left > 0:
            residual = next_residual(words, summary, length)
            parent, first, available, held = -1, 0, left, 0
            if residual < 0:
                residual = seq_len
            else:
                parent = head[residual]
                first = nodes[GONE, parent]
                available = nodes[BINS, parent] - first
                held = nodes[HELD, parent]
            repeat = min(residual // length, most - held)
            bins = min(available, left // repeat)
            if bins == 0:
                bins, repeat = 1, left
            if parent >= 0:
                nodes[GONE, parent] += bins
                if bins == available:
                    head[residual] = following[parent]
                    if head[residual] < 0:
                        word = residual >> 6
                        words[word] &= ~(np.uint64(1) << np.uint64(residual & 63))
                        if words[word] == 0:
                            summary[word >> 6] &= ~(np.uint64(1) << np.uint64(word & 63))
            if used == nodes.shape[1]:
                more = np.empty((FIELDS, 2 * used), dtype=np.int64)
                more[:, :used] = nodes
                nodes = more
                longer = np.empty(2 * used, dtype=np.int64)
                longer[:used] = following
                following = longer
            nodes[PARENT, used] = parent
            nodes[REPEAT, used] = repeat
            nodes[BINS, used] = bins
            nodes[FIRST_BIN, used] = first
            nodes[FIRST_ITEM, used] = at
            nodes[GONE, used] = 0
            nodes[HELD, used] = held + repeat
            nodes[LENGTH, used] = length
            room = residual - repeat * length
            if room > 0 and held + repeat < most:
                following[used] = head[room]
                head[room] = used
                words[room >> 6] |= np.uint64(1) << np.uint64(room & 63)
                summary[room >> 12] |= np.uint64(1) << np.uint64((room >> 6) & 63)
            used += 1
            at += bins * repeat
            left -= bins * repeat
    return nodes[:, :used].copy()


@nb.njit(cache=True, nogil=True)
def histogram(lengths: npt.NDArray[np.int32], seq_len: int) -> Array:
    """int64 [seq_len + 1]: how many items have each length (all in 0..seq_len)."""
    counts = np.zeros(seq_len + 1, dtype=np.int64)
    for i in range(lengths.size):
        counts[lengths[i]] += 1
    return counts


def order_by_length(lengths: npt.NDArray[np.int32], counts: Array) -> npt.NDArray[Any]:
    """Counting sort, stable: int32 [N] (int64 where there are more), item numbers by increasing length, equal lengths in item
    order."""
    order: npt.NDArray[Any] = np.empty(lengths.size, dtype=np.int32 if lengths.size < 1 << 31 else np.int64)
    _order_by_length(lengths, counts, order)
    return order


@nb.njit(cache=True, nogil=True)
def _order_by_length(lengths: npt.NDArray[np.int32], counts: Array, order: npt.NDArray[Any]) -> None:
    place = np.empty(counts.size, dtype=np.int64)
    total = 0
    for i in range(counts.size):
        place[i] = total
        total += counts[i]
    for i in range(lengths.size):
        order[place[lengths[i]]] = i
        place[lengths[i]] += 1


@nb.njit(cache=True, nogil=True)
def assign_packs(nodes: Array, order: npt.NDArray[Any]) -> tuple[Array, int]:
    """Give every item its pack: int64 [N] pack numbers (of no meaning yet), and the number of packs."""
    pack_of = np.empty(order.size, dtype=np.int64)
    packs = 0
    for leaf in range(nodes.shape[1]):
        for end in range(nodes[GONE, leaf], nodes[BINS, leaf]):
            node, bin_ = leaf, end
            while node >= 0:
                repeat = nodes[REPEAT, node]
                first = nodes[FIRST_ITEM, node] + bin_ * repeat
                for i in range(first, first + repeat):
                    pack_of[order[i]] = packs
                bin_ += nodes[FIRST_BIN, node]
                node = nodes[PARENT, node]
            packs += 1
    return pack_of, packs


def pack_items(lengths: npt.NDArray[np.int32], seq_len: int, most: int = NO_BOUND) -> tuple[Array, int]:
    """Best-fit-decreasing of items of 0..seq_len, at most ``most`` to a pack: int64 [N] the pack of each (numbers of no meaning
    yet), and how many packs there are."""
    counts = histogram(lengths, seq_len)
    return assign_packs(best_fit_decreasing(counts, seq_len, most), order_by_length(lengths, counts))


def packs_in_order(
    lengths: npt.NDArray[np.int32], counts: Array, seq_len: int, most: int = NO_BOUND
) -> tuple[Array, Array, npt.NDArray[np.int32]]:
    """Best-fit-decreasing of items of 1..seq_len (``counts`` is their histogram), as :func:`pack_items` and
    :func:`canonical_order` have it.

    Returns:
        int64 [packs + 1] offsets, int64 [N] items, int32 [N] their lengths.
    """
    held, begin, lowest = list_packs(lengths, counts, seq_len, most)
    order = np.empty(len(begin), dtype=begin.dtype)
    _by_lowest(begin, lowest, np.zeros((len(lengths) >> 6) + 1, dtype=np.uint64), order)
    offsets, items = np.empty(len(begin) + 1, dtype=np.int64), np.empty(len(lengths), dtype=np.int64)
    packed = np.empty(len(lengths), dtype=np.int32)
    _write_packs(held, order, offsets, items, packed)
    return offsets, items, packed


_LENGTH_BITS = 25  # sequences have at most 2**24 tokens
_LAST = 1 << 60  # of the pack
_AHEAD = 12  # packs that memory is asked for ahead of use


def list_packs(
    lengths: npt.NDArray[np.int32], counts: Array, seq_len: int, most: int = NO_BOUND
) -> tuple[Array, npt.NDArray[Any], npt.NDArray[Any]]:
    """Best-fit-decreasing of items of 1..seq_len (``counts`` is their histogram): the items of each pack, packs as they come.

    The items of a node that are still unused lie together in the order by length, so packs are listed by reading this from a
    few places at a time, each going forward, and nothing is looked up by item.

    Returns:
        int64 [N], of each item ``number << 25 | length``, the last of a pack with bit 60; int32 [P] (int64 where items are
        many), where each pack begins in it; and [P] its lowest item.
    """
    nodes = best_fit_decreasing(counts, seq_len, most)
    packs = int((nodes[BINS] - nodes[GONE]).sum())
    order = order_by_length(lengths, counts)
    # Large arrays are made by NumPy, which asks the system for large pages; Numba does not.
    held = np.empty(len(lengths), dtype=np.int64)
    begin, lowest = np.empty(packs, dtype=order.dtype), np.empty(packs, dtype=order.dtype)
    _list_packs(nodes, order, held, begin, lowest)
    return held, begin, lowest


@nb.njit(cache=True, nogil=True)
def _list_packs(nodes: Array, order: npt.NDArray[Any], held: Array, begin: npt.NDArray[Any], lowest: npt.NDArray[Any]) -> None:
    at = pack = 0
    for leaf in range(nodes.shape[1]):
        for end in range(nodes[GONE, leaf], nodes[BINS, leaf]):
            begin[pack] = at
            low = np.int64(order.size)
            node, bin_ = leaf, end
            while node >= 0:
                repeat = nodes[REPEAT, node]
                first = nodes[FIRST_ITEM, node] + bin_ * repeat
                low = min(low, np.int64(order[first]))
                for i in range(first, first + repeat):
                    held[at] = (np.int64(order[i]) << _LENGTH_BITS) | nodes[LENGTH, node]
                    at += 1
                bin_ += nodes[FIRST_BIN, node]
                node = nodes[PARENT, node]
            held[at - 1] |= _LAST
            lowest[pack] = low
            pack += 1


@nb.njit(cache=True, nogil=True)
def _by_lowest(
    begin: npt.NDArray[Any], lowest: npt.NDArray[Any], marks: npt.NDArray[np.uint64], order: npt.NDArray[Any]
) -> None:
    """Fill ``order`` with ``begin`` by increasing ``lowest``: a pack's number is how many lowest items come before its own."""
    for pack in range(lowest.size):
        marks[lowest[pack] >> 6] |= np.uint64(1) << np.uint64(lowest[pack] & 63)
    before = np.empty(marks.size, dtype=begin.dtype)
    total = 0
    for word in range(marks.size):
        before[word] = total
        total += ones(marks[word])
    for pack in range(lowest.size):
        below = (np.uint64(1) << np.uint64(lowest[pack] & 63)) - np.uint64(1)
        word = lowest[pack] >> 6
        order[before[word] + ones(marks[word] & below)] = begin[pack]


@nb.njit(cache=True, nogil=True)
def _write_packs(held: Array, order: npt.NDArray[Any], offsets: Array, items: Array, lengths: npt.NDArray[np.int32]) -> None:
    """The packs in order, the items of each by number."""
    base = held.ctypes.data
    at = 0
    for pack in range(order.size):
        if pack + _AHEAD < order.size:
            there = np.uint64(base + 8 * np.int64(order[pack + _AHEAD]))
            prefetch(there)
            prefetch(there + np.uint64(64))
        offsets[pack] = at
        begin = np.int64(order[pack])
        end = begin
        while held[end] < _LAST:
            end += 1
        held[end] ^= _LAST
        mine = held[begin : end + 1]
        _sort(mine)
        for k in range(mine.size):
            items[at + k] = mine[k] >> _LENGTH_BITS
            lengths[at + k] = mine[k] & ((1 << _LENGTH_BITS) - 1)
        at += mine.size
    offsets[order.size] = at


@nb.njit(cache=True, nogil=True)
def _sort(values: Array) -> None:
    """Sort in place (Shell 1959): packs are short, and made of a few rising runs."""
    gap = 1
    while 9 * gap < values.size:
        gap = 3 * gap + 1
    while gap > 0:
        for i in range(gap, values.size):
            value = values[i]
            j = i
            while j >= gap and values[j - gap] > value:
                values[j] = values[j - gap]
                j -= gap
            values[j] = value
        gap //= 3


@nb.njit(cache=True, nogil=True)
def canonical_order(pack_of: Array, packs: int) -> tuple[Array, Array]:
    """Number the packs by their lowest item, and order the items of each by number.

    Returns:
        int64 [packs + 1] offsets, int64 [N] items: pack p holds ``items[offsets[p]:offsets[p + 1]]``, increasing.
    """
    rank = np.full(packs, -1, dtype=np.int64)
    offsets = np.zeros(packs + 1, dtype=np.int64)
    seen = 0
    for i in range(pack_of.size):
        if rank[pack_of[i]] < 0:
            rank[pack_of[i]] = seen
            seen += 1
        offsets[rank[pack_of[i]] + 1] += 1
    for p in range(packs):
        offsets[p + 1] += offsets[p]
    place = offsets[:-1].copy()
    items = np.empty(pack_of.size, dtype=np.int64)
    for i in range(pack_of.size):
        p = rank[pack_of[i]]
        items[place[p]] = i
        place[p] += 1
    return offsets, items


@nb.njit(cache=True, nogil=True)
def martello_toth(counts: Array, seq_len: int) -> int:
    """Martello and Toth's lower bound L2 on the number of bins (Lower bounds and reduction procedures for the bin packing
    problem, 1990), over all thresholds: no packing of these items, by any algorithm, has fewer.

    For a threshold a <= seq_len / 2: items longer than seq_len - a stand alone with respect to items >= a; those longer than
    half stand one to a bin; what of the items in a..seq_len/2 does not fit beside them by volume needs further bins.
    """
    number = np.zeros(seq_len + 2, dtype=np.int64)  # items shorter than i
    volume = np.zeros(seq_len + 2, dtype=np.int64)
    for i in range(1, seq_len + 1):
        number[i + 1] = number[i] + counts[i]
        volume[i + 1] = volume[i] + counts[i] * i
    half = seq_len // 2
    best = 0
    for threshold in range(half + 1):
        big = number[seq_len + 1] - number[half + 1]
        beside = number[seq_len - threshold + 1] - number[half + 1]
        room = beside * seq_len - (volume[seq_len - threshold + 1] - volume[half + 1])
        rest = volume[half + 1] - volume[threshold] - room
        bound = big + max(0, -(-rest // seq_len))
        best = max(best, bound)
    return best
