"""`tokkit verify --reencode`: sampled documents encoded again from their input and compared with the shards."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_corpus import write_corpus, write_tokenizers

from tokkit.cli.main import app
from tokkit.errors import DataError, UsageError
from tokkit.pipelines import reencode_tokens as job
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.reencode import draw
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import Code, VerifyConfig, VerifyResult, verify
from tokkit.pipelines.verify_outcomes import Records, UnitRecord
from tokkit.pipelines.verify_tokens import UnitPlace
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import open_shards
from tokkit.sources.base import Unit, UnitReader
from tokkit.sources.jsonl import JsonlSource
from tokkit.sources.webdataset import WebDatasetSource
from tokkit.storage import record_json, sha256_file
from tokkit.vocabulary import UnifiedVocabulary

SILENT = SilentProgress()
SOURCES = ("pairs", "documents", "texts", "audio")


class World:
    """A corpus, its tokenizers and an output, in places of their own."""

    def __init__(self, folder: Path) -> None:
        self.corpus = write_corpus(folder / "corpus").folder
        self.text, self.image = write_tokenizers(folder / "tokenizers")
        self.out = folder / "out"
        options = {
            "inputs": [str(self.corpus / name) for name in SOURCES],
            "out": self.out,
            "text_tokenizer": self.text,
            "image_tokenizer": self.image,
            "workers": 1,
            "unit_bytes": 6000,
            "shard_tokens": 1500,
            "batch_size": 4,
            "val_fraction": 0.2,
            "pair_order": "random",
            "metadata": ["license", "meta"],
            "report_documents": 0,
        }
        shard(ShardConfig.model_validate(options), SILENT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("reencode"))


@pytest.fixture
def out(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.out, tmp_path / "out"))


def look(out: Path, count: int = 1000, **options: object) -> VerifyResult:
    return verify(VerifyConfig.model_validate({"directory": out, "reencode": count, **options}), SILENT)


def change_tokens(out: Path, document: int, place: int, token: int) -> None:
    """Put a token into a train document of the first shard, and make the checksums fit."""
    path = out / "tokens" / "train" / "00000.bin"
    ids = np.fromfile(path, dtype="<u2")
    ids[int(open_shards(out).lengths[:document].sum()) + place] = token
    ids.tofile(path)
    settle(out, "bin", path)


def settle(out: Path, suffix: str, path: Path) -> None:
    manifest = json.loads((out / "manifest.json").read_text())
    entry = manifest["splits"]["train"]["shards"][0]["files"][suffix]
    entry.update(bytes=path.stat().st_size, sha256=sha256_file(path))
    (out / "manifest.json").write_text(record_json(manifest))


def first_with(out: Path, modality: str) -> tuple[int, dict]:
    """A train document of the first shard with a span of this kind, and the span."""
    shards = open_shards(out)
    for number in range(shards.num_documents):
        for span in shards.row(number)["spans"]:  # type: ignore[attr-defined]
            if span["modality"] == modality:
                return number, span
    raise AssertionError


# ---- equal


def test_every_document_encodes_to_the_tokens_in_the_shards(world: World) -> None:
    result = look(world.out)
    assert result.ok, result.problems
    found = result.reencoded
    assert found is not None
    manifest = load_manifest(world.out)
    assert found.documents == found.exact == manifest.documents["committed"] == result.checked["documents encoded again"]
    assert found.tokens == sum(s.tokens for s in manifest.splits.values())
    assert found.codes == found.equal_codes == 16 * manifest.items["image"]["committed"]
    assert found.differences == []


def test_only_the_units_of_sampled_documents_are_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Unit] = []
    for kind in (JsonlSource, WebDatasetSource):

        def seen(self: object, unit: Unit, original=kind.read) -> UnitReader:  # type: ignore[no-untyped-def]
            read.append(unit)
            return original(self, unit)

        monkeypatch.setattr(kind, "read", seen)
    result = look(world.out, 6)
    assert result.ok
    assert result.reencoded is not None
    assert result.reencoded.documents == 6
    assert 0 < len(read) <= result.reencoded.units_read <= 6
    assert len({(u.source, u.file, u.start) for u in read}) == len(read)


def test_the_seed_chooses_and_repeats(world: World) -> None:
    def chosen(seed: int) -> object:
        found = look(world.out, 5, seed=seed).reencoded
        assert found is not None
        return found.documents, found.tokens, found.unit_bytes

    assert chosen(1) == chosen(1)
    assert len({chosen(seed) for seed in range(4)}) > 1


# ---- the draw


@st.composite
def records(draw_: st.DrawFn) -> Records:
    found = Records()
    for _ in range(draw_(st.integers(0, 12))):
        found.places.append(UnitPlace(draw_(st.sampled_from("abc")), "file"))
        counts = {s: draw_(st.integers(0, 30)) for s in ("train", "val")}
        found.units.append(UnitRecord({s: (n, 2 * n, {}) for s, n in counts.items()}, {}))
    return found


@given(records(), st.integers(0, 200), st.integers(0, 3))
def test_the_draw_is_of_committed_documents_without_repetition_and_spread(found: Records, count: int, seed: int) -> None:
    sampled = draw(found, count, seed)
    assert sampled == draw(found, count, seed)
    assert len(set(sampled)) == len(sampled)
    sizes = Counter[tuple[str, str]]()
    first = Counter[str]()
    places = set()
    for number, (place, unit) in enumerate(zip(found.places, found.units, strict=True)):
        for split, (documents, _, _) in unit.splits.items():
            sizes[place.source, split] += documents
            places |= {(split, first[split] + i, number) for i in range(documents)}
            first[split] += documents
    assert len(sampled) == min(count, sum(sizes.values()))
    assert {(s.split, s.number, s.unit) for s in sampled} <= places
    strata = {key for key, size in sizes.items() if size}
    seen = Counter((found.places[s.unit].source, s.split) for s in sampled)
    if count >= len(strata):
        assert set(seen) == strata


# ---- different


def test_a_changed_picture_code_is_told_with_its_place(out: Path) -> None:
    number, span = first_with(out, "image")
    vocabulary = UnifiedVocabulary.load(out / "vocabulary.json")
    place = span["start"] + 3
    now = int(open_shards(out).tokens(number)[place])
    code = int(vocabulary.codes(np.array([now]))[0])
    change_tokens(out, number, place, int(vocabulary.encode("image", (code + 1) % 100)))
    assert look(out, 0).ok  # nothing else can see it
    result = look(out)
    assert result.counts == {Code.REENCODE: 1}
    problem = str(result.problems[0])
    assert problem.startswith(f"train document {number} (")
    assert f"1 of {open_shards(out).lengths[number]} tokens differ, the first is token {place}" in problem
    assert f"image code {(code + 1) % 100} in the shards, image code {code} encoded again" in problem


def test_a_changed_text_is_told(out: Path) -> None:
    number, span = first_with(out, "text")
    now = int(open_shards(out).tokens(number)[span["start"]])
    change_tokens(out, number, span["start"], (now + 1) % 300)
    assert look(out, 0).ok
    result = look(out)
    assert result.counts == {Code.REENCODE: 1}
    assert f"text code {now} encoded again" in str(result.problems[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row.update(id="mine"), "its id is 'mine'"),
        (lambda row: row.update(metadata='{"a": 1}'), "its metadata is"),
        (lambda row: row["spans"][0].update(item_hash="0" * 32), "its span 0 is image 1 x 4 x 4 of 00000000"),
    ],
)
def test_a_changed_row_is_told(out: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = out / "tokens" / "train" / "00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(next(r for r in rows if r["spans"][0]["modality"] == "image"))
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    settle(out, "parquet", path)
    assert look(out, 0).ok
    result = look(out)
    assert result.counts == {Code.REENCODE: 1}
    assert message in str(result.problems[0])


def test_documents_of_another_length_are_told_by_their_first_difference(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.tokenizers.text.spm import SentencePieceTokenizer

    original = SentencePieceTokenizer.encode_joined
    monkeypatch.setattr(SentencePieceTokenizer, "encode_joined", lambda self, texts: original(self, [t + "!" for t in texts]))
    result = look(out, 3)
    assert set(result.counts) == {Code.REENCODE}
    assert any("encoded again" in p.message and "first difference is at token" in p.message for p in result.problems)


# ---- another numeric environment


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with another torch."""
    original = job.numeric_environment

    def other(*arguments: object) -> dict[str, object]:
        now = original(*arguments)  # type: ignore[arg-type]
        return now | {"packages": {**now["packages"], "torch": "9.9"}}  # type: ignore[dict-item]

    monkeypatch.setattr(job, "numeric_environment", other)


