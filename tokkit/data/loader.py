"""Training batches from packed sequences, in an order that depends on nothing but a seed, resumable at any place at no cost.

The sequences of all epochs stand in one line: place p is sequence ``p % N`` of epoch ``p // N``, in that epoch's order. Each
step takes the next ``batch_size * world_size`` places, and each rank its own ``batch_size`` of them. So what a step trains on
does not depend on how many ranks or workers there are, every rank takes as many steps as every other, every sequence comes
exactly once an epoch, and the state of a whole run is one number: the place of its next step.

>>> loader = PackedLoader(PackedDataset("shards", "seq4096-overlong", seed=0), batch_size=8, rank=rank, world_size=world_size)
>>> for batch in loader:
...     step(batch)
...     checkpoint["data"] = loader.state_dict()  # of what was yielded, whatever the workers have read ahead

The state is the same on all ranks, and may be gone on with by any other number of them and of workers, and with another batch
size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch.utils.data import DataLoader, Sampler

from tokkit.data.features import FeatureDataset
from tokkit.data.lines import EpochLine, Line
from tokkit.data.packed import PackedDataset, Row, collate
from tokkit.errors import FingerprintMismatch, UsageError

VERSION = 1


class _Steps(Sampler[list[int]]):
    """The places of one rank, step by step, from ``place`` on."""

    def __init__(self, place: int, stop: int, batch_size: int, rank: int, world_size: int) -> None:
        self._place, self._stop = place, stop
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size

    def __iter__(self) -> Iterator[list[int]]:
        step = self._batch_size * self._world_size
        for place in range(self._place, self._stop - step + 1, step):
            first = place + self._rank * self._batch_size
            yield list(range(first, first + self._batch_size))


class PackedLoader:
    """Batches [batch_size, ...] of one rank; see the module's docstring.

    Args:
        sequences: a dataset, with its seed and fields (its own epoch is of no meaning here), or a line of several
            (:class:`~tokkit.data.lines.MixtureLine`). Of a feature cache the sequences are documents, and ``collate_fn`` one of
            :mod:`tokkit.data.feature_batches`.
        batch_size: sequences of one rank in a step.
        rank, world_size: this process, counted from 0, and how many there are.
        epochs: of a dataset: after so many it ends, without the sequences that no longer fill a step on all ranks; None never
            ends.
        workers: processes that read ahead.
        collate_fn: what makes a batch of items.
        more: further arguments of torch's DataLoader (``pin_memory``, ``prefetch_factor``, ``multiprocessing_context``...).

    Raises:
        ValueError: a number out of range.
        UsageError: the dataset has no sequences, or epochs are asked for of a line.
    """

    def __init__(
        self,
        sequences: PackedDataset | FeatureDataset | Line,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        epochs: int | None = None,
        workers: int = 0,
        collate_fn: Callable[[Sequence[Any]], Row] = collate,
        **more: Any,
    ) -> None:
        if batch_size < 1 or not 0 <= rank < world_size or (epochs is not None and epochs < 1):
            raise ValueError(f"batch_size {batch_size}, rank {rank} of {world_size}, epochs {epochs}")
        if isinstance(sequences, Line) and epochs is not None:
            raise UsageError("epochs are a dataset's own; a line has its end, or none, by itself")
        self.line = sequences if isinstance(sequences, Line) else EpochLine(sequences, epochs)
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._workers, self._collate, self._more = workers, collate_fn, more
        self._place = 0

    @property
    def place(self) -> int:
        """The place of the next step: how many sequences all ranks have taken."""
        return self._place

    @property
    def epoch(self) -> int:
        """The epoch that the next step begins in; of a mixture, of the dataset that is the least far."""
        return int(min(self.line.epochs(self._place).values()))

    def __len__(self) -> int:
        """Steps that are left; of an endless loader a very large number."""
        return max(0, len(self.line) - self._place) // (self._batch_size * self._world_size)

    def __iter__(self) -> Iterator[Row]:
        """Go on where the loader stands."""
        steps = _Steps(self._place, len(self.line), self._batch_size, self._rank, self._world_size)
        loader = DataLoader(self.line, batch_sampler=steps, num_workers=self._workers, collate_fn=self._collate, **self._more)
        for batch in loader:
            self._place += self._batch_size * self._world_size
            yield batch

    def state_dict(self) -> dict[str, object]:
        """Where the loader stands after the batches that it has yielded: under 1 KB, the same on every rank."""
        return {"version": VERSION, "place": self._place, **self.line.identity()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go to where another loader stood, of any number of ranks and workers, and of any batch size.

        Raises:
            FingerprintMismatch: it was of other sequences or of another order; the message names what differs.
        """
        now = {"version": VERSION, **self.line.identity()}
        other = {key: (state.get(key), value) for key, value in now.items() if state.get(key) != value}
        differences = [f"{key} {there!r} there, {here!r} here" for key, (there, here) in other.items()]
        place = state.get("place")
        if differences or not isinstance(place, int) or place < 0:
            raise FingerprintMismatch(f"the state is of other data: {'; '.join(differences) or f'place {place!r}'}")
        self._place = place
