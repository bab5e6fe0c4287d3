"""Segments and codes -> one id sequence and its spans, and back.

A document becomes::

    begin_document  span  span ...  end_document

where a text span is the text's ids, and a media span runs from its begin marker to its end marker inclusive. The source's order
is kept; only for pairs (a picture with its caption) may the order be chosen. Image layouts:

* ``plain``: ``begin_image, h*w codes row by row, end_image``. Decoding takes the grid from the count, so it must be square or
  the one grid that the layout names (Chameleon: 1,024 codes between two markers, 1,026 tokens).
* ``rows``: as ``plain`` with ``row_end`` after every row.
* ``grid``: ``begin_image, height, width, codes, end_image`` with the two sizes out of the vocabulary's grid block.
* ``emu3``: ``begin_image, H*W as text, begin_codes, rows each with row_end, frame_end, end_image``, as Emu3 was trained. The
  size is written with the text tokenizer's own digits and asterisk, one id a character (``vocabulary.spelled``).

A picture that is missing may have its place kept (:attr:`Layout.gaps`): ``begin_image, end_image`` with nothing between them,
in any layout.

Sounds run from ``begin_audio`` to ``end_audio``, in one of the orders of :mod:`tokkit.audio_layouts`. Pictures of several
codebooks are position by position, all codebooks of one in turn.

:func:`decode` is exact: a sequence that :func:`encode` cannot have made raises :class:`~tokkit.errors.MalformedSequence`, which
names the token and what is wrong with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from tokkit import audio_layouts
from tokkit.audio_layouts import AudioLayout, MisplacedCodeError
from tokkit.documents import Document, Segment, Text
from tokkit.errors import MalformedSequence, VocabularyError
from tokkit.vocabulary import AUDIO_PAD, GRID, Ids, UnifiedVocabulary

ImageLayout = Literal["plain", "rows", "grid", "emu3"]
PairOrder = Literal["image-first", "text-first", "random"]


@dataclass(frozen=True, slots=True)
class Layout:
    """How media codes are laid out between their markers; stored with the shards, because decoding needs it.

    Attributes:
        image: see the module's docstring.
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


def order_segments(document: Document, pair_order: PairOrder, seed: int) -> tuple[Segment, ...]:
    """The document's segments in the order they are written: the source's own, except for pairs.

    For a pair ``random`` puts the media first in half of the documents, drawn from the document's content hash and ``seed``
    (Chameleon was trained on both orders, half and half).
    """
    if not document.pair:
        return document.segments
    media_first = pair_order == "image-first" or (pair_order == "random" and document.draw(seed, "pair-order") < 0.5)
    # sorted() is stable: several pictures of one sample keep their order.
    return tuple(sorted(document.segments, key=lambda s: isinstance(s, Text) == media_first))


def lacking(vocabulary: UnifiedVocabulary, layout: ImageLayout) -> list[str]:
    """What pictures need in a layout and the vocabulary does not have, for people; empty where nothing is lacking."""
    wanted = ["begin_image", "end_image"]
    wanted += {"rows": ["row_end"], "emu3": ["begin_codes", "row_end", "frame_end"]}.get(layout, [])
    found = [f"marker {name}" for name in wanted if name not in vocabulary.markers]
    if layout == "grid" and not vocabulary.codebooks(GRID):
        found.append("ids of grid sizes")
    if layout == "emu3" and any(character not in vocabulary.spelled for character in "0123456789*"):
        found.append("ids of digits and the asterisk")
    return found


