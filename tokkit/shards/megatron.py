"""Megatron's index of a token file (``.idx`` version 1): lengths, byte offsets and document borders.

Little endian: ``MMIDIDX\\0\\0`` (9 bytes), uint64 version 1, uint8 dtype code, uint64 number of sequences S, uint64 number of
document borders D + 1, int32 [S] lengths in tokens, int64 [S] byte offsets into the ``.bin``, int64 [D + 1] document borders as
sequence numbers. tokkit writes one sequence a document, because Megatron-LM shuffles sequences.
"""

from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError
from tokkit.places import Place

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_CODES: dict[np.dtype, int] = {np.dtype(np.int32): 4, np.dtype(np.uint16): 8}
MAX_LENGTH = 2**31 - 1


def index_bytes(lengths: npt.NDArray[np.int64], dtype: np.dtype) -> bytes:
    """The ``.idx`` of documents of these lengths (tokens) that stand one after another in a ``.bin`` of ``dtype``.

    Raises:
        ValueError: a dtype that the format has no code for, or a document of 2**31 tokens or more.
    """
    if dtype not in DTYPE_CODES:
        raise ValueError(f"token dtype {dtype}; the index knows {', '.join(str(d) for d in DTYPE_CODES)}")
    if lengths.size and int(lengths.max()) > MAX_LENGTH:
        raise ValueError(f"a document of {int(lengths.max())} tokens; the index holds at most {MAX_LENGTH}")
    count = len(lengths)
    pointers = np.zeros(count, dtype="<i8")
    np.cumsum(lengths[:-1] * dtype.itemsize, out=pointers[1:])
    return b"".join(
        [
            HEADER.pack(MAGIC, 1, DTYPE_CODES[dtype], count, count + 1),
            lengths.astype("<i4").tobytes(),
            pointers.tobytes(),
            np.arange(count + 1, dtype="<i8").tobytes(),
        ]
    )


def read_index(path: Place) -> tuple[np.dtype, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Read an ``.idx`` of one sequence a document.

    Returns:
        the token dtype, int64 [D] lengths in tokens, int64 [D] byte offsets.

    Raises:
        DataError: not such a file, or cut short.
    """
    data = path.read_bytes()
    if len(data) < HEADER.size or data[:9] != MAGIC:
        raise DataError(f"{path} is not a Megatron index")
    _, version, code, sequences, borders = HEADER.unpack_from(data)
    dtype: np.dtype | None = next((d for d, c in DTYPE_CODES.items() if c == code), None)
    if version != 1 or dtype is None:
        raise DataError(f"{path}: index version {version}, dtype code {code}; tokkit writes version 1 with int32 or uint16")
    if borders != sequences + 1 or len(data) != HEADER.size + 12 * sequences + 8 * borders:
        raise DataError(f"{path} has {len(data)} bytes, not what {sequences} sequences need: it is cut short or damaged")
    at = HEADER.size
    lengths = np.frombuffer(data, "<i4", sequences, at).astype(np.int64)
    pointers = np.frombuffer(data, "<i8", sequences, at + 4 * sequences).astype(np.int64)
    return dtype, lengths, pointers
