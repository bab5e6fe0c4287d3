"""An id sequence -> its parts, or what is wrong with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from tokkit import audio_layouts
from tokkit.audio_layouts import MisplacedCodeError
from tokkit.errors import MalformedSequence
from tokkit.interleave.parts import AudioCodes, AudioPiece, ImageCodes, ImageGap, Layout, Part, TextCodes
from tokkit.vocabulary import AUDIO_PAD, GRID, Ids, UnifiedVocabulary


@overload
def decode(
    ids: npt.ArrayLike,
    vocabulary: UnifiedVocabulary,
    layout: Layout,
    *,
    whole: Literal[True] = True,
    grids: Sequence[tuple[int, int]] = (),
) -> list[Part]: ...


@overload
def decode(
    ids: npt.ArrayLike,
    vocabulary: UnifiedVocabulary,
    layout: Layout,
    *,
    whole: Literal[False],
    grids: Sequence[tuple[int, int]] = (),
) -> list[Part | AudioPiece]: ...


def decode(
    ids: npt.ArrayLike,
    vocabulary: UnifiedVocabulary,
    layout: Layout,
    *,
    whole: bool = True,
    grids: Sequence[tuple[int, int]] = (),
) -> list[Part] | list[Part | AudioPiece]:
    """Read a document's ids back into its parts; adjacent texts come back as one.

    Args:
        ids: integers [n].
        whole: require the document markers at both ends; False also takes a piece of a document that a packing plan cut.
            A sound of which such a piece has only a part comes back as :class:`~tokkit.interleave.AudioPiece`.
        grids: (rows, columns) of the document's pictures that are there, in order
            (:func:`tokkit.shards.spans.picture_grids`); only the layout ``bare`` looks at them.

    Raises:
        MalformedSequence: with the position of the first token that cannot be right.
    """
    reader = _Reader(np.asarray(ids).astype(np.int64), vocabulary, layout, grids, whole)
    return reader.document()


class _Reader:
    """Walks a sequence once, left to right; ``self.at`` is the next token."""

    def __init__(
        self,
        ids: npt.NDArray[np.int64],
        vocabulary: UnifiedVocabulary,
        layout: Layout,
        grids: Sequence[tuple[int, int]],
        whole: bool,
    ) -> None:
        self.ids, self.vocabulary, self.layout, self.whole = ids, vocabulary, layout, whole
        self.grids = iter(grids)
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

    @cached_property
    def sound(self) -> list[int]:
        """The blocks that the ids of a sound are of."""
        blocks = [self.vocabulary.block_index("audio", k) for k in range(len(self.vocabulary.codebooks("audio")))]
        if self.layout.audio == "delay" and self.vocabulary.codebooks(AUDIO_PAD):
            blocks.append(self.vocabulary.block_index(AUDIO_PAD))
        return blocks

    def is_marker(self, name: str) -> bool:
        return self.at < len(self.ids) and self.ids[self.at] == self.vocabulary.markers.get(name, -1)

    def run(self, wanted: Sequence[int]) -> int:
        """End of the run of tokens from ``self.at`` on whose owner is one of ``wanted``."""
        other = np.flatnonzero(~np.isin(self.owner[self.at :], wanted))
        return self.at + int(other[0]) if other.size else len(self.ids)

    def document(self) -> list[Part | AudioPiece]:
        parts: list[Part | AudioPiece] = []
        if self.is_marker("begin_document"):
            self.at = 1
        elif self.whole:
            raise self.fail(0, "marker begin_document")
        while self.at < len(self.ids) and not self.is_marker("end_document"):
            parts.append(self.part())
        if self.at < len(self.ids):  # end_document
            self.at += 1
            if self.at < len(self.ids):
                raise self.fail(self.at, "nothing after end_document")
        elif self.whole:
            raise self.fail(self.at, "marker end_document")
        return parts

    def part(self) -> Part | AudioPiece:
        if self.owner[self.at] == self.text:
            end = self.run([self.text])
            codes, self.at = self.vocabulary.codes(self.ids[self.at : end]), end
            return TextCodes(codes)
        if self.is_marker("begin_image"):
            return self.image()
        if self.is_marker("begin_audio") or (self.at == 0 and not self.whole and self.owner[0] in self.sound):
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
        if self.layout.image == "rows":
            return self.image_rows(begin, count)
        if self.layout.image == "grid_rows":
            codes = self.rows(begin, count, self.grid_sizes())
            self.close("end_image", f"end_image of the image that begins at token {begin}")
            return codes
        if self.layout.image == "emu3":
            return self.image_emu3(begin, count)
        grid = self.grid_sizes() if self.layout.image == "grid" else self.layout.image_grid
        if self.layout.image == "bare":
            grid = next(self.grids, (0, 0))
            if min(grid) < 1:
                raise self.fail(begin, "no image, or its grid beside the tokens")
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
        codes = self.rows(begin, count, (height, width))
        self.close("frame_end", f"frame_end after {height} rows of the image that begins at token {begin}")
        self.close("end_image", f"end_image of the image that begins at token {begin}")
        return codes

    def rows(self, begin: int, count: int, grid: tuple[int, int]) -> ImageCodes:
        """So many rows of so many positions, each with its end."""
        height, width = grid
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

    def audio(self) -> AudioCodes | AudioPiece:
        begin, begins = self.at, self.is_marker("begin_audio")
        self.at += begins
        end = self.run(self.sound)
        if end == self.at:
            raise self.fail(end, f"audio code in the sound that begins at token {begin}")
        ends = end < len(self.ids)
        apart = not self.whole and self.layout.audio != "book_major" and not (begins and ends)
        try:
            if apart:
                audio = self.layout.audio, self.layout.audio_delays
                steps = audio_layouts.read_steps(self.ids[self.at : end], self.vocabulary, *audio, begins=begins, ends=ends)
            else:
                codes = audio_layouts.read(
                    self.ids[self.at : end], self.vocabulary, self.layout.audio, self.layout.audio_delays
                )
        except MisplacedCodeError as error:
            raise self.fail(self.at + error.place, error.expected) from None
        self.at = end
        if ends or not apart:
            self.close("end_audio", f"audio code or end_audio of the sound that begins at token {begin}")
        return AudioPiece(steps, begins, ends) if apart else AudioCodes(codes)

    def close(self, marker: str, expected: str) -> None:
        if not self.is_marker(marker):
            raise self.fail(self.at, expected)
        self.at += 1
