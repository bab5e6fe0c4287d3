"""SEANet on a waveform that comes in pieces: the same output as on the whole, with a memory of what each layer still needs.

Every layer becomes a node that takes its input in pieces and gives the output that no later input can change: a convolution
keeps the samples that its next window reaches back to, the LSTM its state. At the end :meth:`Node.finish` pads as encodec does.
Both causal networks and others can be streamed so; the latter only lag behind a little.

The whole input must be at least :func:`tokkit.tokenizers.audio.seanet.shortest` long.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.tokenizers.audio.seanet import Padding


class Node(ABC):
    """A layer at work on a stream of ``[B, C, n]`` pieces, n of any size, 0 included."""

    @abstractmethod
    def push(self, piece: Tensor) -> Tensor | None:
        """The output that is now certain, or None."""

    def finish(self) -> Tensor | None:
        """What was still to come; nothing may be pushed after it."""
        return None


def stream_of(layer: nn.Module) -> Node:
    """The node for one of SEANet's layers.

    Raises:
        TypeError: a layer that this does not know.
    """
    name = type(layer).__name__
    if isinstance(layer, nn.Sequential):
        return _Chain([stream_of(inner) for inner in layer])
    if name == "SConv1d":
        return _Convolution(layer)
    if name == "SConvTranspose1d":
        return _Transposed(layer)
    if name == "SEANetResnetBlock":
        return _Residual(stream_of(layer.block), stream_of(layer.shortcut))  # type: ignore[arg-type]
    if name == "SLSTM":
        return _Recurrent(layer)
    if isinstance(layer, nn.Identity | nn.ELU):
        return _Pointwise(layer)
    raise TypeError(f"{name} cannot be streamed")


class _Pointwise(Node):
    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def push(self, piece: Tensor) -> Tensor | None:
        return self._layer(piece)


class _Chain(Node):
    def __init__(self, nodes: list[Node]) -> None:
        self._nodes = nodes

    def push(self, piece: Tensor) -> Tensor | None:
        return _through(self._nodes, piece)

    def finish(self) -> Tensor | None:
        """Layer by layer: the last of one is pushed into the next before that one is finished."""
        last: Tensor | None = None
        for node in self._nodes:
            pushed = node.push(last) if last is not None else None
            last = _joined([pushed, node.finish()])
        return last


def _through(nodes: Iterable[Node], piece: Tensor) -> Tensor | None:
    now: Tensor | None = piece
    for node in nodes:
        if now is None or not now.shape[-1]:
            return None
        now = node.push(now)
    return now


def _joined(pieces: list[Tensor | None]) -> Tensor | None:
    there = [piece for piece in pieces if piece is not None and piece.shape[-1]]
    if len(there) <= 1:
        return there[0] if there else None
    return torch.cat(there, dim=-1)


class _Convolution(Node):
    """encodec's ``SConv1d``: holds what the next window reaches back to, and the last samples, which the end mirrors."""

    def __init__(self, layer: Any) -> None:
        self._conv = layer.conv
        self._padding = Padding.of(layer)
        self._held: Tensor | None = None
        self._recent: Tensor | None = None
        self._length = 0
        self._begun = False

    def push(self, piece: Tensor) -> Tensor | None:
        padding = self._padding
        self._length += piece.shape[-1]
        held = piece if self._held is None else torch.cat([self._held, piece], dim=-1)
        if not self._begun:
            if held.shape[-1] < padding.enough:
                self._held = held
                return None
            self._recent = held
            held = torch.cat([_before(held, padding), held], dim=-1) if padding.left else held
            self._begun = True
        elif self._recent is not None:
            self._recent = piece if piece.shape[-1] >= padding.enough else torch.cat([self._recent, piece], dim=-1)
        if self._recent is not None:
            self._recent = self._recent[..., -padding.enough :].clone()
        return self._windows(held)

    def finish(self) -> Tensor | None:
        if self._held is None or self._recent is None:
            raise ValueError("a waveform that is too short to be streamed")
        return self._windows(torch.cat([self._held, _behind(self._recent, self._padding, self._length)], dim=-1))

    def _windows(self, held: Tensor) -> Tensor | None:
        """The output of all whole windows; what the next one begins with is held."""
        padding = self._padding
        count = max(0, (held.shape[-1] - padding.reach) // padding.stride + 1)
        self._held = held[..., count * padding.stride :].clone()  # a view would keep all of it
        return self._conv(held[..., : (count - 1) * padding.stride + padding.reach]) if count else None


def _before(start: Tensor, padding: Padding) -> Tensor:
    if not padding.mirrored:
        return start.new_zeros(*start.shape[:-1], padding.left)
    return start[..., 1 : padding.left + 1].flip(-1)


def _behind(end: Tensor, padding: Padding, length: int) -> Tensor:
    count = padding.behind(length)
    if not padding.mirrored:
        return end.new_zeros(*end.shape[:-1], count)
    return end[..., end.shape[-1] - 1 - count : -1].flip(-1)


class _Transposed(Node):
    """encodec's ``SConvTranspose1d``: an output is certain once no later frame reaches it."""

    def __init__(self, layer: Any) -> None:
        self._convtr = layer.convtr
        self._reach: int = layer.convtr.convtr.kernel_size[0]
        self._stride: int = layer.convtr.convtr.stride[0]
        surplus = self._reach - self._stride
        self._right = ceil(surplus * layer.trim_right_ratio) if layer.causal else surplus // 2
        self._skip = surplus - self._right
        self._context = -(-surplus // self._stride)  # earlier frames that reach into later output
        self._held: Tensor | None = None
        self._last: Tensor | None = None

    def push(self, piece: Tensor) -> Tensor | None:
        held = piece if self._held is None else torch.cat([self._held, piece], dim=-1)
        known = held.shape[-1] - piece.shape[-1]
        output = self._convtr(held)
        certain = held.shape[-1] * self._stride
        self._last = output[..., certain:].clone()
        self._held = held[..., max(0, held.shape[-1] - self._context) :].clone()
        return self._cut(output[..., known * self._stride : certain])

    def finish(self) -> Tensor | None:
        if self._last is None:
            return None
        return self._cut(self._last[..., : self._last.shape[-1] - self._right])

    def _cut(self, output: Tensor) -> Tensor:
        """Without what is trimmed at the beginning."""
        skipped = min(self._skip, output.shape[-1])
        self._skip -= skipped
        return output[..., skipped:]


class _Recurrent(Node):
    def __init__(self, layer: Any) -> None:
        self._lstm, self._adds = layer.lstm, layer.skip
        self._state: tuple[Tensor, Tensor] | None = None

    def push(self, piece: Tensor) -> Tensor | None:
        steps = piece.permute(2, 0, 1)
        output, self._state = self._lstm(steps, self._state)
        return (output + steps if self._adds else output).permute(1, 2, 0)


class _Residual(Node):
    """Two paths that may lag behind each other; what one is ahead waits."""

    def __init__(self, *paths: Node) -> None:
        self._paths = paths
        self._waiting: list[Tensor | None] = [None] * len(paths)

    def push(self, piece: Tensor) -> Tensor | None:
        return self._added([path.push(piece) for path in self._paths])

    def finish(self) -> Tensor | None:
        return self._added([path.finish() for path in self._paths])

    def _added(self, outputs: list[Tensor | None]) -> Tensor | None:
        joined = [_joined([before, output]) for before, output in zip(self._waiting, outputs, strict=True)]
        there = [path for path in joined if path is not None]
        ready = min(path.shape[-1] for path in there) if len(there) == len(joined) else 0
        if not ready:
            self._waiting = joined
            return None
        self._waiting = [path[..., ready:].clone() if path.shape[-1] > ready else None for path in there]
        return there[0][..., :ready] + there[1][..., :ready]
