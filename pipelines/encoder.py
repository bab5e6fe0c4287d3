"""An encoder process: it loads a tokenizer or an encoder once and encodes whole batches for several workers, on one device.

Workers connect to its socket (:mod:`tokkit.pipelines.encoder_client`), its parent keeps it up
(:mod:`tokkit.pipelines.encoder_service`). A connection carries, from the worker, a :class:`Batch` and what is to be encoded
(pixels, waveforms, views) in parts (:mod:`tokkit.pipelines.wire`); back come, in the same order, :class:`Coded` and what was
made of it likewise, or :class:`NotCoded`. A batch of fewer than ``batch_size`` items is padded here
(``ImageTokenizer.encode_padded``).

Each connection has a thread that reads and one that writes, so that the encoder waits for no worker: a worker that is busy or
suspended holds up only itself. What is read ahead is bounded by what workers may have under way (``Endpoint.depth`` batches a
unit); it must always be read, else a worker that sends and an encoder that answers could wait for one another.

What the encoder is at is in memory that it shares with its parent (:class:`State`), and so survives it.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from queue import Empty, Queue, SimpleQueue
from typing import Any, Protocol

from tokkit.errors import TokkitError
from tokkit.failpoints import failpoint
from tokkit.pipelines.batching import Begins, no_memory, out_of_memory
from tokkit.pipelines.wire import Part, packed, receive_parts, send_parts, unpacked
from tokkit.pipelines.worker import Failed, Ready, message_of, picklable

LOST = (EOFError, OSError, AuthenticationError)  # what a connection whose other end is gone raises


@dataclass(frozen=True)
class Endpoint:
    """Where an encoder process is found, and how to deal with it; picklable.

    Attributes:
        path: of its socket.
        authkey: shared secret.
        depth: batches that a worker may have under way.
        patience: seconds without any answer after which a worker gives up.
    """

    path: str
    authkey: bytes = field(repr=False)
    depth: int
    patience: float


class State(ctypes.Structure):
    """Shared with the parent.

    ``turned``: monotonic time of the last turn of the encoder's loop, at least one a second but for the length of a batch.
    ``busy``: seconds spent encoding. ``batches``: encoded so far. ``fill``: for each of these, batches that were there when it
    was taken by those that might have been, summed up. ``ticket``: of the batch that is being encoded, or 0.
    """

    _fields_ = (
        ("turned", ctypes.c_double),
        ("busy", ctypes.c_double),
        ("fill", ctypes.c_double),
        ("batches", ctypes.c_longlong),
        ("ticket", ctypes.c_longlong),
    )


class Serves(Protocol):
    """What encodes in the process: pictures to codes (:class:`~tokkit.pipelines.batching.Encodes`), or likewise other things.

    One that need not be waited for has ``places`` and ``begin`` too (:class:`~tokkit.pipelines.batching.Begins`).
    """

    def encode_padded(self, items: Sequence[Any], batch_size: int) -> Any:
        """What is made of at most ``batch_size`` items, in a batch of exactly so many."""


# ---- what goes over a connection


@dataclass(frozen=True, slots=True)
class Batch:
    """So many parts follow; ``ticket`` names the batch, also where it is sent again."""

    ticket: int
    parts: int


@dataclass(frozen=True, slots=True)
class Coded:
    """So many parts follow."""

    parts: int


@dataclass(frozen=True, slots=True)
class NotCoded:
    """An error; one that is not transient is a fault in the program, and ``message`` its traceback."""

    transient: bool
    message: str


Reply = tuple[Coded | NotCoded, list[Part]]
Inbox = Queue[tuple["_Client", int, "Sequence[Any] | None"]]


# ---- in the process


class _Client:
    """A worker's connection."""

    def __init__(self, connection: Connection, inbox: Inbox) -> None:
        self._connection, self._inbox = connection, inbox
        self.outbox: SimpleQueue[Reply | None] = SimpleQueue()
        self.gone = False
        for work in (self._read, self._write):
            threading.Thread(target=work, daemon=True).start()

    def _read(self) -> None:
        try:
            while True:
                batch: Batch = self._connection.recv()
                self._inbox.put((self, batch.ticket, unpacked(receive_parts(self._connection, batch.parts))))
        except LOST:
            self.gone = True
            self._inbox.put((self, 0, None))

    def _write(self) -> None:
        with suppress(*LOST):
            while (reply := self.outbox.get()) is not None:
                message, parts = reply
                self._connection.send(message)
                send_parts(self._connection, parts)
        self._connection.close()


