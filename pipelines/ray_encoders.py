"""Encoders as actors of a Ray cluster, each with its workers around it on one node.

A *group* is a placement group of one bundle, which Ray puts on one node: a share of a GPU (none on a CPU), and a core for each
of its workers. The encoder's actor in it keeps up encoder processes exactly as the local engine does
(:mod:`tokkit.pipelines.encoder_service`), so one that crashes is replaced beside it and no unit notices. The workers' actors
are in the same bundle, and their processes connect over the node's own sockets.

An actor that is lost (preempted, killed, with its node) takes its encoder processes along, and the sockets. Its workers are
then ended and replaced, their units are done again, and another actor is asked for in the same group, which Ray gives another
place where its node is gone.
"""

from __future__ import annotations

import atexit
import os
import pickle
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from tokkit.errors import ResumableStop, TokkitError, UsageError
from tokkit.pipelines.encoder_service import LOOK_SECONDS, EncoderServices
from tokkit.pipelines.product import EncoderField, EncoderKind
from tokkit.pipelines.ray_workers import (
    ENDING_SECONDS,
    POLL_SECONDS,
    Ends,
    RayCluster,
    RayWorker,
    check_environment,
    forget_main,
)
from tokkit.pipelines.task import Result, UnitTask
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.worker import AnyWorker, Failed, message_of, picklable, raise_error


@dataclass(frozen=True)
class Encoding:
    """What an encoder's actor is to keep up; picklable.

    Attributes:
        kinds: of encoder processes, by the field of a unit's job that is to say where they are.
        device: that they encode on.
        depth: batches that a worker may have under way.
        stall_seconds: an encoder process that gives no sign for so long is killed and replaced.
        environment: gives a node's numeric environment, which is to be ``expected``; None takes any.
    """

    kinds: Mapping[EncoderField, EncoderKind]
    device: str
    depth: int
    stall_seconds: float
    environment: Callable[[], dict[str, object]] | None
    expected: Mapping[str, object]

    def services(self, workers: int, report: Report) -> EncoderServices:
        """Start the encoder processes.

        Raises:
            FingerprintMismatch: the node is of another numeric environment than the run.
        """
        if self.environment is not None:
            check_environment(self.environment, self.expected)
        return EncoderServices.started(
            self.kinds,
            [self.device],
            depth=self.depth,
            workers=workers,
            report=report,
            stall_seconds=self.stall_seconds,
        )


@dataclass(frozen=True)
class Cut:
    """How a cluster is cut into groups.

    Attributes:
        groups: how many.
        workers: in each.
        gpus: that each has; a fraction where several share one.
    """

    groups: int
    workers: int
    gpus: float


