"""Documents -> pieces that fit into one sequence, and which documents are left out.

Three policies:

* ``never``: a document is one piece. Documents longer than seq_len are left out.
* ``overlong``: documents that fit are one piece; longer ones are cut, from the front, into pieces as long as possible. A cut
  that would fall inside a media span (a picture with its markers, a sound, a video) goes before that span; one that falls into
  text stays, so that the piece has exactly seq_len tokens. A sound that is longer than seq_len is cut too, at the last frame
  that fits (:mod:`tokkit.packing.cuts`). A document with any other media span longer than seq_len is left out, whole.
* ``fill``: as ``overlong``, and then documents that fit are cut too, where that fills the holes that whole ones with media
  leave (:mod:`tokkit.packing.fill`), and so are sounds that fit.

Everything left out is listed with its reason and with the seq_len it would need. Pieces of one document are in order and
without gaps: every token of a packed document is in exactly one piece. A piece may be as short as one token (the document's
end marker behind text that fills its sequences).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError
from tokkit.packing.cuts import TEXT, cut_within, must_hold
from tokkit.packing.policy import SplitPolicy
from tokkit.shards.spans import SpanTable

MAX_SEQ_LEN = 1 << 24


class Reason(StrEnum):
    """Why a document is in no pack."""

    EMPTY = "empty"
    OVERLONG = "longer-than-seq-len"
    ATOMIC_SPAN = "media-span-longer-than-seq-len"


REASONS = tuple(Reason)
_PACKED, _EMPTY, _OVERLONG, _ATOMIC, _BAD_SPANS = -1, 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class Pieces:
    """N stretches of documents.

    Attributes:
        document: int64 [N], number of the document in its split.
        start: int64 [N], first token, from the document's first.
        length: int32 [N], tokens; at least 1.
    """

    document: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.length)

    def take(self, items: npt.NDArray[np.int64] | slice) -> Pieces:
        """The pieces at these places, in this order."""
        return Pieces(self.document[items], self.start[items], self.length[items])


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The documents that are in no pack, in document order.

    Attributes:
        document: int64 [M].
        length: int64 [M], tokens.
        reason: uint8 [M], index into :data:`REASONS`.
        needs: int64 [M], the smallest seq_len at which the same policy would pack it; 0 for empty ones.
    """

    document: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    reason: npt.NDArray[np.uint8]
    needs: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.document)

    @property
    def num_tokens(self) -> int:
        return int(self.length.sum())

    def by_reason(self) -> dict[str, int]:
        """Number of documents for each reason that occurs."""
        counts = np.bincount(self.reason, minlength=len(REASONS))
        return {reason.value: int(n) for reason, n in zip(REASONS, counts, strict=True) if n}


@nb.njit(cache=True, nogil=True)
def _classify(
    length: int,
    first: int,
    last: int,
    span_start: npt.NDArray[np.int64],
    span_length: npt.NDArray[np.int64],
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
    seq_len: int,
) -> tuple[int, int]:
    """For an over-long document whether it can be cut: (_PACKED, _ATOMIC or _BAD_SPANS, most tokens that must be together)."""
    longest = 0
    end = 0
    for s in range(first, last):
        if span_start[s] < end or span_length[s] < 0 or span_start[s] + span_length[s] > length:
            return _BAD_SPANS, longest
        end = span_start[s] + span_length[s]
        if span_modality[s] != TEXT:
            longest = max(longest, must_hold(span_length[s], span_frame[s]))
    return (_ATOMIC if longest > seq_len else _PACKED), longest


@nb.njit(cache=True, nogil=True)
def _cut(
    length: int,
    first: int,
    last: int,
    span_start: npt.NDArray[np.int64],
    span_length: npt.NDArray[np.int64],
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
    seq_len: int,
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    at: int,
    write: bool,
) -> int:
    """Cut a document that :func:`_classify` passed: the number of pieces; with ``write`` they are stored from ``at`` on."""
    position = 0
    span = first
    pieces = 0
    while position < length:
        end = min(position + seq_len, length)
        while span < last and span_start[span] + span_length[span] <= end:
            span += 1
        if span < last and span_start[span] < end:
            frame = span_frame[span] if span_length[span] > seq_len else 0  # what a sequence holds is not cut
            end = cut_within(end, span_start[span], span_length[span], span_modality[span], frame)  # > position
        if write:
            starts[at + pieces] = position
            lengths[at + pieces] = end - position
        pieces += 1
        position = end
    return pieces


