"""Pictures to codes in batches of fixed shapes, by a tokenizer in this process or by an encoder process.

A batch is filled by the pictures of one size of one unit, in order. Only the last of a size is not full, and those that had to
go before they were, because too much waited; what stands in a batch does not depend on who encodes it, nor on when its codes
come back.
"""

from __future__ import annotations

import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tokkit.errors import TransientError
from tokkit.pipelines.assembly import Slot

Pixels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]

WAITING_BYTES = 128 << 20  # of pixels that may wait for batches to fill where there are several shapes


class BatchEncoder(Protocol):
    """Encodes batches and gives their codes back in the same order."""

    depth: int  # batches that may be under way

    def submit(self, pictures: Sequence[Pixels]) -> None:
        """Begin to encode pictures ``[H, W, 3]``, at most as many as a batch holds."""

    def arrived(self) -> bool:
        """Whether the codes of the oldest batch under way are there."""

    def collect(self) -> Codes:
        """The codes ``[n, h, w]`` or ``[n, K, h, w]`` of the oldest batch under way; waits for them.

        Raises:
            TransientError: it cannot be encoded just now.
        """

    def close(self) -> None:
        """Give up what is under way."""


class Encodes(Protocol):
    """What an image tokenizer must be able to do here."""

    def encode_padded(self, pictures: Sequence[Pixels], batch_size: int) -> Codes:
        """Codes of at most ``batch_size`` pictures; see :class:`tokkit.tokenizers.image.model.ImageTokenizer`."""


class Pending(Protocol):
    """A batch that is under way."""

    def ready(self) -> bool:
        """Whether :meth:`codes` would not wait."""

    def codes(self) -> Codes:
        """Its codes; waits for them."""


@runtime_checkable
class Begins(Encodes, Protocol):
    """A tokenizer that need not be waited for; see :class:`tokkit.tokenizers.image.bulk.BulkEncoder`.

    ``places`` is the number of batches that may be under way.
    """

    places: int

    def begin(self, pictures: Sequence[Pixels]) -> Pending:
        """Send at most a batch of pictures on its way."""


class LocalEncoder:
    """A tokenizer in this process: a batch is encoded when it is submitted, or, by one that begins, while others are filled."""

    def __init__(self, tokenizer: Encodes, batch_size: int) -> None:
        self._tokenizer, self._batch_size = tokenizer, batch_size
        self.depth = tokenizer.places if isinstance(tokenizer, Begins) else 1
        self._under_way: deque[Pending] = deque()

    def submit(self, pictures: Sequence[Pixels]) -> None:
        with self._memory():
            if isinstance(self._tokenizer, Begins):
                self._under_way.append(self._tokenizer.begin(pictures))
            else:
                self._under_way.append(_Made(self._tokenizer.encode_padded(pictures, self._batch_size)))

    def arrived(self) -> bool:
        return bool(self._under_way) and self._under_way[0].ready()

    def collect(self) -> Codes:
        with self._memory():
            return self._under_way.popleft().codes()

    def close(self) -> None:
        self._under_way.clear()

    @contextmanager
    def _memory(self) -> Iterator[None]:
        """That the device has no memory just now says nothing of a picture."""
        try:
            yield
        except RuntimeError as error:
            if out_of_memory(error):
                raise TransientError(no_memory(self._batch_size, error)) from error
            raise


@dataclass(frozen=True)
class _Made:
    """A batch that is not under way any more."""

    made: Codes

    def ready(self) -> bool:
        return True

    def codes(self) -> Codes:
        return self.made


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device has no memory (torch is not loaded to find out)."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def no_memory(batch_size: int, error: Exception) -> str:
    """What is told where the device has no memory for a batch."""
    return f"the device has no memory for a batch of {batch_size}: {error}"


class ImageBatcher:
    """Fills batches of one unit and hands the codes back.

    Args:
        batch_size: pictures of a batch; the encoder pads one that is not full with black pictures.
    """

    def __init__(self, encoder: BatchEncoder, batch_size: int) -> None:
        self._encoder, self._batch_size = encoder, batch_size
        self._waiting: defaultdict[object, list[tuple[int, Slot, Pixels]]] = defaultdict(list)  # by shape; none is empty
        self._bytes = 0  # of pixels that wait
        self._under_way: deque[list[Slot]] = deque()

    def add(self, number: int, slot: Slot, pixels: Pixels) -> None:
        """Queue a picture ``[H, W, 3]`` of the unit's document ``number``."""
        self._waiting[_shape(pixels)].append((number, slot, pixels))
        self._bytes += _size(pixels)

    def full(self) -> bool:
        """Whether a batch is to be encoded: one is full, or too much waits for batches of several shapes."""
        return any(len(lane) >= self._batch_size for lane in self._waiting.values()) or self._too_much()

    def _too_much(self) -> bool:
        return self._bytes > WAITING_BYTES and len(self._waiting) > 1

    @property
    def oldest(self) -> int | None:
        """The document of the first picture that is in no batch yet."""
        return min((lane[0][0] for lane in self._waiting.values()), default=None)

    def _next(self) -> list[tuple[int, Slot, Pixels]]:
        """The next batch: of the shape of which most waits, where that is enough, else of the oldest picture's."""
        if not self._waiting:
            return []
        shape = max(self._waiting, key=lambda shape: len(self._waiting[shape]))
        if len(self._waiting[shape]) < self._batch_size and not self._too_much():
            shape = min(self._waiting, key=lambda shape: self._waiting[shape][0][0])
        lane = self._waiting.pop(shape)
        batch, rest = lane[: self._batch_size], lane[self._batch_size :]
        if rest:
            self._waiting[shape] = rest
        self._bytes -= sum(_size(pixels) for _, _, pixels in batch)
        return batch

    def run(self) -> int:
        """Submit what waits, at most one batch, once the encoder's queue has room; returns how many pictures got codes."""
        done = 0
        while len(self._under_way) >= self._encoder.depth:
            done += self.receive()
        if batch := self._next():
            self._encoder.submit([pixels for _, _, pixels in batch])
            self._under_way.append([slot for _, slot, _ in batch])
        while self._under_way and self._encoder.arrived():
            done += self.receive()
        return done

    def receive(self) -> int:
        """Wait for the oldest batch under way; returns how many pictures got codes, 0 where none is under way."""
        if not self._under_way:
            return 0
        codes = self._encoder.collect()
        slots = self._under_way.popleft()
        for slot, item in zip(slots, codes, strict=True):
            slot.codes = item
        return len(slots)

    def close(self) -> None:
        """Give up what waits and what is under way."""
        self._waiting.clear()
        self._bytes = 0
        self._under_way.clear()
        self._encoder.close()


def _shape(item: object) -> object:
    """Pictures of one shape share batches; so do items that the encoder brings to a shape itself."""
    return item.shape if isinstance(item, np.ndarray) else None


def _size(item: object) -> int:
    return item.nbytes if isinstance(item, np.ndarray) else 0
