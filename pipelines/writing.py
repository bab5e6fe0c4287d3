"""What a unit's documents come to: tokens and rows, written batch by batch, and counted by split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.documents import Document
from tokkit.pipelines.ledger import SplitCounts, sorted_counts
from tokkit.sequences import Column, Sequences
from tokkit.shards.manifest import ShardFile
from tokkit.shards.native import document_table

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig


class Sink(Protocol):
    """Where tokens and rows go: a :class:`~tokkit.shards.native.ShardWriter`."""

    def extend(self, ids: npt.NDArray[np.integer], table: pa.Table) -> None:
        """Take documents: their tokens one after another, and their rows."""


class PayloadWriter(Protocol):
    """What writes the files of a unit's payload."""

    def finish(self, name: str | None = None, *, prefix: str = "") -> dict[str, ShardFile]:
        """Give the files their names; see :meth:`tokkit.shards.native.ShardWriter.finish`."""


@dataclass(slots=True)
class _SplitTally:
    """What a unit adds to a split."""

    documents: int = 0
    kinds: Counter[str] = field(default_factory=Counter)


class DocumentWriter:
    """Writes one unit's documents.

    Args:
        config: says which metadata is kept and how large a share is held out.
        unit: its number.
    """

    def __init__(self, config: ShardConfig, unit: int, sink: Sink) -> None:
        self._config, self._unit, self._sink = config, unit, sink
        self._splits = {split: _SplitTally() for split in (("train", "val") if config.val_fraction else ("train",))}

    def write(self, documents: Sequence[Document], sequences: Sequences) -> Counter[str]:
        """Write documents in order; returns their tokens by kind."""
        splits = [self._split_of(document) for document in documents]
        columns: dict[str, Column] = {
            "id": [document.id for document in documents],
            "source": [document.source for document in documents],
            "locator": [document.locator for document in documents],
            "unit": [self._unit] * len(documents),
            "split": splits,
            "tokens": sequences.lengths,
            "hash": [document.hash for document in documents],
            "metadata": [self._metadata_of(document) for document in documents],
        }
        self._sink.extend(sequences.ids, document_table(columns, sequences.spans))
        kinds: Counter[str] = Counter()
        for name, tally in self._splits.items():
            number = splits.count(name)
            if not number:
                continue
            found = sequences.kinds(None if number == len(splits) else np.array([split == name for split in splits]))
            tally.documents += number
            tally.kinds.update(found)
            kinds.update(found)
        return kinds

    def counts(self) -> dict[str, SplitCounts]:
        """What was written so far, by split."""
        return {
            name: SplitCounts(documents=tally.documents, tokens=tally.kinds.total(), tokens_by_kind=sorted_counts(tally.kinds))
            for name, tally in self._splits.items()
        }

    def _split_of(self, document: Document) -> str:
        fraction = self._config.val_fraction
        return "val" if fraction and document.draw("split") < fraction else "train"

    def _metadata_of(self, document: Document) -> str | None:
        if not self._config.metadata:
            return None
        metadata = {key: document.metadata[key] for key in self._config.metadata if key in document.metadata}
        return json.dumps(metadata, sort_keys=True, default=str) if metadata else None
