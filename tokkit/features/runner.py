"""How batches get to a tower and its tokens back.

    views -> pinned memory -> device      (a stream of its own, while the batch before is encoded)
          -> network                      (as it is, its blocks compiled, or a recorded CUDA graph)
          -> tokens -> pinned memory      (a stream of its own, not waited for)

On a CPU the same calls do one thing after another. What comes out depends on the views, the precision and the shape of the
batch, not on what else is under way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokkit.errors import UsageError
from tokkit.features.base import RunOptions
from tokkit.features.towers import Encoded, Output, Tower, Unit
from tokkit.precision import arithmetic, check_acceleration, compiled


@dataclass(frozen=True, eq=False)
class Fetched:
    """A tensor on its way to the CPU."""

    there: Tensor
    done: torch.cuda.Event | None = None

    def ready(self) -> bool:
        """Whether :meth:`array` would not wait."""
        return self.done is None or bool(self.done.query())

    def array(self) -> NDArray[np.float32]:
        """It, as float32; waits for it."""
        if self.done is not None:
            self.done.synchronize()
        return self.there.float().numpy()


class TowerRunner:
    """Runs batches of a tower where that is.

    Attributes:
        places: batches that may be under way.

    Raises:
        UsageError: the device or the tower cannot do what the options ask for.
    """

    def __init__(self, tower: Tower, options: RunOptions) -> None:
        check_acceleration(options.acceleration, tower.device)
        if options.acceleration == "graphs" and not tower.recordable:
            raise UsageError("--acceleration graphs: what this encoder does depends on the picture, so it cannot be recorded")
        if options.acceleration == "compile" and not tower.one_shape:
            raise UsageError("--acceleration compile: each picture of this encoder has a shape of its own to be compiled for")
        self.tower, self.options = tower, options
        self._graphs: dict[tuple[tuple[int, ...], ...], _Recording] = {}
        gpu = tower.device.type == "cuda"
        self._in = torch.cuda.Stream(tower.device) if gpu else None
        self._out = torch.cuda.Stream(tower.device) if gpu else None
        self.places = 2 if gpu else 1
        if options.acceleration == "compile":
            for block in tower.blocks():
                block.forward = compiled(block.forward)

    @contextmanager
    def arithmetic(self) -> Iterator[None]:
        """For the length of a block, torch's switches as the precision wants them."""
        with torch.no_grad(), torch.autocast(self.tower.device.type, enabled=False), arithmetic(self.options.precision):
            yield

    def run(self, units: Sequence[Unit], slots: int) -> Encoded:
        """Encode at most ``slots`` units in a batch of exactly ``slots``; on a GPU the work is queued, not waited for."""
        if self._in is None:
            return self.tower.run(units, slots)
        compute = torch.cuda.current_stream(self.tower.device)
        with torch.cuda.stream(self._in):
            sent = [self.tower.sent(tensor, non_blocking=True) for tensor in self.tower.inputs(units, slots)]
        compute.wait_stream(self._in)
        for tensor in sent:
            tensor.record_stream(compute)
        output = self._replayed(sent) if self.options.acceleration == "graphs" else self.tower.network(*sent)
        return self.tower.encoded(output, units)

    def fetch(self, tensor: Tensor) -> Fetched:
        """Send a tensor to the CPU; on a GPU it is not waited for."""
        if self._out is None:
            return Fetched(tensor)
        self._out.wait_stream(torch.cuda.current_stream(self.tower.device))
        with torch.cuda.stream(self._out):
            there = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            there.copy_(tensor, non_blocking=True)
            done = torch.cuda.Event()
            done.record(self._out)
        tensor.record_stream(self._out)
        return Fetched(there, done)

    def _replayed(self, sent: list[Tensor]) -> Output:
        """The recorded launches for inputs of these shapes; what they give is copied, for the next replay writes there too."""
        key = tuple(tuple(tensor.shape) for tensor in sent)
        if key not in self._graphs:
            self._graphs[key] = self._record(sent)
        recording = self._graphs[key]
        for place, tensor in zip(recording.inputs, sent, strict=True):
            place.copy_(tensor)
        recording.graph.replay()
        states, pooled = recording.output
        return states.clone(), None if pooled is None else pooled.clone()

    def _record(self, sent: list[Tensor]) -> _Recording:
        inputs = [tensor.clone() for tensor in sent]
        compute, warm = torch.cuda.current_stream(self.tower.device), torch.cuda.Stream(self.tower.device)
        warm.wait_stream(compute)
        with torch.cuda.stream(warm):
            for _ in range(2):  # libraries allocate what they need before anything is recorded
                self.tower.network(*inputs)
        compute.wait_stream(warm)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self.tower.network(*inputs)
        return _Recording(inputs, graph, output)


@dataclass(frozen=True, eq=False)
class _Recording:
    """A CUDA graph, and the memory that it reads from and writes to."""

    inputs: list[Tensor]
    graph: Any
    output: Output
