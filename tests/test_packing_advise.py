"""The advice on sequence lengths: the same figures as plans, the lengths that fit pictures among them, and why."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from packing_corpus import random_documents, span_table, write_directory
from test_packing_plan import interleaved
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.packing.advise import USUAL, advise, candidates, common_media
from tokkit.packing.plan import plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress


@pytest.mark.parametrize("policy", list(SplitPolicy))
def test_advice_is_what_plans_come_to(policy: SplitPolicy) -> None:
    documents = random_documents(200, seed=3)
    spans, lengths = span_table(documents), np.array([len(ids) for ids, _ in documents], dtype=np.int64)
    found = advise(lengths, spans, [17, 60, 128], policy)
    for advice, seq_len in zip(found, (17, 60, 128), strict=True):
        plan = plan_packs(lengths, spans, seq_len, policy)
        assert (advice.seq_len, advice.packs, advice.efficiency) == (seq_len, plan.num_packs, plan.efficiency)
        assert (advice.cut_documents, advice.left_out) == (plan.num_cut_documents, len(plan.left_out))
        assert advice.padding == plan.num_packs * seq_len - plan.num_tokens
        assert int(lengths.sum()) == plan.num_tokens + advice.left_out_tokens


def test_a_context_of_4096_holds_three_pictures_of_1026_tokens() -> None:
    lengths, spans, pictures = interleaved(3000, 2)
    media = common_media(lengths, spans)
    assert media is not None
    assert (media.length, media.count) == (1026, int(pictures.sum()))
    assert media.share == pytest.approx(1026 * pictures.sum() / lengths.sum())
    found = {advice.seq_len: advice for advice in advise(lengths, spans, candidates(media))}
    assert (found[4096].media, found[4096].beside) == (3, 1018)
    assert (found[8192].media, found[8192].beside) == (7, 1010)
    near = [n for n in found if n not in USUAL and 4096 <= n <= 8192]
    assert max(found[n].efficiency for n in near) > found[4096].efficiency + 0.05
    assert min(found) >= 1026


def test_text_alone_has_the_usual_lengths() -> None:
    lengths, spans, _ = interleaved(100, 0)
    assert common_media(lengths, spans) is None
    assert candidates(None) == list(USUAL)


def test_the_command_writes_nothing(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "shards", {"train": random_documents(60, seed=1)})
    before = sorted(path.relative_to(directory) for path in directory.rglob("*"))
    command = ["pack", str(directory), "--advise", "--quiet"]
    told = CliRunner().invoke(app, [*command, "--seq-len", "64", "--seq-len", "128", "--split", "fill"])
    assert told.exit_code == 0, told.output
    assert "64" in told.output
    assert "The fullest of these" in told.output
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert [row["seq_len"] for row in found["advice"]] == [n for n in USUAL if n >= found["media"]["length"]]
    assert sorted(path.relative_to(directory) for path in directory.rglob("*")) == before
    assert CliRunner().invoke(app, [*command, "--materialize"]).exit_code == 2
    assert CliRunner().invoke(app, ["pack", str(directory), "--seq-len", "8", "--seq-len", "9"]).exit_code == 2
    assert CliRunner().invoke(app, ["pack", str(directory)]).exit_code == 2


def test_a_plan_with_fill_is_stored_and_named(tmp_path: Path) -> None:
    directory = write_directory(tmp_path / "shards", {"train": random_documents(120, seed=2)})
    result = pack(PackConfig(directory=directory, seq_len=64, split_policy=SplitPolicy.FILL), SilentProgress())
    assert result.name == "seq64-fill"
    overlong = pack(PackConfig(directory=directory, seq_len=64), SilentProgress())
    assert result.splits["train"].packs <= overlong.splits["train"].packs
    again = pack(PackConfig(directory=directory, seq_len=64, split_policy=SplitPolicy.FILL), SilentProgress())
    assert not again.splits["train"].written
