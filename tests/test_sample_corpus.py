"""The sample corpus: the same bytes each time, readable by everybody else's readers, and broken exactly where it says."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import re
import tarfile
import wave
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image as PillowImage

from tokkit.documents import Audio, Document, Image, Text
from tokkit.errors import ItemError
from tokkit.media.audio import load_audio
from tokkit.media.images import decode_image
from tokkit.pipelines.sample.motifs import MOODS, start
from tokkit.pipelines.sample.scenes import SCENES, draw_scene
from tokkit.pipelines.sample.sounds import RATE, chords, draw_sound, scale
from tokkit.pipelines.sample_corpus import SampleCorpus, write_sample_corpus
from tokkit.sources.base import ContainerDamage
from tokkit.sources.resolve import resolve_inputs


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> SampleCorpus:
    return write_sample_corpus(tmp_path_factory.mktemp("sample") / "corpus")


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_seed_gives_the_same_bytes(corpus: SampleCorpus, tmp_path: Path) -> None:
    again = write_sample_corpus(tmp_path / "again")
    first = checksums(corpus.directory)
    assert checksums(again.directory) == first
    assert {name: part.failures for name, part in again.parts.items()} == {n: p.failures for n, p in corpus.parts.items()}
    assert sum(path.stat().st_size for path in corpus.directory.rglob("*") if path.is_file()) < 10_000_000


def test_another_seed_gives_another_corpus() -> None:
    first, second = (draw_scene(random.Random(f"{seed}/image/0/0"), "lake") for seed in (0, 1))
    assert first.image.tobytes() != second.image.tobytes()


def test_a_run_finds_what_the_corpus_says(corpus: SampleCorpus) -> None:
    """Count through tokkit's own sources and decoder, the corpus given as one input."""
    resolved = resolve_inputs([str(corpus.directory)])
    assert not resolved.ignored
    documents: Counter[str] = Counter()
    items: dict[str, Counter[str]] = {name: Counter() for name in corpus.parts}
    failures: dict[str, Counter[str]] = {name: Counter() for name in corpus.parts}
    for source in resolved.sources:
        for unit in source.units(1 << 20):
            for document in source.read(unit):
                assert not isinstance(document, ContainerDamage)
                part = document.locator.split("/")[0]
                assert corpus.parts[part].format == source.format
                documents[part] += 1
                failures[part].update(_failures(document))
                items[part].update(type(media).__name__.lower() for media in document.media)
    for name, part in corpus.parts.items():
        assert documents[name] == part.documents, name
        assert dict(items[name]) == part.items, name
        assert dict(failures[name]) == part.failures, name


def _failures(document: Document) -> list[str]:
    if document.failure is not None:
        return [f"document/{document.failure.outcome}/{document.failure.reason}"]
    found = []
    for media in document.media:
        if media.failure is not None:
            found.append(f"{media.failure.outcome}/{media.failure.reason}")
            continue
        assert media.data is not None
        try:
            if isinstance(media, Image):
                decode_image(media.data)
            else:
                load_audio(media.data, RATE, 1)
        except ItemError as error:
            found.append(f"rejected/{error.reason}")
    levels = ("item", "document") if document.pair else ("item",)
    return [f"{level}/{entry}" for level in levels for entry in found]


def test_webdataset_reads_the_pictures(corpus: SampleCorpus) -> None:
    part = corpus.parts["images"]
    formats: Counter[str | None] = Counter()
    modes: Counter[str] = Counter()
    broken = 0
    for shard, name in enumerate(part.files):
        rows = {row["key"]: row for row in pq.read_table(part.directory / name.replace(".tar", ".parquet")).to_pylist()}
        stats = json.loads((part.directory / name.replace(".tar", "_stats.json")).read_text())
        samples = list(webdataset.WebDataset(str(part.directory / name), shardshuffle=False))
        assert stats["count"] == len(rows) == 160
        assert stats["successes"] == len(samples) == sum(row["status"] == "success" for row in rows.values())
        assert stats["failed_to_download"] == len(rows) - len(samples) == stats["count"] - stats["status_dict"]["success"]
        for sample in samples:
            assert sample["__key__"].startswith(f"{shard:05d}")
            row = rows[sample["__key__"]]
            assert json.loads(sample["json"]) == row
            assert sample["txt"].decode() == row["caption"]
            (data,) = (sample[extension] for extension in ("jpg", "png", "webp") if extension in sample)
            assert hashlib.sha256(data).hexdigest() == row["sha256"]
            try:
                picture = PillowImage.open(io.BytesIO(data))
                picture.load()
            except OSError:
                broken += 1
                continue
            assert picture.size == (row["width"], row["height"])
            assert 96 <= min(picture.size) <= max(picture.size) <= 192
            formats[picture.format] += 1
            modes[picture.mode] += 1
    assert broken == sum(n for reason, n in part.failures.items() if reason.startswith("item/"))
    assert formats["JPEG"] > 200
    assert min(formats["PNG"], formats["WEBP"], modes["RGBA"], modes["P"]) > 0


def test_tars_are_as_img2dataset_leaves_them(corpus: SampleCorpus) -> None:
    with tarfile.open(corpus.parts["images"].directory / "00000.tar", "r:") as tar:
        members = tar.getmembers()
    assert [m.name for m in members[:3]] == ["000000000.jpg", "000000000.json", "000000000.txt"]
    assert {(m.mtime, m.uid, m.uname, m.mode) for m in members} == {(1_700_000_000, 0, "bigdata", 0o444)}


