"""``tokkit train-codec --dry-run``: what a training would be (:mod:`tokkit.pipelines.training_plan`)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_codec_config import TrainCodecConfig
from tokkit.pipelines.train_codec_data import units_of_sounds
from tokkit.pipelines.train_codec_parts import built_codec, built_task, crop_of, optimisation_of, start_of
from tokkit.pipelines.training_job import device_of
from tokkit.pipelines.training_plan import TrainingPlan, beginnings, kept_for_backward, state_bytes, trained_numbers
from tokkit.training.audio.task import CodecBatch, CodecTask
from tokkit.training.engine import seeded
from tokkit.training.engine.task import Phase
from tokkit.training.noise import NoiseCrops


@dataclass(frozen=True, kw_only=True)
class TrainCodecPlan(TrainingPlan):
    """What ``--dry-run`` tells.

    Attributes:
        sample_rate, channels: of the sounds; a second is ``frame_rate`` frames of ``codebooks`` codes.
        crop: seconds of a crop.
    """

    sample_rate: int
    channels: int
    frame_rate: float
    crop: float

    @property
    def tokens_per_second(self) -> float:
        """Of all codebooks."""
        return self.frame_rate * self.codebooks


def plan_codec(config: TrainCodecConfig) -> TrainCodecPlan:
    """Look at options and inputs, and measure the networks on one crop of noise.

    Raises:
        ConfigError, UsageError, DataError: as the training would.
    """
    start, device, recipe = start_of(config), device_of(config), config.resolved_recipe
    length = crop_of(config, start.config)
    codec = built_codec(start, config, "cpu")
    if start.tokenizer is None:
        with seeded(config.seed, 3):  # as if the codebooks had been set: nothing goes through empty ones
            codec.books.load({name: torch.randn_like(tensor) for name, tensor in codec.books.tensors().items()})
    task = built_task(config.model_copy(update={"accumulate": 1}), start, codec, NoiseCrops(codec.channels, length))
    generator, critic = trained_numbers(task.generator), trained_numbers(task.discriminator)
    optimisation = optimisation_of(config)
    discriminator_from, adversarial_from = beginnings(optimisation, config.max_steps)
    at_once = recipe.batch_size // config.accumulate
    return TrainCodecPlan(
        name=start.config.name,
        weights_from=start.identity,
        sample_rate=codec.sample_rate,
        channels=codec.channels,
        frame_rate=codec.frame_rate,
        crop=length / codec.sample_rate,
        codebook_size=codec.codebook_size,
        codebooks=codec.codebooks,
        parameters=generator,
        discriminator_parameters=critic,
        steps=config.max_steps,
        max_minutes=config.max_minutes,
        batch_size=recipe.batch_size,
        parts=config.accumulate,
        at_once=at_once,
        discriminator_from=discriminator_from,
        adversarial_from=adversarial_from,
        device=device,
        precision="float32",
        state_bytes=state_bytes(generator, critic, optimisation.average),
        activation_bytes=at_once * saved_bytes(task),
        bytes=sum(unit.bytes for unit, _ in units_of_sounds(config.inputs, SilentProgress())),
    )


def saved_bytes(task: CodecTask) -> int:
    """What the backward pass of one crop through all codebooks needs to have kept."""
    adversarial = task.discriminator is not None
    waves = task.batch(0, 0).waves
    batch, phase = CodecBatch(waves, task.tokenizer.codebooks), Phase(0.5, adversarial, adversarial)
    return kept_for_backward(lambda: task.generate(batch, phase), task.generator)
