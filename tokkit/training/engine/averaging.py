"""An exponential moving average of a network's weights: it is validated and kept, while training goes on with the raw ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The average of a module's trainable parameters; buffers (codebooks) are averages already and taken as they are.

    Args:
        module: its parameters are followed from here on.
        decay: of the average. Early on a lower one is used, (1 + n) / (10 + n) after n updates, so that the first weights are
            soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live: list[Tensor] = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._mean = [parameter.detach().clone() for parameter in self._live]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._mean, self._live, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The module holds the averaged weights inside the ``with`` block, and its own again, bit for bit, behind it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for live, mean in zip(self._live, self._mean, strict=True):
            raw = live.detach().clone()
            live.copy_(mean)
            mean.copy_(raw)

    def state(self) -> dict[str, int | list[Tensor]]:
        """For a checkpoint."""
        return {"updates": self.updates, "mean": list(self._mean)}

    @torch.no_grad()
    def restore(self, state: dict[str, int | list[Tensor]]) -> None:
        """Go on from :meth:`state`."""
        updates, means = state["updates"], state["mean"]
        assert isinstance(updates, int)
        assert isinstance(means, list)
        self.updates = updates
        for mean, saved in zip(self._mean, means, strict=True):
            mean.copy_(saved)
