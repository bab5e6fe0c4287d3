"""Kill it anywhere: whatever dies, is suspended or shares the work, the bytes are those of a run that nothing disturbed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from run_world import SILENT, World, ended, wait_for, workers_of
from shard_corpus import snapshot

from tokkit.errors import ConfigError, DataError, ResumableStop
from tokkit.failpoints import parse
from tokkit.pipelines import pool
from tokkit.pipelines.finish_run import FinishConfig, finish
from tokkit.pipelines.leases import Owner
from tokkit.pipelines.ledger import Ledger
from tokkit.pipelines.plan import Poison, _read_units
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard, shard_part
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.storage import read_json

VICTIM = "00000.tar#000000003"  # a good pair


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    """What a run that nothing disturbed comes to."""
    return world.run(world.folder / "clean")


# ---- order and number of workers


def shuffled(monkeypatch: pytest.MonkeyPatch, seed: int) -> list[int]:
    """Have units done in random order; in which they were handed out is in the list once they are."""
    begun: list[int] = []

    class Shuffled(pool.UnitQueue):  # type: ignore[type-arg]
        def __init__(self, units, sharing, done) -> None:  # type: ignore[no-untyped-def]
            super().__init__(units, sharing, done)
            random.Random(seed).shuffle(self._todo)
            begun.extend(planned.index for planned in self._todo)

    monkeypatch.setattr("tokkit.pipelines.engine.UnitQueue", Shuffled)
    return begun


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_order_of_the_units_does_not_change_a_byte(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    begun = shuffled(monkeypatch, seed)
    assert world.run(tmp_path / "out") == clean
    assert begun != sorted(begun)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_the_number_of_workers_does_not_change_a_byte(
    world: World, clean: dict[str, str], tmp_path: Path, workers: int
) -> None:
    assert world.run(tmp_path / "out", workers=workers) == clean


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "workers", "options"),
    [
        (4, 3, {}),
        (5, 4, {"encoders": "process", "queue_depth": 64}),
        (6, 1, {"encoders": "process", "queue_depth": 1}),
    ],
)
def test_neither_do_order_workers_and_queue_together(
    world: World,
    clean: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
    workers: int,
    options: dict[str, object],
) -> None:
    begun = shuffled(monkeypatch, seed)
    assert world.run(tmp_path / "out", workers=workers, **options) == clean
    assert begun != sorted(begun)


# ---- several processes


@pytest.mark.slow
def test_two_at_once_share_the_work_and_both_succeed(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = [world.start(out, 0) for _ in range(2)]
    assert [ended(process) for process in both] == [(0, ""), (0, "")]
    assert snapshot(out) == clean
    lines = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    done = sorted(line["unit"] for line in lines if line["event"] == "unit")
    assert done == list(range(len(list((out / "commits").iterdir()))))  # each is told once, by who did it
    assert not [p for p in (out / "run" / "leases").iterdir() if p.name != ".clock"]
    assert not (out / "run" / "payloads").exists()


@pytest.mark.slow
def test_many_at_once_do_each_unit_once(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    several = [world.start(out, workers) for workers in (0, 1, 2, 0)]
    assert [ended(process) for process in several] == [(0, "")] * 4
    assert snapshot(out) == clean
    lines = (out / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) >= len(list((out / "commits").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["before-commit:2", "before-payload-rename:5", "in-coalesce:2", "before-manifest", "in-report"]
)
def test_a_suspended_process_loses_its_lease_and_harms_nothing(
    world: World, clean: dict[str, str], tmp_path: Path, point: str
) -> None:
    """It stops in the middle, another takes its work over and ends, and then it wakes up."""
    out = tmp_path / "out"
    suspended = world.start(out, 0, "--lease-seconds", 2, point=f"{point}=stop")
    wait_for(lambda: Path(f"/proc/{suspended.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
    begin = time.monotonic()
    assert ended(world.start(out, 0, "--lease-seconds", 2)) == (0, "")
    assert time.monotonic() - begin > 1.5  # it did wait for the lease
    assert snapshot(out) == clean
    os.kill(suspended.pid, signal.SIGCONT)
    assert ended(suspended) == (0, "")
    assert snapshot(out) == clean


def test_parts_and_a_finish_come_to_the_same(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    units = len([name for name in clean if name.startswith("commits/")])
    for done, index in enumerate((2, 0, 1)):
        part = world.part(out, index, 3)
        assert (part.committed, part.units) == (done * 5 + 5, units)
        assert not (out / "manifest.json").exists()
        if done < 2:
            missing = rf"{units - 5 * (done + 1)} of {units} units are not committed: {'0-1, 3-4' if done == 0 else '1, 4'}"
            with pytest.raises(ResumableStop, match=rf"{missing}.*of pairs/00000\.tar"):
                finish(FinishConfig(directory=out), SILENT)
    job = (out / "run" / "job.json").read_bytes()
    result = finish(FinishConfig(directory=out), SILENT)
    assert snapshot(out) == clean
    assert result.manifest.units == units
    assert set(result.packs) == {"train", "val"}
    finish(FinishConfig(directory=out), SILENT)
    assert snapshot(out) == clean
    assert (out / "run" / "job.json").read_bytes() == job
    assert world.part(out, 0, 3).committed == units


def test_leftovers_are_removed_when_nobody_can_need_them(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the beginning while another process is at work, but at the end, however young they are."""
    out = tmp_path / "out"
    world.part(out, 0, 15)
    (out / "run" / "leases" / "00009").write_text(f"{Owner('another-host', 1, '2', 'ab')}")
    left = [out / "commits" / "00009.json.tmp-1-ab", out / "run" / "payloads" / "shard.bin.tmp-1-ab", out / "x.tmp-1-ab"]
    for path in left:
        path.write_bytes(b"")
    part = world.part(out, 1, 15)
    assert part.committed == 2
    assert all(path.exists() for path in left)
    assert world.run(out, lease_seconds=1.0) == clean
    assert not any(path.exists() for path in left)


