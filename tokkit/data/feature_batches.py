"""Batches of :class:`~tokkit.data.features.FeatureRow` as models take them: callables for a loader's ``collate_fn``.

* :class:`InlineCollator` (LLaVA, LLaVA-NeXT, Qwen2-VL): features stand in the sequence, at their places. The model embeds
  ``input_ids``, and puts its projected features where ``feature_mask`` is true and its newline where ``newline_mask`` is.
* :class:`CrossCollator` (Flamingo, Llama 3.2 Vision): text alone in the sequence, items as memory beside it, and which text
  attends to which item.
* :class:`PairCollator` (CLIP, SigLIP): one item and its text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from tokkit.data.features import FeatureRow
from tokkit.data.packed import IGNORED
from tokkit.errors import UsageError

Batch = dict[str, torch.Tensor]
Attend = Literal["latest", "group", "before"]
TEXT, FEATURE, NEWLINE = 0, 1, 2


def inline(row: FeatureRow, max_length: int | None = None) -> tuple[npt.NDArray[np.uint8], int, int]:
    """A document's sequence with its features in place.

    Args:
        max_length: positions; text is cut there, and an item that does not fit whole ends the sequence before it.

    Returns:
        uint8 [L], what stands at each position (TEXT, FEATURE, NEWLINE), each kind in its own order; and how many text ids and
        items are in it.
    """
    kinds: list[npt.NDArray[np.uint8]] = [np.zeros(0, dtype=np.uint8)]
    room = len(row.input_ids) + sum(map(len, row.features)) + sum(map(len, row.newlines))
    room = room if max_length is None else min(room, max_length)
    text = items = 0
    for position, found, newlines in zip(row.positions.tolist(), row.features, row.newlines, strict=True):
        before = min(position - text, room)
        kinds.append(np.full(before, TEXT, dtype=np.uint8))
        text, room = text + before, room - before
        if text < position or len(found) + len(newlines) > room:
            return np.concatenate(kinds), text, items
        kinds.append(np.insert(np.full(len(found), FEATURE, dtype=np.uint8), newlines, NEWLINE))
        items, room = items + 1, room - len(kinds[-1])
    rest = min(len(row.input_ids) - text, room)
    kinds.append(np.full(rest, TEXT, dtype=np.uint8))
    return np.concatenate(kinds), text + rest, items


@dataclass(frozen=True)
class InlineCollator:
    """Features in the sequence, at their places.

    =====================  =======  ==========  =====================================================================
    field                  dtype    shape       meaning
    =====================  =======  ==========  =====================================================================
    ``input_ids``          int64    [B, L]      text ids; ``pad_id`` at features, newlines and padding
    ``attention_mask``     bool     [B, L]      false at padding
    ``position_ids``       int64    [B, L]
    ``labels``             int64    [B, L]      the text id at its own place (the model shifts), -100 where nothing is learnt
    ``feature_mask``       bool     [B, L]      where features go, in order
    ``newline_mask``       bool     [B, L]      where the model's learned newline goes
    ``features``           stored   [F, dim]    of all items of the batch, one after another
    ``item_tokens``        int64    [M]         how many of them belong to each item
    ``num_loss_tokens``    int64    []          labels that are not -100
    =====================  =======  ==========  =====================================================================

    Attributes:
        pad_id: stands where there is no text.
        max_length: positions of a sequence; text is cut there, items are whole or not in it.
    """

    pad_id: int
    max_length: int | None = None

    def __call__(self, rows: Sequence[FeatureRow]) -> Batch:
        laid = [inline(row, self.max_length) for row in rows]
        length = max((len(kinds) for kinds, *_ in laid), default=0)
        ids = torch.full((len(rows), length), self.pad_id, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        kind = torch.full((len(rows), length), 255, dtype=torch.uint8)
        features: list[torch.Tensor] = []
        for number, (row, (kinds, text, items)) in enumerate(zip(rows, laid, strict=True)):
            kind[number, : len(kinds)] = torch.from_numpy(kinds)
            places = torch.from_numpy(np.flatnonzero(kinds == TEXT))
            ids[number, places] = row.input_ids[:text]
            labels[number, places] = torch.where(row.learn[:text], row.input_ids[:text], IGNORED)
            features += row.features[:items]
        dim = next((row.features[0].shape[1] for row in rows if row.features), 0)
        return {
            "input_ids": ids,
            "attention_mask": kind != 255,
            "position_ids": torch.arange(length).expand(len(rows), -1).clone(),
            "labels": labels,
            "feature_mask": kind == FEATURE,
            "newline_mask": kind == NEWLINE,
            "features": torch.cat(features) if features else torch.zeros((0, dim)),
            "item_tokens": torch.tensor([len(found) for found in features], dtype=torch.int64),
            "num_loss_tokens": (labels != IGNORED).sum(),
        }


def media_times(positions: torch.Tensor, length: int) -> torch.Tensor:
    """int64 [length]: how many items stand before each text token, or directly at it; 0 where none does."""
    return torch.searchsorted(positions.contiguous(), torch.arange(length), right=True)


def attends(positions: torch.Tensor, length: int, attend: Attend) -> torch.Tensor:
    """bool [length, m]: which text token attends to which item.

    Args:
        attend: ``latest``: to the last item before it alone (Flamingo); ``group``: to that one and those which stand together
            with it, without text in between (Llama 3.2); ``before``: to all before it.
    """
    times = media_times(positions, length)[:, None]
    number = torch.arange(len(positions))[None]
    if attend == "before":
        return number < times
    if attend == "latest":
        return number == times - 1
    place = positions[(times - 1).clamp(min=0)] if len(positions) else times
    return (times > 0) & (positions[None] == place) & (number < times)


@dataclass(frozen=True)
class CrossCollator:
    """Items as memory beside the text.

    =====================  =======  ================  ===============================================================
    field                  dtype    shape             meaning
    =====================  =======  ================  ===============================================================
    ``input_ids``          int64    [B, T]            text ids, ``pad_id`` at the end
    ``attention_mask``     bool     [B, T]            false at padding
    ``labels``             int64    [B, T]            as of :class:`InlineCollator`
    ``media``              stored   [B, M, N, dim]    items, zeros where there are none
    ``media_mask``         bool     [B, M, N]         which of their tokens are there
    ``media_times``        int64    [B, T]            how many items stand before or at each text token
    ``cross_mask``         bool     [B, T, M]         which text attends to which item
    ``num_loss_tokens``    int64    []                labels that are not -100
    =====================  =======  ================  ===============================================================

    An item of which only the place is kept is attended to by the text behind it, and has no tokens.

    Attributes:
        attend: see :func:`attends`.
        max_length: text ids of a sequence; items behind the last are left out.
    """

    pad_id: int
    attend: Attend = "latest"
    max_length: int | None = None

    def __call__(self, rows: Sequence[FeatureRow]) -> Batch:
        lengths = [min(len(row.input_ids), len(row.input_ids) if self.max_length is None else self.max_length) for row in rows]
        kept = [int((row.positions < max(length, 1)).sum()) for row, length in zip(rows, lengths, strict=True)]
        T, M = max(lengths, default=0), max(kept, default=0)
        N = max((len(found) for row, m in zip(rows, kept, strict=True) for found in row.features[:m]), default=0)
        first = next((row.features[0] for row in rows if row.features), torch.zeros((0, 0)))
        ids = torch.full((len(rows), T), self.pad_id, dtype=torch.int64)
        labels = torch.full_like(ids, IGNORED)
        media = torch.zeros((len(rows), M, N, first.shape[1]), dtype=first.dtype)
        media_mask = torch.zeros((len(rows), M, N), dtype=torch.bool)
        times = torch.zeros((len(rows), T), dtype=torch.int64)
        cross = torch.zeros((len(rows), T, M), dtype=torch.bool)
        for number, (row, length, m) in enumerate(zip(rows, lengths, kept, strict=True)):
            ids[number, :length] = row.input_ids[:length]
            labels[number, :length] = torch.where(row.learn[:length], row.input_ids[:length], IGNORED)
            positions = row.positions[:m]
            times[number, :length] = media_times(positions, length)
            cross[number, :length, :m] = attends(positions, length, self.attend)
            for place, found in enumerate(row.features[:m]):
                media[number, place, : len(found)] = found
                media_mask[number, place, : len(found)] = True
        there = torch.arange(T)[None] < torch.tensor(lengths)[:, None]
        return {
            "input_ids": ids,
            "attention_mask": there,
            "labels": labels,
            "media": media,
            "media_mask": media_mask,
            "media_times": times,
            "cross_mask": cross,
            "num_loss_tokens": (labels != IGNORED).sum(),
        }


@dataclass(frozen=True)
class PairCollator:
    """One item and its text: ``input_ids`` int64 [B, T], ``attention_mask`` bool [B, T], ``features`` [B, N, dim] and
    ``feature_mask`` bool [B, N], and ``pooled`` float32 [B, dim'] where the cache has it.

    Raises (when called):
        UsageError: a document has another number of items than one; ask the dataset for ``min_items=1, max_items=1``.
    """

    pad_id: int
    max_length: int | None = None

    def __call__(self, rows: Sequence[FeatureRow]) -> Batch:
        if wrong := [row for row in rows if len(row.features) != 1]:
            raise UsageError(f"document {wrong[0].document} has {len(wrong[0].features)} items; pairs have one")
        texts = [row.input_ids[: self.max_length] for row in rows]
        T, N = max(map(len, texts), default=0), max((len(row.features[0]) for row in rows), default=0)
        ids = torch.full((len(rows), T), self.pad_id, dtype=torch.int64)
        features = torch.zeros((len(rows), N, *rows[0].features[0].shape[1:]), dtype=rows[0].features[0].dtype)
        mask = torch.zeros((len(rows), N), dtype=torch.bool)
        for number, (row, text) in enumerate(zip(rows, texts, strict=True)):
            ids[number, : len(text)] = text
            features[number, : len(row.features[0])] = row.features[0]
            mask[number, : len(row.features[0])] = True
        there = torch.arange(T)[None] < torch.tensor([len(text) for text in texts])[:, None]
        batch = {"input_ids": ids, "attention_mask": there, "features": features, "feature_mask": mask}
        pooled = [row.pooled for row in rows if row.pooled is not None]
        return batch | ({"pooled": torch.cat(pooled)} if len(pooled) == len(rows) else {})
