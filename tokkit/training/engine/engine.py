"""Steps of a training, as functions of (state, seed, number).

A step depends on the weights, the optimisers' state, the averaged weights, the task's own state, the seed and the step's
number: torch's generator is started anew for every pass. So a run that goes on from a saved state ends with the same
weights, bit for bit, as one that was never interrupted (on a CPU with the same number of threads; GPU kernels that add up in
any order differ).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tokkit.errors import TokkitError
from tokkit.training import schedule
from tokkit.training.engine.averaging import AveragedWeights
from tokkit.training.engine.randomness import seeded
from tokkit.training.engine.task import Outcome, Phase, Phases, Task
from tokkit.training.engine.world import World

Precision = Literal["float32", "bf16"]


class DivergedError(TokkitError):
    """The loss is no number any more."""


@dataclass(frozen=True, slots=True)
class Optimisation:
    """How weights are changed: AdamW under a cosine with warm-up, with clipped gradients.

    Attributes:
        lr, betas, weight_decay: of the generator; ``lr`` is the peak.
        discriminator_lr: peak of the discriminator's, the generator's if not given; it follows the same schedule.
        warmup: share of the run in which the learning rate rises.
        clip_norm: gradients longer than this are shortened to it, the generator's and the discriminator's apart.
        accumulate: parts of a batch that are differentiated one after another before an update.
        average: decay of the averaged weights; 0 keeps none.
        precision: ``bf16``: networks under autocast, losses and quantizers in float32.
        phases: when the discriminator comes in.
    """

    lr: float = 4e-3
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 1e-4
    discriminator_lr: float | None = None
    warmup: float = 0.05
    clip_norm: float = 1.0
    accumulate: int = 1
    average: float = 0.0
    precision: Precision = "float32"
    phases: Phases = field(default_factory=Phases)


@dataclass(frozen=True, slots=True)
class Step:
    """What a step came to.

    Attributes:
        figures: scalars on the device, by name, means over the parts; ``loss`` and ``grad_norm`` (before clipping) always.
        codes: of this process's batch; None where the task gives none.
        phase: where in the run it was.
        waited: seconds in which the next batch was waited for.
    """

    figures: dict[str, Tensor]
    codes: Tensor | None
    phase: Phase
    waited: float = 0.0


class Engine:
    """A task, its optimisers and their state.

    Args:
        task: its networks are on their device already, and changed in place. All processes get the first one's weights.
        options: see :class:`Optimisation`.
        seed: of everything that is drawn while training.
        world: the processes that train together.
    """

    def __init__(self, task: Task, options: Optimisation, seed: int = 0, world: World | None = None) -> None:
        self.task, self.options, self.seed = task, options, seed
        self.world = world or World()
        self.steps = 0
        self._generator = _trainable(task.generator)
        self._discriminator = _trainable(task.discriminator) if task.discriminator is not None else []
        self.device = self._generator[0].device
        self.world.same_([*task.generator.state_dict().values()])
        if task.discriminator is not None:
            self.world.same_([*task.discriminator.state_dict().values()])
        self.optimizer = self._adam(self._generator, options.lr)
        self.discriminator_optimizer = (
            self._adam(self._discriminator, options.discriminator_lr or options.lr) if self._discriminator else None
        )
        self.averaged = AveragedWeights(task.generator, options.average) if options.average else None
        self._sound = torch.ones((), dtype=torch.bool, device=self.device)

    def step(self, done: float) -> Step:
        """Make one update, with so much of the run over (0 to 1).

        Raises:
            DivergedError: the loss is not finite. On a GPU it is only noticed by :meth:`check`, since looking waits for it.
        """
        phase = self.options.phases.at(done)
        factor = schedule.cosine_with_warmup(done, self.options.warmup)
        outcomes, waited = [], 0.0
        with _frozen(self._discriminator):
            for part in range(self.options.accumulate):
                begin = time.monotonic()
                batch = self.task.batch(self.steps, part)
                waited += time.monotonic() - begin
                with self._drawing(part, 0), self._autocast():
                    outcome = self.task.generate(batch, phase)
                self._differentiate(outcome.loss, self.optimizer, first=part == 0)
                outcomes.append(outcome)
            norm = self._update(self.optimizer, self._generator, self.options.lr * factor)
        if self.averaged is not None:
            self.averaged.update()
        figures = {"loss": _mean([o.loss.detach() for o in outcomes]), "grad_norm": norm} | _figures(outcomes)
        if phase.discriminator and self.discriminator_optimizer is not None:
            figures |= self._train_discriminator([o.held for o in outcomes], phase, factor)
        self.steps += 1
        codes = [o.codes for o in outcomes if o.codes is not None]
        return Step(figures, torch.cat(codes) if codes else None, phase, waited)

    def _train_discriminator(self, held: list[Any], phase: Phase, factor: float) -> dict[str, Tensor]:
        assert self.discriminator_optimizer is not None
        outcomes = []
        for part, passed in enumerate(held):
            with self._drawing(part, 1), self._autocast():
                outcome = self.task.discriminate(passed, phase)
            self._differentiate(outcome.loss, self.discriminator_optimizer, first=part == 0)
            outcomes.append(outcome)
        lr = (self.options.discriminator_lr or self.options.lr) * factor
        norm = self._update(self.discriminator_optimizer, self._discriminator, lr)
        own = {"discriminator_loss": _mean([o.loss.detach() for o in outcomes]), "discriminator_grad_norm": norm}
        return own | _figures(outcomes)

    def check(self) -> None:
        """Raise DivergedError if any loss so far was not finite; waits for the device."""
        if not self._sound:
            raise DivergedError(
                f"the loss is no number any more (at or before step {self.steps}): the training has diverged. Lower --lr "
                f"(it is {self.options.lr:g}), and look at metrics.jsonl for where the loss or grad_norm began to rise"
            )

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """The generator holds the averaged weights inside the ``with`` block, where there are any."""
        with self.averaged.in_place() if self.averaged is not None else nullcontext():
            yield

    # ---- state

    def state(self) -> dict[str, Any]:
        """All that the coming steps depend on; plain tensors and numbers, for ``torch.load(weights_only=True)``."""
        state: dict[str, Any] = {
            "steps": self.steps,
            "generator": self.task.generator.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "task": self.task.state(),
        }
        if self.task.discriminator is not None and self.discriminator_optimizer is not None:
            state["discriminator"] = self.task.discriminator.state_dict()
            state["discriminator_optimizer"] = self.discriminator_optimizer.state_dict()
        if self.averaged is not None:
            state["averaged"] = self.averaged.state()
        return state

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self.task.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.task.discriminator is not None and self.discriminator_optimizer is not None:
            self.task.discriminator.load_state_dict(state["discriminator"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])
        if self.averaged is not None:
            self.averaged.restore(state["averaged"])
        self.task.restore(state["task"])
        self.steps = int(state["steps"])

    # ---- parts of a step

    def _adam(self, parameters: list[nn.Parameter], lr: float) -> torch.optim.AdamW:
        options = self.options
        return torch.optim.AdamW(parameters, lr=lr, betas=options.betas, weight_decay=options.weight_decay, fused=True)

    def _drawing(self, part: int, which: int) -> Any:
        """Random numbers of one pass: other ones in each step, part, process and network."""
        place = (self.world.rank, part, which)
        return seeded(self.seed, self.steps, *(place if any(place) else ()))

    def _autocast(self) -> Any:
        if self.options.precision == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _differentiate(self, loss: Tensor, optimizer: torch.optim.Optimizer, first: bool) -> None:
        self._sound &= torch.isfinite(loss.detach())
        if self.device.type == "cpu":
            self.check()
        if first:
            optimizer.zero_grad(set_to_none=True)
        (loss / self.options.accumulate if self.options.accumulate > 1 else loss).backward()

    def _update(self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], lr: float) -> Tensor:
        """Returns the length of the gradient before it was clipped."""
        self.world.average_([p.grad for p in parameters if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(parameters, self.options.clip_norm)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        return norm.detach()


def _trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def _frozen(parameters: list[nn.Parameter]) -> Iterator[None]:
    """No gradients for these inside the ``with`` block: they would be computed and thrown away."""
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _figures(outcomes: list[Outcome]) -> dict[str, Tensor]:
    return {name: _mean([o.figures[name].detach() for o in outcomes]) for name in outcomes[0].figures}


def _mean(values: list[Tensor]) -> Tensor:
    return values[0] if len(values) == 1 else torch.stack(values).mean()
