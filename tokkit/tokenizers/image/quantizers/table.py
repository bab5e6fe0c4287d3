"""Quantizers that look up the nearest vector of a table: VQ, residual VQ and SimVQ.

The tables are the buffer ``codebook``: float32 ``[codebook_size, D]``, or ``[K, codebook_size, D]`` where the quantizer is
residual. It is all that inference reads, however the table was learned; ``settle`` fills it while training.

Learning goes through vector-quantize-pytorch, one of its modules a codebook, with guards: whether processes share a codebook is
always said, a revived code gets the average use (with the library's default it would die again at once), unit vectors stay unit
vectors under an optimiser, and a k-means start needs as many vectors as codes. Losses and the way of the gradient are set here,
once for all codebooks of a position: left to the library's layers, K codebooks would pass K times the gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.errors import UsageError
from tokkit.tokenizers.image.quantizer_config import ResidualVqQuantizer, SimVqQuantizer, VqQuantizer
from tokkit.tokenizers.image.quantizers.base import NOT_STARTED, Quantized, Quantizer, nearest, straight_through
from tokkit.tokenizers.image.quantizers.entropy import table_entropies


class _TableQuantizer(Quantizer):
    """Inference by the buffer ``codebook``."""

    codebook: Tensor
    learner: nn.Module | None

    def __init__(self, config: VqQuantizer | ResidualVqQuantizer | SimVqQuantizer) -> None:
        super().__init__()
        self.normalize = config.normalize
        self.codebook_size, self.codebooks, self.dim = config.codebook_size, config.codebooks, config.dim
        table = torch.randn(self.codebooks, self.codebook_size, self.dim)
        if not table.is_meta:  # where only its shape is asked for; arithmetic there loads torch's compiler
            table = functional.normalize(table, dim=-1)
        self.register_buffer("codebook", table if self.codebooks > 1 else table[0])
        self.learner = None

    @abstractmethod
    def _learned(self) -> Tensor:
        """The tables as training has them now, ``[K, codebook_size, D]``."""

    @torch.no_grad()
    def settle(self) -> None:
        if self.learner is not None:
            self.codebook.copy_(self._learned().view_as(self.codebook))

    @torch.no_grad()
    def codes_from_features(self, features: Tensor) -> Tensor:
        self.settle()
        tables = self._tables()
        B, _, h, w = features.shape
        codes = torch.empty(B, self.codebooks, h * w, dtype=torch.int64, device=features.device)
        for slot, item in enumerate(features.float().permute(0, 2, 3, 1).reshape(B, h * w, self.dim)):
            left = functional.normalize(item, dim=-1) if self.normalize else item
            for k, table in enumerate(tables):
                codes[slot, k] = nearest(left, table, self.normalize)
                if k + 1 < self.codebooks:
                    left = left - table[codes[slot, k]]
        return codes.view(B, self.codebooks, h, w) if self.codebooks > 1 else codes.view(B, h, w)

    def features_from_codes(self, codes: Tensor) -> Tensor:
        self.check_codes(codes)
        self.settle()
        by_book = codes.to(torch.int64) if self.codebooks > 1 else codes.to(torch.int64).unsqueeze(1)
        tables = self._tables()
        total = tables[0][by_book[:, 0]]
        for k in range(1, self.codebooks):
            total = total + tables[k][by_book[:, k]]
        return total.permute(0, 3, 1, 2)

    def _tables(self) -> Tensor:
        tables = self.codebook if self.codebooks > 1 else self.codebook.unsqueeze(0)
        return functional.normalize(tables, dim=-1) if self.normalize else tables


class VectorQuantizer(_TableQuantizer):
    """VQ and residual VQ: by Euclidean distance, of unit vectors where ``normalize`` is set."""

    learner: _VqLearner | None

    def __init__(self, config: VqQuantizer | ResidualVqQuantizer) -> None:
        super().__init__(config)
        self.config = config

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        if self.config.start == "kmeans" and seed_codebook and vectors_per_step < self.codebook_size:
            raise UsageError(
                f"start kmeans needs a first batch of at least {self.codebook_size} vectors, one a code; this one has "
                f"{vectors_per_step}: use a larger batch, fewer codes, or start features"
            )
        self.learner = _VqLearner(self.config, vectors_per_step / self.codebook_size, not seed_codebook, sync)
        self.learner.to(self.codebook.device)
        for stage, table in zip(self.learner, self._tables(), strict=True):
            stage.set_codebook(table)

    def forward(self, features: Tensor) -> Quantized:
        if self.learner is None:
            raise RuntimeError(NOT_STARTED)
        rows = features.float().permute(0, 2, 3, 1)
        if self.normalize:
            rows = functional.normalize(rows, dim=-1)
        found, codes, losses = self.learner(rows.flatten(1, 2))
        found = _route(rows.flatten(1, 2), found, self.config.rotation_trick)
        quantized = found.view(rows.shape).permute(0, 3, 1, 2).to(features.dtype)
        codes = codes.view(len(codes), -1, *rows.shape[1:3])
        return Quantized(quantized, codes if self.codebooks > 1 else codes[:, 0], losses)

    def _learned(self) -> Tensor:
        assert self.learner is not None
        return torch.stack([stage.table for stage in self.learner])


class SimVectorQuantizer(_TableQuantizer):
    """SimVQ. Weights that were trained before go on as a frozen table under a map that begins as the identity."""

    def __init__(self, config: SimVqQuantizer) -> None:
        super().__init__(config)
        self.config = config

    def start_training(self, vectors_per_step: int, *, seed_codebook: bool = True, sync: bool = False) -> None:
        from vector_quantize_pytorch import SimVQ

        learner = SimVQ(
            dim=self.dim,
            codebook_size=self.codebook_size,
            rotation_trick=self.config.rotation_trick,
            input_to_quantize_commit_loss_weight=self.config.commitment_weight,
            commitment_weight=1.0,
        )
        if not seed_codebook:
            with torch.no_grad():
                learner.frozen_codebook.copy_(self.codebook)
                learner.code_transform.weight.copy_(torch.eye(self.dim))
        self.learner = learner.to(self.codebook.device)

    def forward(self, features: Tensor) -> Quantized:
        if self.learner is None:
            raise RuntimeError(NOT_STARTED)
        rows = features.float().permute(0, 2, 3, 1)
        quantized, codes, loss = self.learner(rows.flatten(1, 2))
        quantized = quantized.view(rows.shape).permute(0, 3, 1, 2).to(features.dtype)
        return Quantized(quantized, codes.view(rows.shape[:3]), {"commitment": loss})

    def _learned(self) -> Tensor:
        assert self.learner is not None
        table = self.learner.codebook
        assert isinstance(table, Tensor)
        return table.unsqueeze(0)


def _route(features: Tensor, quantized: Tensor, rotation: bool) -> Tensor:
    """The quantized values with a gradient to the features: by rotation (arXiv:2410.06424, section 4.2) or straight through."""
    if not rotation:
        return straight_through(features, quantized)
    from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

    turned: Tensor = rotate_to(features, quantized)
    return turned


class _Stage(nn.Module):
    """One codebook being learned: the library's module, and whether it was started from data."""

    seeded: Tensor

    def __init__(self, config: VqQuantizer | ResidualVqQuantizer, mean_use: float, seeded: bool, sync: bool) -> None:
        from vector_quantize_pytorch import VectorQuantize

        super().__init__()
        self.config, self.mean_use, self.sync = config, mean_use, sync
        self.by_gradient = config.update == "gradient"
        self.vq = VectorQuantize(
            dim=config.codebook_dim,
            codebook_size=config.codebook_size,
            decay=config.decay,
            # The library has no unit vectors under an optimiser; of unit vectors, Euclidean distance finds the same nearest.
            use_cosine_sim=config.normalize and not self.by_gradient,
            threshold_ema_dead_code=config.dead_code_share * mean_use,
            commitment_weight=0.0,
            rotation_trick=False,
            route_gradients_to_input=False,
            ema_update=not self.by_gradient,
            learnable_codebook=self.by_gradient,
            sync_codebook=sync,
        )
        # A revived code gets the average code's use to begin with; with the library's default, the threshold, it would be dead
        # again after one step without use.
        self.vq._codebook.reset_cluster_size = mean_use
        self.register_buffer("seeded", torch.tensor(seeded))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Rows ``[B, N, D]`` to their entries (of no gradient to the rows), codes ``[B, N]`` and losses."""
        if not self.seeded:
            self._seed(rows.detach().reshape(-1, rows.shape[-1]))
        if self.by_gradient and self.config.normalize:
            embed = self.vq._codebook.embed
            embed.data = functional.normalize(embed.data, dim=-1)  # the last update has left the sphere
        # Before the library's forward, which moves a table of moving averages.
        entropy = self._entropy(rows.flatten(0, 1)) if self.config.entropy_weight else None
        found, codes, _ = self.vq(rows)
        losses = {"commitment": self.config.commitment_weight * functional.mse_loss(rows, found.detach())}
        if self.by_gradient:
            losses["codebook"] = functional.mse_loss(found, rows.detach())
        if entropy is not None:
            losses["entropy"] = entropy
        return found.detach(), codes, losses

    def _entropy(self, rows: Tensor) -> Tensor:
        table = self.table if self.by_gradient else self.table.clone()
        single, together = table_entropies(rows, table, self.config.temperature, sync=self.sync)
        return self.config.entropy_weight * (single - self.config.diversity * together)

    @property
    def table(self) -> Tensor:
        """The codebook as it is now, ``[codebook_size, D]``."""
        table: Tensor = self.vq.codebook
        return table

    @torch.no_grad()
    def set_codebook(self, table: Tensor) -> None:
        """Take over a table ``[codebook_size, D]`` as one in average use."""
        book = self.vq._codebook
        book.embed.copy_(table.unsqueeze(0))
        book.cluster_size.fill_(self.mean_use)
        book.embed_avg.copy_(book.embed * self.mean_use)

    @torch.no_grad()
    def _seed(self, rows: Tensor) -> None:
        table = self._kmeans(rows) if self.config.start == "kmeans" else self._sample(rows)
        if self.config.normalize:
            table = functional.normalize(table, dim=-1)
        if self.sync:
            torch.distributed.broadcast(table, src=0)
        self.set_codebook(table)
        self.seeded.fill_(True)

    def _sample(self, rows: Tensor) -> Tensor:
        """Features of the first batch, spread by a little noise where they are fewer than codes."""
        size = self.config.codebook_size
        order = torch.randperm(len(rows), device=rows.device)
        chosen = rows[order.repeat(-(-size // len(rows)))[:size]]
        noise = torch.randn_like(chosen) * rows.std(0, correction=0) * 0.1
        noise[: len(rows)] = 0
        return chosen + noise

    def _kmeans(self, rows: Tensor) -> Tensor:
        from vector_quantize_pytorch.vector_quantize_pytorch import kmeans

        means: Tensor = kmeans(rows.unsqueeze(0), self.config.codebook_size, use_cosine_sim=self.config.normalize)[0]
        return means[0].contiguous()


class _VqLearner(nn.Module):
    """The codebooks of a position, each on what those before have left over."""

    def __init__(self, config: VqQuantizer | ResidualVqQuantizer, mean_use: float, seeded: bool, sync: bool) -> None:
        super().__init__()
        self.stages = nn.ModuleList(_Stage(config, mean_use, seeded, sync) for _ in range(config.codebooks))

    def __iter__(self) -> Iterator[_Stage]:
        return iter(self.stages)  # type: ignore[arg-type] # a ModuleList does not know what it holds

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Rows ``[B, N, D]`` to the sum of their entries, codes ``[B, K, N]`` and losses, added up over the codebooks."""
        left, total = rows, torch.zeros_like(rows)
        codes, losses = [], dict[str, Tensor]()
        for stage in self:
            found, chosen, mine = stage(left)
            left, total = left - found, total + found
            codes.append(chosen)
            losses = {name: losses[name] + loss if name in losses else loss for name, loss in mine.items()}
        return total, torch.stack(codes, 1), losses
