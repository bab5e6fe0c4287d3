"""The running side of a training: the engine's steps between checkpoints, log, alarms, validation, grids and the clock.

What a job trains, how it is validated and what it looks like is a :class:`Subject`; the rest is the same for every modality.

    metrics.jsonl      a row every so many steps; alarms.jsonl beside it, a row for each alarm
    grids/             a picture at every validation
    best/              the tokenizer of the best validation
    checkpoints/       step-NNNNNNNN.pt, the newest few; each appears whole or not at all

A run that is killed goes on from its newest checkpoint: model, averaged weights, discriminator, optimisers, the task's state,
the place in the data, the codes that usage is taken over and the means since the last row.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from PIL import Image as PILImage
from torch import Tensor

from tokkit.errors import DataError, FingerprintMismatch, UsageError
from tokkit.failpoints import failpoint
from tokkit.metrics.codebook import CodebookWindow, perplexity
from tokkit.pipelines.progress import Progress, Task, duration
from tokkit.pipelines.threads import ThreadChooser
from tokkit.storage import remove_attempts, replacing, write_atomic
from tokkit.training import schedule
from tokkit.training.alarms import Alarm, Watch
from tokkit.training.engine import DivergedError, Engine, Phase
from tokkit.training.meter import Meter

METRICS_FILE = "metrics.jsonl"
ALARMS_FILE = "alarms.jsonl"
CHECKPOINTS = "checkpoints"
GRIDS = "grids"
BEST = "best"

# Validations along a run, evenly by progress, besides the one at its end.
VALIDATIONS = 10

_CHECKPOINT = re.compile(r"step-(\d{8})\.pt")


class Subject(Protocol):
    """What is trained, as the run sees it. The averaged weights, where there are any, are in place during every call.

    Attributes:
        items: what a batch holds, for the log (``images``).
        quality: the training figure that stands beside the bar, in dB.
    """

    items: str
    quality: str

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what :meth:`validate` gives."""

    def complete(self) -> AbstractContextManager[None]:
        """Inside, the tokenizer is one that could be written: it is validated, drawn and saved there."""

    def validate(self) -> dict[str, float | None]:
        """Figures on fixed held-out items; empty where nothing is held out."""

    def score(self, figures: Mapping[str, float | None]) -> float | None:
        """How good a validation is, higher is better; None where it cannot be said."""

    def draw(self) -> PILImage.Image | None:
        """Originals and their reconstructions."""

    def save(self, folder: Path) -> None:
        """Write the tokenizer as it is now."""


@dataclass(frozen=True)
class RunOptions:
    """How long a run goes on and what it writes.

    Attributes:
        out: folder of everything.
        max_steps, max_seconds: whichever is reached first; at least one is given.
        log_every, checkpoint_every: steps.
        keep_last: checkpoints kept.
        resume: go on from the newest checkpoint, if there is one.
        batch_size: items of a step.
        threads: numbers of threads to choose from.
        identity: options that the weights depend on; ``data`` says on what was trained. A checkpoint of others is refused.
        tensorboard: write its files too.
    """

    out: Path
    max_steps: int | None
    max_seconds: float | None
    batch_size: int
    identity: Mapping[str, Any]
    data: str
    log_every: int = 20
    checkpoint_every: int = 250
    keep_last: int = 2
    resume: bool = False
    threads: Sequence[int] = (1,)
    tensorboard: bool = False


@dataclass(frozen=True)
class RunEnd:
    """How a run came to its end: ``stopped_by`` is ``steps`` or ``time``; ``validation`` is the last one's figures."""

    steps: int
    seconds: float
    stopped_by: str
    validation: dict[str, float | None]
    alarms: tuple[Alarm, ...]


