"""The packing plan: which pieces of which documents stand together in a sequence.

A plan is made from lengths (and, for documents that must be cut, spans) alone, so any number of plans can be made for one set
of tokens. It is a pure function of its input:

* packs are numbered by their lowest piece, pieces counted in order of (document, start); within a pack pieces are in that order
  too. Reading packs in order therefore walks the shards from front to back. Training order is a seeded permutation that the
  dataset applies when it reads (:mod:`tokkit.data.shuffle`).
* which pieces share a pack is decided by exact best-fit-decreasing (:mod:`tokkit.packing.kernels`), pieces of equal length
  being taken in order; with ``mixing``, by best-fit of most of them in a drawn order (:mod:`tokkit.packing.mixing`).
* with ``align`` every piece takes a multiple of so many places, for what wants its documents to begin at such
  (:mod:`tokkit.data.aligned`). In rows pieces still follow one another without gaps; the room is at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokkit.packing.cuts import cuts_sounds
from tokkit.packing.fill import fill
from tokkit.packing.kernels import NO_BOUND, canonical_order, histogram, martello_toth, packs_in_order
from tokkit.packing.mixing import pack_mixed
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.split import LeftOut, Pieces, aligned, split_documents
from tokkit.shards.spans import SpanTable

ALGORITHM = "best-fit-decreasing"
ALGORITHM_VERSION = 1  # raised whenever the same input gives another plan
SOUNDS_VERSION = 2  # of plans that sounds may be cut in; version 1 cut none


@dataclass(frozen=True, slots=True)
class Bounds:
    """Lower bounds on the number of packs for the same pieces, whatever the algorithm.

    Attributes:
        volume: ceil(tokens / seq_len).
        martello_toth: the bound L2 of Martello and Toth (1990); never below ``volume``.
    """

    volume: int
    martello_toth: int


@dataclass(frozen=True, eq=False)
class PackPlan:
    """P packs of at most ``seq_len`` tokens.

    Attributes:
        seq_len: tokens of a sequence.
        policy: which documents were cut.
        max_documents: that share a pack, at most; None is without bound.
        align: each piece takes a multiple of so many places.
        mixing: share of the pieces that were taken in a drawn order.
        num_documents: of the split, whether packed or not.
        pack_offsets: int64 [P + 1]; pack p is ``pieces[pack_offsets[p]:pack_offsets[p + 1]]``.
        pieces: in pack order.
        left_out: the documents that are in no pack.
        bounds: lower bounds on P.
        algorithm_version: see :func:`algorithm_version`.
    """

    seq_len: int
    policy: SplitPolicy
    max_documents: int | None
    align: int
    mixing: float
    num_documents: int
    pack_offsets: npt.NDArray[np.int64]
    pieces: Pieces
    left_out: LeftOut
    bounds: Bounds
    algorithm_version: int = ALGORITHM_VERSION

    @property
    def num_packs(self) -> int:
        return len(self.pack_offsets) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in packs, padding not counted."""
        return int(self.pieces.length.sum(dtype=np.int64))

    @property
    def num_cut_documents(self) -> int:
        """Documents of more than one piece."""
        return len(np.unique(self.pieces.document[self.pieces.start > 0]))

    @property
    def max_pieces(self) -> int:
        """Pieces of the fullest pack; 0 without packs."""
        return int(np.diff(self.pack_offsets).max(initial=0))

    @property
    def efficiency(self) -> float:
        """Tokens over places: 1.0 is no padding. 1.0 too for an empty plan, which has none."""
        return self.num_tokens / (self.num_packs * self.seq_len) if self.num_packs else 1.0

    def pack(self, index: int) -> Pieces:
        """The pieces of a pack, in order."""
        return self.pieces.take(slice(int(self.pack_offsets[index]), int(self.pack_offsets[index + 1])))


def plan_packs(
    lengths: npt.NDArray[np.int64],
    spans: SpanTable | None,
    seq_len: int,
    policy: SplitPolicy = SplitPolicy.OVERLONG,
    max_documents: int | None = None,
    *,
    align: int = 1,
    mixing: float = 0.0,
) -> PackPlan:
    """Plan the packing of documents.

    Args:
        lengths: int64 [D], tokens of each document.
        spans: of these documents; None is enough where no document is to be cut
            (:func:`tokkit.packing.split.needs_spans`).
        seq_len: tokens of a sequence.
        max_documents: pieces of documents that a pack may hold, for what needs arrays of a fixed size for each sequence.
        align: let every piece take a multiple of so many places; divides seq_len.
        mixing: 0..1, share of the pieces, the longest, that are taken in a drawn order.

    Raises:
        ValueError, DataError: as :func:`tokkit.packing.split.split_documents`; a bound below 1, an ``align`` that does not
            divide seq_len, a ``mixing`` outside of 0..1, or ``max_documents`` with ``fill``.
    """
    if max_documents is not None and (max_documents < 1 or policy is SplitPolicy.FILL):
        raise ValueError(f"at most {max_documents} documents in a pack, split policy {policy}")
    if align < 1 or seq_len % align or not 0 <= mixing <= 1:
        raise ValueError(f"seq_len {seq_len}, align {align}, mixing {mixing}")
    most = max_documents or NO_BOUND
    pieces, left_out = split_documents(lengths, spans, seq_len, policy)
    if policy is SplitPolicy.FILL and spans is not None:
        filled = fill(pieces, spans, seq_len, align, mixing)
        offsets, items = canonical_order(filled.pack_of, filled.packs)
        counts = histogram(aligned(filled.pieces.length, align), seq_len)
        pieces = filled.pieces.take(items)
    else:
        places = aligned(pieces.length, align)
        counts = histogram(places, seq_len)
        if mixing:
            offsets, items = canonical_order(*pack_mixed(places, seq_len, mixing, most))
            packed = pieces.length[items]
        else:
            offsets, items, packed = packs_in_order(places, counts, seq_len, most)
            packed = packed if align == 1 else pieces.length[items]
        if len(pieces) == len(lengths) and not len(left_out):  # each is a whole document, and the items are these
            pieces = Pieces(items, np.zeros(len(items), dtype=np.int64), packed)
        else:
            pieces = Pieces(pieces.document[items], pieces.start[items], packed)
    taken = int(counts @ np.arange(len(counts)))
    bounds = Bounds(-(-taken // seq_len), int(martello_toth(counts, seq_len)))
    how = seq_len, policy, max_documents, align, mixing
    return PackPlan(*how, len(lengths), offsets, pieces, left_out, bounds, algorithm_version(spans, seq_len, policy))


def algorithm_version(spans: SpanTable | None, seq_len: int, policy: SplitPolicy) -> int:
    """The version of the algorithm that plans these documents; ``spans`` may be None where these need not be read."""
    return SOUNDS_VERSION if spans is not None and cuts_sounds(spans, seq_len, policy) else ALGORITHM_VERSION
