"""`tokkit encode` and `tokkit decode` on sounds: the tokenizer's own codes and waveforms, and an account of every file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from audio_models import imported, small_24k, small_48k
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import DataError, UsageError
from tokkit.media.audio import load_audio
from tokkit.pipelines.codec import DecodeConfig, EncodeConfig
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.sound_codec import _encoded, decode_sounds, encode_sounds
from tokkit.tokenizers.audio import load_audio_tokenizer, save_audio_tokenizer

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

SILENT = SilentProgress()


@pytest.fixture(scope="module", params=["24k", "48k"])
def codec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codec")
    model = small_24k() if request.param == "24k" else small_48k()
    save_audio_tokenizer(imported(model, folder), folder / "tokenizer")
    return folder / "tokenizer"


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Sounds of several rates and containers, two of one name but for the suffix, a broken one, a text, one below."""
    folder = tmp_path / "sounds"
    (folder / "below").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, rate, channels, seconds in (
        ("a.wav", 16000, 1, 0.4),
        ("a.flac", 24000, 2, 0.3),
        ("B.WAV", 44100, 1, 2.4),
        ("below/c.ogg", 48000, 2, 1.1),
    ):
        noise = 0.2 * rng.standard_normal((int(rate * seconds), channels))
        soundfile.write(folder / name, noise, rate, format=name.rpartition(".")[2].upper())
    (folder / "broken.wav").write_bytes((folder / "a.wav").read_bytes()[:3000])
    (folder / "notes.txt").write_text("no sound")
    return folder


