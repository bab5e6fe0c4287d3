"""A map-style torch dataset over a feature cache: one item is one document, with its text ids, its media items' features and
the places at which these stand. :mod:`tokkit.data.feature_batches` makes of it what a kind of model takes.

>>> dataset = FeatureDataset("features", seed=0, min_items=1)
>>> loader = PackedLoader(dataset, batch_size=8, collate_fn=InlineCollator(pad_id=0))

The order is a pure function of (seed, epoch, index), as it is of packed sequences, and the same loader resumes it. Memory maps
are opened in the process that reads, so the dataset can be pickled and used with any start method.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from tokkit.data.shuffle import Permutation
from tokkit.features.store import FeatureCache, open_cache

__all__ = ["FeatureDataset", "FeatureRow"]


@dataclass(frozen=True, eq=False)
class FeatureRow:
    """A document with n text ids and m media items.

    Attributes:
        document: its number in the split.
        input_ids: int64 [n].
        learn: bool [n], whether a token is to be learnt; False for what is only given, such as a question.
        positions: int64 [m], text ids that stand before each item.
        features: of each item ``[tokens, dim]``; no tokens where only its place is kept.
        newlines: of each item, int64: before which of its features a learned newline goes (LLaVA-NeXT), or after the last.
        sizes: int64 [m, 2], height and width of each picture as it came.
        thw: int64 [m, 3], frames, rows and columns of patches (Qwen2-VL); zeros where there are none.
        pooled: float32 [m, dim'], where the cache has pooled embeddings.
    """

    document: int
    input_ids: torch.Tensor
    learn: torch.Tensor
    positions: torch.Tensor
    features: list[torch.Tensor]
    newlines: list[npt.NDArray[np.int64]]
    sizes: torch.Tensor
    thw: torch.Tensor
    pooled: torch.Tensor | None


class FeatureDataset(Dataset[FeatureRow]):
    """The documents of a split of a feature cache; see the module's docstring.

    Args:
        directory: a finished feature cache.
        split: ``train`` or ``val``.
        seed: of the shuffle; None reads the documents in the cache's order.
        epoch: another epoch, another order (:meth:`at_epoch`).
        min_items, max_items: documents with fewer or more media items are not in the dataset; kept places count.
        dtype: of the features; None as they are stored (int8 as float32).

    Raises:
        DataError: the cache is not finished or damaged, or has no such split.
    """

    name = "features"

    def __init__(
        self,
        directory: Path | str,
        split: str = "train",
        *,
        seed: int | None = None,
        epoch: int = 0,
        min_items: int = 0,
        max_items: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.directory, self.split = Path(directory), split
        self.seed, self.epoch, self.min_items, self.max_items, self.dtype = seed, epoch, min_items, max_items, dtype
        cache = self.cache
        self.dim, self.fingerprint = cache.dim, cache.fingerprint
        items = cache.document_items
        wanted = (items >= min_items) & (items <= (len(cache) if max_items is None else max_items))
        self._documents = np.flatnonzero(wanted)
        self._order = self._drawn()

    @cached_property
    def cache(self) -> FeatureCache:
        """The split that is read; opened anew in each process."""
        return open_cache(self.directory, self.split)

    def _drawn(self) -> Permutation | None:
        return None if self.seed is None else Permutation(len(self._documents), self.seed, self.epoch)

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "cache"}

    def __len__(self) -> int:
        return len(self._documents)

    def at_epoch(self, epoch: int) -> FeatureDataset:
        """The same dataset in another epoch's order; what is open is shared."""
        other = copy(self)
        if "cache" in self.__dict__:
            other.__dict__["cache"] = self.cache
        other.epoch = epoch
        other._order = other._drawn()
        return other

    def identity(self) -> dict[str, object]:
        """What a loader's state must agree with."""
        bounds = {"min_items": self.min_items, "max_items": self.max_items}
        return {"features": self.fingerprint, "documents": len(self), "seed": self.seed, **bounds}

    def document_index(self, index: int) -> int:
        """Which document of the split item ``index`` is; a negative index counts from the end, IndexError outside."""
        number = index + len(self) if index < 0 else index
        if not 0 <= number < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return int(self._documents[number if self._order is None else self._order[number]])

    def __getitem__(self, index: int) -> FeatureRow:
        return self.row(self.document_index(index))

    def __getitems__(self, indices: Sequence[int]) -> list[FeatureRow]:
        return [self[index] for index in indices]

    def row(self, document: int) -> FeatureRow:
        """A document of the split by its own number."""
        cache = self.cache
        found = cache.document(document)
        learn = torch.ones(len(found.ids), dtype=torch.bool)
        for start, length in cache.given(document):
            learn[start : start + length] = False
        pooled = [cache.pooled(item) for item in found.items]
        there = [embedding for embedding in pooled if embedding is not None]
        rows = slice(found.items.start, found.items.stop)
        return FeatureRow(
            document,
            torch.from_numpy(found.ids.astype(np.int64)),
            learn,
            torch.from_numpy(found.positions.astype(np.int64)),
            [self._features(item) for item in found.items],
            [cache.newlines(item) for item in found.items],
            torch.from_numpy(cache.sizes[rows]),
            torch.from_numpy(cache.thw[rows]),
            torch.from_numpy(np.stack(there)) if there and len(there) == len(pooled) else None,
        )

    def _features(self, item: int) -> torch.Tensor:
        cache = self.cache
        if cache.dtype == "fp16":
            features = torch.from_numpy(np.array(cache.features(item)))
        elif cache.dtype == "bf16":
            features = torch.from_numpy(np.array(cache.features(item)).view(np.int16)).view(torch.bfloat16)
        else:
            features = torch.from_numpy(cache.dense(item))
        return features if self.dtype is None else features.to(self.dtype)
