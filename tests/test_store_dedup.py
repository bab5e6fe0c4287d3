"""``--dedup`` with an output in an object store: a folder's bytes, whatever dies, is suspended or is done by several."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from object_store import BUCKET, Store, serve_quickly
from shard_corpus import picture, snapshot
from test_dedup_run import (
    OPTIONS,
    SILENT,
    World,
    crashing,
    ended,
    keepers,
    lines,
    place_of,
    samples,
    stopped,
    wait_until_stopped,
)
from test_dedup_run import kills as kills_in_folder

from tokkit.errors import DataError, ResumableStop
from tokkit.object_store import ObjectStore
from tokkit.pipelines.duplicates import DuplicateTable
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.index_files import StoredIndexFiles
from tokkit.pipelines.object_ledger import StoredLedger
from tokkit.pipelines.plan import Poison
from tokkit.pipelines.shard import ShardResult, shard, shard_part

OUT = f"s3://{BUCKET}/data/out"
PREFIX = "data/out"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("dedup"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A few units, with duplicates across them."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [f"text number {n * n % 23} of a small corpus" for n in range(40)]
    pairs = [({"png": picture(n % 4)}, f"caption {n % 5}") for n in range(8)]
    return [
        lines(lines(folder / "texts", texts[:20]), texts[20:], "b.jsonl"),
        samples(samples(folder / "pairs", pairs[:5]), pairs[5:], "1.tar"),
    ]


@pytest.fixture(scope="module")
def clean(world: World, corpus: list[Path]) -> ShardResult:
    """What a run into a folder comes to."""
    pytest.importorskip("imagehash")
    return world.run(world.folder / "clean", *corpus, **OPTIONS)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    yield from serve_quickly(monkeypatch, tmp_path / "temporary", tries=3)


def run(world: World, corpus: Sequence[Path], **options: object) -> ShardResult:
    return shard(world.config(OUT, *corpus, **OPTIONS | options), SILENT)  # type: ignore[arg-type]


def without_report(files: dict[str, str]) -> dict[str, str]:
    """The command shows documents in its report, the runs in this process show none."""
    return {name: digest for name, digest in files.items() if name != "report.html"}


def indexes(store: Store) -> list[str]:
    return [name.removeprefix("run/index/") for name in store.keys(PREFIX) if name.startswith("run/index/")]


def fetched(store: Store, name: str) -> int:
    """How often an object was read."""
    return sum(method == "GET" and path.endswith(f"{PREFIX}/{name}") for method, path, _ in store.requests)


# ---- the same bytes


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_store_gets_the_bytes_of_a_folder(
    world: World, corpus: list[Path], clean: ShardResult, store: Store, tmp_path: Path, workers: int
) -> None:
    result = run(world, corpus, workers=workers)
    assert store.snapshot(PREFIX) == snapshot(clean.out)
    assert result.summary["dedup"]["duplicates"] == clean.summary["dedup"]["duplicates"]  # type: ignore[index]
    assert indexes(store) == []
    assert not [path for path in (tmp_path / "temporary").rglob("*") if path.parent.name.startswith("tokkit-")]
    assert run(world, corpus).summary["units"] == 0
    assert store.snapshot(PREFIX) == snapshot(clean.out)


@pytest.mark.slow
def test_in_memory_too(world: World, corpus: list[Path], clean: ShardResult) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    try:
        shard(world.config("memory://mine/out", *corpus, **OPTIONS), SILENT)  # type: ignore[arg-type]
        names = {name.removeprefix("/mine/out/") for name in fs.find("/mine/out")}
        assert {name for name in names if not name.startswith("run/")} == snapshot(clean.out).keys()
        assert not [name for name in names if name.startswith("run/index")]
        assert fs.cat_file("/mine/out/manifest.json") == (clean.out / "manifest.json").read_bytes()
    finally:
        fs.rm("/mine", recursive=True)


@pytest.mark.slow
def test_parts_decide_once_and_a_finish_reads_the_decisions_only(
    world: World, corpus: list[Path], clean: ShardResult, store: Store
) -> None:
    units = clean.manifest.units
    for index in range(2):
        store.requests.clear()
        config = world.config(OUT, *corpus, **OPTIONS, shard_index=index, shard_count=2)  # type: ignore[arg-type]
        part = shard_part(config, SILENT)
        made = [path for method, path, _ in store.requests if method == "PUT" and "/run/index/" in path]
        assert len(made) == (units + 1 if index == 0 else 0)  # an index for each unit, and the decisions
    assert part.committed == units
    (decisions,) = [name for name in indexes(store) if name.startswith("decisions")]
    assert sorted({*indexes(store)} - {decisions}) == [f"{unit:05d}.index" for unit in range(units)]
    store.requests.clear()
    finish(FinishConfig(directory=OUT), SILENT)
    assert fetched(store, f"run/index/{decisions}") == 1
    assert not [path for method, path, _ in store.requests if method == "GET" and path.endswith(".index")]
    assert store.snapshot(PREFIX) == snapshot(clean.out)
    assert indexes(store) == []


def test_a_worker_fetches_only_indexes_that_it_looks_something_up_in(world: World, store: Store, tmp_path: Path) -> None:
    for name, texts in (("a", ["one", "two"]), ("b", ["three", "four"]), ("c", ["two", "five"])):
        lines(tmp_path / "in", texts, f"{name}.jsonl")
    options: dict[str, object] = {"dedup": ["documents"], "shard_count": 2}
    inputs = [tmp_path / "in"]
    shard_part(world.config(OUT, *inputs, **options, shard_index=1), SILENT)  # type: ignore[arg-type]
    store.requests.clear()
    shard_part(world.config(OUT, *inputs, **options, shard_index=0), SILENT)  # type: ignore[arg-type]
    # the first and the third unit: the third has a duplicate of a document of the first
    assert [fetched(store, f"run/index/{unit:05d}.index") for unit in range(3)] == [1, 0, 1]


def test_workers_on_another_machine_have_files_of_their_own(world: World, store: Store, tmp_path: Path) -> None:
    lines(tmp_path / "in", ["one", "two", "one"])
    shard_part(world.config(OUT, tmp_path / "in", dedup=["documents"], shard_index=0, shard_count=1), SILENT)  # type: ignore[arg-type]
    drivers = DuplicateTable(StoredIndexFiles(tmp_path / "driver" / "run" / "index", ObjectStore(OUT)), ("in",), {})
    table = pickle.loads(pickle.dumps(drivers.placed(tmp_path / "node"))).open()
    assert table.original(0, 1, -1).locator == "a.jsonl@16"
    fetched = {path.name.partition("-")[0] for path in (tmp_path / "node" / "run" / "index").iterdir()}
    assert fetched == {"decisions", "00000.index"}
    assert not (tmp_path / "driver").exists()


# ---- killed, suspended, several


@pytest.mark.parametrize(
    "point",
    [
        "grouped",  # decided, and nobody knows of it
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in (
                "index:30",
                "before-upload:7",
                "before-upload:8",
                "indexed",
                "decided",
                "before-commit:3",
                "before-manifest",
            )
        ),
    ],
)
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    world: World, corpus: list[Path], clean: ShardResult, store: Store, point: str
) -> None:
    code, errors = ended(crashing(world, corpus, OUT, point=point))  # type: ignore[arg-type]
    assert code == -signal.SIGKILL, errors
    before = set(indexes(store))
    assert "manifest.json" not in store.keys(PREFIX)
    assert bool([name for name in before if name.startswith("decisions")]) == (
        point in ("decided", "before-commit:3", "before-manifest")
    )
    result = run(world, corpus)
    assert without_report(store.snapshot(PREFIX)) == without_report(snapshot(clean.out))
    if point == "grouped":
        assert len(before) == clean.manifest.units
        assert result.summary["dedup"]["documents"] == 0  # type: ignore[index]
    assert indexes(store) == []


@pytest.mark.slow
def test_killed_again_and_again(world: World, corpus: list[Path], clean: ShardResult, store: Store) -> None:
    killed = 0
    for point in (
        "index:20",
        "before-upload:2",
        "index:40",
        "before-upload:8",
        "indexed",
        "grouped",
        "decided",
        "before-upload:6",
    ):
        code, errors = ended(crashing(world, corpus, OUT, "--workers", killed % 2, point=point))  # type: ignore[arg-type]
        assert code in (0, 75, -signal.SIGKILL), errors
        killed += code == -signal.SIGKILL
    assert killed > 3
    run(world, corpus)
    assert without_report(store.snapshot(PREFIX)) == without_report(snapshot(clean.out))


@pytest.mark.slow
def test_two_commands_at_once_share_the_work(world: World, corpus: list[Path], clean: ShardResult, store: Store) -> None:
    both: list[subprocess.Popen[bytes]] = [crashing(world, corpus, OUT, "--workers", n) for n in (0, 1)]  # type: ignore[arg-type]
    assert [ended(process) for process in both] == [(0, ""), (0, "")]
    assert without_report(store.snapshot(PREFIX)) == without_report(snapshot(clean.out))
    made = [path for method, path, _ in store.requests if method == "PUT" and path.endswith(".index")]
    assert len(made) == len(set(made)) == clean.manifest.units  # by the one or the other
    assert indexes(store) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", ["index:30", "indexed", "grouped", "decided", "before-commit:2"])
def test_one_that_was_suspended_while_another_finished_succeeds(
    world: World, corpus: list[Path], clean: ShardResult, store: Store, point: str
) -> None:
    lease = ("--lease-seconds", 2)
    suspended = crashing(world, corpus, OUT, *lease, point=f"{point}=stop")  # type: ignore[arg-type]
    wait_until_stopped(suspended)
    assert ended(crashing(world, corpus, OUT, *lease)) == (0, "")  # type: ignore[arg-type]
    done = store.snapshot(PREFIX)
    assert without_report(done) == without_report(snapshot(clean.out))
    os.kill(suspended.pid, signal.SIGCONT)
    assert ended(suspended) == (0, "")
    assert store.snapshot(PREFIX) == done


# ---- documents that kill


def kills(tmp_path: Path, world: World, corpus: list[Path], planned_in: Path, locator: str) -> int:
    """Write down in the store that a document kills; its unit."""
    planned, position = place_of(planned_in, world, corpus, locator)
    ledger = StoredLedger(tmp_path / "elsewhere", ObjectStore(OUT))
    ledger.add_poison(planned.index, planned.unit, [Poison(position, "SIGSEGV")])
    return planned.index


def test_what_is_found_to_kill_is_nobodys_original(
    world: World, corpus: list[Path], clean: ShardResult, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every unit was committed by then. Its unit is indexed anew, under another name, and so are the decisions."""
    folder, victim = tmp_path / "folder", keepers(clean)["same-text"]
    stopped(world, corpus, folder, "tokkit.pipelines.shard.Deduplicator", monkeypatch)
    kills_in_folder(folder, world, corpus, [victim])
    world.run(folder, *corpus, **OPTIONS)
    stopped(world, corpus, OUT, "tokkit.pipelines.completion.account", monkeypatch)  # type: ignore[arg-type]
    before = set(indexes(store))
    unit = kills(tmp_path, world, corpus, folder, victim)
    with pytest.raises(ResumableStop, match="has to be decided anew"):
        finish(FinishConfig(directory=OUT), SILENT)
    store.remove(f"{PREFIX}/commits/{unit:05d}.json")
    stopped(world, corpus, OUT, "tokkit.pipelines.completion.account", monkeypatch)  # type: ignore[arg-type]
    new = sorted(set(indexes(store)) - before)
    assert [name.partition("-")[0] for name in new] == [f"{unit:05d}", "decisions"]
    assert set(indexes(store)) >= before
    run(world, corpus)
    assert store.snapshot(PREFIX) == snapshot(folder) != snapshot(clean.out)
    assert indexes(store) == []


@pytest.mark.slow
def test_a_damaged_index_is_told_and_damaged_decisions_are_made_anew(
    world: World, corpus: list[Path], clean: ShardResult, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(world, corpus, OUT, "tokkit.pipelines.shard.commit_records", monkeypatch)  # type: ignore[arg-type]
    (decisions,) = [name for name in indexes(store) if name.startswith("decisions")]
    data = {name: store.get(f"{PREFIX}/run/index/{name}") for name in (decisions, "00001.index")}
    for name, content in data.items():
        store.put(f"{PREFIX}/run/index/{name}", content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match=f"{OUT}/run/index/00001.index is damaged"):
        run(world, corpus)
    store.put(f"{PREFIX}/run/index/00001.index", data["00001.index"])
    run(world, corpus)
    assert store.snapshot(PREFIX) == snapshot(clean.out)
