"""Untrusted sound bytes: every file becomes samples or a reasoned reject, whole and in chunks alike."""

from __future__ import annotations

import io
import json
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.errors import ItemError, UnwantedItem, UsageError
from tokkit.media import audio
from tokkit.media.audio import AudioLimits, Segment, audio_packages, load_audio, stream_audio
from tokkit.media.waveforms import AudioPreprocessing, Loudness, mixed

# What becomes of each broken or odd file: samples at 24 kHz, or the reason of its reject.
EXPECTED: dict[str, int | str] = {
    "zero_samples.wav": "audio-empty",
    "nan_inf_float.wav": "audio-not-finite",
    "cut_data.wav": "audio-truncated",
    "size_ffffffff.wav": 16327,
    "bad_header.mp3": 117440,  # what stands before the first whole frame is skipped
    "html_named.mp3": "audio-unrecognised",
    "zero_bytes.wav": "audio-empty",
    "cut.flac": "audio-truncated",
    "cut.ogg": "audio-truncated",
    "silence_1s.wav": 24000,
    "clipped_float.wav": 17415,
    "pcm24.wav": 13061,
    "alaw.wav": 36000,
    "dc_offset.wav": 13061,
    "wav_named.flac": "audio-truncated",
    "ten_samples.wav": 11,
    "mutagen_bad-POPM-frame.mp3": "audio-damaged",
    "mutagen_emptyfile.mp3": "audio-empty",
    "mutagen_too-short.mp3": "audio-damaged",
    "mutagen_lame397v9short.mp3": "audio-damaged",
    "mutagen_52-overwritten-metadata.flac": "audio-truncated",
    "mutagen_ooming-header.flac": "audio-damaged",
    "mutagen_bad-xing.mp3": "audio-truncated",
    "mutagen_empty.ogg": 88433,
    "pocketsphinx_bad.wav": "audio-damaged",
    "pocketsphinx_awful.wav": "audio-damaged",
}
REASONS = {
    "audio-empty",
    "audio-unrecognised",
    "audio-truncated",
    "audio-damaged",
    "audio-too-large",
    "audio-not-finite",
    "audio-segment",
}
KINDS = {
    "wav": ("WAV", "PCM_16"),
    "float": ("WAV", "FLOAT"),
    "flac": ("FLAC", "PCM_16"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "ogg": ("OGG", "VORBIS"),
    "opus": ("OGG", "OPUS"),
    "aiff": ("AIFF", "PCM_16"),
    "au": ("AU", "PCM_16"),
}


def noise(samples: int, channels: int = 1, seed: int = 0) -> np.ndarray:
    """Band-limited noise, float32 [samples, channels]."""
    white = np.random.default_rng(seed).standard_normal((samples + 32, channels))
    smooth = np.stack([np.convolve(white[:, c], np.hanning(33), mode="valid") for c in range(channels)], axis=1)
    return (smooth / max(1e-9, np.abs(smooth).max()) * 0.7).astype(np.float32)


def encoded(samples: np.ndarray, rate: int = 16000, kind: str = "wav") -> bytes:
    buffer = io.BytesIO()
    name, subtype = KINDS[kind]
    soundfile.write(buffer, samples, rate, format=name, subtype=subtype)
    return buffer.getvalue()


def reason(data: bytes, limits: AudioLimits = audio.DEFAULT_LIMITS, **options: object) -> str:
    with pytest.raises(ItemError) as caught:
        load_audio(data, 24000, 1, limits=limits, **options)  # type: ignore[arg-type]
    if not isinstance(caught.value, UnwantedItem):
        assert caught.value.reason in REASONS
    return caught.value.reason


def test_every_bad_file_is_decoded_or_rejected_as_expected(shared_data: Path) -> None:
    lines = (shared_data / "bad" / "MANIFEST.jsonl").read_text().splitlines()
    names = {Path(e["file"]).name for e in map(json.loads, lines) if e["file"].startswith("audio/")}
    assert names == EXPECTED.keys() | {"bad_manifest.jsonl"}
    for name, expected in EXPECTED.items():
        data = (shared_data / "bad" / "audio" / name).read_bytes()
        if isinstance(expected, str):
            assert reason(data) == expected, name
        else:
            assert load_audio(data, 24000, 1).shape == (1, expected), name


def test_every_real_clip_is_as_long_as_its_manifest_says(shared_data: Path) -> None:
    entries = [json.loads(line) for line in (shared_data / "audio" / "manifest.jsonl").read_text().splitlines()]
    for entry in entries:
        data = (shared_data / "audio" / entry["audio_filepath"]).read_bytes()
        samples = load_audio(data, 16000, 1)
        assert samples.dtype == np.float32
        # An MP3 without a count of its frames has an estimated length in the manifest.
        assert samples.shape[1] / 16000 == pytest.approx(entry["duration"], abs=0.03), entry["audio_filepath"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_in_any_chunks_is_the_whole_and_what_soxr_gives_at_once(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(40_123, 2), 48000, kind)
    decoded, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    assert rate == 48000
    expected = soxr.resample(mixed(decoded, 1, "mean"), 48000, 24000, "HQ").T
    assert np.array_equal(load_audio(data, 24000, 1), expected)
    for block in (4096, 4410, 40_123):
        monkeypatch.setattr(audio, "BLOCK", block)
        chunks = list(stream_audio(data, 24000, 1))
        assert np.array_equal(np.concatenate(chunks, axis=1), expected)
        assert np.array_equal(load_audio(data, 48000, 2), decoded.T)


@pytest.mark.parametrize("behind", [1, 60, 107, 120, 961])
def test_an_opus_whose_last_packet_stands_on_the_edge_of_a_block_is_decoded_as_at_once(behind: int) -> None:
    data = encoded(noise(2 * audio.BLOCK + behind), 48000, "opus")
    assert np.array_equal(load_audio(data, 48000, 1)[0], soundfile.read(io.BytesIO(data), dtype="float32")[0])


def test_a_long_file_is_streamed_in_bounded_memory() -> None:
    data = encoded(np.tile(noise(48_000, 2), (120, 1)), 48000, "flac")  # two minutes
    tracemalloc.start()
    count = sum(chunk.shape[1] for chunk in stream_audio(data, 24000, 1))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 120 * 24000
    assert peak < 8 << 20 < count * 4


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.floats(0.0, 0.999))
def test_a_file_that_was_cut_is_rejected(kind: str, share: float) -> None:
    data = encoded(noise(30_000, seed=3), 16000, kind)
    cut = data[: int(share * len(data))]
    if kind in ("mp3", "au"):  # an MP3 says how long it is in frames; an AU in bytes that libsndfile does not hold it to
        try:
            samples = load_audio(cut, 16000, 1)
        except ItemError as error:
            assert error.reason in REASONS
        else:
            assert kind == "au" or samples.shape[1] >= 30_000 - 2 * 1152
    else:
        assert reason(cut) in REASONS - {"audio-too-large", "audio-not-finite", "audio-segment"}


def test_an_ogg_without_its_last_page_and_a_nist_file_that_was_cut_are_rejected(shared_data: Path) -> None:
    ogg = encoded(noise(60_000), 16000, "ogg")
    assert reason(ogg[: ogg.rfind(b"OggS")]) == "audio-truncated"
    sphere = (shared_data / "audio" / "misc" / "stereo_8k.sph").read_bytes()
    assert load_audio(sphere, 8000, 2).shape == (2, 8000)
    assert reason(sphere[:-1]) == "audio-truncated"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.lists(st.tuples(st.floats(0, 0.9999), st.integers(0, 255)), max_size=12))
