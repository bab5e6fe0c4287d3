"""Workers on a Ray cluster: the same pool, the same workers, the same outcomes, on other machines.

A worker's host is an actor. It starts a worker process beside itself, exactly as the local engine does, and hands orders in and
messages out; so a document that crashes its process is known by its signal here as there, and what a lost actor or node was at
is done again by the pool like the unit of any worker that died. A process whose actor is gone leaves by itself; where it still
commits before it does, its payload has a name of its own and its record is not the first, which harms nothing.

Inputs, output and tokenizers must have the same paths on every node (a shared file system, or URLs for inputs and output); for
an output in a store each actor makes a working folder on its node, and removes it.
"""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Generic, Protocol, runtime_checkable

from tokkit.errors import FingerprintMismatch, TokkitError, UsageError
from tokkit.pipelines.encoder import Endpoint
from tokkit.pipelines.fingerprint import differences
from tokkit.pipelines.task import Result, UnitTask, UnitWork
from tokkit.pipelines.work import Work
from tokkit.pipelines.worker import LEFT_ALONE, LOST, AnyWorker, Death, Failed, Message, Order, Worker, listen, picklable

POLL_SECONDS = 1.0
REACH_SECONDS = 10.0
ENDING_SECONDS = 10.0  # that an actor may take to end by itself

Endpoints = Mapping[str, tuple[Endpoint, ...]]  # of encoder processes, by the field of a unit's job that says where they are
NONE: Endpoints = MappingProxyType({})


@dataclass(frozen=True)
class SameEnvironment(Generic[Result]):
    """A task that first sees to it that the node is of the numeric environment that the run is in.

    Attributes:
        environment: gives the node's; ``expected`` is the run's.
    """

    task: UnitTask[Result]
    environment: Callable[[], dict[str, object]]
    expected: Mapping[str, object]

    def open(self) -> UnitWork[Result]:
        """Load the work.

        Raises:
            FingerprintMismatch: the node is of another.
        """
        check_environment(self.environment, self.expected)
        return self.task.open()

    @contextmanager
    def placed(self, encoders: Endpoints = NONE) -> Iterator[UnitTask[Result]]:
        """See :class:`Placeable`."""
        with _placed(self.task, encoders) as task:
            yield replace(self, task=task)


def check_environment(environment: Callable[[], dict[str, object]], expected: Mapping[str, object]) -> None:
    """Raise FingerprintMismatch where a node's numeric environment is not the run's."""
    found = environment()
    if found != expected:
        listed = "\n".join(f"  - {line}" for line in differences(expected, found))
        raise FingerprintMismatch(
            f"a node of the Ray cluster is of another numeric environment, and its codes could differ by rounding:\n"
            f"{listed}\ngive all nodes the same packages and device, or have each kind do an output of its own"
        )


@runtime_checkable
class Placeable(Protocol):
    """A task that needs something of the machine on which it is done."""

    def placed(self, encoders: Endpoints = NONE) -> AbstractContextManager[UnitTask[Any]]:
        """The task as it is done on this machine; what it needs there is held for the length of a ``with`` block.

        Args:
            encoders: processes on this machine that encode for it.

        Raises:
            TokkitError: it is not to be had.
        """


def _placed(task: UnitTask[Any], encoders: Endpoints) -> AbstractContextManager[UnitTask[Any]]:
    return task.placed(encoders) if isinstance(task, Placeable) else nullcontext(task)


@dataclass(frozen=True)
class Ends:
    """What an encoder's actor tells the workers beside it (:mod:`tokkit.pipelines.ray_encoders`).

    Attributes:
        endpoints: of its encoder processes.
        gpus: that it was given, as CUDA_VISIBLE_DEVICES names them: what is not encoded in batches workers encode there.
        failed: why there are none.
    """

    endpoints: Endpoints
    gpus: str | None
    failed: Failed | None


def forget_main() -> None:
    """In an actor: have processes that it spawns not run the actor's own main script first."""
    sys.modules["__main__"].__dict__.pop("__file__", None)


class _Host:
    """In the actor: a worker process, and its messages.

    What the task holds of the node is held here, since the actor outlives a worker that crashes, and can give it back.
    """

    def __init__(self, task: bytes, stall_seconds: float, ends: Ends | None = None) -> None:
        forget_main()
        self._held = ExitStack()
        atexit.register(self._held.close)
        self._worker: Worker[Any] | None = None
        self._failed = None if ends is None else ends.failed
        if ends is not None and ends.gpus is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = ends.gpus
        try:
            if self._failed is None:
                placed = self._held.enter_context(_placed(pickle.loads(task), NONE if ends is None else ends.endpoints))
                self._worker = Worker(placed, stall_seconds)
        except TokkitError as error:
            self._failed = Failed(False, picklable(error), str(error))

    def give(self, order: Order) -> None:
        if self._worker is not None:
            self._worker.give(order)

    def messages(self, seconds: float) -> list[Message[Any]]:
        """What the worker says, as soon as it says something; nothing after so long."""
        if self._worker is None:
            return [] if self._failed is None else [self._failed]
        found: list[Message[Any]] = []
        while listen([self._worker], 0 if found else seconds):
            found.append(self._worker.receive())
            if not isinstance(found[-1], Work):
                break
        return found

    def leave(self) -> None:
        if self._worker is not None:
            self._worker.leave()
            self._worker.bury()
        self._held.close()


