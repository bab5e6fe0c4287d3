"""Where a training of audio tokenizers has its sounds from: all decoded and held, or read again while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tokkit.documents import Audio, Outcome
from tokkit.errors import UsageError
from tokkit.pipelines.evaluate_audio import sound_files
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.progress import Progress, duration
from tokkit.pipelines.train_codec_config import TrainCodecConfig
from tokkit.pipelines.training_data import REJECTS_FILE, StreamedRejects, counted, parts_of, workers_of, write_rejects
from tokkit.sources.base import Unit
from tokkit.sources.resolve import resolve_inputs
from tokkit.tokenizers.audio.config import AudioTokenizerConfig
from tokkit.training.audio.clips import Crops, Samples, Sound, read_clips, sound_units
from tokkit.training.audio.sound_stream import SoundStream, held_out_sounds
from tokkit.training.audio.task import Crops as AnyCrops
from tokkit.training.engine import World
from tokkit.training.items import Reject, Units

# Validation is done on the beginnings of held-out sounds, at most so many: more say little and cost time.
MAX_VALIDATION = 16
VALIDATION_SECONDS = 4.0


@dataclass(frozen=True)
class TrainingSounds:
    """What a run trains and is validated on.

    Attributes:
        crops: of training.
        some: sounds of the training: all that are held, or, of a stream, its first block.
        held_out: the beginnings of held-out sounds, at most 16.
        held_out_count: how many are kept out of the training and known.
        digest: says whether two runs train on the same.
        counted: sounds trained on (of a stream: crops so far), and rejects by reason; asked for at the end.
    """

    crops: AnyCrops
    some: Sequence[Samples]
    held_out: Sequence[Samples]
    held_out_count: int
    digest: str
    counted: Callable[[], tuple[int, Mapping[str, int]]]


def units_of_sounds(inputs: Sequence[str], progress: Progress) -> Units[Sound | Reject]:
    """What to read, in order: sound files and folders of nothing else, then corpora."""
    units: list[tuple[Unit, Callable[[], Iterator[Sound | Reject]]]] = []
    rest = []
    for typed in inputs:
        found = sound_files(Path(typed))
        for path in found:
            name = path.name if path == Path(typed) else path.relative_to(typed).as_posix()
            size = path.stat().st_size
            units.append((Unit("files", name, str(path), 0, size, size), partial(_file, path, name)))
        if not found:
            rest.append(typed)
    if rest:
        resolved = resolve_inputs(rest)
        announce_ignored(resolved, progress)
        units += sound_units(resolved.sources)
    return units


def sounds_of(inputs: Sequence[str], progress: Progress) -> Iterator[Sound | Reject]:
    """The sounds of inputs in order; what cannot be read is a reject."""
    for _, read in units_of_sounds(inputs, progress):
        yield from read()


def _file(path: Path, name: str) -> Iterator[Sound | Reject]:
    try:
        yield Sound(name, Audio(path.read_bytes(), path.name))
    except OSError as error:
        yield Reject(name, Outcome.REJECTED, "unreadable", error.strerror or str(error))


def cached(
    config: TrainCodecConfig,
    tokenizer: AudioTokenizerConfig,
    length: int,
    sounds: Iterable[Sound | Reject],
    world: World,
    progress: Progress,
) -> TrainingSounds:
    """Decode sounds until ``cache_mb`` are held; crops have ``length`` samples.

    Raises:
        UsageError: there is none to train on.
    """
    with progress.task("read sounds", unit="sounds") as task:
        told, bound = counted(sounds, task), config.cache_mb * 2**20
        found = read_clips(told, tokenizer.sample_rate, tokenizer.channels, config.val_fraction, bound)
    seconds = sum(clip.shape[1] for clip in found.train) / tokenizer.sample_rate
    progress.log(
        f"{found.seen} sounds read: {len(found.train)} to train on ({duration(seconds)}), {len(found.held_out)} held out"
    )
    write_rejects(config.out, found.rejects, found.reasons, world, progress)
    if found.full:
        progress.log(
            f"memory for sounds is full (cache_mb {config.cache_mb}); the rest of the input is not used "
            "(--stream uses all of it)"
        )
    if not found.train:
        raise UsageError(f"no sound to train on in {', '.join(config.inputs)} ({found.seen} read; see {REJECTS_FILE})")
    crops = Crops(found.train, length, config.resolved_recipe.batch_size, config.seed)
    held_out = _beginnings(found.held_out, tokenizer)
    so_far = (len(found.train), found.reasons)
    return TrainingSounds(crops, found.train, held_out, len(found.held_out), found.digest, lambda: so_far)


def streamed(
    config: TrainCodecConfig,
    tokenizer: AudioTokenizerConfig,
    length: int,
    units: Units[Sound | Reject],
    world: World,
    device: str,
    progress: Progress,
) -> TrainingSounds:
    """Read while training; only held-out sounds and the first block are decoded beforehand.

    Raises:
        UsageError: there is nothing to train on.
    """
    if not units:
        raise UsageError(f"nothing to read in {', '.join(config.inputs)}")
    rejects = StreamedRejects(config.out, config.resume)
    rate, channels = tokenizer.sample_rate, tokenizer.channels
    progress.log("looking for held-out sounds")
    held_out, digest = held_out_sounds(units, config.seed, rate, channels, config.val_fraction, MAX_VALIDATION, rejects.add)
    own, parts = parts_of(config, world)
    stream = SoundStream(
        units,
        rate,
        channels,
        length,
        config.resolved_recipe.batch_size,
        config.seed,
        val_fraction=config.val_fraction,
        own=own,
        parts=parts,
        threads=workers_of(config, device),
        rejected=rejects.add,
        block_bytes=config.block_mb * 2**20,
    )
    progress.log(f"{len(units)} units to stream, {len(held_out)} sounds held out to validate on")

    def so_far() -> tuple[int, Mapping[str, int]]:
        return stream.dealt, rejects.settle() if world.main else {}

    whose = f"{stream.digest}-{digest}"
    return TrainingSounds(stream, stream.some(), _beginnings(held_out, tokenizer), len(held_out), whose, so_far)


def _beginnings(sounds: Sequence[Samples], tokenizer: AudioTokenizerConfig) -> list[Samples]:
    longest = round(VALIDATION_SECONDS * tokenizer.sample_rate)
    return [clip[:, :longest] for clip in sounds[:MAX_VALIDATION]]
