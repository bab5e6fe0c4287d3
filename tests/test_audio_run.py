"""`tokkit shard` on sounds: each once, the same bytes whatever happens, and what comes back is what went in."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import wave
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
import soundfile
from shard_corpus import snapshot
from sound_corpus import BAD, CLIPS, clip, write_audio_tokenizers, write_sounds
from typer.testing import CliRunner

from tokkit.audio_layouts import tokens_of
from tokkit.documents import Audio
from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.failpoints import VARIABLE
from tokkit.interleave import AudioCodes, AudioPiece, Layout, TextCodes, decode
from tokkit.media.audio import AudioLimits, load_audio
from tokkit.media.waveforms import AudioPreprocessing
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.store import load_plan, pack_folder
from tokkit.pipelines.decoding import DecodedAudio, DocumentDecoder
from tokkit.pipelines.inspect import InspectConfig, inspect_document
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.sounds import SoundEncoder
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.native import open_shards
from tokkit.tokenizers.audio import load_audio_tokenizer
from tokkit.vocabulary import UnifiedVocabulary

SILENT = SilentProgress()


class World:
    """The corpus, the tokenizers, and the options that runs share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = write_sounds(folder / "sounds")
        self.mono, self.stereo = write_audio_tokenizers(folder / "tokenizers")
        (folder / "train").mkdir()
        (folder / "train" / "a.txt").write_text("\n".join(f"Clip number {i} says nothing else" for i in range(300)))
        self.text = folder / "text.model"
        train_text(TrainTextConfig(inputs=(str(folder / "train"),), out=self.text, vocab_size=300), SILENT)

    def config(self, out: Path, **options: object) -> ShardConfig:
        settings: dict[str, object] = {
            "inputs": [str(self.folder / "sounds")],
            "out": out,
            "text_tokenizer": self.text,
            "audio_tokenizer": self.mono,
            "workers": 0,
            "unit_bytes": 40_000,
            "val_fraction": 0.2,
            "report_documents": 2,
        }
        return ShardConfig.model_validate(settings | options)

    def run(self, out: Path, **options: object) -> ShardResult:
        return shard(self.config(out, **options), SILENT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("sounds"))


@pytest.fixture(scope="module")
def clean(world: World) -> ShardResult:
    """A run that nothing disturbed."""
    return world.run(world.folder / "clean")


def rows_of(out: Path, result: ShardResult) -> list[tuple[dict, np.ndarray]]:
    """Row and ids of every document."""
    found = []
    for split in result.manifest.splits:
        shards = open_shards(out, split)
        found += [(shards.row(n), shards.tokens(n)) for n in range(shards.num_documents)]
    return found


def test_every_sound_has_one_outcome_and_a_bad_one_its_reason(clean: ShardResult) -> None:
    (source,) = clean.manifest.sources
    assert source.documents == {"committed": CLIPS - len(BAD), "rejected": len(BAD)}
    assert source.items == {"audio": source.documents}
    assert source.counted_documents == CLIPS
    lines = [json.loads(line) for path in (clean.out / "rejects").iterdir() for line in path.read_text().splitlines()]
    reasons = {entry["locator"].partition("#")[2]: entry["reason"] for entry in lines if entry["level"] == "item"}
    assert reasons == BAD
    assert clean.summary["sounds"] == CLIPS - len(BAD)


def test_what_is_written_is_what_the_tokenizer_gives_for_each_clip(world: World, clean: ShardResult) -> None:
    tokenizer, vocabulary = load_audio_tokenizer(world.mono), UnifiedVocabulary.load(clean.out / "vocabulary.json")
    rows = rows_of(clean.out, clean)
    assert {row["locator"].partition("#")[2] for row, _ in rows} == set(world.good)
    for row, ids in rows:
        data = clip(int(row["locator"].partition("#")[2]))[1]
        samples = load_audio(data, 24000, 1)
        expected = tokenizer.encode_stream(iter([samples]))
        found, text = decode(ids, vocabulary, Layout())
        assert isinstance(found, AudioCodes)
        assert isinstance(text, TextCodes)
        assert np.array_equal(found.codes, expected.codes)
        span = row["spans"][0]
        assert (span["modality"], span["codebooks"], span["sample_rate"]) == ("audio", 4, 24000)
        assert span["samples"] == samples.shape[1]
        assert span["length"] == expected.codes.size + 2
        assert span["item_hash"] == Audio(data, "").hash
        assert (span["loss"], span["scales"]) == (True, [])


