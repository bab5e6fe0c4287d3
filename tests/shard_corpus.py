"""A small corpus of every kind with known contents, tiny tokenizers, and ways to compare output directories."""

from __future__ import annotations

import gzip
import io
import json
import multiprocessing
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sources_helpers import tar_bytes

from tokkit.sources.base import Alive, Census, Unit, UnitReader, silent
from tokkit.sources.jsonl import JsonlSource
from tokkit.storage import sha256_file

PAIRS = 26
DOCUMENTS = 14
TEXTS = 40
AUDIO = 3


@dataclass(frozen=True)
class Corpus:
    """The folder, and what its good documents say: texts by locator, in order, None standing for a picture."""

    folder: Path
    pairs: dict[str, str]
    documents: dict[str, list[str | None]]
    texts: dict[str, str]


def picture(seed: int, size: tuple[int, int] = (40, 33)) -> bytes:
    """A small PNG of smooth noise, different for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (5, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()


def write_corpus(folder: Path) -> Corpus:
    """Pairs (2 broken pictures, 2 failed rows), interleaved documents (2 lost pictures), texts (2 broken lines), sounds."""
    pairs = _write_pairs(folder / "pairs")
    documents = _write_documents(folder / "documents")
    texts = _write_texts(folder / "texts")
    members = [(f"{i:03d}.{e}", d) for i in range(AUDIO) for e, d in (("wav", b"RIFF" + bytes([i]) * 40), ("txt", b"word"))]
    (folder / "audio").mkdir(parents=True)
    (folder / "audio" / "00000.tar").write_bytes(tar_bytes(members))
    return Corpus(folder, pairs, documents, texts)


def _write_pairs(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    rows, members, good = [], [], {}
    for number in range(PAIRS):
        key = f"{number:09d}"
        caption = f"A picture, number {number},  with <image> and \u2581 in its caption\n"
        data = picture(number)
        status = "failed_to_download" if number in (5, 20) else "success"
        rows.append({"key": key, "status": status, "error_message": "HTTP Error 404" if number in (5, 20) else None})
        if number in (5, 20):
            continue
        if number == 7:
            data = data[: len(data) // 2]
        elif number == 11:
            data = b"<html>not found</html>"
        else:
            good[f"00000.tar#{key}"] = caption
        fields = json.dumps({"key": key, "license": "none", "n": number}).encode()
        members += [(f"{key}.jpg", data), (f"{key}.txt", caption.encode()), (f"{key}.json", fields)]
    (folder / "00000.tar").write_bytes(tar_bytes(members))
    pq.write_table(pa.Table.from_pylist(rows), folder / "00000.parquet")
    return good


def _write_documents(folder: Path) -> dict[str, list[str | None]]:
    (folder / "images").mkdir(parents=True)
    images, texts, good = [], [], {}
    for number in range(DOCUMENTS):
        row: list[str | None] = []
        says: list[str | None] = []
        names: list[str | None] = []
        for place in range(2 + number % 4):
            if place % 2 == number % 2:
                row.append(f"Paragraph {place} of document {number}.\n\tIndented,  twice  spaced. \ud55c\uad6d\uc5b4")
                names.append(None)
                says.append(row[-1])
            else:
                name = f"{number}-{place}.png"
                row.append(None)
                names.append(f"images/{name}")
                if (number, place) == (3, 2):
                    continue  # the file is missing, the document goes on without it
                data = picture(1000 + 10 * number + place)
                if (number, place) == (6, 1):
                    data = data[:60]
                else:
                    says.append(None)
                (folder / "images" / name).write_bytes(data)
        images.append(names)
        texts.append(row)
        good[f"d.parquet:{number}"] = says
    strings = pa.list_(pa.string())
    table = pa.table(
        {
            "images": pa.array(images, strings),
            "texts": pa.array(texts, strings),
            "metadata": pa.array(["[" + ",".join("null" for _ in r) + "]" for r in texts]),
            "general_metadata": pa.array([json.dumps({"url": f"https://example.org/{i}"}) for i in range(DOCUMENTS)]),
        }
    )
    pq.write_table(table, folder / "d.parquet", row_group_size=4)
    return good


def _write_texts(folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    lines, good, offset = [], {}, 0
    for number in range(TEXTS):
        text = f"Line {number}: " + "the quick brown fox \U0001f98a jumps\t" * (number % 7 + 1) + "</s>\x00\r\n"
        line = json.dumps({"id": f"t{number}", "text": text, "meta": {"lang": "en"}}, ensure_ascii=number % 2 == 0)
        if number == 9:
            line = line[:-5]
        elif number == 30:
            line = json.dumps({"id": "t30", "title": "no text"})
        else:
            good[f"a.jsonl.gz@{offset}"] = text
        lines.append(line)
        offset += len(line.encode()) + 1
    (folder / "a.jsonl.gz").write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode(), mtime=0))
    return good


def write_tokenizers(folder: Path) -> tuple[Path, Path]:
    """A small text model of the project's own, and an image tokenizer of the real architecture with random weights."""
    import torch

    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.train_text import TrainTextConfig, train_text
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import configure

    (folder / "train").mkdir(parents=True)
    words = "the quick brown fox jumps over a lazy dog while seven pictures of paragraph documents line up indented twice"
    text = "\n".join(" ".join(np.random.default_rng(i).permutation(words.split())) for i in range(300))
    (folder / "train" / "a.txt").write_text(text)
    model = folder / "text.model"
    train_text(TrainTextConfig(inputs=(str(folder / "train"),), out=model, vocab_size=400), SilentProgress())
    torch.manual_seed(0)
    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(folder / "vq")
    return model, folder / "vq"


def snapshot(out: Path) -> dict[str, str]:
    """Every file outside of ``run/`` with its SHA-256: what must not differ between two runs."""
    return {
        path.relative_to(out).as_posix(): sha256_file(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.relative_to(out).parts[0] != "run"
    }


class CountsSlowly(JsonlSource):
    """A source that takes five times 0.6 seconds to count a unit, and tells in between that it lives."""

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        for _ in range(5):
            time.sleep(0.6)
            alive()
        return super().census(unit, alive)


class FailsOnce(JsonlSource):
    """A source whose disk fails the first time, in a worker process; ``mark`` is a file that tells later ones."""

    mark: Path

    def read(self, unit: Unit) -> UnitReader:
        if not self.mark.exists():
            assert multiprocessing.parent_process() is not None
            self.mark.touch()
            raise OSError(5, "Input/output error")
        return super().read(unit)
