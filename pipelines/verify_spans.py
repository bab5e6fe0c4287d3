"""Verification of tokens against their spans: what every single id must be, said by the spans, the vocabulary and the layout.

A document is ``begin_document``, its spans end to end, ``end_document``. Within a span of text every id is one of the text
block; within a picture or sound every place asks for one certain id (a marker, a size), or for an id of one codebook. What a
picture of a given shape looks like is learned from :func:`tokkit.interleave.encode`, once a shape, and what stands where in a
sound from :func:`tokkit.audio_layouts.places`. For a block of documents this gives an array of what is expected, which is
compared with what is there; no document is looked at one by one. About 60 bytes a token are needed meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokkit.audio_layouts import longest_delay, places
from tokkit.errors import VocabularyError
from tokkit.interleave import ImageCodes, ImageGap, Layout, encode
from tokkit.pipelines.findings import Code
from tokkit.vocabulary import AUDIO_PAD, MODALITIES, UnifiedVocabulary

TEXT, IMAGE, AUDIO = (MODALITIES.index(name) for name in ("text", "image", "audio"))
UNKNOWN = 255
SHAPES = 256  # shapes of pictures that are kept in mind
HASH_DIGITS = 32
GAP = (0, 0, 0)  # the shape of a missing picture

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SpanColumns:
    """The spans of some documents as flat arrays: int64 [S] each, ``modality`` an index into MODALITIES or UNKNOWN.

    ``document`` is the number of the span's document among these, ``counts`` int64 [D] how many each has, ``hash_digits`` the
    length of the item hash.
    """

    counts: Ints
    document: Ints
    modality: Ints
    start: Ints
    length: Ints
    codebooks: Ints
    grid_height: Ints
    grid_width: Ints
    hash_digits: Ints

    @classmethod
    def of(cls, column: pa.Array) -> SpanColumns:
        """From the ``spans`` column (a list array) of a document table."""
        counts = np.diff(column.offsets.to_numpy()).astype(np.int64)
        flat = column.flatten()

        def numbers(name: str) -> Ints:
            return flat.field(name).to_numpy(zero_copy_only=False).astype(np.int64)

        known = pc.fill_null(pc.index_in(flat.field("modality"), pa.array(MODALITIES)), UNKNOWN)
        return cls(
            counts=counts,
            document=np.repeat(np.arange(len(counts)), counts),
            modality=known.to_numpy(zero_copy_only=False).astype(np.int64),
            start=numbers("start"),
            length=numbers("length"),
            codebooks=numbers("codebooks"),
            grid_height=numbers("grid_height"),
            grid_width=numbers("grid_width"),
            hash_digits=pc.binary_length(flat.field("item_hash")).to_numpy(zero_copy_only=False).astype(np.int64),
        )

    def keep(self, documents: Bools) -> SpanColumns:
        """The spans of some of the documents, which are numbered anew."""
        rows = documents[self.document]
        number = np.cumsum(documents) - 1
        kept = [getattr(self, name)[rows] for name in list(self.__dataclass_fields__)[2:]]
        return SpanColumns(self.counts[documents], number[self.document[rows]], *kept)

    def slice(self, first: int, last: int) -> SpanColumns:
        """The spans of the documents ``first`` .. ``last - 1``."""
        begin, end = int(self.counts[:first].sum()), int(self.counts[:last].sum())
        kept = [getattr(self, name)[begin:end] for name in list(self.__dataclass_fields__)[2:]]
        return SpanColumns(self.counts[first:last], self.document[begin:end] - first, *kept)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with one document: its number among those looked at."""

    document: int
    code: Code
    message: str


@dataclass(frozen=True, eq=False)
class _Template:
    """A picture's span: the block of each place's id (int16), and the id itself where only one will do (int32, else -1)."""

    owner: npt.NDArray[np.int16]
    exact: npt.NDArray[np.int32]


def _shapes(spans: SpanColumns) -> Iterator[tuple[tuple[int, int, int], Ints]]:
    """Each shape (codebooks, height, width) of pictures, and its rows."""
    rows = np.flatnonzero(spans.modality == IMAGE)
    shapes = np.stack([spans.codebooks[rows], spans.grid_height[rows], spans.grid_width[rows]], axis=1)
    kinds, which = np.unique(shapes, axis=0, return_inverse=True)
    for number, (codebooks, height, width) in enumerate(kinds.tolist()):
        yield (codebooks, height, width), rows[which.reshape(-1) == number]


