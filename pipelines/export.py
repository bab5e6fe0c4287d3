"""The job behind ``tokkit export``: a finished output in the format of another trainer or loader.

Documents are exported one by one, or, with a packing plan, as the plan's sequences, each of them a document of exactly seq_len
tokens, padded: what cuts its input every seq_len tokens (Megatron's GPTDataset) then cuts no picture. The folder is there whole
or not at all, and ``export.json`` in it says what it was made from, with checksums and licences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from tokkit.data.packed import IGNORED, PackedDataset
from tokkit.errors import DataError, UsageError
from tokkit.features.manifest import is_cache, load_cache_manifest
from tokkit.packing.gather import TokenFiles, gather_rows
from tokkit.packing.rows import BLOCK_BYTES, cu_seqlens, load_rows
from tokkit.packing.store import StoredPlan, committed_folder, load_plan, pack_folder
from tokkit.pipelines.export_tokenizer import FORMAT as HF_TOKENIZER
from tokkit.pipelines.export_tokenizer import export_tokenizer
from tokkit.pipelines.progress import Progress
from tokkit.shards.exports import DATASETS, FORMATS, Part
from tokkit.shards.exports.saved import write_dict
from tokkit.shards.manifest import Manifest, RunManifest, load_manifest
from tokkit.shards.native import TokenShards
from tokkit.storage import attempt_name, read_json, record_json, sha256_file
from tokkit.vocabulary import UnifiedVocabulary

RECORD = "export.json"
NAMES = ["id", "source", "locator"]


class ExportConfig(BaseModel):
    """What ``tokkit export`` is asked for.

    Attributes:
        directory: a finished directory of token shards, or a feature cache.
        out: the folder to be made.
        format: one of :data:`tokkit.shards.exports.FORMATS`, or ``hf-tokenizer`` (:mod:`tokkit.pipelines.export_tokenizer`); of
            a cache one of :data:`tokkit.pipelines.export_features.FORMATS`.
        pack: the packing plan whose sequences are exported; None exports documents.
        text_tokenizer: where it is now, if not where the run had it; for ``hf-tokenizer`` and ``clip-retrieval``.
        text_encoder: folder of a text tower, whose embeddings ``clip-retrieval`` gets besides.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    out: Path
    format: str
    pack: str | None = None
    text_tokenizer: Path | None = None
    text_encoder: Path | None = None


@dataclass(frozen=True)
class ExportResult:
    """What :func:`export` wrote: ``export.json``, and whether it was there already."""

    out: Path
    record: dict[str, object]
    written: bool


def export(config: ExportConfig, progress: Progress) -> ExportResult:
    """Write an export, or find the same one there already.

    Raises:
        UsageError: no such format, or ``out`` is something else.
        DataError: the directory is not finished or damaged, or has no such plan.
    """
    if is_cache(config.directory):
        return _export_cache(config, progress)
    if config.format not in (*FORMATS, HF_TOKENIZER):
        raise UsageError(f"no export format {config.format!r}; there are: {', '.join((*FORMATS, HF_TOKENIZER))}")
    if config.format == HF_TOKENIZER and config.pack is not None:
        raise UsageError("--format hf-tokenizer is of the vocabulary, not of a packing plan: leave out --pack")
    manifest = load_manifest(config.directory)
    what = {"format": "tokkit-export", "version": 1, "to": config.format, "of": manifest.digest, "pack": config.pack}
    if (there := _there(config.out, what)) is not None:
        return there
    licences = _licences(manifest)
    if config.format == HF_TOKENIZER:
        record = {**what, "tokenizers": {kind: entry for kind, entry in licences.items() if kind == "text"}}
        export_tokenizer(config.directory, config.out, manifest, record, progress, config.text_tokenizer)
        return ExportResult(config.out, read_json(config.out / RECORD), True)
    vocabulary = UnifiedVocabulary.load(config.directory / "vocabulary.json")
    splits: dict[str, object] = {}
    with committed_folder(config.out) as temporary:
        for split in manifest.splits:
            folder = temporary / split
            folder.mkdir()
            splits[split] = _split(config, manifest, vocabulary, split, folder, progress)
        if config.format == DATASETS:
            write_dict(list(manifest.splits), temporary)
        (temporary / "vocabulary.json").write_bytes((config.directory / "vocabulary.json").read_bytes())
        record = {**what, "tokenizers": licences, "dtype": manifest.dtype, "splits": splits}
        (temporary / RECORD).write_text(record_json(record))
    return ExportResult(config.out, read_json(config.out / RECORD), True)


