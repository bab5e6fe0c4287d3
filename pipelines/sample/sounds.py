"""Sounds: scales and chords of plucked tones, and syllables that are shaped as a voice shapes them. 16 kHz, mono.

Voiced sounds are sums of harmonics weighted by formants: resonances of the vocal tract at the frequencies that make a vowel
(values for a male speaker after Peterson and Barney, JASA 24, 1952, rounded). Consonants are short noises or hums.
"""

from __future__ import annotations

import io
import random
import wave
from dataclasses import dataclass

import numpy as np

RATE = 16_000
Samples = np.ndarray  # float64, within [-1, 1], at RATE

_VOWELS = {"a": (730, 1090, 2440), "e": (530, 1840, 2480), "i": (270, 2290, 3010), "o": (570, 840, 2410), "u": (300, 870, 2240)}
_NOISES = {
    "s": (4500, 7500, 0.10),
    "sh": (2200, 4500, 0.11),
    "f": (1500, 7000, 0.08),
    "t": (3000, 6000, 0.03),
    "k": (1500, 3000, 0.03),
}
_HUMS = {"m": 220.0, "n": 260.0, "l": 380.0}
_NOTES = ("C", "D", "E", "F", "G", "A", "B")
_STEPS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
_SCALES = {"major": (0, 2, 4, 5, 7, 9, 11, 12), "minor": (0, 2, 3, 5, 7, 8, 10, 12)}
_CHORDS = {"major": (0, 4, 7), "minor": (0, 3, 7)}


@dataclass(frozen=True)
class Sound:
    """A sound, what is heard in it, and who or what made it."""

    samples: Samples
    transcript: str
    speaker: str

    def wav(self) -> bytes:
        """16-bit PCM in a WAV file."""
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(np.rint(np.clip(self.samples, -1, 1) * 32767).astype("<i2").tobytes())
        return buffer.getvalue()


def _pitch(note: str, half_tones: int) -> float:
    return 220.0 * 2 ** ((_STEPS[note] - 9 + half_tones) / 12)


def _tone(frequency: float, seconds: float) -> Samples:
    time = np.arange(round(seconds * RATE)) / RATE
    parts = [0.7**n * np.exp(-time * (2 + n)) * np.sin(2 * np.pi * n * frequency * time) for n in range(1, 7)]
    attack = np.minimum(1.0, time / 0.008)
    release = np.minimum(1.0, (seconds - time) / 0.02)
    return np.sum(parts, axis=0) * attack * release


def scale(rng: random.Random) -> Sound:
    """The eight notes of a scale, up or down."""
    note, kind, up = rng.choice(_NOTES), rng.choice(sorted(_SCALES)), rng.random() < 0.5
    steps = _SCALES[kind] if up else _SCALES[kind][::-1]
    seconds = rng.uniform(0.12, 0.22)
    samples = np.concatenate([_tone(_pitch(note, step), seconds) for step in steps])
    return Sound(
        0.6 * samples, f"{'an' if note in 'AEF' else 'a'} {note} {kind} scale going {'up' if up else 'down'}", "strings"
    )


def chords(rng: random.Random) -> Sound:
    """Two or three chords."""
    said, parts = [], []
    for _ in range(rng.choice([2, 3])):
        note, kind = rng.choice(_NOTES), rng.choice(sorted(_CHORDS))
        parts.append(np.sum([_tone(_pitch(note, step), 0.5) for step in _CHORDS[kind]], axis=0))
        said.append(f"{note} {kind}")
    return Sound(0.25 * np.concatenate(parts), f"chords: {', '.join(said)}", "strings")


def _voiced(formants: tuple[float, ...], pitch: np.ndarray) -> Samples:
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    sound = np.zeros_like(pitch)
    for n in range(1, int(3800 / pitch.mean())):
        frequency = n * pitch
        weight = sum(
            g / (1 + ((frequency - f) / (60 + 0.04 * f)) ** 2) for f, g in zip(formants, (1.0, 0.6, 0.3), strict=False)
        )
        sound += weight / n**0.4 * np.sin(n * phase)
    return sound


def _noise(low: float, high: float, seconds: float, rng: np.random.Generator) -> Samples:
    spectrum = np.fft.rfft(rng.standard_normal(round(seconds * RATE)))
    frequencies = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
    spectrum[(frequencies < low) | (frequencies > high)] = 0
    return np.fft.irfft(spectrum, round(seconds * RATE))


def _faded(sound: Samples, seconds: float = 0.015) -> Samples:
    ramp = np.minimum(1.0, np.arange(len(sound)) / (seconds * RATE))
    return sound * ramp * ramp[::-1]


def _level(sound: Samples, level: float) -> Samples:
    return sound * (level / max(1e-9, float(np.abs(sound).max())))


def syllables(rng: random.Random) -> Sound:
    """A few syllables in one voice; the pitch falls towards the end, as in a statement."""
    noise = np.random.default_rng(rng.getrandbits(32))
    speaker, base = rng.choice([("low voice", 110.0), ("middle voice", 160.0), ("high voice", 220.0)])
    words, parts = [], []
    for place in range(rng.randint(2, 5)):
        onset, vowel = rng.choice([*_NOISES, *_HUMS, ""]), rng.choice(sorted(_VOWELS))
        words.append(onset + vowel)
        level = base * (1.12 - 0.06 * place) * rng.uniform(0.96, 1.04)
        if onset in _NOISES:
            low, high, seconds = _NOISES[onset]
            parts.append(_level(_faded(_noise(low, high, seconds, noise), 0.005), 0.2))
        elif onset:
            hum = np.full(round(0.07 * RATE), level)
            parts.append(_level(_faded(_voiced((_HUMS[onset], 1100.0), hum)), 0.3))
        count = round(rng.uniform(0.14, 0.26) * RATE)
        pitch = level * (1 + 0.015 * np.sin(2 * np.pi * 5 * np.arange(count) / RATE)) * np.linspace(1.03, 0.95, count)
        parts.append(_level(_faded(_voiced(_VOWELS[vowel], pitch), 0.02), 0.6))
        parts.append(np.zeros(round(rng.uniform(0.02, 0.06) * RATE)))
    samples = np.concatenate(parts)
    return Sound(samples + noise.normal(0, 0.002, len(samples)), " ".join(words), speaker)


def draw_sound(rng: random.Random) -> Sound:
    """A sound of any kind, 0.5 to 2 seconds."""
    return rng.choice([scale, chords, syllables, syllables])(rng)
