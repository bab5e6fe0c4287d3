"""Encoding pictures in bulk: every mode of a preset's network on one device, against a plain loop.

    python benchmarks/vq_encode_gpu.py [--device cuda] [--preset vq-f16-16k] [--sizes 256 512] [--batch-size 64] [--seconds 5]

Weights are random: they cost what trained ones do. Of each precision (fp32, TF32, fp16) and way to run it (eager, compiled, as
CUDA graphs): pictures a second with the pictures on the device and with copies from memory, the share of the measured peak of
matrix products in that precision, the codes that stay those of fp32, and the most memory. The peer is the same network in fp32
called for one picture at a time, as scripts do. Leaves with 1 where a mode gives codes that change with a picture's slot.

On a CPU (``--preset vq-tiny --sizes 64 --batch-size 8 --seconds 0``) it only shows that the script runs.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch

from tokkit.pipelines.bench_encode import measure_encoder
from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training.image_task import fresh_tokenizer

MODES = [("fp32", "none"), ("tf32", "none"), ("fp16", "none"), ("fp16", "compile"), ("fp16", "graphs"), ("tf32", "compile")]
ON_A_CPU = [("fp32", "none"), ("fp16", "none")]


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="vq-f16-16k")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    device = torch.device(options.device)
    right = True
    for size in options.sizes:
        tokenizer = fresh_tokenizer(configure(options.preset, {}, size), 0).to(device).eval().requires_grad_(False)
        pictures = drawn(options.batch_size, size)
        for precision, acceleration in MODES if device.type == "cuda" else ON_A_CPU:
            mode = BulkOptions(precision, acceleration)
            found = measure_encoder(tokenizer, pictures, options.batch_size, mode, options.seconds, decode=float("inf"))
            if (precision, acceleration) == ("fp32", "none"):
                print(f"{found.device}, torch {torch.__version__}: {options.preset} at {size} px, {found.gflop:.1f} GFLOP")
                print(f"  one at a time, fp32 {found.one:>10.1f} pictures/s")
            kept = 1.0 if found.agreement is None else found.agreement
            memory = "" if found.memory_mb is None else f", {found.memory_mb:,.0f} MB"
            stable = same_in_every_slot(tokenizer, pictures, mode)
            right &= stable
            print(
                f"  {precision} {acceleration:<8}{found.network:10.1f} pictures/s, {found.copied:.1f} with copies, "
                f"{found.share:.1%} of {found.peak:.1f} TFLOP/s, {found.copied / found.one:.1f} times the loop, "
                f"{kept:.2%} of the codes{memory}{'' if stable else ', AND CODES CHANGE WITH THE SLOT'}"
            )
    return 0 if right else 1


def drawn(count: int, side: int) -> list[np.ndarray]:
    """Pictures of coarse noise ``[side, side, 3]``."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 16, side // 16, 3), dtype=np.uint8)
    return list(coarse.repeat(16, axis=1).repeat(16, axis=2))


def same_in_every_slot(tokenizer: ImageTokenizer, pictures: list[np.ndarray], mode: BulkOptions) -> bool:
    """Whether a batch turned round, and a picture alone, give the codes of the batch as it is."""
    encoder = BulkEncoder(tokenizer, len(pictures), mode)
    codes = encoder.encode_padded(pictures, len(pictures))
    turned = encoder.encode_padded(pictures[::-1], len(pictures))[::-1]
    alone = encoder.encode_padded(pictures[3:4], len(pictures))
    return bool((codes == turned).all() and (codes[3] == alone[0]).all())


if __name__ == "__main__":
    sys.exit(main())
