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
``num_segments``        int32    []          n; with ``cu_seqlens``
``pack_index``          int64    []          which pack of the plan it is; with ``epoch`` (int32) and ``plan_id`` (int64, the
                                             first 64 bits of the plan's digest), on request (``provenance``)
======================  =======  ==========  ==========================================================================

With ``dense=False`` the fields are ``input_ids``, ``cu_seqlens`` and ``num_segments`` alone: a quarter of the bytes to move,
and :func:`tokkit.data.attention.with_dense_fields` makes the others from them on the device.

Tables of the pieces of documents and of the pictures in the rows (``segments``, ``images``) are told in
:mod:`tokkit.data.tables`; :func:`collate` joins those of a batch's rows.

A piece of a document that was cut is a segment like any other: positions restart, and nothing attends or predicts across a cut.

The order is a pure function of (seed, epoch, index), the same for any number of workers and ranks. Memory maps are opened in
the process that reads, so the dataset can be pickled and used with any start method.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from tokkit.data import fields
from tokkit.data.fields import IGNORED, MODALITY_IDS
from tokkit.data.shuffle import GroupedOrder, Permutation, Slots
from tokkit.data.tables import Tables
from tokkit.errors import DataError
from tokkit.packing.gather import TokenFiles, gather_ids, gather_packs
from tokkit.packing.rows import PackedRows, load_rows, read_rows
from tokkit.packing.split import Pieces
from tokkit.packing.store import StoredPlan, load_plan, pack_folder
from tokkit.shards.native import TokenShards, open_shards
from tokkit.vocabulary import UnifiedVocabulary

__all__ = ["IGNORED", "MODALITY_IDS", "Labels", "PackedDataset", "Row", "Rows", "collate", "collate_flat"]

Labels = Literal["shifted", "hf"]
Row = dict[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class _Opened:
    """What one process has open."""

    shards: TokenShards
    plan: StoredPlan
    rows: PackedRows | None
    all_learnt: bool
    pad_id: int
    files: TokenFiles
    order: Permutation | GroupedOrder | None
    slots: Slots | None
    costs: npt.NDArray[np.int64] | None
    tables: Tables


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
        group: let so many sequences that stand one after another cost about the same attention (the sum of the squares of their
            segments' lengths): with the sequences of a step, or a multiple, no rank waits for one that has the long documents.
        window: sequences of which groups are made; a multiple of ``group``, by default about 4,096.
        modality_ids, labels, cu_seqlens: whether to add the fields of these names.
        dense: whether ``segment_ids``, ``position_ids`` and ``loss_mask`` are made here; without them there is ``cu_seqlens``,
            and none of the fields that need them.
        loss_on: of what modalities tokens are to be predicted: any of ``text``, ``image``, ``audio``, ``video`` (with their
            boundaries) and ``control``; None: all.
        pad_id: what rows are padded with; by default the vocabulary's padding marker.
        segments, images, provenance: whether to add these tables and fields.

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
        group: int | None = None,
        window: int | None = None,
        modality_ids: bool = True,
        labels: Labels | None = None,
        cu_seqlens: bool = False,
        dense: bool = True,
        loss_on: Collection[str] | None = None,
        pad_id: int | None = None,
        segments: bool = False,
        images: bool = False,
        provenance: bool = False,
    ) -> None:
        self.directory, self.name, self.split = Path(directory), name, split
        self.seed, self.epoch = seed, epoch
        self._modality_ids, self._labels, self._cu_seqlens, self._pad_id = modality_ids, labels, cu_seqlens, pad_id
        self._segments, self._images, self._provenance = segments, images, provenance
        if not dense:
            if labels is not None or loss_on is not None:
                raise ValueError("labels and loss_on need the dense fields")
            self._modality_ids, self._cu_seqlens = False, True
        self._dense = dense
        self._lean = not (dense or redraw or segments or images or provenance)
        if labels not in (None, "shifted", "hf"):
            raise ValueError(f"labels {labels!r}; one of None, 'shifted' and 'hf'")
        self._loss_on = None if loss_on is None else tuple(sorted(set(loss_on)))
        unknown = set(self._loss_on or ()) - fields.LOSS_ON.keys()
        if unknown:
            raise ValueError(f"loss_on {sorted(unknown)}; any of {', '.join(fields.LOSS_ON)}")
        self.redraw = redraw
        if seed is None and (redraw or group is not None):
            raise ValueError("redraw and group need a seed")
        if group is not None:
            window = window or -(-4096 // max(group, 1)) * group
            if group < 1 or window < group or window % group:
                raise ValueError(f"groups of {group} in windows of {window}")
        self.group, self.window = group, window
        self._state: _Opened | None = None
        record = self._opened.plan.record
        self.plan_digest = record.digest
        if not dense and not self._opened.all_learnt:
            raise ValueError("some of these documents is only given and not to be learnt: only the dense fields tell")
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
        learnt, files = shards.all_learnt(), TokenFiles.of(shards)
        costs = fields.costs(plan.pieces.length, plan.pack_offsets) if self.group is not None else None
        order = self._order(plan.num_packs, costs)
        return _Opened(shards, plan, rows, learnt, pad_id, files, order, slots, costs, Tables(shards))

    def _order(self, packs: int, costs: npt.NDArray[np.int64] | None) -> Permutation | GroupedOrder | None:
        if self.seed is None:
            return None
        order = Permutation(packs, self.seed, self.epoch)
        if self.group is None or self.window is None or costs is None:
            return order
        return GroupedOrder(order, costs, self.group, self.window)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_state": None}

    # ---- the dataset

    @property
    def seq_len(self) -> int:
        """L, tokens of a sequence."""
        return self._seq_len

    @property
    def pad_id(self) -> int:
        """What rows are padded with."""
        return self._opened.pad_id

    @property
    def align(self) -> int:
        """Each piece of the plan has room for a multiple of so many places (:mod:`tokkit.data.aligned`)."""
        return self._opened.plan.record.align

    @property
    def sources(self) -> list[str]:
        """Names of the sources, by the number that ``segments_source`` gives."""
        return self._opened.tables.sources[0]

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
            other._state = replace(self._state, order=other._order(self._length, self._state.costs))
        return other

    def identity(self) -> dict[str, object]:
        """What a loader's state must agree with."""
        settings = {"seed": self.seed, "redraw": self.redraw, "group": self.group, "window": self.window}
        return {"plan": self.plan_digest, "sequences": len(self), **settings}

    def pack_index(self, index: int) -> int:
        """Which pack of the plan item ``index`` is; a negative index counts from the end, IndexError outside."""
        number = index + self._length if index < 0 else index
        if not 0 <= number < self._length:
            raise IndexError(f"sequence {index} of {self._length}")
        order = self._opened.order
        return number if order is None else order[number]

    def segments(self, index: int) -> Pieces:
        """The pieces of documents in item ``index``, in the row's order."""
        return self._pieces(self._opened, np.array([self.pack_index(index)], dtype=np.int64))[0]

    def _pieces(self, opened: _Opened, packs: npt.NDArray[np.int64]) -> tuple[Pieces, npt.NDArray[np.int64]]:
        """The pieces of these packs one after another, and where each pack begins among them."""
        if opened.slots is None:
            return opened.plan.packs(packs)
        assert self.seed is not None  # or there would be no slots
        bounds = opened.plan.pack_offsets
        slots = [np.arange(bounds[pack], bounds[pack + 1]) for pack in packs]
        drawn = opened.slots.draw(np.concatenate(slots), self.seed, self.epoch)
        return opened.plan.pieces.take(drawn), np.cumsum([0, *map(len, slots)])

    def __getitem__(self, index: int) -> Row:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Rows:
        """Several items at once, which is faster than one by one; torch's DataLoader asks for a batch's items so."""
        numbers, order = np.asarray(indices, dtype=np.int64), self._opened.order
        packs = numbers if order is None else order.take(numbers)
        if self._lean:
            try:
                return Rows(self._lean_batch(packs), len(packs))
            except IndexError:
                pass  # one counted from the end, or none
        if not fields.inside(packs, self._length):
            packs = np.array([self.pack_index(n) for n in indices], dtype=np.int64)
        found = self._fields(packs)
        return Rows({name: torch.from_numpy(array) for name, array in found.items()}, len(packs))

    def _fields(self, packs: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
        """All fields of these packs, [R, ...], and the tables of what is in them."""
        opened, offsets, pieces, found = self._dense_fields(packs)
        if self._provenance:
            found["pack_index"] = packs
            found["epoch"] = np.full(len(packs), self.epoch, dtype=np.int32)
            plan = int.from_bytes(bytes.fromhex(self.plan_digest[:16]), "big", signed=True)
            found["plan_id"] = np.full(len(packs), plan, dtype=np.int64)
        if self._segments:
            loss = found["loss_mask"].view(np.uint8) if "loss_mask" in found else None
            found |= opened.tables.segments(pieces, offsets, loss)
        if self._images:
            found |= opened.tables.images(pieces, offsets)
        return found

    def _lean_batch(self, packs: npt.NDArray[np.int64]) -> Row:
        """Tokens and borders alone, which need no list of pieces."""
        opened, count = self._opened, len(packs)
        ids = np.empty((count, self._seq_len), dtype=np.int32)
        borders, numbers = np.empty((count, self._max_pieces + 2), dtype=np.int32), np.empty(count, dtype=np.int32)
        if opened.rows is not None:
            read_rows(opened.plan, opened.rows, packs, ids, borders, numbers)
        else:
            gather_packs(opened.files, opened.plan, packs, opened.pad_id, ids, borders, numbers)
        tensor = torch.from_numpy
        return {"input_ids": tensor(ids), "cu_seqlens": tensor(borders), "num_segments": tensor(numbers)}

    def _dense_fields(
        self, packs: npt.NDArray[np.int64]
    ) -> tuple[_Opened, npt.NDArray[np.int64], Pieces, dict[str, npt.NDArray[np.generic]]]:
        """What is open, where each pack begins in the pieces, these, and the fields [R, ...]."""
        opened, seq_len = self._opened, self._seq_len
        pieces, offsets = self._pieces(opened, packs)
        if not fields.fit(pieces.length, offsets, seq_len):
            raise DataError(f"{opened.plan.folder} is damaged: a pack is empty or does not fit into a sequence")
        ids = self._tokens(opened, packs, pieces, offsets)
        found: dict[str, npt.NDArray[np.generic]] = {"input_ids": ids}
        if self._cu_seqlens:
            found["cu_seqlens"], found["num_segments"] = fields.borders(pieces, offsets, seq_len, self._max_pieces)
        if not self._dense:
            return opened, offsets, pieces, found
        found["segment_ids"], found["position_ids"], loss = fields.segments(pieces, offsets, seq_len)
        if not opened.all_learnt:
            fields.unlearn_given(pieces, offsets, opened.shards.spans, loss)
        modality_ids = None
        if self._modality_ids or self._loss_on is not None:
            modality_ids = fields.modalities(pieces, offsets, opened.shards.spans, seq_len)
            if self._loss_on is not None:
                fields.keep_loss_on(self._loss_on, modality_ids, loss)
        found["loss_mask"] = loss
        if self._modality_ids and modality_ids is not None:
            found["modality_ids"] = modality_ids
        if self._labels is not None:
            found["labels"] = fields.labels(ids, loss, shifted=self._labels == "shifted")
        return opened, offsets, pieces, found

    def _tokens(
        self, opened: _Opened, packs: npt.NDArray[np.int64], pieces: Pieces, offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int32]:
        """``input_ids`` [R, L]."""
        if opened.rows is not None:
            return opened.rows.tokens[packs].astype(np.int32)
        out = np.empty((len(packs), self._seq_len), dtype=np.int32)
        gather_ids(opened.files, pieces, offsets, out, opened.pad_id)
        return out


class Rows(Sequence[Row]):
    """Items that were made together: each a row, and ``batch`` all of them, [R, ...], in the same memory, with their tables."""

    def __init__(self, batch: Row, count: int) -> None:
        self.batch, self._count = batch, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[n] for n in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"row {index} of {self._count}")
        return {name: self._lines(name, index % self._count) for name in self.batch}

    def _lines(self, name: str, row: int) -> torch.Tensor:
        """A field of one row; of a table its lines, in which it is row 0."""
        values = self.batch[name]
        if name == "cu_images":
            return values[row : row + 2] - values[row]
        if not name.startswith(TABLES):
            return values[row]
        mine = values[self.batch[name.partition("_")[0] + "_row"] == row]
        return torch.zeros_like(mine) if name.endswith("_row") else mine


TABLES = ("segments_", "images_")


def collate(rows: Sequence[Row]) -> Row:
    """Stack items to a batch [B, ...], and count what the loss is taken over: ``num_loss_tokens``, int64 scalar (sum it over
    ranks and accumulation steps before dividing: a mean of means weighs short rows too much), and, where the items have
    ``modality_ids``, ``num_loss_tokens_by_modality``, int64 [9], by what is to be predicted (:data:`MODALITY_IDS`).
    Tables are joined, and the number of tokens that are no padding is ``num_tokens`` where there is the one of segments."""
    together = rows.batch if isinstance(rows, Rows) else None
    batch = dict(together) if together is not None else {name: _joined(name, rows) for name in rows[0]}
    if "loss_mask" in batch:
        batch["num_loss_tokens"] = batch["loss_mask"].sum(dtype=torch.int64)
    if "modality_ids" in batch:
        counts = fields.loss_by_modality(batch["modality_ids"].numpy(), batch["loss_mask"].numpy())
        batch["num_loss_tokens_by_modality"] = torch.from_numpy(counts)
    if "segments_length" in batch:
        batch["num_tokens"] = batch["segments_length"].sum(dtype=torch.int64)
    return batch


def _joined(name: str, rows: Sequence[Row]) -> torch.Tensor:
    """A field of several items as one of the batch."""
    values = [row[name] for row in rows]
    if name == "cu_images":
        counts = torch.tensor([0, *(int(borders[-1]) for borders in values)])
        return counts.cumsum(0).to(torch.int32)
    if not name.startswith(TABLES):
        return torch.stack(values)
    if name.endswith("_row"):
        values = [torch.full_like(own, n) for n, own in enumerate(values)]
    return torch.cat(values)


def collate_flat(rows: Sequence[Row]) -> dict[str, Any]:
    """As :func:`collate`, and the borders of the batch as one row of B * L tokens, for attention of variable length:
    ``cu_seqlens_flat``, int32 [S + 1], and ``max_seqlen``, an int. Made here they cost no wait for the device. The items need
    ``cu_seqlens``."""
    batch: dict[str, Any] = dict(collate(rows))
    borders = batch["cu_seqlens"].numpy()
    batch["cu_seqlens_flat"], batch["max_seqlen"] = fields.flat_borders(borders, batch["input_ids"].shape[1])
    return batch
