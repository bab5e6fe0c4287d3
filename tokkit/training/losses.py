"""Losses of tokenizer training."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

ReconstructionLoss = Literal["l1", "l2"]


def reconstruction_loss(kind: ReconstructionLoss, original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean absolute (``l1``) or mean squared (``l2``) error over all elements, in float32.

    ``l2`` is what PSNR measures; ``l1`` is the usual choice beside perceptual and adversarial losses.
    """
    measure = functional.l1_loss if kind == "l1" else functional.mse_loss
    return measure(reconstruction.float(), original.float())


def total_loss(reconstruction: Tensor, auxiliary: dict[str, Tensor]) -> Tensor:
    """The reconstruction loss plus the quantizer's losses, which carry their weights already."""
    return torch.stack([reconstruction, *auxiliary.values()]).sum()