def test_the_manifest_says_what_made_the_codes(world: World, clean: ShardResult) -> None:
    import soundfile
    import soxr

    entry = clean.manifest.tokenizers["audio"]
    assert entry.fingerprint == load_audio_tokenizer(world.mono).fingerprint
    assert entry.detail["codebooks"] == entry.detail["codebooks_kept"] == 4
    assert (entry.detail["sample_rate"], entry.detail["frame_rate"]) == (24000, 75.0)
    sounds = clean.manifest.numeric["sounds"]
    assert isinstance(sounds, dict)
    assert (sounds["soundfile"], sounds["soxr"]) == (soundfile.__version__, soxr.__version__)
    assert clean.manifest.semantic["audio_preprocessing"] == {"mix": "mean", "quality": "HQ", "loudness": None}
    assert (clean.manifest.layout.audio, clean.manifest.layout.audio_delays) == ("flat", ())


@pytest.mark.parametrize(
    ("options", "books"),
    [
        pytest.param({}, 4, marks=pytest.mark.slow),
        pytest.param({"audio_layout": "book_major", "audio_books": 2}, 2, marks=pytest.mark.slow),
        pytest.param({"audio_layout": "delay", "pair_order": "text-first"}, 4, marks=pytest.mark.slow),
        ({"audio_layout": "delay", "audio_books": 3, "audio_delays": [0, 1, 1], "pair_order": "random"}, 3),
    ],
)
def test_each_layout_is_verified_encoded_again_and_brought_back(
    world: World, tmp_path: Path, options: dict[str, object], books: int
) -> None:
    out = tmp_path / "out"
    result = world.run(out, **options)
    assert verify(VerifyConfig(directory=out, reencode=6), SILENT).problems == []
    decoder = DocumentDecoder(out)
    whole = load_audio_tokenizer(world.mono)
    for split in result.manifest.splits:
        for number in range(decoder.shards[split].num_documents):
            document = decoder.decode(split, number)
            (sound,) = [part for part in document.parts if isinstance(part, DecodedAudio)]
            data = clip(int(str(document.row["locator"]).partition("#")[2]))[1]
            code = whole.encode_stream(iter([load_audio(data, 24000, 1)]))
            assert np.array_equal(sound.codes, code.codes[:books])
            assert sound.samples is not None
            assert np.array_equal(sound.samples, whole.decode(code.first_books(books)))
            (span,) = [s for s in document.row["spans"] if s["modality"] == "audio"]  # type: ignore[attr-defined]
            layout = result.manifest.layout.layout
            assert span["length"] == 2 + tokens_of(layout.audio, layout.audio_delays, books, code.codes.shape[1])


