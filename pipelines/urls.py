"""The job ``tokkit urls``: the pictures that a corpus names by URL and does not hold, as a list that img2dataset downloads.

Every unit is read as ``tokkit shard`` would read it, by worker processes; each picture that is missing and has an http(s) URL
goes to the unit's own file in a scratch folder beside the output. Then all are brought to one row a URL
(:mod:`tokkit.pipelines.url_list`). Nothing is downloaded.

The list is a function of the input alone: neither workers nor memory nor the way files are cut change a byte of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from tokkit.documents import Document, Image, Outcome
from tokkit.errors import UsageError
from tokkit.pipelines.engine import STALL_SECONDS, run_units
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.plan import PlannedUnit, check_unchanged
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.stores import index_stores, picture_stores
from tokkit.pipelines.url_list import write_list
from tokkit.pipelines.work import Report, Work
from tokkit.sources.base import ContainerDamage, Source, SourceOptions
from tokkit.sources.resolve import ResolvedInputs, resolve_inputs
from tokkit.storage import replacing

REPORT_EVERY = 0.25  # seconds
MAX_URL = 2048
SHOWN = 10  # damaged places that are logged


class UrlsConfig(BaseModel):
    """Options of the job.

    Attributes:
        inputs: as for ``tokkit shard``.
        out: the Parquet file.
        images: picture stores, as for ``tokkit shard``: what is in one of them is not missing.
        unit_bytes: input bytes that a worker takes at a time.
        workers: processes; None takes one a core, 0 does everything in this one.
        memory: bytes that bringing the rows together keeps to; what does not fit goes to files.
        stall_seconds: time without progress after which a worker process is killed and its unit tried again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: list[str] = Field(min_length=1)
    out: Path
    images: list[str] = Field(default_factory=list)
    unit_bytes: int = Field(default=64 << 20, ge=1)
    workers: int | None = Field(default=None, ge=0, le=1024)
    memory: int = Field(default=256 << 20, ge=1 << 20)
    stall_seconds: float = Field(default=STALL_SECONDS, ge=1, le=86400)


@dataclass
class UrlsResult:
    """What came of it.

    Attributes:
        out: the list.
        urls: rows in it.
        documents: documents read; those that are none (a page that answered 404) included.
        pictures: pictures in documents that are some.
        missing: those of them that are not there, and have a URL; each URL counts as often as it is named.
        nameless: those that are not there, and have none that could be downloaded.
        damaged: places of containers that could not be read.
    """

    out: str
    urls: int = 0
    documents: int = 0
    pictures: int = 0
    missing: int = 0
    nameless: int = 0
    damaged: int = 0


def list_urls(config: UrlsConfig, progress: Progress) -> UrlsResult:
    """Do the job.

    Raises:
        UsageError, ConfigError: the inputs or the output are wrong.
        ResumableStop: something outside of the data stood in the way; run it again, from the beginning.
    """
    stores = picture_stores(config.images, config.out.parent)
    resolved = resolve_inputs(config.inputs, SourceOptions(stores=stores))
    if config.out.is_dir() or not config.out.parent.is_dir():
        raise UsageError(f"{config.out} cannot be written to: name a file in a folder that is there")
    announce_ignored(resolved, progress)
    result = UrlsResult(str(config.out))
    prefix = f".{config.out.name}.scratch-"
    with TemporaryDirectory(prefix=prefix, dir=config.out.parent, ignore_cleanup_errors=True) as folder:
        if stores is not None:
            stores.folder = Path(folder) / "stores"  # for the workers, which take a copy each
            index_stores(stores, progress)
        _collect(config, resolved, Path(folder), progress, result)
        with replacing(config.out) as temporary, progress.task("write", unit="URLs") as bar:
            found = sorted(Path(folder).glob("unit-*.jsonl"))
            result.urls = write_list(found, temporary, Path(folder), config.memory, bar.advance)
    return result


@dataclass(frozen=True)
class _UnitUrls:
    """What a unit came to."""

    documents: int
    pictures: int
    missing: int
    nameless: int
    damage: list[str] = field(default_factory=list)


