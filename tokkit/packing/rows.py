"""Materialised sequences: the rows of a plan written out, for loaders that read fixed-length rows and nothing else.

``packs/NAME/SPLIT/rows/``::

    rows.json          format, dtype, shape, padding id, SHA-256 of the plan.json it belongs to, and the files' checksums
    rows.bin           [P, seq_len] token ids, little endian, in the shards' dtype, padded at the end of each row
    cu_seqlens.npy     int32 [N + P]: the borders of each row's segments, from 0 to the row's last real token; row p has the
                       entries pack_offsets[p] + p : pack_offsets[p + 1] + p + 1

The folder is committed after the plan and apart from it, so that rows can be added to a plan, and removed, at any time.

How tokens come from the shards' memory maps into a block of rows is told in :mod:`tokkit.packing.gather`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError, FingerprintMismatch
from tokkit.packing.gather import TokenFiles, ask, gather_rows, put
from tokkit.packing.intrinsics import prefetch
from tokkit.packing.store import (
    RECORD,
    Model,
    StoredFile,
    StoredPlan,
    check_files,
    committed_folder,
    map_array,
    read_record,
    save_array,
    stored_file,
)
from tokkit.shards.native import map_tokens
from tokkit.storage import record_json, sha256_file
from tokkit.vocabulary import Ids

FORMAT = "tokkit-rows"
VERSION = 1
FOLDER = "rows"
BLOCK_BYTES = 64 << 20


class RowsRecord(Model):
    """The content of ``rows.json``; ``plan`` is the SHA-256 of ``plan.json``, ``digest`` that of the record itself."""

    format: str
    version: int
    dtype: str
    shape: tuple[int, int]
    pad_id: int
    plan: str
    files: dict[str, StoredFile]
    digest: str = ""


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Materialised rows that were read back.

    Attributes:
        record: ``rows.json``.
        tokens: uint16 or int32 [P, seq_len], a memory map.
        cu_seqlens: int32 [N + P], see the module's docstring.
    """

    record: RowsRecord
    tokens: Ids
    cu_seqlens: npt.NDArray[np.int32]


def cu_seqlens(plan: StoredPlan) -> npt.NDArray[np.int32]:
    """int32 [N + P]: segment borders of every row, see the module's docstring."""
    offsets = np.asarray(plan.pack_offsets)
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(plan.pieces.length, dtype=np.int64)])
    row = np.repeat(np.arange(plan.num_packs), np.diff(offsets) + 1)
    piece = np.arange(len(row)) - row
    return (ends[piece] - ends[offsets[row]]).astype(np.int32)


