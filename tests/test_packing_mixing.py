"""Packing that keeps a mixture of lengths: best fit in the order that is promised, every document once, near the best plan."""

from __future__ import annotations

import bisect
import json
from pathlib import Path

import numpy as np
import packing_corpus
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import FingerprintMismatch
from tokkit.packing.mixing import pack_mixed
from tokkit.packing.plan import PackPlan, plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.store import load_plan
from tokkit.packing.stream import StreamPacker
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress

SEQ = 40
MASK = (1 << 64) - 1
CASES = st.tuples(st.lists(st.integers(1, SEQ), max_size=120), st.floats(0, 1))


def drawn(items: list[int]) -> list[int]:
    """Fisher and Yates on SplitMix64, begun with the number of items."""
    items, state = list(items), len(items)
    for last in range(len(items) - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        value = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
        other = (value ^ (value >> 31)) % (last + 1)
        items[last], items[other] = items[other], items[last]
    return items


def best_fit(lengths: list[int], sequence: list[int], most: int) -> list[tuple[int, int]]:
    """Room and number of documents of each pack, one document at a time."""
    opened: list[tuple[int, int]] = []
    full: list[tuple[int, int]] = []
    for item in sequence:
        at = bisect.bisect_left(opened, (lengths[item], 0))
        room, count = opened.pop(at) if at < len(opened) else (SEQ, 0)
        pack_ = room - lengths[item], count + 1
        if pack_[0] and pack_[1] < most:
            bisect.insort(opened, pack_)
        else:
            full.append(pack_)
    return sorted(opened + full)


@settings(deadline=None, max_examples=300)
@given(CASES)
@example(([7] * 30, 0.5))
def test_best_fit_in_the_order_that_is_promised(case: tuple[list[int], float]) -> None:
    lengths, mixing = case
    pack_of, packs = pack_mixed(np.array(lengths, dtype=np.int32), SEQ, mixing)
    assert sorted(set(pack_of.tolist())) == list(range(packs))
    used = np.bincount(pack_of, weights=lengths, minlength=packs).astype(int) if lengths else np.zeros(0, dtype=int)
    by_length = sorted(range(len(lengths)), key=lambda n: (lengths[n], n))
    held_back = len(lengths) - round(mixing * len(lengths))
    sequence = drawn(by_length[held_back:]) + by_length[:held_back][::-1]
    assert sorted((SEQ - used).tolist()) == [room for room, _ in best_fit(lengths, sequence, 1 << 60)]


@settings(deadline=None, max_examples=100)
@given(CASES, st.integers(1, 5))
def test_plans_hold_every_document_once(case: tuple[list[int], float], most: int) -> None:
    lengths, mixing = case
    plan = plan_packs(np.array(lengths, dtype=np.int64), None, SEQ, max_documents=most, mixing=mixing)
    assert sorted(plan.pieces.document.tolist()) == list(range(len(lengths)))
    assert plan.pieces.length.tolist() == [lengths[d] for d in plan.pieces.document]
    for index in range(plan.num_packs):
        pieces = plan.pack(index)
        assert 0 < len(pieces) <= most
        assert int(pieces.length.sum()) <= SEQ
        assert pieces.document.tolist() == sorted(pieces.document.tolist())
    assert plan.pieces.document[plan.pack_offsets[:-1]].tolist() == sorted(plan.pieces.document[plan.pack_offsets[:-1]])


@pytest.mark.parametrize(("pictures", "mixing", "least"), [(0, 0.5, 0.9995), (0, 0.8, 0.998), (1026, 0.2, 0.999)])
def test_lengths_are_mixed_at_a_small_price(pictures: int, mixing: float, least: float) -> None:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(200 if pictures else 700), 1.1, 50_000)).astype(np.int64)
    lengths = np.clip(lengths + pictures * rng.choice([0, 1, 2, 3, 5], 50_000, p=[0.2, 0.5, 0.15, 0.1, 0.05]), 1, 8192)
    sorted_, mixed = plan_packs(lengths, None, 8192), plan_packs(lengths, None, 8192, mixing=mixing)
    assert mixed.efficiency > least
    assert _distinct(mixed) > _distinct(sorted_) + 0.15
    again = plan_packs(lengths, None, 8192, mixing=mixing)
    assert np.array_equal(again.pieces.document, mixed.pieces.document)