def test_no_change_of_bytes_raises_anything_but_a_reject(kind: str, changes: list[tuple[float, int]]) -> None:
    data = bytearray(encoded(noise(4_000, seed=5), 16000, kind))
    for place, value in changes:
        data[int(place * place * len(data))] = value  # more often near the beginning
    limits = AudioLimits(max_samples=1 << 22)
    try:
        samples = load_audio(bytes(data), 16000, 1, limits=limits)
    except ItemError as error:
        assert error.reason in REASONS
    else:
        assert np.isfinite(samples).all()


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from([b"", b"RIFF\x00\x00\x00\x00WAVE", b"OggS", b"fLaC", b"ID3", b"\xff\xfb\x90d", b"NIST_1A\n"]),
)
def test_no_bytes_at_all_raise_anything_but_a_reject(tail: bytes, head: bytes) -> None:
    with pytest.raises(ItemError) as caught:
        load_audio(head + tail, 16000, 1)
    assert caught.value.reason in REASONS


@pytest.mark.parametrize("kind", [*KINDS])
def test_a_segment_is_that_part_of_the_file(kind: str) -> None:
    data = encoded(noise(32_000, 2), 16000, kind)
    whole = load_audio(data, 16000, 2)
    part = load_audio(data, 16000, 2, segment=Segment(0.5, 0.75))
    assert np.array_equal(part, whole[:, 8_000:20_000])
    rest = load_audio(data, 16000, 2, segment=Segment(1.25))
    assert np.array_equal(rest, whole[:, 20_000:])
    # Manifests round: a segment that ends a little before or behind the file ends with it.
    assert kind == "mp3" or np.array_equal(
        load_audio(data, 16000, 2, segment=Segment(0.0, whole.shape[1] / 16000 - 0.01)), whole
    )
    assert np.array_equal(load_audio(data, 16000, 2, segment=Segment(1.0, whole.shape[1] / 16000 - 0.96)), whole[:, 16_000:])
    for segment in (Segment(1.0, 3.0), Segment(5.0), Segment(5.0, 1.0), Segment(0.5, 0.0), Segment(-1.0, 1.5)):
        assert reason(data, segment=segment) == "audio-segment"


