"""Pictures for training that are more than memory holds: read, decoded and cropped while the training goes on.

An epoch goes through all units in an order drawn from the seed. Of the encoded pictures a block is held at a time
(``block_bytes``), put into an order of its own, and dealt out; the next block is read meanwhile. Processes decode and crop a
few steps ahead.

The place in the stream is four numbers: epoch, unit and pictures of it to leave out where the block begins, and how far the
block is dealt out. They are the same in every process of a run, since each slot of a batch is filled by itself: where its
picture cannot be decoded, the next one of the block stands in. So a resumed run sees what an unbroken one would have seen.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokkit.documents import Failure, Outcome
from tokkit.errors import ItemError, UsageError
from tokkit.media.images import DEFAULT_LIMITS, ImageLimits, decode_image
from tokkit.media.transforms import Preprocessing, flatten
from tokkit.sources.base import Source, Unit
from tokkit.training.augmentation import Augmentation, variation_of
from tokkit.training.pictures import UNIT_BYTES, Picture, Reject, is_held_out, pictures_in_unit, pictures_of, slightly_larger

BLOCK_BYTES = 256 * 2**20
AHEAD = 4  # steps that are prepared before they are asked for

# Of the random streams of one seed, that of orders within blocks.
_BLOCK = 3


@dataclass(frozen=True, slots=True)
class Place:
    """Where a block begins (epoch, unit in the epoch's order, pictures of the unit before it), and how much is dealt out."""

    epoch: int = 0
    unit: int = 0
    skip: int = 0
    dealt: int = 0


@dataclass(frozen=True, slots=True)
class _Block:
    """Pictures that are held: bytes with their locators, in the order in which they are dealt out."""

    place: Place
    pictures: list[tuple[str, bytes]]
    after: Place


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an encoded picture becomes a sample; sent to the processes that do it."""

    preprocessing: Preprocessing
    augmentation: Augmentation
    seed: int
    limits: ImageLimits = DEFAULT_LIMITS

    def sample(self, data: bytes, number: int) -> NDArray[np.uint8]:
        """Decode and vary; raises ItemError where the bytes are at fault."""
        image = flatten(decode_image(data, self.limits), self.preprocessing.background)
        pixels = slightly_larger(image, self.preprocessing, self.augmentation.margin)
        return self.augmentation.apply(pixels, self.preprocessing.size, variation_of(self.seed, number))


def _try(recipe: Recipe, locator: str, data: bytes, number: int) -> NDArray[np.uint8] | Reject:
    try:
        return recipe.sample(data, number)
    except ItemError as error:
        return Reject(locator, Outcome.REJECTED, error.reason, error.message)


@dataclass
class _Slot:
    """A sample being made: the block and where in it, its number, and what becomes of it."""

    block: _Block
    index: int
    number: int
    result: Future[NDArray[np.uint8] | Reject] | None = field(default=None)


class PictureStream:
    """Batches out of sources of any size; see the module's docstring.

    Args:
        sources: read again in each epoch.
        recipe: how pictures are decoded and varied.
        batch_size: pictures of a step, over all processes.
        val_fraction: share that is held out and left out here.
        own: the parts of a batch (of ``parts``) that this process asks for, in order.
        workers: processes that decode; 0: it is done when a batch is asked for.
        rejected: told of each picture that cannot be used, at each time it comes up.
        block_bytes: encoded pictures held at once; there may be two blocks more for a moment.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        recipe: Recipe,
        batch_size: int,
        *,
        val_fraction: float = 0.0,
        own: range = range(1),
        parts: int = 1,
        workers: int = 0,
        rejected: Callable[[Reject], None] = lambda reject: None,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.recipe, self.batch_size, self.val_fraction = recipe, batch_size, val_fraction
        self.own, self.parts, self.rejected, self.block_bytes = own, parts, rejected, block_bytes
        self.units = [(source, unit) for source in sources for unit in source.units(UNIT_BYTES)]
        self.dealt = 0  # samples so far
        self._place = Place()
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="pictures")
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._begin()

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the units: says whether two runs train on the same, as far as names and sizes tell."""
        lines = [f"{unit.source}\0{unit.file}\0{unit.start}\0{unit.stop}\0{unit.bytes}" for _, unit in self.units]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()

    def part(self, step: int, part: int, parts: int) -> NDArray[np.uint8]:
        """uint8 ``[n, size, size, 3]``; parts are asked for in order, each once."""
        if parts != self.parts or part not in self.own:
            raise ValueError(f"part {part} of {parts} is not this stream's")
        if part == self.own[0]:
            self._next_step()
        slots = self._step[self.own.index(part)]
        return np.stack([self._made(slot) for slot in slots])

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
        """Let processes and the reading thread end."""
        self._reader.shutdown(wait=False, cancel_futures=True)
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    # ---- steps

    def _begin(self) -> None:
        self._entries = self._dealing(self._place, self.dealt)
        self._waiting: deque[tuple[list[list[_Slot]], Place, int]] = deque()
        self._step: list[list[_Slot]] = []

    def _next_step(self) -> None:
        while len(self._waiting) < (AHEAD if self._workers else 1):
            self._waiting.append(self._planned())
        self._step, self._place, self.dealt = self._waiting.popleft()

    def _planned(self) -> tuple[list[list[_Slot]], Place, int]:
        """The slots of this process's parts of the next step, under way already, and the place and count behind them."""
        entries = list(islice(self._entries, self.batch_size))
        count = self.batch_size // self.parts
        mine = [[slot for slot, _ in entries[part * count : (part + 1) * count]] for part in self.own]
        for slot in (slot for part in mine for slot in part):
            slot.result = self._submit(slot)
        last, place = entries[-1]
        return mine, place, last.number + 1

    def _dealing(self, place: Place, number: int) -> Iterator[tuple[_Slot, Place]]:
        """Slots without end, each with the place behind it; the block after the one that is dealt out is read meanwhile."""
        coming = self._reader.submit(self._read, place)
        while True:
            block = coming.result()
            coming = self._reader.submit(self._read, block.after)
            for index in range(block.place.dealt, len(block.pictures)):
                behind = Place(block.place.epoch, block.place.unit, block.place.skip, index + 1)
                yield _Slot(block, index, number), behind if index + 1 < len(block.pictures) else block.after
                number += 1

    def _submit(self, slot: _Slot) -> Future[NDArray[np.uint8] | Reject] | None:
        if not self._workers:
            return None
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"))
        return self._pool.submit(_try, self.recipe, *slot.block.pictures[slot.index], slot.number)

    def _made(self, slot: _Slot) -> NDArray[np.uint8]:
        """The sample; where its picture is at fault, one of the next in the block that is not."""
        pictures = slot.block.pictures
        for attempt in range(len(pictures)):
            chosen = pictures[(slot.index + attempt) % len(pictures)]
            early = slot.result is not None and attempt == 0
            made = slot.result.result() if early and slot.result else _try(self.recipe, *chosen, slot.number)
            if not isinstance(made, Reject):
                return made
            self.rejected(made)
        raise UsageError(f"none of {len(pictures)} pictures in a row can be decoded; see rejects.jsonl")

    # ---- blocks

    def _read(self, place: Place) -> _Block:
        """The block that begins at a place, and where the one after it begins."""
        epoch, order = place.epoch, self._order(place.epoch)
        found: list[tuple[str, bytes]] = []
        held, unit, skip = 0, place.unit, place.skip
        while held < self.block_bytes and unit < len(order):
            number = 0
            for picture in islice(pictures_in_unit(*self.units[order[unit]]), skip, None):
                number += 1
                data = self._usable(picture, first=epoch == 0)
                if data is not None:
                    found.append(data)
                    held += len(data[1])
                if held >= self.block_bytes:
                    break
            else:
                unit, skip = unit + 1, 0
                continue
            skip += number
        after = Place(epoch, unit, skip) if unit < len(order) else Place(epoch + 1)
        if not found:
            if place.unit == 0 and place.skip == 0 and after.epoch > epoch:
                raise UsageError("no picture to train on in the inputs (see rejects.jsonl)")
            return self._read(after)
        shuffled = self._generator(_BLOCK, epoch, place.unit, place.skip).permutation(len(found))
        return _Block(place, [found[i] for i in shuffled.tolist()], after)

    def _usable(self, picture: Picture | Reject, first: bool) -> tuple[str, bytes] | None:
        """What is trained on; of the rest, what is at fault is told in the first epoch."""
        if isinstance(picture, Reject):
            if first:
                self.rejected(picture)
            return None
        if picture.media.data is None:
            failure = picture.media.failure or Failure(Outcome.REJECTED, "no-data")
            if first:
                self.rejected(Reject(picture.locator, failure.outcome, failure.reason, failure.message))
            return None
        if is_held_out(picture.media, self.val_fraction):
            return None
        return picture.locator, picture.media.data

    def _order(self, epoch: int) -> list[int]:
        def drawn(number: int) -> bytes:
            unit: Unit = self.units[number][1]
            what = f"{self.recipe.seed}\0{epoch}\0{unit.source}\0{unit.file}\0{unit.start}"
            return hashlib.sha256(what.encode("utf-8", "surrogatepass")).digest()

        return sorted(range(len(self.units)), key=drawn)

    def _generator(self, *what: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.recipe.seed, *what])))


def held_out_of(
    sources: Sequence[Source],
    recipe: Recipe,
    val_fraction: float,
    count: int,
    rejected: Callable[[Reject], None] = lambda reject: None,
) -> tuple[list[NDArray[np.uint8]], str]:
    """Held-out pictures by the tokenizer's own preprocessing, in the order of their hashes, and a digest of them.

    They are looked for in the first pictures of the inputs, in an order drawn from the seed, among so many that ``count`` of
    them are to be expected; the others that are held out are never looked at.
    """
    found: dict[str, NDArray[np.uint8]] = {}
    if val_fraction:
        for picture in islice(pictures_of(sources, recipe.seed), int(count / val_fraction) + 1):
            if isinstance(picture, Reject) or picture.media.data is None or not is_held_out(picture.media, val_fraction):
                continue
            try:
                found[picture.media.hash] = recipe.preprocessing.apply(decode_image(picture.media.data, recipe.limits))
            except ItemError as error:
                rejected(Reject(picture.locator, Outcome.REJECTED, error.reason, error.message))
                continue
            if len(found) == count:
                break
    names = sorted(found)
    return [found[name] for name in names], hashlib.sha256("\n".join(names).encode()).hexdigest()
