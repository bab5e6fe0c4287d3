"""`tokkit demo`: every step is done, sound among them, and what it leaves can be looked at and listened to."""

from __future__ import annotations

import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from tokkit.cli.main import app
from tokkit.pipelines import demo
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.sample_corpus import SampleCorpus, write_sample_corpus

TRAIN_SECONDS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SampleCorpus:
    return write_sample_corpus(tmp_path_factory.mktemp("demo") / "corpus")


@pytest.fixture
def drawn(corpus: SampleCorpus, monkeypatch: pytest.MonkeyPatch) -> SampleCorpus:
    """The corpus that the demo draws, drawn once for all tests."""

    def copy(directory: Path, progress: Progress) -> SampleCorpus:
        shutil.copytree(corpus.directory, directory)
        return corpus

    monkeypatch.setattr(demo, "write_sample_corpus", copy)
    return corpus


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as caught:
        app([str(a) for a in arguments])
    out, err = capfd.readouterr()
    return int(caught.value.code or 0), out, err


@pytest.mark.slow
def test_the_whole_way_with_sound(capfd: pytest.CaptureFixture[str], drawn: SampleCorpus, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    code, output, errors = run(capfd, "demo", "--out", out, "--train-seconds", TRAIN_SECONDS, "--workers", 1)
    assert code == 0, errors
    for step in range(1, 6):
        assert f"{step}/5 " in errors
    manifest = json.loads((out / "shards" / "manifest.json").read_text())
    parts = drawn.parts
    assert {s["name"]: sum(s["documents"].values()) for s in manifest["sources"]} == {n: p.documents for n, p in parts.items()}
    for source in manifest["sources"]:
        assert source["reasons"] == parts[source["name"]].failures, source["name"]
    committed = {modality: counts["committed"] for modality, counts in manifest["items"].items()}
    assert committed["audio"] == parts["audio"].documents - 3
    assert all(manifest["splits"]["train"]["tokens_by_kind"][kind] > 1000 for kind in ("text", "image", "audio"))
    # what a person sees
    flat = " ".join(output.split())
    assert "Tokenizers trained on steps seconds codes in use held out" in flat
    assert "4 x 128" in flat
    assert "audio items" in flat
    assert "audio-truncated" in flat
    assert f"{committed['audio']} sounds" in flat
    assert "warning" not in flat
    # what a person hears
    for name in ("look/audio/audio-0.wav", "codec/samples/1-original.wav", "codec/samples/1-reconstruction.wav"):
        with wave.open(str(out / name)) as file:
            assert file.getframerate() == 16000
            assert np.frombuffer(file.readframes(1 << 20), "<i2").any(), name
    assert (out / "look" / "image" / "image-1.png").exists()  # a document of several pictures
    assert "audio-0.wav" in (out / "look" / "audio" / "document.md").read_text()
    assert (out / "shards" / "report.html").read_text().count("<audio ") >= 1
    # again in the same place, and not where something else lies
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    code, _, errors = run(capfd, "demo", "--out", tmp_path / "other")
    assert code == 2
    assert "no demo wrote it" in errors


@pytest.mark.slow
def test_without_a_package_for_sound_the_rest_is_done_and_it_is_said(
    capfd: pytest.CaptureFixture[str], drawn: SampleCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokkit.tokenizers.audio.encodec_package as package
    from tokkit.errors import UsageError

    def missing() -> object:
        raise UsageError("EnCodec models need the encodec package: pip install --no-deps encodec einops")

    monkeypatch.setattr(package, "import_encodec", missing)
    code, output, errors = run(capfd, "demo", "--out", tmp_path / "demo", "--train-seconds", 2, "--workers", 1)
    assert code == 0, errors
    assert "and none for sound: EnCodec models need" in errors
    flat = " ".join(output.split())
    assert "warning: the demo went without sound: EnCodec models need the encodec package" in flat
    assert "no-audio-tokenizer" in flat
    assert not (tmp_path / "demo" / "codec").exists()