def test_finish_finds_inputs_from_anywhere(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world.corpus.folder)
    inputs = ["pairs", "webdataset:audio/*.tar", "one=texts/../texts"]
    config = world.config(tmp_path / "out", inputs=inputs, shard_index=0, shard_count=1)
    shard_part(config, SILENT)
    monkeypatch.chdir(tmp_path)
    manifest = finish(FinishConfig(directory=Path("out")), SILENT).manifest
    assert [s.name for s in manifest.sources] == ["pairs", "audio", "one"]


def test_finish_needs_no_gpu_of_the_run(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    """A run on a device that this machine lacks: its numeric environment is the recorded one."""
    from tokkit.storage import fingerprint_of, pretty_json

    out = tmp_path / "out"
    world.part(out, 0, 1)
    config = read_json(out / "config.json")
    config["numeric"]["device"] = "another"
    config["numeric_fingerprint"] = fingerprint_of(config["numeric"])
    (out / "config.json").write_text(pretty_json(config))
    for path in (out / "commits").iterdir():
        path.write_text(pretty_json(read_json(path) | {"numeric": config["numeric_fingerprint"]}))
    manifest = finish(FinishConfig(directory=out), SILENT).manifest
    assert manifest.numeric["device"] == "another"
    assert manifest.mixed is None


def test_finish_of_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no run of `tokkit shard`"):
        finish(FinishConfig(directory=tmp_path), SILENT)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"shard_index": 3, "shard_count": 3}, "no part 3 of 3"),
        ({"shard_index": 3}, "together"),
        ({"shard_count": 3}, "together"),
    ],
)
def test_parts_that_are_not_there(world: World, tmp_path: Path, options: dict[str, int], problem: str) -> None:
    settings = world.config(tmp_path / "out").model_dump(exclude={"shard_index", "shard_count"})
    with pytest.raises(ConfigError, match=problem):
        validated(ShardConfig, "test", settings | options)


# ---- failpoints


AGAIN = {  # the n-th passing at which each of five runs in a row is killed
    "in-plan": (1, 1, 1, 1, 1),
    "before-payload-rename": (1, 4, 7, 10, 13),
    "before-link": (1, 2, 1, 2, 3),
    "before-commit": (1, 2, 3, 2, 1),
    "after-commit": (1, 2, 3, 2, 1),
    "in-coalesce": (1, 2, 3, 1, 2),
    "in-rejects": (1, 2, 3, 4, 1),
    "before-manifest": (1, 1, 1, 1, 1),
    "before-report": (1, 1, 1, 1, 1),
    "in-report": (1, 1, 1, 1, 1),
    "after-report": (1, 1, 1, 1, 1),
}


