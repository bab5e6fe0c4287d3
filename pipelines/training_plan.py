"""``--dry-run`` of a training: what it would be, without reading an item.

Memory is counted, not guessed: one item of noise goes through the networks as it would in training, and what the backward
pass would need of it is added up; a batch needs as many times that as it has items. Weights, gradients, the two moments of
AdamW and averaged weights are added. Temporary buffers of the device's kernels come on top (10 to 40 % as a rule).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.sources.resolve import resolve_inputs
from tokkit.training.engine import Optimisation, seeded
from tokkit.training.items import units_of


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What ``--dry-run`` tells of any tokenizer.

    Attributes:
        name: of the configuration; ``weights_from`` is what it goes on from, if anything.
        codebook_size, codebooks: codes.
        parameters, discriminator_parameters: numbers that are trained.
        steps: None where only the time ends the run; ``batch_size`` items each, in ``parts`` of ``at_once``.
        discriminator_from, adversarial_from: steps (or shares of the run) where they begin; None without one.
        device, precision: of the networks.
        state_bytes: weights, gradients, optimisers, averages.
        activation_bytes: of one part of a batch, generator and discriminator.
        bytes: of the input, as far as its listing says.
    """

    name: str
    weights_from: str | None
    codebook_size: int
    codebooks: int
    parameters: int
    discriminator_parameters: int
    steps: int | None
    max_minutes: float | None
    batch_size: int
    parts: int
    at_once: int
    discriminator_from: float | None
    adversarial_from: float | None
    device: str
    precision: str
    state_bytes: int
    activation_bytes: int
    bytes: int

    @property
    def memory(self) -> int:
        """All of it, in bytes."""
        return self.state_bytes + self.activation_bytes


def trained_numbers(module: nn.Module | None) -> int:
    """Parameters that are trained."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad) if module is not None else 0


def state_bytes(generator: int, discriminator: int, average: float) -> int:
    """Of so many numbers in float32: weight, gradient, two moments, and the generator's average where there is one."""
    return (16 + (4 if average else 0)) * generator + 16 * discriminator


def beginnings(optimisation: Optimisation, steps: int | None) -> tuple[float | None, float | None]:
    """Steps (or, without a number of them, shares of the run) from which the discriminator learns, and is listened to."""
    start, lead = optimisation.phases.start, optimisation.phases.lead_in
    if start is None:
        return None, None
    shares = (max(0.0, start - lead), start)
    first, second = (round(share * steps) if steps is not None else share for share in shares)
    return first, second


def input_bytes(inputs: list[str]) -> int:
    """Bytes of corpora, as far as their listing says."""
    return sum(unit.bytes for _, unit in units_of(resolve_inputs(inputs).sources))


def kept_for_backward(forward: Callable[[], Any], weights: nn.Module, *, bf16: bool = False) -> int:
    """What the backward pass of a pass needs to have kept, in bytes; the same memory is counted once, weights not at all."""
    held: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no memory is used twice while counting
    own = {p.untyped_storage().data_ptr() for p in weights.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        seeded(0),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        forward()
    return sum(held.values())
