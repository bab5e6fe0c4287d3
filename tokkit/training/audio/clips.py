"""The sounds of a training run, decoded once and held in memory, and the crops of them that each step trains on.

Sounds are decoded at the codec's rate and channels. A share of them, chosen by content hash, is held out. Sounds with the same
bytes are taken once. What a step trains on depends on the seed and the step's number alone.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokkit.documents import Audio, Outcome
from tokkit.errors import ItemError
from tokkit.media.audio import AudioLimits, Segment, load_audio
from tokkit.sources.base import Source, Unit
from tokkit.training.items import Reject, Units, is_held_out, media_in_unit, units_of

Samples = NDArray[np.float32]

MOST_CROPS = 20  # that a sound counts as, however long it is
DEFAULT_LIMITS = AudioLimits(max_seconds=3600.0)


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound as found: its place and its bytes, or why there are none."""

    locator: str
    media: Audio


@dataclass
class ClipSet:
    """What was read.

    Attributes:
        train, held_out: float32 ``[channels, samples]`` each; those held out in the order of their hashes.
        rejects: sounds that could not be used.
        seen: sounds read, rejects and duplicates included.
        full: the memory bound was reached before the input's end.
        digest: SHA-256 (hex) over the hashes of all sounds kept, in order: says whether two runs train on the same.
    """

    train: list[Samples] = field(default_factory=list)
    held_out: list[Samples] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    seen: int = 0
    full: bool = False
    digest: str = ""

    @property
    def reasons(self) -> dict[str, int]:
        """Rejects by reason, the most frequent first."""
        return dict(Counter(reject.reason for reject in self.rejects).most_common())


def sound_units(sources: Iterable[Source]) -> Units[Sound | Reject]:
    """The units of all sources, each with what reads the sounds in it."""
    return [(unit, partial(_sounds_in, source, unit)) for source, unit in units_of(sources)]


def _sounds_in(source: Source, unit: Unit) -> Iterator[Sound | Reject]:
    for found in media_in_unit(source, unit, Audio):
        yield found if isinstance(found, Reject) else Sound(*found)


def read_clips(
    sounds: Iterable[Sound | Reject],
    sample_rate: int,
    channels: int,
    val_fraction: float,
    cache_bytes: int,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> ClipSet:
    """Decode and split sounds until the input or ``cache_bytes`` is used up.

    Args:
        sounds: in the order they are to be taken; a reject among them is passed on (a document that could not be read).
        sample_rate, channels: that they are decoded at.
        val_fraction: share held out; with more than one sound at least one is, unless this is 0.
        cache_bytes: of decoded samples, both parts together.

    Raises:
        UsageError: a package that decodes is not installed.
    """
    result = ClipSet()
    train: dict[str, Samples] = {}  # insertion order is reading order
    held_out: dict[str, Samples] = {}
    held = 0
    for sound in sounds:
        if isinstance(sound, Reject):
            result.rejects.append(sound)
            continue
        result.seen += 1
        clip = decoded(sound, sample_rate, channels, limits)
        if isinstance(clip, Reject):
            result.rejects.append(clip)
            continue
        digest = sound.media.hash
        if digest in train or digest in held_out:
            message = f"same bytes again: {digest}"
            result.rejects.append(Reject(sound.locator, Outcome.DUPLICATE, "duplicate-sound", message))
            continue
        held += clip.nbytes
        if held > cache_bytes and train:
            result.seen -= 1
            result.full = True
            break
        (held_out if is_held_out(sound.media, val_fraction) else train)[digest] = clip
    if val_fraction > 0 and not held_out and len(train) > 1:
        chosen = min(train)
        held_out[chosen] = train.pop(chosen)
    elif not train and len(held_out) > 1:
        chosen = min(held_out)
        train[chosen] = held_out.pop(chosen)
    result.train = list(train.values())
    result.held_out = [held_out[digest] for digest in sorted(held_out)]
    result.digest = hashlib.sha256("\n".join([*train, "", *sorted(held_out)]).encode()).hexdigest()
    return result


class Crops:
    """Random pieces of one length; a sound that is shorter is followed by silence.

    Long sounds come more often than short ones, as their length has it; but one of more than twenty crops counts as twenty, so
    that an hour of one recording does not crowd out a thousand words.

    Args:
        clips: float32 ``[channels, samples]`` each, at least one.
        length: of a crop, in samples.
        batch_size: crops of a step, over all processes.
        seed: of what is drawn.
    """

    def __init__(self, clips: Sequence[Samples], length: int, batch_size: int, seed: int) -> None:
        if not clips:
            raise ValueError("no sounds to crop")
        self.clips, self.length, self.batch_size, self.seed = clips, length, batch_size, seed
        self._ends = np.cumsum([min(clip.shape[1], MOST_CROPS * length) for clip in clips])

    def part(self, step: int, part: int, parts: int) -> Samples:
        """float32 ``[n, channels, length]``: one of ``parts`` equal parts of the batch of a step (from 0)."""
        size = self.batch_size // parts
        return self._drawn(0, step, range(part * size, (part + 1) * size))

    def sample(self, number: int) -> Samples:
        """A batch besides those of the steps: for what has to be measured before it can be trained."""
        return self._drawn(1, number, range(self.batch_size))

    def state(self) -> dict[str, Any]:
        """Nothing: which crops a step sees is said by its number."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to go on from."""

    def close(self) -> None:
        """Nothing is under way."""

    def _drawn(self, purpose: int, number: int, slots: range) -> Samples:
        found = []
        for slot in slots:
            rng = np.random.default_rng([self.seed, purpose, number, slot])
            which = int(np.searchsorted(self._ends, rng.integers(self._ends[-1]), side="right"))
            found.append(cropped(self.clips[which], self.length, rng))
        return np.stack(found)


def cropped(clip: Samples, length: int, rng: np.random.Generator) -> Samples:
    """A piece of ``length`` samples that begins anywhere; a clip that is shorter is followed by silence."""
    start = int(rng.integers(max(0, clip.shape[1] - length) + 1))
    piece = clip[:, start : start + length]
    return np.pad(piece, ((0, 0), (0, length - piece.shape[1])))


def decoded(sound: Sound, sample_rate: int, channels: int, limits: AudioLimits = DEFAULT_LIMITS) -> Samples | Reject:
    """float32 ``[channels, samples]``, or why there are none."""
    media = sound.media
    if media.data is None:
        failure = media.failure
        assert failure is not None
        return Reject(sound.locator, failure.outcome, failure.reason, failure.message)
    try:
        return load_audio(media.data, sample_rate, channels, segment=Segment(media.start, media.seconds), limits=limits)
    except ItemError as error:
        return Reject(sound.locator, Outcome.REJECTED, error.reason, error.message)
