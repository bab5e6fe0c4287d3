"""One run over every real corpus at once, and one with every broken file among them, by the command itself.

The sums are held to counts that are taken here, by other readers than tokkit's: tarfile, gzip, json, pyarrow, Pillow, and a
scanner of web archives that shares nothing with the one under test. A document, and a media item, has one outcome; a file of
the input is read, goes with one that is read, or is listed as not read.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image
from shard_corpus import snapshot, write_tokenizers
from warc_helpers import scan, scan_arc

from tokkit.shards.manifest import Manifest, SourceTotals, load_manifest

pytestmark = pytest.mark.slow

CORPORA = (
    "text",
    "images_webdataset",
    "hf_parquet",
    "image_folder",
    "image_formats",
    "interleaved_obelics",
    "interleaved_obelics_inline",
    "interleaved_mmc4",
    "warc",
)
BROKEN = ("images", "tar", "parquet", "warc")  # the other folders of bad/ go in by a pattern, see Corpus.inputs
PATIENCE = 1200  # seconds after which a run is taken to hang
MEMORY = 2_000_000_000
HTML = ("text/html", "application/xhtml+xml")


@dataclass(frozen=True)
class Ran:
    """A finished run.

    Attributes:
        out: its output.
        peak: the largest sum of the memory of its processes that was seen, shared pages counted once (PSS), in bytes.
    """

    out: Path
    peak: int

    @cached_property
    def manifest(self) -> Manifest:
        return load_manifest(self.out)

    @cached_property
    def sources(self) -> dict[str, SourceTotals]:
        return {source.name: source for source in self.manifest.sources}

    @cached_property
    def committed(self) -> list[dict[str, object]]:
        tables = [pq.read_table(p, columns=["source", "locator", "spans"]) for p in sorted(self.out.glob("tokens/*/*.parquet"))]
        return [row for table in tables for row in table.to_pylist()]

    @cached_property
    def lost(self) -> list[dict[str, object]]:
        return [line for path in sorted((self.out / "rejects").iterdir()) for line in lines_of(path)]

    @cached_property
    def ignored(self) -> dict[str, str]:
        return {str(entry["path"]): str(entry["why"]) for entry in lines_of(self.out / "run" / "ignored.jsonl")}

    @cached_property
    def inputs(self) -> dict[str, tuple[str, str]]:
        """Source and name in it by path, of every file that the run depends on."""
        entries = lines_of(self.out / "run" / "inputs.jsonl")
        return {str(entry["path"]): (str(entry["source"]), str(entry["name"])) for entry in entries}


def lines_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Corpus:
    """The real corpora and two small tokenizers; runs are kept by what they were."""

    def __init__(self, data: Path, folder: Path) -> None:
        self.data = data
        self.folder = folder
        self.text, self.image = write_tokenizers(folder / "tokenizers")
        self._runs: dict[str, Ran] = {}

    def inputs(self, *, broken: bool) -> list[str]:
        found = [str(self.data / name) for name in CORPORA]
        found.append(f"audio={self.data / 'audio*'}")  # a manifest with its recordings, beside tars of others
        if broken:
            found += [f"bad-{name}={self.data / 'bad' / name}" for name in BROKEN]
            found.append(f"bad={self.data / 'bad' / '[Mat][Aue]*'}")  # MANIFEST.jsonl, audio/, text/
        return found

    def run(self, *, broken: bool, workers: int) -> Ran:
        name = f"{'broken' if broken else 'sound'}-{workers}"
        if name not in self._runs:
            options = ["--out", self.folder / name, "--text-tokenizer", self.text, "--image-tokenizer", self.image]
            options += ["--workers", workers, "--unit-size", "1MB", "--max-reject-ratio", "0.9", "--quiet"]
            command = ["shard", *self.inputs(broken=broken), *map(str, options)]
            self._runs[name] = Ran(self.folder / name, watched([sys.executable, "-m", "tokkit.cli.main", *command]))
        return self._runs[name]


def watched(command: list[str]) -> int:
    """Run a command that must leave with 0 before patience ends; returns the peak of its processes' memory, in bytes."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    timer = threading.Timer(PATIENCE, lambda: os.killpg(process.pid, signal.SIGKILL))
    timer.start()
    peaks = [0]

    def sample() -> None:
        while process.poll() is None:
            peaks.append(memory_of(process.pid))
            time.sleep(0.25)  # looking costs the kernel some milliseconds

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        _, told = process.communicate()
    finally:
        timer.cancel()
        sampler.join()
    assert process.returncode == 0, f"{process.returncode}: {told[-3000:]}"
    return max(peaks)


