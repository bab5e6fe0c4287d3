"""Formats whose tokens are the native ``.bin`` as it is: Megatron's, datatrove's and OLMo's, each with an index of its own."""

from __future__ import annotations

import csv
import gzip
import io
from pathlib import Path

import numpy as np

from tokkit.shards.exports.part import Part
from tokkit.shards.megatron import index_bytes
from tokkit.storage import same_file, write_atomic


def write_megatron(part: Part, folder: Path) -> list[Path]:
    """``.bin`` and ``.idx`` (version 1, one sequence a document)."""
    tokens, index = folder / f"{part.name}.bin", folder / f"{part.name}.idx"
    same_file(part.path, tokens)
    write_atomic(index, index_bytes(part.lengths, part.dtype))
    return [tokens, index]


def write_ds(part: Part, folder: Path) -> list[Path]:
    """``.ds``, ``.ds.index`` (uint64 [D], ends in tokens), ``.ds.metadata`` (three lines), and where not all is learnt
    ``.ds.loss`` (a byte a token)."""
    tokens = folder / f"{part.name}.ds"
    same_file(part.path, tokens)
    files = {".ds.index": part.ends.astype("<u8").tobytes()}
    total = int(part.lengths.sum())
    files[".ds.metadata"] = f"{part.tokenizer}|{part.dtype.itemsize}\n{total}\n{_short(total)} tokens".encode()
    loss = part.loss()
    if loss is not None:
        files[".ds.loss"] = loss.astype(np.uint8).tobytes()
    written = [tokens]
    for suffix, data in files.items():
        written.append(folder / f"{part.name}{suffix}")
        write_atomic(written[-1], data)
    return written


def _short(number: float) -> str:
    for unit in ("", "K", "M", "B"):
        if number < 1000:
            return f"{number:.2f}{unit}" if unit else f"{number:.0f}"
        number /= 1000
    return f"{number:.2f}T"


def write_olmo(part: Part, folder: Path) -> list[Path]:
    """``.npy``, which in OLMo is a bare array without NumPy's header, and ``.csv.gz`` with start, end, id, source and number of
    each document (dolma's sidecar)."""
    tokens, sidecar = folder / f"{part.name}.npy", folder / f"{part.name}.csv.gz"
    same_file(part.path, tokens)
    names = [[str(n), part.name] for n in range(len(part.lengths))]
    if part.table is not None:
        table = part.table()
        names = [list(row) for row in zip(*(table.column(key).to_pylist() for key in ("id", "source")), strict=True)]
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    ends = part.ends
    for number, (start, end, name) in enumerate(zip((ends - part.lengths).tolist(), ends.tolist(), names, strict=True)):
        rows.writerow([start, end, *name, number])
    write_atomic(sidecar, gzip.compress(text.getvalue().encode(), mtime=0))
    return [tokens, sidecar]
