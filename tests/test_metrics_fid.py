"""FID: statistics as NumPy gives them, the distance where it is known, and features as pytorch-fid gives them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from metric_weights import drawn, pair
from safetensors.torch import save_file

from tokkit.errors import DataError
from tokkit.metrics.fid import FeatureStatistics, frechet_distance
from tokkit.metrics.inception import FEATURES, Inception, load_inception

# pytorch-fid 0.3.0: calculate_frechet_distance of the two sets below, and its network with these weights.
REFERENCE_DISTANCE = 332.1791821785539
REFERENCE_FEATURES = [5.112110137939453, 0.11260263621807098, 0.14670854806900024, 0.7512753009796143, 0.0]
REFERENCE_MEANS = [2.550836057391866, 2.5410613142606095]

# Of Inception v3 without classifier and auxiliary head (known from torchvision's documentation).
PARAMETERS = 21_785_568


def of(rows: np.ndarray, parts: int = 1) -> FeatureStatistics:
    statistics = FeatureStatistics(rows.shape[1])
    for part in np.array_split(rows, parts):
        statistics.add(part)
    return statistics


def two_sets() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    first = rng.normal(size=(300, 24)) @ rng.normal(size=(24, 24))
    return first, rng.normal(size=(200, 24)) @ rng.normal(size=(24, 24)) + 0.3


@given(st.integers(0, 2**32 - 1), st.integers(2, 40), st.integers(1, 7))
@settings(deadline=None, max_examples=40)
def test_statistics_are_those_of_the_whole_however_it_comes(seed: int, count: int, parts: int) -> None:
    rows = np.random.default_rng(seed).normal(1000, 1, (count, 3))  # far from zero: sums of squares would lose digits
    statistics = of(rows, parts)
    np.testing.assert_allclose(statistics.mean, rows.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(rows, rowvar=False), rtol=1e-8, atol=1e-10)
    assert statistics.count == count


def test_it_agrees_with_pytorch_fid_on_the_same_sets() -> None:
    first, second = two_sets()
    assert frechet_distance(of(first, 7), of(second, 3)) == pytest.approx(REFERENCE_DISTANCE, rel=1e-9)
    assert frechet_distance(of(second), of(first)) == pytest.approx(REFERENCE_DISTANCE, rel=1e-9)


def test_of_single_features_it_is_known_by_hand() -> None:
    first, second = np.array([[0.0], [2.0], [4.0]]), np.array([[10.0], [11.0]])
    # means 2 and 10.5, variances 4 and 0.5
    assert frechet_distance(of(first), of(second)) == pytest.approx(8.5**2 + (2 - 0.5**0.5) ** 2)


def test_the_root_is_that_of_the_product_of_both_covariances() -> None:
    first, second = (of(rows) for rows in two_sets())
    eigenvalues = np.linalg.eigvals(first.covariance @ second.covariance)  # of a matrix that is not symmetric
    cross = np.sqrt(eigenvalues.astype(complex)).real.sum()
    moved = ((first.mean - second.mean) ** 2).sum()
    expected = moved + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_do_no_harm() -> None:
    first, second = two_sets()
    few = of(first[:5])
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-5)
    shifted = of(first[:5] + 2.0)
    assert frechet_distance(few, shifted) == pytest.approx(24 * 4, rel=1e-6)
    assert np.isfinite(frechet_distance(few, of(second[:2])))


def test_what_makes_no_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="two vectors"):
        frechet_distance(of(np.zeros((1, 3))), of(np.zeros((4, 3))))
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        FeatureStatistics(3).add(np.zeros((2, 4)))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {k: v.shape for k, v in Inception().state_dict().items() if not k.endswith("num_batches_tracked")}
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    save_file(drawn(shapes), path)
    return path


def test_features_are_those_of_pytorch_fid(file: Path) -> None:
    network, digest = load_inception(file)
    features = network.features(pair()[0])
    assert features.shape == (2, FEATURES)
    np.testing.assert_allclose(features[0, [0, 500, 1000, 1500, 2047]].numpy(), REFERENCE_FEATURES, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.double().mean(1).numpy(), REFERENCE_MEANS, rtol=1e-5)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS
    assert len(digest) == 64


def test_a_file_without_a_layer_is_told_of(file: Path, tmp_path: Path) -> None:
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, tmp_path / "part.pth")
    with pytest.raises(DataError, match="not the weights of this network"):
        load_inception(tmp_path / "part.pth")
