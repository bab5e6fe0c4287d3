"""What a run keeps out: repair of texts, the user's functions, bounds. Every pass decides alike, and it adds up."""

from __future__ import annotations

import io
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image as PILImage
from run_world import ended
from shard_corpus import picture, snapshot, write_tokenizers
from sources_helpers import tar_bytes

from tokkit.cli.main import app
from tokkit.documents import Document, Image, Text
from tokkit.errors import ConfigError, DataError, FingerprintMismatch, TokkitError, UsageError
from tokkit.pipelines import mixed, prepare
from tokkit.pipelines.admission import Admission
from tokkit.pipelines.findings import VerifyResult
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard, shard_part
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import Manifest
from tokkit.shards.native import open_shards

SILENT = SilentProgress()
CAPTIONS = ["a caption", "short", "a café by the sea", "another caption", "no", "a caption", "the cafÃ© by the sea", "a word"]
SIZES = [(40, 33), (64, 48), (40, 33), (300, 20), (40, 33), (200, 180), (40, 33), (12, 10)]
PARAGRAPHS = 5  # interleaved documents: number n has n pictures, the first of each 12 by 10 pixels


class World:
    """Pairs, interleaved documents and texts, and their tokenizers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.text, self.image = write_tokenizers(folder / "tokenizers")
        _write_pairs(folder / "pairs")
        _write_documents(folder / "documents")
        _write_texts(folder / "texts" / "a.jsonl")
        self.inputs = [str(folder / name) for name in ("pairs", "documents", "texts")]

    def config(self, out: Path, **options: object) -> ShardConfig:
        settings = {
            "inputs": self.inputs,
            "out": out,
            "text_tokenizer": self.text,
            "image_tokenizer": self.image,
            "workers": 0,
            "unit_bytes": 6000,
            "batch_size": 4,
            "val_fraction": 0.2,
            "pair_order": "random",
            "report_documents": 0,
        }
        return validated(ShardConfig, "test", settings | options)

    def run(self, out: Path, **options: object) -> Manifest:
        return shard(self.config(out, **options), SILENT).manifest


def _write_pairs(folder: Path) -> None:
    folder.mkdir()
    members = []
    for n, (caption, size) in enumerate(zip(CAPTIONS, SIZES, strict=True)):
        fields = json.dumps({"n": n, "nsfw": "no"}).encode()
        members += [(f"{n:03d}.jpg", picture(n, size)), (f"{n:03d}.txt", caption.encode()), (f"{n:03d}.json", fields)]
    (folder / "00000.tar").write_bytes(tar_bytes(members))


def _write_documents(folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    images, texts = [], []
    for n in range(PARAGRAPHS):
        names: list[str | None] = [None]
        for place in range(n):
            name = f"images/{n}-{place}.png"
            (folder / name).write_bytes(picture(100 * n + place, (12, 10) if place == 0 else (40, 33)))
            names.append(name)
        images.append(names)
        texts.append([f"Document {n} &amp; its pictures", *[None] * n])
    strings = pa.list_(pa.string())
    table = pa.table(
        {
            "images": pa.array(images, strings),
            "texts": pa.array(texts, strings),
            "metadata": pa.array(["[" + ",".join("null" for _ in row) + "]" for row in texts]),
            "general_metadata": pa.array(["{}"] * PARAGRAPHS),
        }
    )
    pq.write_table(table, folder / "d.parquet")


def _write_texts(path: Path) -> None:
    said = ["x" * n for n in range(1, 30)] + ["un cafÃ© ici", "un café ici", "\ud83e\udd8a", "🦊", "bad " * 30, "R&amp;D"]
    path.parent.mkdir()
    path.write_text("".join(json.dumps({"id": f"t{n}", "text": text}) + "\n" for n, text in enumerate(said)))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


FILTER = """
from dataclasses import replace
from tokkit.documents import Text

def keep(document):
    if document.metadata.get("n") == 4:
        return "the fourth"
    if document.id == "t3":
        raise ValueError("three")
    return document.id != "t5"

