"""Sounds to codes within a unit.

On a CPU each sound is decoded in chunks and encoded as they come, so a sound of an hour needs no more memory than its encoded
file and what the tokenizer keeps of a stream. With ``audio_batch_size`` above 1, as on a GPU, sounds of up to some seconds are
decoded whole and wait for others that are padded to the same length (:class:`~tokkit.tokenizers.audio.base.Buckets`), across
the documents of their unit; longer ones are streamed all the same.

What a sound becomes depends on its own bytes, the tokenizer and the options, so not on its neighbours: every batch of a length
has one shape, and one that is not full is filled up with silence.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tokkit.audio_layouts import first_books
from tokkit.documents import Audio
from tokkit.errors import TransientError
from tokkit.interleave import AudioCodes
from tokkit.media.audio import AudioLimits, Segment, stream_audio
from tokkit.media.waveforms import AudioPreprocessing, Samples
from tokkit.pipelines.assembly import Slot
from tokkit.pipelines.batching import BatchEncoder, out_of_memory

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.tokenizers.audio.base import AudioCode, AudioTokenizer, Buckets


class SoundReader:
    """Decodes sounds for a tokenizer.

    Args:
        sample_rate, channels: the tokenizer's.
    """

    def __init__(self, sample_rate: int, channels: int, preprocessing: AudioPreprocessing, limits: AudioLimits) -> None:
        self.sample_rate, self.channels = sample_rate, channels
        self.preprocessing, self.limits = preprocessing, limits

    def chunks(self, media: Audio) -> Iterator[Samples]:
        """The sound's chunks ``[channels, n]``; raises as :func:`tokkit.media.audio.stream_audio`."""
        assert media.data is not None
        segment = Segment(media.start, media.seconds)
        return stream_audio(
            media.data,
            self.sample_rate,
            self.channels,
            segment=segment,
            preprocessing=self.preprocessing,
            limits=self.limits,
        )

    def check(self, media: Audio, alive: Callable[[], None]) -> None:
        """Decode a sound and keep nothing of it; ``alive`` is called after each chunk.

        Raises:
            ItemError: it cannot be used.
        """
        for _ in self.chunks(media):
            alive()


GPU_BATCH = 8  # clips of a batch where nothing else is asked for


def sound_batch(config: ShardConfig, device: str) -> int:
    """Clips of a batch: as asked for, else one on a CPU, which more would not make faster."""
    return config.audio_batch_size or (1 if device.startswith("cpu") else GPU_BATCH)


class SoundEncoder:
    """A tokenizer, and what it is to be given and asked for.

    Args:
        tokenizer: or what loads it, which is then called for the first sound that is encoded alone.
        reader: decodes for it.
        buckets: its own.
        books: codebooks that are kept, the coarsest first.
    """

    def __init__(
        self, tokenizer: AudioTokenizer | Callable[[], AudioTokenizer], reader: SoundReader, buckets: Buckets, books: int
    ) -> None:
        self._tokenizer, self.reader, self.buckets, self.books = tokenizer, reader, buckets, books

    @classmethod
    def of(cls, tokenizer: AudioTokenizer, preprocessing: AudioPreprocessing, limits: AudioLimits, books: int) -> SoundEncoder:
        """For a tokenizer that is there."""
        reader = SoundReader(tokenizer.sample_rate, tokenizer.channels, preprocessing, limits)
        return cls(tokenizer, reader, tokenizer.buckets, books)

    @cached_property
    def tokenizer(self) -> AudioTokenizer:
        """The tokenizer."""
        return self._tokenizer() if callable(self._tokenizer) else self._tokenizer

    def heard(self, media: Audio, spend: Callable[[str, float], None], alive: Callable[[], None]) -> Samples | AudioCodes:
        """A sound whole, where it is one for a batch, else its codes; otherwise as :meth:`encode`."""
        chunks, held, samples, begin = self.reader.chunks(media), [], 0, time.perf_counter()
        try:
            for chunk in chunks:
                alive()
                held.append(chunk)
                samples += chunk.shape[1]
                if samples > self.buckets.longest:
                    break
        finally:
            spend("decode", time.perf_counter() - begin)
        if self.buckets.of(samples) is None:
            return self._encoded(media, chain(held, chunks), spend, alive)
        return np.concatenate(held, axis=1)

    def codes(self, media: Audio, code: AudioCode) -> AudioCodes:
        """What the tokenizer gave for a sound, as a part of its document."""
        scales = () if code.scales is None else tuple(code.scales.tolist())
        codes = first_books(code.codes, self.books)
        return AudioCodes(codes, self.reader.sample_rate, code.samples, media.hash, scales, media.loss)

    def encode(self, media: Audio, spend: Callable[[str, float], None], alive: Callable[[], None]) -> AudioCodes:
        """A sound as a part of its document.

        Args:
            spend: told the seconds of decoding and of encoding, by the name of the stage.
            alive: called with each chunk: an hour of sound takes longer than a worker may be silent.

        Raises:
            ItemError: it cannot be used.
            TransientError: it cannot be encoded just now.
        """
        return self._encoded(media, self.reader.chunks(media), spend, alive)

    def _encoded(
        self, media: Audio, chunks: Iterator[Samples], spend: Callable[[str, float], None], alive: Callable[[], None]
    ) -> AudioCodes:
        begin, decoding = time.perf_counter(), 0.0

        def timed() -> Iterator[Samples]:
            nonlocal decoding
            while True:
                alive()
                asked = time.perf_counter()
                chunk = next(chunks, None)
                decoding += time.perf_counter() - asked
                if chunk is None:
                    return
                yield chunk

        try:
            code = self.tokenizer.encode_stream(timed())
        except RuntimeError as error:
            if out_of_memory(error):
                raise TransientError(f"the device has no memory for a sound: {error}") from error
            raise
        finally:
            spend("decode", decoding)
            spend("encode", time.perf_counter() - begin - decoding)
        return self.codes(media, code)


