"""Reading: tokkit's sources against the readers of webdataset and datatrove; decoding pictures: against Pillow alone.

    python benchmarks/sources.py [--data DIR_OF_JSONL_GZ] [--only NAME]... [--scale 1.0] [--rounds 5]

Files of each format are made (texts are cut from the jsonl files of --data, without it drawn words), then read turn by turn,
each in a fresh process on one core:

* tar: samples of a JPEG, a caption and a JSON. webdataset hands on their bytes undecoded; tokkit parses the JSON, too.
* jsonl, jsonl.gz, parquet: text documents with a field of metadata; datatrove's JsonlReader and ParquetReader.
* warc.gz: pages of a crawl, a gzip member each. tokkit's source hands on text and pictures in reading order; datatrove's
  WarcReader the HTML, which its own extractor, Trafilatura, makes text of. Beside it stand the reader with resiliparse's
  extraction (text alone, in compiled code) and without any.
* pictures: bytes to the square that a tokenizer of 256 pixels takes, by tokkit.media and by the same calls of Pillow's.

The figure is documents a CPU-second of the process (imports and the first document left out) of the best round. Both sides must
have seen as many documents, and as many bytes of content where they hand on the same. datatrove comes with
`pip install -e '.[bench]'`; its WarcReader needs warcio, faust-cchardet and python-magic, its extractor trafilatura.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import numpy as np
from shard_text import pieces

Counted = tuple[int, int]
"""Documents, and bytes of content where the sides hand on the same (else 0)."""


def main() -> int:
    """Run all sides by turns and print a table; returns 1 where two sides did not read the same."""
    options = parse()
    if options.side:
        documents, size, seconds = measured(options.side, options.folder)
        print(json.dumps([documents, size, seconds]))
        return 0
    same = True
    with tempfile.TemporaryDirectory() as name:
        print(f"  {'':<10}{'reader':<26}{'documents':>10}{'CPU s':>9}{'documents/s':>13}{'of the peer':>13}")
        for task in options.only or TASKS:
            folder = Path(name, task)
            folder.mkdir()
            MAKE[task](folder, options)
            same &= compare(task, folder, options.rounds)
    return 0 if same else 1


def parse() -> argparse.Namespace:
    """Options; ``--side`` is for the processes that this script starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of .jsonl.gz with a field text")
    parser.add_argument("--only", action="append", choices=TASKS)
    parser.add_argument("--scale", type=float, default=1.0, help="times as many documents")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def compare(task: str, folder: Path, rounds: int) -> bool:
    """Measure the sides of a task by turns and print their lines."""
    sides = [side for side in SIDES[task] if all(find_spec(module) for module in NEEDS.get(side, ()))]
    if len(sides) < len(SIDES[task]):
        left_out = set(SIDES[task]) - set(sides)
        print(f"  {task}: without {', '.join(sorted(left_out))}, which needs packages that are not installed", file=sys.stderr)
    best: dict[str, float] = {}
    counts: dict[str, Counted] = {}
    for _ in range(rounds):
        for side in sides:
            documents, size, seconds = in_a_process(f"{task}:{side}", folder)
            counts[side] = documents, size
            best[side] = min(seconds, best.get(side, seconds))
    peer = sides[1] if len(sides) > 1 else sides[0]
    for side in sides:
        documents = counts[side][0]
        times = f"{best[peer] / best[side]:12.2f}x"
        print(f"  {task:<10}{side:<26}{documents:>10,}{best[side]:9.2f}{documents / best[side]:13,.0f}{times}", flush=True)
    sizes = {size for _, size in counts.values() if size}
    same = len({documents for documents, _ in counts.values()}) == 1 and len(sizes) <= 1
    if not same:
        print(f"  {task}: not the same was read: {counts}")
    return same


def in_a_process(side: str, folder: Path) -> tuple[int, int, float]:
    """What :func:`measured` returns, from a fresh process."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    documents, size, seconds = json.loads(done.stdout.splitlines()[-1])
    return documents, size, seconds


def measured(name: str, folder: Path) -> tuple[int, int, float]:
    """Documents, bytes and CPU seconds of one side; the first document comes before the clock is started."""
    task, _, side = name.partition(":")
    stream = SIDES[task][side](folder)
    documents, size = 1, next(stream)
    begin = time.process_time()
    for length in stream:
        documents += 1
        size += length
    return documents, size, time.process_time() - begin


# ---- what goes in


def texts(options: argparse.Namespace, count: int, characters: int = 3000) -> Iterator[str]:
    """So many documents of about so many characters."""
    return islice(pieces(options.data, characters), int(count * options.scale))


def drawings(count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEGs of smooth noise, about as large as photographs of that size."""
    from PIL import Image

    found = []
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(out, "JPEG", quality=90)
        found.append(out.getvalue())
    return found


