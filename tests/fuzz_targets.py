"""What is fuzzed: for each format small files to begin with, the changes that its structure invites, and what must hold.

Whatever the bytes: no exception but tokkit's own, documents with segments or a failure, the same documents each time and
however the file is cut into units, and a count that agrees with what was read.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import os
import pickle
import re
import wave
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import mutations as m
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image as PillowImage
from shard_corpus import picture
from sources_helpers import tar_bytes
from warc_helpers import arc, http, page, png, record, response

from tokkit.documents import Document, modality_of
from tokkit.errors import ConfigError, ItemError
from tokkit.media.images import ImageLimits, decode_image
from tokkit.media.transforms import Preprocessing
from tokkit.sources.base import Census, Source
from tokkit.sources.recognise import recognise
from tokkit.sources.resolve import resolve_inputs

Files = dict[str, bytes]
LIMITS = ImageLimits(max_pixels=4 << 20, max_bytes=1 << 22)
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Finding(AssertionError):  # noqa: N818 - it is what is found
    """Something that must hold, and does not."""


@dataclass(frozen=True)
class Target:
    """A format under fuzzing.

    Attributes:
        check: raises whatever is wrong with a folder that holds the files of a seed, changed; returns what became of them.
        seeds: folders of files, by name, to begin with.
        victims: names of the files that are changed (a folder's first one, mostly).
        own: changes that the format's structure invites.
    """

    name: str
    check: Callable[[Path], str]
    seeds: Callable[[], list[Files]]
    victims: tuple[str, ...]
    own: tuple[m.Mutation, ...] = ()


# ---- what must hold of a source


def check_source(format_name: str, name: str, cuts: Sequence[int], folder: Path) -> str:
    """Plan, read twice, cut into smaller units, count; raises where one of them goes wrong."""
    path = folder / name
    if path.is_file():
        recognise(path)
    with contextlib.suppress(ConfigError):  # nothing that could be read: said in one message
        resolve_inputs([str(folder)])
    (source,) = resolve_inputs([f"{format_name}:{path}"]).sources
    whole = Reading(source, 1 << 30)
    again = Reading(source, 1 << 30)
    _same(whole, again, "read again")
    for size in cuts:
        size = max(size, sum(file.size for file in source.files) // 40)
        _same(whole, Reading(source, size), f"cut into units of {size}", damage=False)
    if whole.damage:
        return "damage"
    return "failure" if any(document.failure for document in whole.documents) else "documents"


class Reading:
    """All that a source yields, unit by unit, each held to its own count."""

    def __init__(self, source: Source, unit_bytes: int) -> None:
        self.documents: list[Document] = []
        self.damage: list[tuple[object, ...]] = []
        source = pickle.loads(pickle.dumps(source))
        sizes = {file.name: file.size for file in source.files}
        for unit in source.units(unit_bytes):
            documents, damage = list(self.documents), len(self.damage)
            reader, before = source.read(unit), 0.0
            for found in reader:
                if not before <= reader.consumed <= 1.0:
                    raise Finding(f"consumed goes from {before} to {reader.consumed}")
                before = reader.consumed
                if isinstance(found, Document):
                    _sound(found, source.name)
                    self.documents.append(found)
                    continue
                if (
                    not 0
                    <= found.start
                    <= found.stop
                    <= max(sizes.get(found.locator, 0), found.stop if path_is_beside(found.locator, sizes) else 0)
                ):
                    raise Finding(f"damage {found.reason} from {found.start} to {found.stop} in {sizes}")
                if not _SLUG.fullmatch(found.reason) or not found.message:
                    raise Finding(f"damage without reason or message: {found}")
                found.message.encode()
                self.damage.append((found.locator, found.start, found.stop, found.reason, found.message))
            if reader.consumed != 1.0:
                raise Finding(f"{reader.consumed} consumed at the end")
            census = source.census(unit)
            if len(self.damage) == damage:
                _counted(census, self.documents[len(documents) :])
        locators = [document.locator for document in self.documents]
        if len(set(locators)) != len(locators):
            raise Finding(f"locators twice: {[item for item, count in Counter(locators).items() if count > 1][:3]}")

    def identity(self) -> list[tuple[object, ...]]:
        """What each document is."""
        return [
            (d.locator, d.id, d.hash, d.failure, d.pair, d.whole, json.dumps(d.metadata, sort_keys=True))
            for d in self.documents
        ]


def path_is_beside(locator: str, sizes: Mapping[str, int]) -> bool:
    """Whether damage is told of a companion rather than of the file itself."""
    return locator not in sizes


def _same(one: Reading, other: Reading, how: str, *, damage: bool = True) -> None:
    if damage and one.damage != other.damage:
        raise Finding(f"{how}: other damage: {one.damage} and {other.damage}")
    if not damage and bool(one.damage) != bool(other.damage):
        raise Finding(f"{how}: damage told only once: {one.damage} and {other.damage}")
    if one.identity() != other.identity() and (damage or not one.damage):
        first, second = one.identity(), other.identity()
        differing = [(a, b) for a, b in zip(first, second, strict=False) if a != b][:1]
        raise Finding(f"{how}: {len(first)} and {len(second)} documents; {differing}")


def _sound(document: Document, source: str) -> None:
    if document.source != source or not document.locator:
        raise Finding(f"a document of no source: {document.source} {document.locator}")
    if not document.segments and document.failure is None:
        raise Finding(f"{document.locator}: neither segments nor a failure")
    failures = [document.failure, *(item.failure for item in document.media)]
    for failure in (failure for failure in failures if failure is not None):
        if not _SLUG.fullmatch(failure.reason):
            raise Finding(f"no slug: {failure}")
        failure.message.encode()
    f"{document.id} {document.locator} {[item.ref for item in document.media]}".encode()
    json.dumps(document.metadata, allow_nan=False).encode("ascii")
    if len(document.hash) != 32:
        raise Finding(f"{document.locator}: hash {document.hash}")


def _counted(census: Census, documents: Sequence[Document]) -> None:
    """As `tokkit shard` compares them: a difference would stop a whole run."""
    if census.documents is None:
        return
    if census.documents != len(documents):
        raise Finding(f"{census.documents} counted, {len(documents)} read")
    items = Counter(modality_of(item) for document in documents if document.failure is None for item in document.media)  # type: ignore[arg-type]
    for modality, count in census.items.items():
        if count != items[modality]:
            raise Finding(f"{count} {modality} items counted, {items[modality]} read")


# ---- what must hold of a picture


def check_picture(name: str, folder: Path) -> str:
    """Decode twice, and make it a tokenizer's input."""
    data = (folder / name).read_bytes()
    results = []
    for _ in range(2):
        try:
            image = decode_image(data, LIMITS)
        except ItemError as error:
            if not _SLUG.fullmatch(error.reason) or not error.message:
                raise Finding(f"no reason: {error!r}") from error
            results.append(error.reason)
            continue
        if (
            image.mode not in ("RGB", "RGBA")
            or image.width * image.height > LIMITS.max_pixels
            or min(image.size) < LIMITS.min_side
        ):
            raise Finding(f"{image.mode} {image.size} was let through")
        pixels = np.asarray(Preprocessing(size=32).apply(image))
        if pixels.shape != (32, 32, 3) or pixels.dtype != np.uint8:
            raise Finding(f"{pixels.dtype} {pixels.shape} for a tokenizer of 32")
        results.append(f"{image.mode} {image.size} {hash(image.tobytes())}")
    if results[0] != results[1]:
        raise Finding(f"decoded twice: {results}")
    return results[0] if results[0].startswith("image-") else "picture"


# ---- the files to begin with


def _real(*names: str, largest: int = 150_000) -> list[bytes]:
    """Real files, where the corpora lie beside the project."""
    root = os.environ.get("TOKKIT_SHARED")
    paths = [Path(root, "data", name) for name in names] if root else []
    return [path.read_bytes() for path in paths if path.stat().st_size <= largest]


def _samples() -> bytes:
    members = []
    for number in range(6):
        key = f"{number:09d}"
        members += [(f"{key}.png", picture(number, (12, 9))), (f"{key}.txt", f"caption {number} \u00e4".encode())]
        members += [(f"{key}.json", json.dumps({"key": key, "n": number, "url": "https://a.example/x"}).encode())]
    return tar_bytes(members)


def tars() -> list[Files]:
    long = tar_bytes([(f"{'d' * 90}/{'k' * 60}{n}.{e}", b"x" * 600) for n in range(3) for e in ("jpg", "txt")])
    sounds = tar_bytes([(f"{n}.{e}", d) for n in range(3) for e, d in (("wav", b"RIFF" * 9), ("txt", b"word"))])
    import tarfile

    gnu = tar_bytes([(f"{'d' * 120}{n}.{e}", b"y") for n in range(2) for e in ("jpg", "json")], tarfile.GNU_FORMAT)
    rows = [
        {"key": f"{n:09d}", "status": "success" if n < 6 else "failed_to_download", "error_message": "404"} for n in range(8)
    ]
    sidecar = _parquet(pa.Table.from_pylist(rows))
    real = _real(
        "bad/tar/good.tar", "bad/tar/links.tar", "bad/tar/dotted_and_nested_names.tar", "bad/tar/interleaved_members.tar"
    )
    seeds: list[Files] = [{"a.tar": data} for data in (_samples(), long, sounds, gnu, *real)]
    return [{"a.tar": _samples(), "a.parquet": sidecar}, *seeds]


def packed_tars() -> list[Files]:
    """Compressed tars: one gzip member, and two that part in the middle of a sample."""
    plain = [{**seed, "a.tar.gz": gzip.compress(seed["a.tar"], mtime=0)} for seed in tars()]
    first = tars()[0]["a.tar"]
    parts = gzip.compress(first[: len(first) // 2], mtime=0) + gzip.compress(first[len(first) // 2 :], mtime=0)
    return [*({n: d for n, d in seed.items() if n != "a.tar"} for seed in plain), {"a.tar.gz": parts}]


def downloads() -> list[Files]:
    """img2dataset's tables."""
    rows = [
        {
            "key": f"{n:09d}",
            "status": "success" if n % 3 else "failed_to_download",
            "error_message": "4",
            "caption": f"\u00e4{n}",
        }
        for n in range(7)
    ]
    data = [picture(n, (9, 9)) if n % 3 else None for n in range(7)]
    plain = pa.Table.from_pylist(rows).append_column("jpg", pa.array(data, pa.binary()))
    texts = plain.append_column("txt", pa.array([f"t{n}" for n in range(7)])).append_column("width", pa.array(range(7)))
    return [{"a.parquet": _parquet(table)} for table in (plain, texts)]


def _parquet(table: pa.Table, rows: int = 3) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows)
    return out.getvalue()


def obelics() -> list[Files]:
    strings, rows = pa.list_(pa.string()), 7
    images = [[None, f"images/{n}.png", None][: 2 + n % 2] for n in range(rows)]
    texts = [[f"one {n}", None, f"two \u4e00 {n}"][: 2 + n % 2] for n in range(rows)]
    notes = ["[" + ",".join(["null", '{"alt_text": "x"}', "null"][: 2 + n % 2]) + "]" for n in range(rows)]
    general = [json.dumps({"url": f"https://e.example/{n}"}) for n in range(rows)]
    columns = {"texts": pa.array(texts, strings), "metadata": pa.array(notes), "general_metadata": pa.array(general)}
    paths = _parquet(pa.table({"images": pa.array(images, strings), **columns}))
    beside = {f"images/{n}.png": picture(n, (10, 10)) for n in range(rows - 1)}
    kind = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    inline = [
        [None if ref is None else {"bytes": picture(n, (9, 9)), "path": ref} for ref in row] for n, row in enumerate(images)
    ]
    urls = [[None if ref is None else f"https://e.example/{ref}" for ref in row] for row in images]
    url_map = "".join(
        json.dumps({"url": f"https://e.example/images/{n}.png", "file": f"{n}.png", "status": "success"}) + "\n"
        for n in range(rows)
    )
    store = tar_bytes([(f"{n}.png", picture(n, (9, 9))) for n in range(rows - 1)])
    return [
        {"a.parquet": paths, **beside},
        {"a.parquet": _parquet(pa.table({"images": pa.array(inline, kind), **columns}))},
        {
            "a.parquet": _parquet(pa.table({"images": pa.array(urls, strings), **columns})),
            "a_url_map.jsonl": url_map.encode(),
            "a_images.tar": store,
        },
        *({"a.parquet": data} for data in _real("bad/parquet/obelics_uneven_lists.parquet")),
    ]


def hf() -> list[Files]:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": picture(n, (9, 9)), "path": f"{n}.png"} for n in range(7)]
    table = {"image": pa.array(images, kind), "caption": [f"caption {n}" for n in range(7)], "n": list(range(7))}
    listed = {
        **table,
        "captions": [["a", "b"]] * 7,
        "when": pa.array(range(7), pa.timestamp("ns")),
        "d": pa.array([1.5] * 7, pa.float32()),
    }
    named = pa.table(listed).replace_schema_metadata({"huggingface": '{"info": {"features": {"image": {"_type": "Image"}}}}'})
    real = _real("bad/parquet/good.parquet", "bad/parquet/null_and_bad_images.parquet")
    return [{"a.parquet": data} for data in (_parquet(pa.table(table)), _parquet(named), *real)]


def texts_in_parquet() -> list[Files]:
    table = {
        "text": [f"text {n} \u00df" for n in range(9)],
        "id": [str(n) for n in range(9)],
        "m": [{"a": n} for n in range(9)],
    }
    return [{"a.parquet": _parquet(pa.table(table))}]


def _json_lines() -> bytes:
    lines = [
        json.dumps({"id": f"t{n}", "text": f"line {n} " + "word \U0001f98a " * (n % 5), "meta": {"lang": "en", "n": [n]}})
        for n in range(12)
    ]
    return ("\n".join(lines) + "\n").encode()


def lines(suffix: str) -> list[Files]:
    """Text documents as JSON lines."""
    name = f"a.jsonl{suffix}"
    real = _real("bad/text/utf8_bom_crlf.jsonl", "bad/text/bad_lines.jsonl", "bad/text/duplicates.jsonl")
    return [
        {name: _packed(data, suffix)}
        for data in (_json_lines(), b"\xef\xbb\xbf" + _json_lines().replace(b"\n", b"\r\n"), *real)
    ]


def _packed(data: bytes, suffix: str) -> bytes:
    if suffix == ".gz":
        half = data.index(b"\n", len(data) // 2) + 5  # within a line
        return gzip.compress(data[:half], mtime=0) + gzip.compress(data[half:], mtime=0)
    if suffix == ".zst":
        return bytes(pa.compress(data, "zstd", asbytes=True))
    if suffix == ".zip":
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(zipfile.ZipInfo("a.jsonl"), data)
        return out.getvalue()
    return data


def _mmc4(number: int) -> dict[str, object]:
    infos = [
        {"image_name": f"{n}.png", "raw_url": f"https://e.example/{n}", "matched_text_index": n % 3, "matched_sim": 0.3}
        for n in range(number % 4)
    ]
    return {
        "url": f"https://e.example/{number}",
        "text_list": ["One.", "Two \u00e9.", "Three."],
        "image_info": infos,
        "similarity_matrix": [[0.1]],
    }


def mmc4() -> list[Files]:
    data = "".join(json.dumps(_mmc4(n)) + "\n" for n in range(8)).encode()
    inline = _mmc4(2)
    inline["image_info"] = [{"image_name": "x.png", "image_base64": "iVBORw0KGgo=", "matched_text_index": 1}]
    beside = {f"images/{n}.png": picture(n, (9, 9)) for n in range(2)}
    return [{"a.jsonl": data, **beside}, {"a.jsonl": json.dumps(inline).encode() + b"\n" + data}]


def _conversations() -> list[dict[str, object]]:
    said = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A fox \U0001f98a."}]
    plain = [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi."}]
    found: list[dict[str, object]] = [{"id": str(n), "image": f"{n % 3}.png", "conversations": said} for n in range(5)]
    two = [{"from": "human", "value": "<|image|><|image|>"}, {"from": "assistant", "value": "Both."}]
    return [*found, {"id": 7, "conversations": plain}, {"image": ["0.png", "1.png"], "conversations": two, "x": {"y": 1}}]


def conversations(name: str) -> list[Files]:
    entries = _conversations()
    if name.endswith(".jsonl"):
        data = "".join(json.dumps(entry) + "\n" for entry in entries).encode()
    else:
        data = json.dumps(entries, indent=1).encode()
    beside = {f"images/{n}.png": picture(n, (9, 9)) for n in range(2)}
    return [{name: data, **beside}, {name: data.replace(b"\\n", b'\\\\\\"')}]


def tables(separator: str) -> list[Files]:
    rows = [["id", "text", "lang"], *([str(n), f'said "{n}",\nthen\u00df\t.', "en"] for n in range(9))]
    quoted = [separator.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    plain = [separator.join(("caption", "n")), *(separator.join((f"fox {n}", str(n))) for n in range(9))]
    name = "a.tsv" if separator == "\t" else "a.csv"
    return [{name: "\r\n".join(quoted).encode()}, {name: "\n".join(plain).encode() + b"\n"}]


def _tone(number: int) -> bytes:
    """A moment of noise as WAV."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(np.random.default_rng(number).integers(-99, 99, 80 + number, dtype=np.int16).tobytes())
    return out.getvalue()


def _lines_of(*entries: Mapping[str, object]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def manifests() -> list[Files]:
    """NeMo's: segments of a file, whole files, one that is not there, one below the folder."""
    names = ["a.wav", "a.wav", "b.wav", "sub/c.wav", "lost.wav"]
    entries: list[dict[str, object]] = [
        {"audio_filepath": name, "duration": 0.005, "text": f"said {n} \u00e4", "lang": "en", "x": [n]}
        for n, name in enumerate(names)
    ]
    entries[1] |= {"offset": 0.002, "duration": None}
    entries[3] |= {"text": None, "offset": 0}
    beside = {name: _tone(n) for n, name in enumerate(("a.wav", "b.wav", "sub/c.wav"))}
    return [{"a.jsonl": _lines_of(*entries), **beside}, {"a.jsonl": _lines_of(*entries).replace(b"\n", b"\r\n")}]


def _recordings() -> list[dict[str, object]]:
    return [
        {
            "id": f"r{n}",
            "sources": [{"type": "file", "channels": [0], "source": f"{name}.wav"}],
            "sampling_rate": 8000,
            "num_samples": 80 + n,
            "duration": (80 + n) / 8000,
            "channel_ids": [0],
        }
        for n, name in enumerate(("a", "b", "lost"))
    ]


def _supervisions() -> list[dict[str, object]]:
    return [
        {
            "id": f"s{n}",
            "recording_id": f"r{n % 4}",
            "start": 0.001 * n,
            "duration": 0.002,
            "channel": 0,
            "text": f"said {n}",
            "language": "en",
            "speaker": f"p{n % 2}",
            "custom": {"snr": n},
        }
        for n in range(6)
    ]


def cuts() -> list[Files]:
    """lhotse's cuts: of one channel, of all, and a mixed one, which is not read."""
    recordings, supervisions = _recordings(), _supervisions()
    found: list[dict[str, object]] = [
        {
            "id": f"c{n}",
            "start": 0.001,
            "duration": 0.004,
            "channel": 0,
            "supervisions": supervisions[n : n + n % 3],
            "recording": recordings[n % 3],
            "custom": {"split": "train"},
            "type": "MonoCut",
        }
        for n in range(5)
    ]
    found[3] |= {"type": "MultiCut", "channel": [0]}
    found.append({"id": "m", "tracks": [{"cut": found[0]}], "type": "MixedCut"})
    beside = {f"{name}.wav": _tone(n) for n, name in enumerate(("a", "b"))}
    return [{"a.jsonl": _lines_of(*found), **beside}, {"a.jsonl": _lines_of(*recordings), **beside}]


def supervisions() -> list[Files]:
    """lhotse's supervisions, with the manifest of their recordings beside them, plain or packed."""
    beside = {f"{name}.wav": _tone(n) for n, name in enumerate(("a", "b"))}
    spoken, heard = _lines_of(*_supervisions()), _lines_of(*_recordings())
    return [
        {"x_supervisions.jsonl": spoken, "x_recordings.jsonl": heard, **beside},
        {"x_supervisions.jsonl": spoken, "x_recordings.jsonl.gz": gzip.compress(heard, mtime=0), **beside},
        {"x_supervisions.jsonl": spoken, **beside},
    ]


def chapters() -> list[Files]:
    """LibriSpeech's transcripts, with sounds of several endings."""
    text = "".join(f"1-2-{n:04d} SAID {n} \u00c4\n" for n in range(6))
    beside = {f"1-2-{n:04d}.{ending}": _tone(n) for n, ending in enumerate(("flac", "wav", "ogg", "mp3"))}
    return [{"1-2.trans.txt": text.encode(), **beside}, {"1-2.trans.txt": text.replace("\n", "\r\n").encode()}]


def readings() -> list[Files]:
    """Common Voice's tables."""
    heading = ["client_id", "path", "sentence", "up_votes", "age"]
    rows = [[f"c{n}", f"v{n}.mp3", f'said "{n} \u00df', str(n), "" if n % 2 else "teens"] for n in range(7)]
    data = "".join("\t".join(row) + "\n" for row in (heading, *rows)).encode()
    beside = {f"clips/v{n}.mp3": _tone(n) for n in range(3)} | {"v3.mp3": _tone(3)}
    return [{"a.tsv": data, **beside}, {"a.tsv": b"\xef\xbb\xbf" + data.replace(b"\n", b"\r\n")}]


def hf_sounds() -> list[Files]:
    """Hugging Face's parquet of sounds."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    clips = [None if n == 5 else {"bytes": _tone(n) if n != 4 else None, "path": f"{n}.wav"} for n in range(7)]
    table = {"audio": pa.array(clips, kind), "sentence": [f"said {n}" for n in range(7)], "speaker": list(range(7))}
    features = {"info": {"features": {"audio": {"_type": "Audio", "sampling_rate": 8000}}}}
    named = pa.table(table).replace_schema_metadata({"huggingface": json.dumps(features)})
    return [{"a.parquet": _parquet(each)} for each in (pa.table(table), named)]


SITE = "http://e.example"


def _crawl() -> list[bytes]:
    pages = [
        page(f"<h1>{n}</h1><p>text {n} <img src={n}.png alt=x> and <b>more</b></p><ul><li>a<li>b</ul><table><td>c</table>")
        for n in range(4)
    ]
    found = [record("warcinfo", "", b"software: x\r\n", "application/warc-fields")]
    found += [response(f"{SITE}/{n}", text.encode(), "text/html; charset=utf-8") for n, text in enumerate(pages)]
    found += [response(f"{SITE}/{n}.png", png(colour=n), "image/png") for n in range(3)]
    found.append(
        response(
            f"{SITE}/z", gzip.compress(page("<p>packed").encode(), mtime=0), "text/html", 200, ("Content-Encoding", "gzip")
        )
    )
    found.append(
        response(f"{SITE}/c", b"5\r\n<p>ab\r\n2\r\ncd\r\n0\r\n\r\n", "text/html", 200, ("Transfer-Encoding", "chunked"))
    )
    found.append(response(f"{SITE}/3.png", b"", "text/html", 302, ("Location", "/0.png")))
    found.append(
        record(
            "revisit",
            f"{SITE}/r.png",
            http(b"", "image/png"),
            "application/http",
            ("WARC-Refers-To-Target-URI", f"{SITE}/0.png"),
        )
    )
    return [
        *found,
        record("conversion", f"{SITE}/t", "t\u00e9xt".encode(), "text/plain"),
        record("request", f"{SITE}/0", b"GET / HTTP/1.1\r\n\r\n"),
    ]


def archives(layout: str) -> list[Files]:
    name = "a.warc" if layout == "plain" else "a.warc.gz"
    if layout == "members":
        real = _real("warc/warcio-example.warc.gz", "warc/dupes-revisit.warc.gz", "bad/warc/junk_between_members.warc.gz")
        return [{name: data} for data in (b"".join(gzip.compress(part, mtime=0) for part in _crawl()), *real)]
    data = b"".join(_crawl())
    if layout == "stream":
        return [{name: gzip.compress(data, mtime=0)}]
    return [{name: each} for each in (data, *_real("warc/warcio-example.warc", "warc/warcio-example-iana.org-chunked.warc"))]


def arcs() -> list[Files]:
    found = arc([(f"{SITE}/{n}.html", "text/html", http(page(f"<p>{n}<img src=p.png>").encode())) for n in range(4)])
    found += arc([(f"{SITE}/p.png", "image/png", http(png(), "image/png"))])[1:]
    return [{"a.arc": b"".join(found)}, *({"a.arc": gzip.decompress(data)} for data in _real("warc/warcio-example.arc.gz"))]


def plain_texts() -> list[Files]:
    real = _real("bad/text/mojibake.txt", "bad/text/utf16_bom.txt")
    return [{"a.txt": data} for data in ("One.\r\nTwo \u00e9\U0001f98a\n".encode(), b"\xef\xbb\xbfx", *real)]


def picture_folders() -> list[Files]:
    pictures = {f"{n}.png": picture(n, (10, 10)) for n in range(3)} | {"sub/9.jpg": picture(9, (10, 10))}
    rows = [{"file_name": f"{n}.png", "text": f"says {n}", "n": n} for n in range(4)] + [
        {"file_name": "sub/9.jpg", "caption": "c"}
    ]
    table = "file_name,text\n" + "".join(f'{row["file_name"]},"a, {n}"\n' for n, row in enumerate(rows))
    lines_ = "".join(json.dumps(row) + "\n" for row in rows)
    return [
        {**pictures, "metadata.jsonl": lines_.encode()},
        {**pictures, "metadata.csv": table.encode()},
        {**pictures, "0.txt": b"caption"},
    ]


@cache
def _drawing() -> PillowImage.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return PillowImage.fromarray(pixels).resize((40, 33), PillowImage.Resampling.BICUBIC)


def _saved(kind: str, mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    _drawing().convert(mode).save(out, kind, **options)
    return out.getvalue()


def pictures(kind: str) -> list[Files]:
    """Of one format, in several modes."""
    exif = PillowImage.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [_drawing().rotate(90), _drawing().rotate(180)]}
    saved = {
        "jpeg": lambda: [
            _saved("JPEG", exif=exif),
            _saved("JPEG", "L", progressive=True),
            _saved("JPEG", "CMYK"),
            _saved("MPO", **frames),
        ],
        "png": lambda: [
            *(_saved("PNG", mode) for mode in ("RGB", "RGBA", "LA", "P", "1", "I;16")),
            _saved("PNG", exif=exif, save_all=True, append_images=frames["append_images"]),
        ],
        "webp": lambda: [_saved("WEBP"), _saved("WEBP", "RGBA", lossless=True), _saved("WEBP", exif=exif, **frames)],
        "gif": lambda: [_saved("GIF", "P"), _saved("GIF", **frames), _saved("GIF", "P", transparency=3, interlace=1)],
        "tiff": lambda: [
            *(_saved("TIFF", "RGB", compression=c) for c in ("raw", "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
            *(_saved("TIFF", mode) for mode in ("L", "CMYK", "I;16", "1", "P", "LA")),
            _saved("TIFF", "1", compression="group4"),
            _saved("TIFF", **frames),
        ],
        "avif": lambda: [_saved("AVIF"), _saved("AVIF", "RGBA", exif=exif)],
        "others": lambda: [
            *(_saved("BMP", mode) for mode in ("RGB", "P", "1")),
            *(_saved("PPM", mode) for mode in ("RGB", "L", "1", "I")),
            *(_saved("DDS", mode) for mode in ("RGB", "RGBA")),
            _saved("JPEG2000"),
            _saved("QOI"),
        ],
    }[kind]()
    return [{"a": data} for data in saved]


# ---- all of them


def _source(
    name: str,
    format_name: str,
    file: str,
    seeds: Callable[[], list[Files]],
    *own: m.Mutation,
    cuts: Sequence[int] = (900,),
    more: tuple[str, ...] = (),
) -> Target:
    return Target(name, partial(check_source, format_name, file, cuts), seeds, (file, file, file, *more), own)


def _picture(kind: str, *own: m.Mutation) -> Target:
    return Target(kind, partial(check_picture, "a"), partial(pictures, kind), ("a",), (*own, m.header_of(64), m.header_of(512)))


_PARQUET = (m.parquet_footer, m.parquet_pages, m.parquet_rows, m.parquet_rows)
_WARC = (
    m.header_line,
    m.header_line,
    m.records_shuffled,
    m.inserting(*m.HTML),
    m.set_digits,
    m.inserting(b"WARC/1.0\r\n", b"\r\n\r\n", b"0\r\n"),
)
_ARC = (m.set_digits, m.inserting(b"\n", b" ", b"filedesc://", b"1 0 Test"), m.inserting(*m.HTML))


_BREAKS = (b"\n", b"\r", b" ", b"\0", b"\x85", b"\x1c", b"\xef\xbb\xbf", b"\xe2\x80\xa8")
_PATHS = m.inserting(b"../", b"/", b"/etc/passwd", b"\0", b"n" * 300, b"n/" * 2500, b"%2e", b"\\", b"\xed\xa0\x80")


def _any_of(*own: m.Mutation) -> m.Mutation:
    return lambda data, rng: rng.choice(own)(data, rng)


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        _source(
            "tar",
            "webdataset",
            "a.tar",
            tars,
            m.tar_header,
            m.tar_header,
            m.tar_pax,
            m.in_blocks(512),
            m.splicing(bytes(2048)),
            more=("a.parquet",),
        ),
        _source("obelics", "obelics", "a.parquet", obelics, *_PARQUET, m.json_line, more=("a_url_map.jsonl", "a_images.tar")),
        _source(
            "tar.gz",
            "webdataset",
            "a.tar.gz",
            packed_tars,
            m.within_gzip(_any_of(m.tar_header, m.tar_pax, m.in_blocks(512), m.anyhow), members=True),
            m.gzip_header,
            more=("a.parquet",),
        ),
        _source("hf_parquet", "hf_parquet", "a.parquet", hf, *_PARQUET),
        _source("img2dataset", "img2dataset", "a.parquet", downloads, *_PARQUET),
        _source("text_parquet", "text_parquet", "a.parquet", texts_in_parquet, *_PARQUET),
        _source(
            "jsonl",
            "jsonl",
            "a.jsonl",
            partial(lines, ""),
            m.json_line,
            m.json_line,
            m.inserting(b"\n", b"\xef\xbb\xbf", b"\0", b"\xed\xa0\x80"),
            cuts=(50, 900),
        ),
        _source(
            "jsonl.gz",
            "jsonl",
            "a.jsonl.gz",
            partial(lines, ".gz"),
            m.within_gzip(_any_of(m.json_line, m.anyhow), members=True),
            m.gzip_header,
        ),
        _source("jsonl.zst", "jsonl", "a.jsonl.zst", partial(lines, ".zst"), m.within_zstd(_any_of(m.json_line, m.anyhow))),
        _source(
            "jsonl.zip",
            "jsonl",
            "a.jsonl.zip",
            partial(lines, ".zip"),
            m.within_zip(_any_of(m.json_line, m.anyhow)),
            m.zip_directory,
            m.zip_directory,
        ),
        _source("mmc4", "mmc4", "a.jsonl", mmc4, m.json_line, m.json_line, m.json_line, cuts=(50, 900)),
        _source(
            "llava_list",
            "llava",
            "a.json",
            partial(conversations, "a.json"),
            m.json_value,
            m.json_value,
            m.inserting(b",", b"[", b"]", b"{", b"}", b'"', b"\\"),
            cuts=(50,),
        ),
        _source("llava_lines", "llava", "a.jsonl", partial(conversations, "a.jsonl"), m.json_line, m.json_line, cuts=(50, 900)),
        _source(
            "csv",
            "csv",
            "a.csv",
            partial(tables, ","),
            m.inserting(b'"', b'""', b",", b"\n", b"\r", b"\0", b'\n"', b"\xef\xbb\xbf"),
        ),
        _source("tsv", "csv", "a.tsv", partial(tables, "\t"), m.inserting(b'"', b"\t", b"\n", b"\r", b"\0", b"\x85", b"\x1c")),
        _source("nemo", "audio_manifest", "a.jsonl", manifests, m.json_line, m.json_line, _PATHS, cuts=(50, 900)),
        _source("lhotse", "lhotse", "a.jsonl", cuts, m.json_line, m.json_line, m.json_line, _PATHS, cuts=(50, 900)),
        _source(
            "lhotse_supervisions",
            "lhotse",
            "x_supervisions.jsonl",
            supervisions,
            m.json_line,
            m.json_line,
            m.within_gzip(_any_of(m.json_line, m.anyhow)),
            cuts=(50, 900),
            more=("x_recordings.jsonl", "x_recordings.jsonl.gz", "x_recordings.jsonl", "x_recordings.jsonl.gz"),
        ),
        _source("librispeech", "librispeech", "1-2.trans.txt", chapters, _PATHS, m.inserting(*_BREAKS), cuts=(30, 900)),
        _source("common_voice", "common_voice", "a.tsv", readings, _PATHS, m.inserting(*_BREAKS, b"\t"), cuts=(50, 900)),
        _source("hf_audio", "hf_parquet", "a.parquet", hf_sounds, *_PARQUET),
        _source("warc", "warc", "a.warc", partial(archives, "plain"), *_WARC),
        _source(
            "warc.gz",
            "warc",
            "a.warc.gz",
            partial(archives, "members"),
            m.within_gzip(_any_of(*_WARC, m.anyhow), members=True),
            m.gzip_header,
        ),
        _source(
            "warc.gz_stream",
            "warc",
            "a.warc.gz",
            partial(archives, "stream"),
            m.within_gzip(_any_of(*_WARC, m.anyhow)),
            m.gzip_header,
        ),
        _source("wet", "wet", "a.warc", partial(archives, "plain"), *_WARC),
        _source("arc", "warc", "a.arc", arcs, *_ARC),
        _source("text", "text", "a.txt", plain_texts, m.inserting(b"\xff", b"\xed\xa0\x80", b"\0", b"\xef\xbb\xbf")),
        Target(
            "image_folder",
            partial(check_source, "image_folder", ".", (100,)),
            picture_folders,
            ("metadata.jsonl", "metadata.csv", "0.txt", "0.png"),
            (m.json_line, m.json_line, m.inserting(b'"', b",", b"\n", b"\r", b"\0", b"../", b"/")),
        ),
        _picture("jpeg", m.jpeg_segment, m.jpeg_segment),
        _picture("png", m.png_chunk, m.png_chunk, m.png_chunk),
        _picture("webp", m.riff_chunk, m.riff_chunk),
        _picture("gif", m.inserting(b"\x21\xf9\x04", b"\x2c", b"\x3b", b"\x21\xff\x0bNETSCAPE2.0")),
        _picture("tiff"),
        _picture("avif"),
        _picture("others"),
    )
}


@contextmanager
def written(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """The files in a folder of their own, which is removed."""
    import shutil

    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
