"""Whisper: the spectrogram is the reference's, windows are 30 seconds, and only a clip's own frames are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_models import save

from tokkit.errors import DataError, ItemError, UsageError
from tokkit.features import load_feature_encoder
from tokkit.features.base import FeatureEncoder, FeatureOptions
from tokkit.features.mel import AudioPreprocessing, log_mel, mel_filters

RATE = 16000


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("whisper")
    return folder, *save("whisper", folder)


def encoder(folder: Path, **options: Any) -> FeatureEncoder:
    return load_feature_encoder(folder, FeatureOptions(**options))


def sound(samples: int) -> np.ndarray:
    """A rising tone with noise; quiet at first."""
    seconds = np.arange(samples) / RATE
    noise = np.random.default_rng(samples).normal(size=samples)
    return (np.minimum(seconds, 1) * 0.4 * np.sin(2000 * seconds * (1 + seconds)) + 0.01 * noise).astype(np.float32)


@pytest.mark.parametrize("bands", [80, 128])
def test_the_spectrogram_is_the_references(bands: int) -> None:
    from transformers import WhisperFeatureExtractor
    from transformers.audio_utils import mel_filter_bank

    theirs = WhisperFeatureExtractor(feature_size=bands)
    how = AudioPreprocessing(feature_size=bands)
    filters = mel_filter_bank(201, bands, 0.0, 8000.0, RATE, norm="slaney", mel_scale="slaney")
    np.testing.assert_allclose(mel_filters(how), filters, atol=1e-12)
    for samples in (RATE * 30, 47_123, 400, 1):
        padded = np.zeros(RATE * 30, np.float32)
        padded[:samples] = sound(samples) if samples > 1 else 0.5
        ours = log_mel(padded, how)
        assert ours.shape == (bands, 3000)
        assert ours.dtype == np.float32
        exact = np.asarray(theirs._np_extract_fbank_features(padded[None], "cpu"))[0]
        np.testing.assert_allclose(ours, exact, atol=1e-6, rtol=0)
        single = theirs(padded[:samples], sampling_rate=RATE, return_tensors="np")["input_features"][0]  # float32 throughout
        np.testing.assert_allclose(ours, single, atol=1e-4, rtol=0)
        assert np.abs(ours - single).max() <= np.abs(exact - single).max() + 1e-6
    assert np.array_equal(log_mel(np.zeros(RATE * 30, np.float32), how), np.full((bands, 3000), -1.5, np.float32))


@torch.no_grad()
def test_frames_of_a_clip_and_of_its_padding(whisper: tuple[Path, Any, Any]) -> None:
    folder, model, processor = whisper
    trimmed, kept = encoder(folder), encoder(folder, padding="keep")
    for samples, valid in ((RATE * 30, 1500), (RATE * 10, 500), (RATE * 10 + 1, 501), (321, 2), (320, 1), (1, 1)):
        clip = sound(samples)
        inputs = processor(clip, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
        frames = int(inputs["attention_mask"].sum())
        assert valid == (frames - 1) // 2 + 1  # as models that take Whisper's features count
        direct = model.model.encoder(inputs["input_features"]).last_hidden_state[0].numpy()
        [short], [whole] = (e.encode([e.prepare(clip)], 2) for e in (trimmed, kept))
        assert short.valid == whole.valid == valid
        assert (len(short.features), len(whole.features)) == (valid, 1500)
        np.testing.assert_allclose(short.features, direct[:valid], atol=2e-4)
        np.testing.assert_allclose(whole.features, direct, atol=2e-4)
        assert (trimmed.tokens_of(samples), kept.tokens_of(samples)) == (valid, 1500)


@torch.no_grad()
def test_given_the_same_spectrogram_the_features_are_the_models(whisper: tuple[Path, Any, Any]) -> None:
    folder, model, _ = whisper
    clips = [sound(RATE * 2), sound(RATE * 3), sound(RATE)]
    ours = encoder(folder, layers=(1, "final"), padding="keep")
    items = [ours.prepare(clip) for clip in clips]
    mel = torch.from_numpy(np.stack([item.views[0].pixels for item in items]))
    states = model.model.encoder(mel, output_hidden_states=True)
    expected = torch.cat([states.hidden_states[1], states.last_hidden_state], dim=-1).numpy()
    for found, one in zip(ours.encode(items, 2), expected, strict=True):
        np.testing.assert_allclose(found.features, one, rtol=1e-5, atol=1e-5)
    [last] = encoder(folder, layers=(-1,)).encode(items[:1], 1)
    [final] = encoder(folder).encode(items[:1], 1)
    assert np.array_equal(last.features, final.features)  # transformers ties the two for Whisper


def test_a_long_clip_is_several_windows(whisper: tuple[Path, Any, Any]) -> None:
    folder, _, _ = whisper
    ours = encoder(folder)
    clip = sound(RATE * 65)
    item = ours.prepare(clip)
    assert [(view.kind, view.column) for view in item.views] == [("window", 0), ("window", 1), ("window", 2)]
    [whole] = ours.encode([item], 2)
    parts = ours.encode([ours.prepare(clip[start : start + RATE * 30]) for start in range(0, len(clip), RATE * 30)], 2)
    assert np.array_equal(whole.features, np.concatenate([part.features for part in parts]))
    assert whole.valid == len(whole.features) == 1500 + 1500 + 250 == ours.tokens_of(len(clip))
    assert whole.tiles == ((0, 1, 1500), (1500, 1, 1500), (3000, 1, 250))
    [kept] = encoder(folder, padding="keep").encode([item], 2)
    assert (len(kept.features), kept.valid) == (4500, 3250)


def test_stacked_frames(whisper: tuple[Path, Any, Any]) -> None:
    folder, _, _ = whisper
    ours = encoder(folder, reductions=[{"kind": "frames", "frames": 4}])
    clip = sound(RATE + 1)  # 51 frames
    [plain] = encoder(folder).encode([encoder(folder).prepare(clip)], 1)
    [stacked] = ours.encode([ours.prepare(clip)], 1)
    padded = np.concatenate([plain.features, np.zeros((1, 8), np.float32)])
    assert np.array_equal(stacked.features, padded.reshape(13, 32))
    assert (stacked.valid, ours.dim, ours.tokens_of(len(clip))) == (13, 32, 13)
    pooled = encoder(folder, reductions=[{"kind": "average", "size": 2}])
    assert pooled.tokens_of(len(clip)) == 26
    assert len(pooled.encode([pooled.prepare(clip)], 1)[0].features) == 26


def test_slots_and_neighbours_change_nothing(whisper: tuple[Path, Any, Any]) -> None:
    ours = encoder(whisper[0])
    one, other = ours.prepare(sound(RATE * 3)), ours.prepare(sound(RATE * 40))
    [alone] = ours.encode([one], 3)
    for items in ([one, other], [other, one], [other, other, one], [one, one, one]):
        place = next(number for number, item in enumerate(items) if item is one)
        assert np.array_equal(ours.encode(items, 3)[place].features, alone.features)


def test_clips_that_cannot_be_encoded(whisper: tuple[Path, Any, Any], tmp_path: Path) -> None:
    folder, _, _ = whisper
    ours = encoder(folder)
    assert (ours.modality, ours.sample_rate, ours.dim) == ("audio", RATE, 8)
    with pytest.raises(ItemError, match="audio-empty"):
        ours.prepare(np.zeros(0, np.float32))
    with pytest.raises(ItemError, match="audio-not-finite"):
        ours.prepare(np.array([0.0, np.nan], np.float32))
    with pytest.raises(TypeError, match="mono"):
        ours.prepare(np.zeros((2, 100), np.float32))
    with pytest.raises(UsageError, match="no pooled"):
        encoder(folder, pooled="pooled")
    with pytest.raises(UsageError, match="frames to stack"):
        encoder(folder, reductions=[{"kind": "pixel-shuffle"}])
    entry = json.loads((folder / "preprocessor_config.json").read_text())
    for change, message in (
        ({"do_normalize": True}, "do_normalize"),
        ({"feature_size": 128}, "do not agree"),
        ({"chunk_length": 10}, "do not agree"),
        ({"hop_length": 0}, "hop_length"),
        ({"feature_extractor_type": "CLIPFeatureExtractor"}, "not the configuration of a Whisper"),
    ):
        for path in folder.iterdir():
            (tmp_path / path.name).write_bytes(path.read_bytes())
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(entry | change))
        with pytest.raises(DataError, match=message):
            encoder(tmp_path)
