"""Mel spectrograms of waveforms, in plain torch: what reconstruction is measured by besides the samples themselves."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class MelSpectrogram(nn.Module):
    """Amplitudes ``[B, C, mels, frames]`` of a waveform ``[B, C, T]``, T at least one window.

    The transform is normalised by its window, and a mel band is the sum of amplitudes under a triangle of height 1 (HTK's scale
    from 0 to half the rate).

    Args:
        sample_rate: of the waveform.
        window: samples of a frame; the hop is a quarter.
        mels: bands; narrow windows have fewer frequencies than these, and some bands are then empty.
    """

    window: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int, window: int, mels: int = 64) -> None:
        super().__init__()
        self.length = window
        self.hop = max(1, window // 4)
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        self.register_buffer("bands", mel_bands(sample_rate, window, mels), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        flat = waveform.reshape(-1, waveform.shape[-1]).float()
        spectrum = torch.stft(flat, self.length, self.hop, self.length, self.window, center=False, return_complex=True)
        amplitude = spectrum.abs() / self.window.pow(2).sum().sqrt()
        bands = torch.matmul(self.bands, amplitude)
        return bands.reshape(*waveform.shape[:-1], *bands.shape[-2:])


def mel_bands(sample_rate: int, window: int, mels: int) -> Tensor:
    """float32 ``[mels, window / 2 + 1]``: triangles whose corners are evenly spaced on the mel scale."""

    def mel(frequency: float) -> float:
        return 2595 * math.log10(1 + frequency / 700)

    corners = torch.linspace(mel(0), mel(sample_rate / 2), mels + 2, dtype=torch.float64)
    edges = 700 * (10 ** (corners / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate / 2, window // 2 + 1, dtype=torch.float64)
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0).to(torch.float32)
