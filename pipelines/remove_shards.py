"""Token shards that documents are removed from (:mod:`tokkit.pipelines.remove`): each is kept, written anew, or gone.

Which it is, and the names and links of what is kept, are the same for feature caches (:mod:`tokkit.pipelines.remove_features`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.errors import DataError, VerificationError
from tokkit.failpoints import failpoint
from tokkit.pipelines.progress import Task
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import Shard, Split
from tokkit.shards.native import ROW_GROUP, ShardWriter, map_tokens
from tokkit.storage import fsync, remove_attempts, same_file, sha256_file

FOLDER = "tokens"

Rewrite = Callable[[Path, Path, Shard, npt.NDArray[np.int64], str], Shard]


def tables(directory: Path, split: str, shard: Shard, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A shard's document table, by row groups."""
    yield from row_groups(directory / FOLDER / split / shard.files["parquet"].name, columns)


def row_groups(path: Path, columns: list[str] | None) -> Iterator[pa.Table]:
    """A table's row groups; DataError where it cannot be read."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=columns, use_threads=False):
                yield pa.Table.from_batches([batch])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def write_split(
    source: Path, target: Path, split: Split, rows: list[npt.NDArray[np.int64]], rewrite: Rewrite, task: Task
) -> list[Shard]:
    """The shards of a split: those that lose nothing as they are, those that lose all not at all.

    Args:
        source, target: the split's folders of the old and the new version.
        rows: by shard, the documents that are removed.
        rewrite: writes a shard without them, given both folders, the shard, its rows and its new number.
    """
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
            shards.append(rewrite(source, target, shard, gone, number))
        task.advance(shard.tokens)
    fsync(target)
    return shards


def check_sound(source: Path, shard: Shard, suffixes: Sequence[str]) -> None:
    """Raise VerificationError where a file is not what the manifest says, or damage would get a good checksum."""
    for suffix in suffixes:
        file = shard.files[suffix]
        if sha256_file(source / file.name) != file.sha256:
            raise VerificationError(f"{source / file.name} is damaged: its checksum is not the one in {MANIFEST}")


def rewrite_tokens(
    dtype: np.dtype, source: Path, target: Path, shard: Shard, gone: npt.NDArray[np.int64], number: str
) -> Shard:
    """A shard of token ids of ``dtype`` without the rows ``gone``; see :func:`write_split`."""
    check_sound(source, shard, ("bin", "parquet"))
    tokens = map_tokens(source / shard.files["bin"].name, dtype)
    kept = np.ones(shard.documents, dtype=bool)
    kept[gone] = False
    with ShardWriter(target, dtype) as writer:
        row = position = 0
        for table in row_groups(source / shard.files["parquet"].name, None):
            ends = position + np.cumsum(table.column("tokens").to_numpy())
            edges = np.flatnonzero(np.diff(kept[row : row + table.num_rows].astype(np.int8), prepend=0, append=0))
            for first, last in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                begin = int(ends[first - 1]) if first else position
                writer.extend(tokens[begin : int(ends[last - 1])], table.slice(first, last - first))
            row, position = row + table.num_rows, int(ends[-1])
        failpoint("in-coalesce")
        files = writer.finish(number)
        return Shard(documents=writer.documents, tokens=writer.tokens, files=files)
