"""Pictures to codes in batches of one fixed shape, by a tokenizer in this process or by an encoder process.

A batch is filled by the pictures of one unit in order, and only the last is not full; what stands in it does not depend on who
encodes it, nor on when its codes come back.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from tokkit.errors import TransientError
from tokkit.pipelines.assembly import Slot

Pixels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]


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
    """A tokenizer in this process: a batch is encoded when it is submitted."""

    depth = 1

    def __init__(self, tokenizer: Encodes, batch_size: int) -> None:
        self._tokenizer, self._batch_size = tokenizer, batch_size
        self._codes: deque[Codes] = deque()

    def submit(self, pictures: Sequence[Pixels]) -> None:
        try:
            self._codes.append(self._tokenizer.encode_padded(pictures, self._batch_size))
        except RuntimeError as error:
            if out_of_memory(error):
                raise TransientError(no_memory(self._batch_size, error)) from error
            raise

    def arrived(self) -> bool:
        return bool(self._codes)

    def collect(self) -> Codes:
        return self._codes.popleft()

    def close(self) -> None:
        self._codes.clear()


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
        self._waiting: list[tuple[int, Slot, Pixels]] = []
        self._under_way: deque[list[Slot]] = deque()

    def add(self, number: int, slot: Slot, pixels: Pixels) -> None:
        """Queue a picture ``[H, W, 3]`` of the unit's document ``number``."""
        self._waiting.append((number, slot, pixels))

    def full(self) -> bool:
        return len(self._waiting) >= self._batch_size

    @property
    def oldest(self) -> int | None:
        """The document of the first picture that is in no batch yet."""
        return self._waiting[0][0] if self._waiting else None

    def run(self) -> int:
        """Submit what waits, at most one batch, once the encoder's queue has room; returns how many pictures got codes."""
        done = 0
        while len(self._under_way) >= self._encoder.depth:
            done += self.receive()
        batch, self._waiting = self._waiting[: self._batch_size], self._waiting[self._batch_size :]
        if batch:
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
        self._under_way.clear()
        self._encoder.close()
