"""Sounds as pages show them: something to hear and something to look at, as bytes that stand in the page itself."""

from __future__ import annotations

import base64
import io
import wave
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from tokkit.metrics.audio import log_mel

BYTES_OF_SAMPLE = 2


def spectrogram(samples: npt.NDArray[np.float32], rate: int, most: int = 600) -> npt.NDArray[np.uint8]:
    """A picture uint8 [64, at most ``most``, 3] of the log mel spectrogram, low bands below; -100 dB black, 0 dB white."""
    image = log_mel(samples, rate)[::-1, :most]
    level = np.clip((image + 5) / 7, 0, 1)  # log10 of 1e-5 to 1e2
    return np.repeat((level * 255).round().astype(np.uint8)[:, :, None], 3, axis=2)


def write_pcm(file: BinaryIO, samples: npt.NDArray[np.float32], rate: int) -> None:
    """Write float32 ``[channels, n]`` as WAV of 16 bits; what is beyond full scale is clipped."""
    pcm = np.clip(np.rint(samples * 32767.0), -32768, 32767).astype("<i2")
    with wave.open(file, "wb") as target:
        target.setnchannels(len(pcm))
        target.setsampwidth(BYTES_OF_SAMPLE)
        target.setframerate(rate)
        target.writeframes(np.ascontiguousarray(pcm.T).tobytes())


def sound_uri(samples: npt.NDArray[np.float32], rate: int) -> str:
    """One channel ``[n]`` as an embedded WAV."""
    buffer = io.BytesIO()
    write_pcm(buffer, samples[None], rate)
    return "data:audio/wav;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
