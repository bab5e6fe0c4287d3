"""From the units' indexes to one file of decisions, within a given memory.

1. Every label of every unit goes to a partition by its hash (:mod:`tokkit.dedup.spill`).
2. Partition by partition, labels that at least two places share are numbered (:mod:`tokkit.dedup.exact`,
   :mod:`tokkit.dedup.near`), and the places that have one go to a bucket of consecutive units.
3. Bucket by bucket, documents are decided in order (:mod:`tokkit.dedup.decide`).

Nothing depends on the number of partitions or buckets, which follow from the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokkit.dedup.decide import NOBODY, Documents, Holders, decide, document_edges, in_order
from tokkit.dedup.decisions import BASIS_BYTES, DecisionWriter
from tokkit.dedup.exact import label_shared, partition_of_key
from tokkit.dedup.index import HAS_TEXT, IS_PAIR, TAKES_PART, UnitIndex
from tokkit.dedup.near import label_near, partition_of_hash
from tokkit.dedup.records import BYTES, CONTENT, LABELLED, PICTURE, REFERENCE, TEXT, Records
from tokkit.dedup.spill import Spill, partitions_for, rows_of, spilled_array
from tokkit.storage import replacing

_BLOCK = 1 << 16  # rows of an index that become records at a time

Tick = Callable[[], None]


@dataclass(frozen=True)
class Found:
    """What was found: labels that places share, places that have one, and duplicates by kind of label."""

    shared_labels: int
    places: int
    duplicates: tuple[int, int, int, int]


def find_duplicates(
    indexes: Sequence[Path],
    target: Path,
    *,
    scratch: Path,
    memory: int,
    distance: int | None = None,
    basis: bytes = bytes(BASIS_BYTES),
    tick: Tick = lambda: None,
) -> Found:
    """Decide about every document and item, and write the decisions.

    Args:
        indexes: files of :class:`~tokkit.dedup.index.UnitIndex`, one a unit, in unit order.
        target: the file of decisions; replaced atomically.
        scratch: a folder for what does not fit into memory; what it holds afterwards is of no use.
        memory: bytes to keep to, besides what one unit's part of them takes.
        basis: 32 bytes that name what the indexes rest on; kept with the decisions.
        distance: bits in which the perceptual hashes of pictures that look alike may differ; None does not ask for looks.
        tick: called now and then.

    Raises:
        DataError: an index is damaged.
    """
    sizes = [_sizes(path, distance is not None) for path in indexes]
    buckets = _buckets([exact + near for exact, near in sizes], memory)
    count = int(buckets[-1]) + 1 if len(buckets) else 1
    with Spill(scratch / "places", LABELLED, count, memory) as places:
        total = _label(indexes, sizes, places, buckets, scratch, memory, distance, tick)
        holders = Holders(
            spilled_array(scratch / "held-unit", np.uint32, total, memory),
            spilled_array(scratch / "held-position", np.uint32, total, memory),
            spilled_array(scratch / "held-item", np.int32, total, memory),
        )
        holders.unit[:] = NOBODY
        kinds = np.zeros(4, np.int64)
        with replacing(target) as temporary, temporary.open("w+b") as file:
            writer = DecisionWriter(file, len(indexes), basis)
            for bucket in range(count):
                blocks = list(places.read(bucket, rows_of(LABELLED, memory)))
                if blocks:
                    decisions, units = _decide(in_order(np.concatenate(blocks)), indexes, holders)
                    kinds += np.bincount(decisions["kind"], minlength=4)
                    writer.add(decisions, units)
                tick()
            writer.finish()
    return Found(total, places.rows, (int(kinds[0]), int(kinds[1]), int(kinds[2]), int(kinds[3])))


def _sizes(path: Path, looks: bool) -> tuple[int, int]:
    """At most how many exact labels, and how many perceptual hashes, a unit has."""
    index = UnitIndex.open(path, check=True)
    return len(index.content) + len(index.text) + len(index.item_bytes), len(index.item_looks) if looks else 0


def _buckets(sizes: Sequence[int], memory: int) -> npt.NDArray[np.int64]:
    """A bucket for each unit, in order, such that a bucket of several units fits into an eighth of the memory."""
    most = max(rows_of(LABELLED, memory), -(-sum(sizes) // 4096))
    numbers, filled, bucket = [], 0, 0
    for size in sizes:
        if filled and filled + size > most:
            bucket, filled = bucket + 1, 0
        filled += size
        numbers.append(bucket)
    return np.array(numbers, np.int64)


# ---- labels


def _label(
    indexes: Sequence[Path],
    sizes: Sequence[tuple[int, int]],
    places: Spill,
    buckets: npt.NDArray[np.int64],
    scratch: Path,
    memory: int,
    distance: int | None,
    tick: Tick,
) -> int:
    """Fill ``places`` with all places that share a label; returns the number of labels."""

    def emit(records: Records) -> None:
        places.add(records, buckets[records["unit"]])

    exact, near = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
    partitions = partitions_for(exact, REFERENCE, memory)
    with Spill(scratch / "references", REFERENCE, partitions, memory) as references:
        for unit, path in enumerate(indexes):
            for records in _references(UnitIndex.open(path), unit):
                references.add(records, partition_of_key(records["key"], partitions))
            tick()
        total = label_shared(references, rows_of(REFERENCE, memory), emit)
    if distance is None:
        return total
    partitions = partitions_for(near, PICTURE, memory)
    with Spill(scratch / "pictures", PICTURE, partitions, memory) as pictures:
        for unit, path in enumerate(indexes):
            for records in _pictures(UnitIndex.open(path), unit):
                pictures.add(records, partition_of_hash(records["hash"], partitions))
            tick()
        return label_near(pictures, distance, memory, scratch / "near", emit, total, tick)


def _references(index: UnitIndex, unit: int) -> Iterator[Records]:
    """A unit's exact labels."""
    for kind, keys, needed in ((CONTENT, index.content, TAKES_PART), (TEXT, index.text, TAKES_PART | HAS_TEXT)):
        for first in range(0, len(keys), _BLOCK):
            chosen = first + np.flatnonzero((index.flags[first : first + _BLOCK] & needed) == needed)
            yield _reference(keys[chosen], unit, chosen, -1, kind)
    for first in range(0, len(index.item_bytes), _BLOCK):
        part = slice(first, first + _BLOCK)
        yield _reference(index.item_bytes[part], unit, index.item_position[part], index.item_item[part], BYTES)


