"""The losses of EnCodec's recipe (Défossez et al., arXiv:2210.13438): samples, mel spectrograms, a discriminator's say."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.training.audio.spectrograms import MelSpectrogram

WINDOWS = tuple(2**exponent for exponent in range(5, 12))
FLOOR = 1e-5  # of amplitudes, before their logarithm


def time_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Mean absolute difference of samples."""
    return functional.l1_loss(fake, real)


class MultiScaleMelLoss(nn.Module):
    """Absolute and squared differences of mel spectrograms, averaged over windows from 32 to 2,048 samples.

    Windows that are longer than the clip are left out.

    Args:
        sample_rate: of the waveforms.
        windows: of the spectrograms.
        mels: bands of each.
        log: add absolute differences of logarithms (base 10, amplitudes of at least 1e-5), in place of squared ones: quiet
            bands then count as much as loud ones, as they do in hearing.
    """

    def __init__(self, sample_rate: int, windows: Sequence[int] = WINDOWS, mels: int = 64, *, log: bool = False) -> None:
        super().__init__()
        self.log = log
        self.spectrograms = nn.ModuleList(MelSpectrogram(sample_rate, window, mels) for window in windows)

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        losses = []
        for spectrogram in self.spectrograms:
            if real.shape[-1] >= spectrogram.length:  # type: ignore[operator]
                wanted, got = spectrogram(real), spectrogram(fake)
                second = self._log_loss(got, wanted) if self.log else functional.mse_loss(got, wanted)
                losses.append(functional.l1_loss(got, wanted) + second)
        if not losses:
            raise ValueError(f"a clip of {real.shape[-1]} samples is shorter than every window")
        return torch.stack(losses).mean()

    def _log_loss(self, got: Tensor, wanted: Tensor) -> Tensor:
        return functional.l1_loss(got.clamp_min(FLOOR).log10(), wanted.clamp_min(FLOOR).log10())


def hinge_discriminator(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """How badly a discriminator tells them apart, from its logits at each scale."""
    scales = [functional.relu(1 - r).mean() + functional.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(scales).mean()


def hinge_generator(fake: Sequence[Tensor]) -> Tensor:
    """How far the generator is from being taken for real at each scale."""
    return torch.stack([functional.relu(1 - logits).mean() for logits in fake]).mean()


def feature_matching(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean over scales and layers of the difference of features, relative to the size of the real ones."""
    layers = [
        functional.l1_loss(f, r.detach()) / r.detach().abs().mean().clamp_min(1e-8)
        for r_scale, f_scale in zip(real, fake, strict=True)
        for r, f in zip(r_scale, f_scale, strict=True)
    ]
    return torch.stack(layers).mean()
