"""Reading rows for training: tokens/s of a batch loader against what others read fixed rows with, on the same tokens.

    python benchmarks/loader.py [--rows 20000] [--seq-len 4096] [--batch-size 8] [--rounds 5] [--peers-python PATH]

Documents of lognormal length (median 700) are written as token shards and packed. Every side gives batches of int32 tensors
[batch_size, seq_len], from memory that the system has read before, in one process and one thread, in plan order and shuffled:

* tokkit: ``PackedDataset(dense=False)``, gathered from the shards as they lie, with the borders of documents; the same from
  materialised rows; and with all dense fields (segments, positions, loss mask) made here;
* np.memmap over the materialised rows: no borders, nothing checked; this is what is hardest to beat;
* Arrow: the rows as a memory-mapped IPC file of lists, as Hugging Face ``datasets`` keeps them;
* Megatron's IndexedDataset over ``tokkit export --format megatron --pack``, where megatron-core is installed;
* MDS and litData, by the Python of an environment that has them (``loader_peers.py``).

The figure is tokens per CPU-second of the best round, and what share of a plain copy of as many bytes that is.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pyarrow as pa
import torch

from tokkit.data.packed import PackedDataset, collate
from tokkit.pipelines.export import ExportConfig, export
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.sequences import encode_texts
from tokkit.shards.manifest import LayoutEntry, Manifest, Shard, Split
from tokkit.shards.native import ShardWriter, document_table
from tokkit.storage import record_json
from tokkit.vocabulary import UnifiedVocabulary

Batches = Callable[[Sequence[int]], object]  # a batch's row numbers -> whatever is given


def main() -> None:
    """Write the corpus, measure each side turn by turn, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", help="of an environment with mosaicml-streaming and litdata")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokens = write_shards(folder / "shards", options.rows * options.seq_len, options.seq_len)
        plan = PackConfig(directory=folder / "shards", seq_len=options.seq_len, name="rows", materialize=True)
        pack(plan, SilentProgress())
        pack(plan.model_copy(update={"name": "plan", "materialize": False}), SilentProgress())
        found = dict(sides(folder, options.seq_len))
        count = len(PackedDataset(folder / "shards", "plan"))
        print(
            f"{count:,} rows of {options.seq_len:,} ({tokens:,} tokens), batches of {options.batch_size}; one process, CPU time"
        )
        orders = {"in order": np.arange(count), "shuffled": np.random.default_rng(0).permutation(count)}
        copied = copy_rate(options.batch_size, options.seq_len)
        print(f"  plain copy of such batches: {copied / 4e6:,.0f} M tokens/s ({copied / 1e9:.1f} GB/s)")
        print(f"  {'M tokens/s':<44}" + "".join(f"{order:>12}{'of a copy':>12}" for order in orders))
        best = {(side, order): 0.0 for side in found for order in orders}
        for _ in range(options.rounds):
            for side, give in found.items():
                for order, numbers in orders.items():
                    best[side, order] = max(best[side, order], rate(give, numbers, options.batch_size) * options.seq_len)
        for side, rates in peers(options.peers_python, folder, options) if options.peers_python else []:
            found[side] = lambda numbers: numbers
            best |= {(side, order): per_second * options.seq_len for order, per_second in rates.items()}
        for side in found:
            cells = (f"{best[side, o] / 1e6:>12,.0f}{400 * best[side, o] / copied:>10.0f} %" for o in orders)
            print(f"  {side:<44}" + "".join(cells))


