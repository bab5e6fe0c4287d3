"""Options of ``tokkit train-codec``, and what the presets make of those that are not given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

DEFAULT_STEPS = 5000

# What the weights do not depend on: a run may go on with others of these.
_NOT_SEMANTIC = {
    *("inputs", "out", "threads", "resume", "log_every", "checkpoint_every", "keep_last", "tensorboard", "device"),
}


@dataclass(frozen=True, slots=True)
class CodecRecipe:
    """What a training does unless told otherwise.

    Attributes:
        lr: peak learning rate.
        batch_size, crop: crops of an update, and their length in seconds.
        gan_start: share of the run after which the adversarial loss is on; 1: never.
        filters: width of the discriminator; ``windows`` of its spectrograms, in samples.
        ema: decay of the averaged weights, 0 for none.
    """

    lr: float
    batch_size: int
    crop: float
    gan_start: float
    filters: int
    windows: tuple[int, ...]
    ema: float


# For a CPU, in minutes; and EnCodec's own, for GPUs.
SMALL = CodecRecipe(lr=3e-3, batch_size=4, crop=0.5, gan_start=1.0, filters=8, windows=(1024, 512, 256), ema=0.0)
FULL = CodecRecipe(lr=3e-4, batch_size=64, crop=1.0, gan_start=0.1, filters=32, windows=(2048, 1024, 512, 256, 128), ema=0.99)


class TrainCodecConfig(BaseModel):
    """Options of the job. Those that are None take the preset's value.

    Attributes:
        inputs: paths, globs or ``format:path``, as for every job; also sound files and folders of them.
        out: folder of the tokenizer; made if absent.
        preset: where the tokenizer's configuration starts from.
        overrides: ``section.field`` of that configuration to value.
        steps: updates; if not given, 5000, or as many as ``max_minutes`` allows.
        max_minutes: end after this time even if steps are left; the learning rate falls by whichever is further.
        batch_size: crops of an update, over all processes; ``crop`` is their length in seconds (to the next whole frame).
        lr, warmup, weight_decay, betas, clip_norm: of the optimisation; ``lr`` is the peak, ``warmup`` a share of the run.
        accumulate: parts of a batch that go through the network one after another.
        time_weight, mel_weight, gan_weight, feature_weight: shares of each loss in the gradient at the output.
        commitment_weight: of the quantizer's loss.
        books: numbers of codebooks that a batch goes through, drawn anew for each; if not given, powers of two up to all.
        quantize_from: share of the run after which the codebooks are set by k-means and quantization begins.
        gan_start: share of the run after which the adversarial loss is on; 1 for never.
        gan_lead_in: how long before that the discriminator learns alone.
        discriminator_lr: peak learning rate; that of the codec if not given.
        ema: decay of the averaged weights, which are what is validated and written; 0 for none.
        seed: of weights, order and crops.
        device: ``cpu`` or ``cuda``; if not given, a GPU where there is one.
        threads: of training; if not given, all cores or one, whichever is faster as measured while it goes.
        val_fraction: share of sounds held out.
        cache_mb: decoded sounds to hold; the rest of the input is not used.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two checkpoints; the newest ``keep_last`` are kept.
        tensorboard: write TensorBoard's files too.
        resume: go on from the newest checkpoint in ``out``, if there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    inputs: tuple[str, ...]
    out: Path
    preset: str = "codec-tiny"
    overrides: dict[str, Any] = Field(default_factory=dict)
    steps: int | None = Field(default=None, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int | None = Field(default=None, ge=1)
    crop: float | None = Field(default=None, gt=0, le=60)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.8, 0.99)
    clip_norm: float = Field(default=10.0, gt=0)
    accumulate: int = Field(default=1, ge=1)
    time_weight: float = Field(default=0.1, ge=0)
    mel_weight: float = Field(default=1.0, gt=0)
    gan_weight: float = Field(default=3.0, ge=0)
    feature_weight: float = Field(default=3.0, ge=0)
    commitment_weight: float = Field(default=0.25, ge=0)
    books: tuple[int, ...] | None = None
    quantize_from: float = Field(default=0.1, ge=0, lt=1)
    gan_start: float | None = Field(default=None, ge=0, le=1)
    gan_lead_in: float = Field(default=0.02, ge=0, lt=1)
    discriminator_lr: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] | None = None
    threads: int | None = Field(default=None, ge=1)
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    cache_mb: int = Field(default=2048, ge=1)
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)
    keep_last: int = Field(default=2, ge=1)
    tensorboard: bool = False
    resume: bool = False

    @model_validator(mode="after")
    def _together(self) -> TrainCodecConfig:
        if self.resolved_recipe.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.resolved_recipe.batch_size}")
        if self.books is not None and (not self.books or min(self.books) < 1):
            raise ValueError("books needs at least one number of codebooks, each at least 1")
        return self

    @property
    def max_steps(self) -> int | None:
        """Steps after which the run ends; None where only the time ends it."""
        return DEFAULT_STEPS if self.steps is None and self.max_minutes is None else self.steps

    @property
    def resolved_recipe(self) -> CodecRecipe:
        """The preset's recipe with what was given put into it."""
        base = SMALL if self.preset.endswith("-tiny") else FULL
        return CodecRecipe(
            lr=self.lr or base.lr,
            batch_size=self.batch_size or base.batch_size,
            crop=self.crop or base.crop,
            gan_start=base.gan_start if self.gan_start is None else self.gan_start,
            filters=base.filters,
            windows=base.windows,
            ema=base.ema if self.ema is None else self.ema,
        )

    def semantic(self) -> dict[str, Any]:
        """The options that the weights depend on, beside the sounds."""
        return {key: value for key, value in self.resolved().items() if key not in _NOT_SEMANTIC}

    def resolved(self) -> dict[str, Any]:
        """All options as plain JSON values, with what the preset decides."""
        recipe = self.resolved_recipe
        decided = {"lr": recipe.lr, "batch_size": recipe.batch_size, "crop": recipe.crop, "gan_start": recipe.gan_start}
        return self.model_dump(mode="json") | decided | {"ema": recipe.ema}
