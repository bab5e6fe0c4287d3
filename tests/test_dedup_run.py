"""`tokkit shard --dedup`: each duplicate once and of which, nothing lost, the same bytes whatever happens."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_corpus import picture, snapshot, write_tokenizers
from sources_helpers import tar_bytes

from tokkit.documents import Document
from tokkit.errors import FingerprintMismatch, ResumableStop, UsageError
from tokkit.pipelines.findings import VerifyResult
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.ledger import Ledger
from tokkit.pipelines.plan import PlannedUnit, Poison, _read_units
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard, shard_part
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.pipelines.verify_originals import check_originals
from tokkit.shards.native import TokenShards, open_shards
from tokkit.sources.base import Unit, UnitReader
from tokkit.sources.jsonl import JsonlSource
from tokkit.sources.resolve import resolve_inputs

SILENT = SilentProgress()
ALL = ["documents", "texts", "near-images"]

Entry = tuple[str, str, object, object]  # locator, reason, item, of


class World:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text, self.image = write_tokenizers(folder / "tokenizers")

    def config(self, out: Path, *inputs: Path, **options: object) -> ShardConfig:
        settings: dict[str, object] = {
            "inputs": [str(path) for path in inputs],
            "out": out,
            "text_tokenizer": self.text,
            "image_tokenizer": self.image,
            "workers": 0,
            "report_documents": 0,
        }
        return ShardConfig.model_validate(settings | options)

    def run(self, out: Path, *inputs: Path, **options: object) -> ShardResult:
        result = shard(self.config(out, *inputs, **options), SILENT)
        checked = verify(VerifyConfig(directory=out), SILENT)
        assert checked.ok, checked
        return result


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("dedup"))


def lines(folder: Path, texts: Sequence[str], name: str = "a.jsonl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def samples(folder: Path, given: Sequence[tuple[dict[str, bytes], str]], name: str = "0.tar") -> Path:
    """Pairs: the pictures by extension, and the caption."""
    folder.mkdir(parents=True, exist_ok=True)
    members = [
        (f"{number:03d}.{extension}", data)
        for number, (pictures, caption) in enumerate(given)
        for extension, data in [*pictures.items(), ("txt", caption.encode())]
    ]
    (folder / name).write_bytes(tar_bytes(members))
    return folder


def interleaved(folder: Path, documents: Sequence[Sequence[str | bytes | None]]) -> Path:
    """Documents of texts and pictures; None is a picture that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    images, texts = [], []
    for number, parts in enumerate(documents):
        images.append([None if isinstance(p, str) else f"images/{number}-{i}.png" for i, p in enumerate(parts)])
        texts.append([p if isinstance(p, str) else None for p in parts])
        for i, part in enumerate(parts):
            if isinstance(part, bytes):
                (folder / "images").mkdir(exist_ok=True)
                (folder / "images" / f"{number}-{i}.png").write_bytes(part)
    strings = pa.list_(pa.string())
    blank = ["[" + ",".join("null" for _ in t) + "]" for t in texts]
    columns = {"images": pa.array(images, strings), "texts": pa.array(texts, strings), "metadata": pa.array(blank)}
    pq.write_table(pa.table(columns | {"general_metadata": pa.array(["{}"] * len(texts))}), folder / "d.parquet")
    return folder


def rejects(out: Path) -> list[dict]:
    return [json.loads(line) for path in sorted((out / "rejects").iterdir()) for line in path.read_text().splitlines()]


def duplicates(out: Path) -> list[Entry]:
    """(locator, reason, item, (locator, item) of which) of every duplicate."""
    return [
        (e["locator"], e["reason"], e.get("item"), (e["of"]["locator"], e["of"].get("item")))
        for e in rejects(out)
        if e["outcome"] == "duplicate"
    ]


def committed(out: Path) -> list[tuple[str, str]]:
    return [(r["source"], r["locator"]) for t in open_shards(out, "train").tables() for r in t.to_pylist()]


# ---- what is a duplicate, and of which


