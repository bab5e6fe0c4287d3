"""Training an image tokenizer: it learns, it says what it does, and it gives the same bytes again."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as PILImage
from safetensors.torch import load_file

from tokkit.documents import Failure, Image, Outcome
from tokkit.errors import ConfigError, DataError, FingerprintMismatch, UsageError
from tokkit.media.transforms import Preprocessing
from tokkit.metrics.reconstruction import psnr
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_vq import TrainVQConfig, TrainVQResult, train_on_pictures, train_vq
from tokkit.pipelines.train_vq_parts import start_of
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training import schedule
from tokkit.training.augmentation import Augmentation, BatchMaker
from tokkit.training.engine import DivergedError, Engine, Optimisation
from tokkit.training.image_task import ImageTask, fresh_tokenizer
from tokkit.training.pictures import Picture, Reject, read_pictures

TINY = {"architecture.channels": 16, "architecture.z_channels": 16, "quantizer.levels": [8, 5, 5]}
TINY_VQ = {"architecture.channels": 16, "architecture.z_channels": 16, "quantizer.codebook_size": 64}


def drawn(number: int, width: int = 48, height: int = 40) -> bytes:
    """A picture of a few smooth shapes, as PNG."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[0:height, 0:width] / min(height, width)
    pixels = np.ones((height, width, 3)) * rng.uniform(0, 255, 3)
    for _ in range(3):
        inside = (x - rng.uniform()) ** 2 + (y - rng.uniform()) ** 2 < rng.uniform(0.02, 0.2)
        pixels[inside] = rng.uniform(0, 255, 3)
    buffer = io.BytesIO()
    PILImage.fromarray(pixels.astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(count: int = 24) -> Iterator[Picture | Reject]:
    for i in range(count):
        yield Picture(f"s/{i}", Image(drawn(i), f"{i}.png"))


def config(out: Path, **options: object) -> TrainVQConfig:
    defaults: dict[str, object] = {
        "inputs": ("memory",),
        "out": out,
        "overrides": TINY,
        "resolution": 32,
        "steps": 12,
        "batch_size": 4,
        "threads": 1,
        "log_every": 5,
        "val_fraction": 0.2,
    }
    return TrainVQConfig.model_validate(defaults | options)


def train(out: Path, **options: object) -> TrainVQResult:
    chosen = config(out, **options)
    return train_on_pictures(chosen, start_of(chosen), pictures(), SilentProgress())


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("preset", "overrides", "extra"),
    [("fsq-tiny", TINY, ()), ("vq-tiny", TINY_VQ, ("reconstruction_loss", "commitment_loss"))],
)
def test_it_learns_and_leaves_everything_it_promises(
    tmp_path: Path, preset: str, overrides: dict[str, object], extra: tuple[str, ...]
) -> None:
    result = train(tmp_path, preset=preset, overrides=overrides, steps=80, lr=4e-3)
    rows = metrics(tmp_path)
    assert [r["step"] for r in rows] == sorted({*range(5, 81, 5), *range(8, 81, 8)})
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["psnr"] > rows[0]["psnr"] + 2
    validated = [r["val_psnr"] for r in rows if r["val_psnr"] is not None]
    assert len(validated) == 10
    assert validated[-1] > validated[0] + 1
    assert set(rows[0]) == {
        *("step", "loss", "psnr", "grad_norm", "val_psnr", "val_ssim", "val_lpips", "codebook_usage", "perplexity"),
        *("dead_codes", "codes_counted", "lr", "images_per_second", "waiting", "seconds", *extra),
    }
    assert 0 < rows[-1]["codebook_usage"] <= 1
    tokenizer = load_image_tokenizer(tmp_path)
    assert (tokenizer.fingerprint, tokenizer.config.preprocessing.size) == (result.fingerprint, 32)
    assert tokenizer.config.origin
    assert result.val_psnr == validated[-1]
    assert (result.steps, result.stopped_by) == (80, "steps")
    assert result.pictures + result.held_out == 24
    with PILImage.open(tmp_path / "samples.png") as samples:
        assert samples.size == (32 * min(8, result.held_out), 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("best", "config.json", "grids", "metrics.jsonl", "model.safetensors", "rejects.jsonl", "samples.png"),
        *("training.html", "training.json"),
    ]


