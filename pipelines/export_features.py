"""``tokkit export`` of a feature cache: WebDataset tars of ``.npy``, safetensors, and the folders that clip-retrieval writes.

* ``webdataset``: a tar a shard, a sample a document: ``KEY.json`` (names, places, grids), ``KEY.ids.npy``, ``KEY.N.npy`` for
  each item's features, ``KEY.N.pooled.npy``. float16; float32 of a bfloat16 cache, since NumPy has no such type.
* ``safetensors``: a file a shard, in the stored form: ``features`` ``[T, dim]`` of all items, ``feature_offsets``, ``scales``
  (int8), ``item_document``, ``item_position``, ``ids``, ``id_offsets``, ``pooled``.
* ``clip-retrieval``: ``img_emb/img_emb_N.npy`` and ``metadata/metadata_N.parquet`` of the documents with one item, and
  ``text_emb/text_emb_N.npy`` where a text tower is named.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.errors import DataError, UsageError
from tokkit.features.manifest import CacheManifest, load_cache_manifest
from tokkit.features.store import FeatureCache
from tokkit.pipelines.progress import Progress
from tokkit.storage import read_json, sha256_file

if TYPE_CHECKING:
    import torch

NAMES = ["id", "source", "locator", "metadata"]


@dataclass(frozen=True)
class Texts:
    """What turns a document's ids back into its text, and, where a text tower is named, into an embedding."""

    decode: Callable[[npt.NDArray[np.int32]], str]
    embed: Callable[[list[str]], npt.NDArray[np.float32]] | None = None


@dataclass(frozen=True, eq=False)
class Shard:
    """The documents ``first``..``last`` of a split, which stand in one shard; ``names`` is their part of the table."""

    number: int
    of: int
    first: int
    last: int
    names: pa.Table


Writer = Callable[[FeatureCache, Shard, Path, Texts | None], tuple[int, list[Path]]]


def shards_of(cache: FeatureCache) -> Iterator[Shard]:
    """A cache's shards in order."""
    first, count = 0, len(cache.manifest.splits[cache.split].shards)
    for number, table in enumerate(cache.document_tables(NAMES)):
        yield Shard(number, count, first, first + table.num_rows, table)
        first += table.num_rows


def export_features(
    directory: Path, format_: str, folder: Path, texts: Texts | None, progress: Progress
) -> dict[str, dict[str, object]]:
    """Write every split of a cache below ``folder``; what was written, by split.

    Raises:
        UsageError: no such format, or the cache has nothing of what it takes.
    """
    manifest = load_cache_manifest(directory)
    if format_ not in FORMATS:
        raise UsageError(f"no export format {format_!r} of feature caches; there are: {', '.join(FORMATS)}")
    if format_ == "clip-retrieval" and manifest.pooled_dim is None:
        raise UsageError("clip-retrieval takes an embedding an item: run tokkit features with --pooled projected")
    found: dict[str, dict[str, object]] = {}
    for split, entry in manifest.splits.items():
        cache, target = FeatureCache(directory, manifest, split), folder / split
        target.mkdir()
        files: dict[str, dict[str, object]] = {}
        documents = 0
        with progress.task(f"export {split}", total=entry.documents, unit="documents") as task:
            for shard in shards_of(cache):
                count, paths = FORMATS[format_](cache, shard, target, texts)
                documents += count
                for path in paths:
                    name = path.relative_to(target).as_posix()
                    files[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
                task.advance(shard.last - shard.first)
        left_out = entry.documents - documents
        if left_out:
            progress.log(f"{left_out:,} documents of {split} have another number of items than one, and are left out")
        tokens = manifest.features[split].tokens
        found[split] = {"sequences": documents, "tokens": tokens, "left_out": left_out, "files": files}
    return found


# ---- formats


def _write_webdataset(cache: FeatureCache, shard: Shard, folder: Path, texts: Texts | None) -> tuple[int, list[Path]]:
    path = folder / f"{shard.number:05d}.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for row, names in enumerate(shard.names.to_pylist()):
            document = cache.document(shard.first + row)
            key = f"{shard.first + row:09d}"
            entries = [cache.entry(item) for item in document.items]
            about = [
                {"position": e.position, "grid": e.grid, "tiles": e.tiles, "newlines": e.newlines, "thw": e.thw}
                | {"valid": e.valid, "width": e.width, "height": e.height, "hash": e.hash, "extra": e.extra}
                for e in entries
            ]
            _add(tar, f"{key}.json", json.dumps({**names, "items": about}, sort_keys=True).encode())
            _add(tar, f"{key}.ids.npy", _npy(document.ids))
            for number, item in enumerate(document.items):
                _add(tar, f"{key}.{number}.npy", _npy(_plain(cache, cache.dense(item))))
                if (pooled := cache.pooled(item)) is not None:
                    _add(tar, f"{key}.{number}.pooled.npy", _npy(_plain(cache, pooled)))
    return shard.last - shard.first, [path]


def _plain(cache: FeatureCache, values: npt.NDArray[np.float32]) -> npt.NDArray[np.generic]:
    """In a type that NumPy has and that loses nothing which the cache holds, but for the last bits of int8 times its scale."""
    if cache.dtype == "bf16" or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        return values
    return values.astype(np.float16)


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
    return buffer.getvalue()


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def _write_safetensors(cache: FeatureCache, shard: Shard, folder: Path, texts: Texts | None) -> tuple[int, list[Path]]:
    import torch
    from safetensors.torch import save_file

    documents = range(shard.first, shard.last)
    items = [item for document in documents for item in cache.items_of(document)]
    values = np.concatenate(
        [np.zeros((0, cache.dim), cache.features(0).dtype if len(cache) else np.float16)] + [cache.features(i) for i in items]
    )
    tensors = {
        "features": torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        if cache.dtype == "bf16"
        else torch.from_numpy(values)
    }
    if cache.dtype == "int8":
        none = np.zeros(0, dtype=np.float32)
        tensors["scales"] = torch.from_numpy(
            np.concatenate([none, *(cache.scales(i) if cache.lengths[i] else none for i in items)])
        )
    pooled = [cache.pooled(item) for item in items]
    if items and all(embedding is not None for embedding in pooled):
        tensors["pooled"] = torch.from_numpy(np.stack([p for p in pooled if p is not None]))
    ids = [cache.ids(document) for document in documents]
    tensors["ids"] = torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int32), *ids]))
    tensors["id_offsets"] = _offsets([len(row) for row in ids])
    tensors["feature_offsets"] = _offsets([int(cache.lengths[item]) for item in items])
    tensors["item_document"] = torch.from_numpy(cache.document_of[items].astype(np.int64) - shard.first)
    tensors["item_position"] = torch.from_numpy(cache.positions[items].astype(np.int64))
    path = folder / f"{shard.number:05d}.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})
    return len(documents), [path]


