"""How fast tokenizers are trained: steps and pictures a second, share of the device's peak, memory.

    python benchmarks/vq_train_gpu.py [--preset vq-f16-16k] [--size 256] [--batch-size 64] [--compile] [--gan blur] [--steps 30]

Batches of noise, so that nothing is read. The work of a step is counted by torch's own counter of floating point operations
(matrix products and convolutions, forward and backward) on one picture; the peak is measured on the spot, as the fastest of
some large matrix products in the precision of the networks. ``--smoke`` does a step or two of a narrow network on a CPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from tokkit.pipelines.train_vq_config import TrainVQConfig
from tokkit.pipelines.train_vq_parts import built_critics, built_tokenizer, objective_of, optimisation_of, start_of
from tokkit.training.engine import Engine
from tokkit.training.engine.task import Phase
from tokkit.training.image_task import ImageTask
from tokkit.training.noise import NoiseBatches

NARROW = {"architecture.channels": 16, "architecture.z_channels": 16, "architecture.norm_groups": 8}


@dataclass(frozen=True)
class Measured:
    """One phase of a training: ``done`` is where in the run the steps were taken."""

    phase: str
    steps_per_second: float
    pictures_per_second: float
    tflops: float
    share_of_peak: float
    peak_memory_gib: float | None


def main() -> int:
    """Measure the generator alone and, with a discriminator, both."""
    options = parse()
    device = "cuda" if torch.cuda.is_available() and not options.smoke else "cpu"
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if device == "cpu":
        torch.set_num_threads(1)
    config = TrainVQConfig(
        inputs=("noise",),
        out=Path("nowhere"),
        preset=options.preset,
        overrides=NARROW if options.smoke else {},
        resolution=options.size,
        steps=1000,
        recipe="gan",
        gan=options.gan,
        gan_start=0.5,
        gan_lead_in=0.0,
        discriminator_channels=8 if options.smoke else None,
        batch_size=options.batch_size,
        accumulate=options.accumulate,
        compile=options.compile,
        recompute=options.recompute,
        precision=options.precision,
    )
    optimisation = optimisation_of(config, device)
    peak = measured_peak(device, torch.bfloat16 if optimisation.precision == "bf16" else torch.float32)
    work = counted_work(config)
    start = start_of(config)
    tokenizer = built_tokenizer(start, config, device)
    critics, _ = built_critics(config, start.config.preprocessing.size, device)
    at_once = config.batch_size // config.accumulate
    noise = NoiseBatches(start.config.preprocessing.size, at_once)
    task = ImageTask(tokenizer, noise, objective_of(config), critics, pictures_at_once=at_once, accumulate=config.accumulate)
    engine = Engine(task, optimisation)
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU, one thread"
    print(f"{where}; torch {torch.__version__}; peak measured {peak / 1e12:.2f} TFLOP/s in {optimisation.precision}")
    print(
        f"{options.preset} at {options.size} px, batch {options.batch_size}, {work / 1e9:.1f} GFLOP a picture, {vars(options)}"
    )
    rows = [measure("generator only", engine, 0.25, options, work, peak)]
    if critics.discriminator is not None:
        rows.append(measure("with discriminator", engine, 0.75, options, None, peak))
    for row in rows:
        memory = "" if row.peak_memory_gib is None else f", {row.peak_memory_gib:.1f} GiB"
        share = f", {row.tflops:.2f} TFLOP/s ({100 * row.share_of_peak:.1f} % of the peak)" if row.tflops else ""
        print(f"  {row.phase:<20} {row.steps_per_second:8.2f} steps/s {row.pictures_per_second:9.1f} pictures/s{share}{memory}")
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


def measure(phase: str, engine: Engine, done: float, options: argparse.Namespace, work: float | None, peak: float) -> Measured:
    """Some steps to warm up (compilation is in them), then those that are timed."""
    cuda = engine.device.type == "cuda"
    for _ in range(options.warmup):
        engine.step(done)
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    for _ in range(options.steps):
        engine.step(done)
    if cuda:
        torch.cuda.synchronize()
    rate = options.steps / (time.perf_counter() - begin)
    engine.check()
    flops = (work or 0.0) * options.batch_size * rate
    memory = torch.cuda.max_memory_allocated() / 2**30 if cuda else None
    return Measured(phase, rate, rate * options.batch_size, flops / 1e12, flops / peak, memory)


def counted_work(config: TrainVQConfig) -> float:
    """Floating point operations of the generator's forward and backward pass for one picture."""
    start = start_of(config)
    tokenizer = built_tokenizer(start, config.model_copy(update={"compile": False, "recompute": False}), "cpu")
    noise = NoiseBatches(start.config.preprocessing.size)
    task = ImageTask(tokenizer, noise, objective_of(config), pictures_at_once=1)
    with FlopCounterMode(display=False) as counter:
        task.generate(task.batch(0, 0), Phase(0.0, False, False)).loss.backward()
    return float(counter.get_total_flops())


def measured_peak(device: str, dtype: torch.dtype) -> float:
    """Operations a second of the fastest of some square matrix products."""
    best = 0.0
    for side in (4096, 8192) if device == "cuda" else (512, 1024):
        a = torch.randn(side, side, device=device, dtype=dtype)
        for timed in (False, True):
            repeat = 20 if timed else 5
            if device == "cuda":
                torch.cuda.synchronize()
            begin = time.perf_counter()
            for _ in range(repeat):
                a @ a
            if device == "cuda":
                torch.cuda.synchronize()
            if timed:
                best = max(best, 2 * side**3 * repeat / (time.perf_counter() - begin))
    return best


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="vq-f16-16k")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--gan", default="blur", choices=("none", "patch", "blur"))
    parser.add_argument("--precision", choices=("float32", "bf16"))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="a narrow network on a CPU")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.smoke:
        options.size, options.batch_size, options.steps, options.warmup = 64, 2, 2, 1
    return options


if __name__ == "__main__":
    sys.exit(main())
