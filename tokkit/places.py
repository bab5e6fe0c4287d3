"""Files of an output to be read from where they lie: on this machine, or in an object store, in parts."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from tokkit.errors import DataError
from tokkit.sources.remote import RemotePath

Place = Path | RemotePath


@contextmanager
def parquet(place: Place) -> Iterator[Path | BinaryIO]:
    """A file as pyarrow reads it, for the length of a ``with`` block.

    Raises:
        DataError: it is missing or damaged.
        OSError: it lies in a store, and that does not answer.
    """
    try:
        if isinstance(place, RemotePath):
            with place.open() as file:
                yield file
        else:
            yield place
    except (OSError, pa.ArrowException) as error:
        # What pyarrow finds wrong with a file may be an OSError too, but one without a number.
        if isinstance(place, RemotePath) and getattr(error, "errno", None) not in (None, errno.ENOENT):
            raise
        raise DataError(f"{place} cannot be read: {error}") from None


def read_part(place: RemotePath, begin: int, size: int) -> bytes:
    """Some bytes of an object.

    Raises:
        DataError: it ends before them. OSError: the store does not answer.
    """
    with place.open() as file:
        file.seek(begin)
        data = file.read(size)
    if len(data) != size:
        raise DataError(f"{place} ends before byte {begin + size:,}")
    return data