def _collect(config: UrlsConfig, resolved: ResolvedInputs, folder: Path, progress: Progress, result: UrlsResult) -> None:
    units = [unit for source in resolved.sources for unit in source.units(config.unit_bytes)]
    planned = [PlannedUnit(index, unit) for index, unit in enumerate(units)]
    task = UrlsTask({source.name: source for source in resolved.sources}, folder)
    workers = (os.cpu_count() or 1) if config.workers is None else config.workers
    with progress.task("read", total=sum(unit.bytes for unit in units) / 1e6, unit="MB") as bar:

        def report(work: Work) -> None:
            bar.advance(work.bytes / 1e6)

        def done(unit: PlannedUnit, found: _UnitUrls) -> None:
            result.documents += found.documents
            result.pictures += found.pictures
            result.missing += found.missing
            result.nameless += found.nameless
            for line in found.damage[: max(0, SHOWN - result.damaged)]:
                progress.log(line)
            result.damaged += len(found.damage)
            bar.fields(docs=f"{result.documents:,}", urls=f"{result.missing:,}")

        run_units(task, planned, workers, report, done, stall_seconds=config.stall_seconds)


@dataclass(frozen=True)
class UrlsTask:
    """Collect the URLs of units; picklable."""

    sources: dict[str, Source]
    folder: Path

    def open(self) -> UrlsTask:
        """Nothing has to be loaded."""
        return self

    def process(self, planned: PlannedUnit, report: Report) -> _UnitUrls:
        """Read a unit and write its rows."""
        source, work = self.sources[planned.unit.source], Work()
        poison = {entry.position for entry in planned.poison}
        documents = pictures = missing = nameless = 0
        damage: list[str] = []
        check_unchanged(source, planned.unit)
        with replacing(self.folder / f"unit-{planned.index:08d}.jsonl") as path, path.open("w", encoding="ascii") as out:
            for record in self._read(source, planned, work, report):
                if isinstance(record, ContainerDamage):
                    where = f"{planned.unit.source}/{record.locator}: bytes {record.start} to {record.stop}"
                    damage.append(f"{where} cannot be read: {record.message}")
                    continue
                documents += 1
                if record.failure is not None or documents - 1 in poison:
                    continue
                for picture in (media for media in record.media if isinstance(media, Image)):
                    pictures += 1
                    if picture.failure is None or picture.failure.outcome != Outcome.FAILED_UPSTREAM:
                        continue
                    if is_downloadable(picture.ref):
                        missing += 1
                        out.write(json.dumps([picture.ref, picture.alt, page_of(record)]) + "\n")
                    else:
                        nameless += 1
        check_unchanged(source, planned.unit)
        report(work.take())
        return _UnitUrls(documents, pictures, missing, nameless, damage)

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        """Read a unit up to its document ``last``; returns how many there were at ``[first, last)``."""
        work, count = Work(), 0
        for record in self._read(self.sources[planned.unit.source], planned, work, report, every=0.0):
            if isinstance(record, Document):
                count += 1
                if count >= last:
                    break
        return max(0, count - first)

    def _read(
        self, source: Source, planned: PlannedUnit, work: Work, report: Report, every: float = REPORT_EVERY
    ) -> Iterator[Document | ContainerDamage]:
        """The records of a unit, with reports of what was read."""
        reader, seen, reported = source.read(planned.unit), 0.0, time.monotonic()

        def alive() -> None:
            nonlocal reported
            if time.monotonic() - reported >= every:
                reported = time.monotonic()
                report(work.take())

        reader.alive = alive
        for record in reader:
            yield record
            work.documents += isinstance(record, Document)
            work.at = record.locator
            work.bytes += max(0.0, reader.consumed - seen) * planned.unit.bytes
            seen = max(seen, reader.consumed)
            alive()
        work.bytes += (1.0 - seen) * planned.unit.bytes


def is_downloadable(reference: str) -> bool:
    """Whether a picture's reference is an http(s) URL with a host, of less than ``MAX_URL`` characters."""
    if len(reference) >= MAX_URL:
        return False  # sources may have cut it short, and hardly a server takes it
    try:
        parts = urlsplit(reference)
        return parts.scheme.lower() in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


def page_of(document: Document) -> str:
    """The URL of the page that a document is; empty where it does not tell."""
    found = document.metadata.get("url")
    return found if isinstance(found, str) else ""
