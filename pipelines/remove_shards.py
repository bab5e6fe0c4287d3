"""Shards of an output that documents are removed from (:mod:`tokkit.pipelines.remove`): each is kept, written anew, or gone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.errors import DataError, VerificationError
from tokkit.failpoints import failpoint
from tokkit.pipelines.progress import Task
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import Manifest, Shard, Split
from tokkit.shards.native import ROW_GROUP, ShardWriter, map_tokens
from tokkit.storage import fsync, remove_attempts, same_file, sha256_file


def tables(directory: Path, split: str, shard: Shard, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A shard's document table, by row groups."""
    path = directory / "tokens" / split / shard.files["parquet"].name
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def write_split(
    directory: Path, out: Path, before: Manifest, name: str, split: Split, rows: list[npt.NDArray[np.int64]], task: Task
) -> list[Shard]:
    """The shards of a split: those that lose nothing as they are, those that lose all not at all."""
    source, target = directory / "tokens" / name, out / "tokens" / name
    target.mkdir(parents=True, exist_ok=True)
    remove_attempts(target)
    shards: list[Shard] = []
    for shard, gone in zip(split.shards, rows, strict=True):
        number = f"{len(shards):05d}"
        if not len(gone):
            files = {}
            for suffix, file in shard.files.items():
                files[suffix] = file.model_copy(update={"name": f"{number}.{suffix}"})
                same_file(source / file.name, target / files[suffix].name)
            shards.append(shard.model_copy(update={"files": files}))
        elif len(gone) < shard.documents:
            shards.append(_rewrite(directory, target, name, shard, gone, np.dtype(before.dtype), number))
        task.advance(shard.tokens)
    fsync(target)
    return shards


def _rewrite(
    directory: Path, target: Path, split: str, shard: Shard, gone: npt.NDArray[np.int64], dtype: np.dtype, number: str
) -> Shard:
    """A shard without the rows ``gone``."""
    source = directory / "tokens" / split
    for suffix in ("bin", "parquet"):  # or damage would get a good checksum
        file = shard.files[suffix]
        if sha256_file(source / file.name) != file.sha256:
            raise VerificationError(f"{source / file.name} is damaged: its checksum is not the one in {MANIFEST}")
    tokens = map_tokens(source / shard.files["bin"].name, dtype)
    kept = np.ones(shard.documents, dtype=bool)
    kept[gone] = False
    with ShardWriter(target, dtype) as writer:
        row = position = 0
        for table in tables(directory, split, shard):
            ends = position + np.cumsum(table.column("tokens").to_numpy())
            edges = np.flatnonzero(np.diff(kept[row : row + table.num_rows].astype(np.int8), prepend=0, append=0))
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                begin = int(ends[first - 1]) if first else position
                writer.extend(tokens[begin : int(ends[last - 1])], table.slice(first, last - first))
            row, position = row + table.num_rows, int(ends[-1])
        failpoint("in-coalesce")
        files = writer.finish(number)
        return Shard(documents=writer.documents, tokens=writer.tokens, files=files)
