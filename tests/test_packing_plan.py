"""Packing plans: exactness, completeness, cuts, bounds, determinism."""

from __future__ import annotations

import bisect
import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tokkit.errors import DataError
from tokkit.packing import kernels
from tokkit.packing.plan import PackPlan, plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.split import REASONS, Reason, aligned, needs_spans, split_documents
from tokkit.shards.spans import SpanTable

NEVER, OVERLONG, FILL = SplitPolicy.NEVER, SplitPolicy.OVERLONG, SplitPolicy.FILL
TEXT, IMAGE = 0, 1


def brute_force(lengths: list[int], seq_len: int) -> list[int]:
    """Best-fit-decreasing as the textbook has it, one item at a time: the residuals of the bins, sorted."""
    residuals: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(residuals, length)
        room = residuals.pop(at) if at < len(residuals) else seq_len
        bisect.insort(residuals, room - length)
    return residuals


def residuals(plan: PackPlan) -> list[int]:
    ends = np.concatenate([[0], np.cumsum(plan.pieces.length)])
    return sorted((plan.seq_len - np.diff(ends[plan.pack_offsets])).tolist())


def optimum(lengths: list[int], seq_len: int) -> int:
    """The fewest bins, by trying everything (up to about 8 items)."""

    def search(rest: tuple[int, ...], rooms: tuple[int, ...], best: int) -> int:
        if len(rooms) >= best:
            return best
        if not rest:
            return len(rooms)
        for room in sorted({r for r in rooms if r >= rest[0]}):
            i = rooms.index(room)
            best = search(rest[1:], (*rooms[:i], room - rest[0], *rooms[i + 1 :]), best)
        return search(rest[1:], (*rooms, seq_len - rest[0]), best)

    return search(tuple(sorted(lengths, reverse=True)), (), len(lengths) + 1)


@st.composite
def lengths_and_seq_len(draw: st.DrawFn) -> tuple[list[int], int]:
    seq_len = draw(st.one_of(st.integers(1, 40), st.sampled_from([63, 64, 65, 127, 128, 4095, 4096, 4097, 5000, 20_000])))
    near = st.integers(max(1, seq_len // 4), seq_len)
    return draw(st.lists(st.one_of(st.integers(1, seq_len), near, st.just(1), st.just(seq_len)), max_size=120)), seq_len


@settings(deadline=None, max_examples=300)
@given(lengths_and_seq_len())
@example(([], 8))
@example(([8] * 3, 8))
@example(([1] * 17, 8))
@example(([1] * 130 + [63] * 65, 64))
def test_equals_brute_force_best_fit_decreasing(case: tuple[list[int], int]) -> None:
    lengths, seq_len = case
    plan = plan_packs(np.array(lengths, dtype=np.int64), None, seq_len, NEVER)
    expected = brute_force(lengths, seq_len)
    assert plan.num_packs == len(expected)
    assert residuals(plan) == expected


def bounded(lengths: list[int], seq_len: int, most: int) -> list[int]:
    """As :func:`brute_force`, bins of at most ``most`` items."""
    opened: list[tuple[int, int]] = []
    full: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect.bisect_left(opened, (length, 0))
        room, count = opened.pop(at) if at < len(opened) else (seq_len, 0)
        if count + 1 == most:
            full.append(room - length)
        else:
            bisect.insort(opened, (room - length, count + 1))
    return sorted(full + [room for room, _ in opened])


@settings(deadline=None, max_examples=300)
@given(lengths_and_seq_len(), st.integers(1, 9))
def test_no_pack_holds_more_documents_than_it_may(case: tuple[list[int], int], most: int) -> None:
    lengths, seq_len = np.array(case[0], dtype=np.int64), case[1]
    plan = plan_packs(lengths, None, seq_len, NEVER, most)
    assert plan.max_pieces <= most
    assert sorted(plan.pieces.document.tolist()) == list(range(len(lengths)))
    assert all(room >= 0 for room in residuals(plan))
    if len(lengths) <= most:
        assert residuals(plan) == brute_force(case[0], seq_len)


def test_one_document_to_a_pack() -> None:
    assert plan_packs(np.arange(1, 9), None, 64, OVERLONG, 1).num_packs == 8
    for policy, most in ((FILL, 3), (OVERLONG, 0)):
        with pytest.raises(ValueError, match="at most"):
            plan_packs(np.arange(1, 9), table(*[[]] * 8), 64, policy, most)


@pytest.mark.parametrize("most", [2, 3, 8])
def test_a_bound_costs_about_what_the_textbook_says(most: int) -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(np.log(700), 1.1, 20_000)).astype(np.int64), 1, 8192)
    plan = plan_packs(lengths, None, 8192, OVERLONG, most)
    expected = bounded(lengths.tolist(), 8192, most)
    # Among bins of equal room the choice is free, but with a bound it is no longer the same whichever is taken.
    assert abs(plan.num_packs - len(expected)) <= 0.001 * len(expected)


