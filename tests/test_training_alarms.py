"""Alarms of training: each is provoked, by a run that goes wrong or by rows that say so, and a sound run has none."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from test_train_codec import RATE, wav
from test_train_codec import config as codec_config
from test_train_codec import drawn as voice
from test_train_vq import TINY_VQ, config, drawn, pictures, train

from tokkit.documents import Audio
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_codec import ADVICE, TrainCodecConfig, train_on_sounds
from tokkit.pipelines.train_vq import TrainVQResult, train_on_pictures, train_vq
from tokkit.pipelines.train_vq_parts import start_of
from tokkit.training.alarms import MEL, Watch
from tokkit.training.audio.clips import Crops, Sound, read_clips
from tokkit.training.engine import DivergedError


def sounded(out: Path) -> dict[str, dict[str, object]]:
    path = out / "alarms.jsonl"
    return {row["kind"]: row for row in map(json.loads, path.read_text().splitlines())} if path.exists() else {}


def rows_of(count: int = 30, **last: float | None) -> list[dict[str, float | None]]:
    """A run as it should be, but for its last rows."""
    sound = [
        {
            "step": i,
            "loss": 1 / (i + 1) + 0.1,
            "grad_norm": 0.5,
            "psnr": 15 + i / 5,
            "val_psnr": 15 + i / 5,
            "codebook_usage": 0.9,
            "perplexity": 600.0 - i,
            "codes_counted": 100_000.0,
            "waiting": 0.1,
        }
        for i in range(count)
    ]
    return [*sound, *({**sound[-1], "step": count + i, **last} for i in range(5))]


def sounds_of(count: int = 30, **last: float | None) -> list[dict[str, float | None]]:
    """The same of sounds: four codebooks, nothing quantized at first, which costs mel loss afterwards."""
    sound = [
        {
            "step": i,
            "loss": (1.0 if i < 5 else 4.0) + 1 / (i + 1),
            "grad_norm": 0.5,
            "si_sdr": -30.0 - i,  # phase: no matter
            "val_si_sdr": -20.0 - 2 * i,
            "mel_loss": (0.9 if i < 5 else 3.5) + 1 / (i + 1),
            "val_mel_distance": 1.0 + 1 / (i + 1),
            "codebook_usage": 0.9,
            "perplexity": 60.0,
            **{f"perplexity_book_{k}": 50.0 + 5 * k for k in range(1, 5)},
            "codes_counted": 0.0 if i < 5 else 1000.0 * i,
            "waiting": 0.1,
        }
        for i in range(count)
    ]
    return [*sound, *({**sound[-1], "step": count + i, **last} for i in range(5))]


SOUNDS: dict[str, object] = {"total_codes": 128, "measure": MEL, "items": "sounds", "idle_loss": 2.0, "advice": ADVICE}


def kinds(rows: list[dict[str, float | None]], **options: object) -> list[str]:
    watch = Watch(**{"total_codes": 1024} | options)  # type: ignore[arg-type]
    return [alarm.kind for i, row in enumerate(rows) for alarm in watch.look(row, i / len(rows))]


def test_a_sound_run_has_no_alarm(tmp_path: Path) -> None:
    assert kinds(rows_of()) == []
    train(tmp_path, steps=40, lr=1e-3)
    assert sounded(tmp_path) == {}


GAN = {"gan_weight": 0.1, "gan_loss": 0.9, "real_logits": 0.3, "fake_logits": -0.2}


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        ("codebook-collapsing", {"perplexity": 40.0, "codebook_usage": 0.3}),
        ("codebook-collapsing", {"codebook_usage": 0.03}),
        ("gan-overpowering", {**GAN, "val_psnr": 15.0}),
        ("gan-overpowering", {**GAN, "val_psnr": None, "psnr": 14.0}),
        ("discriminator-winning", {**GAN, "gan_loss": 0.05, "real_logits": 4.0, "fake_logits": -5.0}),
        ("gradients-exploding", {"grad_norm": 50.0}),
        ("loss-rising", {"loss": 5.0}),
        ("waiting-for-pictures", {"waiting": 0.8}),
        ("overfitting", {"val_psnr": 18.0}),
    ],
)
def test_rows_that_say_so_sound_an_alarm_once(kind: str, last: dict[str, float | None]) -> None:
    assert kinds(rows_of(**last)) == [kind]
    mended = {key: GAN[key] for key in GAN if key in last}
    again = [*rows_of(**last), *rows_of(**mended)[-5:], *rows_of(**last)[-5:]]
    assert kinds(again).count(kind) == 2


def test_what_is_not_yet_or_not_so() -> None:
    assert kinds(rows_of(**GAN)) == []
    assert kinds(rows_of(codebook_usage=0.03), learned_table=False) == []  # a fixed grid need not be used up
    assert kinds(rows_of(codebook_usage=0.03, codes_counted=900.0)) == []  # too few to say so
    early = Watch(total_codes=1024)
    assert early.look({"step": 1, "perplexity": 3.0, "codebook_usage": 0.01, "codes_counted": 1e6}, 0.05) == []


HINGE = {"adversarial_loss": 1.0, "gan_loss": 1.8, "real_logits": 0.3, "fake_logits": -0.2}


@pytest.mark.parametrize(
    ("kind", "last", "said"),
    [
        ("codebook-collapsing", {"perplexity_book_3": 4.0}, "Codebook 3 is collapsing: perplexity is 4.0 of 128 codes"),
        ("gan-overpowering", {**HINGE, "val_mel_distance": 1.4}, "held-out mel distance is 1.400, 35 % above what"),
        ("gan-overpowering", {**HINGE, "val_mel_distance": None, "mel_loss": 5.0}, "mel loss is 5.000, 42 % above what"),
        ("discriminator-winning", {**HINGE, "gan_loss": 0.1, "real_logits": 4.0}, "--discriminator-lr"),
        ("gradients-exploding", {"grad_norm": 50.0}, "100 times as long as usual"),
        ("loss-rising", {"loss": 15.0}, "The loss is rising"),
        ("waiting-for-sounds", {"waiting": 0.8}, "threads that decode"),
        ("overfitting", {"val_mel_distance": 1.1}, "the training sounds are being learned by heart. Use more sounds"),
    ],
)
def test_sounds_have_alarms_of_their_own(kind: str, last: dict[str, float | None], said: str) -> None:
    assert kinds(sounds_of(), **SOUNDS) == []
    watch = Watch(**SOUNDS)  # type: ignore[arg-type]
    (alarm,) = (alarm for i, row in enumerate(sounds_of(**last)) for alarm in watch.look(row, i / 35))
    assert alarm.kind == kind
    assert said in str(alarm)
    told = f"{alarm} {watch.diverged(3, 'no number')}"
    assert "picture" not in told
    assert "psnr" not in told
    for option in re.findall(r"--[a-z-]+", told):
        assert option[2:].replace("-", "_") in {*TrainCodecConfig.model_fields, "resume", "set"}, option


def test_what_quantization_costs_is_no_alarm() -> None:
    """Nor what SI-SDR does; and what is learnt by heart after it is one, though the training was better before."""
    rows = sounds_of(val_mel_distance=1.1)
    assert kinds(rows, **SOUNDS) == ["overfitting"]
    worse = [row | {"mel_loss": 8.0} if row["step"] >= 30 else row for row in rows]
    assert kinds(worse, **SOUNDS) == []  # the training is no better: it may come back
    assert kinds(sounds_of(**HINGE, val_mel_distance=1.1, mel_loss=3.8), **SOUNDS) == []


def test_every_alarm_says_what_to_do() -> None:
    watch = Watch(total_codes=1024)
    found = [a for i, r in enumerate(rows_of(perplexity=20.0, codebook_usage=0.02)) for a in watch.look(r, i / 35)]
    assert "perplexity is 20.0 of 1,024 codes" in found[0].message
    assert "--lr" in found[0].advice
    assert str(found[0]).startswith("ALARM codebook-collapsing at step 30: ")


@pytest.mark.slow
def test_a_codebook_that_collapses(tmp_path: Path) -> None:
    """Nothing revived, nothing that ties features to codes, and large steps."""
    overrides = TINY_VQ | {
        "quantizer.codebook_size": 512,
        "quantizer.codebook_dim": 16,
        "quantizer.dead_code_share": 0,
        "quantizer.normalize": False,
        "quantizer.update": "gradient",
        "quantizer.commitment_weight": 0,
    }
    result = train(tmp_path, preset="vq-tiny", overrides=overrides, steps=60, lr=0.05, warmup=0)
    assert "codebook-collapsing" in sounded(tmp_path)
    assert "codebook-collapsing" in result.alarms
    assert "quantizer.dead_code_share" in (tmp_path / "training.html").read_text()


@pytest.mark.slow
def test_an_adversarial_loss_that_overpowers(tmp_path: Path) -> None:
    train(
        tmp_path,
        recipe="gan",
        ema=0,
        discriminator_channels=8,
        gan_weight=50.0,
        gan_start=0.5,
        steps=80,
        lr=4e-3,
    )
    alarm = sounded(tmp_path)["gan-overpowering"]
    assert int(str(alarm["step"])) > 40
    assert "--gan-weight" in str(alarm["advice"])


@pytest.mark.slow
def test_a_discriminator_that_wins(tmp_path: Path) -> None:
    """The generator is not made to answer it."""
    train(
        tmp_path,
        recipe="gan",
        discriminator_channels=16,
        gan_weight=0.0,
        gan_start=0.0,
        lecam=0,
        discriminator_lr=5e-3,
        lr=1e-6,
        steps=80,
        warmup=0,
    )
    assert "discriminator-winning" in sounded(tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer that knows eight pictures."""
    out = tmp_path_factory.mktemp("trained")
    on_eight(out, steps=300, lr=4e-3, val_fraction=0)
    return out


