"""Untrusted sound bytes to float32 samples, in memory, whole or in chunks.

Order of the checks: length of the file, signature and the container's own promises (:mod:`tokkit.media.sound_files`), rate,
channels and length by the header, and only then the samples, block by block, so that a file which is shorter than it says, or
longer, is found out with no more than a block in memory. libsndfile decodes (package soundfile), soxr resamples.

Only formats on an explicit list are tried, by their content and not their name: WAV, FLAC, MP3, Ogg (Vorbis, Opus, FLAC), AIFF,
AU and NIST SPHERE. M4A, AAC and WebM are not decoded.

A fault of the file (cut, damaged, not finite, no samples, absurd) is an :class:`~tokkit.errors.ItemError`; what is sound but
outside of the bounds that were asked for is an :class:`~tokkit.errors.UnwantedItem`. Digital silence is sound, unless
``min_peak`` asks for more.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from tokkit.errors import ItemError, TransientError, UnwantedItem, UsageError
from tokkit.media.sound_files import SoundFile, look_at
from tokkit.media.waveforms import AudioPreprocessing, Samples, gain_of, missing_package, mixed, resampled

if TYPE_CHECKING:
    import soundfile

BLOCK = 1 << 14  # samples (of each channel) that are decoded at once
UNKNOWN = (1 << 63) - 1  # what libsndfile gives as the length of a file that does not say
SEEKABLE = frozenset(("WAV", "WAVEX", "RF64", "FLAC", "AIFF", "AU", "NIST"))  # formats in which a place is found exactly
SLACK = 0.05  # seconds from its file's end within which a segment ends with the file: manifests round

DEFAULT_PREPROCESSING = AudioPreprocessing()


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Bounds on a sound. The first four are about what can be decoded safely; the others say which sounds are wanted.

    Attributes:
        max_bytes: length of the encoded file.
        max_samples: of all channels together, at the file's own rate.
        max_channels: of the file.
        rates: least and largest sample rate.
        min_seconds, max_seconds: of the sound (of a segment, where only that is asked for).
        min_peak: largest sample, by its amount, that it must at least have; above 0 leaves out digital silence.
    """

    max_bytes: int = 1 << 30
    max_samples: int = 1 << 30
    max_channels: int = 32
    rates: tuple[int, int] = (1000, 768_000)
    min_seconds: float = 0.0
    max_seconds: float | None = None
    min_peak: float = 0.0

    def __post_init__(self) -> None:
        if (
            min(self.max_bytes, self.max_samples, self.max_channels, *self.rates) < 1
            or min(self.min_seconds, self.min_peak) < 0
        ):
            raise ValueError(f"limits must be at least 1, and not below 0 for seconds and the peak: {self}")
        if self.rates[0] > self.rates[1] or (self.max_seconds is not None and self.max_seconds < max(self.min_seconds, 0)):
            raise ValueError(f"no sound is within these limits: {self}")


