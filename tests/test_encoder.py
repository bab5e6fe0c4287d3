"""The encoder process: same bytes as without one, whatever becomes of it, and nothing of it is left behind."""

from __future__ import annotations

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from encoder_tasks import BATCH, Gallery, Numbers, everything, loads, paint
from engine_tasks import Memory, units
from run_world import SILENT, World, ended, wait_for, workers_of
from shard_corpus import picture, snapshot

from tokkit.documents import Document, Image, Text
from tokkit.errors import ConfigError, DataError, ResumableStop
from tokkit.failpoints import VARIABLE
from tokkit.pipelines import again, attempt, unit
from tokkit.pipelines.assembly import Slot
from tokkit.pipelines.batching import ImageBatcher
from tokkit.pipelines.encoder_client import RemoteEncoder
from tokkit.pipelines.encoder_service import EncoderService
from tokkit.pipelines.engine import WorkerError, run_units
from tokkit.pipelines.plan import Poison
from tokkit.pipelines.prepare import prepare
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.work import Work
from tokkit.sources.resolve import resolve_inputs
from tokkit.storage import read_json
from tokkit.tokenizers.image import load_image_tokenizer

SERVICES: list[EncoderService] = []


class Watched(EncoderService):
    """Can be found by tests."""

    def __init__(self, *arguments: object, **options: object) -> None:
        super().__init__(*arguments, **options)  # type: ignore[arg-type]
        SERVICES.append(self)

    @property
    def pid(self) -> int:
        return self._process.pid or 0


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Where sockets lie, beside ``tmp_path``, whose name is too long for them; a test leaves nothing in it."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    SERVICES.clear()
    yield folder
    wait_for(lambda: not list(folder.glob("tokkit-encoder-*")), 5)
    shutil.rmtree(folder)


def service(tokenizer: Numbers, *, depth: int = 2, work: Work | None = None, stall_seconds: float = 60) -> Watched:
    report = work.add if work is not None else lambda work: None
    return Watched(tokenizer, batch_size=BATCH, depth=depth, workers=2, report=report, stall_seconds=stall_seconds)


def run(
    gallery: Gallery, count: int, workers: int = 2, *, depth: int = 2, stall_seconds: float = 60, memory: Memory | None = None
) -> dict[int, list[int]]:
    """Do units of pictures with an encoder process; the codes by unit."""
    found: dict[int, list[int]] = {}
    with service(gallery.tokenizer, depth=depth, stall_seconds=stall_seconds) as encoder:
        run_units(
            replace(gallery, endpoint=encoder.endpoint),
            units(count),
            workers,
            lambda work: None,
            lambda planned, result: found.__setitem__(planned.index, result),
            sharing=memory or Memory(),
            stall_seconds=stall_seconds,
            service=encoder,
            alone=gallery,
        )
    return found


# ---- codes and the queue


@pytest.mark.parametrize("depth", [1, 64])
@pytest.mark.parametrize("workers", [1, 3])
def test_codes_come_to_their_pictures(tmp_path: Path, depth: int, workers: int) -> None:
    assert run(Gallery(Numbers(tmp_path), documents=203), 4, workers, depth=depth) == everything(4, 203)
    assert loads(tmp_path) == 1


def test_a_worker_goes_on_until_its_queue_is_full(tmp_path: Path) -> None:
    """An encoder that is suspended takes as many batches as the queue has places; then its worker waits."""
    with service(Numbers(tmp_path), depth=3) as encoder:
        batcher = ImageBatcher(RemoteEncoder(encoder.endpoint, encoder.tend), BATCH)
        slots = [Slot(Image(b"", "")) for _ in range(5 * BATCH)]
        for number, slot in enumerate(slots):
            batcher.add(number, slot, paint(number))
        assert batcher.run() in (0, BATCH)  # connected
        while any(slot.codes is None for slot in slots[:BATCH]):
            batcher.receive()
        os.kill(encoder.pid, signal.SIGSTOP)
        assert [batcher.run() for _ in range(3)] == [0, 0, 0]
        waiting = threading.Thread(target=batcher.run, daemon=True)
        waiting.start()
        waiting.join(0.5)
        assert waiting.is_alive()
        assert all(slot.codes is None for slot in slots[BATCH:])
        os.kill(encoder.pid, signal.SIGCONT)
        waiting.join(20)
        assert not waiting.is_alive()
        while batcher.receive():
            pass
        batcher.close()
    assert [int(slot.codes.item()) for slot in slots if slot.codes is not None] == list(range(5 * BATCH))


