"""``--allow-mixed``: one output from several numeric environments, with their agreement measured and written down.

An output belongs to the numeric environment that began it (``config.json``); another one (an upgraded decoder, another device)
is refused, since codes may differ by rounding and nobody would know. With ``--allow-mixed`` it is admitted: its components go
to ``run/environments/``, and before it encodes anything, documents that others have committed are read and encoded again in it
and compared with what was committed: for each of the others at most 64, spread over at most 16 of its units. Each unit's
commit record names its environment as ever, and the manifest lists environments, their units, and how far they agree.

Where two environments began at the same time there was nothing to compare yet; whoever brings the run to its end does it then.
So no output is finished in which an environment's units were not compared with another's.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from pydantic import ValidationError

from tokkit.documents import Document, Outcome
from tokkit.errors import DataError, ResumableStop
from tokkit.pipelines.again import encode_again, payload_paths
from tokkit.pipelines.attempt import REPORT_EVERY
from tokkit.pipelines.compare import Encoded, is_media
from tokkit.pipelines.duplicates import recorded_duplicates
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.fingerprint import claimed
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.plan import PlannedUnit, check_unchanged
from tokkit.pipelines.unit import UnitJob, UnitProcessor
from tokkit.pipelines.work import Report, Work
from tokkit.shards.manifest import AgreementEntry, EnvironmentEntry, Mixed
from tokkit.shards.native import map_tokens
from tokkit.storage import create_if_absent, fingerprint_of, pretty_json, read_json
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.pipelines.completion import Run

FOLDER = "environments"
MOST_UNITS = 16  # that are read for a comparison
MOST_DOCUMENTS = 64  # that are encoded again for one

_AGREEMENT = "agreement-"


def admit(out: Path, numeric: Mapping[str, object]) -> None:
    """Write down an environment that is not the one which began the output."""
    folder = out / "run" / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    create_if_absent(folder / f"{fingerprint_of(numeric)}.json", pretty_json(numeric))


def measure(run: Run, records: Sequence[CommitRecord]) -> None:
    """Compare this process's environment with each other one that has committed units, where that has not been done.

    Raises:
        ResumableStop, TokkitError: as :func:`tokkit.pipelines.engine.run_units`.
    """
    mine = fingerprint_of(run.setup.numeric)
    for other in sorted({record.numeric for record in records} - {mine}):
        if _compared(run.config.out, mine, other):
            continue
        with run.leases.hold(
            "agreement", lambda holder: run.progress.log(f"waiting for {holder}, which compares environments")
        ):
            if not _compared(run.config.out, mine, other):
                found = _agreement(run, mine, other, [record for record in records if record.numeric == other])
                create_if_absent(_agreement_path(run.config.out, mine, other), pretty_json(found.model_dump(mode="json")))
                run.progress.log(f"numeric environments {found.told()}")


def mixture(run: Run, records: Sequence[CommitRecord]) -> Mixed | None:
    """What the manifest says of the environments; None where every unit was encoded in the one that began the output.

    Raises:
        ResumableStop: environments were not compared, and this process does not encode.
        DataError: what was written down of them is lost or damaged.
    """
    out = run.config.out
    first = str(claimed(out / CONFIG)["numeric_fingerprint"])
    units = Counter(record.numeric for record in records)
    if units.keys() <= {first}:
        return None
    if len(units) > 1 and units.keys() - _named(_agreements(out)):
        if run.recorded:
            raise ResumableStop(
                f"{out} has units of {len(units)} numeric environments that were not compared with one another, for which "
                f"documents must be encoded again: run `tokkit shard` with the same options and --allow-mixed"
            )
        measure(run, records)
    agreements = [agreement for agreement in _agreements(out) if units[agreement.committed_in]]
    listed = sorted({first, *units, *(agreement.encoded_again_in for agreement in agreements)})
    known = _environments(out)
    if lost := [fingerprint for fingerprint in listed if fingerprint not in known]:
        raise DataError(
            f"{out / 'run' / FOLDER} does not say what the numeric environment {lost[0]} was, in which units were encoded; "
            f"remove the commit records that name it and run the same command again to redo those units"
        )
    environments = [EnvironmentEntry(fingerprint=name, numeric=known[name], units=units[name]) for name in listed]
    return Mixed(environments=environments, agreements=agreements)


# ---- what was written down


def _environments(out: Path) -> dict[str, dict[str, object]]:
    """The components of every environment that was admitted, by fingerprint."""
    first = claimed(out / CONFIG)
    found: dict[str, dict[str, object]] = {str(first["numeric_fingerprint"]): first["numeric"]}
    folder = out / "run" / FOLDER
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        if path.name.startswith(_AGREEMENT):
            continue
        numeric = read_json(path)
        if not isinstance(numeric, dict) or fingerprint_of(numeric) != path.stem:
            raise DataError(f"{path} is damaged: its content is not that of its name")
        found[path.stem] = numeric
    return found


def _agreement_path(out: Path, again: str, committed: str) -> Path:
    return out / "run" / FOLDER / f"{_AGREEMENT}{again[:16]}-{committed[:16]}.json"


def _compared(out: Path, one: str, other: str) -> bool:
    """Whether two environments were compared, either way round."""
    return _agreement_path(out, one, other).exists() or _agreement_path(out, other, one).exists()


def _agreements(out: Path) -> list[AgreementEntry]:
    """What was measured, in a fixed order."""
    folder = out / "run" / FOLDER
    found = []
    for path in sorted(folder.glob(f"{_AGREEMENT}*.json")) if folder.is_dir() else []:
        try:
            found.append(AgreementEntry.model_validate(read_json(path)))
        except ValidationError as error:
            raise DataError(f"{path} is damaged: {error.errors()[0]['msg']}; remove it, it is measured again") from None
    return found


def _named(agreements: Sequence[AgreementEntry]) -> set[str]:
    return {name for agreement in agreements for name in (agreement.committed_in, agreement.encoded_again_in)}


# ---- measuring


@dataclass
class _Sums:
    """What comparing some documents came to; see :class:`~tokkit.shards.manifest.AgreementEntry`."""

    documents: int = 0
    equal_documents: int = 0
    tokens: int = 0
    equal_tokens: int = 0
    codes: int = 0
    equal_codes: int = 0
    lowest: float = 1.0

    def compare(self, stored: Encoded, again: Encoded | None, vocabulary: UnifiedVocabulary) -> None:
        """Add a document; ``again`` is None where it would not be committed now."""
        media = is_media(vocabulary, stored.ids)
        equal = np.zeros(len(stored.ids), dtype=np.bool_)
        if again is not None:
            both = min(len(stored.ids), len(again.ids))
            equal[:both] = stored.ids[:both] == again.ids[:both]
        self.documents += 1
        self.equal_documents += (
            again is not None and len(stored.ids) == len(again.ids) and bool(equal.all()) and stored.row == again.row
        )
        self.tokens += len(stored.ids)
        self.equal_tokens += int(equal.sum())
        self.codes += int(media.sum())
        self.equal_codes += int((equal & media).sum())
        self.lowest = min(self.lowest, round(float(equal.mean()), 9))

    def add(self, other: _Sums) -> None:
        for name in ("documents", "equal_documents", "tokens", "equal_tokens", "codes", "equal_codes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.lowest = min(self.lowest, other.lowest)


def _agreement(run: Run, mine: str, other: str, records: Sequence[CommitRecord]) -> AgreementEntry:
    """Encode documents of ``other``'s units again, with this run's options, and compare."""
    config, setup = run.config, run.setup
    with_documents = [record for record in records if record.documents.get(Outcome.COMMITTED)]
    chosen = [with_documents[i].unit.index for i in _spread(len(with_documents), MOST_UNITS)]
    fingerprints = {kind: entry.fingerprint for kind, entry in setup.tokenizers.items()}
    job = UnitJob(config, run.plan.sources, setup.vocabulary, setup.layout, setup.device, mine)
    job = replace(job, fingerprints=fingerprints, filters=setup.filters)
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    if setup.device.startswith("cuda"):
        workers = min(workers, 1)  # each loads the image tokenizer
    sums = _Sums()
    with run.progress.task("compare numeric environments", total=len(chosen), unit="units") as bar:

        def done(planned: PlannedUnit, found: _Sums) -> None:
            sums.add(found)
            bar.advance()

        wanted = [planned for planned in run.plan.units if planned.index in chosen]
        task = _Comparison(job, max(1, MOST_DOCUMENTS // max(len(chosen), 1)))
        run_units(task, wanted, workers, lambda work: None, done, stall_seconds=config.stall_seconds)
    return AgreementEntry(
        committed_in=other,
        encoded_again_in=mine,
        units=len(chosen),
        **{name: getattr(sums, name) for name in AgreementEntry.model_fields if hasattr(sums, name)},
    )


def _spread(count: int, at_most: int) -> list[int]:
    """At most so many of the numbers below ``count``, evenly spread."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, at_most)).astype(np.int64)).tolist()


