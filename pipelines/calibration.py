"""How far a fast mode of encoding agrees with float32, measured on the run's own pictures before anything is encoded.

Documents are taken from units that are spread over the plan, read, admitted and decoded as the run does, and their pictures
encoded twice: as the run will, and in float32. The figure goes to ``run/calibration/`` (by numeric environment, created if
absent, so that processes which share the output measure once), and from there into the manifest; below ``--min-agreement`` the
run is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import ValidationError

from tokkit.errors import DataError, UsageError
from tokkit.pipelines.batching import Codes, Pixels
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.unit import UnitJob, UnitProcessor
from tokkit.pipelines.work import Report
from tokkit.shards.manifest import CalibrationEntry
from tokkit.storage import create_if_absent, fingerprint_of, pretty_json, read_json

if TYPE_CHECKING:
    from tokkit.pipelines.completion import Run
    from tokkit.tokenizers.image.bulk import BulkEncoder

FOLDER = "calibration"
MOST_UNITS = 8
DOCUMENTS = 8  # of each unit


def calibrate(run: Run, planned: Sequence[PlannedUnit]) -> None:
    """Measure, unless the run encodes in plain float32 or it was measured before.

    Args:
        planned: the plan's units.

    Raises:
        UsageError: the agreement is below ``min_agreement``.
    """
    config, setup = run.config, run.setup
    if config.image_tokenizer is None or not config.fast:
        return
    path = config.out / "run" / FOLDER / f"{fingerprint_of(setup.numeric)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        create_if_absent(path, pretty_json(_measured(run, planned).model_dump(mode="json")))
    entry = _read(path)
    run.progress.log(entry.told())
    if entry.pictures and entry.agreement < config.min_agreement:
        raise UsageError(
            f"{entry.told()}, less than --min-agreement {config.min_agreement:g}: encode in fp32, or lower it if that will do"
        )


def calibrations(out: Path) -> list[CalibrationEntry]:
    """All that was measured for an output, by environment."""
    return [_read(path) for path in sorted((out / "run" / FOLDER).glob("*.json"))]


def _read(path: Path) -> CalibrationEntry:
    try:
        return CalibrationEntry.model_validate(read_json(path))
    except ValidationError as error:
        raise DataError(f"{path} is damaged ({error.error_count()} faults): remove it, it is measured again") from None


def _measured(run: Run, planned: Sequence[PlannedUnit]) -> CalibrationEntry:
    config, setup = run.config, run.setup
    fingerprints = {kind: entry.fingerprint for kind, entry in setup.tokenizers.items()}
    job = UnitJob(config, run.plan.sources, setup.vocabulary, setup.layout, setup.device, "", fingerprints=fingerprints)
    job = replace(job, filters=setup.filters)
    places = np.unique(np.linspace(0, max(len(planned) - 1, 0), min(len(planned), MOST_UNITS)).astype(np.int64))
    sums = _Sums()
    with run.progress.task("measure the fast mode's agreement", total=len(places), unit="units") as bar:

        def done(unit: PlannedUnit, found: _Sums) -> None:
            sums.add(found)
            bar.advance()

        workers = 0 if config.workers == 0 else 1
        chosen = [planned[int(i)] for i in places]
        run_units(_Calibration(job), chosen, workers, lambda work: None, done, stall_seconds=config.stall_seconds)
    return CalibrationEntry(
        numeric=fingerprint_of(setup.numeric),
        precision=config.precision,
        acceleration=config.acceleration,
        pictures=sums.pictures,
        codes=sums.codes,
        equal_codes=sums.equal,
        overflowed=sums.overflowed,
    )


@dataclass
class _Sums:
    pictures: int = 0
    codes: int = 0
    equal: int = 0
    overflowed: int = 0

    def add(self, other: _Sums) -> None:
        for name in ("pictures", "codes", "equal", "overflowed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(frozen=True)
class _Calibration:
    """The task: picklable, opened in the worker."""

    job: UnitJob

    def open(self) -> _Calibrating:
        return _Calibrating(UnitProcessor(self.job))


@dataclass
class _Calibrating:
    processor: UnitProcessor
    _twice: _Twice = field(init=False)

    def __post_init__(self) -> None:
        assert self.processor.image is not None
        self._twice = _Twice(self.processor.image)
        self.processor.encodes = self._twice

    def process(self, planned: PlannedUnit, report: Report) -> _Sums:
        self._twice.sums, before = _Sums(), self._twice.fast.overflowed
        self.processor.probe(planned, report, 0, DOCUMENTS)
        self._twice.sums.overflowed = self._twice.fast.overflowed - before
        return self._twice.sums

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        return self.processor.probe(planned, report, first, min(last, DOCUMENTS))


class _Twice:
    """Encodes in the fast mode and in float32, and counts how many codes are equal."""

    def __init__(self, fast: BulkEncoder) -> None:
        self.fast, self.sums = fast, _Sums()

    def encode_padded(self, pictures: Sequence[Pixels], batch_size: int) -> Codes:
        codes = self.fast.encode_padded(pictures, batch_size)
        exact = self.fast.tokenizer.encode_padded(pictures, batch_size)
        self.sums.pictures += len(codes)
        self.sums.codes += codes.size
        self.sums.equal += int((codes == exact).sum())
        return codes
