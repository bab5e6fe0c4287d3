"""Pictures for training that are more than memory holds: read, decoded and cropped while the training goes on.

A stream of blocks (:mod:`tokkit.training.blocks`) of encoded pictures; processes decode and crop a few steps ahead. Each slot
of a batch is filled by itself: where its picture cannot be decoded, the next one of the block stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokkit.documents import Failure, Media, Outcome
from tokkit.errors import ItemError, UsageError
from tokkit.media.images import DEFAULT_LIMITS, ImageLimits, decode_image
from tokkit.media.transforms import Preprocessing, flatten
from tokkit.sources.base import Source
from tokkit.training.augmentation import Augmentation, variation_of
from tokkit.training.blocks import AHEAD, BLOCK_BYTES, BlockStream, Slot, held_out_among
from tokkit.training.items import Reject, is_held_out
from tokkit.training.pictures import Picture, picture_units, pictures_of, slightly_larger

Encoded = tuple[str, bytes]
"""A picture's place and its bytes."""


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


class PictureStream(BlockStream[Picture | Reject, Encoded]):
    """Batches uint8 ``[n, size, size, 3]`` out of sources of any size; see the module's docstring.

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
        self.recipe, self.val_fraction, self.rejected = recipe, val_fraction, rejected
        self._workers = workers
        self._pool: ProcessPoolExecutor | None = None
        ahead = AHEAD if workers else 1
        units = picture_units(sources)
        super().__init__(units, recipe.seed, batch_size, own=own, parts=parts, ahead=ahead, block_bytes=block_bytes)

    def close(self) -> None:
        """Let processes and the reading thread end."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def entries(self, items: Iterator[Picture | Reject], first: bool) -> Iterator[tuple[list[Encoded], int]]:
        for picture in items:
            data = self._usable(picture, first)
            yield ([], 0) if data is None else ([data], len(data[1]))

    def submit(self, slot: Slot[Encoded]) -> Future[Any] | None:
        if not self._workers:
            return None
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._workers, get_context("spawn"))
        return self._pool.submit(_try, self.recipe, *slot.entry, slot.number)

    def made(self, slot: Slot[Encoded]) -> NDArray[np.uint8]:
        """The sample; where its picture is at fault, one of the next in the block that is not."""
        pictures = slot.block.entries
        for attempt in range(len(pictures)):
            chosen = pictures[(slot.index + attempt) % len(pictures)]
            early = slot.result is not None and attempt == 0
            made = slot.result.result() if early and slot.result else _try(self.recipe, *chosen, slot.number)
            if not isinstance(made, Reject):
                return made
            self.rejected(made)
        raise UsageError(f"none of {len(pictures)} pictures in a row can be decoded; see rejects.jsonl")

    def _usable(self, picture: Picture | Reject, first: bool) -> Encoded | None:
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


def held_out_of(
    sources: Sequence[Source],
    recipe: Recipe,
    val_fraction: float,
    count: int,
    rejected: Callable[[Reject], None] = lambda reject: None,
) -> tuple[list[NDArray[np.uint8]], str]:
    """Held-out pictures by the tokenizer's own preprocessing, and a digest of them: :func:`held_out_among`."""

    def made(locator: str, media: Media) -> NDArray[np.uint8] | None:
        try:
            return recipe.preprocessing.apply(decode_image(media.data or b"", recipe.limits))
        except ItemError as error:
            rejected(Reject(locator, Outcome.REJECTED, error.reason, error.message))
            return None

    found = pictures_of(sources, recipe.seed)
    places = (None if isinstance(picture, Reject) else (picture.locator, picture.media) for picture in found)
    return held_out_among(places, val_fraction, count, made)
