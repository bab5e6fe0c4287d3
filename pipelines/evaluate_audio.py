"""The job ``tokkit eval`` for audio tokenizers: figures by one stated protocol and a page to look at out.

    read      the inputs' sounds, once: sound files, folders of them, or corpora of any format
    measure   decode at each tokenizer's rate and channels, encode, decode, compare (:mod:`tokkit.metrics.audio`)
    write     eval.json (all figures), eval.html (spectrograms of some clips and of what came back), rejects.jsonl

Each tokenizer is measured at each number of codebooks that is asked for, since a lower bandwidth is the first ones. What
needs a package that is not installed is listed with its name; none is left out in silence. The same inputs and options give the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from itertools import islice
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tokkit.documents import Audio, Document, Failure, Outcome
from tokkit.errors import ConfigError, ItemError, UsageError
from tokkit.media.audio import AudioLimits, Segment, audio_packages, load_audio
from tokkit.metrics.audio import BANDS, FLOOR, HOP, WINDOW, mel_distance, pesq, si_sdr, speech_packages, stoi
from tokkit.metrics.codebook import perplexity, usage
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.report import data_uri
from tokkit.pipelines.sound_page import spectrogram
from tokkit.sources.resolve import resolve_inputs
from tokkit.sources.samples import is_sound_name
from tokkit.storage import pretty_json, write_atomic
from tokkit.tokenizers.audio import load_audio_tokenizer
from tokkit.tokenizers.audio.base import AudioTokenizer

UNIT_BYTES = 64 << 20
PROTOCOL = {
    "sounds": "decoded at the tokenizer's own rate and channels; its output is compared with its input; means over clips",
    "si_sdr": "dB, means taken off, mean over channels; clips with a silent channel have none",
    "mel_distance": f"mean absolute difference of log10 magnitudes in {BANDS} mel bands, Hann window {WINDOW}, hop {HOP}, "
    f"magnitudes of at least {FLOOR:g}",
    "stoi": "package pystoi, of the mean of the channels; clips with less than about 0.4 s of sound have none",
    "pesq": "package pesq, wide band at 16 kHz, of the mean of the channels; clips without an utterance have none",
    "codebook": "of each book: usage, the share of the codes that occur; perplexity, exp of the entropy of their distribution",
}


# Figure, package, and how it is had; pesq is built where it is installed.
MEASURED_WITH = (("stoi", "pystoi", "'tokkit[speech]'"), ("pesq", "pesq", "pesq (needs a C compiler)"))


class EvaluateAudioConfig(BaseModel):
    """Options of the job.

    Attributes:
        tokenizers: folders, the first one first on the page.
        inputs: sound files or folders of them, or paths, globs or ``format:path`` as for every job.
        out: folder for the results; made if absent, an earlier result in it is replaced.
        books: numbers of codebooks to measure each tokenizer at; all that it has if not given.
        limit: take at most so many sounds.
        examples: clips that the page shows.
        device: that the networks run on.
        limits: bounds on a sound.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizers: tuple[Path, ...] = Field(min_length=1)
    inputs: tuple[str, ...] = Field(min_length=1)
    out: Path
    books: tuple[int, ...] = ()
    limit: int | None = Field(default=None, ge=1)
    examples: int = Field(default=4, ge=0, le=64)
    device: str = "cpu"
    limits: AudioLimits = Field(default_factory=lambda: AudioLimits(max_seconds=600.0))


@dataclass(frozen=True)
class AudioScores:
    """Figures of one tokenizer at one number of codebooks; None where a metric was not measured."""

    label: str
    name: str
    fingerprint: str
    licence: str | None
    sample_rate: int
    codebooks: int
    bits_per_second: float
    clips: int
    seconds: float
    si_sdr: float | None
    si_sdr_median: float | None
    mel_distance: float
    stoi: float | None
    pesq: float | None
    perplexity: tuple[float, ...]
    usage: tuple[float, ...]


@dataclass(frozen=True)
class EvalAudioResult:
    """How an evaluation came out; ``digest`` is equal where the measured clips are."""

    out: str
    clips: int
    rejects: dict[str, int]
    digest: str
    packages: dict[str, str]
    tokenizers: list[AudioScores]
    missing: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Reject:
    locator: str
    outcome: str
    reason: str
    message: str


