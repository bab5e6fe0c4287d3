"""Tokens from the shards' memory maps into rows, as fast as memory gives them.

Pieces lie anywhere, so what a short one costs is waiting for its first lines: every address is known before the copy begins
(and every range has been checked), and the beginnings of the next few pieces are asked for while one is copied; the processor
sees by itself how it goes on. Blocks of rows that no cache would hold are written past the caches, whole lines at a time: that
spares reading what is overwritten, a third of what memory has to do. Batches for a trainer go into the caches, widened from
uint16 on the way.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba as nb
import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError
from tokkit.packing.intrinsics import LANES, LINE, copy_bytes, prefetch, stream_line, widen, widen_one
from tokkit.packing.split import Pieces
from tokkit.packing.store import StoredPlan
from tokkit.shards.native import TokenShards
from tokkit.vocabulary import Ids

AHEAD = 4  # pieces of which the beginning is asked for
AHEAD_LINES = 4  # of a cache
STREAMED = 4 << 20  # bytes from which on a block is written past the caches
_DOCUMENTS_AHEAD = 16

Array = npt.NDArray[np.int64]
Addresses = npt.NDArray[np.uint64]


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
    offset: Array
    lengths: Array

    @classmethod
    def of(cls, shards: TokenShards) -> TokenFiles:
        """Map the files of an output directory's split."""
        return cls(shards.maps, *shards.placement, shards.lengths)

    @property
    def itemsize(self) -> int:
        """Bytes of a token."""
        return self.maps[0].itemsize if self.maps else 1

    @cached_property
    def begin(self) -> Addresses:
        """uint64 [D]: where in memory each document begins.

        Raises:
            DataError: one reaches beyond its file.
        """
        base = np.array([m.ctypes.data for m in self.maps], dtype=np.uint64)
        sizes = np.array([len(m) for m in self.maps], dtype=np.int64)
        found = np.empty(len(self.lengths), dtype=np.uint64)
        if not _begins(self.file, self.offset, self.lengths, base, sizes, self.itemsize, found):
            raise DataError("a token file is shorter than its index says")
        return found

    def addresses(self, pieces: Pieces) -> Addresses:
        """uint64 [N]: where in memory each piece begins.

        Raises:
            DataError: a piece reaches beyond its document, or a document beyond its file.
        """
        found = np.empty(len(pieces), dtype=np.uint64)
        own = pieces.document, pieces.start, pieces.length
        wrong, number = _addresses(*own, self.begin, self.lengths, self.itemsize, found)
        if wrong:
            raise self._outside(wrong, int(pieces.document[number]))
        return found

    def _outside(self, wrong: int, document: int) -> DataError:
        if wrong == _NO_DOCUMENT:
            return DataError(f"the plan names documents beyond the {len(self.lengths)} of the shards")
        return DataError(f"the plan reaches beyond the end of document {document}")

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "begin"}


_NO_DOCUMENT, _BEYOND_DOCUMENT, _DAMAGED, _NO_PACK = 1, 2, 3, 4


@nb.njit(cache=True, nogil=True)
def _begins(
    file: npt.NDArray[np.int32], offset: Array, lengths: Array, base: Addresses, sizes: Array, itemsize: int, found: Addresses
) -> bool:
    """Fill ``found``; False where a document is not in its file."""
    right = True
    for d in range(found.size):
        right &= 0 <= file[d] < sizes.size and offset[d] >= 0 and lengths[d] >= 0
        if right:
            right &= offset[d] + lengths[d] <= sizes[file[d]]
            found[d] = base[file[d]] + np.uint64(offset[d] * itemsize)
    return right


@nb.njit(cache=True, nogil=True)
def _addresses(
    document: Array,
    start: Array,
    length: npt.NDArray[np.int32],
    begin: Addresses,
    lengths: Array,
    itemsize: int,
    found: Addresses,
) -> tuple[int, int]:
    """Fill ``found``; returns what is wrong, 0 if nothing, and with which piece."""
    for i in range(document.size):
        if i + _DOCUMENTS_AHEAD < document.size and 0 <= document[i + _DOCUMENTS_AHEAD] < lengths.size:
            prefetch(np.uint64(begin.ctypes.data + 8 * document[i + _DOCUMENTS_AHEAD]))
            prefetch(np.uint64(lengths.ctypes.data + 8 * document[i + _DOCUMENTS_AHEAD]))
        d = document[i]
        if d < 0 or d >= lengths.size:
            return _NO_DOCUMENT, i
        if start[i] < 0 or length[i] < 0 or start[i] + length[i] > lengths[d]:
            return _BEYOND_DOCUMENT, i
        found[i] = begin[d] + np.uint64(start[i] * itemsize)
    return 0, 0


