"""The packing plan: which pieces of which documents stand together in a sequence.

A plan is made from lengths (and, for documents that must be cut, spans) alone, so any number of plans can be made for one set
of tokens. It is a pure function of its input:

* packs are numbered by their lowest piece, pieces counted in order of (document, start); within a pack pieces are in that order
  too. Reading packs in order therefore walks the shards from front to back. Training order is a seeded permutation that the
  dataset applies when it reads (:mod:`tokkit.data.shuffle`).
* which pieces share a pack is decided by exact best-fit-decreasing (:mod:`tokkit.packing.kernels`), pieces of equal length
  being taken in order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokkit.packing.fill import fill
from tokkit.packing.kernels import NO_BOUND, canonical_order, histogram, martello_toth, packs_in_order
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.split import LeftOut, Pieces, split_documents
from tokkit.shards.spans import SpanTable

ALGORITHM = "best-fit-decreasing"
ALGORITHM_VERSION = 1  # raised whenever the same input gives another plan


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
        num_documents: of the split, whether packed or not.
        pack_offsets: int64 [P + 1]; pack p is ``pieces[pack_offsets[p]:pack_offsets[p + 1]]``.
        pieces: in pack order.
        left_out: the documents that are in no pack.
        bounds: lower bounds on P.
    """

    seq_len: int
    policy: SplitPolicy
    max_documents: int | None
    num_documents: int
    pack_offsets: npt.NDArray[np.int64]
    pieces: Pieces
    left_out: LeftOut
    bounds: Bounds

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
) -> PackPlan:
    """Plan the packing of documents.

    Args:
        lengths: int64 [D], tokens of each document.
        spans: of these documents; None is enough where no document is to be cut
            (:func:`tokkit.packing.split.needs_spans`).
        seq_len: tokens of a sequence.
        max_documents: pieces of documents that a pack may hold, for what needs arrays of a fixed size for each sequence.

    Raises:
        ValueError, DataError: as :func:`tokkit.packing.split.split_documents`; a bound below 1, or one with ``fill``.
    """
    if max_documents is not None and (max_documents < 1 or policy is SplitPolicy.FILL):
        raise ValueError(f"at most {max_documents} documents in a pack, split policy {policy}")
    pieces, left_out = split_documents(lengths, spans, seq_len, policy)
    if policy is SplitPolicy.FILL and spans is not None:
        filled = fill(pieces, spans, seq_len)
        offsets, items = canonical_order(filled.pack_of, filled.packs)
        counts = histogram(filled.pieces.length, seq_len)
        pieces = filled.pieces.take(items)
    else:
        counts = histogram(pieces.length, seq_len)
        offsets, items, packed = packs_in_order(pieces.length, counts, seq_len, max_documents or NO_BOUND)
        if len(pieces) == len(lengths) and not len(left_out):  # each is a whole document, and the items are these
            pieces = Pieces(items, np.zeros(len(items), dtype=np.int64), packed)
        else:
            pieces = Pieces(pieces.document[items], pieces.start[items], packed)
    tokens = int(pieces.length.sum(dtype=np.int64))
    bounds = Bounds(-(-tokens // seq_len), int(martello_toth(counts, seq_len)))
    return PackPlan(seq_len, policy, max_documents, len(lengths), offsets, pieces, left_out, bounds)
