"""Where a finished output's inputs, tokenizers, picture stores and filters are now: as given, else as ``run/`` recorded them.

Encoding again (:mod:`tokkit.pipelines.reencode`) asks here, and the user is told what to name where something is gone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokkit.documents import Outcome
from tokkit.errors import DataError, UsageError
from tokkit.filters import filter_digests, load_filters
from tokkit.pipelines.fingerprint import differences
from tokkit.pipelines.prepare import FILTERS
from tokkit.shards.manifest import RunManifest
from tokkit.sources.opening import Location, located
from tokkit.storage import read_json

if TYPE_CHECKING:
    from tokkit.pipelines.verify import VerifyConfig


def recorded_job(config: VerifyConfig) -> dict[str, Any]:
    """What ``run/job.json`` recorded; nothing where there is none."""
    path = config.directory / "run" / "job.json"
    entry = read_json(path) if path.exists() else None
    return entry if isinstance(entry, dict) else {}


def tokenizer_now(config: VerifyConfig, kind: str) -> Path:
    """The tokenizer of a kind: as given, else where the run had it."""
    given: Path | None = getattr(config, f"{kind}_tokenizer", None)
    if given is not None:
        if not given.exists():
            raise UsageError(f"--{kind}-tokenizer {given}: no such file or folder")
        return given
    recorded = recorded_job(config).get(f"{kind}_tokenizer")
    if not isinstance(recorded, str) or not Path(recorded).exists():
        where = f"at {recorded}, where the run had it" if recorded else "known (there is no run/job.json)"
        raise UsageError(f"the {kind} tokenizer is not {where}; name it with --{kind}-tokenizer")
    return Path(recorded)


def stores_now(config: VerifyConfig, manifest: RunManifest) -> list[str]:
    """The picture stores of the run: as given, else as it recorded them."""
    if not manifest.stores or config.images:
        return list(config.images)
    recorded = recorded_job(config).get("images")
    if not isinstance(recorded, list) or len(recorded) != len(manifest.stores):
        names = ", ".join(store.name for store in manifest.stores)
        raise UsageError(f"the picture stores ({names}) are not known, there is no run/job.json: name them with --images")
    return [str(typed) for typed in recorded]


def roots_now(config: VerifyConfig, manifest: RunManifest) -> dict[str, Location]:
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


def filters_now(config: VerifyConfig, manifest: RunManifest) -> list[str]:
    """The user's functions as they were named; they must be those that the documents went through.

    They are code: what the output says of where they are is told, and not run.
    """
    then = manifest.semantic.get(FILTERS)
    if not isinstance(then, dict) or not then:
        return []
    specs = list(config.filters)
    if not specs:
        recorded = recorded_job(config).get("filters")
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
