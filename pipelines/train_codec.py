"""The job ``tokkit train-codec``: sounds in, an audio tokenizer out.

    read     the inputs' sounds, decoded at the codec's rate, until they end or ``cache_mb`` of them are held; or, with
             ``stream``, again in each epoch while the training goes on (:mod:`tokkit.pipelines.train_codec_data`)
    split    a share by content hash is held out
    train    steps that are pure functions of (state, seed, number) (:mod:`tokkit.pipelines.training_run`)
    write    samples/ (what was held out and what came back, as WAV), samples.png (their spectrograms), config.json +
             model.safetensors, training.html, training.json (what was done and how it came out)

The same inputs, options, seed and thread count give the same weights, byte for byte, unless ``max_minutes`` cut the run short.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from tokkit.media.audio import audio_packages
from tokkit.metrics.audio import log_mel
from tokkit.metrics.codebook import CodebookWindow, perplexity
from tokkit.pipelines.inspect import write_wav
from tokkit.pipelines.progress import Progress, duration
from tokkit.pipelines.sound_page import spectrogram
from tokkit.pipelines.train_codec_config import TrainCodecConfig
from tokkit.pipelines.train_codec_data import TrainingSounds, cached, sounds_of, streamed, units_of_sounds
from tokkit.pipelines.train_codec_parts import Start, built_codec, built_task, crop_of, optimisation_of, start_of
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
from tokkit.tokenizers.audio.config import GRIDS, AudioTokenizerConfig
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.tokenizers.audio.storage import write_audio_tokenizer
from tokkit.training.alarms import MEL, Watch
from tokkit.training.audio.clips import Samples, Sound
from tokkit.training.engine import Engine, World
from tokkit.training.items import Reject

__all__ = ["DEFAULT_STEPS", "TrainCodecConfig", "TrainCodecResult", "train_codec", "train_on_sounds"]

SAMPLES_FOLDER = "samples"

SHOWN = 4
SPECTROGRAM_FRAMES = 320  # of each in a picture

ADVICE = {
    "codebook-collapsing": "Lower --lr or lengthen --warmup; raise --quantize-from, so that the encoder has learnt more before "
    "the codebooks are set; or take smaller codebooks (--set quantizer.codebook_size=...).",
    "gan-overpowering": "Lower --gan-weight and --feature-weight, or start it later (--gan-start).",
    "discriminator-winning": "Lower --discriminator-lr, or start it later (--gan-start).",
    "waiting-for-sounds": "Raise --workers (threads that decode), or store sounds at the rate that they are trained at.",
    "overfitting": "Use more sounds, or stop here: best/ holds the tokenizer of the best held-out mel distance.",
    "not-a-number": "The newest checkpoint is from before that: --resume goes on from it, but comes to the same place with the "
    "same options; begin anew with a lower --lr or a longer --warmup.",
}

GRID_ADVICE = {
    "codebook-collapsing": "Lower --lr or lengthen --warmup; raise --quantize-from, so that the encoder has learnt more before "
    "the grid is laid; or take fewer levels (--set quantizer.levels=[...]).",
}


@dataclass(frozen=True)
class TrainCodecResult:
    """How a run came out.

    Attributes:
        out: the tokenizer's folder; ``fingerprint`` is its identity.
        steps, seconds: done; ``stopped_by`` says what ended the run, ``steps`` or ``time``.
        sounds, held_out: used for training (with ``stream``: crops dealt out) and for validation; ``rejects`` counts the others
            by reason.
        val_si_sdr, val_mel_distance: means over held-out sounds; None without any.
        mean_predictor: the mel distance of always answering with the mean spectrum of the training's sounds.
        codebook_size, codebook_usage, perplexity: over the last codes of the training; perplexity of each codebook.
        val_perplexity: of each codebook, over the codes of the held-out sounds.
        alarms: kinds of the alarms that sounded, in order.
    """

    out: str
    fingerprint: str
    steps: int
    seconds: float
    stopped_by: str
    sounds: int
    held_out: int
    rejects: Mapping[str, int]
    val_si_sdr: float | None
    val_mel_distance: float | None
    mean_predictor: float | None
    codebook_size: int
    codebook_usage: float
    perplexity: tuple[float, ...]
    val_perplexity: tuple[float, ...] = ()
    alarms: tuple[str, ...] = ()


def train_codec(config: TrainCodecConfig, progress: Progress) -> TrainCodecResult:
    """Train an audio tokenizer on the sounds of any inputs.

    Raises:
        ConfigError, UsageError: options that cannot work, a package that is missing, or an ``out`` that holds something else.
        FingerprintMismatch: ``resume`` with other options or sounds than those of the checkpoint.
        DataError: a checkpoint is damaged.
        DivergedError: the loss is no number any more.
    """
    start = start_of(config)
    audio_packages()
    before = finished(config, _identity(config, start), TrainCodecResult)
    if before is not None:
        progress.log(f"{config.out} is finished already; nothing to do")
        return before
    if config.stream:
        units = units_of_sounds(config.inputs, progress)
        return _run(config, start, progress, lambda run: streamed(*run.whose, units, run.world, run.device, run.progress))
    return _cached(config, start, sounds_of(config.inputs, progress), progress)


def train_on_sounds(config: TrainCodecConfig, sounds: Iterable[Sound | Reject], progress: Progress) -> TrainCodecResult:
    """The job behind the reading of sources: decode, train, write."""
    return _cached(config, start_of(config), sounds, progress)


def _cached(config: TrainCodecConfig, start: Start, sounds: Iterable[Sound | Reject], progress: Progress) -> TrainCodecResult:
    return _run(config, start, progress, lambda run: cached(*run.whose, sounds, run.world, run.progress))


def _run(
    config: TrainCodecConfig, start: Start, progress: Progress, data: Callable[[_Run], TrainingSounds]
) -> TrainCodecResult:
    device = device_of(config)
    return together(device, progress, lambda world, told: _Run(config, start, device, world, told).run(data))


class _Run:
    """One training run, from sounds to files. To the engine's run it is the subject."""

    items = "clips"
    quality = "si_sdr"

    def __init__(self, config: TrainCodecConfig, start: Start, device: str, world: World, progress: Progress) -> None:
        self.recipe = config.resolved_recipe
        check_parts(config, self.recipe.batch_size, world)
        self.config, self.start, self.device, self.world, self.progress = config, start, device, world, progress
        self.threads = threads_of(config, world)
        books = range(1, start.config.quantizer.codebooks + 1)
        self.figures = ("val_si_sdr", "val_mel_distance", *(f"val_perplexity_book_{k}" for k in books))

    @property
    def whose(self) -> tuple[TrainCodecConfig, AudioTokenizerConfig, int]:
        """What sounds are read for, and the samples of a crop."""
        return self.config, self.start.config, crop_of(self.config, self.start.config)

    def run(self, data: Callable[[_Run], TrainingSounds]) -> TrainCodecResult:
        self.config.out.mkdir(parents=True, exist_ok=True)
        self.data = data(self)
        try:
            return self._trained()
        finally:
            self.data.crops.close()

    def _trained(self) -> TrainCodecResult:
        config, data = self.config, self.data
        self.held_out = data.held_out
        self.mean_predictor = mean_predictor_distance(data.some, self.held_out, self.start.config.sample_rate)
        codec = built_codec(self.start, config, self.device)
        self.task = built_task(config, self.start, codec, data.crops, self.world)
        self.engine = Engine(self.task, optimisation_of(config), config.seed, self.world)
        size = codec.codebook_size
        self.window = CodebookWindow(size, max(65536, 4 * size), codec.codebooks)
        self._announce(codec)
        grid = isinstance(codec.config.quantizer, GRIDS)
        watch = Watch(
            total_codes=size,
            learned_table=not grid,
            idle_loss=2.0,
            measure=MEL,
            items="sounds",
            advice=ADVICE | (GRID_ADVICE if grid else {}),
        )
        options = run_options(config, self.recipe.batch_size, self.threads, _identity(config, self.start), data.digest)
        run = TrainingRun(self.engine, self, options, self.window, watch, self.progress)
        end = run.go()
        with self.engine.averaged_weights():
            result = self._write(end)
        run.tidy()
        return result

    def _announce(self, codec: EncodecTokenizer) -> None:
        recipe = self.recipe
        parameters = sum(p.numel() for p in self.task.generator.parameters())
        against = "" if self.task.discriminator is None else ", MS-STFT discriminator"
        books = "1 codebook" if codec.codebooks == 1 else f"{codec.codebooks} codebooks"
        self.progress.log(
            f"{codec.config.name}: {codec.sample_rate:,} Hz, {codec.frame_rate:g} frames a second, {books} of "
            f"{codec.codebook_size:,} codes, {parameters / 1e6:.2f} M parameters{against}; {recipe.batch_size} crops of "
            f"{recipe.crop:g} s a step; {computing(self.device, self.threads)}"
        )
        if self.start.tokenizer is not None:
            found = {name: value for name, value in self.validate().items() if value is not None}
            if found:
                told = ", ".join(f"{name.removeprefix('val_')} {value:.3f}" for name, value in found.items())
                self.progress.log(f"before training: held-out {told}")

    # ---- what the run asks for

    def complete(self) -> AbstractContextManager[None]:
        return self.task.with_books() if self.held_out else nullcontext()

    def validate(self) -> dict[str, float | None]:
        if not self.held_out:
            return {}
        found = self.task.validate(self.held_out)
        books = {f"val_perplexity_book_{k}": value for k, value in enumerate(found.perplexity, 1)}
        return {"val_si_sdr": found.si_sdr, "val_mel_distance": found.mel_distance, **books}

    def score(self, figures: Mapping[str, float | None]) -> float | None:
        distance = figures.get("val_mel_distance")
        return None if distance is None else -distance

    def draw(self) -> PILImage.Image | None:
        """Spectrograms of held-out sounds above those of what came back; the sounds themselves go to ``samples/``."""
        codec, rate = self.task.tokenizer, self.task.tokenizer.sample_rate
        shown = self.held_out[:SHOWN]
        if not shown:
            return None
        folder = self.config.out / SAMPLES_FOLDER
        folder.mkdir(exist_ok=True)
        rows: list[list[NDArray[np.uint8]]] = [[], []]
        for number, clip in enumerate(shown, 1):
            (code,) = codec.encode([clip])
            back = codec.decode(code)
            for row, name, samples in ((rows[0], "original", clip), (rows[1], "reconstruction", back)):
                write_wav(folder / f"{number}-{name}.wav", samples, rate)
                row.append(_framed(spectrogram(samples[0], rate, SPECTROGRAM_FRAMES)))
        return PILImage.fromarray(np.concatenate([np.concatenate(row, axis=1) for row in rows], axis=0))

    def save(self, folder: Path) -> None:
        write_audio_tokenizer(self.task.tokenizer, folder)

    # ---- after

    def _write(self, end: RunEnd) -> TrainCodecResult:
        out, codec = self.config.out, self.task.tokenizer
        self.task.set_books()
        sounds, rejects = self.data.counted()
        books = codec.codebooks
        validated = [end.validation.get(f"val_perplexity_book_{k}") for k in range(1, books + 1)]
        result = TrainCodecResult(
            out=str(out),
            fingerprint=codec.fingerprint,
            steps=end.steps,
            seconds=end.seconds,
            stopped_by=end.stopped_by,
            sounds=sounds,
            held_out=self.data.held_out_count,
            rejects=rejects,
            val_si_sdr=end.validation.get("val_si_sdr"),
            val_mel_distance=end.validation.get("val_mel_distance"),
            mean_predictor=self.mean_predictor,
            codebook_size=codec.codebook_size,
            codebook_usage=self.window.usage,
            perplexity=tuple(perplexity(book) for book in self.window.counts),
            val_perplexity=tuple(value for value in validated if value is not None),
            alarms=tuple(alarm.kind for alarm in end.alarms),
        )
        if not self.world.main:
            return result
        options = self.config.resolved() | {"weights_from": self.start.identity}
        write_result(out, f"tokkit train-codec: {codec.config.name}", options, result, self.draw())
        write_audio_tokenizer(codec, out)
        if end.stopped_by == "time":
            self.progress.log(f"stopped after {duration(end.seconds)}, the time given, at step {result.steps}")
        self.progress.log(f"wrote {out} (fingerprint {result.fingerprint[:12]}); training.html shows how it went")
        return result


def mean_predictor_distance(train: Sequence[Samples], held_out: Sequence[Samples], rate: int) -> float | None:
    """Mel distance of the held-out sounds to the mean log spectrum of the others: what is reached without listening."""
    if not held_out:
        return None
    total, frames = np.zeros(0), 0
    for clip in train:
        for channel in clip:
            mel = log_mel(channel, rate)
            total = mel.sum(axis=1) + (total if frames else 0.0)
            frames += mel.shape[1]
    mean = (total / frames)[:, None]
    return float(np.mean([np.mean([np.abs(log_mel(channel, rate) - mean).mean() for channel in clip]) for clip in held_out]))


def _framed(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A spectrogram with a grey line at its right and lower edges."""
    return np.pad(picture, ((0, 2), (0, 4), (0, 0)), constant_values=128)


def _identity(config: TrainCodecConfig, start: Start) -> dict[str, Any]:
    return config.semantic() | {"weights_from": start.identity}
