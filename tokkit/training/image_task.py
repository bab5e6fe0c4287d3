"""Training an image tokenizer: the task that the engine (:mod:`tokkit.training.engine`) is given.

The generator's loss is reconstruction (L1 or L2), plus what the quantizer asks for (commitment, entropy), plus, where asked
for, LPIPS, the distance of a classifier's logits, and the adversarial loss at a fixed or adaptive weight. The discriminator's
is hinge or cross entropy, plus LeCam. All are float32, whatever the networks run in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokkit.metrics.codebook import count_codes, perplexity, usage
from tokkit.metrics.lpips import Lpips
from tokkit.metrics.reconstruction import psnr
from tokkit.metrics.ssim import WINDOW, ssim
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.training.engine import Outcome, Phase, World, seeded
from tokkit.training.engine.task import in_float32
from tokkit.training.losses import (
    GanLoss,
    LeCam,
    ReconstructionLoss,
    adaptive_weight,
    adversarial_loss,
    discriminator_loss,
    reconstruction_loss,
)
from tokkit.training.networks import LogitDistance


class Batches(Protocol):
    """Where a task's pictures come from."""

    def part(self, step: int, part: int, parts: int) -> NDArray[np.uint8]:
        """uint8 ``[n, size, size, 3]``: one of ``parts`` equal parts of the batch of a step (from 0)."""

    def state(self) -> dict[str, Any]:
        """Where the source stands, if that is not said by the step's number."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""

    def close(self) -> None:
        """Let go of processes and threads."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a tokenizer is trained for; each weight multiplies its loss.

    Attributes:
        loss: of the pixels; ``reconstruction`` is its weight.
        lpips, logits: weights of the perceptual losses; used where their networks are given.
        gan_loss, gan_weight: of the adversarial loss; used where a discriminator is given.
        adaptive: multiply ``gan_weight`` by the ratio of the gradients at the last layer.
        lecam: weight of the discriminator's regularisation.
    """

    loss: ReconstructionLoss = "l2"
    reconstruction: float = 1.0
    lpips: float = 1.0
    logits: float = 0.1
    gan_loss: GanLoss = "hinge"
    gan_weight: float = 0.1
    adaptive: bool = False
    lecam: float = 0.001


@dataclass(frozen=True, slots=True)
class Critics:
    """Networks that losses are taken with, on the tokenizer's device; those that are None are not used."""

    discriminator: nn.Module | None = None
    lpips: Lpips | None = None
    logits: LogitDistance | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out figures over ``decode(encode(x))``, means over pictures: PSNR in dB, SSIM, LPIPS (None where it cannot be
    measured), and usage (0 to 1) and perplexity over all their codes."""

    psnr: float
    ssim: float | None
    lpips: float | None
    usage: float
    perplexity: float


class ImageTask:
    """See the module's docstring.

    Args:
        tokenizer: with any weights; it is set up for training here, and changed in place.
        batches: what each step trains on.
        objective, critics: the losses.
        world: the processes; they share codebooks and each takes its part of a batch.
        accumulate: parts of a process's batch.
        seed: of what quantizers draw before the first step.
        seed_codebook: False to go on from weights whose codebook is trained already.
        pictures_at_once: that go through the quantizer together, over all processes.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        batches: Batches,
        objective: Objective | None = None,
        critics: Critics | None = None,
        *,
        pictures_at_once: int,
        world: World | None = None,
        accumulate: int = 1,
        seed: int = 0,
        seed_codebook: bool = True,
    ) -> None:
        self.tokenizer, self.batches = tokenizer, batches
        self.objective, self.critics = objective or Objective(), critics or Critics()
        self.world, self.accumulate = world or World(), accumulate
        tokenizer.requires_grad_(True).train()
        with seeded(seed):  # some quantizers draw what they learn from
            rows, columns = tokenizer.grid
            tokenizer.quantizer.start_training(
                pictures_at_once * rows * columns, seed_codebook=seed_codebook, sync=self.world.size > 1
            )
        self._lecam = LeCam().to(tokenizer.device)

    @property
    def generator(self) -> ImageTokenizer:
        return self.tokenizer

    @property
    def discriminator(self) -> nn.Module | None:
        return self.critics.discriminator

    def batch(self, step: int, part: int) -> Tensor:
        parts = self.world.size * self.accumulate
        pixels = torch.from_numpy(self.batches.part(step, self.world.rank * self.accumulate + part, parts))
        if self.tokenizer.device.type == "cuda":
            pixels = pixels.pin_memory().to(self.tokenizer.device, non_blocking=True)
        return pixels

    def generate(self, batch: Tensor, phase: Phase) -> Outcome:
        pixels = self.tokenizer.normalize(batch)
        output = self.tokenizer(pixels)
        with in_float32(pixels.device):
            reconstruction = output.reconstruction.float()
            base = {"reconstruction": self.objective.reconstruction * self._pixel_loss(pixels, reconstruction)}
            base |= self._perceptual(pixels, reconstruction)
        losses = base | output.losses
        figures = {f"{name}_loss": loss for name, loss in losses.items()} if len(losses) > 1 else {}
        if phase.adversarial and self.critics.discriminator is not None:
            adversarial = self._adversarial(base, reconstruction)
            losses = losses | {"adversarial": adversarial["adversarial_loss"]}
            figures |= adversarial
        loss = torch.stack([*losses.values()]).sum()
        figures = {"psnr": self._psnr(batch, reconstruction)} | figures
        held = (pixels, reconstruction.detach()) if phase.discriminator else None
        return Outcome(loss, figures, output.codes, held)

    def discriminate(self, held: tuple[Tensor, Tensor], phase: Phase) -> Outcome:
        assert self.critics.discriminator is not None
        pictures = torch.cat([self.tokenizer.signed(values) for values in held])
        logits = self.critics.discriminator(pictures)
        with in_float32(pictures.device):
            real, fake = logits.float().chunk(2)
            loss = discriminator_loss(self.objective.gan_loss, real, fake)
            figures = {"real_logits": real.mean(), "fake_logits": fake.mean(), "gan_loss": loss}
            if self.objective.lecam:
                penalty = self._lecam(real, fake, self.world)
                loss = loss + self.objective.lecam * penalty
                figures["lecam_penalty"] = penalty
        return Outcome(loss, figures)

    def state(self) -> dict[str, Any]:
        return {"lecam": self._lecam.state_dict(), "batches": self.batches.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self._lecam.load_state_dict(state["lecam"])
        self.batches.restore(state["batches"])

    def validate(self, held_out: NDArray[np.uint8], at_once: int) -> Validation:
        """Measure uint8 ``[N, size, size, 3]`` through ``encode`` and ``decode``; changes nothing."""
        size, codebooks = self.tokenizer.codebook_size, self.tokenizer.codebooks
        counts = np.zeros((codebooks, size), dtype=np.int64)
        decibels, similarities, distances = [], [], []
        for start in range(0, len(held_out), at_once):
            pixels = torch.from_numpy(held_out[start : start + at_once]).to(self.tokenizer.device)
            codes = self.tokenizer.encode(pixels)
            back = self.tokenizer.decode(codes)
            decibels.append(psnr(pixels, back))
            if held_out.shape[1] >= WINDOW:
                similarities.append(ssim(pixels, back))
            if self.critics.lpips is not None:
                distances.append(self.critics.lpips.distance(pixels, back))
            counts += count_codes(codes.cpu().numpy(), size, codebooks)
        return Validation(
            psnr=float(torch.cat(decibels).mean()),
            ssim=float(torch.cat(similarities).mean()) if similarities else None,
            lpips=float(torch.cat(distances).mean()) if distances else None,
            usage=usage(counts),
            perplexity=perplexity(counts),
        )

    # ---- the losses

    def _pixel_loss(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        return reconstruction_loss(self.objective.loss, original, reconstruction)

    def _perceptual(self, original: Tensor, reconstruction: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.critics.lpips is None and self.critics.logits is None:
            return found
        pair = self.tokenizer.signed(original), self.tokenizer.signed(reconstruction)
        if self.critics.lpips is not None:
            found["lpips"] = self.objective.lpips * self.critics.lpips(*pair).mean()
        if self.critics.logits is not None:
            found["logits"] = self.objective.logits * self.critics.logits(*pair)
        return found

    def _adversarial(self, base: Mapping[str, Tensor], reconstruction: Tensor) -> dict[str, Tensor]:
        """The weighted adversarial loss, and the weight."""
        assert self.critics.discriminator is not None
        logits = self.critics.discriminator(self.tokenizer.signed(reconstruction))
        with in_float32(reconstruction.device):
            loss = adversarial_loss(self.objective.gan_loss, logits)
            weight = loss.new_tensor(self.objective.gan_weight)
            if self.objective.adaptive:
                pixels = torch.stack([*base.values()]).sum()
                weight = weight * adaptive_weight(pixels, loss, self.tokenizer.last_layer, self.world)
            return {"adversarial_loss": weight * loss, "gan_weight": weight}

    def _psnr(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        with torch.no_grad():
            return psnr(original.to(reconstruction.device), self.tokenizer.denormalize(reconstruction)).mean()


def fresh_tokenizer(config: ImageTokenizerConfig, seed: int) -> ImageTokenizer:
    """A tokenizer whose weights are drawn from ``seed``; the global generator is left as it was."""
    with seeded(seed):
        return ImageTokenizer(config)


def sample_grid(tokenizer: ImageTokenizer, originals: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 ``[N, size, size, 3]`` to one picture ``[2 size, N size, 3]``: originals above their reconstructions."""
    pixels = torch.from_numpy(originals).to(tokenizer.device)
    reconstructions = tokenizer.decode(tokenizer.encode(pixels)).cpu().numpy()
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (originals, reconstructions)], axis=0)
