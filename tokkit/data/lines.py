"""Sequences in one endless line, of which any place can be asked for: what a loader walks along.

A line is a map-style dataset over places, and a pure function of its seeds. :class:`EpochLine` goes through one dataset epoch
by epoch; :class:`MixtureLine` takes from several by weight. Neither keeps a list of anything, however long it is.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import Dataset

from tokkit.data.features import FeatureDataset
from tokkit.data.packed import PackedDataset, Row
from tokkit.data.shuffle import Permutation
from tokkit.errors import UsageError

ENDLESS = 1 << 62  # places, where nothing ends it


class Line(Dataset[Row]):
    """Sequences by place; picklable."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, place: int) -> Row: ...

    def __getitems__(self, places: Sequence[int]) -> Sequence[Row]:
        """Several places at once."""
        return [self[place] for place in places]

    @abstractmethod
    def epochs(self, place: int) -> dict[str, float]:
        """How often each dataset has been gone through before ``place``, by name."""

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """What must be the same for the same line: small, JSON-compatible."""


class EpochLine(Line):
    """The epochs of a dataset, one after another, each in an order of its own.

    Args:
        dataset: of any epoch.
        epochs: how many; None is without end.

    Raises:
        UsageError: the dataset has no sequences.
    """

    def __init__(self, dataset: PackedDataset | FeatureDataset, epochs: int | None = None) -> None:
        if not len(dataset):
            raise UsageError(f"{dataset.directory}: {dataset.name} has no sequences of split {dataset.split}")
        self._dataset: Any = dataset  # of rows, or of documents with features
        self._epochs = epochs
        self._of_epoch = self._dataset

    def __len__(self) -> int:
        return ENDLESS if self._epochs is None else self._epochs * len(self._dataset)

    def __getitem__(self, place: int) -> Row:
        epoch, index = divmod(place, len(self._dataset))
        return self._at(epoch)[index]

    def __getitems__(self, places: Sequence[int]) -> Sequence[Row]:
        size = len(self._dataset)
        if len({place // size for place in places}) != 1:  # across the border of two epochs
            return super().__getitems__(places)
        return self._at(places[0] // size).__getitems__([place % size for place in places])

    def _at(self, epoch: int) -> Any:
        if epoch != self._of_epoch.epoch:
            self._of_epoch = self._dataset.at_epoch(epoch)
        return self._of_epoch

    def epochs(self, place: int) -> dict[str, float]:
        return {self._dataset.name: place / len(self._dataset)}

    def identity(self) -> dict[str, object]:
        return self._dataset.identity()


class MixtureLine(Line):
    """Sequences of several datasets by weight, endlessly; each dataset goes through its own epochs.

    In every ``cycle`` places each dataset has exactly its share of them, in an order drawn for that cycle. Items have a field
    ``source_id`` besides: int64 scalar, the dataset's number in the order of ``datasets``.

    >>> line = MixtureLine({"web": web, "books": books}, {"web": 0.8, "books": 0.2}, seed=0)
    >>> loader = PackedLoader(line, batch_size=8, rank=rank, world_size=world_size)
    >>> line.epochs(loader.place)
    {'web': 0.31, 'books': 2.05}

    Args:
        datasets: by name; all of one sequence length and with the same fields.
        weights: by the same names, how often each is taken, in proportion; not below 0, and not all 0.
        seed: of the order.
        cycle: places in which the shares are kept; they are rounded to parts of it.

    Raises:
        UsageError: a dataset has no sequences, or these are of another length.
        ValueError: names without a weight, weights without a dataset, weights or a cycle out of range.
    """

    def __init__(
        self, datasets: Mapping[str, PackedDataset], weights: Mapping[str, float], *, seed: int = 0, cycle: int = 10_000
    ) -> None:
        if datasets.keys() != weights.keys() or not datasets:
            raise ValueError(f"datasets {sorted(datasets)}, weights {sorted(weights)}: they must have the same names")
        if not all(0 <= weight < float("inf") for weight in weights.values()) or not sum(weights.values()) or cycle < 1:
            raise ValueError(f"weights {dict(weights)}, cycle {cycle}")
        lengths = {name: dataset.seq_len for name, dataset in datasets.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"sequences of a mixture must be equally long; these are {lengths}")
        self._lines = {name: EpochLine(dataset) for name, dataset in datasets.items()}
        self._sizes = {name: len(dataset) for name, dataset in datasets.items()}
        self._seed, self._cycle = seed, cycle
        self.shares = _shares({name: weights[name] for name in datasets}, cycle)
        self._first = dict(zip(self.shares, accumulate(self.shares.values(), initial=0), strict=False))

    def __len__(self) -> int:
        return ENDLESS

    def __getitem__(self, place: int) -> Row:
        name, index = self.locate(place)
        row = self._lines[name][index]
        row["source_id"] = torch.tensor(list(self._lines).index(name))
        return row

    def locate(self, place: int) -> tuple[str, int]:
        """Which dataset a place is of, and which place of that dataset's own line."""
        cycle, within = divmod(place, self._cycle)
        drawn = Permutation(self._cycle, self._seed, cycle)[within]
        for name, share in self.shares.items():
            if drawn < self._first[name] + share:
                return name, cycle * share + drawn - self._first[name]
        raise AssertionError("the shares add up to the cycle")

    def epochs(self, place: int) -> dict[str, float]:
        """Rounded to whole cycles below."""
        return {name: place // self._cycle * share / self._sizes[name] for name, share in self.shares.items()}

    def identity(self) -> dict[str, object]:
        parts = {name: line.identity() for name, line in self._lines.items()}
        return {"mixture": parts, "shares": self.shares, "seed": self._seed}


def _shares(weights: dict[str, float], cycle: int) -> dict[str, int]:
    """Whole shares of a cycle by the method of largest remainders; what has any weight has at least one place."""
    total = sum(weights.values())
    exact = {name: cycle * weight / total for name, weight in weights.items()}
    found = {name: max(int(share), 1 if weights[name] else 0) for name, share in exact.items()}
    left = cycle - sum(found.values())
    order = sorted(weights, key=lambda name: (found[name] - exact[name], name))
    while left > 0:
        for name in order:
            if left and weights[name]:
                found[name], left = found[name] + 1, left - 1
    while left < 0:
        most = max(found, key=lambda name: (found[name], name))
        if found[most] <= 1:
            raise ValueError(f"a cycle of {cycle} has no place for each of {len(found)} datasets")
        found[most], left = found[most] - 1, left + 1
    return found
