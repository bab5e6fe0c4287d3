"""Training an image tokenizer to reconstruct: the loop's parts, without files, clocks or progress.

A step is a function of the weights, the optimiser's state, the seed and the step's number: torch's generator is seeded anew for
every step (codebooks draw from it when they revive codes), and the batch is made from seed and number. So a run that is
continued from a saved state ends with the same weights, bit for bit, as one that was not interrupted.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokkit.errors import TokkitError
from tokkit.metrics.codebook import count_codes, perplexity, usage
from tokkit.metrics.reconstruction import psnr
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.training.augmentation import BatchMaker
from tokkit.training.losses import ReconstructionLoss, reconstruction_loss, total_loss


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are changed: AdamW with clipped gradients."""

    lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    loss: ReconstructionLoss = "l2"


@dataclass(frozen=True, slots=True)
class Step:
    """Figures of one step: the total loss, the batch's mean PSNR in dB before the update, and its codes."""

    loss: float
    psnr: float
    codes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Validation:
    """Held-out figures: mean PSNR in dB of ``decode(encode(x))``, usage (0 to 1) and perplexity over all their codes."""

    psnr: float
    usage: float
    perplexity: float


class ImageTrainer:
    """A tokenizer, its optimiser and its batches.

    Args:
        tokenizer: with any weights; it is set up for training here, and changed in place.
        batches: what each step trains on.
        options: of the optimiser and the loss.
        seed_codebook: False to go on from weights whose codebook is trained already.
    """

    def __init__(
        self, tokenizer: ImageTokenizer, batches: BatchMaker, options: Optimisation, seed_codebook: bool = True
    ) -> None:
        self.tokenizer = tokenizer
        self.batches = batches
        self.options = options
        self.steps = 0
        side = batches.size // tokenizer.downsample
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(batches.seed))  # some quantizers draw what they learn from
            tokenizer.quantizer.start_training(batches.batch_size * side * side, seed_codebook=seed_codebook)
        tokenizer.train()
        self.optimizer = torch.optim.AdamW(
            tokenizer.parameters(), lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, fused=True
        )

    def step(self, lr_factor: float) -> Step:
        """Make one update at ``lr_factor`` times the peak learning rate. Raises TokkitError where the loss is not finite."""
        pixels = self.tokenizer.normalize(torch.from_numpy(self.batches.batch(self.steps)))
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr * lr_factor
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.batches.seed, self.steps))
            output = self.tokenizer(pixels)
        loss = total_loss(reconstruction_loss(self.options.loss, pixels, output.reconstruction), output.losses)
        if not torch.isfinite(loss):
            raise TokkitError(
                f"the loss became {loss.item()} at step {self.steps}: the training has diverged. Lower --lr (it is "
                f"{self.options.lr:g}), and look at metrics.jsonl for where the loss began to rise"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.tokenizer.parameters(), self.options.clip_norm)
        self.optimizer.step()
        self.steps += 1
        return Step(loss.item(), self._psnr(pixels, output.reconstruction), output.codes.numpy())

    def validate(self, held_out: NDArray[np.uint8]) -> Validation:
        """Measure uint8 ``[N, size, size, 3]`` through ``encode`` and ``decode``; changes nothing."""
        size, codebooks = self.tokenizer.codebook_size, self.tokenizer.codebooks
        counts = np.zeros((codebooks, size), dtype=np.int64)
        decibels = []
        for start in range(0, len(held_out), self.batches.batch_size):
            pixels = torch.from_numpy(held_out[start : start + self.batches.batch_size])
            codes = self.tokenizer.encode(pixels)
            decibels.append(psnr(pixels, self.tokenizer.decode(codes)))
            counts += count_codes(codes.numpy(), size, codebooks)
        return Validation(float(torch.cat(decibels).mean()), usage(counts), perplexity(counts))

    def state(self) -> dict[str, Any]:
        """All that the coming steps depend on; plain tensors and numbers, for ``torch.load(weights_only=True)``."""
        return {"steps": self.steps, "model": self.tokenizer.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.tokenizer.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = int(state["steps"])

    def _psnr(self, original: Tensor, reconstruction: Tensor) -> float:
        with torch.no_grad():
            return float(psnr(self.tokenizer.denormalize(original), self.tokenizer.denormalize(reconstruction)).mean())


def seed_of(*what: int) -> int:
    """A seed for torch's generator from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


def fresh_tokenizer(config: ImageTokenizerConfig, seed: int) -> ImageTokenizer:
    """A tokenizer whose weights are drawn from ``seed``; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed))
        return ImageTokenizer(config)


def sample_grid(tokenizer: ImageTokenizer, originals: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 ``[N, size, size, 3]`` to one picture ``[2 size, N size, 3]``: originals above their reconstructions."""
    reconstructions = tokenizer.decode(tokenizer.encode(torch.from_numpy(originals))).numpy()
    return np.concatenate([np.concatenate(list(row), axis=1) for row in (originals, reconstructions)], axis=0)
