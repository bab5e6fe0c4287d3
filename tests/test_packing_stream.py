"""Packing of a stream: every document once, as the textbook has it, in bounded memory, however it arrives."""

from __future__ import annotations

import bisect
import json
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokkit.packing import stream
from tokkit.packing.plan import plan_packs
from tokkit.packing.stream import StreamPacker

SEQ = 40


def brute_force(lengths: list[int], seq_len: int, window: int, carry: int, most: int) -> list[tuple[int, int]]:
    """Room and number of documents of each closed pack, window by window, one document at a time."""
    opened: list[tuple[int, int]] = []  # room, documents: the fullest first
    closed: list[tuple[int, int]] = []
    for begin in range(0, len(lengths), window):
        for length in sorted(lengths[begin : begin + window], reverse=True):
            at = bisect.bisect_left(opened, (length, 0))
            room, count = opened.pop(at) if at < len(opened) else (seq_len, 0)
            pack = room - length, count + 1
            if pack[0] and pack[1] < most:
                bisect.insort(opened, pack)
            else:
                closed.append(pack)
        while len(opened) > carry:
            closed.append(opened.pop(0))
    return sorted(closed + opened)


def packed(packer: StreamPacker, lengths: list[int], parts: list[int]) -> list[list[int]]:
    """The documents of each pack, the lengths pushed in parts of these sizes."""
    found, at = [], 0
    for size in [*parts, len(lengths)]:
        found += [pack.tolist() for pack in packer.push(lengths[at : at + size])]
        at += size
        assert packer.open_packs <= packer.carry
    return found + [pack.tolist() for pack in packer.flush()]


CASES = st.tuples(
    st.lists(st.integers(1, SEQ), max_size=150),
    st.integers(1, 30),
    st.integers(0, 12),
    st.lists(st.integers(0, 40), max_size=6),
)


@settings(deadline=None, max_examples=600)
@given(CASES)
@example(([1, 40], 1, 1, []))
@example(([1, 40, 2, 40, 3, 40, 4], 2, 12, [3]))
def test_every_document_once_and_as_the_textbook_has_it(case: tuple[list[int], int, int, list[int]]) -> None:
    lengths, window, carry, parts = case
    packer = StreamPacker(SEQ, window=window, carry=carry)
    packs = packed(packer, lengths, parts)
    assert sorted(n for pack in packs for n in pack) == list(range(len(lengths)))
    rooms = sorted((SEQ - sum(lengths[n] for n in pack), len(pack)) for pack in packs)
    assert all(room >= 0 for room, _ in rooms)
    expected = brute_force(lengths, SEQ, window, carry, 10**9)
    assert [room for room, _ in rooms] == [room for room, _ in expected]
    assert (packer.packs, packer.tokens) == (len(packs), sum(lengths))
    assert packs == packed(StreamPacker(SEQ, window=window, carry=carry), lengths, [])  # however they arrive
    with patch.object(stream, "_PART", 17):  # and however many are gone through at once
        assert packs == packed(StreamPacker(SEQ, window=window, carry=carry), lengths, [])


@settings(deadline=None, max_examples=150)
@given(CASES, st.integers(1, 5))
def test_no_pack_holds_more_documents_than_it_may(case: tuple[list[int], int, int, list[int]], most: int) -> None:
    lengths, window, carry, parts = case
    packs = packed(StreamPacker(SEQ, window=window, carry=carry, max_documents=most), lengths, parts)
    assert sorted(n for pack in packs for n in pack) == list(range(len(lengths)))
    assert all(0 < len(pack) <= most and sum(lengths[n] for n in pack) <= SEQ for pack in packs)


@settings(deadline=None, max_examples=100)
@given(CASES, st.integers(0, 150))
def test_another_packer_goes_on_from_the_state(case: tuple[list[int], int, int, list[int]], cut: int) -> None:
    lengths, window, carry, _ = case
    one = StreamPacker(SEQ, window=window, carry=carry, max_documents=7)
    first = [pack.tolist() for pack in one.push(lengths[:cut])]
    other = StreamPacker.of_state(json.loads(json.dumps(one.state_dict())))
    assert (other.packs, other.tokens, other.open_packs) == (one.packs, one.tokens, one.open_packs)
    rest = packed(other, lengths[cut:], [])
    assert first + rest == packed(StreamPacker(SEQ, window=window, carry=carry, max_documents=7), lengths, [])


@pytest.mark.parametrize(("pictures", "window", "carry", "least"), [(0, 1000, 64, 0.9994), (1026, 1000, 64, 0.9993)])
def test_a_small_window_loses_little(pictures: int, window: int, carry: int, least: float) -> None:
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(200 if pictures else 700), 1.1, 60_000)).astype(np.int64)
    lengths = np.clip(lengths + pictures * rng.choice([0, 1, 2, 3, 5], 60_000, p=[0.2, 0.5, 0.15, 0.1, 0.05]), 1, 8192)
    packer = StreamPacker(8192, window=window, carry=carry)
    packer.push(lengths)
    assert packer.efficiency > least
    packer.flush()
    alone = StreamPacker(8192, window=window, carry=0)
    alone.push(lengths)
    alone.flush()
    assert packer.packs < alone.packs
    assert packer.packs >= plan_packs(lengths, None, 8192).bounds.martello_toth


def test_nothing_at_all_and_what_is_refused() -> None:
    packer = StreamPacker(SEQ)
    assert list(packer.push([])) == list(packer.flush()) == []
    assert (packer.packs, packer.tokens, packer.efficiency) == (0, 0, 1.0)
    for wrong in ([0], [SEQ + 1], [[1]], [-1]):
        with pytest.raises(ValueError, match="lengths"):
            packer.push(wrong)
    for settings_ in ({"window": 0}, {"carry": -1}, {"max_documents": 0}):
        with pytest.raises(ValueError, match="seq_len"):
            StreamPacker(SEQ, **settings_)
    with pytest.raises(ValueError, match="seq_len"):
        StreamPacker(0)
