"""What a quantizer is to the rest of an image tokenizer, and the one search for nearest vectors.

A :class:`Quantizer` has two sides that must agree. For inference, ``codes_from_features`` and ``features_from_codes`` are our
own: float32 or integer arithmetic, a bounded amount of memory, and the same work for an item wherever it stands in a batch.
For training there is ``forward``; where vector-quantize-pytorch has what it takes (gradients, moving averages, revival of dead
codes) it goes through that library, which is imported only then. Its inference is not used: the VQ lookup builds a one-hot
matrix (15 times the memory and 8 times the time), and FSQ's ``codes_to_indices`` is wrong for half-precision codes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokkit.errors import VocabularyError

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
        codes: int64 ``[B, h, w]``, or ``[B, K, h, w]`` of K > 1 codebooks.
        losses: auxiliary losses by name, already weighted.
    """

    features: Tensor
    codes: Tensor
    losses: dict[str, Tensor]


class Quantizer(nn.Module, ABC):
    """A finite set of vectors of ``dim`` channels, and the rule that picks one.

    Attributes:
        codebook_size: codes of a codebook.
        codebooks: codes at each position (K). Codes of one codebook have no dimension for it.
        dim: channels (D).
    """

    codebook_size: int
    codebooks: int = 1
    dim: int

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        """Make what only training needs; called once, before the optimiser is built.

        Args:
            vectors_per_step: vectors of a batch (over all processes if they are synchronised), to measure use of a code by.
            seed_codebook: start the codebook from features of the first batch (not for weights that were trained before).
            sync: whether the processes of a distributed run share one codebook. Stated, never guessed: the library caches
                its guess for the life of the process.

        Raises:
            UsageError: the batch is too small for what the configuration asks for.
        """

    def settle(self) -> None:
        """Bring what inference and saving read up to date with what training has learned."""

    @abstractmethod
    def forward(self, features: Tensor) -> Quantized:
        """Quantize ``[B, D, h, w]`` for training; needs :meth:`start_training`."""

    @abstractmethod
    def codes_from_features(self, features: Tensor) -> Tensor:
        """float ``[B, D, h, w]`` to int64 ``[B, h, w]`` or ``[B, K, h, w]``; computed in float32, without gradients."""

    @abstractmethod
    def features_from_codes(self, codes: Tensor) -> Tensor:
        """int ``[B, h, w]`` or ``[B, K, h, w]`` to float32 ``[B, D, h, w]``. Raises VocabularyError for a code that is none."""

    def check_codes(self, codes: Tensor) -> None:
        """Raise VocabularyError where a code is outside of the codebook."""
        if codes.numel() == 0:
            return
        low, high = (int(v) for v in torch.aminmax(codes))
        if low < 0 or high >= self.codebook_size:
            raise VocabularyError(f"code {low if low < 0 else high} outside of the codebook's 0 to {self.codebook_size - 1}")


def straight_through(features: Tensor, quantized: Tensor) -> Tensor:
    """The quantized values, with the gradient of the features (arXiv:1308.3432)."""
    return features + (quantized - features).detach()


def nearest(rows: Tensor, table: Tensor, normalized: bool) -> Tensor:
    """Index of the nearest entry of ``table`` [K, D] for each of ``rows`` [N, D]; of equally near ones the lowest: int64 [N].

    In chunks cut from the first row, so that an item that is given by itself goes through matrix products of the same shapes
    wherever it stood in its batch. |z|^2 is the same for all entries and left out; with ``normalized`` (table of unit vectors)
    so is that of the entries.
    """
    bias = None if normalized else table.square().sum(1)
    chunk = min(max(1, LOOKUP_ELEMENTS // len(table)), max(1, len(rows)))
    # One buffer for all chunks, small enough to stay in a cache: allocating each anew costs more than the arithmetic.
    scores = torch.empty(chunk, len(table), dtype=rows.dtype, device=rows.device)
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
