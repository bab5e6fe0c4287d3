"""Options of ``tokkit train-vq``, and what the recipes make of those that are not given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from tokkit.pipelines.training_config import FINE_TUNING_LR, TrainingConfig
from tokkit.tokenizers.image.presets import learning_rate
from tokkit.training.discriminators import DiscriminatorKind
from tokkit.training.engine.engine import Precision
from tokkit.training.losses import GanLoss, ReconstructionLoss

RecipeName = Literal["plain", "gan"]
BestBy = Literal["psnr", "ssim", "lpips", "last"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a training does unless told otherwise.

    Attributes:
        loss: of the pixels.
        gan: the discriminator; ``channels`` is its width.
        ema: decay of the averaged weights, 0 for none.
    """

    loss: ReconstructionLoss
    gan: DiscriminatorKind
    channels: int
    ema: float


class TrainVQConfig(TrainingConfig):
    """Options of the job; those that any training has are told by :class:`TrainingConfig`. Those that are None take the
    recipe's, or the preset's, value.

    Attributes:
        resolution: side of the pictures in training and, later, in encoding; the preset's if not given.
        recipe: ``plain``: reconstruction only; ``gan``: L1, perceptual losses whose networks are given, a discriminator and
            averaged weights. ``plain`` for the presets that are made for CPUs and with ``init_from``, ``gan`` for the others.
        batch_size, weight_decay: of the optimisation; ``batch_size`` is that of an update, over all processes.
        loss, reconstruction_weight: of the pixels.
        lpips_vgg, lpips_heads, lpips_weight: files for LPIPS (a VGG16 trunk and the linear heads), and its weight.
        logit_model, logit_weight: folder of a classifier whose logits are compared (ResNet-50), and the weight.
        gan: kind of discriminator; ``features`` looks at the features of ``gan_model`` (folder of DINO, DINOv2).
        gan_loss, gan_weight, gan_adaptive: of the adversarial loss; ``gan_start`` is the share of the run after which it is on.
        lecam: weight of the discriminator's regularisation.
        discriminator_channels: width of the discriminator.
        min_crop_area, flip: of the augmentation.
        precision: ``bf16``: networks under autocast, losses and quantizer in float32; if not given, bf16 on a GPU.
        compile: compile the networks (torch.compile).
        recompute: compute activations again in the backward pass instead of keeping them: less memory, a third more time.
        workers: processes that decode (with ``stream``), or threads that crop; if not given, 0 beside a CPU (in turn with the
            training) but one with ``stream``, and all cores but two beside a GPU.
        best_by: held-out figure that ``best/`` goes by; ``last``: it is the newest one. If not given, LPIPS where
            it is measured, else ``last`` with a discriminator (PSNR and SSIM prefer soft pictures), else PSNR.
    """

    NOT_SEMANTIC: ClassVar[frozenset[str]] = TrainingConfig.NOT_SEMANTIC | {
        *("compile", "recompute", "lpips_vgg", "lpips_heads", "logit_model", "gan_model")
    }

    preset: str = "fsq-tiny"
    resolution: int | None = Field(default=None, ge=1)
    recipe: RecipeName | None = None
    batch_size: int = Field(default=8, ge=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    loss: ReconstructionLoss | None = None
    reconstruction_weight: float = Field(default=1.0, gt=0)
    lpips_vgg: Path | None = None
    lpips_heads: Path | None = None
    lpips_weight: float = Field(default=1.0, ge=0)
    logit_model: Path | None = None
    logit_weight: float = Field(default=0.1, ge=0)
    gan: DiscriminatorKind | None = None
    gan_model: Path | None = None
    gan_loss: GanLoss = "hinge"
    gan_weight: float = Field(default=0.1, ge=0)
    gan_adaptive: bool = False
    gan_start: float = Field(default=0.1, ge=0, lt=1)
    lecam: float = Field(default=0.001, ge=0)
    discriminator_channels: int | None = Field(default=None, ge=1)
    min_crop_area: float = Field(default=0.8, gt=0, le=1)
    flip: bool = True
    precision: Precision | None = None
    compile: bool = False
    recompute: bool = False
    best_by: BestBy | None = None

    @model_validator(mode="after")
    def _together(self) -> TrainVQConfig:
        if (self.lpips_vgg is None) != (self.lpips_heads is None):
            raise ValueError("lpips_vgg and lpips_heads go together: LPIPS needs a trunk and its heads")
        if self.best_by == "lpips" and self.lpips_vgg is None:
            raise ValueError("best_by lpips needs lpips_vgg and lpips_heads, the files it is measured with")
        if self.best_by not in (None, "last") and not self.val_fraction:
            raise ValueError(f"best_by {self.best_by} needs pictures that are held out: val_fraction is 0")
        if self.gan == "features" and self.gan_model is None:
            raise ValueError("gan features needs gan_model, the folder of a vision transformer (DINO, DINOv2)")
        if self.batch_size % self.accumulate:
            raise ValueError(f"accumulate {self.accumulate} does not divide batch_size {self.batch_size}")
        return self

    @property
    def for_cpu(self) -> bool:
        """Whether the network is one of the small ones, as far as the options tell."""
        return self.init_from is None and self.preset.endswith("-tiny")

    @property
    def peak_lr(self) -> float:
        """The learning rate at its peak; where weights are gone on from, that of the full networks, whatever the preset."""
        if self.lr is not None:
            return self.lr
        return FINE_TUNING_LR if self.init_from is not None else learning_rate(self.preset)

    @property
    def resolved_recipe(self) -> Recipe:
        """The recipe with what was given put into it."""
        name = self.recipe or ("plain" if self.for_cpu or self.init_from is not None else "gan")
        adversarial: DiscriminatorKind = "patch" if self.for_cpu else "blur"
        gan = self.gan if self.gan is not None else adversarial if name == "gan" else "none"
        return Recipe(
            loss=self.loss or ("l1" if name == "gan" else "l2"),
            gan=gan,
            channels=self.discriminator_channels
            or ((32 if self.for_cpu else 128) if gan == "blur" else 32 if self.for_cpu else 64),
            ema=self.ema if self.ema is not None else 0.999 if name == "gan" else 0.0,
        )

    @property
    def chosen_best_by(self) -> BestBy:
        """What ``best/`` goes by, given or not."""
        unless: BestBy = "psnr" if self.resolved_recipe.gan == "none" else "last"
        return self.best_by or ("lpips" if self.lpips_vgg is not None else unless)

    def resolved(self) -> dict[str, Any]:
        """All options as plain JSON values, with what preset and recipe decide."""
        recipe = self.resolved_recipe
        decided = {"lr": self.peak_lr, "loss": recipe.loss, "gan": recipe.gan, "ema": recipe.ema}
        return super().resolved() | decided | {"discriminator_channels": recipe.channels}