def test_in_another_environment_agreement_is_measured(out: Path, elsewhere: None) -> None:
    number, span = first_with(out, "image")
    vocabulary = UnifiedVocabulary.load(out / "vocabulary.json")
    now = int(open_shards(out).tokens(number)[span["start"] + 3])
    change_tokens(out, number, span["start"] + 3, now + 1 if now + 2 < vocabulary.size else now - 1)
    result = look(out)
    assert result.ok, result.problems
    found = result.reencoded
    assert found is not None
    assert (found.exact, found.codes - found.equal_codes) == (0, 1)
    assert 0.9 < found.share < 1
    assert found.lowest < found.share
    assert found.lowest_document.startswith(f"train document {number} (")
    assert [line.split(":")[0] for line in found.differences] == ["packages.torch"]


def test_in_another_environment_text_must_be_equal_still(out: Path, elsewhere: None) -> None:
    number, span = first_with(out, "text")
    change_tokens(out, number, span["start"], 17)
    assert look(out).counts == {Code.REENCODE: 1}


# ---- what is not where it was


def test_a_moved_input_is_found_where_it_is_now(world: World, out: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(world.corpus / "pairs", tmp_path / "elsewhere"))
    inputs = out / "run" / "inputs.jsonl"
    inputs.write_text(inputs.read_text().replace(str(world.corpus / "pairs"), str(tmp_path / "gone")))
    with pytest.raises(UsageError, match=f"(?s)pairs: {tmp_path}/gone is not there.*--input NAME=FOLDER"):
        look(out, 5)
    result = look(out, inputs=(f"pairs={moved}",))
    assert result.ok
    assert result.reencoded is not None
    assert result.reencoded.documents == load_manifest(out).documents["committed"]