def _there(out: Path, what: dict[str, object]) -> ExportResult | None:
    """The same export, where it is there already.

    Raises:
        UsageError: something else is there.
    """
    if not out.exists():
        return None
    record = read_json(out / RECORD) if (out / RECORD).is_file() else None
    if not isinstance(record, dict) or any(record.get(key) != value for key, value in what.items()):
        raise UsageError(f"{out} exists and is not this export; name another --out")
    return ExportResult(out, record, False)


def _licences(manifest: RunManifest) -> dict[str, object]:
    return {kind: {"name": entry.name, "licence": entry.licence} for kind, entry in manifest.tokenizers.items()}


def _export_cache(config: ExportConfig, progress: Progress) -> ExportResult:
    """A feature cache (:mod:`tokkit.pipelines.export_features`)."""
    from tokkit.pipelines.export_features import export_features, texts_of

    if config.pack is not None:
        raise UsageError("--pack is of token shards; a feature cache has no packed sequences")
    manifest = load_cache_manifest(config.directory)
    texts, tower = None, None
    if config.format == "clip-retrieval":
        texts = texts_of(config.directory, manifest, config.text_tokenizer, config.text_encoder)
        tower = None if config.text_encoder is None else config.text_encoder.name
    what = {
        "format": "tokkit-export",
        "version": 1,
        "to": config.format,
        "of": manifest.digest,
        "pack": None,
        "text_encoder": tower,
    }
    if (there := _there(config.out, what)) is not None:
        return there
    with committed_folder(config.out) as temporary:
        splits = export_features(config.directory, config.format, temporary, texts, progress)
        record = {**what, "tokenizers": _licences(manifest), "dtype": manifest.dtype, "splits": splits}
        (temporary / RECORD).write_text(record_json(record))
    return ExportResult(config.out, read_json(config.out / RECORD), True)


def _split(
    config: ExportConfig, manifest: Manifest, vocabulary: UnifiedVocabulary, split: str, folder: Path, progress: Progress
) -> dict[str, object]:
    shards = TokenShards(config.directory, manifest, split)
    tokenizer = manifest.tokenizers["text"].name if "text" in manifest.tokenizers else "tokkit"
    if config.pack is None:
        parts, total = _documents(shards, tokenizer), shards.num_tokens
    else:
        plan = load_plan(pack_folder(config.directory, config.pack, split), shards=shards.fingerprint)
        parts, total = _rows(config, shards, plan, vocabulary, folder, tokenizer), plan.num_packs * plan.record.seq_len
    files: dict[str, object] = {}
    sequences = tokens = 0
    with progress.task(f"export {split}", total=total, unit="tokens") as task:
        for part, paths in FORMATS[config.format](parts, folder):
            for path in paths:
                files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
            if part is not None:
                sequences, tokens = sequences + len(part.lengths), tokens + int(part.lengths.sum())
                task.advance(int(part.lengths.sum()))
    return {"sequences": sequences, "tokens": tokens, "files": files}


# ---- documents


def _documents(shards: TokenShards, tokenizer: str) -> Iterator[Part]:
    """A part a shard."""
    base = shards.directory / "tokens" / shards.split
    first = 0
    learnt = shards.all_learnt()
    for number, shard in enumerate(shards.shards):
        last = first + shard.documents
        yield Part(
            name=f"{number:05d}",
            path=base / shard.files["bin"].name,
            dtype=shards.dtype,
            lengths=shards.lengths[first:last],
            tokenizer=tokenizer,
            table=partial(_names, base / shard.files["parquet"].name),
            loss=_all if learnt else partial(_learnt, shards, first, last),
        )
        first = last


