"""The unified vocabulary: which token id is what.

A vocabulary maps (modality, codebook, code) to a token id by *blocks*, each an affine range (``start + code``) or a lookup
table, and names a few *markers*. It is explicit in ``vocabulary.json``: ids are never guessed from a size or a name.

Built new (:meth:`UnifiedVocabulary.build`)::

    [text ids as the text tokenizer has them][markers][grid sizes][image codebooks...][audio codebooks...][audio pads]
    [unused, to a multiple of 128]

Taken from a released model (:mod:`tokkit.released_vocabularies`), media codes and markers stand *inside* the text tokenizer's
own id range: the text block then covers the whole range and every id that a block or a marker claims is not text
(:attr:`UnifiedVocabulary.claimed`). Both readings of Chameleon's sizes can be had: 65,536 ids in all (the paper and the
released tokenizer file), or 65,536 text ids with 8,192 image codes behind them (``build``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError, VocabularyError
from tokkit.storage import fingerprint_of, pretty_json, read_json, write_atomic

MODALITIES = ("text", "image", "audio", "video")
MARKERS = (
    "begin_document",
    "end_document",
    "begin_image",
    "end_image",
    "begin_audio",
    "end_audio",
    "begin_video",
    "end_video",
    "row_end",
    "padding",
)
# Markers that only released models have: where a picture's codes begin after its size in writing, and where a frame ends.
RELEASED_MARKERS = ("begin_codes", "frame_end")
GRID = "grid"  # the block of grid sizes: code n stands for a side of n + 1 positions
AUDIO_PAD = "audio_pad"  # the block of pads: code k stands where a delayed audio codebook k has no code
FORMAT = "tokkit-vocabulary"
VERSION = 1

Ids = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Block:
    """The ids of one codebook.

    Attributes:
        modality: one of :data:`MODALITIES`, or :data:`GRID` or :data:`AUDIO_PAD`.
        codebook: number of the codebook within its modality, from 0.
        size: number of codes.
        start: id of code 0 where the block is an affine range, else None.
        table: int32 [size], the id of each code, where it is a lookup table, else None.
    """

    modality: str
    codebook: int
    size: int
    start: int | None = None
    table: Ids | None = None

    @property
    def name(self) -> str:
        return f"{self.modality} codebook {self.codebook}"

    @cached_property
    def ids(self) -> Ids:
        """int32 [size]: the id of every code."""
        if self.table is not None:
            return self.table
        assert self.start is not None
        return np.arange(self.start, self.start + self.size, dtype=np.int32)

    def encode(self, codes: npt.ArrayLike) -> Ids:
        """Codes (any shape) to ids of the same shape; raises VocabularyError for a code outside of 0..size-1."""
        array = np.asarray(codes)
        if array.size:
            low, high = int(array.min()), int(array.max())
            if low < 0 or high >= self.size:
                raise VocabularyError(f"{self.name}: code {low if low < 0 else high} is outside of 0..{self.size - 1}")
        if self.table is not None:
            return self.table[array]
        assert self.start is not None
        ids = array.astype(np.int32)  # a code that is in the block fits, and so does its id
        return ids if self.start == 0 else ids + np.int32(self.start)

    def to_json(self) -> dict[str, object]:
        entry: dict[str, object] = {"modality": self.modality, "codebook": self.codebook, "size": self.size}
        if self.table is not None:
            entry["table"] = self.table.tolist()
        else:
            entry["start"] = self.start
        return entry


class UnifiedVocabulary:
    """A map between (modality, codebook, code), markers and token ids.

    Args:
        size: number of ids, unused ones included: rows of the model's embedding.
        blocks: the codebooks; exactly one of text.
        markers: ids by name (of :data:`MARKERS` and :data:`RELEASED_MARKERS`); a released model may lack some.
        origin: what it was built or read from, for people.
        embedded: whether blocks and markers stand inside the text block's range and take their ids from it.
        spelled: text ids by character, of what a layout writes in a picture as text (the digits of its size).

    Raises:
        VocabularyError: two claims to one id, an id outside of 0..size-1, or no text block.
    """

    def __init__(
        self,
        size: int,
        blocks: Sequence[Block],
        markers: Mapping[str, int],
        *,
        origin: str,
        embedded: bool = False,
        spelled: Mapping[str, int] | None = None,
    ) -> None:
        self.size = size
        self.blocks = tuple(blocks)
        self.markers = dict(markers)
        self.origin = origin
        self.embedded = embedded
        self.spelled = dict(spelled or {})
        self._by_key = {(b.modality, b.codebook): b for b in self.blocks}
        if len(self._by_key) != len(self.blocks):
            raise VocabularyError("two blocks of one modality and codebook")
        if ("text", 0) not in self._by_key:
            raise VocabularyError("a vocabulary needs a text block")
        unknown = sorted(set(self.markers) - {*MARKERS, *RELEASED_MARKERS})
        if unknown:
            raise VocabularyError(f"unknown markers: {', '.join(unknown)}")
        self._owner, self._code = self._tables()
        for character, token in self.spelled.items():
            if not 0 <= token < size or self._owner[token] != self._text:
                raise VocabularyError(f"{character!r} is spelled with id {token}, which is {self.describe(token)}, not text")

    # ---- making one

    @classmethod
    def build(
        cls,
        text_size: int,
        image_codebooks: Sequence[int] = (),
        audio_codebooks: Sequence[int] = (),
        *,
        max_grid: int = 128,
        multiple: int = 128,
        audio_pads: bool = False,
    ) -> UnifiedVocabulary:
        """A new vocabulary around a text tokenizer.

        Args:
            text_size: ids kept for text: the tokenizer's size, or its model's embedding rows where these are more.
            image_codebooks, audio_codebooks: number of codes of each codebook.
            max_grid: largest side of a picture's grid that can be written (layout ``grid``).
            multiple: the size is padded with unused ids to a multiple of this.
            audio_pads: give each audio codebook a pad id of its own, which the layout ``delay`` needs.
        """
        if text_size < 1:
            raise VocabularyError(f"a text vocabulary of {text_size} ids")
        markers = {name: text_size + i for i, name in enumerate(MARKERS)}
        position = text_size + len(MARKERS)
        blocks = [Block("text", 0, text_size, start=0), Block(GRID, 0, max_grid, start=position)]
        position += max_grid
        for modality, sizes in (("image", image_codebooks), ("audio", audio_codebooks)):
            for codebook, codes in enumerate(sizes):
                blocks.append(Block(modality, codebook, codes, start=position))
                position += codes
        if audio_pads and audio_codebooks:
            blocks.append(Block(AUDIO_PAD, 0, len(audio_codebooks), start=position))
            position += len(audio_codebooks)
        if position >= 1 << 31:
            raise VocabularyError(f"{position:,} ids are more than int32 holds: use fewer or smaller codebooks")
        return cls(-(-position // multiple) * multiple, blocks, markers, origin="built")

    # ---- asking it

    @cached_property
    def claimed(self) -> Ids:
        """int32 [n], rising: ids within the text tokenizer's range that are markers or codes, which no text may have."""
        text = self.block("text").ids
        return np.sort(text[self._owner[text] != self._text])

    @property
    def dtype(self) -> np.dtype:
        """The dtype token files have: uint16 where every id fits, else int32."""
        return np.dtype(np.uint16) if self.size <= 1 << 16 else np.dtype(np.int32)

    def marker(self, name: str) -> int:
        """A marker's id; VocabularyError where this vocabulary (a released model's) has none."""
        try:
            return self.markers[name]
        except KeyError:
            raise VocabularyError(f"this vocabulary ({self.origin}) has no marker {name!r}") from None

    def block(self, modality: str, codebook: int = 0) -> Block:
        """A codebook's block; VocabularyError where there is none."""
        try:
            return self._by_key[modality, codebook]
        except KeyError:
            raise VocabularyError(f"this vocabulary has no {modality} codebook {codebook}") from None

    def codebooks(self, modality: str) -> list[Block]:
        """The blocks of a modality, by codebook."""
        return [self._by_key[modality, k] for k in range(sum(b.modality == modality for b in self.blocks))]

    def encode(self, modality: str, codes: npt.ArrayLike, codebook: int = 0) -> Ids:
        """Codes of one codebook (any shape) to token ids (int32, same shape).

        Raises:
            VocabularyError: a code outside of its codebook, or a text id that is a marker or a media code.
        """
        ids = self.block(modality, codebook).encode(codes)
        if modality == "text" and self.embedded and ids.size:
            wrong = np.flatnonzero(self._owner[ids] != self._text)
            if wrong.size:
                raise VocabularyError(
                    f"text id {int(ids.flat[wrong[0]])} is {self.describe(int(ids.flat[wrong[0]]))}, not text"
                )
        return ids

    def owners(self, ids: npt.ArrayLike) -> npt.NDArray[np.int16]:
        """What each id belongs to: the index of its block, -1 a marker, -2 nothing, -3 outside of the vocabulary."""
        array = np.asarray(ids).astype(np.int64)
        inside = (array >= 0) & (array < self.size)
        return np.where(inside, self._owner[np.where(inside, array, 0)], np.int16(-3))

    def codes(self, ids: npt.ArrayLike) -> Ids:
        """The code of each id within its block (meaningless for markers and unused ids)."""
        return self._code[np.asarray(ids)]

    def block_index(self, modality: str, codebook: int = 0) -> int:
        """The number that :meth:`owners` gives for a codebook."""
        return self.blocks.index(self.block(modality, codebook))

    def describe(self, token: int) -> str:
        """What an id is, for error messages: ``image code 17``, ``marker end_image``, ``an unused id``."""
        if not 0 <= token < self.size:
            return f"outside of the vocabulary (0..{self.size - 1})"
        for name, value in self.markers.items():
            if value == token:
                return f"marker {name}"
        owner = int(self._owner[token])
        if owner < 0:
            return "an unused id"
        block = self.blocks[owner]
        many = sum(b.modality == block.modality for b in self.blocks) > 1
        return f"{block.modality} code {int(self._code[token])}" + (f" of codebook {block.codebook}" if many else "")

    # ---- keeping it

    def to_json(self) -> dict[str, object]:
        """The content of ``vocabulary.json``."""
        entry = {
            "format": FORMAT,
            "version": VERSION,
            "size": self.size,
            "dtype": self.dtype.name,
            "origin": self.origin,
            "embedded": self.embedded,
            "markers": self.markers,
            "blocks": [b.to_json() for b in self.blocks],
        }
        return entry | ({"spelled": self.spelled} if self.spelled else {})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that decides ids (not over ``origin``)."""
        return fingerprint_of({k: v for k, v in self.to_json().items() if k != "origin"})

    def save(self, path: Path) -> None:
        """Write ``vocabulary.json``."""
        write_atomic(path, pretty_json(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> UnifiedVocabulary:
        """Read ``vocabulary.json``; DataError where it is missing, damaged or of another format."""
        entry = read_json(path)
        if not isinstance(entry, dict) or entry.get("format") != FORMAT:
            raise DataError(f"{path} is not a vocabulary file")
        if entry.get("version") != VERSION:
            raise DataError(f"{path} has format version {entry.get('version')}; this tokkit reads version {VERSION}")
        try:
            blocks = [
                Block(
                    b["modality"],
                    b["codebook"],
                    b["size"],
                    start=b.get("start"),
                    table=np.array(b["table"], dtype=np.int32) if "table" in b else None,
                )
                for b in entry["blocks"]
            ]
            return cls(
                entry["size"],
                blocks,
                entry["markers"],
                origin=entry["origin"],
                embedded=entry["embedded"],
                spelled=entry.get("spelled"),
            )
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is damaged: {error!r}") from None

    # ---- inside

    @property
    def _text(self) -> int:
        return self.blocks.index(self._by_key["text", 0])

    def _tables(self) -> tuple[npt.NDArray[np.int16], Ids]:
        """For every id its owner (see :meth:`owners`) and its code; checks that nothing is claimed twice."""
        owner = np.full(self.size, -2, dtype=np.int16)
        code = np.zeros(self.size, dtype=np.int32)
        claimed = np.zeros(self.size, dtype=bool)
        text = self._text
        order = [text, *(i for i in range(len(self.blocks)) if i != text)]
        for index in order:
            block = self.blocks[index]
            ids = block.ids
            if len(ids) != block.size or block.size < 1:
                raise VocabularyError(f"{block.name}: {len(ids)} ids for {block.size} codes")
            if int(ids.min()) < 0 or int(ids.max()) >= self.size:
                raise VocabularyError(f"{block.name}: ids outside of 0..{self.size - 1}")
            if claimed[ids].any() or len(np.unique(ids)) != len(ids):
                raise VocabularyError(f"{block.name}: an id is claimed twice")
            owner[ids], code[ids] = index, np.arange(block.size, dtype=np.int32)
            claimed[ids] = not (index == text and self.embedded)
        for name, token in self.markers.items():
            if not 0 <= token < self.size:
                raise VocabularyError(f"marker {name}: id {token} is outside of 0..{self.size - 1}")
            if claimed[token]:
                raise VocabularyError(f"marker {name}: id {token} is claimed twice")
            owner[token], claimed[token] = -1, True
        return owner, code