def tidy(document):
    segments = [replace(s, text=s.text.replace("caption", "title")) if isinstance(s, Text) else s for s in document.segments]
    if not document.pair:
        segments = segments[:3]  # the first two pictures
    return replace(document, segments=segments, metadata={**document.metadata, "length": len(segments)})
"""


@pytest.fixture
def clean_py(tmp_path: Path) -> Path:
    path = tmp_path / "clean.py"
    path.write_text(FILTER)
    return path


def everything(clean_py: Path) -> dict[str, Any]:
    """All options at once."""
    return {
        "fix_text": ["encoding", "html"],
        "filters": [f"{clean_py}:keep", f"{clean_py}:tidy"],
        "min_characters": 5,
        "max_characters": 100,
        "max_images": 2,
        "where": ["nsfw == no or null"],
        "image_limits": {"min_pixels": 200, "max_side": 350, "max_aspect": 10},
        "metadata": ["length", "n"],
    }


def outcomes(manifest: Manifest, name: str) -> dict[str, int]:
    """A source's reasons, without the level."""
    return next(source.reasons for source in manifest.sources if source.name == name)


def texts_of(out: Path, text: Path) -> dict[str, str]:
    from tokkit.pipelines.decoding import DocumentDecoder

    decoder = DocumentDecoder(out, text)
    return {
        str(found.row["id"]): found.text
        for split, shards in decoder.shards.items()
        for number in range(shards.num_documents)
        for found in [decoder.decode(split, number)]
    }


def checked(out: Path, **options: object) -> VerifyResult:
    """Verified, all documents encoded again."""
    result = verify(VerifyConfig(directory=out, reencode=1000, **options), SILENT)  # type: ignore[arg-type]
    assert result.ok, result.problems
    assert result.reencoded is not None
    return result


# ---- all of it


@pytest.mark.parametrize("dedup", [[], ["documents", "images"]])
def test_everything_at_once_adds_up_and_every_pass_agrees(
    world: World, tmp_path: Path, clean_py: Path, dedup: list[str]
) -> None:
    out = tmp_path / "out"
    manifest = world.run(out, **everything(clean_py), dedup=dedup)
    again = checked(out, filters=tuple(everything(clean_py)["filters"])).reencoded
    assert again is not None
    assert again.documents == again.exact == manifest.documents["committed"]
    assert outcomes(manifest, "pairs") == {
        "document/filtered/filter clean.py:keep": 1,
        "document/filtered/image-aspect": 1,
        "document/filtered/image-too-small": 1,
        "item/filtered/filter clean.py:keep": 1,
        "item/filtered/image-aspect": 1,
        "item/filtered/image-too-small": 1,
    }
    assert outcomes(manifest, "documents") == {
        "item/filtered/image-too-small": PARAGRAPHS - 1,
        "item/filtered/filter clean.py:tidy": 1 + 2,
    }
    # 1 to 3 characters and two foxes; of 4 the function raises, of 6 it says no; "R&D", once it is repaired; 120 characters
    found = outcomes(manifest, "texts")
    assert found == {
        "document/filtered/text-too-short": 3 + 2 + 1,
        "document/rejected/filter-error": 1,
        "document/filtered/filter clean.py:keep": 1,
        "document/filtered/text-too-long": 1,
    } | ({"document/duplicate/same-content": 1} if dedup else {})
    said = texts_of(out, world.text)
    assert said["000"] == "a title"
    assert said["006"] == "the café by the sea"
    assert {text for name, text in said.items() if name.startswith("t") and "ici" in text} == {"un café ici"}
    assert {text for text in said.values() if "Document" in text} == {f"Document {n} & its pictures" for n in range(PARAGRAPHS)}
    shards = open_shards(out, "train")
    kept = {str(shards.row(n)["id"]): json.loads(str(shards.row(n)["metadata"])) for n in range(shards.num_documents)}
    assert {name: fields for name, fields in kept.items() if name.isdigit()} == {
        name: {"length": 2, "n": int(name)} for name in said.keys() & kept.keys() if name.isdigit()
    }
    assert {fields["length"] for fields in kept.values()} == {1, 2, 3}


