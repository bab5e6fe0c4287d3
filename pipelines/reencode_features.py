"""``tokkit verify --reencode N`` on a feature cache: text ids, places and features as they are encoded now.

The sampled documents of a unit are written once more as a run writes them, to a folder of their own, and read from there as
from the cache. In the recorded numeric environment every stored byte must be equal. In another one features may differ by
rounding: how many values are equal is told, and by how much the worst item differs; beyond :data:`ROUNDING` it is no rounding.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from tokkit.documents import Document, Failure
from tokkit.errors import DataError, UsageError
from tokkit.features.manifest import CacheManifest
from tokkit.features.store import FOLDER, FeatureCache
from tokkit.features.tables import DOCUMENTS
from tokkit.features.writer import FeatureWriter
from tokkit.interleave import Layout
from tokkit.pipelines.again import go_through
from tokkit.pipelines.features import ENCODER_PACKAGES, SEMANTIC_OPTIONS, FeaturesConfig
from tokkit.pipelines.features_unit import FeatureJob, FeatureProcessor
from tokkit.pipelines.findings import Agreement, Code, VerifyResult
from tokkit.pipelines.fingerprint import numeric_environment
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.recorded import recorded_job, tokenizer_now
from tokkit.pipelines.reencode import Reencoder, as_options
from tokkit.pipelines.verify_read import DocumentReader
from tokkit.shards.manifest import Shard, Split
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    import torch

ROUNDING = 0.05  # the largest root mean square difference of an item, relative to its own, that may come of rounding
_AGAIN = "again"  # the only split of what is written once more
_NOT_COMPARED = ("bytes",)  # of a document's row: where its items' alignment falls depends on what stands before


@dataclass(frozen=True, eq=False)
class Cached:
    """A document of a cache: its number there, and its row."""

    cache: FeatureCache
    number: int
    row: dict[str, Any]


class CacheReader(FeatureCache):
    """A split of a cache whose documents' rows are read one by one."""

    def __init__(self, directory: Path, manifest: CacheManifest, split: str) -> None:
        super().__init__(directory, manifest, split)
        shards = manifest.splits[split].shards
        self._rows = DocumentReader(directory, split, shards, FOLDER, "documents.parquet")

    def row(self, number: int) -> dict[str, Any]:
        """A document's row of its table."""
        return self._rows.row(number)


