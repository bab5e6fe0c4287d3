"""A run over the real corpora: outcomes against foreign readers, bytes against other runs, contents against the source."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from shard_corpus import snapshot

from tokkit.packing.plan import plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.split import split_documents
from tokkit.pipelines.decoding import DecodedText, DocumentDecoder
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.manifest import Manifest, load_manifest
from tokkit.shards.native import open_shards

pytestmark = pytest.mark.slow

SOURCES = ("images_webdataset", "interleaved_obelics", "interleaved_obelics_inline", "hf_parquet", "text", "audio_webdataset")


@dataclass(frozen=True)
class Run:
    """A finished run by the command itself, with one worker."""

    out: Path
    data: Path
    text: Path
    image: Path
    manifest: Manifest

    def command(self, out: Path, workers: int) -> list[str]:
        inputs = [str(self.data / name) for name in SOURCES if name != "text"]
        inputs.insert(4, str(self.data / "text" / "*.jsonl.gz"))
        options = ["--out", out, "--text-tokenizer", self.text, "--image-tokenizer", self.image, "--workers", workers]
        options += ["--unit-size", "4MB", "--val-fraction", "0.02", "--pair-order", "random", "--quiet"]
        return [sys.executable, "-m", "tokkit.cli.main", "shard", *inputs, *map(str, options)]


@pytest.fixture(scope="module")
def real(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    import torch

    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import configure

    folder = tmp_path_factory.mktemp("real")
    config = TrainTextConfig(
        inputs=[str(shared_data / "text")], out=folder / "text.model", vocab_size=4000, max_bytes=2_000_000
    )
    train_text(config, SilentProgress())
    torch.manual_seed(0)
    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(folder / "vq")
    run = Run(folder / "one", shared_data, folder / "text.model", folder / "vq", None)  # type: ignore[arg-type]
    subprocess.run(run.command(run.out, 1), check=True, stdout=subprocess.DEVNULL)
    return Run(run.out, run.data, run.text, run.image, load_manifest(run.out))


# ---- counts, taken with other readers than tokkit's


def tar_keys(folder: Path, *suffixes: str) -> int:
    return sum(m.name.endswith(suffixes) for path in sorted(folder.glob("*.tar")) for m in tarfile.open(path))


def json_lines(path: Path) -> list[dict[str, object]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def test_every_document_and_item_has_one_outcome_and_the_sums_are_the_foreign_readers(real: Run) -> None:
    data = real.data
    sources = {s.name: s for s in real.manifest.sources}
    assert set(sources) == set(SOURCES)

    pictures = tar_keys(data / "images_webdataset", ".jpg")
    statuses = Counter(
        s for path in (data / "images_webdataset").glob("*.parquet") for s in pq.read_table(path).column("status").to_pylist()
    )
    assert pictures == statuses["success"]
    found = sources["images_webdataset"]
    assert found.documents == {"committed": pictures, "failed_upstream": statuses["failed_to_download"]}
    assert found.items == {"image": {"committed": pictures}}

    url_map = [json.loads(x) for x in (data / "interleaved_obelics" / "anthropology_url_map.jsonl").read_text().splitlines()]
    absent = {entry["url"] for entry in url_map if entry["status"] != "success"}
    rows, items, lost = 0, 0, 0
    for path in (data / "interleaved_obelics").glob("*.parquet"):
        images = pq.read_table(path).column("images").to_pylist()
        rows += len(images)
        items += sum(ref is not None for row in images for ref in row)
        lost += sum(ref in absent for row in images for ref in row)
    found = sources["interleaved_obelics"]
    assert found.documents == {"committed": rows}
    assert found.items == {"image": {"committed": items - lost, "failed_upstream": lost}}
    assert (rows, items, lost) == (167, 548, 9)

    inline = pq.read_table(next((data / "interleaved_obelics_inline").glob("*.parquet"))).column("images").to_pylist()
    found = sources["interleaved_obelics_inline"]
    assert found.documents == {"committed": len(inline)}
    assert found.items == {"image": {"committed": sum(ref is not None for row in inline for ref in row)}}

    rows = sum(pq.read_metadata(path).num_rows for path in (data / "hf_parquet").glob("*.parquet"))
    assert sources["hf_parquet"].documents == {"committed": rows}
    assert sources["hf_parquet"].items == {"image": {"committed": rows}}

    lines = sum(len(json_lines(path)) for path in (data / "text").glob("*.jsonl.gz"))
    assert sources["text"].documents == {"committed": lines}

    clips = tar_keys(data / "audio_webdataset", ".wav", ".flac")
    assert sources["audio_webdataset"].documents == {"filtered": clips}
    assert sources["audio_webdataset"].items == {"audio": {"filtered": clips}}
    assert sources["audio_webdataset"].reasons["item/filtered/no-audio-tokenizer"] == clips

    everything = sum(sum(s.documents.values()) for s in sources.values())
    assert everything == sum(real.manifest.documents.values()) == sum(s.counted_documents or 0 for s in sources.values())


def test_it_agrees_with_itself(real: Run) -> None:
    result = verify(VerifyConfig(directory=real.out, decode_at_most=10_000), SilentProgress())
    assert result.problems == []
    assert result.checked["documents parsed"] == real.manifest.documents["committed"]


# ---- the same bytes


def test_two_workers_give_the_same_bytes(real: Run, tmp_path: Path) -> None:
    subprocess.run(real.command(tmp_path / "two", 2), check=True, stdout=subprocess.DEVNULL)
    assert snapshot(tmp_path / "two") == snapshot(real.out)


def test_kill_9_in_the_middle_and_the_same_command_again_give_the_same_bytes(real: Run, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    kills = 0
    for after in (3, 12):
        process = subprocess.Popen(
            real.command(out, 2), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        while process.poll() is None and len(list((out / "commits").glob("*.json"))) < after:
            time.sleep(0.005)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills == 2
    assert not (out / "manifest.json").exists()
    subprocess.run(real.command(out, 2), check=True, stdout=subprocess.DEVNULL)
    assert snapshot(out) == snapshot(real.out)


# ---- what the documents say


def test_text_comes_back_exactly(real: Run) -> None:
    """Every text document and every caption, against the source read by gzip, json and tarfile."""
    expected: dict[tuple[str, str], str] = {}
    for path in sorted((real.data / "text").glob("*.jsonl.gz")):
        for entry in json_lines(path):
            expected["text", str(entry["id"])] = str(entry["text"])
    for path in sorted((real.data / "images_webdataset").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if member.name.endswith(".txt"):
                    expected["images_webdataset", member.name[:-4]] = tar.extractfile(member).read().decode()  # type: ignore[union-attr]
    for path in sorted((real.data / "interleaved_obelics_inline").glob("*.parquet")):
        for number, texts in enumerate(pq.read_table(path).column("texts").to_pylist()):
            expected["interleaved_obelics_inline", f"{path.name}:{number}"] = "".join(t for t in texts if t is not None)
    decoder = DocumentDecoder(real.out)
    seen = 0
    for split, shards in decoder.shards.items():
        rows = [r for t in shards.tables(["id", "source", "locator"]) for r in t.to_pylist()]
        for number, names in enumerate(rows):
            key = (names["source"], names["locator"] if "inline" in names["source"] else names["id"])
            if key in expected:
                parts = decoder.decode(split, number).parts
                assert "".join(p.text for p in parts if isinstance(p, DecodedText)) == expected.pop(key), key
                seen += 1
    assert not expected
    assert seen == 3396 + 920 + 25


def test_picture_codes_come_back_exactly(real: Run) -> None:
    """Pictures of the tars encoded again, singly and by another path to their bytes, have the codes in the shards."""
    import io

    import torch
    from PIL import Image

    from tokkit.tokenizers.image import load_image_tokenizer

    tokenizer = load_image_tokenizer(real.image)
    decoder = DocumentDecoder(real.out)
    wanted: dict[str, bytes] = {}
    with tarfile.open(real.data / "images_webdataset" / "00001.tar") as tar:
        for member in tar:
            if member.name.endswith(".jpg") and int(member.name[:9]) % 7 == 0:
                wanted[f"00001.tar#{member.name[:9]}"] = tar.extractfile(member).read()  # type: ignore[union-attr]
    checked = 0
    for split, shards in decoder.shards.items():
        rows = [r for t in shards.tables(["source", "locator"]) for r in t.to_pylist()]
        for number, names in enumerate(rows):
            if names["source"] != "images_webdataset" or names["locator"] not in wanted:
                continue
            batch = np.zeros((16, 32, 32, 3), dtype=np.uint8)
            picture = Image.open(io.BytesIO(wanted[names["locator"]])).convert("RGB")
            batch[5] = tokenizer.config.preprocessing.apply(picture)
            codes = tokenizer.encode(torch.from_numpy(batch))[5].numpy()
            found = next(p for p in decoder.decode(split, number).parts if not isinstance(p, DecodedText))
            assert np.array_equal(codes, found.codes[0])
            checked += 1
    assert checked == len(wanted) > 30


# ---- packing


def brute_force(lengths: list[int], seq_len: int) -> list[int]:
    """Best-fit-decreasing as the textbook has it: the longest first, into the fullest pack that it fits; residuals, sorted."""
    residuals: list[int] = []
    for length in sorted(lengths, reverse=True):
        at = bisect_left(residuals, length)
        room = residuals.pop(at) if at < len(residuals) else seq_len
        insort(residuals, room - length)
    return residuals


@pytest.mark.parametrize("seq_len", [4096, 8192])
def test_packing_is_best_fit_decreasing_and_near_its_bound(real: Run, seq_len: int) -> None:
    shards = open_shards(real.out)
    plan = plan_packs(shards.lengths, shards.spans, seq_len, SplitPolicy.OVERLONG)
    pieces, left_out = split_documents(shards.lengths, shards.spans, seq_len, SplitPolicy.OVERLONG)
    assert len(left_out.document) == 0
    fills = np.add.reduceat(plan.pieces.length.astype(np.int64), plan.pack_offsets[:-1])
    assert sorted(seq_len - fills) == brute_force(pieces.length.tolist(), seq_len)
    assert plan.num_tokens == shards.num_tokens
    bound = max(plan.bounds.volume, plan.bounds.martello_toth)
    assert bound <= plan.num_packs <= bound * 1.01
