"""The fields of packed rows that follow from a plan's pieces and the documents' spans, for many rows at once (Numba).

Rows are given as pieces one after another and int64 [R + 1] ``offsets``: row r is the pieces ``offsets[r]:offsets[r + 1]``.
What the fields mean is told in :mod:`tokkit.data.packed`.
"""

from __future__ import annotations

from collections.abc import Collection

import numba as nb
import numpy as np
import numpy.typing as npt
import torch

from tokkit.packing.split import Pieces
from tokkit.shards.spans import SpanTable
from tokkit.vocabulary import MODALITIES

IGNORED = -100

MODALITY_IDS = {
    "padding": 0,
    "text": 1,
    "image": 2,
    "image-boundary": 3,
    "control": 4,
    "audio": 5,
    "audio-boundary": 6,
    "video": 7,
    "video-boundary": 8,
}
"""What ``modality_ids`` says of a token. A boundary is the first or last token of a media span (its begin or end marker);
control is every token outside of spans (document markers). Row ends and grid sizes inside a picture count as picture."""

LOSS_ON = {
    name: tuple(MODALITY_IDS[part] for part in (name, f"{name}-boundary") if part in MODALITY_IDS)
    for name in ("text", "image", "audio", "video", "control")
}
"""By what ``loss_on`` may name, the ids of the modalities that it stands for."""

_MODALITIES = len(MODALITY_IDS)
_CONTENT = np.array([MODALITY_IDS[m] for m in MODALITIES], dtype=np.uint8)
_BOUNDARY = np.array([MODALITY_IDS.get(f"{m}-boundary", MODALITY_IDS[m]) for m in MODALITIES], dtype=np.uint8)

Array = npt.NDArray[np.int64]
Ids = npt.NDArray[np.int32]
Bytes = npt.NDArray[np.uint8]


def segments(pieces: Pieces, offsets: Array, seq_len: int) -> tuple[Ids, Ids, Bytes]:
    """``segment_ids``, ``position_ids`` and ``loss_mask`` [R, seq_len], as far as lengths alone decide them."""
    shape = len(offsets) - 1, seq_len
    found = np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.int32), np.empty(shape, dtype=np.uint8)
    _segments(pieces.length, offsets, *found)
    return found


@nb.njit(cache=True, nogil=True)
def _segments(lengths: npt.NDArray[np.int32], offsets: Array, segment_ids: Ids, position_ids: Ids, loss: Bytes) -> None:
    for row in range(offsets.size - 1):
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            end = at + lengths[i]
            segment_ids[row, at:end] = i - offsets[row] + 1
            loss[row, at : end - 1] = 1
            loss[row, end - 1] = 0
            _count_up(position_ids[row, at:end])
            at = end
        segment_ids[row, at:] = 0
        loss[row, at:] = 0
        _count_up(position_ids[row, at:])


@nb.njit(cache=True, nogil=True)
def _count_up(out: Ids) -> None:
    """0, 1, 2, ...; a loop over one array alone becomes vector instructions."""
    for t in range(out.size):
        out[t] = t


@nb.njit(cache=True, nogil=True)
def inside(numbers: Array, size: int) -> bool:
    """Whether all of these are in 0..size - 1."""
    right = True
    for number in numbers:
        right &= 0 <= number < size
    return right


@nb.njit(cache=True, nogil=True)
def fit(lengths: Ids, offsets: Array, seq_len: int) -> bool:
    """Whether no row is empty, no piece is, and each row has room for its pieces."""
    for row in range(offsets.size - 1):
        held = 0
        for i in range(offsets[row], offsets[row + 1]):
            if lengths[i] < 1:
                return False
            held += lengths[i]
        if held < 1 or held > seq_len:
            return False
    return True


@nb.njit(cache=True, nogil=True)
def costs(lengths: Ids, offsets: Array) -> Array:
    """int64 [R]: what attention over each row costs, the sum of the squares of its segments' lengths."""
    found = np.zeros(offsets.size - 1, dtype=np.int64)
    for row in range(found.size):
        for i in range(offsets[row], offsets[row + 1]):
            found[row] += np.int64(lengths[i]) * np.int64(lengths[i])
    return found


def modalities(pieces: Pieces, offsets: Array, spans: SpanTable, seq_len: int) -> Bytes:
    """``modality_ids`` [R, seq_len]."""
    found = np.zeros((len(offsets) - 1, seq_len), dtype=np.uint8)
    table = spans.offsets, spans.start, spans.length, spans.modality
    tables = _CONTENT, _BOUNDARY, MODALITY_IDS["control"]
    _modalities(pieces.document, pieces.start, pieces.length, offsets, *table, *tables, found)
    return found


