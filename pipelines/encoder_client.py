"""A worker's end of an encoder process (:mod:`tokkit.pipelines.encoder`): some batches under way, none lost with the encoder.

What is sent is kept until the answer is there. Where the encoder dies, the worker connects to its successor as soon as that
listens, and sends again what is under way; its unit notices nothing.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import Client, Connection
from typing import Any

import numpy as np

from tokkit.errors import TransientError
from tokkit.pipelines.encoder import LOST, Batch, Coded, Endpoint, NotCoded
from tokkit.pipelines.wire import Part, packed, receive_parts, send_parts, unpacked

_numbers = itertools.count(1)


def _ticket() -> int:
    """A name for a batch that no other of this run has."""
    return os.getpid() << 24 | next(_numbers) & 0xFFFFFF


class RemoteEncoder:
    """A :class:`tokkit.pipelines.batching.BatchEncoder` whose batches an encoder process encodes.

    Args:
        alive: called about once a second while codes are waited for. It may tell the parent that this worker lives, since the
            parent watches the encoder as it watches its workers.
        bundle: makes one thing of a batch; pictures of one size become one array.
    """

    def __init__(
        self, endpoint: Endpoint, alive: Callable[[], None], bundle: Callable[[Sequence[Any]], Any] = np.stack
    ) -> None:
        self.depth = endpoint.depth
        self._endpoint, self._alive, self._bundle = endpoint, alive, bundle
        self._under_way: deque[tuple[int, list[Part]]] = deque()
        self._connection: Connection | None = None

    def submit(self, items: Sequence[Any]) -> None:
        batch = (_ticket(), packed(self._bundle(items)))
        self._under_way.append(batch)
        try:
            if self._connection is None:
                self._connect()
            else:
                _send(self._connection, *batch)
        except LOST:
            self.close_connection()  # it is sent again when its codes are waited for

    def arrived(self) -> bool:
        try:
            return self._connection is not None and self._connection.poll()
        except LOST:
            return False

    def collect(self) -> Any:
        begin = time.monotonic()
        while True:
            try:
                if self._connection is None:
                    self._connect()
                elif self._connection.poll(1.0):
                    return self._receive(self._connection)
            except LOST:
                self.close_connection()
                time.sleep(0.1)
            self._alive()
            if time.monotonic() - begin > self._endpoint.patience:
                raise TransientError(f"the encoder process gave no answer for {self._endpoint.patience:.0f} seconds")

    def close(self) -> None:
        self._under_way.clear()
        self.close_connection()

    def close_connection(self) -> None:
        """Leave the encoder, which then drops what it has of this worker."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> None:
        connection = Client(self._endpoint.path, "AF_UNIX", authkey=self._endpoint.authkey)
        self._connection = connection
        for ticket, parts in self._under_way:
            _send(connection, ticket, parts)

    def _receive(self, connection: Connection) -> Any:
        reply: Coded | NotCoded = connection.recv()
        if isinstance(reply, NotCoded):
            if reply.transient:
                raise TransientError(reply.message)
            raise RuntimeError(f"in the encoder process:\n{reply.message}")
        made = unpacked(receive_parts(connection, reply.parts))
        self._under_way.popleft()
        return made


def _send(connection: Connection, ticket: int, parts: Sequence[Part]) -> None:
    connection.send(Batch(ticket, len(parts)))
    send_parts(connection, parts)
