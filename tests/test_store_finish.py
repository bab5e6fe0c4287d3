"""The end of a run with an output in an object store: shards go there one by one, and are read where they lie."""

from __future__ import annotations

import io
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_double import DoubleConfig
from feature_double import options as feature_options
from object_store import BUCKET, Store, serve_quickly
from run_world import SILENT, World, ended
from shard_corpus import snapshot

from tokkit.errors import DataError, ResumableStop
from tokkit.object_store import ObjectStore
from tokkit.pipelines import object_ledger
from tokkit.pipelines.features import features
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.output import StoredOutput
from tokkit.pipelines.shard import ShardResult, shard, shard_part
from tokkit.places import parquet, read_part
from tokkit.sources.remote import RemotePath

OUT = f"s3://{BUCKET}/data/out"
PREFIX = "data/out"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    """What a run into a folder comes to."""
    return world.run(world.folder / "clean")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    yield from serve_quickly(monkeypatch, tmp_path / "temporary", tries=2)


def run(world: World, **options: Any) -> ShardResult:
    return shard(world.config(OUT, **options), SILENT)  # type: ignore[arg-type]


class Disk:
    """What lies in the working folder when a shard has been closed and goes, and whenever a file was fetched."""

    def __init__(self, patch: pytest.MonkeyPatch, result: str) -> None:
        self.shards: list[set[str]] = []
        self.payloads: list[int] = []
        self.fetched: list[str] = []
        give, download = StoredOutput.give, ObjectStore.download

        def gives(output: StoredOutput, *paths: Path) -> None:
            self.shards.append({p.relative_to(output.folder).as_posix() for p in files(output.folder / result)})
            give(output, *paths)
            assert files(output.folder / result) == []

        def downloads(store: ObjectStore, name: str, path: Path) -> None:
            download(store, name, path)
            self.fetched.append(name)
            if path.parent.name == "payloads":
                self.payloads.append(len(files(path.parent)))

        patch.setattr(StoredOutput, "give", gives)
        patch.setattr(ObjectStore, "download", downloads)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---- disk


def test_one_shard_and_one_payload_lie_on_the_disk_at_a_time(
    world: World, clean: dict[str, str], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_part(world.config(OUT, shard_index=0, shard_count=1), SILENT)  # type: ignore[arg-type]
    disk = Disk(monkeypatch, "tokens")
    store.requests.clear()
    finish(FinishConfig(directory=OUT), SILENT)
    assert store.snapshot(PREFIX) == clean  # with the packing plan and the report, which read the shards
    of_shards = {name for name in clean if name.startswith("tokens/")}
    assert len(disk.shards) == len(of_shards) / 3 > 3
    assert sorted(name for one in disk.shards for name in one) == sorted(of_shards)  # each with its own files, and no other
    assert 2 <= max(disk.payloads) <= object_ledger.KEPT + 1 < len(disk.payloads)
    assert not [name for name in disk.fetched if name.startswith("tokens/")]
    read = [(path, part) for method, path, part in store.requests if method == "GET" and "/tokens/" in path]
    assert read
    assert all(part.startswith("bytes=") for _, part in read)


@pytest.mark.slow
def test_a_feature_cache_too(world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = feature_options(world.corpus.folder, world.text, tmp_path / "folder") | {"shard_bytes": 20_000}
    features(DoubleConfig.model_validate(settings), SILENT)
    disk = Disk(monkeypatch, "features")
    features(DoubleConfig.model_validate(settings | {"out": OUT}), SILENT)
    assert store.snapshot(PREFIX) == snapshot(tmp_path / "folder")
    assert len(disk.shards) > 1
    assert {len(one) for one in disk.shards} == {4}
    assert not [name for name in disk.fetched if name.startswith("features/")]


# ---- killed, failing


@pytest.mark.parametrize(
    ("point", "there"),
    [
        ("in-coalesce:2", 3),  # one shard is there
        pytest.param("in-coalesce", 0, marks=pytest.mark.slow),
        pytest.param("in-rejects", None, marks=pytest.mark.slow),
        pytest.param("before-manifest", None, marks=pytest.mark.slow),
        pytest.param("after-manifest", None, marks=pytest.mark.slow),
        pytest.param("in-report", None, marks=pytest.mark.slow),
    ],
)
def test_killed_between_two_shards_it_goes_on_to_the_same_bytes(
    world: World, clean: dict[str, str], store: Store, point: str, there: int | None
) -> None:
    code, errors = ended(world.start(OUT, 0, point=point))  # type: ignore[arg-type]
    assert code == -signal.SIGKILL, errors
    shards = {name for name in store.keys(PREFIX) if name.startswith("tokens/")}
    assert len(shards) == (len([name for name in clean if name.startswith("tokens/")]) if there is None else there)
    assert ("manifest.json" in store.keys(PREFIX)) == (point in ("after-manifest", "in-report"))
    if "manifest.json" not in store.keys(PREFIX):
        store.put(f"{PREFIX}/tokens/train/00077.bin", b"of another end that was cut short")
    run(world)
    assert store.snapshot(PREFIX) == clean


@pytest.mark.slow
@pytest.mark.parametrize(("method", "what"), [("PUT", "tokens/train/00001.bin"), ("GET", "tokens/"), ("HEAD", "tokens/")])
def test_a_store_that_fails_meanwhile_leaves_it_resumable(
    world: World, clean: dict[str, str], store: Store, method: str, what: str
) -> None:
    """Where the shards cannot be read, the manifest is there, and the packing plan and the report are not."""
    store.failing = lambda asked, path: asked == method and f"{PREFIX}/{what}" in path
    with pytest.raises(ResumableStop, match=r"tokens/.*run the same command again"):
        run(world)
    assert ("manifest.json" in store.keys(PREFIX)) == (method != "PUT")
    assert "report.html" not in store.keys(PREFIX)
    store.failing = lambda method, path: False
    finish(FinishConfig(directory=OUT), SILENT)
    assert store.snapshot(PREFIX) == clean


# ---- reading in place


def test_a_table_in_a_store_that_is_damaged_or_gone_is_told(store: Store) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"a": [1, 2, 3], "b": ["x", "y", "z"]}), buffer)
    place, gone, data = RemotePath(f"{OUT}/t.parquet"), RemotePath(f"{OUT}/other.parquet"), buffer.getvalue()
    store.put(f"{PREFIX}/t.parquet", data)
    with parquet(place) as source:
        assert pq.read_table(source, columns=["b"]).column("b").to_pylist() == ["x", "y", "z"]
    assert read_part(place, 1, 5) == data[1:6]
    with pytest.raises(DataError, match=f"{OUT}/t.parquet ends before byte"):
        read_part(place, len(data) - 2, 5)
    store.put(f"{PREFIX}/t.parquet", data[:-4] + b"nope")
    with pytest.raises(DataError, match=f"{OUT}/t.parquet cannot be read"), parquet(place) as source:
        pq.read_table(source)
    with pytest.raises(DataError, match=f"{OUT}/other.parquet cannot be read: .*No such file"), parquet(gone) as source:
        pq.read_table(source)
    store.failing = lambda method, path: method == "GET"
    with pytest.raises(OSError, match=r"SlowDown|try later|Slow Down"), parquet(place) as source:
        pq.read_table(source)
