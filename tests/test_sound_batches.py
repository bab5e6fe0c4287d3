"""Sounds of a unit in batches of one length: the same codes as alone, the same bytes whoever encodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_corpus import snapshot
from sound_corpus import BAD, CLIPS, clip, encoded, tone
from sources_helpers import tar_bytes
from test_audio_run import SILENT, World, rows_of

from tokkit.documents import Audio
from tokkit.errors import FingerprintMismatch
from tokkit.interleave import AudioCodes, Layout, decode
from tokkit.media.audio import AudioLimits, load_audio
from tokkit.media.waveforms import AudioPreprocessing, Samples
from tokkit.pipelines import attempt
from tokkit.pipelines.assembly import Slot
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.sounds import SoundBatcher, SoundEncoder, sound_batch
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.storage import read_json
from tokkit.tokenizers.audio import load_audio_tokenizer, model
from tokkit.tokenizers.audio.base import AudioCode
from tokkit.vocabulary import UnifiedVocabulary

BATCH = 3


ALIKE = {f"{100 + n}": encoded(tone(n, 14_000 + 37 * n), "wav") for n in range(7)}  # clips of one bucket


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    found = World(tmp_path_factory.mktemp("sounds"))
    members = [(f"{key}.{suffix}", data) for key, wave in ALIKE.items() for suffix, data in (("wav", wave), ("txt", b"alike"))]
    (found.folder / "sounds" / "00001.tar").write_bytes(tar_bytes(members))
    return found


def data_of(locator: str) -> bytes:
    """The bytes of a clip."""
    key = locator.partition("#")[2]
    return ALIKE[key] if key in ALIKE else clip(int(key))[1]


@pytest.fixture(scope="module")
def batched(world: World) -> ShardResult:
    """A run in batches, in one process and one unit."""
    return world.run(world.folder / "batched", audio_batch_size=BATCH, unit_bytes=1 << 30)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(Clips, length of the batch) of each call of the network with clips of several lengths in it."""
    calls: list[tuple[int, int]] = []
    honest = model.EncodecTokenizer._encode_batch

    def noted(self: Any, clips: list[Samples], length: int, size: int) -> list[AudioCode]:
        calls.append((len(clips), length))
        assert size == BATCH
        return honest(self, clips, length, size)

    monkeypatch.setattr(model.EncodecTokenizer, "_encode_batch", noted)
    return calls


def test_codes_are_those_of_each_clip_alone(world: World, batched: ShardResult) -> None:
    """Bit for bit those of the clip alone in a batch of the same shape; but for near-ties those of the clip without padding."""
    tokenizer, vocabulary = load_audio_tokenizer(world.mono), UnifiedVocabulary.load(batched.out / "vocabulary.json")
    rows, unlike = rows_of(batched.out, batched), []
    assert len(rows) == CLIPS - len(BAD) + len(ALIKE) == batched.summary["sounds"]
    for row, ids in rows:
        samples = load_audio(data_of(row["locator"]), 24000, 1)
        found, _ = decode(ids, vocabulary, Layout())
        assert isinstance(found, AudioCodes)
        (alone,) = tokenizer.encode([samples], batch_size=BATCH)
        assert np.array_equal(found.codes, alone.codes)
        unlike.append(found.codes != tokenizer.encode_stream(iter([samples])).codes)
    assert np.concatenate(unlike, axis=1).mean() < 0.005
    assert batched.manifest.numeric["audio_batch_size"] == BATCH


