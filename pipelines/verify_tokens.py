"""Verification of the shards: each one's three files against one another, against the vocabulary, and against the work units.

Shards are streamed: of a shard's document table one batch of ``ROW_GROUP`` rows is in memory, of its index and tokens the part
that belongs to it (memory maps), and of the tokens at most ``BLOCK`` at a time, or one document where it is larger. What is
kept of all documents is what each work unit came to (:class:`UnitSums`), and, on disk, their names
(:class:`tokkit.pipelines.verify_once.Once`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.errors import DataError, MalformedSequence, VocabularyError
from tokkit.interleave import ImageCodes, ImageGap, Layout, Part, TextCodes, decode
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.pipelines.progress import Task
from tokkit.pipelines.verify_once import Once
from tokkit.pipelines.verify_read import Index
from tokkit.pipelines.verify_spans import GAP, HASH_DIGITS, IMAGE, TEXT, SpanChecker, SpanColumns
from tokkit.shards.manifest import Shard
from tokkit.shards.native import DOCUMENT_SCHEMA, ROW_GROUP, map_tokens
from tokkit.shards.spans import picture_grids
from tokkit.vocabulary import MODALITIES, Ids, UnifiedVocabulary

BLOCK = 1 << 20  # tokens looked at in one go
COLUMNS = ["source", "locator", "unit", "split", "tokens", "hash", "spans"]
REFERENCE = 1 << 48  # references of documents: the split's number times this, plus the document's


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Where a unit's documents come from: the source's name, and the file that their locators begin with."""

    source: str
    file: str


@dataclass
class UnitSums:
    """What the shards hold of each work unit (U of them), by split: 88 bytes a unit and split.

    ``documents``, ``marker`` (tokens outside of spans) and ``gaps`` (places of missing pictures) are int64 [U]; ``tokens`` and
    ``spans`` (without the gaps) int64 [U, modalities].
    """

    units: int
    documents: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    marker: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    tokens: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    spans: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    gaps: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)

    def add(self, split: str, units: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], spans: SpanColumns) -> None:
        """Count documents of these units."""
        if split not in self.documents:
            for sums, shape in (
                (self.documents, (self.units,)),
                (self.marker, (self.units,)),
                (self.tokens, (self.units, len(MODALITIES))),
                (self.spans, (self.units, len(MODALITIES))),
                (self.gaps, (self.units,)),
            ):
                sums[split] = np.zeros(shape, dtype=np.int64)
        np.add.at(self.documents[split], units, 1)
        np.add.at(self.marker[split], units, lengths)
        known = spans.modality < len(MODALITIES)
        unit, modality, length = units[spans.document[known]], spans.modality[known], spans.length[known]
        np.add.at(self.marker[split], unit, -length)
        np.add.at(self.tokens[split], (unit, modality), length)
        gap = (modality == IMAGE) & (spans.codebooks[known] == 0)
        np.add.at(self.spans[split], (unit[~gap], modality[~gap]), 1)
        np.add.at(self.gaps[split], unit[gap], 1)


