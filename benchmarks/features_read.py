"""Reads a second of the same features from a cache, .npy files, safetensors, a tar and parquet: at random and in order.

    python benchmarks/features_read.py --items 2000 --tokens 576 --dim 1024

Each way gives the item's features as an array in memory, all bytes touched. All files are first put to disk, dropped from the
page cache and read in once: how a file was written decides where its pages lie in memory, and that alone made ten percent. The
peers are read as their users read them: ``np.load(mmap_mode="r")`` of a file an item, ``safe_open(...).get_tensor`` of one file
with a tensor an item, a tar by the offsets of its members, a parquet table by row group.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from tokkit.features.base import ItemFeatures
from tokkit.features.manifest import CacheManifest, FeatureTotals
from tokkit.features.store import FeatureCache
from tokkit.features.writer import DocumentEntry, FeatureWriter, item_of
from tokkit.shards.manifest import Shard, Split

Read = Callable[[int], np.ndarray]


def cache(folder: Path, items: list[np.ndarray]) -> Read:
    """A feature cache with a document an item."""
    base = folder / "features" / "train"
    base.mkdir(parents=True)
    row = {"id": "", "source": "", "locator": "", "unit": 0, "split": "train", "hash": "0" * 32, "metadata": None}
    with FeatureWriter(base) as writer:
        for features in items:
            entry = item_of(ItemFeatures(features), "fp16", "image")
            writer.add([DocumentEntry(row, np.zeros(0, np.int32), [entry])])
        shard = Shard(documents=writer.documents, tokens=writer.features, files=writer.finish("00000"))
    split = Split(documents=len(items), tokens=0, tokens_by_kind={}, shards=[shard])
    nothing = FeatureTotals(items=0, missing=0, tokens=0, bytes=0, error=0, worst_error=0)
    manifest = CacheManifest.model_construct(
        dtype="fp16", dim=items[0].shape[1], pooled_dim=None, splits={"train": split}, features={"train": nothing}
    )
    return FeatureCache(folder, manifest, "train").features  # type: ignore[return-value]


def memory_map(folder: Path, items: list[np.ndarray]) -> Read:
    """All items in one array of equal lengths: the least that reading can cost."""
    np.save(folder / "all.npy", np.stack(items))
    return np.load(folder / "all.npy", mmap_mode="r").__getitem__


def npy_files(folder: Path, items: list[np.ndarray]) -> Read:
    folder.mkdir()
    for number, features in enumerate(items):
        np.save(folder / f"{number}.npy", features)
    return lambda number: np.load(folder / f"{number}.npy", mmap_mode="r")


def safetensors(folder: Path, items: list[np.ndarray]) -> Read:
    folder.mkdir()
    save_file({str(number): features for number, features in enumerate(items)}, folder / "all.safetensors")
    opened = safe_open(folder / "all.safetensors", framework="np")
    return lambda number: opened.get_tensor(str(number))


def tar(folder: Path, items: list[np.ndarray]) -> Read:
    folder.mkdir()
    with tarfile.open(folder / "all.tar", "w") as archive:
        for number, features in enumerate(items):
            buffer = io.BytesIO()
            np.save(buffer, features)
            member = tarfile.TarInfo(f"{number}.npy")
            member.size = buffer.tell()
            buffer.seek(0)
            archive.addfile(member, buffer)
    with tarfile.open(folder / "all.tar") as archive:
        places = [(member.offset_data, member.size) for member in archive]
    file = (folder / "all.tar").open("rb")

    def read(number: int) -> np.ndarray:
        file.seek(places[number][0])
        return np.load(io.BytesIO(file.read(places[number][1])))

    return read


def parquet(folder: Path, items: list[np.ndarray]) -> Read:
    folder.mkdir()
    shape = items[0].shape
    table = pa.table({"features": pa.array([features.tobytes() for features in items], pa.binary())})
    pq.write_table(table, folder / "all.parquet", row_group_size=16, compression="none", use_dictionary=False)
    file = pq.ParquetFile(folder / "all.parquet")
    held: list[object] = [-1, None]

    def read(number: int) -> np.ndarray:
        group, row = divmod(number, 16)
        if held[0] != group:
            held[:] = [group, file.read_row_group(group).column(0)]
        return np.frombuffer(held[1][row].as_buffer(), dtype=np.float16).reshape(shape)  # type: ignore[index]

    return read


WAYS = {
    "cache": cache,
    "memory map": memory_map,
    ".npy files": npy_files,
    "safetensors": safetensors,
    "tar": tar,
    "parquet": parquet,
}


def read_in_again(folder: Path) -> None:
    """Every file below ``folder`` on disk, and out of the page cache, so that reading decides where its pages lie."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def rate(read: Read, order: np.ndarray, seconds: float) -> float:
    """Items a second, every byte of which is copied to memory."""
    done, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for number in order[done % len(order) :][:64].tolist():
            np.array(read(number))
            done += 1
    return done / (time.perf_counter() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=576)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3, help="of which the best counts; the ways take turns")
    arguments = parser.parse_args()
    chance = np.random.default_rng(0)
    block = chance.normal(size=(arguments.tokens, arguments.dim)).astype(np.float16)
    items = [np.roll(block, number, axis=0) for number in range(arguments.items)]
    orders = {"random": chance.permutation(arguments.items), "sequential": np.arange(arguments.items)}
    found: dict[str, dict[str, float]] = {name: dict.fromkeys(orders, 0.0) for name in WAYS}
    with TemporaryDirectory() as folder:
        reads = {
            name: make(Path(folder) / name.strip("."), items) if name != "memory map" else make(Path(folder), items)
            for name, make in WAYS.items()
        }
        read_in_again(Path(folder))
        for name, read in reads.items():
            for number, features in enumerate(items):
                if not np.array_equal(read(number), features):
                    raise SystemExit(f"{name} gives other features than were written")
        for _ in range(arguments.rounds):
            for kind, order in orders.items():
                for name, read in reads.items():
                    found[name][kind] = max(found[name][kind], rate(read, order, arguments.seconds))
    size = items[0].nbytes
    for name, rates in found.items():
        told = ", ".join(f"{kind} {value:,.0f}/s ({value * size / 1e9:.2f} GB/s)" for kind, value in rates.items())
        sys.stderr.write(f"{name:12} {told}\n")
    sys.stdout.write(json.dumps({"bytes_an_item": size, "items": arguments.items, "reads_per_second": found}) + "\n")


if __name__ == "__main__":
    main()
