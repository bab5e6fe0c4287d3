"""Materialised sequences: the rows of a plan written out, for loaders that read fixed-length rows and nothing else.

``packs/NAME/SPLIT/rows/``::

    rows.json          format, dtype, shape, padding id, SHA-256 of the plan.json it belongs to, and the files' checksums
    rows.bin           [P, seq_len] token ids, little endian, in the shards' dtype, padded at the end of each row
    cu_seqlens.npy     int32 [N + P]: the borders of each row's segments, from 0 to the row's last real token; row p has the
                       entries pack_offsets[p] + p : pack_offsets[p + 1] + p + 1

The folder is committed after the plan and apart from it, so that rows can be added to a plan, and removed, at any time.

The copy is one Numba call per block of rows: memcpy from the shards' memory maps by address (:mod:`tokkit.packing.intrinsics`),
after every range has been checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError, FingerprintMismatch
from tokkit.packing.intrinsics import copy_bytes, prefetch
from tokkit.packing.split import Pieces
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
from tokkit.shards.native import TokenShards, map_tokens
from tokkit.storage import record_json, sha256_file
from tokkit.vocabulary import Ids

FORMAT = "tokkit-rows"
VERSION = 1
FOLDER = "rows"
BLOCK_BYTES = 64 << 20

# Documents of a row lie anywhere: the beginning of one is asked for while those before it are copied.
AHEAD = 2
AHEAD_LINES = 4  # of a cache, 64 bytes each


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


@dataclass(frozen=True, eq=False)
class TokenFiles:
    """The token files of a split, by document, for copying by address.

    Attributes:
        maps: one array of tokens a file, all of one dtype.
        file: int32 [D], which file a document is in.
        offset: int64 [D], its first token in that file.
        lengths: int64 [D], tokens.
    """

    maps: list[Ids]
    file: npt.NDArray[np.int32]
    offset: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def of(cls, shards: TokenShards) -> TokenFiles:
        """Map the files of an output directory's split."""
        return cls(shards.maps, *shards.placement, shards.lengths)

    @cached_property
    def _memory(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """uint64 [F] where each file begins in memory, int64 [F] its tokens."""
        base = np.array([m.ctypes.data for m in self.maps], dtype=np.uint64)
        return base, np.array([len(m) for m in self.maps], dtype=np.int64)

    def addresses(self, pieces: Pieces) -> npt.NDArray[np.uint64]:
        """uint64 [N]: where in memory each piece begins.

        Raises:
            DataError: a piece reaches beyond its document, or a document beyond its file.
        """
        found = np.empty(len(pieces), dtype=np.uint64)
        itemsize = self.maps[0].itemsize if self.maps else 1
        places = self.file, self.offset, self.lengths, *self._memory
        wrong, number = _addresses(pieces.document, pieces.start, pieces.length, *places, itemsize, found)
        if wrong == _NO_DOCUMENT:
            raise DataError(f"the plan names documents beyond the {len(self.lengths)} of the shards")
        if wrong == _BEYOND_DOCUMENT:
            raise DataError(f"the plan reaches beyond the end of document {int(pieces.document[number])}")
        if wrong == _BEYOND_FILE:
            raise DataError("a token file is shorter than its index says")
        return found

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_memory"}


_NO_DOCUMENT, _BEYOND_DOCUMENT, _BEYOND_FILE = 1, 2, 3


@nb.njit(cache=True, nogil=True)
def _addresses(
    document: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int32],
    file: npt.NDArray[np.int32],
    offset: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    base: npt.NDArray[np.uint64],
    sizes: npt.NDArray[np.int64],
    itemsize: int,
    found: npt.NDArray[np.uint64],
) -> tuple[int, int]:
    """Fill ``found``; returns what is wrong, 0 if nothing, and with which piece."""
    for i in range(document.size):
        d = document[i]
        if d < 0 or d >= lengths.size:
            return _NO_DOCUMENT, i
        if start[i] < 0 or length[i] < 0 or start[i] + length[i] > lengths[d]:
            return _BEYOND_DOCUMENT, i
        begin = offset[d] + start[i]
        if begin < 0 or begin + length[i] > sizes[file[d]]:
            return _BEYOND_FILE, i
        found[i] = base[file[d]] + np.uint64(begin * itemsize)
    return 0, 0


@nb.njit(cache=True, nogil=True)
def _ask(addresses: npt.NDArray[np.uint64], i: int) -> None:
    """Have the beginning of a piece read soon, if there is such a piece."""
    if i < len(addresses):
        for line in range(AHEAD_LINES):
            prefetch(addresses[i] + np.uint64(64 * line))


@nb.njit(cache=True, nogil=True)
def _gather(
    addresses: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    pad_id: int,
    out: Ids,
) -> None:
    """Copy the pieces of each row one after another and fill the rest; the rows must have room for them."""
    itemsize = out.itemsize
    base = out.ctypes.data
    for row in range(out.shape[0]):
        at = 0
        for i in range(offsets[row] - offsets[0], offsets[row + 1] - offsets[0]):
            _ask(addresses, i + AHEAD)
            target = np.uint64(base + (row * out.shape[1] + at) * itemsize)
            copy_bytes(target, addresses[i], np.int64(lengths[i]) * itemsize)
            at += lengths[i]
        out[row, at:] = pad_id


def gather_rows(files: TokenFiles, plan: StoredPlan, first: int, out: Ids, pad_id: int) -> None:
    """Fill ``out`` [R, seq_len] (contiguous, the files' dtype) with the packs ``first`` .. ``first + R - 1``.

    Raises:
        DataError: the plan does not fit the documents, or a pack does not fit into a row.
    """
    offsets = np.array(plan.pack_offsets[first : first + len(out) + 1])
    pieces = plan.pieces.take(slice(int(offsets[0]), int(offsets[-1])))
    lengths = np.array(pieces.length)
    ends = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])[offsets - offsets[0]]
    if (np.diff(ends) > out.shape[1]).any() or (np.diff(offsets) < 0).any():
        raise DataError(f"{plan.folder}: a pack is longer than its sequence")
    if not out.flags.c_contiguous or any(m.dtype != out.dtype for m in files.maps):
        raise ValueError("rows must be contiguous and of the files' dtype")
    _gather(files.addresses(pieces), lengths, offsets, pad_id, out)


@nb.njit(cache=True, nogil=True)
def _gather_wide(
    addresses: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    pad_id: int,
    narrow: Ids,
    out: npt.NDArray[np.int32],
) -> None:
    """As :func:`_gather`, into int32 by way of a row ``narrow`` of the files' dtype."""
    itemsize = narrow.itemsize
    base = narrow.ctypes.data
    for row in range(out.shape[0]):
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            _ask(addresses, i + AHEAD)
            copy_bytes(np.uint64(base + at * itemsize), addresses[i], np.int64(lengths[i]) * itemsize)
            at += lengths[i]
        for t in range(at):
            out[row, t] = narrow[t]
        out[row, at:] = pad_id


def gather_ids(
    files: TokenFiles, pieces: Pieces, offsets: npt.NDArray[np.int64], out: npt.NDArray[np.int32], pad_id: int
) -> None:
    """Fill int32 ``out`` [R, seq_len], whatever the files' dtype: row r is ``pieces[offsets[r]:offsets[r + 1]]``, which must
    have room in it.

    Raises:
        DataError: a piece is outside of its document.
    """
    narrow = np.empty(out.shape[1], dtype=files.maps[0].dtype if files.maps else np.int32)
    _gather_wide(files.addresses(pieces), pieces.length, offsets, pad_id, narrow, out)


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
