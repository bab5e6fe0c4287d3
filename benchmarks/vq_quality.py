"""Quantizers against each other: one network, one corpus, the same steps, and who keeps its codes in use.

    python benchmarks/vq_quality.py 'images_webdataset/*.tar' [--size 64] [--codes 256] [--steps 1500] [--seeds 1]

Plain VQ is the control: a table of as many dimensions as the network has, learned by gradient, straight through, nothing
revived. The others are the project's defaults with the same number of codes (FSQ: levels with about as many). Everything else
is equal: network, batches, learning rate, seed; the projections around the quantizer differ by its dimensions, and the numbers
that are trained are printed.

Pictures are held back by content hash, and so many that each code could be counted ``--latents`` times; PSNR, usage and
perplexity are taken over their codes with ``encode`` and ``decode``, as a user would have them. One process a quantizer, one
thread each, so that the figures are the same on any machine but for rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from math import prod
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

QUANTIZERS = ("plain VQ (control)", "l2 VQ", "SimVQ", "FSQ", "LFQ")
WITH_GOAL = ("l2 VQ", "SimVQ", "FSQ")

MIN_CROP = 0.8

# A network on 8x8 patches with one code for each of them.
NETWORK: dict[str, Any] = {
    "channels": 48,
    "multipliers": (1,),
    "encoder_blocks": 2,
    "decoder_blocks": 2,
    "attention": (False,),
    "middle_blocks": 1,
    "patch": 8,
    "z_channels": 64,
    "norm_groups": 8,
}


@dataclass(frozen=True)
class Score:
    """One run: trained numbers (network, and table where there is one), held-out PSNR in dB, usage, perplexity and codes."""

    quantizer: str
    seed: int
    parameters: int
    table: int
    codes: int
    psnr: float
    usage: float
    perplexity: float
    minutes: float


def main() -> int:
    """Train all, print the table; returns 1 where one of those with a goal misses it."""
    options = parse()
    pictures, held_out = read(options)
    latents = len(held_out) * (options.size // options.patch) ** 2
    print(
        f"{len(pictures)} pictures to train on, {len(held_out)} held back ({latents:,} codes, {latents / options.codes:.0f} "
        f"for each of {options.codes}); {options.size} px, {options.steps} steps of {options.batch_size}, lr {options.lr:g}"
    )
    jobs = [(name, seed, pictures, held_out, vars(options)) for seed in range(options.seeds) for name in options.only]
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        scores = []
        for score in pool.map(train, *zip(*jobs, strict=True)):
            scores.append(score)
            print(line(score), flush=True)
    if options.json:
        options.json.write_text(json.dumps([asdict(s) for s in scores], indent=1) + "\n")
    missed = [s for s in scores if s.quantizer in WITH_GOAL and s.perplexity < s.codes / 2]
    for score in missed:
        print(f"{score.quantizer}: perplexity {score.perplexity:.0f} is less than half of {score.codes} codes")
    return 1 if missed else 0


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("inputs", nargs="+")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--patch", type=int, default=NETWORK["patch"], help="pixels a side of one code")
    parser.add_argument("--codes", type=int, default=256)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--held-back", type=float, default=0.25, help="share of the pictures")
    parser.add_argument("--latents", type=int, default=50, help="held-back codes for each code there is")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", default=QUANTIZERS, choices=QUANTIZERS)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def read(options: argparse.Namespace) -> tuple[list[NDArray[np.uint8]], NDArray[np.uint8]]:
    """(To train on, [H, W, 3] each; held back, [N, size, size, 3]); uint8."""
    from tokkit.media.transforms import Preprocessing
    from tokkit.sources.resolve import resolve_inputs
    from tokkit.training.augmentation import Augmentation
    from tokkit.training.pictures import pictures_of, read_pictures

    pictures = pictures_of(resolve_inputs(options.inputs).sources, 0)
    margin = Augmentation(MIN_CROP).margin
    found = read_pictures(pictures, Preprocessing(size=options.size), margin, options.held_back, 2**32, os.cpu_count() or 1)
    count = -(-options.latents * options.codes // (options.size // options.patch) ** 2)
    if count > len(found.held_out):
        raise SystemExit(f"{len(found.held_out)} pictures are held back, and {count} are needed: raise --held-back")
    return found.train, np.stack(found.held_out[:count])


def quantizer(name: str, codes: int) -> dict[str, Any]:
    """The configuration behind a name."""
    bits = codes.bit_length() - 1
    return {
        "plain VQ (control)": {
            "kind": "vq", "codebook_size": codes, "codebook_dim": NETWORK["z_channels"], "normalize": False,
            "update": "gradient", "dead_code_share": 0, "rotation_trick": False,
        },
        "l2 VQ": {"kind": "vq", "codebook_size": codes},
        "SimVQ": {"kind": "simvq", "codebook_size": codes},
        "FSQ": {"kind": "fsq", "levels": levels_for(codes)},
        "LFQ": {"kind": "lfq", "bits": bits},
    }[name]  # fmt: skip


def levels_for(codes: int) -> tuple[int, ...]:
    """The published FSQ levels (arXiv:2309.15505, table 1) nearest in number."""
    known = [(8, 6, 5), (8, 8, 8), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5)]
    return min(known, key=lambda levels: abs(prod(levels) - codes))


def train(
    name: str, seed: int, pictures: list[NDArray[np.uint8]], held_out: NDArray[np.uint8], options: dict[str, Any]
) -> Score:
    """Train one and measure it; runs in a process of its own."""
    import torch

    from tokkit.media.transforms import Preprocessing
    from tokkit.tokenizers.image.config import ImageTokenizerConfig
    from tokkit.training.augmentation import Augmentation, BatchMaker
    from tokkit.training.engine import Engine, Optimisation
    from tokkit.training.image_task import ImageTask, fresh_tokenizer

    torch.set_num_threads(1)
    config = ImageTokenizerConfig.model_validate(
        {
            "name": name,
            "architecture": NETWORK | {"patch": options["patch"]},
            "quantizer": quantizer(name, options["codes"]),
            "preprocessing": Preprocessing(size=options["size"]),
        }
    )
    tokenizer = fresh_tokenizer(config, seed)
    parameters = sum(p.numel() for p in tokenizer.parameters())
    table = tokenizer.quantizer.codebook.numel() if hasattr(tokenizer.quantizer, "codebook") else 0
    batches = BatchMaker(pictures, options["size"], options["batch_size"], seed, Augmentation(MIN_CROP))
    task = ImageTask(tokenizer, batches, pictures_at_once=options["batch_size"], seed=seed)
    engine = Engine(task, Optimisation(lr=options["lr"]), seed)
    begin = time.monotonic()
    for step in range(options["steps"]):
        engine.step(step / options["steps"])
    found = task.validate(held_out, options["batch_size"])
    minutes = (time.monotonic() - begin) / 60
    return Score(name, seed, parameters, table, tokenizer.codebook_size, found.psnr, found.usage, found.perplexity, minutes)


def line(score: Score) -> str:
    """A row of the table."""
    return (
        f"  {score.quantizer:<20} seed {score.seed}  {score.parameters:>9,} + {score.table:>7,}  {score.psnr:6.2f} dB  "
        f"usage {100 * score.usage:5.1f} %  perplexity {score.perplexity:6.1f} of {score.codes} "
        f"({100 * score.perplexity / score.codes:4.1f} %)  {score.minutes:.1f} min"
    )


if __name__ == "__main__":
    sys.exit(main())