class SpanChecker:
    """Checks blocks of documents.

    Args:
        vocabulary, layout: of the output.
    """

    def __init__(self, vocabulary: UnifiedVocabulary, layout: Layout) -> None:
        self.vocabulary, self.layout = vocabulary, layout
        self.text = vocabulary.block_index("text")
        self.books = {
            IMAGE: np.array([vocabulary.blocks.index(b) for b in vocabulary.codebooks("image")], dtype=np.int16),
            AUDIO: np.array([vocabulary.blocks.index(b) for b in vocabulary.codebooks("audio")], dtype=np.int16),
        }
        known, delays = len(self.books[AUDIO]), layout.audio_delays
        self._most_books = min(known, len(delays)) if layout.audio == "delay" and delays else known
        self._late = [longest_delay(layout.audio, delays, books) for books in range(1, self._most_books + 1)]
        self._templates: dict[tuple[int, int, int], _Template] = {}

    def check(self, ids: npt.NDArray[np.integer], lengths: Ints, spans: SpanColumns) -> Iterator[Finding]:
        """Every document whose spans or ids are wrong, once, with the first thing that is wrong with it.

        Args:
            ids: of the documents, one after another.
            lengths: int64 [D], at least 2 each.
            spans: of these documents.
        """
        good = np.ones(len(lengths), dtype=bool)
        for problem, rows in self._misfits(lengths, spans):
            for row in rows:
                document = int(spans.document[row])
                if good[document]:
                    good[document] = False
                    yield Finding(document, Code.SPAN, problem(int(row)))
        # Spans that do not tile their document say nothing of its ids.
        covered = np.bincount(spans.document, weights=spans.length, minlength=len(lengths)).astype(np.int64) + 2
        for loose in np.flatnonzero(good & (covered != lengths)).tolist():
            good[loose] = False
            yield Finding(loose, Code.SPAN, "its spans do not cover its tokens end to end")
        if not good.all():
            numbers = np.flatnonzero(good)
            ids, lengths, spans = ids[np.repeat(good, lengths)], lengths[good], spans.keep(good)
        else:
            numbers = np.arange(len(lengths))
        for found in self._wrong_ids(ids, lengths, spans):
            yield Finding(int(numbers[found.document]), found.code, found.message)

    # ---- the spans by themselves

    def _misfits(self, lengths: Ints, spans: SpanColumns) -> Iterator[tuple[Callable[[int], str], Ints]]:
        """(message of a row, rows) of every rule that a span can break."""
        if not len(spans.start):
            return
        first = np.concatenate([[True], spans.document[1:] != spans.document[:-1]])
        previous = np.concatenate([[1], spans.start[:-1] + spans.length[:-1]])
        loose = (spans.start != np.where(first, 1, previous)) | (spans.length < 1)
        loose |= spans.length > lengths[spans.document] - 2
        yield lambda row: "its spans do not cover its tokens end to end", np.flatnonzero(loose)
        unknown = ~np.isin(spans.modality, [TEXT, *(m for m, books in self.books.items() if len(books))])
        yield lambda row: "a span of a modality that the vocabulary has no codes of", np.flatnonzero(unknown)
        text, image, audio = (spans.modality == m for m in (TEXT, IMAGE, AUDIO))
        shape = (spans.codebooks != 0) | (spans.grid_height != 0) | (spans.grid_width != 0) | (spans.hash_digits != 0)
        yield lambda row: "its spans state other shapes than its tokens have: text has none", np.flatnonzero(text & shape)
        wanted = np.zeros(len(spans.start), dtype=np.int64)
        for kind, rows in _shapes(spans):
            template = self._template(*kind, int(lengths.max()))
            wanted[rows] = -1 if template is None else len(template.owner)
        yield (
            lambda row: (
                f"its spans state other shapes than its tokens have: a picture of {spans.codebooks[row]} x "
                f"{spans.grid_height[row]} x {spans.grid_width[row]} in {spans.length[row]} tokens"
            ),
            np.flatnonzero(image & (wanted != spans.length)),
        )
        body, books = spans.length - 2, np.maximum(spans.codebooks, 1)
        wrong = (spans.codebooks < 1) | (spans.codebooks > self._most_books) | (body < 1) | (body % books != 0)
        wrong |= body // books <= np.array([0, *self._late])[np.where(wrong, 0, spans.codebooks)]
        yield (
            lambda row: (
                f"its spans state other shapes than its tokens have: a sound of {spans.codebooks[row]} codebooks in "
                f"{spans.length[row]} tokens"
            ),
            np.flatnonzero(audio & wrong),
        )
        gap = image & (spans.codebooks == 0)
        yield lambda row: "a media span without an item hash", np.flatnonzero(~text & ~gap & (spans.hash_digits != HASH_DIGITS))
        yield lambda row: "a missing picture with an item hash", np.flatnonzero(gap & (spans.hash_digits != 0))

    def _template(self, codebooks: int, height: int, width: int, at_most: int) -> _Template | None:
        """What a picture of a shape looks like; None where there is none of such a shape, or of at most so many tokens."""
        shape = codebooks, height, width
        gap = shape == GAP  # which encode() refuses where the layout has none
        if not gap and (min(shape) < 1 or codebooks * height * width > at_most):
            return None
        if shape not in self._templates:
            if len(self._templates) >= SHAPES:
                self._templates.pop(next(iter(self._templates)))
            try:
                part = ImageGap() if gap else ImageCodes(np.zeros(shape, dtype=np.int32))
                ids, _ = encode([part], self.vocabulary, self.layout)
            except VocabularyError:
                return None
            owner = self.vocabulary.owners(ids[1:-1])
            free = np.isin(owner, self.books[IMAGE])
            self._templates[shape] = _Template(owner, np.where(free, np.int32(-1), ids[1:-1]))
        return self._templates[shape]

    # ---- the ids

    def _wrong_ids(self, ids: npt.NDArray[np.integer], lengths: Ints, spans: SpanColumns) -> Iterator[Finding]:
        begins = np.cumsum(lengths) - lengths
        owner, exact = self._expected(len(ids), begins, lengths, spans)
        found = self.vocabulary.owners(ids)
        wrong = np.flatnonzero(np.where(exact >= 0, ids != exact, found != owner))
        if not wrong.size:
            return
        document = np.searchsorted(begins, wrong, side="right") - 1
        documents, first = np.unique(document, return_index=True)
        for d, at in zip(documents.tolist(), wrong[first].tolist(), strict=True):
            place, what = int(at - begins[d]), self.vocabulary.describe(int(ids[at]))
            if exact[at] >= 0 and found[at] > -2:
                wanted = self.vocabulary.describe(int(exact[at])).removeprefix("marker ")
                yield Finding(d, Code.SPAN, f"token {place} is {what}, no {wanted} where its spans ask for it")
            else:
                expected = "a marker" if exact[at] >= 0 else f"an id of {self.vocabulary.blocks[int(owner[at])].name}"
                yield Finding(
                    d, Code.ID_RANGE, f"token {place} is {what} (id {int(ids[at])}) where its spans ask for {expected}"
                )

    def _expected(self, total: int, begins: Ints, lengths: Ints, spans: SpanColumns) -> tuple[np.ndarray, np.ndarray]:
        """For each place the block that its id must be of (int16), and the id where only one will do (int32, else -1)."""
        owner = np.full(total, self.text, dtype=np.int16)
        exact = np.full(total, -1, dtype=np.int32)
        exact[begins] = self.vocabulary.marker("begin_document")
        exact[begins + lengths - 1] = self.vocabulary.marker("end_document")
        start = begins[spans.document] + spans.start
        for kind, rows in _shapes(spans):
            template = self._template(*kind, int(lengths.max()))
            assert template is not None  # spans of impossible shapes have been left out
            place = start[rows, None] + np.arange(len(template.owner))
            owner[place], exact[place] = template.owner, template.exact
        rows = np.flatnonzero(spans.modality == AUDIO)
        if rows.size:
            length = spans.length[rows] - 2
            exact[start[rows]] = self.vocabulary.marker("begin_audio")
            exact[start[rows] + length + 1] = self.vocabulary.marker("end_audio")
            self._expect_sounds(start[rows] + 1, spans.codebooks[rows], length, owner, exact)
        return owner, exact

    def _expect_sounds(self, start: Ints, books: Ints, length: Ints, owner: np.ndarray, exact: np.ndarray) -> None:
        """What the codes of sounds must be: sounds of one shape at a time, of which a corpus of clips may have many."""
        for count, size in np.unique(np.stack([books, length], axis=1), axis=0).tolist():
            book, frame = places(self.layout.audio, self.layout.audio_delays, count, size // count)
            place = start[(books == count) & (length == size), None] + np.arange(size)
            owner[place] = self.books[AUDIO][book]
            if self.layout.audio == "delay":
                exact[place] = np.where(frame < 0, self.vocabulary.encode(AUDIO_PAD, book), np.int32(-1))
