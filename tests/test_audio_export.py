"""Exports of shards whose sounds are places on a grid (FSQ, residual FSQ).

Read back by the formats' layouts alone they hold the codes that the codec gives, and the exported tokenizer names them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from test_export import read_megatron, read_parquet
from test_train_codec import GRID, RATE, drawn, train
from tokenizers import Tokenizer

from tokkit.pipelines.export import ExportConfig, export
from tokkit.pipelines.inspect import write_wav
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.tokenizers.audio import load_audio_tokenizer

SILENT = SilentProgress()
SOUNDS = 4
ROW = 640


@dataclass(frozen=True)
class Made:
    """Shards, and what their sounds' codes are: int32 ``[K, t]`` each, ``levels`` a codebook."""

    directory: Path
    codes: list[np.ndarray]
    size: int
    delayed: bool


@pytest.fixture(scope="module", params=["fsq", "residual-fsq"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """One codebook frame by frame; two, the second a step late."""
    folder = tmp_path_factory.mktemp(request.param)
    delayed = request.param == "residual-fsq"
    more = {"quantizer.kind": "residual-fsq", "quantizer.codebooks": 2} if delayed else {}
    train(folder / "codec", overrides=GRID | more, steps=4)
    rows = []
    for i in range(SOUNDS):
        write_wav(folder / f"{i}.wav", drawn(i), RATE)
        rows.append({"audio_filepath": f"{i}.wav", "duration": 1.0, "text": f"sound {i}"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "a.txt").write_text("\n".join(f"sound number {i} says nothing else" for i in range(300)))
    train_text(TrainTextConfig(inputs=(str(folder / "a.txt"),), out=folder / "text.model", vocab_size=300), SILENT)
    options = {
        "inputs": [str(folder / "manifest.jsonl")],
        "out": folder / "shards",
        "text_tokenizer": folder / "text.model",
        "audio_tokenizer": folder / "codec",
        "audio_layout": "delay" if delayed else "flat",
        "workers": 0,
    }
    shard(ShardConfig.model_validate(options), SILENT)
    pack(PackConfig(directory=folder / "shards", seq_len=ROW), SILENT)
    codec = load_audio_tokenizer(folder / "codec")
    pcm = [np.rint(drawn(i) * 32767).astype(np.int16).astype(np.float32) / 32768 for i in range(SOUNDS)]
    codes = [code.codes for code in codec.encode(pcm)]
    assert all(len(np.unique(book)) > 20 for code in codes for book in code)  # else nothing is compared
    return Made(folder / "shards", codes, codec.codebook_size, delayed)


def blocks(folder: Path) -> tuple[dict[str, int], list[int]]:
    """Markers, and the first id of each codebook, from ``vocabulary.json`` as it stands."""
    told = json.loads((folder / "vocabulary.json").read_text())
    return told["markers"], [block["start"] for block in told["blocks"] if block["modality"] == "audio"]


def sounds_in(ids: list[int], folder: Path, made: Made) -> list[np.ndarray]:
    """What stands between the markers of sounds, as codes."""
    markers, first = blocks(folder)
    begins = [i for i, token in enumerate(ids) if token == markers["begin_audio"]]
    ends = [i for i, token in enumerate(ids) if token == markers["end_audio"]]
    found = []
    for begin, end in zip(begins, ends, strict=True):
        steps = np.array(ids[begin + 1 : end]).reshape(-1, len(first)) - np.array(first)
        frames = len(steps) - (len(first) - 1 if made.delayed else 0)
        late = range(len(first)) if made.delayed else [0] * len(first)
        found.append(np.stack([steps[k : k + frames, book] for book, k in enumerate(late)]))
    return found


@pytest.mark.parametrize("packed", [False, True], ids=["documents", "rows"])
@pytest.mark.parametrize("to", ["megatron", "parquet"])
def test_exports_hold_the_codes_of_the_sounds(made: Made, tmp_path: Path, to: str, packed: bool) -> None:
    out = tmp_path / "out"
    plan = f"seq{ROW}-overlong" if packed else None
    record = export(ExportConfig(directory=made.directory, out=out, format=to, pack=plan), SILENT).record
    assert "audio" in record["tokenizers"]  # type: ignore[operator]
    read = read_megatron if to == "megatron" else read_parquet_rows
    sequences = read(out / "train" / "00000", made.directory)
    if packed:
        assert {len(ids) for ids in sequences} == {ROW}
    found = [codes for ids in sequences for codes in sounds_in(ids, out, made)]
    assert len(found) == SOUNDS
    wanted = {code.tobytes(): number for number, code in enumerate(np.asarray(code, np.int64) for code in made.codes)}
    assert sorted(wanted[np.ascontiguousarray(code, np.int64).tobytes()] for code in found) == list(range(SOUNDS))


def read_parquet_rows(path: Path, directory: Path) -> list[list[int]]:
    import pyarrow.parquet as pq

    table = pq.read_table(f"{path}.parquet")
    return read_parquet(path, directory) if "position_ids" not in table.column_names else table.column("input_ids").to_pylist()


def test_the_exported_tokenizer_names_every_place_of_the_grid(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(ExportConfig(directory=made.directory, out=out, format="hf-tokenizer"), SILENT)
    theirs = Tokenizer.from_file(str(out / "tokenizer.json"))
    _, first = blocks(made.directory)
    for book, start in enumerate(first):
        names = [f"<|audio_{book}_{code}|>" if len(first) > 1 else f"<|audio_{code}|>" for code in range(made.size)]
        assert [theirs.id_to_token(start + code) for code in range(made.size)] == names
    assert theirs.id_to_token(first[0] + made.size) != f"<|audio_{made.size}|>"
    export(ExportConfig(directory=made.directory, out=tmp_path / "ids", format="parquet"), SILENT)
    for number, ids in enumerate(read_parquet(tmp_path / "ids" / "train" / "00000", made.directory)):
        told = theirs.decode(ids, skip_special_tokens=False)
        assert f"sound {number}" in told
        assert theirs.encode(told, add_special_tokens=False).ids == ids  # a text of names is the document again
        code = int(made.codes[number][0, 0])
        name = f"<|audio_0_{code}|>" if len(first) > 1 else f"<|audio_{code}|>"
        assert told.partition("<|begin_audio|>")[2].startswith(name)
    assert all(b - a == made.size for a, b in pairwise(first))
