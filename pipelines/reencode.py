"""``tokkit verify --reencode N``: documents read from the input once more, encoded again, and compared with the output.

N committed documents are drawn by a seed, spread over sources and splits in proportion to their documents and at least one of
each. Only the work units that hold them are read, each up to its last sampled document. They are encoded by the code that a run
uses, with the run's options, in batches of the run's shape; an item's codes are the same in every slot of such a batch, so the
neighbours that are not sampled make no difference, and in the recorded numeric environment ids and spans must be equal exactly.

In another environment (another device, another version of a decoder or of torch) media codes may differ by rounding. Then
their agreement is measured and told; what does not come of media (text ids, markers, spans, names, splits) must be equal still.

What is here is the same for both products: :mod:`~tokkit.pipelines.reencode_tokens` compares token shards,
:mod:`~tokkit.pipelines.reencode_features` feature caches.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np
from pydantic import ValidationError

from tokkit.documents import Document, Failure
from tokkit.errors import DataError
from tokkit.pipelines.duplicates import recorded_duplicates
from tokkit.pipelines.findings import Agreement, Code, VerifyResult
from tokkit.pipelines.fingerprint import TEXT_ENGINES, differences
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.plan import PlannedUnit, share_out
from tokkit.pipelines.prepare import REPAIR, resolve_device
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.recorded import filters_now, roots_now, stores_now
from tokkit.pipelines.stores import index_stores
from tokkit.pipelines.threads import one_thread
from tokkit.pipelines.verify_outcomes import Records
from tokkit.repair import repair_versions
from tokkit.shards.manifest import RunManifest
from tokkit.sources import make_source, packages_of
from tokkit.sources.base import InputFile, Unit
from tokkit.storage import fingerprint_of

if TYPE_CHECKING:
    import torch

    from tokkit.pipelines.shard import ShardConfig
    from tokkit.pipelines.unit import UnitProcessor
    from tokkit.pipelines.verify import VerifyConfig

NOT_ENCODED_AGAIN = "encoding documents again: what they would be compared with is damaged"
M = TypeVar("M", bound=RunManifest)
C = TypeVar("C", bound="ShardConfig")


@dataclass(frozen=True, slots=True)
class Sampled:
    """A document that was drawn: its split, its number there, and its work unit."""

    split: str
    number: int
    unit: int


def draw(records: Records, count: int, seed: int) -> list[Sampled]:
    """Draw ``count`` committed documents (all, where there are fewer), in the order of units.

    Each source's documents of each split are drawn from by themselves: at least one of each where ``count`` allows it, the
    rest in proportion; the same records and seed give the same documents.
    """
    splits = sorted({split for unit in records.units for split in unit.splits})
    names = sorted({place.source for place in records.places})
    source = np.array([names.index(place.source) for place in records.places], dtype=np.int64)
    strata = []
    for split in splits:
        documents = np.array([unit.splits.get(split, (0,))[0] for unit in records.units], dtype=np.int64)
        first = np.cumsum(documents) - documents
        for number in range(len(names)):
            units = np.flatnonzero((source == number) & (documents > 0))
            if units.size:
                strata.append((split, units, documents[units], first[units]))
    sizes = [int(documents.sum()) for _, _, documents, _ in strata]
    count = min(count, sum(sizes))
    each = 1 if count >= len(strata) else 0
    shares = [each + (more or 0) for more in share_out(count - each * len(strata), [size - each for size in sizes])]
    found = []
    for stratum, ((split, units, documents, first), share) in enumerate(zip(strata, shares, strict=True)):
        ends = np.cumsum(documents)
        chosen = np.random.default_rng([seed, stratum]).choice(int(ends[-1]), share, replace=False)
        for ordinal in chosen.tolist():
            at = int(np.searchsorted(ends, ordinal, side="right"))
            place = ordinal - int(ends[at] - documents[at])
            found.append(Sampled(split, int(first[at]) + place, int(units[at])))
    return sorted(found, key=lambda s: (s.unit, s.split, s.number))


class Rows(Protocol):
    """The committed documents of a split."""

    def row(self, number: int) -> dict[str, Any]:
        """A document's row of its table."""


class Comparison(Protocol):
    """Compares documents one by one, and adds up."""

    documents: int

    def compare(self, name: str, stored: Any, again: Any, *, exact: bool) -> None:
        """Compare a document; what differs becomes a problem. ``exact``: both were encoded in one numeric environment."""

    def agreement(self, units: int, read: int, differences: list[str]) -> Agreement:
        """What it all came to."""


