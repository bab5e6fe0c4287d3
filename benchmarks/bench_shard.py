"""`tokkit shard` against the one-off script that it replaces: the same tokenizers, the same pictures, in the same run.

The peer is what public pre-tokenisers do (batch size 1, one pickle a document, no resume, no checks): read the tar with the
webdataset package, decode, preprocess, encode one picture, tokenise its caption, pickle the ids. tokkit does its whole job:
plan, fixed-shape batches, checksums, commit records, census, coalescing, manifest (no report page).

    python benchmarks/bench_shard.py [--data DIR_OF_TARS] [--rounds 3] [--workers 1]

Without --data it draws the demo's sample corpus. Both sides use one thread; a round runs each once; medians are compared.
"""

from __future__ import annotations

import argparse
import pickle
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import webdataset

from tokkit.media.images import decode_image
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.sample_corpus import write_sample_corpus
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.tokenizers.text import load_text_tokenizer

SILENT = SilentProgress()


def one_off_script(tars: list[Path], text_path: Path, image_path: Path, out: Path) -> int:
    """The peer: returns how many pictures it wrote."""
    text, image = load_text_tokenizer(text_path), load_image_tokenizer(image_path)
    out.mkdir()
    count = 0
    for sample in webdataset.WebDataset([str(t) for t in tars], shardshuffle=False):
        data = next((sample[e] for e in ("jpg", "png", "webp") if e in sample), None)
        if data is None:
            continue
        try:
            pixels = image.config.preprocessing.apply(decode_image(data))
        except Exception as error:  # as these scripts do: print and go on
            print(error)
            continue
        codes = image.encode(torch.from_numpy(np.ascontiguousarray(pixels))[None])[0]
        ids = text.encode(sample["txt"].decode()).tolist() + codes.flatten().tolist()
        with (out / f"{sample['__key__']}.pkl").open("wb") as file:
            pickle.dump({"id": sample["__key__"], "token": ids}, file)
        count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of img2dataset tars")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--resolution", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = options.data
        if data is None:
            write_sample_corpus(folder / "corpus")
            data = folder / "corpus" / "images"
        tars = sorted(data.glob("*.tar"))
        config = TrainTextConfig(inputs=[str(data)], out=folder / "text.model", vocab_size=600)
        train_text(config, SILENT)
        torch.manual_seed(0)
        ImageTokenizer(configure("fsq-tiny", resolution=options.resolution)).save(folder / "vq")
        theirs, ours, pictures = [], [], 0
        for number in range(options.rounds):
            begin = time.perf_counter()
            pictures = one_off_script(tars, folder / "text.model", folder / "vq", folder / f"peer{number}")
            theirs.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            result = shard(
                ShardConfig(
                    inputs=[str(t) for t in tars] if options.data is None else [str(data)],
                    out=folder / f"out{number}",
                    text_tokenizer=folder / "text.model",
                    image_tokenizer=folder / "vq",
                    workers=options.workers,
                    unit_bytes=4 << 20,
                    report_documents=0,
                ),
                SILENT,
            )
            ours.append(time.perf_counter() - begin)
            committed = result.manifest.items["image"]["committed"]
            if committed != pictures:
                raise SystemExit(f"the peer wrote {pictures} pictures, tokkit {committed}")
            print(f"round {number}: peer {theirs[-1]:.2f} s, tokkit {ours[-1]:.2f} s")
        ratio = statistics.median(theirs) / statistics.median(ours)
        left = len(list((folder / "out0" / "tokens").rglob("*.*")))
        print(
            f"{pictures} pictures at {options.resolution} px, {options.workers} worker(s): tokkit takes 1/{ratio:.2f} of the "
            f"peer's time, and leaves {left} token files where the peer leaves {pictures}"
        )


if __name__ == "__main__":
    main()
