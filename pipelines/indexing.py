"""The first pass of a run that deduplicates: by what each unit's documents and media items could be known again.

Only documents that would be committed if there were no other take part, so the pass goes as far as it takes to know that: it
decodes pictures as the second pass will (not where a document stays whatever becomes of its pictures, and no picture is asked
about), and has texts encoded by a tokenizer that refuses some. Both passes decide about a document by the same functions.

A unit's index is a function of the unit and of the options: any attempt writes the same file.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokkit.dedup.index import IndexBuilder, ItemKeys
from tokkit.dedup.perceptual import NO_HASH, picture_hash
from tokkit.documents import Audio, Document, Failure, Media, Outcome, Text
from tokkit.errors import BudgetExceeded, ItemError
from tokkit.failpoints import failpoint
from tokkit.pipelines.admission import Admission
from tokkit.pipelines.assembly import Slot, join_texts, made_of_sound, open_picture, verdict
from tokkit.pipelines.index_files import IndexFiles
from tokkit.pipelines.plan import PlannedUnit, check_unchanged
from tokkit.pipelines.sounds import SoundReader
from tokkit.pipelines.texts import texts_of
from tokkit.pipelines.work import Report, Work
from tokkit.sources.base import ContainerDamage, Source
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.tokenizers.text import TextTokenizer

KEY_BYTES = 16
REPORT_EVERY = 0.25  # seconds between two reports of a unit's progress


@dataclass(frozen=True)
class IndexedUnit:
    """A unit whose index is written."""

    index: int


@dataclass(frozen=True)
class IndexTask:
    """Index units; picklable.

    Attributes:
        files: where the indexes lie.
        refusing: the text tokenizer refuses some texts.
        filters: digests of the user's functions (:class:`~tokkit.pipelines.admission.Admission`); None takes any.
        sounds: what decodes sounds, where any are taken.
        pictures: whether any are taken.
    """

    config: ShardConfig
    sources: dict[str, Source]
    vocabulary: UnifiedVocabulary
    files: IndexFiles
    refusing: bool
    filters: dict[str, str] | None = None
    sounds: SoundReader | None = None
    pictures: bool = False

    def open(self) -> IndexWork:
        """Load what is needed: nothing, unless the text tokenizer has to be asked."""
        return IndexWork(self)


def identity(planned: PlannedUnit, poison: Sequence[int]) -> dict[str, object]:
    """What a unit's index is of, besides the options, which the output directory belongs to.

    Args:
        poison: positions of the documents that are known to kill: such a document takes no part.
    """
    unit = planned.unit
    return {
        "unit": planned.index,
        "source": unit.source,
        "file": unit.file,
        "range": [unit.start, unit.stop],
        "poison": [*poison],
    }


class IndexWork:
    """Indexes units in one process."""

    def __init__(self, task: IndexTask) -> None:
        self.task = task
        self.admission = Admission(task.config, task.filters)
        self.text: TextTokenizer | None = None
        if task.refusing:
            from tokkit.tokenizers.text import load_text_tokenizer

            self.text = load_text_tokenizer(task.config.text_tokenizer, task.vocabulary.claimed, task.config.text_engine)

    def process(self, planned: PlannedUnit, report: Report) -> IndexedUnit:
        """Read a unit and write its index; calls ``report`` now and then with the work done since the last call."""
        attempt = _Attempt(self, planned, report, None)
        source = self.task.sources[planned.unit.source]
        check_unchanged(source, planned.unit)
        attempt.read()
        check_unchanged(source, planned.unit)
        poison = [entry.position for entry in planned.poison]
        path = self.task.files.index(planned.index, poison)
        attempt.builder.write(path, identity(planned, poison))
        self.task.files.share(path)
        report(attempt.work.take())
        return IndexedUnit(planned.index)

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        """Do all but the writing to the documents at ``[first, last)`` of a unit; returns how many there were."""
        return _Attempt(self, planned, report, range(first, last)).read()


class _Attempt:
    """The state of one attempt at one unit, or, with ``only``, at these documents of it."""

    def __init__(self, work: IndexWork, planned: PlannedUnit, report: Report, only: range | None) -> None:
        self.task, self.config, self.text = work.task, work.task.config, work.text
        self.planned, self.only = planned, only
        self.poison = {poison.position for poison in planned.poison}
        self.admission = work.admission
        kinds = set(self.config.dedup)
        self.by_content, self.by_text = "documents" in kinds, "texts" in kinds
        self.by_item, self.by_looks = "images" in kinds, "near-images" in kinds
        self.builder = IndexBuilder(content=self.by_content, text=self.by_text, items=self.by_item, looks=self.by_looks)
        self.work, self.report, self.reported = Work(), report, time.monotonic()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.work.spend(name, time.perf_counter() - begin)

    def read(self) -> int:
        """Take the unit's documents in; returns how many were looked at."""
        limits = (self.planned.quota, None if self.only is None else self.only.stop)
        end = min((limit for limit in limits if limit is not None), default=None)
        unit = self.planned.unit
        reader = self.task.sources[unit.source].read(unit)
        reader.alive = self.alive
        records, seen, taken, found = iter(reader), 0.0, 0, 0
        while end is None or taken < end:
            with self.stage("read"):
                record = next(records, None)
            if record is None:
                break
            if isinstance(record, ContainerDamage):
                self.mind(record)
                continue
            failpoint("index", record.locator)
            position, taken = taken, taken + 1
            self.work.documents += 1
            self.work.bytes += max(0.0, reader.consumed - seen) * unit.bytes
            seen = max(seen, reader.consumed)
            if self.only is None or position in self.only:
                found += 1
                self.take(record, position)
            self.alive()
        return found

    def alive(self) -> None:
        """Tell what was done since the last time: at most a few times a second."""
        if time.monotonic() - self.reported > REPORT_EVERY:
            self.reported = time.monotonic()
            self.report(self.work.take())

    def mind(self, damage: ContainerDamage) -> None:
        if self.config.strict and self.only is None:
            where = f"{self.planned.unit.source}/{damage.locator}: {damage.reason}: {damage.message}"
            raise BudgetExceeded(f"--strict stops at the first damage: {where}")

    def take(self, document: Document, position: int) -> None:
        """Write down a document's keys, if it takes part."""
        if position not in self.poison and not self.admission.idle:
            with self.stage("filter"):
                document = self.admission.admit(document)
        if document.failure is not None or position in self.poison:
            self.leave_out(document, document.failure)
            return
        spoken = [s.text for s in document.segments if isinstance(s, Text)]
        has_text = any(spoken)
        slots = [Slot(media, media.failure) for media in document.media]
        keys: list[ItemKeys] = []
        heard = 0  # sounds that can be used
        if self.by_item or document.pair or document.whole or not has_text or self.config.missing_image == "drop-document":
            keys = [k for index, slot in enumerate(slots) if (k := self.look(index, slot)) is not None]
            heard = sum(isinstance(slot.media, Audio) and slot.failure is None for slot in slots)
        failure = verdict(document, slots, self.config.missing_image) or self.refused(document, slots)
        if failure is not None:
            self.leave_out(document, failure)
            return
        with self.stage("hash"):
            self.builder.add(
                document.locator,
                pair=document.pair,
                has_text=has_text,
                content=bytes.fromhex(document.hash) if self.by_content else b"",
                text=_text_key(self.config.text_joiner.join(spoken)) if self.by_text else b"",
                sound=len(keys) + heard,
                items=keys,
            )

    def look(self, index: int, slot: Slot) -> ItemKeys | None:
        """Decode a media item; its keys, or None where it cannot be used, or is a sound, of which no twins are looked for."""
        if slot.failure is not None:
            return None
        if isinstance(slot.media, Audio):
            reader = self.task.sounds
            with self.stage("decode"):
                made_of_sound(slot, None if reader is None else lambda media: reader.check(media, self.alive))
            return None
        with self.stage("decode"):
            picture = open_picture(slot, self.task.pictures, self.config.image_limits)
        if picture is None:
            return None
        self.work.images += 1
        with self.stage("hash"):
            looks = picture_hash(picture) if self.by_looks else NO_HASH
            return ItemKeys(index, bytes.fromhex(slot.media.hash), looks)

    def refused(self, document: Document, slots: list[Slot]) -> Failure | None:
        """Why the text tokenizer cannot encode a document's texts, as they would be written."""
        if self.text is None:
            return None
        of_media = iter(slots)
        segments = [next(of_media) if isinstance(s, Media) else s for s in document.segments]
        with self.stage("text"):
            try:
                joined = join_texts(segments, self.config.text_joiner, self.config.missing_image)
                self.text.encode_batch(texts_of(joined))
            except ItemError as error:
                return Failure(Outcome.REJECTED, error.reason, error.message)
        return None

    def leave_out(self, document: Document, failure: Failure | None) -> None:
        self.builder.leave_out(document.locator)
        if self.config.strict and self.only is None and failure is not None and failure.outcome == Outcome.REJECTED:
            where = f"{document.source}/{document.locator}: {failure.reason}: {failure.message}"
            raise BudgetExceeded(f"--strict stops at the first reject: {where}")


def _text_key(text: str) -> bytes:
    """128 bits of SHA-256 of a text; told apart from a document's and an item's hash by what stands before it."""
    return hashlib.sha256(b"all-text\0" + text.encode("utf-8", "surrogatepass")).digest()[:KEY_BYTES]