class SoundBatches:
    """A tokenizer that encodes batches of clips of one length (:class:`tokkit.pipelines.encoder.Serves`)."""

    def __init__(self, tokenizer: AudioTokenizer) -> None:
        self.tokenizer = tokenizer

    def encode_padded(self, clips: Sequence[Samples], batch_size: int) -> list[AudioCode]:
        """The codes of at most ``batch_size`` clips, in a batch of exactly so many."""
        return self.tokenizer.encode(clips, batch_size=batch_size)


class SoundBatcher:
    """Fills batches of clips of one unit, one for each length, and hands the codes back.

    Args:
        encoder: of clips, to :class:`~tokkit.tokenizers.audio.base.AudioCode`.
        sounds: knows which clips go together, and makes parts of documents of codes.
    """

    def __init__(self, encoder: BatchEncoder, batch_size: int, sounds: SoundEncoder) -> None:
        self._encoder: Any = encoder
        self._batch_size, self._sounds = batch_size, sounds
        self._waiting: dict[int, list[tuple[int, Slot, Samples]]] = {}
        self._under_way: deque[list[Slot]] = deque()

    def add(self, number: int, slot: Slot, clip: Samples) -> None:
        """Queue a clip of the unit's document ``number``."""
        length = self._sounds.buckets.of(clip.shape[1])
        assert length is not None
        self._waiting.setdefault(length, []).append((number, slot, clip))

    def full(self) -> bool:
        return any(len(waiting) >= self._batch_size for waiting in self._waiting.values())

    @property
    def oldest(self) -> int | None:
        """The document of the first clip that is in no batch yet."""
        return min((waiting[0][0] for waiting in self._waiting.values()), default=None)

    def run(self) -> int:
        """Submit a full batch, or, where there is none, that with the oldest clip; returns how many clips got codes."""
        done = 0
        while len(self._under_way) >= self._encoder.depth:
            done += self.receive()
        if self._waiting:
            length = min(self._waiting, key=lambda n: (len(self._waiting[n]) < self._batch_size, self._waiting[n][0][0], n))
            waiting = self._waiting.pop(length)
            batch, rest = waiting[: self._batch_size], waiting[self._batch_size :]
            if rest:
                self._waiting[length] = rest
            self._encoder.submit([clip for _, _, clip in batch])
            self._under_way.append([slot for _, slot, _ in batch])
        while self._under_way and self._encoder.arrived():
            done += self.receive()
        return done

    def receive(self) -> int:
        """Wait for the oldest batch under way; returns how many clips got codes, 0 where none is under way."""
        if not self._under_way:
            return 0
        codes: list[AudioCode] = self._encoder.collect()
        slots = self._under_way.popleft()
        for slot, code in zip(slots, codes, strict=True):
            slot.sound = self._sounds.codes(cast(Audio, slot.media), code)
        return len(slots)

    def close(self) -> None:
        """Give up what waits and what is under way."""
        self._waiting.clear()
        self._under_way.clear()
        self._encoder.close()
