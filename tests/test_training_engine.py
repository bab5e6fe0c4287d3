"""The training engine: a GAN run that is killed ends with the same bytes; phases, averages, precision and memory do as told."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from metric_weights import drawn as drawn_weights
from safetensors.torch import save_file
from test_train_vq import TINY, TINY_VQ, config, drawn, metrics, pictures, train
from torch import Tensor, nn

from tokkit.errors import UsageError
from tokkit.metrics.lpips import Lpips, load_lpips, trunk_names
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_vq import train_on_pictures
from tokkit.pipelines.train_vq_parts import start_of
from tokkit.pipelines.training_run import checkpoints
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training.augmentation import Augmentation, BatchMaker
from tokkit.training.discriminators import BlurDiscriminator, FeatureDiscriminator, PatchDiscriminator
from tokkit.training.engine import AveragedWeights, DivergedError, Engine, Optimisation, Outcome, Phase, Phases, World
from tokkit.training.image_task import Critics, ImageTask, Objective, Validation, fresh_tokenizer
from tokkit.training.losses import LeCam, adaptive_weight, discriminator_loss
from tokkit.training.networks import FrozenBackbone, LogitDistance

# Everything that a checkpoint has to hold is in play.
GAN: dict[str, object] = {
    "preset": "vq-tiny",
    "overrides": TINY_VQ,
    "recipe": "gan",
    "discriminator_channels": 8,
    "gan_start": 0.3,
    "gan_lead_in": 0.2,
    "lecam": 0.01,
    "accumulate": 2,
    "ema": 0.9,
    "lr": 1e-3,
}

# The discriminator learns, the generator hardly moves.
STILL = Optimisation(lr=1e-9, discriminator_lr=2e-3, warmup=0, phases=Phases(0.0))


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


class _Killed(BaseException):
    pass


@pytest.mark.slow
def test_a_gan_run_that_was_killed_ends_with_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = GAN | {"steps": 10, "checkpoint_every": 3, "log_every": 2}
    train(tmp_path / "whole", **options)
    step = Engine.step

    def killed(self: Engine, done: float) -> object:
        if self.steps == 8:
            raise _Killed
        return step(self, done)

    monkeypatch.setattr(Engine, "step", killed)
    with pytest.raises(_Killed):
        train(tmp_path / "cut", **options)
    monkeypatch.undo()
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000003.pt", "step-00000006.pt"]
    train(tmp_path / "cut", **options, resume=True)
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    timed = {"seconds", "images_per_second", "waiting"}
    rows = [[{k: v for k, v in row.items() if k not in timed} for row in metrics(tmp_path / name)] for name in ("whole", "cut")]
    assert rows[0] == rows[1]
    assert not (tmp_path / "cut" / "checkpoints").exists()
    plain = train(tmp_path / "plain", **(options | {"gan": "none"}))
    assert weights(tmp_path / "plain") != weights(tmp_path / "whole")
    assert plain.steps == 10


@pytest.mark.slow
def test_two_hundred_steps_are_a_hundred_a_kill_and_a_hundred(tmp_path: Path) -> None:
    """By SIGKILL of the command itself, a GAN with averaged weights; weights, best tokenizer and grids compared."""
    from PIL import Image as PILImage

    folder = tmp_path / "in" / "shapes"
    folder.mkdir(parents=True)
    for number in range(24):
        (folder / f"{number}.png").write_bytes(drawn(number))
    command = [sys.executable, "-m", "tokkit.cli.main", "train-vq", str(tmp_path / "in"), "--preset", "vq-tiny"]
    command += ["--recipe", "gan", "--gan-start", "0.2", "--gan-lead-in", "0.05", "--resolution", "32", "--steps", "200"]
    command += ["--threads", "1", "--batch-size", "4", "--checkpoint-every", "50", "--val-fraction", "0.2", "--quiet"]
    command += [
        "--lecam",
        "0.01",
        "--best-by",
        "psnr",
        "--set",
        "architecture.channels=16",
        "--set",
        "quantizer.codebook_size=64",
    ]

    def run(out: str, *more: str, failpoint: str = "") -> int:
        environment = os.environ | {"TOKKIT_FAILPOINT": failpoint}
        return subprocess.run([*command, "--out", str(tmp_path / out), *more], env=environment, check=False).returncode

    assert run("whole") == 0
    assert run("cut", failpoint="training-step:101") == -signal.SIGKILL
    assert [path.name for path in checkpoints(tmp_path / "cut")] == ["step-00000050.pt", "step-00000100.pt"]
    assert run("cut", "--resume", failpoint="training-checkpoint:1") == -signal.SIGKILL  # at 150, before an old one is removed
    assert len(checkpoints(tmp_path / "cut")) == 3
    assert run("cut", "--resume") == 0
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert weights(tmp_path / "cut" / "best") == weights(tmp_path / "whole" / "best")
    grids = [{p.name: PILImage.open(p).tobytes() for p in (tmp_path / n / "grids").iterdir()} for n in ("cut", "whole")]
    assert grids[0] == grids[1]
    assert len(grids[0]) == 10


def test_the_best_validation_and_the_newest_checkpoints_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.pipelines.training_run import TrainingRun

    monkeypatch.setattr(TrainingRun, "tidy", lambda self: None)
    train(tmp_path, steps=40, checkpoint_every=5, keep_last=3)
    assert [path.name for path in checkpoints(tmp_path)] == [f"step-{n:08d}.pt" for n in (25, 30, 35)]
    best = max(row["val_psnr"] for row in metrics(tmp_path) if row["val_psnr"] is not None)
    chosen = config(tmp_path / "x")
    held_out = _held_out(chosen)
    tokenizer = load_image_tokenizer(tmp_path / "best")
    task = ImageTask(tokenizer, _batches(), pictures_at_once=2, seed_codebook=False)
    assert task.validate(held_out, 4).psnr == pytest.approx(best)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1]),
        ({"best_by": "ssim"}, [1, 2, 3, 4]),
        ({"best_by": "last"}, [1, 2, 3, 4]),
        ({"gan": "patch"}, [1, 2, 3, 4]),
        ({"gan": "patch", "best_by": "psnr"}, [1, 3]),  # after step 2 it is compared anew
    ],
)
def test_what_best_goes_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], expected: list[int]
) -> None:
    """Every step is validated; PSNR falls from one to the next, SSIM rises."""
    from tokkit.pipelines.train_vq import _Run

    kept: list[int] = []
    figures = iter(Validation(psnr=20.0 - n, ssim=n / 10, lpips=None, usage=1.0, perplexity=9.0) for n in range(9))
    monkeypatch.setattr(ImageTask, "validate", lambda *_: next(figures))
    monkeypatch.setattr(_Run, "save", lambda self, folder: kept.append(self.engine.steps))
    train(tmp_path, **({"steps": 4, "gan_start": 0.5, "discriminator_channels": 8} | options))
    assert kept == expected


def test_lpips_is_what_best_goes_by_where_it_is_measured(tmp_path: Path) -> None:
    files = {"lpips_vgg": tmp_path, "lpips_heads": tmp_path}
    assert config(tmp_path, **files, gan="patch").chosen_best_by == "lpips"
    assert config(tmp_path, **files, best_by="psnr").chosen_best_by == "psnr"


def _held_out(chosen: Any) -> np.ndarray:
    from tokkit.media.transforms import Preprocessing
    from tokkit.training.pictures import read_pictures

    return np.stack(read_pictures(pictures(), Preprocessing(size=32), 1.1, chosen.val_fraction, 2**30, 1).held_out)


# ---- the engine's parts


def _batches(size: int = 32, batch_size: int = 4) -> BatchMaker:
    rng = np.random.default_rng(0)
    found = [rng.integers(0, 255, (size, size, 3), dtype=np.uint8) for _ in range(6)]
    return BatchMaker(found, size, batch_size, 0, Augmentation())


def _task(critics: Critics | None = None, objective: Objective | None = None, **options: Any) -> ImageTask:
    tokenizer = fresh_tokenizer(configure("fsq-tiny", TINY, 32), 0)
    return ImageTask(tokenizer, _batches(), objective, critics, pictures_at_once=4, **options)


def test_the_discriminator_learns_alone_first_and_the_generator_is_not_touched_by_it_before() -> None:
    torch.manual_seed(0)
    critic = PatchDiscriminator(8, 2)
    phases = Phases(start=0.5, lead_in=0.2)
    engine = Engine(_task(Critics(critic)), Optimisation(phases=phases))
    plain = Engine(_task(), Optimisation())

    def total(module: nn.Module) -> float:
        return float(sum(p.detach().double().abs().sum() for p in module.parameters()))

    untouched = total(critic)
    for done in (0.1, 0.2):
        assert "real_logits" not in engine.step(done).figures
        plain.step(done)
    assert total(critic) == untouched
    figures = engine.step(0.35).figures
    plain.step(0.35)
    assert total(critic) != untouched
    assert {"real_logits", "fake_logits", "discriminator_loss", "discriminator_grad_norm"} <= set(figures)
    assert "adversarial_loss" not in figures
    assert total(engine.task.generator) == total(plain.task.generator)
    assert "adversarial_loss" in engine.step(0.6).figures
    plain.step(0.6)
    assert total(engine.task.generator) != total(plain.task.generator)
    assert all(p.requires_grad for p in critic.parameters())


def test_parts_of_a_batch_add_up_to_the_batch() -> None:
    whole, parts = Engine(_task(), Optimisation(lr=1e-3)), Engine(_task(accumulate=2), Optimisation(lr=1e-3, accumulate=2))
    for _ in range(2):
        a, b = whole.step(0.5), parts.step(0.5)
        assert float(a.figures["loss"]) == pytest.approx(float(b.figures["loss"]), rel=1e-5)
        assert float(a.figures["grad_norm"]) == pytest.approx(float(b.figures["grad_norm"]), rel=1e-3)


def test_recomputed_activations_give_the_same_gradients() -> None:
    kept, recomputed = Engine(_task(), Optimisation()), Engine(_task(), Optimisation())
    task = recomputed.task
    assert isinstance(task, ImageTask)
    task.tokenizer.recompute_activations()
    for _ in range(2):
        assert float(kept.step(0.5).figures["grad_norm"]) == float(recomputed.step(0.5).figures["grad_norm"])


def test_under_autocast_losses_and_quantizer_are_float32() -> None:
    seen: dict[str, torch.dtype] = {}
    task = _task(Critics(PatchDiscriminator(8, 2)))
    quantize, psnr = task.tokenizer.quantizer.forward, task._pixel_loss
    task.tokenizer.quantizer.forward = lambda x: (seen.update(quantizer=x.dtype), quantize(x))[1]  # type: ignore
    task._pixel_loss = lambda a, b: (seen.update(pixels=b.dtype), psnr(a, b))[1]  # type: ignore
    task.tokenizer.encoder.conv_out.register_forward_hook(lambda m, i, o: seen.update(encoder=o.dtype))
    engine = Engine(task, Optimisation(precision="bf16", phases=Phases(0.0)))
    step = engine.step(0.5)
    assert seen == {"encoder": torch.bfloat16, "quantizer": torch.float32, "pixels": torch.float32}
    assert all(value.dtype in (torch.float32, torch.float64) for value in step.figures.values())


def test_averaged_weights() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 0.0)
    averaged = AveragedWeights(layer, 0.5)
    expected = 0.0
    for n in range(1, 5):
        nn.init.constant_(layer.weight, float(n))
        averaged.update()
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * n
    with averaged.in_place():
        assert float(layer.weight) == pytest.approx(expected)
    assert float(layer.weight) == 4.0


class _Broken:
    """A task whose loss is no number from its third step on."""

    def __init__(self) -> None:
        self.generator = nn.Linear(1, 1)
        self.discriminator = None

    def batch(self, step: int, part: int) -> int:
        return step

    def generate(self, batch: int, phase: Phase) -> Outcome:
        return Outcome(self.generator.weight.sum() * (float("nan") if batch >= 2 else 1.0))

    def discriminate(self, held: Any, phase: Phase) -> Outcome:
        raise AssertionError

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


def test_a_loss_that_is_no_number_ends_the_run_before_it_moves_a_weight() -> None:
    task = _Broken()
    engine = Engine(task, Optimisation(lr=0.125))
    engine.step(0.5)
    engine.step(0.5)
    before = task.generator.weight.detach().clone()
    with pytest.raises(DivergedError, match=r"step 2.*--lr \(it is 0\.125\)"):
        engine.step(0.5)
    assert torch.equal(task.generator.weight, before)


# ---- losses and networks


def test_losses_of_the_discriminator() -> None:
    zeros, far = torch.zeros(4), torch.full((4,), 5.0)
    assert float(discriminator_loss("hinge", zeros, zeros)) == 1
    assert float(discriminator_loss("hinge", far, -far)) == 0
    assert float(discriminator_loss("non-saturating", zeros, zeros)) == pytest.approx(np.log(2))
    assert float(discriminator_loss("non-saturating", far, -far)) < 0.01


def test_lecam_holds_logits_near_the_others_running_mean() -> None:
    lecam = LeCam(decay=0.5)
    real, fake = torch.tensor([2.0]), torch.tensor([-1.0])
    first = lecam(real, fake, World())  # means begin as those of the first batch: (2 + 1)^2 twice
    assert float(first) == pytest.approx(18.0)
    lecam(torch.tensor([0.0]), torch.tensor([0.0]), World())
    assert lecam.means.tolist() == [1.0, -0.5]


def test_the_adaptive_weight_is_the_ratio_of_gradients() -> None:
    layer = torch.tensor([3.0], requires_grad=True)
    assert float(adaptive_weight((layer * 8).sum(), (layer * 2).sum(), layer, World())) == pytest.approx(4.0)
    still = (layer * 0).sum()
    assert float(adaptive_weight((layer * 8).sum(), still, layer, World())) == 1e4


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("loss", ["hinge", "non-saturating"])
@pytest.mark.parametrize("kind", [PatchDiscriminator, BlurDiscriminator])
def test_every_discriminator_learns_to_tell(
    kind: type[PatchDiscriminator | BlurDiscriminator], loss: str, adaptive: bool
) -> None:
    objective = Objective(gan_loss=loss, adaptive=adaptive, lecam=0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    engine = Engine(_task(Critics(kind(8, 2)), objective), STILL)
    rows = [engine.step(0.0).figures for _ in range(8)]
    assert float(rows[-1]["gan_loss"]) < float(rows[0]["gan_loss"])
    assert all(float(row["gan_weight"]) > 0 for row in rows)


def test_a_picture_has_the_same_logits_whatever_is_beside_it() -> None:
    pictures = torch.rand(3, 3, 64, 64)
    for critic in (PatchDiscriminator(8, 3), BlurDiscriminator(8, 4)):
        with torch.no_grad():
            assert torch.allclose(critic(pictures)[1:2], critic(pictures[1:2]), atol=1e-5)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny DINOv2 with random weights, as transformers writes it."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    tiny = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28, patch_size=14)
    Dinov2Model(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ResNet with random weights, as transformers writes it."""
    from transformers import ResNetConfig, ResNetForImageClassification

    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(0)
    tiny = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=7)
    ResNetForImageClassification(tiny).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("lpips")
    network = Lpips()
    shapes = {theirs: network.state_dict()[ours].shape for ours, theirs in trunk_names().items()}
    heads = {f"lin{i}.model.1.weight": head.shape for i, head in enumerate(network.heads)}
    save_file(drawn_weights(shapes), folder / "vgg.safetensors")
    save_file(drawn_weights(heads), folder / "heads.safetensors")
    return folder / "vgg.safetensors", folder / "heads.safetensors"


