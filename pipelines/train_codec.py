"""The job ``tokkit train-codec``: sounds in, an audio tokenizer out.

    read     the inputs' sounds, decoded at the codec's rate, until they end or ``cache_mb`` of them are held
    split    a share by content hash is held out
    train    steps that are pure functions of (state, seed, number) (:mod:`tokkit.pipelines.training_run`)
    write    samples/ (what was held out and what came back, as WAV), samples.png (their spectrograms), config.json +
             model.safetensors, training.html, training.json (what was done and how it came out)

The same inputs, options, seed and thread count give the same weights, byte for byte, unless ``max_minutes`` cut the run short.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PILImage

from tokkit.documents import Audio, Outcome
from tokkit.errors import DataError, FingerprintMismatch, UsageError
from tokkit.media.audio import audio_packages
from tokkit.metrics.audio import log_mel
from tokkit.metrics.codebook import CodebookWindow, perplexity
from tokkit.pipelines.evaluate_audio import sound_files, spectrogram
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.inspect import write_wav
from tokkit.pipelines.prepare import resolve_device
from tokkit.pipelines.progress import Progress, SilentProgress, Task, duration
from tokkit.pipelines.train_codec_config import DEFAULT_STEPS, TrainCodecConfig
from tokkit.pipelines.training_page import write_training_page
from tokkit.pipelines.training_run import RunEnd, RunOptions, TrainingRun, checkpoints, differing
from tokkit.sources.base import ContainerDamage
from tokkit.sources.resolve import resolve_inputs
from tokkit.storage import pretty_json, read_json, replacing, write_atomic
from tokkit.tokenizers.audio.config import AudioTokenizerConfig
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.tokenizers.audio.presets import configure
from tokkit.tokenizers.audio.storage import write_audio_tokenizer
from tokkit.tokenizers.folder import CONFIG_FILE
from tokkit.training.alarms import Watch
from tokkit.training.audio.clips import ClipSet, Crops, Samples, Sound, read_clips
from tokkit.training.audio.discriminator import build_discriminator
from tokkit.training.audio.task import CodecObjective, CodecTask, fresh_codec
from tokkit.training.engine import Engine, Optimisation, Phases, World, seeded
from tokkit.training.engine.world import joined
from tokkit.training.pictures import UNIT_BYTES, Reject

__all__ = ["DEFAULT_STEPS", "TrainCodecConfig", "TrainCodecResult", "sounds_of", "train_codec", "train_on_sounds"]

SAMPLES_FOLDER = "samples"
SAMPLES_FILE = "samples.png"
RESULT_FILE = "training.json"
REJECTS_FILE = "rejects.jsonl"

# Validation is done on the beginnings of held-out sounds, at most so many: more say little and cost time.
MAX_VALIDATION = 16
VALIDATION_SECONDS = 4.0
SHOWN = 4
SPECTROGRAM_FRAMES = 320  # of each in a picture

ADVICE = {
    "codebook-collapsing": "Lower --lr or lengthen --warmup; raise --quantize-from, so that the encoder has learnt more before "
    "the codebooks are set; or take smaller codebooks (--set quantizer.codebook_size=...).",
    "discriminator-winning": "Lower --discriminator-lr, or start it later (--gan-start).",
    "overfitting": "Use more sounds, or stop here: best/ holds the tokenizer of the best held-out mel distance.",
}


@dataclass(frozen=True)
class TrainCodecResult:
    """How a run came out.

    Attributes:
        out: the tokenizer's folder; ``fingerprint`` is its identity.
        steps, seconds: done; ``stopped_by`` says what ended the run, ``steps`` or ``time``.
        sounds, held_out: used for training and for validation; ``rejects`` counts the others by reason.
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
    tokenizer = trained_config(config)
    audio_packages()
    finished = _check_out(config)
    if finished is not None:
        progress.log(f"{config.out} is finished already; nothing to do")
        return finished
    return _joined(config, tokenizer, sounds_of(config.inputs, progress), progress)


