"""What Hugging Face ``datasets`` loads as it lies, through a memory map; other tables it first copies into its cache.

A folder of a split is what ``Dataset.save_to_disk`` leaves: Arrow IPC *streams* (a stream, unlike an IPC file, is what
``Dataset.from_file`` maps), ``state.json``, which lists them, and ``dataset_info.json``. Of packed rows the columns are
``input_ids``, a fixed-size list in the shards' own dtype, ``cu_seqlens``, a list of int32 (where a row's segments begin, and
where its last one ends), and ``loss_mask`` (uint8).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from tokkit.shards.exports.part import Part
from tokkit.shards.exports.table import groups, lists
from tokkit.storage import replacing, sha256_file

DICT = "dataset_dict.json"


def write_saved(parts: Iterator[Part], folder: Path) -> Iterator[tuple[Part | None, list[Path]]]:
    """``NAME.arrow`` a part, and last the two files that tell of them."""
    written = []
    for part in parts:
        path = folder / f"{part.name}.arrow"
        _write(part, path)
        written.append(path)
        yield part, [path]
    yield None, list(_told(written, folder))


def write_dict(splits: list[str], folder: Path) -> None:
    """In the folder above, what makes ``load_from_disk`` of it a ``DatasetDict``."""
    (folder / DICT).write_text(json.dumps({"splits": splits}))


def _told(written: list[Path], folder: Path) -> Iterator[Path]:
    digest = hashlib.sha256("".join(sha256_file(path) for path in written).encode())
    state: dict[str, object] = {
        "_data_files": [{"filename": path.name} for path in written],
        "_fingerprint": digest.hexdigest()[:16],  # by which results of Dataset.map are found again
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": folder.name,
    }
    for name, content in (("state.json", state), ("dataset_info.json", {})):
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True))
        yield folder / name


def _write(part: Part, path: Path) -> None:
    names = part.table() if part.table is not None else None
    borders = part.borders() if part.borders is not None else None
    loss = part.loss() if part.fields is None else None
    tokens, ends = part.tokens, part.ends
    with replacing(path) as temporary:
        writer: pa.RecordBatchStreamWriter | None = None
        try:
            for first, last in groups(part.lengths):
                span = slice(int(ends[first - 1]) if first else 0, int(ends[last - 1]) if last else 0)
                lengths = part.lengths[first:last]
                columns: dict[str, pa.Array] = {}
                if names is not None:
                    columns |= {
                        key: names.column(key).slice(first, last - first).combine_chunks() for key in names.column_names
                    }
                if borders is not None and part.fields is not None:
                    columns["input_ids"] = _rows(np.asarray(tokens[span]), part.seq_len)
                    columns["cu_seqlens"] = borders.slice(first, last - first)
                    columns["loss_mask"] = _rows(part.fields(first, last)["loss_mask"], part.seq_len)
                else:
                    columns["input_ids"] = lists(np.asarray(tokens[span]), lengths)
                if loss is not None:
                    columns["learnt"] = lists(loss[span].astype(np.uint8), lengths)
                table = pa.table(columns)
                writer = writer or pa.ipc.new_stream(str(temporary), table.schema)
                writer.write_table(table)
        finally:
            if writer is not None:
                writer.close()


def _rows(values: np.ndarray, seq_len: int) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), seq_len)
