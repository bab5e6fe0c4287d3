"""Sounds to codes within a unit: decoded in chunks and encoded as they come, one sound at a time, in bounded memory.

What a sound becomes depends on its own bytes, the tokenizer and the options, so not on its neighbours; a sound of an hour needs
no more memory than its encoded file and what the tokenizer keeps of a stream.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tokkit.audio_layouts import first_books
from tokkit.documents import Audio
from tokkit.errors import TransientError
from tokkit.interleave import AudioCodes
from tokkit.media.audio import AudioLimits, Segment, stream_audio
from tokkit.media.waveforms import AudioPreprocessing, Samples
from tokkit.pipelines.batching import out_of_memory

if TYPE_CHECKING:
    from tokkit.tokenizers.audio.base import AudioTokenizer


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


class SoundEncoder:
    """A tokenizer, and what it is to be given and asked for.

    Args:
        books: codebooks that are kept, the coarsest first.
    """

    def __init__(self, tokenizer: AudioTokenizer, preprocessing: AudioPreprocessing, limits: AudioLimits, books: int) -> None:
        self.tokenizer, self.books = tokenizer, books
        self.reader = SoundReader(tokenizer.sample_rate, tokenizer.channels, preprocessing, limits)

    def encode(self, media: Audio, spend: Callable[[str, float], None], alive: Callable[[], None]) -> AudioCodes:
        """A sound as a part of its document.

        Args:
            spend: told the seconds of decoding and of encoding, by the name of the stage.
            alive: called with each chunk: an hour of sound takes longer than a worker may be silent.

        Raises:
            ItemError: it cannot be used.
            TransientError: it cannot be encoded just now.
        """
        begin, decoding = time.perf_counter(), 0.0

        def timed() -> Iterator[Samples]:
            nonlocal decoding
            chunks = self.reader.chunks(media)
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
        scales = () if code.scales is None else tuple(code.scales.tolist())
        codes = first_books(code.codes, self.books)
        return AudioCodes(codes, self.tokenizer.sample_rate, code.samples, media.hash, scales, media.loss)
