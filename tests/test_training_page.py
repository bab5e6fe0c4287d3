"""The page after a training, and TensorBoard's files: all figures of the log, nothing from elsewhere."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from test_train_vq import config, metrics, pictures, train

from tokkit.errors import UsageError
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_vq import train_on_pictures
from tokkit.pipelines.train_vq_parts import start_of
from tokkit.pipelines.training_page import Plot, draw, write_training_page


def written(out: Path, rows: int = 1000) -> Path:
    """A folder as a GAN run leaves it."""
    (out / "grids").mkdir(parents=True)
    for step in range(1, 13):
        pixels = np.full((16, 32, 3), step * 20, dtype=np.uint8)
        PILImage.fromarray(pixels).save(out / "grids" / f"step-{step:08d}.png")
    log = [
        {
            "step": i,
            "loss": 1 / (i + 1),
            "psnr": 10 + i / 100,
            "val_psnr": 15.0 if i % 100 == 0 else None,
            "perplexity": float(i),
        }
        | ({"real_logits": 0.5, "fake_logits": -0.5} if i > 500 else {})
        for i in range(rows)
    ]
    (out / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log) + '{"step": 1000, "lo')
    alarm = {"kind": "overfitting", "step": 7, "message": "<b>Held-out</b> falls.", "advice": "Use more pictures."}
    (out / "alarms.jsonl").write_text(json.dumps(alarm) + "\n")
    return out


def test_the_page_shows_what_was_logged_and_stands_alone(tmp_path: Path) -> None:
    page = write_training_page(written(tmp_path / "run"), "a <title>", {"lr": 0.001, "gan": "patch"}).read_text()
    assert page.count("<svg") == 4  # loss, PSNR, perplexity, logits; no plot without figures
    assert page.count("data:image/png;base64,") == 6
    assert "step 12<" in page
    assert "step 1<" in page
    assert "&lt;b&gt;Held-out&lt;/b&gt; falls." in page
    assert "a &lt;title&gt;" in page
    assert "the run goes on" in page.lower()
    assert not re.search(r"<script|https?://|src=\"(?!data:)", page)


def test_figures_have_names_and_units(tmp_path: Path) -> None:
    out = written(tmp_path / "run")
    last = {"step": 2000, "loss": 0.25, "val_si_sdr": 1.268, "codebook_usage": 0.4213, "dead_codes": 8889, "val_lpips": None}
    (out / "metrics.jsonl").write_text(json.dumps(last) + "\n")
    result = {"steps": 2000, "seconds": 70.0, "stopped_by": "time", "sounds": 1039, "held_out": 6, "fingerprint": "ab" * 32}
    page = write_training_page(out, "train-codec", {}, result).read_text()
    assert "ended by time; 1,039 sounds to train on, 6 held out" in page
    shown = dict(re.findall(r"<div><span>(.*?)</span><b>(.*?)</b></div>", page))
    assert shown == {"held-out SI-SDR": "1.27 dB", "codes in use": "42 %", "dead codes": "8,889", "loss": "0.25"}


def test_curves_are_drawn_to_scale_and_thinned() -> None:
    rows = [{"step": i, "loss": float(i % 2)} for i in range(4000)]
    curve = draw(Plot("Loss", {"loss": "total"}), rows)
    assert curve is not None
    points = re.search(r'points="([^"]*)"', str(curve.svg))
    assert points is not None
    heights = [float(point.split(",")[1]) for point in points[1].split()]
    assert len(heights) == 400
    assert max(heights) - min(heights) < 1  # each is a mean of ten
    assert draw(Plot("Loss", {"other": "x"}), rows) is None
    flat = draw(Plot("Loss", {"loss": "total"}, logarithmic=True), [{"step": 1, "loss": 0.0}, {"step": 2, "loss": 3.0}])
    assert flat is not None
    assert "circle" in str(flat.svg)
    broken = draw(Plot("Loss", {"loss": "total"}), [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 1.0}])
    assert broken is not None
    assert "nan" not in str(broken.svg)


def test_tensorboard_gets_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            assert folder == str(tmp_path / "tensorboard")

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def close(self) -> None:
            told.append(("closed", 0.0, 0))

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    train(tmp_path, steps=6, tensorboard=True)
    losses = [(value, step) for name, value, step in told if name == "loss"]
    assert losses == [(row["loss"], row["step"]) for row in metrics(tmp_path)]
    assert told[-1][0] == "closed"


def test_without_tensorboard_the_flag_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    chosen = config(tmp_path, tensorboard=True)
    with pytest.raises(UsageError, match=r"pip install 'tokkit\[tensorboard\]'"):
        train_on_pictures(chosen, start_of(chosen), pictures(6), SilentProgress())