@nb.njit(cache=True, nogil=True)
def _count_pieces(
    lengths: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    span_start: npt.NDArray[np.int64],
    span_length: npt.NDArray[np.int64],
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
    seq_len: int,
    cut: bool,
    check: bool,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int8], npt.NDArray[np.int64]]:
    """For every document: number of pieces, why it is left out (or _PACKED), and the seq_len it would need.

    With ``check`` the spans of documents that fit are looked at too.
    """
    documents = lengths.size
    counts = np.zeros(documents, dtype=np.int64)
    reasons = np.full(documents, _PACKED, dtype=np.int8)
    needs = np.zeros(documents, dtype=np.int64)
    no_starts, no_lengths = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int32)
    for d in range(documents):
        length = lengths[d]
        if length == 0:
            reasons[d] = _EMPTY
        elif length <= seq_len:
            counts[d] = 1
            if check:
                of = offsets[d], offsets[d + 1], span_start, span_length, span_modality, span_frame
                found, _ = _classify(length, *of, seq_len)
                if found == _BAD_SPANS:
                    reasons[d] = _BAD_SPANS
        elif not cut:
            reasons[d], needs[d] = _OVERLONG, length
        else:
            of = offsets[d], offsets[d + 1], span_start, span_length, span_modality, span_frame
            reasons[d], needs[d] = _classify(length, *of, seq_len)
            if reasons[d] == _PACKED:
                counts[d] = _cut(length, *of, seq_len, no_starts, no_lengths, 0, False)
    return counts, reasons, needs


@nb.njit(cache=True, nogil=True)
def _write_pieces(
    lengths: npt.NDArray[np.int64],
    offsets: npt.NDArray[np.int64],
    span_start: npt.NDArray[np.int64],
    span_length: npt.NDArray[np.int64],
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
    seq_len: int,
    counts: npt.NDArray[np.int64],
    total: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """The pieces themselves, document by document."""
    document = np.empty(total, dtype=np.int64)
    starts = np.empty(total, dtype=np.int64)
    piece_lengths = np.empty(total, dtype=np.int32)
    at = 0
    for d in range(lengths.size):
        if counts[d] == 0:
            continue
        document[at : at + counts[d]] = d
        if lengths[d] <= seq_len:
            starts[at], piece_lengths[at] = 0, lengths[d]
        else:
            of = offsets[d], offsets[d + 1], span_start, span_length, span_modality, span_frame
            _cut(lengths[d], *of, seq_len, starts, piece_lengths, at, True)
        at += counts[d]
    return document, starts, piece_lengths


def aligned(lengths: npt.NDArray[np.int32], align: int) -> npt.NDArray[np.int32]:
    """The places that pieces of these lengths take: rounded up to multiples of ``align``."""
    return lengths if align == 1 else -(-lengths // np.int32(align)) * np.int32(align)


def needs_spans(lengths: npt.NDArray[np.int64], seq_len: int, policy: SplitPolicy) -> bool:
    """Whether :func:`split_documents` would look at the spans: they cost reading the document tables."""
    if policy is SplitPolicy.FILL:
        return bool(lengths.size)
    return policy is SplitPolicy.OVERLONG and bool(lengths.size) and int(lengths.max()) > seq_len


def split_documents(
    lengths: npt.NDArray[np.int64], spans: SpanTable | None, seq_len: int, policy: SplitPolicy
) -> tuple[Pieces, LeftOut]:
    """Cut documents into pieces of at most ``seq_len`` tokens.

    Args:
        lengths: int64 [D], tokens of each document.
        spans: of these documents, sorted within each; may be None where :func:`needs_spans` says so.
        seq_len: tokens of a sequence, 1..:data:`MAX_SEQ_LEN`.

    Returns:
        the pieces by (document, start), and the documents that have none.

    Raises:
        ValueError: a seq_len out of range, or spans missing.
        DataError: the spans of a document overlap or reach beyond its end.
    """
    if not 1 <= seq_len <= MAX_SEQ_LEN:
        raise ValueError(f"seq_len {seq_len} is outside of 1..{MAX_SEQ_LEN}")
    lengths = np.ascontiguousarray(lengths, dtype=np.int64)
    if spans is None:
        if needs_spans(lengths, seq_len, policy):
            raise ValueError("documents can only be cut with their spans")
        none = np.zeros(0, dtype=np.int64)
        spans = SpanTable(np.zeros(len(lengths) + 1, dtype=np.int64), none, none, np.zeros(0, dtype=np.uint8))
    elif len(spans.offsets) != len(lengths) + 1:
        raise ValueError(f"spans of {len(spans.offsets) - 1} documents for {len(lengths)} lengths")
    if policy is not SplitPolicy.FILL and lengths.size and lengths.min() > 0 and lengths.max() <= seq_len:
        number = np.arange(len(lengths), dtype=np.int64)  # nothing to cut and nothing to leave out
        none = np.zeros(0, dtype=np.int64)
        left_out = LeftOut(none, none, np.zeros(0, dtype=np.uint8), none)
        return Pieces(number, np.zeros_like(number), lengths.astype(np.int32)), left_out
    table = (spans.offsets, spans.start, spans.length, spans.modality, spans.frames)
    counts, reasons, needs = _count_pieces(
        lengths, *table, seq_len, policy is not SplitPolicy.NEVER, policy is SplitPolicy.FILL
    )
    bad = np.flatnonzero(reasons == _BAD_SPANS)
    if bad.size:
        raise DataError(f"the spans of document {int(bad[0])} overlap or reach beyond its {int(lengths[bad[0]])} tokens")
    pieces = Pieces(*_write_pieces(lengths, *table, seq_len, counts, int(counts.sum())))
    out = np.flatnonzero(reasons != _PACKED)
    return pieces, LeftOut(out, lengths[out], reasons[out].astype(np.uint8), needs[out])