def test_bounds() -> None:
    second = encoded(noise(16_000, 2))
    assert reason(second, AudioLimits(max_bytes=1000)) == "audio-too-large"
    assert reason(second, AudioLimits(max_samples=31_999)) == "audio-too-large"
    assert reason(second, AudioLimits(max_channels=1)) == "audio-too-large"
    assert reason(second, AudioLimits(rates=(20_000, 48_000))) == "audio-damaged"
    assert load_audio(second, 24000, 1, limits=AudioLimits(max_samples=32_000)).shape == (1, 24_000)
    wanted = {"audio-too-long": AudioLimits(max_seconds=0.99), "audio-too-short": AudioLimits(min_seconds=1.01)}
    for expected, limits in wanted.items():
        with pytest.raises(UnwantedItem, match=expected):
            load_audio(second, 24000, 1, limits=limits)
    assert load_audio(second, 16000, 1, segment=Segment(0, 0.5), limits=AudioLimits(max_seconds=0.5)).shape == (1, 8000)
    with pytest.raises(ValueError, match="no sound"):
        AudioLimits(min_seconds=2, max_seconds=1)


def test_what_says_nothing_of_its_length_is_bounded_while_it_is_decoded() -> None:
    whole = encoded(noise(16_000))
    endless = bytearray(whole)
    endless[4:8] = endless[whole.index(b"data") + 4 : whole.index(b"data") + 8] = b"\xff" * 4
    assert load_audio(bytes(endless), 16000, 1).shape == (1, 16_000)
    assert reason(bytes(endless), AudioLimits(max_samples=15_000)) == "audio-too-large"


def test_a_flac_that_does_not_tell_its_length_is_bounded_too() -> None:
    data = bytearray(encoded(noise(16_000), kind="flac"))
    data[21] &= 0xF0  # STREAMINFO: 36 bits of total samples, 0 for not known
    data[22:26] = bytes(4)
    assert load_audio(bytes(data), 16000, 1).shape == (1, 16_000)
    assert reason(bytes(data), AudioLimits(max_samples=15_000)) == "audio-too-large"


