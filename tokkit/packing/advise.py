"""What sequence lengths would come to: plans for several, from the real lengths and spans, side by side.

Where pictures make up much of the data their length decides how well whole documents pack: 4,096 holds three pictures of 1,026
tokens and 1,018 tokens beside them, 8,192 holds seven and not eight. So besides the usual lengths those are looked at which
hold so many pictures with the text that goes with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokkit.packing.cuts import TEXT, held_whole
from tokkit.packing.plan import plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.too_long import media_too_long
from tokkit.shards.spans import SpanTable

USUAL = (1024, 2048, 4096, 8192, 16384, 32768)
MULTIPLE = 64  # what a length is rounded up to
MUCH = 0.2  # share of media tokens from which on their length is looked at


@dataclass(frozen=True, slots=True)
class MediaLength:
    """The length that most tokens of media have.

    Attributes:
        modality: index into :data:`tokkit.vocabulary.MODALITIES`.
        length: tokens of one such span, markers included.
        count: how many there are.
        share: of all tokens that are in spans of this length.
        beside: other tokens to each of them, on average.
        held: tokens of one that must be in one sequence: fewer than ``length`` where it is a sound that may be cut.
    """

    modality: int
    length: int
    count: int
    share: float
    beside: float
    held: int


@dataclass(frozen=True, slots=True)
class Advice:
    """What a sequence length would come to.

    Attributes:
        seq_len: tokens of a sequence.
        packs: sequences.
        efficiency: tokens / (packs * seq_len).
        padding: places without a token.
        documents, cut_documents, left_out: of the split, of more than one piece, in no pack.
        left_out_tokens: in the documents left out.
        too_long: documents with media longer than a sequence: a plan of this length is refused, unless they are to be left out.
        media: how many of the most common media spans a sequence holds; 0 where there is none.
        beside: tokens that it holds beside them.
    """

    seq_len: int
    packs: int
    efficiency: float
    padding: int
    documents: int
    cut_documents: int
    left_out: int
    left_out_tokens: int
    too_long: int
    media: int
    beside: int


def common_media(
    lengths: npt.NDArray[np.int64], spans: SpanTable, policy: SplitPolicy = SplitPolicy.OVERLONG
) -> MediaLength | None:
    """The length of media span that most tokens are in; None where there are no media."""
    media = spans.modality != TEXT
    if not media.any():
        return None
    kinds, counts = np.unique(
        np.stack([spans.modality[media].astype(np.int64), spans.length[media]]), axis=1, return_counts=True
    )
    most = int(np.argmax(kinds[1] * counts))
    modality, length, count = int(kinds[0, most]), int(kinds[1, most]), int(counts[most])
    tokens = int(lengths.sum())
    these = media & (spans.modality == modality) & (spans.length == length)
    held = int(held_whole(spans, policy)[these].max())
    return MediaLength(modality, length, count, length * count / max(tokens, 1), (tokens - length * count) / count, held)


def candidates(media: MediaLength | None) -> list[int]:
    """Sequence lengths worth looking at: the usual ones, and near each of these those that fit whole media with their text."""
    found = set(USUAL)
    if media is not None and media.share >= MUCH:
        each = media.length + media.beside
        for usual in USUAL:
            fit = int(usual // each)
            found |= {_rounded(number * each) for number in (fit, fit + 1) if number}
    return sorted(n for n in found if media is None or n >= media.held)


def _rounded(tokens: float) -> int:
    return -(-int(np.ceil(tokens)) // MULTIPLE) * MULTIPLE


def advise(
    lengths: npt.NDArray[np.int64], spans: SpanTable, seq_lens: Sequence[int], policy: SplitPolicy = SplitPolicy.OVERLONG
) -> list[Advice]:
    """What each of some sequence lengths would come to.

    Args:
        lengths: int64 [D], tokens of each document.
        spans: of these documents.
        seq_lens: to look at.
        policy: which documents are cut.

    Raises:
        ValueError, DataError: as :func:`tokkit.packing.plan.plan_packs`.
    """
    media = common_media(lengths, spans, policy)
    found = []
    for seq_len in seq_lens:
        plan = plan_packs(lengths, spans, seq_len, policy)
        too_long = media_too_long(lengths, spans, seq_len, policy)
        fit = seq_len // media.length if media is not None else 0
        found.append(
            Advice(
                seq_len=seq_len,
                packs=plan.num_packs,
                efficiency=plan.efficiency,
                padding=plan.num_packs * seq_len - plan.num_tokens,
                documents=plan.num_documents,
                cut_documents=plan.num_cut_documents,
                left_out=len(plan.left_out),
                left_out_tokens=plan.left_out.num_tokens,
                too_long=0 if too_long is None else too_long.documents,
                media=fit,
                beside=seq_len - fit * media.length if media is not None else seq_len,
            )
        )
    return found
