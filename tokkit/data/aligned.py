"""Batches whose segments begin at multiples of a number, for context parallelism and for kernels that want it.

Megatron parts each document of a THD batch among 2 * context_parallel_size chunks, so each must begin at a multiple of that,
and Transformer Engine is told two kinds of borders: sums of the documents' own lengths (``cu_seqlens``), and where they stand
(``cu_seqlens_padded``). A plan made with ``tokkit pack --align N`` leaves the room for it, and :func:`align` moves the
tokens there:

>>> rows = PackedDataset("shards", "seq8192-overlong-align16", seed=0, labels="shifted", cu_seqlens=True)
>>> loader = PackedLoader(rows, batch_size=1, collate_fn=AlignedCollator.of(rows))
>>> for batch in loader:
...     params = PackedSeqParams(**thd(batch))

The places behind a segment's last token belong to it: attention is causal, so nothing before them sees them, and nothing is
predicted at them. Every field and mask therefore says the same to kernels that know of no padded borders. What is behind the
last segment of a row stays a segment of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokkit.data.attention import Batch, with_dense_fields
from tokkit.data.packed import IGNORED, PackedDataset, Row, collate
from tokkit.errors import UsageError

_BEHIND = {"loss_mask": 0, "labels": IGNORED, "modality_ids": 0}


def align(batch: Batch, multiple: int, pad_id: int) -> dict[str, Any]:
    """The same batch with every segment at a multiple of ``multiple``; made where the batch lies, with its dense fields.

    Fields keep their names and shapes, and ``cu_seqlens`` tells where segments stand now. There are besides:

    * ``cu_seqlens_padded`` (and ``cu_seqlens_flat``), int32 [S + 1]: the same for the batch as one row of B * L tokens;
    * ``cu_seqlens_real``, int32 [S + 1]: sums of the segments' own lengths;
    * ``max_seqlen``, int: places of the longest one.

    Args:
        batch: with ``cu_seqlens`` and ``num_segments``, dense fields or not.
        multiple: divides the rows' length.
        pad_id: stands in the places between.

    Raises:
        UsageError: a row has no room for it: the plan was not made with ``--align``.
    """
    tokens = batch["input_ids"].shape[1]
    if multiple < 1 or tokens % multiple:
        raise UsageError(f"rows of {tokens} tokens cannot be cut into parts of {multiple}")
    batch = with_dense_fields(batch)
    borders, number = batch["cu_seqlens"].long(), batch["num_segments"].long()[:, None]
    lengths = borders.diff()
    lengths = torch.where(torch.arange(lengths.shape[1], device=lengths.device) < number, lengths, 0)
    places = (lengths + multiple - 1) // multiple * multiple
    ends = places.cumsum(1)
    used = ends[:, -1:]
    if int(used.max()) > tokens:
        raise UsageError(f"{int(used.max())} places in rows of {tokens} for parts of {multiple}: pack with --align {multiple}")
    found: dict[str, Any] = _moved(batch, lengths, ends, ends - places, pad_id)
    found["cu_seqlens"] = torch.cat([torch.zeros_like(used), torch.where(lengths > 0, ends, tokens)], 1).to(torch.int32)
    if "images_start" in batch:
        row, segment = batch["images_row"].long(), batch["images_segment"].long() - 1
        found["images_start"] = batch["images_start"] + ((ends - places) - borders[:, :-1])[row, segment].to(torch.int32)
    return found | _flat(lengths, places, tokens - used)


def _moved(batch: Mapping[str, Tensor], lengths: Tensor, ends: Tensor, starts: Tensor, pad_id: int) -> Row:
    """The dense fields [B, L] in their new places."""
    ids, borders = batch["input_ids"], batch["cu_seqlens"].long()
    here = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape).contiguous()
    segment = torch.searchsorted(ends, here, right=True)
    real = here < ends[:, -1:]
    segment = segment.clamp(max=lengths.shape[1] - 1)
    within = here - torch.where(real, starts.gather(1, segment), ends[:, -1:])
    inside = real & (within < lengths.gather(1, segment))
    source = torch.where(inside, borders.gather(1, segment) + within, 0)
    found = dict(batch)
    for name, behind in {"input_ids": pad_id, **_BEHIND}.items():
        if name in batch:
            found[name] = torch.where(inside, batch[name].gather(1, source), behind).to(batch[name].dtype)
    found["segment_ids"] = torch.where(real, segment + 1, 0).to(torch.int32)
    found["position_ids"] = within.to(torch.int32)
    return found


def _flat(lengths: Tensor, places: Tensor, rest: Tensor) -> dict[str, Any]:
    """Borders of the batch as one row; ``rest`` [B, 1] is what is behind the last segment of each row."""
    real, all_places = torch.cat([lengths, rest], 1), torch.cat([places, rest], 1)
    there = all_places > 0
    zero = torch.zeros(1, dtype=torch.int64, device=lengths.device)
    padded = torch.cat([zero, all_places[there].cumsum(0)]).to(torch.int32)
    return {
        "cu_seqlens_padded": padded,
        "cu_seqlens_flat": padded,
        "cu_seqlens_real": torch.cat([zero, real[there].cumsum(0)]).to(torch.int32),
        "max_seqlen": int(all_places.max()),
    }


@dataclass(frozen=True)
class AlignedCollator:
    """A loader's ``collate_fn``: :func:`~tokkit.data.packed.collate`, then :func:`align`, where that waits for no device.

    Attributes:
        multiple, pad_id: see :func:`align`.
    """

    multiple: int
    pad_id: int

    @classmethod
    def of(cls, dataset: PackedDataset) -> AlignedCollator:
        """For a dataset with ``cu_seqlens``, by what its plan was made for."""
        return cls(dataset.align, dataset.pad_id)

    def __call__(self, rows: Sequence[Row]) -> dict[str, Any]:
        return align(collate(rows), self.multiple, self.pad_id)
