"""Sounds for training that are more than memory holds: read, decoded and cropped while the training goes on.

A stream of blocks (:mod:`tokkit.training.blocks`) of decoded sounds. A sound is dealt out once for every crop that it is long,
at most twenty times, so that an epoch hears all of what is short and much of what is long; where a crop begins is drawn anew
each time. An hour of one recording is the most that is held beyond the block's bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from tokkit.documents import Audio, Media
from tokkit.media.audio import AudioLimits
from tokkit.training.audio.clips import DEFAULT_LIMITS, MOST_CROPS, Samples, Sound, cropped, decoded
from tokkit.training.blocks import BLOCK_BYTES, BlockStream, Slot, held_out_among
from tokkit.training.items import Reject, Units, in_drawn_order, is_held_out
from tokkit.training.prefetching import in_order

# Of the random streams of one seed, beside those of the blocks: crops, and batches besides those of the steps.
_CROP, _SAMPLE = 4, 5


class SoundStream(BlockStream[Sound | Reject, Samples]):
    """Batches float32 ``[n, channels, length]`` out of inputs of any size; see the module's docstring.

    Args:
        units: read again in each epoch.
        sample_rate, channels: that sounds are decoded at.
        length: of a crop, in samples.
        batch_size: crops of a step, over all processes.
        seed: of orders and crops.
        val_fraction: share of sounds that is held out and left out here.
        own: the parts of a batch (of ``parts``) that this process asks for, in order.
        threads: that decode.
        rejected: told of each sound that cannot be used.
        block_bytes: decoded samples held at once; there may be two blocks more for a moment.
        limits: bounds on a sound.
    """

    def __init__(
        self,
        units: Units[Sound | Reject],
        sample_rate: int,
        channels: int,
        length: int,
        batch_size: int,
        seed: int,
        *,
        val_fraction: float = 0.0,
        own: range = range(1),
        parts: int = 1,
        threads: int = 1,
        rejected: Callable[[Reject], None] = lambda reject: None,
        block_bytes: int = BLOCK_BYTES,
        limits: AudioLimits = DEFAULT_LIMITS,
    ) -> None:
        self.sample_rate, self.channels, self.length = sample_rate, channels, length
        self.val_fraction, self.rejected, self.limits = val_fraction, rejected, limits
        self._threads = threads
        super().__init__(units, seed, batch_size, own=own, parts=parts, block_bytes=block_bytes, kind="sound")

    def entries(self, items: Iterator[Sound | Reject], first: bool) -> Iterator[tuple[list[Samples], int]]:
        for found in in_order(items, self._usable, self._threads):
            if isinstance(found, Reject) and first:
                self.rejected(found)
            if found is None or isinstance(found, Reject):
                yield [], 0
            else:
                crops = min(MOST_CROPS, max(1, found.shape[1] // self.length))
                yield [found] * crops, found.nbytes

    def made(self, slot: Slot[Samples]) -> Samples:
        return cropped(slot.entry, self.length, self._generator(_CROP, slot.number))

    def sample(self, number: int) -> Samples:
        """A batch besides those of the steps, out of the newest batch's block."""
        sounds = self.block.entries
        rng = self._generator(_SAMPLE, number)
        chosen = rng.integers(len(sounds), size=self.batch_size)
        return np.stack([cropped(sounds[which], self.length, rng) for which in chosen.tolist()])

    def some(self) -> list[Samples]:
        """The sounds of the block that :meth:`sample` takes from, each once."""
        return list({id(sound): sound for sound in self.block.entries}.values())

    def _usable(self, sound: Sound | Reject) -> Samples | Reject | None:
        """What is trained on; None for what is held out."""
        if isinstance(sound, Reject):
            return sound
        if sound.media.data is not None and is_held_out(sound.media, self.val_fraction):
            return None
        return decoded(sound, self.sample_rate, self.channels, self.limits)


def held_out_sounds(
    units: Units[Sound | Reject],
    seed: int,
    sample_rate: int,
    channels: int,
    val_fraction: float,
    count: int,
    rejected: Callable[[Reject], None] = lambda reject: None,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> tuple[list[Samples], str]:
    """Held-out sounds, and a digest of them: :func:`tokkit.training.blocks.held_out_among`."""

    def made(locator: str, media: Media) -> Samples | None:
        assert isinstance(media, Audio)
        found = decoded(Sound(locator, media), sample_rate, channels, limits)
        if isinstance(found, Reject):
            rejected(found)
            return None
        return found

    places = (None if isinstance(s, Reject) else (s.locator, s.media) for s in in_drawn_order(units, seed))
    return held_out_among(places, val_fraction, count, made)
