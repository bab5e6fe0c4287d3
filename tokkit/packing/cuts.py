"""Where a span may be cut, and how much of it a sequence must be able to hold.

Text may be cut anywhere, a picture or a video nowhere. A sound may be cut between its frames where its layout has such: a frame
is the tokens of all codebooks at one time step, and :attr:`tokkit.shards.spans.SpanTable.frame` says how many these are. In the
layout ``flat`` each frame stands by itself; in ``delay`` each step does, which has the codes of several frames, one of each
codebook; in ``book_major`` nothing does, so that such a sound is whole or not there. The begin marker stays with the first
frame and the end marker with the last one: no piece has a marker alone, and a sound of one frame is whole.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.packing.policy import SplitPolicy
from tokkit.shards.spans import SpanTable
from tokkit.vocabulary import MODALITIES

TEXT = MODALITIES.index("text")

Array = npt.NDArray[np.int64]

# Numba's cache holds the kernels of split.py and fill.py with these functions inlined, and does not see that this file changed:
# after a change here remove the cached files (*.nbi, *.nbc) beside them.


@nb.njit(cache=True, nogil=True)
def must_hold(length: int, frame: int) -> int:
    """Tokens of a media span that a sequence must have room for: all, or a marker and a frame."""
    return frame + 1 if frame > 0 and length - 2 >= 2 * frame else length


@nb.njit(cache=True, nogil=True)
def cut_within(limit: int, begin: int, length: int, modality: int, frame: int) -> int:
    """The last place up to ``limit``, which is inside a span, at which this may be cut: where it begins, if nowhere in it."""
    if modality == TEXT:
        return limit
    if frame <= 0:
        return begin
    frames = min((limit - begin - 1) // frame, (length - 2) // frame - 1)
    return begin + 1 + frames * frame if frames > 0 else begin


def held_whole(spans: SpanTable, policy: SplitPolicy) -> Array:
    """int64 [S]: how many tokens of each span must be in one sequence; 0 for text.

    As :func:`must_hold` has it, by numpy: a look at an output that is packed already need not wait for Numba.
    """
    held = spans.length.copy()
    if policy is not SplitPolicy.NEVER and spans.frame is not None:
        apart = (spans.frame > 0) & (spans.length - 2 >= 2 * spans.frame)
        held[apart] = spans.frame[apart] + 1
    held[spans.modality == TEXT] = 0
    return held


def cuts_sounds(spans: SpanTable, seq_len: int, policy: SplitPolicy) -> bool:
    """Whether sounds may come to be cut: with ``overlong`` those longer than a sequence, with ``fill`` any."""
    if policy is SplitPolicy.NEVER or spans.frame is None:
        return False
    apart = spans.frame > 0
    return bool((apart & (spans.length > seq_len)).any() if policy is SplitPolicy.OVERLONG else apart.any())


def first_wrong_cut(document: Array, start: Array, spans: SpanTable) -> int:
    """Number of the first piece that begins where no span may be cut, or -1.

    Args:
        document, start: int64 [N], pieces of documents.
        spans: of all documents.
    """
    table = spans.offsets, spans.start, spans.length, spans.modality, spans.frames
    return int(_first_wrong_cut(document, start, *table))


@nb.njit(cache=True, nogil=True)
def _first_wrong_cut(
    document: Array,
    start: Array,
    offsets: Array,
    span_start: Array,
    span_length: Array,
    span_modality: npt.NDArray[np.uint8],
    span_frame: npt.NDArray[np.int32],
) -> int:
    for i in range(document.size):
        for s in range(offsets[document[i]], offsets[document[i] + 1]):
            begin = span_start[s]
            if (
                begin < start[i] < begin + span_length[s]
                and cut_within(start[i], begin, span_length[s], span_modality[s], span_frame[s]) != start[i]
            ):
                return i
    return -1
