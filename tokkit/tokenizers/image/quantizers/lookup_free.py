"""Lookup-free quantization (MAGVIT-v2, arXiv:2310.05737) and its spherical form (BSQ, arXiv:2406.07548).

A code is the signs of the channels. What keeps codes in use is an entropy loss: a single vector should stand for one code, all
vectors together for many. With the soft assignment p(c | z) = softmax(2 z.c / T) over corners c = (+-s, ..., +-s), the bits of
a vector are independent, p(bit = 1) = sigmoid(4 s z / T), so that

* the mean entropy of single vectors is the sum of their bits' entropies: exact, at no cost in memory;
* the entropy of all vectors together needs the joint distribution over 2^bits codes. Up to ``entropy_group`` bits it is
  computed whole; of more bits, group by group and added up, which is exact where groups are independent, and never less than
  the whole's (the approximation of BSQ, section 3.2).

vector-quantize-pytorch's ``LFQ`` is not used for training: it holds a matrix of vectors x codes (2^18 codes: 2 GB for 2,048
vectors) and drops the result of the sum over processes. Up to ``entropy_group`` bits ours computes the same figures.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokkit.tokenizers.image.quantizer_config import LfqQuantizer
from tokkit.tokenizers.image.quantizers.base import NOT_STARTED, Quantized, Quantizer, straight_through
from tokkit.tokenizers.image.quantizers.entropy import entropy, over_processes


class LookupFreeQuantizer(Quantizer):
    """LFQ; the first channel is the most significant bit. Zero counts as negative."""

    _weights: Tensor

    def __init__(self, config: LfqQuantizer) -> None:
        super().__init__()
        self.config = config
        self.codebook_size, self.dim = config.codebook_size, config.bits
        self.corner = config.bits**-0.5 if config.spherical else 1.0
        weights = 2 ** torch.arange(config.bits - 1, -1, -1, dtype=torch.int64, device="cpu")  # never on the meta device
        self.register_buffer("_weights", weights.view(-1, 1, 1), persistent=False)
        self._training: bool = False
        self._sync = False

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        self._training, self._sync = True, sync

    def forward(self, features: Tensor) -> Quantized:
        if not self._training:
            raise RuntimeError(NOT_STARTED)
        values = features.float()
        if self.config.spherical:
            values = functional.normalize(values, dim=1)
        positive = values > 0
        corners = torch.where(positive, self.corner, -self.corner)
        losses = {}
        if self.config.commitment_weight:
            losses["commitment"] = self.config.commitment_weight * functional.mse_loss(values, corners)
        if self.config.entropy_weight:
            rows = values.permute(0, 2, 3, 1).reshape(-1, self.dim)
            single, together = self.entropies(rows)
            losses["entropy"] = self.config.entropy_weight * (single - self.config.diversity * together)
        quantized = straight_through(values, corners).to(features.dtype)
        return Quantized(quantized, self._join(positive), losses)

    def entropies(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of vectors ``[N, bits]``: mean entropy of single ones, and entropy of all together, in nats (see the module)."""
        logits = 4 * self.corner / self.config.temperature * rows
        ones, zeros = torch.sigmoid(logits), torch.sigmoid(-logits)
        single = (functional.softplus(logits) - ones * logits).sum(1).mean()
        together = rows.new_zeros(())
        for start in range(0, self.dim, self.config.entropy_group):
            stop = min(start + self.config.entropy_group, self.dim)
            joint = rows.new_ones(len(rows), 1)
            for bit in range(start, stop):
                both = torch.stack([zeros[:, bit], ones[:, bit]], 1)
                joint = (joint.unsqueeze(2) * both.unsqueeze(1)).flatten(1)
            together = together + entropy(over_processes(joint.mean(0), self._sync))
        return single, together

    @torch.no_grad()
    def codes_from_features(self, features: Tensor) -> Tensor:
        return self._join(features > 0)

    def features_from_codes(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        bits = codes.to(torch.int64).unsqueeze(1) // self._weights % 2
        return torch.where(bits == 1, self.corner, -self.corner).to(torch.float32)

    def _join(self, positive: Tensor) -> Tensor:
        return (positive.to(torch.int64) * self._weights).sum(1)