def make_tar(folder: Path, options: argparse.Namespace) -> None:
    """Samples as img2dataset writes them."""
    import tarfile

    pictures = drawings(50, (320, 256))
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for number in range(int(10_000 * options.scale)):
            key = f"{number:09d}"
            fields = {"key": key, "url": f"https://e.example/{key}", "caption": "a drawing", "width": 320, "status": "success"}
            parts = {"jpg": pictures[number % 50], "txt": f"a drawing, {number}".encode(), "json": json.dumps(fields).encode()}
            for suffix, data in parts.items():
                info = tarfile.TarInfo(f"{key}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def make_jsonl(folder: Path, options: argparse.Namespace) -> None:
    """Text documents, plain."""
    with (folder / "a.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts(options, 20_000)):
            line = {"id": f"d{number}", "text": text, "meta": {"lang": "en", "url": f"https://e.example/{number}"}}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def make_jsonl_gz(folder: Path, options: argparse.Namespace) -> None:
    """The same, compressed."""
    make_jsonl(folder, options)
    with (folder / "a.jsonl").open("rb") as plain, gzip.open(folder / "a.jsonl.gz", "wb", 6) as packed:
        packed.write(plain.read())
    (folder / "a.jsonl").unlink()


def make_parquet(folder: Path, options: argparse.Namespace) -> None:
    """The same as a table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = list(texts(options, 20_000))
    columns = {
        "id": [f"d{n}" for n in range(len(found))],
        "text": found,
        "url": [f"https://e.example/{n}" for n in range(len(found))],
    }
    pq.write_table(pa.table(columns), folder / "a.parquet", row_group_size=1000)


def make_warc(folder: Path, options: argparse.Namespace) -> None:
    """Pages of about 100 elements, half of it navigation, and a few pictures among the records."""
    links = "".join(f"<li><a href='/{n}'>Section {n}</a></li>" for n in range(30))
    with (folder / "a.warc.gz").open("wb") as file:
        for number, text in enumerate(texts(options, 2_000)):
            parts = [text[start : start + 250].replace("<", "&lt;") for start in range(0, len(text), 250)]
            body = "".join(f"<p>{part} <a href='/x'>more</a> <b>bold</b></p><h2>Heading</h2>" for part in parts)
            html = (
                f"<!DOCTYPE html><html><head><title>Page {number}</title><meta charset=utf-8></head><body>"
                f"<nav><ul>{links}</ul></nav><main><h1>Page {number}</h1><img src='/{number}.jpg' alt='x'>{body}</main>"
                f"<footer>{links}</footer></body></html>"
            )
            file.write(gzip.compress(_record(number, html.encode()), 6, mtime=0))


def _record(number: int, html: bytes) -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(html) + html
    head = (
        "WARC/1.0\r\nWARC-Type: response\r\nWARC-Date: 2024-05-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-{number:012d}>\r\nWARC-Target-URI: https://e.example/{number}\r\n"
        "WARC-Identified-Payload-Type: text/html\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(block)}\r\n\r\n"
    )
    return head.encode() + block + b"\r\n\r\n"


def make_pictures(folder: Path, options: argparse.Namespace) -> None:
    """JPEGs as pages have them."""
    for number, data in enumerate(drawings(int(200 * options.scale), (800, 600))):
        (folder / f"{number:04d}.jpg").write_bytes(data)


# ---- the sides: each yields a number of bytes for each document


def tokkit_source(format_name: str) -> Callable[[Path], Iterator[int]]:
    """All documents of a folder of one format."""

    def read(folder: Path) -> Iterator[int]:
        from tokkit.documents import Document, Text
        from tokkit.sources.resolve import resolve_inputs

        (source,) = resolve_inputs([f"{format_name}:{folder}"]).sources
        for unit in source.units(64 << 20):
            for found in source.read(unit):
                if not isinstance(found, Document) or found.failure is not None:
                    raise SystemExit(f"a file of this script's own is not sound: {found}")
                if format_name == "warc":
                    yield 0  # what is boilerplate, the two sides do not agree upon
                    continue
                yield sum(
                    len(part.text.encode()) if isinstance(part, Text) else len(part.data or b"") for part in found.segments
                )

    return read


def webdataset_tar(folder: Path) -> Iterator[int]:
    """Samples with the bytes of their members."""
    import webdataset

    for sample in webdataset.WebDataset(str(folder / "00000.tar"), shardshuffle=False):
        yield len(sample["jpg"]) + len(sample["txt"])


def datatrove_reader(name: str, pattern: str) -> Callable[[Path], Iterator[int]]:
    """The documents of one of datatrove's readers."""

    def read(folder: Path) -> Iterator[int]:
        from datatrove.pipeline import readers

        for document in getattr(readers, name)(str(folder), glob_pattern=pattern).run(rank=0, world_size=1):
            yield len(document.text.encode())

    return read


def datatrove_warc(extract: str) -> Callable[[Path], Iterator[int]]:
    """Pages as HTML, and with an extractor as text."""

    def read(folder: Path) -> Iterator[int]:
        from datatrove.pipeline.readers import WarcReader

        if extract == "resiliparse":
            from resiliparse.extract.html2text import extract_plain_text
        if extract == "trafilatura":
            from datatrove.pipeline.extractors import Trafilatura

            trafilatura = Trafilatura()
        for document in WarcReader(str(folder), glob_pattern="*.warc.gz").run(rank=0, world_size=1):
            if extract == "resiliparse":
                extract_plain_text(document.text, main_content=True, alt_texts=False)
            elif extract == "trafilatura":
                trafilatura.extract(document.text)  # in this process; its run() has another one do it
            yield 0

    return read


def tokkit_pictures(folder: Path) -> Iterator[int]:
    """Bytes to a tokenizer's input."""
    from tokkit.media.images import decode_image
    from tokkit.media.transforms import Preprocessing

    preprocessing = Preprocessing(size=256)
    for data in _pictures(folder):
        yield int(np.asarray(preprocessing.apply(decode_image(data)), dtype=np.uint8).sum())


def pillow_pictures(folder: Path) -> Iterator[int]:
    """The same: decode, turn as EXIF says, shorter side to 256 pixels by Lanczos, the square at the centre."""
    from PIL import Image, ImageOps

    for data in _pictures(folder):
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)).convert("RGB"))
        scale = 256 / min(image.size)
        width, height = (max(256, round(scale * side)) for side in image.size)
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        left, top = (width - 256) // 2, (height - 256) // 2
        yield int(np.asarray(image.crop((left, top, left + 256, top + 256))).sum())