class FeatureReencoder(Reencoder[CacheManifest]):
    """See :class:`~tokkit.pipelines.reencode.Reencoder`."""

    processor: FeatureProcessor

    def media(self) -> tuple[bool, bool]:
        return self.manifest.modality == "audio", True

    def options(self, batch_size: object) -> FeaturesConfig:
        job = recorded_job(self.config)
        if not isinstance(job.get("options"), dict):
            path = self.config.directory / "run" / "job.json"
            raise UsageError(
                f"what was taken of the encoder is written in {path} only, which is gone: restore it to encode again"
            )
        encoder = self.config.encoder or job.get("encoder")
        if not isinstance(encoder, str):
            raise UsageError("the encoder is not known: name it with --encoder")
        if os.sep in encoder and not Path(encoder).exists():
            raise UsageError(f"the encoder is not at {encoder}, where the run had it; name it with --encoder")
        options = self.recorded(SEMANTIC_OPTIONS, batch_size)
        options |= {"text_tokenizer": tokenizer_now(self.config, "text"), "encoder": encoder, "options": job["options"]}
        return as_options(FeaturesConfig, options)

    def load(self) -> FeatureProcessor:
        options = cast(FeaturesConfig, self.run_options)
        vocabulary = UnifiedVocabulary.build(self.manifest.text_vocab_size, [])
        processor = FeatureJob(options, {}, vocabulary, Layout("plain"), str(self.device), "").open()
        assert processor.batches is not None  # there are no encoder processes
        loaded: dict[str, tuple[object, Any]] = {
            "text": (options.text_tokenizer, processor.text),
            "encoder": (options.encoder, processor.batches.encoder),
        }
        for kind, (path, tokenizer) in loaded.items():
            expected = self.manifest.tokenizers[kind].fingerprint
            if tokenizer.fingerprint != expected:
                named = "encoder" if kind == "encoder" else f"{kind} tokenizer"
                raise DataError(f"{path} is not the {named} that this cache was made with ({expected[:12]})")
        return processor

    def environment(self, device: torch.device | None, sounds: bool) -> dict[str, object]:
        packages = {*self.packages(), *ENCODER_PACKAGES}
        options = self.run_options
        mode = (options.precision, options.acceleration)
        return numeric_environment(device, options.batch_size, "library", packages, *mode, sounds)

    def reader(self, split: str) -> CacheReader:
        return CacheReader(self.config.directory, self.manifest, split)

    def comparison(self, result: VerifyResult) -> FeatureTally:
        return FeatureTally(result)

    def stored(self, reader: CacheReader, number: int, row: dict[str, Any]) -> Cached:
        return Cached(reader, number, row)

    def again(
        self, planned: PlannedUnit, documents: Iterator[Document], duplicates: Mapping[str, Mapping[int, Failure]]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        self._written = TemporaryDirectory(prefix="tokkit-again-")  # stays until the next unit's
        base = Path(self._written.name) / FOLDER / _AGAIN
        base.mkdir(parents=True)
        attempt = self.processor.attempt(planned, lambda work: None)
        with FeatureWriter(base) as writer:
            attempt.keep_in(writer)
            refused = go_through(attempt, documents, duplicates)
            shard = Shard(documents=writer.documents, tokens=writer.tokens + writer.features, files=writer.finish("00000"))
        split = Split(documents=shard.documents, tokens=shard.tokens, tokens_by_kind={}, shards=[shard])
        cache = CacheReader(base.parents[1], self.manifest.model_copy(update={"splits": {_AGAIN: split}}), _AGAIN)
        rows = [cache.row(number) for number in range(shard.documents)]
        return {str(row["locator"]): Cached(cache, number, row) for number, row in enumerate(rows)}, refused


class FeatureTally:
    """Compares documents of caches one by one, and adds up; problems go to ``result``."""

    def __init__(self, result: VerifyResult) -> None:
        self._result = result
        self.documents = 0
        self._tokens = self._values = self._equal = self._exact = 0
        self._worst: tuple[float, str] = (0.0, "")

    def compare(self, name: str, stored: Cached, again: Cached, *, exact: bool) -> None:
        """Compare a document; ``exact``: both were encoded in one numeric environment, so that every byte must be equal."""
        self.documents += 1
        self._exact += exact
        self._tokens += int(stored.row["tokens"]) + int(stored.row["features"])
        for column in DOCUMENTS.names:
            if column not in _NOT_COMPARED and stored.row[column] != again.row[column]:
                self._problem(name, f"its {column} is {stored.row[column]!r:.60}, encoded again {again.row[column]!r:.60}")
        pair = stored.cache.document(stored.number), again.cache.document(again.number)
        ids = pair[0].ids, pair[1].ids
        shorter = min(len(ids[0]), len(ids[1]))
        if (wrong := np.flatnonzero(ids[0][:shorter] != ids[1][:shorter])).size:
            at = int(wrong[0])
            self._problem(name, f"text id {at} is {int(ids[0][at])}, encoded again {int(ids[1][at])}")
        for place, (first, second) in enumerate(zip(pair[0].items, pair[1].items, strict=False)):
            self._item(f"{name}, item {place}", (stored.cache, first), (again.cache, second), exact)

    def _item(self, name: str, stored: tuple[FeatureCache, int], again: tuple[FeatureCache, int], exact: bool) -> None:
        """Compare an item, each in its cache."""
        entries = [
            {k: v for k, v in asdict(cache.entry(number)).items() if k not in ("index", "document", "error")}
            for cache, number in (stored, again)
        ]
        for field, there in entries[0].items():
            if there != entries[1][field]:
                self._problem(name, f"its {field} is {there!r:.60}, encoded again {entries[1][field]!r:.60}")
        if entries[0]["length"] != entries[1]["length"]:
            return
        values = [cache.features(number) for cache, number in (stored, again)]
        scales = [cache.scales(number) for cache, number in (stored, again)]
        pooled = [cache.pooled(number) for cache, number in (stored, again)]
        same = all(_equal(*two) for two in (values, scales, pooled))
        self._values += values[0].size
        self._equal += int((values[0] == values[1]).sum())
        if same:
            return
        dense = [cache.dense(number).astype(np.float64) for cache, number in (stored, again)]
        difference = max(_difference(*dense), _difference(*pooled))
        if difference >= self._worst[0]:
            self._worst = difference, name
        if exact or difference > ROUNDING:
            count = int((values[0] != values[1]).sum())
            beyond = "" if exact else ", which is more than rounding"
            self._problem(name, f"{count:,} of {values[0].size:,} values differ, by {difference:.2%} of their size{beyond}")

    def agreement(self, units: int, read: int, differences: list[str]) -> Agreement:
        """What it all came to; values of features count as codes do."""
        return Agreement(
            documents=self.documents,
            tokens=self._tokens,
            codes=self._values,
            equal_codes=self._equal,
            lowest=self._worst[0],
            lowest_document=self._worst[1],
            units_read=units,
            unit_bytes=read,
            exact=self._exact,
            differences=differences,
            of_features=True,
        )

    def _problem(self, name: str, message: str) -> None:
        self._result.problem(Code.REENCODE, name, message)


def _equal(first: Any, second: Any) -> bool:
    """Whether both are arrays of the same values, or both None."""
    return first is second or (first is not None and second is not None and np.array_equal(first, second))


def _difference(first: Any, second: Any) -> float:
    """Root mean square difference, relative to that of the first; infinite where only one is there."""
    if first is None or second is None:
        return 0.0 if first is second else float("inf")
    power = float(np.square(first, dtype=np.float64).sum())
    apart = float(np.square(np.subtract(first, second, dtype=np.float64)).sum())
    return float(np.sqrt(apart / power)) if power else (float("inf") if apart else 0.0)