def encode(parts: Iterable[Part], vocabulary: UnifiedVocabulary, layout: Layout) -> tuple[Ids, list[Span]]:
    """Write a document: ids int32 [n] with its markers, and its spans in order. Empty text makes no span.

    Raises:
        VocabularyError: a code outside of its codebook, codebooks or markers that the vocabulary lacks, or a grid that the
            layout could not decode.
    """
    pieces: list[Ids] = []
    spans: list[Span] = []
    position = 1
    for part in parts:
        if isinstance(part, TextCodes):
            ids, span = vocabulary.encode("text", part.codes), Span("text", position, len(part.codes), loss=part.loss)
        elif isinstance(part, ImageCodes):
            ids = _encode_image(part, vocabulary, layout)
            count, height, width = part.codes.shape
            span = Span("image", position, len(ids), count, height, width, item_hash=part.item_hash, loss=part.loss)
        elif isinstance(part, ImageGap):
            if not layout.gaps:
                raise VocabularyError("a missing picture in a layout that keeps no places of such")
            ids = np.array([vocabulary.marker("begin_image"), vocabulary.marker("end_image")], dtype=np.int32)
            span = Span("image", position, 2, loss=False)
        else:
            ids = _encode_audio(part, vocabulary, layout)
            span = Span(
                "audio",
                position,
                len(ids),
                part.codes.shape[0],
                samples=part.samples,
                sample_rate=part.sample_rate,
                item_hash=part.item_hash,
                loss=part.loss,
                scales=part.scales,
            )
        if len(ids):
            pieces.append(ids)
            spans.append(span)
            position += len(ids)
    document = np.empty(position + 1, dtype=np.int32)
    document[0], document[-1] = vocabulary.marker("begin_document"), vocabulary.marker("end_document")
    for ids, span in zip(pieces, spans, strict=True):
        document[span.start : span.start + span.length] = ids
    return document, spans


def decode(ids: npt.ArrayLike, vocabulary: UnifiedVocabulary, layout: Layout, *, whole: bool = True) -> list[Part]:
    """Read a document's ids back into its parts; adjacent texts come back as one.

    Args:
        ids: integers [n].
        whole: require the document markers at both ends; False also takes a piece of a document that a packing plan cut.

    Raises:
        MalformedSequence: with the position of the first token that cannot be right.
    """
    array = np.asarray(ids).astype(np.int64)
    reader = _Reader(array, vocabulary, layout)
    return reader.document(whole)


# ---- writing


def _one(token: int) -> Ids:
    return np.array([token], dtype=np.int32)


def _encode_image(part: ImageCodes, vocabulary: UnifiedVocabulary, layout: Layout) -> Ids:
    count, height, width = part.codes.shape
    books = vocabulary.codebooks("image")
    if count != len(books):
        raise VocabularyError(f"a picture of {count} codebooks; the vocabulary has {len(books)}")
    if height < 1 or width < 1:
        raise VocabularyError(f"a picture with an empty grid of {height} x {width}")
    body = np.stack([vocabulary.encode("image", part.codes[k], k) for k in range(count)], axis=-1)  # [h, w, K]
    head = [_one(vocabulary.marker("begin_image"))]
    tail = [_one(vocabulary.marker("end_image"))]
    if layout.image == "grid":
        head.append(vocabulary.encode(GRID, [height - 1, width - 1]))
    elif layout.image == "emu3":
        head += [spell(f"{height}*{width}", vocabulary), _one(vocabulary.marker("begin_codes"))]
        tail.insert(0, _one(vocabulary.marker("frame_end")))
    elif layout.image == "plain" and (height, width) != layout.image_grid and (layout.image_grid or height != width):
        allowed = "square" if layout.image_grid is None else "{} x {}".format(*layout.image_grid)
        raise VocabularyError(f"a grid of {height} x {width} in the plain layout, which can only be {allowed}")
    rows = body.reshape(height, width * count)
    if layout.image in ("rows", "emu3"):
        ends = np.full((height, 1), vocabulary.marker("row_end"), dtype=np.int32)
        rows = np.concatenate([rows, ends], axis=1)
    return np.concatenate([*head, rows.reshape(-1), *tail])


def spell(text: str, vocabulary: UnifiedVocabulary) -> Ids:
    """A picture's size in writing, one id a character, int32 [len(text)].

    Raises:
        VocabularyError: a character that the vocabulary has no id for.
    """
    try:
        return np.array([vocabulary.spelled[character] for character in text], dtype=np.int32)
    except KeyError as error:
        raise VocabularyError(f"this vocabulary ({vocabulary.origin}) cannot spell {error.args[0]!r}") from None


def _encode_audio(part: AudioCodes, vocabulary: UnifiedVocabulary, layout: Layout) -> Ids:
    count, frames = part.codes.shape
    books = vocabulary.codebooks("audio")
    if not 1 <= count <= len(books):
        raise VocabularyError(f"a sound of {count} codebooks; the vocabulary has {len(books)}")
    if frames < 1:
        raise VocabularyError("a sound without frames")
    if layout.audio_delays and count > len(layout.audio_delays):
        raise VocabularyError(f"a sound of {count} codebooks; the layout has delays of {len(layout.audio_delays)}")
    body = audio_layouts.write(part.codes, vocabulary, layout.audio, layout.audio_delays)
    return np.concatenate([_one(vocabulary.marker("begin_audio")), body, _one(vocabulary.marker("end_audio"))])