def test_without_its_run_folder_everything_can_be_named(world: World, out: Path) -> None:
    shutil.rmtree(out / "run")
    with pytest.raises(UsageError, match="not recorded"):
        look(out, 5)
    inputs = tuple(f"{name}={world.corpus / name}" for name in SOURCES[:3])  # of the sounds nothing is committed
    with pytest.raises(UsageError, match="text tokenizer is not known"):
        look(out, 5, inputs=inputs)
    result = look(out, inputs=inputs, text_tokenizer=world.text, image_tokenizer=world.image)
    assert result.ok, result.problems


@pytest.mark.parametrize("text", ["nothing=here", "pairs=", "pairs"])
def test_an_input_of_no_source_is_wrong_usage(out: Path, text: str) -> None:
    with pytest.raises(UsageError, match="the sources are called pairs, documents, texts, audio"):
        look(out, 5, inputs=(text,))


def test_another_tokenizer_is_refused(world: World, out: Path, tmp_path: Path) -> None:
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import configure

    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(tmp_path / "vq")
    with pytest.raises(DataError, match="is not the image tokenizer that these shards were made with"):
        look(out, 5, image_tokenizer=tmp_path / "vq")
    with pytest.raises(UsageError, match="no such file or folder"):
        look(out, 5, text_tokenizer=tmp_path / "text.model")


@pytest.fixture
def texts(world: World, out: Path, tmp_path: Path) -> Path:
    """The texts in a place where they can be changed; the output is told of it."""
    folder = Path(shutil.copytree(world.corpus / "texts", tmp_path / "texts"))
    inputs = out / "run" / "inputs.jsonl"
    inputs.write_text(inputs.read_text().replace(str(world.corpus / "texts"), str(folder)))
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: [x.replace("quick", "slow!") for x in lines], "says something else in its input now"),
        (lambda lines: lines[:20], "is no longer in texts/a.jsonl.gz"),
        (lambda lines: [x.replace('"text"', '"next"') for x in lines], "is no document any more: no-text"),
    ],
)
def test_an_input_that_has_changed_is_told_apart_from_damage(out: Path, texts: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    import gzip

    path = texts / "a.jsonl.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines(keepends=True)
    path.write_bytes(gzip.compress("".join(change(lines)).encode()))
    result = look(out)
    assert set(result.counts) == {Code.INPUT_CHANGED}
    assert all("(texts/a.jsonl.gz@" in p.where for p in result.problems)
    assert message in " ".join(p.message for p in result.problems)
    path.unlink()
    result = look(out)
    assert result.counts == {Code.INPUT_CHANGED: load_manifest(out).sources[2].documents["committed"]}
    assert "cannot be read from its input" in result.problems[0].message


def test_damaged_shards_are_not_compared(out: Path) -> None:
    (out / "tokens" / "train" / "00000.idx").unlink()
    result = look(out, 5)
    assert result.reencoded is None
    assert any(line.startswith("encoding documents again") for line in result.skipped)


# ---- the command


def test_the_command_says_what_was_compared(capfd: pytest.CaptureFixture[str], world: World, out: Path) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        captured = capfd.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    code, output, _ = run("verify", out, "--reencode", 1000, "--seed", 2)
    assert code == 0
    assert "encoded again: 74 documents out of" in output
    codes = 16 * load_manifest(world.out).items["image"]["committed"]
    assert f"{codes} of {codes} media codes are equal" in output
    code, output, errors = run("verify", out, "--input", "pairs=x", "--seed", 3)
    assert (code, output) == (2, "")
    assert "--seed, --input: only with --reencode N" in errors
    number, span = first_with(out, "image")
    change_tokens(out, number, span["start"] + 3, int(UnifiedVocabulary.load(out / "vocabulary.json").encode("image", 7)))
    code, output, errors = run("verify", out, "--reencode", 1000)
    assert code == 1
    assert "reencode  a sampled document encoded again" in output
    assert "what to do: " in output
    assert "1 problem found (reencode 1)" in errors
    code, output, _ = run("verify", out, "--reencode", 1000, "--json")
    assert code == 1
    entry = json.loads(output)
    assert entry["counts"] == {"reencode": 1}
    assert entry["problems"][0]["code"] == "reencode"
    assert entry["problem_count"] == 1
    assert entry["reencoded"]["codes"] == codes


@pytest.mark.parametrize(("text", "code"), [(None, "unfinished"), ("{", "manifest"), ("[]", "manifest"), ("", "manifest")])
def test_the_command_tells_of_a_manifest_that_cannot_be_read(
    capfd: pytest.CaptureFixture[str], out: Path, text: str | None, code: str
) -> None:
    path = out / "manifest.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(SystemExit) as caught:
        app(["verify", str(out)])
    assert caught.value.code == 1
    output, errors = capfd.readouterr()
    assert output.startswith(f"\n{code}  ")
    assert f"1 problem found ({code} 1)" in errors