class RayWorker(AnyWorker[Result]):
    """A worker on a cluster, seen from the driver."""

    def __init__(self, ray: Any, host: Any, stall_seconds: float) -> None:
        super().__init__(stall_seconds)
        self._ray, self._host = ray, host
        self._alive = False  # its actor was given a place
        self.gone = False  # it is lost, or was killed or buried
        self._inbox: deque[Message[Result]] = deque()
        self.future: Any = host.messages.remote(0)

    def _send(self, order: Order) -> None:
        self._host.give.remote(order)
        self.future = self._host.messages.remote(POLL_SECONDS)

    def stalled(self) -> bool:
        """A worker that waits for a place in the cluster is not."""
        return self._alive and super().stalled()

    def fetch(self) -> None:
        """Take in what its future brought; it is done."""
        try:
            found = self._ray.get(self.future)
        except self._ray.exceptions.RayError:
            found = [LOST]
        self.gone |= isinstance(found[-1] if found else None, Death)
        self.future = None
        if not self._alive:
            self._alive, self.heard = True, time.monotonic()
        self._inbox.extend(found)
        if all(isinstance(message, Work) for message in found):
            self.future = self._host.messages.remote(POLL_SECONDS)

    def waiting(self) -> bool:
        """Whether it has said something that was not received."""
        return bool(self._inbox)

    def receive(self) -> Message[Result]:
        return self._note(self._inbox.popleft())

    def kill(self) -> Death:
        self._ray.kill(self._host)
        self.gone = True
        return Death("hang")

    def give_up(self) -> None:
        """End it, since the encoder beside it is gone."""
        if not self.gone:
            self._ray.kill(self._host)
            self.gone, self.future = True, None
            self._inbox.append(LEFT_ALONE)

    def leave(self) -> None:
        if not (self._alive and self.ready and self.order is None):
            self._ray.kill(self._host)
            self._host = None

    def bury(self) -> None:
        if self._host is not None:
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(self._host.leave.remote(), timeout=ENDING_SECONDS)
            self._ray.kill(self._host)
            self._host = None


class RayCluster:
    """Hosts workers on a Ray cluster, for the length of a ``with`` block.

    Args:
        address: of a running cluster (``auto`` finds one on this machine); None starts one here.
        cpus, gpus: that a worker asks for; ``gpus`` may be a fraction.

    Raises:
        UsageError: Ray is not installed, or no cluster is reached.
    """

    def __init__(self, address: str | None, cpus: float = 1.0, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError("--engine ray needs Ray: pip install 'tokkit[ray]'") from None
        self.ray: Any = ray
        self._address = address
        self._options = {"num_cpus": cpus, "num_gpus": gpus, "max_restarts": 0}
        self._tasks: dict[int, Any] = {}

    def __enter__(self) -> RayCluster:
        try:
            self._reach()
            if not self.ray.is_initialized():
                self.ray.init(address=self._address, include_dashboard=False, log_to_driver=False)
                self._started = True
            else:
                self._started = False
        except (OSError, ValueError, RuntimeError) as error:
            where = self._address or "here"
            raise UsageError(f"no Ray cluster ({where}): {str(error).splitlines()[0]}") from None
        self._actor = self.ray.remote(_Host)
        return self

    def _reach(self) -> None:
        """Raise OSError where nobody listens at an address ``HOST:PORT``: Ray itself would try for minutes."""
        host, _, port = (self._address or "").removeprefix("ray://").rpartition(":")
        if host and port.isdigit():
            socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()

    @property
    def cores(self) -> int:
        """CPU cores of the cluster, at least one."""
        return max(1, int(self.ray.cluster_resources().get("CPU", 1)))

    def __exit__(self, *exception: object) -> None:
        self._tasks.clear()
        if self._started:
            self.ray.shutdown()

    @property
    def nodes(self) -> list[tuple[float, float]]:
        """Cores and GPUs of each node."""
        found = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        return [(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in found]

    def worker(self, task: UnitTask[Result], stall_seconds: float) -> AnyWorker[Result]:
        return self.worker_at(task, stall_seconds)

    def worker_at(self, task: UnitTask[Result], stall_seconds: float, ends: Any = None, **options: object) -> RayWorker[Result]:
        """A new worker that an actor of these options hosts; ``ends`` is the future of the :class:`Ends` that it waits for."""
        if id(task) not in self._tasks:
            self._tasks[id(task)] = (task, self.ray.put(pickle.dumps(task)))
        host = self._actor.options(**self._options | options).remote(self._tasks[id(task)][1], stall_seconds, ends)
        return RayWorker(self.ray, host, stall_seconds)

    def listen(self, workers: Sequence[AnyWorker[Result]], seconds: float) -> list[AnyWorker[Result]]:
        mine = [worker for worker in workers if isinstance(worker, RayWorker)]
        if not any(worker.waiting() for worker in mine):
            futures = {worker.future: worker for worker in mine if worker.future is not None}
            if not futures:
                return []
            done, _ = self.ray.wait(list(futures), num_returns=1, timeout=seconds)
            if done:
                done, _ = self.ray.wait(list(futures), num_returns=len(futures), timeout=0)
            for future in done:
                futures[future].fetch()
        return [worker for worker in mine if worker.waiting()]
