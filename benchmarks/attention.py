"""Attention over packed rows: each kernel against every document by itself, and what they cost.

    python benchmarks/attention.py [--device cuda] [--rows 4] [--seq-len 8192] [--heads 16] [--rounds 20]

Rows are drawn as packs of documents of lognormal length (median 700). Reference is causal attention over each document alone in
float32. On a GPU, in bfloat16 and with the time of forward and backward: SDPA with the dense mask, FlexAttention compiled, and
torch's ``varlen_attn`` (FlashAttention; by the borders of :func:`tokkit.data.attention.varlen`, which Transformers and
Megatron's THD take too). On a CPU, in float32: SDPA and FlexAttention, and no times. Leaves with 1 where a kernel lets
documents see each other, or differs from the reference by more than rounding.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from tokkit.data.attention import dense_mask, mask_mod, varlen, with_dense_fields
from tokkit.packing.plan import plan_packs

WIDTH = 64
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def main() -> int:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=8192)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    batch = with_dense_fields({name: value.to(device) for name, value in packed(options.rows, options.seq_len).items()})
    torch.manual_seed(0)
    shape = (options.rows, options.heads, options.seq_len, WIDTH)
    kind = torch.bfloat16 if gpu else torch.float32
    qkv = [torch.randn(shape, device=device).to(kind) for _ in range(3)]
    expected = alone(batch, [x.float() for x in qkv])
    name = torch.cuda.get_device_name(device) if gpu else "CPU"
    shown = f"{options.rows} rows of {options.seq_len:,}, {options.heads} heads of {WIDTH}, {kind}"
    print(f"{name}, torch {torch.__version__}: {shown}")
    print(f"  {int(batch['num_segments'].sum()):,} documents; the largest difference to each by itself, and forward + backward")
    right = True
    for what, attention in kernels(batch, options, device):
        found = attention(*qkv).float()
        difference = float((found - expected).abs().max())
        right &= difference < (0.05 if gpu else 1e-4)
        told = f"{1000 * timed(attention, qkv, options.rounds):10.2f} ms" if gpu else ""
        print(f"  {what:<34}{difference:12.2e}{told}")
    return 0 if right else 1


def packed(rows: int, seq_len: int) -> dict[str, torch.Tensor]:
    """The fields of ``PackedDataset(dense=False)`` for drawn documents."""
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(700), 1.1, 40 * rows).astype(np.int64), 1, seq_len)
    plan = plan_packs(lengths, None, seq_len)
    packs = [plan.pack(n).length for n in range(min(rows, plan.num_packs))]
    borders = np.full((rows, max(map(len, packs)) + 2), seq_len, dtype=np.int32)
    borders[:, 0] = 0
    for row, pack in enumerate(packs):
        borders[row, 1 : len(pack) + 1] = np.cumsum(pack)
    numbers = np.array([len(pack) for pack in packs], dtype=np.int32)
    ids = torch.zeros(rows, seq_len, dtype=torch.int32)
    return {"input_ids": ids, "cu_seqlens": torch.from_numpy(borders), "num_segments": torch.from_numpy(numbers)}


def alone(batch: dict[str, torch.Tensor], qkv: list[torch.Tensor]) -> torch.Tensor:
    """Causal attention over each segment by itself; the padding is one."""
    out = torch.empty_like(qkv[0])
    for row, borders in enumerate(batch["cu_seqlens"].tolist()):
        for first, last in pairwise(borders):
            if first < last:
                q, k, v = (x[row : row + 1, :, first:last] for x in qkv)
                out[row : row + 1, :, first:last] = scaled_dot_product_attention(q, k, v, is_causal=True)
    return out


def kernels(
    batch: dict[str, torch.Tensor], options: argparse.Namespace, device: torch.device
) -> Iterator[tuple[str, Attention]]:
    """Name and function of [B, H, L, W] queries, keys and values."""
    mask = dense_mask(batch)
    yield "SDPA, dense mask", lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)
    length = options.seq_len
    blocks = create_block_mask(mask_mod(batch), B=options.rows, H=None, Q_LEN=length, KV_LEN=length, device=str(device))
    flex = torch.compile(flex_attention) if device.type == "cuda" else flex_attention
    yield "FlexAttention", lambda q, k, v: flex(q, k, v, block_mask=blocks)
    if device.type != "cuda":
        return
    from torch.nn.attention.varlen import varlen_attn

    borders = varlen(batch)

    def flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        flat = [x.transpose(1, 2).reshape(-1, options.heads, WIDTH) for x in (q, k, v)]
        found = varlen_attn(*flat, *[borders.cu_seqlens] * 2, *[borders.max_seqlen] * 2, window_size=(-1, 0))
        return found.view(options.rows, length, options.heads, WIDTH).transpose(1, 2)

    yield "varlen_attn (FlashAttention)", flash


def timed(attention: Attention, qkv: list[torch.Tensor], rounds: int) -> float:
    """Seconds of forward and backward, the best of some rounds."""
    given = [x.detach().requires_grad_() for x in qkv]
    best = float("inf")
    for _ in range(rounds):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        attention(*given).sum().backward()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


if __name__ == "__main__":
    sys.exit(main())