def memory_of(session: int) -> int:
    """The sum of PSS over the processes of a session, in bytes."""
    total = 0
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            if int((entry / "stat").read_text().rpartition(")")[2].split()[3]) != session:
                continue
            rollup = (entry / "smaps_rollup").read_text()
        except (OSError, ValueError, IndexError):  # gone, or not ours to look at
            continue
        total += sum(int(line.split()[1]) << 10 for line in rollup.splitlines() if line.startswith("Pss:"))
    return total


@pytest.fixture(scope="module")
def corpus(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    pytest.importorskip("resiliparse")
    return Corpus(shared_data, tmp_path_factory.mktemp("everything"))


@pytest.fixture(params=[False, True], ids=["sound", "broken"])
def run(request: pytest.FixtureRequest, corpus: Corpus) -> Ran:
    return corpus.run(broken=request.param, workers=2)


# ---- counts, by other readers than tokkit's

Counts = tuple[dict[str, int], dict[str, dict[str, int]]]
"""Documents by outcome, and items by modality and outcome; what is none is left out."""


def counts(documents: dict[str, int], **items: dict[str, int]) -> Counts:
    some = {modality: {outcome: n for outcome, n in found.items() if n} for modality, found in items.items()}
    return {outcome: n for outcome, n in documents.items() if n}, {modality: found for modality, found in some.items() if found}


def found_in(entry: SourceTotals) -> Counts:
    return counts(entry.documents, **entry.items)


def gzip_lines(path: Path) -> list[dict[str, object]]:
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def members(folder: Path, *suffixes: str) -> int:
    return sum(m.name.endswith(suffixes) for path in sorted(folder.glob("*.tar")) for m in tarfile.open(path))


def count_pairs_in_tars(data: Path) -> Counts:
    pictures = members(data / "images_webdataset", ".jpg")
    tables = [pq.read_table(path, columns=["status"]) for path in (data / "images_webdataset").glob("*.parquet")]
    failed = sum(status != "success" for table in tables for status in table.column("status").to_pylist())
    return counts({"committed": pictures, "failed_upstream": failed}, image={"committed": pictures})


def count_sounds_in_tars(data: Path) -> Counts:
    clips = members(data / "audio_webdataset", ".wav", ".flac", ".mp3", ".ogg")
    return counts({"filtered": clips}, audio={"filtered": clips})


def count_sounds_of_manifest(data: Path) -> Counts:
    lines = gzip_lines(data / "audio" / "manifest.jsonl")
    return counts({"filtered": len(lines)}, audio={"filtered": len(lines)})


def count_rows(data: Path) -> Counts:
    rows = sum(pq.read_metadata(path).num_rows for path in (data / "hf_parquet").glob("*.parquet"))
    return counts({"committed": rows}, image={"committed": rows})


def count_folder(folder: Path) -> Counts:
    """Pillow says of each file whether it is a picture of samples whose range is agreed upon, and of 8 pixels and more."""
    found: Counter[str] = Counter()
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".txt":
            with Image.open(path) as image:
                icon = image.format == "ICO"  # decoded while it is opened, so it is not taken
                vague = image.mode in ("F", "LAB") or (image.mode == "I" and image.format != "PPM")
                found["filtered" if min(image.size) < 8 else "rejected" if vague or icon else "committed"] += 1
    return counts(found, image=found)


def count_obelics(data: Path) -> Counts:
    entries = [json.loads(x) for x in (data / "interleaved_obelics" / "anthropology_url_map.jsonl").read_text().splitlines()]
    absent = {entry["url"] for entry in entries if entry["status"] != "success"}
    rows, lost = 0, Counter[str]()
    for path in (data / "interleaved_obelics").glob("*.parquet"):
        images = pq.read_table(path).column("images").to_pylist()
        rows += len(images)
        lost.update("failed_upstream" if ref in absent else "committed" for row in images for ref in row if ref is not None)
    return counts({"committed": rows}, image=lost)


def count_inline(data: Path) -> Counts:
    tables = [pq.read_table(path).column("images") for path in (data / "interleaved_obelics_inline").glob("*.parquet")]
    images = [row for column in tables for row in column.to_pylist()]
    return counts({"committed": len(images)}, image={"committed": sum(ref is not None for row in images for ref in row)})


def count_mmc4(data: Path) -> Counts:
    folder, found = data / "interleaved_mmc4", Counter[str]()
    documents = [line for path in folder.glob("*.jsonl") for line in gzip_lines(path)]
    for info in (info for line in documents for info in line["image_info"]):  # type: ignore[attr-defined]
        found["committed" if (folder / "images" / info["image_name"]).is_file() else "failed_upstream"] += 1
    return counts({"committed": len(documents)}, image=found)


FOREIGN: dict[str, Callable[[Path], Counts]] = {
    "text-jsonl": lambda data: counts({"committed": sum(len(gzip_lines(p)) for p in (data / "text").glob("*.jsonl.gz"))}),
    "text-text": lambda data: counts({"committed": len(list((data / "text").glob("*.txt")))}),
    "images_webdataset": count_pairs_in_tars,
    "audio-webdataset": count_sounds_in_tars,
    "audio-audio_manifest": count_sounds_of_manifest,
    "hf_parquet": count_rows,
    "image_folder": lambda data: count_folder(data / "image_folder"),
    "image_formats": lambda data: count_folder(data / "image_formats"),
    "interleaved_obelics": count_obelics,
    "interleaved_obelics_inline": count_inline,
    "interleaved_mmc4": count_mmc4,
}


def web_records(data: Path) -> list[tuple[str, str, str, int | None, str]]:
    """(file, type, URL, HTTP status, content type) of every record of the archives."""
    folder = data / "warc"
    found = [(path.name, *entry) for path in sorted(folder.glob("*.arc*")) for entry in scan_arc(path)]
    return found + [(path.name, *entry) for path in sorted(folder.glob("*.warc*")) for entry in scan(path)]


def is_page(kind: str, content: str) -> bool:
    declared = content.partition(";")[0].strip().lower()
    declared = "" if declared == "application/http" else declared  # the record's own type, where the message says nothing
    return (kind == "response" and (not declared or declared in HTML)) or (kind == "resource" and declared in HTML)


# ---- the sums


@pytest.mark.parametrize("name", FOREIGN)
def test_outcomes_are_the_counts_of_foreign_readers(run: Ran, corpus: Corpus, name: str) -> None:
    expected = FOREIGN[name](corpus.data)
    assert found_in(run.sources[name]) == expected
    assert run.sources[name].counted_documents == sum(expected[0].values()) > 0


def test_pages_and_their_outcomes_are_those_of_a_foreign_scanner(run: Ran, corpus: Corpus) -> None:
    records = web_records(corpus.data)
    pages = [(status or 200) for _, kind, _, status, content in records if is_page(kind, content)]
    found = run.sources["warc-warc"]
    assert sum(found.documents.values()) == found.counted_documents == len(pages)
    refused = Counter(status for status in pages if status not in (200, 203))
    told = {reason: n for reason, n in found.reasons.items() if reason.startswith("document/filtered/http-status-")}
    assert told == {f"document/filtered/http-status-{status}": n for status, n in refused.items()}
    texts = [kind for _, kind, _, _, content in records if kind == "conversion" and content.startswith("text/plain")]
    assert run.sources["warc-wet"].documents == {"committed": len(texts)}
    pictures = [url for file, kind, url, _, content in records if file.startswith("made-") and content.startswith("image/")]
    shown = [row for row in run.committed if row["source"] == "warc-warc" and str(row["locator"]).startswith("made-textbook")]
    assert sum(span["modality"] == "image" for row in shown for span in row["spans"]) == len(pictures) == 35  # type: ignore[attr-defined]


def test_every_document_and_every_item_has_one_outcome(run: Ran) -> None:
    """No locator twice, and the sums of the manifest are those of what lies there, line by line."""
    documents = Counter((row["source"], row["locator"]) for row in run.committed)
    documents.update((line["source"], line["locator"]) for line in run.lost if line["level"] == "document")
    assert set(documents.values()) == {1}
    items = [(line["source"], line["locator"], line["item"]) for line in run.lost if line["level"] == "item"]
    assert len(set(items)) == len(items)
    assert {item[:2] for item in items} <= set(documents)
    found: dict[str, Counter[tuple[str, str]]] = {name: Counter() for name in run.sources}
    for row in run.committed:
        found[str(row["source"])]["document", "committed"] += 1
        spans: list[dict[str, object]] = row["spans"]  # type: ignore[assignment]
        media = [str(span["modality"]) for span in spans if span["modality"] != "text"]
        found[str(row["source"])].update((modality, "committed") for modality in media)
    for line in run.lost:
        if line["level"] != "container":
            found[str(line["source"])][str(line.get("modality", "document")), str(line["outcome"])] += 1
        assert line["reason"]
        assert line["message"]
    for name, entry in run.sources.items():
        told = Counter({("document", outcome): n for outcome, n in entry.documents.items()})
        for modality, outcomes in entry.items.items():
            told.update({(modality, outcome): n for outcome, n in outcomes.items()})
        assert +told == +found[name], name
    assert run.manifest.documents == dict(Counter(o for e in run.sources.values() for o in Counter(e.documents).elements()))


def test_no_file_of_the_input_is_lost_in_silence(run: Ran, corpus: Corpus) -> None:
    """Each is read, goes with one that is read, or is listed with the reason why not."""
    broken = any(name.startswith("bad") for name in run.sources)
    folders = [corpus.data / name for name in (*CORPORA, "audio", "audio_webdataset", *(("bad",) if broken else ()))]
    files = {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}
    documents = {(row["source"], row["locator"]) for row in (*run.committed, *run.lost)}
    left = files - set(run.inputs) - set(run.ignored)
    for folder, (source, name) in run.inputs.items():
        if Path(folder).is_dir():  # of which each picture is a document
            left -= {path for path in left if (source, (Path(name) / Path(path).name).as_posix()) in documents}
    pictures = {path for path in left if Path(path).parent.name == "images"}  # what OBELICS and MMC4 name
    sidecars = {path for path in left if Path(path).suffix == ".parquet" or path.endswith("_stats.json")}
    assert left == pictures | sidecars
    assert all(Path(path).with_suffix(".tar").is_file() for path in sidecars if path.endswith(".parquet"))
    assert all("interleaved" in path for path in pictures)
    assert all(run.ignored.values())
    assert set(run.ignored) & set(run.inputs) == set()


def test_every_broken_file_has_an_outcome_or_a_reason_why_it_is_not_read(corpus: Corpus) -> None:
    run = corpus.run(broken=True, workers=2)
    assert sum(source.container_errors for source in run.sources.values()) > 10
    places = {(str(row["source"]), str(row["locator"])) for row in run.committed}
    places |= {(str(line["source"]), str(line["locator"])) for line in run.lost}
    heads = {(source, locator) for source, locator in places}
    for mark in "#@:":
        heads |= {(source, locator.rpartition(mark)[0]) for source, locator in places if mark in locator}
    silent = set()
    for path in sorted((corpus.data / "bad").rglob("*")):
        if not path.is_file() or str(path) in run.ignored:
            continue
        if path.parent.name == "images":
            assert ("bad-images", path.name) in heads
            continue
        source, name = run.inputs[str(path)]
        if (source, name) not in heads:
            silent.add(path.name)
    assert silent == {"empty_valid.tar", "no_rows.parquet"}
    with tarfile.open(corpus.data / "bad" / "tar" / "empty_valid.tar") as tar:
        assert tar.getmembers() == []
    assert pq.read_metadata(corpus.data / "bad" / "parquet" / "no_rows.parquet").num_rows == 0


def test_broken_files_change_nothing_of_the_others(corpus: Corpus) -> None:
    sound, broken = corpus.run(broken=False, workers=2), corpus.run(broken=True, workers=2)
    assert {name: entry for name, entry in broken.sources.items() if not name.startswith("bad")} == sound.sources

    def rows(run: Ran) -> list[dict[str, object]]:
        return [row for row in run.committed if not str(row["source"]).startswith("bad")]

    assert rows(broken) == rows(sound)


# ---- what holds of the run itself


def test_memory_stays_within_its_bound(run: Ran) -> None:
    assert 100_000_000 < run.peak < MEMORY


def test_the_output_agrees_with_itself(run: Ran) -> None:
    command = [sys.executable, "-m", "tokkit.cli.main", "verify", str(run.out), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert json.loads(done.stdout)["problems"] == []


@pytest.mark.parametrize("broken", [False, True], ids=["sound", "broken"])
def test_one_worker_gives_the_same_bytes(corpus: Corpus, broken: bool) -> None:
    assert snapshot(corpus.run(broken=broken, workers=1).out) == snapshot(corpus.run(broken=broken, workers=2).out)
