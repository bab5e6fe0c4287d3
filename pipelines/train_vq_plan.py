"""``tokkit train-vq --dry-run``: what a training would be, without reading a picture.

Memory is counted, not guessed: one picture of noise goes through the networks as it would in training, and what the backward
pass would need of it is added up; a batch needs as many times that as it has pictures. Weights, gradients, the two moments of
AdamW and averaged weights are added. Temporary buffers of the device's kernels come on top (10 to 30 % as a rule).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokkit.pipelines.train_vq_config import TrainVQConfig
from tokkit.pipelines.train_vq_parts import (
    built_critics,
    device_of,
    objective_of,
    optimisation_of,
    precision_of,
    start_of,
)
from tokkit.sources.resolve import resolve_inputs
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.training.engine import seeded
from tokkit.training.engine.task import Phase
from tokkit.training.image_task import ImageTask, fresh_tokenizer
from tokkit.training.noise import NoiseBatches
from tokkit.training.pictures import UNIT_BYTES


@dataclass(frozen=True)
class TrainVQPlan:
    """What ``--dry-run`` tells.

    Attributes:
        name: of the configuration; ``weights_from`` is what it goes on from, if anything.
        size, tokens, codebook_size, codebooks: pixels a side, tokens of a picture, codes.
        parameters, discriminator_parameters: numbers that are trained.
        steps: None where only the time ends the run; ``batch_size`` pictures each, in ``parts`` of ``at_once`` pictures.
        discriminator_from, adversarial_from: steps (or shares of the run) where they begin; None without one.
        device, precision: of the networks.
        state_bytes: weights, gradients, optimisers, averages.
        activation_bytes: of one part of a batch, generator and discriminator.
        bytes: of the input, as far as its listing says.
    """

    name: str
    weights_from: str | None
    size: int
    tokens: int
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


def plan_vq(config: TrainVQConfig) -> TrainVQPlan:
    """Look at options and inputs, and measure the networks on one picture of noise.

    Raises:
        ConfigError, UsageError, DataError: as the training would.
    """
    start, device = start_of(config), device_of(config)
    sources = resolve_inputs(list(config.inputs)).sources
    size = start.config.preprocessing.size
    critics, _ = built_critics(config.model_copy(update={"compile": False}), size, "cpu")
    tokenizer = start.tokenizer or fresh_tokenizer(start.config, config.seed)
    tokenizer.recompute_activations(config.recompute)
    generator = _count(tokenizer)
    optimisation = optimisation_of(config, device)
    start_share, lead = optimisation.phases.start, optimisation.phases.lead_in
    steps = config.max_steps
    held = 4 * 4 + (4 if optimisation.average else 0)  # weight, gradient, two moments; the average
    critic = critics.discriminator
    judges = sum(_count(network, trained=False) for network in (critics.lpips, critics.logits) if network is not None)
    at_once = config.batch_size // config.accumulate
    task = ImageTask(tokenizer, NoiseBatches(size), objective_of(config), critics, pictures_at_once=at_once)
    precision = precision_of(config, device)
    return TrainVQPlan(
        name=start.config.name,
        weights_from=start.identity,
        size=size,
        tokens=tokenizer.codebooks * tokenizer.grid[0] * tokenizer.grid[1],
        codebook_size=tokenizer.codebook_size,
        codebooks=tokenizer.codebooks,
        parameters=generator,
        discriminator_parameters=_count(critic) if critic is not None else 0,
        steps=steps,
        max_minutes=config.max_minutes,
        batch_size=config.batch_size,
        parts=config.accumulate,
        at_once=at_once,
        discriminator_from=None if start_share is None else _place(max(0.0, start_share - lead), steps),
        adversarial_from=None if start_share is None else _place(start_share, steps),
        device=device,
        precision=precision,
        state_bytes=held * generator + (16 * _count(critic) if critic is not None else 0) + 4 * judges,
        activation_bytes=at_once * saved_bytes(task, adversarial=critic is not None, bf16=precision == "bf16"),
        bytes=sum(unit.bytes for source in sources for unit in source.units(UNIT_BYTES)),
    )


def saved_bytes(task: ImageTask, *, adversarial: bool, bf16: bool) -> int:
    """What the backward pass of one picture needs to have kept, in bytes; the same memory is counted once."""
    held: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no memory is used twice while counting
    weights = {p.untyped_storage().data_ptr() for p in task.tokenizer.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with (
        seeded(0),
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=bf16),
    ):
        task.generate(task.batch(0, 0), Phase(0.5, adversarial, adversarial))
    return sum(held.values())


def _count(module: nn.Module | ImageTokenizer, trained: bool = True) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained)


def _place(share: float, steps: int | None) -> float:
    return round(share * steps) if steps is not None else share
