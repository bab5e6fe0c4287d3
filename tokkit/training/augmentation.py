"""Which pictures a training step sees, and how they are varied: a pure function of seed and step.

Sample number ``n`` of a run (``step * batch_size + slot``) is position ``n mod N`` of a permutation that is drawn from the
seed and the epoch ``n div N``. Its crop and flip are drawn from the seed and ``n``. Nothing is carried from step to step, so a
resumed run sees exactly what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Numbers that keep the random streams of one seed apart.
_ORDER, _VARIATION = 1, 2


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Random resized square crop and mirror.

    Attributes:
        min_area: smallest area of the crop, as a share of the largest square in the picture; the largest is all of it.
        flip: mirror half of the samples.
    """

    min_area: float = 0.8
    flip: bool = True

    def apply(self, pixels: NDArray[np.uint8], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
        """One variation of uint8 ``[H, W, 3]``, as uint8 ``[size, size, 3]`` (bicubic)."""
        height, width = pixels.shape[:2]
        side = min(height, width) * sqrt(rng.uniform(self.min_area, 1.0))
        left, top = rng.uniform(0, width - side), rng.uniform(0, height - side)
        mirrored = self.flip and rng.random() < 0.5
        box = (left, top, left + side, top + side)
        crop = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC, box=box))
        return crop[:, ::-1] if mirrored else crop

    @property
    def margin(self) -> float:
        """How much larger than the crop's output a picture's shorter side must be for no crop to be enlarged."""
        return 1 / sqrt(self.min_area)


def variation_of(seed: int, number: int) -> np.random.Generator:
    """What crop and flip of sample ``number`` are drawn from."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, _VARIATION, number])))


class BatchMaker:
    """Batches by number.

    Args:
        pictures: uint8 ``[H, W, 3]`` each, at least one.
        size: side of the output.
        batch_size: pictures of a batch; a picture can come twice where there are fewer.
        seed: of the order and of the variations.
    """

    def __init__(
        self, pictures: Sequence[NDArray[np.uint8]], size: int, batch_size: int, seed: int, augmentation: Augmentation
    ) -> None:
        self.pictures = pictures
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

    def batch(self, step: int) -> NDArray[np.uint8]:
        """uint8 ``[batch_size, size, size, 3]`` of a step (from 0)."""
        return self.part(step, 0, 1)

    def part(self, step: int, part: int, parts: int) -> NDArray[np.uint8]:
        """One of ``parts`` equal parts of a step's batch; together they are the batch."""
        return np.stack([self.sample(n) for n in self.numbers(step, part, parts)])

    def numbers(self, step: int, part: int, parts: int) -> range:
        """Numbers of the samples of a part."""
        count = self.batch_size // parts
        first = step * self.batch_size + part * count
        return range(first, first + count)

    def state(self) -> dict[str, Any]:
        """Nothing: which pictures a step sees is said by its number."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on; see :meth:`state`."""

    def close(self) -> None:
        """Nothing is under way."""

    def sample(self, number: int) -> NDArray[np.uint8]:
        """uint8 ``[size, size, 3]``: sample ``number`` of the run."""
        epoch, position = divmod(number, len(self.pictures))
        picture = self.pictures[self._permutation(epoch)[position]]
        return self.augmentation.apply(picture, self.size, variation_of(self.seed, number))

    def _draw_permutation(self, epoch: int) -> NDArray[np.int64]:
        rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([self.seed, _ORDER, epoch])))
        return rng.permutation(len(self.pictures))
