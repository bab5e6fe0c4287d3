"""The network and the books of a checkpoint, read off its names and shapes; and weight norm's two parts put together.

Shapes do not tell everything: whether the network is causal, its padding, its rate. That is :mod:`.describe`'s.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Shapes = Mapping[str, tuple[int, ...]]

_PAIRS = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))


class CannotDerive(ValueError):  # noqa: N818 - it says what is wrong
    """Names and shapes that make no EnCodec network."""


def fuse(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Length and direction of weight norm as one weight, as torch computes it in every call.

    Raises:
        CannotDerive: one of the two is missing, or they do not fit.
    """
    fused = dict(tensors)
    for length, direction in _PAIRS:
        for name in [name for name in tensors if name.endswith((length, direction))]:
            stem = name.removesuffix(length).removesuffix(direction)
            if f"{stem}.weight" in fused:
                continue
            g, v = tensors.get(stem + length), tensors.get(stem + direction)
            if g is None or v is None:
                raise CannotDerive(f"{stem} has one part of a normalised weight and not the other")
            if g.shape != (v.shape[0], *[1] * (v.ndim - 1)):
                raise CannotDerive(f"{stem} has lengths {list(g.shape)} for directions {list(v.shape)}")
            fused[f"{stem}.weight"] = torch._weight_norm(v.float(), g.float(), 0)
            del fused[stem + length], fused[stem + direction]
    return fused


def derive(shapes: Shapes) -> tuple[dict[str, Any], dict[str, int]]:
    """(Fields of the architecture, fields of the quantizer) that the shapes tell.

    Raises:
        CannotDerive: a layer that should be there is not, or is of another shape.
    """
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"encoder\.model\.(\d+)\.", name))}
    plain = sorted(n for n in numbers if f"encoder.model.{n}.conv.conv.weight" in shapes)
    if len(plain) < 3:
        raise CannotDerive("the encoder has fewer than three convolutions of its own")
    first, *downs, last = (_shape(shapes, f"encoder.model.{n}.conv.conv.weight", 3) for n in plain)
    blocks = sorted(n for n in numbers if any(name.startswith(f"encoder.model.{n}.block.") for name in shapes))
    if not blocks or len(blocks) % len(downs):
        raise CannotDerive(f"{len(blocks)} residual blocks for {len(downs)} downsamplings")
    inner = _shape(shapes, f"encoder.model.{blocks[0]}.block.1.conv.conv.weight", 3)
    recurrent = sorted(name for name in shapes if re.match(r"encoder\.model\.\d+\.lstm\.weight_ih_l\d+$", name))
    odd = [down for down in downs if down[2] % 2]
    if odd or first[0] % inner[0]:
        raise CannotDerive("the widths of its convolutions are no EnCodec encoder's")
    architecture: dict[str, Any] = {
        "channels": first[1],
        "filters": first[0],
        "kernel_size": first[2],
        "last_kernel_size": last[2],
        "dimension": last[0],
        "ratios": tuple(down[2] // 2 for down in reversed(downs)),
        "residual_layers": len(blocks) // len(downs),
        "residual_kernel_size": inner[2],
        "compress": first[0] // inner[0],
        "lstm": len(recurrent),
        "norm": "time_group_norm" if any(".norm." in name for name in shapes) else "none",
        "true_skip": not any(".shortcut." in name for name in shapes),
    }
    books = sorted(name for name in shapes if re.match(r"quantizer\.vq\.layers\.\d+\._codebook\.embed$", name))
    if not books:
        raise CannotDerive("it has no codebooks")
    sizes = {_shape(shapes, name, 2) for name in books}
    if len(sizes) != 1 or (size := sizes.pop())[1] != last[0]:
        raise CannotDerive(f"its codebooks are not of one size, or not of {last[0]} dimensions")
    return architecture, {"codebooks": len(books), "codebook_size": size[0]}


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    shape = shapes.get(name)
    if shape is None:
        raise CannotDerive(f"{name} is missing")
    if len(shape) != dimensions or 0 in shape:
        raise CannotDerive(f"{name} has the shape {list(shape)}")
    return shape
