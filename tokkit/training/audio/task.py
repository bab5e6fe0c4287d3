"""Training an audio codec: the task that the engine (:mod:`tokkit.training.engine`) is given.

The recipe is EnCodec's (Défossez et al., arXiv:2210.13438): differences of samples and of mel spectrograms, an MS-STFT
discriminator with a hinge loss and the matching of its features, each pulling at the output with its share of one gradient
(:mod:`tokkit.training.audio.balancer`), and the quantizer's commitment beside them. Each batch goes through a number of
codebooks that is drawn, so that the first ones of them are a codec by themselves.

At first nothing is quantized: a fresh encoder gives nearly the same for every sound, and codebooks taken from that would hold
one vector many times. Once the encoder has learnt something the codebooks are set by k-means, or a grid is laid over what it
gives (:mod:`tokkit.training.audio.grid`), and quantization is on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokkit.metrics.audio import mel_distance, si_sdr
from tokkit.metrics.codebook import count_codes, perplexity
from tokkit.tokenizers.audio.config import GRIDS, AudioTokenizerConfig
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.training.audio.balancer import LossBalancer
from tokkit.training.audio.grid import GridTrainer
from tokkit.training.audio.losses import (
    MultiScaleMelLoss,
    feature_matching,
    hinge_discriminator,
    hinge_generator,
    time_loss,
)
from tokkit.training.audio.residual import ResidualTrainer, draw_books
from tokkit.training.engine import Outcome, Phase, World, seed_of, seeded

DEAD = 0.2  # a vector chosen less often than this share of the mean is replaced, but never above encodec's 2 a batch
MOST_DEAD = 2.0
FRAMES_PER_CODE = 4  # that the codebooks are set from
GRID_FRAMES = 4096  # that a grid is laid over
MOST_SAMPLED = 64  # batches for that


class Crops(Protocol):
    """Where a task's sounds come from.

    Attributes:
        length: of a crop, in samples.
        batch_size: crops of a step, over all processes.
    """

    length: int
    batch_size: int

    def part(self, step: int, part: int, parts: int) -> NDArray[np.float32]:
        """float32 ``[n, channels, length]``: one of ``parts`` equal parts of the batch of a step (from 0)."""

    def sample(self, number: int) -> NDArray[np.float32]:
        """A batch besides those of the steps: for what has to be measured before it can be trained."""

    def state(self) -> dict[str, Any]:
        """Where the source stands, if that is not said by the step's number."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""

    def close(self) -> None:
        """Let go of threads."""


@dataclass(frozen=True, slots=True)
class CodecObjective:
    """What a codec is trained for: shares of the gradient at the output, and the weight of the commitment.

    Attributes:
        time, mel, adversarial, features: shares, relative to one another; the last two count once the discriminator is on.
        commitment: multiplies the quantizer's loss, which is no function of the output and stands beside the balance.
        quantize_from: share of the run after which codebooks are set and quantization begins, unless they were before the run.
        log_mel: mel spectrograms are compared by their logarithms too.
        books: numbers of codebooks that are drawn from for each batch.
    """

    time: float = 0.1
    mel: float = 1.0
    adversarial: float = 3.0
    features: float = 3.0
    commitment: float = 0.25
    quantize_from: float = 0.1
    log_mel: bool = True
    books: Sequence[int] = (1,)


@dataclass(frozen=True, slots=True)
class CodecBatch:
    """Crops ``[B, C, T]`` on the device, and how many codebooks they go through."""

    waves: Tensor
    books: int


@dataclass(frozen=True, slots=True)
class CodecValidation:
    """Held-out figures over ``decode(encode(x))`` with all codebooks: SI-SDR in dB (None where all is silent) and mel distance,
    means over clips; perplexity of each codebook over all their codes."""

    si_sdr: float | None
    mel_distance: float
    perplexity: tuple[float, ...]