def test_an_mp3_that_counts_its_frames_and_was_cut_is_rejected(shared_data: Path) -> None:
    data = (shared_data / "audio" / "ljspeech" / "LJ001-0016.mp3").read_bytes()
    assert b"Info" in data[:4000]
    assert reason(data[: len(data) // 2]) == "audio-truncated"


def test_silence_is_a_sound_unless_it_is_not_wanted() -> None:
    silence = encoded(np.zeros(16_000, dtype=np.float32))
    assert not load_audio(silence, 24000, 1).any()
    with pytest.raises(UnwantedItem, match="audio-silent"):
        load_audio(silence, 24000, 1, limits=AudioLimits(min_peak=1e-4))


def test_samples_that_are_no_numbers_are_rejected_wherever_they_stand() -> None:
    for value in (np.nan, np.inf, -np.inf):
        samples = noise(200_000)
        samples[180_000] = value
        assert reason(encoded(samples, kind="float")) == "audio-not-finite"


def test_a_sound_too_short_for_one_sample_at_the_rate_is_empty() -> None:
    assert reason(encoded(noise(1), 192_000)) == "audio-empty"
    assert load_audio(encoded(noise(1), 16000), 24000, 1).shape[1] >= 1


# ---- channels and loudness


def test_channels_are_mixed_as_asked_for(shared_data: Path) -> None:
    eight = noise(2_000, 8)
    data = encoded(eight, kind="float")
    mean = (eight.astype(np.float64).sum(axis=1) / 8).astype(np.float32)
    assert np.allclose(load_audio(data, 16000, 1)[0], mean, atol=1e-7)
    both = load_audio(data, 16000, 2)
    assert np.array_equal(both[0], both[1])
    assert np.array_equal(load_audio(data, 16000, 2, preprocessing=AudioPreprocessing(mix="first")), eight[:, :2].T)
    with pytest.raises(UnwantedItem, match="audio-channels"):
        load_audio(data, 16000, 2, preprocessing=AudioPreprocessing(mix="refuse"))
    one = encoded(noise(2_000), kind="float")
    assert np.array_equal(
        load_audio(one, 16000, 2, preprocessing=AudioPreprocessing(mix="refuse")), np.repeat(noise(2_000).T, 2, 0)
    )
    real = (shared_data / "audio" / "misc" / "rir_8ch.wav").read_bytes()
    assert load_audio(real, 16000, 1).shape == (1, 1600)


def test_a_mixed_sample_does_not_depend_on_where_its_block_was_cut() -> None:
    samples = noise(5_001, 5)
    whole = mixed(samples, 1, "mean")
    assert np.array_equal(np.concatenate([mixed(samples[i : i + 7], 1, "mean") for i in range(0, 5_001, 7)]), whole)


def test_loudness_is_left_alone_unless_it_is_asked_for() -> None:
    samples = noise(30_000) * np.float32(0.01)
    data = encoded(samples, kind="float")
    assert np.array_equal(load_audio(data, 16000, 1)[0], samples[:, 0])
    peak = AudioPreprocessing(loudness=Loudness(measure="peak", decibels=-6))
    assert np.abs(load_audio(data, 24000, 1, preprocessing=peak)).max() == pytest.approx(10 ** (-6 / 20), rel=1e-6)
    rms = AudioPreprocessing(loudness=Loudness(measure="rms", decibels=-20))
    loud = load_audio(data, 24000, 1, preprocessing=rms)
    assert np.sqrt(np.square(loud, dtype=np.float64).mean()) == pytest.approx(0.1, rel=1e-6)
    chunks = list(stream_audio(data, 24000, 1, preprocessing=rms))
    assert len(chunks) > 1
    assert np.array_equal(np.concatenate(chunks, axis=1), loud)
    silence = encoded(np.zeros(1_000, dtype=np.float32))
    assert not load_audio(silence, 16000, 1, preprocessing=peak).any()


def test_samples_beyond_full_scale_are_kept() -> None:
    samples = noise(1_000) * np.float32(7)
    assert np.array_equal(load_audio(encoded(samples, kind="float"), 16000, 1)[0], samples[:, 0])


# ---- packages


@pytest.mark.parametrize("name", ["soundfile", "soxr"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(100))
    monkeypatch.setitem(sys.modules, name, None)
    for ask in (lambda: load_audio(data, 24000, 1), audio_packages):
        with pytest.raises(UsageError, match=rf"{name}.*tokkit\[audio\]"):
            ask()
    if name == "soxr":  # which is needed only where rates differ
        assert load_audio(data, 16000, 1).shape == (1, 100)


def test_versions_of_what_decodes_and_resamples() -> None:
    found = audio_packages()
    assert found["soundfile"] == soundfile.__version__
    assert found.keys() == {"soundfile", "libsndfile", "soxr", "libsoxr"}
