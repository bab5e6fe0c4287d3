"""What the encoding pass knows of duplicates: for each document and item of a unit, whether it is one, and of which.

There are the units' indexes and one file of decisions (:mod:`tokkit.pipelines.dedup` wrote both, and
:mod:`tokkit.pipelines.index_files` knows where they lie). A worker reads a unit's decisions when it begins it; the locators of
the kept documents are looked up in their units' indexes.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokkit.dedup.decisions import Decisions
from tokkit.dedup.index import UnitIndex
from tokkit.dedup.records import BYTES, CONTENT, LOOKS, TEXT
from tokkit.documents import Document, Failure, Original, Outcome, modality_of
from tokkit.errors import DataError
from tokkit.pipelines.index_files import FOLDER, IndexFiles
from tokkit.pipelines.ledger import Ledger
from tokkit.storage import fingerprint_of

MOST_OPEN = 128  # indexes that are mapped at a time


def recorded_duplicates(rejects: Path) -> dict[str, dict[int, Failure]]:
    """The media items that a unit's reject list names as duplicates, by locator and index.

    Raises:
        OSError: it cannot be read. ValueError, KeyError: it is no reject list.
    """
    found: dict[str, dict[int, Failure]] = {}
    with rejects.open(encoding="ascii") as file:
        for line in file:
            entry = json.loads(line)
            if entry["level"] == "item" and "of" in entry:
                failure = Failure(Outcome.DUPLICATE, entry["reason"], entry["message"], Original(**entry["of"]))
                found.setdefault(entry["locator"], {})[entry["item"]] = failure
    return found


def basis_of(poison: Mapping[int, Sequence[int]]) -> bytes:
    """What decisions rest on besides the units and the options, which do not change: the documents that are known to kill.

    Args:
        poison: their positions, by unit.
    """
    return bytes.fromhex(fingerprint_of(sorted((unit, sorted(positions)) for unit, positions in poison.items())))


def outdated(decisions: Decisions, ledger: Ledger) -> bool:
    """Whether something that kills has been found since the decisions were made."""
    return decisions.basis != basis_of(ledger.all_poison())


@dataclass(frozen=True)
class DuplicateTable:
    """Where the decisions are; picklable.

    Attributes:
        files: where they lie.
        sources: the name of each unit's source, by unit.
        poison: what they rest on: positions of the documents that are known to kill, by unit.
    """

    files: IndexFiles
    sources: tuple[str, ...]
    poison: Mapping[int, Sequence[int]]

    def placed(self, out: Path) -> DuplicateTable:
        """The same for workers that have another folder of the output, on another machine."""
        return replace(self, files=replace(self.files, folder=out / "run" / FOLDER))

    def open(self) -> OpenTable:
        """Map the file of decisions, as it lies there now."""
        return OpenTable(self)


class OpenTable:
    """The decisions, mapped, and the indexes that locators were looked up in last."""

    def __init__(self, table: DuplicateTable) -> None:
        self._table = table
        decisions = table.files.decisions(basis_of(table.poison))
        table.files.bring([decisions])
        self._decisions = Decisions.open(decisions, len(table.sources))
        self._indexes: OrderedDict[int, UnitIndex] = OrderedDict()

    def of_unit(self, unit: int) -> UnitDuplicates:
        """The decisions about a unit."""
        return UnitDuplicates(self, unit, self._decisions)

    def original(self, unit: int, position: int, item: int) -> Original:
        """The place that is kept, as people and other files know it; ``item`` is -1 for the document itself."""
        return Original(self._table.sources[unit], self.locator(unit, position), item if item >= 0 else None)

    def locator(self, unit: int, position: int) -> str:
        """The locator of a document."""
        index = self._indexes.pop(unit, None) or self._index(unit)
        self._indexes[unit] = index
        if len(self._indexes) > MOST_OPEN:
            self._indexes.popitem(last=False)
        return index.locator(position)

    def _index(self, unit: int) -> UnitIndex:
        path = self._table.files.index(unit, self._table.poison.get(unit, ()))
        self._table.files.bring([path])
        return UnitIndex.open(path)


class UnitDuplicates:
    """The duplicates of one unit, asked for by the document's position: how many the reader yielded before it.

    Attributes:
        digest: what the commit record says of the decisions that the unit was done under.
    """

    def __init__(self, table: OpenTable, unit: int, decisions: Decisions) -> None:
        self._table, self._unit = table, unit
        self.digest = decisions.digest(unit)
        self._found: dict[int, dict[int, tuple[int, int, int, int]]] = {}
        for position, item, kind, *of in decisions.of_unit(unit).tolist():
            self._found.setdefault(position, {})[item] = (kind, *of)

    def document(self, position: int, document: Document) -> Failure | None:
        """Why the document as a whole is not committed, if it is for its content or its text.

        Raises:
            DataError: the reader yields another document here than the one that was indexed.
        """
        mine = self._found.get(position)
        if mine is None:
            return None
        indexed = self._table.locator(self._unit, position)
        if indexed != document.locator:
            raise DataError(
                f"document {position} of unit {self._unit} is {document.source}/{document.locator}, but was "
                f"{indexed} when it was indexed: the source does not read the same twice"
            )
        return self._failure(mine[-1], "document") if -1 in mine else None

    def items(self, position: int, document: Document) -> dict[int, Failure]:
        """The document's media items that are left out for their bytes or their looks, by index."""
        media = document.media
        found = self._found.get(position, {})
        return {i: self._failure(why, modality_of(media[i])) for i, why in found.items() if i >= 0}  # type: ignore[arg-type]

    def _failure(self, found: tuple[int, int, int, int], what: str) -> Failure:
        kind, unit, position, item = found
        of = self._table.original(unit, position, item)
        reason = {CONTENT: "same-content", TEXT: "same-text", BYTES: f"same-{what}", LOOKS: f"near-{what}"}[kind]
        how = {
            CONTENT: "the content of",
            TEXT: "the text of",
            BYTES: f"the bytes of {what} {item} of",
            LOOKS: f"nearly the looks of {what} {item} of",
        }[kind]
        return Failure(Outcome.DUPLICATE, reason, f"{how} {of.source}/{of.locator}", of)
