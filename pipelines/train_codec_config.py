"""Options of ``tokkit train-codec``, and what the presets make of those that are not given."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pydantic import Field, model_validator

from tokkit.pipelines.training_config import FINE_TUNING_LR, TrainingConfig


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
# Going on from weights: reconstruction alone unless more is asked for.
FINE = replace(FULL, lr=FINE_TUNING_LR, batch_size=16, gan_start=1.0)


class TrainCodecConfig(TrainingConfig):
    """Options of the job; those that any training has are told by :class:`TrainingConfig`. Those that are None take the
    preset's value. Inputs may also be sound files and folders of them.

    Attributes:
        batch_size: crops of an update, over all processes; ``crop`` is their length in seconds (to the next whole frame).
        weight_decay, betas, clip_norm: of the optimisation.
        time_weight, mel_weight, gan_weight, feature_weight: shares of each loss in the gradient at the output.
        commitment_weight: of the quantizer's loss.
        books: numbers of codebooks that a batch goes through, drawn anew for each; if not given, powers of two up to all.
        quantize_from: share of the run after which the codebooks are set by k-means, or the grid is laid, and quantization
            begins; what is gone on from (``init_from``) quantizes from the start.
        gan_start: share of the run after which the adversarial loss is on; 1 for never.
        workers: threads that decode, with ``stream``; if not given, one beside a CPU, all cores but two beside a GPU.
    """

    preset: str = "codec-tiny"
    batch_size: int | None = Field(default=None, ge=1)
    crop: float | None = Field(default=None, gt=0, le=60)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.8, 0.99)
    clip_norm: float = Field(default=10.0, gt=0)
    time_weight: float = Field(default=0.1, ge=0)
    mel_weight: float = Field(default=1.0, gt=0)
    gan_weight: float = Field(default=3.0, ge=0)
    feature_weight: float = Field(default=3.0, ge=0)
    commitment_weight: float = Field(default=0.25, ge=0)
    books: tuple[int, ...] | None = None
    quantize_from: float = Field(default=0.1, ge=0, lt=1)
    gan_start: float | None = Field(default=None, ge=0, le=1)

    @model_validator(mode="after")
    def _together(self) -> TrainCodecConfig:
        if self.resolved_recipe.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.resolved_recipe.batch_size}")
        if self.books is not None and (not self.books or min(self.books) < 1):
            raise ValueError("books needs at least one number of codebooks, each at least 1")
        return self

    @property
    def resolved_recipe(self) -> CodecRecipe:
        """The preset's recipe with what was given put into it."""
        base = FINE if self.init_from is not None else SMALL if self.preset.endswith("-tiny") else FULL
        return CodecRecipe(
            lr=self.lr or base.lr,
            batch_size=self.batch_size or base.batch_size,
            crop=self.crop or base.crop,
            gan_start=base.gan_start if self.gan_start is None else self.gan_start,
            filters=base.filters,
            windows=base.windows,
            ema=base.ema if self.ema is None else self.ema,
        )

    def resolved(self) -> dict[str, Any]:
        """All options as plain JSON values, with what the preset decides."""
        recipe = self.resolved_recipe
        decided = {"lr": recipe.lr, "batch_size": recipe.batch_size, "crop": recipe.crop, "gan_start": recipe.gan_start}
        return super().resolved() | decided | {"ema": recipe.ema}