def test_a_wrong_id_in_a_sound_is_found(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = world.run(out, audio_layout="delay", val_fraction=0.0)
    shard_file = out / "tokens" / "train" / result.manifest.splits["train"].shards[0].files["bin"].name
    ids = np.fromfile(shard_file, dtype=result.manifest.dtype)
    vocabulary = UnifiedVocabulary.load(out / "vocabulary.json")
    begin = int(np.flatnonzero(ids == vocabulary.marker("begin_audio"))[0])
    ids[begin + 2] = ids[begin + 1]  # a code of the first codebook where the second's pad stands
    ids.tofile(shard_file)
    problems = verify(VerifyConfig(directory=out, checksums=False), SILENT).problems
    assert any("is audio code" in problem.message for problem in problems)


@pytest.mark.parametrize("policy", ["overlong", "fill"])
def test_sounds_longer_than_a_sequence_are_packed_in_parts(clean: ShardResult, tmp_path: Path, policy: str) -> None:
    """From the parts in the plan's order come the codes; `tokkit verify` finds nothing wrong with the plan."""
    out = tmp_path / "out"
    shutil.copytree(clean.out, out)
    shards, vocabulary = open_shards(out, "train"), UnifiedVocabulary.load(out / "vocabulary.json")
    seq_len = int(shards.spans.length.max()) // 3
    pack(PackConfig(directory=out, seq_len=seq_len, split_policy=SplitPolicy(policy)), SILENT)
    plan = load_plan(pack_folder(out, f"seq{seq_len}-{policy}", "train"))
    assert (plan.record.algorithm_version, plan.record.left_out) == (2, {})
    assert plan.record.by_modality["audio"].frame_cuts > 1
    found: dict[int, list[np.ndarray]] = {}
    order = np.lexsort((plan.pieces.start, plan.pieces.document))
    for d, start, length in zip(*(a[order].tolist() for a in astuple(plan.pieces)), strict=True):
        parts = decode(shards.tokens(d, start, start + length), vocabulary, Layout(), whole=False)
        found.setdefault(d, []).extend(part.codes for part in parts if isinstance(part, AudioCodes | AudioPiece))
    for d in range(shards.num_documents):
        (whole,) = [part for part in decode(shards.tokens(d), vocabulary, Layout()) if isinstance(part, AudioCodes)]
        assert np.array_equal(np.concatenate(found[d], axis=1), whole.codes)
    assert verify(VerifyConfig(directory=out), SILENT).problems == []


def test_scales_are_kept_and_used(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = world.run(out, audio_tokenizer=world.stereo)
    assert verify(VerifyConfig(directory=out, reencode=4), SILENT).problems == []
    tokenizer, decoder = load_audio_tokenizer(world.stereo), DocumentDecoder(out)
    for row, _ in rows_of(out, result):
        code = tokenizer.encode_stream(iter([load_audio(clip(int(row["locator"].partition("#")[2]))[1], 48000, 2)]))
        span = row["spans"][0]
        assert code.scales is not None
        assert span["scales"] == code.scales.tolist()
        (sound,) = [p for p in decoder.decode(row["split"], _number(decoder, row)).parts if isinstance(p, DecodedAudio)]
        assert sound.samples is not None
        assert np.array_equal(sound.samples, tokenizer.decode(code))


def _number(decoder: DocumentDecoder, row: dict) -> int:
    return decoder.find(row["locator"])[1]


def test_inspect_writes_wavs(world: World, clean: ShardResult, tmp_path: Path) -> None:
    config = InspectConfig(directory=clean.out, document="00000.tar#001", out=tmp_path / "look")
    found = inspect_document(config, SILENT)
    assert [part.file for part in found.parts] == ["audio-0.wav", None]
    assert "audio-0.wav" in (tmp_path / "look" / "document.md").read_text()
    with wave.open(str(tmp_path / "look" / "audio-0.wav")) as file:
        spans = found.row["spans"]
        assert (file.getframerate(), file.getnchannels(), file.getnframes()) == (24000, 1, spans[0]["samples"])  # type: ignore[index]
        assert np.frombuffer(file.readframes(1 << 20), dtype="<i2").any()


# ---- whatever happens


def test_the_same_again_gives_the_same_bytes(world: World, clean: ShardResult, tmp_path: Path) -> None:
    assert clean.manifest.units > 2
    world.run(tmp_path / "again")
    assert snapshot(tmp_path / "again") == snapshot(clean.out)


@pytest.mark.slow
def test_neither_do_processes_nor_kills(world: World, clean: ShardResult, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--text-tokenizer", world.text, "--audio-tokenizer", world.mono, "--unit-size", 40_000]
    options += ["--val-fraction", 0.2, "--report-documents", 2, "--workers", 2, "--quiet"]
    command = [sys.executable, "-m", "tokkit.cli.main", "shard", world.folder / "sounds", "--out", out, *options]
    for point in ("before-commit=2:kill", "take=5:kill", "after-commit=1:kill", ""):
        done = subprocess.run([str(c) for c in command], env={**os.environ, VARIABLE: point}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert snapshot(out) == snapshot(clean.out)


def test_an_output_belongs_to_its_layout_and_its_bounds(world: World, clean: ShardResult) -> None:
    for options in (
        {"audio_layout": "book_major"},
        {"audio_books": 2},
        {"audio_limits": {"max_seconds": 1.0}},
        {"audio_preprocessing": {"mix": "first"}},
        {"audio_tokenizer": world.stereo},
    ):
        with pytest.raises(FingerprintMismatch, match=next(iter(options)).removesuffix("_tokenizer")):
            world.run(clean.out, **options)


def test_bounds_and_preprocessing_are_honoured(world: World, tmp_path: Path) -> None:
    result = world.run(
        tmp_path / "out",
        audio_limits={"max_seconds": 0.3, "min_peak": 0.01},
        audio_preprocessing={"mix": "refuse", "loudness": {"measure": "peak", "decibels": -3}},
    )
    (source,) = result.manifest.sources
    reasons = {k.rpartition("/")[2]: n for k, n in source.reasons.items() if k.startswith("item/filtered")}
    assert reasons.keys() == {"audio-too-long", "audio-channels", "audio-silent"}
    assert source.documents["committed"] + sum(reasons.values()) == CLIPS - len(BAD)


def test_without_an_audio_tokenizer_sounds_are_filtered(world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path / "out", audio_tokenizer=None)
    assert result.manifest.sources[0].documents == {"filtered": CLIPS}
    assert "sounds" not in result.manifest.numeric


@pytest.mark.slow
def test_copies_of_a_document_are_left_out_and_a_bad_sound_is_no_original(world: World, tmp_path: Path) -> None:
    (tmp_path / "twice").mkdir()
    for name in ("a", "b"):
        (tmp_path / "twice" / f"{name}.tar").write_bytes((world.folder / "sounds" / "00000.tar").read_bytes())
    out = tmp_path / "out"
    result = world.run(out, inputs=[str(tmp_path / "twice")], dedup=["documents"], max_reject_ratio=1.0)
    (source,) = result.manifest.sources
    good = CLIPS - len(BAD)
    assert source.documents == {"committed": good, "duplicate": good, "rejected": 2 * len(BAD)}
    assert verify(VerifyConfig(directory=out), SILENT).problems == []


# ---- wrong options


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"audio_books": 5}, "--audio-books 5: .* has 4 codebooks"),
        ({"audio_layout": "delay", "audio_delays": [0, 1]}, "names 2 codebooks, and 4 are kept"),
    ],
)
def test_options_that_do_not_fit_the_tokenizer_are_told(
    world: World, tmp_path: Path, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(UsageError, match=problem):
        world.run(tmp_path / "out", **options)


def test_options_that_cannot_be_are_told(world: World, tmp_path: Path) -> None:
    for options, problem in (
        ({"audio_delays": [0, 1]}, "only with --audio-layout delay"),
        ({"audio_layout": "delay", "audio_delays": [1, 2]}, "at least one codebook is not late"),
        ({"audio_tokenizer": tmp_path / "none"}, "no such file or folder"),
    ):
        with pytest.raises(ValueError, match=problem):
            world.config(tmp_path / "out", **options)


def test_a_missing_package_stops_the_run_before_it_begins(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(UsageError, match=r"tokkit\[audio\]"):
        world.run(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_options_reach_the_job(world: World, tmp_path: Path) -> None:
    from tokkit.cli.main import app

    flags = "--audio-layout delay --audio-delays 0,1,1 --audio-books 3 --min-seconds 0.1 --max-seconds 2 --print-config --json"
    arguments = [str(world.folder / "sounds"), "--out", str(tmp_path / "o"), "--text-tokenizer", str(world.text)]
    result = CliRunner().invoke(app, ["shard", *arguments, "--audio-tokenizer", str(world.mono), *flags.split()])
    assert result.exit_code == 0, result.output
    options = json.loads(result.stdout)["options"]
    assert (options["audio_layout"], options["audio_delays"], options["audio_books"]) == ("delay", [0, 1, 1], 3)
    assert (options["audio_limits"]["min_seconds"], options["audio_limits"]["max_seconds"]) == (0.1, 2.0)
    assert options["audio_tokenizer"] == str(world.mono)


def test_a_long_sound_gives_signs_of_life(world: World) -> None:
    """A worker that is silent for long is taken for dead, however long its sound is."""
    tokenizer = load_audio_tokenizer(world.mono)
    encoder = SoundEncoder.of(tokenizer, AudioPreprocessing(), AudioLimits(), tokenizer.codebooks)
    calls = {}
    for seconds in (30, 120):
        file = io.BytesIO()
        soundfile.write(file, np.zeros(seconds * 8000, np.float32), 8000, format="wav")
        media = Audio(file.getvalue(), "long")
        signs: list[None] = []
        encoder.reader.check(media, lambda signs=signs: signs.append(None))
        checked = len(signs)
        encoder.encode(media, lambda stage, spent: None, lambda signs=signs: signs.append(None))
        calls[seconds] = (checked, len(signs) - checked)
    assert min(calls[120]) >= 3 * min(calls[30]) > 0
