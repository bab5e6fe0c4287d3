"""Finite scalar quantization and its residual form: grids that are computed, not learned.

FSQ is trained through vector-quantize-pytorch. The residual form gives the codes of that library's ``ResidualFSQ``: features
are squashed into (-c, c) with c = 1 + 1/(L - 1); codebook k then takes what is left over, times L^k, clamped to [-1, 1], to
the nearest of L values that are evenly spaced from -1 to 1 (halves go up), and the value times L^-k is taken off what is left
over. Its gradient goes straight through the sum of all codebooks, once; the library's passes each codebook, and so comes K
times.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from tokkit.tokenizers.image.quantizer_config import FsqQuantizer, ResidualFsqQuantizer
from tokkit.tokenizers.image.quantizers.base import NOT_STARTED, Quantized, Quantizer, straight_through


class GridQuantizer(Quantizer):
    """A code as a number in mixed radix, a digit a channel, the first the least significant."""

    @abstractmethod
    def squashed(self, features: Tensor) -> Tensor:
        """The values of features ``[B, D, h, w]`` before they are rounded to the grid's, float32, with their gradient."""

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...], codebook_size: int) -> None:
        super().__init__()
        self.codebook_size, self.dim = codebook_size, len(levels)
        # Never on the meta device, where a network is first built to know its weights: arithmetic on it loads torch's compiler.
        self._buffer("levels", torch.tensor(levels, dtype=torch.int64, device="cpu"))
        self._buffer("basis", torch.cumprod(torch.tensor([1, *levels[:-1]], dtype=torch.int64, device="cpu"), 0))

    def _buffer(self, name: str, values: Tensor) -> None:
        """One value a channel, to go with ``[B, D, h, w]``; never saved, the configuration says it all."""
        self.register_buffer(f"_{name}", values.view(-1, 1, 1), persistent=False)

    @property
    def middle(self) -> Tensor:
        """The features ``[D, 1, 1]`` from which as many levels lie to either side."""
        return torch.zeros_like(self._levels, dtype=torch.float32)

    def _join(self, digits: Tensor) -> Tensor:
        return (digits * self._basis).sum(1)

    def _split(self, codes: Tensor) -> Tensor:
        return codes.to(torch.int64).unsqueeze(1) // self._basis % self._levels


class FiniteScalarQuantizer(GridQuantizer):
    """FSQ: every channel is squashed to its number of levels and rounded.

    With L levels, half-range ``(L - 1)(1 + eps) / 2`` and, for even L, an offset of one half: digit =
    ``round(tanh(z + atanh(offset / half-range)) * half-range - offset) + L // 2`` (arXiv:2309.15505, appendix A.1).
    """

    EPS = 1e-3

    _half: Tensor
    _offset: Tensor
    _shift: Tensor

    def __init__(self, config: FsqQuantizer) -> None:
        super().__init__(config.levels, config.codebook_size)
        levels = self._levels.flatten()
        half = (levels - 1).to(torch.float32) * (1 + self.EPS) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(torch.float32)
        self._buffer("half", half)
        self._buffer("offset", offset)
        self._buffer("shift", torch.atanh(offset / half))
        self.learner: nn.Module | None = None

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        from vector_quantize_pytorch import FSQ

        # return_indices would build a table of the whole codebook; ours are computed
        self.learner = FSQ(self._levels.flatten().tolist(), return_indices=False).to(self._levels.device)

    def forward(self, features: Tensor) -> Quantized:
        if self.learner is None:
            raise RuntimeError(NOT_STARTED)
        quantized, _ = self.learner(features)
        return Quantized(quantized, self._codes_from_quantized(quantized.detach()), {})

    @property
    def middle(self) -> Tensor:
        return -self._shift

    def squashed(self, features: Tensor) -> Tensor:
        return self._bounded(features) / (self._levels // 2)

    @torch.no_grad()
    def codes_from_features(self, features: Tensor) -> Tensor:
        return self._join(self._bounded(features).round().to(torch.int64) + self._levels // 2)

    def _bounded(self, features: Tensor) -> Tensor:
        return torch.tanh(features.float() + self._shift) * self._half - self._offset

    def features_from_codes(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        half_width = self._levels // 2
        return (self._split(codes) - half_width).to(torch.float32) / half_width.to(torch.float32)

    def _codes_from_quantized(self, quantized: Tensor) -> Tensor:
        """Codes of vectors that stand on the grid, up to rounding (of half precision too: levels are wider apart)."""
        half_width = self._levels // 2
        return self._join((quantized.float() * half_width).round().to(torch.int64) + half_width)


class ResidualFiniteScalarQuantizer(GridQuantizer):
    """Residual FSQ; see the module's docstring."""

    _clamp: Tensor
    _steps: Tensor

    def __init__(self, config: ResidualFsqQuantizer) -> None:
        super().__init__(config.levels, config.codebook_size)
        self.codebooks = config.codebooks
        levels = self._levels.flatten().to(torch.float32)
        self._buffer("clamp", 1 + 1 / (levels - 1))
        self._buffer("steps", 2 / (levels - 1))

    def forward(self, features: Tensor, codebooks: int | None = None) -> Quantized:
        """See :class:`Quantizer`; of the first ``codebooks``, if so many are named."""
        squashed = self.squashed(features)
        total, codes = self._quantize(squashed.detach(), codebooks)
        return Quantized(straight_through(squashed, total).to(features.dtype), codes, {})

    @torch.no_grad()
    def codes_from_features(self, features: Tensor) -> Tensor:
        return self._quantize(self.squashed(features))[1]

    def squashed(self, features: Tensor) -> Tensor:
        return torch.tanh(features.float() / self._clamp) * self._clamp

    def _quantize(self, squashed: Tensor, codebooks: int | None = None) -> tuple[Tensor, Tensor]:
        """The sum of the codebooks' values ``[B, D, h, w]``, and their codes ``[B, K, h, w]``."""
        left, codes = squashed, []
        for k in range(codebooks or self.codebooks):
            scale = self._scale(k)
            digits = ((self._levels - 1) * ((left / scale).clamp(-1, 1) + 1) / 2 + 0.5).floor()
            left = left - (self._steps * digits - 1) * scale
            codes.append(self._join(digits.to(torch.int64)))
        return squashed - left, torch.stack(codes, 1)

    def features_from_codes(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        total = torch.zeros(len(codes), self.dim, *codes.shape[2:], device=codes.device)
        for k in range(codes.shape[1]):  # the first ones are coarser features by themselves
            total += (self._split(codes[:, k]).to(torch.float32) * self._steps - 1) * self._scale(k)
        return total

    def _scale(self, k: int) -> Tensor:
        return self._levels.to(torch.float32) ** -k
