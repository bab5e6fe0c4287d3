"""One unit, start to commit: read, decode, encode, interleave, write.

Documents stream through in order. A picture is decoded and brought to the tokenizer's size as it is met, and waits in a batch
of fixed shape that fills across documents; a document is written once all of its pictures have their codes. A batch that is not
full is padded, so every batch the device sees has one shape, and what a picture becomes does not depend on its neighbours. The
tokenizer that encodes is this process's own, or an encoder process's that several share (:mod:`tokkit.pipelines.encoder`).
A sound is encoded as it is met, by this process (:mod:`tokkit.pipelines.sounds`).

Every document and every media item ends in the unit's :class:`~tokkit.pipelines.ledger.Tally` exactly once.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.documents import Audio, Document, Failure, Outcome, Text
from tokkit.errors import BudgetExceeded, FingerprintMismatch, ItemError
from tokkit.failpoints import failpoint
from tokkit.interleave import Layout, TextCodes, order_segments
from tokkit.pipelines.admission import Admission
from tokkit.pipelines.assembly import (
    Given,
    Pending,
    Slot,
    codes_of,
    join_texts,
    made_of_sound,
    open_picture,
    verdict,
    with_document,
)
from tokkit.pipelines.batching import BatchEncoder, Encodes, ImageBatcher, LocalEncoder
from tokkit.pipelines.duplicates import DuplicateTable
from tokkit.pipelines.ledger import CommitRecord, Ledger, SplitCounts, Tally, sorted_counts, unit_entry
from tokkit.pipelines.plan import PlannedUnit, check_unchanged
from tokkit.pipelines.sounds import SoundEncoder
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.writing import DocumentWriter, PayloadWriter, Sink
from tokkit.ragged import split_rows
from tokkit.sequences import Sequences, encode_documents, encode_texts
from tokkit.shards.native import ShardWriter
from tokkit.sources.base import Census, ContainerDamage, Source
from tokkit.vocabulary import Ids, UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.media.transforms import Preprocessing
    from tokkit.pipelines.encoder import Endpoint
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.tokenizers.audio.base import AudioTokenizer
    from tokkit.tokenizers.image.bulk import BulkEncoder
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.text import TextTokenizer

TEXT_BATCH = 512  # documents of nothing but text that are written together
MEDIA_BATCH = 64  # documents that are written together where some of them have media, whose bytes wait with them
TEXT_CHARACTERS = 1 << 20  # what is written at once, whatever the number of documents
PENDING_LIMIT = 1024  # documents that may wait for the first one's pictures before these are encoded in a padded batch
REPORT_EVERY = 0.25  # seconds between two reports of a unit's progress
CRASHES = "crashes-process"  # the reason of a document that no process outlives


@dataclass(frozen=True)
class UnitJob:
    """Everything a worker needs to do units; picklable, the tokenizers are loaded in the worker.

    Attributes:
        encoders: the encoder processes that encode pictures; without one the worker loads the image tokenizer.
        preprocessing: the image tokenizer's, where the worker does not load it.
        fingerprints: of the tokenizers, by kind: one that has changed since the run began must not encode.
        filters: digests of the user's functions, likewise (:class:`~tokkit.pipelines.admission.Admission`); None takes any.
    """

    config: ShardConfig
    sources: dict[str, Source]
    vocabulary: UnifiedVocabulary
    layout: Layout
    device: str
    numeric: str
    duplicates: DuplicateTable | None = None
    encoders: tuple[Endpoint, ...] = ()
    preprocessing: Preprocessing | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    filters: dict[str, str] | None = None

    def open(self) -> UnitProcessor:
        """Load the tokenizers."""
        return UnitProcessor(self)


class UnitProcessor:
    """Does units, one after another, in one process."""

    def __init__(self, job: UnitJob) -> None:
        from tokkit.tokenizers.text import load_text_tokenizer

        self.job, self.config = job, job.config
        self.ledger = Ledger(job.config.out)
        self.text: TextTokenizer = load_text_tokenizer(
            job.config.text_tokenizer, job.vocabulary.claimed, job.config.text_engine
        )
        same_tokenizer(job.config.text_tokenizer, self.text, job.fingerprints.get("text"))
        self.duplicates = job.duplicates.open() if job.duplicates is not None else None
        self.admission = Admission(job.config, job.filters)
        self.image: BulkEncoder | None = None
        self.encodes: Encodes | None = None  # what encodes in this process
        self.preprocessing = job.preprocessing
        if job.config.image_tokenizer is not None and not job.encoders:
            self.image = load_encoder(job.config, job.device, job.fingerprints.get("image"))
            self.encodes, self.preprocessing = self.image, self.image.tokenizer.config.preprocessing

        self.sounds: SoundEncoder | None = None
        if job.config.audio_tokenizer is not None:
            from tokkit.tokenizers.audio import load_audio_tokenizer

            audio = load_audio_tokenizer(job.config.audio_tokenizer, device=job.device)
            same_tokenizer(job.config.audio_tokenizer, audio, job.fingerprints.get("audio"))
            books = len(job.vocabulary.codebooks("audio"))
            self.sounds = SoundEncoder(audio, job.config.audio_preprocessing, job.config.audio_limits, books)

    def batcher(self, index: int, alive: Callable[[], None]) -> ImageBatcher | None:
        """What encodes the pictures of unit ``index``, if there is an image tokenizer; ``alive`` is called while it waits."""
        encoder: BatchEncoder
        if self.job.encoders:
            from tokkit.pipelines.encoder_client import RemoteEncoder

            encoder = RemoteEncoder(self.job.encoders[index % len(self.job.encoders)], alive)
        elif self.encodes is not None:
            encoder = LocalEncoder(self.encodes, self.config.batch_size)
        else:
            return None
        return ImageBatcher(encoder, self.config.batch_size)

    def process(self, planned: PlannedUnit, report: Report) -> CommitRecord:
        """Read a unit and commit it; calls ``report`` now and then with the work done since the last call."""
        with closing(self.attempt(planned, report)) as attempt:
            return attempt.run()

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        """Do everything but the commit to the documents at ``[first, last)`` of a unit; returns how many there were."""
        with closing(self.attempt(planned, report, range(first, last))) as attempt:
            return attempt.probe()

    def attempt(self, planned: PlannedUnit, report: Report, only: range | None = None) -> Attempt:
        """One attempt at a unit, or at the documents ``only`` of it."""
        return Attempt(self, planned, report, only)


class Attempt:
    """The state of one attempt at one unit, or, with ``only``, at these documents of it.

    Attributes:
        sounds_at_once: whether sounds are encoded as they are met; else they wait for a batch, as pictures do.
    """

    sounds_at_once: ClassVar[bool] = True

    def __init__(self, processor: UnitProcessor, planned: PlannedUnit, report: Report, only: range | None = None) -> None:
        self.processor, self.config, self.job = processor, processor.config, processor.job
        self.planned, self.unit, self.only = planned, planned.unit, only
        self.poison = {poison.position: poison for poison in planned.poison}
        self.duplicates = processor.duplicates.of_unit(planned.index) if processor.duplicates is not None else None
        self.source = self.job.sources[self.unit.source]
        self.tally = Tally(self.unit.source)
        self.pending: deque[Pending] = deque()
        self.batcher = processor.batcher(planned.index, self.alive)
        self.media = self.characters = 0  # of the documents that wait
        self.work, self.report, self.reported = Work(), report, time.monotonic()
        self.rejected_in_a_row = self.found = self.taken = 0

    def close(self) -> None:
        """Give up pictures that are still being encoded."""
        if self.batcher is not None:
            self.batcher.close()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.work.spend(name, time.perf_counter() - begin)

    def run(self) -> CommitRecord:
        check_unchanged(self.source, self.unit)
        with self.payload() as shard:
            consumed = self.read()
            self.encode_rest()
            self.drain(0)
            with self.stage("write"):
                payload = shard.finish(prefix=f"{self.planned.index:05d}-")
                payload["rejects"] = self.processor.ledger.write_lines(self.planned.index, self.tally.lines)
        self.alive()
        with self.stage("count"):
            census = self.source.census(self.unit, self.alive) if self.planned.quota is None else Census(None)
        check_unchanged(self.source, self.unit)
        record = self.record(payload, census, consumed)
        failpoint("before-commit")
        self.processor.ledger.commit(record)
        failpoint("after-commit")
        self.report(self.work.take())
        return record

    @contextmanager
    def payload(self) -> Iterator[PayloadWriter]:
        """What writes the files of the unit's payload; left without ``finish``, it removes what it has written."""
        with ShardWriter(self.processor.ledger.payloads, self.job.vocabulary.dtype, index=False) as shard:
            self.write_to(shard)
            yield shard

    def write_to(self, sink: Sink) -> None:
        """Where the documents go."""
        self.writer = DocumentWriter(self.config, self.planned.index, sink)

    def probe(self) -> int:
        """Go through the motions with the documents of ``only``; what is written is removed."""
        with self.payload():
            self.read()
            self.encode_rest()
            self.drain(0)
        return self.found

    def alive(self) -> None:
        """Tell what was done since the last time: at most a few times a second, but of a probe after each document."""
        if self.only is not None or time.monotonic() - self.reported > REPORT_EVERY:
            self.reported = time.monotonic()
            self.report(self.work.take())

    # ---- reading

    def read(self) -> float:
        """Take the unit's documents in; returns the share of the unit that was read."""
        limits = (self.planned.quota, None if self.only is None else self.only.stop)
        end, taken = min((limit for limit in limits if limit is not None), default=None), 0
        reader = self.source.read(self.unit)
        reader.alive = self.alive
        records = iter(reader)
        seen = 0.0
        while end is None or taken < end:
            begin = time.perf_counter()
            record = next(records, None)
            self.work.spend("read", time.perf_counter() - begin)
            if record is None:
                return 1.0
            if isinstance(record, ContainerDamage):
                self.tally.damage(record)
                if self.config.strict and self.only is None:
                    where = f"{self.unit.source}/{record.locator}: {record.reason}: {record.message}"
                    raise BudgetExceeded(f"--strict stops at the first damage: {where}")
                continue
            failpoint("read", record.locator)
            position, taken = taken, taken + 1
            self.work.documents += 1
            self.work.at = record.locator
            self.work.bytes += max(0.0, reader.consumed - seen) * self.unit.bytes
            seen = max(seen, reader.consumed)
            if self.only is None or position in self.only:
                self.found += 1
                document = self.spared(record, position)
                left_out = self.duplicates.items(position, document) if self.duplicates is not None else {}
                self.take(document, left_out)
            self.alive()
        return reader.consumed

    def spared(self, document: Document, position: int) -> Document:
        """The document as it is to be, or, where it is known to kill, unwanted or a duplicate, its failure.

        What is known to kill is not looked at: it may be the user's own function that dies of it.
        """
        if document.failure is not None:
            return document
        poison = self.poison.get(position)
        if poison is not None:
            what = f"the process that works on it ends by {poison.cause}, each time, also where it does nothing else"
            return replace(document, failure=Failure(Outcome.REJECTED, CRASHES, what))
        if not self.processor.admission.idle:
            with self.stage("filter"):
                document = self.processor.admission.admit(document)
        if document.failure is not None or self.duplicates is None:
            return document
        duplicate = self.duplicates.document(position, document)
        return document if duplicate is None else replace(document, failure=duplicate)

    def take(self, document: Document, left_out: Mapping[int, Failure] = MappingProxyType({})) -> None:
        """Decode a document's media and let it wait for their codes, or write down why it is none.

        Args:
            left_out: its media items that are duplicates, by index.
        """
        if document.failure is not None:
            duplicate = document.failure.of is not None
            for index, media in enumerate(document.media):
                failure = (media.failure or with_document(document.failure)) if duplicate else document.failure
                self.tally.item(document, index, media, failure)
            self.refuse(document, document.failure)
            return
        if len(document.segments) == 1 and isinstance(text := document.segments[0], Text) and text.text:
            self.wait(Pending(document, (text,)))
            return
        segments: list[Text | Slot] = []
        slots: list[Slot] = []  # media keep their order among themselves, whatever becomes of the texts
        pixels: list[tuple[Slot, npt.NDArray[np.uint8]]] = []
        for segment in order_segments(document, self.config.pair_order, self.config.seed):
            if isinstance(segment, Text):
                segments.append(segment)
                continue
            slot = Slot(segment, segment.failure or left_out.get(len(slots)))
            if slot.failure is None and self.sounds_at_once and isinstance(segment, Audio):
                self.encode_sound(slot)
            elif slot.failure is None:
                with self.stage("decode"):
                    decoded = self.decode(slot)
                if decoded is not None:
                    pixels.append((slot, decoded))
            segments.append(slot)
            slots.append(slot)
        failure = verdict(document, slots, self.config.missing_image)
        for index, slot in enumerate(slots):
            # What was fine in a document that is not committed shares the document's outcome.
            self.tally.item(document, index, slot.media, slot.failure or with_document(failure))
        if failure is not None:
            self.refuse(document, failure)
            return
        self.wait(Pending(document, segments, slots), pixels)

    def wait(self, pending: Pending, pictures: Sequence[tuple[Slot, npt.NDArray[np.uint8]]] = ()) -> None:
        """Let a document wait for its codes, and for others to be written with; and do what there is enough of."""
        failpoint("take", pending.document.locator)
        self.rejected_in_a_row = 0
        self.pending.append(pending)
        self.taken += 1
        self.media += len(pending.slots)
        self.characters += pending.characters
        for slot, picture in pictures:
            assert self.batcher is not None
            self.batcher.add(self.taken, slot, picture)
            if self.batcher.full():
                self.encode_batch()
        oldest = self.batcher.oldest if self.batcher is not None else None
        if oldest is not None and self.taken - oldest >= PENDING_LIMIT - 1:
            self.encode_batch()  # a picture waits for a batch that the texts behind it will not fill
        if len(self.pending) >= (MEDIA_BATCH if self.media else TEXT_BATCH):
            self.drain(MEDIA_BATCH)
        if self.characters >= TEXT_CHARACTERS or len(self.pending) >= PENDING_LIMIT:
            self.drain(1)  # too few to be worth it, but they would be kept by a document behind them
        while len(self.pending) >= PENDING_LIMIT and self.wait_for_codes():
            self.drain(1)

    def decode(self, slot: Slot) -> npt.NDArray[np.uint8] | None:
        """The picture as the tokenizer takes it, or None with the slot's failure set."""
        preprocessing = self.processor.preprocessing
        picture = open_picture(slot, preprocessing is not None, self.config.image_limits)
        return None if picture is None or preprocessing is None else preprocessing.apply(picture)

    def encode_sound(self, slot: Slot) -> None:
        """Give a slot the codes of its sound, or its failure."""
        sounds = self.processor.sounds
        make = None if sounds is None else lambda media: sounds.encode(media, self.work.spend, self.alive)
        slot.sound = made_of_sound(slot, make)
        if slot.sound is not None:
            self.work.sounds += 1
        self.alive()

    def refuse(self, document: Document, failure: Failure) -> None:
        """Write down a document that is not committed, and mind the budgets."""
        self.tally.document(document, failure)
        if failure.outcome != Outcome.REJECTED or self.only is not None:
            return
        where = f"{document.source}/{document.locator}: {failure.reason}: {failure.message}"
        if self.config.strict:
            raise BudgetExceeded(f"--strict stops at the first reject: {where}")
        self.rejected_in_a_row += 1
        if self.rejected_in_a_row >= self.config.max_consecutive_rejects:
            raise BudgetExceeded(
                f"{self.rejected_in_a_row} documents in a row were rejected, the last: {where}. If the input is right, raise "
                f"--max-consecutive-rejects"
            )

    # ---- encoding and writing

    def encode_batch(self) -> None:
        """Have the pictures that wait encoded, at most a batch."""
        if self.batcher is not None:
            self.encoded(self.batcher.run)

    def wait_for_codes(self) -> int:
        """Wait for the oldest batch that is under way; returns how many pictures it had, 0 where there is none."""
        return self.encoded(self.batcher.receive) if self.batcher is not None else 0

    def encoded(self, step: Callable[[], int]) -> int:
        with self.stage("encode"):
            count = step()
        self.work.images += count
        self.alive()
        return count

    def encode_rest(self) -> None:
        """Have all pictures encoded that wait, and wait for their codes."""
        while self.batcher is not None and self.batcher.oldest is not None:
            self.encode_batch()
        while self.wait_for_codes():
            pass

    def drain(self, at_least: int) -> None:
        """Write the documents at the front of the queue whose pictures are all encoded, if these are ``at_least`` so many."""
        ready = next((i for i, p in enumerate(self.pending) if not p.ready()), len(self.pending))
        if ready < max(at_least, 1):
            return
        batch = [self.pending.popleft() for _ in range(ready)]
        self.media -= sum(len(p.slots) for p in batch)
        self.characters -= sum(p.characters for p in batch)
        self.compose(batch)

    def compose(self, batch: Sequence[Pending]) -> None:
        """Write documents whose pictures are all encoded."""
        parts = [join_texts(p.segments, self.config.text_joiner, self.config.missing_image) for p in batch]
        try:
            self.write(batch, self.sequences(parts))
        except ItemError:  # one of them cannot be encoded: each by itself
            for pending, segments in zip(batch, parts, strict=True):
                try:
                    self.write([pending], self.sequences([segments]))
                except ItemError as error:
                    self.withdraw(pending, Failure(Outcome.REJECTED, error.reason, error.message))

    def sequences(self, documents: list[list[str | Slot]]) -> Sequences:
        """Documents whose media have their codes as token ids; raises ItemError where one of them has a text without ids."""
        texts = [part for document in documents for part in document if isinstance(part, str)]
        with self.stage("text"):
            codes, lengths = self.processor.text.encode_joined(texts)
        with self.stage("write"):
            if len(texts) == len(documents) and all(len(d) == 1 and type(d[0]) is str for d in documents):
                return encode_texts(codes, lengths, self.job.vocabulary)
            own = iter(split_rows(codes, lengths))
            parts = [
                [TextCodes(next(own), not isinstance(p, Given)) if isinstance(p, str) else codes_of(p) for p in document]
                for document in documents
            ]
            return encode_documents(parts, self.job.vocabulary, self.job.layout)

    def withdraw(self, pending: Pending, failure: Failure) -> None:
        """Refuse a document whose media have been told as committed already."""
        lost = {id(s.media) for s in pending.segments if isinstance(s, Slot) and s.failure is not None}
        for index, media in enumerate(pending.document.media):
            if id(media) not in lost:
                self.tally.withdraw(pending.document, index, media, with_document(failure))
        self.refuse(pending.document, failure)

    def write(self, batch: Sequence[Pending], sequences: Sequences) -> None:
        with self.stage("write"):
            kinds = self.writer.write([pending.document for pending in batch], sequences)
        self.tally.committed(len(batch))
        if self.config.missing_image == "keep-marker":
            self.tally.kept_markers += sum(slot.missing for pending in batch for slot in pending.slots)
        self.rejected_in_a_row = 0
        self.work.kinds.update(kinds)

    def counts(self) -> dict[str, SplitCounts]:
        """What was written so far, by split."""
        return self.writer.counts()

    def record(self, payload: dict, census: Census, consumed: float) -> CommitRecord:
        return CommitRecord(
            unit=unit_entry(self.planned.index, self.unit, self.source.format),
            payload=payload,
            documents=sorted_counts(self.tally.documents),
            items={m: sorted_counts(c) for m, c in sorted(self.tally.items.items())},
            reasons=sorted_counts(self.tally.reasons),
            container_errors=self.tally.container_errors,
            counted_documents=census.documents,
            counted_items=census.items,
            counted_others=census.others,
            consumed=round(consumed, 9),
            splits=self.counts(),
            numeric=self.job.numeric,
            decisions=self.duplicates.digest if self.duplicates is not None else None,
            images_from=sorted_counts(+self.tally.images_from),
            kept_markers=self.tally.kept_markers,
        )


