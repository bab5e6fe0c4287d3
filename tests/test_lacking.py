"""What a run leaves out for want of a tokenizer is told at its end, with the flag that would help; it is no failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from feature_models import save
from shard_corpus import write_corpus, write_tokenizers
from sound_corpus import BAD, CLIPS, write_sounds

from tokkit.cli.main import app
from tokkit.pipelines.lacking import lacking


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Corpora of one kind each, and tokenizers."""
    folder = tmp_path_factory.mktemp("lacking")
    corpus = write_corpus(folder / "corpus").folder
    text, image = write_tokenizers(folder / "tokenizers")
    write_sounds(folder / "sounds")
    save("clip", folder / "clip")
    return {"sounds": folder / "sounds", "pairs": corpus / "pairs", "text": text, "image": image, "encoder": folder / "clip"}


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        app([str(a) for a in arguments])
    out, err = capfd.readouterr()
    return int(caught.value.code or 0), " ".join(out.split()), err


def as_json(capfd: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What the command gives to a program."""
    code, output, errors = run(capfd, *arguments, "--json", "--quiet")
    assert code == 0, errors
    found = json.loads(output)
    assert isinstance(found, dict)
    return found


def summary_of(out: Path) -> list[str]:
    found = json.loads((out / "run" / "summary.json").read_text())["warnings"]
    assert isinstance(found, list)
    return found


def test_sounds_without_an_audio_tokenizer(capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["shard", made["sounds"], "--out", out, "--text-tokenizer", made["text"], "--workers", 0]
    code, output, _ = run(capfd, *arguments)
    assert code == 0  # everything has its outcome
    told = (
        f"{CLIPS} sounds left out, and {CLIPS} documents with them: this run has no audio tokenizer; to have them, name one "
        f"with --audio-tokenizer and another --out"
    )
    assert f"warning: {told}" in output
    assert "warning: no document was committed: see above" in output
    assert summary_of(out) == [told, "no document was committed: see above"]
    code, output, _ = run(capfd, *arguments)  # it is finished, and says so again
    assert code == 0
    assert f"warning: {told}" in output
    assert as_json(capfd, *arguments)["warnings"] == [told, "no document was committed: see above"]


def test_pictures_without_an_image_tokenizer_beside_what_is_committed(
    capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text('{"text": "a page of text"}\n')
    out = tmp_path / "out"
    inputs = [made["pairs"], tmp_path / "in"]
    code, output, _ = run(capfd, "shard", *inputs, "--out", out, "--text-tokenizer", made["text"], "--workers", 0)
    assert code == 0
    (warning,) = summary_of(out)
    assert "--image-tokenizer" in warning
    assert f"warning: {warning}" in output
    assert "no document was committed" not in output


def test_an_encoder_of_the_other_modality(capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--out", out, "--text-tokenizer", made["text"], "--encoder", made["encoder"], "--workers", 0]
    code, output, errors = run(capfd, "features", made["sounds"], *options)
    assert code == 0, errors
    warning, nothing = summary_of(out)
    assert warning.startswith(f"{CLIPS} sounds left out, and {CLIPS} documents with them: this run's encoder takes pictures")
    assert "--encoder" in warning
    assert f"warning: {warning}" in output
    assert nothing in output
    assert as_json(capfd, "features", made["sounds"], *options)["warnings"] == [warning, nothing]


def test_a_run_that_lacks_nothing_warns_of_nothing(
    capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = ["--text-tokenizer", made["text"], "--image-tokenizer", made["image"], "--workers", 0]
    code, output, _ = run(capfd, "shard", made["pairs"], "--out", out, *options)
    assert code == 0
    assert summary_of(out) == []
    assert "warning" not in output
    assert as_json(capfd, "shard", made["pairs"], "--out", out, *options)["warnings"] == []


def test_finish_tells_it_too(capfd: pytest.CaptureFixture[str], made: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--text-tokenizer", made["text"], "--workers", 0, "--shard-index", 0, "--shard-count", 1]
    code, _, errors = run(capfd, "shard", made["sounds"], "--out", out, *options)
    assert code == 0, errors
    code, output, errors = run(capfd, "finish", out)
    assert code == 0, errors
    assert "--audio-tokenizer" in output
    warning, _ = as_json(capfd, "finish", out)["warnings"]
    assert f"warning: {warning}" in output


def test_words() -> None:
    assert lacking({"item/rejected/audio-truncated": len(BAD)}, {"committed": 1}) == []
    assert lacking({}, {}) == []
    (one,) = lacking({"item/filtered/no-audio-tokenizer": 1, "document/filtered/no-audio-tokenizer": 1}, {"committed": 2})
    assert one.startswith("1 sound left out, and 1 document with it")
    assert lacking({"document/rejected/no-text": 2}, {"rejected": 2}) == ["no document was committed: see the reasons"]