def _offsets(lengths: list[int]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.cumsum([0, *lengths]).astype(np.int64))


def _write_clip_retrieval(cache: FeatureCache, shard: Shard, folder: Path, texts: Texts | None) -> tuple[int, list[Path]]:
    assert texts is not None  # found before anything is written
    rows = [row for row in range(shard.last - shard.first) if len(cache.items_of(shard.first + row)) == 1]
    embeddings, captions, kept = [], [], []
    for row in rows:
        found = cache.pooled(cache.items_of(shard.first + row).start)
        if found is not None:
            embeddings.append(found)
            captions.append(texts.decode(cache.ids(shard.first + row)))
            kept.append(row)
    name = f"{shard.number:0{len(str(max(shard.of - 1, 0)))}d}"
    paths = [folder / "img_emb" / f"img_emb_{name}.npy", folder / "metadata" / f"metadata_{name}.parquet"]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
    dim = cache.manifest.pooled_dim or 0
    np.save(paths[0], np.array(embeddings, dtype=np.float16).reshape(-1, dim), allow_pickle=False)
    table = shard.names.take(pa.array(kept, pa.int64()))
    columns = {
        "image_path": table.column("locator"),
        "caption": pa.array([c.encode("utf-8", "replace").decode() for c in captions], pa.string()),
    }
    pq.write_table(pa.table(columns | {column: table.column(column) for column in NAMES}), paths[1])
    if texts.embed is not None:
        paths.append(folder / "text_emb" / f"text_emb_{name}.npy")
        paths[-1].parent.mkdir(exist_ok=True)
        np.save(paths[-1], texts.embed(captions).astype(np.float16), allow_pickle=False)
    return len(kept), paths


FORMATS: dict[str, Writer] = {
    "webdataset": _write_webdataset,
    "safetensors": _write_safetensors,
    "clip-retrieval": _write_clip_retrieval,
}


def texts_of(directory: Path, manifest: CacheManifest, text_tokenizer: Path | None, text_encoder: Path | None) -> Texts:
    """The text tokenizer of the run, where it was or where it is said to be, and the text tower.

    Raises:
        UsageError: the tokenizer is not where it was.
        DataError: it is another.
    """
    from tokkit.tokenizers.text import load_text_tokenizer

    job = directory / "run" / "job.json"
    recorded = read_json(job).get("text_tokenizer") if text_tokenizer is None and job.exists() else text_tokenizer
    if recorded is None or not Path(recorded).exists():
        raise UsageError("the text tokenizer is no longer where the run had it; name it with --text-tokenizer")
    tokenizer = load_text_tokenizer(Path(recorded))
    if tokenizer.fingerprint != manifest.tokenizers["text"].fingerprint:
        raise DataError(f"{recorded} is not the tokenizer that this cache was made with")
    if text_encoder is None:
        return Texts(tokenizer.decode)
    from tokkit.features.texts import load_text_encoder

    tower = load_text_encoder(text_encoder)
    return Texts(tokenizer.decode, lambda texts: tower.encode(texts, 64))
