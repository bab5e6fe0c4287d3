"""Exports of feature caches, read by the libraries that they are for; and the command from end to end with a real tower."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from feature_double import DIM, DoubleConfig, options
from shard_corpus import snapshot, write_corpus, write_tokenizers

from tokkit.errors import UsageError
from tokkit.features.store import open_cache
from tokkit.pipelines.export import ExportConfig, export
from tokkit.pipelines.features import features
from tokkit.pipelines.progress import SilentProgress
from tokkit.tokenizers.text import load_text_tokenizer

SILENT = SilentProgress()


class World:
    def __init__(self, folder: Path) -> None:
        self.folder, self.corpus = folder, write_corpus(folder / "corpus")
        self.text, _ = write_tokenizers(folder / "tokenizers")
        self.caches: dict[str, Path] = {}

    def cache(self, dtype: str) -> Path:
        if dtype not in self.caches:
            entry = options(self.corpus.folder, self.text, self.folder / dtype) | {"dtype": dtype}
            self.caches[dtype] = features(DoubleConfig.model_validate(entry), SILENT).out
        return self.caches[dtype]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("dtype", ["fp16", "bf16", "int8"])
def test_safetensors(world: World, tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file

    result = export(ExportConfig(directory=world.cache(dtype), out=tmp_path / "out", format="safetensors"), SILENT)
    cache, first, item = open_cache(world.cache(dtype)), 0, 0
    for path in sorted((result.out / "train").iterdir()):
        found = load_file(path)
        assert found["features"].dtype == {"fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}[dtype]
        edges, id_edges = found["feature_offsets"].tolist(), found["id_offsets"].tolist()
        for number in range(len(edges) - 1):
            values = found["features"][edges[number] : edges[number + 1]].float()
            if dtype == "int8":
                values *= found["scales"][edges[number] : edges[number + 1], None]
            assert np.array_equal(values.numpy(), cache.dense(item))
            assert found["item_document"][number] + first == cache.document_of[item]
            assert found["item_position"][number] == cache.positions[item]
            assert np.allclose(found["pooled"][number].numpy(), cache.pooled(item))
            item += 1
        for number in range(len(id_edges) - 1):
            assert found["ids"][id_edges[number] : id_edges[number + 1]].tolist() == cache.ids(first + number).tolist()
        first += len(id_edges) - 1
    assert (first, item) == (cache.num_documents, len(cache))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_webdataset(world: World, tmp_path: Path, dtype: str) -> None:
    import webdataset

    result = export(ExportConfig(directory=world.cache(dtype), out=tmp_path / "out", format="webdataset"), SILENT)
    cache = open_cache(world.cache(dtype))
    tars = sorted(str(path) for path in (result.out / "train").iterdir())
    samples = list(webdataset.WebDataset(tars, shardshuffle=False, empty_check=False).decode())
    assert len(samples) == cache.num_documents
    for number, sample in enumerate(samples):
        document = cache.document(number)
        assert sample["ids.npy"].tolist() == document.ids.tolist()
        assert [entry["position"] for entry in sample["json"]["items"]] == document.positions.tolist()
        for place, item in enumerate(document.items):
            assert np.array_equal(sample[f"{place}.npy"].astype(np.float32), cache.dense(item))
            assert np.array_equal(sample[f"{place}.pooled.npy"].astype(np.float32), cache.pooled(item))
            assert sample["json"]["items"][place]["newlines"] == [20, 24]


def test_clip_retrieval(world: World, tmp_path: Path) -> None:
    result = export(ExportConfig(directory=world.cache("fp16"), out=tmp_path / "out", format="clip-retrieval"), SILENT)
    cache, tokenizer = open_cache(world.cache("fp16")), load_text_tokenizer(world.text)
    embeddings = [np.load(path) for path in sorted((result.out / "train" / "img_emb").iterdir())]
    tables = [pq.read_table(path) for path in sorted((result.out / "train" / "metadata").iterdir())]
    assert [len(e) for e in embeddings] == [t.num_rows for t in tables]
    rows = [row for table in tables for row in table.to_pylist()]
    single = [d for d in range(cache.num_documents) if len(cache.items_of(d)) == 1]
    assert len(rows) == len(single) == result.record["splits"]["train"]["sequences"]  # type: ignore[index]
    assert np.concatenate(embeddings).shape == (len(rows), DIM)
    for row, embedding, number in zip(rows, np.concatenate(embeddings), single, strict=True):
        assert row["caption"] == tokenizer.decode(cache.ids(number))
        assert np.array_equal(embedding, cache.pooled(cache.items_of(number).start).astype(np.float16))  # type: ignore[union-attr]
        assert world.corpus.pairs.get(row["locator"], row["caption"]) == row["caption"]


def test_an_export_is_there_once_and_what_is_no_export_is_refused(world: World, tmp_path: Path) -> None:
    config = ExportConfig(directory=world.cache("fp16"), out=tmp_path / "out", format="safetensors")
    assert export(config, SILENT).written
    before = snapshot(tmp_path / "out")
    assert not export(config, SILENT).written
    assert snapshot(tmp_path / "out") == before
    with pytest.raises(UsageError, match="webdataset, safetensors, clip-retrieval"):
        export(config.model_copy(update={"format": "megatron", "out": tmp_path / "other"}), SILENT)
    with pytest.raises(UsageError, match="--pack is of token shards"):
        export(config.model_copy(update={"pack": "x", "out": tmp_path / "other"}), SILENT)


# ---- the command, with a tower as transformers writes it


def command(*words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "tokkit.cli.main", *map(str, words)]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_sounds_become_whispers_valid_frames(world: World, tmp_path: Path) -> None:
    soundfile = pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    pytest.importorskip("transformers")
    import io

    from feature_models import save
    from sources_helpers import tar_bytes

    from tokkit.features import load_feature_encoder
    from tokkit.pipelines.features import FeaturesConfig
    from tokkit.pipelines.verify import VerifyConfig, verify

    save("whisper", tmp_path / "whisper")
    (tmp_path / "corpus").mkdir()
    waves = [np.random.default_rng(n).normal(0, 0.1, 16_000 * (n + 1)).astype(np.float32) for n in range(3)]
    members: list[tuple[str, bytes]] = []
    for number, wave in enumerate(waves):
        buffer = io.BytesIO()
        soundfile.write(buffer, wave, 16_000, format="WAV", subtype="FLOAT")
        members += [(f"{number}.wav", buffer.getvalue()), (f"{number}.txt", b"some words")]
    members += [("3.wav", members[0][1][:2000]), ("3.txt", b"cut short")]
    (tmp_path / "corpus" / "00000.tar").write_bytes(tar_bytes(members))
    settings = {"inputs": [str(tmp_path / "corpus")], "out": tmp_path / "out", "encoder": str(tmp_path / "whisper")}
    result = features(
        FeaturesConfig.model_validate(settings | {"text_tokenizer": world.text, "workers": 0, "batch_size": 2}), SILENT
    )
    assert result.manifest.items == {"audio": {"committed": 3, "rejected": 1}}
    cache, encoder = open_cache(tmp_path / "out"), load_feature_encoder(tmp_path / "whisper")
    for item, wave in enumerate(waves):
        expected = encoder.encode([encoder.prepare(wave)], 2)[0]
        assert np.array_equal(cache.features(item), expected.features.astype(np.float16))
        assert cache.entry(item).valid == expected.valid
        assert cache.entry(item).width == len(wave)
    assert verify(VerifyConfig(directory=tmp_path / "out"), SILENT).ok


def test_what_is_only_given_is_marked(world: World, tmp_path: Path) -> None:
    from shard_corpus import picture

    from tokkit.data.features import FeatureDataset

    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.png").write_bytes(picture(1))
    turns = [{"from": "human", "value": "<image>\nthe brown fox?"}, {"from": "gpt", "value": "a lazy dog"}]
    (tmp_path / "corpus" / "c.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns}]))
    entry = options(world.corpus.folder, world.text, tmp_path / "out") | {"inputs": [f"llava:{tmp_path / 'corpus' / 'c.json'}"]}
    out = features(DoubleConfig.model_validate(entry | {"val_fraction": 0.0}), SILENT).out
    row, tokenizer = FeatureDataset(out)[0], load_text_tokenizer(world.text)
    assert "lazy dog" in tokenizer.decode(row.input_ids[row.learn].tolist())
    assert "brown fox" not in tokenizer.decode(row.input_ids[row.learn].tolist())
    assert "brown fox" in tokenizer.decode(row.input_ids[~row.learn].tolist())
    assert len(row.features) == 1


@pytest.mark.slow
def test_the_command_with_a_clip_tower_and_workers(world: World, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from feature_models import save

    save("clip", tmp_path / "clip")
    inputs = [world.corpus.folder / "pairs", world.corpus.folder / "documents"]
    shared = ["--encoder", tmp_path / "clip", "--text-tokenizer", world.text, "--unit-size", 6000, "--layer", -2]
    shared += ["--pooled", "projected", "--dtype", "bf16", "--device", "cpu", "--json", "--quiet"]
    done = command("features", *inputs, "--out", tmp_path / "one", "--workers", 2, *shared)
    assert done.returncode == 0, done.stderr
    entry = json.loads(done.stdout)
    assert entry["manifest"]["dtype"] == "bf16"
    assert entry["manifest"]["items"]["image"]["committed"] == 47
    again = command("features", *inputs, "--out", tmp_path / "two", "--workers", 0, *shared)
    assert again.returncode == 0, again.stderr
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    assert command("verify", tmp_path / "one", "--quiet").returncode == 0
    exported = command("export", tmp_path / "one", "--format", "clip-retrieval", "--out", tmp_path / "retrieval", "--json")
    assert exported.returncode == 0, exported.stderr
    other = command("features", *inputs, "--out", tmp_path / "one", *shared, "--dtype", "int8")
    assert other.returncode == 1
    assert "dtype: bf16 -> int8" in other.stderr
    wrong = command("features", *inputs, "--out", tmp_path / "three", *shared[2:])
    assert wrong.returncode == 2
    assert "encoder" in wrong.stderr