def _reference(keys: npt.NDArray[np.bytes_], unit: int, position: npt.NDArray, item: npt.NDArray | int, kind: int) -> Records:
    records = np.empty(len(keys), REFERENCE)
    records["key"], records["unit"], records["position"], records["item"], records["kind"] = keys, unit, position, item, kind
    return records


def _pictures(index: UnitIndex, unit: int) -> Iterator[Records]:
    """A unit's perceptual hashes."""
    for first in range(0, len(index.item_looks), _BLOCK):
        chosen = first + np.flatnonzero(index.item_looks[first : first + _BLOCK])
        records = np.empty(len(chosen), PICTURE)
        records["hash"], records["unit"] = index.item_looks[chosen], unit
        records["position"], records["item"] = index.item_position[chosen], index.item_item[chosen]
        yield records


# ---- decisions


def _decide(records: Records, indexes: Sequence[Path], holders: Holders) -> tuple[Records, npt.NDArray[np.int64]]:
    """The decisions about one bucket's documents, with what their units' indexes say of them."""
    edges = document_edges(records)
    unit, position = records["unit"][edges[:-1]], records["position"][edges[:-1]]
    pair, text = np.zeros(len(unit), np.bool_), np.zeros(len(unit), np.bool_)
    sound = np.zeros(len(unit), np.int64)
    for number in np.unique(unit):
        index = UnitIndex.open(indexes[number])
        first, last = np.searchsorted(unit, [number, number + 1])
        mine = position[first:last]
        pair[first:last] = (index.flags[mine] & IS_PAIR) != 0
        text[first:last] = (index.flags[mine] & HAS_TEXT) != 0
        sound[first:last] = index.sound[mine]
    return decide(records, edges, Documents(pair, text, sound), holders)
