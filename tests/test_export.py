"""``tokkit export``: each format read back by its layout as published, and by its own reader where that is installed."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import packing_corpus
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.data.packed import PackedDataset
from tokkit.errors import UsageError
from tokkit.pipelines.export import ExportConfig, ExportResult, export
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.storage import sha256_file

SILENT = SilentProgress()
L = 64
FORMATS = ["megatron", "ds", "olmo", "mds", "parquet", "arrow", "datasets", "webdataset"]

needs_megatron = pytest.mark.skipif(not importlib.util.find_spec("megatron"), reason="megatron-core is not installed")
needs_datatrove = pytest.mark.skipif(not importlib.util.find_spec("datatrove"), reason="datatrove is not installed")
needs_datasets = pytest.mark.skipif(not importlib.util.find_spec("datasets"), reason="datasets is not installed")


@pytest.fixture(scope="module", params=["uint16", "int32"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    vocabulary = packing_corpus.VOCABULARY if request.param == "uint16" else packing_corpus.WIDE_VOCABULARY
    documents = {
        "train": packing_corpus.random_documents(50, seed=4, given=0.3, vocabulary=vocabulary),
        "val": packing_corpus.random_documents(5, seed=5, vocabulary=vocabulary),
    }
    path = packing_corpus.write_directory(tmp_path_factory.mktemp(request.param), documents, vocabulary=vocabulary)
    pack(PackConfig(directory=path, seq_len=L), SILENT)
    pack(PackConfig(directory=path, seq_len=L, name="rows", materialize=True), SILENT)
    return path


def exported(directory: Path, out: Path, to: str, plan: str | None = None) -> ExportResult:
    return export(ExportConfig(directory=directory, out=out, format=to, pack=plan), SILENT)


def documents(directory: Path, split: str) -> list[list[list[int]]]:
    """The documents' ids, shard by shard, read with nothing but the layout of the native files."""
    manifest = json.loads((directory / "manifest.json").read_text())
    shards = []
    for shard in manifest["splits"][split]["shards"]:
        base = directory / "tokens" / split
        ids = np.fromfile(base / shard["files"]["bin"]["name"], dtype=manifest["dtype"]).tolist()
        ends = np.cumsum([0, *pq.read_table(base / shard["files"]["parquet"]["name"]).column("tokens").to_pylist()])
        shards.append([ids[a:b] for a, b in pairwise(ends)])
    return shards


def rows(directory: Path, split: str) -> list[list[int]]:
    return [row["input_ids"].tolist() for row in PackedDataset(directory, f"seq{L}-overlong", split)]  # type: ignore[attr-defined]


@pytest.mark.parametrize("plan", [None, f"seq{L}-overlong", "rows"])
@pytest.mark.parametrize("to", FORMATS)
def test_every_format_holds_every_sequence(directory: Path, tmp_path: Path, to: str, plan: str | None) -> None:
    result = exported(directory, tmp_path / "out", to, plan)
    for split in ("train", "val"):
        expected = documents(directory, split) if plan is None else [rows(directory, split)]
        if to == "mds":
            assert read_mds(tmp_path / "out" / split, directory) == [ids for part in expected for ids in part]
        for number, part in enumerate(expected if to != "mds" else []):
            assert READERS[to](tmp_path / "out" / split / f"{number:05d}", directory) == part
        told = result.record["splits"][split]  # type: ignore[index]
        assert told["sequences"] == sum(map(len, expected))
        assert told["tokens"] == sum(len(ids) for part in expected for ids in part)
        on_disk = {path.name: path for path in (tmp_path / "out" / split).iterdir()}
        assert told["files"].keys() == on_disk.keys()
        assert all(entry["sha256"] == sha256_file(on_disk[name]) for name, entry in told["files"].items())


def dtype_of(directory: Path) -> np.dtype:
    return np.dtype(json.loads((directory / "manifest.json").read_text())["dtype"])


def cut(ids: np.ndarray, ends: list[int]) -> list[list[int]]:
    return [ids[a:b].tolist() for a, b in zip([0, *ends], ends, strict=False)]


