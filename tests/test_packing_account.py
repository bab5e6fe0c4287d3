"""What a plan costs by source and modality, against the pieces themselves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import packing_corpus
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.packing.account import _whole
from tokkit.packing.policy import SplitPolicy, TooLong
from tokkit.packing.store import load_plan
from tokkit.pipelines.findings import VerifyResult
from tokkit.pipelines.pack import PackConfig, SplitResult, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.verify_packs import check_packs
from tokkit.shards.native import open_shards
from tokkit.storage import digest_of, pretty_json

DOCUMENTS = packing_corpus.random_documents(150, seed=11)
SOURCES = [["web", "books", "web", "code"][n % 4] for n in range(150)]
MODALITIES = {span.modality for _, spans in DOCUMENTS for span in spans}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = packing_corpus.write_directory(tmp_path_factory.mktemp("cost"), {"train": DOCUMENTS, "val": []})
    first = 0
    for file in sorted((path / "tokens" / "train").glob("*.parquet")):
        table = pq.read_table(file)
        place = table.schema.get_field_index("source")
        own = SOURCES[first : first + table.num_rows]
        pq.write_table(table.set_column(place, table.schema.field("source"), [own]), file)
        first += table.num_rows
    return path


def packed(directory: Path, policy: SplitPolicy, seq_len: int) -> SplitResult:
    config = PackConfig(directory=directory, seq_len=seq_len, split_policy=policy, too_long=TooLong.LEAVE_OUT)
    return pack(config, SilentProgress()).splits["train"]


@pytest.mark.parametrize("policy", list(SplitPolicy))
@pytest.mark.parametrize("seq_len", [40, 96])
def test_costs_are_those_of_the_pieces(directory: Path, policy: SplitPolicy, seq_len: int) -> None:
    result = packed(directory, policy, seq_len)
    plan = load_plan(Path(result.folder))
    pieces: dict[int, list[tuple[int, int]]] = {}
    padding: dict[str, float] = dict.fromkeys(SOURCES, 0.0)
    for p in range(plan.num_packs):
        own = plan.pack(p)
        room = seq_len - int(own.length.sum())
        for d, start, length in zip(own.document.tolist(), own.start.tolist(), own.length.tolist(), strict=True):
            pieces.setdefault(d, []).append((start, length))
            padding[SOURCES[d]] += room * length / (seq_len - room)
    out = set(plan.left_out().document.tolist())
    expected = {name: Counter[str]() for name in dict.fromkeys(SOURCES)}
    for d, name in enumerate(SOURCES):
        size = len(DOCUMENTS[d][0])
        expected[name] += Counter(documents=1)
        if d in out:
            expected[name] += Counter(left_out_documents=1, left_out_tokens=size)
        else:
            cuts = len(pieces[d]) - 1
            expected[name] += Counter(tokens=size, cuts=cuts, cut_documents=int(cuts > 0))
    for name, counts in result.by_source.items():
        assert {**expected[name], "padding": counts["padding"]} == {k: v for k, v in counts.items() if v or k == "padding"}
        assert abs(counts["padding"] - padding[name]) < 1
    for key, total in (("padding", result.padding), ("tokens", result.tokens), ("cut_documents", result.cut_documents)):
        assert sum(counts[key] for counts in result.by_source.values()) == total
    assert result.cut_documents or result.left_out
    for modality in MODALITIES:
        counts = result.by_modality[modality]
        spans = [(d, s) for d, (_, all_spans) in enumerate(DOCUMENTS) for s in all_spans if s.modality == modality]
        left = [s.length for d, s in spans if d in out]
        cut = [
            (d, s.start)
            for d, s in spans
            if d not in out and any(s.start < start < s.start + s.length for start, _ in pieces[d])
        ]
        assert (counts["left_out_spans"], counts["left_out_tokens"]) == (len(left), sum(left))
        assert (counts["spans"], counts["tokens"]) == (len(spans), sum(s.length for _, s in spans) - sum(left))
        assert counts["cut_spans"] == len(cut)
        inside = sum(
            s.start < start < s.start + s.length
            for d, s in spans
            if d not in out
            for start, _ in pieces[d]
            if modality != "text"
        )
        assert counts["frame_cuts"] == inside
        assert modality in ("text", "audio") or not cut
    if policy is not SplitPolicy.NEVER and seq_len == 40:
        assert result.by_modality["text"]["cut_spans"] > 0
    if policy is SplitPolicy.FILL and seq_len == 40:
        assert result.by_modality["audio"]["frame_cuts"] > 0


def test_nothing_cut_is_nothing_said_of_modalities(directory: Path) -> None:
    result = packed(directory, SplitPolicy.OVERLONG, 1000)
    assert result.by_modality == {}
    assert sum(counts["documents"] for counts in result.by_source.values()) == len(DOCUMENTS)


def test_parts_add_up() -> None:
    assert _whole(np.array([0.5, 0.25, 0.25])) == [1, 0, 0]
    assert _whole(np.array([1 / 3] * 3)) == [1, 0, 0]
    assert _whole(np.array([2.0, 0.0, 2.9999999999])) == [2, 0, 3]
    drawn = np.random.default_rng(0).random((50, 7)) * 100
    for parts in drawn:
        parts[-1] += round(parts.sum()) - parts.sum()
        found = _whole(parts)
        assert sum(found) == round(parts.sum())
        assert (np.abs(np.array(found) - parts) < 1).all()


def test_the_command_and_verify(directory: Path) -> None:
    command = ["pack", str(directory), "--seq-len", "48", "--name", "told", "--too-long", "leave-out", "--quiet"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "What it costs, by source" in told.output
    assert "train books" in told.output
    assert "What it costs, by modality" in told.output
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert again["splits"]["train"]["by_source"]["code"]["documents"] == SOURCES.count("code")
    path = directory / "packs" / "told" / "train" / "plan.json"
    good = path.read_text()
    assert not problems(directory)
    for table, name, key in (("by_source", "web", "padding"), ("by_modality", "image", "left_out_spans")):
        entry = json.loads(good)
        entry[table][name][key] += 1
        entry["digest"] = digest_of(entry)
        path.write_text(pretty_json(entry))
        assert any(f"its counts {table.replace('_', ' ')} are not" in line for line in problems(directory))
        path.write_text(good)


def problems(directory: Path) -> list[str]:
    result = VerifyResult()
    check_packs(directory, {split: open_shards(directory, split) for split in ("train", "val")}, True, result, SilentProgress())
    return [str(problem) for problem in result.problems if "packs/told" in str(problem)]


def test_a_plan_of_an_earlier_version_is_read(directory: Path) -> None:
    shards = open_shards(directory, "train")
    packed(directory, SplitPolicy.OVERLONG, 70)
    folder = directory / "packs" / "seq70-overlong" / "train"
    entry = json.loads((folder / "plan.json").read_text())
    del entry["by_source"], entry["by_modality"]
    entry["digest"] = digest_of(entry)
    (folder / "plan.json").write_text(pretty_json(entry))
    assert load_plan(folder, shards=shards.fingerprint).record.by_source == {}
    assert packed(directory, SplitPolicy.OVERLONG, 70).by_source == {}