def on_eight(out: Path, **options: object) -> TrainVQResult:
    chosen = config(out, min_crop_area=1.0, flip=False, **options)
    return train_on_pictures(chosen, start_of(chosen), pictures(8), SilentProgress())


@pytest.mark.slow
def test_pictures_that_are_learned_by_heart(tmp_path: Path, trained: Path) -> None:
    """Gone on with on four of its eight pictures, it forgets the others."""
    options = {"init_from": trained, "overrides": {}, "val_fraction": 0.5, "log_every": 20, "warmup": 0}
    on_eight(tmp_path, steps=120, lr=1e-3, **options)
    alarm = sounded(tmp_path)["overfitting"]
    assert "learned by heart" in str(alarm["message"])
    assert "best/" in str(alarm["advice"])


@pytest.mark.slow
def test_a_loss_that_rises(tmp_path: Path, trained: Path) -> None:
    """Fine-tuning at a learning rate that undoes what was learned."""
    on_eight(tmp_path, init_from=trained, overrides={}, val_fraction=0, steps=60, lr=1.0, warmup=0.9, log_every=1)
    assert "--lr" in str(sounded(tmp_path)["loss-rising"]["advice"])


def test_gradients_that_explode(tmp_path: Path) -> None:
    """The adversarial loss comes in at a weight of ten thousand."""
    options = {"recipe": "gan", "ema": 0, "discriminator_channels": 8, "gan_weight": 1e4, "gan_start": 0.5}
    train(tmp_path, **options, steps=30, log_every=1, val_fraction=0)
    assert int(str(sounded(tmp_path)["gradients-exploding"]["step"])) in range(15, 18)