class TrainingRun:
    """One run of a training, from its first or a later step to its end.

    Args:
        engine: with fresh weights, or those to begin with.
        subject, options: see there.
        window: counts codes; over all processes.
        watch: is shown every row.
        progress: is told what happens.
    """

    def __init__(
        self,
        engine: Engine,
        subject: Subject,
        options: RunOptions,
        window: CodebookWindow,
        watch: Watch,
        progress: Progress,
    ) -> None:
        self.engine, self.subject, self.options = engine, subject, options
        self.window, self.watch, self.progress = window, watch, progress
        self.main = engine.world.main
        self.alarms: list[Alarm] = []
        self._seconds_before = 0.0  # of the runs that this one goes on from
        self._meter = Meter()
        self._codes: list[Tensor] = []  # not yet in the window
        self._phase: Phase | None = None
        self._best: float | None = None
        self._board: Any = None

    def go(self) -> RunEnd:
        """Restore, train to the end; checkpoints are then no longer needed and removed.

        Raises:
            FingerprintMismatch: ``resume`` with other options or data than those of the checkpoint.
            DataError: the newest checkpoint is damaged.
            DivergedError: the loss is no number any more.
        """
        out = self.options.out
        if self.main:
            out.mkdir(parents=True, exist_ok=True)
            for folder in (out, out / CHECKPOINTS):
                if folder.is_dir():
                    remove_attempts(folder)
        self._restore()
        if self.options.tensorboard and self.main:
            self._board = _tensorboard(out / "tensorboard")
        try:
            return self._train()
        except DivergedError as error:
            if self.main:
                self._tell([self.watch.diverged(self.engine.steps, str(error))])
            raise
        finally:
            if self._board is not None:
                self._board.close()

    def tidy(self) -> None:
        """Remove what a finished run has no use for."""
        if self.main:
            shutil.rmtree(self.options.out / CHECKPOINTS, ignore_errors=True)

    # ---- the loop

    def _train(self) -> RunEnd:
        options, engine = self.options, self.engine
        begin = time.monotonic() - self._seconds_before
        total, unit = (100, "%") if options.max_seconds else (options.max_steps or 0, "steps")
        shown, validation = 0.0, dict[str, float | None]()
        chooser = ThreadChooser(options.threads, torch.set_num_threads)
        with self._log(METRICS_FILE) as metrics, self.progress.task("training", total=total, unit=unit) as task:
            done = self._done(self._seconds_before)
            validated = int(done * VALIDATIONS)
            while done < 1:
                failpoint("training-step")
                step = engine.step(done)
                self._announce(step.phase)
                if step.codes is not None:
                    self._codes.append(step.codes)
                self._meter.add(step.figures)
                self._meter.waited += step.waited
                chooser.stepped()
                done = self._done(time.monotonic() - begin)
                task.advance(total * done - shown)
                shown = total * done
                validation = {}
                if done >= 1 or int(done * VALIDATIONS) > validated:
                    validated = int(done * VALIDATIONS)
                    validation = self._validate()
                if validation or done >= 1 or engine.steps % options.log_every == 0:
                    self._report(metrics, task, time.monotonic() - begin, done, validation)
                if done < 1 and engine.steps % options.checkpoint_every == 0:
                    self._checkpoint(time.monotonic() - begin)
        seconds = time.monotonic() - begin
        stopped_by = "steps" if engine.steps == options.max_steps else "time"
        return RunEnd(engine.steps, seconds, stopped_by, validation or self._validate(), tuple(self.alarms))

    def _done(self, seconds: float) -> float:
        options = self.options
        if options.max_seconds is not None:
            seconds = self.engine.world.agreed(seconds)
        return schedule.progress(self.engine.steps, options.max_steps, seconds, options.max_seconds)

    def _announce(self, phase: Phase) -> None:
        before = self._phase
        self._phase = phase
        if phase.discriminator and not phase.adversarial and (before is None or not before.discriminator):
            self.progress.log(f"step {self.engine.steps}: the discriminator is trained from here, alone at first")
        if phase.adversarial and (before is None or not before.adversarial):
            self.progress.log(f"step {self.engine.steps}: the adversarial loss is on; {self.watch.measure.usual}")
            if before is not None:
                self._best = None  # what was best without it is no longer compared with

    def _validate(self) -> dict[str, float | None]:
        """Figures; the main process draws and keeps the best besides. All processes must come here: all have the data."""
        engine, out = self.engine, self.options.out
        engine.check()
        with engine.averaged_weights(), self.subject.complete():
            figures = self.subject.validate()
            if self.main:
                drawn = self.subject.draw()
                if drawn is not None:
                    (out / GRIDS).mkdir(exist_ok=True)
                    with replacing(out / GRIDS / f"step-{engine.steps:08d}.png") as temporary:
                        drawn.save(temporary, format="png")
                score = self.subject.score(figures) if figures else None
                if score is not None and (self._best is None or score > self._best):
                    self._best = score
                    self.subject.save(out / BEST)
        return figures

    # ---- the log

    def _report(self, metrics: TextIO, task: Task, seconds: float, done: float, validation: Mapping[str, float | None]) -> None:
        """One row of metrics.jsonl, the figures beside the bar, a log line where something was validated, and alarms."""
        self.engine.check()
        self._count()
        meter = self._meter
        row: dict[str, float | None] = {"step": self.engine.steps, **meter.means}
        row |= {name: validation.get(name) for name in self.subject.figures}
        row |= {
            "codebook_usage": self.window.usage,
            "perplexity": self.window.perplexity,
            **self._by_book(),
            "dead_codes": int((self.window.counts == 0).sum()),
            "codes_counted": int(self.window.counts.sum()) // self.window.codebooks,
            "lr": self.engine.optimizer.param_groups[0]["lr"],
            f"{self.subject.items}_per_second": meter.steps * self.options.batch_size / meter.seconds,
            "waiting": meter.waited / meter.seconds,
            "seconds": seconds,
        }
        self._meter = Meter()
        if not self.main:
            return
        metrics.write(json.dumps(row) + "\n")
        metrics.flush()
        if self._board is not None:
            for name, value in row.items():
                if value is not None and name != "step":
                    self._board.add_scalar(name, value, self.engine.steps)
        quality = row[self.subject.quality] or 0.0
        task.fields(
            loss=f"{row['loss']:.4f}",
            **{self.subject.quality: f"{quality:.1f} dB"},
            usage=f"{self.window.usage:.0%}",
            speed=f"{row[f'{self.subject.items}_per_second']:.0f} {self.subject.items}/s",
        )
        if validation:
            held_out = ", ".join(f"{k.removeprefix('val_')} {v:.3f}" for k, v in validation.items() if v is not None)
            self.progress.log(
                f"step {self.engine.steps}, {duration(seconds)}: held-out {held_out}; training {self.subject.quality} "
                f"{quality:.2f} dB, codebook usage {self.window.usage:.1%}, perplexity {self.window.perplexity:.0f}"
            )
        self._tell(self.watch.look(row, done))

    def _by_book(self) -> dict[str, float | None]:
        """The perplexity of each codebook, where there are several."""
        if self.window.codebooks == 1:
            return {}
        return {f"perplexity_book_{k}": perplexity(book) for k, book in enumerate(self.window.counts, 1)}

    def _tell(self, alarms: Sequence[Alarm]) -> None:
        if not alarms:
            return
        self.alarms += alarms
        with self._log(ALARMS_FILE) as file:
            for alarm in alarms:
                self.progress.log(str(alarm))
                file.write(json.dumps(asdict(alarm)) + "\n")

    def _log(self, name: str) -> TextIO:
        """A file to append to; of a process that does not write, nothing."""
        path = self.options.out / name if self.main else Path("/dev/null")
        return path.open("a", encoding="ascii")

    def _count(self) -> None:
        """Take the codes of the last steps into the window, of all processes."""
        for codes in self._codes:
            self.window.add(self.engine.world.gathered(codes).cpu().numpy())
        self._codes.clear()

    # ---- checkpoints

    def _checkpoint(self, seconds: float) -> None:
        self.engine.check()
        self._count()
        if not self.main:
            return
        state = {
            "engine": self.engine.state(),
            "window": [torch.from_numpy(codes) for codes in self.window.batches],
            "options": json.dumps(self.options.identity),
            "data": self.options.data,
            "seconds": seconds,
            "meter": self._meter.state(),
            "best": self._best,
        }
        folder = self.options.out / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        with replacing(folder / f"step-{self.engine.steps:08d}.pt") as temporary:
            torch.save(state, temporary)
        failpoint("training-checkpoint")
        for path in checkpoints(self.options.out)[: -self.options.keep_last]:
            path.unlink()

    def _restore(self) -> None:
        out = self.options.out
        found = checkpoints(out)
        if not self.options.resume or not found:
            if self.main:
                (out / METRICS_FILE).write_bytes(b"")
                (out / ALARMS_FILE).unlink(missing_ok=True)
                for grid in (out / GRIDS).glob("step-*.png"):
                    grid.unlink()
            return
        path = found[-1]
        state = _read(path, found[:-1])
        differences = differing(self.options.identity, json.loads(state["options"]))
        if state["data"] != self.options.data:
            differences.append("the inputs hold other pictures" if self.subject.items == "images" else "the inputs differ")
        if differences:
            raise FingerprintMismatch(f"{path} belongs to another run: {'; '.join(differences)}")
        self.engine.restore(state["engine"])
        for codes in state["window"]:
            self.window.add(codes.numpy())
        self._seconds_before, self._best = float(state["seconds"]), state["best"]
        self._meter = Meter.restored(state["meter"])
        self._phase = self.engine.options.phases.at(self._done(self._seconds_before))
        steps = self.engine.steps
        if self.main:
            for row in _keep_rows(out / METRICS_FILE, steps):
                self.watch.look(
                    row, schedule.progress(int(row["step"]), self.options.max_steps, row["seconds"], self.options.max_seconds)
                )
            self.alarms = [Alarm(**row) for row in _keep_rows(out / ALARMS_FILE, steps)]
            for grid in (out / GRIDS).glob("step-*.png"):
                if int(grid.stem.removeprefix("step-")) > steps:
                    grid.unlink()
        self.progress.log(f"going on from step {steps}")


