"""Weights and pictures that are functions of names and numbers, so that reference implementations can be given the same ones.

The figures named ``REFERENCE_*`` in the tests of metrics were computed once with these by the packages that they name.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from math import prod, sqrt

import numpy as np
import torch
from torch import Tensor


def drawn(shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """Tensors by name: convolutions by fan-in, positive scales and variances, small biases and means."""
    found = {}
    for name, shape in shapes.items():
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        if name.startswith("lin"):
            values = rng.uniform(0, 1, shape)
        elif len(shape) > 1:
            values = rng.normal(0, sqrt(2 / prod(shape[1:])), shape)
        elif name.endswith(("running_var", "bn.weight")):
            values = rng.uniform(0.5, 1.5, shape)
        else:
            values = rng.normal(0, 0.1, shape)
        found[name] = torch.from_numpy(np.asarray(values, dtype=np.float32))
    return found


def pair(height: int = 44, width: int = 52, count: int = 2) -> tuple[Tensor, Tensor]:
    """Pictures uint8 ``[count, height, width, 3]`` of waves and noise, and worse copies of them."""
    rng = np.random.default_rng(7)
    y, x = np.mgrid[0:height, 0:width]
    wave = np.stack([np.sin(x / (3 + c)) * np.cos(y / (5 + c)) for c in range(3)], axis=-1)
    original = 128 + 80 * wave[None] + rng.normal(0, 20, (count, height, width, 3))
    worse = 0.8 * original + 20 + rng.normal(0, 25, original.shape)
    return tuple(torch.from_numpy(p.round().clip(0, 255).astype(np.uint8)) for p in (original, worse))  # type: ignore[return-value]