def read_megatron(path: Path, directory: Path) -> list[list[int]]:
    data = path.with_suffix(".idx").read_bytes()
    magic, version, code, sequences, borders = struct.unpack_from("<9sQBQQ", data)
    assert (magic, version, borders) == (b"MMIDIDX\0\0", 1, sequences + 1)
    assert {4: np.dtype(np.int32), 8: np.dtype(np.uint16)}[code] == dtype_of(directory)
    lengths = np.frombuffer(data, "<i4", sequences, 34)
    return cut(np.fromfile(path.with_suffix(".bin"), dtype_of(directory)), np.cumsum(lengths).tolist())


def read_ds(path: Path, directory: Path) -> list[list[int]]:
    ends = np.fromfile(f"{path}.ds.index", "<u8").tolist()
    tokenizer, total, short = Path(f"{path}.ds.metadata").read_text().split("\n")
    assert tokenizer.rpartition("|")[2] == str(dtype_of(directory).itemsize)
    assert int(total) == (ends[-1] if ends else 0)
    assert short.endswith(" tokens")
    return cut(np.fromfile(f"{path}.ds", f"<u{dtype_of(directory).itemsize}"), ends)


def read_olmo(path: Path, directory: Path) -> list[list[int]]:
    ids = np.memmap(f"{path}.npy", mode="r", dtype=f"<u{dtype_of(directory).itemsize}")
    with gzip.open(f"{path}.csv.gz", "rt", encoding="utf-8") as file:
        entries = list(csv.reader(file))
    assert all(len(entry) == 5 for entry in entries)
    return [ids[int(start) : int(end)].tolist() for start, end, *_ in entries]


def read_parquet(path: Path, directory: Path) -> list[list[int]]:
    return rows_of(pq.read_table(f"{path}.parquet"))


def read_arrow(path: Path, directory: Path) -> list[list[int]]:
    return rows_of(pa.ipc.open_file(pa.memory_map(f"{path}.arrow")).read_all())


def read_saved(path: Path, directory: Path) -> list[list[int]]:
    table = pa.ipc.open_stream(pa.memory_map(f"{path}.arrow")).read_all()
    kind = table.schema.field("input_ids").type
    assert kind.value_type == pa.from_numpy_dtype(dtype_of(directory))
    if pa.types.is_fixed_size_list(kind):
        assert kind.list_size == L
        assert table.column_names == ["input_ids", "cu_seqlens", "loss_mask"]
    else:
        assert set(table.column_names) <= {"id", "source", "locator", "input_ids", "learnt"}
    return table.column("input_ids").to_pylist()  # type: ignore[no-any-return]


def rows_of(table: pa.Table) -> list[list[int]]:
    found: list[list[int]] = table.column("input_ids").to_pylist()
    if "position_ids" in table.column_names:
        for row in table.to_pylist():
            assert len(row["position_ids"]) == len(row["segment_ids"]) == len(row["loss_mask"]) == L
    else:
        assert set(table.column_names) <= {"id", "source", "locator", "input_ids", "learnt"}
    return found


def read_mds(folder: Path, directory: Path) -> list[list[int]]:
    """By the layout: count, offsets, config, samples; of a sample the sizes of what varies, then the values."""
    index = json.loads((folder / "index.json").read_text())
    assert index["version"] == 2
    found = []
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        (count,) = struct.unpack_from("<I", data)
        assert count == shard["samples"]
        offsets = struct.unpack_from(f"<{count + 1}I", data, 4)
        assert offsets[-1] == len(data)
        config = json.loads(data[4 + 4 * (count + 1) : offsets[0]])
        assert all(config[key] == shard[key] for key in config)
        assert config["column_names"] == sorted(config["column_names"])
        for start, stop in pairwise(offsets):
            place = start + 4 * config["column_sizes"].count(None)
            varying = iter(struct.unpack_from(f"<{config['column_sizes'].count(None)}I", data, start))
            for name, encoding, size in zip(
                config["column_names"], config["column_encodings"], config["column_sizes"], strict=True
            ):
                value = data[place : (place := place + (next(varying) if size is None else size))]
                if name == "input_ids" and size is None:
                    width = 1 << (value[0] & 3)
                    assert value[0] >> 2 == 1
                    ids = np.frombuffer(value, "<i4", offset=1 + width)
                    assert int.from_bytes(value[1 : 1 + width], "little") == len(ids)
                    found.append(ids.tolist())
                elif name == "input_ids":
                    assert encoding == f"ndarray:int32:{L}"
                    found.append(np.frombuffer(value, "<i4").tolist())
            assert place == stop
    return found


