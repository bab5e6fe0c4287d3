"""Feature encoding: tokkit against the loop that people write, transformers' processor and model, on the same pictures.

    python benchmarks/features_encode.py [--pictures DIR] [--count 32] [--batch-size 8] [--model DIR | --geometry b32]

Both take hidden states of layer -2 without the class token, as LLaVA does (tokkit does not run the block behind it). The loop
calls processor and model for one picture at a time, and for ``--batch-size`` at a time; tokkit prepares and encodes in batches
of fixed shape. Sides take turns in one process, in another order each round, after a round to warm up; each ratio is of two
sides in the same round, and the median of the rounds is given with the least and the largest. Seconds are the process's CPU
time on a CPU, so that other work on the machine counts little, else wall time. Preparing alone (decoded picture to pixels) is
timed as well. Features of all sides are compared. Last, and the only thing with ``--bare``, encoding alone: prepared views to
float32 features in memory, as an encoder process does it (copies overlapped), against the bare model in the same precision on
views that are on the device already; the goal on a GPU is 90 %. Without ``--model``, a CLIP of the named geometry is made with
random weights; without ``--pictures``, pictures are generated (640 x 480).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

GEOMETRIES = {
    "b32": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 224,
    },
    "l14-336": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
}
PATCHES = {"b32": {"patch_size": 32}, "l14-336": {"patch_size": 14, "image_size": 336}}


def main() -> None:
    """Measure and print a table."""
    options = parse()
    import torch

    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or made(options.geometry, Path(scratch))
        pictures = read(options)
        if options.bare:
            against_the_bare_model(folder, pictures, options)
            return
        sides = build(folder, options)
        setting = f"batches of {options.batch_size}, {options.threads} thread(s), {options.device}"
        print(f"{folder.name}: {len(pictures)} pictures, {setting}")
        results = {name: side(pictures) for name, side in sides.items()}
        for name in ("loop, batched", "tokkit"):
            difference = max(np.abs(a - b).max() for a, b in zip(results["loop, one by one"], results[name], strict=True))
            print(f"  largest difference of {name} to the loop one by one: {difference:.1e}")
        report(sides, pictures, options.rounds, options.device)
        report(preparing(folder), pictures, options.rounds, "cpu")
        against_the_bare_model(folder, pictures, options)


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="folder of a CLIP model")
    parser.add_argument("--geometry", choices=GEOMETRIES, default="b32")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "fp16"), help="of encoding against the bare model"
    )
    parser.add_argument("--acceleration", default="none", choices=("none", "compile", "graphs"))
    parser.add_argument("--bare", action="store_true", help="nothing but encoding against the bare model")
    return parser.parse_args()


def made(geometry: str, folder: Path) -> Path:
    """A CLIP vision tower with random weights and its processor, saved."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(**GEOMETRIES[geometry], **PATCHES[geometry])
    side = config.image_size
    folder = folder / geometry
    CLIPVisionModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(folder)
    return folder


