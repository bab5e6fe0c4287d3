"""Byte-level BPE over UTF-8 bytes: cutting a text into pieces as a pre-tokenizer's expression does, and merging their bytes.

Two kinds of expression are known (:data:`GPT2`, :data:`CL100K`). Every byte is given the class of the character that it belongs
to, so that a run of letters is a run of equal bytes; what the expressions say of single characters is asked at first bytes.

Of a piece, the pair of neighbours with the lowest rank is merged, the leftmost where several have it, until no pair has a
rank: what the algorithm of Sennrich et al. (2016) comes to. Short pieces are gone through again for each merge; longer ones
keep their pairs in a heap, in which an entry counts if the pair at its place still has its rank (a rank belongs to one pair).

Pieces of up to 24 bytes and 8 ids are remembered in a table of fixed size, one line of 64 bytes each, in one of two places;
what comes later takes the place of what was there.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]
Slots = npt.NDArray[np.uint64]
Int = Any  # Python's or one of NumPy's

# Classes of characters.
UNKNOWN, LETTER, NUMBER, SPACE, OTHER = range(5)

# Kinds of expression; a CL100K's numbers are of up to so many digits: 1 or 3.
GPT2, CL100K = 0, 1

SCANNED = 48  # bytes of a piece that is gone through again for each merge
STEPS = 16  # in the table of tokens, before a piece counts as not there
NONE = np.int32(0x7FFFFFFF)

# A line of the table of pieces, uint64 [8]: hash, length and number of ids; three words of bytes; four words of two ids each.
WORDS = 8
LINE_BYTES, LINE_IDS = 24, 8

_APOSTROPHE, _BLANK, _LF, _CR = 0x27, 0x20, 0x0A, 0x0D


@nb.njit(cache=True, nogil=True)
def classify(data: Bytes, start: Int, stop: Int, classes: Bytes, kinds: Bytes) -> Int:
    """Write the class of the character of every byte at ``[start, stop)``; returns a code point without one, or -1."""
    i = start
    while i < stop:
        lead = data[i]
        if lead < 0x80:
            kinds[i - start] = classes[lead]
            i += 1
            continue
        if lead < 0xE0:
            length, point = 2, np.int64(lead & 0x1F)
        elif lead < 0xF0:
            length, point = 3, np.int64(lead & 0x0F)
        else:
            length, point = 4, np.int64(lead & 0x07)
        for k in range(1, length):
            point = point << 6 | np.int64(data[i + k] & 0x3F)
        kind = classes[point]
        if kind == UNKNOWN:
            return point
        for k in range(length):
            kinds[i - start + k] = kind
        i += length
    return -1


@nb.njit(cache=True, nogil=True)
def contraction(data: Bytes, at: Int, stop: Int, any_case: bool) -> Int:
    """Bytes of ``'s``, ``'t``, ``'re``, ``'ve``, ``'m``, ``'ll`` or ``'d`` at an apostrophe; 0 for none.

    Returns -1 for what folds to one of them and is not ASCII (the long s, ligatures of st): left to the library.
    """
    if at + 1 >= stop:
        return 0
    one = np.int64(data[at + 1])
    if any_case:
        if one == 0xC5 and at + 2 < stop and data[at + 2] == 0xBF:
            return -1
        if one == 0xEF and at + 3 < stop and data[at + 2] == 0xAC and (data[at + 3] == 0x85 or data[at + 3] == 0x86):
            return -1
        one = one | 0x20 if 0x41 <= one <= 0x5A else one
    if one == 0x73 or one == 0x74 or one == 0x6D or one == 0x64:  # s t m d
        return 2
    if at + 2 >= stop:
        return 0
    two = np.int64(data[at + 2])
    if any_case:
        two = two | 0x20 if 0x41 <= two <= 0x5A else two
    if (one == 0x72 and two == 0x65) or (one == 0x76 and two == 0x65) or (one == 0x6C and two == 0x6C):  # re ve ll
        return 3
    return 0


@nb.njit(cache=True, nogil=True)
def run_end(kinds: Bytes, at: Int, stop: Int, kind: Int) -> Int:
    """Behind the bytes of one class."""
    while at < stop and kinds[at] == kind:
        at += 1
    return at


@nb.njit(cache=True, nogil=True)
def space_end(data: Bytes, kinds: Bytes, at: Int, stop: Int) -> Int:
    r"""``\s+(?!\S)|\s+``: white space without its last character, where something follows and there are several."""
    end = run_end(kinds, at, stop, SPACE)
    if end == stop:
        return stop
    last = end - 1
    while data[last] & 0xC0 == 0x80:
        last -= 1
    return last if last > at else end


@nb.njit(cache=True, nogil=True)
def gpt2_end(data: Bytes, kinds: Bytes, at: Int, stop: Int) -> Int:
    """The end of the piece at ``at``, by GPT-2's expression."""
    lead, kind, begin = data[at], kinds[at], at
    if lead == _APOSTROPHE:
        length = contraction(data, at, stop, False)
        if length > 0:
            return at + length
    if lead == _BLANK and at + 1 < stop and kinds[at + 1] != SPACE:
        begin, kind = at + 1, kinds[at + 1]
    if kind != SPACE:
        return run_end(kinds, begin, stop, kind)
    return space_end(data, kinds, at, stop)


