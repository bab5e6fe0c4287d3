"""The processes of a run that is spread over several devices (``torchrun``), or the one process of any other.

Every process holds the whole model and takes its part of each batch. Gradients are averaged once an update, after the last
backward pass, in a few large buffers: all processes then make the same update, bit for bit, whatever the graph looked like
(several passes through one network, gradients of gradients, recomputed activations).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from tokkit.errors import UsageError

BUCKET_ELEMENTS = 2**24  # of one buffer that goes over the network: 64 MiB of float32
TIMEOUT = timedelta(minutes=30)  # one process may read or write while the others wait


@dataclass(frozen=True, slots=True)
class World:
    """Which of how many processes this is. With one, nothing is ever sent."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """Whether this is the process that writes files and talks to people."""
        return self.rank == 0

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over the processes, in place."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            distributed.all_reduce(flat)
            flat /= self.size
            torch._foreach_copy_(list(bucket), [part.view_as(t) for part, t in zip(_split(flat, bucket), bucket, strict=True)])

    def same_(self, tensors: Sequence[Tensor]) -> None:
        """Give every process the first one's tensors, in place."""
        if self.size > 1:
            for tensor in tensors:
                # gloo does not know truth values
                distributed.broadcast(tensor.view(torch.uint8) if tensor.dtype == torch.bool else tensor, src=0)

    def gathered(self, tensor: Tensor) -> Tensor:
        """The tensors of all processes (of one shape), one after another along the first dimension."""
        if self.size == 1:
            return tensor
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        distributed.all_gather(parts, tensor.contiguous())
        return torch.cat(parts)

    def agreed(self, value: float) -> float:
        """The first process's value, for what all must decide alike."""
        if self.size == 1:
            return value
        held: list[float] = [value]
        distributed.broadcast_object_list(held, src=0)
        return held[0]


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that ``torchrun`` says there is, for the length of a ``with`` block.

    Raises:
        UsageError: the environment names only a part of what is needed.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        yield World()
        return
    try:
        rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if device.startswith("cuda"):
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        if size > 1:
            distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=TIMEOUT)
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"RANK and WORLD_SIZE are set, but the processes do not find one another ({error})") from None
    try:
        yield World(rank, size)
    finally:
        if size > 1:
            distributed.destroy_process_group()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    held = 0
    for tensor in tensors:
        bucket.append(tensor)
        held += tensor.numel()
        if held >= BUCKET_ELEMENTS:
            yield bucket
            bucket, held = [], 0
    if bucket:
        yield bucket


def _split(flat: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return torch.split(flat, [tensor.numel() for tensor in tensors])