def killed_at(world: World, out: Path, point: str) -> None:
    code, errors = ended(world.start(out, 0, point=point))
    assert code == -signal.SIGKILL, f"{point}: {code} {errors}"


@pytest.mark.parametrize(
    "point",
    ["in-coalesce:2", *(pytest.param(p, marks=pytest.mark.slow) for p in ("before-payload-rename:8", "after-manifest"))],
)
def test_killed_once_and_run_again(world: World, clean: dict[str, str], tmp_path: Path, point: str) -> None:
    killed_at(world, tmp_path / "out", point)
    assert world.run(tmp_path / "out") == clean
    assert not (tmp_path / "out" / "run" / "payloads").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", AGAIN)
def test_killed_five_times_at_a_failpoint(world: World, clean: dict[str, str], tmp_path: Path, name: str) -> None:
    for nth in AGAIN[name]:
        killed_at(world, tmp_path / "out", f"{name}:{nth}")
    assert world.run(tmp_path / "out") == clean


@pytest.mark.slow
def test_killed_five_times_just_after_the_manifest(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    killed_at(world, tmp_path / "before", "before-manifest")
    for number in range(5):
        out = tmp_path / str(number)
        shutil.copytree(tmp_path / "before", out)
        killed_at(world, out, "after-manifest")
        assert world.run(out) == clean


@pytest.mark.slow
@pytest.mark.parametrize("name", ["before-payload-rename", "before-commit", "after-commit"])
def test_every_worker_dies_again_and_again(world: World, clean: dict[str, str], tmp_path: Path, name: str) -> None:
    """Each worker process is killed at its fifth passing: the run comes to its end by itself, or stops resumable."""
    out = tmp_path / "out"
    for _ in range(9):
        code, errors = ended(world.start(out, 2, point=f"{name}:5"))
        assert code in (0, 75, -signal.SIGKILL), errors  # the command itself passes the point too, when it coalesces
        if code == 0:
            break
    assert world.run(out) == clean


def test_what_the_variable_may_say() -> None:
    points = parse("before-commit,take@a.tar#5:2=segv")
    assert [(p.name, p.subject, p.nth, p.action) for p in points] == [
        ("before-commit", "", 1, "kill"),
        ("take", "a.tar#5", 2, "segv"),
    ]
    for wrong in ("Before", "before-commit=die", "a:b"):
        with pytest.raises(ValueError, match="is not NAME"):
            parse(wrong)


# ---- killed at random moments


def committed(out: Path) -> int:
    folder = out / "commits"
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def strike(process: subprocess.Popen[str], chance: random.Random) -> str:
    """Kill the command or one of its workers, if they live; who it was."""
    workers = workers_of(process)
    if workers and chance.random() < 0.6:
        victim, who = chance.choice(workers), "worker"
    else:
        victim, who = process.pid, "parent"
    if process.poll() is not None:
        return ""
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return ""
    return who


@pytest.fixture
def real(shared_data: Path, tmp_path: Path) -> World:
    """Photographs, pages and texts of the real corpora: 22 MB."""
    world = World(tmp_path / "world")
    texts = ["news_26lang.jsonl.gz", "botchan.txt"]
    folders = ["images_webdataset", "interleaved_obelics_inline", "hf_parquet"]
    world.inputs = [*(str(shared_data / name) for name in folders), *(str(shared_data / "text" / name) for name in texts)]
    world.unit_bytes, world.shard_tokens = 1_500_000, 300_000
    return world


@pytest.mark.slow
def test_random_kills_over_the_generated_corpus(world: World, tmp_path: Path) -> None:
    kill_at_random(world, tmp_path, random.Random(7), least=6)


@pytest.mark.slow
def test_random_kills_over_a_real_corpus(real: World, tmp_path: Path) -> None:
    kill_at_random(real, tmp_path, random.Random(8), least=5)


def kill_at_random(world: World, tmp_path: Path, chance: random.Random, least: int) -> None:
    """Parent or worker, at any moment; whenever a run comes to its end, its bytes are looked at and another begins."""
    clean = world.run(tmp_path / "undisturbed")
    kills = {"parent": 0, "worker": 0}
    finished = 0
    while min(kills.values()) < least or finished < 2:
        out = tmp_path / f"out{finished}"
        process = world.start(out, 2, "--lease-seconds", 5)
        wait_for(lambda: process.poll() is not None or (out / "run" / "units.jsonl").exists())  # noqa: B023
        while process.poll() is None:
            # After so many commits more, and then at any moment: however slow the machine is, a run gets somewhere.
            goal = committed(out) + chance.choice([0, 0, 1, 2, 3])
            wait_for(lambda: process.poll() is not None or committed(out) >= goal or (out / "manifest.json").exists())  # noqa: B023
            seconds = chance.uniform(0, 20 if (out / "manifest.json").exists() else 1.5)
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            who = strike(process, chance)
            if who:
                kills[who] += 1
            if who == "parent":
                break
        code, errors = ended(process)
        assert code in (0, 75, -signal.SIGKILL), errors
        assert "Traceback" not in errors
        if code == 0:
            assert snapshot(out) == clean
            finished += 1
    print(f"\neffective kills: {kills}, runs that came to their end: {finished}")


# ---- SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_leaves_nothing_behind(
    world: World, clean: dict[str, str], tmp_path: Path, number: signal.Signals
) -> None:
    """Its workers end, its leases are given back, and it leaves with 75."""
    out = tmp_path / "out"
    process = world.start(out, 2, point=f"take@{VICTIM}=hang")
    wait_for(lambda: (out / "commits").is_dir() and len(list((out / "commits").iterdir())) >= 1)
    workers = workers_of(process)
    assert workers
    process.send_signal(number)
    code, errors = ended(process, 30)
    assert code == 75, errors
    assert "the same command goes on from here" in errors
    assert not [w for w in workers if Path(f"/proc/{w}").exists()]
    assert not [p for p in (out / "run" / "leases").iterdir() if p.name != ".clock"]
    assert world.run(out) == clean


