"""Rows of (URL, caption, page), named any number of times, as a Parquet list with one row a URL.

Rows are dealt out to files by a hash of their URL until each file fits into the memory allowed; then each is brought to one row
a URL: the first page that names it, and the first caption that is not empty, in the order of the input. The list is in the
order of the hashes, so URLs of one host are scattered over it, as whoever downloads it should want.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PARTS = 64  # six bits of the hash
ROW_GROUP = 65_536
_MAX_LEVELS = 20
_BYTES_PER_BYTE = 8  # of memory for a byte of a file, as Python holds it
SCHEMA = pa.schema([("url", pa.string()), ("caption", pa.string()), ("page_url", pa.string())])

Row = tuple[str, str, str]


def write_list(found: Sequence[Path], out: Path, scratch: Path, memory: int, tick: Callable[[int], None]) -> int:
    """Write the list of the rows in ``found`` (JSON lines), in this order, to ``out``.

    Args:
        scratch: a folder for files in between.
        memory: bytes that this keeps to, about.
        tick: called with the number of rows written since the last call.

    Returns:
        rows in the list.
    """
    written = 0
    with pq.ParquetWriter(out, SCHEMA, compression="zstd") as writer:
        waiting: list[Row] = []
        for row in _unique(list(found), scratch, memory, 0):
            waiting.append(row)
            if len(waiting) >= ROW_GROUP:
                written += _write(writer, waiting, tick)
                waiting = []
        written += _write(writer, waiting, tick)
    return written


def _write(writer: pq.ParquetWriter, rows: list[Row], tick: Callable[[int], None]) -> int:
    if rows:
        columns = [pa.array(column, pa.string()) for column in zip(*rows, strict=True)]
        writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=ROW_GROUP)
        tick(len(rows))
    return len(rows)


def _unique(files: list[Path], scratch: Path, memory: int, level: int) -> Iterator[Row]:
    """One row a URL, in the order of the hashes; the files are removed once they are read."""
    size = sum(path.stat().st_size for path in files)
    if size * _BYTES_PER_BYTE <= memory or level >= _MAX_LEVELS:
        yield from _merged(files)
        return
    for part in _dealt_out(files, scratch, level):
        yield from _unique([part], scratch, memory, level + 1)


def _merged(files: Iterable[Path]) -> Iterator[Row]:
    rows: dict[str, tuple[str, str]] = {}
    for url, caption, page in _rows(files):
        known = rows.get(url)
        if known is None:
            rows[url] = (caption, page)
        elif caption and not known[0]:
            rows[url] = (caption, known[1])
    for url in sorted(rows, key=lambda url: (_hash(url), url)):
        yield url, *rows[url]


def _dealt_out(files: Iterable[Path], scratch: Path, level: int) -> list[Path]:
    """The rows of the files in ``PARTS`` files, by the next bits of the hash; in each in their order."""
    width = len(str(PARTS - 1))
    folder = scratch / f"level-{level}"
    folder.mkdir(exist_ok=True)
    parts = [folder / f"{number:0{width}d}.jsonl" for number in range(PARTS)]
    with ExitStack() as stack:
        outs = [stack.enter_context(part.open("w", encoding="ascii")) for part in parts]
        for row in _rows(files):
            outs[_part(row[0], level)].write(json.dumps(row) + "\n")
    return parts


def _part(url: str, level: int) -> int:
    """Six bits of the hash: the first six, then the next, so that parts follow one another in the order of the hashes."""
    return int.from_bytes(_hash(url), "big") >> (128 - 6 * (level + 1)) & 63


def _rows(files: Iterable[Path]) -> Iterator[Row]:
    for path in files:
        with path.open(encoding="ascii") as file:
            for line in file:
                url, caption, page = json.loads(line)
                yield url, caption, page
        path.unlink()


def _hash(url: str) -> bytes:
    return blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).digest()