def write_rows(
    plan: StoredPlan,
    files: TokenFiles,
    dtype: np.dtype,
    pad_id: int,
    on_rows: Callable[[int], None] = lambda rows: None,
) -> PackedRows:
    """Materialise a plan.

    Args:
        plan: as stored.
        files: of the same shards.
        dtype: of the shards' tokens.
        pad_id: what rows are padded with.
        on_rows: called with the number of rows after each block.

    Raises:
        DataError: the plan does not fit the shards, or there are rows already.
        ValueError: a pad_id that the dtype cannot hold.
    """
    limits = np.iinfo(dtype)
    if not limits.min <= pad_id <= limits.max:
        raise ValueError(f"padding id {pad_id} does not fit into {dtype}")
    seq_len, packs = plan.record.seq_len, plan.num_packs
    digest = hashlib.sha256()
    with committed_folder(plan.folder / FOLDER) as temporary:
        with (temporary / "rows.bin").open("xb") as file:
            block = np.empty((max(1, BLOCK_BYTES // (seq_len * dtype.itemsize)), seq_len), dtype=dtype)
            for first in range(0, packs, len(block)):
                out = block[: packs - first]
                gather_rows(files, plan, first, out, pad_id)
                data = out.astype(dtype.newbyteorder("<"), copy=False).data
                file.write(data)
                digest.update(data)
                on_rows(len(out))
        borders = cu_seqlens(plan)
        save_array(temporary / "cu_seqlens.npy", borders)
        record = RowsRecord(
            format=FORMAT,
            version=VERSION,
            dtype=dtype.name,
            shape=(packs, seq_len),
            pad_id=pad_id,
            plan=sha256_file(plan.folder / RECORD),
            files={
                "rows.bin": StoredFile(bytes=packs * seq_len * dtype.itemsize, sha256=digest.hexdigest()),
                "cu_seqlens.npy": stored_file(temporary / "cu_seqlens.npy", borders),
            },
        )
        (temporary / "rows.json").write_text(record_json(record.model_dump(mode="json")))
    rows = load_rows(plan)
    assert rows is not None  # just committed
    return rows


def load_rows(plan: StoredPlan, *, checksums: bool = False) -> PackedRows | None:
    """The materialised rows of a plan, or None where it has none.

    Raises:
        DataError, VerificationError: damaged.
        FingerprintMismatch: rows of another plan.
    """
    folder: Path = plan.folder / FOLDER
    if not folder.exists():
        return None
    record = read_record(folder / "rows.json", RowsRecord, FORMAT, VERSION)
    if record.plan != sha256_file(plan.folder / RECORD):
        raise FingerprintMismatch(f"{folder} belongs to another plan; remove it and pack again with --materialize")
    check_files(folder, record.files, checksums=checksums)
    if record.dtype not in ("uint16", "int32"):
        raise DataError(f"{folder / 'rows.json'} is damaged: tokens of dtype {record.dtype!r}")
    dtype = np.dtype(record.dtype)
    expected = (plan.num_packs, plan.record.seq_len)
    path = folder / "rows.bin"
    if record.shape != expected or path.stat().st_size != expected[0] * expected[1] * dtype.itemsize:
        raise DataError(f"{path} is not {expected[0]} rows of {expected[1]} {dtype} tokens")
    borders = map_array(folder / "cu_seqlens.npy", record.files["cu_seqlens.npy"], np.int32)
    return PackedRows(record, map_tokens(path, dtype).view(np.ndarray).reshape(expected), borders)


_RIGHT, _DAMAGED = -1, -2


@nb.njit(cache=True, nogil=True)
def _read_rows(
    packs: npt.NDArray[np.int64],
    pack_offsets: npt.NDArray[np.int64],
    tokens: Ids,
    ends: npt.NDArray[np.int32],
    out: npt.NDArray[np.int32],
    borders: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.int32],
) -> int:
    """Fill ``out``, ``borders`` and ``numbers``; returns the row of a pack that is none, _DAMAGED, or _RIGHT."""
    seq_len, most = out.shape[1], borders.shape[1] - 2
    base, target = np.uint64(tokens.ctypes.data), np.uint64(out.ctypes.data)
    bytes_of_row = seq_len * tokens.itemsize
    for row in range(packs.size):
        if packs[row] < 0 or packs[row] >= len(tokens):
            return row
    for row in range(packs.size):
        ask(base + np.uint64(packs[row] * bytes_of_row))
        prefetch(np.uint64(ends.ctypes.data + 4 * (pack_offsets[packs[row]] + packs[row])))
    for row in range(packs.size):
        pack = packs[row]
        first, last = pack_offsets[pack] + pack, pack_offsets[pack + 1] + pack
        if first < 0 or last <= first or last >= ends.size or last - first > most:
            return _DAMAGED
        numbers[row] = last - first
        for n in range(last - first + 1):  # a loop costs less than a slice, where there are few
            borders[row, n] = ends[first + n]
        for n in range(last - first + 1, most + 2):
            borders[row, n] = seq_len
        following = base + np.uint64(packs[min(row + 1, packs.size - 1)] * bytes_of_row)
        own = base + np.uint64(pack * bytes_of_row)
        put(target + np.uint64(4 * row * seq_len), own, seq_len, tokens.itemsize, following)
    return _RIGHT


def read_rows(
    plan: StoredPlan,
    rows: PackedRows,
    packs: npt.NDArray[np.int64],
    out: npt.NDArray[np.int32],
    borders: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.int32],
) -> None:
    """As :func:`tokkit.packing.gather.gather_packs`, from materialised rows.

    Raises:
        DataError: the rows are damaged.
        IndexError: there is no such pack.
    """
    found = _read_rows(packs, plan.pack_offsets, rows.tokens, rows.cu_seqlens, out, borders, numbers)
    if found >= 0:
        raise IndexError(f"pack {int(packs[found])} of {plan.num_packs}")
    if found == _DAMAGED:
        raise DataError(f"{plan.folder / FOLDER / 'cu_seqlens.npy'} is damaged: it is not of the plan's packs")
