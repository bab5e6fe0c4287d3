"""One unit, start to commit: read, decode, encode, interleave, write.

Documents stream through in order. A picture is decoded and brought to its size as it is met
(:mod:`tokkit.media.resolutions`), and waits in a batch of its shape that fills across documents; a document is written once
all of its pictures have their codes. A batch that is not full is padded, so all batches of a shape are of one size, and what a
picture becomes does not depend on its neighbours. The tokenizer that encodes is this process's own, or an encoder process's
that several share (:mod:`tokkit.pipelines.encoder`).
A sound is encoded as it is met, by this process, or waits in batches of its own (:mod:`tokkit.pipelines.sounds`).

Every document and every media item ends in the unit's :class:`~tokkit.pipelines.ledger.Tally` exactly once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from tokkit.documents import Audio, Document, Failure, Outcome, SpecialToken, Text
from tokkit.errors import BudgetExceeded, ItemError, UnwantedItem
from tokkit.failpoints import failpoint
from tokkit.interleave import AudioCodes, order_segments
from tokkit.media.waveforms import Samples
from tokkit.pipelines.assembly import (
    Joined,
    Pending,
    Slot,
    codes_of,
    failure_of,
    join_texts,
    made_of_sound,
    open_picture,
    verdict,
    with_document,
)
from tokkit.pipelines.ledger import CommitRecord, SplitCounts, Tally, sorted_counts, unit_entry
from tokkit.pipelines.plan import PlannedUnit, check_unchanged
from tokkit.pipelines.texts import encode_texts_of
from tokkit.pipelines.work import Report, Work
from tokkit.pipelines.writing import DocumentWriter, PayloadWriter, Sink
from tokkit.sequences import Sequences, encode_documents, encode_texts
from tokkit.shards.native import ShardWriter
from tokkit.sources.base import Census, ContainerDamage

if TYPE_CHECKING:
    from tokkit.pipelines.unit import UnitProcessor

TEXT_BATCH = 512  # documents of nothing but text that are written together
MEDIA_BATCH = 64  # documents that are written together where some of them have media, whose bytes wait with them
TEXT_CHARACTERS = 1 << 20  # what is written at once, whatever the number of documents
SOUNDS_LIMIT = 256  # documents behind that of a sound which waits for others of its length, before it waits no longer
PENDING_LIMIT = 1024  # documents that may wait for the first one's pictures before these are encoded in a padded batch
HELD_BYTES = 256 << 20  # of the encoded media of the documents that wait; above it the first of them is waited for
REPORT_EVERY = 0.25  # seconds between two reports of a unit's progress
CRASHES = "crashes-process"  # the reason of a document that no process outlives


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
        self.sound_batcher = processor.sound_batcher(planned.index, self.alive) if self.sounds_at_once else None
        self.media = self.characters = self.held = 0  # of the documents that wait
        self.work, self.report, self.reported = Work(), report, time.monotonic()
        self.rejected_in_a_row = self.found = self.taken = 0

    def close(self) -> None:
        """Give up what is still being encoded."""
        for batcher in (self.batcher, self.sound_batcher):
            if batcher is not None:
                batcher.close()

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
        segments: list[Text | SpecialToken | Slot] = []
        slots: list[Slot] = []  # media keep their order among themselves, whatever becomes of the texts
        pixels: list[tuple[Slot, npt.NDArray[np.uint8]]] = []
        clips: list[tuple[Slot, Samples]] = []
        for segment in order_segments(document, self.config.pair_order, self.config.seed):
            if isinstance(segment, Text | SpecialToken):
                segments.append(segment)
                continue
            slot = Slot(segment, segment.failure or left_out.get(len(slots)))
            if slot.failure is None and self.sounds_at_once and isinstance(segment, Audio):
                clip = self.encode_sound(slot)
                if clip is not None:
                    clips.append((slot, clip))
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
        self.wait(Pending(document, segments, slots), pixels, clips)

    def wait(
        self,
        pending: Pending,
        pictures: Sequence[tuple[Slot, npt.NDArray[np.uint8]]] = (),
        clips: Sequence[tuple[Slot, Samples]] = (),
    ) -> None:
        """Let a document wait for its codes, and for others to be written with; and do what there is enough of."""
        failpoint("take", pending.document.locator)
        self.rejected_in_a_row = 0
        self.pending.append(pending)
        self.taken += 1
        self.media += len(pending.slots)
        self.characters += pending.characters
        self.held += pending.bytes
        for slot, picture in pictures:
            assert self.batcher is not None
            self.batcher.add(self.taken, slot, picture)
            while self.batcher.full():
                self.encode_batch()
        self.wait_for_sounds(clips)
        if len(self.pending) >= (MEDIA_BATCH if self.media else TEXT_BATCH):
            self.drain(MEDIA_BATCH)
        if self.characters >= TEXT_CHARACTERS or self.too_many():
            self.drain(1)  # too few to be worth it, but they would be kept by a document behind them
        while self.too_many() and (self.encode_first() or self.wait_for_codes()):
            self.drain(1)

    def too_many(self) -> bool:
        """Whether the documents that wait are to be written as soon as may be."""
        return len(self.pending) >= PENDING_LIMIT or self.held > HELD_BYTES

    def wait_for_sounds(self, clips: Sequence[tuple[Slot, Samples]]) -> None:
        """Let a document's sounds wait for batches, and do those that are full or have waited long enough."""
        batcher = self.sound_batcher
        if batcher is None:
            return
        for slot, clip in clips:
            batcher.add(self.taken, slot, clip)
            if batcher.full():
                self.encoded(batcher.run, "sounds")
        while batcher.oldest is not None and self.taken - batcher.oldest >= SOUNDS_LIMIT - 1:
            self.encoded(batcher.run, "sounds")

    def decode(self, slot: Slot) -> npt.NDArray[np.uint8] | None:
        """The picture as the tokenizer takes it, or None with the slot's failure set."""
        preprocessing = self.processor.preprocessing
        picture = open_picture(slot, preprocessing is not None, self.config.image_limits)
        if picture is None or preprocessing is None:
            return None
        try:
            return preprocessing.apply(picture)
        except UnwantedItem as error:
            slot.failure = failure_of(error)
            return None

    def encode_sound(self, slot: Slot) -> Samples | None:
        """Give a slot the codes of its sound, or its failure; or return the sound, where it is to wait for a batch."""
        sounds = self.processor.sounds
        hear = None if sounds is None else sounds.encode if self.sound_batcher is None else sounds.heard
        made = made_of_sound(slot, None if hear is None else lambda media: hear(media, self.work.spend, self.alive))
        self.alive()
        if isinstance(made, AudioCodes):
            slot.sound = made
            self.work.sounds += 1
            return None
        return made

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

    def encode_first(self) -> bool:
        """Have an item of the first document that waits encoded, if it waits for a batch that others have not filled."""
        first = self.taken - len(self.pending) + 1
        if self.batcher is not None and self.batcher.oldest == first:
            self.encode_batch()
            return True
        if self.sound_batcher is not None and self.sound_batcher.oldest == first:
            self.encoded(self.sound_batcher.run, "sounds")
            return True
        return False

    def wait_for_codes(self) -> int:
        """Wait for the oldest batches that are under way; returns how many items they had, 0 where there are none."""
        pictures = self.encoded(self.batcher.receive) if self.batcher is not None else 0
        return pictures + (self.encoded(self.sound_batcher.receive, "sounds") if self.sound_batcher is not None else 0)

    def encoded(self, step: Callable[[], int], what: Literal["images", "sounds"] = "images") -> int:
        with self.stage("encode"):
            count = step()
        setattr(self.work, what, getattr(self.work, what) + count)
        self.alive()
        return count

    def encode_rest(self) -> None:
        """Have all pictures encoded that wait, and wait for their codes."""
        while self.batcher is not None and self.batcher.oldest is not None:
            self.encode_batch()
        while self.sound_batcher is not None and self.sound_batcher.oldest is not None:
            self.encoded(self.sound_batcher.run, "sounds")
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
        self.held -= sum(p.bytes for p in batch)
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

    def sequences(self, documents: list[list[Joined]]) -> Sequences:
        """Documents whose media have their codes as token ids; raises ItemError where one of them has a text without ids."""
        if all(len(d) == 1 and type(d[0]) is str for d in documents):
            with self.stage("text"):
                codes, lengths = self.processor.text.encode_joined([str(d[0]) for d in documents])
            with self.stage("write"):
                return encode_texts(codes, lengths, self.job.vocabulary)
        with self.stage("text"):
            encoded = encode_texts_of(documents, self.processor.text)
        with self.stage("write"):
            parts = [[codes_of(p) if isinstance(p, Slot) else p for p in document] for document in encoded]
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
