"""The loader: one order whatever the ranks, workers and batch size, exactly once an epoch, gone on with from anywhere."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import packing_corpus
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tokkit.data import lines
from tokkit.data.lines import MixtureLine
from tokkit.data.loader import PackedLoader
from tokkit.data.packed import PackedDataset
from tokkit.data.shuffle import GroupedOrder, Permutation, Slots
from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress

L = 64
NAME = f"seq{L}-overlong"
DOCUMENTS = packing_corpus.random_documents(90, seed=6)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = packing_corpus.write_directory(tmp_path_factory.mktemp("loader"), {"train": DOCUMENTS, "val": []})
    pack(PackConfig(directory=path, seq_len=L), SilentProgress())
    pack(PackConfig(directory=path, seq_len=L, name="rows", materialize=True), SilentProgress())
    return path


@pytest.fixture(scope="module")
def line(directory: Path) -> list[tuple[int, ...]]:
    """The sequences of three epochs, one after another."""
    dataset = PackedDataset(directory, NAME, seed=7)
    return [row_of(dataset.at_epoch(epoch)[n]) for epoch in range(3) for n in range(len(dataset))]


def row_of(row: dict[str, torch.Tensor]) -> tuple[int, ...]:
    return tuple(row["input_ids"].tolist())


def batches(loader: PackedLoader, count: int | None = None) -> list[list[tuple[int, ...]]]:
    found = []
    for batch in loader:
        found.append([tuple(row) for row in batch["input_ids"].tolist()])
        if len(found) == count:
            break
    return found


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranks=st.integers(1, 5), batch_size=st.integers(1, 9), epochs=st.integers(1, 3))
def test_all_ranks_together_take_the_line(
    directory: Path, line: list[tuple[int, ...]], ranks: int, batch_size: int, epochs: int
) -> None:
    dataset = PackedDataset(directory, NAME, seed=7)
    loaders = [PackedLoader(dataset, batch_size, rank=r, world_size=ranks, epochs=epochs) for r in range(ranks)]
    expected = [len(loader) for loader in loaders]
    taken = [batches(loader) for loader in loaders]
    assert [len(steps) for steps in taken] == expected
    assert len(set(expected)) == 1
    together = [row for step in zip(*taken, strict=True) for part in step for row in part]
    assert together == line[: len(together)]
    assert len(dataset) * epochs - len(together) < ranks * batch_size
    assert [loader.place for loader in loaders] == [len(together)] * ranks


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_and_the_state_is_of_what_was_yielded(
    directory: Path, line: list[tuple[int, ...]], workers: int
) -> None:
    loader = PackedLoader(PackedDataset(directory, NAME, seed=7), 4, workers=workers, prefetch_factor=4)
    taken = batches(loader, 5)
    assert [row for step in taken for row in step] == line[:20]
    assert loader.state_dict()["place"] == 20  # though more was read ahead
    again = PackedLoader(PackedDataset(directory, NAME, seed=7), 4)
    again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    assert [row for step in batches(again, 3) for row in step] == line[20:32]


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(0, 6)),
    then=st.tuples(st.integers(1, 3), st.integers(1, 4)),
)
def test_resumed_with_other_ranks_and_batches(
    directory: Path, line: list[tuple[int, ...]], first: tuple[int, int, int], then: tuple[int, int]
) -> None:
    dataset = PackedDataset(directory, NAME, seed=7)
    ranks, batch_size, steps = first
    loader = PackedLoader(dataset, batch_size, rank=ranks - 1, world_size=ranks)
    if steps:
        batches(loader, steps)
    state = loader.state_dict()
    assert len(pickle.dumps(state)) < 1024
    place = ranks * batch_size * steps
    others = [PackedLoader(dataset, then[1], rank=r, world_size=then[0]) for r in range(then[0])]
    for other in others:
        other.load_state_dict(state)
    taken = [batches(other, 3) for other in others]
    together = [row for step in zip(*taken, strict=True) for part in step for row in part]
    assert together == line[place : place + len(together)]


def test_resuming_costs_the_same_everywhere(directory: Path) -> None:
    loader = PackedLoader(PackedDataset(directory, NAME, seed=7), 2)
    state = loader.state_dict()
    loader.load_state_dict({**state, "place": 10**15})
    assert loader.epoch == 10**15 // len(PackedDataset(directory, NAME))
    assert len(batches(loader, 2)) == 2


def test_an_epoch_goes_over_into_the_next(directory: Path) -> None:
    dataset = PackedDataset(directory, NAME, seed=7)
    loader = PackedLoader(dataset, 7)
    rows = [row for step in batches(loader, 2 * len(dataset) // 7 + 1) for row in step]
    each = Counter(row_of(dataset[n]) for n in range(len(dataset)))
    assert Counter(rows[: len(dataset)]) == each
    assert Counter(rows[len(dataset) : 2 * len(dataset)]) == each
    assert rows[: len(dataset)] != rows[len(dataset) : 2 * len(dataset)]


def test_a_state_of_other_data_is_refused(directory: Path) -> None:
    state = PackedLoader(PackedDataset(directory, NAME, seed=7), 2).state_dict()
    for other in (
        PackedDataset(directory, NAME, seed=8),
        PackedDataset(directory, "rows", seed=7),
        PackedDataset(directory, NAME, seed=7, redraw=True),
        PackedDataset(directory, NAME, seed=7, group=4),
    ):
        with pytest.raises(FingerprintMismatch, match=r"the state is of other data: (plan|seed|redraw|group) "):
            PackedLoader(other, 2).load_state_dict(state)
    for place in (None, -1, "3"):
        with pytest.raises(FingerprintMismatch, match="place"):
            PackedLoader(PackedDataset(directory, NAME, seed=7), 2).load_state_dict({**state, "place": place})


def test_what_makes_no_sense_is_refused(directory: Path) -> None:
    dataset = PackedDataset(directory, NAME)
    for more in ({"batch_size": 0}, {"batch_size": 1, "rank": 2, "world_size": 2}, {"batch_size": 1, "epochs": 0}):
        with pytest.raises(ValueError, match="batch_size"):
            PackedLoader(dataset, **more)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no sequences of split val"):
        PackedLoader(PackedDataset(directory, NAME, "val"), 1)
    for more in ({"redraw": True}, {"group": 4}):
        with pytest.raises(ValueError, match="need a seed"):
            PackedDataset(directory, NAME, **more)  # type: ignore[arg-type]
    for more in ({"group": 0}, {"group": 4, "window": 6}, {"group": 8, "window": 4}):
        with pytest.raises(ValueError, match="groups of"):
            PackedDataset(directory, NAME, seed=1, **more)


# ---- mixtures


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PackedDataset]:
    found = {}
    for number, count in enumerate((80, 9, 30)):
        documents = packing_corpus.random_documents(count, seed=20 + number)
        path = packing_corpus.write_directory(tmp_path_factory.mktemp("source"), {"train": documents})
        pack(PackConfig(directory=path, seq_len=L), SilentProgress())
        found["abc"[number]] = PackedDataset(path, NAME, seed=number)
    return found


def test_a_mixture_keeps_its_shares_and_each_source_its_epochs(several: dict[str, PackedDataset]) -> None:
    line = MixtureLine(several, {"a": 5, "b": 2, "c": 3}, seed=1, cycle=20)
    assert line.shares == {"a": 10, "b": 4, "c": 6}
    places = [line.locate(place) for place in range(600)]
    for first in range(0, 600, 20):
        assert Counter(name for name, _ in places[first : first + 20]) == line.shares
    orders = {tuple(name for name, _ in places[first : first + 20]) for first in range(0, 600, 20)}
    assert len(orders) > 20
    for name, dataset in several.items():
        taken = [index for source, index in places if source == name]
        assert sorted(taken) == list(range(len(taken)))  # the source's own line, without gaps
        whole = len(taken) // len(dataset)
        rows = Counter(row_of(line._lines[name][index]) for index in sorted(taken)[: whole * len(dataset)])
        assert rows == Counter([row_of(dataset[n]) for n in range(len(dataset))] * whole)
        assert line.epochs(600)[name] == len(taken) / len(dataset)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ranks=st.integers(1, 3), batch_size=st.integers(1, 5), steps=st.integers(1, 6))
def test_a_mixture_is_loaded_and_resumed_like_anything(
    several: dict[str, PackedDataset], ranks: int, batch_size: int, steps: int
) -> None:
    line = MixtureLine(several, {"a": 0.7, "b": 0.1, "c": 0.2}, seed=4, cycle=50)
    expected = [(row_of(line[place]), int(line[place]["source_id"])) for place in range(2 * ranks * batch_size * steps)]
    loaders = [PackedLoader(line, batch_size, rank=r, world_size=ranks) for r in range(ranks)]
    found = []
    for half in range(2):
        if half:
            states = [loader.state_dict() for loader in loaders]
            loaders = [PackedLoader(line, batch_size, rank=r, world_size=ranks) for r in range(ranks)]
            for loader, state in zip(loaders, states, strict=True):
                assert len(json.dumps(state)) < 1024
                loader.load_state_dict(json.loads(json.dumps(state)))
        taken = [[next(walk) for _ in range(steps)] for walk in map(iter, loaders)]
        for step in zip(*taken, strict=True):
            for batch in step:
                found += zip(map(tuple, batch["input_ids"].tolist()), batch["source_id"].tolist(), strict=True)
    assert found == expected
    assert loaders[0].epoch == int(min(line.epochs(len(expected)).values()))
    other = MixtureLine(several, {"a": 0.6, "b": 0.2, "c": 0.2}, seed=4, cycle=50)
    with pytest.raises(FingerprintMismatch, match="shares"):
        PackedLoader(other, 1).load_state_dict(loaders[0].state_dict())


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1e9), min_size=1, max_size=6), st.integers(6, 500))
def test_shares_are_whole_and_near_the_weights(weights: dict[str, float], cycle: int) -> None:
    if not sum(weights.values()):
        return
    shares = lines._shares(weights, cycle)
    assert sum(shares.values()) == cycle
    for name, weight in weights.items():
        assert (shares[name] > 0) == (weight > 0)
        assert abs(shares[name] - cycle * weight / sum(weights.values())) < len(weights)


def test_mixtures_that_make_no_sense_are_refused(several: dict[str, PackedDataset], tmp_path: Path) -> None:
    for weights in ({"a": 1}, {"a": 1, "b": 1, "c": -1}, {"a": 0, "b": 0, "c": 0}, {"a": 1, "b": 1, "c": float("nan")}):
        with pytest.raises(ValueError, match="weights"):
            MixtureLine(several, weights)
    with pytest.raises(ValueError, match="no place"):
        MixtureLine(several, dict.fromkeys("abc", 1), cycle=2)
    path = packing_corpus.write_directory(tmp_path, {"train": DOCUMENTS})
    pack(PackConfig(directory=path, seq_len=80), SilentProgress())
    with pytest.raises(UsageError, match="equally long"):
        MixtureLine({"a": several["a"], "b": PackedDataset(path, "seq80-overlong")}, {"a": 1, "b": 1})
    with pytest.raises(UsageError, match="epochs"):
        PackedLoader(MixtureLine(several, dict.fromkeys("abc", 1)), 1, epochs=2)


# ---- pieces drawn anew each epoch


@pytest.mark.parametrize("name", [NAME, "rows"])
def test_redrawn_epochs_hold_every_piece_once_in_other_company(directory: Path, name: str) -> None:
    plain = PackedDataset(directory, name, seed=7)
    drawn = PackedDataset(directory, name, seed=7, redraw=True)
    company = []
    for epoch in range(4):
        dataset = drawn.at_epoch(epoch)
        seen = Counter()
        packs = set()
        for n in range(len(dataset)):
            pieces, same = dataset.segments(n), plain.at_epoch(epoch).segments(n)
            assert sorted(pieces.length.tolist()) == sorted(same.length.tolist())
            seen.update(zip(pieces.document.tolist(), pieces.start.tolist(), pieces.length.tolist(), strict=True))
            packs.add(frozenset(pieces.document.tolist()))
            ids = dataset[n]["input_ids"].numpy()
            at = 0
            for d, s, length in zip(pieces.document, pieces.start, pieces.length, strict=True):
                assert np.array_equal(ids[at : at + length], DOCUMENTS[d][0][s : s + length])
                at += length
        stored = plain._opened.plan.pieces
        assert seen == Counter(zip(stored.document.tolist(), stored.start.tolist(), stored.length.tolist(), strict=True))
        company.append(packs)
    assert all(a != b for i, a in enumerate(company) for b in company[:i])


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 6), max_size=60), st.integers(0, 2**40), st.integers(0, 50))
def test_slots_are_drawn_within_their_length(lengths: list[int], seed: int, epoch: int) -> None:
    slots = Slots.of(np.array(lengths, dtype=np.int32))
    drawn = slots.draw(np.arange(len(lengths)), seed, epoch).tolist()
    assert sorted(drawn) == list(range(len(lengths)))
    assert [lengths[n] for n in drawn] == lengths
    for length in set(lengths):  # a permutation of its own for each
        mine = [n for n, other in enumerate(lengths) if other == length]
        digest = hashlib.sha256(f"tokkit-redraw-1:{seed}:{length}".encode()).digest()
        order = Permutation(len(mine), int.from_bytes(digest[:8], "little"), epoch)
        assert [drawn[n] for n in mine] == [mine[order[n]] for n in range(len(mine))]
        assert all(slots.draw(np.array([n]), seed, epoch)[0] == drawn[n] for n in mine)


# ---- groups of about the same cost


def test_sequences_of_a_group_cost_about_the_same(directory: Path) -> None:
    plain, grouped = (PackedDataset(directory, NAME, seed=7, **more) for more in ({}, {"group": 4, "window": 24}))
    stored = plain._opened.plan
    cost = [int((stored.pack(n).length.astype(np.int64) ** 2).sum()) for n in range(stored.num_packs)]

    def waits(dataset: PackedDataset) -> float:
        """How much longer the most costly sequence of a step takes than one of them does on average."""
        steps = [[cost[dataset.pack_index(n)] for n in range(i, i + 4)] for i in range(0, len(dataset) - 3, 4)]
        return sum(max(step) for step in steps) / sum(sum(step) / 4 for step in steps)

    assert waits(grouped) < 1.1 < waits(plain)
    orders = []
    for epoch in range(3):
        dataset = grouped.at_epoch(epoch)
        order = [dataset.pack_index(n) for n in range(len(dataset))]
        assert sorted(order) == list(range(len(dataset)))
        same = plain.at_epoch(epoch)
        for first in range(0, len(dataset), 24):  # what comes near what is still drawn
            window = slice(first, first + 24)
            assert sorted(order[window]) == sorted(same.pack_index(n) for n in range(len(dataset))[window])
        assert [dataset.pack_index(n) for n in (5, 40, 6)] == [order[n] for n in (5, 40, 6)]
        orders.append(order)
    assert orders[0] != orders[1] != orders[2]


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 70), st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_a_grouped_order_is_a_permutation(count: int, group: int, times: int, epoch: int) -> None:
    costs = np.random.default_rng(count).integers(0, 5, count)
    order = GroupedOrder(Permutation(count, 3, epoch), costs, group, group * times)
    assert sorted(order[n] for n in range(count)) == list(range(count))
    for index in (-1, count):
        with pytest.raises(IndexError):
            order[index]


# ---- a training loop of several processes


def _train(loader: PackedLoader, model: torch.nn.Module, world_size: int) -> list[torch.Tensor]:
    """Three steps of a bigram model; the loss is over all ranks' tokens. The parameters after each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    states = []
    for _, batch in zip(range(3), loader, strict=False):
        total = batch["num_loss_tokens"].clone()
        if world_size > 1:
            torch.distributed.all_reduce(total)
        logits = model(batch["input_ids"])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum")
        optimizer.zero_grad()
        (loss * world_size / total).backward()  # the gradients of the ranks are averaged
        optimizer.step()
        states.append(torch.cat([p.detach().flatten().clone() for p in model.parameters()]))
    return states


def _bigrams() -> torch.nn.Module:
    torch.manual_seed(0)
    size = packing_corpus.VOCABULARY.size
    return torch.nn.Sequential(torch.nn.Embedding(size, 4), torch.nn.Linear(4, size)).double()


def _rank(rank: int, folder: str, directory: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    rows = PackedDataset(directory, NAME, seed=5, labels="shifted")
    loader = PackedLoader(rows, batch_size=2, rank=rank, world_size=2, workers=1)
    states = _train(loader, torch.nn.parallel.DistributedDataParallel(_bigrams()), 2)
    torch.save({"states": states, "state": loader.state_dict()}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_ranks_of_a_ddp_loop_learn_what_one_process_does(directory: Path, tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_rank, (str(tmp_path), directory), nprocs=2)
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    alone = PackedLoader(PackedDataset(directory, NAME, seed=5, labels="shifted"), batch_size=4)
    expected = _train(alone, _bigrams(), 1)
    assert not torch.equal(expected[0], expected[-1])
    for first, second, mine in zip(one["states"], two["states"], expected, strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, mine)
    assert one["state"] == two["state"] == alone.state_dict()
