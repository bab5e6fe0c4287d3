"""`tokkit bench encode` and the script of the GPU: they run, and what they say adds up."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.tokenizers.image.presets import configure
from tokkit.training.image_task import fresh_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vq")
    fresh_tokenizer(configure("vq-tiny", {}, 32), 0).save(folder)
    return folder


def run(*arguments: object) -> dict[str, object]:
    done = CliRunner().invoke(app, ["bench", "encode", *map(str, arguments), "--seconds", "0", "--json", "--quiet"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_the_figures_are_of_one_another(tokenizer: Path) -> None:
    found = run(tokenizer, "--precision", "fp16", "--batch-size", 4, "--cores", 3)
    stages = {"decode": found["decode"] * 3, "copy": found["copied"], "network": found["network"]}  # type: ignore[operator]
    assert found["bound_by"] in stages
    assert found["rate"] == min(stages["decode"], stages["copy"])
    share = found["network"] * found["gflop"] / (found["peak"] * 1000)  # type: ignore[operator]
    assert found["share"] == pytest.approx(share)
    assert found["agreement"] > 0.9  # type: ignore[operator]
    assert run(tokenizer)["agreement"] is None


def test_in_words_and_what_cannot_be(tokenizer: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "encode", str(tokenizer), "--seconds", "0", "--size", "64"])
    assert "bound by" in done.stdout
    assert "CPU, fp32, 64 px, batches of 16" in done.stdout
    (tmp_path / "none").mkdir()
    for arguments, message in (
        (["--size", "33"], "no multiple"),
        ([str(tmp_path / "none")], "none"),
        (["--acceleration", "graphs"], "NVIDIA GPU"),
    ):
        done = CliRunner().invoke(app, ["bench", "encode", str(tokenizer), *arguments])
        assert done.exit_code in (1, 2)
        assert message in done.output.replace("\n", " ")


@pytest.mark.slow
def test_the_script_for_a_gpu_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "vq_encode_gpu.py"
    options = ["--device", "cpu", "--preset", "vq-tiny", "--sizes", "64", "--batch-size", "8", "--seconds", "0"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 0
    assert "fp16 none" in capsys.readouterr().out


@pytest.mark.slow
def test_the_script_from_tars_to_shards_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "shard_gpu.py"
    options = ["--device", "cpu", "--preset", "vq-tiny", "--size", "64", "--pictures", "64", "--batch-size", "8"]
    options += ["--workers", "1", "--seconds", "0", "--precision", "fp32"]
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 0  # every picture was committed
    said = capsys.readouterr().out
    assert "share of the bare encoder" in said
    assert "64 in " in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("audio_encode.py", "--device cpu --batch-size 1 --seconds 10 --rounds 1", "share of the bare network"),
        ("features_encode.py", "--bare --count 4 --batch-size 2 --rounds 1 --precision fp16", "bare model is"),
    ],
)
def test_the_scripts_against_the_bare_networks_run(
    name: str, options: str, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = Path(__file__).parents[1] / "benchmarks" / name
    monkeypatch.setattr(sys, "argv", [str(script), *options.split()])
    runpy.run_path(str(script), run_name="__main__")
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("leaks", [False, True])
def test_the_script_of_the_attention_kernels_runs_and_finds_what_leaks(
    leaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU: the dense mask and FlexAttention; where documents see each other it leaves with 1."""
    script = Path(__file__).parents[1] / "benchmarks" / "attention.py"
    options = ["--device", "cpu", "--rows", "2", "--seq-len", "1024", "--heads", "1"]  # two documents a row
    monkeypatch.setattr(sys, "argv", [str(script), *options])
    if leaks:
        causal = torch.ones(1024, 1024, dtype=torch.bool).tril()
        monkeypatch.setattr("tokkit.data.attention.dense_mask", lambda batch: causal)
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == int(leaks)
    said = capsys.readouterr().out
    assert "SDPA, dense mask" in said
    assert "FlexAttention" in said
