"""What trainings find in their inputs, whatever the modality: units, the media in them, and what cannot be used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tokkit.documents import Media, Outcome
from tokkit.sources.base import ContainerDamage, Source, Unit

UNIT_BYTES = 16 * 2**20

Found = TypeVar("Found")
Kind = TypeVar("Kind", bound=Media)

Units = Sequence[tuple[Unit, Callable[[], Iterator[Found]]]]
"""Units of an input, each with what reads it."""


@dataclass(frozen=True, slots=True)
class Reject:
    """What was not used, and why."""

    locator: str
    outcome: Outcome
    reason: str
    message: str


def media_in_unit(source: Source, unit: Unit, kind: type[Kind]) -> Iterator[tuple[str, Kind] | Reject]:
    """The media of one kind in a unit, with their places, in the order of its file."""
    for found in source.read(unit):
        where = f"{source.name}/{found.locator}"
        if isinstance(found, ContainerDamage):
            yield Reject(where, Outcome.REJECTED, found.reason, f"bytes {found.start} to {found.stop}: {found.message}")
        elif found.failure is not None:
            yield Reject(where, found.failure.outcome, found.failure.reason, found.failure.message)
        else:
            for number, media in enumerate(found.media):
                if isinstance(media, kind):
                    yield f"{where}[{number}]" if len(found.media) > 1 else where, media


def units_of(sources: Iterable[Source]) -> list[tuple[Source, Unit]]:
    """The units of all sources, in order."""
    return [(source, unit) for source in sources for unit in source.units(UNIT_BYTES)]


def in_drawn_order(units: Units[Found], seed: int) -> Iterator[Found]:
    """What is in all units, those in an order drawn from the seed: a bounded memory then holds a part of each."""

    def drawn(unit: Unit) -> bytes:
        return hashlib.sha256(f"{seed}\0{unit.source}\0{unit.file}\0{unit.start}".encode("utf-8", "surrogatepass")).digest()

    for _, read in sorted(units, key=lambda pair: drawn(pair[0])):
        yield from read()


def is_held_out(media: Media, val_fraction: float) -> bool:
    """Whether an item belongs to the share that is held out; decided by its content hash alone."""
    return int(media.hash[:16], 16) / 2**64 < val_fraction