@nb.njit(cache=True, nogil=True)
def ask(address: np.uint64) -> None:
    """Have the first lines behind an address read soon."""
    for line in range(AHEAD_LINES):
        prefetch(address + np.uint64(LINE * line))


# ---- rows in the files' dtype


@nb.njit(cache=True, nogil=True)
def _gather(
    addresses: Addresses, lengths: npt.NDArray[np.int32], offsets: Array, pad_id: int, out: Ids, streamed: bool
) -> None:
    """Copy the pieces of each row one after another and fill the rest; the rows must have room for them."""
    itemsize = out.itemsize
    base = out.ctypes.data
    for row in range(out.shape[0]):
        at = 0
        for i in range(offsets[row] - offsets[0], offsets[row + 1] - offsets[0]):
            if i + AHEAD < addresses.size:
                ask(addresses[i + AHEAD])
            target = np.uint64(base + (row * out.shape[1] + at) * itemsize)
            if streamed:
                _stream(target, addresses[i], int(lengths[i]) * itemsize)
            else:
                copy_bytes(target, addresses[i], np.int64(lengths[i]) * itemsize)
            at += lengths[i]
        out[row, at:] = pad_id


@nb.njit(cache=True, nogil=True)
def _stream(target: np.uint64, source: np.uint64, size: int) -> None:
    """Copy, whole lines of the target past the caches."""
    at = int((LINE - (np.int64(target) & (LINE - 1))) & (LINE - 1))
    if at > size:
        at = size
    copy_bytes(target, source, at)
    while at + 4 * LINE <= size:
        for line in range(4):
            stream_line(target + np.uint64(at + LINE * line), source + np.uint64(at + LINE * line))
        at += 4 * LINE
    while at + LINE <= size:
        stream_line(target + np.uint64(at), source + np.uint64(at))
        at += LINE
    copy_bytes(target + np.uint64(at), source + np.uint64(at), size - at)


@nb.njit(cache=True, nogil=True)
def _fit(lengths: npt.NDArray[np.int32], offsets: Array, seq_len: int) -> bool:
    """Whether the pieces are cut into rows that have room for them."""
    for row in range(offsets.size - 1):
        if not offsets[0] <= offsets[row] <= offsets[row + 1] <= offsets[0] + lengths.size:
            return False
        held = 0
        for i in range(offsets[row] - offsets[0], offsets[row + 1] - offsets[0]):
            held += lengths[i]
        if held > seq_len:
            return False
    return True


def gather_rows(files: TokenFiles, plan: StoredPlan, first: int, out: Ids, pad_id: int) -> None:
    """Fill ``out`` [R, seq_len] (contiguous, the files' dtype) with the packs ``first`` .. ``first + R - 1``.

    Raises:
        DataError: the plan does not fit the documents, or a pack does not fit into a row.
    """
    offsets = np.array(plan.pack_offsets[first : first + len(out) + 1])
    pieces = plan.pieces.take(slice(int(offsets[0]), int(offsets[-1])))
    lengths = np.array(pieces.length)
    if not _fit(lengths, offsets, out.shape[1]):
        raise DataError(f"{plan.folder}: a pack is longer than its sequence")
    if not out.flags.c_contiguous or any(m.dtype != out.dtype for m in files.maps):
        raise ValueError("rows must be contiguous and of the files' dtype")
    _gather(files.addresses(pieces), lengths, offsets, pad_id, out, out.nbytes >= STREAMED)


# ---- rows as int32, and what else a batch has


@nb.njit(cache=True, nogil=True)
def put(target: np.uint64, source: np.uint64, count: int, itemsize: int, following: np.uint64) -> None:
    """Copy tokens of 2 or 4 bytes to int32, and have as many at ``following`` read soon."""
    if itemsize == 4:
        copy_bytes(target, source, 4 * count)
        return
    at = 0
    while at + LANES <= count:
        prefetch(following + np.uint64(2 * at))
        widen(target + np.uint64(4 * at), source + np.uint64(2 * at))
        at += LANES
    if at < count and count >= LANES:  # the last ones once more
        widen(target + np.uint64(4 * (count - LANES)), source + np.uint64(2 * (count - LANES)))
        return
    while at < count:
        widen_one(target + np.uint64(4 * at), source + np.uint64(2 * at))
        at += 1


@nb.njit(cache=True, nogil=True)
def _gather_wide(
    addresses: Addresses,
    lengths: npt.NDArray[np.int32],
    offsets: Array,
    itemsize: int,
    pad_id: int,
    out: npt.NDArray[np.int32],
) -> None:
    """As :func:`_gather`, into int32."""
    base = out.ctypes.data
    for row in range(out.shape[0]):
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            if i + AHEAD < addresses.size:
                ask(addresses[i + AHEAD])
            following = addresses[i + 1] if i + 1 < addresses.size else addresses[i]
            put(np.uint64(base + 4 * (row * out.shape[1] + at)), addresses[i], int(lengths[i]), itemsize, following)
            at += lengths[i]
        out[row, at:] = pad_id


