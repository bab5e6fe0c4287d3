"""How far a fast mode of encoding agrees with float32, measured on the run's own items before anything is encoded.

Documents are taken from units that are spread over the plan, the first few of each, and more where these hold no picture; they
are read, admitted and decoded as the run does, and their pictures encoded twice: as the run will, and in float32. The figure
(:mod:`tokkit.pipelines.features_calibration` has that of features) goes to ``run/calibration/`` (by numeric environment,
created if absent, so that processes which share the output measure once), and from there into the manifest; below
``--min-agreement`` the run is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from pydantic import TypeAdapter, ValidationError

from tokkit.errors import DataError, UsageError
from tokkit.pipelines.batching import Codes, Encodes, Pixels
from tokkit.pipelines.engine import run_units
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.unit import UnitJob, UnitProcessor
from tokkit.pipelines.work import Report
from tokkit.shards.manifest import AnyCalibration, CalibrationEntry
from tokkit.storage import create_if_absent, fingerprint_of, pretty_json, read_json

if TYPE_CHECKING:
    from tokkit.pipelines.completion import Run
    from tokkit.tokenizers.image.bulk import BulkEncoder

FOLDER = "calibration"
MOST_UNITS = 8
DOCUMENTS = 8  # of each unit, at first
MOST_DOCUMENTS = 4096  # of a unit in which no picture was found yet


class Sums(Protocol):
    """What is counted; picklable."""

    overflowed: int

    @property
    def seen(self) -> int:
        """Items that were encoded both ways."""

    def add(self, other: Any) -> None:
        """Add what was counted elsewhere."""


class Twice(Encodes, Protocol):
    """Encodes in the fast mode and in float32, and counts in ``sums``; gives what the fast mode gives."""

    sums: Any

    @property
    def overflowed(self) -> int:
        """Items that float16 could not hold so far."""


class Calibration(Protocol):
    """How two ways to encode are compared; picklable."""

    def sums(self) -> Sums:
        """Nothing counted yet."""

    def twice(self, processor: Any) -> Twice:
        """What encodes twice, in a worker's process; ``processor`` has loaded what encodes."""

    def entry(self, run: Run, sums: Any) -> AnyCalibration:
        """What the manifest says of it."""


def calibrate(run: Run, planned: Sequence[PlannedUnit]) -> None:
    """Measure, unless the run encodes in plain float32 or it was measured before.

    Args:
        planned: the plan's units.

    Raises:
        UsageError: the agreement is below ``min_agreement``.
    """
    config, calibration = run.config, run.product.calibration(run)
    if calibration is None:
        return
    path = config.out / "run" / FOLDER / f"{fingerprint_of(run.setup.numeric)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        create_if_absent(path, pretty_json(_measured(run, planned, calibration).model_dump(mode="json")))
    entry = _read(path)
    run.progress.log(entry.told())
    if entry.seen and entry.agreement < config.min_agreement:
        raise UsageError(
            f"{entry.told()}, less than --min-agreement {config.min_agreement:g}: encode in fp32, or lower it if that will do"
        )


def calibrations(out: Path) -> list[AnyCalibration]:
    """All that was measured for an output, by environment."""
    return [_read(path) for path in sorted((out / "run" / FOLDER).glob("*.json"))]


def _read(path: Path) -> AnyCalibration:
    try:
        found: AnyCalibration = TypeAdapter(AnyCalibration).validate_python(read_json(path))
        return found
    except ValidationError as error:
        raise DataError(f"{path} is damaged ({error.error_count()} faults): remove it, it is measured again") from None


def _measured(run: Run, planned: Sequence[PlannedUnit], calibration: Calibration) -> AnyCalibration:
    config = run.config
    places = np.unique(np.linspace(0, max(len(planned) - 1, 0), min(len(planned), MOST_UNITS)).astype(np.int64))
    sums = calibration.sums()
    with run.progress.task("measure the fast mode's agreement", total=len(places), unit="units") as bar:

        def done(unit: PlannedUnit, found: Sums) -> None:
            sums.add(found)
            bar.advance()

        task = _Calibration(run.product.job(run, None), calibration)
        workers = 0 if config.workers == 0 else 1
        chosen = [planned[int(i)] for i in places]
        run_units(task, chosen, workers, lambda work: None, done, stall_seconds=config.stall_seconds)
    return calibration.entry(run, sums)


@dataclass(frozen=True)
class _Calibration:
    """The task: picklable, opened in the worker."""

    job: UnitJob
    calibration: Calibration

    def open(self) -> _Calibrating:
        return _Calibrating(self.job.open(), self.calibration)


@dataclass
class _Calibrating:
    processor: UnitProcessor
    calibration: Calibration
    _twice: Twice = field(init=False)

    def __post_init__(self) -> None:
        self._twice = self.calibration.twice(self.processor)
        self.processor.encodes = self._twice

    def process(self, planned: PlannedUnit, report: Report) -> Sums:
        self._twice.sums, before = self.calibration.sums(), self._twice.overflowed
        first, last = 0, DOCUMENTS
        while self.processor.probe(planned, report, first, last) == last - first:
            if self._twice.sums.seen or last == MOST_DOCUMENTS:
                break
            first, last = last, 8 * last
        found: Sums = self._twice.sums
        found.overflowed = self._twice.overflowed - before
        return found

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        return self.processor.probe(planned, report, first, min(last, MOST_DOCUMENTS))


# ---- of codes


class CodeCalibration:
    """Of pictures' codes: the share that is equal."""

    def sums(self) -> _Sums:
        return _Sums()

    def twice(self, processor: UnitProcessor) -> _Twice:
        assert processor.image is not None
        return _Twice(processor.image)

    def entry(self, run: Run, sums: _Sums) -> CalibrationEntry:
        return CalibrationEntry(
            numeric=fingerprint_of(run.setup.numeric),
            precision=run.config.precision,
            acceleration=run.config.acceleration,
            pictures=sums.pictures,
            codes=sums.codes,
            equal_codes=sums.equal,
            overflowed=sums.overflowed,
        )


CODE_CALIBRATION = CodeCalibration()


@dataclass
class _Sums:
    pictures: int = 0
    codes: int = 0
    equal: int = 0
    overflowed: int = 0

    @property
    def seen(self) -> int:
        return self.pictures

    def add(self, other: _Sums) -> None:
        for name in ("pictures", "codes", "equal", "overflowed"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


class _Twice:
    """Encodes in the fast mode and in float32, and counts how many codes are equal."""

    def __init__(self, fast: BulkEncoder) -> None:
        self.fast, self.sums = fast, _Sums()

    @property
    def overflowed(self) -> int:
        return self.fast.overflowed

    def encode_padded(self, pictures: Sequence[Pixels], batch_size: int) -> Codes:
        codes = self.fast.encode_padded(pictures, batch_size)
        exact = self.fast.tokenizer.encode_padded(pictures, batch_size)
        self.sums.pictures += len(codes)
        self.sums.codes += codes.size
        self.sums.equal += int((codes == exact).sum())
        return codes
