"""`tokkit shard` on a generated corpus: everything once, the same bytes whatever happens, nothing silent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from run_world import SILENT, World
from shard_corpus import (
    AUDIO,
    DOCUMENTS,
    PAIRS,
    TEXTS,
    CountsSlowly,
    FailsOnce,
    picture,
    snapshot,
)

from tokkit.errors import (
    BudgetExceeded,
    ConfigError,
    FingerprintMismatch,
    MediaTooLongError,
    ResumableStop,
    UsageError,
    VerificationError,
)
from tokkit.interleave import ImageCodes, Layout, TextCodes, decode
from tokkit.media.images import decode_image
from tokkit.pipelines import engine
from tokkit.pipelines.decoding import DecodedText, DocumentDecoder
from tokkit.pipelines.fingerprint import differences
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.plan import PlannedUnit, share_out
from tokkit.pipelines.progress import SilentProgress, Task
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.unit import UnitJob
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.native import open_shards
from tokkit.sources.base import Alive, Census, SourceOptions, Unit, silent
from tokkit.sources.jsonl import JsonlSource
from tokkit.sources.resolve import ResolvedInputs, resolve_inputs
from tokkit.sources.webdataset import WebDatasetSource
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.vocabulary import UnifiedVocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> ShardResult:
    """A run that nothing disturbed."""
    return world.result(world.folder / "clean")


# ---- every document and item once, and what it says


def test_every_document_and_item_has_one_outcome(clean: ShardResult) -> None:
    sources = {s.name: s for s in clean.manifest.sources}
    assert sources["pairs"].documents == {"committed": PAIRS - 4, "failed_upstream": 2, "rejected": 2}
    assert sources["pairs"].items == {"image": {"committed": PAIRS - 4, "rejected": 2}}
    assert sources["documents"].documents == {"committed": DOCUMENTS}
    pictures = sum(place % 2 != n % 2 for n in range(DOCUMENTS) for place in range(2 + n % 4))
    assert sum(sources["documents"].items["image"].values()) == pictures
    assert sources["documents"].items["image"] == {"committed": pictures - 2, "failed_upstream": 1, "rejected": 1}
    assert sources["texts"].documents == {"committed": TEXTS - 2, "rejected": 2}
    assert sources["audio"].documents == {"filtered": AUDIO}
    assert sources["audio"].items == {"audio": {"filtered": AUDIO}}
    assert sources["audio"].reasons == {"document/filtered/no-audio-tokenizer": 3, "item/filtered/no-audio-tokenizer": 3}
    for source in sources.values():
        assert sum(source.documents.values()) == source.counted_documents
        for modality, count in source.counted_items.items():
            assert sum(source.items[modality].values()) == count
    assert clean.manifest.documents["committed"] == sum(s.documents for s in clean.manifest.splits.values())


def test_rejects_are_written_down_with_reason_and_place(clean: ShardResult) -> None:
    lines = [json.loads(line) for f in sorted((clean.out / "rejects").iterdir()) for line in f.read_text().splitlines()]
    found = {(e["level"], e["locator"], e["outcome"], e["reason"]) for e in lines}
    assert ("document", "00000.tar#000000007", "rejected", "image-truncated") in found
    assert ("document", "00000.tar#000000011", "rejected", "image-unrecognised") in found
    assert ("document", "00000.tar#000000005", "failed_upstream", "failed-to-download") in found
    assert ("item", "d.parquet:3", "failed_upstream", "image-not-found") in found
    assert ("item", "d.parquet:6", "rejected", "image-truncated") in found
    assert {e["reason"] for e in lines if e["source"] == "texts"} == {"json-invalid", "no-text"}
    assert all(e["message"] for e in lines if e["outcome"] == "rejected")
    assert sum(e["level"] == "document" for e in lines) == sum(
        count for outcome, count in clean.manifest.documents.items() if outcome != "committed"
    )


def documents_of(out: Path) -> Iterator[tuple[str, str, list[object]]]:
    """(source, locator, parts) of every document; pictures as code arrays, text as str."""
    decoder = DocumentDecoder(out)
    for split, shards in decoder.shards.items():
        for number in range(shards.num_documents):
            document = decoder.decode(split, number)
            parts = [p.text if isinstance(p, DecodedText) else p.codes for p in document.parts]  # type: ignore[union-attr]
            yield str(document.row["source"]), str(document.row["locator"]), parts


def test_text_comes_back_exactly_and_in_order(world: World, clean: ShardResult) -> None:
    found = {(source, locator): parts for source, locator, parts in documents_of(clean.out)}
    assert len(found) == clean.manifest.documents["committed"]
    for locator, text in world.corpus.texts.items():
        assert found["texts", locator] == [text]
    orders = set()
    for locator, caption in world.corpus.pairs.items():
        parts = found["pairs", locator]
        orders.add(isinstance(parts[0], str))
        assert [p for p in parts if isinstance(p, str)] == [caption]
    assert orders == {True, False}  # --pair-order random
    for locator, says in world.corpus.documents.items():
        kinds = [p if isinstance(p, str) else None for p in found["documents", locator]]
        expected: list[str | None] = []
        for said in says:
            if said is not None and expected and expected[-1] is not None:
                expected[-1] += "\n\n" + said  # a picture between them was lost
            else:
                expected.append(said)
        assert kinds == expected


def test_picture_codes_are_the_tokenizers_own_whatever_the_neighbours(world: World, clean: ShardResult) -> None:
    """Each picture encoded alone, in the first slot of a batch of the run's shape, has the codes in the shards."""
    import torch

    tokenizer = load_image_tokenizer(world.image)
    checked = 0
    for source, locator, parts in documents_of(clean.out):
        codes = [p for p in parts if not isinstance(p, str)]
        if source == "pairs":
            seeds = [int(locator.rpartition("#")[2])]
        else:
            number = int(locator.rpartition(":")[2]) if source == "documents" else 0
            places = [p for p in range(2 + number % 4) if p % 2 != number % 2 and (number, p) not in {(3, 2), (6, 1)}]
            seeds = [1000 + 10 * number + place for place in places] if source == "documents" else []
        assert len(seeds) == len(codes)
        for seed, found in zip(seeds, codes, strict=True):
            batch = np.zeros((4, 32, 32, 3), dtype=np.uint8)
            batch[0] = tokenizer.config.preprocessing.apply(decode_image(picture(seed)))
            assert np.array_equal(tokenizer.encode(torch.from_numpy(batch))[0].numpy(), found[0])
            checked += 1
    assert checked == clean.manifest.items["image"]["committed"]


