"""How close a reconstruction is to its original."""

from __future__ import annotations

import torch
from torch import Tensor

# Of 8-bit pictures: a difference of one level in one sample of a 512x512 picture has 107 dB; equal pictures are given this.
PSNR_OF_EQUAL = 120.0


def psnr(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture of a batch, in dB.

    ``10 log10(255^2 / MSE)`` with the mean squared error over all samples of one picture, so that the mean over a set is the
    mean of per-picture figures, as tokenizer papers report it.

    Args:
        original, reconstruction: uint8 ``[B, ...]`` of one shape.

    Returns:
        float64 ``[B]``.
    """
    if original.dtype != torch.uint8 or reconstruction.dtype != torch.uint8 or original.shape != reconstruction.shape:
        raise ValueError("psnr compares two uint8 tensors of one shape")
    error = (original.to(torch.float64) - reconstruction.to(torch.float64)).square().flatten(1).mean(1)
    return torch.where(error > 0, 10 * torch.log10(255.0**2 / error.clamp_min(1e-12)), PSNR_OF_EQUAL)