def _pictures(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.iterdir())] * 2


MAKE = {
    "tar": make_tar,
    "jsonl": make_jsonl,
    "jsonl.gz": make_jsonl_gz,
    "parquet": make_parquet,
    "warc.gz": make_warc,
    "pictures": make_pictures,
}
TASKS = tuple(MAKE)

# tokkit first, then the peer that does the same, then others.
SIDES: dict[str, dict[str, Callable[[Path], Iterator[int]]]] = {
    "tar": {"tokkit": tokkit_source("webdataset"), "webdataset": webdataset_tar},
    "jsonl": {"tokkit": tokkit_source("jsonl"), "datatrove": datatrove_reader("JsonlReader", "*.jsonl")},
    "jsonl.gz": {"tokkit": tokkit_source("jsonl"), "datatrove": datatrove_reader("JsonlReader", "*.jsonl.gz")},
    "parquet": {"tokkit": tokkit_source("text_parquet"), "datatrove": datatrove_reader("ParquetReader", "*.parquet")},
    "warc.gz": {
        "tokkit": tokkit_source("warc"),
        "datatrove + trafilatura": datatrove_warc("trafilatura"),
        "datatrove + resiliparse": datatrove_warc("resiliparse"),
        "datatrove, HTML only": datatrove_warc(""),
    },
    "pictures": {"tokkit": tokkit_pictures, "Pillow": pillow_pictures},
}
_DATATROVE_WARC = ("datatrove", "warcio", "cchardet", "magic")
NEEDS = {
    "datatrove": ("datatrove",),
    "datatrove + resiliparse": (*_DATATROVE_WARC, "resiliparse"),
    "datatrove + trafilatura": (*_DATATROVE_WARC, "trafilatura"),
    "datatrove, HTML only": _DATATROVE_WARC,
}


if __name__ == "__main__":
    sys.exit(main())
