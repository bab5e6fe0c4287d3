"""How close a sound that comes back is to the one that went in.

* **SI-SDR** (Le Roux et al. 2019, "SDR - half-baked or well done?"), in dB: with means taken off, the part of the output that
  is the original times one factor, against the rest. It does not mind loudness; it minds phase, so a good low-rate codec may
  have a poor one. Not defined for a silent original.
* **Mel distance**: mean absolute difference of the log10 magnitudes in 64 mel bands (HTK scale, triangles of height 1, from 0
  to half the rate), Hann windows of 1,024 samples every 256 (the first about the first sample, zeros around the sound),
  magnitudes below 1e-5 taken as 1e-5. It does not mind phase.
* **STOI** (speech, 0 to 1) and **PESQ** (speech, wide band, 16 kHz) where the packages ``pystoi`` and ``pesq`` are installed;
  of clips that hold enough speech for them.

Of several channels the mean. All figures are taken in float64 on the CPU.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

import numpy as np
import numpy.typing as npt

Samples = npt.NDArray[np.float32]

SI_SDR_OF_EQUAL = 120.0  # dB; what comes back without a difference has no ratio
WINDOW, HOP, BANDS, FLOOR = 1024, 256, 64, 1e-5
PESQ_RATE = 16_000
STOI_SECONDS = 0.4  # 30 frames of 25.6 ms: what the measure is taken over at least


def si_sdr(original: Samples, output: Samples) -> float | None:
    """SI-SDR in dB of float32 ``[channels, n]``; None where a channel of the original is silent."""
    _check(original, output)
    found = []
    for one, other in zip(original.astype(np.float64), output.astype(np.float64), strict=True):
        reference, estimate = one - one.mean(), other - other.mean()
        energy = float(reference @ reference)
        if energy <= 0:
            return None
        target = (float(estimate @ reference) / energy) * reference
        rest = estimate - target
        kept, lost = float(target @ target), float(rest @ rest)
        if kept <= 0:
            found.append(-SI_SDR_OF_EQUAL)
        else:
            ratio = 10 * np.log10(kept / lost) if lost > 0 else SI_SDR_OF_EQUAL
            found.append(float(np.clip(ratio, -SI_SDR_OF_EQUAL, SI_SDR_OF_EQUAL)))
    return float(np.mean(found))


def mel_distance(original: Samples, output: Samples, rate: int) -> float:
    """The distance of float32 ``[channels, n]`` at ``rate``; 0 for equal ones."""
    _check(original, output)
    return float(np.mean([np.abs(log_mel(a, rate) - log_mel(b, rate)).mean() for a, b in zip(original, output, strict=True)]))


def log_mel(samples: Samples, rate: int) -> npt.NDArray[np.float64]:
    """float64 ``[64, frames]`` of one channel ``[n]``: log10 of the magnitudes."""
    return np.log10(np.maximum(mel_filters(rate) @ magnitudes(samples), FLOOR))


def magnitudes(samples: Samples) -> npt.NDArray[np.float64]:
    """float64 ``[513, n // 256 + 1]``: the short-time spectrum of one channel, a window about each hop."""
    frames = len(samples) // HOP + 1
    padded = np.zeros((frames - 1) * HOP + WINDOW)
    padded[WINDOW // 2 :][: len(samples)] = samples
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    return np.abs(np.fft.rfft(windows * hann, axis=1)).T


@cache
def mel_filters(rate: int) -> npt.NDArray[np.float64]:
    """float64 ``[64, 513]``: triangles of height 1, evenly spaced on the mel scale."""
    top = 2595 * np.log10(1 + rate / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, BANDS + 2) / 2595) - 1)
    bins = np.arange(WINDOW // 2 + 1) * rate / WINDOW
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    return np.maximum(0.0, np.minimum(rising, falling))


def speech_packages() -> dict[str, str]:
    """Of the packages that STOI and PESQ need, those that are there, with their versions."""
    return {name: _version(name) for name in ("pystoi", "pesq") if _measure(name) is not None}


def stoi(original: Samples, output: Samples, rate: int) -> float | None:
    """STOI of the mean of the channels; None where pystoi is not installed, or finds too little that is not silence."""
    package = _measure("pystoi")
    if package is None:
        return None
    _check(original, output)
    if original.shape[1] < STOI_SECONDS * rate:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # it warns, and answers with a figure that means nothing
        try:
            found = float(package.stoi(original.mean(axis=0), output.mean(axis=0), rate, extended=False))
        except RuntimeWarning:
            return None
    return found if np.isfinite(found) and original.any() else None


def pesq(original: Samples, output: Samples, rate: int) -> float | None:
    """Wide-band PESQ of the mean of the channels; None where pesq is not installed, or finds no utterance, or too little."""
    package = _measure("pesq")
    if package is None:
        return None
    from tokkit.media.waveforms import resampled

    _check(original, output)
    both = []
    for samples in (original, output):
        mono = samples.mean(axis=0, dtype=np.float32)[:, None]
        both.append(np.concatenate(list(resampled([mono], rate, PESQ_RATE, 1, "HQ")))[:, 0])
    try:
        return float(package.pesq(PESQ_RATE, *both, "wb"))
    except (package.NoUtterancesError, package.BufferTooShortError):
        return None


def _measure(name: str) -> ModuleType | None:
    """A package that is not installed, or does not load (pesq is built where it is installed), is not there."""
    try:
        return import_module(name)
    except (ImportError, OSError, ValueError):
        return None


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _check(original: Samples, output: Samples) -> None:
    if original.ndim != 2 or original.shape != output.shape or not original.shape[1]:
        raise ValueError(f"two sounds of one shape [channels, n], not {original.shape} and {output.shape}")