@pytest.mark.parametrize(("seed", "seq_len", "images"), [(0, 8192, 0), (1, 8192, 1026), (2, 6000, 1026), (3, 70_000, 0)])
def test_equals_brute_force_on_realistic_lengths(seed: int, seq_len: int, images: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(700), 1.1, 20_000)).astype(np.int64) + images * rng.integers(0, 5, 20_000)
    lengths = np.clip(lengths, 1, seq_len)
    assert residuals(plan_packs(lengths, None, seq_len)) == brute_force(lengths.tolist(), seq_len)


@settings(deadline=None, max_examples=150)
@given(st.integers(2, 30).flatmap(lambda n: st.tuples(st.lists(st.integers(1, n), max_size=7), st.just(n))))
def test_bounds_hold_for_the_optimum(case: tuple[list[int], int]) -> None:
    lengths, seq_len = case
    plan = plan_packs(np.array(lengths, dtype=np.int64), None, seq_len)
    best = optimum(lengths, seq_len)
    assert plan.bounds.volume == -(-sum(lengths) // seq_len)
    assert plan.bounds.volume <= plan.bounds.martello_toth <= best <= plan.num_packs


def test_martello_toth_sees_what_volume_does_not() -> None:
    plan = plan_packs(np.array([6, 6, 6, 4, 5, 5], dtype=np.int64), None, 10)
    assert (plan.bounds.volume, plan.bounds.martello_toth, plan.num_packs) == (4, 4, 4)
    plan = plan_packs(np.full(12, 8208 // 2 + 1, dtype=np.int64), None, 8192)
    assert (plan.bounds.volume, plan.bounds.martello_toth, plan.num_packs) == (7, 12, 12)


# ---- documents with spans


@st.composite
def laid_out_documents(draw: st.DrawFn) -> tuple[list[int], SpanTable]:
    """Documents [begin] spans [end], some of them empty or without markers, spans of text and pictures."""
    lengths, offsets, start, length, modality = [], [0], [], [], []
    for _ in range(draw(st.integers(0, 12))):
        spans = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 30)), max_size=8))
        position = draw(st.integers(0, 1))
        for kind, size in spans:
            start.append(position)
            length.append(size)
            modality.append(kind)
            position += size
        lengths.append(position + draw(st.integers(0, 1)))
        offsets.append(len(start))
    table = SpanTable(
        np.array(offsets, dtype=np.int64),
        np.array(start, dtype=np.int64),
        np.array(length, dtype=np.int64),
        np.array(modality, dtype=np.uint8),
    )
    return lengths, table


