"""A map-style torch dataset over a packing plan: one item is one sequence, with everything a trainer needs to keep its
documents apart.

======================  =======  ==========  ==========================================================================
field                   dtype    shape       meaning
======================  =======  ==========  ==========================================================================
``input_ids``           int32    [L]         token ids, padded at the end
``segment_ids``         int32    [L]         1..n, a number for each piece of a document in the row; 0 at padding
``position_ids``        int32    [L]         restarts at 0 in each segment; the padding counts on its own from 0
``loss_mask``           uint8    [L]         1 where the next token is to be predicted (shifted convention): 0 at padding, at
                                             the last token of each segment, and where the next token is only given (a
                                             question: its span has ``loss`` false) or not in ``loss_on``
``modality_ids``        uint8    [L]         :data:`MODALITY_IDS`; on request
``labels``              int64    [L]         -100 where nothing is predicted; on request, ``shifted`` (labels[t] is token t + 1)
                                             or ``hf`` (labels[t] is token t, and the model shifts)
``cu_seqlens``          int32    [max + 2]   segment borders 0, ..., L for varlen attention, the padding a segment of its own,
                                             the tail filled with L; ``max`` is the fullest pack of the plan; on request
======================  =======  ==========  ==========================================================================

A piece of a document that was cut is a segment like any other: positions restart, and nothing attends or predicts across a cut.

The order is a pure function of (seed, epoch, index), the same for any number of workers and ranks. Memory maps are opened in
the process that reads, so the dataset can be pickled and used with any start method.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numba as nb
import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from tokkit.data.shuffle import Permutation, Slots
from tokkit.errors import DataError
from tokkit.packing.rows import PackedRows, load_rows
from tokkit.packing.split import Pieces
from tokkit.packing.store import StoredPlan, load_plan, pack_folder
from tokkit.shards.native import TokenShards, open_shards
from tokkit.vocabulary import MODALITIES, UnifiedVocabulary

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

_LOSS_ON = {
    name: tuple(MODALITY_IDS[part] for part in (name, f"{name}-boundary") if part in MODALITY_IDS)
    for name in ("text", "image", "audio", "video", "control")
}

_CONTENT = np.array([MODALITY_IDS[m] for m in MODALITIES], dtype=np.uint8)
_BOUNDARY = np.array([MODALITY_IDS.get(f"{m}-boundary", MODALITY_IDS[m]) for m in MODALITIES], dtype=np.uint8)

Labels = Literal["shifted", "hf"]
Row = dict[str, torch.Tensor]


@nb.njit(cache=True, nogil=True)
def _mark_segments(
    lengths: npt.NDArray[np.int32],
    segments: npt.NDArray[np.int32],
    positions: npt.NDArray[np.int32],
    loss: npt.NDArray[np.uint8],
) -> None:
    """Fill the fields that depend on the pieces' lengths alone; the arrays come in zeroed."""
    at = 0
    for i in range(lengths.size):
        for t in range(lengths[i]):
            segments[at + t] = i + 1
            positions[at + t] = t
            loss[at + t] = 1
        at += lengths[i]
        loss[at - 1] = 0
    for t in range(at, positions.size):
        positions[t] = t - at


@nb.njit(cache=True, nogil=True)
def _mark_modalities(
    document: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    span_start: npt.NDArray[np.int64],
    span_length: npt.NDArray[np.int64],
    span_modality: npt.NDArray[np.uint8],
    content: npt.NDArray[np.uint8],
    boundary: npt.NDArray[np.uint8],
    control: int,
    out: npt.NDArray[np.uint8],
) -> None:
    """Fill ``modality_ids``; ``out`` comes in zeroed."""
    at = 0
    for i in range(length.size):
        first, last = start[i], start[i] + length[i]
        out[at : at + length[i]] = control
        for s in range(offsets[document[i]], offsets[document[i] + 1]):
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


@nb.njit(cache=True, nogil=True)
def _unmark_given(
    document: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    span_start: npt.NDArray[np.int64],
    span_length: npt.NDArray[np.int64],
    span_loss: npt.NDArray[np.bool_],
    loss: npt.NDArray[np.uint8],
) -> None:
    """Take out of ``loss`` what comes before tokens that are only given."""
    at = 0
    for i in range(length.size):
        first, last = start[i], start[i] + length[i]
        for s in range(offsets[document[i]], offsets[document[i] + 1]):
            begin, end = max(span_start[s], first + 1), min(span_start[s] + span_length[s], last)
            if span_start[s] >= last:
                break
            if not span_loss[s] and begin < end:
                loss[at + begin - 1 - first : at + end - 1 - first] = 0
        at += length[i]


