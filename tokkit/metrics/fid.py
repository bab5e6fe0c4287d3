"""Frechet distance between two sets of pictures (FID; Heusel et al., arXiv:1706.08500).

Each set is summed up by the mean and covariance of its Inception features (:mod:`tokkit.metrics.inception`); the distance is
that of two Gaussians: ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``. Reconstruction FID (rFID) takes a tokenizer's
reconstructions as one set. With fewer pictures than features the covariances are singular and the figure is biased upwards;
figures are comparable only between equal numbers of pictures against the same reference.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class FeatureStatistics:
    """Mean and covariance of a stream of vectors, in float64 and one pass (the pairwise update of Chan, Golub and LeVeque).

    Args:
        dim: length of a vector.
    """

    def __init__(self, dim: int) -> None:
        self.count = 0
        self.mean: NDArray[np.float64] = np.zeros(dim)
        self._scatter: NDArray[np.float64] = np.zeros((dim, dim))

    def add(self, features: NDArray[np.floating]) -> None:
        """Take in vectors ``[N, dim]``."""
        rows = np.asarray(features, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.mean.size:
            raise ValueError(f"expected features [N, {self.mean.size}], not {list(rows.shape)}")
        if not len(rows):
            return
        mean = rows.mean(0)
        centred = rows - mean
        shift = mean - self.mean
        count = self.count + len(rows)
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.count * len(rows) / count)
        self.mean = self.mean + shift * (len(rows) / count)
        self.count = count

    @property
    def covariance(self) -> NDArray[np.float64]:
        """float64 ``[dim, dim]``, over ``count - 1``. Raises ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two vectors, not {self.count}")
        return self._scatter / (self.count - 1)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Squared Frechet distance between the Gaussians of two sets; symmetric, 0 for equal sets."""
    difference = a.mean - b.mean
    first, second = a.covariance, b.covariance
    cross = _trace_of_root_of_product(first, second)
    return max(0.0, float(difference @ difference + np.trace(first) + np.trace(second) - 2 * cross))


def _trace_of_root_of_product(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """``tr((S1 S2)^(1/2))`` for symmetric positive semi-definite matrices.

    ``S1 S2`` has the eigenvalues of the symmetric ``S1^(1/2) S2 S1^(1/2)``, so no general matrix square root, with its
    imaginary residues at singular matrices, is needed.
    """
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = root @ second @ root
    return float(np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum())