@dataclass(eq=False)
class RowsChecker:
    """Checks what the document tables of a split say of documents, apart from their contents.

    Attributes:
        directory, split, number: the output, the split's name and its number among the splits.
        places: by unit.
        val_fraction: of the run; decides each document's split.
        sums, once: gather what all shards hold.
    """

    directory: Path
    split: str
    number: int
    places: Sequence[UnitPlace]
    val_fraction: float
    sums: UnitSums
    once: Once
    result: VerifyResult

    def __post_init__(self) -> None:
        self._last_unit = 0

    def _document(self, number: int, batch: pa.RecordBatch | None = None, row: int = 0) -> str:
        """What a document is called: its number in the split and, where its row is at hand, source and locator."""
        name = f"{self.split} document {number}"
        if batch is None:
            return name
        return f"{name} ({batch.column('source')[row].as_py()}/{batch.column('locator')[row].as_py()})"

    def _rows(self, batch: pa.RecordBatch, first: int) -> npt.NDArray[np.int64] | None:
        """What the table says of documents apart from their contents: unit, source, locator, split, hash.

        Returns:
            the documents' units, or None where some of these are none.
        """
        unit = batch.column("unit").to_numpy().astype(np.int64)
        outside = np.flatnonzero((unit < 0) | (unit >= len(self.places)))
        if outside.size:
            where = self._document(first + int(outside[0]), batch, int(outside[0]))
            self.result.problem(Code.ORDER, where, f"is of unit {unit[outside[0]]}, and there are {len(self.places)}")
            return None
        back = np.flatnonzero(np.diff(unit, prepend=self._last_unit) < 0)
        if back.size:
            where = self._document(first + int(back[0]), batch, int(back[0]))
            self.result.problem(Code.ORDER, where, f"of unit {unit[back[0]]} stands behind documents of a later unit")
        self._last_unit = int(unit[-1]) if len(unit) else self._last_unit
        for number in np.unique(unit):
            self._places(batch, int(number), np.flatnonzero(unit == number), first)
        other = np.flatnonzero(~pc.equal(batch.column("split"), self.split).to_numpy(zero_copy_only=False))
        if other.size:
            where = self._document(first + int(other[0]), batch, int(other[0]))
            self.result.problem(Code.SPLIT, where, f"its row says split {batch.column('split')[int(other[0])].as_py()!r}")
        self._drawn(batch, first)
        sources, locators = batch.column("source").to_pylist(), batch.column("locator").to_pylist()
        keys = [f"{source}\0{locator}".encode() for source, locator in zip(sources, locators, strict=True)]
        self.once.add(keys, self.number * REFERENCE + first + np.arange(len(keys)))
        return unit

    def _places(self, batch: pa.RecordBatch, unit: int, rows: npt.NDArray[np.int64], first: int) -> None:
        place = self.places[unit]
        if not place.source:  # its commit record could not be read
            return
        part = batch.slice(int(rows[0]), int(rows[-1] - rows[0]) + 1)
        file = "" if place.file == "." else place.file  # the input's own folder
        strangers = pc.or_(
            pc.not_equal(part.column("source"), place.source),
            pc.invert(pc.starts_with(part.column("locator"), file)),
        ).to_numpy(zero_copy_only=False)
        wrong = rows[strangers[rows - rows[0]]]
        for row in wrong[: self.result.room(Code.ORDER)]:
            where = self._document(first + int(row), batch, int(row))
            self.result.problem(Code.ORDER, where, f"stands in a unit of {place.source}/{place.file}")

    def _drawn(self, batch: pa.RecordBatch, first: int) -> None:
        """Whether each document's hash puts it into this split (as :meth:`tokkit.documents.Document.draw` does)."""
        for row, text in enumerate(batch.column("hash").to_pylist()):
            if len(text) != HASH_DIGITS:
                self.result.problem(Code.SPLIT, self._document(first + row, batch, row), f"its content hash is {text!r}")
                continue
            draw = 1.0
            if self.val_fraction:
                draw = int.from_bytes(hashlib.sha256(f"{text}\x1fsplit".encode()).digest()[:8], "big") / 2**64
            if (draw < self.val_fraction) != (self.split == "val"):
                where = self._document(first + row, batch, row)
                self.result.problem(Code.SPLIT, where, "its content hash puts it into the other split")


