"""Packs that whole documents cannot fill: which documents to cut, and where (policy ``fill``).

Where pictures make lengths coarse, the best packing of whole documents leaves large holes: a sequence of 8,192 holds seven
pictures of 1,026 tokens, so a document of four leaves the room of three. The holes are filled with parts of documents:

1. the pieces with media are packed whole, by exact best-fit-decreasing;
2. some of these packs are dissolved, and their pieces poured into the holes of the others, longest first into the largest hole:
   as much of a piece as the hole takes goes there, and the rest into the next one. A cut is at the edge of a span, within a
   text or between the frames of a sound only where the nearest edge would leave much of the hole. Other media are never cut
   (:mod:`tokkit.packing.cuts`), and no part is a crumb;
3. a pack made so is from then on one item, and is packed with what was left over and all pieces of nothing but text.

What is dissolved is either the emptiest packs, or those with the fewest tokens of media, whose texts fit into any hole once the
media that fit nowhere are parted from them. Which of the two, and how many, is found by trying: fewest packs, then fewest
pieces. The result is gone over again in the same way as long as that saves packs. Where whole documents pack well, or there are
no media, nothing is cut.

With ``align`` a piece takes a multiple of so many places, and so does each part of one: rooms are counted in places. With
``mixing`` what is packed is packed as :mod:`tokkit.packing.mixing` does it: the holes that lengths in a drawn order leave are
then filled too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.packing.cuts import TEXT, cut_within
from tokkit.packing.kernels import pack_items
from tokkit.packing.mixing import pack_mixed
from tokkit.packing.split import Pieces, aligned
from tokkit.shards.spans import SpanTable

GOOD_ENOUGH = 0.999  # efficiency beyond which no more is cut
WORTH_IT = 0.001  # share of packs that going over it once more must save
ROUNDS = 8
TRIES = 10  # numbers of packs to dissolve
CRUMB = 64  # a part is at least 1/64 of a sequence
NEAR = 0.9  # a span's edge is taken where it fills so much of the hole

Array = npt.NDArray[np.int64]
Spans = tuple[Array, Array, Array, npt.NDArray[np.uint8], npt.NDArray[np.int32]]  # offsets, start, length, modality, frame


@dataclass(frozen=True, eq=False)
class Filled:
    """Pieces by (document, start), and int64 [N] the pack of each (numbers of no meaning), of ``packs``."""

    pieces: Pieces
    pack_of: Array
    packs: int


@dataclass(frozen=True)
class _Manner:
    """How items are packed: see the module's docstring."""

    seq_len: int
    align: int
    mixing: float

    def places(self, lengths: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        return aligned(lengths, self.align)

    def pack(self, places: npt.NDArray[np.int32]) -> tuple[Array, int]:
        """The pack of each item of so many places, and how many packs there are."""
        return pack_mixed(places, self.seq_len, self.mixing) if self.mixing else pack_items(places, self.seq_len)


def fill(pieces: Pieces, spans: SpanTable, seq_len: int, align: int = 1, mixing: float = 0.0) -> Filled:
    """Pack pieces, cutting some of those with media and of those that share a pack with them.

    Args:
        pieces: by (document, start), each at most seq_len tokens, no picture cut.
        spans: of all documents.
        seq_len: tokens of a sequence.
        align, mixing: as :func:`tokkit.packing.plan.plan_packs`.
    """
    manner = _Manner(seq_len, align, mixing)
    table = (spans.offsets, spans.start, spans.length, spans.modality, spans.frames)
    places = int(manner.places(pieces.length).sum(dtype=np.int64))
    best = Filled(pieces, *manner.pack(manner.places(pieces.length)))
    coarse = _media_tokens(pieces.document, pieces.start, pieces.length, *table[:4]) > 0
    if not coarse.any():
        return best
    some, others = pieces.take(np.flatnonzero(coarse)), pieces.take(np.flatnonzero(~coarse))
    rows = _Rows(some, *manner.pack(manner.places(some.length)), others, table, manner)
    for _ in range(ROUNDS):
        if places >= GOOD_ENOUGH * best.packs * seq_len:
            break
        found = min(rows.pourings(), key=lambda pouring: (pouring.packs, len(pouring.pieces)), default=None)
        if found is None or found.packs >= best.packs:
            break
        saved, best = best.packs - found.packs, found.filled()
        if saved < WORTH_IT * best.packs:
            break
        rows = _Rows(best.pieces, best.pack_of, best.packs, best.pieces.take(slice(0)), table, manner)
    return best


@dataclass(frozen=True, eq=False)
class _Pouring:
    """A way to pack: pieces in any order, and which of the items that they are packed as each belongs to.

    Attributes:
        pieces: of all documents.
        item: int64 [N], the item of each piece.
        pack_of_item, packs: the packing of the items.
    """

    pieces: Pieces
    item: Array
    pack_of_item: Array
    packs: int

    def filled(self) -> Filled:
        """The pieces in order; parts that came together again are one."""
        order = np.lexsort((self.pieces.start, self.pieces.document))
        pieces, pack_of = self.pieces.take(order), self.pack_of_item[self.item[order]]
        goes_on = pieces.start[1:] == pieces.start[:-1] + pieces.length[:-1]
        goes_on &= (pieces.document[1:] == pieces.document[:-1]) & (pack_of[1:] == pack_of[:-1])
        first = np.flatnonzero(np.concatenate([[True], ~goes_on]))
        lengths = np.add.reduceat(pieces.length, first, dtype=np.int32)
        return Filled(Pieces(pieces.document[first], pieces.start[first], lengths), pack_of[first], self.packs)


class _Rows:
    """Packs that are to be improved.

    Args:
        pieces, pack_of, packs: the pieces in them, and the pack of each.
        others: pieces that are in none yet.
        spans: of all documents.
    """

    def __init__(self, pieces: Pieces, pack_of: Array, packs: int, others: Pieces, spans: Spans, manner: _Manner) -> None:
        self._pieces, self._pack_of, self._others, self._spans, self._manner = pieces, pack_of, others, spans, manner
        self._seq_len = manner.seq_len
        media = _media_tokens(pieces.document, pieces.start, pieces.length, *spans[:4])
        self._used = np.bincount(pack_of, weights=manner.places(pieces.length), minlength=packs).astype(np.int64)
        self._emptiest = np.argsort(self._used, kind="stable")
        self._fewest_media = np.argsort(np.bincount(pack_of, weights=media, minlength=packs), kind="stable")

    def pourings(self) -> Iterator[_Pouring]:
        """What dissolving more and more of the packs comes to."""
        for donors, part in ((self._emptiest, False), (self._fewest_media, True)):
            most = self._most(donors)
            for number in sorted({round(most * n / TRIES) for n in range(1, TRIES + 1)} - {0}):
                yield self._poured(donors[:number], part)

    def _most(self, donors: Array) -> int:
        """How many of the first packs take as many places as there are free ones in the others."""
        used = self._used[donors]
        room = (self._seq_len - used)[::-1].cumsum()[::-1]
        return int(np.searchsorted(used.cumsum()[:-1] - room[1:], 0, side="right")) + 1 if len(used) > 1 else 0

    def _poured(self, donors: Array, part: bool) -> _Pouring:
        """The packing with some packs dissolved."""
        dissolved = np.zeros(len(self._used), dtype=bool)
        dissolved[donors] = True
        holes = self._emptiest[~dissolved[self._emptiest]]  # the largest first
        given = dissolved[self._pack_of]
        pool = self._pieces.take(np.flatnonzero(given))
        pool = pool.take(np.argsort(-pool.length.astype(np.int64), kind="stable"))
        rooms = self._seq_len - self._used[holes]
        crumb = self._seq_len // CRUMB + 1
        how = crumb, NEAR, part, self._manner.align
        document, start, length, target = _pour(pool.document, pool.start, pool.length, rooms, *self._spans, *how)
        stays = np.flatnonzero(~given)
        place = np.full(len(self._used), -1, dtype=np.int64)
        place[holes] = np.arange(len(holes))
        kept, others = self._pieces.take(stays), self._others
        pieces = Pieces(
            np.concatenate([kept.document, document, others.document]),
            np.concatenate([kept.start, start, others.start]),
            np.concatenate([kept.length, length, others.length]),
        )
        item = np.concatenate([place[self._pack_of[stays]], target, np.full(len(others), -1, dtype=np.int64)])
        alone = item < 0
        item[alone] = len(holes) + np.arange(int(alone.sum()))
        places = np.bincount(item, weights=self._manner.places(pieces.length)).astype(np.int32)
        assert int(places.max(initial=0)) <= self._seq_len  # or a hole was taken for larger than it is
        return _Pouring(pieces, item, *self._manner.pack(places))


@nb.njit(cache=True, nogil=True)
def _media_tokens(
    document: Array,
    start: Array,
    length: npt.NDArray[np.int32],
    offsets: Array,
    span_start: Array,
    span_length: Array,
    span_modality: npt.NDArray[np.uint8],
) -> Array:
    """Tokens of media spans in each piece. (Of media that are never cut a piece has all or none.)"""
    found = np.zeros(length.size, dtype=np.int64)
    for i in range(length.size):
        for s in range(offsets[document[i]], offsets[document[i] + 1]):
            if span_modality[s] != TEXT:
                end = min(span_start[s] + span_length[s], start[i] + length[i])
                found[i] += max(0, end - max(span_start[s], start[i]))
    return found


@nb.njit(cache=True, nogil=True)
def _cut_at(
    position: int,
    room: int,
    end: int,
    first: int,
    last: int,
    span_start: Array,
    span_length: Array,
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
    near: float,
) -> int:
    """Where to cut a document that goes on from ``position`` to ``end``, so that at most ``room`` tokens come before."""
    limit = position + room
    if limit >= end:
        return end
    edge = position
    for s in range(first, last):
        begin, stop = span_start[s], span_start[s] + span_length[s]
        if begin > limit:
            break
        if begin > position:
            edge = begin
        if stop <= limit:
            edge = max(edge, stop)
        elif begin < limit:
            inside = cut_within(limit, begin, span_length[s], span_modality[s], span_frame[s])
            return edge if edge - position >= near * room else max(edge, inside)
    return edge


@nb.njit(cache=True, nogil=True)
def _next_text(
    position: int,
    end: int,
    first: int,
    last: int,
    span_start: Array,
    span_length: Array,
    span_modality: npt.NDArray[np.uint8],
    crumb: int,
) -> int:
    """Where the next text begins that is no crumb, behind ``position``; ``end`` where there is none."""
    for s in range(first, last):
        begin = span_start[s]
        if begin >= end:
            break
        if span_modality[s] == TEXT and begin - position >= crumb and min(begin + span_length[s], end) - begin >= crumb:
            return begin
    return end


@nb.njit(cache=True, nogil=True)
def _pour(
    document: Array,
    start: Array,
    length: npt.NDArray[np.int32],
    rooms: Array,
    offsets: Array,
    span_start: Array,
    span_length: Array,
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
    crumb: int,
    near: float,
    part: bool,
    align: int,
) -> tuple[Array, Array, npt.NDArray[np.int32], Array]:
    """Pour pieces into holes (``rooms`` in places): document, start and length of each part, and its hole, or -1 for none.

    With ``part`` media that fit nowhere are parted from the text behind them, which may.
    """
    capacity = length.size + rooms.size
    if part:
        for i in range(length.size):
            capacity += offsets[document[i] + 1] - offsets[document[i]]
    documents = np.empty(capacity, dtype=np.int64)
    starts = np.empty(capacity, dtype=np.int64)
    lengths = np.empty(capacity, dtype=np.int32)
    targets = np.empty(capacity, dtype=np.int64)
    hole = used = 0
    room = rooms[0] if rooms.size else 0
    for i in range(length.size):
        position, end = start[i], start[i] + length[i]
        first, last = offsets[document[i]], offsets[document[i] + 1]
        while position < end:
            target, cut = -1, end
            for further in range(min(2, rooms.size - hole)):  # no later hole is larger than the one behind this
                there = room if further == 0 else rooms[hole + 1]
                found = _cut_at(position, there, end, first, last, span_start, span_length, span_modality, span_frame, near)
                if found == end or (found - position >= crumb and end - found >= crumb):
                    hole, room = hole + further, there
                    target, cut = hole, found
                    break
            if target < 0 and part:
                cut = _next_text(position, end, first, last, span_start, span_length, span_modality, crumb)
            documents[used], starts[used], lengths[used], targets[used] = document[i], position, cut - position, target
            used += 1
            position = cut
            if target >= 0:
                room -= -(-(cut - starts[used - 1]) // align) * align
                if position < end or room < crumb:
                    hole += 1
                    room = rooms[hole] if hole < rooms.size else 0
    return documents[:used], starts[:used], lengths[:used], targets[:used]
