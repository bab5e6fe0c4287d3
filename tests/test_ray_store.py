"""The Ray engine with an output in an object store: the bytes of a folder, whatever dies, and nothing left on a node's disk."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from object_store import BUCKET, Store, serve
from run_world import SILENT, World, wait_for
from shard_corpus import picture, snapshot
from sources_helpers import write_parquet
from stores_helpers import downloaded
from test_ray import Killer, begin_ray, hosts

from tokkit.errors import UsageError
from tokkit.pipelines.ledger import CommitRecord
from tokkit.pipelines.output import output_of
from tokkit.pipelines.ray_workers import SameEnvironment, _Host
from tokkit.pipelines.shard import shard
from tokkit.pipelines.stores import bring_index
from tokkit.pipelines.unit import UnitJob
from tokkit.pipelines.worker import Failed
from tokkit.sources import make_source

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    """What the local engine gives, into a folder."""
    return world.run(world.folder / "clean")


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    with pytest.MonkeyPatch.context() as patch:
        yield from serve(patch)


@pytest.fixture(scope="module")
def node(store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cluster of two cores, whose temporary folder is not this process's; it knows where the store is."""
    folder = tmp_path_factory.mktemp("node")
    begin_ray(TMPDIR=str(folder))
    yield folder
    ray.shutdown()


def place(prefix: str) -> Path:
    return f"s3://{BUCKET}/{prefix}"  # type: ignore[return-value]


def job(world: World, **options: object) -> SameEnvironment[CommitRecord]:
    """What a node gets of a run into the store; without the numeric environment, which is nothing to these tests."""
    config = world.config(place("job"), **options)
    return SameEnvironment(UnitJob(config, {}, None, None, "cpu", ""), dict, {})  # type: ignore[arg-type]


def left(node: Path) -> list[str]:
    """Working folders and locks on the node, whose workers have worked there."""
    (above,) = node.glob("tokkit-[0-9]*")
    return [path.name for path in above.iterdir()]


# ---- a node's disk


def test_a_job_works_in_a_folder_of_its_node_as_long_as_it_is_placed(world: World, store: Store, tmp_path: Path) -> None:
    drivers = job(world, scratch=tmp_path)
    with drivers.placed() as placed, drivers.placed() as another:
        folders = {one.task.config.out for one in (drivers, placed, another)}  # type: ignore[attr-defined]
        assert len(folders) == 3
        assert {folder for folder in folders if folder.exists()} == folders - {drivers.task.config.out}  # type: ignore[attr-defined]
        assert {folder.parent for folder in folders} == {tmp_path}
        assert placed.task.config.store == place("job")  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


def test_in_a_folder_there_is_nothing_to_place(world: World, tmp_path: Path) -> None:
    mine = UnitJob(world.config(tmp_path / "out"), {}, None, None, "cpu", "")  # type: ignore[arg-type]
    with mine.placed() as placed:
        assert placed == mine
    assert list(tmp_path.iterdir()) == []


def test_a_node_whose_disk_cannot_be_written_to_says_so(
    world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules["__main__"].__dict__, "__file__", __file__)  # which a host takes away
    (tmp_path / "file").touch()
    host = _Host(pickle.dumps(job(world, scratch=tmp_path / "file")), 60)
    (failed,) = host.messages(0)
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, UsageError)
    assert "name another folder by --scratch" in failed.message
    host.leave()


# ---- whole runs


@pytest.mark.slow
def test_the_bytes_of_the_local_engine_into_a_folder(world: World, clean: dict[str, str], store: Store, node: Path) -> None:
    result = shard(world.config(place("whole"), engine="ray", workers=2), SILENT)
    assert result.out == place("whole")
    assert store.snapshot("whole") == clean
    assert store.uploads() == []
    wait_for(lambda: left(node) == [], 30)
    kept = [name for name in store.keys("whole") if name.startswith(("run/payloads", "run/leases", "run/alive"))]
    assert kept == []