def test_the_validation_figure_is_that_of_the_saved_tokenizer(tmp_path: Path) -> None:
    result = train(tmp_path)
    held_out = read_pictures(pictures(), Preprocessing(size=32), 1.1, 0.2, 2**30, 1).held_out
    tokenizer, originals = load_image_tokenizer(tmp_path), torch.from_numpy(np.stack(held_out))
    assert float(psnr(originals, tokenizer.decode(tokenizer.encode(originals))).mean()) == pytest.approx(result.val_psnr)


@pytest.mark.parametrize(("preset", "overrides"), [("fsq-tiny", TINY), ("vq-tiny", TINY_VQ)])
def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path, preset: str, overrides: dict[str, object]) -> None:
    torch.manual_seed(1)
    train(tmp_path / "a", preset=preset, overrides=overrides)
    torch.manual_seed(2)  # nothing hangs on the caller's generator
    train(tmp_path / "b", preset=preset, overrides=overrides, log_every=1, checkpoint_every=2)
    train(tmp_path / "c", preset=preset, overrides=overrides, seed=1)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


class _Killed(BaseException):
    pass


def train_until_killed(out: Path, monkeypatch: pytest.MonkeyPatch, **options: object) -> None:
    """A training that ends at its ninth step."""
    step = Engine.step

    def killed(self: Engine, done: float) -> object:
        if self.steps == 8:
            raise _Killed
        return step(self, done)

    monkeypatch.setattr(Engine, "step", killed)
    with pytest.raises(_Killed):
        train(out, **options)
    monkeypatch.undo()