def test_a_discriminator_on_frozen_features(backbone: Path) -> None:
    frozen = FrozenBackbone(backbone)
    before = [p.clone() for p in frozen.parameters()]
    critic = FeatureDiscriminator(frozen, 8)
    engine = Engine(_task(Critics(critic), Objective(lecam=0)), STILL)
    rows = [engine.step(0.0).figures for _ in range(8)]
    assert float(rows[-1]["gan_loss"]) < float(rows[0]["gan_loss"])
    assert float(rows[-1]["adversarial_loss"]) != 0
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))
    assert not [name for name in engine.state()["discriminator"] if "backbone" in name or "frozen" in name]
    picture = torch.rand(1, 3, 32, 32, requires_grad=True)
    critic(picture).sum().backward()
    assert picture.grad is not None
    assert float(picture.grad.abs().sum()) > 0


def test_the_distance_of_logits(classifier: Path) -> None:
    distance = LogitDistance(classifier)
    a, b = torch.rand(2, 3, 32, 32) * 2 - 1, torch.rand(2, 3, 32, 32, requires_grad=True)
    assert float(distance(a, a)) == 0
    loss: Tensor = distance(a, b)
    loss.backward()
    assert float(loss) > 0
    assert b.grad is not None
    assert float(b.grad.abs().sum()) > 0


