"""SEANet's encoder on clips of unequal lengths in one batch, each with the output that it has alone.

What stands behind a clip in the batch must be what encodec would have padded it with. Only strided convolutions (and those that
see ahead) look behind a clip's end, so before each of these the padding is written there, clip by clip; the rest goes forward
in time and never meets it. Every clip must be at least :func:`tokkit.tokenizers.audio.seanet.shortest` long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokkit.tokenizers.audio.seanet import Padding


def encode_ragged(layers: nn.Sequential, batch: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Features of clips in one batch.

    Args:
        layers: of the encoder.
        batch: ``[B, C, T]``; what stands behind a clip's end must be finite and does not matter otherwise.
        lengths: int64 ``[B]`` on the batch's device.

    Returns:
        features ``[B, D, t]``, and how many of them are each clip's.
    """
    for layer in layers:
        batch, lengths = _apply(layer, batch, lengths)
    return batch, lengths


def _apply(layer: Any, batch: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    name = type(layer).__name__
    if name == "SConv1d":
        return _convolve(layer, batch, lengths)
    if name == "SEANetResnetBlock":
        inner, _ = encode_ragged(layer.block, batch, lengths)
        around, _ = _apply(layer.shortcut, batch, lengths)
        return around + inner, lengths
    if name == "SLSTM" or isinstance(layer, nn.Identity | nn.ELU):
        return layer(batch), lengths
    raise TypeError(f"{name} cannot take a ragged batch")


def _convolve(layer: Any, batch: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    padding = Padding.of(layer)
    longest = batch.shape[-1]
    behind = padding.right + padding.stride - 1
    frames = -(-longest // padding.stride)
    padded = batch.new_zeros(*batch.shape[:-1], (frames - 1) * padding.stride + padding.reach + padding.stride)
    padded[..., padding.left : padding.left + longest] = batch
    if padding.mirrored and padding.left:
        padded[..., : padding.left] = batch[..., 1 : padding.left + 1].flip(-1)
    if behind:
        offsets = torch.arange(behind, device=batch.device)
        after = (lengths[:, None] + padding.left + offsets).unsqueeze(1).expand(-1, batch.shape[1], -1)
        if padding.mirrored:
            mirror = (lengths[:, None] - 2 - offsets).unsqueeze(1).expand(-1, batch.shape[1], -1)
            padded.scatter_(-1, after, batch.gather(-1, mirror))
        else:
            padded.scatter_(-1, after, 0.0)
    output = layer.conv(padded[..., : (frames - 1) * padding.stride + padding.reach])
    return output, -(-lengths // padding.stride)
