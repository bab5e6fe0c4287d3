"""Losses that pull at the output with the strength that was asked for, whatever their own scale.

Each loss is differentiated with respect to the output. Its gradient is divided by a running mean of its norm and given its
share of the total: a weight of 3 among weights that add up to 10 makes three tenths of the gradient (Défossez et al.,
section 3.4).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist


class LossBalancer:
    """See the module's docstring.

    Args:
        weights: of each loss, by name; not all 0.
        total: norm of the whole gradient at the output.
        decay: of the running means.
    """

    def __init__(self, weights: Mapping[str, float], total: float = 1.0, decay: float = 0.999) -> None:
        if not weights or any(weight < 0 for weight in weights.values()) or not any(weights.values()):
            raise ValueError(f"weights of losses must not be negative, nor all 0: {dict(weights)}")
        self.weights = dict(weights)
        self.total = total
        self.decay = decay
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def mix(self, losses: Mapping[str, Tensor], output: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """A scalar whose derivative by the output is the balanced gradient, and each loss's own norm, by name.

        Args:
            losses: scalars, each a function of the output; names without a weight are refused. Those that are left out (before
                the discriminator comes in) have no share: the others make up the whole.
            output: of the generator, before it went into the losses.
        """
        unknown = losses.keys() - self.weights.keys()
        if unknown:
            raise ValueError(f"losses without a weight: {', '.join(sorted(unknown))}")
        share = sum(self.weights[name] for name in losses)
        if not share:
            return (output * 0).sum(), {}
        mixed, norms = torch.zeros_like(output), {}
        for name in sorted(losses):
            (gradient,) = torch.autograd.grad(losses[name], [output], retain_graph=True)
            # Per clip: a batch of many is not pulled at less than a batch of one.
            norm = gradient.flatten(1).norm(dim=1).mean()
            norms[name] = norm.detach()
            usual = self._usual(name, float(_mean_over_processes(norm)))
            if usual:
                mixed += gradient * (self.total * self.weights[name] / share / usual)
        return (output * mixed.detach()).sum(), norms

    def _usual(self, name: str, norm: float) -> float:
        """The running mean of a loss's norm; from its first step it is a mean of what there was, not of zeros."""
        self._sums[name] = self.decay * self._sums.get(name, 0.0) + (1 - self.decay) * norm
        self._counts[name] = self.decay * self._counts.get(name, 0.0) + (1 - self.decay)
        return self._sums[name] / self._counts[name]

    def state(self) -> dict[str, dict[str, float]]:
        """The running means."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def restore(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on from :meth:`state`."""
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])


def _mean_over_processes(value: Tensor) -> Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return value.detach()
    shared = value.detach().clone()
    dist.all_reduce(shared)
    return shared / dist.get_world_size()
