"""What every audio tokenizer is to the rest of tokkit: waveforms to codes and back, at one sample rate and channel count.

A waveform is float32 ``[channels, samples]`` at the tokenizer's own rate. Its codes are those of all codebooks, coarsest first:
a lower bandwidth is ``codes[:n]``, so the most are made once. Codes never hold padding: a clip of ``samples`` samples has
:meth:`AudioTokenizer.frames` of them, whatever it was encoded with.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokkit.tokenizers.audio.config import AudioTokenizerConfig

Waveform = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class AudioCode:
    """The codes of one clip.

    Attributes:
        codes: int32 ``[codebooks, frames]``, the coarsest book first. Of a tokenizer that works in segments, those of the
            segments one after the other.
        scales: float32 ``[segments]``: the loudness that each segment was divided by; None where loudness is left alone.
        samples: of the clip at the tokenizer's rate; decoding gives as many.
    """

    codes: npt.NDArray[np.int32]
    scales: npt.NDArray[np.float32] | None
    samples: int

    def first_books(self, count: int) -> AudioCode:
        """The same clip at a lower bandwidth: the ``count`` coarsest books."""
        if not 1 <= count <= len(self.codes):
            raise ValueError(f"{count} of {len(self.codes)} codebooks")
        return AudioCode(self.codes[:count], self.scales, self.samples)


@dataclass(frozen=True, slots=True)
class Buckets:
    """Which clips may share a batch: those that are padded to one length. Picklable.

    Attributes:
        hop: samples per frame.
        shortest, longest: samples that a clip must and may have; others are encoded alone.
        segment: samples of the segments that a tokenizer works in, whose batches all clips share; None where it has none.
    """

    hop: int
    shortest: int
    longest: int
    segment: int | None = None

    def of(self, samples: int) -> int | None:
        """The length that a clip of so many samples is padded to: at most an eighth more, a whole number of frames.

        None where it is encoded alone.
        """
        if not self.shortest <= samples <= self.longest:
            return None
        if self.segment is not None:
            return self.segment
        frames = -(-samples // self.hop)
        step = 1 << max(0, frames.bit_length() - 4)
        return -(-frames // step) * step * self.hop


class AudioTokenizer(ABC):
    """An audio tokenizer, ready for use.

    Attributes:
        config: all that it is apart from its weights; ``licence`` and ``name`` are in there too.
    """

    config: AudioTokenizerConfig

    @property
    def sample_rate(self) -> int:
        """Samples per second of every waveform."""
        return self.config.sample_rate

    @property
    def channels(self) -> int:
        """Channels of every waveform."""
        return self.config.channels

    @property
    def codebooks(self) -> int:
        """Codes in a frame."""
        return self.config.quantizer.codebooks

    @property
    def codebook_size(self) -> int:
        """Number of codes of a codebook; each has as many."""
        return self.config.quantizer.codebook_size

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.config.hop

    @property
    def frame_rate(self) -> float:
        """Frames per second of one book; segments that overlap (48 kHz) add to it (:meth:`frames` counts exactly)."""
        return self.sample_rate / self.hop

    @property
    def licence(self) -> str | None:
        """Of the weights, where one is known."""
        return self.config.licence

    def frames(self, samples: int) -> int:
        """Frames that a clip of so many samples is encoded to."""
        return self.config.frames(samples)

    @property
    @abstractmethod
    def buckets(self) -> Buckets:
        """Which clips share a batch in :meth:`encode`, where ``batch_size`` is more than 1."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the configuration and all weights."""

    @abstractmethod
    def encode(self, waveforms: Sequence[Waveform], *, batch_size: int | None = None, exact: bool = False) -> list[AudioCode]:
        """The codes of each waveform, in order; those of one do not depend on the others.

        Args:
            waveforms: float32 ``[channels, samples]`` each, finite, of any lengths from one sample up.
            batch_size: clips in one call of the network; if not given, 1 on a CPU (where more is no faster), 8 elsewhere.
            exact: each clip whole and alone, in one call of the network: bit for bit what the network gives for it. Memory
                then grows with the clip. Without it the codes are the same up to near-ties in float32.

        Raises:
            ValueError: no such waveform.
        """

    @abstractmethod
    def encode_stream(self, chunks: Iterable[Waveform]) -> AudioCode:
        """The codes of one waveform that comes in pieces of any lengths: those of the whole, in bounded memory.

        Raises:
            ValueError: no such waveform.
        """

    @abstractmethod
    def decode(self, code: AudioCode) -> Waveform:
        """float32 ``[channels, samples]`` from the codes of all or of the first books.

        Raises:
            tokkit.errors.VocabularyError: a code out of range.
            ValueError: codes that are no clip's of this tokenizer.
        """

    @abstractmethod
    def decode_stream(self, code: AudioCode) -> Iterator[Waveform]:
        """:meth:`decode` in pieces, in bounded memory."""
