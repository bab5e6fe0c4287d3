"""Training on more pictures than memory holds: every picture once an epoch, the same order whoever decodes, exact places."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from test_train_vq import config, drawn, metrics

from tokkit.errors import UsageError
from tokkit.media.transforms import Preprocessing
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_vq import TrainVQResult, train_vq
from tokkit.sources.base import Source
from tokkit.sources.resolve import resolve_inputs
from tokkit.training.augmentation import Augmentation, BatchMaker
from tokkit.training.engine import Engine
from tokkit.training.pictures import Reject
from tokkit.training.prefetching import Prefetched
from tokkit.training.streaming import PictureStream, Recipe, held_out_of


def corpus(folder: Path, shards: int = 3, each: int = 7, bad: tuple[int, ...] = ()) -> Path:
    """WebDataset tars; pictures of the given numbers are cut short."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as tar:
            for i in range(each):
                number = shard * each + i
                data = drawn(number, 36, 36)
                data = data[: len(data) // 2] if number in bad else data
                for name, content in ((f"{number:06d}.png", data), (f"{number:06d}.txt", b"a shape")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def sources(folder: Path) -> list[Source]:
    return resolve_inputs([str(folder)]).sources


RECIPE = Recipe(Preprocessing(size=32), Augmentation(min_area=1.0, flip=False), seed=3)


def stream(folder: Path, **options: object) -> PictureStream:
    return PictureStream(sources(folder), RECIPE, 4, block_bytes=1500, **options)  # type: ignore[arg-type]


def steps(batches: PictureStream, first: int, last: int) -> list[bytes]:
    return [batches.part(step, 0, 1).tobytes() for step in range(first, last)]


def samples(found: list[bytes]) -> list[bytes]:
    size = 32 * 32 * 3
    return [batch[i : i + size] for batch in found for i in range(0, len(batch), size)]


def test_every_picture_comes_once_an_epoch_in_an_order_of_its_own(tmp_path: Path) -> None:
    batches = stream(corpus(tmp_path / "c", shards=4))  # 28 pictures: 7 steps
    first, second = samples(steps(batches, 0, 7)), samples(steps(batches, 7, 14))
    assert len(set(first)) == len(first) == 28
    assert set(first) == set(second)
    assert first != second
    assert batches.dealt == 56
    batches.close()


def test_a_place_is_exact_and_processes_change_nothing(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", bad=(2, 11))
    inline, ahead = stream(folder), stream(folder, workers=1)
    whole = steps(inline, 0, 12)
    assert steps(ahead, 0, 5) == whole[:5]  # its processes are steps ahead of the place that is told
    state = json.loads(json.dumps(ahead.state()))
    ahead.close()
    other = stream(folder)
    other.restore(state)
    assert steps(other, 5, 12) == whole[5:]
    for batches in (inline, other):
        batches.close()


def test_processes_of_a_run_fill_the_slots_of_one_batch(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c", bad=(4,))
    one = stream(folder)
    ranks = [stream(folder, own=range(rank, rank + 1), parts=2) for rank in range(2)]
    for step in range(8):
        parts = np.concatenate([ranks[rank].part(step, rank, 2) for rank in range(2)])
        assert parts.tobytes() == one.part(step, 0, 1).tobytes()
        assert ranks[0].state() == ranks[1].state() == one.state()
    for batches in (one, *ranks):
        batches.close()


def test_pictures_at_fault_are_told_and_others_stand_in(tmp_path: Path) -> None:
    told: list[Reject] = []
    batches = stream(corpus(tmp_path / "c", bad=(2, 11)), rejected=told.append)
    found = Counter(samples(steps(batches, 0, 5)))
    assert sum(found.values()) == 20
    assert {reject.reason for reject in told} == {"image-truncated"}
    assert {reject.locator[-10:] for reject in told} <= {"#000000002", "#000000011"} or len(told) >= 1
    batches.close()
    nothing = stream(corpus(tmp_path / "d", bad=tuple(range(21))))
    with pytest.raises(UsageError, match="can be decoded"):
        nothing.part(0, 0, 1)
    nothing.close()


def test_what_is_held_out_is_never_trained_on(tmp_path: Path) -> None:
    folder = corpus(tmp_path / "c")
    held_out, _ = held_out_of(sources(folder), RECIPE, 0.4, 100)
    assert 2 <= len(held_out) <= 15
    batches = stream(folder, val_fraction=0.4)
    seen = set(samples(steps(batches, 0, 12)))
    assert len(seen) == 21 - len(held_out)
    assert not seen & {pixels.tobytes() for pixels in held_out}
    assert len(held_out_of(sources(folder), RECIPE, 0.4, 2)[0]) <= 2
    batches.close()


def test_batches_made_ahead_are_the_same() -> None:
    rng = np.random.default_rng(0)
    plain = BatchMaker([rng.integers(0, 255, (40, 40, 3), dtype=np.uint8) for _ in range(5)], 32, 4, 0, Augmentation())
    ahead = Prefetched(plain, range(2), 2, 2)
    for step in (0, 1, 2, 7, 8):  # also after a leap
        for part in range(2):
            assert np.array_equal(ahead.part(step, part, 2), plain.part(step, part, 2))
    ahead.close()


class _Killed(BaseException):
    pass


def test_a_streaming_run_that_was_killed_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = corpus(tmp_path / "c", bad=(5,))

    def train(name: str, **options: object) -> TrainVQResult:
        chosen = config(tmp_path / name, inputs=(str(folder),), stream=True, steps=10, checkpoint_every=3, **options)
        return train_vq(chosen, SilentProgress())

    whole = train("whole", workers=0)
    assert whole.pictures == 40
    assert whole.held_out > 0
    assert dict(whole.rejects) == {"image-truncated": 1}
    step = Engine.step

    def killed(self: Engine, done: float) -> object:
        if self.steps == 8:
            raise _Killed
        return step(self, done)

    monkeypatch.setattr(Engine, "step", killed)
    with pytest.raises(_Killed):
        train("cut", workers=0)
    monkeypatch.undo()
    cut = train("cut", resume=True)
    assert cut.fingerprint == whole.fingerprint
    assert (tmp_path / "cut" / "rejects.jsonl").read_bytes() == (tmp_path / "whole" / "rejects.jsonl").read_bytes()
    assert [row["loss"] for row in metrics(tmp_path / "cut")] == [row["loss"] for row in metrics(tmp_path / "whole")]
