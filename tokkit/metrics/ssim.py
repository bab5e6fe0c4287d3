"""Structural similarity of pictures (Wang, Bovik, Sheikh and Simoncelli, 2004).

Local means, variances and covariance under an 11x11 Gaussian window (sigma 1.5, weights that sum to 1), samples scaled to
[0, 1] and ``data_range`` 1.0; windows that lie wholly inside the picture only. Colour channels are measured apart and averaged.
Figures taken with another ``data_range`` on the same samples are not comparable: with 2.0 they come out higher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

WINDOW = 11
SIGMA = 1.5
K1, K2 = 0.01, 0.03


def ssim(original: Tensor, reconstruction: Tensor) -> Tensor:
    """Mean structural similarity of each picture of a batch, 1 for equal ones.

    Everything is float64: a variance is the difference of two nearly equal numbers.

    Args:
        original, reconstruction: uint8 ``[B, H, W, C]`` of one shape, both sides at least 11.

    Returns:
        float64 ``[B]``.
    """
    if original.dtype != torch.uint8 or reconstruction.dtype != torch.uint8 or original.shape != reconstruction.shape:
        raise ValueError("ssim compares two uint8 tensors of one shape")
    if original.ndim != 4 or min(original.shape[1:3]) < WINDOW:
        raise ValueError(f"ssim needs pictures [B, H, W, C] of at least {WINDOW}x{WINDOW}, not {list(original.shape)}")
    x, y = (_planes(p) for p in (original, reconstruction))
    mean_x, mean_y = _blur(x), _blur(y)
    var_x, var_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = K1**2, K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    contrast_structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * contrast_structure).mean((1, 2, 3)).view(len(original), -1).mean(1)


def _planes(pictures: Tensor) -> Tensor:
    """uint8 ``[B, H, W, C]`` to float64 ``[B C, 1, H, W]`` in [0, 1]."""
    return pictures.permute(0, 3, 1, 2).flatten(0, 1).unsqueeze(1).to(torch.float64) / 255


def _blur(planes: Tensor) -> Tensor:
    """Weighted means over all windows inside; the window is separable."""
    at = torch.arange(WINDOW, dtype=torch.float64, device=planes.device) - WINDOW // 2
    weights = torch.exp(-(at**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    return functional.conv2d(functional.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
