"""The Ray engine: the local engine's bytes, whatever becomes of workers, actors and their processes."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from run_world import SILENT, World

from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.ray_workers import RayCluster, RayWorker, SameEnvironment
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.task import UnitWork
from tokkit.pipelines.work import Report
from tokkit.pipelines.worker import Death

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    """What the local engine gives."""
    return world.run(world.folder / "clean")


def begin_ray(**environment: str) -> None:
    """A cluster of two cores, whose processes have these variables."""
    # The tests' own modules are on the path of this process alone; workers get it with the environment.
    here = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {"PYTHONPATH": here, **environment}
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": variables})


@pytest.fixture(scope="module")
def cluster() -> object:
    """A cluster of two cores, which the runs find."""
    begin_ray()
    yield ray
    ray.shutdown()


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in listed]


def hosts() -> list[int]:
    """Processes of actors that host workers."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and b"ray::_Host" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


class Killer(threading.Thread):
    """Kills an actor, or the worker process of one, now and then; the first ``times`` chances it gets."""

    def __init__(self, times: int, actors: bool) -> None:
        super().__init__(daemon=True)
        self.left, self.actors, self.over = times, actors, threading.Event()

    def run(self) -> None:
        while self.left and not self.over.wait(0.7):
            for host in hosts()[:1]:
                try:
                    victims = [host] if self.actors else children(host)
                    for victim in victims[:1]:
                        os.kill(victim, signal.SIGKILL)
                        self.left -= 1
                except OSError:
                    continue


@pytest.mark.slow
def test_the_local_engines_bytes(world: World, clean: dict[str, str], cluster: object, tmp_path: Path) -> None:
    assert world.run(tmp_path / "out", engine="ray", workers=None) == clean


@pytest.mark.slow
@pytest.mark.parametrize("actors", [True, False])
def test_workers_that_are_killed_change_nothing(
    world: World, clean: dict[str, str], cluster: object, tmp_path: Path, actors: bool
) -> None:
    killer = Killer(2, actors)
    killer.start()
    try:
        assert world.run(tmp_path / "out", engine="ray", workers=2) == clean
    finally:
        killer.over.set()
        killer.join()
    assert killer.left < 2  # it found something to kill


@pytest.mark.slow
def test_a_driver_that_is_killed_is_gone_on_with(world: World, clean: dict[str, str], tmp_path: Path) -> None:
    """By the other engine; and no process of the first is left."""
    out = tmp_path / "out"
    process = world.start(out, 2, "--engine", "ray", point="")
    deadline = time.monotonic() + 120
    while not list((out / "commits").glob("*.json")) if (out / "commits").is_dir() else True:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert world.run(out) == clean
    deadline = time.monotonic() + 60
    while hosts() and time.monotonic() < deadline:
        time.sleep(0.5)
    assert hosts() == []


@dataclass
class Task:
    """Opens nothing; where it stands in another environment it is not opened at all."""

    def open(self) -> UnitWork[int]:
        return self

    def process(self, planned: PlannedUnit, report: Report) -> int:
        return 7


def test_a_node_of_another_numeric_environment_is_refused() -> None:
    task = SameEnvironment(Task(), lambda: {"device": "A", "precision": "fp32"}, {"device": "B", "precision": "fp32"})
    with pytest.raises(FingerprintMismatch, match="device: B -> A"):
        task.open()
    assert SameEnvironment(Task(), lambda: {"device": "A"}, {"device": "A"}).open() == Task()


class Remote:
    """Stands in for an actor's method: a call gives what is next."""

    def __init__(self, answers: list[object]) -> None:
        self.answers = answers

    def remote(self, *arguments: object) -> object:
        return self.answers.pop(0) if self.answers else None


def test_one_that_waits_for_a_place_does_not_stall_and_a_lost_one_has_died() -> None:
    class LostError(Exception):
        pass

    class Ray:
        exceptions = type("exceptions", (), {"RayError": LostError})

        @staticmethod
        def get(future: object) -> object:
            if isinstance(future, Exception):
                raise future
            return future

    host = type("Host", (), {"messages": Remote([[], LostError()]), "give": Remote([])})()
    worker: RayWorker[int] = RayWorker(Ray, host, 0.0)
    worker.heard -= 10_000
    assert not worker.stalled()  # it has no place in the cluster yet
    worker.fetch()
    worker.heard -= 10_000
    assert worker.stalled()
    worker.fetch()
    assert worker.waiting()
    death = worker.receive()
    assert isinstance(death, Death)
    assert str(death) == "was killed by the loss of its node, or of its actor"
    assert not death.of_the_sample


def test_options_that_do_not_go_together(world: World, tmp_path: Path) -> None:
    for options, message in (
        ({"engine": "ray", "device": "cuda:1"}, "device: Ray gives out the GPUs; say cuda"),
        ({"encoders": "process", "gpus_per_worker": 0.5}, "gpus_per_worker: goes with --encoders in-worker"),
        ({"engine": "ray", "workers": 0}, "workers: 0 does the units in this process"),
        ({"ray_address": "auto"}, "ray_address: goes with --engine ray"),
    ):
        settings = {"inputs": world.inputs, "out": tmp_path / "out", "text_tokenizer": world.text} | options
        with pytest.raises(UsageError, match=message):
            validated(ShardConfig, "tokkit shard", settings)


def test_without_ray(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'tokkit\[ray\]'"):
        RayCluster(None)
    with pytest.raises(UsageError, match="needs Ray"):
        shard(world.config(tmp_path / "out", engine="ray", workers=2), SILENT)


def test_no_cluster_at_an_address() -> None:
    with pytest.raises(UsageError, match=r"no Ray cluster \(127\.0\.0\.1:1\): .*refused"), RayCluster("127.0.0.1:1"):
        pass
