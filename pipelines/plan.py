"""The plan of a run: its inputs listed once, cut into work units, and what a trial takes of each.

The plan is kept under ``run/`` (it names absolute paths and modification times): ``inputs.jsonl`` lists every file with size
and modification time, ``units.jsonl`` every unit. A resumed run takes the recorded units and refuses inputs that have changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from tokkit.errors import DataError, FingerprintMismatch, UsageError
from tokkit.failpoints import failpoint
from tokkit.pipelines.progress import Progress
from tokkit.sources.base import Source, Unit
from tokkit.sources.media_files import prefix_name
from tokkit.sources.opening import located, state_of
from tokkit.sources.resolve import ResolvedInputs
from tokkit.sources.sidecar import tar_stem
from tokkit.storage import write_atomic

INPUTS, UNITS = "inputs.jsonl", "units.jsonl"


@dataclass(frozen=True, slots=True)
class Poison:
    """A document that kills the process which works on it.

    Attributes:
        position: which document of the unit, from 0.
        cause: how the process dies each time: a signal's name or an exit code.
    """

    position: int
    cause: str


@dataclass(frozen=True, slots=True)
class PlannedUnit:
    """A unit with its number in the run (the order of the output).

    Attributes:
        quota: in a trial, how many documents to take of it.
        poison: documents of it that are known to kill: these are rejected, unlooked at.
    """

    index: int
    unit: Unit
    quota: int | None = None
    poison: tuple[Poison, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """Sources by name and the units in output order."""

    sources: dict[str, Source]
    units: list[PlannedUnit]


def make_plan(resolved: ResolvedInputs, directory: Path, *, unit_bytes: int, limit: int | None, progress: Progress) -> Plan:
    """Plan a new run, or take up the plan that ``directory`` (the run folder) holds.

    Raises:
        FingerprintMismatch: an input file has changed, gone or been added since the plan was made.
        UsageError: there is nothing to read.
    """
    sources = {source.name: source for source in resolved.sources}
    inputs_path, units_path = directory / INPUTS, directory / UNITS
    if units_path.exists():
        check_inputs(resolved, directory)
        # The input may have been moved since: files are taken from where they are now.
        units_then = [(p, sources[p.unit.source].file_of[p.unit.file].path) for p in _read_units(units_path)]
        return Plan(sources, [replace(p, unit=replace(p.unit, path=path)) for p, path in units_then])
    inputs = _inputs(resolved)
    units: list[Unit] = []
    with progress.task("plan", total=len(resolved.sources), unit="sources") as task:
        for source in resolved.sources:
            units.extend(source.units(unit_bytes))
            task.advance()
            task.fields(units=str(len(units)))
    if not units:
        raise UsageError("the inputs hold nothing to read")
    quotas = share_out(limit, [u.bytes for u in units]) if limit is not None else [None] * len(units)
    planned = [PlannedUnit(i, u, q) for i, (u, q) in enumerate(zip(units, quotas, strict=True))]
    write_atomic(inputs_path, "".join(json.dumps(entry) + "\n" for entry in inputs))
    failpoint("in-plan")
    # The units are written last: a plan is there when they are.
    write_atomic(
        units_path, "".join(json.dumps({"index": p.index, "quota": p.quota, **asdict(p.unit)}) + "\n" for p in planned)
    )
    return Plan(sources, planned)


def check_unchanged(source: Source, unit: Unit) -> None:
    """The unit's file, those that go with it, and what was read of picture stores are still as they were planned.

    Else nothing may be committed.

    Raises:
        FingerprintMismatch: they are not.
        OSError: one is gone.
    """
    # What is named alike belongs to it: a sidecar, a store of pictures; to the input's own folder, everything.
    file = PurePosixPath(unit.file)
    prefix = file.with_name(prefix_name(tar_stem(file.name))).as_posix() if unit.file != "." else ""
    for planned in (source.file_of[unit.file], *(file for file in source.watched if file.name.startswith(prefix))):
        if state_of(located(planned.path)) != (planned.size, planned.mtime_ns):
            raise FingerprintMismatch(
                f"{planned.path} has changed while it was being read: restore it and run the same command again, "
                f"or write to another --out"
            )
    if source.options.stores is not None:
        source.options.stores.check()


def share_out(limit: int, weights: Sequence[int]) -> list[int | None]:
    """``limit`` documents over units by weight (largest remainders; ties to the earlier unit); sums to ``limit``.

    Every source of a mixture is sampled in proportion to its bytes, and small units may get none.
    """
    total = sum(weights) or 1
    exact = [limit * w / total for w in weights]
    quotas = [int(x) for x in exact]
    order = sorted(range(len(weights)), key=lambda i: (quotas[i] - exact[i], i))
    for i in order[: limit - sum(quotas)]:
        quotas[i] += 1
    return list(quotas)


def _inputs(resolved: ResolvedInputs) -> list[dict[str, object]]:
    """Every file the run depends on, in a fixed order; those of picture stores under ``--images NAME``.

    What lies in a folder of pictures is one entry beside the folder's own, marked as its contents.
    """
    of_sources = [
        {"source": source.name, "format": source.format, **asdict(file)}
        for source in resolved.sources
        for file in [*source.files, *source.watched]
    ]
    of_sources += [
        {"source": source.name, "format": source.format, **asdict(file), "contents": True}
        for source in resolved.sources
        for file in source.contents()
    ]
    stores = resolved.stores.stores if resolved.stores is not None else ()
    of_stores = [
        {"source": f"--images {store.name}", "format": store.kind, **asdict(file)} for store in stores for file in store.files
    ]
    return [*of_sources, *of_stores]


def _key(entry: Mapping[str, Any]) -> tuple[str, str, bool]:
    """What an entry of the inputs is of: source, file, and whether of what lies in it."""
    return entry["source"], entry["name"], entry.get("contents", False)


def check_inputs(resolved: ResolvedInputs, directory: Path) -> None:
    """The inputs are those of the plan that ``directory`` holds.

    Raises:
        FingerprintMismatch: with everything that has changed, is new or gone.
        DataError: the list of them cannot be read.
    """
    path, now = directory / INPUTS, _inputs(resolved)
    try:
        then = [json.loads(line) for line in path.read_text().splitlines()]
        before = {_key(e): {"size": e["size"], "mtime_ns": e["mtime_ns"]} for e in then}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}); remove the output directory to start over") from None
    after = {_key(e): e for e in now}
    # A folder that is new or gone is told by itself, without what lies in it.
    problems = [f"gone: {source}/{name}" for source, name, within in before.keys() - after.keys() if not within]
    problems += [f"new: {source}/{name}" for source, name, within in after.keys() - before.keys() if not within]
    for key in before.keys() & after.keys():
        source, name, within = key
        what = f"{source}/{name}" + (": pictures or captions in it" if within else "")
        if before[key]["size"] != after[key]["size"]:
            problems.append(f"changed: {what} ({before[key]['size']} -> {after[key]['size']} bytes)")
        elif before[key]["mtime_ns"] != after[key]["mtime_ns"]:
            problems.append(f"changed: {what} (another modification time)")
    if problems:
        listed = "\n".join(f"  - {p}" for p in sorted(problems)[:20])
        raise FingerprintMismatch(
            f"the input is not what this run began with, so its output could not be told apart from a clean run:\n{listed}\n"
            f"restore it, or write to another --out"
        )


def _read_units(path: Path) -> list[PlannedUnit]:
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return [PlannedUnit(e.pop("index"), quota=e.pop("quota"), unit=Unit(**e)) for e in entries]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); remove the output directory to start over") from None