def train_on_sounds(config: TrainCodecConfig, sounds: Iterable[Sound | Reject], progress: Progress) -> TrainCodecResult:
    """The job behind the reading of sources: decode, train, write."""
    return _joined(config, trained_config(config), sounds, progress)


def trained_config(config: TrainCodecConfig) -> AudioTokenizerConfig:
    """What the options say to train.

    Raises:
        ConfigError, UsageError: options that cannot work.
    """
    overrides = {"origin": f"trained by tokkit train-codec from preset {config.preset}"} | config.overrides
    found = configure(config.preset, overrides)
    if found.segment is not None:
        raise UsageError(f"preset {config.preset}: codecs that work in segments can be imported, but not trained")
    most = max(config.books or (1,))
    if most > found.quantizer.codebooks:
        raise UsageError(f"--books {most}: the codec has {found.quantizer.codebooks} codebooks")
    return found


def sounds_of(inputs: Sequence[str], progress: Progress) -> Iterator[Sound | Reject]:
    """Sounds in order: of sound files and folders of nothing else, then of corpora; what cannot be read is a reject."""
    rest = []
    for typed in inputs:
        found = sound_files(Path(typed))
        for path in found:
            name = path.name if path == Path(typed) else path.relative_to(typed).as_posix()
            yield Sound(name, Audio(path.read_bytes(), path.name))
        if not found:
            rest.append(typed)
    if not rest:
        return
    resolved = resolve_inputs(rest)
    announce_ignored(resolved, progress)
    for source in resolved.sources:
        for unit in source.units(UNIT_BYTES):
            for document in source.read(unit):
                where = f"{source.name}/{document.locator}"
                if isinstance(document, ContainerDamage):
                    message = f"bytes {document.start} to {document.stop}: {document.message}"
                    yield Reject(where, Outcome.REJECTED, document.reason, message)
                elif document.failure is not None:
                    yield Reject(where, document.failure.outcome, document.failure.reason, document.failure.message)
                else:
                    yield from (Sound(where, media) for media in document.media if isinstance(media, Audio))


def _joined(
    config: TrainCodecConfig, tokenizer: AudioTokenizerConfig, sounds: Iterable[Sound | Reject], progress: Progress
) -> TrainCodecResult:
    device = resolve_device(config.device or "auto").type
    before = torch.get_num_threads()
    with joined(device) as world:
        try:
            return _Run(config, tokenizer, device, world, progress if world.main else SilentProgress()).run(sounds)
        finally:
            torch.set_num_threads(before)


