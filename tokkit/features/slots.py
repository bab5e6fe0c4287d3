"""How many units a batch may have so that a unit comes out the same in every slot.

A batch of fixed shape is not enough for that: where a tensor's size is no multiple of what a kernel takes at once, its last
elements are computed by other instructions, and the last slot differs in the last bit (seen on CPUs with SigLIP so400m in
batches of 3). Which operations are done for which element depends on shapes alone, not on values. So one batch that holds the
same noise in every slot tells: if all slots agree to the bit, they do for all inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def steady(run: Callable[[int], Sequence[Tensor]], slots: int) -> int:
    """The largest of ``slots``, ``slots // 2``, ... 1 at which all slots agree.

    Args:
        run: encodes a batch of so many slots that all hold the same, and gives what came out, slot by slot in the first
            dimension.
    """
    while slots > 1 and not all(torch.equal(found, found[:1].expand_as(found)) for found in run(slots)):
        slots //= 2
    return slots
