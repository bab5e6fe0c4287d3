"""VQ lookup: our chunked search against vector-quantize-pytorch's evaluation path, on the same vectors and codebook.

    python benchmarks/vq_lookup.py [--vectors 4096] [--codes 16384] [--dim 8] [--repeats 5]

Each side runs alone in a fresh process: one call to warm up, then ``--repeats`` timed ones. Time is the best wall time, on
``--threads`` torch threads. Memory is what the first call adds at its peak to what the process held before it: on Linux the
resident set's high-water mark is reset before that call (/proc/self/clear_refs) and read after it (VmHWM); elsewhere it is the
growth of ``ru_maxrss``. The codes of both sides are compared one by one, for unit vectors and for plain Euclidean distance.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SIDES = ("tokkit", "library")


def main() -> None:
    """Run both sides, for both distances, and print a table."""
    options = parse()
    if options.side:
        measure(options)
        return
    print(f"{options.vectors:,} vectors, {options.codes:,} codes of {options.dim} dimensions, {options.threads} thread(s)")
    print(f"  {'':<34}{'time':>12}{'memory':>14}{'codes equal':>14}")
    for distance in ("unit", "euclidean"):
        with tempfile.TemporaryDirectory() as folder:
            found = {side: run(options, side, distance, Path(folder)) for side in SIDES}
        equal = float((found["tokkit"][2] == found["library"][2]).mean())
        for side, (seconds, megabytes, _) in found.items():
            print(f"  {side + ', ' + distance:<34}{seconds * 1000:9.1f} ms{megabytes:11.1f} MB{100 * equal:12.3f} %")
        ours, theirs = found["tokkit"], found["library"]
        print(f"  {'library / tokkit':<34}{theirs[0] / ours[0]:11.1f}x{theirs[1] / max(ours[1], 0.1):13.1f}x")


def parse() -> argparse.Namespace:
    """Options; ``--side`` and what follows it are for the processes that this script starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=4096)
    parser.add_argument("--codes", type=int, default=16384)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--distance", default="unit", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def run(options: argparse.Namespace, side: str, distance: str, folder: Path) -> tuple[float, float, np.ndarray]:
    """Measure one side in a process of its own: seconds, megabytes, codes."""
    out = folder / f"{side}.npz"
    same = ("vectors", "codes", "dim", "repeats", "threads")
    arguments = [f"--{name}={getattr(options, name)}" for name in same]
    arguments += [f"--side={side}", f"--distance={distance}", f"--out={out}"]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    subprocess.run([sys.executable, __file__, *arguments], check=True, env=environment)
    with np.load(out) as found:
        return float(found["seconds"]), float(found["megabytes"]), found["codes"]


def measure(options: argparse.Namespace) -> None:
    """The inside of :func:`run`."""
    import torch

    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(options.vectors, options.dim, generator=generator)
    table = torch.randn(options.codes, options.dim, generator=generator)
    unit = options.distance == "unit"
    if unit:
        table = torch.nn.functional.normalize(table, dim=-1)
    lookup = (ours if options.side == "tokkit" else theirs)(vectors, table, unit)
    before = reset_peak()
    codes = lookup()
    megabytes = (peak() - before) / 2**20
    seconds = []
    for _ in range(options.repeats):
        start = time.perf_counter()
        lookup()
        seconds.append(time.perf_counter() - start)
    np.savez(options.out, seconds=min(seconds), megabytes=megabytes, codes=codes)


def ours(vectors, table, unit) -> Callable[[], np.ndarray]:  # type: ignore[no-untyped-def]
    """One picture whose positions are the vectors, by the quantizer of an image tokenizer."""
    from tokkit.tokenizers.image.quantizer_config import VqQuantizer
    from tokkit.tokenizers.image.quantizers import build_quantizer

    count, dim = vectors.shape
    quantizer = build_quantizer(VqQuantizer(codebook_size=len(table), codebook_dim=dim, normalize=unit)).eval()
    quantizer.codebook.copy_(table)
    features = vectors.T.reshape(1, dim, 1, count).contiguous()
    quantizer.codes_from_features(features[..., :1])  # pages of the library code, thread pools
    return lambda: quantizer.codes_from_features(features).flatten().numpy()


def theirs(vectors, table, unit) -> Callable[[], np.ndarray]:  # type: ignore[no-untyped-def]
    """The same through ``VectorQuantize`` in evaluation, without gradients."""
    import torch
    from vector_quantize_pytorch import VectorQuantize

    quantizer = VectorQuantize(dim=table.shape[1], codebook_size=len(table), use_cosine_sim=unit, sync_codebook=False).eval()
    quantizer._codebook.embed.data.copy_(table[None])

    def lookup(rows: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return quantizer(rows[None])[1].flatten().numpy()

    lookup(vectors[:1])
    return lambda: lookup(vectors)


def reset_peak() -> int:
    """Forget earlier peaks where that can be done; returns the bytes to subtract from the next :func:`peak`."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak()
    return _status("VmRSS")


def peak() -> int:
    """High-water mark of the resident set, in bytes."""
    if Path("/proc/self/status").exists():
        return _status("VmHWM")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


if __name__ == "__main__":
    main()
