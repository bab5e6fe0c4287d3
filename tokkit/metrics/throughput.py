"""What a device can do at most, and what a network asks of it: the two figures that a share of the peak is made of."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tokkit.precision import Precision, arithmetic


def matmul_peak(device: torch.device, precision: Precision, seconds: float = 1.0) -> float:
    """Floating-point operations a second of products of large square matrices, the best of several tries.

    Measured, because a data sheet's figure is of another clock and another power limit than the machine's own.
    """
    dtype = torch.float16 if precision == "fp16" else torch.float32
    side, times = (8192, 4) if device.type == "cuda" else (768, 1)
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = 0.0
    with arithmetic(precision):
        torch.mm(left, right)
        wait_for(device)
        end = time.monotonic() + seconds
        while best == 0.0 or time.monotonic() < end:
            begin = time.monotonic()
            for _ in range(times):
                torch.mm(left, right)
            wait_for(device)
            best = max(best, times * 2 * side**3 / (time.monotonic() - begin))
    return best


def operations(call: Callable[[], object], *modules: nn.Module) -> int:
    """Floating-point operations of the products and convolutions in a call; a multiplication and an addition count as two."""
    with FlopCounterMode(list(modules) or None, display=False) as counter:
        call()
    return int(counter.get_total_flops())


def wait_for(device: torch.device) -> None:
    """Wait until everything that was queued on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
