"""Formats that are tables: a row a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.shards.exports.part import Part
from tokkit.storage import replacing

GROUP_TOKENS = 1 << 22  # tokens in a row group, about


def write_parquet(part: Part, folder: Path) -> list[Path]:
    """``.parquet`` with ``input_ids`` (list of int32) and the document's names, or the packed row's fields.

    Documents of which not all is to be predicted have ``learnt`` too (list of uint8, 0 at what is only given).
    """
    return _write(
        part, folder / f"{part.name}.parquet", lambda path, schema: pq.ParquetWriter(path, schema, compression="zstd")
    )


def write_arrow(part: Part, folder: Path) -> list[Path]:
    """The same columns as an Arrow IPC file, ``.arrow``, not compressed: read through a memory map, row by row in any order."""
    return _write(part, folder / f"{part.name}.arrow", pa.ipc.new_file)


def _write(part: Part, path: Path, open_file: Callable[[str, pa.Schema], Any]) -> list[Path]:
    names = part.table() if part.table is not None else None
    loss = part.loss() if part.fields is None else None
    tokens, ends = part.tokens, part.ends
    with replacing(path) as temporary:
        writer: Any = None
        try:
            for first, last in groups(part.lengths):
                begin = int(ends[first - 1]) if first else 0
                span = slice(begin, int(ends[last - 1]) if last else 0)
                columns: dict[str, pa.Array] = {}
                if names is not None:
                    columns |= {
                        key: names.column(key).slice(first, last - first).combine_chunks() for key in names.column_names
                    }
                lengths = part.lengths[first:last]
                columns["input_ids"] = lists(tokens[span].astype(np.int32), lengths)
                fields = part.fields(first, last) if part.fields is not None else {}
                if loss is not None:
                    fields["learnt"] = loss[span].astype(np.uint8)
                columns |= {key: lists(values, lengths) for key, values in fields.items()}
                table = pa.table(columns)
                writer = writer or open_file(str(temporary), table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()
    return [path]


def groups(lengths: npt.NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of sequences of about ``GROUP_TOKENS``; one empty range where there are none."""
    ends, first = np.cumsum(lengths), 0
    while first < len(lengths):
        begin = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, begin + GROUP_TOKENS, side="right")))
        yield first, last
        first = last
    if not len(lengths):
        yield 0, 0


def lists(values: npt.NDArray[np.generic], lengths: npt.NDArray[np.int64]) -> pa.Array:
    offsets = np.concatenate([np.zeros(1, dtype=np.int32), np.cumsum(lengths, dtype=np.int32)])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))
