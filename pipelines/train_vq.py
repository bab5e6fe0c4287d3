"""The job ``tokkit train-vq``: pictures in, an image tokenizer out.

    read     the inputs' units in an order drawn from the seed, until they end or ``cache_mb`` of pictures are held
    split    a share by content hash is held out
    train    steps that are pure functions of (state, seed, number); metrics.jsonl line by line; a checkpoint now and then
    write    samples.png, config.json + model.safetensors, training.json (what was done and how it came out)

The same inputs, options, seed and thread count give the same weights, byte for byte, unless ``max_minutes`` cut the run short.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import DataError, FingerprintMismatch, UsageError
from tokkit.metrics.codebook import CodebookWindow
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.progress import Progress, Task, duration
from tokkit.pipelines.threads import ThreadChooser
from tokkit.sources.resolve import resolve_inputs
from tokkit.storage import pretty_json, read_json, replacing, write_atomic
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure, learning_rate
from tokkit.tokenizers.image.storage import CONFIG_FILE, save_image_tokenizer
from tokkit.training import schedule
from tokkit.training.augmentation import Augmentation, BatchMaker
from tokkit.training.image_trainer import ImageTrainer, Optimisation, Validation, fresh_tokenizer, sample_grid
from tokkit.training.losses import ReconstructionLoss
from tokkit.training.meter import Meter
from tokkit.training.pictures import Picture, PictureSet, Reject, pictures_of, read_pictures

METRICS_FILE = "metrics.jsonl"
REJECTS_FILE = "rejects.jsonl"
SAMPLES_FILE = "samples.png"
RESULT_FILE = "training.json"
STATE_FILE = "training-state.pt"

DEFAULT_STEPS = 5000
# Validations along a run, evenly by progress, besides the one at its end.
VALIDATIONS = 10
# Held-out pictures beyond this many say little more and cost time.
MAX_VALIDATION = 256
SAMPLES = 8


class TrainVQConfig(BaseModel):
    """Options of the job.

    Attributes:
        inputs: paths, globs or ``format:path``, as for every job.
        out: folder of the tokenizer; made if absent.
        preset: where the tokenizer's configuration starts from.
        overrides: ``section.field`` of that configuration to value.
        resolution: side of the pictures in training and, later, in encoding; the preset's if not given.
        steps: updates; if not given, 5000, or as many as ``max_minutes`` allows.
        max_minutes: end after this time even if steps are left; the learning rate falls by whichever is further.
        batch_size, lr, warmup, weight_decay, loss: of the optimisation; ``lr`` is the peak, the preset's own if not given, and
            ``warmup`` a share of the run.
        min_crop_area, flip: of the augmentation.
        seed: of weights, order and augmentation.
        threads: of training; if not given, all cores or one, whichever is faster as measured while it goes. The weights then
            depend on the machine by rounding; name a number to have them again to the byte.
        val_fraction: share of pictures held out.
        cache_mb: decoded pictures to hold; the rest of the input is not used.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two checkpoints.
        resume: go on from the checkpoint in ``out``, if there is one.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    inputs: tuple[str, ...]
    out: Path
    preset: str = "fsq-tiny"
    overrides: dict[str, Any] = Field(default_factory=dict)
    resolution: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    lr: float | None = Field(default=None, gt=0)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    loss: ReconstructionLoss = "l2"
    min_crop_area: float = Field(default=0.8, gt=0, le=1)
    flip: bool = True
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, ge=1)
    val_fraction: float = Field(default=0.05, ge=0, lt=1)
    cache_mb: int = Field(default=2048, ge=1)
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=250, ge=1)
    resume: bool = False

    @property
    def max_steps(self) -> int | None:
        """Steps after which the run ends; None where only the time ends it."""
        return DEFAULT_STEPS if self.steps is None and self.max_minutes is None else self.steps

    @property
    def peak_lr(self) -> float:
        """The learning rate at its peak."""
        return learning_rate(self.preset) if self.lr is None else self.lr

    def semantic(self) -> dict[str, Any]:
        """The options that the weights depend on, beside the pictures."""
        leave = {"inputs", "out", "threads", "resume", "log_every", "checkpoint_every"}
        return {key: value for key, value in self.resolved().items() if key not in leave}

    def resolved(self) -> dict[str, Any]:
        """All options as plain JSON values, with what the preset decides."""
        return self.model_dump(mode="json") | {"lr": self.peak_lr}