def gather_ids(files: TokenFiles, pieces: Pieces, offsets: Array, out: npt.NDArray[np.int32], pad_id: int) -> None:
    """Fill int32 ``out`` [R, seq_len], whatever the files' dtype: row r is ``pieces[offsets[r]:offsets[r + 1]]``, which must
    have room in it.

    Raises:
        DataError: a piece is outside of its document.
    """
    _gather_wide(files.addresses(pieces), pieces.length, offsets, files.itemsize, pad_id, out)


@nb.njit(cache=True, nogil=True)
def _gather_packs(
    packs: Array,
    pack_offsets: Array,
    document: Array,
    start: Array,
    length: npt.NDArray[np.int32],
    begin: Addresses,
    lengths: Array,
    itemsize: int,
    pad_id: int,
    out: npt.NDArray[np.int32],
    borders: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.int32],
) -> tuple[int, int]:
    """Fill ``out``, ``borders`` and ``numbers``; returns what is wrong, 0 if nothing, and with which document.

    Nothing is waited for one by one: first all packs are looked up, then the pieces of all, then their documents.
    """
    seq_len, most = out.shape[1], borders.shape[1] - 2
    total = 0
    for row in range(packs.size):
        pack = packs[row]
        if pack < 0 or pack >= pack_offsets.size - 1:
            return _NO_PACK, row
        first, last = pack_offsets[pack], pack_offsets[pack + 1]
        if first < 0 or last <= first or last > document.size or last - first > most:
            return _DAMAGED, row
        total += last - first
        numbers[row] = last - first
        prefetch(np.uint64(document.ctypes.data + 8 * first))
        prefetch(np.uint64(start.ctypes.data + 8 * first))
        prefetch(np.uint64(length.ctypes.data + 4 * first))
    for row in range(packs.size):
        first = pack_offsets[packs[row]]
        for i in range(first, first + numbers[row]):
            if 0 <= document[i] < lengths.size:
                prefetch(np.uint64(begin.ctypes.data + 8 * document[i]))
                prefetch(np.uint64(lengths.ctypes.data + 8 * document[i]))
    addresses = np.empty(total, dtype=np.uint64)
    sizes = np.empty(total, dtype=np.int32)
    offsets = np.empty(packs.size + 1, dtype=np.int64)
    n = 0
    for row in range(packs.size):
        first = pack_offsets[packs[row]]
        offsets[row] = n
        at = 0
        borders[row, 0] = 0
        for i in range(first, first + numbers[row]):
            d = document[i]
            if d < 0 or d >= lengths.size:
                return _NO_DOCUMENT, d
            if start[i] < 0 or length[i] < 0 or start[i] + length[i] > lengths[d]:
                return _BEYOND_DOCUMENT, d
            at += length[i]
            if length[i] < 1 or at > seq_len:
                return _DAMAGED, row
            addresses[n] = begin[d] + np.uint64(start[i] * itemsize)
            sizes[n] = length[i]
            borders[row, i - first + 1] = at
            n += 1
        for k in range(numbers[row] + 1, most + 2):
            borders[row, k] = seq_len
    offsets[packs.size] = n
    _gather_wide(addresses, sizes, offsets, itemsize, pad_id, out)
    return 0, 0


def gather_packs(
    files: TokenFiles,
    plan: StoredPlan,
    packs: Array,
    pad_id: int,
    out: npt.NDArray[np.int32],
    borders: npt.NDArray[np.int32],
    numbers: npt.NDArray[np.int32],
) -> None:
    """A batch of packs at once: int32 ``out`` [R, seq_len] their tokens, ``borders`` [R, max_pieces + 2] and ``numbers`` [R]
    their segments (``cu_seqlens`` and ``num_segments`` of :mod:`tokkit.data.packed`).

    Raises:
        DataError: the plan is damaged, or does not fit the documents.
        IndexError: it has no such pack.
    """
    pieces = plan.pieces.document, plan.pieces.start, plan.pieces.length
    documents = files.begin, files.lengths, files.itemsize
    wrong, number = _gather_packs(packs, plan.pack_offsets, *pieces, *documents, pad_id, out, borders, numbers)
    if wrong == _NO_PACK:
        raise IndexError(f"pack {int(packs[number])} of {plan.num_packs}")
    if wrong == _DAMAGED:
        raise DataError(f"{plan.folder} is damaged: a pack is empty or does not fit into a sequence")
    if wrong:
        raise files._outside(wrong, number)
