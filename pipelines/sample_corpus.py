"""A small corpus of every kind that tokkit reads, drawn on the spot: for ``tokkit demo``, tests and first steps.

::

    images/00000.tar, .parquet, _stats.json   pictures with captions, as img2dataset writes them
    documents/walks-00000-of-00001.parquet    illustrated documents in the OBELICS schema, pictures under documents/images/
    audio/00000.tar                           sounds with transcripts, a WebDataset tar
    text/articles.jsonl.gz                    text in several scripts, code and tables among it

Some of it is broken on purpose, in the ways that real corpora are: truncated pictures and sounds, web pages saved as pictures
or sounds, failed downloads, missing files, lines that are not JSON. :class:`SampleCorpus` says how much of what, so that what a
pipeline reports can be compared. Same seed and library versions, same bytes; nothing is downloaded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tokkit.pipelines.progress import Progress, SilentProgress, Task
from tokkit.pipelines.sample.prose import article, illustrated
from tokkit.pipelines.sample.scenes import SCENES, Scene, draw_scene
from tokkit.pipelines.sample.sounds import RATE, draw_sound
from tokkit.storage import write_atomic

IMAGE_SHARDS, IMAGES_PER_SHARD = 2, 160
DOCUMENTS, CLIPS, ARTICLES = 40, 48, 400
MTIME = 1_700_000_000
LICENCE = "CC0-1.0"

_FAILED = ("HTTP Error 404: Not Found", "<urlopen error [Errno -2] Name or service not known>", "The read operation timed out")
_FAILED_ROWS, _TRUNCATED, _HTML = (17, 60, 131), (42,), (95,)  # rows of each shard
_MISSING, _CUT = (5, 23), 31  # documents whose first picture is missing or cut off
_CUT_SOUNDS, _HTML_SOUNDS = (13, 38), (27,)
_WEB_PAGE = b"<!DOCTYPE html>\n<html><head><title>404 Not Found</title></head><body><h1>Not Found</h1></body></html>\n"
_BROKEN_LINES = (
    b'{"id": "article-broken", "text": "cut off in the mid\n',
    b'{"id": "article-empty", "title": "no text here"}\n',
)

_PARQUET = pa.schema(
    [
        *((name, pa.string()) for name in ("caption", "url", "key", "status", "error_message")),
        *((name, pa.int32()) for name in ("width", "height", "original_width", "original_height")),
        ("exif", pa.string()),
        ("sha256", pa.string()),
        ("license", pa.string()),
    ]
)


@dataclass(frozen=True)
class SamplePart:
    """One source of the corpus, and what a run over it has to find.

    Attributes:
        name: of its folder.
        format: as ``tokkit.sources`` calls it.
        directory: where it lies.
        files: the files that hold documents, relative to ``directory``.
        documents: documents in all, failed ones included.
        items: media items by modality, in documents that are there.
        failures: how many documents and items are not committed, by ``level/outcome/reason`` as commit records have it. A
            document of a pair shares its item's fate. Nothing is said of what a run lacks a tokenizer for.
    """

    name: str
    format: str
    directory: Path
    files: tuple[str, ...]
    documents: int
    items: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class SampleCorpus:
    """The corpus: its folder and its parts by name (``images``, ``documents``, ``audio``, ``text``)."""

    directory: Path
    parts: dict[str, SamplePart]


def write_sample_corpus(directory: Path, seed: int = 0, progress: Progress | None = None) -> SampleCorpus:
    """Draw and write the corpus; a few MB, a few seconds.

    Args:
        directory: made if need be; files of the same names are replaced.
        seed: of everything.
        progress: where to tell how far it is.
    """
    progress = progress or SilentProgress()
    total = IMAGE_SHARDS * IMAGES_PER_SHARD + DOCUMENTS + CLIPS + ARTICLES
    with progress.task("draw corpus", total=total, unit="samples") as task:
        parts = [
            _write_images(directory / "images", seed, task),
            _write_documents(directory / "documents", seed, task),
            _write_audio(directory / "audio", seed, task),
            _write_text(directory / "text", seed, task),
        ]
    return SampleCorpus(directory, {part.name: part for part in parts})


def _rng(seed: int, *what: object) -> random.Random:
    return random.Random("/".join(map(str, (seed, *what))))


def _write_images(directory: Path, seed: int, task: Task) -> SamplePart:
    directory.mkdir(parents=True, exist_ok=True)
    for shard in range(IMAGE_SHARDS):
        rows, samples = [], []
        for number in range(IMAGES_PER_SHARD):
            row, data = _picture_row(seed, shard, number)
            rows.append(row)
            if data is not None:
                extension, encoded = data
                fields = json.dumps(row, indent=4).encode()
                samples.append((str(row["key"]), {extension: encoded, "json": fields, "txt": str(row["caption"]).encode()}))
            task.advance()
        _write_tar(directory / f"{shard:05d}.tar", samples)
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, _PARQUET), buffer)
        write_atomic(directory / f"{shard:05d}.parquet", buffer.getvalue())
        write_atomic(directory / f"{shard:05d}_stats.json", json.dumps(_stats(rows), indent=4))
    failed = IMAGE_SHARDS * len(_FAILED_ROWS)
    cut, pages = IMAGE_SHARDS * len(_TRUNCATED), IMAGE_SHARDS * len(_HTML)
    documents = IMAGE_SHARDS * IMAGES_PER_SHARD
    failures = {
        "document/failed_upstream/failed-to-download": failed,
        "document/rejected/image-truncated": cut,
        "document/rejected/image-unrecognised": pages,
        "item/rejected/image-truncated": cut,
        "item/rejected/image-unrecognised": pages,
    }
    files = tuple(f"{shard:05d}.tar" for shard in range(IMAGE_SHARDS))
    return SamplePart("images", "webdataset", directory, files, documents, {"image": documents - failed}, failures)


def _picture_row(seed: int, shard: int, number: int) -> tuple[dict[str, object], tuple[str, bytes] | None]:
    """A row of the parquet, and extension and bytes of its picture where it was downloaded."""
    rng = _rng(seed, "image", shard, number)
    kinds = sorted(SCENES)
    scene = draw_scene(rng, kinds[number % len(kinds)])
    key = f"{shard:05d}{number:04d}"
    row: dict[str, object] = {
        "caption": scene.caption,
        "url": f"https://pictures.example/{scene.kind}/{key}",
        "key": key,
        "status": "success",
        "error_message": None,
    }
    if number in _FAILED_ROWS:
        message = _FAILED[_FAILED_ROWS.index(number) % len(_FAILED)]
        nothing = dict.fromkeys(("width", "height", "original_width", "original_height", "exif", "sha256"))
        return {**row, "status": "failed_to_download", "error_message": message, **nothing, "license": LICENCE}, None
    extension, data = _encode(scene, number, rng)
    if number in _TRUNCATED:
        data = data[: len(data) * 3 // 5]
    elif number in _HTML:
        data = _WEB_PAGE
    width, height = scene.image.size
    sizes = {"width": width, "height": height, "original_width": 4 * width, "original_height": 4 * height}
    row |= {**sizes, "exif": "{}", "sha256": hashlib.sha256(data).hexdigest(), "license": LICENCE}
    return row, (extension, data)


def _encode(scene: Scene, number: int, rng: random.Random) -> tuple[str, bytes]:
    """Mostly JPEG; some PNG and WEBP, one with an alpha channel, one with a palette."""
    if number in _TRUNCATED or number in _HTML or number % 16 not in (3, 7, 14):
        return "jpg", _save(scene.image, "JPEG", quality=rng.choice([85, 90, 95]))
    if number % 16 == 7:
        return "webp", _save(scene.image, "WEBP", quality=90)
    if number == 3:
        fade = Image.linear_gradient("L").resize(scene.image.size)
        picture = scene.image.copy()
        picture.putalpha(fade)
        return "png", _save(picture, "PNG")
    if number == 14:
        return "png", _save(scene.image.quantize(64, Image.Quantize.MEDIANCUT), "PNG")
    return "png", _save(scene.image, "PNG")


def _save(image: Image.Image, kind: str, quality: int | None = None) -> bytes:
    buffer = io.BytesIO()
    if quality is None:
        image.save(buffer, kind)
    else:
        image.save(buffer, kind, quality=quality)
    return buffer.getvalue()


def _stats(rows: list[dict[str, object]]) -> dict[str, object]:
    statuses: dict[str, int] = {}
    for row in rows:
        said = str(row["error_message"] or row["status"])
        statuses[said] = statuses.get(said, 0) + 1
    failed = sum(row["status"] != "success" for row in rows)
    return {
        "count": len(rows),
        "successes": len(rows) - failed,
        "failed_to_download": failed,
        "failed_to_resize": 0,
        "duration": 12.5,
        "start_time": float(MTIME),
        "end_time": MTIME + 12.5,
        "status_dict": statuses,
    }


def _write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    from webdataset import TarWriter  # takes a second to import, and only here

    buffer = io.BytesIO()
    writer = TarWriter(buffer, encoder=False, mtime=MTIME)
    for key, members in samples:
        writer.write({"__key__": key, **members})
    writer.close()
    write_atomic(path, buffer.getvalue())


def _write_documents(directory: Path, seed: int, task: Task) -> SamplePart:
    (directory / "images").mkdir(parents=True, exist_ok=True)
    table: dict[str, list[object]] = {"images": [], "metadata": [], "general_metadata": [], "texts": []}
    pictures = 0
    for number in range(DOCUMENTS):
        rng = _rng(seed, "document", number)
        scenes = [draw_scene(rng) for _ in range(rng.choice([1, 1, 2, 2, 3, 4]))]
        title, paragraphs = illustrated(scenes, rng)
        page = f"https://walks.example/{number:03d}"
        images: list[str | None] = []
        texts: list[str | None] = []
        about: list[dict[str, object] | None] = []
        for place, (scene, text) in enumerate(zip(scenes, paragraphs, strict=False)):
            name = f"images/walk-{number:03d}-{place}.jpg"
            data = _save(scene.image, "JPEG", quality=92)
            if place == 0 and number == _CUT:
                data = data[: len(data) // 2]
            if not (place == 0 and number in _MISSING):
                write_atomic(directory / name, data)
            images += [None, name]
            texts += [text, None]
            about += [None, _about(scene, name, page)]
        pictures += len(scenes)
        table["images"].append([*images, None])
        table["texts"].append([*texts, paragraphs[-1]])
        table["metadata"].append(json.dumps([*about, None]))
        table["general_metadata"].append(json.dumps(_page(page, title)))
        task.advance()
    strings = pa.list_(pa.string())
    kinds = {"images": strings, "metadata": pa.string(), "general_metadata": pa.string(), "texts": strings}
    buffer = io.BytesIO()
    pq.write_table(pa.table({name: pa.array(table[name], kind) for name, kind in kinds.items()}), buffer, row_group_size=10)
    file = "walks-00000-of-00001.parquet"
    write_atomic(directory / file, buffer.getvalue())
    failures = {"item/failed_upstream/image-not-found": len(_MISSING), "item/rejected/image-truncated": 1}
    return SamplePart("documents", "obelics", directory, (file,), DOCUMENTS, {"image": pictures}, failures)


def _about(scene: Scene, name: str, page: str) -> dict[str, object]:
    width, height = scene.image.size
    return {
        "document_url": page,
        "unformatted_src": f"../{name}",
        "src": f"https://walks.example/{name}",
        "formatted_filename": Path(name).stem.replace("-", " "),
        "alt_text": scene.caption,
        "original_width": width,
        "original_height": height,
        "format": "jpeg",
    }


def _page(url: str, title: str) -> dict[str, object]:
    warc = dict.fromkeys(("warc_filename", "warc_record_offset", "warc_record_length"))
    return {"url": url, **warc, "title": title, "license": LICENCE}


def _write_audio(directory: Path, seed: int, task: Task) -> SamplePart:
    directory.mkdir(parents=True, exist_ok=True)
    samples = []
    for number in range(CLIPS):
        sound = draw_sound(_rng(seed, "sound", number))
        key = f"{number:09d}"
        fields = {
            "key": key,
            "duration": round(len(sound.samples) / RATE, 4),
            "sample_rate": RATE,
            "channels": 1,
            "text": sound.transcript,
            "speaker": sound.speaker,
            "license": LICENCE,
        }
        wav = sound.wav()
        if number in _CUT_SOUNDS:
            wav = wav[: len(wav) * 3 // 5]
        elif number in _HTML_SOUNDS:
            wav = _WEB_PAGE
        samples.append((key, {"wav": wav, "txt": sound.transcript.encode(), "json": json.dumps(fields).encode()}))
        task.advance()
    _write_tar(directory / "00000.tar", samples)
    lost = {"audio-truncated": len(_CUT_SOUNDS), "audio-unrecognised": len(_HTML_SOUNDS)}
    failures = {f"{level}/rejected/{reason}": count for level in ("document", "item") for reason, count in lost.items()}
    return SamplePart("audio", "webdataset", directory, ("00000.tar",), CLIPS, {"audio": CLIPS}, failures)


def _write_text(directory: Path, seed: int, task: Task) -> SamplePart:
    directory.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(ARTICLES):
        title, theme, text = article(_rng(seed, "article", number))
        fields = {"id": f"article-{number:04d}", "title": title, "text": text, "theme": theme, "license": LICENCE}
        lines.append(json.dumps(fields, ensure_ascii=number % 2 == 0).encode() + b"\n")
        task.advance()
    for place, line in zip((ARTICLES // 4, ARTICLES // 2), _BROKEN_LINES, strict=True):
        lines.insert(place, line)
    write_atomic(directory / "articles.jsonl.gz", gzip.compress(b"".join(lines), mtime=0))
    failures = {"document/rejected/json-invalid": 1, "document/rejected/no-text": 1}
    documents = ARTICLES + len(_BROKEN_LINES)
    return SamplePart("text", "jsonl", directory, ("articles.jsonl.gz",), documents, {}, failures)