@dataclass(eq=False)
class TokensChecker(RowsChecker):
    """Checks the shards of a split, one after another.

    Attributes:
        vocabulary, layout: of the output.
        parse: documents of the split (numbers, ascending) that are also parsed with the decoder's grammar.
    """

    vocabulary: UnifiedVocabulary
    layout: Layout
    parse: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._spans = SpanChecker(self.vocabulary, self.layout)

    def check(self, number: int, shard: Shard, first: int, task: Task) -> bool:
        """Check shard ``number``, whose first document is number ``first`` of the split.

        Returns:
            whether all of its documents could be counted.
        """
        base = self.directory / "tokens" / self.split
        self._name = f"tokens/{self.split}/{number:05d}"
        try:
            index = Index(base / shard.files["idx"].name)
            tokens = map_tokens(base / shard.files["bin"].name, self.vocabulary.dtype)
            with pq.ParquetFile(base / shard.files["parquet"].name) as table:
                if not (self._fits(shard, index, len(tokens)) and self._format(shard, table)):
                    return False
                return self._batches(shard, index, tokens, table, first, task)
        except (DataError, OSError, ValueError, pa.ArrowException) as error:
            message = str(error).replace(f"{self.directory}/", "")
            self.result.problem(Code.UNREADABLE, self._name, f"cannot be read: {message}")
            return False

    # ---- the files as a whole

    def _fits(self, shard: Shard, index: Index, tokens: int) -> bool:
        where = f"{self._name}.idx"
        before = self.result.problem_count
        if index.dtype != self.vocabulary.dtype:
            self._mismatch(where, f"is of {index.dtype} tokens, the .bin of {self.vocabulary.dtype}")
        if index.count != shard.documents:
            self._mismatch(where, f"has {index.count:,} documents, the manifest says {shard.documents:,}")
        if tokens != shard.tokens:
            self._mismatch(f"{self._name}.bin", f"has {tokens:,} tokens, the manifest says {shard.tokens:,}")
        return self.result.problem_count == before

    def _format(self, shard: Shard, table: pq.ParquetFile) -> bool:
        where = f"{self._name}.parquet"
        if not table.schema_arrow.equals(DOCUMENT_SCHEMA):
            self.result.problem(Code.TABLE, where, "its columns are not those of a document table")
            return False
        if table.metadata.num_rows != shard.documents:
            self._mismatch(where, f"has {table.metadata.num_rows:,} rows, the manifest says {shard.documents:,} documents")
            return False
        groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
        if any(rows != ROW_GROUP for rows in groups[:-1]) or any(rows > ROW_GROUP for rows in groups[-1:]):
            self.result.problem(Code.TABLE, where, f"its row groups are not of {ROW_GROUP:,} rows each")
        return True

    def _mismatch(self, where: str, message: str) -> None:
        self.result.problem(Code.INDEX_MISMATCH, where, message)

    # ---- batch by batch

    def _batches(self, shard: Shard, index: Index, tokens: Ids, table: pq.ParquetFile, first: int, task: Task) -> bool:
        row = at = 0
        for batch in table.iter_batches(batch_size=ROW_GROUP, columns=COLUMNS, use_threads=False):
            batch.validate(full=True)
            lengths = batch.column("tokens").to_numpy()
            if not self._placed(index, lengths, row, at, len(tokens), first):
                return False
            spans = SpanColumns.of(batch.column("spans"))
            units = self._rows(batch, first + row)
            if units is not None:
                self.sums.add(self.split, units, lengths, spans)
            self._ids(tokens, lengths, spans, batch, at, first + row, task)
            row, at = row + len(lengths), at + int(lengths.sum())
        if at != len(tokens):
            self._mismatch(self._name, f"its documents have {at:,} tokens, the .bin {len(tokens):,}")
        return True

    def _placed(self, index: Index, lengths: npt.NDArray[np.int64], row: int, at: int, tokens: int, first: int) -> bool:
        """Whether index and table say of each document that it begins where the one before it ends."""
        rows = slice(row, row + len(lengths))
        begins = at + np.cumsum(lengths) - lengths
        size = self.vocabulary.dtype.itemsize
        for what, same in (
            ("the .idx and the .parquet disagree about its token count", index.lengths[rows] == lengths),
            ("it has fewer than the two tokens of an empty document", lengths >= 2),
            ("the .idx has it begin at another byte than its predecessors end at", index.pointers[rows] == begins * size),
            (
                "the .idx has a document border elsewhere",
                index.borders[row + 1 : row + 1 + len(lengths)] == np.arange(row, row + len(lengths)) + 1,
            ),
            ("it reaches beyond the end of the .bin", begins + lengths <= tokens),
        ):
            wrong = np.flatnonzero(~same)
            if wrong.size:
                self._mismatch(self._document(first + row + int(wrong[0])), f"{what} ({wrong.size:,} such in this row group)")
                return False
        return True

    # ---- ids

    def _ids(
        self,
        tokens: Ids,
        lengths: npt.NDArray[np.int64],
        spans: SpanColumns,
        batch: pa.RecordBatch,
        at: int,
        first: int,
        task: Task,
    ) -> None:
        """Check the ids of a batch's documents, about ``BLOCK`` tokens at a time."""
        ends = np.cumsum(lengths)
        low = 0
        while low < len(lengths):
            begin = int(ends[low - 1]) if low else 0
            high = min(max(int(np.searchsorted(ends, begin + BLOCK, side="right")), low + 1), len(lengths))
            ids = np.array(tokens[at + begin : at + int(ends[high - 1])])
            try:
                found = self._spans.check(ids, lengths[low:high], spans.slice(low, high))
                for finding in found:
                    number = low + finding.document
                    where = self._document(first + number, batch, number)
                    self.result.problem(finding.code, where, finding.message)
            except VocabularyError as error:  # a marker that the vocabulary lacks
                self.result.problem(Code.VOCABULARY, self._document(first + low), str(error))
            self.result.look("documents", high - low)
            self.result.look("tokens", len(ids))
            self._parse(ids, np.concatenate([[begin], ends[low:high]]) - begin, batch, low, first)
            task.advance(len(ids))
            low = high

    def _parse(self, ids: Ids, edges: npt.NDArray[np.int64], batch: pa.RecordBatch, low: int, first: int) -> None:
        """Parse those of the documents ``low``... of a batch that were chosen, with the grammar that decoding uses."""
        begin, end = np.searchsorted(self.parse, [first + low, first + low + len(edges) - 1])
        for number in self.parse[begin:end].tolist():
            row = number - first
            where = self._document(number, batch, row)
            spans = batch.column("spans")[row].as_py()
            try:
                document = ids[edges[row - low] : edges[row - low + 1]]
                parts = decode(document, self.vocabulary, self.layout, grids=picture_grids(spans))
            except (MalformedSequence, VocabularyError) as error:
                self.result.problem(Code.GRAMMAR, where, str(error))
            else:
                if _shapes_of(parts) != _shapes_in(spans):
                    self.result.problem(Code.GRAMMAR, where, "its spans state other shapes than its tokens decode to")
            self.result.look("documents parsed")


def _shapes_of(parts: Sequence[Part]) -> list[tuple[int, ...]]:
    """Codebooks, and of pictures the grid, of the media that tokens decode to."""
    media = [p for p in parts if not isinstance(p, TextCodes)]
    return [
        GAP if isinstance(p, ImageGap) else p.codes.shape if isinstance(p, ImageCodes) else p.codes.shape[:1] for p in media
    ]


def _shapes_in(spans: list[dict[str, Any]]) -> list[tuple[int, ...]]:
    """The same as a document's row states it."""
    media = [span for span in spans if span["modality"] != MODALITIES[TEXT]]
    return [
        (s["codebooks"], s["grid_height"], s["grid_width"]) if s["modality"] == "image" else (s["codebooks"],) for s in media
    ]