@nb.njit(cache=True, nogil=True)
def cl100k_end(data: Bytes, kinds: Bytes, at: Int, stop: Int, digits: Int) -> Int:
    """The end of the piece at ``at``, by GPT-4's expression and those of its kind; -1 where the library has to tell."""
    lead, kind = data[at], kinds[at]
    if lead == _APOSTROPHE:
        length = contraction(data, at, stop, True)
        if length != 0:
            return at + length if length > 0 else -1
    if kind == LETTER:
        return run_end(kinds, at, stop, LETTER)
    end = at + 1
    while end < stop and data[end] & 0xC0 == 0x80:
        end += 1
    if kind == NUMBER:
        count = 1
        while count < digits and end < stop and kinds[end] == NUMBER:
            end += 1
            while end < stop and data[end] & 0xC0 == 0x80:
                end += 1
            count += 1
        return end
    if lead != _LF and lead != _CR and end < stop and kinds[end] == LETTER:
        return run_end(kinds, end, stop, LETTER)
    if kind == OTHER or (lead == _BLANK and end < stop and kinds[end] == OTHER):
        end = run_end(kinds, at if kind == OTHER else end, stop, OTHER)
        while end < stop and (data[end] == _LF or data[end] == _CR):
            end += 1
        return end
    end = run_end(kinds, at, stop, SPACE)
    while end > at and data[end - 1] != _LF and data[end - 1] != _CR:
        end -= 1
    return end if end > at else space_end(data, kinds, at, stop)


@nb.njit(cache=True, nogil=True)
def find_pair(keys: Slots, left: Int, right: Int) -> Int:
    """The place of a pair in the table of merges, or -1."""
    key = np.uint64(left) << np.uint64(32) | np.uint64(right)
    mask = np.uint64(keys.size - 1)
    place = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & mask
    while True:
        found = keys[place]
        if found == key:
            return np.int64(place)
        if found == np.uint64(0xFFFFFFFFFFFFFFFF):
            return -1
        place = (place + np.uint64(1)) & mask


