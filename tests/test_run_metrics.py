"""``run/metrics.jsonl``: a line for each unit and one now and then, which grow, and add up to the summary and the manifest."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from run_world import World

from tokkit.pipelines import meter
from tokkit.pipelines.shard import ShardResult
from tokkit.storage import read_json

UNIT = {"event", "time", "unit", "source", "file", "documents", "tokens"}
PROGRESS = {"event", "time", "seconds", "documents", "images", "sounds", "tokens_by_kind"}
PROGRESS |= {"input_bytes", "outcomes", "stage_seconds"}
AMOUNTS = ("documents", "images", "sounds")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def result(world: World) -> ShardResult:
    """A run that notes how far it is whenever it is told of work."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meter, "NOTE_EVERY", 0.0)
        return world.result(world.folder / "out", report_documents=0)


def lines(out: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {line["event"] for line in found} <= {"unit", "progress"}
    assert all(isinstance(line["time"], float) for line in found)
    return [line for line in found if line["event"] == event]


def documents_of(units: list[dict[str, Any]]) -> Counter[str]:
    found: Counter[str] = Counter()
    for line in units:
        found.update(line["documents"])
    return found


def test_every_unit_has_a_line_and_they_add_up(result: ShardResult) -> None:
    units = lines(result.out, "unit")
    assert {frozenset(line) for line in units} == {frozenset(UNIT)}
    planned = [json.loads(line) for line in (result.out / "run" / "units.jsonl").read_text().splitlines()]
    assert len(planned) == result.manifest.units > 5
    told = {line["unit"]: (line["source"], line["file"]) for line in units}
    assert len(told) == len(units)  # each once
    assert told == {entry["index"]: (entry["source"], entry["file"]) for entry in planned}
    assert documents_of(units) == result.manifest.documents
    assert sum(line["tokens"] for line in units) == sum(split.tokens for split in result.manifest.splits.values())
    assert result.summary["units"] == len(units)
    assert result.summary["documents"] == documents_of(units).total()
    assert result.summary["tokens"] == sum(line["tokens"] for line in units)
    assert read_json(result.out / "run" / "summary.json") == result.summary


def test_what_is_noted_on_the_way_grows_and_ends_at_the_summary(result: ShardResult) -> None:
    notes = lines(result.out, "progress")
    assert len(notes) > 10
    assert {frozenset(note) for note in notes} == {frozenset(PROGRESS)}
    for before, after in pairwise(notes):
        for field in ("seconds", "input_bytes", *AMOUNTS):
            assert before[field] <= after[field], field
        for field in ("tokens_by_kind", "outcomes", "stage_seconds"):
            assert all(after[field].get(name, 0) >= amount for name, amount in before[field].items()), field
    last, summary = notes[-1], result.summary
    assert {name: last[name] for name in AMOUNTS} == {name: summary[name] for name in AMOUNTS}
    assert sum(last["tokens_by_kind"].values()) == summary["tokens"]
    assert last["input_bytes"] == summary["input_bytes"]
    assert last["seconds"] <= summary["seconds"]
    assert set(last["stage_seconds"]) <= set(summary["stage_seconds"])
    # The outcomes are of the units that were committed by then: all but the last.
    units = lines(result.out, "unit")
    assert Counter(last["outcomes"]) <= documents_of(units)


def test_each_process_tells_its_own_units_and_a_later_one_goes_on_in_the_same_file(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    part = world.part(out, 0, 3)
    first = lines(out, "unit")
    assert 0 < len(first) == part.committed < part.units
    result = world.result(out)
    units = lines(out, "unit")
    assert units[: len(first)] == first
    assert sorted(line["unit"] for line in units) == list(range(part.units))
    mine = units[len(first) :]
    assert result.summary["resumed_units"] == len(first)
    assert result.summary["units"] == len(mine)
    assert result.summary["documents"] == documents_of(mine).total()
    assert result.summary["tokens"] == sum(line["tokens"] for line in mine)
    assert documents_of(units) == result.manifest.documents