@dataclass
class _Meter:
    """What is gathered of a tokenizer at ``books`` codebooks."""

    label: str
    tokenizer: AudioTokenizer
    books: int
    values: dict[str, list[float]] = field(default_factory=lambda: {n: [] for n in ("si_sdr", "mel_distance", "stoi", "pesq")})
    examples: list[tuple[str, str, str, float]] = field(default_factory=list)  # locator, original, output, distance

    def __post_init__(self) -> None:
        self.counts = np.zeros((self.books, self.tokenizer.codebook_size), dtype=np.int64)
        self.clips, self.seconds = 0, 0.0

    def add(self, locator: str, samples: NDArray[np.float32], codes: NDArray[np.int32], output: NDArray[np.float32]) -> None:
        rate = self.tokenizer.sample_rate
        distance = mel_distance(samples, output, rate)
        figures = {"si_sdr": si_sdr(samples, output), "mel_distance": distance}
        figures |= {"stoi": stoi(samples, output, rate), "pesq": pesq(samples, output, rate)}
        for name, value in figures.items():
            if value is not None:
                self.values[name].append(value)
        for book in range(self.books):
            self.counts[book] += np.bincount(codes[book], minlength=self.counts.shape[1])
        self.clips += 1
        self.seconds += samples.shape[1] / rate

    def show(self, locator: str, samples: NDArray[np.float32], output: NDArray[np.float32]) -> None:
        rate = self.tokenizer.sample_rate
        original, back = (data_uri(spectrogram(one[0], rate)) for one in (samples, output))
        self.examples.append((locator, original, back, mel_distance(samples, output, rate)))

    def result(self) -> AudioScores:
        config, tokenizer = self.tokenizer.config, self.tokenizer
        means = {name: float(np.mean(found)) if found else None for name, found in self.values.items()}
        sdr = self.values["si_sdr"]
        return AudioScores(
            label=self.label,
            name=config.name,
            fingerprint=tokenizer.fingerprint,
            licence=tokenizer.licence,
            sample_rate=tokenizer.sample_rate,
            codebooks=self.books,
            bits_per_second=float(np.log2(tokenizer.codebook_size) * self.counts.sum() / self.seconds),
            clips=self.clips,
            seconds=round(self.seconds, 3),
            si_sdr=means["si_sdr"],
            si_sdr_median=float(np.median(sdr)) if sdr else None,
            mel_distance=float(np.mean(self.values["mel_distance"])),
            stoi=means["stoi"],
            pesq=means["pesq"],
            perplexity=tuple(perplexity(book) for book in self.counts),
            usage=tuple(usage(book) for book in self.counts),
        )


def evaluate_audio(config: EvaluateAudioConfig, progress: Progress) -> EvalAudioResult:
    """Measure audio tokenizers on the sounds of any inputs.

    Raises:
        ConfigError, UsageError: options that cannot work, a package that is missing, or inputs without a usable sound.
        DataError: a tokenizer is missing or damaged.
    """
    packages = audio_packages() | speech_packages()
    meters: dict[int, list[_Meter]] = {}
    loaded = [load_audio_tokenizer(folder, config.device) for folder in config.tokenizers]
    for number, (folder, tokenizer) in enumerate(zip(config.tokenizers, loaded, strict=True)):
        for books in config.books or (tokenizer.codebooks,):
            if not 1 <= books <= tokenizer.codebooks:
                raise UsageError(f"--books {books}: {folder} has {tokenizer.codebooks} codebooks")
            meters.setdefault(number, []).append(_Meter(str(folder), tokenizer, books))
    rejects: list[_Reject] = []
    digest = hashlib.sha256()
    measured = 0
    with progress.task("eval", total=config.limit, unit="sounds") as task:
        for locator, media in islice(_sounds(config.inputs, progress), config.limit):
            task.advance()
            failure = _measure(locator, media, [(loaded[n], own) for n, own in meters.items()], config, shown=measured)
            if failure is not None:
                rejects.append(_Reject(locator, failure.outcome.value, failure.reason, failure.message))
                continue
            digest.update(media.hash.encode("ascii"))
            measured += 1
    if not measured:
        raise UsageError(f"no sound to measure in {', '.join(config.inputs)}: {len(rejects)} could not be used")
    flat = [meter for own in meters.values() for meter in own]
    reasons = dict(sorted(Counter(reject.reason for reject in rejects).items(), key=lambda item: (-item[1], item[0])))
    scores = [meter.result() for meter in flat]
    missing = {
        name: "no clip holds enough speech" if package in packages else f"pip install {how}"
        for name, package, how in MEASURED_WITH
        if not flat[0].values[name]
    }
    result = EvalAudioResult(str(config.out), measured, reasons, digest.hexdigest(), packages, scores, missing)
    _write(config, result, flat, rejects)
    progress.log(f"wrote {config.out / 'eval.json'} and {config.out / 'eval.html'}")
    return result


