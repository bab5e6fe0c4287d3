"""`tokkit features` on the generated corpus: the promises of token shards, kept by the same engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import feature_double
import numpy as np
import pyarrow.parquet as pq
import pytest
from feature_double import DIM, Double, DoubleConfig, options
from shard_corpus import Corpus, picture, snapshot, write_corpus, write_tokenizers

import tokkit.pipelines.features
from tokkit.data.packed import PackedDataset
from tokkit.errors import ConfigError, DataError, FingerprintMismatch, ResumableStop, UsageError, VerificationError
from tokkit.failpoints import VARIABLE
from tokkit.features.manifest import load_cache_manifest
from tokkit.features.store import open_cache
from tokkit.features.writer import SUFFIXES
from tokkit.media.images import decode_image
from tokkit.pipelines import finish_run, reencode_features
from tokkit.pipelines.features import FeaturesConfig, FeaturesResult, features, features_part
from tokkit.pipelines.findings import ADVICE, Code, VerifyResult
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.inspect import InspectConfig, inspect_document
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.remove import RemoveConfig, remove
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import load_manifest
from tokkit.storage import record_json
from tokkit.tokenizers.text import load_text_tokenizer

SILENT = SilentProgress()


class World:
    """The corpus, the text model, and the options that runs share."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus: Corpus = write_corpus(folder / "corpus")
        self.text, self.image = write_tokenizers(folder / "tokenizers")

    def config(self, out: Path, **more: Any) -> FeaturesConfig:
        return DoubleConfig.model_validate(options(self.corpus.folder, self.text, out) | more)

    def run(self, out: Path, **more: Any) -> FeaturesResult:
        return features(self.config(out, **more), SILENT)

    def start(self, out: Path, workers: int, point: str) -> subprocess.Popen[str]:
        script = Path(__file__).with_name("feature_double.py")
        command = [sys.executable, str(script), *map(str, (self.corpus.folder, self.text, out, workers))]
        return subprocess.Popen(command, env={**os.environ, VARIABLE: point}, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> FeaturesResult:
    """A run that nothing disturbed."""
    return world.run(world.folder / "clean")


# ---- every document and item once, and what it holds


def test_every_document_and_item_has_one_outcome(world: World, clean: FeaturesResult) -> None:
    """The same as token shards come to of the same corpus, but for what has no encoder."""
    manifest = clean.manifest
    shards = shard(
        ShardConfig.model_validate(
            {key: value for key, value in options(world.corpus.folder, world.text, world.folder / "tokens").items()
             if key not in ("encoder", "shard_bytes")} | {"image_tokenizer": world.image, "report_documents": 0}
        ),
        SILENT,
    ).manifest  # fmt: skip
    assert manifest.documents == shards.documents
    assert manifest.items == shards.items
    assert sum(totals.items for totals in manifest.features.values()) == manifest.items["image"]["committed"]
    assert sum(split.documents for split in manifest.splits.values()) == manifest.documents["committed"]
    assert verify(VerifyConfig(directory=clean.out), SILENT).ok


def test_features_are_the_encoders_own_and_stand_at_their_places(world: World, clean: FeaturesResult) -> None:
    tokenizer, encoder = load_text_tokenizer(world.text), Double()
    seen = 0
    for split in clean.manifest.splits:
        cache = open_cache(clean.out, split)
        rows = [row for table in cache.document_tables(["locator"]) for row in table.column("locator").to_pylist()]
        for number, locator in enumerate(rows):
            says = world.corpus.documents.get(locator)
            if says is None:
                continue
            document = cache.document(number)
            position, places, texts = 0, [], []
            before: str | None = None
            joined: list[str | None] = []
            for part in says:  # neighbours of a lost picture are one text
                if part is not None and before is not None and joined:
                    joined[-1] = f"{joined[-1]}\n\n{part}"
                else:
                    joined.append(part)
                before = part
            for part in joined:
                if part is None:
                    places.append(position)
                else:
                    texts.append(part)
                    position += len(tokenizer.encode(part))
            assert document.positions.tolist() == places
            assert np.array_equal(document.ids, np.concatenate([np.zeros(0, np.int32), *map(tokenizer.encode, texts)]))
            source = int(locator.rpartition(":")[2])
            for index in document.items:
                row = cache.entry(index)
                data = next(d for p in range(6) if (d := picture(1000 + 10 * source + p)) and row.hash == hash_of(d))
                expected = encoder.encode([encoder.prepare(decode_image(data))], 4)[0]
                assert np.array_equal(cache.features(index), expected.features.astype(np.float16))
                assert row.tiles == expected.tiles
                assert row.newlines == (20, 24)
                assert row.extra == {"views": 3}
                assert (row.width, row.height) == (40, 33)
                seen += 1
    assert seen > 15


def hash_of(data: bytes) -> str:
    from tokkit.documents import Image

    return Image(data, "x").hash


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_other_forms_are_near_and_the_manifest_says_how_near(
    world: World, clean: FeaturesResult, tmp_path: Path, dtype: str
) -> None:
    result = world.run(tmp_path / "out", dtype=dtype)
    exact, stored = open_cache(clean.out), open_cache(result.out)
    errors = [
        float(np.linalg.norm(stored.dense(i) - exact.dense(i)) / np.linalg.norm(exact.dense(i))) for i in range(len(exact))
    ]
    assert result.manifest.features["train"].error == pytest.approx(np.mean(errors), rel=0.1)
    assert result.manifest.features["train"].worst_error < 0.02
    assert verify(VerifyConfig(directory=result.out), SILENT).ok


def test_a_place_is_kept_for_a_missing_picture_where_that_is_asked_for(world: World, tmp_path: Path) -> None:
    result = world.run(tmp_path / "out", missing_image="keep-marker")
    missing = sum(totals.missing for totals in result.manifest.features.values())
    assert missing == sum(source.kept_markers for source in result.manifest.sources) == 2
    assert verify(VerifyConfig(directory=result.out), SILENT).ok


def test_what_the_encoder_cannot_take_is_a_reject_of_the_item(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "corpus" / "pairs"
    folder.mkdir(parents=True)
    from sources_helpers import tar_bytes

    members = []
    for number, width in enumerate((40, 13, 40)):
        members += [(f"{number}.png", picture(number, (width, 30))), (f"{number}.txt", b"words")]
    (folder / "00000.tar").write_bytes(tar_bytes(members))
    result = world.run(tmp_path / "out", inputs=[str(folder)])
    assert result.manifest.documents == {"committed": 2, "rejected": 1}
    assert "item/rejected/image-shape" in result.manifest.sources[0].reasons
    overflow = world.run(tmp_path / "large", inputs=[str(folder)], encoder="1e6")
    assert overflow.manifest.documents == {"rejected": 3}
    assert overflow.manifest.sources[0].reasons["document/rejected/features-overflow"] == 2
    assert verify(VerifyConfig(directory=overflow.out), SILENT).ok
    assert world.run(tmp_path / "wide", inputs=[str(folder)], encoder="1e6", dtype="bf16").manifest.documents["committed"] == 2


def test_a_trial_tells_the_size_of_the_whole(world: World, clean: FeaturesResult, tmp_path: Path) -> None:
    told: list[str] = []

    class Told(SilentProgress):
        def log(self, message: str) -> None:
            told.append(message)

    result = features(world.config(tmp_path / "out", limit=60), Told())
    trial = result.manifest.trial
    assert trial is not None
    payload = sum(f.bytes for split in clean.manifest.splits.values() for s in split.shards for f in s.files.values())
    assert 0.3 * payload < float(str(trial["estimated_output_bytes"])) < 6 * payload
    assert any(
        "640 x 480: 48 tokens, 0.00 MB" in line and f"features of {DIM} in fp16, {2 * DIM} bytes a token" in line
        for line in told
    )


# ---- the same bytes


@pytest.mark.slow
def test_workers_do_not_change_a_byte(world: World, clean: FeaturesResult, tmp_path: Path) -> None:
    assert snapshot(world.run(tmp_path / "out", workers=3).out) == snapshot(clean.out)


def test_neither_do_batches_nor_doing_it_again(world: World, clean: FeaturesResult, tmp_path: Path) -> None:
    before = snapshot(clean.out)
    world.run(clean.out)
    assert snapshot(clean.out) == before
    other = world.run(tmp_path / "out", batch_size=7).out
    assert {n: s for n, s in snapshot(other).items() if n.startswith("features/")} == {
        n: s for n, s in before.items() if n.startswith("features/")
    }


@pytest.mark.parametrize(
    "point",
    [
        "before-payload-rename:9",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("before-commit:4", "in-coalesce:2", "in-rejects:2", "after-manifest", "in-report")
        ),
    ],
)
def test_killed_and_run_again(world: World, clean: FeaturesResult, tmp_path: Path, point: str) -> None:
    process = world.start(tmp_path / "out", 0, point)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors
    assert snapshot(world.run(tmp_path / "out").out) == snapshot(clean.out)
    assert not (tmp_path / "out" / "run" / "payloads").exists()


@pytest.mark.slow
def test_workers_that_are_killed_are_replaced(world: World, clean: FeaturesResult, tmp_path: Path) -> None:
    for _ in range(9):
        process = world.start(tmp_path / "out", 2, "before-commit:3")
        process.communicate(timeout=300)
        if process.returncode == 0:
            break
    assert snapshot(world.run(tmp_path / "out").out) == snapshot(clean.out)


def test_parts_and_finish(world: World, clean: FeaturesResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(finish_run, "FeaturesConfig", DoubleConfig)
    features_part(world.config(out, shard_index=1, shard_count=2), SILENT)
    with pytest.raises(ResumableStop, match="units are not committed"):
        finish(FinishConfig(directory=out), SILENT)
    features_part(world.config(out, shard_index=0, shard_count=2), SILENT)
    finish(FinishConfig(directory=out), SILENT)
    assert snapshot(out) == snapshot(clean.out)


# ---- one configuration, one directory


@pytest.mark.parametrize(
    ("more", "named"),
    [({"encoder": "2"}, r"tokenizers\.encoder"), ({"dtype": "bf16"}, "dtype: fp16 -> bf16"), ({"seed": 3}, "seed")],
)
def test_another_configuration_is_refused_and_the_difference_named(
    world: World, clean: FeaturesResult, more: dict[str, object], named: str
) -> None:
    with pytest.raises(FingerprintMismatch, match=named):
        world.run(clean.out, **more)


def test_token_shards_are_another_product(world: World, clean: FeaturesResult) -> None:
    entry = {
        k: v for k, v in options(world.corpus.folder, world.text, clean.out).items() if k not in ("encoder", "shard_bytes")
    }
    with pytest.raises(FingerprintMismatch, match="product"):
        shard(ShardConfig.model_validate(entry), SILENT)


def test_what_is_for_token_shards_says_so_of_a_cache(clean: FeaturesResult) -> None:
    for attempt in (
        lambda: pack(PackConfig(directory=clean.out, seq_len=64), SILENT),
        lambda: PackedDataset(clean.out, "any"),
    ):
        with pytest.raises(DataError, match="holds a feature cache, not token shards"):
            attempt()


# ---- looking at one document


def test_a_document_is_shown_with_its_places_and_features(clean: FeaturesResult, world: World, tmp_path: Path) -> None:
    cache = open_cache(clean.out)
    number = next(n for n in range(cache.num_documents) if len(cache.items_of(n)) > 1 and len(cache.ids(n)))
    document = cache.document(number)
    found = inspect_document(InspectConfig(directory=clean.out, document=f"train:{number}", out=tmp_path), SILENT)
    text = load_text_tokenizer(world.text)
    shown, place = 0, 0
    for part in found.parts:
        if part.kind == "text":
            assert part.text == text.decode(document.ids[shown : shown + part.tokens])
            shown += part.tokens
        else:
            item = document.items[place]
            assert shown == document.positions[place]
            assert part.shape == (cache.lengths[item], DIM)
            assert part.detail is not None
            assert f"{cache.entry(item).width} x {cache.entry(item).height} pixels" in part.detail
            assert np.array_equal(np.load(tmp_path / f"features-{place}.npy"), cache.dense(item))
            place += 1
    assert (shown, place) == (len(document.ids), len(document.items))
    assert found.row["tokens"] == len(document.ids) + sum(cache.lengths[item] for item in document.items)
    written = (tmp_path / "document.md").read_text()
    assert written.count(" features, features-") == place
    by_name = inspect_document(InspectConfig(directory=clean.out, document=str(found.row["locator"])), SILENT)
    assert by_name.number == number
    with pytest.raises(UsageError, match="no document 'nobody'"):
        inspect_document(InspectConfig(directory=clean.out, document="nobody"), SILENT)


def test_a_kept_place_is_shown_as_missing(world: World, tmp_path: Path) -> None:
    out = world.run(tmp_path / "out", missing_image="keep-marker").out
    cache = open_cache(out)
    missing = next(n for n in range(len(cache)) if not cache.lengths[n])
    found = inspect_document(InspectConfig(directory=out, document=str(cache.document_of[missing])), SILENT)
    assert "missing image" in [part.kind for part in found.parts]


# ---- documents taken out


@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_what_is_left_is_what_a_run_leaves_that_filters_what_is_taken_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """Byte by byte, the pooled embeddings and kept places of missing pictures among it."""
    every = {"inputs": [str(world.corpus.folder / "documents")], "dtype": dtype, "missing_image": "keep-marker"}
    one_shard = {"shard_bytes": 1 << 30, "metadata": ["n"]}
    whole = world.run(tmp_path / "all", **every, **one_shard).out
    splits = load_cache_manifest(whole).splits
    names = [open_cache(whole, split).document_tables(["id"]).__next__().column("id").to_pylist() for split in splits]
    gone = [name for listed in names for name in listed[1:4]]
    (tmp_path / "list.txt").write_text("\n".join(gone))
    (tmp_path / "keep.py").write_text(f"def keep(document):\n    return document.id not in {gone!r}\n")
    filtered = world.run(tmp_path / "filtered", **every, **one_shard, filters=[f"{tmp_path / 'keep.py'}:keep"]).out
    result = remove(RemoveConfig(directory=whole, out=tmp_path / "new", lists=(tmp_path / "list.txt",)), SILENT)
    assert result.removal.documents == len(gone) > 3
    for split in splits:
        for suffix in SUFFIXES:
            mine, other = (tmp_path / name / "features" / split / f"00000.{suffix}" for name in ("new", "filtered"))
            assert mine.read_bytes() == other.read_bytes(), (split, suffix)
    manifest, other = load_cache_manifest(tmp_path / "new"), load_cache_manifest(filtered)
    assert manifest.features == other.features
    assert manifest.splits == other.splits
    assert manifest.documents == other.documents
    assert manifest.items["image"]["committed"] == other.items["image"]["committed"]
    assert sum(manifest.items["image"].values()) == sum(other.items["image"].values())
    assert manifest.removals == [result.removal]
    monkeypatch.setattr(FeaturesConfig, "load_encoder", DoubleConfig.load_encoder)
    found = look(tmp_path / "new")
    assert found.ok, found.problems
    assert not found.skipped


def test_shards_of_a_cache_that_lose_nothing_are_the_same_files(clean: FeaturesResult, tmp_path: Path) -> None:
    before = snapshot(clean.out)
    first = next(open_cache(clean.out).document_tables(["source", "locator"])).to_pylist()
    (tmp_path / "list.txt").write_text("\n".join(f"{row['source']}/{row['locator']}" for row in first))
    result = remove(RemoveConfig(directory=clean.out, out=tmp_path / "new", lists=(tmp_path / "list.txt",)), SILENT)
    assert snapshot(clean.out) == before
    assert result.removal.documents == len(first)
    old, new = (load_cache_manifest(out).splits["train"].shards for out in (clean.out, tmp_path / "new"))
    assert len(new) == len(old) - 1 > 1
    for number in range(len(new)):
        for suffix in SUFFIXES:
            same = tmp_path / "new" / "features" / "train" / f"{number:05d}.{suffix}"
            assert same.samefile(clean.out / "features" / "train" / f"{number + 1:05d}.{suffix}")
    assert verify(VerifyConfig(directory=tmp_path / "new"), SILENT).ok
    assert "removed" in (tmp_path / "new" / "report.html").read_text()


def test_damage_of_a_cache_gets_no_good_checksum(copy: Path, tmp_path: Path) -> None:
    path = next(path for path in sorted((copy / "features" / "train").glob("*.bin")) if path.stat().st_size > 1000)
    data = bytearray(path.read_bytes())
    data[1] ^= 1
    path.write_bytes(data)
    table = pq.read_table(path.with_name(path.name.removesuffix(".bin") + ".documents.parquet")).to_pylist()
    (tmp_path / "list.txt").write_text(f"{table[0]['source']}/{table[0]['locator']}")
    with pytest.raises(VerificationError, match="is damaged"):
        remove(RemoveConfig(directory=copy, out=tmp_path / "new", lists=(tmp_path / "list.txt",)), SILENT)


@pytest.mark.parametrize("load", [load_manifest, load_cache_manifest])
def test_an_unfinished_output_names_the_command_that_began_it(
    clean: FeaturesResult, tmp_path: Path, load: Callable[[Path], object]
) -> None:
    for name, semantic, command in (
        ("cache", clean.manifest.semantic, "tokkit features"),
        ("shards", {"code_version": 1}, "tokkit shard"),
        ("claimed", None, "tokkit shard"),
    ):
        (tmp_path / name / "run").mkdir(parents=True)
        if semantic is not None:
            (tmp_path / name / "config.json").write_text(json.dumps({"semantic": semantic}))
        with pytest.raises(DataError, match=f"is not finished: run the same `{command}` command again"):
            load(tmp_path / name)


def test_options_of_tokens_are_refused(world: World, tmp_path: Path) -> None:
    entry = options(world.corpus.folder, world.text, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"image_tokenizer, pack: of token shards"):
        validated(FeaturesConfig, "tokkit features", entry | {"image_tokenizer": str(world.image), "pack": 128})


def test_a_changed_encoder_is_noticed_by_a_worker(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = tokkit.pipelines.features.FeatureCaches.prepare

    def changed(self: Any, config: Any, *rest: Any) -> Any:
        setup = prepare(self, config, *rest)
        monkeypatch.setattr(Double, "fingerprint", "another")
        return setup

    monkeypatch.setattr(tokkit.pipelines.features.FeatureCaches, "prepare", changed)
    with pytest.raises(FingerprintMismatch, match="has changed since the run began"):
        world.run(tmp_path / "out")


# ---- verify


@pytest.fixture
def copy(clean: FeaturesResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean.out, tmp_path / "copy"))


@pytest.mark.parametrize("suffix", ["bin", "parquet", "tokens.bin", "documents.parquet"])
def test_a_changed_byte_is_found(copy: Path, suffix: str) -> None:
    path = copy / "features" / "train" / f"00000.{suffix}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = verify(VerifyConfig(directory=copy), SILENT)
    assert result.counts == {"checksum": 1}


def rewritten(copy: Path, name: str, data: bytes) -> None:
    """Replace a shard's file with another content, and vouch for it in the manifest."""
    import hashlib

    path = copy / "features" / "train" / name
    path.write_bytes(data)
    manifest = json.loads((copy / "manifest.json").read_text())
    for found in manifest["splits"]["train"]["shards"]:
        for file in found["files"].values():
            if file["name"] == name:
                file |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.pop("digest")
    (copy / "manifest.json").write_text(record_json(manifest))


def test_what_contradicts_itself_is_found_though_the_checksums_are_right(copy: Path) -> None:
    base = copy / "features" / "train"
    data = np.fromfile(base / "00000.bin", dtype=np.float16)
    data[5] = np.nan
    rewritten(copy, "00000.bin", data.tobytes())
    ids = np.fromfile(base / "00001.tokens.bin", dtype=np.int32)
    ids[3] = 100_000
    rewritten(copy, "00001.tokens.bin", ids.tobytes())
    table = pq.read_table(base / "00002.parquet")
    place = table.schema.get_field_index("position")
    moved = table.set_column(place, table.schema.field(place), [[10**6, *table.column("position").to_pylist()[1:]]])
    pq.write_table(moved, copy / "x.parquet")
    rewritten(copy, "00002.parquet", (copy / "x.parquet").read_bytes())
    (copy / "x.parquet").unlink()
    result = verify(VerifyConfig(directory=copy), SILENT)
    assert result.counts == {Code.FEATURES: 2, Code.ID_RANGE: 1}
    assert {p.message for p in result.problems if p.code == Code.FEATURES} == {
        "has values that are not finite",
        f"stands before text id {10**6} of {pq.read_table(base / '00002.documents.parquet').column('tokens')[0]}",
    }


def test_what_to_do_names_the_command_that_made_a_cache(copy: Path) -> None:
    (copy / "manifest.json").unlink()
    found = verify(VerifyConfig(directory=copy), SILENT)
    assert [problem.code for problem in found.problems] == [Code.UNFINISHED]
    assert "`tokkit features`" in ADVICE[Code.UNFINISHED].remedy
    assert "`tokkit features`" in ADVICE[Code.CHECKSUM].remedy


def test_a_document_too_few_is_found(copy: Path) -> None:
    name = "00006.documents.parquet"
    table = pq.read_table(copy / "features" / "train" / name)
    pq.write_table(table.slice(0, table.num_rows - 1), copy / "x.parquet")
    rewritten(copy, name, (copy / "x.parquet").read_bytes())
    (copy / "x.parquet").unlink()
    assert Code.INDEX_MISMATCH in verify(VerifyConfig(directory=copy), SILENT).counts


# ---- encoding again


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is what recorded options load, too."""
    monkeypatch.setattr(FeaturesConfig, "load_encoder", DoubleConfig.load_encoder)


def look(out: Path, count: int = 1000, **more: Any) -> VerifyResult:
    return verify(VerifyConfig(directory=out, reencode=count, **more), SILENT)


@pytest.mark.usefixtures("again")
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_every_document_encodes_to_the_bytes_in_the_cache(
    world: World, clean: FeaturesResult, tmp_path: Path, dtype: str
) -> None:
    out = clean.out if dtype == "fp16" else world.run(tmp_path / "out", dtype=dtype).out
    result = look(out)
    found = result.reencoded
    assert result.ok, result.problems
    assert found is not None
    assert found.documents == found.exact == sum(split.documents for split in clean.manifest.splits.values())
    assert found.equal_codes == found.codes == DIM * sum(totals.tokens for totals in clean.manifest.features.values())


@pytest.mark.usefixtures("again")
def test_a_changed_value_is_told_with_its_item(copy: Path) -> None:
    path = next(path for path in sorted((copy / "features" / "train").glob("*.bin")) if path.stat().st_size > 1000)
    data = bytearray(path.read_bytes())
    data[1] ^= 1  # of the first value of the first item
    path.write_bytes(data)
    result = look(copy, checksums=False)
    assert set(result.counts) == {Code.REENCODE}
    assert "item 0: 1 of " in str(result.problems[0])


@pytest.mark.usefixtures("again")
def test_changed_text_is_told(copy: Path) -> None:
    path = next(path for path in sorted((copy / "features" / "train").glob("*.tokens.bin")) if path.stat().st_size)
    ids = np.fromfile(path, "<i4")
    ids[0] += 1
    path.write_bytes(ids.tobytes())
    assert "text id 0 is " in str(look(copy, checksums=False).problems[0])


@pytest.mark.usefixtures("again")
@pytest.mark.parametrize(
    ("elsewhere", "scale", "told"), [(True, 1.002, ""), (True, 1.2, "more than rounding"), (False, 1.002, "differ")]
)
def test_rounding_is_measured_elsewhere_and_a_problem_here(
    clean: FeaturesResult, monkeypatch: pytest.MonkeyPatch, elsewhere: bool, scale: float, told: str
) -> None:
    if elsewhere:
        real = reencode_features.numeric_environment
        monkeypatch.setattr(
            reencode_features, "numeric_environment", lambda *args, **more: {**real(*args, **more), "threads": 7}
        )
    monkeypatch.setattr(feature_double, "MATRIX", feature_double.MATRIX * np.float32(scale))
    result = look(clean.out)
    found = result.reencoded
    assert found is not None
    assert found.equal_codes < found.codes
    assert found.lowest == pytest.approx(scale - 1, rel=0.3)
    assert bool(found.differences) is elsewhere
    assert bool(found.exact) is not elsewhere
    assert result.ok is (told == "")
    assert told in " ".join(map(str, result.problems))


@pytest.mark.usefixtures("again")
def test_what_encodes_again_must_be_what_encoded(clean: FeaturesResult, copy: Path) -> None:
    with pytest.raises(DataError, match="not the encoder that this cache was made with"):
        look(clean.out, encoder="2")
    with pytest.raises(UsageError, match="--image-tokenizer"):
        look(clean.out, image_tokenizer=copy)
    (copy / "run" / "job.json").unlink()
    with pytest.raises(UsageError, match=r"job\.json"):
        look(copy)
