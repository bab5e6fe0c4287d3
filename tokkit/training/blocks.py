"""Training on more than memory holds: units of the input read again in each epoch, a block of what is in them held at a time.

An epoch goes through all units in an order drawn from the seed. What is found in them becomes entries, of which a block is held
(``block_bytes``), put into an order of its own, and dealt out, each entry a slot of a batch; the next block is read meanwhile.
What an entry is and what is made of it is told by who derives from :class:`BlockStream`.

The place in the stream is four numbers: epoch, unit and items of it to leave out where the block begins, and how far the block
is dealt out. They are the same in every process of a run. So a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokkit.documents import Media
from tokkit.errors import UsageError
from tokkit.sources.base import Unit
from tokkit.training.items import Units, is_held_out

BLOCK_BYTES = 256 * 2**20
AHEAD = 4  # steps that are prepared before they are asked for

# Of the random streams of one seed, that of orders within blocks.
_BLOCK = 3

Item = TypeVar("Item")
Entry = TypeVar("Entry")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block begins (epoch, unit in the epoch's order, items of the unit before it), and how much is dealt out."""

    epoch: int = 0
    unit: int = 0
    skip: int = 0
    dealt: int = 0


@dataclass(frozen=True, slots=True)
class Block(Generic[Entry]):
    """What is held, in the order in which it is dealt out."""

    place: Place
    entries: list[Entry]
    after: Place


@dataclass
class Slot(Generic[Entry]):
    """A sample being made: the block and where in it, its number, and what becomes of it."""

    block: Block[Entry]
    index: int
    number: int
    result: Future[Any] | None = field(default=None)

    @property
    def entry(self) -> Entry:
        """What it is made of."""
        return self.block.entries[self.index]


@dataclass(frozen=True, slots=True)
class _Step(Generic[Entry]):
    """A step's slots of this process, part by part; the block that its last slot is from; place and count behind it."""

    parts: list[list[Slot[Entry]]]
    block: Block[Entry]
    place: Place
    dealt: int


