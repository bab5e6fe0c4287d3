"""Feature caches that documents are removed from (:mod:`tokkit.pipelines.remove`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.errors import DataError
from tokkit.failpoints import failpoint
from tokkit.features.store import FOLDER
from tokkit.features.writer import SUFFIXES, FeatureWriter
from tokkit.pipelines.features_shards import blocks_of, copy
from tokkit.pipelines.remove_list import TABLE_COLUMNS
from tokkit.pipelines.remove_shards import check_sound
from tokkit.shards.manifest import Shard

_ITEMS = ["document", "modality", "hash", "length", "bytes"]


def tables(directory: Path, split: str, shard: Shard) -> Iterator[pa.Table]:
    """A shard's documents as token shards tell of theirs (:data:`~tokkit.pipelines.remove_list.TABLE_COLUMNS`).

    Text and items are spans, one after another; an item of which only the place is kept has no codebooks.
    """
    paths = {suffix: directory / FOLDER / split / shard.files[suffix].name for suffix in ("parquet", "documents.parquet")}
    try:
        documents = pq.read_table(paths["documents.parquet"])
        items = pq.read_table(paths["parquet"], columns=_ITEMS)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{directory / FOLDER / split} cannot be read: {error}") from None
    count = documents.num_rows
    owner = np.concatenate([np.arange(count), items.column("document").to_numpy()])
    order = np.argsort(owner, kind="stable")  # a document's text before its items, these in their order
    there = pc.greater(items.column("bytes"), 0).cast(pa.int32())
    texts = {
        "modality": pa.array(["text"] * count, pa.string()),
        "item_hash": pa.nulls(count, pa.string()),
        "length": documents.column("tokens").combine_chunks().cast(pa.int64()),
        "codebooks": pa.array(np.zeros(count, np.int32)),
    }
    media = {
        "modality": items.column("modality"),
        "item_hash": items.column("hash"),
        "length": items.column("length").cast(pa.int64()),
        "codebooks": there,
    }
    joined = [pa.chunked_array([texts[name], *media[name].chunks]).combine_chunks().take(pa.array(order)) for name in texts]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.bincount(owner, minlength=count))])
    spans = pa.ListArray.from_arrays(pa.array(ends.astype(np.int32)), pa.StructArray.from_arrays(joined, list(texts)))
    tokens = pc.add(documents.column("tokens"), documents.column("features"))
    documents = documents.set_column(documents.column_names.index("tokens"), "tokens", tokens).append_column("spans", spans)
    yield documents.select(list(TABLE_COLUMNS))


def rewrite_features(source: Path, target: Path, shard: Shard, gone: npt.NDArray[np.int64], number: str) -> Shard:
    """A shard without the documents ``gone``; see :func:`tokkit.pipelines.remove_shards.write_split`."""
    check_sound(source, shard, SUFFIXES)
    paths = {suffix: source / shard.files[suffix].name for suffix in SUFFIXES}
    kept = np.ones(shard.documents, dtype=bool)
    kept[gone] = False
    with FeatureWriter(target) as writer:
        for block in blocks_of(paths, pq.read_table(paths["documents.parquet"]), kept):
            copy(writer, block, 0, block.documents.num_rows)
        failpoint("in-coalesce")
        files = writer.finish(number)
        return Shard(documents=writer.documents, tokens=writer.tokens + writer.features, files=files)