def test_it_tells_how_busy_it_was(tmp_path: Path) -> None:
    work = Work()
    with service(Numbers(tmp_path, seconds=0.05), depth=2, work=work) as encoder:
        task = Gallery(Numbers(tmp_path), encoder.endpoint)
        run_units(task, units(1), 1, lambda work: None, lambda planned, result: None, service=encoder)
    assert work.encoder_batches == 5
    assert 0.25 <= work.encoder_seconds < 5
    assert 0.5 <= work.encoder_fill / 5 <= 1


# ---- whatever becomes of it


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "exit3", "hang"])
def test_an_encoder_that_dies_once_is_replaced_and_no_unit_done_again(tmp_path: Path, how: str) -> None:
    gallery = Gallery(Numbers(tmp_path, faults={1007: f"once:{how}"}))
    assert run(gallery, 4, stall_seconds=2) == everything(4)
    assert loads(tmp_path) == 2


@pytest.mark.slow
def test_an_encoder_that_is_suspended_is_replaced(tmp_path: Path) -> None:

    def suspend() -> None:
        wait_for(lambda: SERVICES and SERVICES[0]._state.batches > 2)  # it has loaded
        os.kill(SERVICES[0].pid, signal.SIGSTOP)  # type: ignore[attr-defined]

    threading.Thread(target=suspend).start()
    assert run(Gallery(Numbers(tmp_path, seconds=0.1), documents=100), 2, stall_seconds=2) == everything(2, 100)
    assert loads(tmp_path) == 2


def test_a_batch_that_kills_the_encoder_each_time_is_done_by_a_worker(tmp_path: Path) -> None:
    """As where the device has too little memory for all: the encoder is killed, a worker alone is not."""
    gallery = Gallery(Numbers(tmp_path, faults={1007: "encoder:SIGKILL"}))
    memory = Memory()
    assert run(gallery, 4, memory=memory) == everything(4)
    assert loads(tmp_path) == 3
    assert not memory.poison


def test_a_picture_that_kills_is_found_by_workers_that_encode_by_themselves(tmp_path: Path) -> None:
    gallery = Gallery(Numbers(tmp_path, faults={1007: "SIGSEGV"}))
    memory = Memory()
    found = run(gallery, 3, memory=memory)
    assert found.pop(1) == [1000 + i for i in range(20) if i != 7]
    assert found == {index: codes for index, codes in everything(3).items() if index != 1}
    assert memory.poison == {1: (Poison(7, "SIGSEGV"),)}
    assert loads(tmp_path) == 3


def test_one_that_dies_of_everything_is_not_replaced_for_ever(tmp_path: Path) -> None:
    with pytest.raises(ResumableStop, match="encoder process ends again and again: the last left with exit code 3"):
        run(Gallery(Numbers(tmp_path, faults=dict.fromkeys(range(50_000), "encoder:exit3"))), 50)
    assert loads(tmp_path) <= 8


@pytest.mark.parametrize(("how", "error"), [("exit1", ResumableStop), ("data", DataError)])
def test_one_that_cannot_load(tmp_path: Path, how: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="again and again" if how == "exit1" else "no tokenizer at all"):
        run(Gallery(Numbers(tmp_path, loading=how)), 2)
    assert loads(tmp_path) <= 3


@pytest.mark.parametrize("how", [pytest.param("memory", marks=pytest.mark.slow), "oserror"])
def test_a_device_without_memory_rejects_nothing(tmp_path: Path, how: str) -> None:
    """The unit is put aside, and done alone, when the encoder process has given its memory back."""
    assert run(Gallery(Numbers(tmp_path, faults={1007: f"once:{how}"})), 3) == everything(3)
    with pytest.raises(ResumableStop, match=r"source/file-1 .*(no memory for a batch of 4|Input/output error)"):
        run(Gallery(Numbers(tmp_path, faults={1007: how})), 3)


def test_a_fault_in_the_program_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match=r"in the encoder process(.|\n)*a fault in the program"):
        run(Gallery(Numbers(tmp_path, faults={1007: "fault"})), 3)


def test_workers_that_die_do_not_harm_it(tmp_path: Path) -> None:
    gallery = Gallery(Numbers(tmp_path, seconds=0.02), dies=(1007, 2019, 3))
    assert run(gallery, 4, depth=8) == everything(4)
    assert loads(tmp_path) == 1


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def clean(world: World) -> dict[str, str]:
    """What a run without an encoder process comes to."""
    return world.run(world.folder / "clean")


# ---- documents that wait for pictures


