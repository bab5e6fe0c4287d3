"""The parent's view of an encoder process (:mod:`tokkit.pipelines.encoder`): it is started, watched, replaced and ended.

A batch at which the encoder died or hung twice is refused by its successors: its unit is put aside by a transient error, and
is then tried alone by a worker that encodes by itself (:mod:`tokkit.pipelines.poison`).
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from multiprocessing import get_context
from multiprocessing.sharedctypes import RawValue
from pathlib import Path

from tokkit.errors import ResumableStop
from tokkit.pipelines.encoder import Endpoint, Serves, State, serve
from tokkit.pipelines.product import EncoderField, EncoderKind
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.worker import LOADING_SECONDS, Death, Failed, Ready, death_of, end, raise_error, start

DEATHS_OF_A_BATCH = 2  # then it is refused
REFUSED = 256  # batches that are remembered: a batch that was refused is not sent again
STILLBORN_IN_A_ROW = 3  # encoders that end before they are ready
FOLDER = "tokkit-encoder-"  # what the name of the socket's folder begins with
PATH_LIMIT = 100  # bytes of a socket's path that every system takes
LOOK_SECONDS = 0.2  # between two looks


class EncoderService:
    """One encoder process, kept up, for the length of a ``with`` block or until it is closed.

    Args:
        load: gives the tokenizer; picklable, called in the process.
        batch_size: pictures of the shape that every call of the tokenizer has.
        depth: batches that a worker may have under way.
        workers: how many there are.
        report: called with seconds the encoder was busy, batches, and how full its queue was.
        stall_seconds: an encoder that gives no sign for so long is killed and replaced.

    Attributes:
        endpoint: what workers need to connect.
    """

    def __init__(
        self,
        load: Callable[[], Serves],
        *,
        batch_size: int,
        depth: int,
        workers: int,
        report: Report,
        stall_seconds: float,
    ) -> None:
        self._load, self._batch_size, self._report = load, batch_size, report
        self._stall_seconds, self._loading_seconds = stall_seconds, max(stall_seconds, LOADING_SECONDS)
        self._folder = _private_folder()
        patience = 2 * (self._stall_seconds + self._loading_seconds)
        self.endpoint = Endpoint(str(self._folder / "socket"), secrets.token_bytes(32), depth, patience)
        self._limit = max(6, 3 * workers)
        self._deaths: Counter[int] = Counter()  # by the ticket of the batch
        self._refused: dict[int, str] = {}
        self._stillborn = self._in_a_row = 0
        self._open = True
        self._looked = time.monotonic()
        self._start()

    def __enter__(self) -> EncoderService:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        context = get_context("spawn")
        Path(self.endpoint.path).unlink(missing_ok=True)
        self._connection, theirs = context.Pipe()
        self._state = RawValue(State)
        self._told = (0.0, 0, 0.0)
        self._ready, self._problem = False, ""  # what it said it ends of
        self._state.turned = self._looked
        self._process = context.Process(
            target=serve,
            args=(self._load, self.endpoint, self._batch_size, self._refused, self._state, theirs, os.getpid()),
            daemon=True,
        )
        start(self._process)
        theirs.close()

    def tend(self) -> None:
        """Look after it: tell what it did, and replace it where it has died or hangs.

        Raises:
            ResumableStop: it dies again and again.
            TokkitError: the tokenizer cannot be loaded.
        """
        now = time.monotonic()
        if not self._open or now - self._looked < LOOK_SECONDS:
            return
        asleep, self._looked = now - self._looked > 10, now
        if asleep:  # this process was suspended, and the encoder with it: its silence does not count
            self._state.turned = now
        self._hear()
        self._tell()
        limit = self._stall_seconds if self._ready else self._loading_seconds
        if self._process.exitcode is not None:
            self._replace(death_of(self._process.exitcode))
        elif now - self._state.turned > limit:
            self._process.kill()
            end(self._process)
            self._replace(Death("hang"))

    def _hear(self) -> None:
        with suppress(EOFError, OSError):  # it has died, or dies: its exit code says so
            while self._connection.poll():
                message = self._connection.recv()
                if isinstance(message, Ready):
                    self._ready, self._stillborn = True, 0
                elif isinstance(message, Failed):
                    self._problem = f" ({message.message})"
                    if not message.transient:
                        raise_error(message)

    def _tell(self) -> None:
        """Report what it did since the last time."""
        state = (self._state.busy, self._state.batches, self._state.fill)
        busy, batches, fill = (new - old for new, old in zip(state, self._told, strict=True))
        if batches:
            self._told = state
            self._in_a_row = 0
            self._report(Work(encoder_seconds=busy, encoder_batches=int(batches), encoder_fill=fill))

    def _replace(self, death: Death) -> None:
        self._hear()
        self._connection.close()
        self._tell()
        self._in_a_row += 1
        self._stillborn += not self._ready
        if self._in_a_row > self._limit or self._stillborn >= STILLBORN_IN_A_ROW:
            raise ResumableStop(
                f"the encoder process ends again and again: the last {death}{self._problem}. If memory is short, use fewer "
                f"--workers or a smaller --queue-depth; what is committed is safe"
            )
        ticket = self._state.ticket
        if ticket:
            self._deaths[ticket] += 1
            if self._deaths[ticket] >= DEATHS_OF_A_BATCH:
                self._refused[ticket] = f"the encoder process {death} at a batch of its pictures, {DEATHS_OF_A_BATCH} times"
                self._refused = dict(list(self._refused.items())[-REFUSED:])
        self._start()

    def close(self) -> None:
        """End the process and remove its socket."""
        if not self._open:
            return
        self._open = False
        self._tell()
        self._connection.close()
        self._process.terminate()
        end(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)


class EncoderServices:
    """Several encoder processes, looked after as one.

    Args:
        services: by the field of a unit's job that is to say where they are.
    """

    def __init__(self, services: Mapping[EncoderField, tuple[EncoderService, ...]]) -> None:
        self._services = services

    @classmethod
    def started(
        cls,
        kinds: Mapping[EncoderField, EncoderKind],
        devices: Sequence[str],
        *,
        depth: int,
        workers: int,
        report: Report,
        stall_seconds: float,
    ) -> EncoderServices:
        """Start a process of each kind on each device; the other arguments are those of :class:`EncoderService`."""
        with ExitStack() as begun:
            found = {
                name: tuple(
                    begun.enter_context(
                        EncoderService(
                            partial(kind.load, device),
                            batch_size=kind.batch_size,
                            depth=depth,
                            workers=workers,
                            report=report,
                            stall_seconds=stall_seconds,
                        )
                    )
                    for device in devices
                )
                for name, kind in kinds.items()
            }
            begun.pop_all()
        return cls(found)

    def __enter__(self) -> EncoderServices:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def endpoints(self) -> dict[str, tuple[Endpoint, ...]]:
        """What workers need to connect, one for each."""
        return {name: tuple(service.endpoint for service in services) for name, services in self._services.items()}

    def tend(self) -> None:
        for service in self._all():
            service.tend()

    def close(self) -> None:
        for service in self._all():
            service.close()

    def _all(self) -> Iterator[EncoderService]:
        for services in self._services.values():
            yield from services


def encoder_devices(device: str, processes: int) -> list[str]:
    """Where encoder processes run: for ``cuda`` one on each GPU of the first one's model, else ``processes`` on the one named.

    GPUs of another model are left alone: they round differently, and one output would hold two numeric environments.
    """
    if device != "cuda":
        return [device] * processes
    import torch

    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return [f"cuda:{i}" for i, name in enumerate(names) if name == names[0]] * processes


def _private_folder() -> Path:
    """A folder that only this user can look into, with a name short enough for a socket in it."""
    folder = tempfile.mkdtemp(prefix=FOLDER)
    if len(os.fsencode(folder)) > PATH_LIMIT - len("/socket"):
        Path(folder).rmdir()
        folder = tempfile.mkdtemp(prefix=FOLDER, dir="/tmp")
    return Path(folder)
