"""The stored form of features, and the files of a feature shard: what is written comes back, however it was put together."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tokkit.errors import DataError, ItemError
from tokkit.features.base import ItemFeatures
from tokkit.features.manifest import CacheManifest, FeatureTotals
from tokkit.features.precision import as_float32, from_bfloat16, restore, store, to_bfloat16
from tokkit.features.store import FeatureCache
from tokkit.features.tables import ROW_GROUP
from tokkit.features.writer import ALIGNMENT, DocumentEntry, FeatureWriter, Item, item_of
from tokkit.shards.manifest import Shard, Split

FLOATS = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.floats(-6e4, 6e4, width=32))


@given(FLOATS)
def test_bfloat16_is_torchs(values: np.ndarray) -> None:
    import torch

    expected = torch.from_numpy(values).to(torch.bfloat16)
    assert np.array_equal(to_bfloat16(values), expected.view(torch.int16).numpy().view(np.uint16))
    assert np.array_equal(from_bfloat16(to_bfloat16(values)), expected.float().numpy())


@given(FLOATS, st.sampled_from(["fp16", "bf16", "int8"]))
def test_stored_features_are_as_near_as_their_form_allows_and_the_error_says_so(values: np.ndarray, dtype: str) -> None:
    stored = store(values, dtype)  # type: ignore[arg-type]
    back = restore(stored.values, dtype, stored.scales)
    largest = np.abs(values).max(axis=1, keepdims=True)
    step = {"fp16": np.abs(values) * 2**-11 + 2**-24, "bf16": np.abs(values) * 2**-8 + 2**-126, "int8": largest / 254}[dtype]
    assert (np.abs(back - values) <= step * 1.0001 + 1e-30).all()
    power = np.square(values, dtype=np.float64).sum()
    expected = np.sqrt(np.square((back - values).astype(np.float64)).sum() / power) if power else 0.0
    assert stored.error == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_features_that_are_not_finite_are_a_reject(wrong: float, dtype: str) -> None:
    with pytest.raises(ItemError, match="features-not-finite"):
        store(np.array([[1.0, wrong]], dtype=np.float32), dtype)  # type: ignore[arg-type]


def test_features_beyond_float16_are_a_reject_and_bfloat16_holds_them() -> None:
    large = np.array([[7e4, 1.0]], dtype=np.float32)
    with pytest.raises(ItemError, match=r"features-overflow.*bf16 or int8"):
        store(large, "fp16")
    assert restore(store(large, "bf16").values, "bf16")[0, 0] == pytest.approx(7e4, rel=4e-3)


def test_what_an_encoder_gives_may_be_narrow_already() -> None:
    values = np.array([[0.5, -3.0]], dtype=np.float32)
    assert np.array_equal(as_float32(values.astype(np.float16)), values)
    assert np.array_equal(as_float32(to_bfloat16(values)), values)


# ---- shards

DIM = 6
DOCUMENTS = st.lists(
    st.tuples(st.integers(0, 5), st.lists(st.tuples(st.integers(0, 7), st.booleans()), max_size=3)), min_size=1, max_size=12
)


def entry(number: int, ids: int, items: list[tuple[int, bool]], dtype: str, split: str = "train") -> DocumentEntry:
    """A document of ``ids`` text ids with items of so many tokens each (with a pooled embedding, or not); 0 is a kept place."""
    chance = np.random.default_rng(number)
    made = []
    for place, (length, pooled) in enumerate(items):
        if not length:
            made.append(Item(place, "image", "", min(place, ids), dtype=dtype))  # type: ignore[arg-type]
            continue
        found = ItemFeatures(
            chance.normal(size=(length, DIM)).astype(np.float32),
            grid=(1, length),
            tiles=((0, 1, length),),
            newlines=np.array([length], dtype=np.int32),
            thw=(1, 1, length),
            valid=length,
            pooled=chance.normal(size=4).astype(np.float32) if pooled else None,
            extra={"views": 1},
        )
        item = item_of(found, dtype, "image", 30 + length, 20)  # type: ignore[arg-type]
        made.append(
            Item(**{**{f: getattr(item, f) for f in Item.__dataclass_fields__}, "number": place, "hash": f"{number}-{place}"})
        )
    row = {
        "id": f"d{number}",
        "source": "s",
        "locator": f"f:{number}",
        "unit": 0,
        "split": split,
        "hash": "0" * 32,
        "metadata": None,
    }
    return DocumentEntry(row, chance.integers(0, 99, ids).astype(np.int32), made, [(0, ids)] if ids else [])


def opened(folder: Path, shards: list[Shard], dtype: str) -> FeatureCache:
    split = Split(documents=sum(s.documents for s in shards), tokens=0, tokens_by_kind={}, shards=shards)
    totals = FeatureTotals(items=0, missing=0, tokens=0, bytes=0, error=0, worst_error=0)
    common = {
        "semantic": {},
        "semantic_fingerprint": "",
        "numeric": {},
        "numeric_fingerprint": "",
        "tokenizers": {},
        "trial": None,
    }
    common |= {
        "sources": [],
        "ignored": {},
        "units": 1,
        "documents": {},
        "items": {},
        "container_errors": 0,
        "commits": "",
        "rejects": "",
    }
    manifest = CacheManifest.model_validate(
        {**common, "tokkit": "0", "splits": {"train": split}, "dtype": dtype, "dim": DIM, "pooled_dim": 4, "modality": "image"}
        | {"text_vocab_size": 99, "encoder": {}, "features": {"train": totals}}
    )
    return FeatureCache(folder, manifest, "train")


def written(folder: Path, groups: list[list[DocumentEntry]], name: str) -> Shard:
    folder.mkdir(parents=True, exist_ok=True)
    with FeatureWriter(folder) as writer:
        for group in groups:
            writer.add(group)
        return Shard(documents=writer.documents, tokens=writer.tokens + writer.features, files=writer.finish(name))


@settings(max_examples=25, deadline=None)
@given(DOCUMENTS, st.sampled_from(["fp16", "bf16", "int8"]), st.integers(1, 12))
def test_what_is_written_comes_back(tmp_path_factory: pytest.TempPathFactory, wanted: list, dtype: str, cut: int) -> None:
    folder = tmp_path_factory.mktemp("cache")
    documents = [entry(n, ids, items, dtype) for n, (ids, items) in enumerate(wanted)]
    parts = [part for part in (documents[:cut], documents[cut:]) if part]
    cache = opened(folder, [written(folder / "features" / "train", [p], f"{n:05d}") for n, p in enumerate(parts)], dtype)
    assert cache.num_documents == len(documents)
    assert len(cache) == sum(len(d.items) for d in documents)
    seen = 0
    for number, document in enumerate(documents):
        found = cache.document(number)
        assert np.array_equal(found.ids, document.ids)
        assert found.positions.tolist() == [item.position for item in document.items]
        assert cache.given(number) == list(document.given)
        assert found.items == range(seen, seen + len(document.items))
        for index, item in zip(found.items, document.items, strict=True):
            row = cache.entry(index)
            assert (row.document, row.item, row.hash, row.length) == (number, item.number, item.hash, item.length)
            if item.stored is None:
                assert cache.dense(index).shape == (0, DIM)
                assert cache.pooled(index) is None
                continue
            assert np.array_equal(cache.features(index), item.stored.values)
            assert np.array_equal(cache.dense(index), restore(item.stored.values, dtype, item.stored.scales))
            assert row.grid == (1, item.length)
            assert (row.tiles, row.newlines, row.thw, row.valid) == (
                ((0, 1, item.length),),
                (item.length,),
                (1, 1, item.length),
                item.length,
            )
            assert (row.width, row.height, row.extra, row.error) == (
                30 + item.length,
                20,
                {"views": 1},
                pytest.approx(item.stored.error, rel=1e-6),
            )
            assert (cache.pooled(index) is None) == (item.pooled is None)
            if item.pooled is not None:
                assert np.array_equal(cache.pooled(index), as_float32(item.pooled.values)[0])  # type: ignore[arg-type]
        seen += len(document.items)


@settings(max_examples=15, deadline=None)
@given(DOCUMENTS, st.integers(0, 12), st.integers(0, 12))
def test_shards_put_together_are_those_written_in_one_go(
    tmp_path_factory: pytest.TempPathFactory, wanted: list, a: int, b: int
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    documents = [entry(n, ids, items, "int8") for n, (ids, items) in enumerate(wanted)]
    whole = written(folder / "whole", [[d] for d in documents], "x")
    part = written(folder / "part", [documents], "x")
    assert part == whole  # however the documents arrived
    edges = sorted({0, min(a, len(documents)), min(b, len(documents)), len(documents)})
    (folder / "again").mkdir()
    with FeatureWriter(folder / "again") as writer:
        for low, high in pairwise(edges):
            base = folder / f"{low}"
            written(base, [documents[low:high]], "x")
            table, items = pq.read_table(base / "x.documents.parquet"), pq.read_table(base / "x.parquet")
            ids, data = np.fromfile(base / "x.tokens.bin", np.int32), np.fromfile(base / "x.bin", np.uint8)
            ends = {name: np.concatenate([[0], np.cumsum(table.column(name))]) for name in ("bytes", "tokens", "items")}
            for first, last in pairwise(sorted({0, table.num_rows // 2, table.num_rows})):  # in two pieces each
                (b0, b1), (t0, t1), (i0, i1) = ((int(e[first]), int(e[last])) for e in ends.values())
                piece = table.slice(first, last - first)
                writer.extend(data[b0:b1], ids[t0:t1], items.slice(i0, i1 - i0), piece, first)
        assert writer.finish("x") == whole.files


def test_every_item_is_aligned_and_a_shard_that_was_cut_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "features" / "train"
    shard = written(folder, [[entry(0, 2, [(3, True), (5, False)], "int8")]], "00000")
    index = pq.read_table(folder / "00000.parquet")
    for name in ("offset", "scale"):
        assert all(place % ALIGNMENT == 0 for place in index.column(name).to_pylist())
    with (folder / "00000.bin").open("r+b") as file:
        file.truncate(64)
    with pytest.raises(DataError, match=r"64 bytes, .* were written"):
        opened(tmp_path, [shard], "int8").dense(0)


def test_row_groups_do_not_depend_on_how_rows_arrive(tmp_path: Path) -> None:
    documents = [entry(n, 0, [], "fp16") for n in range(40)]
    many = [documents[n % 40] for n in range(ROW_GROUP + 100)]
    one = written(tmp_path / "one", [many], "x")
    other = written(tmp_path / "other", [many[n : n + 999] for n in range(0, len(many), 999)], "x")
    assert one == other
    assert pq.ParquetFile(tmp_path / "one" / "x.documents.parquet").metadata.row_group(0).num_rows == ROW_GROUP


def test_leaving_without_an_end_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), FeatureWriter(tmp_path) as writer:
        writer.add([entry(0, 2, [(3, True)], "fp16")])
        raise RuntimeError
    assert not list(tmp_path.iterdir())