class BlockStream(ABC, Generic[Item, Entry]):
    """Batches out of inputs of any size; see the module's docstring.

    Args:
        units: read again in each epoch.
        seed: of orders.
        batch_size: samples of a step, over all processes.
        own: the parts of a batch (of ``parts``) that this process asks for, in order.
        ahead: steps whose slots are begun before they are asked for.
        block_bytes: held at once; there may be two blocks more for a moment.
        kind: what is trained on, for messages.
    """

    def __init__(
        self,
        units: Units[Item],
        seed: int,
        batch_size: int,
        *,
        own: range = range(1),
        parts: int = 1,
        ahead: int = 1,
        block_bytes: int = BLOCK_BYTES,
        kind: str = "picture",
    ) -> None:
        self.units, self.seed, self.batch_size = units, seed, batch_size
        self.own, self.parts, self.block_bytes = own, parts, block_bytes
        self.dealt = 0  # samples so far
        self._ahead, self._kind = ahead, kind
        self._place = Place()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix=f"{kind}s")
        self._first: Block[Entry] | None = None
        self._begin()

    # ---- what is told by those who derive

    @abstractmethod
    def entries(self, items: Iterator[Item], first: bool) -> Iterator[tuple[list[Entry], int]]:
        """Of each item of a unit in turn, the entries that it makes and the bytes that they hold.

        Called in the reading thread. What is at fault is told in the ``first`` epoch only.
        """

    @abstractmethod
    def made(self, slot: Slot[Entry]) -> NDArray[Any]:
        """The sample of a slot."""

    def submit(self, slot: Slot[Entry]) -> Future[Any] | None:
        """Begin to make a sample before it is asked for."""
        return None

    # ---- for the task

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the units: says whether two runs train on the same, as far as names and sizes tell."""
        lines = [f"{unit.source}\0{unit.file}\0{unit.start}\0{unit.stop}\0{unit.bytes}" for unit, _ in self.units]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def part(self, step: int, part: int, parts: int) -> NDArray[Any]:
        """One of ``parts`` equal parts of the batch of a step, stacked; parts are asked for in order, each once."""
        if parts != self.parts or part not in self.own:
            raise ValueError(f"part {part} of {parts} is not this stream's")
        if part == self.own[0]:
            self._next_step()
        assert self._step is not None
        return np.stack([self.made(slot) for slot in self._step.parts[self.own.index(part)]])

    @property
    def block(self) -> Block[Entry]:
        """The block of the newest batch's last sample; before any batch, the first one. The same in every process."""
        if self._step is not None:
            return self._step.block
        if self._first is None:
            self._first = self._reader.submit(self._read, self._place).result()
        return self._first

    def state(self) -> dict[str, Any]:
        """The place behind the newest batch."""
        place = self._place
        return {"epoch": place.epoch, "unit": place.unit, "skip": place.skip, "dealt": place.dealt, "samples": self.dealt}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._place = Place(*(int(state[key]) for key in ("epoch", "unit", "skip", "dealt")))
        self.dealt = int(state["samples"])
        self._begin()

    def close(self) -> None:
        """Let the reading thread end."""
        self._reader.shutdown(wait=False, cancel_futures=True)

    # ---- steps

    def _begin(self) -> None:
        self._slots = self._dealing(self._place, self.dealt)
        self._waiting: deque[_Step[Entry]] = deque()
        self._step: _Step[Entry] | None = None

    def _next_step(self) -> None:
        while len(self._waiting) < self._ahead:
            self._waiting.append(self._planned())
        self._step = self._waiting.popleft()
        self._place, self.dealt = self._step.place, self._step.dealt

    def _planned(self) -> _Step[Entry]:
        """The slots of this process's parts of the next step, under way already."""
        dealt = list(islice(self._slots, self.batch_size))
        count = self.batch_size // self.parts
        mine = [[slot for slot, _ in dealt[part * count : (part + 1) * count]] for part in self.own]
        for slot in (slot for part in mine for slot in part):
            slot.result = self.submit(slot)
        last, place = dealt[-1]
        return _Step(mine, last.block, place, last.number + 1)

    def _dealing(self, place: Place, number: int) -> Iterator[tuple[Slot[Entry], Place]]:
        """Slots without end, each with the place behind it; the block after the one that is dealt out is read meanwhile."""
        first, self._first = self._first, None
        if first is not None and first.place == place:
            coming: Future[Block[Entry]] = Future()
            coming.set_result(first)
        else:
            coming = self._reader.submit(self._read, place)
        while True:
            block = coming.result()
            coming = self._reader.submit(self._read, block.after)
            for index in range(block.place.dealt, len(block.entries)):
                behind = Place(block.place.epoch, block.place.unit, block.place.skip, index + 1)
                yield Slot(block, index, number), behind if index + 1 < len(block.entries) else block.after
                number += 1

    # ---- blocks

    def _read(self, place: Place) -> Block[Entry]:
        """The block that begins at a place, and where the one after it begins."""
        epoch, order = place.epoch, self._order(place.epoch)
        found: list[Entry] = []
        held, unit, skip = 0, place.unit, place.skip
        while held < self.block_bytes and unit < len(order):
            number = 0
            items = islice(self.units[order[unit]][1](), skip, None)
            for entries, size in self.entries(items, epoch == 0):
                number += 1
                found += entries
                held += size
                if held >= self.block_bytes:
                    break
            else:
                unit, skip = unit + 1, 0
                continue
            skip += number
        after = Place(epoch, unit, skip) if unit < len(order) else Place(epoch + 1)
        if not found:
            if place.unit == 0 and place.skip == 0 and after.epoch > epoch:
                raise UsageError(f"no {self._kind} to train on in the inputs (see rejects.jsonl)")
            return self._read(after)
        shuffled = self._generator(_BLOCK, epoch, place.unit, place.skip).permutation(len(found))
        return Block(place, [found[i] for i in shuffled.tolist()], after)

    def _order(self, epoch: int) -> list[int]:
        def drawn(number: int) -> bytes:
            unit: Unit = self.units[number][0]
            what = f"{self.seed}\0{epoch}\0{unit.source}\0{unit.file}\0{unit.start}"
            return hashlib.sha256(what.encode("utf-8", "surrogatepass")).digest()

        return sorted(range(len(self.units)), key=drawn)

    def _generator(self, *what: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, *what])))


def held_out_among(
    media: Iterable[tuple[str, Media] | None],
    val_fraction: float,
    count: int,
    made: Callable[[str, Media], NDArray[Any] | None],
) -> tuple[list[NDArray[Any]], str]:
    """What is held out, in the order of the hashes, and a digest of them.

    They are looked for in the first items of the inputs, among so many that ``count`` of them are to be expected; the others
    that are held out are never looked at.

    Args:
        media: with their places, in an order drawn from the seed; None for what cannot be read.
        made: a sample of what is held out, from place and item; None where it cannot be decoded.
    """
    found: dict[str, NDArray[Any]] = {}
    if val_fraction:
        for one in islice(media, int(count / val_fraction) + 1):
            if one is None or one[1].data is None or not is_held_out(one[1], val_fraction):
                continue
            sample = made(*one)
            if sample is None:
                continue
            found[one[1].hash] = sample
            if len(found) == count:
                break
    names = sorted(found)
    return [found[name] for name in names], hashlib.sha256("\n".join(names).encode()).hexdigest()