class _Run:
    """One training run, from sounds to files. To the engine's run it is the subject."""

    items = "clips"
    quality = "si_sdr"

    def __init__(
        self, config: TrainCodecConfig, tokenizer: AudioTokenizerConfig, device: str, world: World, progress: Progress
    ) -> None:
        self.config, self.tokenizer_config, self.device, self.world = config, tokenizer, device, world
        self.progress = progress
        self.recipe = config.resolved_recipe
        parts = world.size * config.accumulate
        if self.recipe.batch_size % parts:
            raise UsageError(
                f"--batch-size {self.recipe.batch_size} is no multiple of {parts}, its parts (processes times accumulate)"
            )
        cores = os.cpu_count() or 1
        self.threads = [config.threads] if config.threads else [1] if world.size > 1 else [cores, 1]
        books = tokenizer.quantizer.codebooks
        self.books = config.books or tuple(n for n in _powers(books) if n >= books // 16)
        self.figures = ("val_si_sdr", "val_mel_distance", *(f"val_perplexity_book_{k + 1}" for k in range(books)))

    def run(self, sounds: Iterable[Sound | Reject]) -> TrainCodecResult:
        config, tokenizer = self.config, self.tokenizer_config
        config.out.mkdir(parents=True, exist_ok=True)
        clips = self._read(sounds)
        longest = round(VALIDATION_SECONDS * tokenizer.sample_rate)
        self.held_out = [clip[:, :longest] for clip in clips.held_out[:MAX_VALIDATION]]
        self.mean_predictor = mean_predictor_distance(clips.train, self.held_out, tokenizer.sample_rate)
        codec = fresh_codec(tokenizer, config.seed).to(self.device)
        self.task = self._task(codec, clips)
        self.engine = Engine(self.task, self._optimisation(), config.seed, self.world)
        size = codec.codebook_size
        self.window = CodebookWindow(size, max(65536, 4 * size), codec.codebooks)
        self._announce(codec)
        watch = Watch(total_codes=size, idle_loss=2.0, quality=self.quality, advice=ADVICE)
        run = TrainingRun(self.engine, self, self._options(clips.digest), self.window, watch, self.progress)
        end = run.go()
        with self.engine.averaged_weights():
            result = self._write(end, clips)
        run.tidy()
        return result

    def _read(self, sounds: Iterable[Sound | Reject]) -> ClipSet:
        config, tokenizer = self.config, self.tokenizer_config
        with self.progress.task("read sounds", unit="sounds") as task:
            counted = _counted(sounds, task)
            bound = config.cache_mb * 2**20
            found = read_clips(counted, tokenizer.sample_rate, tokenizer.channels, config.val_fraction, bound)
        if self.world.main:
            rows = (json.dumps(asdict(reject), ensure_ascii=True) + "\n" for reject in found.rejects)
            write_atomic(config.out / REJECTS_FILE, "".join(rows))
        seconds = sum(clip.shape[1] for clip in found.train) / tokenizer.sample_rate
        self.progress.log(
            f"{found.seen} sounds read: {len(found.train)} to train on ({duration(seconds)}), {len(found.held_out)} held out"
        )
        for reason, count in found.reasons.items():
            self.progress.log(f"not used: {count} x {reason} (listed in {REJECTS_FILE})")
        if found.full:
            self.progress.log(f"memory for sounds is full (cache_mb {config.cache_mb}); the rest of the input is not used")
        if not found.train:
            raise UsageError(f"no sound to train on in {', '.join(config.inputs)} ({found.seen} read; see {REJECTS_FILE})")
        return found

    def _task(self, codec: EncodecTokenizer, clips: ClipSet) -> CodecTask:
        config, recipe = self.config, self.recipe
        length = -(-max(1, round(recipe.crop * codec.sample_rate)) // codec.hop) * codec.hop
        windows = tuple(window for window in recipe.windows if window <= length)
        discriminator = None
        if recipe.gan_start < 1:
            if not windows:
                raise UsageError(f"--crop {recipe.crop:g}: {length} samples are too few for the discriminator")
            with seeded(config.seed, 1):
                discriminator = build_discriminator(codec.channels, recipe.filters, windows).to(self.device).train()
        return CodecTask(
            codec,
            Crops(clips.train, length, recipe.batch_size, config.seed),
            CodecObjective(
                time=config.time_weight,
                mel=config.mel_weight,
                adversarial=config.gan_weight,
                features=config.feature_weight,
                commitment=config.commitment_weight,
                quantize_from=config.quantize_from,
                books=self.books,
            ),
            discriminator,
            world=self.world,
            accumulate=config.accumulate,
            seed=config.seed,
        )

    def _optimisation(self) -> Optimisation:
        config, recipe = self.config, self.recipe
        return Optimisation(
            lr=recipe.lr,
            betas=config.betas,
            weight_decay=config.weight_decay,
            discriminator_lr=config.discriminator_lr,
            warmup=config.warmup,
            clip_norm=config.clip_norm,
            accumulate=config.accumulate,
            average=recipe.ema,
            phases=Phases(recipe.gan_start if recipe.gan_start < 1 else None, config.gan_lead_in),
        )

    def _options(self, digest: str) -> RunOptions:
        config = self.config
        return RunOptions(
            out=config.out,
            max_steps=config.max_steps,
            max_seconds=config.max_minutes * 60 if config.max_minutes else None,
            batch_size=self.recipe.batch_size,
            identity=config.semantic(),
            data=digest,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            keep_last=config.keep_last,
            resume=config.resume,
            threads=self.threads,
            tensorboard=config.tensorboard,
        )

    def _announce(self, codec: EncodecTokenizer) -> None:
        recipe = self.recipe
        parameters = sum(p.numel() for p in self.task.generator.parameters())
        where = f"{' or '.join(map(str, self.threads))} threads" if self.device == "cpu" else "the GPU"
        against = "" if self.task.discriminator is None else ", MS-STFT discriminator"
        books = "1 codebook" if codec.codebooks == 1 else f"{codec.codebooks} codebooks"
        self.progress.log(
            f"{codec.config.name}: {codec.sample_rate:,} Hz, {codec.frame_rate:g} frames a second, {books} of "
            f"{codec.codebook_size:,} codes, {parameters / 1e6:.2f} M parameters{against}; {recipe.batch_size} crops of "
            f"{recipe.crop:g} s a step; {where}"
        )

    # ---- what the run asks for

    def validate(self) -> dict[str, float | None]:
        self.task.set_books()  # whatever is written after this has codebooks
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

    def _write(self, end: RunEnd, clips: ClipSet) -> TrainCodecResult:
        out, codec = self.config.out, self.task.tokenizer
        self.task.set_books()
        books = codec.codebooks
        validated = [end.validation.get(f"val_perplexity_book_{k}") for k in range(1, books + 1)]
        result = TrainCodecResult(
            out=str(out),
            fingerprint=codec.fingerprint,
            steps=end.steps,
            seconds=end.seconds,
            stopped_by=end.stopped_by,
            sounds=len(clips.train),
            held_out=len(clips.held_out),
            rejects=clips.reasons,
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
        drawn = self.draw()
        if drawn is not None:
            with replacing(out / SAMPLES_FILE) as temporary:
                drawn.save(temporary, format="png")
        options = self.config.resolved()
        write_atomic(out / RESULT_FILE, pretty_json({"options": options, "result": asdict(result)}))
        write_training_page(out, f"tokkit train-codec: {codec.config.name}", options, asdict(result))
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


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... and ``most`` itself."""
    return sorted({1 << k for k in range(most.bit_length()) if 1 << k <= most} | {most})


def _counted(sounds: Iterable[Sound | Reject], task: Task) -> Iterator[Sound | Reject]:
    for sound in sounds:
        yield sound
        task.advance(1)


def _check_out(config: TrainCodecConfig) -> TrainCodecResult | None:
    """What ``out`` holds: None where the run may begin or go on, the result where it is finished and ``resume`` was given."""
    if (config.out / CONFIG_FILE).exists():
        if not config.resume:
            raise UsageError(f"{config.out} holds a tokenizer already; name another folder, or remove it")
        if not (config.out / RESULT_FILE).exists():
            raise UsageError(f"{config.out} holds a tokenizer that this job did not make; name another folder")
        return _finished(config, config.out / RESULT_FILE)
    if checkpoints(config.out) and not config.resume:
        raise UsageError(f"{config.out} holds an unfinished run; give --resume to go on with it, or remove it")
    return None


def _finished(config: TrainCodecConfig, path: Path) -> TrainCodecResult:
    described = read_json(path)
    try:
        differences = differing(config.semantic(), described["options"])
        tuples = {name: tuple(described["result"][name]) for name in ("perplexity", "val_perplexity", "alarms")}
        result = TrainCodecResult(**described["result"] | tuples)
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the result of this job ({error})") from None
    if differences:
        raise FingerprintMismatch(f"{config.out} holds the tokenizer of another run: {'; '.join(differences)}")
    return result
