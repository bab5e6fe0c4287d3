"""Pictures and sounds longer than a sequence: refused with what to do about it, or left out where that is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import packing_corpus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import MediaTooLongError
from tokkit.interleave import AudioCodes, ImageCodes, Layout, Part, TextCodes, encode
from tokkit.packing.advise import advise
from tokkit.packing.policy import SplitPolicy, TooLong
from tokkit.packing.store import load_plan, pack_folder
from tokkit.packing.too_long import media_too_long
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.shards.native import open_shards
from tokkit.shards.spans import SpanTable
from tokkit.vocabulary import MODALITIES

TEXT = TextCodes(np.arange(30, dtype=np.int32))
PICTURE = ImageCodes(np.zeros((1, 7, 7), dtype=np.int32))  # 51 tokens
SMALL = ImageCodes(np.zeros((1, 4, 4), dtype=np.int32))  # 18
SOUND = AudioCodes(np.zeros((1, 70), dtype=np.int32), 16_000, 70)  # 72


def documents(*kinds: list[Part]) -> list[packing_corpus.Encoded]:
    return [encode(parts, packing_corpus.VOCABULARY, Layout()) for parts in kinds]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    train = documents([TEXT], [TEXT, PICTURE, TEXT, PICTURE], [SMALL, TEXT], [SOUND], [TEXT, TEXT, TEXT], [PICTURE])
    val = documents([TEXT], [SMALL, TEXT])
    # Of sounds whose layout has no frame after frame, none can be cut.
    layout = Layout(audio="book_major")
    return packing_corpus.write_directory(tmp_path / "out", {"train": train, "val": val}, layout=layout)


def packed(directory: Path, seq_len: int, **options: object) -> object:
    return pack(PackConfig.model_validate({"directory": directory, "seq_len": seq_len, **options}), SilentProgress())


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 90)), max_size=5), min_size=1, max_size=8),
    st.integers(1, 100),
)
def test_what_is_too_long_is_counted(corpus: list[list[tuple[int, int]]], seq_len: int) -> None:
    lengths = np.array([2 + sum(n for _, n in spans) for spans in corpus])
    flat = [span for spans in corpus for span in spans]
    table = SpanTable(
        np.cumsum([0, *map(len, corpus)]),
        np.array([1 + sum(n for _, n in spans[:i]) for spans in corpus for i in range(len(spans))], dtype=np.int64),
        np.array([n for _, n in flat], dtype=np.int64),
        np.array([m for m, _ in flat], dtype=np.uint8),
    )
    wrong = [d for d, spans in enumerate(corpus) if any(m > 0 and n > seq_len for m, n in spans)]
    found = media_too_long(lengths, table, seq_len)
    assert (found is None) == (not wrong)
    if found is None:
        return
    assert (found.documents, found.of, found.tokens) == (len(wrong), len(corpus), sum(int(lengths[d]) for d in wrong))
    for m, name in enumerate(MODALITIES):
        long = [n for kind, n in flat if kind == m > 0 and n > seq_len]
        assert found.spans.get(name, 0) == len(long)
        assert found.longest.get(name, 0) == max(long, default=0)
    assert media_too_long(lengths, table, found.needs) is None
    assert media_too_long(lengths, table, found.needs - 1) is not None


@pytest.mark.parametrize("policy", list(SplitPolicy))
def test_a_sequence_that_cannot_hold_a_picture_is_refused(directory: Path, policy: SplitPolicy) -> None:
    with pytest.raises(MediaTooLongError) as refused:
        packed(directory, 50, split_policy=policy)
    for part in (
        "3 of the 6 documents of split train",
        "3 image spans (the longest of 51 tokens)",
        "1 audio span (the longest of 72 tokens)",
        "--seq-len 72",
        "--too-long leave-out",
    ):
        assert part in str(refused.value)
    assert "val" not in str(refused.value)
    assert not (directory / "packs").exists()
    assert refused.value.needs == 72
    packed(directory, refused.value.needs, split_policy=policy)
    with pytest.raises(MediaTooLongError):
        packed(directory, refused.value.needs - 1, split_policy=policy)


@pytest.mark.parametrize("policy", list(SplitPolicy))
def test_documents_that_are_too_long_are_left_out_where_that_is_asked_for(directory: Path, policy: SplitPolicy) -> None:
    packed(directory, 60, split_policy=policy, too_long=TooLong.LEAVE_OUT)
    plan = load_plan(pack_folder(directory, f"seq60-{policy}", "train"))
    left_out = plan.left_out()
    assert 3 in left_out.document
    assert {5, 0, 2}.isdisjoint(left_out.document.tolist())  # a picture of 51 tokens fits
    assert plan.record.by_modality["audio"].left_out_spans == 1


def test_a_plan_that_left_documents_out_is_not_found_again_without_saying_so(directory: Path) -> None:
    packed(directory, 60, too_long=TooLong.LEAVE_OUT)
    assert not packed(directory, 60, too_long=TooLong.LEAVE_OUT).splits["train"].written  # type: ignore[attr-defined]
    with pytest.raises(MediaTooLongError):
        packed(directory, 60)


def test_the_length_that_would_do_is_a_multiple_of_the_alignment(directory: Path) -> None:
    with pytest.raises(MediaTooLongError, match="--seq-len 80 or more") as refused:
        packed(directory, 64, align=16)
    packed(directory, refused.value.needs, align=16)


def test_only_what_holds_media_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts longer than a sequence are cut as ever; where every document fits the spans are not even read."""
    packing_corpus.write_directory(directory / "texts", {"train": documents([TEXT] * 4, [TEXT, SMALL])})
    assert packed(directory / "texts", 20).splits["train"].cut_documents == 2  # type: ignore[attr-defined]
    monkeypatch.setattr("tokkit.pipelines.pack.media_too_long", None)
    packed(directory, 256)


def test_the_command(directory: Path) -> None:
    command = ["pack", str(directory), "--seq-len", "60", "--quiet"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 2
    assert "--too-long leave-out" in told.output
    wrong = CliRunner().invoke(app, [*command, "--too-long", "sometimes"])
    assert wrong.exit_code == 2
    assert "too_long" in wrong.output
    done = CliRunner().invoke(app, [*command, "--too-long", "leave-out", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["splits"]["train"]["left_out"] == {"media-span-longer-than-seq-len": 1}
    assert CliRunner().invoke(app, ["pack", str(directory), "--advise", "--too-long", "error"]).exit_code == 2


def test_the_advice_says_which_lengths_cannot_hold_everything(directory: Path) -> None:
    shards = open_shards(directory, "train")
    assert [row.too_long for row in advise(shards.lengths, shards.spans, [16, 50, 51, 71, 72])] == [4, 3, 1, 1, 0]
    command = ["pack", str(directory), "--advise", "--seq-len", "50", "--seq-len", "96", "--quiet"]
    told = " ".join(CliRunner().invoke(app, command).output.split())
    assert "Up to 72 tokens of media must stay together. Too short for some: 50 (3 documents)" in told
    assert "The fullest of those that hold everything: 96" in told
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert found["longest_media"] == 72
    assert [row["too_long"] for row in found["advice"]] == [3, 0]
