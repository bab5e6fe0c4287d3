"""Tables of what is in packed rows, against the documents themselves; borders of a whole batch; weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import packing_corpus
import pyarrow.parquet as pq
import pytest
import torch

from tokkit.data.attention import loss_weights, varlen
from tokkit.data.loader import PackedLoader
from tokkit.data.packed import PackedDataset, collate, collate_flat
from tokkit.interleave import ImageCodes, Layout, TextCodes, encode
from tokkit.packing.policy import SplitPolicy
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.shards.manifest import SourceTotals, load_manifest
from tokkit.vocabulary import UnifiedVocabulary

L = 64
VOCABULARY: UnifiedVocabulary = packing_corpus.VOCABULARY
HASHES = ["0123456789abcdef" + "0" * 16, "f" * 32, "8000000000000000" + "1" * 16]


def documents() -> list[packing_corpus.Encoded]:
    """Drawn documents, and some whose pictures have a known file; one is longer than a row."""
    rng = np.random.default_rng(1)
    found = packing_corpus.random_documents(60, seed=8)
    for number, digest in enumerate(HASHES * 3):
        text = TextCodes(rng.integers(0, 500, 10 + 9 * number).astype(np.int32))
        picture = ImageCodes(rng.integers(0, 64, (1, 3, 3)).astype(np.int32), item_hash=digest)
        found.append(encode([text, picture, text, picture], VOCABULARY, Layout()))
    return found


DOCUMENTS = documents()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = packing_corpus.write_directory(tmp_path_factory.mktemp("tables"), {"train": DOCUMENTS})
    for n, file in enumerate(sorted((path / "tokens" / "train").glob("*.parquet"))):
        table = pq.read_table(file)
        names = [["made", "other", "third"][(n + row) % 3] for row in range(table.num_rows)]
        place = table.schema.get_field_index("source")
        pq.write_table(table.set_column(place, table.schema.field("source"), [names]), file)
    nothing = {"files": 0, "bytes": 0, "units": 0, "documents": {}, "items": {}, "reasons": {}, "container_errors": 0}
    nothing |= {"counted_documents": None, "counted_items": {}}
    sources = [SourceTotals(name=name, format="text", **nothing) for name in ("third", "made")]
    manifest = load_manifest(path).model_copy(update={"sources": sources})
    (path / "manifest.json").write_text(manifest.model_dump_json())
    for policy in (SplitPolicy.OVERLONG, SplitPolicy.FILL):
        pack(PackConfig(directory=path, seq_len=L, name=policy.value, split_policy=policy), SilentProgress())
    pack(PackConfig(directory=path, seq_len=L, name="rows", materialize=True), SilentProgress())
    return path


def source_of(directory: Path) -> list[str]:
    files = sorted((directory / "tokens" / "train").glob("*.parquet"))
    return [name for file in files for name in pq.read_table(file).column("source").to_pylist()]


@pytest.mark.parametrize("name", ["overlong", "fill", "rows"])
@pytest.mark.parametrize("redraw", [False, True])
def test_tables_say_what_is_in_the_rows(directory: Path, name: str, redraw: bool) -> None:
    dataset = PackedDataset(directory, name, seed=2, epoch=3, redraw=redraw, segments=True, images=True, provenance=True)
    sources = source_of(directory)
    assert dataset.sources == ["third", "made", "other"]  # the manifest's, then what it does not name
    covered = {d: np.zeros(len(ids), dtype=int) for d, (ids, _) in enumerate(DOCUMENTS)}
    pictures: list[tuple[int, int]] = []
    for first in range(0, len(dataset), 5):
        numbers = list(range(first, min(first + 5, len(dataset))))
        batch = collate(dataset.__getitems__(numbers))
        table = {key.removeprefix("segments_"): v.tolist() for key, v in batch.items() if key.startswith("segments_")}
        begins = [0] * len(numbers)
        order = []
        for row, d, offset, length, source, flags, loss in zip(
            *(table[key] for key in ("row", "document", "offset", "length", "source", "flags", "loss_tokens")), strict=True
        ):
            ids = DOCUMENTS[d][0]
            at = begins[row]
            assert batch["input_ids"][row, at : at + length].tolist() == ids[offset : offset + length].tolist()
            assert dataset.sources[source] == sources[d]
            begin, end = offset == 0, offset + length == len(ids)
            assert flags == begin + 2 * end + 4 * (not (begin and end))
            assert loss == batch["loss_mask"][row, at : at + length].sum()
            covered[d][offset : offset + length] += 1
            begins[row] = at + length
            order.append(row)
        assert order == sorted(order)
        assert int(batch["num_tokens"]) == sum(begins)
        assert [dataset.pack_index(n) for n in numbers] == batch["pack_index"].tolist()
        assert batch["epoch"].tolist() == [3] * len(numbers)
        assert {n % 2**64 for n in batch["plan_id"].tolist()} == {int(dataset.plan_digest[:16], 16)}
        pictures += images_of(batch, table)
    assert all((count == 1).all() for count in covered.values())
    expected = [(d, span.start) for d, (_, spans) in enumerate(DOCUMENTS) for span in spans if span.modality == "image"]
    assert sorted(pictures) == expected


def images_of(batch: dict[str, torch.Tensor], segments: dict[str, list[int]]) -> list[tuple[int, int]]:
    """The pictures of a batch by document and place in it, each compared with the document's span."""
    table = {key: v.tolist() for key, v in batch.items() if key.startswith("images_")}
    rows = table["images_row"]
    assert batch["cu_images"].tolist() == [sum(r < n for r in rows) for n in range(len(batch["input_ids"]) + 1)]
    found = []
    for n, row in enumerate(rows):
        start, length, segment = table["images_start"][n], table["images_length"][n], table["images_segment"][n]
        assert set(batch["segment_ids"][row, start : start + length].tolist()) == {segment}
        ids = batch["input_ids"][row, start : start + length].tolist()
        assert (ids[0], ids[-1]) == (VOCABULARY.marker("begin_image"), VOCABULARY.marker("end_image"))
        line = [k for k, r in enumerate(segments["row"]) if r == row][segment - 1]
        d = segments["document"][line]
        place = int(batch["position_ids"][row, start]) + segments["offset"][line]
        (span,) = [s for s in DOCUMENTS[d][1] if s.start == place]
        assert (span.length, [span.grid_height, span.grid_width]) == (length, table["images_grid"][n])
        assert table["images_id"][n] % 2**64 == int(span.item_hash[:16] or "0", 16)
        found.append((d, place))
    return found