def test_pictures_that_are_waited_for(tmp_path: Path) -> None:
    """Pictures a thousand times as large as they are trained at, decoded in turn with the training."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        (folder / f"{number}.png").write_bytes(drawn(number, 1000, 1000))
    options = {"inputs": [str(folder)], "stream": True, "workers": 0, "val_fraction": 0, "log_every": 1}
    train_vq(config(tmp_path / "out", **options, steps=5), SilentProgress())
    assert "--workers" in str(sounded(tmp_path / "out")["waiting-for-pictures"]["advice"])


def test_a_loss_that_jumps_about_sounds_once_until_it_has_come_down() -> None:
    def jumping(*levels: float) -> list[dict[str, float | None]]:
        sound = rows_of()[:30]
        return [*sound, *({**sound[-1], "step": 30 + i, "loss": level} for i, level in enumerate(levels))]

    low, high, between = 0.13, 5.0, 0.3  # between: over the lowest, not three times it
    swinging = [level for _ in range(6) for level in (*[high] * 3, *[between] * 3)]
    assert kinds(jumping(*swinging)) == ["loss-rising"]
    assert kinds(jumping(*[high] * 3, *[low] * 6, *[high] * 3)) == ["loss-rising"] * 2


def recordings(kind: Callable[[int], np.ndarray], numbers: Iterable[int]) -> list[Sound]:
    return [Sound(f"{kind.__name__}/{i}", Audio(wav(kind(i)), f"{i}.wav")) for i in numbers]


def tone(number: int) -> np.ndarray:
    t = np.arange(RATE) / RATE
    return (0.1 * np.sin(2 * np.pi * (300 + 40 * number) * t)).astype(np.float32)[None]


def dealt(sounds: list[Sound]) -> tuple[list[Sound], list[Sound]]:
    """Those that a run with half of its sounds held out trains on, and the others."""
    train, held_out = [], []
    for sound in sounds:
        (train if read_clips([sound], RATE, 1, 0.5, 2**20).train else held_out).append(sound)
    return train, held_out


@pytest.mark.slow
def test_sounds_that_are_learned_by_heart(tmp_path: Path) -> None:
    """A codec of voices is gone on with on tones alone: it forgets the voices."""
    _, voices = dealt(recordings(voice, range(12)))
    tones, _ = dealt(recordings(tone, range(12)))
    known = codec_config(tmp_path / "known", steps=200, lr=1e-2, val_fraction=0)
    train_on_sounds(known, voices, SilentProgress())
    options = {"init_from": tmp_path / "known", "overrides": {}, "val_fraction": 0.5, "warmup": 0, "batch_size": 4}
    on_tones = codec_config(tmp_path / "on", **options, steps=60, lr=1e-2)
    result = train_on_sounds(on_tones, [*voices, *tones], SilentProgress())
    assert (result.sounds, result.held_out) == (len(tones), len(voices))
    alarm = sounded(tmp_path / "on")["overfitting"]
    assert "Held-out mel distance is" in str(alarm["message"])
    assert "the training sounds are being learned by heart" in str(alarm["message"])


@pytest.mark.slow
def test_an_adversarial_loss_that_overpowers_sounds(tmp_path: Path) -> None:
    """Its share of the gradient is nearly all of it."""
    options = {"gan_start": 0.5, "gan_weight": 100.0, "feature_weight": 0.0, "mel_weight": 0.01}
    chosen = codec_config(tmp_path, **options, steps=60, lr=1e-2)
    train_on_sounds(chosen, recordings(voice, range(12)), SilentProgress())
    alarm = sounded(tmp_path)["gan-overpowering"]
    assert int(str(alarm["step"])) > 30
    assert "held-out mel distance" in str(alarm["message"])


def test_sounds_that_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each crop comes late."""
    part = Crops.part

    def late(self: Crops, *which: int) -> np.ndarray:
        time.sleep(0.2)
        return part(self, *which)

    monkeypatch.setattr(Crops, "part", late)
    chosen = codec_config(tmp_path, steps=5, log_every=1, val_fraction=0)
    train_on_sounds(chosen, recordings(voice, range(4)), SilentProgress())
    assert "threads that decode" in str(sounded(tmp_path)["waiting-for-sounds"]["advice"])


def test_sounds_whose_loss_is_no_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part = Crops.part
    monkeypatch.setattr(Crops, "part", lambda self, step, *which: part(self, step, *which) * (float("nan") if step == 3 else 1))
    with pytest.raises(DivergedError):
        train_on_sounds(codec_config(tmp_path, steps=6, val_fraction=0), recordings(voice, range(4)), SilentProgress())
    alarm = sounded(tmp_path)["not-a-number"]
    assert "--precision" not in str(alarm["advice"])  # which training of sounds does not have
