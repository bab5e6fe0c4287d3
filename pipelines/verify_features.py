"""``tokkit verify`` on a feature cache: the same questions as of token shards, and those that features bring.

Files, fingerprints, outcomes, names and order are checked as they are for token shards. Of each shard the four files must
agree: documents, ids and items follow one another without gaps, each item lies where the index says and is as long as its
shape and form ask for, its place is in its document, its rasters within its tokens; every stored value is finite.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.errors import TokkitError
from tokkit.features.manifest import CacheManifest, load_cache_manifest
from tokkit.features.precision import DTYPES
from tokkit.features.store import FOLDER, FeatureCache
from tokkit.features.tables import DOCUMENTS, ITEMS, ROW_GROUP
from tokkit.features.writer import ALIGNMENT, SUFFIXES, TOKEN_DTYPE
from tokkit.pipelines.features_shards import feature_totals
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.pipelines.progress import Progress, Task
from tokkit.pipelines.reencode import NOT_ENCODED_AGAIN
from tokkit.pipelines.reencode_features import FeatureReencoder
from tokkit.pipelines.verify_files import check_digest, check_files, check_fingerprints, check_folder
from tokkit.pipelines.verify_once import Once
from tokkit.pipelines.verify_originals import check_originals
from tokkit.pipelines.verify_outcomes import Records, check_sums, check_units, read_records
from tokkit.pipelines.verify_tokens import REFERENCE, RowsChecker, UnitSums
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import Shard, Split
from tokkit.vocabulary import MODALITIES

if TYPE_CHECKING:
    from tokkit.pipelines.verify import VerifyConfig

BLOCK = 8 << 20  # bytes of features looked at in one go


def verify_cache(config: VerifyConfig, progress: Progress) -> VerifyResult:
    """Check a feature cache; every problem is in the result. Raises as :func:`tokkit.pipelines.verify.verify`."""
    directory, result = config.directory, VerifyResult()
    manifest = _read_manifest(directory, result)
    if manifest is None:
        return result
    again = FeatureReencoder(config, manifest, progress) if config.reencode else None
    damaged = check_files(directory, manifest, config.checksums, result, progress, FOLDER)
    check_fingerprints(directory, manifest, result)
    with Once(sum(n for n in manifest.documents.values() if n > 0)) as once:
        records = read_records(directory, manifest, once, result)
        check_folder(directory / "commits", {f"{i:05d}.json" for i in range(manifest.units)}, manifest.commits, result)
        check_folder(directory / "rejects", records.lists, manifest.rejects, result, records.unknown)
        check_sums(manifest, records, result)
        whole = _shards(directory, manifest, records, damaged, once, result, progress)
        for references in once.repeated():
            named = ", ".join(_name(manifest, reference) for reference in references[:5])
            result.problem(Code.DUPLICATE_DOCUMENT, _name(manifest, references[0]), f"one document, several times: {named}")
        result.look("document names compared", once.count)
    if whole and records.complete and not result.problem_count:

        def names(split: str) -> Iterator[pa.Table]:
            return FeatureCache(directory, manifest, split).document_tables(["source", "locator"])

        check_originals(directory, manifest, names, result)
    if again is not None and whole and records.complete:
        again.run(records, result, progress)
    elif config.reencode:
        result.skipped.append(NOT_ENCODED_AGAIN)
    return result


def _read_manifest(directory: Path, result: VerifyResult) -> CacheManifest | None:
    path = directory / MANIFEST
    if not path.exists():
        result.problem(Code.UNFINISHED, MANIFEST, "not there: the run is not finished, or the file was lost")
        return None
    try:
        manifest = load_cache_manifest(directory)
        text = path.read_bytes()
    except (TokkitError, OSError) as error:
        result.problem(Code.MANIFEST, MANIFEST, str(error).replace(f"{directory}/", ""))
        return None
    check_digest(path, text, result)
    wrong = list(_contradictions(manifest))
    for problem in wrong:
        result.problem(Code.MANIFEST, MANIFEST, problem)
    result.look("manifest")
    return None if wrong else manifest


def _contradictions(manifest: CacheManifest) -> Iterator[str]:
    """What a manifest says that no run can have written, and that would lead later checks astray."""
    if manifest.units < 0 or manifest.dim < 0 or manifest.text_vocab_size < 1:
        yield f"{manifest.units} work units, features of {manifest.dim}, {manifest.text_vocab_size} text ids"
    if manifest.splits.keys() != manifest.features.keys():
        yield f"splits {', '.join(manifest.splits)}, and totals of {', '.join(manifest.features)}"
    for name, split in manifest.splits.items():
        if name not in ("train", "val"):
            yield f"a split {name!r}"
        for number, shard in enumerate(split.shards):
            expected = {suffix: f"{number:05d}.{suffix}" for suffix in SUFFIXES}
            if {suffix: file.name for suffix, file in shard.files.items()} != expected:
                yield f"shard {number} of {name} has other files than {', '.join(expected.values())}"


def _name(manifest: CacheManifest, reference: int) -> str:
    splits = list(manifest.splits)
    if reference // REFERENCE < len(splits):
        return f"{splits[reference // REFERENCE]} document {reference % REFERENCE}"
    return "a reject line"


def _shards(
    directory: Path,
    manifest: CacheManifest,
    records: Records,
    damaged: set[str],
    once: Once,
    result: VerifyResult,
    progress: Progress,
) -> bool:
    """Check every shard that can be; returns whether all could be."""
    fraction = manifest.semantic.get("val_fraction")
    sums, whole = UnitSums(manifest.units), True
    for number, (split, entry) in enumerate(manifest.splits.items()):
        checker = CacheChecker(
            directory=directory,
            split=split,
            number=number,
            places=records.places,
            val_fraction=float(fraction) if isinstance(fraction, int | float) else 0.0,
            sums=sums,
            once=once,
            result=result,
            manifest=manifest,
        )
        first, sound = 0, True
        with progress.task(f"features of {split}", total=_megabytes(entry), unit="MB") as task:
            for index, shard in enumerate(entry.shards):
                names = {f"{FOLDER}/{split}/{index:05d}.{suffix}" for suffix in SUFFIXES}
                if names & damaged or not checker.check(index, shard, first, task):
                    result.skipped.append(f"the contents of {FOLDER}/{split}/{index:05d}: the shard is damaged")
                    sound = False
                first += shard.documents
        if sound and feature_totals(directory, split, entry) != manifest.features[split]:
            result.problem(Code.OUTCOMES, f"split {split}", "its features add up to something else than the manifest says")
        whole = whole and sound
    if whole and records.complete:
        check_units(records, sums, result)
    elif not whole:
        result.skipped.append("each unit's documents and features: not all shards could be counted")
    return whole


@dataclass(eq=False)
class CacheChecker(RowsChecker):
    """Checks the shards of a split of a feature cache, one after another."""

    manifest: CacheManifest

    def check(self, number: int, shard: Shard, first: int, task: Task) -> bool:
        """Check shard ``number``, whose first document is number ``first`` of the split; whether it could be counted."""
        base, self._where = self.directory / FOLDER / self.split, f"{FOLDER}/{self.split}/{number:05d}"
        before = self.result.problem_count
        try:
            documents = self._table(base / shard.files["documents.parquet"].name, DOCUMENTS)
            items = self._table(base / shard.files["parquet"].name, ITEMS)
            if documents is None or items is None:
                return False
            documents.validate(full=True)
            items.validate(full=True)
            ids = _mapped(base / shard.files["tokens.bin"].name, TOKEN_DTYPE)
            data = _mapped(base / shard.files["bin"].name, np.dtype("u1"))
        except (OSError, ValueError, pa.ArrowException) as error:
            self.result.problem(Code.UNREADABLE, self._where, f"cannot be read: {error}".replace(f"{self.directory}/", ""))
            return False
        self._fit(shard, documents, items, ids, data)
        if self.result.problem_count > before:
            return False
        self._of_units(documents, items, first)
        self._texts(documents, ids, first)
        self._items(documents, items, data, task)
        return True

    def _table(self, path: Path, schema: pa.Schema) -> pa.Table | None:
        with pq.ParquetFile(path) as file:
            groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
            if not file.schema_arrow.equals(schema):
                self.result.problem(Code.TABLE, path.name, "its columns are not those of its kind of table")
                return None
            if any(rows != ROW_GROUP for rows in groups[:-1]) or any(rows > ROW_GROUP for rows in groups[-1:]):
                self.result.problem(Code.TABLE, path.name, f"its row groups are not of {ROW_GROUP:,} rows each")
            return file.read()

    def _fit(self, shard: Shard, documents: pa.Table, items: pa.Table, ids: npt.NDArray, data: npt.NDArray) -> None:
        """The four files against one another and the manifest."""
        counts = {name: int(_numbers(documents, name).sum()) for name in ("tokens", "items", "features", "bytes")}
        for what, found, said in (
            ("documents in the table and in the manifest", documents.num_rows, shard.documents),
            ("text ids in the documents and in .tokens.bin", counts["tokens"], len(ids)),
            ("items in the documents and in the index", counts["items"], items.num_rows),
            ("bytes of the documents and of .bin", counts["bytes"], len(data)),
            ("tokens in the documents and in the manifest", counts["tokens"] + counts["features"], shard.tokens),
        ):
            if found != said:
                self.result.problem(Code.INDEX_MISMATCH, self._where, f"{what}: {found:,} and {said:,}")
        document, offset, size = (_numbers(items, name) for name in ("document", "offset", "bytes"))
        owner = np.repeat(np.arange(documents.num_rows), _numbers(documents, "items"))
        if len(owner) == len(document) and not np.array_equal(owner, document):
            self.result.problem(
                Code.INDEX_MISMATCH, self._where, "items do not stand in the order and number of their documents"
            )
        if not np.array_equal(offset, np.cumsum(size) - size):
            self.result.problem(Code.INDEX_MISMATCH, self._where, "items do not follow one another in .bin")

    def _of_units(self, documents: pa.Table, items: pa.Table, first: int) -> None:
        """What the table says of documents, and what each unit comes to."""
        row = 0
        for batch in documents.to_batches(ROW_GROUP):
            self._rows(batch, first + row)
            row += batch.num_rows
        unit = _numbers(documents, "unit")
        if not len(unit) or unit.min() < 0 or unit.max() >= self.sums.units:
            return
        for sums, shape in (
            (self.sums.documents, (self.sums.units,)),
            (self.sums.marker, (self.sums.units,)),
            (self.sums.gaps, (self.sums.units,)),
            (self.sums.tokens, (self.sums.units, len(MODALITIES))),
            (self.sums.spans, (self.sums.units, len(MODALITIES))),
        ):
            if self.split not in sums:
                sums[self.split] = np.zeros(shape, dtype=np.int64)
        np.add.at(self.sums.documents[self.split], unit, 1)
        np.add.at(self.sums.tokens[self.split][:, 0], unit, _numbers(documents, "tokens"))
        modality = MODALITIES.index(self.manifest.modality)
        np.add.at(self.sums.tokens[self.split][:, modality], unit, _numbers(documents, "features"))
        there = _numbers(items, "bytes") > 0
        of_item = unit[_numbers(items, "document")]
        np.add.at(self.sums.spans[self.split][:, modality], of_item[there], 1)
        np.add.at(self.sums.gaps[self.split], of_item[~there], 1)

    def _texts(self, documents: pa.Table, ids: npt.NDArray, first: int) -> None:
        """Text ids in their range, and given stretches within their documents."""
        ends = np.cumsum(_numbers(documents, "tokens"))
        wrong = np.flatnonzero((ids < 0) | (ids >= self.manifest.text_vocab_size))
        if wrong.size:
            number = int(np.searchsorted(ends, wrong[0], side="right"))
            message = f"text id {ids[wrong[0]]}, the tokenizer has {self.manifest.text_vocab_size:,}"
            self.result.problem(Code.ID_RANGE, self._document(first + number), message)
        for number, stretches in enumerate(documents.column("given").to_pylist()):
            end = 0
            for stretch in stretches:
                if stretch["start"] < end or stretch["length"] < 1:
                    self.result.problem(Code.SPAN, self._document(first + number), f"given ids {stretch} overlap or are none")
                end = stretch["start"] + stretch["length"]
            if end > documents.column("tokens")[number].as_py():
                self.result.problem(Code.SPAN, self._document(first + number), "given ids reach beyond its text")
        self.result.look("documents", documents.num_rows)
        self.result.look("text ids", len(ids))

    def _items(self, documents: pa.Table, items: pa.Table, data: npt.NDArray, task: Task) -> None:
        tokens = _numbers(documents, "tokens")
        for number, row in enumerate(items.to_pylist()):
            where = f"{self._where} item {number}"
            for problem in self._shape(row, int(tokens[row["document"]])):
                self.result.problem(Code.FEATURES, where, problem)
                break
            else:
                if not _finite(row, data):
                    self.result.problem(Code.FEATURES, where, "has values that are not finite")
            task.advance(row["bytes"] / 1e6)
        self.result.look("items", items.num_rows)

    def _shape(self, row: dict, tokens: int) -> Iterator[str]:
        """What is wrong with an item's row."""
        manifest, length = self.manifest, row["length"]
        if row["modality"] != manifest.modality or row["dtype"] != manifest.dtype:
            yield f"is {row['modality']} in {row['dtype']}, the cache {manifest.modality} in {manifest.dtype}"
        if not 0 <= row["position"] <= tokens:
            yield f"stands before text id {row['position']} of {tokens}"
        if not row["bytes"]:
            if length or row["scale"] is not None or row["pooled"] is not None:
                yield "has no bytes, and a length"
            return
        if row["dim"] != manifest.dim:
            yield f"has features of {row['dim']}, the cache of {manifest.dim}"
        values = _aligned(length * row["dim"] * DTYPES[manifest.dtype].itemsize)
        scales = _aligned(4 * length) if manifest.dtype == "int8" else 0
        pooled = _aligned(2 * row["pooled_dim"]) if row["pooled"] is not None else 0
        if row["bytes"] != values + scales + pooled:
            yield f"has {row['bytes']:,} bytes, {values + scales + pooled:,} by its shape"
        if manifest.dtype == "int8" and row["scale"] != row["offset"] + values:
            yield "has its scales at another place than behind its values"
        if row["pooled"] is not None and row["pooled"] != row["offset"] + values + scales:
            yield "has its pooled embedding at another place than its end"
        for tile in row["tiles"]:
            if min(tile.values()) < 0 or tile["first"] + tile["rows"] * tile["columns"] > length:
                yield f"has a raster {tile} beyond its {length} tokens"
        newlines = row["newlines"] or []
        if sorted(newlines) != newlines or any(not 0 <= place <= length for place in newlines):
            yield "has newlines out of order, or beyond its tokens"


