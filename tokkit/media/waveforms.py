"""From decoded samples to those that an audio tokenizer takes: channels mixed, rate converted, loudness set, in chunks.

What is done changes codes, so it is written down: :class:`AudioPreprocessing` is part of the output's semantic fingerprint, and
the resampler's version of the numeric one.

* **Channels.** As many as there are pass as they are. One is given to each of several. Several become fewer by ``mix``:
  ``mean`` (the mean of all, given to each that is wanted), ``first`` (the first ones), or ``refuse``.
* **Rate.** soxr, by ``quality``: ``HQ`` leaves less than -120 dB of what it should take out, ``VHQ`` less than -160 dB. The
  stream gives bit for bit what the whole gives. Mixing comes first, since both are linear and fewer channels are cheaper.
* **Loudness.** Left alone, unless ``loudness`` asks for a peak or a root mean square. Samples beyond 1.0 are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import UnwantedItem, UsageError

Samples = NDArray[np.float32]
Mix = Literal["mean", "first", "refuse"]


class Loudness(BaseModel):
    """What a sound's level is brought to by one factor; digital silence stays what it is.

    Attributes:
        measure: ``peak``: the largest sample; ``rms``: the root mean square of all samples and channels.
        decibels: the level, relative to full scale.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    measure: Literal["peak", "rms"]
    decibels: float = Field(ge=-100, le=0)


class AudioPreprocessing(BaseModel):
    """What is done to decoded samples; see the module's docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mix: Mix = "mean"
    quality: Literal["HQ", "VHQ"] = "HQ"
    loudness: Loudness | None = None


def mixed(samples: Samples, channels: int, mix: Mix) -> Samples:
    """``[n, c]`` as ``[n, channels]``.

    Raises:
        UnwantedItem: ``audio-channels`` where there are more than wanted and ``mix`` is ``refuse``.
    """
    there = samples.shape[1]
    if there == channels:
        return samples
    if there > channels and mix == "refuse":
        raise UnwantedItem("audio-channels", f"{there} channels, more than {channels}")
    if there > channels and mix == "first":
        return samples[:, :channels]
    # Channel by channel in float64: a sum along the rows would depend on how NumPy cuts them up.
    total = np.zeros(len(samples), dtype=np.float64)
    for channel in range(there):
        total += samples[:, channel]
    return np.repeat((total / there).astype(np.float32)[:, None], channels, axis=1)


def resampled(chunks: Iterable[Samples], rate: int, wanted: int, channels: int, quality: str) -> Iterator[Samples]:
    """Chunks ``[n, channels]`` at another rate; together bit for bit what resampling them at once gives.

    Raises:
        UsageError: soxr is not installed.
    """
    if rate == wanted:
        yield from chunks
        return
    stream = _soxr().ResampleStream(rate, wanted, channels, dtype="float32", quality=quality)
    for chunk in chunks:
        out = stream.resample_chunk(np.ascontiguousarray(chunk))
        if len(out):
            yield out
    out = stream.resample_chunk(np.zeros((0, channels), dtype=np.float32), last=True)
    if len(out):
        yield out


def gain_of(chunks: Iterable[Samples], loudness: Loudness) -> float:
    """The factor that brings samples to a loudness; 1 for silence."""
    peak = square = 0.0
    count = 0
    for chunk in chunks:
        peak = max(peak, float(np.abs(chunk).max(initial=0.0)))
        square += float(np.square(chunk, dtype=np.float64).sum())
        count += chunk.size
    level = peak if loudness.measure == "peak" else math.sqrt(square / max(count, 1))
    return 10 ** (loudness.decibels / 20) / level if level > 0 else 1.0


def _soxr():  # type: ignore[no-untyped-def]
    try:
        import soxr
    except (ImportError, OSError) as error:
        raise UsageError(missing_package("soxr", error)) from error
    return soxr


def missing_package(name: str, error: Exception) -> str:
    """What is told where a package that sounds need cannot be imported."""
    return f"sounds need the package {name}, which cannot be imported ({error}): pip install 'tokkit[audio]'"