def same_tokenizer(path: Path, tokenizer: TextTokenizer | ImageTokenizer | AudioTokenizer, fingerprint: str | None) -> None:
    """Raise FingerprintMismatch where a tokenizer is not the one that the run began with (None: any is)."""
    if fingerprint is not None and tokenizer.fingerprint != fingerprint:
        raise FingerprintMismatch(
            f"{path} has changed since the run began: restore it and run the same command again, or write to another --out"
        )


def load_encoder(config: ShardConfig, device: str, fingerprint: str | None) -> BulkEncoder:
    """Load a run's image tokenizer, which must be the one that it began with, as the options want it to encode."""
    from tokkit.tokenizers.image import load_image_tokenizer
    from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions

    if config.image_tokenizer is None:
        raise ValueError("the run has no image tokenizer")
    tokenizer = load_image_tokenizer(config.image_tokenizer, device=device)
    same_tokenizer(config.image_tokenizer, tokenizer, fingerprint)
    return BulkEncoder(tokenizer, config.batch_size, BulkOptions(config.precision, config.acceleration))


def encode_again(
    processor: UnitProcessor,
    planned: PlannedUnit,
    documents: Iterable[Document],
    duplicates: Mapping[str, Mapping[int, Failure]] = MappingProxyType({}),
    report: Report = lambda work: None,
) -> tuple[list[tuple[Ids, dict[str, Any]]], dict[str, str]]:
    """Encode some documents of a unit as a run does, in batches of the same shape, and write nothing.

    Args:
        duplicates: media items that were left out as duplicates, by locator and index.
        report: called now and then, as a sign of life.

    Returns:
        ids and row of each that would be committed, as they are stored; and, by locator, why the others would not.
    """
    attempt, kept = Attempt(processor, planned, report), _Kept()
    attempt.write_to(kept)
    for document in documents:
        attempt.take(document, duplicates.get(document.locator, {}))
    attempt.encode_rest()
    attempt.drain(0)
    lines = [json.loads(line) for line in attempt.tally.lines]
    return kept.documents, {e["locator"]: f"{e['reason']}: {e['message']}" for e in lines if e["level"] == "document"}


class _Kept:
    """Stands in for a ShardWriter and keeps what it is given: ids and row of each document."""

    def __init__(self) -> None:
        self.documents: list[tuple[Ids, dict[str, Any]]] = []

    def extend(self, ids: npt.NDArray[np.integer], table: pa.Table) -> None:
        rows = table.to_pylist()
        lengths = table.column("tokens").to_numpy()
        self.documents += zip(split_rows(ids.astype(np.int32, copy=False), lengths), rows, strict=True)


def payload_paths(ledger: Ledger, record: CommitRecord) -> tuple[Path, Path]:
    """A committed unit's token file and document table."""
    return ledger.payloads / record.payload["bin"].name, ledger.payloads / record.payload["parquet"].name