class CodecTask:
    """See the module's docstring.

    Args:
        tokenizer: with any weights; it is set up for training here, and changed in place.
        crops: what each step trains on.
        objective: the losses.
        discriminator: what it is trained against, on the tokenizer's device; None: reconstruction alone.
        world: the processes; they share codebooks and each takes its part of a batch.
        accumulate: parts of a process's batch.
        seed: of what is drawn besides the crops.
        fresh: the weights are drawn ones; False to go on from a tokenizer that was trained before.
    """

    def __init__(
        self,
        tokenizer: EncodecTokenizer,
        crops: Crops,
        objective: CodecObjective,
        discriminator: nn.Module | None = None,
        *,
        world: World | None = None,
        accumulate: int = 1,
        seed: int = 0,
        fresh: bool = True,
    ) -> None:
        self.tokenizer, self.crops, self.objective = tokenizer, crops, objective
        self.critic = discriminator
        self.world, self.accumulate, self.seed = world or World(), accumulate, seed
        tokenizer.network.requires_grad_(True).train()
        self.quantizer = self._trainer(fresh)
        self.mel = MultiScaleMelLoss(tokenizer.sample_rate, log=objective.log_mel).to(tokenizer.device)
        weights = {"time": objective.time, "mel": objective.mel}
        if discriminator is not None:
            weights |= {"adversarial": objective.adversarial, "features": objective.features}
        # Gradients of the parts of a batch are averaged: each pulls so much harder, or the commitment beside the balance would
        # weigh the more the more processes there are.
        self.balancer = LossBalancer(weights, total=float(self.world.size * accumulate))

    @property
    def generator(self) -> nn.Module:
        network: nn.Module = self.tokenizer.network
        return network

    @property
    def discriminator(self) -> nn.Module | None:
        return self.critic

    def batch(self, step: int, part: int) -> CodecBatch:
        waves = self.crops.part(step, self.world.rank * self.accumulate + part, self.world.size * self.accumulate)
        # Drawn without the process's number: all processes must count the same books.
        generator = torch.Generator().manual_seed(seed_of(self.seed, step, part))
        return CodecBatch(torch.from_numpy(waves).to(self.tokenizer.device), draw_books(self.objective.books, generator))

    def generate(self, batch: CodecBatch, phase: Phase) -> Outcome:
        if phase.done >= self.objective.quantize_from:
            self.set_books()
        network, waves = self.tokenizer.network, batch.waves
        features = network.encoder(waves)
        codes, commitment = None, features.new_zeros(())
        if self.quantizer.initialised:
            codes = self.quantizer.all_codes(features)
            quantized = self.quantizer(features, batch.books)
            features, commitment = quantized.features, quantized.commitment
        output = network.decoder(features)[..., : waves.shape[-1]]
        losses = {"time": time_loss(waves, output), "mel": self.mel(waves, output)}
        told = {"loss": self._told(losses, commitment), "si_sdr": _si_sdr(waves, output), "commitment_loss": commitment}
        adversarial = self._adversarial(waves, output) if phase.adversarial and self.critic is not None else {}
        told |= {f"{name}_loss": loss for name, loss in (losses | adversarial).items()}
        pulled, _ = self.balancer.mix(losses | adversarial, output)
        held = (waves, output.detach()) if phase.discriminator else None
        # What is told holds on to nothing: the losses' own activations are let go of before the network is differentiated.
        figures = {name: value.detach() for name, value in told.items()}
        return Outcome(pulled + self.objective.commitment * commitment, figures, codes, held)

    def discriminate(self, held: tuple[Tensor, Tensor], phase: Phase) -> Outcome:
        assert self.critic is not None
        real, _ = self.critic(held[0])
        fake, _ = self.critic(held[1])
        loss = hinge_discriminator(real, fake)
        figures = {
            "real_logits": torch.stack([logits.mean() for logits in real]).mean(),
            "fake_logits": torch.stack([logits.mean() for logits in fake]).mean(),
            "gan_loss": loss,
        }
        return Outcome(loss, figures)

    def state(self) -> dict[str, Any]:
        return {"balancer": self.balancer.state(), "crops": self.crops.state()}

    def restore(self, state: dict[str, Any]) -> None:
        self.balancer.restore(state["balancer"])
        self.crops.restore(state.get("crops", {}))

    @torch.no_grad()
    def set_books(self) -> None:
        """Set the codebooks, or lay the grid, by what the encoder gives now, unless that was done already."""
        if self.quantizer.initialised:
            return
        grid = isinstance(self.quantizer, GridTrainer)
        wanted = GRID_FRAMES if grid else FRAMES_PER_CODE * self.tokenizer.codebook_size
        per_batch = self.crops.batch_size * (self.crops.length // self.tokenizer.hop)
        batches = min(MOST_SAMPLED, max(1, -(-wanted // per_batch)))
        with seeded(self.seed, 2):
            drawn = (torch.from_numpy(self.crops.sample(i)).to(self.tokenizer.device) for i in range(batches))
            features = torch.cat([self.tokenizer.network.encoder(waves) for waves in drawn])
            self.quantizer.initialise(features, frames=max(16384, wanted))

    @contextmanager
    def with_books(self) -> Iterator[None]:
        """Inside, the tokenizer can encode: where nothing is quantized yet, as if the codebooks had been set just now.

        Behind it all is as it was before.
        """
        if self.quantizer.initialised:
            yield
            return
        module = self.tokenizer.network.quantizer
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.set_books()
        try:
            yield
        finally:
            module.load_state_dict(before)

    def validate(self, held_out: Sequence[NDArray[np.float32]]) -> CodecValidation:
        """Measure float32 ``[channels, samples]`` through ``encode`` and ``decode``; changes nothing."""
        with self.with_books():
            return self._measured(held_out)

    def _measured(self, held_out: Sequence[NDArray[np.float32]]) -> CodecValidation:
        tokenizer = self.tokenizer
        counts = np.zeros((tokenizer.codebooks, tokenizer.codebook_size), dtype=np.int64)
        ratios, distances = [], []
        for clip in held_out:
            (code,) = tokenizer.encode([clip])
            back = tokenizer.decode(code)
            ratio = si_sdr(clip, back)
            if ratio is not None:
                ratios.append(ratio)
            distances.append(mel_distance(clip, back, tokenizer.sample_rate))
            counts += count_codes(code.codes[None], tokenizer.codebook_size, tokenizer.codebooks)
        return CodecValidation(
            si_sdr=float(np.mean(ratios)) if ratios else None,
            mel_distance=float(np.mean(distances)),
            perplexity=tuple(perplexity(book) for book in counts),
        )

    # ---- parts of a step

    def _trainer(self, fresh: bool) -> ResidualTrainer | GridTrainer:
        """What trains the quantizer, and what it needs before the first step."""
        tokenizer, crops = self.tokenizer, self.crops
        network = tokenizer.network
        if isinstance(tokenizer.config.quantizer, GRIDS):
            return GridTrainer(network.quantizer)
        frames = crops.batch_size // self.accumulate * (crops.length // tokenizer.hop)
        tables = ResidualTrainer(network.quantizer, dead=min(MOST_DEAD, DEAD * frames / tokenizer.codebook_size))
        if not fresh:
            tables.adopt(frames / tokenizer.codebook_size)
        return tables

    def _told(self, losses: dict[str, Tensor], commitment: Tensor) -> Tensor:
        """The loss for the log: reconstruction and commitment, comparable all along the run (what is differentiated is not)."""
        weights = {"time": self.objective.time, "mel": self.objective.mel}
        total = self.objective.commitment * commitment.detach()
        for name, loss in losses.items():
            total = total + weights[name] * loss.detach()
        return total

    def _adversarial(self, waves: Tensor, output: Tensor) -> dict[str, Tensor]:
        assert self.critic is not None
        with torch.no_grad():
            _, real = self.critic(waves)
        logits, fake = self.critic(output)
        return {"adversarial": hinge_generator(logits), "features": feature_matching(real, fake)}


def fresh_codec(config: AudioTokenizerConfig, seed: int) -> EncodecTokenizer:
    """A codec whose weights are drawn from ``seed``; the global generator is left as it was.

    Convolutions are drawn so that they keep the size of what goes through them, and without biases. With torch's own start a
    sound would be a third as large after each layer while the biases stayed: after ten layers every sound is the same, and the
    codebooks have nothing to tell apart.
    """
    with seeded(seed):
        tokenizer = EncodecTokenizer(config)
        for module in tokenizer.network.modules():
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
    return tokenizer


@torch.no_grad()
def _si_sdr(real: Tensor, fake: Tensor) -> Tensor:
    """SI-SDR in dB, the mean over all channels that are not silent."""
    reference = (real - real.mean(dim=-1, keepdim=True)).flatten(0, 1)
    estimate = (fake - fake.mean(dim=-1, keepdim=True)).flatten(0, 1)
    energy = reference.pow(2).sum(dim=1)
    target = ((estimate * reference).sum(dim=1) / energy.clamp_min(1e-8))[:, None] * reference
    kept, lost = target.pow(2).sum(dim=1), (estimate - target).pow(2).sum(dim=1)
    ratios = 10 * torch.log10(kept.clamp_min(1e-8) / lost.clamp_min(1e-8))
    heard = energy > 1e-6
    return (ratios * heard).sum() / heard.sum().clamp_min(1)
