"""Training with a grid (FSQ, residual FSQ): no vectors are learnt, so none can be left unused; only where it lies is measured.

As with tables nothing is quantized at first. Then the grid is laid over what the encoder gives, channel by channel, and follows
it from there on by running means of all processes: an encoder that wanders off takes the grid along, where it would otherwise
end in its outermost levels and stay there, since nothing beyond them has a gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokkit.tokenizers.audio.quantizers import SPREAD, LaidGrid
from tokkit.tokenizers.image.quantizers import ResidualFiniteScalarQuantizer
from tokkit.training.audio.residual import Quantized, sum_over_processes

SMALLEST = 1e-6  # of widths

# Of the running means: a few batches. With the hundred that tables take, the encoder of a small codec, whose learning rate is
# high when quantization begins, outruns its grid and leaves a handful of codes in use.
DECAY = 0.5


class GridTrainer:
    """The training side of a grid.

    Args:
        grid: the network's.
        decay: of the running means that centres and widths are.
    """

    def __init__(self, grid: LaidGrid, decay: float = DECAY) -> None:
        self.laid, self.decay = grid, decay
        grid.grid.start_training(1)

    @property
    def initialised(self) -> bool:
        """Whether :meth:`initialise` was called, or a grid that was laid before was loaded."""
        return not self.laid.empty()

    @torch.no_grad()
    def initialise(self, features: Tensor, frames: int = 16384) -> None:
        """Lay the grid over the features ``[B, D, t]``; ``frames`` is for tables."""
        self.laid.place.copy_(_measured(features))

    def __call__(self, features: Tensor, books: int | None = None) -> Quantized:
        """Quantize ``[B, D, t]`` with the first ``books``, and let the grid follow; gradients go straight through.

        There is no commitment to pay.

        Raises:
            RuntimeError: the grid was never laid.
        """
        if not self.initialised:
            raise RuntimeError("the grid was not laid: call initialise() with features of the encoder")
        self._follow(features)
        laid, rows = self.laid, self.laid.onto(features)
        if isinstance(laid.grid, ResidualFiniteScalarQuantizer):
            found = laid.grid(rows, books)
            codes = found.codes.squeeze(2)
        else:
            found = laid.grid(rows)
            codes = found.codes
        return Quantized(laid.off(found.features), codes, features.new_zeros(()))

    def all_codes(self, features: Tensor) -> Tensor:
        """int64 ``[B, K, t]`` of all codebooks."""
        return self.laid.codes(features.detach())

    @torch.no_grad()
    def _follow(self, features: Tensor) -> None:
        self.laid.place.lerp_(_measured(features).to(self.laid.place.dtype), 1 - self.decay)


def _measured(features: Tensor) -> Tensor:
    """Centre and width of each channel, ``[2, D]``, over the frames of all processes."""
    rows = features.detach().double().permute(1, 0, 2).flatten(1)  # squares of what lies far from 0 cancel in float32
    sums = torch.stack([rows.sum(1), rows.square().sum(1), torch.full_like(rows[:, 0], rows.shape[1])])
    sum_over_processes(sums)
    mean, square = sums[0] / sums[2], sums[1] / sums[2]
    deviation = (square - mean.square()).clamp_min(0).sqrt()
    return torch.stack([mean, (deviation / SPREAD).clamp_min(SMALLEST)]).float()
