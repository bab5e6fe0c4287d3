"""What a sequence is made of: parts with their codes, the layout they are written in, and the spans they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tokkit.audio_layouts import AudioLayout
from tokkit.vocabulary import Ids

ImageLayout = Literal["plain", "rows", "grid", "grid_rows", "emu3", "bare"]
PairOrder = Literal["image-first", "text-first", "random"]
WITH_SIZES = ("grid", "grid_rows")


@dataclass(frozen=True, slots=True)
class Layout:
    """How media codes are laid out between their markers; stored with the shards, because decoding needs it.

    Attributes:
        image: see :mod:`tokkit.interleave`.
        image_grid: (height, width) of every picture, where all are alike and not square; only for ``plain``.
        gaps: the place of a missing picture may be kept, by its markers alone.
        audio: see :mod:`tokkit.audio_layouts`.
        audio_delays: of ``delay``, the steps by which each codebook is late; empty for 0, 1, 2...
    """

    image: ImageLayout = "plain"
    image_grid: tuple[int, int] | None = None
    gaps: bool = False
    audio: AudioLayout = "flat"
    audio_delays: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class TextCodes:
    """Text as the text tokenizer's ids, int32 [n], and whether a trainer should learn to predict it."""

    codes: Ids
    loss: bool = True


@dataclass(frozen=True, eq=False)
class ImageCodes:
    """A picture as codes, int32 [K, h, w] (K codebooks; [h, w] is taken as one), and the hash of what it was made from."""

    codes: Ids
    item_hash: str = ""
    loss: bool = True

    def __post_init__(self) -> None:
        if self.codes.ndim == 2:
            object.__setattr__(self, "codes", self.codes[None])


@dataclass(frozen=True, eq=False)
class AudioCodes:
    """A sound as codes, int32 [K, T] (K codebooks, T frames).

    Attributes:
        sample_rate, samples: its length, before it was encoded.
        item_hash: of what it was made from.
        scales: what the tokenizer divided each of its segments by, where it does so.
    """

    codes: Ids
    sample_rate: int = 0
    samples: int = 0
    item_hash: str = ""
    scales: tuple[float, ...] = ()
    loss: bool = True


@dataclass(frozen=True, eq=False)
class AudioPiece:
    """A part of a sound, where a packing plan cut it between two of its frames.

    Attributes:
        codes: int32 [K, S]: S frames, or with ``delay`` the S steps as they stand, -1 where a pad stands.
        begins, ends: whether it has the sound's first frame and begin marker, its last frame and end marker.
    """

    codes: Ids
    begins: bool
    ends: bool


@dataclass(frozen=True, slots=True)
class ImageGap:
    """The place of a picture that is missing. A trainer should not learn to predict it."""


Part = TextCodes | ImageCodes | AudioCodes | ImageGap


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a document's tokens that belongs together.

    Attributes:
        modality: ``text``, ``image``, ``audio`` or ``video``.
        start, length: tokens, from the document's first; media spans include their markers.
        codebooks: number of codebooks (0 for text, and for a missing picture of which only the markers stand there).
        grid_height, grid_width: of a picture that is there, else 0.
        samples, sample_rate: of a sound, else 0.
        scales: of a sound whose tokenizer divides its segments by something, one each; else empty.
        item_hash: SHA-256 (first 32 digits) of the encoded file it was made from; empty for text and for a missing picture.
        loss: whether a trainer should learn to predict it.
    """

    modality: str
    start: int
    length: int
    codebooks: int = 0
    grid_height: int = 0
    grid_width: int = 0
    samples: int = 0
    sample_rate: int = 0
    item_hash: str = ""
    loss: bool = True
    scales: tuple[float, ...] = ()