@nb.njit(cache=True, nogil=True)
def _modalities(
    document: Array,
    start: Array,
    length: npt.NDArray[np.int32],
    offsets: Array,
    span_offsets: Array,
    span_start: Array,
    span_length: Array,
    span_modality: Bytes,
    content: Bytes,
    boundary: Bytes,
    control: int,
    found: Bytes,
) -> None:
    """Fill ``found``, which comes in zeroed."""
    for row in range(offsets.size - 1):
        out = found[row]
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            first, last = start[i], start[i] + length[i]
            out[at : at + length[i]] = control
            for s in range(span_offsets[document[i]], span_offsets[document[i] + 1]):
                begin, end = span_start[s], span_start[s] + span_length[s]
                if begin >= last:
                    break
                if end <= first:
                    continue
                out[at + max(begin, first) - first : at + min(end, last) - first] = content[span_modality[s]]
                if begin >= first:
                    out[at + begin - first] = boundary[span_modality[s]]
                if end <= last:
                    out[at + end - 1 - first] = boundary[span_modality[s]]
            at += length[i]


def unlearn_given(pieces: Pieces, offsets: Array, spans: SpanTable, loss: Bytes) -> None:
    """Take out of ``loss`` [R, seq_len] what comes before tokens that are only given."""
    if spans.loss is not None:
        table = spans.offsets, spans.start, spans.length, spans.loss
        _unlearn_given(pieces.document, pieces.start, pieces.length, offsets, *table, loss)


@nb.njit(cache=True, nogil=True)
def _unlearn_given(
    document: Array,
    start: Array,
    length: npt.NDArray[np.int32],
    offsets: Array,
    span_offsets: Array,
    span_start: Array,
    span_length: Array,
    span_loss: npt.NDArray[np.bool_],
    loss: Bytes,
) -> None:
    for row in range(offsets.size - 1):
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            first, last = start[i], start[i] + length[i]
            for s in range(span_offsets[document[i]], span_offsets[document[i] + 1]):
                begin, end = max(span_start[s], first + 1), min(span_start[s] + span_length[s], last)
                if span_start[s] >= last:
                    break
                if not span_loss[s] and begin < end:
                    loss[row, at + begin - 1 - first : at + end - 1 - first] = 0
            at += length[i]


def keep_loss_on(names: Collection[str], modality_ids: Bytes, loss: Bytes) -> None:
    """Take out of ``loss`` [R, seq_len] what comes before tokens of other modalities than these."""
    wanted = np.zeros(len(MODALITY_IDS), dtype=np.uint8)
    wanted[[number for name in names for number in LOSS_ON[name]]] = 1
    loss[:, :-1] &= wanted[modality_ids[:, 1:]]


@nb.njit(cache=True, nogil=True)
def loss_by_modality(modality_ids: Bytes, loss: Bytes) -> Array:
    """int64 [modalities]: how many tokens of each are to be predicted, in rows [R, seq_len]."""
    found = np.zeros(_MODALITIES, dtype=np.int64)
    for row in range(loss.shape[0]):
        for t in range(loss.shape[1] - 1):
            if loss[row, t]:
                found[modality_ids[row, t + 1]] += 1
    return found


def labels(ids: Ids, loss: Bytes, *, shifted: bool) -> Array:
    """``labels`` [R, seq_len]."""
    found = np.full(ids.shape, IGNORED, dtype=np.int64)
    target = found[:, :-1] if shifted else found[:, 1:]
    np.copyto(target, ids[:, 1:], where=loss[:, :-1].astype(bool))
    return found


def borders(pieces: Pieces, offsets: Array, seq_len: int, most: int) -> tuple[Ids, Ids]:
    """``cu_seqlens`` [R, most + 2], where no row has more than ``most`` pieces, and ``num_segments`` [R]."""
    found = np.empty((len(offsets) - 1, most + 2), dtype=np.int32), np.empty(len(offsets) - 1, dtype=np.int32)
    _borders(pieces.length, offsets, seq_len, *found)
    return found


@nb.njit(cache=True, nogil=True)
def _borders(lengths: Ids, offsets: Array, seq_len: int, found: Ids, numbers: Ids) -> None:
    for row in range(offsets.size - 1):
        found[row, 0] = 0
        number = 1
        for i in range(offsets[row], offsets[row + 1]):
            found[row, number] = found[row, number - 1] + lengths[i]
            number += 1
        found[row, number:] = seq_len
        numbers[row] = number - 1


def flat_borders(cu_seqlens: Ids, seq_len: int) -> tuple[torch.Tensor, int]:
    """``cu_seqlens`` [R, n] of rows as the borders of one row of R * seq_len tokens, and the longest segment's tokens."""
    starts = cu_seqlens[:, :-1][cu_seqlens[:, :-1] < seq_len]
    row = np.cumsum(starts == 0, dtype=np.int32) - 1
    found = np.append(starts + row * np.int32(seq_len), np.int32(len(cu_seqlens) * seq_len)).astype(np.int32)
    return torch.from_numpy(found), int(np.diff(found).max(initial=0))
