"""What is in packed rows, as tables: the pieces of documents (``segments_``) and the pictures (``images_``).

Tables have a line for each piece or picture, those of a row one after another, and say of each in which row it is. As columns
of a batch:

==========================  ==========  ===============================================================================
column                      dtype       meaning
==========================  ==========  ===============================================================================
``segments_row``            int32 [S]   row of the batch
``segments_document``       int64 [S]   number of the document in its split, as in the shards
``segments_offset``         int64 [S]   where the piece begins in the document
``segments_length``         int32 [S]   tokens
``segments_source``         int16 [S]   number of the document's source in ``PackedDataset.sources``
``segments_flags``          uint8 [S]   1 it begins the document, 2 it ends it, 4 the document is cut
``segments_loss_tokens``    int32 [S]   tokens of it that are to be predicted; where the dense fields are there
``images_row``              int32 [I]   row of the batch
``images_segment``          int32 [I]   its number in the row, as in ``segment_ids``
``images_start``            int32 [I]   first token in the row, the begin marker
``images_length``           int32 [I]   tokens, markers included
``images_grid``             int16 [I,2] rows and columns of codes; 0, 0 where a picture is missing
``images_id``               int64 [I]   first 64 bits of the encoded file's SHA-256
``cu_images``               int32 [R+1] where the pictures of each row begin in the table
==========================  ==========  ===============================================================================

A document of several sequences has a line in each; a picture is never cut, so it has one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numba as nb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tokkit.packing.split import Pieces
from tokkit.shards.native import TokenShards
from tokkit.vocabulary import MODALITIES

BEGINS, ENDS, CUT = 1, 2, 4
_IMAGE = MODALITIES.index("image")
_HEX = np.zeros(256, dtype=np.uint64)
_HEX[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16)

Columns = dict[str, npt.NDArray[np.generic]]
Array = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a split, in document order.

    Attributes:
        offsets: int64 [D + 1]; the pictures of document d are the lines ``offsets[d]:offsets[d + 1]``.
        start, length: int64 [I], tokens from the document's first.
        grid: int16 [I, 2], rows and columns.
        number: int64 [I], see the module's docstring.
    """

    offsets: Array
    start: Array
    length: Array
    grid: npt.NDArray[np.int16]
    number: Array


