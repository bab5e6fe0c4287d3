"""The precision of a network that encodes, and the process-wide switches of torch that it needs.

``fp32``
    float32 throughout; TF32, which cuDNN uses for convolutions unless it is told not to, is off.
``tf32``
    float32 tensors, products with 10 bits of mantissa on GPUs that have it. A CPU has none.
``fp16``
    float16 tensors and products in the network (norms accumulate in float32); what follows it, the quantizer first of all, is
    float32. Of the fast modes it is the one that keeps codes: a value has 10 bits of mantissa where bfloat16 has 7.

No kernel is ever chosen by timing (``cudnn.benchmark``): the choice, and so the last bits, would depend on the machine's mood.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from tokkit.errors import UsageError

if TYPE_CHECKING:
    import torch

Precision = Literal["fp32", "tf32", "fp16"]
Acceleration = Literal["none", "compile", "graphs"]  # see tokkit.tokenizers.image.bulk

SHAPES = 1024  # that a network may be compiled for; torch would give up after 8, and go on with another arithmetic

# Inductor would choose among launch configurations by timing them.
INDUCTOR = {"triton.autotune_pointwise": False}


@contextmanager
def arithmetic(precision: Precision) -> Iterator[None]:
    """Set what torch holds for the whole process for the length of a block; on leaving, it is as it was."""
    import torch

    tf32 = precision == "tf32"
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
        matmul.allow_tf32 = tf32
        try:
            yield
        finally:
            matmul.allow_tf32 = before


def check_precision(precision: Precision, device: torch.device) -> None:
    """Raise UsageError where a device has no such precision."""
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision tf32 needs an NVIDIA GPU; on {device.type} it would be fp32")


def check_acceleration(acceleration: Acceleration, device: torch.device) -> None:
    """Raise UsageError where a device has nothing of the kind."""
    if acceleration == "graphs" and device.type != "cuda":
        raise UsageError(f"--acceleration graphs needs an NVIDIA GPU, not {device.type}")


def compiled(network: Callable[..., Any]) -> Any:
    """A network through ``torch.compile``, once for each shape and without autotuning."""
    import torch

    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, SHAPES)
    limits.accumulated_recompile_limit = max(limits.accumulated_recompile_limit, SHAPES)
    return torch.compile(network, dynamic=False, options=dict(INDUCTOR))
