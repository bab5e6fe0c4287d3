"""Feature caches as training batches: each text id and feature once and in its place, and who attends to what."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_features_store import DIM, entry, written

from tokkit.data.feature_batches import (
    FEATURE,
    NEWLINE,
    TEXT,
    CrossCollator,
    InlineCollator,
    PairCollator,
    attends,
    inline,
    media_times,
)
from tokkit.data.features import FeatureDataset, FeatureRow
from tokkit.data.loader import PackedLoader
from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.features.manifest import CacheManifest, FeatureTotals
from tokkit.features.precision import restore
from tokkit.features.writer import DocumentEntry
from tokkit.shards.manifest import Split
from tokkit.storage import record_json

ROWS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4), st.lists(st.integers(0, 4), max_size=3)), max_size=4)


def row_of(number: int, text: int, items: list[tuple[int, int, list[int]]]) -> FeatureRow:
    """A document of ``text`` ids with items (place, tokens, newlines), features numbered through."""
    items = sorted(((min(place, text), n, sorted(min(p, n) for p in lines)) for place, n, lines in items), key=lambda i: i[0])
    features, count = [], 0
    for _, n, _ in items:
        features.append(torch.arange(count, count + n, dtype=torch.float32)[:, None].expand(-1, 2) + 1000 * number)
        count += n
    learn = torch.arange(text) % 3 != 0
    empty = torch.zeros((len(items), 2), dtype=torch.int64)
    places = torch.tensor([place for place, _, _ in items], dtype=torch.int64)
    lines = [np.array(found, dtype=np.int64) for _, _, found in items]
    return FeatureRow(
        number, torch.arange(text) + 10, learn, places, features, lines, empty, torch.zeros((len(items), 3)), None
    )


def expected(row: FeatureRow, max_length: int | None) -> list[tuple[int, float]]:
    """The same one by one: (kind, id or feature), as far as ``max_length`` goes."""
    line: list[tuple[int, float]] = []
    limit = 10**9 if max_length is None else max_length
    whole = list(zip(row.positions.tolist(), row.features, row.newlines, strict=True))
    for place in range(len(row.input_ids) + 1):
        for position, found, newlines in whole:
            if position != place:
                continue
            item: list[tuple[int, float]] = []
            for number in range(len(found) + 1):
                item += [(NEWLINE, 0.0)] * newlines.tolist().count(number)
                if number < len(found):
                    item.append((FEATURE, float(found[number, 0])))
            if len(line) + len(item) > limit:
                return line
            line += item
        if place < len(row.input_ids):
            if len(line) >= limit:
                return line
            line.append((TEXT, float(row.input_ids[place])))
    return line


@given(st.lists(st.tuples(st.integers(0, 6), ROWS), min_size=1, max_size=4), st.one_of(st.none(), st.integers(0, 30)))
def test_each_id_and_feature_stands_once_in_its_place(wanted: list, max_length: int | None) -> None:
    rows = [row_of(number, text, items) for number, (text, items) in enumerate(wanted)]
    batch = InlineCollator(pad_id=7, max_length=max_length)(rows)
    features = iter(batch["features"][:, 0].tolist() if len(batch["features"]) else [])
    assert int(batch["item_tokens"].sum()) == len(batch["features"]) == int(batch["feature_mask"].sum())
    learnt = 0
    for number, row in enumerate(rows):
        line = expected(row, max_length)
        assert int(batch["attention_mask"][number].sum()) == len(line)
        assert [kind for kind, _ in line] == inline(row, max_length)[0].tolist()
        for place, (kind, value) in enumerate(line):
            assert bool(batch["feature_mask"][number, place]) == (kind == FEATURE)
            assert bool(batch["newline_mask"][number, place]) == (kind == NEWLINE)
            if kind == FEATURE:
                assert next(features) == value
            assert batch["input_ids"][number, place] == (value if kind == TEXT else 7)
            learn = kind == TEXT and bool(row.learn[int(value) - 10])
            assert batch["labels"][number, place] == (value if learn else -100)
            learnt += learn
        assert (batch["input_ids"][number, len(line) :] == 7).all()
        assert (batch["labels"][number, len(line) :] == -100).all()
    assert next(features, None) is None
    assert batch["num_loss_tokens"] == learnt


@given(st.integers(0, 9), st.lists(st.integers(0, 9), max_size=5))
def test_who_attends_to_what(length: int, places: list[int]) -> None:
    positions = torch.tensor(sorted(min(place, length) for place in places), dtype=torch.int64)
    found = {kind: attends(positions, length, kind) for kind in ("latest", "group", "before")}  # type: ignore[arg-type]
    for token in range(length):
        before = [m for m, place in enumerate(positions.tolist()) if place <= token]
        assert media_times(positions, length)[token] == len(before)
        assert torch.nonzero(found["before"][token]).flatten().tolist() == before
        assert torch.nonzero(found["latest"][token]).flatten().tolist() == before[-1:]
        group = [m for m in before if positions[m] == positions[before[-1]]]
        assert torch.nonzero(found["group"][token]).flatten().tolist() == group


def test_items_beside_the_text() -> None:
    rows = [row_of(0, 5, [(0, 2, []), (3, 1, [])]), row_of(1, 3, []), row_of(2, 2, [(1, 3, []), (2, 4, [])])]
    batch = CrossCollator(pad_id=0)(rows)
    assert batch["media"].shape == (3, 2, 3, 2)
    assert batch["media_mask"].sum(dim=2).tolist() == [[2, 1], [0, 0], [3, 0]]  # none can attend to what stands behind all text
    assert batch["media"][0, 1, 0].tolist() == [2.0, 2.0]
    assert batch["media_times"].tolist() == [[1, 1, 1, 2, 2], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert batch["cross_mask"][0].tolist() == [[True, False]] * 3 + [[False, True]] * 2
    assert not batch["cross_mask"][1].any()
    short = CrossCollator(pad_id=0, max_length=2)(rows)
    assert short["media"].shape[:2] == (3, 1)  # what stands behind the text that is left is left out
    assert short["input_ids"].shape == (3, 2)


# ---- over a cache


def cache(folder: Path, documents: list[DocumentEntry], shards: int = 2) -> Path:
    cuts = np.array_split(np.arange(len(documents)), shards)
    made = [written(folder / "features" / "train", [[documents[n] for n in cut]], f"{i:05d}") for i, cut in enumerate(cuts)]
    split = Split(documents=len(documents), tokens=0, tokens_by_kind={}, shards=made)
    totals = FeatureTotals(items=0, missing=0, tokens=0, bytes=0, error=0, worst_error=0)
    manifest = CacheManifest(
        tokkit="0",
        semantic={},
        semantic_fingerprint="",
        numeric={},
        numeric_fingerprint="",
        tokenizers={},
        trial=None,
        sources=[],
        ignored={},
        units=1,
        documents={},
        items={},
        container_errors=0,
        splits={"train": split},
        commits="",
        rejects="",
        dtype="fp16",
        dim=DIM,
        pooled_dim=4,
        modality="image",
        text_vocab_size=99,
        encoder={},
        features={"train": totals},
    )
    (folder / "manifest.json").write_text(record_json(manifest.model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def documents() -> list[DocumentEntry]:
    return [entry(n, n % 5 + 1, [(1 + k, True) for k in range(n % 3)], "fp16") for n in range(23)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, documents: list[DocumentEntry]) -> Path:
    return cache(tmp_path_factory.mktemp("cache"), documents)


def test_a_row_is_its_document(folder: Path, documents: list[DocumentEntry]) -> None:
    dataset = FeatureDataset(folder)
    assert len(dataset) == len(documents)
    for number, document in enumerate(documents):
        row = dataset[number]
        assert row.input_ids.tolist() == document.ids.tolist()
        assert not row.learn.any()  # all of it is given
        assert row.positions.tolist() == [item.position for item in document.items]
        for found, item, newlines in zip(row.features, document.items, row.newlines, strict=True):
            assert item.stored is not None
            assert np.array_equal(found.numpy(), item.stored.values)
            assert newlines.tolist() == [item.length]
        assert row.sizes.tolist() == [[20, 30 + item.length] for item in document.items]
        assert row.thw.tolist() == [[1, 1, item.length] for item in document.items]
        assert (row.pooled is None) == (not document.items)
        if row.pooled is not None:
            pooled = np.stack([restore(i.pooled.values, "fp16")[0] for i in document.items if i.pooled])
            assert np.array_equal(row.pooled.numpy(), pooled)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), epoch=st.integers(0, 5))
def test_every_document_once_an_epoch(folder: Path, seed: int, epoch: int) -> None:
    dataset = FeatureDataset(folder, seed=seed).at_epoch(epoch)
    assert sorted(dataset.document_index(n) for n in range(len(dataset))) == list(range(23))
    some = FeatureDataset(folder, seed=seed, min_items=1, max_items=1)
    assert sorted(some[n].document for n in range(len(some))) == list(range(1, 23, 3))


def test_a_loader_goes_on_where_another_stood(folder: Path) -> None:
    def loader(workers: int = 0, seed: int = 3) -> PackedLoader:
        dataset = FeatureDataset(folder, seed=seed, min_items=1)
        return PackedLoader(dataset, 4, workers=workers, epochs=2, collate_fn=InlineCollator(pad_id=0))

    whole = list(loader())
    assert len(whole) == 2 * 15 // 4
    first = loader()
    state = None
    for number, _ in enumerate(first):
        if number == 2:
            state = first.state_dict()
            break
    assert state is not None
    second = loader(workers=1)
    second.load_state_dict(state)
    for batch, other in zip(whole[3:], second, strict=True):
        assert batch.keys() == other.keys()
        assert all(torch.equal(batch[name], other[name]) for name in batch)
    with pytest.raises(FingerprintMismatch, match="seed"):
        loader(seed=4).load_state_dict(state)


def test_pairs(folder: Path) -> None:
    dataset = FeatureDataset(folder, min_items=1, max_items=1)
    batch = PairCollator(pad_id=0)([dataset[0], dataset[1]])
    assert batch["pooled"].shape == (2, 4)
    assert batch["features"].shape == (2, 1, DIM)
    assert batch["attention_mask"].sum(dim=1).tolist() == [2, 5]
    with pytest.raises(UsageError, match="document 2 has 2 items"):
        PairCollator(pad_id=0)([FeatureDataset(folder)[2]])
