"""``tokkit train-vq --dry-run``: what a training would be (:mod:`tokkit.pipelines.training_plan`)."""

from __future__ import annotations

from dataclasses import dataclass

from tokkit.pipelines.train_vq_config import TrainVQConfig
from tokkit.pipelines.train_vq_parts import built_critics, objective_of, optimisation_of, precision_of, start_of
from tokkit.pipelines.training_job import device_of
from tokkit.pipelines.training_plan import (
    TrainingPlan,
    beginnings,
    input_bytes,
    kept_for_backward,
    state_bytes,
    trained_numbers,
)
from tokkit.training.engine.task import Phase
from tokkit.training.image_task import ImageTask, fresh_tokenizer
from tokkit.training.noise import NoiseBatches


@dataclass(frozen=True, kw_only=True)
class TrainVQPlan(TrainingPlan):
    """What ``--dry-run`` tells; ``size`` pixels a side are ``tokens`` tokens."""

    size: int
    tokens: int


def plan_vq(config: TrainVQConfig) -> TrainVQPlan:
    """Look at options and inputs, and measure the networks on one picture of noise.

    Raises:
        ConfigError, UsageError, DataError: as the training would.
    """
    start, device = start_of(config), device_of(config)
    size = start.config.preprocessing.size
    critics, _ = built_critics(config.model_copy(update={"compile": False}), size, "cpu")
    tokenizer = start.tokenizer or fresh_tokenizer(start.config, config.seed)
    tokenizer.recompute_activations(config.recompute)
    generator, critic = trained_numbers(tokenizer), trained_numbers(critics.discriminator)
    optimisation, precision = optimisation_of(config, device), precision_of(config, device)
    judges = sum(p.numel() for network in (critics.lpips, critics.logits) if network is not None for p in network.parameters())
    at_once = config.batch_size // config.accumulate
    task = ImageTask(tokenizer, NoiseBatches(size), objective_of(config), critics, pictures_at_once=at_once)
    adversarial = critics.discriminator is not None
    discriminator_from, adversarial_from = beginnings(optimisation, config.max_steps)
    return TrainVQPlan(
        name=start.config.name,
        weights_from=start.identity,
        size=size,
        tokens=tokenizer.codebooks * tokenizer.grid[0] * tokenizer.grid[1],
        codebook_size=tokenizer.codebook_size,
        codebooks=tokenizer.codebooks,
        parameters=generator,
        discriminator_parameters=critic,
        steps=config.max_steps,
        max_minutes=config.max_minutes,
        batch_size=config.batch_size,
        parts=config.accumulate,
        at_once=at_once,
        discriminator_from=discriminator_from,
        adversarial_from=adversarial_from,
        device=device,
        precision=precision,
        state_bytes=state_bytes(generator, critic, optimisation.average) + 4 * judges,
        activation_bytes=at_once * saved_bytes(task, adversarial=adversarial, bf16=precision == "bf16"),
        bytes=input_bytes(list(config.inputs)),
    )


def saved_bytes(task: ImageTask, *, adversarial: bool, bf16: bool) -> int:
    """What the backward pass of one picture needs to have kept."""
    phase = Phase(0.5, adversarial, adversarial)
    return kept_for_backward(lambda: task.generate(task.batch(0, 0), phase), task.tokenizer, bf16=bf16)