def _names(path: Path) -> pa.Table:
    try:
        return pq.read_table(path, columns=NAMES)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _all() -> None:
    return None


def _learnt(shards: TokenShards, first: int, last: int) -> npt.NDArray[np.bool_]:
    """Whether each token of the documents ``first``..``last`` is to be learnt."""
    lengths, spans = shards.lengths[first:last], shards.spans
    found = np.ones(int(lengths.sum()), dtype=bool)
    begins = np.cumsum(lengths) - lengths
    assert spans.loss is not None  # or all would be learnt
    rows = np.arange(int(spans.offsets[first]), int(spans.offsets[last]))
    document = np.repeat(np.arange(last - first), np.diff(spans.offsets[first : last + 1]))
    for row, begin in zip(rows[~spans.loss[rows]].tolist(), begins[document[~spans.loss[rows]]].tolist(), strict=True):
        start = begin + int(spans.start[row])
        found[start : start + int(spans.length[row])] = False
    return found


# ---- packed rows


def _rows(
    config: ExportConfig, shards: TokenShards, plan: StoredPlan, vocabulary: UnifiedVocabulary, folder: Path, tokenizer: str
) -> Iterator[Part]:
    """One part with all rows: those that are materialised, or else gathered."""
    pad_id, seq_len = vocabulary.marker("padding"), plan.record.seq_len
    assert config.pack is not None  # the caller found the plan by it
    dataset = PackedDataset(config.directory, config.pack, shards.split, modality_ids=False, labels="hf")
    lengths = np.full(plan.num_packs, seq_len, dtype=np.int64)
    rows = load_rows(plan)
    path = plan.folder / "rows" / "rows.bin"
    gathered: Path | None = None
    if rows is None or rows.record.pad_id != pad_id:
        path = gathered = attempt_name(folder / "rows")
        _gather(shards, plan, pad_id, path)
    try:
        yield Part(
            name="00000",
            path=path,
            dtype=shards.dtype,
            lengths=lengths,
            tokenizer=tokenizer,
            seq_len=seq_len,
            fields=partial(_fields, dataset),
            borders=partial(_borders, plan),
            loss=partial(_row_loss, dataset),
        )
    finally:
        if gathered is not None:
            gathered.unlink(missing_ok=True)


def _gather(shards: TokenShards, plan: StoredPlan, pad_id: int, path: Path) -> None:
    seq_len, files = plan.record.seq_len, TokenFiles.of(shards)
    block = np.empty((max(1, BLOCK_BYTES // (seq_len * shards.dtype.itemsize)), seq_len), dtype=shards.dtype)
    with path.open("xb") as file:
        for first in range(0, plan.num_packs, len(block)):
            out = block[: plan.num_packs - first]
            gather_rows(files, plan, first, out, pad_id)
            file.write(out.astype(shards.dtype.newbyteorder("<"), copy=False).data)


def _fields(dataset: PackedDataset, first: int, last: int) -> dict[str, npt.NDArray[np.generic]]:
    names = ("position_ids", "segment_ids", "loss_mask")
    rows = [dataset[n] for n in range(first, last)]
    empty = {"position_ids": np.int32, "segment_ids": np.int32, "loss_mask": np.uint8}
    return {
        name: np.concatenate([row[name].numpy() for row in rows]) if rows else np.zeros(0, dtype=empty[name]) for name in names
    }


def _borders(plan: StoredPlan) -> pa.ListArray:
    offsets = np.asarray(plan.pack_offsets) + np.arange(plan.num_packs + 1)  # of N segments P rows have N + P borders
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(cu_seqlens(plan)))


def _row_loss(dataset: PackedDataset) -> npt.NDArray[np.bool_]:
    rows = [dataset[n]["labels"].numpy() != IGNORED for n in range(len(dataset))]
    return np.concatenate(rows) if rows else np.zeros(0, dtype=bool)