def cut(nodes: Sequence[tuple[float, float]], processes: int, workers: int | None, *, on_gpus: bool) -> Cut:
    """Cut a cluster into groups of one size, since any of them may come to live on any node.

    Args:
        nodes: cores and GPUs of each.
        processes: encoders on each GPU; without GPUs, on each node.
        workers: that are wanted; None takes as many as there are cores for, and there are never more.

    Raises:
        UsageError: there is no place for any.
    """
    each_has = [(int(cores), min(int(cores), processes * (int(gpus) if on_gpus else 1))) for cores, gpus in nodes]
    each_has = [(cores, groups) for cores, groups in each_has if groups]
    if not each_has:
        raise UsageError(
            f"no node of the Ray cluster has {'a GPU and ' if on_gpus else ''}a core for an encoder and its workers"
        )
    groups = sum(groups for _, groups in each_has)
    most = min(cores // groups for cores, groups in each_has)
    if workers is not None:
        groups = min(groups, workers)
        most = min(most, -(-workers // groups))
    return Cut(groups, most, 1 / processes if on_gpus else 0.0)


# ---- in the actor


class _EncoderHost:
    """In the actor: encoder processes, and what they say."""

    def __init__(self, encoding: bytes, workers: int) -> None:
        forget_main()
        self._work = Work()
        self._failed: Failed | None = None
        self._services = EncoderServices({})
        atexit.register(self.close)
        with self._noted():
            asked: Encoding = pickle.loads(encoding)
            self._services = asked.services(workers, lambda work: self._work.add(work))

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """Keep an error for the driver; it would come there as the actor's death."""
        try:
            yield
        except TokkitError as error:
            self._failed = Failed(False, picklable(error), str(error))
        except Exception:
            self._failed = Failed(False, None, traceback.format_exc())

    def ends(self) -> Ends:
        """What the workers need to connect."""
        return Ends(self._services.endpoints, os.environ.get("CUDA_VISIBLE_DEVICES"), self._failed)

    def look(self, seconds: float) -> tuple[Work, Failed | None]:
        """Look after the processes for so long; what they did, and why they cannot go on."""
        latest = time.monotonic() + seconds
        with self._noted():
            while self._failed is None and time.monotonic() < latest:
                self._services.tend()
                time.sleep(LOOK_SECONDS)
        return self._taken(), self._failed

    def close(self) -> tuple[Work, Failed | None]:
        """End the processes; what they did since the last look."""
        self._services.close()
        return self._taken(), None

    def _taken(self) -> Work:
        taken, self._work = self._work, Work()
        return taken


# ---- in the driver


class _Group:
    """A bundle of the cluster: the encoder's actor in it, and its workers."""

    def __init__(self, cluster: RayCluster, encoding: Any, size: Cut, report: Report) -> None:
        self._cluster, self._ray, self._encoding, self._size, self._report = cluster, cluster.ray, encoding, size, report
        self._bundle: Any = None
        self._encoder: Any = None
        self._look: Any = None
        self._workers: list[RayWorker[Any]] = []
        self._heard = False  # its actor has a place
        self._losses = 0  # of the actor, in a row, without a batch between them

    @property
    def living(self) -> int:
        """Workers that it has."""
        self._workers = [worker for worker in self._workers if not worker.gone]
        return len(self._workers)

    def worker(self, task: UnitTask[Result], stall_seconds: float) -> RayWorker[Result]:
        """Another worker beside the encoder, which the first one has begin."""
        if self._bundle is None:
            asked = {"CPU": float(self._size.workers)} | ({"GPU": self._size.gpus} if self._size.gpus else {})
            self._bundle = self._ray.util.placement_group([asked], strategy="STRICT_PACK")
            self._begin()
        worker = self._cluster.worker_at(task, stall_seconds, self._ends, num_gpus=0, **self._place())
        self._workers.append(worker)
        return worker

    def _place(self) -> dict[str, object]:
        strategy = self._ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy
        return {"scheduling_strategy": strategy(self._bundle, placement_group_bundle_index=0)}

    def _begin(self) -> None:
        options = {"num_cpus": 0, "num_gpus": self._size.gpus, "max_restarts": 0, **self._place()}
        self._encoder = self._ray.remote(_EncoderHost).options(**options).remote(self._encoding, self._size.workers)
        self._heard = False
        self._ends = self._encoder.ends.remote()
        self._look = self._encoder.look.remote(0.0)

    def tend(self) -> None:
        """Hear of the encoder; where its actor is lost, have another, and its workers replaced."""
        if self._look is None or not self._ray.wait([self._look], timeout=0)[0]:
            return
        try:
            work, failed = self._ray.get(self._look)
        except self._ray.exceptions.RayError as error:
            self._replace(error)
            return
        self._heard, self._look = True, self._encoder.look.remote(POLL_SECONDS)
        self._note(work)
        if failed is not None:
            raise_error(failed)

    def _note(self, work: Work) -> None:
        if work.encoder_batches:
            self._losses = 0
            self._report(work)

    def _replace(self, error: Exception) -> None:
        self._losses += 1
        if self._losses > max(6, 3 * self._size.workers):
            why = message_of(error).strip().splitlines()[0].rstrip(".")
            raise ResumableStop(
                f"an encoder's actor on the Ray cluster is lost again and again: {why}. What is committed is safe, run the "
                f"same command again when the cause is gone"
            )
        for worker in self._workers:
            worker.give_up()
        self._begin()

    def leave(self) -> list[Any]:
        """Ask the encoder to end; gives the futures of its last words, none where it never had a place."""
        self._last = [self._look, self._encoder.close.remote()] if self._heard else []
        return self._last

    def bury(self) -> None:
        """Hear what the encoder said meanwhile, and give the bundle back, with whatever is in it."""
        if self._bundle is None:
            return
        with suppress(self._ray.exceptions.RayError):
            for said in self._ray.get(self._last, timeout=0):
                self._note(said[0])
        self._ray.util.remove_placement_group(self._bundle)
        self._bundle = self._encoder = None


class RayEncoders:
    """The encoders of a run on a cluster, and where its workers live, for the length of a ``with`` block or until it is closed.

    A service to its pool, which looks after it as after encoder processes here, and the pool's hosting.

    Args:
        report: called with seconds that encoders were busy, batches, and how full their queues were.

    Attributes:
        workers: that there is room for.
    """

    def __init__(self, cluster: RayCluster, encoding: Encoding, size: Cut, report: Report) -> None:
        self._cluster = cluster
        self.workers = size.groups * size.workers
        shared = cluster.ray.put(pickle.dumps(encoding))
        self._groups = [_Group(cluster, shared, size, report) for _ in range(size.groups)]

    def __enter__(self) -> RayEncoders:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def tend(self) -> None:
        """Look after the encoders.

        Raises:
            ResumableStop: one is lost, or ends, again and again.
            TokkitError: it cannot be loaded, or its node is of another numeric environment.
        """
        for group in self._groups:
            group.tend()

    def close(self) -> None:
        """End the encoders, and give back what the groups held."""
        groups, self._groups = self._groups, []
        if last := [future for group in groups for future in group.leave()]:
            self._cluster.ray.wait(last, num_returns=len(last), timeout=ENDING_SECONDS)
        for group in groups:
            group.bury()

    def worker(self, task: UnitTask[Result], stall_seconds: float) -> AnyWorker[Result]:
        """A new worker, in the group that has the fewest."""
        return min(self._groups, key=lambda group: group.living).worker(task, stall_seconds)

    def listen(self, workers: Sequence[AnyWorker[Result]], seconds: float) -> list[AnyWorker[Result]]:
        return self._cluster.listen(workers, seconds)
