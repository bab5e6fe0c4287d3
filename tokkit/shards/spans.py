"""Spans on disk and in memory: which stretch of a document's tokens is text, a picture, a sound.

On disk each document's row holds a list of structs (:data:`SPAN_TYPE`); in memory the spans of many documents are one
:class:`SpanTable` of flat arrays, which packing and loading read without touching Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokkit.audio_layouts import AudioLayout
from tokkit.interleave import Span
from tokkit.sequences import SPAN_FIELDS, Spans
from tokkit.vocabulary import MODALITIES

SPAN_TYPE = pa.struct(
    [
        pa.field("modality", pa.string(), nullable=False),
        pa.field("start", pa.int64(), nullable=False),
        pa.field("length", pa.int64(), nullable=False),
        pa.field("codebooks", pa.int16(), nullable=False),
        pa.field("grid_height", pa.int16(), nullable=False),
        pa.field("grid_width", pa.int16(), nullable=False),
        pa.field("samples", pa.int64(), nullable=False),
        pa.field("sample_rate", pa.int32(), nullable=False),
        pa.field("item_hash", pa.string(), nullable=False),
        pa.field("loss", pa.bool_(), nullable=False),
        pa.field("scales", pa.list_(pa.field("item", pa.float32(), nullable=False)), nullable=False),
    ]
)

_WITH_FRAMES: tuple[AudioLayout, ...] = ("flat", "delay")  # whose tokens are one frame or step after another


def span_to_dict(span: Span) -> dict[str, object]:
    """A span as the row of :data:`SPAN_TYPE`."""
    return {name: getattr(span, name) for name in SPAN_FIELDS} | {"scales": list(span.scales)}


def spans_column(spans: Spans) -> pa.ListArray:
    """The ``spans`` of documents as a column of lists of :data:`SPAN_TYPE`."""
    offsets = np.concatenate([np.zeros(1, dtype=np.int32), np.cumsum(spans.counts, dtype=np.int32)])
    arrays = [pa.array(spans.columns[field.name], type=field.type) for field in SPAN_TYPE]
    flat = pa.StructArray.from_arrays(arrays, fields=list(SPAN_TYPE))
    return pa.ListArray.from_arrays(pa.array(offsets), flat, type=pa.list_(pa.field("item", SPAN_TYPE, nullable=False)))


def span_from_dict(row: dict[str, object]) -> Span:
    """The span of a row of :data:`SPAN_TYPE`."""
    values = {name: row[name] for name in SPAN_FIELDS}
    return Span(**(values | {"scales": tuple(values["scales"])}))  # type: ignore[arg-type]


def picture_grids(spans: Iterable[Mapping[str, Any]]) -> list[tuple[int, int]]:
    """(rows, columns) of the pictures that are there, of the rows of :data:`SPAN_TYPE` of a document, in order."""
    return [(s["grid_height"], s["grid_width"]) for s in spans if s["modality"] == "image" and s["codebooks"]]


@dataclass(frozen=True, eq=False)
class SpanTable:
    """The spans of D documents.

    Attributes:
        offsets: int64 [D + 1]; the spans of document d are the rows ``offsets[d]:offsets[d + 1]``.
        start: int64 [S], tokens from the document's first.
        length: int64 [S], tokens.
        modality: uint8 [S], index into :data:`tokkit.vocabulary.MODALITIES`.
        loss: bool [S], whether it is to be learnt (False: only given, such as a question); None where all are.
        frame: int32 [S], of a sound that is its frames one after another between two markers the tokens of a frame, else 0;
            None where there is no such sound.
    """

    offsets: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    modality: npt.NDArray[np.uint8]
    loss: npt.NDArray[np.bool_] | None = None
    frame: npt.NDArray[np.int32] | None = None

    @classmethod
    def from_columns(cls, columns: Iterable[pa.ChunkedArray], audio: str | None = None) -> SpanTable:
        """From the ``spans`` columns of one or more tables, in order.

        Args:
            audio: the layout of sounds (:class:`tokkit.interleave.Layout`); without it no frames are told apart.
        """
        arrays = [chunk for column in columns for chunk in column.chunks]
        counts = [np.zeros(1, dtype=np.int64)]
        starts, lengths, modalities, losses, books = [], [], [], [], []
        names = pa.array(MODALITIES)
        for array in arrays:
            counts.append(np.diff(array.offsets.to_numpy()).astype(np.int64))
            flat = array.flatten()  # honours slices and offsets, unlike .values
            starts.append(flat.field("start").to_numpy())
            lengths.append(flat.field("length").to_numpy())
            modalities.append(pc.index_in(flat.field("modality"), names).to_numpy(zero_copy_only=False))
            losses.append(flat.field("loss").to_numpy(zero_copy_only=False))
            books.append(flat.field("codebooks").to_numpy())
        loss = _joined(losses, np.bool_)
        length, modality = _joined(lengths, np.int64), _joined(modalities, np.uint8)
        return cls(
            np.cumsum(np.concatenate(counts)),
            _joined(starts, np.int64),
            length,
            modality,
            None if loss.all() else loss,
            _frames(length, modality, _joined(books, np.int32)) if audio in _WITH_FRAMES else None,
        )

    @property
    def frames(self) -> npt.NDArray[np.int32]:
        """int32 [S]: :attr:`frame`, zeros where that is None."""
        return np.zeros(len(self.start), dtype=np.int32) if self.frame is None else self.frame


def _frames(
    length: npt.NDArray[np.int64], modality: npt.NDArray[np.uint8], books: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32] | None:
    """Tokens of a frame: one of each codebook. A sound whose length is no number of frames has none: it is damaged."""
    sound = np.flatnonzero((modality == MODALITIES.index("audio")) & (books > 0))
    sound = sound[(length[sound] - 2) % books[sound] == 0]
    if not sound.size:
        return None
    found = np.zeros(len(length), dtype=np.int32)
    found[sound] = books[sound]
    return found


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([a.astype(dtype) for a in arrays]) if arrays else np.zeros(0, dtype=dtype)
