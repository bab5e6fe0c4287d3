"""One unit of a feature cache: as a unit of token shards (:mod:`tokkit.pipelines.unit`), but media become a frozen encoder's
features, and a document its text ids with the places at which the features go.

Reading, admission, outcomes, batches and the commit are those of every unit. Features are brought to their stored form as soon
as they are encoded, so that what waits for its document is small.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.documents import Audio, Document, Failure, Outcome
from tokkit.errors import FingerprintMismatch, ItemError, TransientError
from tokkit.features.precision import StoredDtype
from tokkit.features.writer import DocumentEntry, FeatureWriter, Item, item_of
from tokkit.pipelines.assembly import Given, Pending, Slot, join_texts, made_of_sound, open_picture
from tokkit.pipelines.batching import BatchEncoder, ImageBatcher, no_memory, out_of_memory
from tokkit.pipelines.ledger import SplitCounts, sorted_counts
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.sounds import SoundReader
from tokkit.pipelines.unit import Attempt, UnitJob, UnitProcessor
from tokkit.pipelines.work import Report
from tokkit.pipelines.writing import DocumentWriter, PayloadWriter
from tokkit.ragged import split_rows

if TYPE_CHECKING:
    from tokkit.features.base import FeatureEncoder, ItemFeatures, Prepared
    from tokkit.pipelines.features import FeaturesConfig


def sound_reader(encoder: FeatureEncoder, config: FeaturesConfig) -> SoundReader | None:
    """What decodes sounds for an encoder; None where it takes none."""
    if encoder.modality != "audio" or encoder.sample_rate is None:
        return None
    return SoundReader(encoder.sample_rate, 1, config.audio_preprocessing, config.audio_limits)


class FeatureJob(UnitJob):
    """Everything a worker needs to do units of a feature cache; picklable, the encoder is loaded in the worker."""

    def open(self) -> FeatureProcessor:
        """Load the text tokenizer and the encoder."""
        return FeatureProcessor(self)


class FeatureProcessor(UnitProcessor):
    """Does units of a feature cache, one after another, in one process."""

    config: FeaturesConfig

    def __init__(self, job: FeatureJob) -> None:
        super().__init__(job)
        self.encoder = self.config.load_encoder(job.device)
        expected = job.fingerprints.get("encoder")
        if expected is not None and self.encoder.fingerprint != expected:
            raise FingerprintMismatch(
                f"{self.config.encoder} has changed since the run began: restore it and run the same command again, or write "
                f"to another --out"
            )

    def batcher(self, index: int, alive: Callable[[], None]) -> ImageBatcher:
        encoder = _Encoder(self.encoder, self.config.batch_size, self.config.dtype)
        return ImageBatcher(cast(BatchEncoder, encoder), self.config.batch_size)

    def attempt(self, planned: PlannedUnit, report: Report, only: range | None = None) -> FeatureAttempt:
        return FeatureAttempt(self, planned, report, only)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """What a media item's slot gets: its item, but for the place in the document, or why there is none."""

    item: Item | None
    error: ItemError | None = None


class _Encoder:
    """A feature encoder as a :class:`~tokkit.pipelines.batching.BatchEncoder` of prepared items."""

    depth = 1

    def __init__(self, encoder: FeatureEncoder, batch_size: int, dtype: StoredDtype) -> None:
        self._encoder, self._batch_size, self._dtype = encoder, batch_size, dtype
        self._done: deque[list[_Encoded]] = deque()

    def submit(self, items: Sequence[Prepared]) -> None:
        try:
            found = self._encoder.encode(items, self._batch_size)
        except RuntimeError as error:
            if out_of_memory(error):
                raise TransientError(no_memory(self._batch_size, error)) from error
            raise
        self._done.append([self._stored(features, prepared) for features, prepared in zip(found, items, strict=True)])

    def _stored(self, features: ItemFeatures, prepared: Prepared) -> _Encoded:
        try:
            item = item_of(features, self._dtype, self._encoder.modality, prepared.width, prepared.height)
        except ItemError as error:
            return _Encoded(None, error)
        assert item.features is not None
        # What is stored is all that is kept of the features themselves.
        bare = replace(item.features, features=np.zeros((0, 0), dtype=np.float32), pooled=None)
        return _Encoded(replace(item, features=bare))

    def arrived(self) -> bool:
        return bool(self._done)

    def collect(self) -> list[_Encoded]:
        return self._done.popleft()

    def close(self) -> None:
        self._done.clear()