def read_webdataset(path: Path, directory: Path) -> list[list[int]]:
    import webdataset

    samples = webdataset.WebDataset(f"{path}.tar", shardshuffle=False).decode()
    return [sample["input_ids.npy"].tolist() for sample in samples]


READERS = {
    "megatron": read_megatron,
    "ds": read_ds,
    "olmo": read_olmo,
    "parquet": read_parquet,
    "arrow": read_arrow,
    "datasets": read_saved,
    "webdataset": read_webdataset,
}


def test_large_exports_are_cut_into_shards(directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.shards.exports.samples.SHARD_BYTES", 2000)
    exported(directory, tmp_path / "out", "mds")
    assert len(list((tmp_path / "out" / "train").glob("shard.*.mds"))) > 5
    assert read_mds(tmp_path / "out" / "train", directory) == [ids for part in documents(directory, "train") for ids in part]


@pytest.mark.parametrize(("to", "suffix"), [("megatron", "bin"), ("ds", "ds"), ("olmo", "npy")])
def test_the_payload_is_the_same_file(directory: Path, tmp_path: Path, to: str, suffix: str) -> None:
    exported(directory, tmp_path / "out", to)
    assert (tmp_path / "out" / "train" / f"00001.{suffix}").samefile(directory / "tokens" / "train" / "00001.bin")
    exported(directory, tmp_path / "packed", to, "rows")
    rows_bin = directory / "packs" / "rows" / "train" / "rows" / "rows.bin"
    assert (tmp_path / "packed" / "train" / f"00000.{suffix}").samefile(rows_bin)


def test_what_is_only_given_is_told(directory: Path, tmp_path: Path) -> None:
    vocabulary = packing_corpus.WIDE_VOCABULARY if "int32" in str(directory) else packing_corpus.VOCABULARY
    made = packing_corpus.random_documents(50, seed=4, given=0.3, vocabulary=vocabulary)
    expected = []
    for ids, spans in made:
        learnt = np.ones(len(ids), dtype=np.uint8)
        for span in spans:
            learnt[span.start : span.start + span.length] = span.loss
        expected.append(learnt.tolist())
    assert any(0 in learnt for learnt in expected)
    exported(directory, tmp_path / "parquet", "parquet")
    found = [
        v for path in sorted((tmp_path / "parquet" / "train").iterdir()) for v in pq.read_table(path)["learnt"].to_pylist()
    ]
    assert found == expected
    exported(directory, tmp_path / "ds", "ds")
    losses = b"".join(path.read_bytes() for path in sorted((tmp_path / "ds" / "train").glob("*.ds.loss")))
    assert list(losses) == [value for learnt in expected for value in learnt]
    exported(directory, tmp_path / "packed", "ds", "rows")
    labels = [row["labels"] for row in PackedDataset(directory, "rows", labels="hf")]  # type: ignore[attr-defined]
    assert list((tmp_path / "packed" / "train" / "00000.ds.loss").read_bytes()) == [int(n != -100) for r in labels for n in r]


def test_the_same_again_is_there_already_and_another_is_refused(directory: Path, tmp_path: Path) -> None:
    assert exported(directory, tmp_path / "out", "ds").written
    assert not exported(directory, tmp_path / "out", "ds").written
    for to, plan in (("olmo", None), ("ds", "rows")):
        with pytest.raises(UsageError, match="not this export"):
            exported(directory, tmp_path / "out", to, plan)
    with pytest.raises(UsageError, match="no export format 'tfrecord'; there are: megatron, ds, olmo, mds, "):
        exported(directory, tmp_path / "other", "tfrecord")
    assert not (tmp_path / "other").exists()


def test_the_command(directory: Path, tmp_path: Path) -> None:
    command = ["export", str(directory), "--format", "megatron", "--out", str(tmp_path / "out"), "--quiet"]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "documents for megatron" in told.output
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert again["written"] is False
    assert again["splits"]["train"]["sequences"] == 50
    missing = CliRunner().invoke(app, [*command[:5], str(tmp_path / "no"), "--pack", "none"])
    assert missing.exit_code == 1, missing.output
    assert not (tmp_path / "no").exists()


# ---- the formats' own readers


@needs_megatron
def test_megatron_reads_documents_and_rows(directory: Path, tmp_path: Path) -> None:
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    exported(directory, tmp_path / "out", "megatron")
    for number, part in enumerate(documents(directory, "train")):
        dataset = IndexedDataset(str(tmp_path / "out" / "train" / f"{number:05d}"))
        assert [dataset[n].tolist() for n in range(len(dataset))] == part
        assert dataset.document_indices.tolist() == list(range(len(part) + 1))
    exported(directory, tmp_path / "packed", "megatron", "rows")
    dataset = IndexedDataset(str(tmp_path / "packed" / "train" / "00000"))
    assert [dataset[n].tolist() for n in range(len(dataset))] == rows(directory, "train")


@needs_megatron
def test_a_gpt_dataset_of_packed_rows_yields_the_rows(directory: Path, tmp_path: Path) -> None:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        eod, pad, vocab_size = 1, -1, 500  # it writes 0 for the padding id
        unique_identifiers: dict[str, str] = {"class": "test"}  # noqa: RUF012

    exported(directory, tmp_path / "packed", "megatron", "rows")
    config = GPTDatasetConfig(
        random_seed=1,
        sequence_length=L,
        blend=None,
        split="1,0,0",
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        path_to_cache=str(tmp_path / "cache"),
    )
    indexed = IndexedDataset(str(tmp_path / "packed" / "train" / "00000"))
    expected = {tuple(row) for row in rows(directory, "train")}
    sequences = np.arange(len(indexed), dtype=np.int32)
    dataset = GPTDataset(indexed, str(tmp_path), sequences, None, Split.train, config)
    found = [tuple(dataset[n]["tokens"].tolist()) for n in range(len(dataset))]
    assert len(found) >= len(expected) - 1  # a sample needs the token behind it, so the epoch's last row may be without
    assert set(found) <= expected


@needs_datatrove
def test_datatrove_reads_windows(directory: Path, tmp_path: Path) -> None:
    from datatrove.utils.dataset import DatatroveFileDataset

    exported(directory, tmp_path / "packed", "ds", "rows")
    size = dtype_of(directory).itemsize
    dataset = DatatroveFileDataset(str(tmp_path / "packed" / "train" / "00000.ds"), seq_len=L - 1, token_size=size)
    assert [dataset[n]["input_ids"].tolist() for n in range(len(dataset))] == rows(directory, "train")


@needs_datasets
def test_datasets_reads_the_tables(directory: Path, tmp_path: Path) -> None:
    from datasets import load_dataset

    for to in ("parquet", "arrow"):
        exported(directory, tmp_path / to, to, "rows")
        files = {"train": str(tmp_path / to / "train" / f"*.{to}")}
        table = load_dataset(to, data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
        assert table["input_ids"][:] == rows(directory, "train")


@needs_datasets
@pytest.mark.parametrize("plan", ["rows", f"seq{L}-overlong"])
def test_datasets_maps_what_was_saved(directory: Path, tmp_path: Path, plan: str) -> None:
    from datasets import Dataset, load_from_disk
    from datasets.table import MemoryMappedTable

    exported(directory, tmp_path / "saved", "datasets", plan)
    both = load_from_disk(str(tmp_path / "saved"))
    assert set(both) == {"train", "val"}
    for split in ("train", "val"):
        packed = PackedDataset(directory, plan, split, cu_seqlens=True)
        alone = Dataset.from_file(str(tmp_path / "saved" / split / "00000.arrow"))
        assert isinstance(alone.data, MemoryMappedTable)
        assert alone.cache_files == both[split].cache_files  # the file itself, no copy of it
        for n, row in enumerate(packed):
            borders = row["cu_seqlens"][: int(row["num_segments"]) + 1].tolist()
            expected = {"input_ids": row["input_ids"].tolist(), "cu_seqlens": borders, "loss_mask": row["loss_mask"].tolist()}
            assert alone[n] == both[split][n] == expected
        assert len(alone) == len(both[split]) == len(packed)
    assert both["train"].with_format("numpy")[:2]["input_ids"].shape == (2, L)


@needs_datasets
def test_datasets_maps_documents_too(directory: Path, tmp_path: Path) -> None:
    from datasets import load_from_disk

    exported(directory, tmp_path / "saved", "datasets")
    saved = load_from_disk(str(tmp_path / "saved" / "train"))
    assert saved["input_ids"][:] == [ids for shard in documents(directory, "train") for ids in shard]
    assert {"id", "source", "locator"} <= set(saved.column_names)
