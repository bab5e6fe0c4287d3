"""``tokkit verify --reencode N`` on token shards: ids, spans and rows as they are encoded now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tokkit.documents import Document, Failure
from tokkit.errors import DataError
from tokkit.pipelines.compare import Encoded, Tally
from tokkit.pipelines.findings import VerifyResult
from tokkit.pipelines.fingerprint import numeric_environment
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.prepare import SEMANTIC_OPTIONS
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.recorded import tokenizer_now
from tokkit.pipelines.reencode import Reencoder, as_options
from tokkit.pipelines.resolution import OPTIONS
from tokkit.pipelines.sounds import sound_batch
from tokkit.pipelines.verify_read import DocumentReader
from tokkit.shards.manifest import Manifest
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    import torch

    from tokkit.pipelines.shard import ShardConfig
    from tokkit.pipelines.unit import UnitProcessor
    from tokkit.pipelines.verify import VerifyConfig


class TokenReencoder(Reencoder[Manifest]):
    """See :class:`~tokkit.pipelines.reencode.Reencoder`; ``vocabulary`` is the output's."""

    def __init__(self, config: VerifyConfig, manifest: Manifest, vocabulary: UnifiedVocabulary, progress: Progress) -> None:
        self.vocabulary = vocabulary
        super().__init__(config, manifest, progress)

    def media(self) -> tuple[bool, bool]:
        sounds = "audio" in self.manifest.tokenizers
        return sounds, sounds or "image" in self.manifest.tokenizers

    def options(self, batch_size: object) -> ShardConfig:
        from tokkit.pipelines.shard import ShardConfig

        options = self.recorded(SEMANTIC_OPTIONS.union(OPTIONS), batch_size)
        if "audio" in self.manifest.tokenizers:
            options["audio_batch_size"] = self.manifest.numeric.get("audio_batch_size", 1)
        options |= {f"{kind}_tokenizer": tokenizer_now(self.config, kind) for kind in self.manifest.tokenizers}
        return as_options(ShardConfig, options)

    def load(self) -> UnitProcessor:
        from tokkit.pipelines.unit import UnitJob, UnitProcessor

        job = UnitJob(self.run_options, {}, self.vocabulary, self.manifest.layout.layout, str(self.device), "")
        processor = UnitProcessor(job)
        audio = processor.sounds.tokenizer if processor.sounds is not None else None
        image = processor.image.tokenizer if processor.image is not None else None
        loaded: dict[str, Any] = {"text": processor.text, "image": image, "audio": audio}
        for kind, entry in self.manifest.tokenizers.items():
            path = getattr(self.run_options, f"{kind}_tokenizer", None)
            if loaded.get(kind) is None or loaded[kind].fingerprint != entry.fingerprint:
                raise DataError(
                    f"{path} is not the {kind} tokenizer that these shards were made with ({entry.fingerprint[:12]})"
                )
        return processor

    def environment(self, device: torch.device | None, sounds: bool) -> dict[str, object]:
        options = self.run_options
        mode = (options.precision, options.acceleration)
        clips = sound_batch(options, str(self.device)) if sounds else 1
        return numeric_environment(device, options.batch_size, "library", self.packages(), *mode, sounds, clips)

    def reader(self, split: str) -> DocumentReader:
        return DocumentReader(self.config.directory, split, self.manifest.splits[split].shards)

    def comparison(self, result: VerifyResult) -> Tally:
        return Tally(self.vocabulary, result)

    def stored(self, reader: DocumentReader, number: int, row: dict[str, Any]) -> Encoded:
        return Encoded(reader.tokens(number), row)

    def again(
        self, planned: PlannedUnit, documents: Iterator[Document], duplicates: Mapping[str, Mapping[int, Failure]]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        from tokkit.pipelines.again import encode_again

        encoded, refused = encode_again(self.processor, planned, documents, duplicates)
        return {str(row["locator"]): Encoded(ids, row) for ids, row in encoded}, refused
