"""The end of a run of ``tokkit features``: payloads put together to shards of about ``shard_bytes``, split by split.

Bytes are copied, not decoded: a payload and a shard are of the same form, and a document's items stand together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.failpoints import failpoint
from tokkit.features.manifest import FeatureTotals
from tokkit.features.store import FOLDER
from tokkit.features.writer import SUFFIXES, TOKEN_DTYPE, FeatureWriter, Ids
from tokkit.pipelines.finish import SPLITS, check_payload, remove_others, split_totals
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.output import Output
from tokkit.pipelines.progress import Progress, Task
from tokkit.places import Place, parquet
from tokkit.shards.manifest import Shard, Split
from tokkit.storage import remove_attempts


def coalesce_features(
    output: Output, ledger: Ledger, records: Sequence[CommitRecord], shard_bytes: int, progress: Progress
) -> dict[str, Split]:
    """Write ``features/SPLIT/NNNNN.*`` from the units' payloads, in unit order, each into the output as it is closed.

    Raises:
        VerificationError: a payload is not what its commit record says.
    """
    total = sum(record.payload["bin"].bytes for record in records) / 1e6
    splits: dict[str, Split] = {}
    with progress.task("coalesce", total=total, unit="MB") as task:
        for split in SPLITS:
            mine = [record for record in records if split in record.splits]
            if not mine:
                continue
            directory = output.folder / FOLDER / split
            directory.mkdir(parents=True, exist_ok=True)
            remove_attempts(directory)
            shards = _write_shards(directory, _blocks(ledger, mine, split), shard_bytes, task, output)
            remove_others(directory, {file.name for shard in shards for file in shard.files.values()})
            splits[split] = split_totals(split, mine, shards)
    return splits


@dataclass(frozen=True, eq=False)
class Block:
    """Documents that stand together in a payload or shard, and where each of them ends in its files.

    Attributes:
        first: number of the first document there.
        byte_ends, token_ends, item_ends: int64 [D], counted from the block's begin.
    """

    data: npt.NDArray[np.uint8]
    ids: Ids
    items: pa.Table
    documents: pa.Table
    first: int
    byte_ends: npt.NDArray[np.int64]
    token_ends: npt.NDArray[np.int64]
    item_ends: npt.NDArray[np.int64]


def _blocks(ledger: Ledger, records: Sequence[CommitRecord], split: str) -> Iterator[Block]:
    """The documents of a split in output order, in runs that are contiguous in their payload."""
    for record in records:
        if split == SPLITS[0]:  # once a payload
            for suffix in SUFFIXES:
                check_payload(ledger, record, suffix)
        paths = {suffix: ledger.payload(record.payload[suffix]) for suffix in SUFFIXES}
        documents = pq.read_table(paths["documents.parquet"])
        yield from blocks_of(paths, documents, pc.equal(documents.column("split"), split).to_numpy())


def blocks_of(paths: Mapping[str, Path], documents: pa.Table, wanted: npt.NDArray[np.bool_]) -> Iterator[Block]:
    """The wanted documents of a payload or shard, in runs that are contiguous in its files.

    Args:
        paths: of the files, by suffix.
        documents: the whole document table.
        wanted: bool [D].
    """
    if not documents.num_rows:
        return
    items = pq.read_table(paths["parquet"])
    data, ids = _map(paths["bin"], np.dtype("u1")), _map(paths["tokens.bin"], TOKEN_DTYPE)
    bytes_, tokens, counts = (_ends(documents.column(name)) for name in ("bytes", "tokens", "items"))
    edges = np.flatnonzero(np.diff(wanted.astype(np.int8), prepend=0, append=0))
    for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield Block(
            data[bytes_[first] : bytes_[last]],
            ids[tokens[first] : tokens[last]],
            items.slice(counts[first], counts[last] - counts[first]),
            documents.slice(first, last - first),
            first,
            *(ends[first + 1 : last + 1] - ends[first] for ends in (bytes_, tokens, counts)),
        )


def _ends(column: pa.ChunkedArray) -> npt.NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(column.to_numpy().astype(np.int64))])


def _map(path: Path, dtype: np.dtype) -> npt.NDArray:
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if path.stat().st_size else np.zeros(0, dtype=dtype)


def _write_shards(directory: Path, blocks: Iterator[Block], shard_bytes: int, task: Task, output: Output) -> list[Shard]:
    """Fill shards one after another; a shard is closed by the document that brings it to ``shard_bytes``."""
    shards: list[Shard] = []
    writer: FeatureWriter | None = None

    def close(current: FeatureWriter) -> None:
        failpoint("in-coalesce")
        files = current.finish(f"{len(shards):05d}")
        output.give(*(directory / file.name for file in files.values()))
        shards.append(Shard(documents=current.documents, tokens=current.tokens + current.features, files=files))

    try:
        for block in blocks:
            row = 0
            while row < block.documents.num_rows:
                writer = writer or FeatureWriter(directory)
                begin = int(block.byte_ends[row - 1]) if row else 0
                room = shard_bytes - writer.bytes
                last = min(int(np.searchsorted(block.byte_ends, begin + room)) + 1, block.documents.num_rows)
                copy(writer, block, row, last)
                task.advance((int(block.byte_ends[last - 1]) - begin) / 1e6)
                row = last
                if writer.bytes >= shard_bytes:
                    close(writer)
                    writer = None
        if writer is not None:
            close(writer)
            writer = None
    finally:
        if writer is not None:
            writer.__exit__(None, None, None)
    return shards


def copy(writer: FeatureWriter, block: Block, row: int, last: int) -> None:
    """Append the documents ``row``..``last`` of a block."""
    (b0, b1), (t0, t1), (i0, i1) = (
        (int(ends[row - 1]) if row else 0, int(ends[last - 1])) for ends in (block.byte_ends, block.token_ends, block.item_ends)
    )
    documents = block.documents.slice(row, last - row)
    writer.extend(block.data[b0:b1], block.ids[t0:t1], block.items.slice(i0, i1 - i0), documents, block.first + row)


def feature_totals(place: Place, name: str, split: Split) -> FeatureTotals:
    """What the items' index of a split adds up to.

    Raises:
        DataError: it cannot be read.
    """
    columns = ["length", "bytes", "error"]
    tables = []
    for shard in split.shards:
        with parquet(place / FOLDER / name / shard.files["parquet"].name) as source:
            tables.append(pq.read_table(source, columns=columns))
    table = pa.concat_tables(tables) if tables else pa.table({column: pa.array([], pa.int64()) for column in columns})
    there = pc.greater(table.column("bytes"), 0)
    errors = table.column("error").to_numpy().astype(np.float64)[there.to_numpy()]
    items = len(errors)
    return FeatureTotals(
        items=items,
        missing=table.num_rows - items,
        tokens=int(pc.sum(table.column("length")).as_py() or 0),
        bytes=sum(shard.files["bin"].bytes for shard in split.shards),
        error=round(float(errors.mean()), 9) if items else 0.0,
        worst_error=round(float(errors.max()), 9) if items else 0.0,
    )
