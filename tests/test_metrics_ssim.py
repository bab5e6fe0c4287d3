"""SSIM against a plain loop over windows, against torchmetrics, and where its value is known by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_weights import pair
from torch import Tensor

from tokkit.metrics.ssim import ssim

# torchmetrics 1.9.0, data_range 1.0, its full image without the 5 pixels at each side (its own mean takes windows over a
# reflected border as well).
REFERENCE_SSIM = [0.6415285640256194, 0.6299044169867283]


def plain(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two pictures [H, W, C] by its definition, one window at a time, variances about the window's mean."""
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for c in range(x.shape[2]):
        for top in range(x.shape[0] - 10):
            for left in range(x.shape[1] - 10):
                a, b = (p[top : top + 11, left : left + 11, c] / 255 for p in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                var_a, var_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                both = (window * (a - mean_a) * (b - mean_b)).sum()
                similar = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
                values.append(similar / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)))
    return float(np.mean(values))


def test_it_is_the_mean_over_windows_and_channels() -> None:
    original, worse = pair(15, 19, 2)
    expected = [plain(x.numpy(), y.numpy()) for x, y in zip(original, worse, strict=True)]
    np.testing.assert_allclose(ssim(original, worse).numpy(), expected, rtol=1e-10)


def test_it_agrees_with_torchmetrics() -> None:
    np.testing.assert_allclose(ssim(*pair()).numpy(), REFERENCE_SSIM, rtol=1e-10)


def flat(level: int) -> Tensor:
    return torch.full((1, 12, 12, 3), level, dtype=torch.uint8)


@given(st.integers(0, 255), st.integers(0, 255))
@settings(deadline=None, max_examples=30)
def test_of_flat_pictures_only_the_luminance_counts(a: int, b: int) -> None:
    x, y = a / 255, b / 255
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert ssim(flat(a), flat(b)).item() == pytest.approx(expected, rel=1e-9)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=15)
def test_it_is_symmetric_bounded_and_one_for_equal_pictures(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = (torch.from_numpy(rng.integers(0, 256, (2, 13, 12, 3), dtype=np.uint8)) for _ in range(2))
    there, back = ssim(x, y), ssim(y, x)
    torch.testing.assert_close(there, back)
    assert (there.abs() <= 1).all()
    torch.testing.assert_close(ssim(x, x), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (flat(1)[:, :10], flat(1)[:, :10]),
        (flat(1), flat(1).float()),
        (flat(1), flat(1)[:, :, :11]),
    ],
)
def test_what_it_cannot_compare_it_refuses(x: Tensor, y: Tensor) -> None:
    with pytest.raises(ValueError, match="ssim"):
        ssim(x, y)