@pytest.mark.parametrize("dedup", [pytest.param([], marks=pytest.mark.slow), ["documents", "near-images"]])
def test_workers_and_the_order_of_units_make_no_difference(
    world: World, tmp_path: Path, clean_py: Path, dedup: list[str]
) -> None:
    options = {**everything(clean_py), "dedup": dedup}
    world.run(tmp_path / "one", **options)
    world.run(tmp_path / "two", **options, workers=2)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_without_any_option_nothing_is_asked(world: World, tmp_path: Path) -> None:
    admission = Admission(world.config(tmp_path / "out"))
    assert admission.idle
    document = Document("a", "b", "c", (Text("cafÃ©"),))
    assert admission.admit(document) is document


# ---- pictures


def picture_reasons(manifest: Manifest) -> Counter[str]:
    found: Counter[str] = Counter()
    for source in manifest.sources:
        found.update({reason: n for reason, n in source.reasons.items() if "image" in reason})
    return found


@pytest.mark.parametrize(
    ("limits", "reason", "pairs", "items"),
    [
        ({"min_side": 11}, "image-too-small", 1, 4),
        ({"min_pixels": 121}, "image-too-small", 1, 4),
        ({"min_pixels": 120}, "image-too-small", 0, 0),
        ({"max_side": 199}, "image-too-long", 2, 0),
        ({"max_aspect": 14.9}, "image-aspect", 1, 0),
    ],
)
def test_pictures_outside_of_the_bounds_are_filtered(
    world: World, tmp_path: Path, limits: dict[str, object], reason: str, pairs: int, items: int
) -> None:
    """A pair with its picture; an interleaved document goes on without it."""
    manifest = world.run(tmp_path / "out", image_limits=limits)
    found = picture_reasons(manifest)
    assert found == Counter({f"document/filtered/{reason}": pairs, f"item/filtered/{reason}": pairs + items})
    assert outcomes(manifest, "documents") == ({f"item/filtered/{reason}": items} if items else {})
    assert "rejected" not in manifest.items["image"]
    checked(tmp_path / "out")


@pytest.mark.parametrize(
    ("least", "most", "limits", "counts"),
    [
        (1, None, {}, [0]),
        (2, 3, {}, [0, 1, 4]),
        (None, 0, {}, [1, 2, 3, 4]),
        (1, 2, {"min_side": 11}, [0, 1, 4]),  # the first of each is too small, and does not count
    ],
)
def test_documents_are_filtered_by_how_many_pictures_they_have(
    world: World, tmp_path: Path, least: int | None, most: int | None, limits: dict[str, object], counts: list[int]
) -> None:
    options = {"inputs": world.inputs[1:2], "min_images": least, "max_images": most, "image_limits": limits}
    manifest = world.run(tmp_path / "out", **options)
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects" / "00000.jsonl").read_text().splitlines()]
    gone = {entry["locator"]: entry["reason"] for entry in rejects if entry["level"] == "document"}
    kept_below = [n for n in counts if n - bool(limits) * bool(n) < (least or 0)]
    assert gone == {f"d.parquet:{n}": "too-few-images" if n in kept_below else "too-many-images" for n in counts}
    assert manifest.documents == {"committed": PARAGRAPHS - len(counts), "filtered": len(counts)}
    checked(tmp_path / "out")


