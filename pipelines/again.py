"""Documents of a unit encoded once more, and where what was encoded the first time lies."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.documents import Document, Failure
from tokkit.pipelines.attempt import Attempt
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.work import Report
from tokkit.ragged import split_rows
from tokkit.vocabulary import Ids

if TYPE_CHECKING:
    from tokkit.pipelines.unit import UnitProcessor


def encode_again(
    processor: UnitProcessor,
    planned: PlannedUnit,
    documents: Iterable[Document],
    duplicates: Mapping[str, Mapping[int, Failure]] = MappingProxyType({}),
    report: Report = lambda work: None,
) -> tuple[list[tuple[Ids, dict[str, Any]]], dict[str, str]]:
    """Encode some documents of a unit as a run does, in batches of the same shape, and write nothing.

    Args:
        duplicates: media items that were left out as duplicates, by locator and index.
        report: called now and then, as a sign of life.

    Returns:
        ids and row of each that would be committed, as they are stored; and, by locator, why the others would not.
    """
    attempt, kept = Attempt(processor, planned, report), _Kept()
    attempt.write_to(kept)
    return kept.documents, go_through(attempt, documents, duplicates)


def go_through(
    attempt: Attempt, documents: Iterable[Document], duplicates: Mapping[str, Mapping[int, Failure]]
) -> dict[str, str]:
    """Have an attempt encode these documents and no others; returns by locator why some would not be committed."""
    for document in documents:
        attempt.take(document, duplicates.get(document.locator, {}))
    attempt.encode_rest()
    attempt.drain(0)
    lines = [json.loads(line) for line in attempt.tally.lines]
    return {e["locator"]: f"{e['reason']}: {e['message']}" for e in lines if e["level"] == "document"}


class _Kept:
    """Stands in for a ShardWriter and keeps what it is given: ids and row of each document."""

    def __init__(self) -> None:
        self.documents: list[tuple[Ids, dict[str, Any]]] = []

    def extend(self, ids: npt.NDArray[np.integer], table: pa.Table) -> None:
        rows = table.to_pylist()
        lengths = table.column("tokens").to_numpy()
        self.documents += zip(split_rows(ids.astype(np.int32, copy=False), lengths), rows, strict=True)


def payload_paths(ledger: Ledger, record: CommitRecord) -> tuple[Path, Path]:
    """A committed unit's token file and document table."""
    return ledger.payload(record.payload["bin"]), ledger.payload(record.payload["parquet"])