def test_a_folder_there_and_back(codec: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "codes.npz"
    result = encode_sounds(EncodeConfig(tokenizer=codec, input=sounds, out=out), SILENT)
    assert (result.sounds, result.ignored) == (4, ["notes.txt"])
    assert [(unused.file, unused.reason) for unused in result.rejects] == [("broken.wav", "audio-truncated")]
    tokenizer = load_audio_tokenizer(codec)
    described = json.loads((tmp_path / "codes.npz.json").read_text())
    assert (described["fingerprint"], described["sample_rate"]) == (tokenizer.fingerprint, tokenizer.sample_rate)
    assert {"soundfile", "soxr"} <= set(described["packages"])
    decoded = decode_sounds(DecodeConfig(tokenizer=codec, codes=out, out=tmp_path / "back"), SILENT)
    assert decoded.files == {
        "B.WAV": "B.wav",
        "a.flac": "a.flac.wav",
        "a.wav": "a.wav.wav",
        "below/c.ogg": "below/c.wav",
    }
    with np.load(out) as codes:
        assert sorted(codes) == sorted(described["clips"]) == sorted(decoded.files)
        for name, file in decoded.files.items():
            wave = load_audio((sounds / name).read_bytes(), tokenizer.sample_rate, tokenizer.channels)
            (expected,) = tokenizer.encode([wave])
            assert np.array_equal(codes[name], expected.codes)
            assert described["clips"][name]["samples"] == wave.shape[1]
            written, rate = soundfile.read(tmp_path / "back" / file, dtype="float32", always_2d=True)
            assert rate == tokenizer.sample_rate
            wanted = tokenizer.decode(expected).clip(-1, 1)
            assert written.T.shape == wanted.shape
            assert np.abs(written.T - wanted).max() < 1e-4


def test_the_same_sounds_give_the_same_bytes(codec: Path, sounds: Path, tmp_path: Path) -> None:
    for run in ("one", "two"):
        encode_sounds(EncodeConfig(tokenizer=codec, input=sounds, out=tmp_path / f"{run}.npz"), SILENT)
        decode_sounds(DecodeConfig(tokenizer=codec, codes=tmp_path / f"{run}.npz", out=tmp_path / run), SILENT)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()
    for path in (tmp_path / "one").rglob("*.wav"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_files_that_share_a_batch_have_their_outcomes(codec: Path, sounds: Path) -> None:
    """As on a GPU: one bad file among several is recorded, the others are encoded."""
    from tokkit.pipelines.sound_codec import EncodeSoundsResult

    tokenizer = load_audio_tokenizer(codec)
    result = EncodeSoundsResult("", "")
    names = ["a.flac", "absent.wav", "broken.wav", "below/c.ogg", "\udcff.wav"]
    found = dict(_encoded(tokenizer, sounds, names, result))
    assert sorted(found) == ["a.flac", "below/c.ogg"]
    assert [(u.file, u.reason) for u in result.rejects] == [
        ("absent.wav", "unreadable"),
        ("broken.wav", "audio-truncated"),
        ("\udcff.wav", "file-name"),
    ]
    for name, code in found.items():
        wave = load_audio((sounds / name).read_bytes(), tokenizer.sample_rate, tokenizer.channels)
        assert code.codes.shape == tokenizer.encode([wave])[0].codes.shape


def test_one_sound_as_npy(codec: Path, sounds: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.npy"
    encode_sounds(EncodeConfig(tokenizer=codec, input=sounds / "a.wav", out=out), SILENT)
    assert np.load(out).shape[0] == 6
    decoded = decode_sounds(DecodeConfig(tokenizer=codec, codes=out, out=tmp_path / "back"), SILENT)
    assert decoded.files == {"a.wav": "a.wav"}


def test_what_cannot_be_meant(codec: Path, sounds: Path, tmp_path: Path) -> None:
    def encode(path: Path, out: str) -> None:
        encode_sounds(EncodeConfig(tokenizer=codec, input=path, out=tmp_path / out), SILENT)

    for path, out, problem in (
        (sounds / "absent", "x.npz", "no such file"),
        (sounds, "x.npy", "name a .npz"),
        (sounds, "x.bin", "name a .npz"),
        (codec, "x.npz", "no sounds in it"),
    ):
        with pytest.raises(UsageError, match=problem):
            encode(path, out)
    with pytest.raises(DataError, match=r"broken.wav: audio-truncated"):
        encode(sounds / "broken.wav", "x.npz")
    assert list(tmp_path.glob("x.*")) == []


def test_codes_that_are_not_this_tokenizers(codec: Path, sounds: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "codes.npz", tmp_path / "back"
    encode_sounds(EncodeConfig(tokenizer=codec, input=sounds, out=out), SILENT)
    sidecar = tmp_path / "codes.npz.json"
    good = sidecar.read_text()

    def refused(kind: type[Exception], problem: str) -> None:
        with pytest.raises(kind, match=problem):
            decode_sounds(DecodeConfig(tokenizer=codec, codes=out, out=back), SILENT)
        sidecar.write_text(good)

    described = json.loads(good)
    sidecar.write_text(json.dumps(described | {"fingerprint": "0" * 64}))
    refused(DataError, "another tokenizer")
    clips = described["clips"]
    sidecar.write_text(json.dumps(described | {"clips": clips | {"a.wav": clips["a.wav"] | {"samples": 99999}}}))
    refused(DataError, "a.wav: 99999 samples are")
    sidecar.write_text(json.dumps(described | {"clips": {"a.wav": clips["a.wav"]}}))
    refused(DataError, "not the codes")
    sidecar.write_text(json.dumps(described | {"clips": 3}))
    refused(DataError, "damaged")
    sidecar.unlink()
    refused(UsageError, "lengths of the sounds")
    with np.load(out) as codes:
        changed = {name: codes[name] for name in codes}
    changed["a.wav"] = changed["a.wav"] + 64
    np.savez(out, **changed)
    refused(DataError, "outside of 0 to 63")
    out.write_bytes(out.read_bytes()[:200])
    refused(DataError, "damaged")


def test_the_commands(codec: Path, sounds: Path, tmp_path: Path) -> None:
    out, back = tmp_path / "codes.npz", tmp_path / "back"
    done = CliRunner().invoke(app, ["encode", str(codec), str(sounds), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "codes of 4 sounds, 1 not encoded, 1 other files" in " ".join(done.stdout.split())
    done = CliRunner().invoke(app, ["decode", str(codec), str(out), "--out", str(back), "--json"])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["files"]) == 4