def test_a_picture_on_its_side_is_within_the_same_bounds(world: World, tmp_path: Path) -> None:
    """EXIF's turns change neither sides nor area; what is measured is never turned the wrong way."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 90, 3), dtype=np.uint8)
    exif = PILImage.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "JPEG", exif=exif)
    document = Document("a", "b", "c", (Image(buffer.getvalue(), "a.jpg"),))
    for limits, fine in (({"max_side": 90, "min_side": 40}, True), ({"max_side": 89}, False), ({"min_side": 41}, False)):
        config = world.config(tmp_path / "out", image_limits=limits, min_images=1)
        assert (Admission(config).admit(document).failure is None) == fine


# ---- text


@pytest.mark.parametrize(("least", "most", "kept"), [(10, None, 20), (None, 9, 9), (10, 12, 3), (0, 0, 0)])
def test_documents_are_filtered_by_their_length(
    world: World, tmp_path: Path, least: int | None, most: int | None, kept: int
) -> None:
    lines = [json.dumps({"text": "\U0001f98a" * n}) for n in range(1, 30)]  # one code point each
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = {"inputs": [str(tmp_path / "a.jsonl")], "min_characters": least, "max_characters": most}
    manifest = world.run(tmp_path / "out", **options)
    assert manifest.documents.get("committed", 0) == kept
    assert set(manifest.sources[0].reasons) <= {"document/filtered/text-too-short", "document/filtered/text-too-long"}
    checked(tmp_path / "out") if kept else None


def test_texts_are_repaired_before_anything_is_compared(world: World, tmp_path: Path) -> None:
    """The repaired text is what is counted, hashed, and looked for twins of."""
    lines = [json.dumps({"id": f"d{n}", "text": text}) for n, text in enumerate(["un cafÃ© ici", "un café ici", "un café ici"])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    options = {"inputs": [str(tmp_path / "a.jsonl")], "fix_text": ["encoding"], "dedup": ["documents"], "max_characters": 11}
    manifest = world.run(tmp_path / "out", **options)
    assert manifest.documents == {"committed": 1, "duplicate": 2}
    assert texts_of(tmp_path / "out", world.text) == {"d0": "un café ici"}
    assert manifest.semantic["text_repair"].keys() == {"ftfy"}
    checked(tmp_path / "out")


# ---- what the output belongs to


def test_a_changed_filter_is_noticed(world: World, tmp_path: Path, clean_py: Path) -> None:
    out, options = tmp_path / "out", {"filters": [f"{clean_py}:keep"]}
    world.run(out, **options)
    named = (f"{clean_py}:keep",)
    before = snapshot(out)
    clean_py.write_text(FILTER.replace('"t5"', '"t6"'))
    for changed in (options, {}, {"filters": [f"{clean_py}:tidy"]}):
        with pytest.raises(FingerprintMismatch, match=r"made with another configuration(.|\n)*- filters"):
            world.run(out, **changed)
    with pytest.raises(FingerprintMismatch, match=r"- filters\.1\. clean\.py:keep: [0-9a-f]{16} -> [0-9a-f]{16}"):
        world.run(out, **options)
    with pytest.raises(DataError, match=r"(?s)went through other filters.*1\. clean\.py:keep: [0-9a-f]{16} -> [0-9a-f]{16}"):
        verify(VerifyConfig(directory=out, reencode=5, filters=named), SILENT)
    moved = Path(shutil.move(clean_py, tmp_path / "moved.py"))
    with pytest.raises(UsageError, match=r"--filter: .*clean\.py: no such file"):
        verify(VerifyConfig(directory=out, reencode=5, filters=named), SILENT)
    moved.write_text(FILTER)
    (tmp_path / "elsewhere").mkdir()
    shutil.move(moved, tmp_path / "elsewhere" / "clean.py")
    checked(out, filters=(f"{tmp_path}/elsewhere/clean.py:keep",))
    world.run(out, filters=[f"{tmp_path}/elsewhere/clean.py:keep"])
    assert snapshot(out) == before


def test_what_an_output_names_is_not_run(world: World, tmp_path: Path, clean_py: Path) -> None:
    """Neither to encode again nor to finish; with it named, both end well."""
    out, options = tmp_path / "out", {"filters": [f"{clean_py}:keep"]}
    shard_part(world.config(out, **options, shard_index=0, shard_count=1), SILENT)
    clean_py.rename(tmp_path / "kept.py")
    finish(FinishConfig(directory=out), SILENT)
    clean_py.write_text(f"open({str(tmp_path / 'run')!r}, 'w')\n")
    with pytest.raises(UsageError, match=f"run only if you name them: give --filter {clean_py}:keep"):
        verify(VerifyConfig(directory=out, reencode=5), SILENT)
    assert not (tmp_path / "run").exists()
    (tmp_path / "kept.py").replace(clean_py)
    checked(out, filters=tuple(options["filters"]))
    whole = tmp_path / "whole"
    world.run(whole, **options)
    assert snapshot(whole) == snapshot(out)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_that_says_nothing_of_the_document_leaves_the_run_resumable(
    world: World, tmp_path: Path, workers: int
) -> None:
    (tmp_path / "service.py").write_text("def keep(document): raise ConnectionError('no answer')\n")
    with pytest.raises(TokkitError, match=r"service\.py:keep failed at .*ConnectionError: no answer") as caught:
        options = {"inputs": world.inputs[2:], "unit_bytes": 1 << 20, "workers": workers}
        world.run(tmp_path / "out", **options, filters=[f"{tmp_path}/service.py:keep"])
    assert caught.value.exit_code == 75
    assert not list((tmp_path / "out" / "commits").iterdir())


@pytest.mark.parametrize("dedup", [[], ["documents"]])
def test_a_filter_that_changes_before_a_worker_loads_it(
    world: World, tmp_path: Path, clean_py: Path, monkeypatch: pytest.MonkeyPatch, dedup: list[str]
) -> None:
    original = prepare.numeric_environment

    def change(*arguments: object) -> dict[str, object]:
        clean_py.write_text(FILTER + "# changed\n")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prepare, "numeric_environment", change)
    with pytest.raises(FingerprintMismatch, match=r"the filter clean\.py:keep has changed since the run began"):
        world.run(tmp_path / "out", filters=[f"{clean_py}:keep"], dedup=dedup)
    assert not list((tmp_path / "out" / "commits").iterdir())


def test_other_versions_of_what_repairs_are_refused(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    world.run(out, fix_text=["nfc"])
    for module in (prepare, __import__("tokkit.pipelines.reencode", fromlist=["x"])):
        monkeypatch.setattr(module, "repair_versions", lambda kinds: {"ftfy": "9.9", "unicode": "99.0"})
    with pytest.raises(FingerprintMismatch, match=r"- text_repair\.ftfy: 6\.[0-9.]+ -> 9\.9\n.*- text_repair\.unicode"):
        world.run(out, fix_text=["nfc"])
    with pytest.raises(DataError, match=r"texts were repaired by other versions .*ftfy: 6\.[0-9.]+ -> 9\.9"):
        verify(VerifyConfig(directory=out, reencode=5), SILENT)


def test_a_comparison_of_environments_admits_alike(
    world: World, tmp_path: Path, clean_py: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, options = tmp_path / "out", everything(clean_py)
    shard_part(world.config(out, **options, shard_index=0, shard_count=2), SILENT)
    original = prepare.numeric_environment
    monkeypatch.setattr(prepare, "numeric_environment", lambda *a: original(*a) | {"device": "another"})
    manifest = world.run(out, **options, allow_mixed=True)
    assert manifest.mixed is not None
    (agreement,) = manifest.mixed.agreements
    assert agreement.documents == agreement.equal_documents > 0
    assert agreement.units <= mixed.MOST_UNITS


# ---- what is wrong is told


def test_everything_wrong_is_told_at_once(tmp_path: Path, clean_py: Path) -> None:
    options = {
        "inputs": ["x"],
        "out": tmp_path / "out",
        "text_tokenizer": clean_py,
        "fix_text": ["nfc", "nfkc"],
        "filters": ["gone.py:keep"],
        "min_characters": 9,
        "max_characters": 5,
        "min_images": -1,
        "image_limits": {"min_side": 9, "max_side": 5},
    }
    with pytest.raises(ConfigError) as told:
        validated(ShardConfig, "tokkit shard", options)
    for line in (
        "fix_text: nfc and nfkc are two normalization forms",
        "filters: gone.py: no such file",
        "max_characters: less than the least, 9",
        "min_images: Input should be greater than or equal to 0",
        "image_limits: no picture is within these limits",
    ):
        assert line in str(told.value)


def test_errors_of_a_filter_count_against_the_budgets(world: World, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def keep(document): return document.nothing\n")
    with pytest.raises(TokkitError, match=r"--strict stops at the first reject: .*filter-error: bad\.py:keep: AttributeError"):
        world.run(tmp_path / "one", filters=[f"{tmp_path}/bad.py:keep"], strict=True)
    with pytest.raises(TokkitError, match=r"3 documents in a row were rejected"):
        world.run(tmp_path / "two", filters=[f"{tmp_path}/bad.py:keep"], max_consecutive_rejects=3)


def test_the_command_takes_all_of_it(
    capfd: pytest.CaptureFixture[str], world: World, tmp_path: Path, clean_py: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        captured = capfd.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    typed: list[object] = [
        "--filter",
        "clean.py:keep",
        "--filter",
        "clean.py:tidy",
        "--fix-text",
        "html",
        "--fix-text",
        "encoding",
    ]
    typed += ["--min-characters", 5, "--max-characters", 100, "--max-images", 2, "--where", "nsfw == no or null"]
    typed += ["--min-pixels", 200, "--max-side", 350, "--max-aspect", 10, "--keep-meta", "length", "--keep-meta", "n"]
    typed += ["--text-tokenizer", world.text, "--image-tokenizer", world.image, "--workers", 0, "--unit-size", 6000]
    typed += ["--batch-size", 4, "--val-fraction", 0.2, "--pair-order", "random", "--report-documents", 0, "-q"]
    code, _, errors = run("shard", *world.inputs, "--out", tmp_path / "one", *typed)
    assert code == 0, errors
    world.run(tmp_path / "two", **everything(clean_py))
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    job = json.loads((tmp_path / "one" / "run" / "job.json").read_text())
    assert job["filters"] == [f"{clean_py}:keep", f"{clean_py}:tidy"]
    assert str(tmp_path) not in (tmp_path / "one" / "config.json").read_text()
    monkeypatch.chdir(world.folder)
    functions = [part for spec in job["filters"] for part in ("--filter", spec)]
    code, _, errors = run("verify", tmp_path / "one", "--reencode", 1000, *functions)
    assert code == 0, errors
    code, _, errors = run("verify", tmp_path / "one", "--filter", "clean.py:keep")
    assert code == 2
    assert "--filter: only with --reencode N" in errors


# ---- functions that kill or hang

KILLS = """
import os, time
from pathlib import Path

