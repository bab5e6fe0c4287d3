"""encodec's multi-scale STFT discriminator: complex spectrograms of several windows, each judged by a small network."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Any

from tokkit.tokenizers.audio.encodec_package import import_encodec

WINDOWS_24K = (2048, 1024, 512, 256, 128)
WINDOWS_48K = tuple(2 * window for window in WINDOWS_24K)


def build_discriminator(channels: int = 1, filters: int = 32, windows: Sequence[int] = WINDOWS_24K) -> Any:
    """encodec's ``MultiScaleSTFTDiscriminator``: a waveform ``[B, C, T]`` to (logits, features), a list of each by window.

    Args:
        channels: of the waveform.
        filters: width of its convolutions.
        windows: in samples; the hop is a quarter.
    """
    import_encodec()
    module = sys.modules["encodec.msstftd"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, about the weight norm that the package asks for
        return module.MultiScaleSTFTDiscriminator(
            filters,
            in_channels=channels,
            n_ffts=list(windows),
            hop_lengths=[window // 4 for window in windows],
            win_lengths=list(windows),
        )
