"""Encoding in bulk: an image tokenizer's encoder set up for a device, a precision, and batches of fixed shapes.

    pictures -> pinned memory -> device        (a stream of its own, while the batch before is encoded)
             -> normalised -> network          (in the precision asked for; float16 weights are made once, not at every call)
             -> quantizer, float32 -> codes    (-> pinned memory, not waited for)

Every shape of pictures has two places in which a batch can be under way, so that a GPU never waits for the batch after. On a
CPU the same code does one batch after another. Where pictures are of many shapes, the places of those that were not seen for
longest are given up.

What a picture becomes depends on the picture, the precision and the shape of the batch, not on its slot or its neighbours. In
float16 a picture's features may overflow; such a picture is encoded in float32 instead (and counted), so that no codes are made
of infinities.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tokkit.precision import Acceleration, Precision, arithmetic, check_acceleration, check_precision, compiled
from tokkit.tokenizers.image.model import ImageTokenizer

Pixels = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int32]

PLACES = 2  # batches of one shape that may be under way

# Bytes of pixels, on each side, that places of shapes which are not in use may keep.
KEPT_BYTES = {"cpu": 256 << 20, "cuda": 2 << 30}


@dataclass(frozen=True, slots=True)
class BulkOptions:
    """How to encode.

    Attributes:
        precision: see :mod:`tokkit.precision`.
        acceleration: ``compile``: the network goes through ``torch.compile``, once for each shape, without autotuning;
            ``graphs``: each shape's launches are recorded once as a CUDA graph and replayed. Both round as they please, which
            is why a run records them with its numeric environment.
    """

    precision: Precision = "fp32"
    acceleration: Acceleration = "none"


class BulkEncoder:
    """Encodes batches on the device where the tokenizer is.

    Args:
        tokenizer: ready for ``encode``; it is not changed.
        batch_size: pictures of every call of the network; one that has fewer is filled up with black ones.

    Attributes:
        places: batches of one shape that may be under way.
        overflowed: pictures that were encoded in float32 because their float16 features were not finite.

    Raises:
        UsageError: the device cannot do what the options ask for.
    """

    def __init__(self, tokenizer: ImageTokenizer, batch_size: int, options: BulkOptions = BulkOptions()) -> None:
        device = tokenizer.device
        check_precision(options.precision, device)
        check_acceleration(options.acceleration, device)
        self.tokenizer, self.batch_size, self.options = tokenizer, batch_size, options
        self.overflowed = 0
        self._device = device
        self._encoder: Callable[[Tensor], Tensor] = self._network()
        self._lanes: dict[tuple[int, ...], _Lane] = {}
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.places = 1 if self._copies is None else PLACES

    def _network(self) -> Callable[[Tensor], Tensor]:
        """float32 ``[B, 3, H, W]`` to features in the precision asked for."""
        half = self.options.precision == "fp16"
        network: nn.Module = self.tokenizer.encoder
        if half or self.options.precision == "tf32":
            network = copy.deepcopy(network)
        if half:
            network = network.half()
        if self._device.type == "cuda" and self.options.precision != "fp32":
            for parameter in network.parameters():
                if parameter.ndim == 4:
                    parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        if self.options.acceleration == "compile":
            faster: Callable[[Tensor], Tensor] = compiled(network)
            return faster
        return network

    def encode_padded(self, pictures: Sequence[Pixels], batch_size: int) -> Codes:
        """At most ``batch_size`` pictures ``[H, W, 3]`` of one size to codes ``[n, h, w]``, or ``[n, K, h, w]``."""
        if batch_size != self.batch_size:
            raise ValueError(f"set up for batches of {self.batch_size}, not {batch_size}")
        return self.begin(pictures).codes()

    def begin(self, pictures: Sequence[Pixels]) -> Pending:
        """Send at most ``batch_size`` pictures ``[H, W, 3]`` of one size on their way.

        On a GPU this returns as soon as they are copied and the work is queued, or when the batch :data:`PLACES` before is
        done. Raises ValueError for pictures of several sizes, or of one that the tokenizer cannot take.
        """
        if not 0 < len(pictures) <= self.batch_size or len({p.shape for p in pictures}) > 1:
            raise ValueError(f"expected 1 to {self.batch_size} pictures of one size, not {[p.shape for p in pictures]}")
        place = self._lane(pictures[0].shape).next()
        if place.pending is not None:
            place.pending.codes()
        place.fill(pictures)
        place.pending = Pending(self, place, len(pictures))
        self._run(place)
        return place.pending

    def _place(self, shape: tuple[int, ...]) -> _Place:
        pinned = self._copies is not None
        pixels = torch.zeros(self.batch_size, *shape, dtype=torch.uint8, pin_memory=pinned)
        return _Place(pixels, pixels if not pinned else torch.zeros_like(pixels, device=self._device))

    def _run(self, place: _Place) -> None:
        if self._copies is None:
            place.codes, place.finite = self._codes(place.input)
            return
        compute = torch.cuda.current_stream(self._device)
        self._copies.wait_stream(compute)  # the place's input may still be read
        with torch.cuda.stream(self._copies):
            place.input.copy_(place.pixels, non_blocking=True)
        compute.wait_stream(self._copies)
        if self.options.acceleration == "graphs":
            codes, finite = self._replay(place)
        else:
            codes, finite = self._codes(place.input)
        place.codes = _like_pinned(place.codes, codes)
        place.finite = _like_pinned(place.finite, finite)
        place.codes.copy_(codes, non_blocking=True)
        place.finite.copy_(finite, non_blocking=True)
        place.done = torch.cuda.Event()
        place.done.record(compute)

    def encode_resident(self, pixels: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` on the device to int32 codes on the device, not waited for; overflows are not looked at."""
        if self.options.acceleration != "graphs":
            return self._codes(pixels)[0]
        place = self._lane(tuple(pixels.shape[1:])).places[0]
        place.input.copy_(pixels)
        return self._replay(place)[0]

    def _lane(self, shape: tuple[int, ...]) -> _Lane:
        """The places of pictures of a shape."""
        lane = self._lanes.pop(shape, None) or _Lane([self._place(shape) for _ in range(self.places)])
        self._lanes[shape] = lane  # the last is the one that was used last
        if self.options.acceleration != "graphs":  # what was recorded is worth more than its memory
            self._give_up(lane)
        return lane

    def _give_up(self, but: _Lane) -> None:
        """Drop the places of the shapes that were not used for longest, until what is kept is little enough."""
        kept = sum(lane.bytes for lane in self._lanes.values())
        for shape, lane in list(self._lanes.items()):
            if kept <= KEPT_BYTES["cpu" if self._copies is None else "cuda"]:
                break
            if lane is not but and all(place.pending is None for place in lane.places):
                kept -= lane.bytes
                del self._lanes[shape]

    @torch.no_grad()
    def _codes(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 ``[B, H, W, 3]`` to int32 codes, and for each picture whether its features were finite: bool ``[B]``."""
        tokenizer, precision = self.tokenizer, self.options.precision
        with arithmetic(precision), torch.autocast(self._device.type, enabled=False):
            values = tokenizer.normalize(pixels)
            if precision == "fp16":
                values = values.half()
            if self._device.type == "cuda" and precision != "fp32":
                values = values.contiguous(memory_format=torch.channels_last)
            features = self._encoder(values).float()
        with arithmetic("fp32"), torch.autocast(self._device.type, enabled=False):
            features = tokenizer.quant_conv(features)
            finite = features.flatten(1).isfinite().all(1)
            return tokenizer.quantizer.codes_from_features(features).to(torch.int32), finite

    def _replay(self, place: _Place) -> tuple[Tensor, Tensor]:
        """The place's recorded launches, which read its input and write to the same memory every time."""
        if place.graph is None:
            warm = torch.cuda.Stream(self._device)
            warm.wait_stream(torch.cuda.current_stream(self._device))
            with torch.cuda.stream(warm):
                for _ in range(2):  # libraries allocate what they need before anything is recorded
                    self._codes(place.input)
            torch.cuda.current_stream(self._device).wait_stream(warm)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                place.recorded = self._codes(place.input)
            place.graph = graph
        place.graph.replay()
        assert place.recorded is not None
        return place.recorded

    def _collect(self, place: _Place, count: int) -> Codes:
        if place.done is not None:
            place.done.synchronize()
        assert place.codes is not None
        assert place.finite is not None
        codes: Codes = np.array(place.codes[:count].numpy())
        finite = place.finite[:count].numpy()
        if not finite.all() and self.options.precision == "fp16":
            self.overflowed += int((~finite).sum())
            exact = self.tokenizer.encode(place.pixels).cpu().numpy()[:count]
            codes[~finite] = exact[~finite]
        return codes


@dataclass
class _Place:
    """Where a batch is under way: its pixels in (pinned) memory and on the device, and what comes back."""

    pixels: Tensor
    input: Tensor
    codes: Tensor | None = None
    finite: Tensor | None = None
    done: torch.cuda.Event | None = None
    graph: Any = None
    recorded: tuple[Tensor, Tensor] | None = None
    pending: Pending | None = None

    def fill(self, pictures: Sequence[Pixels]) -> None:
        there = self.pixels.numpy()
        there[: len(pictures)] = pictures
        there[len(pictures) :] = 0


@dataclass
class _Lane:
    """The places of one shape, taken in turn."""

    places: list[_Place]
    turn: int = field(default=0)

    @property
    def bytes(self) -> int:
        """Of the pixels of its places."""
        return sum(place.pixels.nbytes for place in self.places)

    def next(self) -> _Place:
        self.turn += 1
        return self.places[self.turn % len(self.places)]


class Pending:
    """A batch that is under way."""

    def __init__(self, encoder: BulkEncoder, place: _Place, count: int) -> None:
        self._encoder, self._place, self._count = encoder, place, count
        self._codes: Codes | None = None

    def ready(self) -> bool:
        """Whether :meth:`codes` would not wait."""
        return self._codes is not None or self._place.done is None or bool(self._place.done.query())

    def codes(self) -> Codes:
        """The codes ``[n, h, w]`` or ``[n, K, h, w]``; waits for them. May be asked for again."""
        if self._codes is None:
            self._codes = self._encoder._collect(self._place, self._count)
            self._place.pending = None
        return self._codes


def _like_pinned(there: Tensor | None, wanted: Tensor) -> Tensor:
    if there is not None:
        return there
    return torch.empty(wanted.shape, dtype=wanted.dtype, pin_memory=True)