def keep(document):
    if document.id == "t7":
        {action}
    return True
"""


def command(world: World, out: Path, filter_path: Path, *more: object) -> list[str]:
    import sys

    options = ["--out", out, "--text-tokenizer", world.text, "--workers", 2, "--unit-size", 300, "--report-documents", 0]
    options += ["--filter", f"{filter_path}:keep", "--quiet", *more]
    return [sys.executable, "-m", "tokkit.cli.main", "shard", world.inputs[2], *map(str, options)]


@pytest.mark.slow
@pytest.mark.parametrize("dedup", [[], ["--dedup", "documents"]])
@pytest.mark.parametrize(
    ("action", "cause"), [("os._exit(9)", "exit code 9"), ("import ctypes; ctypes.string_at(0)", "SIGSEGV")]
)
def test_a_document_at_which_a_filter_kills_is_a_reject(
    world: World, tmp_path: Path, action: str, cause: str, dedup: list[str]
) -> None:
    import subprocess

    (tmp_path / "kills.py").write_text(KILLS.format(action=action))
    process = subprocess.Popen(
        command(world, tmp_path / "out", tmp_path / "kills.py", *dedup), stderr=subprocess.PIPE, text=True
    )
    assert ended(process) == (0, "")
    lines = [json.loads(x) for p in (tmp_path / "out" / "rejects").iterdir() for x in p.read_text().splitlines()]
    (found,) = [line for line in lines if line["outcome"] == "rejected"]
    assert (found["id"], found["reason"]) == ("t7", "crashes-process")
    assert cause in found["message"]
    assert verify(VerifyConfig(directory=tmp_path / "out"), SILENT).ok


@pytest.mark.slow
def test_a_filter_that_hangs_stops_the_run_and_names_the_document(world: World, tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "kills.py").write_text(KILLS.format(action="time.sleep(10_000)"))
    arguments = command(world, tmp_path / "out", tmp_path / "kills.py", "--stall-seconds", 3)
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    code, errors = ended(process)
    assert code == 75
    assert "a.jsonl@" in errors
    committed = len(list((tmp_path / "out" / "commits").iterdir()))
    units = len((tmp_path / "out" / "run" / "units.jsonl").read_text().splitlines())
    assert committed == units - 1 > 0