def read(options: argparse.Namespace) -> list[Image.Image]:
    """Decoded RGB pictures: decoding is the same for all sides."""
    if options.pictures is None:
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (options.count, 12, 16, 3), np.uint8)
        return [Image.fromarray(picture).resize((640, 480), Image.Resampling.BICUBIC) for picture in coarse]
    paths = sorted(p for p in options.pictures.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    return [Image.open(path).convert("RGB") for path in paths[: options.count]]


Side = Callable[[list[Image.Image]], list[Any]]


def build(folder: Path, options: argparse.Namespace) -> dict[str, Side]:
    """The loop in both ways, and tokkit; each from pictures to float32 features on the CPU."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionModel

    from tokkit.features import load_feature_encoder

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    model = CLIPVisionModel.from_pretrained(folder).to(options.device).eval()
    ours = load_feature_encoder(folder, device=options.device)

    @torch.no_grad()
    def loop(pictures: list[Image.Image], at_once: int) -> list[Any]:
        found = []
        for start in range(0, len(pictures), at_once):
            inputs = processor(pictures[start : start + at_once], return_tensors="pt").to(options.device)
            states = model(**inputs, output_hidden_states=True).hidden_states[-2][:, 1:]
            found += list(states.cpu().numpy())
        return found

    def tokkit(pictures: list[Image.Image]) -> list[Any]:
        items = [ours.prepare(picture) for picture in pictures]
        return [item.features for item in ours.encode(items, options.batch_size)]

    return {
        "loop, one by one": lambda pictures: loop(pictures, 1),
        "loop, batched": lambda pictures: loop(pictures, options.batch_size),
        "tokkit": tokkit,
    }


def preparing(folder: Path) -> dict[str, Side]:
    """Preparing alone."""
    from transformers import CLIPImageProcessorPil

    from tokkit.features.base import FeatureOptions
    from tokkit.features.preprocessing import ImagePreparer, read_preprocessing

    processor = CLIPImageProcessorPil.from_pretrained(folder)
    ours = ImagePreparer(read_preprocessing(folder), FeatureOptions())
    return {
        "processor": lambda pictures: [processor(picture, return_tensors="np") for picture in pictures],
        "tokkit's preparer": lambda pictures: [ours.prepare(picture) for picture in pictures],
    }


def against_the_bare_model(folder: Path, pictures: list[Image.Image], options: argparse.Namespace) -> None:
    """Encoding alone, from prepared views, against the model on tensors that are where it is."""
    import torch
    from transformers import CLIPVisionModel

    from tokkit.features import load_feature_encoder
    from tokkit.features.base import RunOptions
    from tokkit.pipelines.features_batches import FeatureBatches
    from tokkit.precision import arithmetic

    size = options.batch_size
    run = RunOptions(options.precision, options.acceleration)
    encoder = load_feature_encoder(folder, device=options.device, run=run)
    ours = FeatureBatches(encoder, size)
    items = [encoder.prepare(picture) for picture in pictures]
    groups = [items[start : start + size] for start in range(0, len(items) - size + 1, size)]
    if not groups:
        raise SystemExit(f"--count {len(items)} is less than --batch-size {size}")
    model = CLIPVisionModel.from_pretrained(folder).to(options.device).eval()
    last = model.vision_model.encoder if hasattr(model, "vision_model") else model.encoder
    last.layers = last.layers[:-1]  # what ours does not run either
    dtype = torch.float16 if options.precision == "fp16" else torch.float32
    model = model.to(dtype)
    views = [torch.from_numpy(np.stack([item.views[0].pixels for item in group])) for group in groups]
    resident = [view.to(options.device, dtype) for view in views]

    @torch.no_grad()
    def bare(_: list[Image.Image]) -> list[Any]:
        with arithmetic(options.precision):
            found = [model(pixel_values=view).last_hidden_state for view in resident]
        if options.device.startswith("cuda"):
            torch.cuda.synchronize()
        return found

    def tokkit(_: list[Image.Image]) -> list[Any]:
        found, pending = [], []
        for group in groups:
            pending.append(ours.begin(group))
            if len(pending) == ours.places:
                found += pending.pop(0).codes()
        return found + [item for one in pending for item in one.codes()]

    mode = f"{options.precision}, acceleration {options.acceleration}"
    print(f"encoding alone, {mode}; the goal on a GPU is 90% of the bare model:")
    report({"tokkit": tokkit, "bare model": bare}, pictures[: len(groups) * size], options.rounds, options.device)


def report(sides: dict[str, Side], pictures: list[Image.Image], rounds: int, device: str) -> None:
    """Time the sides in turns and print pictures a second and paired ratios of each to the last."""
    names, last = list(sides), list(sides)[-1]
    clock = time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            begin = clock()
            sides[name](pictures)
            if number:
                seconds[name].append(clock() - begin)
    for name in names:
        line = f"  {name:<20}{len(pictures) / statistics.median(seconds[name]):10.2f} pictures per second"
        if name != last:
            ratios = [a / b for a, b in zip(seconds[name], seconds[last], strict=True)]
            line += f"   {last} is {statistics.median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f}) as fast"
        print(line)


if __name__ == "__main__":
    main()
