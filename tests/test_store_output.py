"""Output in an object store: a folder's bytes, whatever dies, fails or is done twice; a store that will not do is refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from feature_double import DoubleConfig
from feature_double import options as feature_options
from object_store import BUCKET, SECRET, Store, serve_quickly
from run_world import SILENT, World, ended, wait_for, workers_of
from shard_corpus import snapshot
from test_kill import AGAIN

from tokkit import object_store
from tokkit.errors import FingerprintMismatch, ResumableStop, UsageError, VerificationError
from tokkit.object_store import ObjectStore
from tokkit.pipelines.features import features
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.leases import Owner
from tokkit.pipelines.ledger import CommitRecord, UnitEntry
from tokkit.pipelines.object_leases import StoredLeases
from tokkit.pipelines.object_ledger import StoredLedger
from tokkit.pipelines.output import downloaded, folder_of
from tokkit.pipelines.shard import ShardResult, shard, shard_part
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import load_manifest

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
    yield from serve_quickly(monkeypatch, tmp_path / "temporary", tries=3)


def run(world: World, **options: Any) -> ShardResult:
    return shard(world.config(OUT, **options), SILENT)  # type: ignore[arg-type]


def killed_at(world: World, point: str, workers: int = 0) -> None:
    code, errors = ended(world.start(OUT, workers, point=point))  # type: ignore[arg-type]
    assert code == -signal.SIGKILL, f"{point}: {code} {errors}"


def left(tmp_path: Path) -> list[str]:
    """What lies in the folder that working folders are made in."""
    return [path.name for path in (tmp_path / "temporary").rglob("*") if path.parent.name.startswith("tokkit-")]


# ---- the same bytes


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_store_gets_the_bytes_of_a_folder(
    world: World, clean: dict[str, str], store: Store, tmp_path: Path, workers: int
) -> None:
    result = run(world, workers=workers)
    assert store.snapshot(PREFIX) == clean
    assert result.out == OUT
    assert set(result.packs) == {"train", "val"}
    kept = {name.split("/")[1] for name in store.keys(PREFIX) if name.startswith("run/")}
    assert kept == {"ignored.jsonl", "inputs.jsonl", "job.json", "metrics", "summary.json", "units.jsonl"}
    assert store.uploads() == []
    assert left(tmp_path) == []
    job = json.loads(store.get(f"{PREFIX}/run/job.json"))
    assert job["out"] == OUT
    for name in store.keys(PREFIX):
        data = store.get(f"{PREFIX}/{name}")
        assert SECRET.encode() not in data
        assert str(tmp_path).encode() not in data
    before = store.get(f"{PREFIX}/manifest.json")
    again = run(world)
    assert again.summary["units"] == 0
    assert store.get(f"{PREFIX}/manifest.json") == before
    assert store.snapshot(PREFIX) == clean
    assert left(tmp_path) == []


@pytest.mark.slow
def test_parts_and_a_finish(world: World, clean: dict[str, str], store: Store, tmp_path: Path) -> None:
    units = len([name for name in clean if name.startswith("commits/")])
    for index in (1, 0):
        with_index = world.config(OUT, shard_index=index, shard_count=2)  # type: ignore[arg-type]
        if index == 0:
            with pytest.raises(ResumableStop, match=f"{OUT}: 8 of {units} units are not committed"):
                finish(FinishConfig(directory=OUT), SILENT)
        part = shard_part(with_index, SILENT)
        assert part.out == OUT
    assert part.committed == units
    assert not [name for name in store.keys(PREFIX) if name == "manifest.json"]
    result = finish(FinishConfig(directory=OUT, scratch=tmp_path / "elsewhere"), SILENT)
    assert result.out == OUT
    assert store.snapshot(PREFIX) == clean
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.slow
def test_verify_reads_it_and_finds_what_was_changed(world: World, store: Store) -> None:
    run(world)
    with folder_of(OUT, SILENT) as folder:
        assert verify(VerifyConfig(directory=folder, reencode=3), SILENT).ok
        assert not (folder / "run" / "metrics").exists()
    key = f"{PREFIX}/tokens/train/00000.bin"
    data = bytearray(store.get(key))
    data[10] ^= 1
    store.put(key, bytes(data))
    with downloaded(OUT, SILENT) as folder:
        problems = verify(VerifyConfig(directory=folder), SILENT).problems
    assert problems[0].where == "tokens/train/00000.bin"


@pytest.mark.slow
def test_features_too(world: World, store: Store, tmp_path: Path) -> None:
    settings = feature_options(world.corpus.folder, world.text, tmp_path / "folder")
    features(DoubleConfig.model_validate(settings), SILENT)
    result = features(DoubleConfig.model_validate(settings | {"out": OUT}), SILENT)
    assert result.out == OUT
    assert store.snapshot(PREFIX) == snapshot(tmp_path / "folder")


def test_in_memory_too(world: World, clean: dict[str, str]) -> None:
    """A store of another kind, that can do what is needed."""
    import fsspec

    fs = fsspec.filesystem("memory")
    try:
        shard(world.config("memory://mine/out"), SILENT)  # type: ignore[arg-type]
        names = [name.removeprefix("/mine/out/") for name in fs.find("/mine/out")]
        assert {name for name in names if not name.startswith("run/")} == clean.keys()
        assert fs.cat_file("/mine/out/manifest.json") == (world.folder / "clean" / "manifest.json").read_bytes()
    finally:
        fs.rm("/mine", recursive=True)


# ---- places that will not do


def test_a_store_that_does_not_create_if_absent_is_refused(world: World, store: Store) -> None:
    store.careless = True
    with pytest.raises(UsageError, match=rf"{OUT}: this store.*does not create an object only if it is absent"):
        run(world)
    assert store.keys("data") == []


def test_a_store_that_does_not_answer_leaves_it_resumable(world: World, store: Store) -> None:
    store.failing = lambda method, path: True
    with pytest.raises(ResumableStop, match="run the same command again"):
        run(world)
    with pytest.raises(ResumableStop, match="run the same command again"):
        finish(FinishConfig(directory=OUT), SILENT)


@pytest.mark.parametrize(
    ("out", "problem"),
    [
        ("http://localhost:1/out", "a web server can be read from, not written to"),
        ("file:///tmp/out", "name a folder of this machine by its path"),
        ("s3://", "names no bucket"),
        ("s3://no-such-bucket/out", "s3://no-such-bucket/out: there is no such bucket"),
        ("nonsense://bucket/out", "no kind of URL that fsspec knows"),
    ],
)
def test_what_is_no_place_for_an_output(world: World, store: Store, out: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        shard(world.config(out), SILENT)  # type: ignore[arg-type]


def test_another_output_or_something_else_is_not_written_over(world: World, store: Store, tmp_path: Path) -> None:
    store.put(f"{PREFIX}-beside/readme.txt", b"mine")
    store.put(f"{PREFIX}/readme.txt", b"mine")
    with pytest.raises(UsageError, match=f"{OUT} is not empty and holds no tokkit output") as caught:
        run(world)
    assert str(tmp_path) not in str(caught.value)
    store.remove(f"{PREFIX}/readme.txt")
    shard_part(world.config(OUT, shard_index=0, shard_count=9), SILENT)  # type: ignore[arg-type]
    with pytest.raises(FingerprintMismatch, match=f"{OUT} was made with another configuration") as refused:
        run(world, seed=5)
    assert "seed: 0 -> 5" in str(refused.value)
    assert str(tmp_path / "temporary") not in str(refused.value)


def test_what_maps_files_says_how_to_get_them() -> None:
    with pytest.raises(UsageError, match=f"{OUT} is in an object store.*download it first"):
        load_manifest(Path(OUT))


# ---- a store that fails


@pytest.mark.slow
def test_failures_that_pass_change_nothing(world: World, clean: dict[str, str], store: Store) -> None:
    asked = [0]

    def sometimes(method: str, path: str) -> bool:
        asked[0] += 1
        return asked[0] % 7 == 0

    store.failing = sometimes
    run(world)
    assert asked[0] > 200
    store.failing = lambda method, path: False
    assert store.snapshot(PREFIX) == clean


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("-00003-", marks=pytest.mark.slow),  # a payload
        "commits/00002.json",
        pytest.param("tokens/train/00001", marks=pytest.mark.slow),
        pytest.param("manifest.json", marks=pytest.mark.slow),
        pytest.param("report.html", marks=pytest.mark.slow),
    ],
)
def test_failures_that_stay_stop_the_run_and_it_goes_on(
    world: World, clean: dict[str, str], store: Store, tmp_path: Path, what: str
) -> None:
    store.failing = lambda method, path: method == "PUT" and what in path
    with pytest.raises(ResumableStop) as caught:
        run(world)
    assert "run the same command again" in str(caught.value)
    assert what in str(caught.value)
    assert "manifest.json" not in store.keys(PREFIX) or what == "report.html"
    assert left(tmp_path) == []
    assert not [name for name in store.keys(PREFIX) if name.startswith(("run/leases", "run/alive"))]
    store.failing = lambda method, path: False
    run(world)
    assert store.snapshot(PREFIX) == clean


@pytest.mark.slow
def test_a_payload_that_is_lost_or_changed(world: World, clean: dict[str, str], store: Store) -> None:
    """Lost: no commit, and its unit is done again. Changed: said."""
    shard_part(world.config(OUT, shard_index=0, shard_count=1), SILENT)  # type: ignore[arg-type]
    payloads = sorted(name for name in store.keys(PREFIX) if name.startswith("run/payloads/") and name.endswith(".bin"))
    store.remove(f"{PREFIX}/{payloads[3]}")
    data = store.get(f"{PREFIX}/{payloads[0]}")
    store.put(f"{PREFIX}/{payloads[0]}", bytes(len(data)))
    store.put(f"{PREFIX}/tokens/train/00077.bin", b"of an end that was cut short")
    with pytest.raises(VerificationError, match="has changed since it was committed"):
        run(world)
    assert f"{PREFIX}/{payloads[3]}".removeprefix(f"{PREFIX}/") in store.keys(PREFIX)
    store.put(f"{PREFIX}/{payloads[0]}", data)
    run(world)
    assert store.snapshot(PREFIX) == clean


# ---- the store's own operations


def test_of_many_who_create_one_object_one_does(store: Store) -> None:
    place = ObjectStore(OUT)
    begin, created = threading.Barrier(8), []

    def race(number: int) -> None:
        begin.wait()
        if place.create("name", b"%d" % number):
            created.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(created) == 1
    assert place.read("name") == b"%d" % created[0]
    assert place.create("name", b"%d" % created[0])  # a try whose answer was lost


def test_large_files_go_in_parts_and_leave_nothing_half_done(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "PART", 5 << 20)
    place, path = ObjectStore(OUT), tmp_path / "large"
    path.write_bytes(random.Random(0).randbytes(12 << 20))
    failed: list[str] = []

    def once(method: str, key: str) -> bool:
        if method == "PUT" and len(failed) < 2:
            failed.append(key)
            return True
        return False

    store.failing = once
    place.upload("large", path)
    assert len(failed) == 2
    assert store.get(f"{PREFIX}/large") == path.read_bytes()
    assert store.uploads() == []
    store.failing = lambda method, key: method == "PUT"
    with pytest.raises(OSError, match=r"SlowDown|try later|Slow Down"):
        place.upload("other", path)
    store.failing = lambda method, key: False
    assert store.uploads() == []
    assert store.keys(PREFIX) == ["large"]


@pytest.mark.slow
def test_what_a_killed_process_left_half_uploaded_is_removed(world: World, clean: dict[str, str], store: Store) -> None:
    client = store.client()
    for key in (f"{PREFIX}/run/payloads/x", f"{PREFIX}-beside/y"):
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=1, Body=b"half")
    store.put(f"{PREFIX}/run/payloads/0123-orphan.bin", b"of an attempt that did not come to its commit")
    run(world)
    assert store.uploads() == [f"{PREFIX}-beside/y"]
    assert store.snapshot(PREFIX) == clean
    assert not [name for name in store.keys(PREFIX) if "orphan" in name]


@pytest.mark.parametrize("count", [2500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_objects_are_listed_in_pages(store: Store, count: int) -> None:
    from moto.backends import get_backend

    (bucket,) = get_backend("s3")["123456789012"]["global"].buckets.values()
    backend = get_backend("s3")["123456789012"]["global"]
    for number in range(count):
        backend.put_object(bucket.name, f"{PREFIX}/commits/{number:06d}.json", b"%d" % number)
    store.requests.clear()
    listed = ObjectStore(OUT).listed("commits")
    assert len(listed) == count
    assert listed["commits/000012.json"].bytes == 2
    assert listed["commits/000012.json"].mark != listed["commits/000013.json"].mark
    assert len(store.requests) == -(-count // 1000)


def test_what_is_committed_is_found_without_a_request_for_each_payload(world: World, store: Store) -> None:
    shard_part(world.config(OUT, shard_index=0, shard_count=1), SILENT)  # type: ignore[arg-type]
    store.requests.clear()
    assert shard_part(world.config(OUT, shard_index=0, shard_count=1), SILENT).summary["units"] == 0  # type: ignore[arg-type]
    assert not [path for method, path, _ in store.requests if "run/payloads/" in path]
    asked = [path for method, path, _ in store.requests if method == "GET" and "/commits/" in path]
    assert len(asked) == len(set(asked))  # each record once


def test_an_attempt_that_is_too_late_changes_nothing(store: Store, tmp_path: Path) -> None:
    """It has read other things, and its payload has the same name: what was committed before stays whole."""
    ledgers = [StoredLedger(tmp_path / name, ObjectStore(OUT)) for name in ("one", "two")]
    entry = UnitEntry(index=0, source="s", format="jsonl", file="f", start=0, stop=1, bytes=1)
    counts: dict[str, Any] = {"documents": {}, "items": {}, "reasons": {}, "counted_items": {}, "splits": {}}
    figures: dict[str, Any] = {"container_errors": 0, "counted_documents": None, "consumed": 1.0, "numeric": "n"}
    records = []
    for ledger, line in zip(ledgers, ("first", "second"), strict=True):
        payload = {"rejects": ledger.write_lines(0, [line])}
        records.append(CommitRecord(unit=entry, payload=payload, **counts, **figures))
    assert ledgers[0].commit(records[0])
    assert not ledgers[1].commit(records[1])
    for ledger in ledgers:
        assert ledger.read(0) == records[0]
        assert ledger.payload(records[0].payload["rejects"]).read_text() == "first\n"


# ---- leases


def test_a_lease_has_one_holder(store: Store) -> None:
    place = ObjectStore(OUT)
    with StoredLeases(place, 60) as one, StoredLeases(place, 60) as two:
        assert one.acquire("00001")
        assert not two.acquire("00001")
        assert one.mine("00001")
        assert not two.mine("00001")
        assert two.others_at_work()
        assert not one.others_at_work()
        assert two.holder("00001").startswith(f"process {os.getpid()} on ")
        one.release("00001")
        assert two.acquire("00001")
        assert two.acquire("00002")
    assert store.keys(PREFIX) == []


def dead(host: str, token: str) -> bytes:
    return str(Owner(host, 1 << 30, "1", token)).encode()


def test_a_lease_of_a_process_of_this_host_that_died_is_free_at_once(store: Store) -> None:
    place = ObjectStore(OUT)
    with StoredLeases(place, 60) as leases:
        store.put(f"{PREFIX}/run/leases/plan", dead(leases.owner.host, "ab"))
        store.put(f"{PREFIX}/run/alive/ab", b"7")
        assert not leases.others_at_work()
        assert leases.acquire("plan")
        store.put(f"{PREFIX}/run/leases/gone", dead("another-host", "cd"))  # it took its sign of life away
        leases.sweep()
    assert store.keys(PREFIX) == ["run/alive/ab"]


def test_a_lease_of_another_host_is_free_once_it_was_silent(store: Store) -> None:
    place = ObjectStore(OUT)
    store.put(f"{PREFIX}/run/leases/plan", dead("another-host", "ab"))
    store.put(f"{PREFIX}/run/alive/ab", b"1")
    with StoredLeases(place, 1.0) as leases:
        for number in range(5):
            assert not leases.acquire("plan")
            store.put(f"{PREFIX}/run/alive/ab", b"%d" % number)  # it lives
            time.sleep(0.4)
        begin = time.monotonic()
        assert leases.others_at_work()
        with leases.hold("plan"):
            assert time.monotonic() - begin > 0.8
            assert leases.mine("plan")
        leases.sweep()
    assert store.keys(PREFIX) == []


@pytest.mark.slow
def test_of_many_who_take_over_one_does(store: Store) -> None:
    several = [StoredLeases(ObjectStore(OUT), 60) for _ in range(6)]
    for number in range(10):
        store.put(f"{PREFIX}/run/leases/{number}", dead(several[0].owner.host, f"ab{number}"))
    taken: list[str] = []

    def take(leases: StoredLeases) -> None:
        with leases:
            begin.wait()
            for number in range(10):
                if leases.acquire(str(number)):
                    taken.append(str(number))
            end.wait()

    begin, end = threading.Barrier(6), threading.Barrier(6)
    threads = [threading.Thread(target=take, args=(leases,)) for leases in several]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == [str(number) for number in range(10)]


# ---- killed


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before-record:3", "before-link:9"])
def test_killed_once_and_run_again(world: World, clean: dict[str, str], store: Store, tmp_path: Path, point: str) -> None:
    killed_at(world, point)
    assert left(tmp_path) != []
    assert [name for name in store.keys(PREFIX) if name.startswith("run/leases/")]
    run(world)
    assert store.snapshot(PREFIX) == clean
    assert left(tmp_path) == []
    assert not [name for name in store.keys(PREFIX) if name.startswith(("run/leases/", "run/payloads/"))]


POINTS = AGAIN | {"before-upload": (1, 9, 25, 40, 60), "before-record": (1, 2, 3, 2, 1), "after-manifest": (1, 1, 1, 1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_killed_again_and_again_at_a_failpoint(world: World, clean: dict[str, str], store: Store, name: str) -> None:
    killed = 0
    for nth in POINTS[name]:
        code, errors = ended(world.start(OUT, 0, point=f"{name}:{nth}"))  # type: ignore[arg-type]
        assert code in (0, -signal.SIGKILL), errors  # 0: the point lies behind what is done already
        killed += code != 0
    assert killed
    run(world)
    assert store.snapshot(PREFIX) == clean


@pytest.mark.slow
@pytest.mark.parametrize("name", ["before-upload", "before-commit", "after-commit"])
def test_every_worker_dies_again_and_again(world: World, clean: dict[str, str], store: Store, name: str) -> None:
    for _ in range(9):
        code, errors = ended(world.start(OUT, 2, point=f"{name}:{14 if name == 'before-upload' else 5}"))  # type: ignore[arg-type]
        assert code in (0, 75, -signal.SIGKILL), errors
        if code == 0:
            break
    run(world)
    assert store.snapshot(PREFIX) == clean


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["command", "worker"])
def test_killed_at_random_moments(world: World, clean: dict[str, str], store: Store, victim: str) -> None:
    chance, kills = random.Random(7 if victim == "command" else 8), 0
    for _ in range(6):
        process = world.start(OUT, 2)  # type: ignore[arg-type]
        wait_for(lambda process=process: process.poll() is not None or len(workers_of(process)) == 2)  # type: ignore[misc]
        time.sleep(chance.uniform(0.0, 6.0))
        targets = [process.pid] if victim == "command" else workers_of(process)
        if process.poll() is None and targets:
            os.kill(chance.choice(targets), signal.SIGKILL)
            kills += 1
        code, errors = ended(process)
        assert code in (0, 75, -signal.SIGKILL), errors
        if code == 0:
            break
    assert kills
    run(world)
    assert store.snapshot(PREFIX) == clean


# ---- several processes


@pytest.mark.slow
def test_several_at_once_share_the_work(world: World, clean: dict[str, str], store: Store, tmp_path: Path) -> None:
    several: list[subprocess.Popen[str]] = [world.start(OUT, workers) for workers in (0, 1, 0)]  # type: ignore[arg-type]
    assert [ended(process) for process in several] == [(0, "")] * 3
    assert store.snapshot(PREFIX) == clean
    lines = [
        line for name in store.keys(PREFIX) if "run/metrics/" in name for line in store.get(f"{PREFIX}/{name}").splitlines()
    ]
    done = sorted(entry["unit"] for entry in map(json.loads, lines) if entry["event"] == "unit")
    assert done == list(range(len([name for name in clean if name.startswith("commits/")])))
    assert left(tmp_path) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before-commit:2", "before-record:2", "in-coalesce:2", "before-manifest", "in-report"])
def test_a_suspended_process_loses_its_lease_and_harms_nothing(
    world: World, clean: dict[str, str], store: Store, point: str
) -> None:
    suspended = world.start(OUT, 0, "--lease-seconds", 2, point=f"{point}=stop")  # type: ignore[arg-type]
    wait_for(lambda: Path(f"/proc/{suspended.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    assert ended(world.start(OUT, 0, "--lease-seconds", 2)) == (0, "")  # type: ignore[arg-type]
    assert store.snapshot(PREFIX) == clean
    os.kill(suspended.pid, signal.SIGCONT)
    assert ended(suspended) == (0, "")
    assert store.snapshot(PREFIX) == clean


@pytest.mark.slow
def test_told_to_stop_it_leaves_its_leases(world: World, clean: dict[str, str], store: Store, tmp_path: Path) -> None:
    process = world.start(OUT, 2, point="take@00000.tar#000000003=hang")  # type: ignore[arg-type]
    wait_for(lambda: [name for name in store.keys(PREFIX) if name.startswith("commits/")])
    process.send_signal(signal.SIGTERM)
    code, errors = ended(process, 60)
    assert code == 75, errors
    assert not [name for name in store.keys(PREFIX) if name.startswith(("run/leases/", "run/alive/"))]
    assert left(tmp_path) == []
    run(world)
    assert store.snapshot(PREFIX) == clean