def test_documents_with_the_same_content(world: World, tmp_path: Path) -> None:
    first = lines(tmp_path / "first", ["one", "two", "one", "three"])
    second = lines(tmp_path / "second", ["two", "four", "one "])
    result = world.run(tmp_path / "out", first, second, dedup=["documents"])
    assert result.manifest.documents == {"committed": 5, "duplicate": 2}
    assert duplicates(tmp_path / "out") == [
        ("a.jsonl@32", "same-content", None, ("a.jsonl@0", None)),
        ("a.jsonl@0", "same-content", None, ("a.jsonl@16", None)),
    ]
    assert {e["of"]["source"] for e in rejects(tmp_path / "out")} == {"first"}
    assert {k: v for s in result.manifest.sources for k, v in s.reasons.items()} == {"document/duplicate/same-content": 1}
    assert result.summary["dedup"]["duplicates"] == {"documents": 2}  # type: ignore[index]
    assert not (tmp_path / "out" / "run" / "index").exists()


def test_documents_with_the_same_text(world: World, tmp_path: Path) -> None:
    """Texts are joined; what stands between them is left out; documents without text are not asked."""
    folder = interleaved(
        tmp_path / "in",
        [["a", picture(1), "b"], [picture(2)], ["a", "b", picture(3)], [picture(4)], ["a\n\nb"], ["b", "a"], ["ab"]],
    )
    result = world.run(tmp_path / "out", folder, dedup=["texts"])
    assert result.manifest.documents == {"committed": 5, "duplicate": 2}
    assert duplicates(tmp_path / "out") == [
        ("d.parquet:2", "document-not-committed", 0, ("d.parquet:0", None)),
        ("d.parquet:2", "same-text", None, ("d.parquet:0", None)),
        ("d.parquet:4", "same-text", None, ("d.parquet:0", None)),
    ]
    assert result.manifest.items == {"image": {"committed": 3, "duplicate": 1}}


def test_pictures_with_the_same_bytes(world: World, tmp_path: Path) -> None:
    """A pair goes with its picture, an interleaved document goes on, and goes where nothing is left."""
    pairs = samples(tmp_path / "pairs", [({"png": picture(1)}, "x"), ({"png": picture(1)}, "y"), ({"png": picture(2)}, "z")])
    documents = interleaved(
        tmp_path / "documents",
        [["t", picture(2), "u", picture(3)], [picture(3), picture(3)], [picture(5), picture(5)], [picture(1)[:50], picture(1)]],
    )
    result = world.run(tmp_path / "out", pairs, documents, dedup=["images"])
    assert duplicates(tmp_path / "out") == [
        ("0.tar#001", "same-image", 0, ("0.tar#000", 0)),
        ("0.tar#001", "same-image", None, ("0.tar#000", 0)),
        ("d.parquet:0", "same-image", 0, ("0.tar#002", 0)),
        ("d.parquet:1", "same-image", 0, ("d.parquet:0", 1)),
        ("d.parquet:1", "same-image", 1, ("d.parquet:0", 1)),
        ("d.parquet:1", "nothing-left", None, ("d.parquet:0", 1)),
        ("d.parquet:2", "same-image", 1, ("d.parquet:2", 0)),
        ("d.parquet:3", "same-image", 1, ("0.tar#000", 0)),
        ("d.parquet:3", "nothing-left", None, ("0.tar#000", 0)),
    ]
    assert result.manifest.documents == {"committed": 4, "duplicate": 3}
    assert result.manifest.items == {"image": {"committed": 4, "duplicate": 6, "rejected": 1}}
    again = verify(VerifyConfig(directory=tmp_path / "out", reencode=10), SILENT)
    assert again.ok, again


def test_what_is_in_a_document_that_is_not_committed_is_not_lost(world: World, tmp_path: Path) -> None:
    """The good picture of a pair that is rejected for its other picture is no reason to leave that picture out elsewhere."""
    pairs = samples(
        tmp_path / "pairs",
        [
            ({"a.png": picture(1), "b.png": picture(2)[:60]}, "broken"),
            ({"png": picture(3)[:60]}, "broken too"),
            ({"png": picture(1)}, "good"),
            ({"png": picture(4)}, "broken too"),
        ],
    )
    result = world.run(tmp_path / "out", pairs, dedup=[*ALL, "images"])
    assert result.manifest.documents == {"committed": 2, "rejected": 2}
    assert committed(tmp_path / "out") == [("pairs", "0.tar#002"), ("pairs", "0.tar#003")]