class Reencoder(ABC, Generic[M]):
    """Everything that encoding again needs, found and checked beforehand; a product says what it compares, and how.

    Args:
        config: of the verification; ``inputs`` and the tokenizers' paths win over what ``run/`` recorded.
        manifest: of the output.

    Raises:
        UsageError: an input or a tokenizer is not where it was, or filters are not named.
        DataError: a tokenizer, a filter or what repairs texts is not the one that was used, or the recorded options cannot be
            read.
    """

    def __init__(self, config: VerifyConfig, manifest: M, progress: Progress) -> None:
        self.config, self.manifest = config, manifest
        self._roots = roots_now(config, manifest)
        recorded = manifest.numeric.get("batch_size"), manifest.numeric.get("threads")
        sounds, media = self.media()
        device = config.device
        if device == "auto" and (recorded[1] is not None or not media):
            device = "cpu"  # as it was
        self.device = resolve_device(device)
        self.run_options = self.options(recorded[0])
        self._source_options = self.run_options.source_options
        self._scratch = self._index(progress)
        _check_repair(self.run_options, manifest)
        self.processor = self.load()
        now = self.environment(self.device if media else None, sounds)
        _leave_out_text_engine(now, manifest)
        self._numeric = fingerprint_of(now)
        others = [entry.numeric for entry in manifest.mixed.environments] if manifest.mixed is not None else []
        listed = [line for then in (manifest.numeric, *others) for line in differences(then, now)]
        self._differences = list(dict.fromkeys(listed))

    # ---- what differs between the products

    @abstractmethod
    def media(self) -> tuple[bool, bool]:
        """Whether sounds were encoded, and whether any media were."""

    @abstractmethod
    def options(self, batch_size: object) -> ShardConfig:
        """The options of the run, of which ``batch_size`` is its own; tokenizers from where they are now."""

    @abstractmethod
    def load(self) -> UnitProcessor:
        """What does units; every tokenizer in it must be the run's."""

    @abstractmethod
    def environment(self, device: torch.device | None, sounds: bool) -> dict[str, object]:
        """This numeric environment, as the run would have written it down."""

    @abstractmethod
    def reader(self, split: str) -> Rows:
        """The committed documents of a split."""

    @abstractmethod
    def comparison(self, result: VerifyResult) -> Comparison:
        """What compares, and takes problems down in ``result``."""

    @abstractmethod
    def stored(self, reader: Any, number: int, row: dict[str, Any]) -> Any:
        """A committed document, as :meth:`comparison` takes it."""

    @abstractmethod
    def again(
        self, planned: PlannedUnit, documents: Iterator[Document], duplicates: Mapping[str, Mapping[int, Failure]]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Documents of a unit as they are encoded now, by locator as stored, and why others would not be committed."""

    # ---- what does not

    def recorded(self, semantic: Set[str], batch_size: object) -> dict[str, object]:
        """The options that the manifest has, and those that reading needs."""
        options: dict[str, object] = {k: v for k, v in self.manifest.semantic.items() if k in semantic}
        options |= {"inputs": ["-"], "out": self.config.directory, "max_consecutive_rejects": 1 << 60}
        if batch_size is not None:  # there are media
            options["batch_size"] = batch_size
        options["images"] = stores_now(self.config, self.manifest)
        options["filters"] = filters_now(self.config, self.manifest)
        return options

    def packages(self) -> set[str]:
        """Packages whose versions may change what the sources' documents are."""
        return packages_of({source.format for source in self.manifest.sources})

    def _index(self, progress: Progress) -> TemporaryDirectory[str] | None:
        """The picture stores' index: the run's, or one that is made in a folder which goes with what is returned."""
        stores = self._source_options.stores
        if stores is None:
            return None
        try:
            stores.summaries()
            return None
        except DataError:
            scratch = TemporaryDirectory(prefix="tokkit-stores-")
            stores.folder = Path(scratch.name) / "stores"
            index_stores(stores, progress)
            return scratch

    def run(self, records: Records, result: VerifyResult, progress: Progress) -> None:
        """Draw, encode and compare; what differs becomes a problem of ``result``."""
        sampled = draw(records, self.config.reencode, self.config.seed)
        readers: dict[str, Any] = {split: self.reader(split) for split in self.manifest.splits}
        tally = self.comparison(result)
        ledger = Ledger(self.config.directory)
        units = sorted({s.unit for s in sampled})
        read = 0
        with one_thread(), progress.task("encode again", total=len(sampled), unit="documents") as task:
            for index in units:
                record = ledger.read(index)
                assert record is not None  # it has been read before
                mine = [s for s in sampled if s.unit == index]
                rows = {str(row["locator"]): (s, row) for s in mine for row in [readers[s.split].row(s.number)]}
                again = self._encode(record, rows, result)
                read += record.unit.bytes
                for locator, (s, row) in rows.items():
                    if locator in again:
                        stored = self.stored(readers[s.split], s.number, row)
                        tally.compare(_name(s, row), stored, again[locator], exact=record.numeric == self._numeric)
                task.advance(len(mine))
        result.look("documents encoded again", tally.documents)
        result.reencoded = tally.agreement(len(units), read, self._differences)

    def _encode(
        self, record: CommitRecord, rows: dict[str, tuple[Sampled, dict[str, Any]]], result: VerifyResult
    ) -> dict[str, Any]:
        """Read a unit and encode its sampled documents (by locator); those that cannot be compared become problems."""
        entry = record.unit
        root = self._roots[entry.source]
        missed = set(rows)

        def problem(locator: str, code: Code, message: str) -> None:
            missed.discard(locator)
            result.problem(code, _name(*rows[locator]), message)

        try:
            files = [InputFile.of(root / entry.file, root)]
            source = make_source(entry.format, entry.source, root, files, self._source_options)
            self.processor.job.sources[entry.source] = source
            unit = Unit(entry.source, entry.file, str(root / entry.file), entry.start, entry.stop, entry.bytes)

            def wanted() -> Iterator[Document]:
                left = set(rows)
                for document in source.read(unit):
                    if not isinstance(document, Document):
                        continue
                    locator = _escaped(document.locator)
                    if locator not in left:
                        continue
                    left.remove(locator)
                    document = self.processor.admission.admit(document)
                    if document.failure is not None:
                        problem(locator, Code.INPUT_CHANGED, f"is no document any more: {document.failure.reason}")
                    elif document.hash != rows[locator][1]["hash"]:
                        problem(locator, Code.INPUT_CHANGED, "says something else in its input now (its content hash differs)")
                    else:
                        yield document
                    if not left:
                        return

            rejects = self.config.directory / "rejects" / f"{entry.index:05d}.jsonl"
            duplicates = recorded_duplicates(rejects) if rejects.exists() else {}
            again, refused = self.again(PlannedUnit(entry.index, unit), wanted(), duplicates)
        except OSError as error:
            for locator in sorted(missed):
                problem(locator, Code.INPUT_CHANGED, f"cannot be read from its input: {error.filename}: {error.strerror}")
            return {}
        for locator, why in refused.items():
            problem(_escaped(locator), Code.REENCODE, f"is not committed when it is encoded again: {why}")
        for locator in sorted(missed - again.keys()):
            problem(locator, Code.INPUT_CHANGED, f"is no longer in {entry.source}/{entry.file}")
        return again


def _name(sampled: Sampled, row: dict[str, Any]) -> str:
    return f"{sampled.split} document {sampled.number} ({row['source']}/{row['locator']})"


def _escaped(text: str) -> str:
    """A name as the document table has it (:func:`tokkit.shards.native.document_table`)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def as_options(kind: type[C], options: Mapping[str, object]) -> C:
    """Recorded options, as a run takes them."""
    try:
        return kind.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"the recorded options cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _check_repair(options: ShardConfig, manifest: RunManifest) -> None:
    """Texts must be repaired by the versions that repaired them."""
    then = manifest.semantic.get(REPAIR)
    if isinstance(then, dict) and (now := repair_versions(options.fix_text)) != then:
        listed = ", ".join(differences(then, now))
        raise DataError(f"texts were repaired by other versions (--fix-text), and may say something else now: {listed}")


def _leave_out_text_engine(now: dict[str, object], manifest: RunManifest) -> None:
    """A fast text engine has no part in pictures, and the text ids that it gave are held against its library's here."""
    then, packages = manifest.numeric.get("packages"), now["packages"]
    if isinstance(then, dict) and isinstance(packages, dict):
        now["packages"] = packages | {name: then[name] for name in TEXT_ENGINES if name in then}