@pytest.mark.parametrize(("preset", "overrides"), [("fsq-tiny", TINY), ("vq-tiny", TINY_VQ)])
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str, overrides: dict[str, object]
) -> None:
    options: dict[str, object] = {"preset": preset, "overrides": overrides, "checkpoint_every": 3, "log_every": 2}
    train(tmp_path / "whole", **options)
    train_until_killed(tmp_path / "cut", monkeypatch, **options)
    assert not (tmp_path / "cut" / "config.json").exists()
    with pytest.raises(UsageError, match="--resume"):
        train_vq(config(tmp_path / "cut", **options), SilentProgress())
    with pytest.raises(FingerprintMismatch, match=r"lr: 0\.004 then, 0\.1 now"):
        train(tmp_path / "cut", **options, lr=0.1, resume=True)
    train(tmp_path / "cut", **options, resume=True)
    for name in ("model.safetensors", "config.json", "samples.png", "rejects.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    rows = [[(r["step"], r["codebook_usage"], r["perplexity"]) for r in metrics(tmp_path / n)] for n in ("cut", "whole")]
    assert rows[0] == rows[1]


def test_the_first_row_after_a_resume_is_that_of_a_run_that_was_not_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the means of all steps since the last row, those before the checkpoint included."""
    options: dict[str, object] = {"checkpoint_every": 3, "log_every": 5, "val_fraction": 0.0}
    train(tmp_path / "whole", **options)
    train_until_killed(tmp_path / "cut", monkeypatch, **options)
    assert len(metrics(tmp_path / "cut")) == 1
    train(tmp_path / "cut", **options, resume=True)
    for cut, whole in zip(metrics(tmp_path / "cut"), metrics(tmp_path / "whole"), strict=True):
        assert {k: cut[k] for k in ("step", "loss", "psnr", "lr")} == {k: whole[k] for k in ("step", "loss", "psnr", "lr")}


def test_resuming_needs_the_same_pictures_and_a_sound_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageTask, "validate", lambda *_: (_ for _ in ()).throw(_Killed()))
    with pytest.raises(_Killed):
        train(tmp_path, steps=100, checkpoint_every=3)
    monkeypatch.undo()
    chosen = config(tmp_path, steps=100, checkpoint_every=3, resume=True)
    with pytest.raises(FingerprintMismatch, match="other pictures"):
        train_on_pictures(chosen, start_of(chosen), pictures(20), SilentProgress())
    newest = sorted((tmp_path / "checkpoints").iterdir())[-1]
    newest.write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"damaged.*remove it to go on from step-00000006\.pt"):
        train(tmp_path, steps=100, resume=True)


def test_a_finished_run_is_not_overwritten_and_resuming_it_does_nothing(tmp_path: Path) -> None:
    result = train(tmp_path)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UsageError, match="holds a tokenizer already"):
        train_vq(config(tmp_path), SilentProgress())
    assert train_vq(config(tmp_path, resume=True), SilentProgress()) == result
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(FingerprintMismatch, match="seed: 0 then, 5 now"):
        train_vq(config(tmp_path, resume=True, seed=5), SilentProgress())


def test_the_time_given_ends_the_run_and_the_learning_rate_with_it(tmp_path: Path) -> None:
    result = train(tmp_path, steps=None, max_minutes=0.02)
    assert result.stopped_by == "time"
    assert result.steps > 0
    assert metrics(tmp_path)[-1]["lr"] < 0.2 * 4e-3


def test_every_picture_that_is_not_used_is_written_down(tmp_path: Path) -> None:
    def mixed() -> Iterator[Picture | Reject]:
        yield from pictures(6)
        yield Picture("s/bad", Image(drawn(1)[:-40], "bad.png"))
        yield Picture("s/again", Image(drawn(1), "again.png"))
        yield Picture("s/gone", Image(None, "gone.png", Failure(Outcome.FAILED_UPSTREAM, "failed-to-download", "404")))
        yield Reject("s/file.tar", Outcome.REJECTED, "tar-truncated", "bytes 5 to 9")

    chosen = config(tmp_path, steps=1)
    result = train_on_pictures(chosen, start_of(chosen), mixed(), SilentProgress())
    rows = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(r["locator"], r["outcome"], r["reason"]) for r in rows] == [
        ("s/bad", "rejected", "image-truncated"),
        ("s/again", "duplicate", "duplicate-picture"),
        ("s/gone", "failed_upstream", "failed-to-download"),
        ("s/file.tar", "rejected", "tar-truncated"),
    ]
    assert sum(result.rejects.values()) == 4
    assert result.pictures + result.held_out == 6


def test_real_inputs(shared_data: Path, tmp_path: Path) -> None:
    chosen = config(tmp_path, inputs=(str(shared_data / "hf_parquet"),), steps=3, resolution=16)
    result = train_vq(chosen, SilentProgress())
    assert result.pictures + result.held_out == 30
    assert not result.rejects


def test_nothing_to_train_on_and_wrong_options_are_told(tmp_path: Path) -> None:
    chosen = config(tmp_path / "a")
    with pytest.raises(UsageError, match="no picture"):
        train_on_pictures(chosen, start_of(chosen), [], SilentProgress())
    with pytest.raises(ConfigError, match=r"architecture\.depth"):
        train_vq(config(tmp_path / "b", overrides={"architecture.depth": "3"}), SilentProgress())


@pytest.mark.parametrize("key", ["lr", "max_minutes", "weight_decay"])
def test_options_without_end_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="finite number"):
        config(tmp_path, **{key: float("inf")})


def test_divergence_is_told(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="diverged"):
        train(tmp_path, lr=1e30, warmup=0)
    alarm = json.loads((tmp_path / "alarms.jsonl").read_text().splitlines()[-1])
    assert alarm["kind"] == "not-a-number"
    assert "lower --lr" in alarm["advice"]
    assert not (tmp_path / "config.json").exists()


# ---- the parts


def test_threads_and_cuts_of_the_input_do_not_change_what_is_read() -> None:
    one, three = (read_pictures(pictures(), Preprocessing(size=32), 1.1, 0.3, 2**30, n) for n in (1, 3))
    assert one.digest == three.digest
    assert all(np.array_equal(a, b) for a, b in zip(one.train, three.train, strict=True))
    turned = read_pictures(reversed(list(pictures())), Preprocessing(size=32), 1.1, 0.3, 2**30, 1)
    assert [h.tobytes() for h in turned.held_out] == [h.tobytes() for h in one.held_out]
    assert 0 < len(one.held_out) < 24


def test_the_memory_for_pictures_is_bounded() -> None:
    found = read_pictures(pictures(), Preprocessing(size=32), 1.0, 0, 10 * 32 * 38 * 3, 2)
    assert found.full
    assert found.seen == len(found.train) == 10
    assert sum(p.nbytes for p in found.train) <= 10 * 32 * 38 * 3


def test_something_is_held_out_of_few_pictures() -> None:
    found = read_pictures(pictures(3), Preprocessing(size=32), 1.1, 1e-9, 2**30, 1)
    assert (len(found.train), len(found.held_out)) == (2, 1)
    assert found.held_out[0].shape == (32, 32, 3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), step=st.integers(0, 50), count=st.integers(1, 9), batch_size=st.integers(1, 5))
def test_batches_are_a_function_of_seed_and_step_and_every_epoch_sees_each_picture_once(
    seed: int, step: int, count: int, batch_size: int
) -> None:
    plain = [np.full((10, 12, 3), i, dtype=np.uint8) for i in range(count)]
    make = BatchMaker(plain, 8, batch_size, seed, Augmentation())
    batch = make.batch(step)
    make.batch(step + 1)
    assert np.array_equal(BatchMaker(plain, 8, batch_size, seed, Augmentation()).batch(step), batch)
    sequence = np.concatenate([make.batch(s)[:, 0, 0, 0] for s in range(count)])  # count * batch_size samples: whole epochs
    assert all(sorted(sequence[i : i + count]) == list(range(count)) for i in range(0, len(sequence), count))


def test_crops_stay_inside_and_vary() -> None:
    y, x = np.mgrid[0:20, 0:30]
    picture = np.stack([x * 8, y * 8, np.zeros_like(x)], axis=-1).astype(np.uint8)
    crops = BatchMaker([picture], 16, 32, 0, Augmentation(min_area=0.5)).batch(0)
    assert crops.shape == (32, 16, 16, 3)
    assert len({c.tobytes() for c in crops}) == 32
    mirrored = (crops[:, 8, 0, 0].astype(int) > crops[:, 8, -1, 0]).sum()
    assert 4 < mirrored < 28


def test_the_schedule() -> None:
    factors = [schedule.cosine_with_warmup(i / 100, 0.1, floor=0.02) for i in range(101)]
    assert max(factors) == factors[10] == 1
    assert factors[:11] == sorted(factors[:11])
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(0.02)
    assert schedule.progress(30, 100, 40, 50) == 0.8
    assert schedule.progress(30, 100, 40, None) == 0.3


def test_state_is_plain_tensors(tmp_path: Path) -> None:
    batches = BatchMaker([np.zeros((16, 16, 3), np.uint8)], 16, 2, 0, Augmentation())
    task = ImageTask(fresh_tokenizer(configure("vq-tiny", TINY_VQ, 16), 0), batches, pictures_at_once=2)
    engine = Engine(task, Optimisation())
    engine.step(0.5)
    torch.save(engine.state(), tmp_path / "s.pt")
    assert torch.load(tmp_path / "s.pt", weights_only=True)["steps"] == 1
    task.tokenizer.save(tmp_path / "t")
    assert not [name for name in load_file(tmp_path / "t" / "model.safetensors") if "learner" in name]