class Tables:
    """What tables need of the shards beside the plan, read when it is first asked for."""

    def __init__(self, shards: TokenShards) -> None:
        self._shards = shards

    @cached_property
    def sources(self) -> tuple[list[str], npt.NDArray[np.int16]]:
        """Names of the sources, in the manifest's order, and int16 [D] the number of each document's."""
        names, numbers = self._shards.sources
        return names, numbers.astype(np.int16)

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures of the split."""
        offsets, parts = [np.zeros(1, dtype=np.int64)], []
        for table in self._shards.tables(["spans"]):
            column = table.column("spans").combine_chunks()
            flat = column.flatten()
            kept = pc.equal(flat.field("modality"), "image").to_numpy(zero_copy_only=False)
            before = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
            edges = column.offsets.to_numpy().astype(np.int64)
            offsets.append(before[edges - edges[0]][1:] + offsets[-1][-1])
            parts.append(flat.filter(pa.array(kept)))

        def joined(name: str, dtype: type) -> np.ndarray:
            arrays = [part.field(name).to_numpy(zero_copy_only=False).astype(dtype) for part in parts]
            return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)

        grid = np.stack([joined("grid_height", np.int16), joined("grid_width", np.int16)], axis=1)
        numbers = [_numbers(part.field("item_hash")) for part in parts]
        return Pictures(
            np.concatenate(offsets),
            joined("start", np.int64),
            joined("length", np.int64),
            grid,
            np.concatenate(numbers) if numbers else np.zeros(0, dtype=np.int64),
        )

    def segments(self, pieces: Pieces, offsets: Array, loss: npt.NDArray[np.uint8] | None) -> Columns:
        """The ``segments_`` columns of rows; ``loss`` is their ``loss_mask`` [R, L]."""
        length = np.asarray(pieces.length, dtype=np.int32)
        whole = self._shards.lengths[pieces.document]
        begins, ends = pieces.start == 0, pieces.start + length == whole
        flags = BEGINS * begins + ENDS * ends + CUT * ~(begins & ends)
        found: Columns = {
            "segments_row": _rows(offsets),
            "segments_document": np.array(pieces.document, dtype=np.int64),
            "segments_offset": np.array(pieces.start, dtype=np.int64),
            "segments_length": length,
            "segments_source": self.sources[1][pieces.document],
            "segments_flags": flags.astype(np.uint8),
        }
        if loss is not None:
            found["segments_loss_tokens"] = _loss_tokens(length, offsets, loss)
        return found

    def images(self, pieces: Pieces, offsets: Array) -> Columns:
        """The ``images_`` columns of rows, and ``cu_images``."""
        pictures = self.pictures
        of = pieces.document, pieces.start, pieces.length, offsets, pictures.offsets, pictures.start, pictures.length
        borders = np.zeros(len(offsets), dtype=np.int32)
        count = _count_pictures(*of, borders)
        row, segment, start = (np.empty(count, dtype=np.int32) for _ in range(3))
        line = np.empty(count, dtype=np.int64)
        _place_pictures(*of, row, segment, start, line)
        return {
            "images_row": row,
            "images_segment": segment,
            "images_start": start,
            "images_length": pictures.length[line].astype(np.int32),
            "images_grid": pictures.grid[line],
            "images_id": pictures.number[line],
            "cu_images": borders,
        }


def _numbers(hashes: pa.StringArray) -> Array:
    """The first 16 hexadecimal digits of each as int64; 0 for an empty one."""
    digits = np.array(pc.utf8_slice_codeunits(hashes, 0, 16).to_pylist(), dtype="S16")
    nibbles = _HEX[np.frombuffer(digits.tobytes(), dtype=np.uint8).reshape(-1, 16)]
    shifts = np.arange(60, -4, -4, dtype=np.uint64)
    return np.bitwise_or.reduce(nibbles << shifts, axis=1).view(np.int64)


def _rows(offsets: Array) -> npt.NDArray[np.int32]:
    return np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))


@nb.njit(cache=True, nogil=True)
def _loss_tokens(length: npt.NDArray[np.int32], offsets: Array, loss: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    found = np.zeros(length.size, dtype=np.int32)
    for row in range(offsets.size - 1):
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            for t in range(at, at + length[i]):
                found[i] += loss[row, t]
            at += length[i]
    return found


@nb.njit(cache=True, nogil=True)
def _count_pictures(
    document: Array,
    first: Array,
    length: npt.NDArray[np.int32],
    offsets: Array,
    picture_offsets: Array,
    picture_start: Array,
    picture_length: Array,
    borders: npt.NDArray[np.int32],
) -> int:
    """Fill ``borders``; returns how many pictures there are."""
    count = 0
    for row in range(offsets.size - 1):
        for i in range(offsets[row], offsets[row + 1]):
            for p in range(picture_offsets[document[i]], picture_offsets[document[i] + 1]):
                if picture_start[p] >= first[i] and picture_start[p] + picture_length[p] <= first[i] + length[i]:
                    count += 1
        borders[row + 1] = count
    return count


@nb.njit(cache=True, nogil=True)
def _place_pictures(
    document: Array,
    first: Array,
    length: npt.NDArray[np.int32],
    offsets: Array,
    picture_offsets: Array,
    picture_start: Array,
    picture_length: Array,
    row_of: npt.NDArray[np.int32],
    segment_of: npt.NDArray[np.int32],
    start_of: npt.NDArray[np.int32],
    line_of: Array,
) -> None:
    n = 0
    for row in range(offsets.size - 1):
        at = 0
        for i in range(offsets[row], offsets[row + 1]):
            for p in range(picture_offsets[document[i]], picture_offsets[document[i] + 1]):
                if picture_start[p] >= first[i] and picture_start[p] + picture_length[p] <= first[i] + length[i]:
                    row_of[n], segment_of[n], line_of[n] = row, i - offsets[row] + 1, p
                    start_of[n] = at + picture_start[p] - first[i]
                    n += 1
            at += length[i]
