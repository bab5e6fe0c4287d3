"""The peers of ``loader.py`` that need an environment of their own, on the same rows: mosaicml-streaming and litData.

Run by ``loader.py --peers-python PATH``; needs no tokkit. Prints a line of JSON a side: its name, and rows per CPU-second (the
best round) for each order. Both are asked for items by number, which is faster than their iterators.

    PATH loader_peers.py MDS_FOLDER ROWS_BIN SEQ_LEN BATCH_SIZE ROUNDS SCRATCH
"""

from __future__ import annotations

import json
import os
import sys
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

Batches = Callable[[Sequence[int]], torch.Tensor]


def main() -> None:
    """Measure each side that can be imported."""
    mds, rows_bin, seq_len, batch_size, rounds, scratch = sys.argv[1:]
    for key in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):  # litData empties these
        os.environ[key] = str(Path(scratch) / key.lower())
    torch.set_num_threads(1)
    rows = np.memmap(rows_bin, dtype=np.uint16, mode="r").reshape(-1, int(seq_len))
    orders = {"in order": np.arange(len(rows)), "shuffled": np.random.default_rng(0).permutation(len(rows))}
    for name, give in sides(Path(mds), rows, Path(scratch)):
        wrong = [n for n in (0, len(rows) // 2, len(rows) - 1) if not np.array_equal(give([n])[0].numpy(), rows[n])]
        if wrong:
            print(f"{name} gives other tokens than row {wrong[0]} has", file=sys.stderr)
            continue
        best = {
            order: max(rate(give, numbers, int(batch_size)) for _ in range(int(rounds))) for order, numbers in orders.items()
        }
        print(json.dumps({"name": name, **best}), flush=True)


def sides(mds: Path, rows: np.ndarray, scratch: Path) -> Iterator[tuple[str, Batches]]:
    """Each side's name, and what gives a batch of int32."""
    try:
        streaming = _streaming()
        dataset = streaming.StreamingDataset(local=str(mds), shuffle=False, batch_size=8)
        yield (
            "MDS StreamingDataset: tokens",
            lambda numbers: torch.stack([torch.from_numpy(dataset[int(n)]["input_ids"].copy()) for n in numbers]),
        )
    except ImportError as error:
        print(f"mosaicml-streaming is left out: {error}", file=sys.stderr)
    try:
        from litdata import StreamingDataset
        from litdata.streaming import Cache
        from litdata.streaming.item_loader import TokensLoader
    except ImportError as error:
        print(f"litData is left out: {error}", file=sys.stderr)
        return
    cache = Cache(str(scratch / "litdata"), chunk_bytes=64 << 20, item_loader=TokensLoader())
    for n in range(len(rows)):
        cache[n] = torch.from_numpy(rows[n].astype(np.int32))
    cache.done()
    cache.merge()
    tokens = StreamingDataset(str(scratch / "litdata"), item_loader=TokensLoader(block_size=rows.shape[1]), shuffle=False)
    yield "litData TokensLoader: tokens", lambda numbers: torch.stack([tokens[int(n)].to(torch.int32) for n in numbers])


def _streaming() -> types.ModuleType:
    """mosaicml-streaming, which imports torchvision for datasets not used here; a stand-in does where it is absent."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        import transformers.feature_extraction_utils  # noqa: F401  (looks for torchvision: before the stand-in is there)

        for name, content in {
            "torchvision": [],
            "torchvision.datasets": ["VisionDataset"],
            "torchvision.transforms": [],
            "torchvision.transforms.functional": ["to_tensor"],
        }.items():
            module = types.ModuleType(name)
            for entry in content:
                setattr(module, entry, type(entry, (), {}))
            sys.modules[name] = module
    import streaming

    return streaming


def rate(give: Batches, numbers: np.ndarray, batch_size: int) -> float:
    """Rows per CPU-second."""
    whole = len(numbers) - len(numbers) % batch_size
    begin = time.process_time()
    for first in range(0, whole, batch_size):
        give(numbers[first : first + batch_size].tolist())
    return whole / (time.process_time() - begin)


if __name__ == "__main__":
    main()
