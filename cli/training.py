"""What the commands that train tokenizers share: how a plan is shown to a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokkit.pipelines.training_plan import TrainingPlan


def described(plan: TrainingPlan, items: str, what: Sequence[str]) -> str:
    """A plan, a line for each thing that one may want to change.

    Args:
        items: what a batch holds (``pictures``).
        what: lines of the modality, below the one of the tokenizer.
    """
    gib = 2**30
    length = f"{plan.steps:,} steps" if plan.steps else "steps"
    length += f", at most {plan.max_minutes:g} minutes" if plan.max_minutes else ""
    parts = f", in {plan.parts} parts of {plan.at_once}" if plan.parts > 1 else ""
    lines = [
        f"tokenizer      {plan.name}, {plan.parameters / 1e6:.2f} M parameters"
        + (f", going on from weights {plan.weights_from[:12]}" if plan.weights_from else ""),
        *what,
        f"steps          {length} of {plan.batch_size} {items}{parts}"
        + (f": {plan.steps * plan.batch_size:,} {items}" if plan.steps else ""),
        f"memory         {plan.memory / gib:.2f} GiB: {plan.state_bytes / gib:.2f} for weights and optimisers, "
        f"{plan.activation_bytes / gib:.2f} for activations; kernels' buffers come on top",
        f"runs on        {plan.device}, networks in {plan.precision}",
        f"input          {plan.bytes / 1e6:,.2f} MB",
    ]
    if plan.adversarial_from is not None and plan.discriminator_from is not None:
        unit = "step {:,.0f}" if plan.steps else "{:.0%} of the run"
        lines.insert(
            1,
            f"discriminator  {plan.discriminator_parameters / 1e6:.2f} M parameters, learns from "
            f"{unit.format(plan.discriminator_from)}, adversarial loss from {unit.format(plan.adversarial_from)}",
        )
    return "\n".join(lines)


def of_codes(plan: TrainingPlan) -> str:
    """``4 codebooks of 128 codes``."""
    return f"{f'{plan.codebooks} codebooks of ' if plan.codebooks > 1 else ''}{plan.codebook_size:,} codes"
