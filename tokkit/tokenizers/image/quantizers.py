"""From features to codes and back.

A :class:`Quantizer` has two sides that must agree. For inference, ``codes_from_features`` and ``features_from_codes`` are our
own: float32 or integer arithmetic, a bounded amount of memory, and the same work for an item wherever it stands in a batch.
For training, ``forward`` goes through vector-quantize-pytorch, which has the gradients, the moving averages and the revival
of dead codes; it is imported only then. Its inference is not used: the VQ lookup builds a one-hot matrix (15 times the memory
and 8 times the time), and FSQ's ``codes_to_indices`` is wrong for half-precision codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.errors import VocabularyError
from tokkit.tokenizers.image.config import FsqQuantizer, VqQuantizer

# Distances held at once, in elements (8 MiB of float32: about what a core has of cache).
LOOKUP_ELEMENTS = 2**21

# State that only training needs; left out of a saved tokenizer.
LEARNER = "learner"

NOT_STARTED = "forward is for training: call start_training first"


@dataclass(frozen=True, slots=True)
class Quantized:
    """What training needs of a quantizer.

    Attributes:
        features: float ``[B, D, h, w]``, quantized, with a gradient to the input.
        codes: int64 ``[B, h, w]``.
        losses: auxiliary losses by name, already weighted.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """A finite set of ``codebook_size`` vectors of ``dim`` channels, and the rule that picks one."""

    codebook_size: int
    dim: int

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        """Make what only training needs; called once, before the optimiser is built.

        Args:
            vectors_per_step: vectors of a batch (over all processes if they are synchronised), to measure use of a code by.
            seed_codebook: start the codebook from features of the first batch (not for weights that were trained before).
            sync: whether the processes of a distributed run share one codebook. Stated, never guessed: the library caches
                its guess for the life of the process.
        """

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """Quantize ``[B, D, h, w]`` for training; needs :meth:`start_training`."""

    @abstractmethod
    def codes_from_features(self, features: Tensor) -> Tensor:
        """float ``[B, D, h, w]`` to int64 ``[B, h, w]``; computed in float32, without gradients."""

    @abstractmethod
    def features_from_codes(self, codes: Tensor) -> Tensor:
        """int ``[B, h, w]`` to float32 ``[B, D, h, w]``. Raises VocabularyError for a code outside of the codebook."""

    def check_codes(self, codes: Tensor) -> None:
        """Raise VocabularyError where a code is outside of the codebook."""
        if codes.numel() == 0:
            return
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < 0 or high >= self.codebook_size:
            raise VocabularyError(f"code {low if low < 0 else high} outside of the codebook's 0 to {self.codebook_size - 1}")


