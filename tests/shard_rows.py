"""Documents as tests name them, written to a shard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tokkit.interleave import Span
from tokkit.sequences import Spans
from tokkit.shards.native import ShardWriter, document_table


@dataclass(frozen=True)
class Row:
    """A document, whose id, locator and hash are ``name``."""

    name: str
    ids: npt.NDArray[np.integer]
    spans: Sequence[Span] = ()
    metadata: str | None = None


def append(writer: ShardWriter, rows: Sequence[Row], split: str = "train", at_once: int = 100) -> None:
    """Add documents to a shard, so many at once."""
    for first in range(0, len(rows), at_once):
        part = rows[first : first + at_once]
        names = [row.name for row in part]
        columns = dict.fromkeys(("id", "locator", "hash"), names) | {"metadata": [row.metadata for row in part]}
        columns |= {"source": ["made"] * len(part), "unit": [0] * len(part), "split": [split] * len(part)}
        columns |= {"tokens": [len(row.ids) for row in part]}
        table = document_table(columns, Spans.of([tuple(row.spans) for row in part]))
        writer.extend(np.concatenate([row.ids for row in part]), table)
