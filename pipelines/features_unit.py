"""One unit of a feature cache: as a unit of token shards (:mod:`tokkit.pipelines.unit`), but media become a frozen encoder's
features, and a document its text ids with the places at which the features go.

Reading, admission, outcomes, batches and the commit are those of every unit. Features are brought to their stored form as soon
as they are encoded, so that what waits for its document is small.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.documents import Audio, Document, Failure, Outcome
from tokkit.errors import ItemError
from tokkit.features.writer import DocumentEntry, FeatureWriter, Item
from tokkit.interleave import TextCodes
from tokkit.pipelines.assembly import Joined, Pending, Slot, join_texts, made_of_sound, open_picture
from tokkit.pipelines.attempt import Attempt
from tokkit.pipelines.batching import BatchEncoder, Encodes, ImageBatcher, LocalEncoder
from tokkit.pipelines.features_batches import Encoded, FeatureBatches, Intake, StoringEncoder, load_features
from tokkit.pipelines.ledger import SplitCounts, sorted_counts
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.sounds import SoundReader
from tokkit.pipelines.texts import encode_texts_of
from tokkit.pipelines.unit import UnitJob, UnitProcessor
from tokkit.pipelines.work import Report
from tokkit.pipelines.writing import DocumentWriter, PayloadWriter

if TYPE_CHECKING:
    from tokkit.pipelines.features import FeaturesConfig


def sound_reader(intake: Intake, config: FeaturesConfig) -> SoundReader | None:
    """What decodes sounds for an encoder; None where it takes none."""
    if intake.modality != "audio" or intake.sample_rate is None:
        return None
    return SoundReader(intake.sample_rate, 1, config.audio_preprocessing, config.audio_limits)


@dataclass(frozen=True)
class FeatureJob(UnitJob):
    """Everything a worker needs to do units of a feature cache; picklable, the encoder is loaded in the worker.

    Attributes:
        encoders: the encoder processes that encode; without one the worker loads the encoder.
        intake: what the encoder takes, for workers that do not load it.
    """

    intake: Intake | None = None

    def open(self) -> FeatureProcessor:
        """Load the text tokenizer and the encoder."""
        return FeatureProcessor(self)


class FeatureProcessor(UnitProcessor):
    """Does units of a feature cache, one after another, in one process.

    Attributes:
        batches: the encoder, where this process has one.
        intake: what it takes.
    """

    config: FeaturesConfig

    def __init__(self, job: FeatureJob) -> None:
        super().__init__(job)
        self.batches: FeatureBatches | None = None
        if job.encoders and job.intake is not None:
            self.intake = job.intake
        else:
            self.batches = load_features(self.config, job.device, job.fingerprints.get("encoder"))
            self.encodes, self.intake = cast(Encodes, self.batches), Intake.of(self.batches.encoder)

    def batcher(self, index: int, alive: Callable[[], None]) -> ImageBatcher:
        encoder: BatchEncoder
        if self.encodes is None:
            from tokkit.pipelines.encoder_client import RemoteEncoder

            encoder = RemoteEncoder(self.job.encoders[index % len(self.job.encoders)], alive, list)
        else:
            encoder = LocalEncoder(self.encodes, self.config.batch_size)
        storing = StoringEncoder(encoder, self.config.dtype, self.intake.modality)
        return ImageBatcher(cast(BatchEncoder, storing), self.config.batch_size)

    def attempt(self, planned: PlannedUnit, report: Report, only: range | None = None) -> FeatureAttempt:
        return FeatureAttempt(self, planned, report, only)


class FeatureAttempt(Attempt):
    """The state of one attempt at one unit of a feature cache."""

    sounds_at_once: ClassVar[bool] = False
    processor: FeatureProcessor
    config: FeaturesConfig

    @contextmanager
    def payload(self) -> Iterator[PayloadWriter]:
        with FeatureWriter(self.processor.ledger.payloads) as shard:
            self.keep_in(shard)
            yield shard

    def keep_in(self, shard: FeatureWriter) -> None:
        """Where the documents go."""
        self.features = FeatureDocumentWriter(self.config, self.planned.index, shard)

    def counts(self) -> dict[str, SplitCounts]:
        return self.features.counts()

    def decode(self, slot: Slot) -> npt.NDArray[np.uint8] | None:
        """The item as the encoder takes it (not pixels but views), or None with the slot's failure set."""
        intake = self.processor.intake
        modality = "audio" if isinstance(slot.media, Audio) else "image"
        if modality != intake.modality:
            message = f"this run's encoder takes {intake.modality} only"
            slot.failure = Failure(Outcome.FILTERED, f"no-{modality}-encoder", message)
            return None
        media = self.waveform(slot) if modality == "audio" else open_picture(slot, True, self.config.image_limits)
        if media is None:
            return None
        try:
            return cast("npt.NDArray[np.uint8]", intake.preparer.prepare(media))
        except ItemError as error:
            slot.failure = Failure(Outcome.REJECTED, error.reason, error.message)
            return None

    def waveform(self, slot: Slot) -> npt.NDArray[np.float32] | None:
        """A sound as float32 ``[samples]`` at the encoder's rate, or None with the slot's failure set."""
        reader = sound_reader(self.processor.intake, self.config)
        assert reader is not None  # the encoder takes sounds

        def heard(media: Audio) -> npt.NDArray[np.float32]:
            chunks = []
            for chunk in reader.chunks(media):
                chunks.append(chunk)
                self.alive()
            return np.concatenate(chunks, axis=1)[0]

        return made_of_sound(slot, heard)

    def compose(self, batch: Sequence[Pending]) -> None:
        """Write documents whose features are all there, but for those that cannot be stored or have a text without ids."""
        joined = [join_texts(p.segments, self.config.text_joiner, self.config.missing_image) for p in batch]
        try:
            written = self.entries(batch, joined)
        except ItemError:  # a text without ids: each document by itself
            written = []
            for pending, parts in zip(batch, joined, strict=True):
                try:
                    written += self.entries([pending], [parts])
                except ItemError as error:
                    self.withdraw(pending, Failure(Outcome.REJECTED, error.reason, error.message))
        if not written:
            return
        with self.stage("write"):
            kinds = self.features.write_entries([pending for pending, _ in written], [entry for _, entry in written])
        self.tally.committed(len(written))
        if self.config.missing_image == "keep-marker":
            self.tally.kept_markers += sum(slot.missing for pending, _ in written for slot in pending.slots)
        self.rejected_in_a_row = 0
        self.work.kinds.update(kinds)

    def entries(self, batch: Sequence[Pending], joined: Sequence[Sequence[Joined]]) -> list[tuple[Pending, DocumentEntry]]:
        """Documents as they are written; one with features that cannot be stored is withdrawn.

        Raises:
            ItemError: one of them has a text without ids.
        """
        with self.stage("text"):
            encoded_texts = encode_texts_of(joined, self.processor.text)
        found = []
        for pending, parts in zip(batch, encoded_texts, strict=True):
            try:
                found.append((pending, self.entry(pending, parts)))
            except ItemError as error:
                self.withdraw(pending, Failure(Outcome.REJECTED, error.reason, error.message))
        return found

    def entry(self, pending: Pending, parts: Sequence[TextCodes | Slot]) -> DocumentEntry:
        """A document's ids, given stretches and items, each with its place; raises ItemError where an item cannot be stored."""
        numbers = {id(slot): number for number, slot in enumerate(pending.slots)}
        items, given, position = [], [], 0
        for part in parts:
            if isinstance(part, TextCodes):
                length = len(part.codes)
                if not part.loss and length:
                    given.append((position, length))
                position += length
                continue
            place = numbers[id(part)]
            if part.missing:
                items.append(Item(place, self.processor.intake.modality, "", position, dtype=self.config.dtype))
                continue
            encoded = cast(Encoded, part.codes)
            if encoded.item is None:
                assert encoded.error is not None
                raise encoded.error
            items.append(replace(encoded.item, number=place, hash=part.media.hash, position=position))
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *(part.codes for part in parts if isinstance(part, TextCodes))])
        return DocumentEntry(self.features.row(pending.document), ids, items, given)