def _megabytes(split: Split) -> float:
    return sum(shard.files["bin"].bytes for shard in split.shards) / 1e6


def _numbers(table: pa.Table, name: str) -> npt.NDArray[np.int64]:
    return table.column(name).to_numpy().astype(np.int64)


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _mapped(path: Path, dtype: np.dtype) -> npt.NDArray:
    return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray) if path.stat().st_size else np.zeros(0, dtype=dtype)


def _finite(row: dict, data: npt.NDArray[np.uint8]) -> bool:
    """Whether every number that an item stores is finite."""
    begin, end = row["offset"], row["offset"] + row["bytes"]
    parts: list[tuple[int, int, str]] = []
    if row["dtype"] == "int8":
        if row["scale"] is not None:  # an item of which only the place is kept has none
            parts.append((row["scale"], row["scale"] + 4 * row["length"], "<f4"))
    else:
        parts.append((begin, begin + 2 * row["length"] * row["dim"], "<f2" if row["dtype"] == "fp16" else "<u2"))
    if row["pooled"] is not None:
        kind = "<u2" if row["dtype"] == "bf16" else "<f2"
        parts.append((row["pooled"], row["pooled"] + 2 * row["pooled_dim"], kind))
    for start, stop, kind in parts:
        if stop > end:
            return False
        for low in range(start, stop, BLOCK):
            values = data[low : min(low + BLOCK, stop)].view(kind)
            if not ((values & 0x7F80) != 0x7F80 if kind == "<u2" else np.isfinite(values)).all():
                return False
    return True
