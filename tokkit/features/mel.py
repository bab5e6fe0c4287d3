"""Whisper's log-mel spectrogram (arXiv:2212.04356), and how a clip becomes windows of 30 seconds.

Frames of 400 samples every 160, weighted by a periodic Hann window, their power in mel bands on Slaney's scale, in decades,
cut off eight below the window's loudest, and scaled to about [-1, 1]. Computed in float64 and rounded once, so that it depends
on no library's blocks or threads: within 1e-6 of the reference's NumPy path; its float32 path is up to 1e-4 from either.

Whisper's encoder takes 30 seconds and nothing else: a shorter clip is padded with silence (zeros, before the spectrogram, as
the reference does), a longer one is cut into consecutive windows, each with its own loudest value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokkit.errors import DataError, ItemError
from tokkit.features.base import FeatureOptions, Prepared, View
from tokkit.storage import read_json


class AudioPreprocessing(BaseModel):
    """What Whisper's ``preprocessor_config.json`` says.

    Attributes:
        sampling_rate: in Hz.
        feature_size: mel bands.
        n_fft, hop_length: samples of a frame, and from one to the next.
        chunk_length: seconds of a window.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    sampling_rate: int = Field(default=16000, ge=1000, le=400_000)
    feature_size: int = Field(default=80, ge=1, le=1024)
    n_fft: int = Field(default=400, ge=16, le=16384)
    hop_length: int = Field(default=160, ge=1, le=16384)
    chunk_length: int = Field(default=30, ge=1, le=600)

    @property
    def window(self) -> int:
        """Samples of a window."""
        return self.chunk_length * self.sampling_rate

    @property
    def frames(self) -> int:
        """Frames of a window's spectrogram: 3,000."""
        return self.window // self.hop_length


def read_audio_preprocessing(folder: Path) -> AudioPreprocessing:
    """Read ``preprocessor_config.json`` of a Whisper model. DataError where it is missing, damaged or not Whisper's."""
    path = folder / "preprocessor_config.json"
    if not path.is_file():
        raise DataError(f"{folder}: has no {path.name}, so nothing says how sound becomes a spectrogram for this model")
    entry = read_json(path)
    if not isinstance(entry, dict) or entry.get("feature_extractor_type") != "WhisperFeatureExtractor":
        raise DataError(f"{path}: not the configuration of a Whisper feature extractor")
    for key, usual in (("do_normalize", False), ("dither", 0.0), ("padding_value", 0.0)):
        if entry.get(key) not in (None, usual):
            raise DataError(f"{path}: {key} is {entry[key]}, which is not supported")
    try:
        return AudioPreprocessing.model_validate(entry)
    except ValidationError as error:
        problems = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {problems}") from None


@dataclass(frozen=True)
class AudioPreparer:
    """Turns waveforms into windows of log-mel spectrogram. Picklable; needs no model."""

    preprocessing: AudioPreprocessing
    options: FeatureOptions

    def windows(self, samples: int) -> list[int]:
        """Valid tokens of each window of a clip of so many samples; a token stands for two frames."""
        how = self.preprocessing
        lengths = [min(how.window, samples - start) for start in range(0, samples, how.window)]
        return [math.ceil(math.ceil(length / how.hop_length) / 2) for length in lengths]

    def prepare(self, media: Any) -> Prepared:
        """A mono waveform, float32 ``[samples]``, to its windows.

        Raises:
            ItemError: it has no samples, or values that are no numbers.
        """
        if not isinstance(media, np.ndarray) or media.ndim != 1 or media.dtype != np.float32:
            raise TypeError("expected a mono waveform, float32 [samples]")
        if not len(media):
            raise ItemError("audio-empty", "the clip has no samples")
        if not np.isfinite(media).all():
            raise ItemError("audio-not-finite", "the clip has samples that are infinite or no numbers")
        how = self.preprocessing
        views = []
        for number, start in enumerate(range(0, len(media), how.window)):
            window = np.zeros(how.window, np.float32)
            part = media[start : start + how.window]
            window[: len(part)] = part
            views.append(View(log_mel(window, how), "window", 0, number))
        return Prepared(tuple(views), len(media), 1, valid=sum(self.windows(len(media))))


def log_mel(samples: NDArray[np.float32], how: AudioPreprocessing) -> NDArray[np.float32]:
    """float32 ``[samples]`` to float32 ``[bands, samples // hop]``."""
    padded = np.pad(samples.astype(np.float64), how.n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, how.n_fft)[:: how.hop_length][:-1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(how.n_fft) / how.n_fft)
    spectrum = np.fft.rfft(frames * hann, axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    bands = np.log10(np.maximum(power @ mel_filters(how), 1e-10)).T
    scaled = (np.maximum(bands, bands.max() - 8.0) + 4.0) / 4.0
    return np.ascontiguousarray(scaled, dtype=np.float32)


@lru_cache(maxsize=4)
def mel_filters(how: AudioPreprocessing) -> NDArray[np.float64]:
    """float64 ``[n_fft // 2 + 1, bands]``: triangles from 0 to 8 kHz on Slaney's mel scale, each of unit area."""
    frequencies = np.linspace(0, how.sampling_rate // 2, how.n_fft // 2 + 1)
    edges = _hertz(np.linspace(0.0, _mel(8000.0), how.feature_size + 2))
    rising = (frequencies[:, None] - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(rising, falling)) * (2.0 / (edges[2:] - edges[:-2]))


# Slaney's scale: linear up to 1 kHz (mel 15), logarithmic beyond, 27 mels to a factor of 6.4.


def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + np.log(hertz / 1000) * 27 / np.log(6.4)


def _hertz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(mels < 15, 200 * mels / 3, 1000 * np.exp(np.log(6.4) / 27 * (mels - 15)))
