"""Best-fit packing that keeps a natural mixture of lengths in a sequence.

Best-fit-decreasing fills sequences to the last token, and does it by putting like to like: a sequence has two distinct lengths
on average and hardly ever more than four, so long documents train beside long ones and short ones by the dozen. Where that
matters the longest documents, as large a share of all as ``mixing`` says, are taken in a drawn order, each into the fullest
open pack that holds it; the short ones are held back and go last, longest first, into the holes that the others leave. A
mixing of 0 is best-fit-decreasing; towards 1 the sequences are what a stream of documents would give, and less full.

The draw is a function of the number of documents alone (a shuffle by Fisher and Yates on SplitMix64), so a plan stays a pure
function of its input.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.packing.kernels import NO_BOUND, histogram, next_residual, order_by_length

Array = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]


def taken_in_order(number: int, mixing: float) -> int:
    """How many of so many documents, the longest, are not held back."""
    return min(number, round(mixing * number))


def pack_mixed(lengths: Ids, seq_len: int, mixing: float, most: int = NO_BOUND) -> tuple[Array, int]:
    """Pack items of 1..seq_len, at most ``most`` to a pack: int64 [N] the pack of each (numbers of no meaning yet), and how
    many packs there are.

    Args:
        mixing: 0..1, share of the items that are taken in a drawn order.
    """
    order = order_by_length(lengths, histogram(lengths, seq_len))
    held_back = len(order) - taken_in_order(len(order), mixing)
    sequence = np.concatenate([_shuffled(order[held_back:].astype(np.int64)), order[:held_back][::-1]])
    return _best_fit(sequence, lengths, seq_len, most)


@nb.njit(cache=True, nogil=True)
def _shuffled(items: Array) -> Array:
    """Shuffle in place; returns the same array."""
    state = np.uint64(items.size)
    for last in range(items.size - 1, 0, -1):
        state += np.uint64(0x9E3779B97F4A7C15)
        value = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        other = np.int64((value ^ (value >> np.uint64(31))) % np.uint64(last + 1))
        items[last], items[other] = items[other], items[last]
    return items


@nb.njit(cache=True, nogil=True)
def _best_fit(sequence: Array, lengths: Ids, seq_len: int, most: int) -> tuple[Array, int]:
    """Each item of a sequence into the open pack with the least room that holds it, or a new one."""
    pack_of = np.empty(lengths.size, dtype=np.int64)
    held = np.empty(lengths.size, dtype=np.int32)  # items of each pack
    following = np.empty(lengths.size, dtype=np.int32)  # pack with the same room
    head = np.full(seq_len + 1, -1, dtype=np.int32)
    words = np.zeros((seq_len >> 6) + 1, dtype=np.uint64)
    summary = np.zeros((words.size + 63) >> 6, dtype=np.uint64)
    packs = 0
    for item in sequence:
        length = lengths[item]
        room = next_residual(words, summary, length)
        if room < 0:
            room, pack = seq_len, np.int64(packs)
            held[pack] = 0
            packs += 1
        else:
            pack = np.int64(head[room])
            head[room] = following[pack]
            if head[room] < 0:
                words[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
                if words[room >> 6] == 0:
                    summary[room >> 12] &= ~(np.uint64(1) << np.uint64((room >> 6) & 63))
        pack_of[item] = pack
        held[pack] += 1
        room -= length
        if room > 0 and held[pack] < most:
            following[pack] = head[room]
            head[room] = pack
            words[room >> 6] |= np.uint64(1) << np.uint64(room & 63)
            summary[room >> 12] |= np.uint64(1) << np.uint64((room >> 6) & 63)
    return pack_of, packs
