"""Which document and which media item is kept: all in order, each against what was kept so far.

The rule, for the documents that would be committed if there were no other, in the order of the output:

1. a document whose content, else whose text, a kept document has is a duplicate of that one; what is in it stays unseen;
2. a media item that shares its bytes, else its looks, with a kept item (of an earlier document or of this one) is a
   duplicate of that one;
3. a pair whose items are all duplicates goes with them; one that has a new item stays whole, duplicates included;
4. any other document goes on without its duplicates, and goes if nothing is left of it, no text and no item;
5. a document that stays, and each item in it that does, is *kept*: later ones are compared with it.

So everything that goes is a duplicate of something that is in the output. Looking at each kind of label by itself would not
give that: of two pairs with one caption the first may go because its picture is an old one, and nobody would then have the
caption.

Only labels that at least two places share matter, so only places that have one are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.dedup.records import BYTES, DECISION, TEXT, Records

NOBODY = 2**32 - 1  # in Holders.unit: nothing kept has the label
STAYS = 255  # in the kernel's answer: no duplicate

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Holders:
    """By label: the place that is kept, arrays [labels]. ``unit`` begins as ``NOBODY``."""

    unit: npt.NDArray[np.uint32]
    position: npt.NDArray[np.uint32]
    item: npt.NDArray[np.int32]


@dataclass(frozen=True)
class Documents:
    """Documents that have a shared label: ``pair``, ``text`` (bool) and ``sound`` (items that would be committed), each [n]."""

    pair: npt.NDArray[np.bool_]
    text: npt.NDArray[np.bool_]
    sound: npt.NDArray[np.int64]


def in_order(records: Records) -> Records:
    """LABELLED records by place, an item's labels in the order in which they are asked about."""
    return records[np.lexsort((records["kind"], records["item"], records["position"], records["unit"]))]


def document_edges(records: Records) -> Ints:
    """Where each document's records begin in sorted ``records``, and their end: int64 [documents + 1]."""
    new = np.ones(len(records), np.bool_)
    new[1:] = (records["unit"][1:] != records["unit"][:-1]) | (records["position"][1:] != records["position"][:-1])
    return np.append(np.flatnonzero(new), len(records)).astype(np.int64)


def decide(records: Records, edges: Ints, documents: Documents, holders: Holders) -> tuple[Records, Ints]:
    """Go through documents in order.

    Args:
        records: LABELLED, from :func:`in_order`; those of one document all in one call, documents in order over all calls.
        edges: of :func:`document_edges`.
        documents: the documents at these edges.
        holders: changed in place.

    Returns:
        the duplicates, DECISION records in order, and the unit of each.
    """
    columns = {name: np.ascontiguousarray(records[name]) for name in ("unit", "position", "item", "kind", "label")}
    why = np.full(len(records), STAYS, np.uint8)
    of = np.zeros((len(records), 3), np.int64)
    _decide(
        columns["unit"], columns["position"], columns["item"], columns["kind"], columns["label"],
        edges, documents.pair, documents.text, documents.sound,
        holders.unit, holders.position, holders.item, why, of,
    )  # fmt: skip
    found = np.flatnonzero(why != STAYS)
    result = np.empty(len(found), DECISION)
    result["position"], result["item"], result["kind"] = columns["position"][found], columns["item"][found], why[found]
    result["of_unit"], result["of_position"], result["of_item"] = of[found].T
    return result, columns["unit"][found].astype(np.int64)


@nb.njit(cache=True, nogil=True)
def _decide(
    unit: Any, position: Any, item: Any, kind: Any, label: Any,
    edges: Any, pair: Any, text: Any, sound: Any,
    held_unit: Any, held_position: Any, held_item: Any, why: Any, of: Any,
) -> None:  # fmt: skip
    """See the module; marks the first record of each duplicate place."""
    for document in range(edges.size - 1):
        first, last = edges[document], edges[document + 1]
        items = first
        gone = False
        while items < last and kind[items] <= TEXT:
            if not gone and held_unit[label[items]] != NOBODY:
                _mark(items, items, kind, label, held_unit, held_position, held_item, why, of)
                gone = True
            items += 1
        if gone:
            continue
        duplicates = 0
        row = items
        while row < last:
            end = row + 1
            while end < last and item[end] == item[row]:
                end += 1
            known = -1
            for r in range(row, end):
                if known < 0 and held_unit[label[r]] != NOBODY:
                    known = r
            if known >= 0:
                _mark(row, known, kind, label, held_unit, held_position, held_item, why, of)
                duplicates += 1
            else:  # not undone below: a document with a new item stays
                for r in range(row, end):
                    _hold(r, unit, position, item, label, held_unit, held_position, held_item)
            row = end
        if duplicates > 0 and duplicates == sound[document] and (pair[document] or not text[document]):
            continue
        whole = pair[document] and duplicates > 0
        for r in range(first, last):
            if whole and kind[r] >= BYTES:
                why[r] = STAYS
            if kind[r] <= TEXT or whole:
                _hold(r, unit, position, item, label, held_unit, held_position, held_item)


@nb.njit(cache=True, nogil=True)
def _mark(
    row: int, by: int, kind: Any, label: Any, held_unit: Any, held_position: Any, held_item: Any, why: Any, of: Any
) -> None:
    """Write down that the place of ``row`` is a duplicate, by the label of record ``by``."""
    holder = label[by]
    why[row] = kind[by]
    of[row, 0], of[row, 1], of[row, 2] = held_unit[holder], held_position[holder], held_item[holder]


@nb.njit(cache=True, nogil=True)
def _hold(
    row: int, unit: Any, position: Any, item: Any, label: Any, held_unit: Any, held_position: Any, held_item: Any
) -> None:
    """The place of ``row`` is what later ones with its label are duplicates of, unless there is one already."""
    mine = label[row]
    if held_unit[mine] == NOBODY:
        held_unit[mine], held_position[mine], held_item[mine] = unit[row], position[row], item[row]
