"""Pictures that look alike: connected components of 64-bit hashes within a Hamming distance.

Two hashes that differ in at most d bits agree in at least m - d of any m segments (the pigeonhole principle; Manku, Jain and
Das Sarma, "Detecting Near-Duplicates for Web Crawling", WWW 2007). So each choice of m - d segments makes a table: hashes
sorted by these bits, and within each run of equal bits all pairs are compared. More segments mean more tables with shorter
runs; m is chosen by the number of hashes, and the result does not depend on it: every pair within d bits is met in some
table, and no other pair is joined.

Equal hashes are put together before, so what is sorted and joined is different hashes only: about 28 bytes each, which go to
files where they exceed the memory given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.dedup.exact import labelled
from tokkit.dedup.records import LOOKS, Emit, Records
from tokkit.dedup.spill import Spill, partitions_for, rows_of, spilled_array

BITS = 64
MOST_DISTANCE = 16

_ENTRY = np.dtype([("hash", "<u8"), ("index", "<i8")])
_MIX = np.uint64(0x9E3779B97F4A7C15)

Hashes = npt.NDArray[np.uint64]


def partition_of_hash(hashes: Hashes, partitions: int) -> npt.NDArray[np.int64]:
    """A partition for each hash [n]; the bits are mixed first, because those of a perceptual hash are not evenly spread."""
    return ((hashes * _MIX >> np.uint64(33)) % np.uint64(partitions)).astype(np.int64)


def label_near(
    pictures: Spill,
    distance: int,
    memory: int,
    folder: Path,
    emit: Emit,
    first_label: int = 0,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Give each component of more than one picture a label, and hand on every picture that has one.

    Args:
        pictures: PICTURE records, partitioned by :func:`partition_of_hash`.
        distance: bits in which two hashes may differ to be joined.
        memory: bytes.
        folder: for what does not fit.
        emit: takes LABELLED records of the kind ``LOOKS``.
        first_label: labels are numbered from here.
        tick: called now and then.

    Returns:
        the first number that is free.
    """
    rows = rows_of(pictures.dtype, memory)
    different, counts, edges = _different(pictures, rows, memory, folder, tick)
    if not len(different):
        return first_label
    component = components(different, distance, memory, folder, tick)
    members = spilled_array(folder / "members", np.int64, len(different), memory)
    _count_members(component, counts, members)
    label = spilled_array(folder / "labels", np.int64, len(different), memory)
    free = _number_shared(component, members, label, first_label)
    for partition in range(pictures.partitions):
        first, last = edges[partition], edges[partition + 1]
        for block in pictures.read(partition, rows):
            mine = label[first + np.searchsorted(different[first:last], block["hash"])]
            shared = mine >= 0
            emit(labelled(block[shared], mine[shared], LOOKS))
        tick()
    return free


def _different(
    pictures: Spill, rows: int, memory: int, folder: Path, tick: Callable[[], None]
) -> tuple[Hashes, npt.NDArray[np.int64], list[int]]:
    """The different hashes, sorted within each partition, how often each comes, and where each partition begins."""
    hashes = spilled_array(folder / "hashes", np.uint64, pictures.rows, memory)
    counts = spilled_array(folder / "counts", np.int64, pictures.rows, memory)
    edges = [0]
    for partition in range(pictures.partitions):
        found, times = np.empty(0, np.uint64), np.empty(0, np.int64)
        for block in pictures.read(partition, rows):
            both = np.concatenate([found, block["hash"]])
            weights = np.concatenate([times, np.ones(len(block), np.int64)])
            found, inverse = np.unique(both, return_inverse=True)
            times = np.zeros(len(found), np.int64)
            np.add.at(times, inverse, weights)
        last = edges[-1] + len(found)
        hashes[edges[-1] : last], counts[edges[-1] : last] = found, times
        edges.append(last)
        tick()
    return hashes[: edges[-1]], counts[: edges[-1]], edges


# ---- components


