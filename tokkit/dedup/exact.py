"""Equal keys: which labels are shared, and by whom.

Keys are hashes, so a part of the key spreads them evenly over partitions. Each partition is gone through twice in blocks: once
to learn which keys come more than once, once to tell who has them. What is held in memory is a block and the partition's
different keys, so a key that half of the corpus has does no harm.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from tokkit.dedup.records import KEY, LABELLED, Emit, Records
from tokkit.dedup.spill import Spill


def partition_of_key(keys: npt.NDArray[np.bytes_], partitions: int) -> npt.NDArray[np.int64]:
    """A partition for each key, S16 [n]; by bytes that nothing else here is decided by."""
    parts = np.ascontiguousarray(keys).view("<u4").reshape(-1, 4)[:, 1]
    return (parts % np.uint32(partitions)).astype(np.int64)


def label_shared(references: Spill, rows: int, emit: Emit, first_label: int = 0) -> int:
    """Give each key that comes more than once a label, and hand on every place that has one.

    Args:
        references: REFERENCE records, partitioned by :func:`partition_of_key`.
        rows: records held at a time.
        emit: takes LABELLED records.
        first_label: labels are numbered from here.

    Returns:
        the first number that is free.
    """
    label = first_label
    for partition in range(references.partitions):
        shared = _shared_keys(references.read(partition, rows))
        if not len(shared):
            continue
        for block in references.read(partition, rows):
            # Sorted keys are looked up in sorted keys: several times faster than in any other order.
            block = block[np.argsort(block["key"], kind="stable")]
            keys = np.ascontiguousarray(block["key"])
            place = np.minimum(np.searchsorted(shared, keys), len(shared) - 1)
            found = shared[place] == keys
            emit(labelled(block[found], label + place[found]))
        label += len(shared)
    return label


def labelled(records: Records, labels: npt.NDArray[np.int64], kind: int | None = None) -> Records:
    """The places of ``records`` as LABELLED records; ``kind`` where the records have none of their own."""
    result = np.empty(len(records), LABELLED)
    result["label"] = labels
    for name in ("unit", "position", "item"):
        result[name] = records[name]
    result["kind"] = records["kind"] if kind is None else kind
    return result


def _shared_keys(blocks: Iterator[Records]) -> npt.NDArray[np.bytes_]:
    """The keys, sorted, that come more than once in all blocks together."""
    keys, again = np.empty(0, KEY), np.empty(0, np.bool_)
    for block in blocks:
        more, counts = np.unique(np.ascontiguousarray(block["key"]), return_counts=True)
        if not len(keys):
            keys, again = more, counts > 1
            continue
        merged, inverse = np.unique(np.concatenate([keys, more]), return_inverse=True)
        repeated = np.bincount(inverse, minlength=len(merged)) > 1
        repeated[inverse[: len(keys)][again]] = True
        repeated[inverse[len(keys) :][counts > 1]] = True
        keys, again = merged, repeated
    return keys[again]
