"""What sharding costs on top of encoding: `tokkit shard` against the bare encoder on the same decoded batches, in the same run.

    python benchmarks/shard_overhead.py [--data DIR_OF_TARS] [--pictures 2000] [--rounds 3]

The pictures of --data (without it: drawn ones) are written as img2dataset tars. The bare encoder has them all decoded,
preprocessed and batched in memory and does nothing but ``encode``. tokkit reads, decodes, preprocesses, encodes, tokenises the
captions, hashes, writes and accounts for everything (no report page). Both have one worker and one thread, on which all of
this happens one after another; time is that of the units (tokkit's own figure, without the start of its process), best of the
rounds, turn by turn. The encoder is a full-resolution one of the VQGAN family, small for a CPU: released ones are ten times as
large, and leave less to overhead.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tokkit.media.images import decode_image
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure

SILENT = SilentProgress()
BATCH = 16
ENCODER = {
    "architecture.channels": 32,
    "architecture.multipliers": [1, 2, 2, 4],
    "architecture.attention": [False, False, False, True],
}


def main() -> None:
    """Run both sides turn by turn and print the share."""
    options = parse()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_corpus(options, folder / "corpus")
        train_text(TrainTextConfig(inputs=(str(folder / "corpus"),), out=folder / "text.model", vocab_size=300), SILENT)
        torch.manual_seed(0)
        ImageTokenizer(configure("vq-f8-16k", ENCODER, options.resolution)).save(folder / "vq")
        tokenizer = load_image_tokenizer(folder / "vq")
        batches = decoded(folder / "corpus", tokenizer)
        bare, whole, stages = float("inf"), float("inf"), {}
        for number in range(options.rounds):
            begin = time.perf_counter()
            for batch in batches:
                tokenizer.encode(batch)
            bare = min(bare, time.perf_counter() - begin)
            result = shard(
                ShardConfig(
                    inputs=[str(folder / "corpus")],
                    out=folder / f"out{number}",
                    text_tokenizer=folder / "text.model",
                    image_tokenizer=folder / "vq",
                    batch_size=BATCH,
                    workers=0,
                    report_documents=0,
                ),
                SILENT,
            )
            assert result.summary["images"] == options.pictures
            seconds = float(str(result.summary["seconds"]))
            if seconds < whole:
                whole, stages = seconds, result.summary["stage_seconds"]
            rates = options.pictures / bare, options.pictures / seconds
            print(f"round {number + 1}: bare encoder {rates[0]:.2f} pictures/s, tokkit {rates[1]:.2f}")
    parameters = sum(p.numel() for p in tokenizer.encoder.parameters())
    print(f"{options.pictures} pictures at {options.resolution} px, an encoder of {parameters / 1e6:.1f} M parameters")
    print(f"tokkit shard has {100 * bare / whole:.1f} % of the bare encoder's pictures/s; its stages in seconds: {stages}")


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of tars with pictures")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--resolution", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


def write_corpus(options: argparse.Namespace, folder: Path) -> None:
    """Tars of 500 pairs."""
    folder.mkdir()
    pictures = list(given(options.data)) if options.data else list(drawn(200))
    for first in range(0, options.pictures, 500):
        with tarfile.open(folder / f"{first // 500:05d}.tar", "w") as archive:
            for number, data in enumerate(islice(cycle(pictures), first, min(first + 500, options.pictures)), first):
                key = f"{number:09d}"
                fields = json.dumps({"key": key, "status": "success"}).encode()
                for suffix, body in (("jpg", data), ("txt", f"picture number {number}".encode()), ("json", fields)):
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(body)
                    archive.addfile(member, io.BytesIO(body))


def given(folder: Path) -> Iterator[bytes]:
    """The JPEG members of a folder's tars."""
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if member.name.endswith(".jpg") and file is not None:
                    yield file.read()


def drawn(count: int) -> Iterator[bytes]:
    """Smooth noise of 288 by 384 pixels as JPEG."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (18, 24, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((384, 288), Image.Resampling.BICUBIC).save(buffer, format="JPEG", quality=90)
        yield buffer.getvalue()


def decoded(folder: Path, tokenizer: ImageTokenizer) -> list[torch.Tensor]:
    """All pictures as the encoder takes them: uint8 [16, H, W, 3] each, the last padded."""
    pixels = np.stack([tokenizer.config.preprocessing.apply(decode_image(data)) for data in given(folder)])
    padding = -len(pixels) % BATCH
    pixels = np.concatenate([pixels, np.zeros((padding, *pixels.shape[1:]), dtype=np.uint8)])
    return list(torch.from_numpy(pixels).split(BATCH))


if __name__ == "__main__":
    main()