class _NoTokens:
    """Where a document's token ids would go, if they did not go beside its features."""

    def extend(self, ids: npt.NDArray[np.integer], table: pa.Table) -> None:
        raise NotImplementedError


class FeatureDocumentWriter(DocumentWriter):
    """Writes one unit's documents with their features."""

    def __init__(self, config: FeaturesConfig, unit: int, shard: FeatureWriter) -> None:
        super().__init__(config, unit, _NoTokens())
        self._shard = shard

    def row(self, document: Document) -> dict[str, object]:
        """The columns of the document table that say what a document is."""
        return {
            "id": document.id,
            "source": document.source,
            "locator": document.locator,
            "unit": self._unit,
            "split": self._split_of(document),
            "hash": document.hash,
            "metadata": self._metadata_of(document),
        }

    def write_entries(self, batch: Sequence[Pending], entries: Sequence[DocumentEntry]) -> Counter[str]:
        """Write documents in order; returns their text ids and feature tokens by modality."""
        self._shard.add(entries)
        total: Counter[str] = Counter()
        for entry in entries:
            tally = self._splits[str(entry.row["split"])]
            tally.documents += 1
            kinds = Counter({"text": len(entry.ids)})
            for item in entry.items:
                kinds[item.modality] += item.length
            tally.kinds.update(kinds)
            total.update(kinds)
        return +total

    def counts(self) -> dict[str, SplitCounts]:
        return {
            name: SplitCounts(documents=t.documents, tokens=t.kinds.total(), tokens_by_kind=sorted_counts(+t.kinds))
            for name, t in self._splits.items()
        }