def test_items_by_themselves_are_those_of_the_batch(directory: Path) -> None:
    dataset = PackedDataset(directory, "fill", seed=0, segments=True, images=True, provenance=True, cu_seqlens=True)
    numbers = [3, 0, 7, 1]
    together = collate_flat(dataset.__getitems__(numbers))
    alone = collate_flat([dataset[n] for n in numbers])
    assert together.keys() == alone.keys()
    for name, value in together.items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(alone[name])), name
        assert name == "max_seqlen" or value.dtype == alone[name].dtype


def test_tables_come_without_dense_fields_and_from_workers(directory: Path) -> None:
    lean = PackedDataset(directory, "overlong", seed=0, dense=False, segments=True, images=True)
    full = PackedDataset(directory, "overlong", seed=0, segments=True, images=True)
    loader = PackedLoader(lean, batch_size=3, epochs=1, workers=1, collate_fn=collate_flat)
    for step, batch in enumerate(loader):
        other = collate(full.__getitems__(range(3 * step, 3 * step + 3)))
        assert "segments_loss_tokens" not in batch
        for name in batch.keys() & other.keys():
            assert torch.equal(batch[name], other[name]), name
        assert batch["cu_seqlens_flat"].tolist() == varlen(other).cu_seqlens.tolist()
        assert type(batch["max_seqlen"]) is int
        assert varlen(batch) == (batch["cu_seqlens_flat"], varlen(other).max_seqlen)


def test_weights_of_the_loss(directory: Path) -> None:
    batch = collate(PackedDataset(directory, "overlong", segments=True).__getitems__(range(6)))
    assert torch.equal(loss_weights(batch), batch["loss_mask"].float())
    counts = batch["segments_loss_tokens"]
    for by, power in (("document", 0.0), ("root", 0.5)):
        weights = loss_weights(batch, by)  # type: ignore[arg-type]
        assert not weights[batch["loss_mask"] == 0].any()
        number = 0
        for row in range(6):
            for segment in range(1, int(batch["segment_ids"][row].max()) + 1):
                mine = weights[row][batch["segment_ids"][row] == segment]
                assert float(mine.sum()) == pytest.approx(float(counts[number]) ** power if counts[number] else 0.0)
                number += 1
