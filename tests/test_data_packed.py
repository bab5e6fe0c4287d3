"""The dataset over a plan: rows that decode to the documents, borders, order, workers."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import packing_corpus
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from tokkit.data.packed import MODALITY_IDS, PackedDataset, collate
from tokkit.data.shuffle import Permutation
from tokkit.errors import DataError, FingerprintMismatch
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.shards.native import open_shards

L = 64
DOCUMENTS = packing_corpus.random_documents(80, seed=3)
PAD = packing_corpus.VOCABULARY.marker("padding")
NAME = f"seq{L}-overlong"


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = packing_corpus.write_directory(tmp_path_factory.mktemp("packed"), {"train": DOCUMENTS, "val": []})
    pack(PackConfig(directory=path, seq_len=L), SilentProgress())
    pack(PackConfig(directory=path, seq_len=L, name="rows", materialize=True), SilentProgress())
    return path


def expected_modalities(document: int) -> np.ndarray:
    ids, spans = DOCUMENTS[document]
    out = np.full(len(ids), MODALITY_IDS["control"], dtype=np.uint8)
    for span in spans:
        out[span.start : span.start + span.length] = MODALITY_IDS[span.modality]
        if span.modality != "text":
            out[[span.start, span.start + span.length - 1]] = MODALITY_IDS[f"{span.modality}-boundary"]
    return out


@pytest.mark.parametrize("name", [NAME, "rows"])
@pytest.mark.parametrize("seed", [None, 5])
def test_rows_are_the_documents_with_their_borders(directory: Path, name: str, seed: int | None) -> None:
    dataset = PackedDataset(directory, name, seed=seed, labels="shifted", cu_seqlens=True)
    seen = {d: np.zeros(len(ids), dtype=int) for d, (ids, _) in enumerate(DOCUMENTS)}
    fullest = max(len(dataset.segments(i)) for i in range(len(dataset)))
    for i in range(len(dataset)):
        row = {key: value.numpy() for key, value in dataset[i].items()}
        pieces = dataset.segments(i)
        at = 0
        for k, (d, s, n) in enumerate(zip(pieces.document, pieces.start, pieces.length, strict=True)):
            ids = DOCUMENTS[d][0][s : s + n]
            here = slice(at, at + n)
            assert np.array_equal(row["input_ids"][here], ids)
            assert (row["segment_ids"][here] == k + 1).all()
            assert np.array_equal(row["position_ids"][here], np.arange(n))
            assert row["loss_mask"][here].tolist() == [1] * (n - 1) + [0]
            assert np.array_equal(row["modality_ids"][here], expected_modalities(d)[s : s + n])
            assert np.array_equal(row["labels"][here], [*ids[1:], -100])
            assert row["cu_seqlens"][k + 1] == at + n
            seen[d][s : s + n] += 1
            at += n
        assert (row["input_ids"][at:] == PAD).all()
        assert np.array_equal(row["position_ids"][at:], np.arange(L - at))
        for key in ("segment_ids", "loss_mask", "modality_ids"):
            assert not row[key][at:].any()
        assert (row["labels"][at:] == -100).all()
        assert row["cu_seqlens"][0] == 0
        assert row["cu_seqlens"].shape == (fullest + 2,)
        assert (row["cu_seqlens"][len(pieces) + 1 :] == L).all()
    assert all((count == 1).all() for count in seen.values())


def test_dtypes_and_shapes(directory: Path) -> None:
    row = PackedDataset(directory, NAME, labels="hf", cu_seqlens=True)[0]
    assert {key: value.dtype for key, value in row.items()} == {
        "input_ids": torch.int32,
        "segment_ids": torch.int32,
        "position_ids": torch.int32,
        "loss_mask": torch.uint8,
        "modality_ids": torch.uint8,
        "labels": torch.int64,
        "cu_seqlens": torch.int32,
        "num_segments": torch.int32,
    }
    assert all(value.shape == (L,) for key, value in row.items() if key not in ("cu_seqlens", "num_segments"))
    assert row["num_segments"].shape == ()
    least = PackedDataset(directory, NAME, modality_ids=False)[0]
    assert set(least) == {"input_ids", "segment_ids", "position_ids", "loss_mask"}


def test_both_label_conventions_train_on_the_same_pairs(directory: Path) -> None:
    shifted, unshifted = PackedDataset(directory, NAME, labels="shifted"), PackedDataset(directory, NAME, labels="hf")
    for i in range(len(shifted)):
        a, b = shifted[i]["labels"], unshifted[i]["labels"]
        assert torch.equal(a[:-1], b[1:])
        assert a[-1] == -100
        assert torch.equal(shifted[i]["loss_mask"].bool(), a != -100)


def test_a_row_feeds_a_model(directory: Path) -> None:
    row = collate([PackedDataset(directory, NAME, labels="shifted")[i] for i in range(2)])
    embedding = torch.nn.Embedding(packing_corpus.VOCABULARY.size, 8)
    logits = embedding(row["input_ids"]) @ embedding.weight.T
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), row["labels"].flatten(), ignore_index=-100)
    assert loss.isfinite()
    assert int(row["num_loss_tokens"]) == int((row["labels"] != -100).sum())


# ---- what is to be predicted


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[packing_corpus.Encoded]]:
    documents = packing_corpus.random_documents(60, seed=8, given=0.5)
    path = packing_corpus.write_directory(tmp_path_factory.mktemp("given"), {"train": documents})
    pack(PackConfig(directory=path, seq_len=L), SilentProgress())
    return path, documents


@pytest.mark.parametrize("modality_ids", [True, False])
def test_what_is_only_given_is_not_predicted(
    conversations: tuple[Path, list[packing_corpus.Encoded]], modality_ids: bool
) -> None:
    directory, documents = conversations
    assert not open_shards(directory).all_learnt()
    dataset = PackedDataset(directory, NAME, labels="hf", modality_ids=modality_ids)
    learnt = given = 0
    for i in range(len(dataset)):
        row, pieces, at = dataset[i], dataset.segments(i), 0
        for d, s, n in zip(pieces.document, pieces.start, pieces.length, strict=True):
            ids, spans = documents[d]
            only_given = np.zeros(len(ids), dtype=bool)
            for span in spans:
                only_given[span.start : span.start + span.length] = not span.loss
            expected = np.where(only_given, -100, ids)[s : s + n]
            expected[0] = -100
            assert np.array_equal(row["labels"][at : at + n].numpy(), expected)
            assert np.array_equal(row["loss_mask"][at : at + n - 1].bool().numpy(), expected[1:] != -100)
            learnt, given = learnt + int((expected != -100).sum()), given + int(only_given[s : s + n].sum())
            at += n
    assert learnt > 500
    assert given > 500


def test_where_all_is_to_be_learnt_the_spans_are_not_read(directory: Path) -> None:
    dataset = PackedDataset(directory, NAME, modality_ids=False)
    dataset[0]
    assert dataset._opened.all_learnt
    assert "spans" not in dataset._opened.shards.__dict__


@pytest.mark.parametrize("loss_on", [{"image"}, {"text", "control"}, set()])
def test_loss_on_some_modalities(directory: Path, loss_on: set[str]) -> None:
    everything = PackedDataset(directory, NAME, seed=2, labels="shifted")
    some = PackedDataset(directory, NAME, seed=2, labels="shifted", loss_on=loss_on, modality_ids=False).at_epoch(0)
    numbers = [number for name, number in MODALITY_IDS.items() if name.removesuffix("-boundary") in loss_on]
    for i in range(len(some)):
        row, found = everything[i], some[i]
        wanted = np.isin(np.append(row["modality_ids"][1:].numpy(), 0), numbers) & row["loss_mask"].bool().numpy()
        assert np.array_equal(found["loss_mask"].bool().numpy(), wanted)
        assert torch.equal(found["labels"] != -100, torch.from_numpy(wanted))
    with pytest.raises(ValueError, match="loss_on"):
        PackedDataset(directory, NAME, loss_on={"pictures"})


def test_loss_tokens_are_counted_by_modality(directory: Path) -> None:
    rows = [PackedDataset(directory, NAME, labels="shifted")[i] for i in range(4)]
    batch = collate(rows)
    counts = dict.fromkeys(MODALITY_IDS.values(), 0)
    for row in rows:
        for t in range(L - 1):
            if row["loss_mask"][t]:
                counts[int(row["modality_ids"][t + 1])] += 1
    assert batch["num_loss_tokens_by_modality"].tolist() == [counts[n] for n in range(len(MODALITY_IDS))]
    assert int(batch["num_loss_tokens_by_modality"].sum()) == int(batch["num_loss_tokens"])


# ---- order


def order(dataset: PackedDataset) -> list[int]:
    return [dataset.pack_index(i) for i in range(len(dataset))]


def test_order_depends_on_seed_and_epoch_only(directory: Path) -> None:
    plain = order(PackedDataset(directory, NAME))
    assert plain == list(range(len(plain)))
    first = order(PackedDataset(directory, NAME, seed=1))
    assert sorted(first) == plain != first
    assert order(PackedDataset(directory, NAME, seed=1)) == first
    second = PackedDataset(directory, NAME, seed=1).at_epoch(1)
    assert order(second) not in (first, plain)
    assert order(second) == order(PackedDataset(directory, NAME, seed=1, epoch=1))
    assert order(PackedDataset(directory, NAME, seed=2)) != first


SIZES = st.one_of(st.integers(0, 300), st.sampled_from([4**k + d for k in range(1, 7) for d in (-1, 0, 1)]))


@settings(deadline=None, max_examples=200)
@given(SIZES, st.integers(), st.integers(0, 9))
def test_permutation_is_a_bijection(n: int, seed: int, epoch: int) -> None:
    permutation = Permutation(n, seed, epoch)
    elements = [permutation[i] for i in range(n)]
    assert sorted(elements) == list(range(n))
    assert permutation.take(np.arange(-1, n + 1)).tolist() == [-1, *elements, -1]


def test_permutation_spreads() -> None:
    n = 4099
    places = np.array([[Permutation(n, seed)[i] for i in range(0, n, 41)] for seed in range(40)])
    assert abs(places.mean() / n - 0.5) < 0.02
    steps = np.abs(np.diff([Permutation(n, 7)[i] for i in range(n)]))
    assert abs(steps.mean() / n - 1 / 3) < 0.02
    # Every element of a small set is equally often at the front.
    fronts = np.bincount([Permutation(5, seed)[0] for seed in range(2000)], minlength=5)
    assert ((fronts - 400) ** 2 / 400).sum() < 20


def test_permutation_is_pinned() -> None:
    # Runs in progress resume by it: a change of these numbers is a change of format.
    assert [Permutation(1000, 42, 3)[i] for i in range(5)] == PINNED


PINNED = [125, 33, 89, 955, 778]


@pytest.mark.parametrize("index", [-1, 10])
def test_permutation_bounds(index: int) -> None:
    with pytest.raises(IndexError):
        Permutation(10, 0)[index]


# ---- processes


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_pickled_dataset_reads_the_same(directory: Path) -> None:
    dataset = PackedDataset(directory, NAME, seed=1)
    first = dataset[0]  # with its memory maps open
    data = pickle.dumps(dataset)
    assert len(data) < 2000
    copy = pickle.loads(data)
    assert len(copy) == len(dataset)
    assert equal(copy[0], first)


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_give_what_one_process_gives(directory: Path, start: str) -> None:
    dataset = PackedDataset(directory, NAME, seed=9, labels="shifted", cu_seqlens=True)
    alone = list(DataLoader(dataset, batch_size=3, collate_fn=collate))
    workers = list(DataLoader(dataset, batch_size=3, collate_fn=collate, num_workers=2, multiprocessing_context=start))
    assert len(alone) == len(workers) == -(-len(dataset) // 3)
    assert all(equal(a, b) for a, b in zip(alone, workers, strict=True))


@pytest.mark.parametrize("name", [NAME, "rows"])
def test_items_together_are_the_items_one_by_one(directory: Path, name: str) -> None:
    dataset = PackedDataset(directory, name, seed=9, labels="hf", cu_seqlens=True)
    indices = [3, 0, -1, 3, 5]
    together, alone = dataset.__getitems__(indices), [dataset[n] for n in indices]
    assert len(together) == 5
    assert all(equal(a, b) for a, b in zip(together, alone, strict=True))
    assert equal(together[-1], alone[-1])
    assert [equal(a, b) for a, b in zip(together[1:3], alone[1:3], strict=True)] == [True, True]
    with pytest.raises(IndexError):
        together[5]
    assert equal(collate(together), collate(alone))


# ---- what is refused


@pytest.mark.parametrize("name", [NAME, "rows"])
@pytest.mark.parametrize("seed", [None, 3])
def test_tokens_and_borders_alone_are_those_of_all_fields(directory: Path, name: str, seed: int | None) -> None:
    lean = PackedDataset(directory, name, seed=seed, dense=False)
    everything = PackedDataset(directory, name, seed=seed, cu_seqlens=True)
    for numbers in ([0], [3, 1, 1], list(range(len(lean))), [-1, 0], []):
        found, expected = lean.__getitems__(numbers).batch, everything.__getitems__(numbers).batch
        assert found.keys() == {"input_ids", "cu_seqlens", "num_segments"}
        assert all(torch.equal(values, expected[key]) for key, values in found.items())
    for wrong in (len(lean), -len(lean) - 1):
        with pytest.raises(IndexError, match="of"):
            lean.__getitems__([0, wrong])


def test_indices(directory: Path) -> None:
    dataset = PackedDataset(directory, NAME, seed=1)
    assert equal(dataset[-1], dataset[len(dataset) - 1])
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError):
            dataset[index]


def test_empty_split(directory: Path) -> None:
    assert len(PackedDataset(directory, NAME, "val", seed=1)) == 0


def test_missing_plan_or_split_or_option(directory: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        PackedDataset(directory, "other")
    with pytest.raises(DataError, match="no split"):
        PackedDataset(directory, NAME, "test")
    with pytest.raises(ValueError, match="labels"):
        PackedDataset(directory, NAME, labels="unshifted")  # type: ignore[arg-type]


def test_plan_for_other_shards(tmp_path: Path) -> None:
    packing_corpus.write_directory(tmp_path, {"train": DOCUMENTS})
    pack(PackConfig(directory=tmp_path, seq_len=L), SilentProgress())
    packing_corpus.write_directory(tmp_path, {"train": DOCUMENTS[::-1]})
    with pytest.raises(FingerprintMismatch, match="other token shards"):
        PackedDataset(tmp_path, NAME)


def test_rows_with_another_padding_are_not_used(directory: Path) -> None:
    ours = PackedDataset(directory, "rows", pad_id=0)
    for i in range(len(ours)):
        row = ours[i]
        assert (row["input_ids"][row["segment_ids"] == 0] == 0).all()