class FeatureAttempt(Attempt):
    """The state of one attempt at one unit of a feature cache."""

    sounds_at_once: ClassVar[bool] = False
    processor: FeatureProcessor
    config: FeaturesConfig

    @contextmanager
    def payload(self) -> Iterator[PayloadWriter]:
        with FeatureWriter(self.processor.ledger.payloads) as shard:
            self.features = FeatureDocumentWriter(self.config, self.planned.index, shard)
            yield shard

    def counts(self) -> dict[str, SplitCounts]:
        return self.features.counts()

    def decode(self, slot: Slot) -> npt.NDArray[np.uint8] | None:
        """The item as the encoder takes it (not pixels but views), or None with the slot's failure set."""
        encoder = self.processor.encoder
        modality = "audio" if isinstance(slot.media, Audio) else "image"
        if modality != encoder.modality:
            message = f"this run's encoder takes {encoder.modality} only"
            slot.failure = Failure(Outcome.FILTERED, f"no-{modality}-encoder", message)
            return None
        media = self.waveform(slot) if modality == "audio" else open_picture(slot, True, self.config.image_limits)
        if media is None:
            return None
        try:
            return cast("npt.NDArray[np.uint8]", encoder.prepare(media))
        except ItemError as error:
            slot.failure = Failure(Outcome.REJECTED, error.reason, error.message)
            return None

    def waveform(self, slot: Slot) -> npt.NDArray[np.float32] | None:
        """A sound as float32 ``[samples]`` at the encoder's rate, or None with the slot's failure set."""
        reader = sound_reader(self.processor.encoder, self.config)
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

    def entries(self, batch: Sequence[Pending], joined: Sequence[Sequence[str | Slot]]) -> list[tuple[Pending, DocumentEntry]]:
        """Documents as they are written; one with features that cannot be stored is withdrawn.

        Raises:
            ItemError: one of them has a text without ids.
        """
        texts = [part for parts in joined for part in parts if isinstance(part, str)]
        with self.stage("text"):
            ids = iter(split_rows(*self.processor.text.encode_joined(texts))) if texts else iter(())
        found = []
        for pending, parts in zip(batch, joined, strict=True):
            pieces = {number: next(ids) for number, part in enumerate(parts) if isinstance(part, str)}
            try:
                found.append((pending, self.entry(pending, parts, pieces)))
            except ItemError as error:
                self.withdraw(pending, Failure(Outcome.REJECTED, error.reason, error.message))
        return found

    def entry(self, pending: Pending, parts: Sequence[str | Slot], pieces: dict[int, npt.NDArray[np.int32]]) -> DocumentEntry:
        """A document's ids, given stretches and items, each with its place; raises ItemError where an item cannot be stored."""
        numbers = {id(slot): number for number, slot in enumerate(pending.slots)}
        items, given, position = [], [], 0
        for number, part in enumerate(parts):
            if isinstance(part, str):
                length = len(pieces[number])
                if isinstance(part, Given) and length:
                    given.append((position, length))
                position += length
                continue
            place = numbers[id(part)]
            if part.missing:
                items.append(Item(place, self.processor.encoder.modality, "", position, dtype=self.config.dtype))
                continue
            encoded = cast(_Encoded, part.codes)
            if encoded.item is None:
                assert encoded.error is not None
                raise encoded.error
            items.append(replace(encoded.item, number=place, hash=part.media.hash, position=position))
        ids = np.concatenate([np.zeros(0, dtype=np.int32), *pieces.values()])
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
