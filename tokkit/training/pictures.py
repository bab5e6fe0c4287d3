"""The pictures of a training run, held in memory.

Pictures are decoded once, scaled to slightly more than the training size (so that random crops are never enlarged) and kept as
bytes. A share of them, chosen by content hash, is held out: those go through the tokenizer's own preprocessing instead, because
they measure what ``encode`` and ``decode`` will do. Pictures with the same bytes are taken once.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PILImage

from tokkit.documents import Failure, Image, Media, Outcome
from tokkit.errors import ItemError
from tokkit.media.images import DEFAULT_LIMITS, ImageLimits, decode_image
from tokkit.media.transforms import Preprocessing, flatten
from tokkit.sources.base import Source, Unit
from tokkit.training.items import Reject, Units, in_drawn_order, is_held_out, media_in_unit, units_of
from tokkit.training.prefetching import in_order

# Of a very long picture only the middle is kept, so that one panorama does not fill the memory.
MAX_KEPT_ASPECT = 3.0


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as found: its place and its bytes, or why there are none."""

    locator: str
    media: Media


@dataclass
class PictureSet:
    """What was read.

    Attributes:
        train: uint8 ``[H, W, 3]`` each, shorter side a little above the training size.
        held_out: uint8 ``[size, size, 3]`` each, by the tokenizer's preprocessing, in the order of their hashes.
        rejects: pictures that could not be used.
        seen: pictures read, rejects and duplicates included.
        full: the memory bound was reached before the input's end.
        digest: SHA-256 (hex) over the hashes of all pictures kept, in order: says whether two runs train on the same.
    """

    train: list[NDArray[np.uint8]] = field(default_factory=list)
    held_out: list[NDArray[np.uint8]] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)
    seen: int = 0
    full: bool = False
    digest: str = ""

    @property
    def reasons(self) -> dict[str, int]:
        """Rejects by reason, the most frequent first."""
        return dict(Counter(r.reason for r in self.rejects).most_common())


def picture_units(sources: Iterable[Source]) -> Units[Picture | Reject]:
    """The units of all sources, each with what reads the pictures in it."""
    return [(unit, partial(_pictures_in, source, unit)) for source, unit in units_of(sources)]


def pictures_of(sources: Iterable[Source], seed: int) -> Iterator[Picture | Reject]:
    """The pictures of all sources, units in an order drawn from the seed: a bounded memory then holds a part of each."""
    return in_drawn_order(picture_units(sources), seed)


def _pictures_in(source: Source, unit: Unit) -> Iterator[Picture | Reject]:
    for found in media_in_unit(source, unit, Image):
        yield found if isinstance(found, Reject) else Picture(*found)


def read_pictures(
    pictures: Iterable[Picture | Reject],
    preprocessing: Preprocessing,
    margin: float,
    val_fraction: float,
    cache_bytes: int,
    threads: int,
    limits: ImageLimits = DEFAULT_LIMITS,
) -> PictureSet:
    """Decode, scale and split pictures until the input or ``cache_bytes`` is used up.

    Args:
        pictures: in the order they are to be taken; a reject among them is passed on (a document that could not be read).
        margin: shorter side kept, over the training size (see :attr:`tokkit.training.augmentation.Augmentation.margin`).
        val_fraction: share held out; with more than one picture at least one is, unless this is 0.
        cache_bytes: of decoded pictures, both parts together.
        threads: that decode.
    """
    result = PictureSet()
    hashes: dict[str, NDArray[np.uint8]] = {}  # insertion order is reading order
    held_out: dict[str, NDArray[np.uint8]] = {}
    held = 0
    for picture, decoded in _decoded(pictures, preprocessing, margin, val_fraction, threads, limits):
        result.seen += isinstance(picture, Picture)
        if isinstance(decoded, Reject):
            result.rejects.append(decoded)
            continue
        digest, is_held_out, pixels = decoded
        if digest in hashes or digest in held_out:
            result.rejects.append(
                Reject(picture.locator, Outcome.DUPLICATE, "duplicate-picture", f"same bytes again: {digest}")
            )
            continue
        held += pixels.nbytes
        if held > cache_bytes and hashes:
            result.seen -= 1
            result.full = True
            break
        (held_out if is_held_out else hashes)[digest] = pixels
    if val_fraction > 0 and not held_out and len(hashes) > 1:
        chosen = min(hashes)
        held_out[chosen] = preprocessing.apply(PILImage.fromarray(hashes.pop(chosen)))
    result.train = list(hashes.values())
    result.held_out = [held_out[h] for h in sorted(held_out)]
    result.digest = hashlib.sha256("\n".join([*hashes, "", *sorted(held_out)]).encode()).hexdigest()
    return result


def _decoded(
    pictures: Iterable[Picture | Reject],
    preprocessing: Preprocessing,
    margin: float,
    val_fraction: float,
    threads: int,
    limits: ImageLimits,
) -> Iterator[tuple[Picture | Reject, Reject | tuple[str, bool, NDArray[np.uint8]]]]:
    """Decode in threads, a few pictures ahead, in the order of the input."""

    def work(picture: Picture | Reject) -> Reject | tuple[str, bool, NDArray[np.uint8]]:
        if isinstance(picture, Reject):
            return picture
        if picture.media.data is None:
            failure = picture.media.failure or Failure(Outcome.REJECTED, "no-data")
            return Reject(picture.locator, failure.outcome, failure.reason, failure.message)
        held_out = is_held_out(picture.media, val_fraction)
        try:
            image = decode_image(picture.media.data, limits)
        except ItemError as error:
            return Reject(picture.locator, Outcome.REJECTED, error.reason, error.message)
        if held_out:
            return picture.media.hash, True, preprocessing.apply(image)
        return picture.media.hash, False, slightly_larger(flatten(image, preprocessing.background), preprocessing, margin)

    return in_order(pictures, lambda picture: (picture, work(picture)), threads)


def slightly_larger(image: PILImage.Image, preprocessing: Preprocessing, margin: float) -> NDArray[np.uint8]:
    """What is kept of an RGB picture: all (the middle of a very long one) at a shorter side of ``size * margin``."""
    resized = preprocessing.resize.resize(image, ceil(preprocessing.size * margin))
    bound = int(MAX_KEPT_ASPECT * min(resized.size))
    left, top = max(0, resized.width - bound) // 2, max(0, resized.height - bound) // 2
    return np.asarray(resized.crop((left, top, resized.width - left, resized.height - top)))