@pytest.mark.parametrize("where", ["in the worker", "in a process"])
@pytest.mark.parametrize("before", [0, 10])
def test_a_picture_does_not_keep_all_texts_behind_it_waiting(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, before: int
) -> None:
    """Neither where documents before it are ready that are too few to be written by themselves."""
    texts = [Document(f"{i}", "s", f"f:{i}", (Text(f"text {i}"),)) for i in range(3000)]
    image = Document("p", "s", "f:p", (Image(picture(3), "p"), Text("a picture")), pair=True)
    documents = [*texts[:before], image, *texts[before:]]
    waited: list[int] = []
    drain = attempt.Attempt.drain

    def drained(mine: attempt.Attempt, at_least: int) -> None:
        drain(mine, at_least)
        waited.append(len(mine.pending))

    monkeypatch.setattr(attempt.Attempt, "drain", drained)
    config = world.config(tmp_path / "out")
    with ExitStack() as stack:
        inputs = resolve_inputs(config.inputs)
        setup = prepare(config, inputs)
        job = unit.UnitJob(config, {"source": inputs.sources[0]}, setup.vocabulary, setup.layout, "cpu", "")
        if where == "in a process":
            load = partial(load_image_tokenizer, config.image_tokenizer)
            encoder = stack.enter_context(service(load))  # type: ignore[arg-type]
            job = replace(job, encoders=(encoder.endpoint,), preprocessing=setup.preprocessing)
        encoded, refused = again.encode_again(unit.UnitProcessor(job), units(1)[0], documents)
    assert [row["locator"] for _, row in encoded] == [document.locator for document in documents]
    assert not refused
    assert max(waited) <= attempt.PENDING_LIMIT


# ---- whole runs


@pytest.mark.parametrize(
    ("workers", "depth"),
    [(3, 1), *(pytest.param(*p, marks=pytest.mark.slow) for p in ((1, 1), (1, 64), (3, 64), (2, 2)))],
)
def test_who_encodes_does_not_change_a_byte(
    world: World, clean: dict[str, str], tmp_path: Path, workers: int, depth: int
) -> None:
    out = tmp_path / "out"
    assert world.run(out, workers=workers, encoders="process", queue_depth=depth) == clean
    encoder = read_json(out / "run" / "summary.json")["encoder"]
    assert encoder["batches"] > 10
    assert 0 < encoder["queue_fill"] <= 1
    assert "encoder" not in read_json(world.folder / "clean" / "run" / "summary.json")


@pytest.mark.slow
def test_an_encoder_that_is_killed_at_its_eighth_batch(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "encode:8")
    monkeypatch.setattr("tokkit.pipelines.encoder_service.EncoderService", Watched)
    assert world.run(tmp_path / "out", workers=2, encoders="process") == clean
    assert sum(SERVICES[0]._deaths.values()) >= 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_an_encoder_that_is_killed_at_random_moments(
    world: World, clean: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """While it loads, waits or encodes; the run comes to its end by itself, or stops resumable."""
    monkeypatch.setattr("tokkit.pipelines.encoder_service.EncoderService", Watched)
    chance, kills, over = random.Random(seed), [0], threading.Event()

    def strike() -> None:
        while not over.wait(chance.uniform(0.3, 5) * (1 + kills[0] / 4)):  # rarer and rarer, for a busy machine loads slowly
            with suppress(ProcessLookupError, IndexError):
                os.kill(SERVICES[-1].pid, signal.SIGKILL)  # type: ignore[attr-defined]
                kills[0] += 1

    striker = threading.Thread(target=strike)
    striker.start()
    try:
        for number in range(20):  # on a fast machine a run may be over before the first blow
            for _ in range(30):
                with suppress(ResumableStop):
                    shard(world.config(tmp_path / f"out{number}", workers=2, encoders="process"), SILENT)
                    break
            assert snapshot(tmp_path / f"out{number}") == clean
            if kills[0]:
                break
    finally:
        over.set()
        striker.join()
    assert kills[0]


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, *(pytest.param(n, marks=pytest.mark.slow) for n in (signal.SIGINT, signal.SIGKILL))]
)
def test_a_run_that_is_ended_leaves_no_process_and_no_socket(
    world: World, tmp_path: Path, temporary: Path, number: signal.Signals
) -> None:
    process = world.start(tmp_path / "out", 2, "--encoders", "process", point="encode:3=hang")
    wait_for(lambda: len(workers_of(process)) == 3 and list(temporary.glob("tokkit-encoder-*/socket")))
    children = workers_of(process)
    time.sleep(1)
    begin = time.monotonic()
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    code, errors = ended(process, 30)
    assert code == (-9 if number == signal.SIGKILL else 75), errors
    assert "Traceback" not in errors
    wait_for(lambda: not [c for c in children if Path(f"/proc/{c}").exists()], 10)
    assert time.monotonic() - begin < 15
    wait_for(lambda: not list(temporary.glob("tokkit-encoder-*")), 5)


def test_no_process_can_encode_for_none(world: World, tmp_path: Path) -> None:
    settings = world.config(tmp_path / "out").model_dump() | {"encoders": "process"}
    with pytest.raises(ConfigError, match="--workers 0 does everything in one process"):
        validated(ShardConfig, "test", settings)