@dataclass(frozen=True)
class TrainVQResult:
    """How a run came out.

    Attributes:
        out: the tokenizer's folder; ``fingerprint`` is its identity.
        steps, seconds: done; ``stopped_by`` says what ended the run, ``steps`` or ``time``.
        pictures, held_out: used for training and for validation; ``rejects`` counts the others by reason.
        val_psnr: mean over the held-out pictures in dB; None without any.
        codebook_size, codebook_usage, perplexity: over the last codes of the training (see metrics.jsonl).
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


def train_vq(config: TrainVQConfig, progress: Progress) -> TrainVQResult:
    """Train an image tokenizer on the pictures of any inputs.

    Raises:
        ConfigError, UsageError: options that cannot work, or an ``out`` that holds something else.
        FingerprintMismatch: ``resume`` with other options or pictures than those of the checkpoint.
        TokkitError: the training diverged.
    """
    tokenizer_config = _configure(config)
    finished = _check_out(config)
    if finished is not None:
        progress.log(f"{config.out} is finished already; nothing to do")
        return finished
    inputs = resolve_inputs(list(config.inputs))
    announce_ignored(inputs, progress)
    return train_on_pictures(config, tokenizer_config, pictures_of(inputs.sources, config.seed), progress)


def train_on_pictures(
    config: TrainVQConfig,
    tokenizer_config: ImageTokenizerConfig,
    pictures: Iterable[Picture | Reject],
    progress: Progress,
) -> TrainVQResult:
    """The job behind the reading of sources: decode, train, write."""
    cores = os.cpu_count() or 1
    choices = [config.threads] if config.threads else [cores, 1]
    before = torch.get_num_threads()
    try:
        return _Run(config, tokenizer_config, progress, choices).run(pictures)
    finally:
        torch.set_num_threads(before)


class _Run:
    """One training run, from pictures to files."""

    def __init__(
        self, config: TrainVQConfig, tokenizer_config: ImageTokenizerConfig, progress: Progress, threads: list[int]
    ) -> None:
        self.config = config
        self.tokenizer_config = tokenizer_config
        self.progress = progress
        self.threads = threads
        self.max_seconds = config.max_minutes * 60 if config.max_minutes else None
        self.seconds_before = 0.0  # of the runs that this one goes on from
        self.metered: dict[str, float] = {}  # by the last of these, since its last line of metrics.jsonl

    def run(self, pictures: Iterable[Picture | Reject]) -> TrainVQResult:
        self.config.out.mkdir(parents=True, exist_ok=True)
        self.pictures = self._read(pictures)
        self.held_out = np.stack(self.pictures.held_out[:MAX_VALIDATION]) if self.pictures.held_out else None
        self.trainer = self._trainer()
        size = self.tokenizer.codebook_size
        self.window = CodebookWindow(size, max(65536, 4 * size), self.tokenizer.codebooks)
        self._restore()
        stopped_by, validation = self._train()
        return self._write(stopped_by, validation)

    @property
    def tokenizer(self) -> ImageTokenizer:
        return self.trainer.tokenizer

    # ---- before

    def _read(self, pictures: Iterable[Picture | Reject]) -> PictureSet:
        config = self.config
        margin = Augmentation(config.min_crop_area, config.flip).margin
        preprocessing = self.tokenizer_config.preprocessing
        with self.progress.task("read pictures", unit="pictures") as task:
            counted = _counted(pictures, task)
            found = read_pictures(counted, preprocessing, margin, config.val_fraction, config.cache_mb * 2**20, self.threads[0])
        rows = [json.dumps(asdict(reject), ensure_ascii=True) + "\n" for reject in found.rejects]
        write_atomic(config.out / REJECTS_FILE, "".join(rows))
        self.progress.log(f"{found.seen} pictures read: {len(found.train)} to train on, {len(found.held_out)} held out")
        for reason, count in found.reasons.items():
            self.progress.log(f"not used: {count} x {reason} (listed in {REJECTS_FILE})")
        if found.full:
            self.progress.log(f"memory for pictures is full (cache_mb {config.cache_mb}); the rest of the input is not used")
        if not found.train:
            raise UsageError(f"no picture to train on in {', '.join(config.inputs)} ({found.seen} read; see {REJECTS_FILE})")
        return found

    def _trainer(self) -> ImageTrainer:
        config = self.config
        batches = BatchMaker(
            self.pictures.train,
            self.tokenizer_config.preprocessing.size,
            config.batch_size,
            config.seed,
            Augmentation(config.min_crop_area, config.flip),
        )
        options = Optimisation(lr=config.peak_lr, weight_decay=config.weight_decay, loss=config.loss)
        return ImageTrainer(fresh_tokenizer(self.tokenizer_config, config.seed), batches, options)

    def _restore(self) -> None:
        path = self.config.out / STATE_FILE
        if not self.config.resume or not path.exists():
            (self.config.out / METRICS_FILE).write_bytes(b"")
            return
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            written, pictures, recent = json.loads(state["options"]), state["pictures"], list(state["window"])
        except Exception as error:  # torch reports damage by many exception types
            raise DataError(f"{path}: damaged, or not a checkpoint of this job ({type(error).__name__}: {error})") from error
        differences = _differences(self.config, written)
        if pictures != self.pictures.digest:
            differences.append("the inputs hold other pictures")
        if differences:
            raise FingerprintMismatch(f"{path} belongs to another run: {'; '.join(differences)}")
        self.trainer.restore(state["trainer"])
        for codes in recent:
            self.window.add(codes.numpy())
        self.seconds_before = float(state["seconds"])
        self.metered = state.get("meter", {})
        _keep_rows(self.config.out / METRICS_FILE, self.trainer.steps)
        self.progress.log(f"going on from step {self.trainer.steps}")

    def _checkpoint(self, seconds: float) -> None:
        state = {
            "trainer": self.trainer.state(),
            "window": [torch.from_numpy(codes) for codes in self.window.batches],
            "options": json.dumps(self.config.semantic()),
            "pictures": self.pictures.digest,
            "seconds": seconds,
            "meter": self.meter.state(),
        }
        with replacing(self.config.out / STATE_FILE) as temporary:
            torch.save(state, temporary)

    # ---- the loop

    def _train(self) -> tuple[str, Validation | None]:
        config = self.config
        size = self.tokenizer_config.preprocessing.size
        parameters = sum(p.numel() for p in self.tokenizer.parameters())
        books = "" if self.tokenizer.codebooks == 1 else f"{self.tokenizer.codebooks} times "
        self.progress.log(
            f"{config.preset} at {size} px: {parameters / 1e6:.2f} M parameters, {books}{self.tokenizer.codebook_size} codes, "
            f"{self.tokenizer.grid[0]}x{self.tokenizer.grid[1]} a picture, {' or '.join(map(str, self.threads))} threads"
        )
        begin = time.monotonic() - self.seconds_before
        total, unit = (100, "%") if self.max_seconds else (config.max_steps or 0, "steps")
        shown, validation = 0.0, None
        self.meter, chooser = Meter.restored(self.metered), ThreadChooser(self.threads, torch.set_num_threads)
        with (
            (config.out / METRICS_FILE).open("a", encoding="ascii") as metrics,
            self.progress.task("train-vq", total=total, unit=unit) as task,
        ):
            done = self._done(self.seconds_before)
            validated = int(done * VALIDATIONS)
            while done < 1:
                factor = schedule.cosine_with_warmup(done, config.warmup)
                self.meter.lr = config.peak_lr * factor
                step = self.trainer.step(factor)
                self.window.add(step.codes)
                self.meter.add(step.loss, step.psnr)
                chooser.stepped()
                done = self._done(time.monotonic() - begin)
                task.advance(total * done - shown)
                shown = total * done
                validation = None
                if done >= 1 or int(done * VALIDATIONS) > validated:
                    validated = int(done * VALIDATIONS)
                    validation = self._validate()
                if validation is not None or done >= 1 or self.trainer.steps % config.log_every == 0:
                    self._report(metrics, task, time.monotonic() - begin, validation)
                    self.meter = Meter()
                if done < 1 and self.trainer.steps % config.checkpoint_every == 0:
                    self._checkpoint(time.monotonic() - begin)
        self.seconds = time.monotonic() - begin
        stopped_by = "steps" if self.trainer.steps == config.max_steps else "time"
        return stopped_by, validation or self._validate()

    def _done(self, seconds: float) -> float:
        return schedule.progress(self.trainer.steps, self.config.max_steps, seconds, self.max_seconds)

    def _validate(self) -> Validation | None:
        return self.trainer.validate(self.held_out) if self.held_out is not None else None

    def _report(self, metrics: TextIO, task: Task, seconds: float, validation: Validation | None) -> None:
        """One line of metrics.jsonl, the figures beside the bar, and a log line where something was validated."""
        meter = self.meter
        row = {
            "step": self.trainer.steps,
            "loss": meter.loss,
            "psnr": meter.psnr,
            "val_psnr": validation.psnr if validation else None,
            "codebook_usage": self.window.usage,
            "perplexity": self.window.perplexity,
            "lr": meter.lr,
            "images_per_second": meter.steps * self.config.batch_size / meter.seconds,
            "seconds": seconds,
        }
        metrics.write(json.dumps(row) + "\n")
        metrics.flush()
        task.fields(
            loss=f"{meter.loss:.4f}",
            psnr=f"{meter.psnr:.1f} dB",
            usage=f"{self.window.usage:.0%}",
            speed=f"{row['images_per_second']:.0f} pictures/s",
        )
        if validation is not None:
            self.progress.log(
                f"step {self.trainer.steps}, {duration(seconds)}: held-out PSNR {validation.psnr:.2f} dB, training "
                f"{meter.psnr:.2f} dB, codebook usage {self.window.usage:.1%}, perplexity {self.window.perplexity:.0f}"
            )

    # ---- after

    def _write(self, stopped_by: str, validation: Validation | None) -> TrainVQResult:
        out = self.config.out
        originals = self.held_out if self.held_out is not None else self.trainer.batches.batch(0)
        with replacing(out / SAMPLES_FILE) as temporary:
            PILImage.fromarray(sample_grid(self.tokenizer, originals[:SAMPLES])).save(temporary, format="png")
        result = TrainVQResult(
            out=str(out),
            fingerprint=self.tokenizer.fingerprint,
            steps=self.trainer.steps,
            seconds=self.seconds,
            stopped_by=stopped_by,
            pictures=len(self.pictures.train),
            held_out=len(self.pictures.held_out),
            rejects=self.pictures.reasons,
            val_psnr=validation.psnr if validation else None,
            codebook_size=self.tokenizer.codebook_size,
            codebook_usage=self.window.usage,
            perplexity=self.window.perplexity,
        )
        write_atomic(out / RESULT_FILE, pretty_json({"options": self.config.resolved(), "result": asdict(result)}))
        save_image_tokenizer(self.tokenizer, out)
        (out / STATE_FILE).unlink(missing_ok=True)
        if stopped_by == "time":
            self.progress.log(f"stopped after {duration(self.seconds)}, the time given, at step {result.steps}")
        self.progress.log(f"wrote {out} (fingerprint {result.fingerprint[:12]})")
        return result


def _configure(config: TrainVQConfig) -> ImageTokenizerConfig:
    overrides = {"origin": f"trained by tokkit train-vq from preset {config.preset}"} | config.overrides
    return configure(config.preset, overrides, config.resolution)


def _check_out(config: TrainVQConfig) -> TrainVQResult | None:
    """What ``out`` holds: None where the run may begin or go on, the result where it is finished and ``resume`` was given."""
    if (config.out / CONFIG_FILE).exists():
        if not config.resume:
            raise UsageError(f"{config.out} holds a tokenizer already; name another folder, or remove it")
        if not (config.out / RESULT_FILE).exists():
            raise UsageError(f"{config.out} holds a tokenizer that this job did not make; name another folder")
        return _finished(config, config.out / RESULT_FILE)
    if (config.out / STATE_FILE).exists() and not config.resume:
        raise UsageError(f"{config.out} holds an unfinished run; give --resume to go on with it, or remove it")
    return None


def _finished(config: TrainVQConfig, path: Path) -> TrainVQResult:
    described = read_json(path)
    try:
        differences, result = _differences(config, described["options"]), TrainVQResult(**described["result"])
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the result of this job ({error})") from None
    if differences:
        raise FingerprintMismatch(f"{config.out} holds the tokenizer of another run: {'; '.join(differences)}")
    return result


def _differences(config: TrainVQConfig, written: Mapping[str, Any]) -> list[str]:
    """Options that the weights depend on and that were others when ``written`` was written."""
    return [f"{k}: {written.get(k)!r} then, {v!r} now" for k, v in config.semantic().items() if written.get(k) != v]


def _counted(pictures: Iterable[Picture | Reject], task: Task) -> Iterator[Picture | Reject]:
    for picture in pictures:
        yield picture
        task.advance(1)


def _keep_rows(path: Path, steps: int) -> None:
    """Drop the lines of metrics that the run will write again."""
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
    write_atomic(path, "".join(f"{line}\n" for line in kept))