def test_documents_are_obelics(corpus: SampleCorpus) -> None:
    part = corpus.parts["documents"]
    table = pq.read_table(part.directory / part.files[0])
    assert table.column_names == ["images", "metadata", "general_metadata", "texts"]
    missing = shown = 0
    for row in table.to_pylist():
        about = json.loads(row["metadata"])
        assert len(row["images"]) == len(row["texts"]) == len(about)
        assert 2 <= sum(text is not None for text in row["texts"]) <= 5
        assert row["texts"][0].startswith(f"# {json.loads(row['general_metadata'])['title']}")
        before = ""
        for image, text, said in zip(row["images"], row["texts"], about, strict=True):
            assert (image is None) != (text is None)
            assert (said is None) == (image is None)
            if image is None:
                before = text
                continue
            path = part.directory / image
            missing += not path.is_file()
            shown += 1
            counted = said["alt_text"].rstrip(".").lower().split()
            assert len(set(counted) & set(before.lower().replace(",", "").replace(".", "").split())) >= 2  # told of in the text
    assert shown == part.items["image"]
    assert missing == part.failures["item/failed_upstream/image-not-found"]


def test_sounds_are_wave_files_with_transcripts(corpus: SampleCorpus) -> None:
    part = corpus.parts["audio"]
    samples = list(webdataset.WebDataset(str(part.directory / "00000.tar"), shardshuffle=False))
    assert len(samples) == part.documents == 48
    speakers, broken = set(), 0
    for sample in samples:
        fields = json.loads(sample["json"])
        assert fields["text"] == sample["txt"].decode() != ""
        if not sample["wav"].startswith(b"RIFF") or int.from_bytes(sample["wav"][4:8], "little") > len(sample["wav"]):
            broken += 1
            continue
        with wave.open(io.BytesIO(sample["wav"])) as file:
            assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (16_000, 1, 2)
            seconds = file.getnframes() / file.getframerate()
            loud = np.abs(np.frombuffer(file.readframes(file.getnframes()), "<i2")).max()
        assert 0.4 <= seconds <= 2.0
        assert 5_000 < loud < 32_767  # neither silent nor clipped
        assert fields["duration"] == pytest.approx(seconds, abs=1e-4)
        speakers.add(fields["speaker"])
    assert len(speakers) >= 3
    assert broken == sum(n for reason, n in part.failures.items() if reason.startswith("item/")) == 3


def test_a_scale_sounds_the_notes_that_it_names() -> None:
    for seed in range(6):
        sound = scale(random.Random(seed))
        notes = np.array_split(sound.samples, 8)
        heard = []
        for note in notes:
            spectrum = np.abs(np.fft.rfft(note, 1 << 16))
            heard.append(12 * np.log2(np.argmax(spectrum) * RATE / (1 << 16) / 440))
        steps = np.rint(np.diff(heard))
        assert abs(steps.sum()) == 12
        assert (steps > 0).all() == ("up" in sound.transcript)
    assert max(np.abs(chords(random.Random(seed)).samples).max() for seed in range(30)) < 1
    assert all(0.3 < len(draw_sound(random.Random(seed)).samples) / RATE <= 2 for seed in range(60))


def test_text_is_json_lines_of_many_scripts(corpus: SampleCorpus) -> None:
    part = corpus.parts["text"]
    path = part.directory / part.files[0]
    assert path.read_bytes()[4:8] == b"\0\0\0\0"  # no time in the gzip header
    broken, texts = 0, []
    with gzip.open(path) as lines:
        for line in lines:
            try:
                texts.append(json.loads(line)["text"])
            except (ValueError, KeyError):
                broken += 1
    assert broken == sum(part.failures.values()) == 2
    assert len(texts) == part.documents - broken == 400
    assert len(set(texts)) == 400
    whole = "\n".join(texts)
    for something in (
        "<image>",
        "</s>",
        "\t",
        "\0",
        "\u2581",
        "\ufeff",
        "いろは",
        "Съешь",
        "نص",
        "👨‍👩‍👧‍👦",
        "\r\n",
        "    return",
    ):
        assert something in whole
    assert not re.search(r"\{(thing|does|name|number|time|adjective)\}", whole)  # no place was left unfilled
    assert len({word for word in whole.split() if word.isalpha()}) > 3000


def test_every_kind_of_picture_is_drawn_in_every_mood() -> None:
    for kind in SCENES:
        for seed in range(12):
            scene = draw_scene(random.Random(f"{kind}{seed}"), kind)
            pixels = np.asarray(scene.image)
            assert pixels.shape[2] == 3
            assert pixels.std() > 4
            assert scene.caption[0].isupper()
            assert scene.caption.endswith(".")
            assert "  " not in scene.caption
            assert scene.subject.split()[-1].strip(",.") in scene.caption.lower()
    assert {start(random.Random(seed), (96, 96))[1] for seed in range(60)} == set(MOODS)


def test_segments_come_in_reading_order(corpus: SampleCorpus) -> None:
    (source,) = resolve_inputs([str(corpus.parts["documents"].directory)]).sources
    (unit,) = source.units(1 << 30)
    for document in source.read(unit):
        assert isinstance(document, Document)
        kinds = [type(segment) for segment in document.segments]
        assert kinds == [Text, Image] * (len(kinds) // 2) + [Text]
        assert Audio not in kinds