def test_every_batch_has_the_fixed_shape(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.tokenizers.image.model import ImageTokenizer

    normalize, shapes = ImageTokenizer.normalize, []

    def seen(self: ImageTokenizer, pixels):  # type: ignore[no-untyped-def]
        shapes.append(tuple(pixels.shape))
        return normalize(self, pixels)

    monkeypatch.setattr(ImageTokenizer, "normalize", seen)
    result = world.result(tmp_path / "out", pack=None, report_documents=0)
    pictures = result.manifest.items["image"]["committed"]
    assert set(shapes) == {(4, 32, 32, 3)}
    assert len(shapes) < pictures / 2  # and they are filled across documents


def test_a_hugging_face_tokenizer_does_as_well(world: World, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["</s>", "<image>"])
    tokenizer.train_from_iterator(["the quick brown fox jumps"] * 9, trainer)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    result = world.result(tmp_path / "out", text_tokenizer=tmp_path / "tokenizer.json", text_vocab_size=512, pack=None)
    assert result.manifest.tokenizers["text"].kind == "huggingface"
    assert result.manifest.tokenizers["text"].lossless
    found = {(source, locator): parts for source, locator, parts in documents_of(result.out)}
    for locator, text in world.corpus.texts.items():
        assert found["texts", locator] == [text]
    assert UnifiedVocabulary.load(result.out / "vocabulary.json").marker("begin_document") == 512


def test_the_split_is_by_content_and_kept_apart(world: World, clean: ShardResult) -> None:
    train, val = open_shards(clean.out, "train"), open_shards(clean.out, "val")
    assert 0 < val.num_documents < train.num_documents
    rows = [(s.split, row) for s in (train, val) for t in s.tables() for row in t.to_pylist()]
    assert all(split == row["split"] for split, row in rows)
    assert len({row["hash"] for _, row in rows}) == len(rows)


def test_shards_are_closed_at_the_wished_size_in_document_order(clean: ShardResult) -> None:
    shards = clean.manifest.splits["train"].shards
    assert len(shards) > 2
    assert all(s.tokens >= 1500 for s in shards[:-1])
    rows = [row for t in open_shards(clean.out, "train").tables() for row in t.to_pylist()]
    units = [row["unit"] for row in rows]
    assert units == sorted(units)
    pairs = [row["locator"] for row in rows if row["source"] == "pairs"]
    assert pairs == sorted(pairs)


def test_metadata_that_is_asked_for_is_kept(world: World, tmp_path: Path) -> None:
    world.result(tmp_path / "out", metadata=["license", "meta", "url"], pack=None)
    rows = [row for s in ("train", "val") for t in open_shards(tmp_path / "out", s).tables() for row in t.to_pylist()]
    kept = {row["source"]: json.loads(row["metadata"]) for row in rows}
    assert kept["pairs"] == {"license": "none"}
    assert kept["texts"] == {"meta": {"lang": "en"}}
    assert kept["documents"]["url"].startswith("https://example.org/")


@pytest.mark.parametrize("layout", ["rows", "grid"])
def test_other_layouts_decode_too(world: World, tmp_path: Path, layout: str) -> None:
    result = world.result(tmp_path / "out", image_layout=layout, pack=None)
    assert verify(VerifyConfig(directory=result.out), SILENT).ok
    vocabulary = UnifiedVocabulary.load(result.out / "vocabulary.json")
    parts = decode(open_shards(result.out).tokens(0), vocabulary, Layout(layout))  # type: ignore[arg-type]
    assert {type(p) for p in parts} == {ImageCodes, TextCodes}


def test_files_that_are_not_read_are_listed(world: World, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world.corpus.folder / "texts", tmp_path / "texts"))
    (folder / "notes.docx").write_bytes(b"PK")
    result = world.result(tmp_path / "out", inputs=[str(folder)], pack=None)
    assert sum(result.manifest.ignored.values()) == 1
    assert "notes.docx" in (tmp_path / "out" / "run" / "ignored.jsonl").read_text()


