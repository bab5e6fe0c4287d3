"""Encoders as actors on Ray, with their workers beside them: the local engine's bytes, whatever becomes of the actors."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from encoder_tasks import BATCH, Gallery, Numbers, everything, loads, numbers_on
from engine_tasks import Memory, units
from run_world import World, wait_for
from test_ray import Killer, begin_ray, children

from tokkit.errors import DataError, FingerprintMismatch, ResumableStop, UsageError
from tokkit.pipelines.engine import WorkerError, run_units
from tokkit.pipelines.product import EncoderKind
from tokkit.pipelines.ray_encoders import Cut, Encoding, RayEncoders, cut
from tokkit.pipelines.ray_workers import Ends, RayCluster, _Host
from tokkit.pipelines.work import Work
from tokkit.pipelines.worker import LEFT_ALONE, Failed
from tokkit.storage import read_json

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    """What the local engine gives, each worker encoding by itself."""
    return world.run(world.folder / "clean")


@pytest.fixture(scope="module")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the cluster's processes have their sockets."""
    return tmp_path_factory.mktemp("t")


@pytest.fixture(scope="module")
def cluster(temporary: Path) -> Iterator[object]:
    """A cluster of two cores, which the runs find."""
    begin_ray(TMPDIR=str(temporary))
    yield ray
    ray.shutdown()


def processes(name: str) -> list[int]:
    """Of actors of a class."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"ray::{name}".encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


# ---- how a cluster is cut


@pytest.mark.parametrize(
    ("nodes", "processes", "workers", "on_gpus", "found"),
    [
        ([(2, 0)], 1, 2, False, Cut(1, 2, 0.0)),
        ([(2, 0)], 2, 2, False, Cut(2, 1, 0.0)),
        ([(2, 0)], 4, 2, False, Cut(2, 1, 0.0)),  # a group has a core at least
        ([(16, 8), (16, 8)], 1, None, True, Cut(16, 2, 1.0)),
        ([(16, 8), (16, 8)], 2, None, True, Cut(32, 1, 0.5)),
        ([(64, 0), (16, 2), (8, 2)], 1, None, True, Cut(4, 4, 1.0)),  # any group fits any node
        ([(64, 0), (16, 2), (8, 2)], 1, 3, True, Cut(3, 1, 1.0)),
        ([(64, 0), (16, 2), (8, 2)], 1, 6, True, Cut(4, 2, 1.0)),
        ([(64, 0), (16, 2), (8, 2)], 1, 99, True, Cut(4, 4, 1.0)),
        ([(4, 1), (4, 0), (0, 1)], 1, None, False, Cut(2, 4, 0.0)),
    ],
)
def test_a_cluster_is_cut_into_groups(
    nodes: list[tuple[float, float]], processes: int, workers: int | None, on_gpus: bool, found: Cut
) -> None:
    assert cut(nodes, processes, workers, on_gpus=on_gpus) == found


def test_a_cluster_without_a_place_for_an_encoder() -> None:
    with pytest.raises(UsageError, match="no node of the Ray cluster has a GPU and a core"):
        cut([(64, 0), (0, 4)], 1, None, on_gpus=True)


def test_workers_see_the_gpu_of_their_encoder_and_say_why_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules["__main__"].__dict__, "__file__", __file__)  # which a host takes away
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    failed = Failed(False, DataError("no tokenizer at all"), "no tokenizer at all")
    host = _Host(pickle.dumps(Gallery(Numbers(Path()))), 60, Ends({}, "3", failed))
    assert host.messages(0) == [failed]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"


# ---- the driver's side, on a cluster that is none


class LostError(Exception):
    pass


class Actor:
    """Each of its methods gives a future that is what it was told to be, by the method's name."""

    def __init__(self, ray: FakeRay, answers: dict[str, object]) -> None:
        self.ray, self.answers, self.killed = ray, answers, False

    def __getattr__(self, name: str) -> SimpleNamespace:
        return SimpleNamespace(remote=lambda *arguments: SimpleNamespace(found=self.answers.get(name)))