def write_shards(directory: Path, tokens: int, seq_len: int) -> int:
    """Token shards of drawn text of about so many tokens; returns how many."""
    rng = np.random.default_rng(0)
    vocabulary = UnifiedVocabulary.build(32_000, image_codebooks=[1024])
    lengths = np.clip(rng.lognormal(np.log(700), 1.1, 2 * tokens // 1200).astype(np.int64), 1, seq_len - 2)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), tokens)) + 1]
    folder = directory / "tokens" / "train"
    folder.mkdir(parents=True)
    shards = []
    for number, part in enumerate(np.array_split(lengths, 4)):
        found = encode_texts(rng.integers(0, 32_000, int(part.sum())).astype(np.int32), part, vocabulary)
        names = [f"{number}-{n}" for n in range(len(part))]
        columns = {"id": names, "source": ["drawn"] * len(part), "locator": names, "unit": [0] * len(part)}
        columns |= {"split": ["train"] * len(part), "tokens": found.lengths, "hash": names, "metadata": [None] * len(part)}
        with ShardWriter(folder, vocabulary.dtype) as writer:
            writer.extend(found.ids, document_table(columns, found.spans))
            files = writer.finish(f"{number:05d}")
            shards.append(Shard(documents=writer.documents, tokens=writer.tokens, files=files))
    total = sum(shard.tokens for shard in shards)
    split = Split(documents=len(lengths), tokens=total, tokens_by_kind={}, shards=shards)
    nothing = {"semantic": {}, "semantic_fingerprint": "", "numeric": {}, "numeric_fingerprint": "", "tokenizers": {}}
    nothing |= {"trial": None, "sources": [], "ignored": {}, "units": 0, "documents": {}, "items": {}, "container_errors": 0}
    manifest = Manifest(
        tokkit="0",
        dtype=vocabulary.dtype.name,
        vocabulary_size=vocabulary.size,
        vocabulary_fingerprint=vocabulary.fingerprint,
        layout=LayoutEntry(image="plain", image_grid=None),
        splits={"train": split},
        commits="",
        rejects="",
        **nothing,
    )
    (directory / "manifest.json").write_text(record_json(manifest.model_dump(mode="json")))
    vocabulary.save(directory / "vocabulary.json")
    return total


def sides(folder: Path, seq_len: int) -> Iterator[tuple[str, Batches]]:
    """Each side's name, and what gives a batch."""
    shards = folder / "shards"
    lean = PackedDataset(shards, "plan", dense=False)
    yield "tokkit, gathered: tokens and borders", lambda numbers: collate(lean.__getitems__(numbers))
    stored = PackedDataset(shards, "rows", dense=False)
    yield "tokkit, materialised: tokens and borders", lambda numbers: collate(stored.__getitems__(numbers))
    full = PackedDataset(shards, "plan", modality_ids=False)
    yield "tokkit, gathered: all dense fields", lambda numbers: collate(full.__getitems__(numbers))
    path = shards / "packs" / "rows" / "train" / "rows" / "rows.bin"
    rows = np.memmap(path, dtype=np.uint16, mode="r").reshape(-1, seq_len)
    yield "np.memmap: tokens", lambda numbers: torch.stack([torch.from_numpy(rows[n].astype(np.int32)) for n in numbers])
    yield "np.memmap, one index a batch: tokens", lambda numbers: torch.from_numpy(rows[np.asarray(numbers)].astype(np.int32))
    column = pa.ListArray.from_arrays(
        pa.array(np.arange(0, rows.size + 1, seq_len, dtype=np.int32)), pa.array(rows.reshape(-1).astype(np.int32))
    )
    with (
        pa.OSFile(str(folder / "rows.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, pa.schema([("input_ids", column.type)])) as out,
    ):
        for first in range(0, len(column), 1000):
            out.write_batch(pa.record_batch([column.slice(first, 1000)], names=["input_ids"]))
    table = pa.ipc.open_file(pa.memory_map(str(folder / "rows.arrow"))).read_all().column("input_ids")

    def arrow(numbers: Sequence[int]) -> torch.Tensor:
        return torch.stack([torch.from_numpy(table[int(n)].values.to_numpy().copy()) for n in numbers])

    yield "Arrow IPC: tokens", arrow
    if importlib.util.find_spec("megatron"):
        from megatron.core.datasets.indexed_dataset import IndexedDataset

        export(ExportConfig(directory=shards, out=folder / "megatron", format="megatron", pack="rows"), SilentProgress())
        indexed = IndexedDataset(str(folder / "megatron" / "train" / "00000"))
        yield (
            "Megatron IndexedDataset: tokens",
            lambda numbers: torch.stack([torch.from_numpy(indexed[int(n)].astype(np.int32)) for n in numbers]),
        )
    else:
        print("  (megatron-core is not installed)")


def peers(python: str, folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, dict[str, float]]]:
    """Name and rows per CPU-second in each order of what ``loader_peers.py`` measures."""
    export(
        ExportConfig(directory=folder / "shards", out=folder / "mds", format="mds", pack="rows"),
        SilentProgress(),
    )
    rows = folder / "shards" / "packs" / "rows" / "train" / "rows" / "rows.bin"
    (folder / "scratch").mkdir()
    numbers = [options.seq_len, options.batch_size, options.rounds]
    command = [python, str(Path(__file__).with_name("loader_peers.py")), str(folder / "mds" / "train"), str(rows)]
    command += [*map(str, numbers), str(folder / "scratch")]
    environment = {**os.environ, "TMPDIR": str(folder / "scratch")}
    environment.pop("PYTHONPATH", None)
    told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    for line in told.stdout.splitlines():
        if line.startswith("{"):
            rates = json.loads(line)
            yield rates.pop("name"), rates


def rate(give: Batches, numbers: np.ndarray, batch_size: int) -> float:
    """Rows per CPU-second."""
    whole = len(numbers) - len(numbers) % batch_size
    begin = time.process_time()
    for first in range(0, whole, batch_size):
        give(numbers[first : first + batch_size].tolist())
    return whole / (time.process_time() - begin)


def copy_rate(batch_size: int, seq_len: int) -> float:
    """Bytes per second of copying batches of int32 from a block that no cache holds."""
    block = np.ones((4096, seq_len), dtype=np.int32)
    best = 0.0
    for _ in range(5):
        begin = time.process_time()
        for first in range(0, len(block), batch_size):
            block[first : first + batch_size].copy()
        best = max(best, block.nbytes / (time.process_time() - begin))
    return best


if __name__ == "__main__":
    main()