# ---- reading


class _Reader:
    """Walks a sequence once, left to right; ``self.at`` is the next token."""

    def __init__(self, ids: npt.NDArray[np.int64], vocabulary: UnifiedVocabulary, layout: Layout) -> None:
        self.ids, self.vocabulary, self.layout = ids, vocabulary, layout
        self.owner = vocabulary.owners(ids)
        self.at = 0
        self.text = vocabulary.block_index("text")
        outside = np.flatnonzero(self.owner == -3)
        if outside.size:
            raise MalformedSequence(int(outside[0]), f"id {ids[outside[0]]} is {vocabulary.describe(int(ids[outside[0]]))}")

    def fail(self, position: int, expected: str) -> MalformedSequence:
        found = (
            "the sequence ends" if position >= len(self.ids) else f"found {self.vocabulary.describe(int(self.ids[position]))}"
        )
        return MalformedSequence(min(position, len(self.ids)), f"expected {expected}, {found}")

    def is_marker(self, name: str) -> bool:
        return self.at < len(self.ids) and self.ids[self.at] == self.vocabulary.markers.get(name, -1)

    def run(self, wanted: Sequence[int]) -> int:
        """End of the run of tokens from ``self.at`` on whose owner is one of ``wanted``."""
        other = np.flatnonzero(~np.isin(self.owner[self.at :], wanted))
        return self.at + int(other[0]) if other.size else len(self.ids)

    def document(self, whole: bool) -> list[Part]:
        parts: list[Part] = []
        if self.is_marker("begin_document"):
            self.at = 1
        elif whole:
            raise self.fail(0, "marker begin_document")
        while self.at < len(self.ids) and not self.is_marker("end_document"):
            parts.append(self.part())
        if self.at < len(self.ids):  # end_document
            self.at += 1
            if self.at < len(self.ids):
                raise self.fail(self.at, "nothing after end_document")
        elif whole:
            raise self.fail(self.at, "marker end_document")
        return parts

    def part(self) -> Part:
        if self.owner[self.at] == self.text:
            end = self.run([self.text])
            codes, self.at = self.vocabulary.codes(self.ids[self.at : end]), end
            return TextCodes(codes)
        if self.is_marker("begin_image"):
            return self.image()
        if self.is_marker("begin_audio"):
            return self.audio()
        raise self.fail(self.at, "text, the begin of an image or sound, or end_document")

    def codes(self, modality: str, end: int, count: int) -> Ids:
        """The codes from ``self.at`` to ``end``, whose codebooks must come in turn: int32 [n / count, count]."""
        books = [self.vocabulary.block_index(modality, k) for k in range(count)]
        turn = np.array(books, dtype=np.int16)[np.arange(end - self.at) % count]
        wrong = np.flatnonzero(self.owner[self.at : end] != turn)
        if wrong.size:
            k = int(wrong[0]) % count
            raise self.fail(self.at + int(wrong[0]), f"{modality} codebook {k}")
        if (end - self.at) % count:
            raise self.fail(end, f"{modality} codebook {(end - self.at) % count}")
        return self.vocabulary.codes(self.ids[self.at : end]).reshape(-1, count)

    def image(self) -> ImageCodes | ImageGap:
        begin, self.at = self.at, self.at + 1
        if self.layout.gaps and self.is_marker("end_image"):
            self.at += 1
            return ImageGap()
        count = len(self.vocabulary.codebooks("image"))
        grid = self.grid_sizes() if self.layout.image == "grid" else self.layout.image_grid
        if self.layout.image == "rows":
            return self.image_rows(begin, count)
        if self.layout.image == "emu3":
            return self.image_emu3(begin, count)
        blocks = [self.vocabulary.block_index("image", k) for k in range(count)]
        end = self.run(blocks)
        if grid is not None and end - self.at != grid[0] * grid[1] * count:
            raise self.fail(
                min(end, self.at + grid[0] * grid[1] * count),
                f"{grid[0]} x {grid[1]} = {grid[0] * grid[1]} positions in the image that begins at token {begin} "
                f"(it has {(end - self.at) / count:g})",
            )
        body = self.codes("image", end, count)
        if grid is None:
            side = math.isqrt(len(body))
            if side * side != len(body) or not side:
                raise self.fail(
                    end, f"a square number of positions in the image that begins at token {begin} (it has {len(body)})"
                )
            grid = side, side
        self.at = end
        self.close("end_image", f"image code or end_image of the image that begins at token {begin}")
        return ImageCodes(np.ascontiguousarray(body.T).reshape(count, *grid))

    def image_rows(self, begin: int, count: int) -> ImageCodes:
        blocks = [self.vocabulary.block_index("image", k) for k in range(count)]
        rows: list[Ids] = []
        while not self.is_marker("end_image") or not rows:
            end = self.run(blocks)
            if end == self.at:
                raise self.fail(self.at, f"a row of the image that begins at token {begin}")
            row = self.codes("image", end, count)
            if rows and len(row) != len(rows[0]):
                raise self.fail(end, f"rows of {len(rows[0])} positions in the image that begins at token {begin}")
            rows.append(row)
            self.at = end
            self.close("row_end", "image code or row_end")
        self.at += 1
        return ImageCodes(np.ascontiguousarray(np.stack(rows).transpose(2, 0, 1)))

    def image_emu3(self, begin: int, count: int) -> ImageCodes:
        height = self.spelled_number("height")
        if self.spelled_character() != "*":
            raise self.fail(self.at, "a digit or the asterisk in the size of the image")
        self.at += 1
        width = self.spelled_number("width")
        self.close("begin_codes", "a digit or begin_codes in the size of the image")
        blocks = [self.vocabulary.block_index("image", k) for k in range(count)]
        rows: list[Ids] = []
        for _ in range(height):
            end = self.run(blocks)
            if end - self.at != width * count:
                raise self.fail(
                    min(end, self.at + width * count),
                    f"{height} rows of {width} positions in the image that begins at token {begin}",
                )
            rows.append(self.codes("image", end, count))
            self.at = end
            self.close("row_end", "image code or row_end")
        self.close("frame_end", f"frame_end after {height} rows of the image that begins at token {begin}")
        self.close("end_image", f"end_image of the image that begins at token {begin}")
        return ImageCodes(np.ascontiguousarray(np.stack(rows).transpose(2, 0, 1)))

    def spelled_character(self) -> str:
        """The character that the next token spells, or nothing."""
        token = int(self.ids[self.at]) if self.at < len(self.ids) else -1
        return next((character for character, own in self.vocabulary.spelled.items() if own == token), "")

    def spelled_number(self, what: str) -> int:
        """A number of at least 1 in digits, without leading zeros."""
        number = 0
        while (digit := self.spelled_character()).isdigit() and (number or digit != "0"):
            number = 10 * number + int(digit)
            self.at += 1
            if number > len(self.ids):
                raise self.fail(self.at - 1, f"the image's {what}, with as many codes behind it")
        if not number:
            raise self.fail(self.at, f"the image's {what}, written in digits")
        return number

    def grid_sizes(self) -> tuple[int, int]:
        block = self.vocabulary.block_index(GRID)
        for offset in (0, 1):
            if self.at + offset >= len(self.ids) or self.owner[self.at + offset] != block:
                raise self.fail(self.at + offset, "the grid's height" if offset == 0 else "the grid's width")
        height, width = (int(c) + 1 for c in self.vocabulary.codes(self.ids[self.at : self.at + 2]))
        self.at += 2
        return height, width

    def audio(self) -> AudioCodes:
        begin, self.at = self.at, self.at + 1
        blocks = [self.vocabulary.block_index("audio", k) for k in range(len(self.vocabulary.codebooks("audio")))]
        if self.layout.audio == "delay" and self.vocabulary.codebooks(AUDIO_PAD):
            blocks.append(self.vocabulary.block_index(AUDIO_PAD))
        end = self.run(blocks)
        if end == self.at:
            raise self.fail(end, f"audio code in the sound that begins at token {begin}")
        try:
            codes = audio_layouts.read(self.ids[self.at : end], self.vocabulary, self.layout.audio, self.layout.audio_delays)
        except MisplacedCodeError as error:
            raise self.fail(self.at + error.place, error.expected) from None
        self.at = end
        self.close("end_audio", f"audio code or end_audio of the sound that begins at token {begin}")
        return AudioCodes(codes)

    def close(self, marker: str, expected: str) -> None:
        if not self.is_marker(marker):
            raise self.fail(self.at, expected)
        self.at += 1
