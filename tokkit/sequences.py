"""Many documents at once: their ids one after another, their spans column by column.

What :func:`tokkit.interleave.encode` says of one document, for a batch of them and without a Python object a span. Documents of
one text each, which is all that a text corpus has, are put together by a handful of array operations whatever their number.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from tokkit.interleave import Layout, Part, Span, encode
from tokkit.ragged import split_rows
from tokkit.vocabulary import Ids, UnifiedVocabulary

Column = Sequence[object] | npt.NDArray[np.generic]

SPAN_FIELDS: tuple[str, ...] = tuple(Span.__dataclass_fields__)
_FIELDS_OF = attrgetter(*SPAN_FIELDS)


@dataclass(frozen=True, eq=False)
class Spans:
    """The spans of D documents.

    Attributes:
        counts: int64 [D], spans of each document.
        columns: by name of :class:`~tokkit.interleave.Span`'s fields, in their order: the values of all spans.
    """

    counts: npt.NDArray[np.int64]
    columns: dict[str, Column]

    @classmethod
    def of(cls, documents: Sequence[Sequence[Span]]) -> Spans:
        """From one list of spans a document."""
        rows = [_FIELDS_OF(span) for spans in documents for span in spans]
        columns: Iterable[Column] = zip(*rows, strict=True) if rows else ((),) * len(SPAN_FIELDS)
        return cls(_lengths(documents), dict(zip(SPAN_FIELDS, columns, strict=True)))


@dataclass(frozen=True, eq=False)
class Sequences:
    """D documents as they are written.

    Attributes:
        ids: int32 [T], one document after another, each with its markers.
        lengths: int64 [D], ids of each document.
        spans: of all documents.
    """

    ids: Ids
    lengths: npt.NDArray[np.int64]
    spans: Spans

    def kinds(self, documents: npt.NDArray[np.bool_] | None = None) -> Counter[str]:
        """Tokens by modality, and under ``marker`` those outside of any span (the documents' ends).

        Args:
            documents: bool [D], which of them; all where it is None.
        """
        chosen = slice(None) if documents is None else np.repeat(documents, self.spans.counts)
        total = int(self.lengths.sum() if documents is None else self.lengths[documents].sum())
        modality = np.asarray(self.spans.columns["modality"], dtype=object)[chosen]
        length = np.asarray(self.spans.columns["length"], dtype=np.int64)[chosen]
        found = Counter({name: int(length[modality == name].sum()) for name in sorted(set(modality.tolist()))})
        found["marker"] = total - found.total()
        return found

    def split(self) -> list[Ids]:
        """The ids of each document, as views."""
        return split_rows(self.ids, self.lengths)


def encode_documents(documents: Sequence[Sequence[Part]], vocabulary: UnifiedVocabulary, layout: Layout) -> Sequences:
    """Documents of any parts; see :func:`tokkit.interleave.encode`, errors included."""
    encoded = [encode(parts, vocabulary, layout) for parts in documents]
    ids = [ids for ids, _ in encoded]
    flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int32)
    return Sequences(flat, _lengths(ids), Spans.of([spans for _, spans in encoded]))


def encode_texts(codes: Ids, lengths: npt.NDArray[np.int64], vocabulary: UnifiedVocabulary) -> Sequences:
    """Documents of one text each.

    Args:
        codes: int32 [T], the text ids of all, one document after another.
        lengths: int64 [D], text ids of each; a text without ids makes no span.

    Raises:
        VocabularyError: a text id that the vocabulary does not have, or not as text.
    """
    ends = np.cumsum(lengths + 2)
    ids = np.empty(len(codes) + 2 * len(lengths), dtype=np.int32)
    begin, end = ends - lengths - 2, ends - 1
    inside = np.ones(len(ids), dtype=bool)
    inside[begin] = inside[end] = False
    ids[inside] = vocabulary.encode("text", codes)
    ids[begin], ids[end] = vocabulary.marker("begin_document"), vocabulary.marker("end_document")
    counts = (lengths > 0).astype(np.int64)
    number = int(counts.sum())
    plain = Span("text", 1, 0)
    columns: dict[str, Column] = {name: [value] * number for name, value in zip(SPAN_FIELDS, _FIELDS_OF(plain), strict=True)}
    columns["length"] = lengths[lengths > 0]
    return Sequences(ids, lengths + 2, Spans(counts, columns))


def _lengths(lists: Sequence[Sequence[object] | Ids]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
