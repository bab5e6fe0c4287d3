"""Packed batches as attention wants them: nothing attends across the border of a document.

Everything is derived from the fields of :class:`~tokkit.data.packed.PackedDataset`, on the device where these are, and never
from a guess at where ``position_ids`` begins again: borders are ``segment_ids``, padding is a segment of its own that nothing
else attends to.

==================  ====================================================================================================
for                 take
==================  ====================================================================================================
SDPA, any model     :func:`dense_mask`: bool [B, 1, L, L]; quadratic in L, so for short sequences and for tests
FlexAttention       :func:`mask_mod`: for ``torch.nn.attention.flex_attention.create_block_mask``
FlashAttention      :func:`varlen`: the batch as one row of B * L tokens with ``cu_seqlens``; torch's ``varlen_attn`` too
Transformers        :func:`flash_attention_kwargs`: the same under the names that its models take
Megatron            :func:`thd`: the same under the names of ``PackedSeqParams``; with context parallelism of a batch made by
                    :mod:`tokkit.data.aligned`, and then with its padded borders
==================  ====================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]
Row = dict[str, Tensor]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


class Varlen(NamedTuple):
    """A batch as one row.

    Attributes:
        cu_seqlens: int32 [S + 1], borders of the segments in the flattened batch, from 0 to B * L; each row's padding is one.
        max_seqlen: tokens of the longest segment, a Python int: kernels take it by value.
    """

    cu_seqlens: Tensor
    max_seqlen: int


def with_dense_fields(batch: Batch) -> Row:
    """A batch of ``PackedDataset(..., dense=False)`` with the fields that follow from its borders, made where it lies.

    ``segment_ids``, ``position_ids`` and ``loss_mask`` are those that the dataset would have made itself; a batch that has them
    keeps its own.
    """
    if "segment_ids" in batch:
        return dict(batch)
    borders, number = batch["cu_seqlens"].long(), batch["num_segments"].long()[:, None]
    places = torch.arange(batch["input_ids"].shape[1], device=borders.device).expand_as(batch["input_ids"])
    segment = torch.searchsorted(borders[:, 1:].contiguous(), places.contiguous(), right=True)
    ends = borders.gather(1, segment + 1)
    real = segment < number
    return {
        **batch,
        "segment_ids": torch.where(real, segment + 1, 0).to(torch.int32),
        "position_ids": (places - borders.gather(1, segment)).to(torch.int32),
        "loss_mask": (real & (places + 1 < ends)).to(torch.uint8),
    }


def loss_weights(batch: Batch, by: Literal["token", "document", "root"] = "token") -> Tensor:
    """float32 [B, L], a weight for the loss of each token, 0 where none is taken; divide by their sum (over all ranks).

    Args:
        batch: with the dense fields.
        by: ``token`` weighs all tokens alike, so long pieces of documents more; ``document`` each piece alike; ``root`` between
            the two, by the square root of how many tokens of it are predicted.
    """
    loss = batch["loss_mask"].float()
    if by == "token":
        return loss
    segments = batch["segment_ids"].long()
    counts = loss.new_zeros(loss.shape[0], int(segments.max()) + 1).scatter_add_(1, segments, loss).gather(1, segments)
    return loss / torch.where(counts > 0, counts, 1).pow(1.0 if by == "document" else 0.5)


def dense_mask(batch: Batch) -> Tensor:
    """bool [B, 1, L, L]: whether token q (third dimension) attends to token k: of its own segment, and not behind it."""
    segments = batch["segment_ids"]
    same = segments[:, None, :, None] == segments[:, None, None, :]
    return same & torch.ones(segments.shape[1], segments.shape[1], dtype=torch.bool, device=segments.device).tril()


def mask_mod(batch: Batch) -> MaskMod:
    """The same as a function of batch, head, query and key for FlexAttention.

    A token's segment begins ``position_ids`` before it, so one lookup and two comparisons tell: this form is the fastest one.
    """
    positions = batch["position_ids"]
    first = torch.arange(positions.shape[1], device=positions.device) - positions

    def attends(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (k >= first[b, q])

    return attends


def varlen(batch: Batch) -> Varlen:
    """The borders of the flattened batch (``input_ids.flatten()``); costs one wait for the device, unless the batch was made
    with :func:`tokkit.data.packed.collate_flat`."""
    if "cu_seqlens_flat" in batch:
        return Varlen(batch["cu_seqlens_flat"], int(batch["max_seqlen"]))
    positions = batch["position_ids"]
    starts = torch.nonzero(_begins(batch).flatten())[:, 0]
    ends = torch.tensor([positions.numel()], device=positions.device)
    cu_seqlens = torch.cat([starts, ends]).to(torch.int32)
    return Varlen(cu_seqlens, int(cu_seqlens.diff().max()) if positions.numel() else 0)


def _begins(batch: Batch) -> Tensor:
    """bool [B, L]: where a segment begins."""
    segments = batch["segment_ids"]
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return begins


def flash_attention_kwargs(batch: Batch) -> dict[str, Any]:
    """Keyword arguments for a model of Transformers with ``attn_implementation="flash_attention_2"``.

    It takes the batch as one row: give it ``input_ids`` and ``position_ids`` as [1, B * L], and labels in its own (``hf``)
    convention. ``seq_idx`` is for layers that carry a state along (Mamba, linear attention).
    """
    borders = varlen(batch)
    begins = _begins(batch).flatten()
    return {
        "cu_seq_lens_q": borders.cu_seqlens,
        "cu_seq_lens_k": borders.cu_seqlens,
        "max_length_q": borders.max_seqlen,
        "max_length_k": borders.max_seqlen,
        "seq_idx": (begins.cumsum(0) - 1).to(torch.int32)[None],
    }


def thd(batch: Batch) -> dict[str, Any]:
    """Keyword arguments of Megatron's ``PackedSeqParams``, the batch as one row of B * L tokens.

    Of an aligned batch (:func:`tokkit.data.aligned.align`) ``cu_seqlens_q`` are sums of the segments' own lengths,
    ``cu_seqlens_q_padded`` says where they stand, and ``max_seqlen_q`` counts places, for Megatron makes its rotary embedding
    of as many positions.
    """
    borders = varlen(batch)
    real, padded = batch.get("cu_seqlens_real", borders.cu_seqlens), batch.get("cu_seqlens_padded")
    found = {
        "qkv_format": "thd",
        "cu_seqlens_q": real,
        "cu_seqlens_kv": real,
        "max_seqlen_q": borders.max_seqlen,
        "max_seqlen_kv": borders.max_seqlen,
    }
    return found if padded is None else {**found, "cu_seqlens_q_padded": padded, "cu_seqlens_kv_padded": padded}