def test_without_an_image_tokenizer_pictures_are_filtered_and_said_so(world: World, tmp_path: Path) -> None:
    result = world.result(tmp_path / "out", image_tokenizer=None, pack=None)
    sources = {s.name: s for s in result.manifest.sources}
    assert sources["pairs"].documents == {"failed_upstream": 2, "filtered": PAIRS - 2}
    assert sources["documents"].documents == {"committed": DOCUMENTS}
    assert sources["documents"].reasons["item/filtered/no-image-tokenizer"] > 0


# ---- the same bytes, whatever happens


def test_workers_and_batches_of_work_do_not_change_a_byte(world: World, clean: ShardResult, tmp_path: Path) -> None:
    world.result(tmp_path / "two", workers=2)
    assert snapshot(tmp_path / "two") == snapshot(clean.out)


def test_the_cut_into_units_does_not_change_the_tokens(world: World, clean: ShardResult, tmp_path: Path) -> None:
    result = world.result(tmp_path / "other", unit_bytes=1 << 30)
    assert result.manifest.units < clean.manifest.units
    for name in ("tokens/train/00000.bin", "tokens/val/00000.bin", "tokens/train/00000.idx"):
        assert (result.out / name).read_bytes() == (clean.out / name).read_bytes()


def test_the_same_command_again_changes_nothing(world: World, clean: ShardResult) -> None:
    before = snapshot(clean.out)
    again = world.result(clean.out)
    assert again.summary["units"] == 0
    assert snapshot(clean.out) == before


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9_in_the_middle_and_the_same_command_again(
    world: World, clean: ShardResult, tmp_path: Path, workers: int
) -> None:
    """The whole process group is killed after 1, 2, 4... commits, again and again, until a run comes to its end."""
    out = tmp_path / "out"
    units = clean.manifest.units
    kills = 0
    for after in (1, 3, units // 2, units - 1):
        process = subprocess.Popen(
            world.command(out, workers), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )
        while process.poll() is None and len(list((out / "commits").glob("*.json"))) < after:
            time.sleep(0.002)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
    assert kills >= 3
    done = subprocess.run(world.command(out, workers), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert snapshot(out) == snapshot(clean.out)
    assert not (out / "run" / "payloads").exists()


class StopError(Exception):
    """What stands in for a fault in the program."""


@pytest.mark.parametrize("step", ["coalesce", "publish_rejects", "write_report", "pack", "rename"])
def test_a_run_that_is_cut_short_at_its_end_goes_on(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Faults in the middle of coalescing, before the manifest, and after it: the next run completes the output."""
    import tokkit.pipelines.completion
    import tokkit.pipelines.pack
    import tokkit.pipelines.report
    import tokkit.pipelines.shard
    from tokkit.shards.native import ShardWriter

    def fault(*args: object, **kwargs: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        if step == "rename":
            finish, calls = ShardWriter.finish, []

            def second(self: ShardWriter, *args: object, **kwargs: object) -> object:
                calls.append(1)
                if len(calls) > clean.manifest.units + 1:
                    raise StopError
                return finish(self, *args, **kwargs)  # type: ignore[arg-type]

            patch.setattr(ShardWriter, "finish", second)
        elif step in ("pack", "write_report"):
            patch.setattr(getattr(tokkit.pipelines, {"pack": "pack", "write_report": "report"}[step]), step, fault)
        else:
            patch.setattr(tokkit.pipelines.shard if step == "coalesce" else tokkit.pipelines.completion, step, fault)
        with pytest.raises(StopError):
            world.result(tmp_path / "out")
    world.result(tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_a_sequence_no_picture_fits_into_is_refused_before_anything_is_done(world: World, tmp_path: Path) -> None:
    fits = world.result(tmp_path / "fits", inputs=[str(world.corpus.folder / "pairs")], pack=None).manifest.layout.image_grid
    assert fits is not None
    tokens = fits[0] * fits[1] + 2
    for more in ({}, {"resolution_policy": "bucket", "buckets": ["32x32", "64x64"]}):
        with pytest.raises(MediaTooLongError, match=rf"--pack {tokens - 1}: a picture takes .* tokens"):
            world.result(tmp_path / "out", pack=tokens - 1, **more)
    assert not (tmp_path / "out").exists()


def test_a_run_whose_plan_is_refused_is_finished_but_for_the_plan(world: World, tmp_path: Path) -> None:
    """Of pictures of their own sizes nothing is known beforehand: the run is done, with its report, and a plan can be made."""
    options = {"inputs": [str(world.corpus.folder / "documents")], "resolution_policy": "native", "val_fraction": 0.0}
    whole = world.result(tmp_path / "whole", **options, pack=None)
    spans = open_shards(whole.out, "train").spans
    longest = int(spans.length[spans.modality == 1].max())
    out = tmp_path / "out"
    refused = rf"is finished, but for its packing plan: .*`tokkit pack .*out --seq-len {longest}` plans"
    for _ in range(2):
        with pytest.raises(MediaTooLongError, match=refused):
            world.result(out, **options, pack=longest - 1)
        assert not (out / "run" / "payloads").exists()
        assert not (out / "packs").exists()
        assert snapshot(out) == snapshot(whole.out)
    assert "report.html" in snapshot(out)
    left_out = world.result(out, **options, pack=longest - 1, pack_too_long="leave-out").packs["train"].left_out
    assert left_out["media-span-longer-than-seq-len"] > 0
    assert pack(PackConfig(directory=out, seq_len=longest), SILENT).splits["train"].left_out == {}


def test_what_an_end_that_was_killed_left_behind_is_removed(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokkit.pipelines.completion

    def fault(*args: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(tokkit.pipelines.completion, "publish_rejects", fault)
        with pytest.raises(StopError):
            world.result(tmp_path / "out")
    for name in (
        "tokens/train/00099.bin",
        "tokens/val/shard.bin.tmp-1-ab",
        "rejects/00099.jsonl",
        "commits/x.json.tmp-1-ab",
        "manifest.json.tmp-1-ab",
    ):
        (tmp_path / "out" / name).write_bytes(b"left")
    world.result(tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_documents_keep_their_order_while_a_picture_waits_for_its_batch(world: World, tmp_path: Path) -> None:
    """One picture, then more texts than may wait: all are written, the picture's document first."""
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "p.png").write_bytes(picture(5))
    strings = pa.list_(pa.string())
    rows = [f"text number {n}" for n in range(1500)]
    table = pa.table(
        {
            "images": pa.array([["p.png", None]] + [[None]] * 1500, strings),
            "texts": pa.array([[None, "after the picture"]] + [[r] for r in rows], strings),
        }
    )
    pq.write_table(table, folder / "d.parquet")
    out = world.result(tmp_path / "out", inputs=[str(folder)], pack=None, unit_bytes=1 << 30, val_fraction=0.0).out
    locators = [row for t in open_shards(out).tables(["locator"]) for row in t.column("locator").to_pylist()]
    assert locators == [f"d.parquet:{n}" for n in range(1501)]
    found = [parts for _, _, parts in documents_of(out)]
    assert [type(p) for p in found[0]] == [np.ndarray, str]
    assert [parts[0] for parts in found[1:]] == rows


def test_a_commit_whose_payload_is_lost_is_done_again(world: World, clean: ShardResult, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    import tokkit.pipelines.shard

    def fault(*args: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(tokkit.pipelines.shard, "coalesce", fault)
        with pytest.raises(StopError):
            world.result(tmp_path / "out")
    payloads = sorted((tmp_path / "out" / "run" / "payloads").glob("00002-*.bin"))
    payloads[0].unlink()
    world.result(tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_a_payload_that_changed_on_disk_is_noticed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokkit.pipelines.shard

    def fault(*args: object) -> None:
        raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(tokkit.pipelines.shard, "coalesce", fault)
        with pytest.raises(StopError):
            world.result(tmp_path / "out")
    payload = sorted((tmp_path / "out" / "run" / "payloads").glob("00002-*.bin"))[0]
    data = bytearray(payload.read_bytes())
    data[4] ^= 1
    payload.write_bytes(data)
    with pytest.raises(VerificationError, match="changed since it was committed"):
        world.result(tmp_path / "out")


# ---- what a run refuses


def test_another_configuration_is_refused_and_the_difference_named(world: World, clean: ShardResult) -> None:
    with pytest.raises(FingerprintMismatch, match=r"seed: 0 -> 1"):
        world.result(clean.out, seed=1)
    with pytest.raises(FingerprintMismatch, match=r"batch_size: 4 -> 8"):
        world.result(clean.out, batch_size=8)


def test_another_tokenizer_is_refused(world: World, clean: ShardResult, tmp_path: Path) -> None:
    import torch

    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import configure

    torch.manual_seed(1)
    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(tmp_path / "vq")
    with pytest.raises(FingerprintMismatch, match=r"tokenizers\.image"):
        world.result(clean.out, image_tokenizer=tmp_path / "vq")


def test_changed_and_missing_input_is_noticed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokkit.pipelines.shard

    def fault(*args: object) -> None:
        raise StopError

    shutil.copytree(world.corpus.folder / "texts", tmp_path / "texts")
    shutil.copyfile(tmp_path / "texts" / "a.jsonl.gz", tmp_path / "texts" / "b.jsonl.gz")
    options = {"inputs": [str(tmp_path / "texts")]}
    with monkeypatch.context() as patch:
        patch.setattr(tokkit.pipelines.shard, "coalesce", fault)
        with pytest.raises(StopError):
            world.result(tmp_path / "out", **options)
    (tmp_path / "texts" / "b.jsonl.gz").unlink()
    with pytest.raises(FingerprintMismatch, match=r"gone: texts/b\.jsonl\.gz"):
        world.result(tmp_path / "out", **options)
    with (tmp_path / "texts" / "a.jsonl.gz").open("ab") as file:
        file.write(b"\0" * 8)
    with pytest.raises(FingerprintMismatch, match=r"changed: texts/a\.jsonl\.gz"):
        world.result(tmp_path / "out", **options)


def test_a_directory_of_something_else_is_left_alone(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="not empty"):
        world.result(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_all_wrong_options_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        validated(
            ShardConfig,
            "test",
            {"inputs": [], "out": tmp_path, "text_tokenizer": tmp_path / "none.model", "val_fraction": 2, "pair_order": "x"},
        )
    assert {p.split(":")[0] for p in caught.value.problems} == {"inputs", "text_tokenizer", "val_fraction", "pair_order"}


# ---- errors


def test_strict_stops_at_the_first_reject(world: World, tmp_path: Path) -> None:
    with pytest.raises(BudgetExceeded, match=r"000000007: image-truncated"):
        world.result(tmp_path / "out", strict=True)


def test_too_many_rejects_in_a_row_stop_the_run(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    good, bad = '{"text": "good"}\n', "{broken\n"
    (folder / "a.jsonl").write_text(good + bad * 4 + good + bad * 5)
    with pytest.raises(BudgetExceeded, match="5 documents in a row"):
        world.result(tmp_path / "out", inputs=[str(folder)], max_consecutive_rejects=5)
    assert world.result(tmp_path / "fine", inputs=[str(folder)], max_consecutive_rejects=6).manifest.documents == {
        "committed": 2,
        "rejected": 9,
    }


def test_a_ratio_of_rejects_stops_the_run(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.jsonl").write_text(('{"text": "good"}\n' + "{broken\n" * 2) * 400)
    with pytest.raises(BudgetExceeded, match=r"800 of 1200 documents .* json-invalid"):
        world.result(tmp_path / "out", inputs=[str(folder)], unit_bytes=1 << 20)
    world.result(tmp_path / "fine", inputs=[str(folder)], unit_bytes=1 << 20, max_reject_ratio=0.7)


def test_a_passing_failure_of_the_disk_rejects_nothing(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failed = JsonlSource.read, []

    def flaky(self: JsonlSource, unit: object) -> object:
        if not failed:
            failed.append(unit)
            raise OSError(5, "Input/output error")
        return read(self, unit)  # type: ignore[arg-type]

    monkeypatch.setattr(JsonlSource, "read", flaky)
    world.result(tmp_path / "out")
    assert failed
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


@pytest.mark.slow
def test_a_unit_that_fails_in_a_worker_is_taken_up_again(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokkit.pipelines.shard

    def resolve(inputs: list[str], options: SourceOptions) -> ResolvedInputs:
        found = resolve_inputs(inputs, options)
        sources = [FailsOnce(s.name, s.root, s.files) if isinstance(s, JsonlSource) else s for s in found.sources]
        for source in sources:
            source.mark = tmp_path / "failed"  # type: ignore[attr-defined]
        return ResolvedInputs(sources, found.ignored)

    monkeypatch.setattr(tokkit.pipelines.shard, "resolve_inputs", resolve)
    world.result(tmp_path / "out", workers=2)
    assert (tmp_path / "failed").exists()
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_a_count_that_takes_longer_than_a_stall_is_no_stall(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that counts a large file gives signs of life, so nothing is done twice."""
    import tokkit.pipelines.shard

    found = resolve_inputs([str(world.corpus.folder / "texts")])
    slow = ResolvedInputs([CountsSlowly(s.name, s.root, s.files) for s in found.sources], found.ignored)
    monkeypatch.setattr(tokkit.pipelines.shard, "resolve_inputs", lambda inputs, options: slow)
    inputs = [str(world.corpus.folder / "texts")]
    result = world.result(tmp_path / "out", inputs=inputs, pack=None, workers=1, stall_seconds=1.5, image_tokenizer=None)
    assert result.summary["lost"] == {"documents": 0, "images": 0, "sounds": 0, "tokens": 0}


def test_the_summary_tells_what_was_committed_and_apart_what_was_lost(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An attempt that fails at its end has read, encoded and reported everything; the bar goes back by it, too."""
    fails = [OSError(5, "Input/output error")]
    census = WebDatasetSource.census

    def once(self: WebDatasetSource, unit: Unit, alive: Alive = silent) -> Census:
        if fails:
            alive()
            raise fails.pop()
        return census(self, unit, alive)

    class Watched(SilentProgress):
        done = total = 0.0

        def start(self, name: str, total: float | None, unit: str) -> Task:
            task, watched = super().start(name, total, unit), self
            if name == "encode":
                self.total = total or 0.0

                def advance(amount: float = 1) -> None:
                    watched.done += amount

                monkeypatch.setattr(task, "advance", advance)
            return task

    monkeypatch.setattr(WebDatasetSource, "census", once)
    monkeypatch.setattr("tokkit.pipelines.attempt.REPORT_EVERY", 0.0)
    progress = Watched()
    result = shard(world.config(tmp_path / "out"), progress)
    assert snapshot(result.out) == snapshot(clean.out)
    manifest, summary = result.manifest, result.summary
    assert summary["documents"] == sum(manifest.documents.values())
    assert summary["images"] == manifest.items["image"]["committed"]
    assert summary["tokens"] == sum(split.tokens for split in manifest.splits.values())
    lost: dict[str, int] = summary["lost"]  # type: ignore[assignment]
    assert lost["documents"] > 0
    assert lost["images"] > 0
    assert progress.done == pytest.approx(progress.total)


def test_a_full_disk_at_the_end_leaves_the_run_resumable(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tokkit.pipelines.shard

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tokkit.pipelines.shard, "coalesce", full)
        with pytest.raises(ResumableStop, match="No space left on device"):
            world.result(tmp_path / "out")
    world.result(tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_a_lasting_failure_leaves_the_run_resumable(
    world: World, clean: ShardResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: JsonlSource, unit: object) -> object:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(JsonlSource, "read", broken)
        with pytest.raises(ResumableStop, match=r"texts/a\.jsonl\.gz .*Input/output error") as caught:
            world.result(tmp_path / "out")
    assert caught.value.exit_code == 75
    assert len(list((tmp_path / "out" / "commits").iterdir())) == clean.manifest.units - 1
    world.result(tmp_path / "out")
    assert snapshot(tmp_path / "out") == snapshot(clean.out)


def test_a_fault_in_the_program_stops_the_run_at_once(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: WebDatasetSource, unit: object) -> object:
        return [][1]

    monkeypatch.setattr(WebDatasetSource, "read", wrong)
    with pytest.raises(IndexError):
        world.result(tmp_path / "out")


def test_what_a_source_loses_is_noticed(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A source that drops a document in silence: the sums do not add up, and the run says where."""
    read = JsonlSource.read

    class Dropping:
        def __init__(self, reader: object) -> None:
            self.reader = reader
            self.consumed = 0.0

        def __iter__(self) -> Iterator[object]:
            yield from list(self.reader)[1:]  # type: ignore[call-overload]

    monkeypatch.setattr(JsonlSource, "read", lambda self, unit: Dropping(read(self, unit)))
    with pytest.raises(VerificationError, match=rf"{TEXTS} documents counted, {TEXTS - 1} with an outcome"):
        world.result(tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_worker_errors_keep_their_traceback(world: World, tmp_path: Path) -> None:
    job = UnitJob(world.config(tmp_path / "out"), {}, UnifiedVocabulary.build(10), Layout(), "cpu", "x")
    unit = Unit("nowhere", "f", "f", 0, 1, 1)
    units = [PlannedUnit(0, unit), PlannedUnit(1, unit)]
    with pytest.raises(engine.WorkerError, match=r"(?s)Traceback.*KeyError: 'nowhere'"):
        engine.run_units(job, units, 2, lambda work: None, lambda planned, record: None)


# ---- trials


def test_a_trial_takes_n_documents_and_extrapolates(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "lines"
    folder.mkdir()
    lines = [json.dumps({"text": "some words of a line " * (5 + n * 7 % 30)}) + "\n" for n in range(600)]
    (folder / "a.jsonl").write_text("".join(lines))
    inputs = [str(folder), str(world.corpus.folder / "pairs")]
    whole = world.result(tmp_path / "whole", inputs=inputs, pack=None).manifest
    result = world.result(tmp_path / "trial", inputs=inputs, pack=None, limit=60, unit_bytes=20000)
    trial = result.manifest.trial
    assert trial is not None
    assert sum(result.manifest.documents.values()) == trial["documents_read"] == 60
    assert all(sum(s.documents.values()) > 0 for s in result.manifest.sources)
    assert int(str(trial["estimated_documents"])) == pytest.approx(sum(whole.documents.values()), rel=0.2)
    assert int(str(trial["estimated_tokens"])) == pytest.approx(sum(s.tokens for s in whole.splits.values()), rel=0.2)
    assert float(str(result.summary["estimated_hours"])) >= 0
    assert verify(VerifyConfig(directory=result.out), SILENT).ok


def test_a_trial_shares_out_exactly() -> None:
    assert share_out(10, [1, 1, 1]) == [4, 3, 3]
    assert share_out(2, [1, 1, 8]) == [0, 0, 2]
    assert sum(q or 0 for q in share_out(1000, [3, 14, 15, 92, 65, 35])) == 1000


# ---- verify


@pytest.fixture
def copy(clean: ShardResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean.out, tmp_path / "copy"))


def test_a_finished_directory_agrees_with_itself(clean: ShardResult) -> None:
    result = verify(VerifyConfig(directory=clean.out), SILENT)
    assert result.problems == []
    assert result.checked["documents"] == clean.manifest.documents["committed"]
    assert result.checked["documents parsed"] == clean.manifest.documents["committed"]
    assert result.checked["packing plans"] == 2


def first_rejects(out: Path) -> Path:
    return min((out / "rejects").iterdir())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("tokens/train/00000.bin", "damaged"),
        ("tokens/train/00000.idx", "damaged"),
        ("tokens/val/00000.parquet", "damaged"),
        ("commits/00001.json", "commits/"),
        ("rejects/FIRST", "rejects/"),
        ("vocabulary.json", "vocabulary"),
    ],
)
def test_one_changed_byte_is_found(copy: Path, name: str, problem: str) -> None:
    name = name.replace("FIRST", first_rejects(copy).name)
    data = bytearray((copy / name).read_bytes())
    at = data.index(b'"size": ') + 8 if name == "vocabulary.json" else len(data) // 2
    data[at] ^= 1
    (copy / name).write_bytes(data)
    result = verify(VerifyConfig(directory=copy), SILENT)
    assert not result.ok
    assert problem in str(result.problems[0])


def test_missing_and_foreign_files_are_found(copy: Path) -> None:
    (copy / "tokens" / "train" / "00000.idx").unlink()
    (copy / "tokens" / "train" / "mine.bin").write_bytes(b"")
    first_rejects(copy).unlink()
    problems = verify(VerifyConfig(directory=copy), SILENT).problems
    assert [p.where for p in problems[:2]] == ["tokens/train/00000.idx", "tokens/train/mine.bin"]
    assert "rejects/" in problems[2].where


def _rewrite(copy: Path, change) -> None:  # type: ignore[no-untyped-def]
    """Change the first train shard's tokens and make the checksums fit, as a faulty writer would."""
    from tokkit.storage import pretty_json, sha256_file

    path = copy / "tokens" / "train" / "00000.bin"
    ids = np.fromfile(path, dtype="<u2")
    change(ids)
    ids.tofile(path)
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][0]["files"]["bin"]["sha256"] = sha256_file(path)
    (copy / "manifest.json").write_text(pretty_json(manifest))
    shutil.rmtree(copy / "packs")


def test_ids_that_contradict_their_spans_are_found(copy: Path) -> None:
    vocabulary = UnifiedVocabulary.load(copy / "vocabulary.json")
    row = open_shards(copy).row(0)
    image = next(s for s in row["spans"] if s["modality"] == "image")  # type: ignore[attr-defined]
    text = next(s for s in row["spans"] if s["modality"] == "text")  # type: ignore[attr-defined]

    def put(at: int, token: int):  # type: ignore[no-untyped-def]
        return lambda ids: ids.__setitem__(at, token)

    changes = {
        put(image["start"] + 3, 5): "text code 5",
        put(text["start"], vocabulary.marker("end_image")): "marker end_image",
        put(text["start"], int(vocabulary.encode("image", 3))): "image code 3",
        put(image["start"] + 3, vocabulary.size - 1): "an unused id",
        put(0, 5): "begin_document",
    }
    original = (copy / "tokens" / "train" / "00000.bin").read_bytes(), (copy / "manifest.json").read_bytes()
    for change, problem in changes.items():
        (copy / "tokens" / "train" / "00000.bin").write_bytes(original[0])
        (copy / "manifest.json").write_bytes(original[1])
        shutil.rmtree(copy / "packs", ignore_errors=True)
        (copy / "packs").mkdir()
        _rewrite(copy, change)
        for decoded in (0, 1000):  # span by span, and by the grammar too
            found = verify(VerifyConfig(directory=copy, decode_at_most=decoded), SILENT)
            assert not found.ok
            assert problem in " ".join(map(str, found.problems)), problem


def test_counts_that_do_not_add_up_are_found(copy: Path) -> None:
    from tokkit.storage import pretty_json

    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["documents"]["committed"] -= 1
    manifest["documents"]["rejected"] += 1
    (copy / "manifest.json").write_text(pretty_json(manifest))
    problems = " ".join(map(str, verify(VerifyConfig(directory=copy), SILENT).problems))
    assert "documents: the commit records add up to" in problems


def test_differences_are_named_to_the_leaf() -> None:
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 4}) == [
        "a.c: 2 -> 5",
        "d: 3 -> none",
        "e: none -> 4",
    ]


def test_a_damaged_container_is_an_error_with_its_range_and_the_rest_is_kept(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    data = (world.corpus.folder / "pairs" / "00000.tar").read_bytes()
    (folder / "00000.tar").write_bytes(data[: len(data) // 2])
    result = world.result(tmp_path / "out", inputs=[str(folder)], unit_bytes=1 << 20)
    assert result.manifest.container_errors == 1
    assert 0 < result.manifest.documents["committed"] < PAIRS - 4
    lines = [json.loads(x) for x in (result.out / "rejects" / "00000.jsonl").read_text().splitlines()]
    damage = next(e for e in lines if e["level"] == "container")
    assert damage["locator"] == "00000.tar"
    assert 0 < damage["bytes"][0] < damage["bytes"][1] == len(data) // 2
    assert verify(VerifyConfig(directory=result.out), SILENT).ok
