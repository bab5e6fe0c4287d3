"""Spans on disk and in memory: which stretch of a document's tokens is text, a picture, a sound.

On disk each document's row holds a list of structs (:data:`SPAN_TYPE`); in memory the spans of many documents are one
:class:`SpanTable` of flat arrays, which packing and loading read without touching Python objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

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


@dataclass(frozen=True, eq=False)
class SpanTable:
    """The spans of D documents.

    Attributes:
        offsets: int64 [D + 1]; the spans of document d are the rows ``offsets[d]:offsets[d + 1]``.
        start: int64 [S], tokens from the document's first.
        length: int64 [S], tokens.
        modality: uint8 [S], index into :data:`tokkit.vocabulary.MODALITIES`.
        loss: bool [S], whether it is to be learnt (False: only given, such as a question); None where all are.
    """

    offsets: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    modality: npt.NDArray[np.uint8]
    loss: npt.NDArray[np.bool_] | None = None

    @classmethod
    def from_columns(cls, columns: Iterable[pa.ChunkedArray]) -> SpanTable:
        """From the ``spans`` columns of one or more tables, in order."""
        arrays = [chunk for column in columns for chunk in column.chunks]
        counts = [np.zeros(1, dtype=np.int64)]
        starts, lengths, modalities, losses = [], [], [], []
        names = pa.array(MODALITIES)
        for array in arrays:
            counts.append(np.diff(array.offsets.to_numpy()).astype(np.int64))
            flat = array.flatten()  # honours slices and offsets, unlike .values
            starts.append(flat.field("start").to_numpy())
            lengths.append(flat.field("length").to_numpy())
            modalities.append(pc.index_in(flat.field("modality"), names).to_numpy(zero_copy_only=False))
            losses.append(flat.field("loss").to_numpy(zero_copy_only=False))
        loss = _joined(losses, np.bool_)
        return cls(
            np.cumsum(np.concatenate(counts)),
            _joined(starts, np.int64),
            _joined(lengths, np.int64),
            _joined(modalities, np.uint8),
            None if loss.all() else loss,
        )


def _joined(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([a.astype(dtype) for a in arrays]) if arrays else np.zeros(0, dtype=dtype)
