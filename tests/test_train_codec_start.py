"""What a training of codecs begins with: `--init-from` one of ours or a released one, `--books`, and what `--dry-run` says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from audio_models import model_of
from test_train_codec import GRID, RATE, TINY, config, drawn, metrics, sounds, train
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.cli.train_codec import described
from tokkit.errors import ConfigError, DataError, FingerprintMismatch, UsageError
from tokkit.pipelines.inspect import write_wav
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_codec import TrainCodecConfig, train_codec, train_on_sounds
from tokkit.pipelines.train_codec_parts import start_of
from tokkit.pipelines.train_codec_plan import plan_codec
from tokkit.tokenizers.audio import load_audio_tokenizer
from tokkit.tokenizers.audio.model import EncodecTokenizer


def going_on(out: Path, begin: Path, **options: object) -> dict[str, object]:
    return {"out": out, "overrides": {}, "init_from": begin} | options


@pytest.mark.parametrize("overrides", [TINY, GRID], ids=["tables", "grid"])
def test_going_on_from_a_codec_of_ours_begins_where_it_ended(tmp_path: Path, overrides: dict[str, object]) -> None:
    first = train(tmp_path / "first", overrides=overrides, steps=10)
    second = train(**going_on(tmp_path / "second", tmp_path / "first", steps=1, lr=1e-9))  # type: ignore[arg-type]
    assert first.val_mel_distance is not None
    assert second.val_mel_distance == pytest.approx(first.val_mel_distance, abs=0.05)  # codebooks take in one batch
    before, after = (load_audio_tokenizer(tmp_path / name) for name in ("first", "second"))
    assert isinstance(before, EncodecTokenizer)
    assert isinstance(after, EncodecTokenizer)
    for name, tensor in before.weights().items():  # a step of nearly nothing: nothing was begun anew
        moved = (after.weights()[name] - tensor).abs().max()
        assert float(moved) < (0.2 if name in ("codebooks", "grid") else 1e-5) * max(1.0, float(tensor.abs().max())), name
    assert f"from codec-tiny ({first.fingerprint[:12]})" in after.config.origin
    assert metrics(tmp_path / "second")[0]["perplexity"] > 0  # it quantizes from the first step
    alone = config(**going_on(tmp_path / "x", tmp_path / "first", batch_size=None, crop=None))  # type: ignore[arg-type]
    recipe = alone.resolved_recipe
    assert (recipe.lr, recipe.batch_size, recipe.crop, recipe.gan_start) == (1e-4, 16, 1.0, 1.0)
    other = train(tmp_path / "other", overrides=overrides, steps=1, seed=5)
    assert other.fingerprint != first.fingerprint
    options = going_on(tmp_path / "second", tmp_path / "other", steps=1, lr=1e-9, resume=True)
    with pytest.raises(FingerprintMismatch, match="weights_from"):
        train_codec(config(**options), SilentProgress())  # type: ignore[arg-type]


def test_a_released_checkpoint_is_fine_tuned(tmp_path: Path) -> None:
    model = model_of(books=3, bins=16, ratios=[4, 2], n_filters=4, dimension=8)
    torch.save(model.state_dict(), tmp_path / "released.th")
    told: list[str] = []

    class Told(SilentProgress):
        def log(self, message: str) -> None:
            told.append(message)

    chosen = config(**going_on(tmp_path / "out", tmp_path / "released.th", steps=2, lr=1e-4, val_fraction=0.2))  # type: ignore[arg-type]
    train_on_sounds(chosen, sounds(), Told())
    tuned = load_audio_tokenizer(tmp_path / "out")
    assert (tuned.sample_rate, tuned.hop, tuned.codebooks) == (24000, 8, 3)
    assert "fine-tuned by tokkit train-codec from encodec-24k" in tuned.config.origin
    assert tuned.licence == "CC-BY-NC 4.0 (encodec 0.1.1)"
    (began,) = [message for message in told if message.startswith("before training: held-out")]
    assert "mel_distance" in began


def test_what_the_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "first", steps=1)

    def start(**options: object) -> object:
        return start_of(config(**going_on(tmp_path / "x", tmp_path / "first", **options)))  # type: ignore[arg-type]

    bad = {"architecture.filters": 8, "quantizer.codebook_size": 32, "sample_rate": 8000, "licence": "mine"}
    with pytest.raises(ConfigError) as caught:
        start(overrides=bad)
    told = str(caught.value)
    assert "3 problems" in told
    for line in ("architecture.filters: is 4", "quantizer.codebook_size: is 16", "- sample_rate: is 2000"):
        assert line in told
    with pytest.raises(UsageError, match="--books 4: the codec has 3 codebooks"):
        start(books=(4,))
    with pytest.raises((UsageError, DataError), match="nothing"):
        start(init_from=tmp_path / "nothing")
    (tmp_path / "first" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        start()


def _folder(tmp_path: Path, count: int = 4) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(count):
        write_wav(tmp_path / "in" / f"{number}.wav", drawn(number), RATE)
    return tmp_path / "in"


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    options: dict[str, object] = {"inputs": (str(_folder(tmp_path)),), "steps": 1000, "gan_start": 0.2, "batch_size": 8}
    plan = plan_codec(config(tmp_path / "out", **options))
    assert (plan.frame_rate, plan.tokens_per_second, plan.codebook_size, plan.codebooks) == (250, 750, 16, 3)
    assert (plan.steps, plan.batch_size, plan.crop) == (1000, 8, 0.5)
    assert (plan.discriminator_from, plan.adversarial_from) == (180, 200)
    tokenizer = EncodecTokenizer(start_of(config(tmp_path / "out")).config)
    assert plan.parameters == sum(p.numel() for p in tokenizer.network.parameters())
    assert plan.discriminator_parameters > 0
    assert plan.state_bytes == 16 * (plan.parameters + plan.discriminator_parameters)
    assert plan.bytes == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert not (tmp_path / "out").exists()
    less = plan_codec(config(tmp_path / "out", **options, accumulate=2))
    assert less.activation_bytes * 2 == plan.activation_bytes
    short, long = (plan_codec(config(tmp_path / "out", **options | {"crop": crop})) for crop in (1.2, 2.4))
    assert 1.8 < long.activation_bytes / short.activation_bytes < 2.2  # both are longer than every window
    assert plan_codec(config(tmp_path / "out", **options | {"gan_start": 1.0})).activation_bytes < plan.activation_bytes


def test_the_command_shows_the_plan_and_takes_books(tmp_path: Path) -> None:
    folder = _folder(tmp_path)
    words = ["train-codec", str(folder), "--out", str(tmp_path / "out")]
    ran = CliRunner().invoke(app, [*words, "--preset", "fsq-24k-50hz", "--batch-size", "2", "--dry-run", "--json"])
    assert ran.exit_code == 0, ran.output
    plan = json.loads(ran.stdout)
    assert (plan["tokens_per_second"], plan["codebook_size"]) == (50, 65536)
    assert plan["memory"] == plan["state_bytes"] + plan["activation_bytes"]
    told = described(plan_codec(TrainCodecConfig(inputs=(str(folder),), out=tmp_path / "out")))
    for line in ("tokenizer", "a second", "steps", "memory", "runs on", "input"):
        assert f"\n{line} " in f"\n{told}"
    assert "50 frames, 200 tokens of 4 codebooks of 128 codes" in told
    assert not (tmp_path / "out").exists()
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    short = ["--steps", "1", "--batch-size", "2", "--crop", "0.2", "--threads", "1", "--quiet"]
    ran = CliRunner().invoke(app, [*words, *sets, *short, "--books", "2", "--books", "3", "--json"])
    assert ran.exit_code == 0, ran.output
    assert json.loads((tmp_path / "out" / "training.json").read_text())["options"]["books"] == [2, 3]
    ran = CliRunner().invoke(app, [*words[:-1], str(tmp_path / "no"), *sets, *short, "--books", "4"])
    assert ran.exit_code == 2
    assert np.all([word in ran.output for word in ("--books 4", "3 codebooks")])
