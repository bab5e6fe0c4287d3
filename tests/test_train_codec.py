"""Training an audio codec: it learns, it says what it does, its codebooks are filled, and it gives the same bytes again."""

from __future__ import annotations

import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.documents import Audio, Failure, Outcome
from tokkit.errors import ConfigError, FingerprintMismatch, UsageError
from tokkit.metrics.audio import log_mel, mel_distance
from tokkit.pipelines.inspect import write_wav
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.train_codec import (
    TrainCodecConfig,
    TrainCodecResult,
    mean_predictor_distance,
    train_codec,
    train_on_sounds,
)
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.tokenizers.audio import load_audio_tokenizer
from tokkit.tokenizers.audio.presets import PRESETS, configure
from tokkit.training.audio.clips import Crops, Sound, read_clips
from tokkit.training.audio.task import CodecObjective, CodecTask, fresh_codec
from tokkit.training.engine import Engine, Phase
from tokkit.training.pictures import Reject

RATE = 2000
TINY: dict[str, object] = {
    "sample_rate": RATE,
    "architecture.filters": 4,
    "architecture.dimension": 8,
    "architecture.ratios": [4, 2],
    "quantizer.codebooks": 3,
    "quantizer.codebook_size": 16,
}


def drawn(number: int, seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A voice of a kind: a gliding pitch with overtones, in syllables; float32 ``[1, n]``."""
    rng = np.random.default_rng(number)
    t = np.arange(int(seconds * rate)) / rate
    pitch = rng.uniform(80, 250) * (1 + 0.2 * np.sin(2 * np.pi * rng.uniform(0.5, 2) * t))
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    voice = sum(rng.uniform(0.2, 1) / k * np.sin(k * phase) for k in range(1, 5))
    loudness = np.clip(np.sin(2 * np.pi * rng.uniform(1, 3) * t + rng.uniform(0, 6)), 0, 1)
    return (0.3 * voice * loudness + 0.002 * rng.standard_normal(len(t))).astype(np.float32)[None]


def wav(samples: np.ndarray, rate: int = RATE) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples[0] * 32767).astype("<i2").tobytes())
    return buffer.getvalue()


def sounds(count: int = 16) -> Iterator[Sound | Reject]:
    for i in range(count):
        yield Sound(f"s/{i}", Audio(wav(drawn(i, 0.4 + 0.1 * i)), f"{i}.wav"))


def config(out: Path, **options: object) -> TrainCodecConfig:
    defaults: dict[str, object] = {
        "inputs": ("memory",),
        "out": out,
        "overrides": TINY,
        "steps": 12,
        "batch_size": 4,
        "crop": 0.5,
        "threads": 1,
        "log_every": 5,
        "val_fraction": 0.2,
    }
    return TrainCodecConfig.model_validate(defaults | options)


def train(out: Path, **options: object) -> TrainCodecResult:
    return train_on_sounds(config(out, **options), sounds(), SilentProgress())


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_it_leaves_everything_it_promises(tmp_path: Path) -> None:
    result = train(tmp_path, gan_start=0.5, steps=8)
    rows = metrics(tmp_path)
    assert (result.steps, result.stopped_by) == (8, "steps")
    assert result.sounds + result.held_out == 16
    assert len(result.perplexity) == len(result.val_perplexity) == 3
    for name in ("si_sdr", "val_si_sdr", "val_mel_distance", "perplexity_book_3", "val_perplexity_book_3", "mel_loss"):
        assert rows[-1][name] is not None, name
    assert rows[-1]["val_mel_distance"] == result.val_mel_distance
    assert "gan_loss" in rows[-1]
    assert "gan_loss" not in rows[0]
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "alarms.jsonl") == [
        *("best", "config.json", "grids", "metrics.jsonl", "model.safetensors", "rejects.jsonl", "samples", "samples.png"),
        *("training.html", "training.json"),
    ]
    names = sorted(p.name for p in (tmp_path / "samples").iterdir())
    assert names[:2] == ["1-original.wav", "1-reconstruction.wav"]
    assert len(names) == 2 * min(4, result.held_out)
    with wave.open(str(tmp_path / "samples" / "1-original.wav")) as file:
        assert (file.getframerate(), file.getnchannels()) == (RATE, 1)
    with PILImage.open(tmp_path / "samples.png") as picture:
        assert picture.size[1] == 2 * (64 + 2)
    tokenizer = load_audio_tokenizer(tmp_path)
    assert tokenizer.fingerprint == result.fingerprint
    assert tokenizer.config.origin
    (code,) = tokenizer.encode([drawn(3)])
    assert code.codes.shape == (3, RATE // 8)
    assert tokenizer.decode(code).shape == (1, RATE)


def test_the_validation_figure_is_that_of_the_saved_tokenizer(tmp_path: Path) -> None:
    result = train(tmp_path, steps=4)
    held_out = read_clips(sounds(), RATE, 1, 0.2, 2**30).held_out
    tokenizer = load_audio_tokenizer(tmp_path)
    distances = [mel_distance(clip, tokenizer.decode(tokenizer.encode([clip])[0]), RATE) for clip in held_out]
    assert float(np.mean(distances)) == pytest.approx(result.val_mel_distance, rel=1e-6)


def test_the_mean_predictor_answers_with_the_mean_spectrum() -> None:
    train_clips, held_out = [drawn(0), drawn(1, 2.0)], [drawn(2), drawn(3)]
    everything = np.concatenate([log_mel(clip[0], RATE) for clip in train_clips], axis=1)
    expected = [np.abs(log_mel(clip[0], RATE) - everything.mean(axis=1, keepdims=True)).mean() for clip in held_out]
    assert mean_predictor_distance(train_clips, held_out, RATE) == pytest.approx(float(np.mean(expected)))
    assert mean_predictor_distance(train_clips, [], RATE) is None


def test_same_seed_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    torch.manual_seed(1)
    train(tmp_path / "a", steps=4)
    torch.manual_seed(2)  # nothing hangs on the caller's generator
    train(tmp_path / "b", steps=4, log_every=1, checkpoint_every=2)
    train(tmp_path / "c", steps=4, seed=1)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c


class _Killed(BaseException):
    pass


def train_until_killed(out: Path, monkeypatch: pytest.MonkeyPatch, at: int, **options: object) -> None:
    step = Engine.step

    def killed(self: Engine, done: float) -> object:
        if self.steps == at:
            raise _Killed
        return step(self, done)

    monkeypatch.setattr(Engine, "step", killed)
    with pytest.raises(_Killed):
        train(out, **options)
    monkeypatch.undo()


@pytest.mark.parametrize(
    "at",
    [
        pytest.param(3, marks=pytest.mark.slow, id="before the codebooks are set"),
        pytest.param(8, id="with the discriminator on"),
    ],
)
def test_a_run_that_was_killed_and_resumed_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    options: dict[str, object] = {
        **{"checkpoint_every": 2, "log_every": 2, "quantize_from": 0.4, "gan_start": 0.5},
        **{"ema": 0.9, "books": (1, 3)},
    }
    train(tmp_path / "whole", **options)
    train_until_killed(tmp_path / "cut", monkeypatch, at, **options)
    assert not (tmp_path / "cut" / "config.json").exists()
    with pytest.raises(UsageError, match="--resume"):
        train_codec(config(tmp_path / "cut", **options), SilentProgress())
    with pytest.raises(FingerprintMismatch, match=r"lr: 0\.003 then, 0\.1 now"):
        train(tmp_path / "cut", **options, lr=0.1, resume=True)
    train(tmp_path / "cut", **options, resume=True)
    for name in ("model.safetensors", "config.json", "samples.png", "rejects.jsonl", "samples/1-reconstruction.wav"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "waiting", "clips_per_second")} for row in metrics(tmp_path / n)]
        for n in ("cut", "whole")
    ]
    assert timeless[0] == timeless[1]
    again = train_codec(config(tmp_path / "whole", **options, resume=True), SilentProgress())
    assert again.steps == 12  # finished already


def test_sounds_that_cannot_be_used_are_recorded(tmp_path: Path) -> None:
    good = wav(drawn(1))

    def some() -> Iterator[Sound | Reject]:
        yield from sounds(6)
        yield Sound("s/cut", Audio(good[:-400], "cut.wav"))
        yield Sound("s/text", Audio(b"no sound at all", "text.mp3"))
        yield Sound("s/gone", Audio(None, "gone.wav", Failure(Outcome.FAILED_UPSTREAM, "not-found", "nothing there")))
        yield Sound("s/again", Audio(wav(drawn(0, 0.4)), "again.wav"))
        yield Reject("s/file.tar", Outcome.REJECTED, "tar-truncated", "ends early")

    result = train_on_sounds(config(tmp_path, steps=2), some(), SilentProgress())
    rows = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [(row["locator"], row["outcome"], row["reason"]) for row in rows] == [
        ("s/cut", "rejected", "audio-truncated"),
        ("s/text", "rejected", "audio-unrecognised"),
        ("s/gone", "failed_upstream", "not-found"),
        ("s/again", "duplicate", "duplicate-sound"),
        ("s/file.tar", "rejected", "tar-truncated"),
    ]
    assert sum(result.rejects.values()) == 5
    with pytest.raises(UsageError, match=r"no sound to train on in memory \(1 read; see rejects\.jsonl\)"):
        train_on_sounds(config(tmp_path / "none"), [Sound("x", Audio(b"?", "x.wav"))], SilentProgress())


def test_options_that_cannot_work_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="codec-tiny"):
        train(tmp_path, preset="none")
    with pytest.raises(ConfigError, match=r"quantizer\.nothing"):
        train(tmp_path, overrides={"quantizer.nothing": 1})
    with pytest.raises(ConfigError, match="power of two"):
        train(tmp_path, overrides={"quantizer.codebook_size": 100})
    with pytest.raises(UsageError, match="in segments"):
        train(tmp_path, preset="encodec-48k", overrides={})
    with pytest.raises(UsageError, match="--books 9: the codec has 3"):
        train(tmp_path, books=(1, 9))
    with pytest.raises(UsageError, match="too few for the discriminator"):
        train(tmp_path, crop=0.05, gan_start=0.1)


def test_codebooks_are_filled_however_short_the_run(tmp_path: Path) -> None:
    for steps, val_fraction in ((1, 0.2), (1, 0.0), (2, 0.0)):
        out = tmp_path / f"{steps}-{val_fraction}"
        train(out, steps=steps, val_fraction=val_fraction, quantize_from=0.9)
        network = load_audio_tokenizer(out).network  # type: ignore[attr-defined]
        for layer in network.quantizer.vq.layers:
            assert len(torch.unique(layer._codebook.embed, dim=0)) > 8
            assert bool(layer._codebook.embed.any(dim=1).all())


def test_nothing_is_quantized_before_the_codebooks_are_set() -> None:
    crops = Crops([drawn(i) for i in range(4)], 1000, 4, 0)
    task = CodecTask(fresh_codec(configure("codec-tiny", TINY), 0), crops, CodecObjective(quantize_from=0.3, books=(1, 2, 3)))
    early = task.generate(task.batch(0, 0), Phase(0.1, False, False))
    assert early.codes is None
    before = {name: tensor.clone() for name, tensor in task.generator.state_dict().items()}
    found = task.validate([drawn(5)])  # as if they had been set
    assert min(found.perplexity) > 2
    assert not task.quantizer.initialised
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.generator.state_dict().items())
    late = task.generate(task.batch(1, 0), Phase(0.3, False, False))
    assert late.codes is not None
    assert late.codes.shape == (4, 3, 125)  # all codebooks, however many were trained
    assert {task.batch(step, 0).books for step in range(40)} == {1, 2, 3}
    assert not any(value.requires_grad for value in late.figures.values())  # they would hold what the losses kept
    late.loss.backward()
    moved = [p for p in task.generator.parameters() if p.grad is not None and bool(p.grad.any())]
    assert len(moved) == len(list(task.generator.parameters()))  # also the encoder's, through the quantizer


@pytest.mark.parametrize("quantizer", ["tables", "grid"])
def test_validations_do_not_begin_quantization(tmp_path: Path, quantizer: str) -> None:
    """Half of the run is trained without, though a tokenizer with codebooks was measured, drawn and kept before."""
    options = {"steps": 10, "quantize_from": 0.5, "log_every": 1, "overrides": TINY if quantizer == "tables" else GRID}
    train(tmp_path, **options)
    rows = metrics(tmp_path)
    assert [row["codes_counted"] > 0 for row in rows] == [False] * 5 + [True] * 5
    assert all(row["val_mel_distance"] and row["val_perplexity_book_1"] > 1 for row in rows)
    best = min(rows, key=lambda row: row["val_mel_distance"])
    tokenizer = load_audio_tokenizer(tmp_path / "best")
    held_out = read_clips(sounds(), RATE, 1, 0.2, 2**30).held_out
    distances = [mel_distance(clip, tokenizer.decode(tokenizer.encode([clip])[0]), RATE) for clip in held_out]
    assert float(np.mean(distances)) == pytest.approx(best["val_mel_distance"], rel=1e-6)


def test_crops_depend_on_seed_and_step_alone_and_are_dealt_out() -> None:
    clips = [drawn(0, 0.1), drawn(1, 3.0)]
    crops, again, other = Crops(clips, 500, 8, 5), Crops(clips, 500, 8, 5), Crops(clips, 500, 8, 6)
    whole = crops.part(7, 0, 1)
    assert whole.shape == (8, 1, 500)
    assert np.array_equal(whole, np.concatenate([again.part(7, part, 4) for part in range(4)]))
    assert not np.array_equal(whole, other.part(7, 0, 1))
    assert not np.array_equal(whole, crops.part(8, 0, 1))
    assert not np.array_equal(whole, crops.sample(7))
    drawn_crops = np.concatenate([crops.part(step, 0, 1) for step in range(40)])
    short = [crop for crop in drawn_crops if not crop[:, 200:].any()]
    assert all(np.array_equal(crop[:, :200], clips[0]) for crop in short)
    assert 0 < len(short) < 40  # by length about one in thirty-one; and a very long sound counts as twenty crops
    long = Crops([clips[0], np.zeros((1, 10**7), dtype=np.float32)], 500, 8, 5)
    assert sum(bool(crop.any()) for step in range(80) for crop in long.part(step, 0, 1)) > 4


def test_a_share_is_held_out_by_content() -> None:
    first = read_clips(sounds(), RATE, 1, 0.3, 2**30)
    again = read_clips(reversed(list(sounds())), RATE, 1, 0.3, 2**30)
    assert [clip.tobytes() for clip in first.held_out] == [clip.tobytes() for clip in again.held_out]
    assert len(first.train) + len(first.held_out) == 16
    assert first.held_out
    small = read_clips(sounds(), RATE, 1, 0.0, 3 * first.train[0].nbytes)
    assert small.full
    assert 0 < len(small.train) < 16


@pytest.mark.parametrize(
    ("preset", "rate", "books", "tokens"),
    [
        ("speech-16k-50hz-1book", 50, 1, 1500),
        ("fsq-24k-50hz", 50, 1, 1500),
        ("encodec-24k", 75, 32, 72000),
        ("codec-tiny", 50, 4, 6000),
    ],
)
def test_presets_have_their_rates(preset: str, rate: int, books: int, tokens: int) -> None:
    found = PRESETS[preset]
    assert found.sample_rate / found.hop == rate
    assert found.quantizer.codebooks == books
    assert found.frames(30 * found.sample_rate) * books == tokens


def test_the_command_trains_and_its_tokenizer_shards(tmp_path: Path) -> None:
    for i in range(8):
        (tmp_path / "in").mkdir(exist_ok=True)
        write_wav(tmp_path / "in" / f"{i}.wav", drawn(i), RATE)
    (tmp_path / "in" / "bad.wav").write_bytes(b"RIFF")
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    words = ["train-codec", str(tmp_path / "in"), "--out", str(tmp_path / "codec"), "--steps", "4", "--batch-size", "4"]
    ran = CliRunner().invoke(app, [*words, *sets, "--threads", "1", "--crop", "0.5", "--quiet", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert (told["steps"], told["sounds"] + told["held_out"], sum(told["rejects"].values())) == (4, 8, 1)
    (tmp_path / "in" / "bad.wav").unlink()
    rows = [{"audio_filepath": f"in/{i}.wav", "duration": 1.0, "text": f"sound {i}"} for i in range(8)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.txt").write_text("\n".join(f"sound number {i} says nothing else" for i in range(300)))
    text = TrainTextConfig(inputs=(str(tmp_path / "a.txt"),), out=tmp_path / "text.model", vocab_size=300)
    train_text(text, SilentProgress())
    sharded = ShardConfig.model_validate(
        {
            "inputs": [str(tmp_path / "manifest.jsonl")],
            "out": tmp_path / "shards",
            "text_tokenizer": tmp_path / "text.model",
            "audio_tokenizer": tmp_path / "codec",
            "workers": 0,
        }
    )
    (source,) = shard(sharded, SilentProgress()).manifest.sources
    assert source.documents == {"committed": 8}
    assert verify(VerifyConfig(directory=tmp_path / "shards"), SilentProgress()).ok


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["codec-tiny", "codec-fsq-tiny"])
def test_real_recordings_are_learnt(tmp_path: Path, shared_data: Path, preset: str) -> None:
    """The recordings of data/audio: below the mean spectrum on held-out ones, 16 codes of each codebook or more, and a picture
    of originals above reconstructions."""
    options: dict[str, object] = {"preset": preset, "overrides": {}, "steps": 400, "batch_size": 4, "crop": 0.5, "threads": 1}
    chosen = TrainCodecConfig(inputs=(str(shared_data / "audio"),), out=tmp_path, **options)  # type: ignore[arg-type]
    result = train_codec(chosen, SilentProgress())
    print(
        f"{preset}: mel {result.val_mel_distance}, mean {result.mean_predictor}, {result.perplexity}, {result.val_perplexity}"
    )
    assert result.val_mel_distance is not None
    assert result.mean_predictor is not None
    assert result.val_mel_distance < result.mean_predictor
    assert min(*result.perplexity, *result.val_perplexity) >= 16
    with PILImage.open(tmp_path / "samples.png") as picture:
        pixels = np.asarray(picture.convert("L")).astype(np.float64)
    above, below = (half[:64, :32].std() for half in np.split(pixels, 2))
    assert min(above, below) > 5  # neither half is blank


@pytest.mark.slow
def test_it_learns_to_hear(tmp_path: Path) -> None:
    """A few minutes: better than the mean spectrum on what it has not heard, and no codebook is left unused."""
    many = [Sound(f"s/{i}", Audio(wav(drawn(i, 2.0, 16000), 16000), f"{i}.wav")) for i in range(64)]
    chosen = config(tmp_path, overrides={}, steps=300, log_every=20)
    result = train_on_sounds(chosen, many, SilentProgress())
    assert result.val_mel_distance is not None
    assert result.mean_predictor is not None
    assert result.val_mel_distance < 0.9 * result.mean_predictor
    assert min(result.perplexity) >= 16
    assert metrics(tmp_path)[-1]["loss"] < 0.7 * metrics(tmp_path)[0]["loss"]


GRID: dict[str, object] = {
    "sample_rate": RATE,
    "architecture.filters": 4,
    "architecture.dimension": 3,
    "architecture.ratios": [4, 2],
    "quantizer.kind": "fsq",
    "quantizer.levels": [7, 5, 5],
}


class _Twice(Crops):
    """Batches whose second half is their first."""

    def part(self, step: int, part: int, parts: int) -> np.ndarray:
        half = super().part(step, 0, 2)
        return half if parts == 2 else np.concatenate([half, half])


@pytest.mark.parametrize("overrides", [TINY, GRID], ids=["tables", "grid"])
def test_a_batch_in_parts_pulls_as_the_whole_does(overrides: dict[str, object]) -> None:
    """Parts, of one process or several, change neither the gradient nor what the commitment weighs in it."""
    gradients = []
    for parts in (1, 2):
        crops = _Twice([drawn(i) for i in range(4)], 1000, 4, 0)
        codec = fresh_codec(configure("codec-tiny", overrides), 0)
        task = CodecTask(codec, crops, CodecObjective(commitment=10.0), accumulate=parts)
        task.set_books()
        for book in getattr(task.quantizer, "books", []):
            book.embed.mul_(2)  # so that there is something to commit to
        if parts == 2:
            state = {name: tensor.clone() for name, tensor in codec.network.state_dict().items()}
        for part in range(parts):
            if part:
                codec.network.load_state_dict(state)  # codebooks have learnt from the first part
            (task.generate(task.batch(0, part), Phase(0.5, False, False)).loss / parts).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in task.generator.parameters() if p.grad is not None]))
    assert torch.allclose(*gradients, rtol=1e-3, atol=1e-4 * float(gradients[0].abs().max()))


@pytest.mark.parametrize("kind", ["fsq", "residual-fsq"])
def test_a_codec_with_a_grid_trains_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    grid = GRID | ({"quantizer.kind": kind, "quantizer.codebooks": 2} if kind == "residual-fsq" else {})
    options: dict[str, object] = {"overrides": grid, "steps": 8, "checkpoint_every": 2, "quantize_from": 0.25, "ema": 0.9}
    whole = train(tmp_path / "whole", **options)
    assert whole.codebook_size == 175
    assert min(whole.perplexity) > 20
    train_until_killed(tmp_path / "cut", monkeypatch, 5, **options)
    assert train(tmp_path / "cut", **options, resume=True).fingerprint == whole.fingerprint
    tokenizer = load_audio_tokenizer(tmp_path / "cut")
    assert tokenizer.fingerprint == whole.fingerprint
    assert tokenizer.config.quantizer.kind == kind
    (code,) = tokenizer.encode([drawn(3)])
    assert code.codes.shape == (2 if kind == "residual-fsq" else 1, RATE // 8)


def test_every_job_takes_a_codec_with_a_grid(tmp_path: Path) -> None:
    """Shards, their check, inspecting, encoding, decoding, measuring and exporting, by the command line."""
    (tmp_path / "in").mkdir()
    for i in range(4):
        write_wav(tmp_path / "in" / f"{i}.wav", drawn(i), RATE)
    rows = [{"audio_filepath": f"in/{i}.wav", "duration": 1.0, "text": f"sound {i}"} for i in range(4)]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.txt").write_text("\n".join(f"sound number {i} says nothing else" for i in range(300)))
    train_text(
        TrainTextConfig(inputs=(str(tmp_path / "a.txt"),), out=tmp_path / "text.model", vocab_size=300), SilentProgress()
    )
    train(tmp_path / "codec", overrides=GRID, steps=4)

    def tokkit(*words: object) -> dict[str, object]:
        ran = CliRunner().invoke(app, [*map(str, words), "--json", "--quiet"])
        assert ran.exit_code == 0, (words, ran.output)
        return dict(json.loads(ran.stdout))

    shards, codes = tmp_path / "shards", tmp_path / "codes.npz"
    tokenizers = ("--text-tokenizer", tmp_path / "text.model", "--audio-tokenizer", tmp_path / "codec")
    tokkit("shard", tmp_path / "manifest.jsonl", "--out", shards, *tokenizers, "--workers", 0)
    blocks = {b["modality"]: b for b in json.loads((shards / "vocabulary.json").read_text())["blocks"]}
    assert blocks["audio"]["size"] == 175
    tokkit("verify", shards, "--reencode", 4)
    tokkit("inspect", shards, "--document", 1, "--out", tmp_path / "shown")
    assert (tmp_path / "shown" / "audio-0.wav").stat().st_size > 2 * RATE
    tokkit("encode", tmp_path / "codec", tmp_path / "in", "--out", codes)
    tokkit("decode", tmp_path / "codec", codes, "--out", tmp_path / "back")
    assert len(list((tmp_path / "back").glob("*.wav"))) == 4
    (scores,) = tokkit("eval", tmp_path / "codec", tmp_path / "in", "--out", tmp_path / "eval")["tokenizers"]  # type: ignore[misc]
    assert len(scores["perplexity"]) == 1
    assert 1 < scores["perplexity"][0] <= 175
