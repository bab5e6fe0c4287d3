"""``tokkit verify --reencode N``: documents read from the input once more, encoded again, and compared with the shards.

N committed documents are drawn by a seed, spread over sources and splits in proportion to their documents and at least one of
each. Only the work units that hold them are read, each up to its last sampled document. They are encoded by the code that a run
uses, with the run's options, in batches of the run's shape; an item's codes are the same in every slot of such a batch, so the
neighbours that are not sampled make no difference, and in the recorded numeric environment ids and spans must be equal exactly.

In another environment (another device, another version of a decoder or of torch) media codes may differ by rounding. Then
their agreement is measured and told; what does not come of media (text ids, markers, spans, names, splits) must be equal still.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from tokkit.documents import Document, Outcome
from tokkit.errors import DataError, UsageError
from tokkit.filters import filter_digests, load_filters
from tokkit.pipelines.compare import Encoded, Tally
from tokkit.pipelines.duplicates import recorded_duplicates
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.pipelines.fingerprint import TEXT_ENGINES, differences, numeric_environment
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.plan import PlannedUnit, share_out
from tokkit.pipelines.prepare import FILTERS, REPAIR, SEMANTIC_OPTIONS, resolve_device
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.stores import index_stores
from tokkit.pipelines.threads import one_thread
from tokkit.pipelines.verify_outcomes import Records
from tokkit.pipelines.verify_read import DocumentReader
from tokkit.repair import repair_versions
from tokkit.shards.manifest import Manifest
from tokkit.sources import make_source, packages_of
from tokkit.sources.base import InputFile, Unit
from tokkit.sources.opening import Location, located
from tokkit.storage import fingerprint_of, read_json
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.pipelines.unit import UnitProcessor
    from tokkit.pipelines.verify import VerifyConfig


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


class Reencoder:
    """Everything that encoding again needs, found and checked beforehand.

    Args:
        config: of the verification; ``inputs`` and the tokenizers' paths win over what ``run/`` recorded.
        manifest, vocabulary: of the output.

    Raises:
        UsageError: an input or a tokenizer is not where it was, or filters are not named.
        DataError: a tokenizer, a filter or what repairs texts is not the one that was used, or the recorded options cannot be
            read.
    """

    def __init__(self, config: VerifyConfig, manifest: Manifest, vocabulary: UnifiedVocabulary, progress: Progress) -> None:
        self.config, self.manifest, self.vocabulary = config, manifest, vocabulary
        self._roots = _roots(config, manifest)
        recorded = manifest.numeric.get("batch_size"), manifest.numeric.get("threads")
        device = config.device
        sounds = "audio" in manifest.tokenizers
        media = sounds or "image" in manifest.tokenizers
        if device == "auto" and (recorded[1] is not None or not media):
            device = "cpu"  # as it was
        self._device = resolve_device(device)
        self._options = _options(config, manifest, recorded[0])
        self._source_options = self._options.source_options
        self._scratch = self._index(progress)
        _check_repair(self._options, manifest)
        self._processor = self._load()
        packages = packages_of({source.format for source in manifest.sources})
        mode = (self._options.precision, self._options.acceleration)
        device_of = self._device if media else None
        now = numeric_environment(device_of, self._options.batch_size, "library", packages, *mode, sounds)
        _leave_out_text_engine(now, manifest)
        self._numeric = fingerprint_of(now)
        others = [entry.numeric for entry in manifest.mixed.environments] if manifest.mixed is not None else []
        listed = [line for then in (manifest.numeric, *others) for line in differences(then, now)]
        self._differences = list(dict.fromkeys(listed))

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

    def _load(self) -> UnitProcessor:
        from tokkit.pipelines.unit import UnitJob, UnitProcessor

        job = UnitJob(self._options, {}, self.vocabulary, self.manifest.layout.layout, str(self._device), "")
        processor = UnitProcessor(job)
        audio = processor.sounds.tokenizer if processor.sounds is not None else None
        image = processor.image.tokenizer if processor.image is not None else None
        loaded: dict[str, Any] = {"text": processor.text, "image": image, "audio": audio}
        for kind, entry in self.manifest.tokenizers.items():
            path = getattr(self._options, f"{kind}_tokenizer", None)
            if loaded.get(kind) is None or loaded[kind].fingerprint != entry.fingerprint:
                raise DataError(
                    f"{path} is not the {kind} tokenizer that these shards were made with ({entry.fingerprint[:12]})"
                )
        return processor

    def run(self, records: Records, result: VerifyResult, progress: Progress) -> None:
        """Draw, encode and compare; what differs becomes a problem of ``result``."""
        sampled = draw(records, self.config.reencode, self.config.seed)
        readers = {
            split: DocumentReader(self.config.directory, split, entry.shards) for split, entry in self.manifest.splits.items()
        }
        tally = Tally(self.vocabulary, result)
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
                        stored = Encoded(readers[s.split].tokens(s.number), row)
                        tally.compare(_name(s, row), stored, again[locator], exact=record.numeric == self._numeric)
                task.advance(len(mine))
        result.look("documents encoded again", tally.documents)
        result.reencoded = tally.agreement(len(units), read, self._differences)

    def _encode(
        self, record: CommitRecord, rows: dict[str, tuple[Sampled, dict[str, Any]]], result: VerifyResult
    ) -> dict[str, Encoded]:
        """Read a unit and encode its sampled documents (by locator); those that cannot be compared become problems."""
        from tokkit.pipelines.unit import encode_again

        entry = record.unit
        root = self._roots[entry.source]
        missed = set(rows)

        def problem(locator: str, code: Code, message: str) -> None:
            missed.discard(locator)
            result.problem(code, _name(*rows[locator]), message)

        try:
            files = [InputFile.of(root / entry.file, root)]
            source = make_source(entry.format, entry.source, root, files, self._source_options)
            self._processor.job.sources[entry.source] = source
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
                    document = self._processor.admission.admit(document)
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
            encoded, refused = encode_again(self._processor, PlannedUnit(entry.index, unit), wanted(), duplicates)
        except OSError as error:
            for locator in sorted(missed):
                problem(locator, Code.INPUT_CHANGED, f"cannot be read from its input: {error.filename}: {error.strerror}")
            return {}
        again = {}
        for ids, row in encoded:
            again[str(row["locator"])] = Encoded(ids, row)
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


def _options(config: VerifyConfig, manifest: Manifest, batch_size: object) -> ShardConfig:
    """The options of the run, from the manifest; the tokenizers from where they are now."""
    from tokkit.pipelines.shard import ShardConfig

    options: dict[str, object] = {k: v for k, v in manifest.semantic.items() if k in SEMANTIC_OPTIONS}
    options |= {"inputs": ["-"], "out": config.directory, "max_consecutive_rejects": 1 << 60}
    if batch_size is not None:  # there are media
        options["batch_size"] = batch_size
    for kind in manifest.tokenizers:
        options[f"{kind}_tokenizer"] = _tokenizer(config, kind)
    options["images"] = _images(config, manifest)
    options["filters"] = _filters(config, manifest)
    try:
        return ShardConfig.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"the recorded options cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _filters(config: VerifyConfig, manifest: Manifest) -> list[str]:
    """The user's functions as they were named; they must be those that the documents went through.

    They are code: what the output says of where they are is told, and not run.
    """
    then = manifest.semantic.get(FILTERS)
    if not isinstance(then, dict) or not then:
        return []
    specs = list(config.filters)
    if not specs:
        recorded = _job(config).get("filters")
        found = recorded if isinstance(recorded, list) else [name.partition(" ")[2] for name in then]
        asked = " ".join(f"--filter {spec}" for spec in found)
        raise UsageError(f"documents went through filters, which are run only if you name them: give {asked}")
    try:
        now = filter_digests(load_filters(specs))
    except ValueError as error:
        raise UsageError(f"--filter: {error}") from None
    if now != then:
        listed = "\n".join(f"  - {line}" for line in differences(then, now))
        raise DataError(f"documents went through other filters than these, or of another content:\n{listed}")
    return specs


def _check_repair(options: ShardConfig, manifest: Manifest) -> None:
    """Texts must be repaired by the versions that repaired them."""
    then = manifest.semantic.get(REPAIR)
    if isinstance(then, dict) and (now := repair_versions(options.fix_text)) != then:
        listed = ", ".join(differences(then, now))
        raise DataError(f"texts were repaired by other versions (--fix-text), and may say something else now: {listed}")


def _job(config: VerifyConfig) -> dict[str, Any]:
    """What ``run/job.json`` recorded; nothing where there is none."""
    path = config.directory / "run" / "job.json"
    entry = read_json(path) if path.exists() else None
    return entry if isinstance(entry, dict) else {}


def _leave_out_text_engine(now: dict[str, object], manifest: Manifest) -> None:
    """A fast text engine has no part in pictures, and the text ids that it gave are held against its library's here."""
    then, packages = manifest.numeric.get("packages"), now["packages"]
    if isinstance(then, dict) and isinstance(packages, dict):
        now["packages"] = packages | {name: then[name] for name in TEXT_ENGINES if name in then}


