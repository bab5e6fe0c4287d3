"""Training a codec on more sounds than memory holds: all of them in an epoch, in one order, from exact places."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_train_codec import RATE, config, drawn, metrics, wav

from tokkit.documents import Audio, Outcome
from tokkit.errors import UsageError
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_codec import TrainCodecResult, train_codec
from tokkit.pipelines.train_codec_data import units_of_sounds
from tokkit.training.audio.sound_stream import SoundStream, held_out_sounds
from tokkit.training.engine import Engine
from tokkit.training.items import Reject, is_held_out

LENGTH = 500  # of a crop; sounds are a whole number of them, so each comes up once for each


def corpus(folder: Path, count: int = 12, bad: tuple[int, ...] = ()) -> Path:
    """Sounds of 1, 2 and 3 crops; the given ones are cut short."""
    folder.mkdir()
    for number in range(count):
        data = wav(drawn(number, LENGTH / RATE * (1 + number % 3)))
        (folder / f"{number:02d}.wav").write_bytes(data[:-200] if number in bad else data)
    return folder


def stream(folder: Path, **options: object) -> SoundStream:
    units = units_of_sounds((str(folder),), SilentProgress())
    small: dict[str, object] = {"block_bytes": 3 * 4 * LENGTH}
    return SoundStream(units, RATE, 1, LENGTH, 4, 3, **small | options)  # type: ignore[arg-type]


def steps(batches: SoundStream, first: int, last: int) -> list[bytes]:
    return [batches.part(step, 0, 1).tobytes() for step in range(first, last)]


def test_every_sound_comes_up_for_every_crop_of_it_in_each_epoch(tmp_path: Path) -> None:
    batches = stream(corpus(tmp_path / "c"))  # 12 sounds of 24 crops: 6 steps
    original = {drawn(number, LENGTH / RATE * (1 + number % 3)).shape[1]: number for number in range(3)}
    assert sorted(original) == [500, 1000, 1500]
    epochs = []
    for _ in range(2):
        found = [crop for step in range(6) for crop in batches.part(step, 0, 1)]
        whose = Counter(_owner(crop) for crop in found)
        assert whose == {number: 1 + number % 3 for number in range(12)}
        epochs.append([crop.tobytes() for crop in found])
    assert epochs[0] != epochs[1]
    assert batches.dealt == 48
    batches.close()


def _owner(crop: np.ndarray) -> int:
    """Which sound a crop is a piece of."""
    best = []
    for number in range(12):
        sound = np.round(drawn(number, LENGTH / RATE * (1 + number % 3))[0] * 32767) / 32768
        windows = np.lib.stride_tricks.sliding_window_view(sound, LENGTH)
        best.append(float(np.abs(windows - crop[0]).max(axis=1).min()))
    assert min(best) < 2e-4
    return int(np.argmin(best))


def test_a_place_is_exact_and_threads_change_nothing(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", bad=(2, 7))
    inline, threaded = stream(folder), stream(folder, threads=3)
    whole = steps(inline, 0, 9)
    assert steps(threaded, 0, 5) == whole[:5]
    state = json.loads(json.dumps(threaded.state()))
    other = stream(folder)
    other.restore(state)
    assert steps(other, 5, 9) == whole[5:]
    assert np.array_equal(other.sample(0), inline.sample(0))  # the newest step's block
    assert not np.array_equal(other.sample(0), other.sample(1))
    for batches in (inline, threaded, other):
        batches.close()


def test_processes_of_a_run_fill_the_slots_of_one_batch(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", bad=(4,))
    one = stream(folder)
    ranks = [stream(folder, own=range(rank, rank + 1), parts=2) for rank in range(2)]
    for step in range(8):
        parts = np.concatenate([ranks[rank].part(step, rank, 2) for rank in range(2)])
        assert parts.tobytes() == one.part(step, 0, 1).tobytes()
        assert ranks[0].state() == ranks[1].state() == one.state()
        assert np.array_equal(ranks[0].sample(step), ranks[1].sample(step))
    for batches in (one, *ranks):
        batches.close()


def test_no_more_is_held_than_a_block_and_a_sound(tmp_path: Path) -> None:
    batches = stream(corpus(tmp_path / "c", count=20))
    for step in range(30):
        batches.part(step, 0, 1)
        held = sum(sound.nbytes for sound in batches.some())
        assert held <= (3 + 3) * 4 * LENGTH
    batches.close()


def test_what_is_at_fault_is_told_and_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", bad=(2, 7))
    (folder / "none.wav").write_bytes(b"")
    told: list[Reject] = []
    batches = stream(folder, rejected=told.append, val_fraction=0.4)
    trained = {_owner(crop) for step in range(12) for crop in batches.part(step, 0, 1)}
    paths = sorted(folder.glob("[0-9]*.wav"))
    held_out = {int(path.stem) for path in paths if is_held_out(Audio(path.read_bytes(), path.name), 0.4)}
    assert held_out
    assert trained == set(range(12)) - held_out - {2, 7}
    units = units_of_sounds((str(folder),), SilentProgress())
    kept, _ = held_out_sounds(units, 3, RATE, 1, 0.4, 100, told.append)
    assert {_owner(sound[:, :LENGTH]) for sound in kept} == held_out - {2, 7}
    assert len(held_out_sounds(units, 3, RATE, 1, 0.4, 1)[0]) <= 1
    assert sorted((reject.locator, reject.outcome, reject.reason) for reject in told) == [
        ("02.wav", Outcome.REJECTED, "audio-truncated"),
        ("07.wav", Outcome.REJECTED, "audio-truncated"),
        ("none.wav", Outcome.REJECTED, "audio-empty"),  # each once, however often it came up
    ]
    batches.close()
    nothing = stream(corpus(tmp_path / "d", count=3, bad=(0, 1, 2)))
    with pytest.raises(UsageError, match="no sound to train on"):
        nothing.part(0, 0, 1)
    nothing.close()


class _Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [3, 7], ids=["early", "late"])
def test_a_streaming_run_that_was_killed_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder = corpus(tmp_path / "c", bad=(5,))

    def train(name: str, **options: object) -> TrainCodecResult:
        given: dict[str, object] = {"inputs": (str(folder),), "stream": True, "steps": 9, "crop": LENGTH / RATE}
        given |= {"checkpoint_every": 2, "quantize_from": 0.5, "val_fraction": 0.3}
        return train_codec(config(tmp_path / name, **given | options), SilentProgress())

    whole = train("whole", workers=0)
    assert whole.sounds == 36  # crops
    assert whole.held_out > 0
    assert whole.mean_predictor is not None
    assert dict(whole.rejects) == {"audio-truncated": 1}
    step = Engine.step

    def killed(self: Engine, done: float) -> object:
        if self.steps == at:
            raise _Killed
        return step(self, done)

    monkeypatch.setattr(Engine, "step", killed)
    with pytest.raises(_Killed):
        train("cut", workers=2)
    monkeypatch.undo()
    cut = train("cut", resume=True)
    assert cut.fingerprint == whole.fingerprint
    assert (tmp_path / "cut" / "rejects.jsonl").read_bytes() == (tmp_path / "whole" / "rejects.jsonl").read_bytes()
    assert [row["loss"] for row in metrics(tmp_path / "cut")] == [row["loss"] for row in metrics(tmp_path / "whole")]