def test_a_caption_whose_first_pair_goes_stays_with_the_next(world: World, tmp_path: Path) -> None:
    """Looked at by itself, each rule would drop one of the last two pairs; the caption would be gone."""
    pairs = samples(
        tmp_path / "pairs",
        [
            ({"png": picture(1)}, "first"),
            ({"png": picture(1)}, "caption"),
            ({"png": picture(2)}, "caption"),
            ({"a.png": picture(1), "b.png": picture(3)}, "an old picture and a new one"),
            ({"a.png": picture(1), "b.png": picture(3)}, "two old pictures"),
        ],
    )
    world.run(tmp_path / "out", pairs, dedup=["texts", "images"])
    assert [locator for _, locator in committed(tmp_path / "out")] == ["0.tar#000", "0.tar#002", "0.tar#003"]
    assert {of for _, _, _, of in duplicates(tmp_path / "out")} == {("0.tar#000", 0), ("0.tar#003", 1)}


def scaled(data: bytes, side: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").resize((side, side)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_pictures_that_look_alike(world: World, tmp_path: Path) -> None:
    """Scaled and recompressed pictures are found; a broken one and flat ones are nobody's original."""
    pytest.importorskip("imagehash")
    noise = [scaled(picture(seed, (256, 256)), 256, 95) for seed in (1, 2)]
    flat = [scaled(picture(3), 64, 90) and _flat(colour) for colour in ("white", "black")]
    pairs = samples(
        tmp_path / "pairs",
        [
            ({"jpg": noise[0][:900]}, "broken"),
            ({"jpg": noise[0]}, "one"),
            ({"jpg": noise[1]}, "two"),
            ({"jpg": scaled(noise[0], 128, 70)}, "one, smaller"),
            ({"jpg": flat[0]}, "white"),
            ({"jpg": flat[1]}, "black"),
            ({"jpg": flat[0]}, "white again"),
            ({"jpg": noise[1]}, "two again"),
        ],
    )
    result = world.run(tmp_path / "out", pairs, dedup=["near-images"])
    assert [e for e in duplicates(tmp_path / "out") if e[2] is None] == [
        ("0.tar#003", "near-image", None, ("0.tar#001", 0)),
        ("0.tar#006", "same-image", None, ("0.tar#004", 0)),
        ("0.tar#007", "same-image", None, ("0.tar#002", 0)),
    ]
    assert result.manifest.semantic["dedup"] == ["images", "near-images"]


def _flat(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def test_a_text_that_the_tokenizer_refuses_is_nobodys_original(world: World, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"good": 0, "words": 1}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    pairs = samples(tmp_path / "pairs", [({"png": picture(1)}, "unheard of"), ({"png": picture(1)}, "good words")])
    options = {"text_tokenizer": tmp_path / "tokenizer.json", "text_vocab_size": 512, "max_reject_ratio": 1.0}
    plain = world.run(tmp_path / "plain", pairs, **options)
    if plain.manifest.documents != {"committed": 1, "rejected": 1}:
        pytest.skip("this tokenizers library writes unknown words")
    result = world.run(tmp_path / "out", pairs, dedup=["images"], **options)
    assert result.manifest.documents == {"committed": 1, "rejected": 1}


# ---- the same bytes, whatever happens


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Many duplicates of every kind over many units."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(5)
    texts = [f"text number {n} of a small corpus" for n in rng.integers(0, 60, 240)]
    noise = [scaled(picture(seed, (128, 128)), 128, 95) for seed in range(12)]
    pairs: list[tuple[dict[str, bytes], str]] = []
    for n in range(40):
        data = noise[rng.integers(12)]
        data = scaled(data, 64 + 8 * int(rng.integers(4)), 80) if rng.random() < 0.4 else data
        data = data[:300] if rng.random() < 0.1 else data
        pairs.append(({"jpg": data}, f"caption {n % 9}"))
    documents: list[list[str | bytes]] = []
    for _ in range(12):
        parts: list[str | bytes] = [noise[i] for i in rng.integers(0, 12, 2)]
        documents.append([*parts, *([f"paragraph {rng.integers(4)}"] if rng.random() < 0.6 else [])])
    return [lines(folder / "texts", texts), samples(folder / "pairs", pairs), interleaved(folder / "documents", documents)]


OPTIONS: dict[str, object] = {"dedup": ALL, "unit_bytes": 3000, "shard_tokens": 2000, "val_fraction": 0.1, "batch_size": 4}


def command(world: World, corpus: list[Path], out: Path) -> list[str]:
    """The command line of the same run."""
    flags: list[object] = ["--out", out, "--text-tokenizer", world.text, "--image-tokenizer", world.image, "--workers", 0]
    flags += [part for kind in ALL for part in ("--dedup", kind)]
    flags += ["--unit-size", 3000, "--shard-tokens", 2000, "--val-fraction", 0.1, "--batch-size", 4]
    return [sys.executable, "-m", "tokkit.cli.main", "shard", *map(str, corpus), *map(str, flags), "--quiet"]


@pytest.fixture(scope="module")
def clean(world: World, corpus: list[Path]) -> ShardResult:
    pytest.importorskip("imagehash")
    return world.run(world.folder / "clean", *corpus, **OPTIONS)


def test_the_corpus_has_duplicates_of_every_kind(clean: ShardResult) -> None:
    assert clean.manifest.units > 6
    assert all(count for count in clean.summary["dedup"]["duplicates"].values())  # type: ignore[index]
    reasons = {reason for _, reason, _, _ in duplicates(clean.out)}
    assert {"same-content", "same-text", "same-image", "near-image", "document-not-committed"} <= reasons


@pytest.mark.slow
def test_two_processes_share_the_work(world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path) -> None:
    out = tmp_path / "out"
    processes = [
        subprocess.Popen(command(world, corpus, out), stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert snapshot(out) == snapshot(clean.out) | {"report.html": snapshot(out)["report.html"]}
    assert not (out / "run" / "index").exists()


@pytest.mark.slow
def test_neither_workers_nor_memory_change_a_byte(world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path) -> None:
    world.run(tmp_path / "out", *corpus, **OPTIONS, workers=2, dedup_memory=1 << 20)
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_the_cut_into_units_changes_no_decision(world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path) -> None:
    result = world.run(tmp_path / "out", *corpus, **OPTIONS | {"unit_bytes": 1 << 30})
    assert result.manifest.units < clean.manifest.units
    assert duplicates(tmp_path / "out") == duplicates(clean.out)
    assert committed(tmp_path / "out") == committed(clean.out)


@pytest.mark.parametrize(
    "point",
    [
        "index:70",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("indexed", "decided", "before-commit:3", "before-manifest")),
    ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, point: str
) -> None:
    out = tmp_path / "out"
    killed = subprocess.run(
        command(world, corpus, out), env=os.environ | {"TOKKIT_FAILPOINT": point}, capture_output=True, check=False
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert not (out / "manifest.json").exists()
    world.run(out, *corpus, **OPTIONS)
    assert snapshot(out) == snapshot(clean.out) | {"report.html": snapshot(out)["report.html"]}


def test_what_is_indexed_is_not_indexed_again(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Grouping fails; the next run reads no unit for its index but the one whose index was damaged meanwhile."""
    from tokkit.dedup import find

    out = tmp_path / "out"
    with monkeypatch.context() as patch:

        def fails(*args: object, **options: object) -> None:
            raise OSError(28, "No space left on device", "scratch")

        patch.setattr(find, "find_duplicates", fails)
        with pytest.raises(ResumableStop, match="No space left"):
            shard(world.config(out, *corpus, **OPTIONS), SILENT)
    damaged = out / "run" / "index" / "00001.index"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    result = world.run(out, *corpus, **OPTIONS)
    documents = sum(clean.manifest.documents.values())
    assert 0 < result.summary["dedup"]["documents"] < documents / 2  # type: ignore[index]
    assert snapshot(out) == snapshot(clean.out)


def test_a_trial_looks_at_its_own_documents_only(world: World, tmp_path: Path) -> None:
    """One document of each file: the first file's second one is not there, so it is nobody's original."""
    folder = lines(lines(tmp_path / "in", ["other", "same."], "a.jsonl"), ["same.", "third"], "b.jsonl")
    result = world.run(tmp_path / "out", folder, dedup=["documents"], limit=2)
    assert result.manifest.documents == {"committed": 2}
    assert world.run(tmp_path / "all", folder, dedup=["documents"]).manifest.documents == {"committed": 3, "duplicate": 1}


def test_a_reader_that_does_not_read_the_same_twice_is_noticed(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokkit.errors import DataError
    from tokkit.pipelines import unit

    folder = lines(tmp_path / "in", ["a", "b", "a"])
    read = JsonlSource.read

    class Shifted:
        def __init__(self, reader) -> None:  # type: ignore[no-untyped-def]
            self._reader, self.consumed = reader, 1.0

        def __iter__(self):  # type: ignore[no-untyped-def]
            return iter(list(self._reader)[::-1])

    monkeypatch.setattr(unit.UnitProcessor, "process", _reading(unit.UnitProcessor.process, read, Shifted))
    with pytest.raises(DataError, match="does not read the same twice"):
        shard(world.config(tmp_path / "out", folder, dedup=["documents"]), SILENT)


def _reading(process, read, kind):  # type: ignore[no-untyped-def]
    def changed(self, planned, report):  # type: ignore[no-untyped-def]
        JsonlSource.read = lambda self, unit: kind(read(self, unit))  # type: ignore[method-assign, assignment]
        try:
            return process(self, planned, report)
        finally:
            JsonlSource.read = read  # type: ignore[method-assign]

    return changed


# ---- documents that kill, found after the duplicates were decided


def keepers(clean: ShardResult) -> dict[str, str]:
    """By each reason of a duplicate, the locator of a document that is kept and that another is a duplicate of."""
    found: dict[str, str] = {}
    for entry in rejects(clean.out):
        if entry["outcome"] == "duplicate" and entry["of"]["locator"] != entry["locator"]:
            found.setdefault(entry["reason"], entry["of"]["locator"])
    return found


def place_of(out: Path, world: World, corpus: list[Path], locator: str) -> tuple[PlannedUnit, int]:
    """The unit of a planned run that a document is in, and its position there."""
    sources = {source.name: source for source in resolve_inputs([str(path) for path in corpus]).sources}
    for planned in _read_units(out / "run" / "units.jsonl"):
        for position, record in enumerate(sources[planned.unit.source].read(planned.unit)):
            if isinstance(record, Document) and record.locator == locator:
                return planned, position
    raise AssertionError(locator)


def stopped(world: World, corpus: list[Path], out: Path, where: str, patch: pytest.MonkeyPatch, **options: object) -> None:
    """Have a run stop resumable where it calls something."""
    with patch.context() as patched:

        def stops(*args: object, **options: object) -> None:
            raise ResumableStop("stopped by the test")

        patched.setattr(where, stops)
        with pytest.raises(ResumableStop, match="stopped by the test"):
            shard(world.config(out, *corpus, **OPTIONS | options), SILENT)


def kills(out: Path, world: World, corpus: list[Path], locators: Iterable[str]) -> set[int]:
    """Write down that documents kill; their units."""
    units = set()
    for locator in locators:
        planned, position = place_of(out, world, corpus, locator)
        Ledger(out).add_poison(planned.index, planned.unit, [Poison(position, "SIGSEGV")])
        units.add(planned.index)
    return units


def without_report(out: Path) -> dict[str, str]:
    return {name: digest for name, digest in snapshot(out).items() if name != "report.html"}


def test_what_is_found_to_kill_is_nobodys_original(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every unit was committed when some of the originals turned out to kill; or it was known before anything was begun."""
    late, early = tmp_path / "late", tmp_path / "early"
    victims = keepers(clean)
    assert {"same-content", "same-text", "same-image", "near-image"} <= victims.keys()
    stopped(world, corpus, early, "tokkit.pipelines.shard.Deduplicator", monkeypatch)
    kills(early, world, corpus, victims.values())
    known = world.run(early, *corpus, **OPTIONS)
    stopped(world, corpus, late, "tokkit.pipelines.completion.account", monkeypatch)
    for unit in kills(late, world, corpus, victims.values()):
        Ledger(late).forget(unit)
    result = world.run(late, *corpus, **OPTIONS)
    assert without_report(late) == without_report(early)
    assert without_report(late) != without_report(clean.out)
    units = result.manifest.units
    assert 0 < int(str(result.summary["units"])) < units  # not all were done again
    assert known.summary["units"] == units
    crashed = [e["locator"] for e in rejects(late) if e["reason"] == "crashes-process" and e["level"] == "document"]
    assert sorted(crashed) == sorted(set(victims.values()))
    assert not {e["of"]["locator"] for e in rejects(late) if "of" in e} & set(crashed)


def test_a_part_whose_duplicates_changed_has_to_be_done_again(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tokkit finish` takes no unit that was committed before something was found to kill; the parts do these again."""
    out, early = tmp_path / "out", tmp_path / "early"
    victims = [keepers(clean)["same-text"]]
    stopped(world, corpus, early, "tokkit.pipelines.shard.Deduplicator", monkeypatch)
    kills(early, world, corpus, victims)
    world.run(early, *corpus, **OPTIONS)
    parts = [world.config(out, *corpus, **OPTIONS, shard_index=index, shard_count=2) for index in range(2)]
    units = clean.manifest.units
    assert [shard_part(part, SILENT).committed for part in parts][-1] == units
    found = kills(out, world, corpus, victims)
    with pytest.raises(ResumableStop, match="has to be decided anew"):
        finish(FinishConfig(directory=out), SILENT)
    for unit in found:
        Ledger(out).forget(unit)
    first = shard_part(parts[0], SILENT)
    assert first.committed < units
    with pytest.raises(ResumableStop, match="units are not committed"):
        finish(FinishConfig(directory=out), SILENT)
    assert shard_part(parts[1], SILENT).committed == units
    finish(FinishConfig(directory=out), SILENT)
    assert without_report(out) == without_report(early)


def crashing(world: World, corpus: list[Path], out: Path, *more: object, point: str = "") -> subprocess.Popen[bytes]:
    """Start the command, with what it does to itself."""
    flags = [*command(world, corpus, out), *map(str, more)]
    return subprocess.Popen(flags, env=os.environ | {"TOKKIT_FAILPOINT": point}, stderr=subprocess.PIPE)


def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=300)
    return process.returncode, errors.decode()


def wait_until_stopped(process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < end, "waited in vain"
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


@pytest.mark.slow
def test_an_original_that_crashes_the_process_is_replaced_by_the_next(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by one run while it encodes, known to the other from the beginning: the same bytes."""
    victim, one, two = keepers(clean)["same-image"], tmp_path / "one", tmp_path / "two"
    assert ended(crashing(world, corpus, one, "--workers", 1, point=f"take@{victim}=segv")) == (0, "")
    assert verify(VerifyConfig(directory=one), SILENT).ok
    stopped(world, corpus, two, "tokkit.pipelines.shard.Deduplicator", monkeypatch)
    shutil.copytree(one / "run" / "poison", two / "run" / "poison", dirs_exist_ok=True)
    assert ended(crashing(world, corpus, two, point=f"take@{victim}=segv")) == (0, "")
    assert snapshot(one) == snapshot(two)
    assert victim in {e["locator"] for e in rejects(one) if e["reason"] == "crashes-process"}
    summary = json.loads((one / "run" / "summary.json").read_text())
    assert summary["units"] == clean.manifest.units
    assert summary["documents"] == sum(clean.manifest.documents.values())
    assert summary["lost"]["documents"] > 0


@pytest.mark.slow
def test_what_kills_is_found_by_one_of_two_at_work(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is suspended before the second finds it; the second while it decides anew, which the first then does; so the
    first ends the run by decisions that it did not begin with, and both leave with 0."""
    out, early = tmp_path / "out", tmp_path / "early"
    begun = [p.index for p in sorted(_read_units(clean.out / "run" / "units.jsonl"), key=lambda p: (-p.unit.bytes, p.index))]
    units = {locator: place_of(clean.out, world, corpus, locator)[0].index for locator in keepers(clean).values()}
    victim = next(locator for locator, unit in units.items() if unit not in begun[:2])  # the first process does two units
    stopped(world, corpus, early, "tokkit.pipelines.shard.Deduplicator", monkeypatch)
    kills(early, world, corpus, [victim])
    world.run(early, *corpus, **OPTIONS)
    lease = ("--lease-seconds", 2)
    first = crashing(world, corpus, out, *lease, point="before-commit:2=stop")
    wait_until_stopped(first)
    second = crashing(world, corpus, out, *lease, "--workers", 1, point=f"take@{victim}=segv,decided:2=stop")
    wait_until_stopped(second)
    os.kill(first.pid, signal.SIGCONT)
    assert ended(first) == (0, "")
    assert without_report(out) == without_report(early)
    os.kill(second.pid, signal.SIGCONT)
    assert ended(second) == (0, "")
    assert without_report(out) == without_report(early)


# ---- suspended while another finishes


@pytest.mark.parametrize(
    ("workers", "point"),
    [
        *(pytest.param(0, p, marks=pytest.mark.slow) for p in ("index:70", "index:1", "indexed", "decided")),
        *(pytest.param(0, p, marks=pytest.mark.slow) for p in ("before-commit:2", "before-manifest")),
        *(pytest.param(2, p, marks=pytest.mark.slow) for p in ("indexed", "decided")),
    ],
)
def test_one_that_was_suspended_while_another_finished_succeeds(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, workers: int, point: str
) -> None:
    out = tmp_path / "out"
    suspended = crashing(world, corpus, out, "--lease-seconds", 2, "--workers", workers, point=f"{point}=stop")
    wait_until_stopped(suspended)
    assert ended(crashing(world, corpus, out, "--lease-seconds", 2)) == (0, "")
    os.kill(suspended.pid, signal.SIGCONT)
    assert ended(suspended) == (0, "")
    assert without_report(out) == without_report(clean.out)
    assert not (out / "run" / "index").exists()


def test_one_that_loses_its_files_while_it_groups_takes_what_another_decided(
    world: World, corpus: list[Path], clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another takes the lease over, removes what the suspended process had put on disk, and decides."""
    from tokkit.dedup import find

    out, group, times = tmp_path / "out", find.find_duplicates, []

    def suspended(indexes: list[Path], target: Path, *, scratch: Path, **options: object) -> object:
        times.append(len(times))
        if len(times) == 1:
            (out / "run" / "leases" / "dedup").unlink()
            options["tick"] = lambda: shutil.rmtree(scratch, ignore_errors=True)
        return group(indexes, target, scratch=scratch, **options | {"memory": 2000})  # type: ignore[arg-type]

    monkeypatch.setattr(find, "find_duplicates", suspended)
    world.run(out, *corpus, **OPTIONS)
    assert len(times) == 2
    assert snapshot(out) == snapshot(clean.out)


def test_a_unit_that_cannot_be_read_holds_up_all_and_the_message_says_so(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = lines(lines(tmp_path / "in", ["a", "b"], "a.jsonl"), ["c"], "b.jsonl")
    read = JsonlSource.read

    def fails(self: JsonlSource, unit: Unit) -> UnitReader:
        if unit.file == "a.jsonl":
            raise OSError(5, "Input/output error")
        return read(self, unit)

    monkeypatch.setattr(JsonlSource, "read", fails)
    with pytest.raises(
        ResumableStop, match=r"a\.jsonl cannot be read.*\n.*everything else is indexed, but nothing is enc"
    ) as caught:
        shard(world.config(tmp_path / "out", folder, dedup=["documents"]), SILENT)
    assert "committed" not in str(caught.value)
    assert not list((tmp_path / "out" / "commits").iterdir())


# ---- options and verification


def test_another_way_of_deduplicating_is_another_run(world: World, corpus: list[Path], clean: ShardResult) -> None:
    with pytest.raises(FingerprintMismatch, match=r"- dedup: "):
        shard(world.config(clean.out, *corpus, **OPTIONS | {"dedup": ["texts"]}), SILENT)
    with pytest.raises(FingerprintMismatch, match="near_distance"):
        shard(world.config(clean.out, *corpus, **OPTIONS, near_distance=2), SILENT)
    kinds = ["texts", "near-images", "images", "documents", "texts"]  # the same in another order, and more than once
    assert shard(world.config(clean.out, *corpus, **OPTIONS | {"dedup": kinds}), SILENT).summary["units"] == 0


def test_wrong_options_are_told(world: World, tmp_path: Path) -> None:
    folder = lines(tmp_path / "in", ["a"])
    options = {"inputs": [str(folder)], "out": tmp_path / "out", "text_tokenizer": world.text}
    with pytest.raises(UsageError, match=r"dedup.*near-images"):
        validated(ShardConfig, "tokkit shard", options | {"dedup": ["everything"]})
    with pytest.raises(UsageError, match="near_distance"):
        validated(ShardConfig, "tokkit shard", options | {"near_distance": 17})
    for kind in ("images", "near-images"):
        with pytest.raises(UsageError, match=rf"{kind} compares pictures, and without --image-tokenizer there are none"):
            validated(ShardConfig, "tokkit shard", options | {"dedup": ["documents", kind]})


def test_a_missing_library_is_told_before_anything_is_done(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    folder = lines(tmp_path / "in", ["a"])
    with pytest.raises(UsageError, match=r"pip install 'tokkit\[dedup\]'"):
        shard(world.config(tmp_path / "out", folder, dedup=["near-images"]), SILENT)
    assert not (tmp_path / "out").exists()


def test_a_duplicate_of_what_is_not_there_is_found(clean: ShardResult, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(clean.out, tmp_path / "copy"))
    shards = {split: TokenShards(copy, clean.manifest, split) for split in clean.manifest.splits}

    def problems(change) -> VerifyResult:  # type: ignore[no-untyped-def]
        result = VerifyResult()
        for path in sorted((clean.out / "rejects").iterdir()):
            entries = [json.loads(line) for line in path.read_text().splitlines()]
            for entry in entries:
                change(entry)
            (copy / "rejects" / path.name).write_text("".join(json.dumps(e) + "\n" for e in entries))
        check_originals(copy, clean.manifest, lambda split: shards[split].tables(["source", "locator"]), result)
        return result

    assert problems(lambda entry: None).ok
    lost = next(e for e in rejects(clean.out) if e["level"] == "item" and e["reason"] == "same-image")

    def elsewhere(entry: dict) -> None:
        if entry == lost:
            entry["of"]["locator"] += "x"

    def itself(entry: dict) -> None:
        if entry == lost:
            entry["of"] = {"source": entry["source"], "locator": entry["locator"], "item": entry["item"]}

    def nonsense(entry: dict) -> None:
        if entry == lost:
            entry["of"] = "that one"

    assert "not committed" in str(problems(elsewhere).problems)
    assert not problems(itself).ok
    assert "no reject" in str(problems(nonsense).problems)


# ---- real data


@pytest.mark.slow
def test_pictures_that_come_again_scaled_otherwise_are_found(world: World, shared_data: Path, tmp_path: Path) -> None:
    """The textbook pictures of the pairs stand in the interleaved books too, at another size (data/README.md)."""
    pytest.importorskip("imagehash")
    result = world.run(
        tmp_path / "out",
        shared_data / "images_webdataset",
        shared_data / "interleaved_obelics",
        dedup=["near-images"],
        workers=2,
    )
    found = [e for e in rejects(tmp_path / "out") if e["level"] == "item" and e["reason"] == "near-image"]
    across = [e for e in found if (e["source"], e["of"]["source"]) == ("interleaved_obelics", "images_webdataset")]
    anthropology = {e["locator"] + str(e["item"]) for e in across if e["locator"].startswith("anthropology")}
    assert len(anthropology) > 180  # of 187 textbook pictures
    assert result.manifest.items["image"]["duplicate"] == len(found) < 240


def test_reading_gives_signs_of_life_in_both_passes(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that takes long to its next document (a huge compressed tar) is given what tells that it is at work."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {n}"}) + "\n" for n in range(9)))
    readers: list[UnitReader] = []
    read = JsonlSource.read

    def watched(self: JsonlSource, unit: Unit) -> UnitReader:
        readers.append(read(self, unit))
        return readers[-1]

    monkeypatch.setattr(JsonlSource, "read", watched)
    shard(world.config(tmp_path / "out", path, dedup=["documents"]), SILENT)
    assert len(readers) == 2
    assert all(reader.alive is not UnitReader.alive for reader in readers)
