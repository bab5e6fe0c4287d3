"""What a plan costs, by source and by modality: documents and spans that were cut, what was left out, and padding.

The sums over sources are the plan's own counts. A sequence's padding belongs to the sources of its documents by the share of
its tokens; the shares are rounded so that they add up. Pictures are never cut, so only text and sounds have cut spans: their
column is the proof. Spans are read only where something was cut or left out; else ``by_modality`` is empty.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.packing.cuts import TEXT
from tokkit.packing.split import LeftOut, Pieces
from tokkit.packing.store import ModalityCounts, SourceCounts
from tokkit.shards.native import TokenShards
from tokkit.vocabulary import MODALITIES

Array = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Account:
    """The counts, sources in the manifest's order, those without documents left out."""

    by_source: dict[str, SourceCounts]
    by_modality: dict[str, ModalityCounts]


def account(pieces: Pieces, pack_offsets: Array, seq_len: int, left_out: LeftOut, shards: TokenShards) -> Account:
    """What a plan over the documents of these shards costs.

    Raises:
        DataError: a document table cannot be read.
    """
    cut = np.flatnonzero(np.asarray(pieces.start) > 0)
    return Account(
        _by_source(pieces, np.asarray(pack_offsets), seq_len, left_out, cut, shards),
        _by_modality(pieces, left_out, cut, shards) if cut.size or left_out.num_tokens else {},
    )


def _by_source(
    pieces: Pieces, pack_offsets: Array, seq_len: int, left_out: LeftOut, cut: Array, shards: TokenShards
) -> dict[str, SourceCounts]:
    names, numbers = shards.sources
    many = len(names)

    def count(of: npt.NDArray[np.integer], weights: Array | None = None) -> list[int]:
        if weights is None:
            return np.bincount(of, minlength=many).tolist()
        found = np.zeros(many, dtype=np.int64)
        np.add.at(found, of, weights)
        return found.tolist()

    padding = _padding(np.asarray(pieces.length), pack_offsets, seq_len, numbers[pieces.document], many)
    columns = {
        "documents": count(numbers),
        "cut_documents": count(numbers[np.unique(np.asarray(pieces.document)[cut])]),
        "cuts": count(numbers[np.asarray(pieces.document)[cut]]),
        "left_out_documents": count(numbers[left_out.document]),
        "left_out_tokens": count(numbers[left_out.document], left_out.length),
    }
    all_tokens = count(numbers, shards.lengths)
    columns["tokens"] = [a - b for a, b in zip(all_tokens, columns["left_out_tokens"], strict=True)]
    columns["padding"] = _whole(padding)
    return {
        name: SourceCounts(**{key: values[n] for key, values in columns.items()})
        for n, name in enumerate(names)
        if columns["documents"][n]
    }


@nb.njit(cache=True, nogil=True)
def _padding(
    lengths: npt.NDArray[np.int32], pack_offsets: Array, seq_len: int, source: npt.NDArray[np.int32], many: int
) -> npt.NDArray[np.float64]:
    """float64 [sources]: each one's part of the padding."""
    found = np.zeros(many, dtype=np.float64)
    for pack in range(pack_offsets.size - 1):
        used = 0
        for i in range(pack_offsets[pack], pack_offsets[pack + 1]):
            used += lengths[i]
        for i in range(pack_offsets[pack], pack_offsets[pack + 1]):
            found[source[i]] += (seq_len - used) * (lengths[i] / used)
    return found


def _whole(parts: npt.NDArray[np.float64]) -> list[int]:
    """Parts of a whole number as whole numbers: rounded down, and those with the largest rests one up."""
    found = np.floor(parts + 1e-9).astype(np.int64)
    missing = round(float(parts.sum())) - int(found.sum())
    found[np.argsort(found - parts, kind="stable")[:missing]] += 1
    return [int(n) for n in found]


def _by_modality(pieces: Pieces, left_out: LeftOut, cut: Array, shards: TokenShards) -> dict[str, ModalityCounts]:
    spans = shards.spans
    document, start = np.asarray(pieces.document)[cut], np.asarray(pieces.start)[cut]
    cuts = _cuts_of_spans(document, start, spans.offsets, spans.start, spans.length)
    out = _spans_of(left_out.document, spans.offsets)
    found = {}
    for n, name in enumerate(MODALITIES):
        mine, within = spans.modality[out] == n, cuts[spans.modality == n]
        counts = ModalityCounts(
            spans=len(within),
            tokens=int(spans.length[spans.modality == n].sum()) - int(spans.length[out][mine].sum()),
            cut_spans=int((within > 0).sum()),
            frame_cuts=int(within.sum()) if n != TEXT else 0,
            left_out_spans=int(mine.sum()),
            left_out_tokens=int(spans.length[out][mine].sum()),
        )
        if counts.spans:
            found[name] = counts
    return found


@nb.njit(cache=True, nogil=True)
def _cuts_of_spans(document: Array, start: Array, offsets: Array, begin: Array, length: Array) -> npt.NDArray[np.int32]:
    """int32 [S]: how many pieces begin inside a span."""
    found = np.zeros(begin.size, dtype=np.int32)
    for i in range(document.size):
        for s in range(offsets[document[i]], offsets[document[i] + 1]):
            if begin[s] < start[i] < begin[s] + length[s]:
                found[s] += 1
    return found


def _spans_of(documents: Array, offsets: Array) -> Array:
    """The spans of these documents."""
    counts = offsets[documents + 1] - offsets[documents]
    shift = np.repeat(offsets[documents] - (np.cumsum(counts) - counts), counts)
    return np.arange(int(counts.sum())) + shift