# ---- poison


def test_a_document_that_is_known_to_kill_is_a_reject(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    world.part(out, 1, 15)
    planned = _read_units(out / "run" / "units.jsonl")[3]
    Ledger(out).add_poison(3, planned.unit, [Poison(1, "SIGSEGV")])
    result = shard(world.config(out), SILENT)
    reasons = {reason: n for s in result.manifest.sources for reason, n in s.reasons.items() if "crashes" in reason}
    assert reasons == {"document/rejected/crashes-process": 1, "item/rejected/crashes-process": 1}
    rejected = (out / "rejects" / "00003.jsonl").read_text()
    assert "SIGSEGV" in rejected
    assert verify(VerifyConfig(directory=out), SILENT).ok


@pytest.mark.slow
@pytest.mark.parametrize("how", ["segv", "abort", "exit"])
def test_a_sample_that_crashes_the_process_becomes_a_reject(world: World, tmp_path: Path, how: str) -> None:
    """Found by one run, known to the next: the same bytes."""
    one, two = tmp_path / "one", tmp_path / "two"
    assert ended(world.start(one, 2, point=f"take@{VICTIM}={how}"))[0] == 0
    line = next(x for p in (one / "rejects").iterdir() for x in p.read_text().splitlines() if "crashes-process" in x)
    assert VICTIM in line
    assert {"segv": "SIGSEGV", "abort": "SIGABRT", "exit": "exit code 3"}[how] in line
    assert verify(VerifyConfig(directory=one), SILENT).ok
    world.part(two, 0, 15)
    shutil.copytree(one / "run" / "poison", two / "run" / "poison", dirs_exist_ok=True)
    code, errors = ended(world.start(two, 0, point=f"take@{VICTIM}={how}"))  # in one process: it would die of it
    assert code == 0, errors
    assert snapshot(one) == snapshot(two)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "hang"])
def test_a_sample_that_takes_memory_or_time_is_not_rejected(
    world: World, clean: dict[str, str], tmp_path: Path, how: str
) -> None:
    out = tmp_path / "out"
    code, errors = ended(world.start(out, 2, "--stall-seconds", 5, point=f"take@{VICTIM}={how}"))
    assert code == 75
    assert VICTIM in errors
    assert len(list((out / "commits").iterdir())) == len([name for name in clean if name.startswith("commits/")]) - 1
    assert world.run(out) == clean