def components(
    hashes: Hashes, distance: int, memory: int, folder: Path, tick: Callable[[], None] = lambda: None
) -> npt.NDArray[np.int64]:
    """The component of each of n different hashes: the lowest index of a hash in it, int64 [n]."""
    parent = spilled_array(folder / "components", np.int64, len(hashes), memory)
    parent[:] = np.arange(len(hashes))
    if distance > 0:
        for mask in masks(distance, segments_for(len(hashes), distance)):
            for block in _by_bits(hashes, mask, memory, folder):
                order = np.argsort(block["hash"] & mask, kind="stable")
                _join(block["hash"][order], block["index"][order], mask, distance, parent)
            tick()
    _flatten(parent)
    return parent


def segments_for(count: int, distance: int) -> int:
    """Segments m that make the fewest steps: sorting each of C(m, d) tables, and comparing within evenly filled runs."""

    def steps(segments: int) -> float:
        agreeing = BITS * (segments - distance) / segments
        return comb(segments, distance) * (150.0 * count + count * count / 2**agreeing)

    return min(range(distance + 1, distance + 6), key=steps)


def masks(distance: int, segments: int) -> Iterator[np.uint64]:
    """The bits of every choice of ``segments - distance`` of ``segments`` nearly equal segments."""
    cuts = [BITS * i // segments for i in range(segments + 1)]
    parts = [((1 << high) - 1) ^ ((1 << low) - 1) for low, high in pairwise(cuts)]
    for chosen in combinations(parts, segments - distance):
        yield np.uint64(sum(chosen))


def _by_bits(hashes: Hashes, mask: np.uint64, memory: int, folder: Path) -> Iterator[Records]:
    """Hashes with their indexes, in blocks such that all hashes with the same bits under ``mask`` are in one."""
    partitions = partitions_for(len(hashes), _ENTRY, memory)
    rows = rows_of(_ENTRY, memory)
    with Spill(folder / "bands", _ENTRY, partitions, memory) as spill:
        for first in range(0, len(hashes), rows):
            block = np.empty(len(hashes[first : first + rows]), _ENTRY)
            block["hash"] = hashes[first : first + rows]
            block["index"] = np.arange(first, first + len(block))
            spill.add(block, partition_of_hash(block["hash"] & mask, partitions))
        for partition in range(partitions):
            blocks = list(spill.read(partition, rows))
            if blocks:
                yield np.concatenate(blocks)


@nb.njit(cache=True, nogil=True)
def _distance(left: Any, right: Any) -> Any:
    """Bits in which two uint64 differ."""
    x = np.uint64(left) ^ np.uint64(right)
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@nb.njit(cache=True, nogil=True)
def _root(parent: npt.NDArray[np.int64], node: int) -> int:
    """The root of a node, halving the path to it."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@nb.njit(cache=True, nogil=True)
def _join(hashes: Hashes, index: npt.NDArray[np.int64], mask: np.uint64, distance: int, parent: npt.NDArray[np.int64]) -> None:
    """Join all pairs within ``distance`` in each run of equal bits; the lower root becomes the root of both."""
    begin = 0
    bits = np.uint64(mask)
    while begin < hashes.size:
        end = begin + 1
        while end < hashes.size and (hashes[end] & bits) == (hashes[begin] & bits):
            end += 1
        for i in range(begin, end):
            for j in range(i + 1, end):
                if _distance(hashes[i], hashes[j]) <= distance:
                    a, b = _root(parent, index[i]), _root(parent, index[j])
                    if a != b:
                        parent[max(a, b)] = min(a, b)
        begin = end


@nb.njit(cache=True, nogil=True)
def _flatten(parent: npt.NDArray[np.int64]) -> None:
    """Point every node at its root. Parents are never above their children, so one pass from the front is enough."""
    for node in range(parent.size):
        parent[node] = parent[parent[node]]


@nb.njit(cache=True, nogil=True)
def _count_members(component: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], members: npt.NDArray[np.int64]) -> None:
    for node in range(component.size):
        members[component[node]] += counts[node]


@nb.njit(cache=True, nogil=True)
def _number_shared(
    component: npt.NDArray[np.int64], members: npt.NDArray[np.int64], label: npt.NDArray[np.int64], first: int
) -> int:
    """Number the components of more than one picture by their roots, -1 for the others; returns the next free number."""
    free = first
    for node in range(component.size):
        root = component[node]
        if root == node:
            label[node] = -1
            if members[node] > 1:
                label[node] = free
                free += 1
        else:
            label[node] = label[root]
    return free