DEFAULT_LIMITS = AudioLimits()


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a file that is asked for: from ``start`` seconds, ``seconds`` long, or to the end where that is None."""

    start: float = 0.0
    seconds: float | None = None


WHOLE = Segment()


def load_audio(
    data: bytes,
    sample_rate: int,
    channels: int,
    *,
    segment: Segment = WHOLE,
    preprocessing: AudioPreprocessing = DEFAULT_PREPROCESSING,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> Samples:
    """Decode one sound.

    Returns:
        float32 ``[channels, samples]`` at ``sample_rate``; nominally within -1 and 1.

    Raises:
        ItemError: ``audio-empty``, ``audio-unrecognised``, ``audio-truncated``, ``audio-damaged``, ``audio-too-large``,
            ``audio-not-finite`` or ``audio-segment`` (the file ends before it).
        UnwantedItem: ``audio-too-short``, ``audio-too-long``, ``audio-channels`` or ``audio-silent``.
        TransientError: out of memory.
        UsageError: soundfile or soxr is not installed.
    """
    chunks = stream_audio(data, sample_rate, channels, segment=segment, preprocessing=preprocessing, limits=limits)
    with _no_memory():
        return np.concatenate(list(chunks), axis=1)


def stream_audio(
    data: bytes,
    sample_rate: int,
    channels: int,
    *,
    segment: Segment = WHOLE,
    preprocessing: AudioPreprocessing = DEFAULT_PREPROCESSING,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> Iterator[Samples]:
    """The chunks ``[channels, n]`` of what :func:`load_audio` gives whole, bit for bit, in bounded memory.

    Whether a file is sound is only known at its end: what was yielded before an error is not to be kept. A loudness is measured
    in a pass of its own.

    Raises:
        As :func:`load_audio`; also at the end.
    """

    def chunks() -> Iterator[Samples]:
        with _opened(data, limits) as sound:
            there = (mixed(block, channels, preprocessing.mix) for block in _blocks(sound, segment, limits))
            yield from resampled(there, sound.rate, sample_rate, channels, preprocessing.quality)

    gain = None if preprocessing.loudness is None else gain_of(chunks(), preprocessing.loudness)
    some = False
    for chunk in chunks():
        some = True
        yield np.ascontiguousarray((chunk if gain is None else chunk * np.float32(gain)).T)
    if not some:
        raise ItemError("audio-empty", f"too few samples to make one at {sample_rate:,} Hz")


def audio_packages() -> dict[str, str]:
    """Versions of what decodes and resamples, for the numeric fingerprint.

    Raises:
        UsageError: one of them is not installed.
    """
    sf = _soundfile()
    try:
        import soxr
    except (ImportError, OSError) as error:
        raise UsageError(missing_package("soxr", error)) from error
    return {
        "soundfile": version("soundfile"),
        "libsndfile": sf.__libsndfile_version__,
        "soxr": version("soxr"),
        "libsoxr": soxr.__libsoxr_version__,
    }


# ---- decoding


@dataclass(frozen=True, slots=True)
class _Sound:
    """An open file: what it is, and what reads it."""

    kind: SoundFile
    rate: int
    channels: int
    length: int | None  # samples of a channel, by the header
    seekable: bool
    reader: soundfile.SoundFile
    at_end: Callable[[], bool]  # whether all bytes were asked for

    def seconds(self, samples: int) -> str:
        return f"{samples / self.rate:,.2f} s"


@contextmanager
def _opened(data: bytes, limits: AudioLimits) -> Iterator[_Sound]:
    """The file by its header, within the bounds."""
    if not data:
        raise ItemError("audio-empty", "the file has no bytes")
    if len(data) > limits.max_bytes:
        raise ItemError("audio-too-large", f"{len(data):,} bytes, more than {limits.max_bytes:,}")
    kind = look_at(data)
    sf = _soundfile()
    with _no_memory():
        buffer = io.BytesIO(data[kind.start :] if kind.start else data)
        try:
            reader = _reader_class(sf)(buffer)
        except sf.SoundFileError as error:
            raise ItemError("audio-damaged", f"{kind.format} that cannot be opened ({len(data):,} bytes)") from error
    with reader:
        length = None if reader.frames == UNKNOWN else int(reader.frames)
        end = len(data) - kind.start
        sound = _Sound(
            kind,
            reader.samplerate,
            reader.channels,
            length,
            reader.format in SEEKABLE,
            reader,
            lambda: buffer.tell() >= end,
        )
        _check_header(sound, limits)
        yield sound


def _check_header(sound: _Sound, limits: AudioLimits) -> None:
    if not limits.rates[0] <= sound.rate <= limits.rates[1]:
        least, most = limits.rates
        raise ItemError("audio-damaged", f"a sample rate of {sound.rate:,} Hz, outside of {least:,}..{most:,}")
    if sound.channels > limits.max_channels:
        raise ItemError("audio-too-large", f"{sound.channels} channels, more than {limits.max_channels}")
    if sound.length == 0:
        raise ItemError("audio-empty", "no samples by its header")
    if sound.length is not None and sound.length * sound.channels > limits.max_samples:
        what = f"{sound.length:,} samples of {sound.channels} channels ({sound.seconds(sound.length)}) by its header"
        raise ItemError("audio-too-large", f"{what}, more than {limits.max_samples:,} in all")


def _blocks(sound: _Sound, segment: Segment, limits: AudioLimits) -> Iterator[Samples]:
    """Blocks ``[n, channels]`` of a segment as the file has them, checked."""
    first, last = _place(sound, segment)
    if sound.length is not None and (sound.kind.length_known or segment.seconds is not None):
        _check_wanted(sound, (sound.length if last is None else last) - first, limits)  # before the work of decoding it
    position = 0
    if first and sound.seekable:
        with _blame(sound):
            position = int(sound.reader.seek(first))
    kept, peak = 0, 0.0
    while last is None or position < last:
        with _no_memory(), _blame(sound, position):
            block = sound.reader.read(BLOCK, dtype="float32", always_2d=True)
        if not len(block):
            break
        begin, position = position, position + len(block)
        if position * sound.channels > limits.max_samples:
            raise ItemError("audio-too-large", f"more than {limits.max_samples:,} samples in all")
        block = block[max(0, first - begin) : None if last is None else last - begin]
        if not len(block):
            continue
        if not np.isfinite(block).all():
            raise ItemError("audio-not-finite", f"a sample near {sound.seconds(begin)} is not a number, or infinite")
        kept += len(block)
        peak = max(peak, float(np.abs(block).max()))
        yield block
    _check_end(sound, position, segment, first, last)
    _check_wanted(sound, kept, limits)
    if peak < limits.min_peak:
        raise UnwantedItem("audio-silent", f"no sample above {peak:g}, and {limits.min_peak:g} is asked for")


def _place(sound: _Sound, segment: Segment) -> tuple[int, int | None]:
    """First sample of a segment, and the one behind its last where that is not the end."""
    first = round(segment.start * sound.rate)
    last = None if segment.seconds is None else round((segment.start + segment.seconds) * sound.rate)
    if first < 0 or (last is not None and last <= first):
        raise ItemError("audio-segment", f"no segment: {segment.seconds} s from {segment.start} s")
    if sound.length is not None and sound.kind.length_known:
        if first >= sound.length or (last is not None and last > sound.length + SLACK * sound.rate):
            raise _behind_the_end(sound, segment, sound.length)
        if last is not None and last > sound.length - SLACK * sound.rate:
            last = sound.length
    return first, last


def _check_end(sound: _Sound, position: int, segment: Segment, first: int, last: int | None) -> None:
    """That the file was as long as it says, and as long as the segment needs."""
    if not position:
        raise ItemError("audio-damaged", f"{sound.kind.format} of which no sample can be decoded")
    promised = sound.length if last is None else last
    if sound.kind.length_known and promised is not None and position < promised - sound.kind.frame:
        what = f"{promised:,} samples ({sound.seconds(promised)}) by its header"
        raise ItemError("audio-truncated", f"{what}, and it ends after {position:,} ({sound.seconds(position)})")
    if position <= first or (last is not None and position < last - SLACK * sound.rate):
        raise _behind_the_end(sound, segment, position)


def _behind_the_end(sound: _Sound, segment: Segment, length: int) -> ItemError:
    wanted = f"from {segment.start:g} s" + ("" if segment.seconds is None else f" to {segment.start + segment.seconds:g} s")
    return ItemError("audio-segment", f"a segment {wanted} of a file of {sound.seconds(length)}")


def _check_wanted(sound: _Sound, samples: int, limits: AudioLimits) -> None:
    seconds = samples / sound.rate
    if seconds < limits.min_seconds:
        raise UnwantedItem("audio-too-short", f"{seconds:g} s, shorter than {limits.min_seconds:g}")
    if limits.max_seconds is not None and seconds > limits.max_seconds:
        raise UnwantedItem("audio-too-long", f"{seconds:g} s, longer than {limits.max_seconds:g}")


@contextmanager
def _blame(sound: _Sound, position: int = 0) -> Iterator[None]:
    """What a failure inside libsndfile means: it ran out of bytes, or did not understand them."""
    sf = _soundfile()
    try:
        yield
    except sf.SoundFileError as error:
        reason = "audio-truncated" if sound.at_end() else "audio-damaged"
        message = f"{sound.kind.format} that cannot be decoded after {sound.seconds(position)}: {error}"
        raise ItemError(reason, message) from error


@contextmanager
def _no_memory() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise TransientError(f"no memory to decode a sound ({error})") from error


@cache
def _reader_class(sf: Any) -> Any:
    """soundfile's reader without its habit of seeking to where it is after each read.

    That fails in a FLAC that does not tell its length, and gives wrong samples in the last packet of an Opus stream.
    """

    class Reader(sf.SoundFile):
        def seekable(self) -> bool:
            return False

    return Reader


def _soundfile() -> Any:
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its libsndfile cannot be loaded
        raise UsageError(missing_package("soundfile", error)) from error
    return soundfile