class FakeRay:
    """As much of Ray as encoders need; actors are kept in a list."""

    exceptions = SimpleNamespace(RayError=LostError)

    def __init__(self, answers: Callable[[int], dict[str, object]]) -> None:
        self.actors: list[Actor] = []
        self.answers, self.bundles = answers, 0
        strategies = SimpleNamespace(PlacementGroupSchedulingStrategy=lambda *arguments, **options: None)
        self.util = SimpleNamespace(
            placement_group=self._bundle, remove_placement_group=self._remove, scheduling_strategies=strategies
        )

    def _bundle(self, bundles: object, strategy: str) -> object:
        self.bundles += 1
        return bundles

    def _remove(self, bundle: object) -> None:
        self.bundles -= 1

    def put(self, thing: object) -> object:
        return thing

    def remote(self, kind: type) -> SimpleNamespace:
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=self._actor))

    def _actor(self, *arguments: object) -> Actor:
        self.actors.append(Actor(self, self.answers(len(self.actors))))
        return self.actors[-1]

    def kill(self, actor: Actor) -> None:
        actor.killed = True

    def wait(self, futures: list[SimpleNamespace], timeout: float, num_returns: int = 1) -> tuple[list[Any], list[Any]]:
        return [future for future in futures if future.found is not None], []

    def get(self, future: SimpleNamespace | list[SimpleNamespace], timeout: float = 0) -> object:
        if isinstance(future, list):
            return [self.get(one) for one in future]
        if future.found is None:
            raise LostError("no answer yet")
        if isinstance(future.found, Exception):
            raise future.found
        return future.found


def encoders_of(fake: FakeRay, size: Cut, report: Callable[[Work], None] = lambda work: None) -> RayEncoders:
    there = RayCluster(None)
    there.ray, there._actor = fake, fake.remote(_Host)
    return RayEncoders(there, Encoding({}, "cpu", 2, 60, None, {}), size, report)


def test_a_group_begins_with_its_first_worker_and_workers_are_dealt_out() -> None:
    fake = FakeRay(lambda number: {})
    with encoders_of(fake, Cut(3, 2, 0.0)) as encoders:
        assert encoders.workers == 6
        assert not fake.actors
        for _ in range(2):
            encoders.worker(Memory(), 60)  # type: ignore[arg-type]
        assert (len(fake.actors), fake.bundles) == (4, 2)
        for _ in range(4):
            encoders.worker(Memory(), 60)  # type: ignore[arg-type]
        assert (len(fake.actors), fake.bundles) == (9, 3)
        encoders.tend()
    assert fake.bundles == 0


def test_with_an_encoder_that_is_lost_go_its_workers_and_no_others() -> None:
    fake = FakeRay(lambda number: {"look": LostError("node died")} if number == 0 else {})
    with encoders_of(fake, Cut(2, 2, 0.0)) as encoders:
        workers = [encoders.worker(Memory(), 60) for _ in range(4)]  # type: ignore[arg-type]
        encoders.tend()
        assert [worker.waiting() for worker in workers] == [True, False, True, False]  # type: ignore[attr-defined]
        assert workers[0].receive() == LEFT_ALONE
        assert len(fake.actors) == 7  # another encoder
        encoders.worker(Memory(), 60)  # type: ignore[arg-type]
        encoders.tend()
        assert [len(group._workers) for group in encoders._groups] == [1, 2]


def test_an_encoder_that_is_lost_again_and_again_ends_the_run() -> None:
    fake = FakeRay(lambda number: {"look": LostError("the node has no memory\nmore")})
    with encoders_of(fake, Cut(1, 2, 0.0)) as encoders:
        encoders.worker(Memory(), 60)  # type: ignore[arg-type]
        with pytest.raises(ResumableStop, match=r"lost again and again: the node has no memory\. What is committed"):
            for _ in range(20):
                encoders.tend()
    assert len(fake.actors) == 1 + 7


def test_what_an_encoder_did_and_why_it_cannot_go_on() -> None:
    work, told = Work(encoder_batches=3), Work()
    failed = Failed(False, DataError("no tokenizer at all"), "no tokenizer at all")
    fake = FakeRay(lambda number: {"look": (work, failed), "close": (Work(encoder_batches=2), None)})
    with encoders_of(fake, Cut(1, 2, 0.0), told.add) as encoders:
        encoders.worker(Memory(), 60)  # type: ignore[arg-type]
        with pytest.raises(DataError, match="no tokenizer at all"):
            encoders.tend()
    assert told.encoder_batches == 3 + 3 + 2  # another look was under way


# ---- on a cluster