@settings(deadline=None, max_examples=400)
@given(
    laid_out_documents(),
    st.integers(1, 40),
    st.sampled_from([NEVER, OVERLONG, FILL]),
    st.sampled_from([1, 1, 2, 3, 8]),
    st.sampled_from([0.0, 0.0, 0.3, 1.0]),
)
def test_every_token_once_and_no_media_span_cut(
    documents: tuple[list[int], SpanTable], seq_len: int, policy: SplitPolicy, align: int, mixing: float
) -> None:
    lengths, spans = documents
    seq_len = -(-seq_len // align) * align
    plan = plan_packs(np.array(lengths, dtype=np.int64), spans, seq_len, policy, align=align, mixing=mixing)
    pieces = plan.pieces
    used = [sum(-(-n // align) * align for n in plan.pack(k).length.tolist()) for k in range(plan.num_packs)]
    assert max(used, default=0) <= seq_len
    assert plan.bounds.volume <= plan.bounds.martello_toth <= plan.num_packs
    assert plan.num_documents == len(lengths)
    assert (np.diff(plan.pack_offsets) > 0).all()
    assert all(r >= 0 for r in residuals(plan))
    assert (pieces.length > 0).all()

    by_document: dict[int, list[tuple[int, int]]] = {d: [] for d in range(len(lengths))}
    for d, s, n in zip(pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True):
        by_document[d].append((s, s + n))
    left_out = set(plan.left_out.document.tolist())
    for d, stretches in by_document.items():
        stretches.sort()
        if d in left_out:
            assert not stretches
            continue
        assert [0, *(e for _, e in stretches)] == [*(s for s, _ in stretches), lengths[d]]
        atomic = _atomic(spans, d)
        for _, cut in stretches[:-1]:
            assert not any(a < cut < b for a, b in atomic)
        if policy is FILL:
            continue
        if lengths[d] <= seq_len:
            assert len(stretches) == 1
        # As long as possible: what follows would not have fitted beside it, either by a token or by a media span.
        for (s, e), _ in itertools.pairwise(stretches):
            assert e - s == seq_len or any(a == e and b > s + seq_len for a, b in atomic)


@settings(deadline=None, max_examples=300)
@given(laid_out_documents(), st.integers(1, 40), st.sampled_from([NEVER, OVERLONG, FILL]))
def test_left_out_says_why_and_what_it_would_need(
    documents: tuple[list[int], SpanTable], seq_len: int, policy: SplitPolicy
) -> None:
    lengths, spans = documents
    _, left_out = split_documents(np.array(lengths, dtype=np.int64), spans, seq_len, policy)
    expected = {}
    for d, n in enumerate(lengths):
        longest = max((b - a for a, b in _atomic(spans, d)), default=0)
        if n == 0:
            expected[d] = (Reason.EMPTY, 0, 0)
        elif n > seq_len and policy is NEVER:
            expected[d] = (Reason.OVERLONG, n, n)
        elif n > seq_len and longest > seq_len:
            expected[d] = (Reason.ATOMIC_SPAN, n, longest)
    found = {
        d: (REASONS[r], n, needs)
        for d, n, r, needs in zip(
            left_out.document.tolist(),
            left_out.length.tolist(),
            left_out.reason.tolist(),
            left_out.needs.tolist(),
            strict=True,
        )
    }
    assert found == expected
    for d, (_, _, needs) in found.items():
        if needs:
            _, still = split_documents(np.array(lengths, dtype=np.int64), spans, needs, policy)
            assert d not in still.document


def _atomic(spans: SpanTable, document: int) -> list[tuple[int, int]]:
    rows = range(int(spans.offsets[document]), int(spans.offsets[document + 1]))
    return [(int(spans.start[s]), int(spans.start[s] + spans.length[s])) for s in rows if spans.modality[s] != TEXT]


def table(*documents: list[tuple[int, int, int]]) -> SpanTable:
    flat = np.array([s for d in documents for s in d], dtype=np.int64).reshape(-1, 3)
    return SpanTable(np.cumsum([0, *map(len, documents)]), flat[:, 0], flat[:, 1], flat[:, 2].astype(np.uint8))


@pytest.mark.parametrize(
    ("spans", "length", "expected"),
    [
        ([(1, 24, TEXT)], 26, [(0, 10), (10, 10), (20, 6)]),
        ([(1, 3, TEXT), (4, 8, IMAGE), (12, 9, TEXT)], 22, [(0, 4), (4, 10), (14, 8)]),
        ([(1, 10, IMAGE), (11, 10, IMAGE)], 22, [(0, 1), (1, 10), (11, 10), (21, 1)]),
        ([(1, 9, IMAGE), (10, 2, IMAGE)], 13, [(0, 10), (10, 3)]),
        ([], 12, [(0, 10), (10, 2)]),
    ],
)
def test_where_the_cuts_go(spans: list[tuple[int, int, int]], length: int, expected: list[tuple[int, int]]) -> None:
    pieces, left_out = split_documents(np.array([length]), table(spans), 10, OVERLONG)
    assert list(zip(pieces.start.tolist(), pieces.length.tolist(), strict=True)) == expected
    assert len(left_out) == 0


def test_only_overlong_documents_need_spans() -> None:
    lengths = np.array([5, 10])
    assert not needs_spans(lengths, 10, OVERLONG)
    assert needs_spans(lengths, 9, OVERLONG)
    assert not needs_spans(lengths, 9, NEVER)
    assert not needs_spans(lengths[:0], 9, OVERLONG)
    assert needs_spans(lengths, 10, FILL)
    assert not needs_spans(lengths[:0], 9, FILL)
    with pytest.raises(ValueError, match="spans"):
        split_documents(lengths, None, 9, OVERLONG)


@pytest.mark.parametrize("spans", [[(1, 5, TEXT), (4, 3, TEXT)], [(1, 30, TEXT)], [(-1, 3, TEXT)], [(2, -1, TEXT)]])
def test_contradictory_spans_are_refused(spans: list[tuple[int, int, int]]) -> None:
    with pytest.raises(DataError, match="document 1"):
        split_documents(np.array([3, 20]), table([], spans), 10, OVERLONG)
    with pytest.raises(DataError, match="document 1"):
        plan_packs(np.array([3, 20]), table([], spans), 25, FILL)


@pytest.mark.parametrize("seq_len", [0, -1, (1 << 24) + 1])
def test_seq_len_out_of_range(seq_len: int) -> None:
    with pytest.raises(ValueError, match="seq_len"):
        plan_packs(np.array([1]), None, seq_len)


# ---- fill


def interleaved(count: int, factor: int, seed: int = 0) -> tuple[np.ndarray, SpanTable, np.ndarray]:
    """Documents of 0 to 5 times ``factor`` pictures of 1,026 tokens in a text: lengths, spans, pictures of each."""
    rng = np.random.default_rng(seed)
    texts = np.maximum(rng.lognormal(np.log(200), 1.1, count).astype(np.int64), 1)
    pictures = factor * rng.choice([0, 1, 2, 3, 5], count, p=[0.2, 0.5, 0.15, 0.1, 0.05])
    documents, lengths = [], []
    for text, number in zip(texts.tolist(), pictures.tolist(), strict=True):
        spans, position = [], 1
        for part, size in enumerate(np.diff(np.linspace(0, text, number + 2).astype(int)).tolist()):
            if size:
                spans.append((position, size, TEXT))
                position += size
            if part < number:
                spans.append((position, 1026, IMAGE))
                position += 1026
        documents.append(spans)
        lengths.append(position + 1)
    return np.array(lengths, dtype=np.int64), table(*documents), pictures


@pytest.mark.parametrize(("factor", "seq_len"), [(1, 4096), (2, 4096), (2, 8192), (3, 8192), (4, 8192), (4, 16384)])
def test_fill_comes_near_what_pictures_allow(factor: int, seq_len: int) -> None:
    lengths, spans, pictures = interleaved(6000, factor)
    whole, filled = (plan_packs(lengths, spans, seq_len, policy) for policy in (OVERLONG, FILL))
    fewest = max(whole.bounds.volume, -(-int(pictures.sum()) // (seq_len // 1026)))  # a sequence holds so many pictures
    assert filled.num_tokens == whole.num_tokens == int(lengths.sum())
    assert fewest <= filled.num_packs <= 1.02 * fewest
    assert filled.num_packs < 0.99 * whole.num_packs
    assert all(room >= 0 for room in residuals(filled))


def test_fill_cuts_nothing_where_whole_documents_pack_well() -> None:
    for factor, seq_len in ((1, 8192), (0, 2048)):
        lengths, spans, _ = interleaved(4000, factor)
        whole, filled = (plan_packs(lengths, spans, seq_len, policy) for policy in (OVERLONG, FILL))
        assert np.array_equal(whole.pieces.start, filled.pieces.start)
        assert np.array_equal(whole.pack_offsets, filled.pack_offsets)


def test_fill_with_mixed_lengths_fills_the_holes_that_these_leave() -> None:
    """Lengths in a drawn order leave holes that no document is short enough for; cutting a few documents fills them."""
    lengths, spans, _ = interleaved(6000, 1)
    usual, whole, filled = (
        plan_packs(lengths, spans, 8192, policy, mixing=mixing)
        for policy, mixing in ((OVERLONG, 0.0), (OVERLONG, 0.5), (FILL, 0.5))
    )
    assert whole.efficiency < 0.985 < 0.998 < filled.efficiency
    assert 0 < filled.num_cut_documents < 0.05 * len(lengths)
    assert spread(usual) < 0.5
    assert min(spread(whole), spread(filled)) > 0.65


def spread(plan: PackPlan) -> float:
    """The share of the variance of log lengths that is within packs."""
    logs, pack = np.log(plan.pieces.length), np.repeat(np.arange(plan.num_packs), np.diff(plan.pack_offsets))
    means = np.bincount(pack, logs) / np.bincount(pack)
    return float(np.square(logs - means[pack]).mean() / logs.var())


@pytest.mark.parametrize(("factor", "seq_len"), [(2, 8192), (4, 8192), (4, 16384)])
def test_fill_with_places_for_every_piece_comes_near_it_too(factor: int, seq_len: int) -> None:
    lengths, spans, _ = interleaved(4000, factor)
    for mixing in (0.0, 0.5):
        plain, placed = (plan_packs(lengths, spans, seq_len, FILL, align=n, mixing=mixing) for n in (1, 16))
        assert placed.num_packs <= 1.02 * plain.num_packs
        assert np.add.reduceat(aligned(placed.pieces.length, 16), placed.pack_offsets[:-1]).max() <= seq_len


@settings(deadline=None, max_examples=200)
@given(laid_out_documents(), st.integers(1, 64), st.sampled_from([1, 1, 4]), st.sampled_from([0.0, 0.5]))
def test_fill_never_takes_more_packs_and_is_repeatable(
    documents: tuple[list[int], SpanTable], seq_len: int, align: int, mixing: float
) -> None:
    lengths, spans = np.array(documents[0], dtype=np.int64), documents[1]
    whole, filled, again = (
        plan_packs(lengths, spans, align * seq_len, policy, align=align, mixing=mixing) for policy in (OVERLONG, FILL, FILL)
    )
    assert filled.num_packs <= whole.num_packs
    assert np.array_equal(filled.pieces.start, again.pieces.start)
    assert np.array_equal(filled.pack_offsets, again.pack_offsets)
    for number in range(filled.num_packs):
        pack = filled.pack(number)
        ends = list(zip(pack.document.tolist(), (pack.start + pack.length).tolist(), strict=True))
        assert not set(ends) & set(zip(pack.document.tolist(), pack.start.tolist(), strict=True))  # no needless cut


# ---- order and determinism


@settings(deadline=None, max_examples=100)
@given(lengths_and_seq_len())
def test_order_is_canonical_and_repeatable(case: tuple[list[int], int]) -> None:
    lengths, seq_len = np.array(case[0], dtype=np.int64), case[1]
    plan, again = plan_packs(lengths, None, seq_len), plan_packs(lengths.copy(), None, seq_len)
    assert np.array_equal(plan.pack_offsets, again.pack_offsets)
    assert np.array_equal(plan.pieces.document, again.pieces.document)
    packs = [plan.pack(i).document.tolist() for i in range(plan.num_packs)]
    assert all(pack == sorted(pack) for pack in packs)
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)


def test_equal_lengths_go_in_document_order() -> None:
    plan = plan_packs(np.array([3, 5, 3, 5, 3, 5]), None, 8)
    assert [plan.pack(i).document.tolist() for i in range(plan.num_packs)] == [[0, 1], [2, 3], [4, 5]]


def test_figures_of_a_plan() -> None:
    plan = plan_packs(np.array([0, 25, 4, 11]), table([], [(1, 23, TEXT)], [], [(0, 11, IMAGE)]), 10)
    assert (plan.num_documents, plan.num_packs, plan.num_tokens, plan.num_cut_documents) == (4, 3, 29, 1)
    assert plan.efficiency == pytest.approx(29 / 30)
    assert plan.max_pieces == 2
    assert plan.left_out.by_reason() == {"empty": 1, "media-span-longer-than-seq-len": 1}
    assert plan.left_out.num_tokens == 11


def test_nothing_to_pack() -> None:
    plan = plan_packs(np.zeros(0, dtype=np.int64), None, 16)
    assert (plan.num_packs, plan.num_tokens, plan.efficiency, plan.max_pieces) == (0, 0, 1.0, 0)
    assert plan.pack_offsets.tolist() == [0]
    plan = plan_packs(np.zeros(3, dtype=np.int64), None, 16)
    assert (plan.num_packs, len(plan.left_out)) == (0, 3)


@settings(deadline=None, max_examples=300)
@given(st.sets(st.integers(0, 9000), max_size=5), st.integers(0, 9000))
def testnext_residual_finds_the_lowest_set_bit(bits: set[int], low: int) -> None:
    words = np.zeros((9000 >> 6) + 1, dtype=np.uint64)
    summary = np.zeros((words.size + 63) >> 6, dtype=np.uint64)
    for bit in bits:
        words[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
        summary[bit >> 12] |= np.uint64(1) << np.uint64((bit >> 6) & 63)
    assert kernels.next_residual(words, summary, low) == min((b for b in bits if b >= low), default=-1)


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(1, 40), max_size=300),
    st.integers(40, 90),
    st.integers(1, 12) | st.just(1 << 62),
)
def test_packs_walked_one_by_one_are_those_of_the_items(lengths: list[int], seq_len: int, most: int) -> None:
    """Two ways to the same numbering: pack by pack, and by the pack of every item."""
    array = np.array(lengths, dtype=np.int32)
    offsets, items, packed = kernels.packs_in_order(array, kernels.histogram(array, seq_len), seq_len, most)
    expected = kernels.canonical_order(*kernels.pack_items(array, seq_len, most))
    assert offsets.tolist() == expected[0].tolist()
    assert items.tolist() == expected[1].tolist()
    assert packed.tolist() == array[items].tolist()


def test_long_packs_are_sorted() -> None:
    array = np.random.default_rng(0).integers(1, 4, 5000).astype(np.int32)
    offsets, items, _ = kernels.packs_in_order(array, kernels.histogram(array, 4000), 4000)
    assert np.diff(offsets).max() > 1000
    assert all((np.diff(items[a:b]) > 0).all() for a, b in itertools.pairwise(offsets.tolist()))
    assert sorted(items.tolist()) == list(range(5000))


@pytest.mark.parametrize(("seed", "seq_len", "images"), [(0, 1000, 0), (1, 8192, 2)])
def test_equals_the_packing_of_trl(seed: int, seq_len: int, images: int) -> None:
    pytest.importorskip("trl", exc_type=ImportError)
    from datasets import Dataset
    from trl import pack_dataset

    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.normal(np.log(300), 1.1, 3000)).astype(np.int64) + 1026 * rng.integers(0, images + 1, 3000)
    lengths = np.clip(lengths, 1, seq_len)
    rows = Dataset.from_dict({"input_ids": [[0] * n for n in lengths.tolist()]})
    packed = pack_dataset(rows, seq_len, "bfd", {"batch_size": len(rows)})
    assert sorted(seq_len - sum(row) for row in packed["seq_lengths"]) == residuals(plan_packs(lengths, None, seq_len))
