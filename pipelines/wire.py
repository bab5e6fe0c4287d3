"""Things with arrays in them over a connection between two processes of ours, without a copy of the arrays in between.

A thing is pickled with its arrays left out, and these follow as raw bytes; on the other side they are read-only.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

Part = bytes | memoryview


def packed(thing: Any) -> list[Part]:
    """What a thing is on the way: its pickle, and the bytes of each of its arrays."""
    arrays: list[pickle.PickleBuffer] = []
    return [pickle.dumps(thing, 5, buffer_callback=arrays.append), *(array.raw() for array in arrays)]


def unpacked(parts: Sequence[Part]) -> Any:
    """The thing again."""
    return pickle.loads(parts[0], buffers=parts[1:])


def send_parts(connection: Connection, parts: Sequence[Part]) -> None:
    """Send what the other side takes with :func:`receive_parts`, which must know how many there are."""
    for part in parts:
        connection.send_bytes(part)


def receive_parts(connection: Connection, count: int) -> list[Part]:
    """As many parts."""
    return [connection.recv_bytes() for _ in range(count)]
