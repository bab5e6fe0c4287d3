"""Figures of sounds: by their definition, by what must not matter, and by what must."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.metrics.audio import (
    SI_SDR_OF_EQUAL,
    log_mel,
    mel_distance,
    mel_filters,
    pesq,
    si_sdr,
    speech_packages,
    stoi,
)

RATE = 16_000


def noise(samples: int = 8_000, channels: int = 1, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((channels, samples)).astype(np.float32) * 0.1


def test_si_sdr_is_the_ratio_of_what_was_added() -> None:
    original = noise()
    rest = noise(seed=1)
    rest -= rest.mean()
    centred = original - original.mean()
    rest -= (float(np.vdot(rest, centred)) / float(np.vdot(centred, centred))) * centred  # nothing of the original in it
    for wanted in (-10.0, 0.0, 20.0):
        factor = np.sqrt(np.vdot(centred, centred) / np.vdot(rest, rest)) * 10 ** (-wanted / 20)
        assert si_sdr(original, (original + factor * rest).astype(np.float32)) == pytest.approx(wanted, abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.01, 10), st.floats(-0.5, 0.5))
def test_si_sdr_minds_neither_loudness_nor_an_offset(gain: float, offset: float) -> None:
    original, output = noise(), noise() + 0.3 * noise(seed=1)
    changed = (gain * output + offset).astype(np.float32)
    assert si_sdr(original, changed) == pytest.approx(si_sdr(original, output), abs=1e-2)


def test_si_sdr_of_equal_unlike_and_silent_sounds() -> None:
    original = noise(channels=2)
    assert si_sdr(original, original) == SI_SDR_OF_EQUAL
    assert si_sdr(original, np.zeros_like(original)) == -SI_SDR_OF_EQUAL
    assert si_sdr(np.zeros_like(original), original) is None
    half = original.copy()
    half[1] = 0
    assert si_sdr(half, original) is None


def test_mel_distance_minds_loudness_and_bands_but_not_phase() -> None:
    time = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 1000 * time))[None].astype(np.float32)
    shifted = (0.5 * np.sin(2 * np.pi * 1000 * time + 1.3))[None].astype(np.float32)
    other = (0.5 * np.sin(2 * np.pi * 3000 * time))[None].astype(np.float32)
    assert mel_distance(tone, tone, RATE) == 0
    assert mel_distance(tone, shifted, RATE) < 0.1 < 0.5 < mel_distance(tone, other, RATE)
    loud = noise(RATE)
    assert mel_distance(loud, (loud * np.float32(0.1)), RATE) == pytest.approx(1.0, abs=1e-3)  # 20 dB are one decade


def test_the_mel_bands_are_where_they_belong() -> None:
    filters = mel_filters(24_000)
    assert filters.shape == (64, 513)
    assert filters.max() <= 1
    centres = filters.argmax(axis=1) * 24_000 / 1024
    assert (np.diff(centres) >= 0).all()
    time = np.arange(24_000) / 24_000
    band = int(log_mel((0.5 * np.sin(2 * np.pi * 2000 * time)).astype(np.float32), 24_000).mean(axis=1).argmax())
    assert abs(centres[band] - 2000) < 150


@pytest.mark.parametrize("samples", [1, 255, 256, 1024, 5000])
def test_any_length_has_a_distance(samples: int) -> None:
    assert mel_distance(noise(samples), noise(samples, seed=1), RATE) > 0
    assert log_mel(noise(samples)[0], RATE).shape == (64, samples // 256 + 1)


def test_sounds_of_other_shapes_are_refused() -> None:
    for other in (noise(7_999), noise(channels=2), noise()[0]):
        with pytest.raises(ValueError, match="one shape"):
            si_sdr(noise(), other)


def test_what_is_not_installed_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pystoi", None)
    monkeypatch.setitem(sys.modules, "pesq", None)
    assert stoi(noise(), noise(), RATE) is None
    assert pesq(noise(), noise(), RATE) is None


def test_what_does_not_load_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A pesq that was built beside another NumPy fails at import with a ValueError."""
    (tmp_path / "pesq.py").write_text("raise ValueError('numpy.ndarray size changed')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pesq", raising=False)
    assert pesq(noise(), noise(), RATE) is None
    assert "pesq" not in speech_packages()


def test_a_speech_package_that_is_there_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its own interface, with the mean of the channels; a warning that it cannot tell is no figure."""
    asked: list[tuple[tuple[int, ...], int]] = []

    def measured(clean: np.ndarray, processed: np.ndarray, rate: int, extended: bool) -> float:
        asked.append((clean.shape, rate))
        if len(clean) < 7_000:
            warnings.warn("Not enough STFT frames to compute", RuntimeWarning, stacklevel=1)
            return 1e-5
        return 0.75

    package = ModuleType("pystoi")
    vars(package).update(stoi=measured)
    monkeypatch.setitem(sys.modules, "pystoi", package)
    assert stoi(noise(channels=2), noise(channels=2), RATE) == 0.75
    assert asked == [((8_000,), RATE)]
    assert stoi(noise(6_500), noise(6_500), RATE) is None
    assert stoi(noise(6_000), noise(6_000), RATE) is None  # not even asked: it fails on the shortest
    assert len(asked) == 2
    assert stoi(0 * noise(), noise(), RATE) is None


def test_stoi_and_pesq_of_the_packages() -> None:
    """Worse sounds have worse figures; too little to measure has none."""
    for package, measure, best in (("pystoi", stoi, 1.0), ("pesq", pesq, 4.64)):
        if importlib.util.find_spec(package) is None:
            continue
        rng = np.random.default_rng(0)
        t = np.arange(3 * RATE) / RATE
        voice = sum(np.sin(2 * np.pi * 120 * k * t) / k for k in range(1, 20)) * (np.sin(2 * np.pi * 3 * t) > 0)
        clean = (0.2 * voice).astype(np.float32)[None]
        hiss = rng.standard_normal(clean.shape).astype(np.float32)
        figures = [measure(clean, clean + level * hiss, RATE) for level in (0, 0.01, 0.3)]
        assert figures[0] == pytest.approx(best, abs=0.02)
        assert figures == sorted(figures, reverse=True)  # type: ignore[type-var]
        assert len(set(figures)) == 3
        assert measure(clean[:, :300], clean[:, :300], RATE) is None
        assert measure(0 * clean, clean, RATE) is None
        assert package in speech_packages()
