"""What is trained, as the engine sees it.

A task has a generator (the tokenizer) and, where it trains against one, a discriminator. An update is: one or more parts of a
batch go through :meth:`Task.generate`, whose losses are differentiated and move the generator; then what came out goes through
:meth:`Task.discriminate`, which moves the discriminator. The engine owns optimisers, schedule, clipping, accumulation,
precision, averaging and the state that a checkpoint keeps; the task owns the losses.

Rules for a task:

* Both methods are called under autocast where the run asks for it. What must be float32 (losses, quantizers) switches it off:
  :func:`in_float32`.
* Random numbers may be drawn from torch's generator inside both methods: the engine starts it anew for every call.
* ``batch`` is called once for each part of each step, in order. Everything else that the coming steps depend on is in
  :meth:`Task.state`.
* A balancer that mixes gradients of several losses at the output gives, as its loss, ``(output * mixed.detach()).sum()``:
  its derivative is the mixture.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Phase:
    """Where in a run a step is.

    Attributes:
        done: how much of the run is over, 0 to 1.
        discriminator: the discriminator is trained.
        adversarial: the generator is trained against it.
    """

    done: float
    discriminator: bool
    adversarial: bool


@dataclass(frozen=True, slots=True)
class Phases:
    """When the discriminator comes in, in shares of the run.

    Attributes:
        start: where the generator begins to be trained against the discriminator; None: never.
        lead_in: how long before that the discriminator is trained alone, so that its first gradients mean something.
    """

    start: float | None = None
    lead_in: float = 0.0

    def at(self, done: float) -> Phase:
        """The phase of a step that begins with so much of the run over."""
        if self.start is None:
            return Phase(done, discriminator=False, adversarial=False)
        return Phase(done, discriminator=done >= self.start - self.lead_in, adversarial=done >= self.start)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a pass came to.

    Attributes:
        loss: scalar, to be differentiated.
        figures: scalars to be logged, by name; means over the steps between two lines of the log are written.
        codes: the codes of the batch, int ``[B, ...]`` or ``[B, K, ...]``; what usage and perplexity are taken over.
        held: whatever :meth:`Task.discriminate` needs of this pass, detached; None where it is not wanted.
    """

    loss: Tensor
    figures: dict[str, Tensor] = field(default_factory=dict)
    codes: Tensor | None = None
    held: Any = None


class Task(Protocol):
    """See the module's docstring."""

    @property
    def generator(self) -> nn.Module:
        """What is trained and, where weights are averaged, followed."""

    @property
    def discriminator(self) -> nn.Module | None:
        """What it is trained against, if anything. Only its trainable parameters are kept in checkpoints' optimisers."""

    def batch(self, step: int, part: int) -> Any:
        """This process's part of a batch: part ``part`` of the step's ``accumulate``."""

    def generate(self, batch: Any, phase: Phase) -> Outcome:
        """Reconstruct, and say how bad it is."""

    def discriminate(self, held: Any, phase: Phase) -> Outcome:
        """How badly real and reconstructed are told apart."""

    def state(self) -> dict[str, Any]:
        """What the coming steps depend on beside the networks: plain tensors, numbers, text, lists and mappings."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state`."""


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """No autocast inside the ``with`` block."""
    with torch.autocast(device.type, enabled=False):
        yield