@nb.njit(cache=True, nogil=True)
def _mark_labels(
    ids: npt.NDArray[np.int32],
    loss: npt.NDArray[np.uint8],
    shifted: bool,
    out: npt.NDArray[np.int64],
) -> None:
    """Fill ``labels`` from the other fields."""
    for t in range(ids.size):
        if shifted:
            out[t] = ids[t + 1] if loss[t] else IGNORED
        else:
            out[t] = ids[t] if t > 0 and loss[t - 1] else IGNORED


@dataclass(frozen=True, eq=False)
class _Opened:
    """What one process has open."""

    shards: TokenShards
    plan: StoredPlan
    rows: PackedRows | None
    all_learnt: bool
    pad_id: int
    order: Permutation | None
    slots: Slots | None


class PackedDataset(Dataset[Row]):
    """The sequences of ``packs/NAME/SPLIT``; fields: see the module's docstring.

    Materialised rows are read where the plan has them, else the shards; the items are the same.

    Args:
        directory: a finished directory of token shards.
        name: of the plan.
        split: ``train`` or ``val``.
        seed: of the shuffle; None reads the packs in plan order.
        epoch: another epoch, another order (:meth:`at_epoch`).
        redraw: also draw, in each epoch, which of the pieces of one length goes where one of that length stands in the plan:
            other documents share a sequence every time, and the plan stays as full as it is.
        modality_ids, labels, cu_seqlens: whether to add the fields of these names.
        loss_on: of what modalities tokens are to be predicted: any of ``text``, ``image``, ``audio``, ``video`` (with their
            boundaries) and ``control``; None: all.
        pad_id: what rows are padded with; by default the vocabulary's padding marker.

    Raises:
        DataError: no such plan, or damaged.
        FingerprintMismatch: the plan was made for other shards than the directory now holds.
        VocabularyError: the vocabulary has no padding marker, and no ``pad_id`` is given.
    """

    def __init__(
        self,
        directory: Path | str,
        name: str,
        split: str = "train",
        *,
        seed: int | None = None,
        epoch: int = 0,
        redraw: bool = False,
        modality_ids: bool = True,
        labels: Labels | None = None,
        cu_seqlens: bool = False,
        loss_on: Collection[str] | None = None,
        pad_id: int | None = None,
    ) -> None:
        self.directory, self.name, self.split = Path(directory), name, split
        self.seed, self.epoch = seed, epoch
        self._modality_ids, self._labels, self._cu_seqlens, self._pad_id = modality_ids, labels, cu_seqlens, pad_id
        if labels not in (None, "shifted", "hf"):
            raise ValueError(f"labels {labels!r}; one of None, 'shifted' and 'hf'")
        self._loss_on = None if loss_on is None else tuple(sorted(set(loss_on)))
        unknown = set(self._loss_on or ()) - _LOSS_ON.keys()
        if unknown:
            raise ValueError(f"loss_on {sorted(unknown)}; any of {', '.join(_LOSS_ON)}")
        self.redraw = redraw
        if redraw and seed is None:
            raise ValueError("redraw needs a seed")
        self._state: _Opened | None = None
        record = self._opened.plan.record
        self.plan_digest = record.digest
        self._length, self._seq_len, self._max_pieces = record.counts.packs, record.seq_len, record.counts.max_pieces

    # ---- the process's own part

    @property
    def _opened(self) -> _Opened:
        if self._state is None:
            self._state = self._open()
        return self._state

    def _open(self) -> _Opened:
        shards = open_shards(self.directory, self.split)
        plan = load_plan(pack_folder(self.directory, self.name, self.split), shards=shards.fingerprint)
        pad_id = self._pad_id
        if pad_id is None:
            pad_id = UnifiedVocabulary.load(self.directory / "vocabulary.json").marker("padding")
        rows = load_rows(plan)
        if rows is not None and (rows.record.pad_id != pad_id or self.redraw):
            rows = None  # padded with another id than asked for, or not of these documents: gather them anew
        slots = Slots.of(plan.pieces.length) if self.redraw else None
        return _Opened(shards, plan, rows, shards.all_learnt(), pad_id, self._order(plan.num_packs), slots)

    def _order(self, packs: int) -> Permutation | None:
        return Permutation(packs, self.seed, self.epoch) if self.seed is not None else None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_state": None}

    # ---- the dataset

    @property
    def seq_len(self) -> int:
        """L, tokens of a sequence."""
        return self._seq_len

    def __len__(self) -> int:
        return self._length

    def at_epoch(self, epoch: int) -> PackedDataset:
        """The same dataset in another epoch's order; what is open is shared.

        Workers keep the dataset they were started with, so give the new one to a new DataLoader, or take a
        :class:`~tokkit.data.loader.PackedLoader`, which goes through the epochs by itself.
        """
        other = copy(self)
        other.epoch = epoch
        if self._state is not None:
            other._state = replace(self._state, order=other._order(self._length))
        return other

    def pack_index(self, index: int) -> int:
        """Which pack of the plan item ``index`` is; a negative index counts from the end, IndexError outside."""
        number = index + self._length if index < 0 else index
        if not 0 <= number < self._length:
            raise IndexError(f"sequence {index} of {self._length}")
        order = self._opened.order
        return number if order is None else order[number]

    def segments(self, index: int) -> Pieces:
        """The pieces of documents in item ``index``, in the row's order."""
        return self._pieces(self._opened, self.pack_index(index))

    def _pieces(self, opened: _Opened, pack: int) -> Pieces:
        if opened.slots is None:
            return opened.plan.pack(pack)
        assert self.seed is not None  # or there would be no slots
        first, last = int(opened.plan.pack_offsets[pack]), int(opened.plan.pack_offsets[pack + 1])
        drawn = [opened.slots.draw(slot, self.seed, self.epoch) for slot in range(first, last)]
        return opened.plan.pieces.take(np.array(drawn, dtype=np.int64))

    def __getitem__(self, index: int) -> Row:
        opened = self._opened
        pack = self.pack_index(index)
        stored = self._pieces(opened, pack)
        pieces = Pieces(np.array(stored.document), np.array(stored.start), np.array(stored.length))
        if int(pieces.length.sum()) > self._seq_len or (pieces.length < 1).any():
            raise DataError(f"{opened.plan.folder} is damaged: pack {pack} does not fit into a sequence")
        ids = self._tokens(opened, pack, pieces)
        segments, positions = np.zeros(self._seq_len, dtype=np.int32), np.zeros(self._seq_len, dtype=np.int32)
        loss = np.zeros(self._seq_len, dtype=np.uint8)
        _mark_segments(pieces.length, segments, positions, loss)
        fields: dict[str, np.ndarray] = {
            "input_ids": ids,
            "segment_ids": segments,
            "position_ids": positions,
            "loss_mask": loss,
        }
        spans = None if opened.all_learnt else opened.shards.spans
        if spans is not None and spans.loss is not None:
            row = pieces.document, pieces.start, pieces.length
            _unmark_given(*row, spans.offsets, spans.start, spans.length, spans.loss, loss)
        if self._modality_ids or self._loss_on is not None:
            modalities = self._modalities(opened, pieces)
            if self._modality_ids:
                fields["modality_ids"] = modalities
            if self._loss_on is not None:
                wanted = np.zeros(len(MODALITY_IDS), dtype=np.uint8)
                wanted[[number for name in self._loss_on for number in _LOSS_ON[name]]] = 1
                loss[:-1] &= wanted[modalities[1:]]
        if self._labels is not None:
            fields["labels"] = np.empty(self._seq_len, dtype=np.int64)
            _mark_labels(ids, loss, self._labels == "shifted", fields["labels"])
        if self._cu_seqlens:
            fields["cu_seqlens"] = self._borders(pieces)
        return {name: torch.from_numpy(array) for name, array in fields.items()}

    def _tokens(self, opened: _Opened, pack: int, pieces: Pieces) -> npt.NDArray[np.int32]:
        if opened.rows is not None:
            return opened.rows.tokens[pack].astype(np.int32)
        ids = np.full(self._seq_len, opened.pad_id, dtype=np.int32)
        at = 0
        for document, start, length in zip(
            pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True
        ):
            ids[at : at + length] = opened.shards.tokens(document, start, start + length)
            at += length
        return ids

    def _modalities(self, opened: _Opened, pieces: Pieces) -> npt.NDArray[np.uint8]:
        spans = opened.shards.spans
        out = np.zeros(self._seq_len, dtype=np.uint8)
        _mark_modalities(
            pieces.document,
            pieces.start,
            pieces.length,
            spans.offsets,
            spans.start,
            spans.length,
            spans.modality,
            _CONTENT,
            _BOUNDARY,
            MODALITY_IDS["control"],
            out,
        )
        return out

    def _borders(self, pieces: Pieces) -> npt.NDArray[np.int32]:
        borders = np.full(self._max_pieces + 2, self._seq_len, dtype=np.int32)
        borders[0] = 0
        borders[1 : len(pieces) + 1] = np.cumsum(pieces.length)
        return borders


def collate(rows: Sequence[Row]) -> Row:
    """Stack items to a batch [B, ...], and count what the loss is taken over: ``num_loss_tokens``, int64 scalar (sum it over
    ranks and accumulation steps before dividing: a mean of means weighs short rows too much), and, where the items have
    ``modality_ids``, ``num_loss_tokens_by_modality``, int64 [9], by what is to be predicted (:data:`MODALITY_IDS`)."""
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    batch["num_loss_tokens"] = batch["loss_mask"].sum(dtype=torch.int64)
    if "modality_ids" in batch:
        predicted = batch["modality_ids"][:, 1:][batch["loss_mask"][:, :-1].bool()]
        batch["num_loss_tokens_by_modality"] = torch.bincount(predicted.long(), minlength=len(MODALITY_IDS))
    return batch
