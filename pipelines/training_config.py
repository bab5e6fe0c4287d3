"""The options that the trainings of all tokenizers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_STEPS = 5000
FINE_TUNING_LR = 1e-4


class TrainingConfig(BaseModel):
    """What it says of each option holds for pictures and sounds ("items") alike.

    Attributes:
        inputs: paths, globs or ``format:path``, as for every job.
        out: folder of the tokenizer; made if absent.
        preset: where the tokenizer's configuration starts from.
        init_from: a tokenizer's folder or a released checkpoint to go on from; its configuration then takes the preset's place.
        overrides: ``section.field`` of that configuration to value.
        steps: updates; if not given, 5000, or as many as ``max_minutes`` allows.
        max_minutes: end after this time even if steps are left; the learning rate falls by whichever is further.
        lr: peak learning rate, the preset's own if not given; ``warmup`` is a share of the run.
        accumulate: parts of a batch that go through the network one after another.
        gan_lead_in: how long before the adversarial loss is on the discriminator learns alone, a share of the run.
        discriminator_lr: peak learning rate; that of the tokenizer if not given.
        ema: decay of the averaged weights, which are what is validated and written; 0 for none.
        seed: of weights, order and what is drawn of each item.
        device: ``cpu`` or ``cuda``; if not given, a GPU where there is one.
        threads: of training; if not given, all cores or one, whichever is faster as measured while it goes. The weights then
            depend on the machine by rounding; name a number to have them again to the byte.
        val_fraction: share of items held out.
        cache_mb: decoded items to hold; the rest of the input is not used, unless ``stream`` is set.
        stream: read and decode all of the input again in each epoch, while the training goes on.
        block_mb: with ``stream``, what is held at once and put into a random order (encoded pictures, decoded sounds).
        workers: that decode or crop beside the training; if not given, by device.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two checkpoints; the newest ``keep_last`` are kept.
        tensorboard: write TensorBoard's files too.
        resume: go on from the newest checkpoint in ``out``, if there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # What the weights do not depend on: a run may go on with others of these.
    NOT_SEMANTIC: ClassVar[frozenset[str]] = frozenset(
        {"inputs", "out", "threads", "resume", "log_every", "checkpoint_every", "keep_last", "tensorboard"}
        | {"workers", "init_from", "device"}
    )

    inputs: tuple[str, ...]
    out: Path
    preset: str
    init_from: Path | None = None
    overrides: dict[str, Any] = Field(default_factory=dict)
    steps: int | None = Field(default=None, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    accumulate: int = Field(default=1, ge=1)
    gan_lead_in: float = Field(default=0.02, ge=0, lt=1)
    discriminator_lr: float | None = Field(default=None, gt=0)
    ema: float | None = Field(default=None, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)
    device: Literal["cpu", "cuda"] | None = None
    threads: int | None = Field(default=None, ge=1)
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    cache_mb: int = Field(default=2048, ge=1)
    stream: bool = False
    block_mb: int = Field(default=256, ge=1)
    workers: int | None = Field(default=None, ge=0)
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)
    keep_last: int = Field(default=2, ge=1)
    tensorboard: bool = False
    resume: bool = False

    @property
    def max_steps(self) -> int | None:
        """Steps after which the run ends; None where only the time ends it."""
        return DEFAULT_STEPS if self.steps is None and self.max_minutes is None else self.steps

    def semantic(self) -> dict[str, Any]:
        """The options that the weights depend on, beside the items and the contents of the files that are named."""
        return {key: value for key, value in self.resolved().items() if key not in self.NOT_SEMANTIC}

    def resolved(self) -> dict[str, Any]:
        """All options as plain JSON values, with what the preset decides."""
        return self.model_dump(mode="json")