def run(
    gallery: Gallery,
    count: int,
    *,
    groups: int = 1,
    environment: Callable[[], dict[str, object]] | None = None,
    work: Work | None = None,
) -> dict[int, list[int]]:
    """Do units of pictures with encoder actors and two workers; the codes by unit."""
    found: dict[int, list[int]] = {}
    kinds = {"encoders": EncoderKind(partial(numbers_on, gallery.tokenizer), BATCH)}
    encoding = Encoding(kinds, "cpu", 2, 60, environment, {"device": "one"})  # type: ignore[arg-type]
    report = (work or Work()).add
    with RayCluster(None) as there, RayEncoders(there, encoding, Cut(groups, 2 // groups, 0.0), report) as encoders:
        run_units(
            gallery,
            units(count),
            encoders.workers,
            lambda work: None,
            lambda planned, result: found.__setitem__(planned.index, result),
            sharing=Memory(),
            stall_seconds=60,
            service=encoders,
            alone=gallery,
            hosting=encoders,
        )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_codes_come_to_their_pictures(cluster: object, temporary: Path, tmp_path: Path, groups: int) -> None:
    work = Work()
    assert run(Gallery(Numbers(tmp_path)), 6, groups=groups, work=work) == everything(6)
    assert loads(tmp_path) == groups
    assert work.encoder_batches == 30
    wait_for(lambda: not processes("_EncoderHost") and not list(temporary.glob("tokkit-encoder-*")), 20)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["once:SIGKILL", "once:exit3", "encoder:SIGKILL", "SIGSEGV"])
def test_an_encoder_process_that_dies_is_replaced_beside_its_workers(cluster: object, tmp_path: Path, how: str) -> None:
    found = run(Gallery(Numbers(tmp_path, faults={1007: how})), 3)
    wanted = everything(3)
    if how == "SIGSEGV":
        wanted[1].remove(1007)
    assert found == wanted
    assert loads(tmp_path) == (2 if "once" in how else 3)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2])
def test_an_encoders_actor_that_is_killed(cluster: object, tmp_path: Path, groups: int) -> None:
    """Twice, in the middle: its workers are replaced, their units done again, and nothing waits for ever."""
    killed: list[int] = []

    def strike() -> None:
        for loaded in (groups, groups + 1):
            wait_for(lambda loaded=loaded: (tmp_path / "encoders").exists() and loads(tmp_path) >= loaded, 60)  # type: ignore[misc]
            threading.Event().wait(0.5)
            killed.extend(processes("_EncoderHost")[:1])
            os.kill(killed[-1], signal.SIGKILL)

    striker = threading.Thread(target=strike)
    striker.start()
    found = run(Gallery(Numbers(tmp_path, seconds=0.1), documents=120), 6, groups=groups)
    striker.join()
    assert len(killed) == 2
    assert found == everything(6, 120)
    assert loads(tmp_path) == groups + 2


@pytest.mark.slow
def test_why_an_encoder_cannot_be_had_ends_the_run(cluster: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no tokenizer at all"):
        run(Gallery(Numbers(tmp_path, loading="data")), 2)
    with pytest.raises(ResumableStop, match="encoder process ends again and again"):
        run(Gallery(Numbers(tmp_path, loading="exit1")), 2)
    with pytest.raises(FingerprintMismatch, match="device: one -> another"):
        run(Gallery(Numbers(tmp_path)), 2, environment=partial(dict, device="another"))
    with pytest.raises(WorkerError, match="a fault in the program"):
        run(Gallery(Numbers(tmp_path, faults={1007: "fault"})), 2)


# ---- whole runs


@pytest.mark.slow
@pytest.mark.parametrize("each", [1, 2])
def test_who_encodes_does_not_change_a_byte(
    world: World, clean: dict[str, str], cluster: object, tmp_path: Path, each: int
) -> None:
    out = tmp_path / "out"
    assert world.run(out, engine="ray", workers=None, encoders="process", encoder_processes=each) == clean
    assert read_json(out / "run" / "summary.json")["encoder"]["batches"] > 10


class EncoderKiller(Killer):
    """Kills encoders' actors, or the processes that these keep up."""

    def run(self) -> None:
        while self.left and not self.over.wait(0.7):
            for host in processes("_EncoderHost")[:1]:
                try:
                    victims = [host] if self.actors else children(host)
                    for victim in victims[:1]:
                        os.kill(victim, signal.SIGKILL)
                        self.left -= 1
                except OSError:
                    continue


@pytest.mark.slow
@pytest.mark.parametrize("killer", [EncoderKiller(3, True), EncoderKiller(3, False), Killer(2, True), Killer(2, False)])
def test_whatever_is_killed_changes_nothing(
    world: World, clean: dict[str, str], cluster: object, tmp_path: Path, killer: Killer
) -> None:
    before = killer.left
    killer.start()
    try:
        assert world.run(tmp_path / "out", engine="ray", workers=2, encoders="process") == clean
    finally:
        killer.over.set()
        killer.join()
    assert killer.left < before  # it found something to kill