def serve(
    load: Callable[[], Serves],
    endpoint: Endpoint,
    batch_size: int,
    refused: Mapping[int, str],
    state: State,
    connection: Connection,
    parent: int,
) -> None:
    """An encoder's life: load, say so, encode what comes; it is ended by its parent, or leaves when that is gone.

    Args:
        load: gives the tokenizer.
        refused: tickets of batches that are not to be tried again, and why.
        connection: to the parent: :class:`Ready`, or an error.
        parent: its process id.
    """
    threading.Thread(target=_leave_with, args=(parent, Path(endpoint.path).parent), daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # as in a worker: codes are to be the same
    try:
        tokenizer = load()
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        listener = Listener(endpoint.path, "AF_UNIX", backlog=128, authkey=endpoint.authkey)
        inbox: Inbox = Queue()
        clients: set[_Client] = set()
        line = _Line(tokenizer, batch_size, state)
        threading.Thread(target=_accept, args=(listener, inbox, clients), daemon=True).start()
        state.turned = time.monotonic()
        connection.send(Ready())
        while True:
            state.turned = time.monotonic()
            try:
                client, ticket, items = inbox.get(block=not line.under_way, timeout=0.5)
            except Empty:
                line.finish()
                continue
            if items is None:
                clients.discard(client)
                client.outbox.put(None)
            elif ticket in refused:
                client.outbox.put((NotCoded(True, refused[ticket]), []))
            elif not client.gone:
                there = inbox.qsize() + 1
                state.fill += min(1.0, there / (max(1, len(clients)) * endpoint.depth))
                line.begin(client, ticket, items)
    except TokkitError as error:
        connection.send(Failed(False, picklable(error), str(error)))
    except (OSError, MemoryError) as error:
        connection.send(Failed(True, None, message_of(error)))
    except BaseException as error:
        transient = out_of_memory(error)
        connection.send(Failed(transient, None, message_of(error) if transient else traceback.format_exc()))


class _Line:
    """Batches at the device, answered in the order in which they came: while one is encoded, the next is copied.

    Where the process dies, the first of them is held to be the cause: at worst it is tried alone for nothing.
    """

    def __init__(self, tokenizer: Serves, batch_size: int, state: State) -> None:
        self._tokenizer, self._batch_size, self._state = tokenizer, batch_size, state
        self._places = tokenizer.places if isinstance(tokenizer, Begins) else 1
        self.under_way: deque[tuple[_Client, int, Callable[[], Any]]] = deque()
        self._since = 0.0

    def begin(self, client: _Client, ticket: int, items: Sequence[Any]) -> None:
        """Send a batch on its way; waits for the oldest where all places are taken."""
        if not self.under_way:
            self._since, self._state.ticket = time.monotonic(), ticket
        waiting = self._try(lambda: self._begin(items))
        self.under_way.append((client, ticket, waiting))
        while len(self.under_way) >= self._places:
            self.finish()

    def _begin(self, items: Sequence[Any]) -> Callable[[], Any]:
        failpoint("encode")
        if isinstance(self._tokenizer, Begins):
            return self._tokenizer.begin(list(items)).codes
        codes = self._tokenizer.encode_padded(list(items), self._batch_size)
        return lambda: codes

    def _try(self, begin: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
        """What gives the codes; an error is kept for then, so that answers stay in order."""
        try:
            return begin()
        except Exception as error:
            failure = error

            def fail() -> Any:
                raise failure

            return fail

    def finish(self) -> None:
        """Answer the oldest batch, if there is one."""
        if not self.under_way:
            return
        client, _, waiting = self.under_way[0]
        client.outbox.put(self._reply(waiting))
        self.under_way.popleft()
        now = time.monotonic()
        self._state.busy += now - self._since
        self._state.batches += 1
        self._since, self._state.ticket = now, self.under_way[0][1] if self.under_way else 0

    def _reply(self, waiting: Callable[[], Any]) -> Reply:
        try:
            parts = packed(waiting())
            return Coded(len(parts)), parts
        except Exception as error:
            if isinstance(error, OSError | MemoryError):
                return NotCoded(True, message_of(error)), []
            if out_of_memory(error):
                return NotCoded(True, no_memory(self._batch_size, error)), []
            return NotCoded(False, traceback.format_exc()), []


def _accept(listener: Listener, inbox: Inbox, clients: set[_Client]) -> None:
    while True:
        try:
            clients.add(_Client(listener.accept(), inbox))
        except LOST:  # a worker that went while it introduced itself
            time.sleep(0.01)


def _leave_with(parent: int, folder: Path) -> None:
    """Leave when the parent is gone, with the socket, which it cannot remove any more."""
    while os.getppid() == parent:
        time.sleep(0.5)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)
