"""What a training begins with: `--init-from` a tokenizer of ours or a released one, and what `--dry-run` says of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train_vq import TINY, TINY_VQ, config, drawn, pictures, train

from tokkit.cli.train_vq import described
from tokkit.errors import ConfigError, DataError, FingerprintMismatch
from tokkit.media.transforms import Preprocessing
from tokkit.metrics.reconstruction import psnr
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_vq import TrainVQConfig, train_on_pictures, train_vq
from tokkit.pipelines.train_vq_parts import start_of
from tokkit.pipelines.train_vq_plan import plan_vq, saved_bytes
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.importers.load import import_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.training.image_task import ImageTask
from tokkit.training.noise import NoiseBatches
from tokkit.training.pictures import read_pictures

GOLDEN = {"taming_small": "last.ckpt", "chameleon_small": "vqgan.ckpt", "llamagen_vq16_small": "vq_ds16_c2i.pt"}


def quality(tokenizer: ImageTokenizer) -> float:
    held_out = read_pictures(pictures(), Preprocessing(size=32), 1.1, 0.2, 2**30, 1).held_out
    originals = torch.from_numpy(np.stack(held_out))
    return float(psnr(originals, tokenizer.decode(tokenizer.encode(originals))).mean())


@pytest.mark.parametrize(("preset", "overrides"), [("fsq-tiny", TINY), ("vq-tiny", TINY_VQ)])
def test_going_on_from_a_tokenizer_of_ours_begins_where_it_ended(
    tmp_path: Path, preset: str, overrides: dict[str, object]
) -> None:
    first = train(tmp_path / "first", preset=preset, overrides=overrides, steps=60, lr=4e-3)
    second = train(tmp_path / "second", overrides={}, init_from=tmp_path / "first", steps=1, lr=1e-9, resolution=None)
    assert first.val_psnr is not None
    assert second.val_psnr == pytest.approx(first.val_psnr, abs=0.3)  # a codebook takes in one batch
    fresh = train(tmp_path / "fresh", preset=preset, overrides=overrides, steps=1, lr=1e-9)
    assert fresh.val_psnr is not None
    assert fresh.val_psnr < first.val_psnr - 1
    tokenizer = load_image_tokenizer(tmp_path / "second")
    assert f"from {preset} ({first.fingerprint[:12]})" in tokenizer.config.origin
    alone = config(tmp_path / "x", init_from=tmp_path / "first")
    assert (alone.peak_lr, alone.resolved_recipe.gan) == (1e-4, "none")
    with pytest.raises(FingerprintMismatch, match="weights_from"):
        chosen = config(tmp_path / "second", overrides={}, init_from=tmp_path / "fresh", steps=1, lr=1e-9, resume=True)
        train_vq(chosen.model_copy(update={"resolution": None}), SilentProgress())


@pytest.mark.slow
@pytest.mark.parametrize("name", GOLDEN)
def test_released_checkpoints_are_fine_tuned(shared_golden: Path, tmp_path: Path, name: str) -> None:
    """A few steps on a domain of shapes: better on it than as released, and still the same kind of tokenizer."""
    checkpoint = shared_golden / "image_tokenizers" / name / GOLDEN[name]
    chosen = TrainVQConfig(
        inputs=("memory",),
        out=tmp_path,
        init_from=checkpoint,
        resolution=32,
        steps=60,
        batch_size=4,
        threads=1,
        val_fraction=0.2,
        lr=1e-3,
    )
    train_on_pictures(chosen, start_of(chosen), pictures(), SilentProgress())
    released, tuned = import_image_tokenizer(checkpoint).tokenizer, load_image_tokenizer(tmp_path)
    assert quality(tuned) > quality(released) + 0.4
    assert tuned.config.architecture == released.config.architecture
    assert tuned.config.licence == released.config.licence
    assert tuned.config.preprocessing.resize == released.config.preprocessing.resize
    assert "fine-tuned by tokkit train-vq" in tuned.config.origin


def test_fine_tuning_says_where_it_began(tmp_path: Path) -> None:
    told: list[str] = []

    class Told(SilentProgress):
        def log(self, message: str) -> None:
            told.append(message)

    first = train(tmp_path / "first", preset="vq-tiny", overrides=TINY_VQ, steps=8)
    chosen = config(tmp_path / "second", overrides={}, init_from=tmp_path / "first", steps=1)
    train_on_pictures(chosen, start_of(chosen), pictures(), Told())
    began = [message for message in told if message.startswith("before training: held-out psnr")]
    assert len(began) == 1
    assert f"psnr {first.val_psnr:.3f}" in began[0]


def test_what_the_weights_do_not_fit_is_refused(tmp_path: Path) -> None:
    train(tmp_path / "first", preset="vq-tiny", overrides=TINY_VQ, steps=1)
    bad = {"architecture.channels": 32, "quantizer.codebook_size": 128, "quantizer.decay": 0.9}
    with pytest.raises(
        ConfigError, match=r"2 problems.*\n.*architecture\.channels: is 16.*\n.*quantizer\.codebook_size: is 64"
    ):
        start_of(config(tmp_path / "x", overrides=bad, init_from=tmp_path / "first"))
    with pytest.raises(Exception, match="nothing") as caught:
        start_of(config(tmp_path / "x", overrides={}, init_from=tmp_path / "nothing"))
    assert not isinstance(caught.value, KeyError | OSError)
    (tmp_path / "first" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="damaged"):
        start_of(config(tmp_path / "x", overrides={}, init_from=tmp_path / "first"))


def _folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_bytes(drawn(number))
    return tmp_path / "in"


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    options: dict[str, object] = {"inputs": (str(_folder(tmp_path)),), "recipe": "gan", "steps": 1000, "gan_start": 0.2}
    plan = plan_vq(config(tmp_path / "out", **options))
    assert (plan.tokens, plan.codebook_size, plan.steps, plan.batch_size) == (16, 200, 1000, 4)
    assert (plan.discriminator_from, plan.adversarial_from) == (180, 200)
    tokenizer = ImageTokenizer(start_of(config(tmp_path / "out")).config)
    assert plan.parameters == sum(p.numel() for p in tokenizer.parameters())
    assert plan.state_bytes == 20 * plan.parameters + 16 * plan.discriminator_parameters
    assert plan.bytes == sum(path.stat().st_size for path in (tmp_path / "in").iterdir())
    assert not (tmp_path / "out").exists()
    less = plan_vq(config(tmp_path / "out", **options, accumulate=2))
    assert less.activation_bytes * 2 == plan.activation_bytes
    assert plan_vq(config(tmp_path / "out", **options, recompute=True)).activation_bytes < plan.activation_bytes


def test_the_memory_of_activations_is_what_autograd_keeps(tmp_path: Path) -> None:
    """Twice the picture's sides: four times the activations."""
    start = start_of(config(tmp_path))
    sizes = []
    for size in (32, 64):
        task = ImageTask(ImageTokenizer(start.config), NoiseBatches(size), pictures_at_once=1)
        sizes.append(saved_bytes(task, adversarial=False, bf16=False))
    assert 3.5 < sizes[1] / sizes[0] < 4.5


def test_the_command_shows_the_plan(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tokkit.cli.main", "train-vq", str(_folder(tmp_path)), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True, check=True, env=os.environ)
    plan = json.loads(done.stdout)
    assert plan["tokens"] == 256
    assert plan["memory"] == plan["state_bytes"] + plan["activation_bytes"]
    told = described(plan_vq(TrainVQConfig(inputs=(str(tmp_path / "in"),), out=tmp_path / "out")))
    for line in ("tokenizer", "a picture", "steps", "memory", "runs on", "input"):
        assert f"\n{line} " in f"\n{told}"
    assert "5,000 steps of 8 pictures: 40,000 pictures" in told