@dataclass(frozen=True)
class _Comparison:
    """The task of comparing units: at most ``documents`` of each."""

    job: UnitJob
    documents: int

    def open(self) -> _Comparing:
        return _Comparing(UnitProcessor(self.job), self.documents)


@dataclass
class _Comparing:
    """Compares units, in a worker."""

    processor: UnitProcessor
    documents: int
    ledger: Ledger = field(init=False)

    def __post_init__(self) -> None:
        self.ledger = self.processor.ledger

    def process(self, planned: PlannedUnit, report: Report) -> _Sums:
        record = self.ledger.read(planned.index)
        if record is None:
            raise DataError(f"the commit record of unit {planned.index} is gone: run the same command again")
        job = self.processor.job
        stored = self._stored(record)
        source = job.sources[planned.unit.source]
        check_unchanged(source, planned.unit)

        def wanted() -> Iterator[Document]:
            left, told = set(stored), time.monotonic()

            def alive() -> None:
                nonlocal told
                if time.monotonic() - told > REPORT_EVERY:
                    told = time.monotonic()
                    report(Work())

            reader = source.read(planned.unit)
            reader.alive = alive
            for document in reader:
                alive()
                if isinstance(document, Document) and (name := _escaped(document.locator)) in left:
                    left.remove(name)
                    document = self.processor.admission.admit(document)
                    if document.failure is None:
                        yield document
                    if not left:
                        return

        lines = self.ledger.payload(record.payload["rejects"])
        encoded, _ = encode_again(self.processor, planned, wanted(), recorded_duplicates(lines), report)
        check_unchanged(source, planned.unit)
        again = {str(row["locator"]): Encoded(ids, row) for ids, row in encoded}
        sums = _Sums()
        for locator, document in stored.items():
            sums.compare(document, again.get(locator), job.vocabulary)
        return sums

    def _stored(self, record: CommitRecord) -> dict[str, Encoded]:
        """Documents of a unit, evenly spread, as they are in its payload, by locator."""
        bin_path, parquet_path = payload_paths(self.ledger, record)
        table = pq.read_table(parquet_path)
        ends = np.cumsum(table.column("tokens").to_numpy())
        tokens = map_tokens(bin_path, self.processor.job.vocabulary.dtype)
        found = {}
        for place in _spread(table.num_rows, self.documents):
            row: dict[str, Any] = table.slice(place, 1).to_pylist()[0]
            found[str(row["locator"])] = Encoded(tokens[int(ends[place]) - row["tokens"] : int(ends[place])], row)
        return found


def _escaped(text: str) -> str:
    """A name as the document table has it: UTF-8, a lone surrogate as an escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