@pytest.mark.slow
def test_duplicates_are_those_of_the_local_engine(world: World, store: Store, node: Path) -> None:
    again = world.folder / "again"
    shutil.copytree(world.corpus.folder / "texts", again)
    options = {"inputs": [*world.inputs, str(again)], "dedup": ["documents", "texts", "images"]}
    result = world.result(world.folder / "duplicates", **options)
    assert result.manifest.documents["duplicate"] >= 10
    clean = snapshot(world.folder / "duplicates")
    shard(world.config(place("duplicates"), engine="ray", workers=2, **options), SILENT)
    assert store.snapshot("duplicates") == clean
    wait_for(lambda: left(node) == [], 30)


@pytest.fixture(scope="module")
def elsewhere(world: World) -> dict[str, object]:
    """Options of a corpus whose pictures are in a store of ``--images``."""
    urls = [f"http://pictures.example.net/{number}.png" for number in range(12)]
    rows = {"images": [[url, None] for url in urls], "texts": [[None, f"Text {url}."] for url in urls]}
    docs = world.folder / "docs"
    docs.mkdir()
    write_parquet(docs / "d.parquet", rows)
    pictures = downloaded(world.folder / "pictures", {url: picture(number) for number, url in enumerate(urls[:10])})
    return {"inputs": [str(docs)], "images": [str(pictures)]}


def test_a_job_that_is_placed_has_the_index_of_pictures_in_its_folder(
    world: World, elsewhere: dict[str, object], store: Store, tmp_path: Path
) -> None:
    result = shard(world.config(place("index"), **elsewhere), SILENT)
    assert result.manifest.sources[0].images_from == {"pictures": 10}
    config = world.config(place("index"), **elsewhere, scratch=tmp_path)
    source = make_source("obelics", "docs", Path(str(elsewhere["inputs"][0])), [], config.source_options)  # type: ignore[index]
    mine = UnitJob(config, {"docs": source}, {}, None, "cpu", "")  # type: ignore[arg-type]
    with mine.placed() as placed:
        stores = placed.sources["docs"].options.stores
        assert stores is not None
        assert not stores.folder.exists()
        bring_index(placed.sources.values(), output_of(placed.config))
        assert stores.folder.is_relative_to(placed.config.out)
        assert [summary.entries for summary in stores.summaries()] == [10]
        assert mine.sources["docs"].options.stores.folder != stores.folder  # type: ignore[union-attr]


@pytest.mark.slow
def test_pictures_that_are_elsewhere_are_found_on_every_node(
    world: World, elsewhere: dict[str, object], store: Store, node: Path
) -> None:
    clean = world.run(world.folder / "elsewhere", **elsewhere)
    shard(world.config(place("elsewhere"), engine="ray", workers=2, **elsewhere), SILENT)
    assert store.snapshot("elsewhere") == clean
    wait_for(lambda: left(node) == [], 30)


@pytest.mark.slow
@pytest.mark.parametrize("actors", [True, False])
def test_workers_that_are_killed_change_nothing(
    world: World, clean: dict[str, str], store: Store, node: Path, actors: bool
) -> None:
    prefix = f"killed-{actors}"
    killer = Killer(2, actors)
    killer.start()
    try:
        shard(world.config(place(prefix), engine="ray", workers=2), SILENT)
    finally:
        killer.over.set()
        killer.join()
    assert killer.left < 2  # it found something to kill
    assert store.snapshot(prefix) == clean
    wait_for(lambda: left(node) == [], 30)  # what a killed actor held is removed by the one in its place


@pytest.mark.slow
def test_a_driver_that_is_killed_is_gone_on_with(world: World, clean: dict[str, str], store: Store) -> None:
    """By the local engine; and no process of the first is left."""
    out = place("driver")
    before = hosts()
    process = world.start(out, 2, "--engine", "ray")
    wait_for(lambda: process.poll() is not None or [name for name in store.keys("driver") if name.startswith("commits/")])
    assert process.poll() is None, process.communicate()[1]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    shard(world.config(out), SILENT)
    assert store.snapshot("driver") == clean
    wait_for(lambda: set(hosts()) <= set(before), 60)