def test_all_losses_together_in_a_run(tmp_path: Path, backbone: Path, classifier: Path, lpips_files: tuple[Path, Path]) -> None:
    trunk, heads = lpips_files
    options = GAN | {"gan": "features", "gan_model": backbone, "logit_model": classifier, "logit_weight": 0.5, "steps": 4}
    options |= {"batch_size": 2, "accumulate": 1}
    result = train(tmp_path / "a", **options, lpips_vgg=trunk, lpips_heads=heads)
    row = metrics(tmp_path / "a")[-1]
    assert {"reconstruction_loss", "lpips_loss", "logits_loss", "commitment_loss", "adversarial_loss"} <= set(row)
    assert result.val_lpips is not None
    assert result.val_lpips > 0
    network = load_lpips(trunk, heads)[0]
    tokenizer, held_out = load_image_tokenizer(tmp_path / "a"), torch.from_numpy(_held_out(config(tmp_path / "x")))
    distance = network.distance(held_out, tokenizer.decode(tokenizer.encode(held_out)))
    assert float(distance.mean()) == pytest.approx(result.val_lpips, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gan": "features"}, "gan_model"),
        ({"lpips_vgg": "x"}, "go together"),
        ({"accumulate": 3}, "does not divide"),
        ({"best_by": "lpips"}, "needs lpips_vgg"),
        ({"best_by": "psnr", "val_fraction": 0}, "val_fraction is 0"),
    ],
)
def test_options_that_do_not_go_together_are_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)


