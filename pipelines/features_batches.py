"""A feature encoder at work on batches, in a worker or in an encoder process, and what a worker must know of it otherwise.

In float16 an item's features may overflow; such an item is encoded in float32 instead (and counted), by an encoder that is
loaded when the first of them is met.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokkit.errors import FingerprintMismatch, ItemError
from tokkit.features.base import ItemFeatures, Modality, Prepared, RunOptions
from tokkit.features.precision import StoredDtype
from tokkit.features.writer import Item, item_of

if TYPE_CHECKING:
    from tokkit.features.base import FeatureEncoder
    from tokkit.pipelines.batching import BatchEncoder
    from tokkit.pipelines.features import FeaturesConfig


class Prepares(Protocol):
    """Turns media into views."""

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        """A picture or a waveform to its views; see :class:`tokkit.features.base.FeatureEncoder`."""


@dataclass(frozen=True, eq=False)
class Intake:
    """What an encoder takes; picklable, and without its network.

    Attributes:
        sample_rate: of waveforms, in Hz; None for pictures.
        preparer: makes views of media.
    """

    modality: Modality
    sample_rate: int | None
    preparer: Prepares

    @classmethod
    def of(cls, encoder: FeatureEncoder) -> Intake:
        return cls(encoder.modality, encoder.sample_rate, getattr(encoder, "preparer", encoder))


class FeatureBatches:
    """An encoder as :class:`~tokkit.pipelines.batching.Begins` wants it, of prepared items.

    Args:
        batch_size: views in each call of the encoder.
        load_exact: gives the same encoder in plain float32; None where the encoder is that itself.

    Attributes:
        places: batches that may be under way.
        overflowed: items that were encoded in float32 because their float16 features were not finite.
    """

    def __init__(
        self, encoder: FeatureEncoder, batch_size: int, load_exact: Callable[[], FeatureEncoder] | None = None
    ) -> None:
        self.encoder, self.batch_size, self._load_exact = encoder, batch_size, load_exact
        self.overflowed = 0
        self.places: int = getattr(encoder, "places", 1)

    @cached_property
    def exact(self) -> FeatureEncoder:
        """The encoder in plain float32."""
        return self.encoder if self._load_exact is None else self._load_exact()

    def encode_padded(self, items: Sequence[Prepared], batch_size: int) -> list[ItemFeatures]:
        """Features of each item; the network sees batches of exactly ``batch_size`` views."""
        if batch_size != self.batch_size:
            raise ValueError(f"set up for batches of {self.batch_size}, not {batch_size}")
        return self.begin(items).codes()

    def begin(self, items: Sequence[Prepared]) -> PendingItems:
        """Send items on their way."""
        begin = getattr(self.encoder, "begin", None)
        if begin is None:
            return PendingItems(self, items, None, self.encoder.encode(items, self.batch_size))
        return PendingItems(self, items, begin(items, self.batch_size), [])

    def settled(self, items: Sequence[Prepared], found: list[ItemFeatures]) -> list[ItemFeatures]:
        """The features, those that are not finite in a fast mode made anew in float32."""
        if self._load_exact is None:
            return found
        for number, features in enumerate(found):
            pooled = features.pooled is None or np.isfinite(features.pooled).all()
            if not (pooled and np.isfinite(features.features).all()):
                self.overflowed += 1
                (found[number],) = self.exact.encode([items[number]], self.batch_size)
        return found


class PendingItems:
    """Items that are under way, or were."""

    def __init__(self, batches: FeatureBatches, items: Sequence[Prepared], pending: Any, found: list[ItemFeatures]) -> None:
        self._batches, self._items, self._pending, self._found = batches, items, pending, found

    def ready(self) -> bool:
        """Whether :meth:`codes` would not wait."""
        return self._pending is None or bool(self._pending.ready())

    def codes(self) -> list[ItemFeatures]:
        """Their features; waits for them."""
        if self._pending is not None:
            self._found, self._pending = self._pending.features(), None
        return self._batches.settled(self._items, self._found)


def load_features(config: FeaturesConfig, device: str, fingerprint: str | None) -> FeatureBatches:
    """Load a run's encoder, which must be the one that it began with, as the options want it to encode."""
    if config.fast:
        run = RunOptions(config.precision, config.acceleration)
        batches = FeatureBatches(config.load_encoder(device, run), config.batch_size, lambda: config.load_encoder(device))
    else:
        batches = FeatureBatches(config.load_encoder(device), config.batch_size)
    if fingerprint is not None and batches.encoder.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{config.encoder} has changed since the run began: restore it and run the same command again, or write to "
            f"another --out"
        )
    return batches


@dataclass(frozen=True, eq=False)
class Encoded:
    """What a media item's slot gets: its item, but for the place in the document, or why there is none."""

    item: Item | None
    error: ItemError | None = None


class StoringEncoder:
    """Brings what a :class:`~tokkit.pipelines.batching.BatchEncoder` of prepared items gives to its stored form."""

    def __init__(self, encoder: BatchEncoder, dtype: StoredDtype, modality: Modality) -> None:
        self._encoder, self._dtype, self._modality = encoder, dtype, modality
        self.depth = encoder.depth
        self._sizes: deque[list[tuple[int, int]]] = deque()

    def submit(self, items: Sequence[Prepared]) -> None:
        self._encoder.submit(cast(Any, items))
        self._sizes.append([(item.width, item.height) for item in items])

    def arrived(self) -> bool:
        return self._encoder.arrived()

    def collect(self) -> list[Encoded]:
        found = cast("list[ItemFeatures]", self._encoder.collect())
        return [self._stored(features, *size) for features, size in zip(found, self._sizes.popleft(), strict=True)]

    def _stored(self, features: ItemFeatures, width: int, height: int) -> Encoded:
        try:
            item = item_of(features, self._dtype, self._modality, width, height)
        except ItemError as error:
            return Encoded(None, error)
        assert item.features is not None
        # What is stored is all that is kept of the features themselves.
        bare = replace(item.features, features=np.zeros((0, 0), dtype=np.float32), pooled=None)
        return Encoded(replace(item, features=bare))

    def close(self) -> None:
        self._encoder.close()
        self._sizes.clear()
