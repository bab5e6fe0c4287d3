"""JPEG tars to token shards, end to end, against the bare encoder on pictures that are decoded already.

    python benchmarks/shard_gpu.py [--device cuda] [--preset vq-f16-16k] [--size 256] [--precision fp16] [--batch-size 64]
        [--pictures 60000] [--workers 16] [--data DIR_OF_TARS]

In one run: (1) the bare encoder, batches in memory to codes, copies included, as fast as it goes; (2) decoding on one core,
JPEG bytes to pixels of the tokenizer's size; (3) `tokkit shard` over tars of pictures and captions with that many workers, once
over a quarter of the tars and once over all: the pictures between the two by the seconds between the two leave out what
starting takes. This rate is divided by the bare encoder's: the goal is 80 % with 16 cores. Where it is less, the stage that
binds is named with the proof: decoding on the cores that there are cannot give more than its rate a core times the cores, and
the run is held against that as well. Weights are random, which cost what trained ones do; without ``--data`` photograph-like
JPEGs of 512 pixels are drawn. On several GPUs the bare rate is that of one times their number.

On a CPU (``--device cpu --preset vq-tiny --size 64 --pictures 64 --batch-size 8 --workers 1 --seconds 0``) it only shows that
the script runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch

from tokkit.media.images import decode_image
from tokkit.pipelines.bench_encode import best_rate, drawn_pictures
from tokkit.pipelines.encoder_service import encoder_devices
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.sources.resolve import resolve_inputs
from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions, Pixels
from tokkit.tokenizers.image.presets import configure
from tokkit.training.image_task import fresh_tokenizer
from tokkit.training.pictures import Picture, pictures_of

SILENT = SilentProgress()
GOAL = 0.8
SAMPLE = 64  # pictures that the stages are measured with
A_TAR = 1000  # pictures at most


def main() -> int:
    """Measure and print."""
    options = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data or written(folder / "tars", options.pictures)
        tokenizer = fresh_tokenizer(configure(options.preset, {}, options.size), 0).eval().requires_grad_(False)
        tokenizer.save(folder / "vq")
        (folder / "words").mkdir()
        (folder / "words" / "a.txt").write_text("\n".join(f"a picture with the number {n}" for n in range(400)))
        train_text(TrainTextConfig(inputs=(str(folder / "words"),), out=folder / "text.model", vocab_size=300), SILENT)
        found = sample(data)
        pixels: list[Pixels] = []

        preprocessing = tokenizer.config.preprocessing

        def decode() -> int:
            pixels[:] = [preprocessing.apply(decode_image(one)) for one in found]
            return len(found)

        decoding = best_rate(decode, options.seconds)
        gpus = len(encoder_devices(options.device, 1))
        first = torch.device(encoder_devices(options.device, 1)[0])
        encoder = BulkEncoder(tokenizer.to(first), options.batch_size, BulkOptions(options.precision, options.acceleration))
        bare = gpus * bare_rate(encoder, pixels, options.batch_size, options.seconds)
        del encoder, tokenizer
        tars = sorted(data.glob("*.tar"))
        some = run(options, tars[: max(1, len(tars) // 4)], folder, "some")
        everything = run(options, tars, folder, "all")
        return report(options, some, everything, bare, decoding, gpus)


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="vq-f16-16k")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--precision", default="fp16", choices=("fp32", "tf32", "fp16"))
    parser.add_argument("--acceleration", default="none", choices=("none", "compile", "graphs"))
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=60_000, help="that are drawn where no --data is given")
    parser.add_argument("--data", type=Path, help="a folder of tars of pictures and captions")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each stage alone is measured for")
    parser.add_argument("--min-agreement", type=float, default=0.9, help="random weights have more near-ties than trained ones")
    return parser.parse_args()


def written(folder: Path, pictures: int) -> Path:
    """Tars of drawn pictures with captions, each picture's bytes a little different from all others."""
    import io
    import tarfile

    folder.mkdir()
    drawn = drawn_pictures()
    size = min(A_TAR, max(1, pictures // 4))
    for start in range(0, pictures, size):
        with tarfile.open(folder / f"{start // size:05d}.tar", "w") as tar:
            for number in range(start, min(start + size, pictures)):
                picture, caption = drawn[number % len(drawn)] + f"{number}".encode(), f"a picture with the number {number}"
                for suffix, content in (("jpg", picture), ("txt", caption.encode())):
                    entry = tarfile.TarInfo(f"{number:09d}.{suffix}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


def sample(data: Path) -> list[bytes]:
    """The first pictures of the tars."""
    found: list[bytes] = []
    for picture in pictures_of(resolve_inputs([str(data)]).sources, 0):
        if isinstance(picture, Picture) and picture.media.data is not None:
            found.append(picture.media.data)
        if len(found) == SAMPLE:
            break
    return found


def bare_rate(encoder: BulkEncoder, pixels: list[Pixels], batch_size: int, seconds: float) -> float:
    """Pictures a second from memory to codes."""
    batch = (pixels * -(-batch_size // len(pixels)))[:batch_size]
    encoder.encode_padded(batch, batch_size)

    def work() -> int:
        pending = [encoder.begin(batch) for _ in range(8)]
        for one in pending:
            one.codes()
        return 8 * batch_size

    return best_rate(work, seconds)


def run(options: argparse.Namespace, tars: list[Path], folder: Path, name: str) -> ShardResult:
    """`tokkit shard`."""
    config = ShardConfig(
        inputs=[str(tar) for tar in tars],
        out=folder / name,
        text_tokenizer=folder / "text.model",
        image_tokenizer=folder / "vq",
        device=options.device,
        precision=options.precision,
        acceleration=options.acceleration,
        min_agreement=options.min_agreement,
        batch_size=options.batch_size,
        workers=options.workers,
        encoders="process",
        unit_bytes=16 << 20,
        report_documents=0,
    )
    return shard(config, SILENT)


def report(
    options: argparse.Namespace, some: ShardResult, everything: ShardResult, bare: float, decoding: float, gpus: int
) -> int:
    """Print the rates, the share and what binds; 1 where a run lost a picture."""
    (few, start), (all_, seconds) = amounts(some), amounts(everything)
    rate = (all_ - few) / (seconds - start) if all_ > few and seconds > start else all_ / seconds
    cores = min(options.workers, os.cpu_count() or 1)
    possible = decoding * cores
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    print(f"{gpus} x {name}, {options.preset} at {options.size} px, {options.precision}, batches of {options.batch_size}")
    print(f"  bare encoder, copies included     {bare:10,.1f} pictures/s")
    print(f"  decoding                          {decoding:10,.1f} pictures/s a core, {possible:,.1f} on {cores} cores")
    told_of = f"{all_:,} in {seconds:.1f} s, {few:,} in {start:.1f} s"
    print(f"  tokkit shard, {options.workers} workers {'':11}{rate:10,.1f} pictures/s ({told_of})")
    print(f"  share of the bare encoder         {rate / bare:10.1%} (goal {GOAL:.0%})")
    print(f"  seconds of all workers by stage   {told(everything.summary)}")
    if possible < bare:
        print(f"  decoding binds: {cores} cores give {possible / bare:.0%} of what the encoder takes, and")
        print(f"  {rate / possible:.0%} of that is reached; {bare / decoding:,.1f} cores would decode for the bare encoder")
    elif rate < GOAL * bare:
        print(f"  decoding on {cores} cores could give {possible / bare:.1f} times what the encoder takes: see the stages")
    lost = [r for r in (some, everything) if set(r.manifest.items["image"]) != {"committed"}]
    return 1 if lost else 0


def amounts(result: ShardResult) -> tuple[int, float]:
    """(Pictures, seconds) of a run, its end left out."""
    return result.manifest.items["image"]["committed"], float(str(result.summary["seconds"]))


def told(summary: dict[str, object]) -> str:
    """The workers' seconds by stage, and what the encoder processes did."""
    stages = summary["stage_seconds"]
    assert isinstance(stages, dict)
    listed = ", ".join(f"{name} {seconds:,.1f}" for name, seconds in stages.items() if seconds)
    return f"{listed}; encoder {summary.get('encoder')}"


if __name__ == "__main__":
    sys.exit(main())
