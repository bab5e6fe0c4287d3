"""The job ``tokkit train-vq``: pictures in, an image tokenizer out.

    read     the inputs' units in an order drawn from the seed, until they end or ``cache_mb`` of pictures are held; or, with
             ``stream``, again in each epoch while the training goes on (:mod:`tokkit.pipelines.train_vq_data`)
    split    a share by content hash is held out
    train    steps that are pure functions of (state, seed, number) (:mod:`tokkit.pipelines.training_run`)
    write    samples.png, config.json + model.safetensors, training.html, training.json (what was done and how it came out)

The same inputs, options, seed and thread count give the same weights, byte for byte, unless ``max_minutes`` cut the run short.
Under ``torchrun`` several processes train together: each holds all pictures and takes its part of every batch; the first
writes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import torch
from PIL import Image as PILImage

from tokkit.metrics.codebook import CodebookWindow
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.progress import Progress, duration
from tokkit.pipelines.train_vq_config import TrainVQConfig
from tokkit.pipelines.train_vq_data import TrainingData, cached, streamed
from tokkit.pipelines.train_vq_parts import (
    Start,
    built_critics,
    built_tokenizer,
    objective_of,
    optimisation_of,
    precision_of,
    start_of,
)
from tokkit.pipelines.training_config import DEFAULT_STEPS
from tokkit.pipelines.training_job import (
    check_parts,
    computing,
    device_of,
    finished,
    run_options,
    threads_of,
    together,
    write_result,
)
from tokkit.pipelines.training_run import RunEnd, TrainingRun
from tokkit.sources.resolve import resolve_inputs
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.quantizer_config import ResidualVqQuantizer, VqQuantizer
from tokkit.tokenizers.image.storage import save_image_tokenizer
from tokkit.training.alarms import Watch
from tokkit.training.engine import Engine, World
from tokkit.training.image_task import ImageTask, sample_grid
from tokkit.training.items import Reject
from tokkit.training.pictures import Picture, pictures_of

__all__ = ["DEFAULT_STEPS", "TrainVQConfig", "TrainVQResult", "train_on_pictures", "train_vq"]


@dataclass(frozen=True)
class TrainVQResult:
    """How a run came out.

    Attributes:
        out: the tokenizer's folder; ``fingerprint`` is its identity.
        steps, seconds: done; ``stopped_by`` says what ended the run, ``steps`` or ``time``.
        pictures, held_out: used for training and for validation; ``rejects`` counts the others by reason.
        val_psnr, val_ssim, val_lpips: means over the held-out pictures; None without any, or where it cannot be measured.
        codebook_size, codebook_usage, perplexity: over the last codes of the training (see metrics.jsonl).
        alarms: kinds of the alarms that sounded, in order.
    """

    out: str
    fingerprint: str
    steps: int
    seconds: float
    stopped_by: str
    pictures: int
    held_out: int
    rejects: Mapping[str, int]
    val_psnr: float | None
    codebook_size: int
    codebook_usage: float
    perplexity: float
    val_ssim: float | None = None
    val_lpips: float | None = None
    alarms: tuple[str, ...] = ()


def train_vq(config: TrainVQConfig, progress: Progress) -> TrainVQResult:
    """Train an image tokenizer on the pictures of any inputs.

    Raises:
        ConfigError, UsageError: options that cannot work, or an ``out`` that holds something else.
        FingerprintMismatch: ``resume`` with other options or pictures than those of the checkpoint.
        DataError: a checkpoint, or a network that is named, is damaged.
        DivergedError: the loss is no number any more.
    """
    start = start_of(config)
    before = finished(config, _identity(config, start), TrainVQResult)
    if before is not None:
        progress.log(f"{config.out} is finished already; nothing to do")
        return before
    inputs = resolve_inputs(list(config.inputs))
    announce_ignored(inputs, progress)
    if config.stream:
        return _run(
            config, start, progress, lambda run: streamed(*run.whose, inputs.sources, run.world, run.device, run.progress)
        )
    return train_on_pictures(config, start, pictures_of(inputs.sources, config.seed), progress)


def train_on_pictures(
    config: TrainVQConfig, start: Start, pictures: Iterable[Picture | Reject], progress: Progress
) -> TrainVQResult:
    """The job behind the reading of sources: decode, train, write."""
    return _run(config, start, progress, lambda run: cached(*run.whose, pictures, run.world, run.device, run.progress))


def _run(config: TrainVQConfig, start: Start, progress: Progress, data: Callable[[_Run], TrainingData]) -> TrainVQResult:
    device = device_of(config)
    return together(device, progress, lambda world, told: _Run(config, start, device, world, told).run(data))


class _Run:
    """One training run, from pictures to files. To the engine's run it is the subject."""

    items = "images"
    quality = "psnr"
    figures = ("val_psnr", "val_ssim", "val_lpips")

    def __init__(self, config: TrainVQConfig, start: Start, device: str, world: World, progress: Progress) -> None:
        check_parts(config, config.batch_size, world)
        self.config, self.start, self.device, self.world, self.progress = config, start, device, world, progress
        self.threads = threads_of(config, world)
        self.at_once = config.batch_size // (world.size * config.accumulate)

    @property
    def whose(self) -> tuple[TrainVQConfig, ImageTokenizerConfig]:
        """What pictures are read for."""
        return self.config, self.start.config

    def run(self, data: Callable[[_Run], TrainingData]) -> TrainVQResult:
        self.config.out.mkdir(parents=True, exist_ok=True)
        self.data = data(self)
        try:
            return self._trained()
        finally:
            self.data.batches.close()

    def _trained(self) -> TrainVQResult:
        config = self.config
        tokenizer = built_tokenizer(self.start, config, self.device)
        critics, files = built_critics(config, self.start.config.preprocessing.size, self.device)
        self.task = ImageTask(
            tokenizer,
            self.data.batches,
            objective_of(config),
            critics,
            pictures_at_once=config.batch_size // config.accumulate,
            world=self.world,
            accumulate=config.accumulate,
            seed=config.seed,
            seed_codebook=self.start.tokenizer is None,
        )
        self.engine = Engine(self.task, optimisation_of(config, self.device), config.seed, self.world)
        size = tokenizer.codebook_size
        self.window = CodebookWindow(size, max(65536, 4 * size), tokenizer.codebooks)
        self._announce()
        if self.start.tokenizer is not None:
            before = [
                f"{name.removeprefix('val_')} {value:.3f}" for name, value in self.validate().items() if value is not None
            ]
            if before:
                self.progress.log(f"before training: held-out {', '.join(before)}")
        identity = _identity(config, self.start) | files | {"precision": precision_of(config, self.device)}
        options = run_options(config, config.batch_size, self.threads, identity, self.data.digest)
        watch = Watch(
            total_codes=size,
            learned_table=isinstance(self.start.config.quantizer, VqQuantizer | ResidualVqQuantizer),
            idle_loss=1.0 if config.gan_loss == "hinge" else log(2),
        )
        run = TrainingRun(self.engine, self, options, self.window, watch, self.progress)
        end = run.go()
        with self.engine.averaged_weights():
            result = self._write(end)
        run.tidy()
        return result

    def _announce(self) -> None:
        tokenizer, recipe = self.task.tokenizer, self.config.resolved_recipe
        books = "" if tokenizer.codebooks == 1 else f"{tokenizer.codebooks} times "
        what = f"{recipe.loss.upper()}" + (f", {recipe.gan} discriminator" if recipe.gan != "none" else "")
        together = f", {self.world.size} processes" if self.world.size > 1 else ""
        self.progress.log(
            f"{tokenizer.config.name} at {tokenizer.config.preprocessing.size} px: {parameters(tokenizer) / 1e6:.2f} M "
            f"parameters, {books}{tokenizer.codebook_size} codes, {tokenizer.grid[0]}x{tokenizer.grid[1]} a picture; "
            f"{what}; {computing(self.device, self.threads)}{together}"
        )

    # ---- what the run asks for

    def complete(self) -> AbstractContextManager[None]:
        return nullcontext()

    def validate(self) -> dict[str, float | None]:
        if self.data.held_out is None:
            return {}
        with self._uncompiled():
            found = self.task.validate(self.data.held_out, self.at_once)
        return {"val_psnr": found.psnr, "val_ssim": found.ssim, "val_lpips": found.lpips}

    def score(self, figures: Mapping[str, float | None]) -> float | None:
        by = self.config.chosen_best_by
        if by == "last":
            return float(self.engine.steps)
        found = figures[f"val_{by}"]
        return -found if by == "lpips" and found is not None else found

    def draw(self) -> PILImage.Image | None:
        shown = self.data.shown
        if shown is None:
            return None
        with self._uncompiled():
            return PILImage.fromarray(sample_grid(self.task.tokenizer, shown))

    def _uncompiled(self) -> AbstractContextManager[Any]:
        """Validation goes through the networks as those who load the tokenizer will have them."""
        return torch.compiler.set_stance("force_eager") if self.config.compile else nullcontext()

    def save(self, folder: Path) -> None:
        save_image_tokenizer(self.task.tokenizer, folder)

    # ---- after

    def _write(self, end: RunEnd) -> TrainVQResult:
        out, tokenizer = self.config.out, self.task.tokenizer
        pictures, rejects = self.data.counted()
        result = TrainVQResult(
            out=str(out),
            fingerprint=tokenizer.fingerprint,
            steps=end.steps,
            seconds=end.seconds,
            stopped_by=end.stopped_by,
            pictures=pictures,
            held_out=self.data.held_out_count,
            rejects=rejects,
            val_psnr=end.validation.get("val_psnr"),
            codebook_size=tokenizer.codebook_size,
            codebook_usage=self.window.usage,
            perplexity=self.window.perplexity,
            val_ssim=end.validation.get("val_ssim"),
            val_lpips=end.validation.get("val_lpips"),
            alarms=tuple(alarm.kind for alarm in end.alarms),
        )
        if not self.world.main:
            return result
        options = self.config.resolved() | {"weights_from": self.start.identity}
        write_result(out, f"tokkit train-vq: {self.start.config.name}", options, result, self.draw())
        save_image_tokenizer(tokenizer, out)
        if end.stopped_by == "time":
            self.progress.log(f"stopped after {duration(end.seconds)}, the time given, at step {result.steps}")
        self.progress.log(f"wrote {out} (fingerprint {result.fingerprint[:12]}); training.html shows how it went")
        return result


def parameters(module: torch.nn.Module) -> int:
    """Numbers that are trained, or were."""
    return sum(p.numel() for p in module.parameters())


def _identity(config: TrainVQConfig, start: Start) -> dict[str, Any]:
    return config.semantic() | {"weights_from": start.identity}
