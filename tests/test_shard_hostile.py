"""`tokkit shard` against what people and data do to it: hostile samples, doubled inputs, moved folders, closed pipes."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from shard_corpus import Corpus, snapshot, write_corpus, write_tokenizers
from sources_helpers import tar_bytes

from tokkit.errors import BudgetExceeded, ConfigError, DataError, FingerprintMismatch, ResumableStop, UsageError
from tokkit.pipelines import attempt
from tokkit.pipelines.progress import LineProgress, SilentProgress
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.storage import attempt_name, is_attempt, pretty_json, sha256_file

SILENT = SilentProgress()


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus: Corpus = write_corpus(folder / "corpus")
        self.text, self.image = write_tokenizers(folder / "tokenizers")

    def run(self, out: Path, *inputs: Path | str, **options: object) -> ShardResult:
        settings = {"text_tokenizer": self.text, "image_tokenizer": self.image, "workers": 0, "report_documents": 0}
        config = {"inputs": [str(i) for i in inputs], "out": out, **settings, **options}
        return shard(ShardConfig.model_validate(config), SILENT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def texts(world: World, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world.corpus.folder / "texts", tmp_path / "texts"))


def broken_lines(folder: Path, good: int, bad: int) -> Path:
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "good"}\n' * good + "{broken\n" * bad)
    return folder


@pytest.mark.parametrize("depth", [100, 600, 5000])
def test_json_nested_too_deeply_is_a_reject(world: World, tmp_path: Path, depth: int) -> None:
    nested = '{"text": "x", "m": ' + "[" * depth + "]" * depth + "}"
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text(nested + '\n{"text": "fine"}\n')
    members = [("0.png", b"x"), ("0.txt", b"x"), ("0.json", nested.encode())]
    (tmp_path / "in" / "a.tar").write_bytes(tar_bytes(members))
    result = world.run(tmp_path / "out", tmp_path / "in", metadata=["m"])
    assert result.manifest.documents == {"committed": 1, "rejected": 2}


def test_an_input_given_twice_is_refused(world: World, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="twice"):
        world.run(tmp_path / "out", texts, texts)
    monkeypatch.chdir(texts)
    with pytest.raises(ConfigError, match="twice"):
        world.run(tmp_path / "out", ".", ".")
    (texts / "b.jsonl.gz").symlink_to(texts / "a.jsonl.gz")
    with pytest.raises(ConfigError, match="twice"):
        world.run(tmp_path / "out", texts)


def test_an_output_within_its_input_can_be_run_again(world: World, texts: Path) -> None:
    first = world.run(texts / "out", texts)
    before = snapshot(texts / "out")
    assert world.run(texts / "out", texts).manifest == first.manifest
    assert snapshot(texts / "out") == before


def test_a_budget_that_was_exceeded_stays_exceeded(world: World, tmp_path: Path) -> None:
    folder = broken_lines(tmp_path / "in", 400, 900)
    for _ in range(2):
        with pytest.raises(BudgetExceeded, match="900 of 1300"):
            world.run(tmp_path / "out", folder)
    world.run(tmp_path / "out", folder, max_reject_ratio=0.9)


def test_strict_stops_at_damage_too(world: World, texts: Path, tmp_path: Path) -> None:
    good = '{"text": "good"}\n' * 400
    (texts / "a.jsonl.gz").write_bytes(gzip.compress(good.encode())[:-9])
    with pytest.raises(BudgetExceeded, match="gzip-truncated"):
        world.run(tmp_path / "out", texts, strict=True)


def test_a_run_folder_that_was_removed_is_made_again(world: World, texts: Path, tmp_path: Path) -> None:
    world.run(tmp_path / "out", texts)
    before = snapshot(tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "run")
    world.run(tmp_path / "out", texts)
    assert snapshot(tmp_path / "out") == before


def test_an_input_that_was_moved_is_followed(
    world: World, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokkit.pipelines.shard

    (texts / "b.jsonl").write_text('{"text": "more"}\n')

    def fault(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokkit.pipelines.shard, "run_units", fault)
        with pytest.raises(KeyboardInterrupt):
            world.run(tmp_path / "out", texts)
    (tmp_path / "elsewhere").mkdir()
    moved = texts.rename(tmp_path / "elsewhere" / "texts")
    result = world.run(tmp_path / "out", moved)
    assert result.manifest.documents["committed"] == 39


def test_input_that_changes_while_it_is_read_is_not_committed(
    world: World, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = attempt.Attempt.take
    changed = []

    def change(self: attempt.Attempt, *args: object) -> None:
        if not changed:
            changed.append(1)
            with (texts / "a.jsonl.gz").open("ab") as file:
                file.write(gzip.compress(b'{"text": "late"}\n'))
        take(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(attempt.Attempt, "take", change)
    with pytest.raises(FingerprintMismatch, match="changed while it was being read"):
        world.run(tmp_path / "out", texts)
    assert not list((tmp_path / "out" / "commits").iterdir())


def test_a_place_that_cannot_be_written_is_wrong_usage(world: World, texts: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        world.run(Path("/proc/nothing/here"), texts)


def test_a_full_disk_stops_at_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.shards.native import ShardWriter

    folder = tmp_path / "in"
    folder.mkdir()
    for name in "abcdef":
        (folder / f"{name}.txt").write_text(name)
    attempts = []

    def full(self: ShardWriter, *args: object, **options: object) -> None:
        attempts.append(1)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "finish", full)
        with pytest.raises(ResumableStop, match="No space left"):
            world.run(tmp_path / "out", folder)
    assert len(attempts) == 1
    assert not [p for p in (tmp_path / "out" / "run" / "payloads").iterdir() if ".tmp-" in p.name]
    assert world.run(tmp_path / "out", folder).manifest.documents == {"committed": 6}


def test_progress_that_nobody_reads_fails_nothing(world: World, texts: Path, tmp_path: Path) -> None:
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError(32, "Broken pipe")

    config = {"inputs": [str(texts)], "out": tmp_path / "out", "text_tokenizer": world.text, "workers": 0}
    result = shard(ShardConfig.model_validate(config), LineProgress(Closed(), every=0.0))
    assert result.manifest.documents["committed"] == 38


def test_a_tokenizers_path_may_be_typed_in_any_way(
    world: World, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(tmp_path / "one", world.corpus.folder / "pairs")
    monkeypatch.chdir(world.image)
    world.run(tmp_path / "two", world.corpus.folder / "pairs", image_tokenizer=Path())
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_a_trial_of_a_gzip_file_extrapolates(world: World, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    lines = [json.dumps({"text": os.urandom(40 + n % 9).hex()}) + "\n" for n in range(3000)]
    (tmp_path / "in" / "a.jsonl.gz").write_bytes(gzip.compress("".join(lines).encode()))
    trial = world.run(tmp_path / "out", tmp_path / "in", limit=50).manifest.trial
    assert trial is not None
    assert int(str(trial["estimated_documents"])) == pytest.approx(3000, rel=0.2)


# ---- verify


@pytest.fixture
def finished(world: World, tmp_path: Path) -> Path:
    inputs = [world.corpus.folder / name for name in ("pairs", "texts")]
    return world.run(tmp_path / "finished", *inputs, pack=128, val_fraction=0.2).out


def manifest_of(out: Path) -> dict:  # type: ignore[type-arg]
    return json.loads((out / "manifest.json").read_text())


def problems(out: Path, **options: object) -> str:
    return " ".join(map(str, verify(VerifyConfig.model_validate({"directory": out, **options}), SILENT).problems))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda m: m["semantic"].update(seed=5), "semantic components"),
        (lambda m: m["numeric"].update(batch_size=5), "numeric components"),
        (lambda m: m.update(vocabulary_size=m["vocabulary_size"] + 128), "vocabulary.json"),
        (lambda m: m.update(container_errors=1), "container errors"),
        (lambda m: m["sources"][0]["reasons"].clear(), "source pairs"),
        (lambda m: m["splits"]["train"].update(documents=1), "split train"),
        (lambda m: m["splits"]["train"]["tokens_by_kind"].update(image=0, text=1), "split train"),
    ],
)
def test_a_manifest_that_was_edited_is_found(finished: Path, change, problem: str) -> None:  # type: ignore[no-untyped-def]
    assert problems(finished) == ""
    manifest = manifest_of(finished)
    change(manifest)
    (finished / "manifest.json").write_text(pretty_json(manifest))
    assert problem in problems(finished)


def test_spans_that_state_another_grid_are_found(finished: Path) -> None:
    path = finished / "tokens" / "train" / "00000.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    next(s for r in rows for s in r["spans"] if s["modality"] == "image")["grid_width"] = 99
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), path)
    manifest = manifest_of(finished)
    entry = manifest["splits"]["train"]["shards"][0]["files"]["parquet"]
    entry.update(bytes=path.stat().st_size, sha256=sha256_file(path))
    (finished / "manifest.json").write_text(pretty_json(manifest))
    shutil.rmtree(finished / "packs")
    assert "other shapes" in problems(finished)


def test_packing_plans_are_looked_at(finished: Path) -> None:
    plan = next((finished / "packs").glob("*/train"))
    path = plan / "piece_document.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x40
    path.write_bytes(data)
    assert "documents that are not there" in problems(finished, checksums=False)
    shutil.rmtree(plan.parent / "val")
    assert "no plan of split val" in problems(finished, checksums=False)


@pytest.mark.parametrize("name", ["config.json", "run/inputs.jsonl"])
def test_state_of_another_shape_is_an_error(world: World, texts: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    with pytest.raises(BudgetExceeded):
        world.run(out, texts, strict=True)
    (out / name).write_text("{}")
    with pytest.raises(DataError, match="is damaged"):
        world.run(out, texts, strict=True)


def test_what_a_kill_in_the_first_step_leaves_is_no_stranger(world: World, texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "run").mkdir(parents=True)
    attempt_name(out / "config.json").write_text('{"format": "tok')
    world.run(out, texts)
    assert not [path.name for path in out.iterdir() if is_attempt(path)]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="is not empty"):
        world.run(tmp_path / "mine", texts)