class FiniteScalarQuantizer(Quantizer):
    """FSQ: every channel is squashed to its number of levels and rounded; a code is a number in mixed radix.

    With L levels, half-range ``(L - 1)(1 + eps) / 2`` and, for even L, an offset of one half: digit =
    ``round(tanh(z + atanh(offset / half-range)) * half-range - offset) + L // 2`` (arXiv:2309.15505, appendix A.1).
    """

    EPS = 1e-3

    _levels: Tensor
    _basis: Tensor
    _half: Tensor
    _offset: Tensor
    _shift: Tensor

    def __init__(self, config: FsqQuantizer) -> None:
        super().__init__()
        self.codebook_size, self.dim = config.codebook_size, config.dim
        levels = torch.tensor(config.levels, dtype=torch.int64)
        basis = torch.cumprod(torch.tensor([1, *config.levels[:-1]], dtype=torch.int64), 0)
        half = (levels - 1).to(torch.float32) * (1 + self.EPS) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0).to(torch.float32)
        for name, value in {"levels": levels, "basis": basis, "half": half, "offset": offset}.items():
            self.register_buffer(f"_{name}", value.view(-1, 1, 1), persistent=False)
        self.register_buffer("_shift", torch.atanh(offset / half).view(-1, 1, 1), persistent=False)
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

    @torch.no_grad()
    def codes_from_features(self, features: Tensor) -> Tensor:
        bounded = torch.tanh(features.float() + self._shift) * self._half - self._offset
        return self._join(bounded.round().to(torch.int64) + self._levels // 2)

    def features_from_codes(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        digits = codes.to(torch.int64).unsqueeze(1) // self._basis % self._levels
        half_width = self._levels // 2
        return (digits - half_width).to(torch.float32) / half_width.to(torch.float32)

    def _codes_from_quantized(self, quantized: Tensor) -> Tensor:
        """Codes of vectors that stand exactly on the grid, up to float32 rounding."""
        half_width = self._levels // 2
        return self._join((quantized.float() * half_width).round().to(torch.int64) + half_width)

    def _join(self, digits: Tensor) -> Tensor:
        return (digits * self._basis).sum(1)


class _VqLearner(nn.Module):
    """The library's quantizer, and whether its codebook was started from data."""

    seeded: Tensor

    def __init__(self, config: VqQuantizer, mean_use: float, seeded: bool, sync: bool) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        threshold = config.dead_code_share * mean_use
        self.vq = VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            use_cosine_sim=config.normalize,
            threshold_ema_dead_code=threshold,
            commitment_weight=config.commitment_weight,
            rotation_trick=config.rotation_trick,
            sync_codebook=sync,
        )
        # A revived code gets the average code's use to begin with; with the library's default, the threshold, it would be dead
        # again after one step without use.
        self.vq._codebook.reset_cluster_size = mean_use
        self.mean_use = mean_use
        self.register_buffer("seeded", torch.tensor(seeded))

    @torch.no_grad()
    def set_codebook(self, table: Tensor) -> None:
        """Take over a table ``[K, D]`` as one in average use."""
        book = self.vq._codebook
        book.embed.copy_(table.unsqueeze(0))
        book.cluster_size.fill_(self.mean_use)
        book.embed_avg.copy_(book.embed * self.mean_use)


class VectorQuantizer(Quantizer):
    """VQ: the nearest vector of a learned table, by Euclidean distance (of unit vectors where ``normalize`` is set).

    The table is the buffer ``codebook``, float32 ``[codebook_size, codebook_dim]``; while training it mirrors the library's.
    """

    codebook: Tensor
    learner: _VqLearner | None

    def __init__(self, config: VqQuantizer) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.dim = config.codebook_size, config.dim
        self.register_buffer("codebook", functional.normalize(torch.randn(self.codebook_size, self.dim), dim=-1))
        self.learner = None

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        self.learner = _VqLearner(self.config, vectors_per_step / self.codebook_size, not seed_codebook, sync)
        self.learner.to(self.codebook.device)
        self.learner.set_codebook(self._table())

    def forward(self, features: Tensor) -> Quantized:
        if self.learner is None:
            raise RuntimeError(NOT_STARTED)
        rows = features.permute(0, 2, 3, 1).float()
        if not self.learner.seeded:
            self._seed(self.learner, rows.detach().reshape(-1, self.dim))
        quantized, codes, commitment = self.learner.vq(rows.flatten(1, 2))
        with torch.no_grad():
            self.codebook.copy_(self.learner.vq.codebook)
        B, h, w, _ = rows.shape
        quantized = quantized.view(rows.shape).permute(0, 3, 1, 2).to(features.dtype)
        return Quantized(quantized, codes.view(B, h, w), {"commitment": commitment.sum()})

    @torch.no_grad()
    def codes_from_features(self, features: Tensor) -> Tensor:
        B, _, h, w = features.shape
        rows = features.float().permute(0, 2, 3, 1).reshape(B, h * w, self.dim)
        if self.config.normalize:
            rows = functional.normalize(rows, dim=-1)
        codes = torch.empty(B, h * w, dtype=torch.int64, device=rows.device)
        for slot, item in enumerate(rows):
            codes[slot] = self._nearest(item)
        return codes.view(B, h, w)

    def features_from_codes(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        return self._table()[codes.to(torch.int64)].permute(0, 3, 1, 2)

    def _table(self) -> Tensor:
        return functional.normalize(self.codebook, dim=-1) if self.config.normalize else self.codebook

    def _nearest(self, rows: Tensor) -> Tensor:
        """Index of the nearest entry for each of ``[N, D]``; of equally near ones the lowest.

        One item of a batch at a time, in chunks cut from its first row: so every item goes through matrix products of the same
        shapes wherever it stands. |z|^2 is the same for all entries and left out.
        """
        table = self._table()
        bias = None if self.config.normalize else table.square().sum(1)
        chunk = min(max(1, LOOKUP_ELEMENTS // self.codebook_size), max(1, len(rows)))
        # One buffer for all chunks, small enough to stay in a cache: allocating each anew costs more than the arithmetic.
        scores = torch.empty(chunk, self.codebook_size, dtype=rows.dtype, device=rows.device)
        codes = torch.empty(len(rows), dtype=torch.int64, device=rows.device)
        with torch.no_grad():
            for start in range(0, len(rows), chunk):
                part = rows[start : start + chunk].clone()  # its own, aligned memory
                score = scores[: len(part)]
                if bias is None:
                    codes[start : start + chunk] = torch.mm(part, table.T, out=score).argmax(1)
                else:
                    codes[start : start + chunk] = torch.addmm(bias, part, table.T, alpha=-2, out=score).argmin(1)
        return codes

    def _seed(self, learner: _VqLearner, rows: Tensor) -> None:
        """Start the codebook from features of the first batch, spread by a little noise where they are fewer than codes."""
        order = torch.randperm(len(rows), device=rows.device)
        chosen = rows[order.repeat(-(-self.codebook_size // len(rows)))[: self.codebook_size]]
        noise = torch.randn_like(chosen) * rows.std(0, correction=0) * 0.1
        noise[: len(rows)] = 0
        table = chosen + noise
        learner.set_codebook(functional.normalize(table, dim=-1) if self.config.normalize else table)
        learner.seeded.fill_(True)


def build_quantizer(config: FsqQuantizer | VqQuantizer) -> Quantizer:
    """The module for a configuration."""
    return FiniteScalarQuantizer(config) if isinstance(config, FsqQuantizer) else VectorQuantizer(config)