def _distinct(plan: PackPlan) -> float:
    """Distinct lengths in a pack, on average."""
    return float(np.mean([len(np.unique(plan.pack(n).length)) for n in range(0, plan.num_packs, 7)]))


@settings(deadline=None, max_examples=150)
@given(CASES, st.integers(1, 30), st.integers(0, 6))
@example(([3, 9] * 60, 0.5), 120, 4)  # a window that is sorted digit by digit
def test_a_stream_takes_the_longest_of_each_window_as_they_come(case: tuple[list[int], float], window: int, carry: int) -> None:
    lengths, mixing = case
    packer = StreamPacker(SEQ, window=window, carry=carry, mixing=mixing)
    packs = [p.tolist() for p in packer.push(lengths)]
    resumed = StreamPacker.of_state(json.loads(json.dumps(packer.state_dict())))
    assert resumed.mixing == mixing
    packs += [p.tolist() for p in resumed.flush()]
    assert sorted(n for p in packs for n in p) == list(range(len(lengths)))
    opened: list[tuple[int, int]] = []
    closed: list[tuple[int, int]] = []
    for begin in range(0, len(lengths), window):
        here = range(begin, min(begin + window, len(lengths)))
        longest = sorted(here, key=lambda n: (-lengths[n], n))
        ahead = round(mixing * len(here))
        for item in sorted(longest[:ahead]) + longest[ahead:]:
            at = bisect.bisect_left(opened, (lengths[item], 0))
            room, count = opened.pop(at) if at < len(opened) else (SEQ, 0)
            target = opened if room > lengths[item] else closed
            bisect.insort(target, (room - lengths[item], count + 1))
        while len(opened) > carry:
            closed.append(opened.pop(0))
    rooms = sorted(SEQ - sum(lengths[n] for n in p) for p in packs)
    assert rooms == sorted(room for room, _ in closed + opened)


def test_the_command_stores_it_and_verify_accepts_it(tmp_path: Path) -> None:
    documents = packing_corpus.random_documents(60, seed=4)
    directory = packing_corpus.write_directory(tmp_path / "out", {"train": documents})
    run = CliRunner().invoke(app, ["pack", str(directory), "--seq-len", "256", "--mixing", "0.5", "--json"])
    assert run.exit_code == 0, run.output
    plan = load_plan(directory / "packs" / "seq256-overlong-mixing0.5" / "train")
    assert plan.record.mixing == 0.5
    found = plan_packs(np.array([len(ids) for ids, _ in documents]), packing_corpus.span_table(documents), 256, mixing=0.5)
    assert np.array_equal(plan.pieces.document, found.pieces.document)
    pack(PackConfig(directory=directory, seq_len=256, name="usual"), SilentProgress())
    assert "mixing" not in json.loads((directory / "packs" / "usual" / "train" / "plan.json").read_text())
    with pytest.raises(FingerprintMismatch, match=r"mixing 0\.0 there, 0\.3 asked for"):
        pack(PackConfig(directory=directory, seq_len=256, name="usual", mixing=0.3), SilentProgress())
    verified = CliRunner().invoke(app, ["verify", str(directory), "--json"])
    assert "neither packed" not in verified.output
    assert "packs/seq256-overlong-mixing0.5" not in verified.output


def test_what_is_refused() -> None:
    lengths = np.ones(3, dtype=np.int64)
    for wrong in ({"mixing": -0.1}, {"mixing": 1.1}, {"align": 0}, {"align": 3}):
        with pytest.raises(ValueError, match="align"):
            plan_packs(lengths, None, 8, **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most 3 documents"):
        plan_packs(lengths, None, 8, SplitPolicy.FILL, 3)
    with pytest.raises(ValueError, match="mixing"):
        StreamPacker(8, mixing=2.0)
    for options in ({"max_documents": 3, "split_policy": "fill"}, {"align": 3}, {"mixing": 1.5}):
        with pytest.raises(ValidationError, match=next(iter(options))):
            PackConfig(directory=Path("x"), seq_len=64, **options)  # type: ignore[arg-type]