def _measure(
    locator: str,
    media: Audio,
    tokenizers: Sequence[tuple[AudioTokenizer, list[_Meter]]],
    config: EvaluateAudioConfig,
    *,
    shown: int,
) -> Failure | None:
    """Take a sound through every tokenizer; why it cannot be, where it cannot."""
    if media.data is None:
        return media.failure
    try:
        segment = Segment(media.start, media.seconds)
        waves = [
            load_audio(media.data, t.sample_rate, t.channels, segment=segment, limits=config.limits) for t, _ in tokenizers
        ]
    except ItemError as error:
        return Failure(Outcome.REJECTED, error.reason, error.message)
    for (tokenizer, own), samples in zip(tokenizers, waves, strict=True):
        (code,) = tokenizer.encode([samples])
        for meter in own:
            output = tokenizer.decode(code.first_books(meter.books))
            meter.add(locator, samples, code.codes, output)
            if shown < config.examples:
                meter.show(locator, samples, output)
    return None


def _sounds(inputs: Sequence[str], progress: Progress) -> Iterator[tuple[str, Audio]]:
    """Locator and sound, in order: of sound files and folders of nothing else, then of corpora."""
    rest = []
    for typed in inputs:
        found = sound_files(Path(typed))
        if found:
            for path in found:
                yield (
                    path.name if path == Path(typed) else path.relative_to(typed).as_posix(),
                    Audio(path.read_bytes(), path.name),
                )
        else:
            rest.append(typed)
    if not rest:
        return
    resolved = resolve_inputs(rest)
    announce_ignored(resolved, progress)
    for source in resolved.sources:
        for unit in source.units(UNIT_BYTES):
            for document in source.read(unit):
                if isinstance(document, Document) and document.failure is None:
                    sounds = [media for media in document.media if isinstance(media, Audio)]
                    yield from ((f"{source.name}/{document.locator}", media) for media in sounds)


def sound_files(path: Path) -> list[Path]:
    """A sound file, or the sound files below a folder in which nothing is a corpus; none for anything else."""
    if path.is_file():
        return [path] if is_sound_name(path.name) else []
    if not path.is_dir():
        return []
    try:
        resolve_inputs([str(path)])
    except ConfigError:
        return sorted(file for file in path.rglob("*") if is_sound_name(file.name) and file.is_file())
    return []


def _write(config: EvaluateAudioConfig, result: EvalAudioResult, meters: Sequence[_Meter], rejects: Sequence[_Reject]) -> None:
    figures = {key: value for key, value in asdict(result).items() if key != "out"}
    described = {
        "format": "tokkit-audio-evaluation",
        "version": 1,
        "protocol": PROTOCOL,
        "options": config.model_dump(mode="json", exclude={"out", "limits"}),
        **figures,
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["fixed"] = lambda x, digits: "–" if x is None else f"{x:,.{digits}f}"
    template = environment.from_string((files(__package__) / "templates" / "eval_audio.html.j2").read_text("utf-8"))
    page = template.render(result=described, sections=list(zip(result.tokenizers, meters, strict=True)))
    config.out.mkdir(parents=True, exist_ok=True)
    write_atomic(config.out / "rejects.jsonl", "".join(json.dumps(asdict(reject)) + "\n" for reject in rejects))
    write_atomic(config.out / "eval.html", page.encode("utf-8", "backslashreplace"))
    write_atomic(config.out / "eval.json", pretty_json(described))