def _tokenizer(config: VerifyConfig, kind: str) -> Path:
    given: Path | None = getattr(config, f"{kind}_tokenizer", None)
    if given is not None:
        if not given.exists():
            raise UsageError(f"--{kind}-tokenizer {given}: no such file or folder")
        return given
    recorded = _job(config).get(f"{kind}_tokenizer")
    if not isinstance(recorded, str) or not Path(recorded).exists():
        where = f"at {recorded}, where the run had it" if recorded else "known (there is no run/job.json)"
        raise UsageError(f"the {kind} tokenizer is not {where}; name it with --{kind}-tokenizer")
    return Path(recorded)


def _images(config: VerifyConfig, manifest: Manifest) -> list[str]:
    """The picture stores of the run: as given, else as it recorded them."""
    if not manifest.stores or config.images:
        return list(config.images)
    job = config.directory / "run" / "job.json"
    entry = read_json(job) if job.exists() else None
    recorded = entry.get("images") if isinstance(entry, dict) else None
    if not isinstance(recorded, list) or len(recorded) != len(manifest.stores):
        names = ", ".join(store.name for store in manifest.stores)
        raise UsageError(f"the picture stores ({names}) are not known, there is no run/job.json: name them with --images")
    return [str(typed) for typed in recorded]


def _roots(config: VerifyConfig, manifest: Manifest) -> dict[str, Location]:
    """The folder of each source: as given, else as the run recorded it."""
    names = [source.name for source in manifest.sources]
    roots: dict[str, Location] = {}
    for text in config.inputs:
        name, equals, path = text.partition("=")
        if not equals and len(names) == 1:
            name, path = names[0], text
        if name not in names or not path:
            raise UsageError(f"--input {text}: write NAME=FOLDER; the sources are called {', '.join(names)}")
        roots[name] = located(path)
    recorded = _recorded_roots(config.directory / "run" / "inputs.jsonl")
    problems = []
    for source in manifest.sources:
        if not source.documents.get(Outcome.COMMITTED):
            continue  # nothing of it can be drawn
        root = roots.setdefault(source.name, recorded.get(source.name, Path()))
        if source.name not in recorded and root == Path():
            problems.append(f"{source.name}: not recorded (there is no run/inputs.jsonl)")
        elif not root.is_dir():
            problems.append(f"{source.name}: {root} is not there")
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems)
        raise UsageError(
            f"documents cannot be read again, the input is not where it was:\n{listed}\nsay where with --input NAME=FOLDER"
        )
    return roots


def _recorded_roots(path: Path) -> dict[str, Location]:
    import json

    roots: dict[str, Location] = {}
    if not path.exists():
        return roots
    try:
        with path.open() as file:
            for line in file:
                entry = json.loads(line)
                below = "" if entry["name"] == "." else "/" + entry["name"]  # the input's own folder may be what is read
                if entry["source"] not in roots and entry["path"].endswith(below):
                    roots[entry["source"]] = located(entry["path"].removesuffix(below) or "/")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged ({error!r}); say where the inputs are with --input NAME=FOLDER") from None
    return roots