@nb.njit(cache=True, nogil=True)
def put_pairs(keys: Slots, values: Ids, lefts: Ids, rights: Ids, made: Ids) -> None:
    """Fill the table of merges: rank (their order) and result of each pair; a pair that comes again has its last rank."""
    mask = np.uint64(keys.size - 1)
    for rank in range(len(lefts)):
        key = np.uint64(lefts[rank]) << np.uint64(32) | np.uint64(rights[rank])
        place = (key * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(20) & mask
        while keys[place] != np.uint64(0xFFFFFFFFFFFFFFFF) and keys[place] != key:
            place = (place + np.uint64(1)) & mask
        keys[place] = key
        values[np.int64(place), 0] = rank
        values[np.int64(place), 1] = made[rank]


@nb.njit(cache=True, nogil=True)
def merge_short(symbols: Ids, ranks: Ids, made: Ids, count: Int, keys: Slots, values: Ids) -> Int:
    """Merge the first ``count`` symbols in place; returns how many are left."""
    for i in range(count - 1):
        place = find_pair(keys, symbols[i], symbols[i + 1])
        ranks[i] = values[place, 0] if place >= 0 else NONE
        made[i] = values[place, 1] if place >= 0 else 0
    while count > 1:
        at, lowest = -1, NONE
        for i in range(count - 1):
            if ranks[i] < lowest:
                at, lowest = i, ranks[i]
        if at < 0:
            break
        symbols[at] = made[at]
        count -= 1
        for i in range(at + 1, count):
            symbols[i] = symbols[i + 1]
            ranks[i - 1] = ranks[i]
            made[i - 1] = made[i]
        for i in range(max(at - 1, 0), min(at + 1, count - 1)):
            place = find_pair(keys, symbols[i], symbols[i + 1])
            ranks[i] = values[place, 0] if place >= 0 else NONE
            made[i] = values[place, 1] if place >= 0 else 0
    return count


@nb.njit(cache=True, nogil=True)
def push(heap: npt.NDArray[np.int64], size: Int, entry: Int) -> Int:
    """Put an entry into a heap whose least is first; returns the new size."""
    at = size
    while at > 0 and heap[(at - 1) >> 1] > entry:
        heap[at] = heap[(at - 1) >> 1]
        at = (at - 1) >> 1
    heap[at] = entry
    return size + 1


@nb.njit(cache=True, nogil=True)
def pop(heap: npt.NDArray[np.int64], size: Int) -> Int:
    """Take the least entry off a heap of ``size``; the rest are the first ``size - 1``."""
    least, entry, at = heap[0], heap[size - 1], 0
    while 2 * at + 1 < size - 1:
        child = 2 * at + 1
        if child + 1 < size - 1 and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = entry
    return least


@nb.njit(cache=True, nogil=True)
def merge_long(symbols: Ids, count: Int, keys: Slots, values: Ids) -> Int:
    """As :func:`merge_short`, in time that grows with ``n log n``."""
    after, before = np.empty(count, np.int64), np.empty(count, np.int64)
    ranks, made = np.empty(count, np.int32), np.empty(count, np.int32)
    heap = np.empty(3 * count, np.int64)
    size = 0
    for i in range(count):
        after[i], before[i], ranks[i], made[i] = i + 1, i - 1, NONE, 0
    for i in range(count - 1):
        place = find_pair(keys, symbols[i], symbols[i + 1])
        if place >= 0:
            ranks[i], made[i] = values[place, 0], values[place, 1]
            size = push(heap, size, np.int64(ranks[i]) << 32 | i)
    while size > 0:
        entry = pop(heap, size)
        size -= 1
        at = entry & 0xFFFFFFFF
        if ranks[at] != entry >> 32:
            continue  # merged since, or a neighbour was
        gone = after[at]
        symbols[at] = made[at]
        ranks[gone] = NONE
        after[at] = after[gone]
        if after[gone] < count:
            before[after[gone]] = at
        for side in range(2):
            left = at if side else before[at]
            if left < 0:
                continue
            ranks[left] = NONE
            if after[left] < count:
                place = find_pair(keys, symbols[left], symbols[after[left]])
                if place >= 0:
                    ranks[left], made[left] = values[place, 0], values[place, 1]
                    size = push(heap, size, np.int64(ranks[left]) << 32 | left)
    at = left_over = 0
    while at < count:
        symbols[left_over] = symbols[at]
        left_over += 1
        at = after[at]
    return left_over


@nb.njit(cache=True, nogil=True)
def hash_of(data: Bytes, start: Int, stop: Int) -> np.uint64:
    """Of a token; never 0."""
    found = np.uint64(0xCBF29CE484222325)
    for i in range(start, stop):
        found = (found ^ np.uint64(data[i])) * np.uint64(0x100000001B3)
    found ^= found >> np.uint64(29)
    found = found * np.uint64(0xBF58476D1CE4E5B9)
    return (found ^ found >> np.uint64(32)) | np.uint64(1)


@nb.njit(cache=True, nogil=True)
def find_token(slots: Slots, arena: Bytes, data: Bytes, start: Int, stop: Int, key: np.uint64) -> Int:
    """The slot of a token; -1 minus the slot that is free for it, or -1 minus the number of slots where there is none."""
    mask = np.int64(len(slots) - 1)
    place = np.int64(key >> np.uint64(1)) & mask
    for _ in range(STEPS):
        if slots[place, 0] == 0:
            return -1 - place
        if slots[place, 0] == key and np.int64(slots[place, 1] & np.uint64(0xFFFF)) == stop - start:
            at = np.int64(slots[place, 1] >> np.uint64(16))
            same = True
            for k in range(stop - start):
                if arena[at + k] != data[start + k]:
                    same = False
                    break
            if same:
                return place
        place = (place + 1) & mask
    return -1 - np.int64(len(slots))


@nb.njit(cache=True, nogil=True)
def put_tokens(slots: Slots, arena: Bytes, ends: npt.NDArray[np.int64], ids: Ids) -> bool:
    """Fill the table of tokens, which lie one behind another in ``arena``; returns whether all of them found a place."""
    start = 0
    for n in range(len(ends)):
        key = hash_of(arena, start, ends[n])
        place = -1 - find_token(slots, arena, arena, start, ends[n], key)
        if place < 0 or place == len(slots):
            return False
        slots[place, 0] = key
        slots[place, 1] = np.uint64(start) << np.uint64(16) | np.uint64(ends[n] - start)
        slots[place, 2] = np.uint64(ids[n])
        start = ends[n]
    return True


@nb.njit(cache=True, nogil=True)
def pack(data: Bytes, start: Int, stop: Int, line: Slots) -> Int:
    """Write a piece of up to 24 bytes and its hash into a line; returns where it may be, as a number of 31 bits."""
    one, two, three = np.uint64(0), np.uint64(0), np.uint64(0)
    for i in range(start, min(stop, start + 8)):
        one = one << np.uint64(8) | np.uint64(data[i])
    for i in range(start + 8, min(stop, start + 16)):
        two = two << np.uint64(8) | np.uint64(data[i])
    for i in range(start + 16, stop):
        three = three << np.uint64(8) | np.uint64(data[i])
    found = (one ^ np.uint64(stop - start)) * np.uint64(0x9E3779B97F4A7C15)
    found = (found ^ found >> np.uint64(32) ^ two) * np.uint64(0xBF58476D1CE4E5B9)
    found = (found ^ found >> np.uint64(32) ^ three) * np.uint64(0x94D049BB133111EB)
    found ^= found >> np.uint64(32)
    line[0] = found & np.uint64(0xFFFFFFFFFFFF0000) | np.uint64(stop - start) << np.uint64(8)
    line[1], line[2], line[3] = one, two, three
    return np.int64(found & np.uint64(0x7FFFFFFF))


@nb.njit(cache=True, nogil=True)
def remember(lines: Slots, place: Int, line: Slots, ids: Ids, first: Int, count: Int) -> None:
    """Put a piece that is packed in ``line`` and its ids into a place."""
    lines[place, 0] = line[0] | np.uint64(count)
    lines[place, 1], lines[place, 2], lines[place, 3] = line[1], line[2], line[3]
    for k in range(count):
        if k & 1 == 0:
            lines[place, 4 + (k >> 1)] = np.uint64(ids[first + k])
        else:
            lines[place, 4 + (k >> 1)] |= np.uint64(ids[first + k]) << np.uint64(32)


@nb.njit(cache=True, nogil=True)
def encode_pieces(
    data: Bytes,
    ends: npt.NDArray[np.int64],
    first: Int,
    classes: Bytes,
    style: int,
    digits: int,
    byte_ids: Ids,
    keys: Slots,
    values: Ids,
    lines: Slots,
    slots: Slots,
    arena: Bytes,
    longest_token: int,
    longest: int,
    out: Ids,
    filled: Int,
    lengths: npt.NDArray[np.int64],
) -> tuple[Int, Int, Int]:
    """Encode texts from the one numbered ``first`` on.

    Args:
        data: the texts, UTF-8, one behind another; text n ends at ``ends[n]``.
        keys, values: the table of merges.
        lines: the table of pieces that were met, uint64 [a power of two, WORDS].
        slots, arena: the table of tokens that a piece is, whatever the merges say, where there are such.
        longest_token: bytes of the longest of these; 0 where there are none.
        longest: bytes of a piece that is encoded here; a text with a longer one is left out, with the length -1.
        out: has room for one id a byte; ``filled`` of it is used.
        lengths: is given the number of ids of each text, -1 for one that the library has to encode.

    Returns:
        texts that are done, ids in ``out``, and a code point whose class is not known, at which it stopped; else -1.
    """
    symbols, ranks, made = np.empty(SCANNED, np.int32), np.empty(SCANNED, np.int32), np.empty(SCANNED, np.int32)
    line = np.zeros(WORDS, np.uint64)
    kinds = np.empty(0, np.uint8)
    mask, turn = len(lines) - 1, 0
    for n in range(first, len(ends)):
        base = ends[n - 1] if n > 0 else 0
        size = ends[n] - base
        if len(kinds) < size:
            kinds = np.empty(size, np.uint8)
        point = classify(data, base, base + size, classes, kinds)
        if point >= 0:
            return n, filled, point
        text = data[base : base + size]
        begin, at, whole = filled, 0, True
        while at < size:
            end = gpt2_end(text, kinds, at, size) if style == GPT2 else cl100k_end(text, kinds, at, size, digits)
            length = end - at
            if end < 0 or length > longest:
                whole = False
                break
            if length == 1:
                out[filled] = byte_ids[text[at]]
                filled += 1
                at = end
                continue
            place, met = np.int64(-1), np.int64(0)
            if length <= LINE_BYTES:
                place = pack(text, at, end, line) & mask
                for _ in range(2):
                    other = lines[place]
                    same = other[1] == line[1] and other[2] == line[2] and other[3] == line[3]
                    if same and other[0] & np.uint64(0xFFFFFFFFFFFFFF00) == line[0]:
                        met = np.int64(other[0] & np.uint64(0xFF))
                        break
                    place ^= 1
                if met > 0:
                    for k in range(0, met, 2):
                        two = lines[place, 4 + (k >> 1)]
                        out[filled + k] = np.int32(two & np.uint64(0xFFFFFFFF))
                        if k + 1 < met:
                            out[filled + k + 1] = np.int32(two >> np.uint64(32))
                    filled += met
                    at = end
                    continue
            count = 0
            if length <= longest_token:
                slot = find_token(slots, arena, text, at, end, hash_of(text, at, end))
                if slot >= 0:
                    out[filled] = np.int32(slots[slot, 2])
                    count = 1
            if count == 0 and length <= SCANNED:
                for k in range(length):
                    symbols[k] = byte_ids[text[at + k]]
                count = merge_short(symbols, ranks, made, length, keys, values)
                for k in range(count):
                    out[filled + k] = symbols[k]
            elif count == 0:
                for k in range(length):
                    out[filled + k] = byte_ids[text[at + k]]
                count = merge_long(out[filled : filled + length], length, keys, values)
            if length <= LINE_BYTES and count <= LINE_IDS:
                turn ^= 1
                remember(lines, place ^ turn, line, out, filled, count)
            filled += count
            at = end
        if not whole:
            filled = begin
        lengths[n] = filled - begin if whole else -1
    return len(ends), filled, -1
