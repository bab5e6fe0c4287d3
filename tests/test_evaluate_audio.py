"""`tokkit eval` on audio tokenizers: figures are the metrics' own, every clip is told of, and the same gives the same bytes."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sound_corpus import BAD, CLIPS, clip, write_audio_tokenizers, write_sounds
from typer.testing import CliRunner

from tokkit.errors import UsageError
from tokkit.media.audio import load_audio
from tokkit.metrics.audio import mel_distance, si_sdr
from tokkit.pipelines.evaluate_audio import EvalAudioResult, EvaluateAudioConfig, evaluate_audio
from tokkit.pipelines.progress import SilentProgress
from tokkit.tokenizers.audio import load_audio_tokenizer

SILENT = SilentProgress()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("eval")
    write_sounds(folder / "sounds")
    return (folder, *write_audio_tokenizers(folder / "tokenizers"))


def run(world: tuple[Path, Path, Path], out: Path, **options: object) -> EvalAudioResult:
    settings: dict[str, object] = {"tokenizers": (world[1],), "inputs": (str(world[0] / "sounds"),), "out": out}
    return evaluate_audio(EvaluateAudioConfig.model_validate(settings | options), SILENT)


def test_figures_are_those_of_each_clip(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    result = run(world, tmp_path / "a", books=(1, 4))
    assert (result.clips, sum(result.rejects.values())) == (CLIPS - len(BAD), len(BAD))
    tokenizer = load_audio_tokenizer(world[1])
    distances: dict[int, list[float]] = {1: [], 4: []}
    ratios: dict[int, list[float]] = {1: [], 4: []}
    for number in range(CLIPS):
        if f"{number:03d}" in BAD:
            continue
        samples = load_audio(clip(number)[1], 24000, 1)
        (code,) = tokenizer.encode([samples])
        for books in (1, 4):
            output = tokenizer.decode(code.first_books(books))
            distances[books].append(mel_distance(samples, output, 24000))
            if (ratio := si_sdr(samples, output)) is not None:
                ratios[books].append(ratio)
    for scores in result.tokenizers:
        assert scores.mel_distance == pytest.approx(np.mean(distances[scores.codebooks]))
        assert scores.si_sdr == pytest.approx(np.mean(ratios[scores.codebooks]))
        assert len(scores.perplexity) == scores.codebooks
        assert 1 <= scores.perplexity[0] <= 32
        # 75 frames a second of 5 bits a book, and begun frames
        assert scores.bits_per_second == pytest.approx(375 * scores.codebooks, rel=0.05)
    assert len(ratios[1]) == CLIPS - len(BAD) - 1  # one is silent
    run(world, tmp_path / "b", books=(1, 4))
    for name in ("eval.json", "eval.html", "rejects.jsonl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    page = (tmp_path / "a" / "eval.html").read_text()
    assert page.count("data:image/png;base64,") == 2 * 2 * 4
    told = [json.loads(line)["reason"] for line in (tmp_path / "a" / "rejects.jsonl").read_text().splitlines()]
    assert sorted(told) == sorted(BAD.values())


def test_a_folder_of_sound_files_and_another_rate(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    for number in (0, 1, 2):
        (folder / f"{number}.{clip(number)[0]}").write_bytes(clip(number)[1])
    result = run(world, tmp_path / "out", tokenizers=(world[1], world[2]), inputs=(str(folder),), limit=2)
    assert [(s.sample_rate, s.codebooks, s.clips) for s in result.tokenizers] == [(24000, 4, 2), (48000, 2, 2)]


def test_what_cannot_be_measured_is_told(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--books 5: .* has 4 codebooks"):
        run(world, tmp_path / "out", books=(5,))
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.wav").write_bytes(b"none")
    with pytest.raises(UsageError, match="no sound to measure"):
        run(world, tmp_path / "out", inputs=(str(tmp_path / "bad"),))


def test_figures_that_are_not_there_are_named(
    world: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("pystoi", "pesq"):
        monkeypatch.setitem(sys.modules, package, None)
    result = run(world, tmp_path / "a", limit=2)
    assert (result.tokenizers[0].stoi, result.tokenizers[0].pesq) == (None, None)
    assert result.missing == {"stoi": "pip install 'tokkit[speech]'", "pesq": "pip install pesq (needs a C compiler)"}
    assert "pystoi" not in result.packages
    page = (tmp_path / "a" / "eval.html").read_text()
    assert "stoi not measured: pip install &#39;tokkit[speech]&#39;." in page
    package = ModuleType("pystoi")
    vars(package).update(stoi=lambda *arguments, **options: 0.6)
    monkeypatch.setitem(sys.modules, "pystoi", package)
    result = run(world, tmp_path / "b")
    assert result.tokenizers[0].stoi == pytest.approx(0.6)
    assert set(result.missing) == {"pesq"}
    assert "pystoi" in result.packages
    vars(package).update(stoi=lambda *arguments, **options: float("nan"))
    assert run(world, tmp_path / "c").missing["stoi"] == "no clip holds enough speech"


def test_the_command(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    from tokkit.cli.main import app

    command = ["eval", str(world[1]), str(world[0] / "sounds"), "--out", str(tmp_path / "o"), "--limit", "3", "--json"]
    result = CliRunner().invoke(app, [*command, "--books", "2"])
    assert result.exit_code == 0, result.output
    (scores,) = json.loads(result.stdout)["tokenizers"]
    assert (scores["codebooks"], scores["clips"]) == (2, 3)
    refused = CliRunner().invoke(app, [*command, "--resolution", "64"])
    assert refused.exit_code == 2


def test_the_command_measures_stoi_with_the_package(world: tuple[Path, Path, Path], tmp_path: Path, shared_data: Path) -> None:
    """Of real speech, by the package of ``tokkit[speech]`` as it is installed: what it says of the same sounds itself."""
    from tokkit.cli.main import app

    package = pytest.importorskip("pystoi")
    folder = tmp_path / "speech"
    folder.mkdir()
    for path in sorted((shared_data / "audio" / "ljspeech").glob("*.wav"))[:2]:
        (folder / path.name).write_bytes(path.read_bytes())
    ran = CliRunner().invoke(app, ["eval", str(world[1]), str(folder), "--out", str(tmp_path / "o"), "--json", "--quiet"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    tokenizer, expected = load_audio_tokenizer(world[1]), []
    for path in sorted(folder.iterdir()):
        wave = load_audio(path.read_bytes(), tokenizer.sample_rate, tokenizer.channels)
        back = tokenizer.decode(tokenizer.encode([wave])[0])
        expected.append(package.stoi(wave.mean(axis=0), back.mean(axis=0), tokenizer.sample_rate))
    (scores,) = told["tokenizers"]
    assert scores["stoi"] == pytest.approx(np.mean(expected), abs=1e-9)
    assert "stoi" not in told["missing"]
    assert told["packages"]["pystoi"] == version("pystoi")
    assert "STOI" in (tmp_path / "o" / "eval.html").read_text()