def test_networks_that_are_not_there_or_not_theirs_are_told(tmp_path: Path, backbone: Path) -> None:
    for options, message in (
        ({"logit_model": tmp_path / "none"}, "no config.json"),
        ({"gan": "patch", "resolution": 16}, "too small"),
        ({"best_by": "ssim", "resolution": 8}, "too small to measure SSIM"),
        ({"device": "cuda"}, "no GPU"),
    ):
        if "device" in options and torch.cuda.is_available():
            continue
        chosen = config(tmp_path / "out", **options)
        with pytest.raises(Exception, match=message) as caught:
            train_on_pictures(chosen, start_of(chosen), pictures(6), SilentProgress())
        assert isinstance(caught.value, UsageError) or "config.json" in str(caught.value)


def test_figures_of_a_gan_run_are_in_the_log(tmp_path: Path) -> None:
    train(tmp_path, **(GAN | {"steps": 20, "log_every": 1}))
    rows = metrics(tmp_path)
    assert "real_logits" not in rows[1]
    assert "real_logits" in rows[4]  # from 10 % on
    assert "adversarial_loss" not in rows[4]
    assert {"adversarial_loss", "gan_weight", "gan_loss", "discriminator_grad_norm", "lecam_penalty"} <= set(rows[-1])
    assert json.loads((tmp_path / "training.json").read_text())["options"]["gan"] == "patch"