def checkpoints(out: Path) -> list[Path]:
    """The checkpoints in a run's folder, oldest first."""
    folder = out / CHECKPOINTS
    return sorted(path for path in folder.iterdir() if _CHECKPOINT.fullmatch(path.name)) if folder.is_dir() else []


def differing(options: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """Options that the weights depend on and that were others when ``written`` was written."""
    return [f"{k}: {written.get(k)!r} then, {v!r} now" for k, v in options.items() if written.get(k) != v]


def _read(path: Path, older: Sequence[Path]) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        missing = {"engine", "window", "options", "data", "seconds", "meter", "best"} - set(state)
    except Exception as error:  # torch reports damage by many exception types
        before = f"; remove it to go on from {older[-1].name}" if older else ""
        raise DataError(f"{path}: damaged, or not a checkpoint of this job ({type(error).__name__}){before}") from error
    if missing:
        raise DataError(f"{path}: not a checkpoint of this job (without {', '.join(sorted(missing))})")
    return dict(state)


def _keep_rows(path: Path, steps: int) -> list[Any]:
    """Drop the rows that the run will write again; returns the others."""
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= steps]
    if lines:
        write_atomic(path, "".join(f"{line}\n" for line in kept))
    return [json.loads(line) for line in kept]


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UsageError("--tensorboard needs the package tensorboard: pip install 'tokkit[tensorboard]'") from None
    return SummaryWriter(str(folder))