def test_clips_of_several_documents_share_a_batch(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watched(monkeypatch)
    world.run(tmp_path / "out", audio_batch_size=BATCH, unit_bytes=1 << 30)
    assert len(ALIKE) < sum(count for count, _ in calls) < len(ALIKE) + CLIPS  # the shortest go alone
    assert sorted(count for count, length in calls if length == 72 * 320)[-3:] == sorted([1, BATCH, BATCH])
    assert len({length for _, length in calls}) > 1


def test_what_waits_too_long_waits_no_longer(
    world: World, batched: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt, "SOUNDS_LIMIT", 2)
    calls = watched(monkeypatch)
    again = world.run(tmp_path / "out", audio_batch_size=BATCH, unit_bytes=1 << 30)
    assert max(count for count, _ in calls) == 2
    assert snapshot(again.out) == snapshot(batched.out)


def test_long_sounds_are_streamed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_audio_tokenizer(world.mono)
    encoder = SoundEncoder.of(tokenizer, AudioPreprocessing(), AudioLimits(), tokenizer.codebooks)
    monkeypatch.setattr(model, "PIECE_SECONDS", 0)
    short = SoundEncoder.of(load_audio_tokenizer(world.mono), AudioPreprocessing(), AudioLimits(), tokenizer.codebooks)
    media, spent = Audio(clip(9)[1], "nine"), dict[str, float]()

    def spend(stage: str, seconds: float) -> None:
        spent[stage] = spent.get(stage, 0.0) + seconds

    whole, streamed = encoder.heard(media, spend, lambda: None), short.heard(media, spend, lambda: None)
    assert isinstance(whole, np.ndarray)
    assert set(spent) == {"decode", "encode"}
    assert isinstance(streamed, AudioCodes)
    assert np.array_equal(streamed.codes, encoder.encode(media, spend, lambda: None).codes)


def test_a_long_sound_is_not_kept_whole(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, drawn, begun = load_audio_tokenizer(world.mono), [], []
    encoder = SoundEncoder.of(tokenizer, AudioPreprocessing(), AudioLimits(), tokenizer.codebooks)

    def chunks(media: Audio) -> Iterator[Samples]:
        for _ in range(40):
            drawn.append(1)
            yield np.zeros((1, 24000), np.float32)

    def encoded(waves: Iterable[Samples]) -> AudioCode:
        begun.append(len(drawn))
        samples = sum(wave.shape[1] for wave in waves)
        return AudioCode(np.zeros((4, tokenizer.frames(samples)), np.int32), None, samples)

    monkeypatch.setattr(encoder.reader, "chunks", chunks)
    monkeypatch.setattr(tokenizer, "encode_stream", encoded)
    made = encoder.heard(Audio(b"x", "long"), lambda stage, seconds: None, lambda: None)
    assert isinstance(made, AudioCodes)
    assert (made.samples, begun, len(drawn)) == (40 * 24000, [model.PIECE_SECONDS + 1], 40)


@pytest.mark.slow
@pytest.mark.parametrize("more", [{}, {"encoders": "process"}, {"encoders": "process", "encoder_processes": 2}])
def test_whoever_encodes_the_bytes_are_the_same(world: World, tmp_path: Path, more: dict[str, object]) -> None:
    alone = world.run(tmp_path / "alone", audio_batch_size=BATCH)
    again = world.run(tmp_path / "out", audio_batch_size=BATCH, workers=2, **more)
    assert snapshot(again.out) == snapshot(alone.out)
    if more:
        assert read_json(again.out / "run" / "summary.json")["encoder"]["batches"] > 3


@pytest.mark.slow
def test_a_tokenizer_with_segments_and_scales(world: World, tmp_path: Path) -> None:
    alone = world.run(tmp_path / "alone", audio_tokenizer=world.stereo)
    again = world.run(tmp_path / "out", audio_tokenizer=world.stereo, audio_batch_size=BATCH, workers=1, encoders="process")
    for (row, ids), (expected, codes) in zip(rows_of(again.out, again), rows_of(alone.out, alone), strict=True):
        assert np.array_equal(ids, codes)
        assert row["spans"][0]["scales"] == pytest.approx(expected["spans"][0]["scales"], rel=1e-6)


def test_encoded_again_it_is_the_same(batched: ShardResult) -> None:
    assert verify(VerifyConfig(directory=batched.out, reencode=8), SILENT).problems == []


def test_one_output_is_of_one_batch_size(world: World, tmp_path: Path) -> None:
    world.run(tmp_path / "out")
    with pytest.raises(FingerprintMismatch, match="audio_batch_size: none -> 3"):
        shard(world.config(tmp_path / "out", audio_batch_size=BATCH), SILENT)


def test_how_many_share_a_batch(world: World, tmp_path: Path) -> None:
    config = world.config(tmp_path)
    assert (sound_batch(config, "cpu"), sound_batch(config, "cuda:1")) == (1, 8)
    asked = ShardConfig.model_validate(config.model_dump() | {"audio_batch_size": 5})
    assert (sound_batch(asked, "cpu"), sound_batch(asked, "cuda")) == (5, 5)


class Lengths:
    """Encodes a clip to its length, once it is asked for."""

    depth = 2

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def submit(self, clips: Sequence[Samples]) -> None:
        self.batches.append([clip.shape[1] for clip in clips])
        self.waiting = getattr(self, "waiting", [])
        self.waiting.append(self.batches[-1])

    def arrived(self) -> bool:
        return False

    def collect(self) -> list[AudioCode]:
        return [AudioCode(np.full((4, 1), n, np.int32), None, n) for n in self.waiting.pop(0)]

    def close(self) -> None:
        pass


def test_batches_hold_clips_of_one_length_in_their_order(world: World) -> None:
    tokenizer = load_audio_tokenizer(world.mono)
    sounds = SoundEncoder.of(tokenizer, AudioPreprocessing(), AudioLimits(), 4)
    device: Any = Lengths()
    batcher = SoundBatcher(device, 2, sounds)
    lengths, slots = [24000, 3000, 24001, 3001, 24000, 48000], []
    for number, length in enumerate(lengths):
        slots.append(Slot(Audio(b"x", str(number))))
        batcher.add(number, slots[-1], tone(1, length).T)
        if batcher.full():
            batcher.run()
    assert batcher.oldest == 4
    while batcher.oldest is not None:
        batcher.run()
    while batcher.receive():
        pass
    assert device.batches == [[24000, 24001], [3000, 3001], [24000], [48000]]
    assert all(len({sounds.buckets.of(n) for n in batch}) == 1 for batch in device.batches)
    assert [int(slot.sound.codes[0, 0]) for slot in slots if slot.sound is not None] == lengths
    assert all(a is not b for a, b in pairwise(slots))
