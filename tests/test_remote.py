"""Inputs in an object store and on a web server: the same bytes as from a disk, changes noticed, failures outlasted."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import pytest
from object_store import BUCKET, SECRET, Store, serve
from shard_corpus import picture, snapshot, write_corpus, write_tokenizers
from sources_helpers import read_all, samples, tar_bytes

from tokkit.documents import Document, Failure, Outcome
from tokkit.errors import ConfigError, FingerprintMismatch, ResumableStop, TransientError
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.sources import remote
from tokkit.sources.remote import MAX_REQUEST, MIN_REQUEST, RemotePath
from tokkit.sources.resolve import resolve_inputs

SILENT = SilentProgress()
WHAT = ["pairs", "documents", "texts", "audio", "lines", "pictures", "tables", "packed", "archives"]


class World:
    """A corpus on disk of every way in which files are read, tokenizers, and options that runs share."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.corpus = folder, folder / "corpus"
        write_corpus(self.corpus)
        self.text, self.image = write_tokenizers(folder / "tokenizers")
        lines = [json.dumps({"id": f"l{i}", "text": f"plain line {i} " + "jumps over " * (i % 9)}) for i in range(300)]
        self._write("lines/a.jsonl", "\n".join(lines).encode())
        self._write("lines/b/b.jsonl", b'{"text": "below"}\nnot json\n')
        self._write("lines/.hidden/c.jsonl", b'{"text": "hidden"}\n')
        for number in range(4):
            self._write(f"pictures/{'cat' if number % 2 else 'dog'}/{number}.png", picture(number))
        self._write("pictures/dog/0.txt", b"a dog, with [brackets] and a #")
        self._write("pictures/metadata.csv", b"file_name,text\ncat/1.png,a cat\ncat/9.png,is not there\n")
        self._write("tables/a b+c%20d.csv", b'text,n\n"one\ntwo",1\nthree\n')
        self._write("tables/big.json.txt", b"some text")
        self._write("packed/0.tar.gz", gzip.compress((self.corpus / "pairs" / "00000.tar").read_bytes(), mtime=0))
        self._write("packed/0.parquet", (self.corpus / "pairs" / "00000.parquet").read_bytes())
        if find_spec("resiliparse"):
            from warc_helpers import response, write

            body = "<html><body><p>A page of text that is long enough.</p><img src='/p.png'></body></html>"
            records = [response(f"https://example.org/{i}", body) for i in range(6)]
            records.append(response("https://example.org/p.png", picture(3), "image/png"))
            (self.corpus / "archives").mkdir()
            write(self.corpus / "archives" / "a.warc.gz", records)
        else:
            WHAT.remove("archives")
        self.clean = snapshot(self.run(folder / "clean", [str(self.corpus / name) for name in WHAT]).out)

    def _write(self, name: str, data: bytes) -> None:
        path = self.corpus / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    def run(self, out: Path, inputs: list[str], **options: object) -> ShardResult:
        settings: dict[str, object] = {
            "inputs": inputs, "out": out, "text_tokenizer": self.text, "image_tokenizer": self.image, "workers": 0,
            "unit_bytes": 6000, "shard_tokens": 1500, "batch_size": 4, "val_fraction": 0.2, "report_documents": 2,
        }  # fmt: skip
        return shard(ShardConfig.model_validate(settings | options), SILENT)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    yield from serve(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries that a test can wait for."""
    monkeypatch.setattr(remote, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(remote, "TRIES", 3)


def places(*names: str) -> list[str]:
    return [f"s3://{BUCKET}/corpus/{name}" for name in names]


# ---- the same bytes


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_an_object_store_gives_the_bytes_of_a_disk(world: World, store: Store, tmp_path: Path, workers: int) -> None:
    store.upload(world.corpus, "corpus")
    result = world.run(tmp_path / "out", places(*WHAT), workers=workers)
    assert result.manifest.units > 20
    assert snapshot(result.out) == world.clean
    written = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file())
    assert SECRET.encode() not in written
    job = json.loads((tmp_path / "out" / "run" / "job.json").read_text())
    assert job["inputs"] == places(*WHAT)
    again = world.run(tmp_path / "out", places(*WHAT))
    assert again.summary["units"] == 0


def test_memory_and_patterns_and_prefixes(world: World, tmp_path: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(world.corpus), "/m/corpus", recursive=True)
    try:
        result = world.run(tmp_path / "out", [f"memory://m/corpus/{name}/" for name in WHAT])
        assert snapshot(result.out) == world.clean
        for pattern, expected in {
            "memory://m/corpus/lines/*.jsonl": ["a.jsonl"],
            "memory://m/corpus/lin*/**/*.jsonl": ["lines/a.jsonl", "lines/b/b.jsonl"],
            "memory://m/corpus/lines/[ab]*": ["a.jsonl", "b/b.jsonl"],
            "named=jsonl:memory://m/corpus/lines/b/b.jsonl": ["b.jsonl"],
        }.items():
            (source,) = resolve_inputs([pattern]).sources
            assert [file.name for file in source.files] == expected
        assert source.name == "named"
        together = resolve_inputs([f"memory://m/corpus/{name}" for name in ("lines/a.jsonl", "texts/a.jsonl.gz")]).sources
        assert [source.name for source in together] == ["lines", "texts"]
        with pytest.raises(ConfigError, match="come twice"):
            resolve_inputs(["memory://m/corpus/lines", "memory://m/corpus/lines/a.jsonl"])
    finally:
        fs.rm("/m", recursive=True)


def test_a_unit_does_not_pull_the_whole_object(store: Store) -> None:
    lines = b"".join(json.dumps({"text": "x" * 5000, "n": n}).encode() + b"\n" for n in range(4000))  # 20 MB
    store.put("big/a.jsonl", lines)
    (source,) = resolve_inputs([f"s3://{BUCKET}/big"]).sources
    units = list(source.units(2 << 20))
    assert len(units) > 8
    store.requests.clear()
    found = [document for document in source.read(units[4]) if isinstance(document, Document)]
    assert len(found) * 5000 > 1 << 20
    assert (2 << 20) <= store.bytes_of("a.jsonl") < (2 << 20) + MAX_REQUEST
    store.requests.clear()
    with RemotePath(units[0].path).open() as file:
        for place in (19_000_000, 5_000_000, 12_000_000):
            file.seek(place)
            assert file.read(100) == lines[place : place + 100]
    assert store.bytes_of("a.jsonl") == 3 * MIN_REQUEST


def test_parquet_is_read_by_its_row_groups(store: Store, tmp_path: Path) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    noise = np.random.default_rng(0)
    texts = [noise.bytes(3000).hex() for _ in range(2000)]  # 12 MB, which nothing compresses much
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=100)
    store.upload(tmp_path, "p")
    (source,) = resolve_inputs([f"s3://{BUCKET}/p/a.parquet"]).sources
    units = list(source.units(1))
    assert len(units) == 20
    store.requests.clear()
    assert [d.segments[0].text for d in source.read(units[3])] == texts[300:400]  # type: ignore[union-attr]
    assert store.bytes_of("a.parquet") < 3 << 20


# ---- pictures by path


def test_names_do_not_lead_out_of_the_root(store: Store) -> None:
    names = ["images/in.png", "../secret.png", "images/../../secret.png", "/secret.png", "images", "../docs/images/in.png"]
    rows = [{"text_list": ["a"], "image_info": [{"image_name": name, "matched_text_index": 0}]} for name in names]
    store.put("docs/images/images/in.png", b"inside")
    store.put("docs/images/in.png", b"in images")
    store.put("secret.png", b"outside")
    store.put("docs/secret.png", b"within the root")
    store.put("docs/a.jsonl", "\n".join(json.dumps(row) for row in rows).encode())
    (source,) = resolve_inputs([f"s3://{BUCKET}/docs"]).sources
    assert source.format == "mmc4"
    found = [d.media[0] for d in read_all(source).documents]
    assert [item.data for item in found] == [b"inside", b"within the root", b"within the root", None, None, None]
    reasons = [item.failure.reason for item in found if item.failure is not None]
    assert reasons == ["path-outside-source", "image-not-found", "image-not-found"]
    store.requests.clear()
    outside = rows[0] | {"image_info": [{"image_name": "../../secret.png", "matched_text_index": 0}]}
    store.put("docs/a.jsonl", json.dumps(outside).encode())
    (source,) = resolve_inputs([f"s3://{BUCKET}/docs"]).sources
    (document,) = read_all(source).documents
    assert document.media[0].failure == Failure(
        Outcome.REJECTED, "path-outside-source", "../../secret.png: leads out of the source's folder"
    )
    assert not [path for _, path, _ in store.requests if path.endswith(f"{BUCKET}/secret.png")]


# ---- objects that change or go


def test_a_changed_object_is_noticed(world: World, store: Store, tmp_path: Path) -> None:
    store.upload(world.corpus, "corpus")
    out = tmp_path / "out"
    world.run(out, places("lines", "pairs"))
    (out / "manifest.json").unlink()
    path = world.corpus / "lines" / "a.jsonl"
    store.put("corpus/lines/a.jsonl", path.read_bytes().replace(b"plain line 7", b"plain line 8"))
    with pytest.raises(FingerprintMismatch, match=r"changed: lines/a\.jsonl"):
        world.run(out, places("lines", "pairs"))
    store.put("corpus/lines/a.jsonl", path.read_bytes())  # the same content again is the same object
    world.run(out, places("lines", "pairs"))
    store.remove("corpus/pairs/00000.parquet")
    with pytest.raises(FingerprintMismatch, match=r"gone: pairs/00000\.parquet"):
        world.run(out, places("lines", "pairs"))


def test_an_object_that_changes_while_it_is_read_is_not_committed(world: World, store: Store, tmp_path: Path) -> None:
    store.upload(world.corpus, "corpus")
    path, changed = world.corpus / "lines" / "a.jsonl", []

    def change(method: str, key: str) -> bool:
        if method == "GET" and key.endswith("a.jsonl") and len(changed) < 1 and len(store.requests) > 25:
            changed.append(True)
            store.put("corpus/lines/a.jsonl", path.read_bytes().replace(b"plain", b"PLAIN"))
        return False

    store.failing = change
    with pytest.raises(FingerprintMismatch, match="changed while it was being read"):
        world.run(tmp_path / "out", places("lines"))
    assert changed


def test_an_object_that_is_gone_stops_the_run_resumable(
    world: World, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: None
) -> None:
    from tokkit.pipelines import shard as pipeline

    store.upload(world.corpus, "corpus")
    run_units = pipeline.run_units
    monkeypatch.setattr(pipeline, "run_units", lambda *a, **k: (store.remove("corpus/lines/a.jsonl"), run_units(*a, **k)))
    with pytest.raises(ResumableStop, match=r"s3://bucket/corpus/lines/a\.jsonl"):
        world.run(tmp_path / "out", places("lines"))
    monkeypatch.undo()


# ---- a store that fails


@pytest.mark.slow
def test_a_store_that_fails_now_and_then_is_asked_again(world: World, store: Store, tmp_path: Path, quick: None) -> None:
    store.upload(world.corpus, "corpus")
    count = [0]

    def every_seventh(method: str, path: str) -> bool:
        count[0] += 1
        return count[0] % 7 == 0

    store.failing = every_seventh
    assert snapshot(world.run(tmp_path / "out", places(*WHAT)).out) == world.clean
    assert count[0] > 100


@pytest.mark.slow
def test_a_store_that_stays_down_ends_the_command_with_75_and_the_same_command_goes_on(
    world: World, store: Store, tmp_path: Path
) -> None:
    store.upload(world.corpus, "corpus")
    impatient = "import tokkit.sources.remote as r, s3fs; r.FIRST_WAIT, r.TRIES, s3fs.S3FileSystem.retries = 0.01, 2, 1"
    code = f"{impatient}; from tokkit.cli.main import main; main()"
    options = ["--text-tokenizer", world.text, "--image-tokenizer", world.image, "--workers", "0", "--unit-size", "6000",
               "--shard-tokens", "1500", "--batch-size", "4", "--val-fraction", "0.2", "--report-documents", "2"]  # fmt: skip
    command = [sys.executable, "-c", code, "shard", *places(*WHAT), "--out", tmp_path / "out", *options]
    environment = {name: value for name, value in os.environ.items() if name != "AWS_ENDPOINT_URL"}
    environment["FSSPEC_S3_ENDPOINT_URL"] = store.url  # fsspec's own way of saying where a store is
    run = partial(subprocess.run, [str(part) for part in command], capture_output=True, text=True, env=environment)
    store.failing = lambda method, path: method == "GET" and path.endswith("a.jsonl") and len(store.requests) > 120
    stopped = run()
    assert stopped.returncode == 75, stopped.stderr
    assert "s3://bucket/corpus/lines/a.jsonl" in stopped.stderr
    assert "try later" in stopped.stderr
    assert SECRET not in stopped.stderr + stopped.stdout
    assert not (tmp_path / "out" / "manifest.json").exists()
    store.failing = lambda method, path: True
    down = run()  # nothing answers: not even what lies there can be told
    assert down.returncode == 75, down.stderr
    store.failing = lambda method, path: False
    finished = run()
    assert finished.returncode == 0, finished.stderr
    assert snapshot(tmp_path / "out") == world.clean


@pytest.mark.slow
def test_no_document_is_rejected_for_a_failing_store(world: World, store: Store, quick: None) -> None:
    store.upload(world.corpus, "corpus")
    for name in WHAT:
        for source in resolve_inputs(places(name)).sources:
            for unit in source.units(6000):
                store.failing = lambda method, path: True
                with pytest.raises(OSError) as error:
                    list(source.read(unit))
                assert error.value.errno
                if source.format != "text":  # a file is a document
                    with pytest.raises(OSError) as error:
                        source.census(unit)
                    assert error.value.errno
                store.failing = lambda method, path: False
    store.failing = lambda method, path: True
    with pytest.raises(TransientError, match="run the same command again"):
        resolve_inputs(places("pairs"))


# ---- what is refused


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("https://name:hunter2@host/a.tar", "credentials"),
        ("https://hunter2@host/a.tar", "credentials"),
        ("s3://key:hunter2@bucket/a.tar", "credentials"),
        ("https://host/a.tar?X-Amz-Signature=hunter2", "query"),
        ("n=webdataset:https://host/a.tar?token=hunter2", "query"),
        ("s3://bucket/../a.tar", "or .."),
        ("s3://bucket//a.tar", "empty part"),
        ("s3://*/a.tar", "bucket or host cannot be a pattern"),
        ("https://host/*.tar", "lists no folders"),
        ("nosuch://x/a.tar", "no kind of URL"),
    ],
)
def test_urls_that_are_not_taken(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as error:
        resolve_inputs([url])
    assert "hunter2" not in str(error.value)


def test_a_server_that_is_not_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.ftp import FTPFileSystem

    def nobody(self: object, *args: object, **options: object) -> None:
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(FTPFileSystem, "__init__", nobody)
    with pytest.raises(TransientError, match=r"ftp://nowhere/a\.tar: the server cannot be reached: .*not known"):
        resolve_inputs(["ftp://nowhere/a.tar"])


def test_what_is_not_there(store: Store) -> None:
    store.put("a/x.tar", tar_bytes(samples(2)))
    for url, why in {
        f"s3://{BUCKET}/b": "no such object",
        f"s3://{BUCKET}/a/": "",
        f"s3://{BUCKET}/a/*.parquet": "matches nothing",
        "s3://no-such-bucket/a": "no such object",
    }.items():
        if why:
            with pytest.raises(ConfigError, match=why):
                resolve_inputs([url])
        else:
            assert len(resolve_inputs([url]).sources) == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    remote._filesystem.cache_clear()
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    from fsspec.registry import _registry

    for name in ("s3", "gs"):
        monkeypatch.delitem(_registry, name, raising=False)
    with pytest.raises(ConfigError) as error:
        resolve_inputs(["s3://bucket/a.tar", "gs://bucket/a.tar"])
    assert 'pip install "tokkit[s3]"' in error.value.problems[0]
    assert 'pip install "tokkit[gcs]"' in error.value.problems[1]


# ---- a web server


class _Handler(BaseHTTPRequestHandler):
    files: dict[str, bytes]
    ranges = True

    def do_HEAD(self) -> None:
        self._give(head=True)

    def do_GET(self) -> None:
        self._give(head=False)

    def _give(self, *, head: bool) -> None:
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        start, stop = 0, len(data)
        if self.ranges and (asked := self.headers.get("Range")):
            first, last = asked.removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(data))
            self.send_response(206)
        else:
            self.send_response(200)
        self.send_header("ETag", f'"{hash(data)}"')
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if not head:
            self.wfile.write(data[start:stop])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[tuple[str, type[_Handler]]]:
    pytest.importorskip("aiohttp")
    handler = type("Handler", (_Handler,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    remote._filesystem.cache_clear()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def test_a_file_of_a_web_server(web: tuple[str, type[_Handler]], tmp_path: Path, quick: None) -> None:
    url, handler = web
    data = tar_bytes(samples(40, 3000))
    (tmp_path / "00000.tar").write_bytes(data)
    handler.files = {"/c/00000.tar": data, "/c/a.jsonl.gz": gzip.compress(b'{"text": "a"}\n')}
    (here,) = resolve_inputs([str(tmp_path / "00000.tar")]).sources
    (there,) = resolve_inputs([f"{url}/c/00000.tar"]).sources
    assert read_all(there, 20_000).identity == read_all(here, 20_000).identity
    assert there.files[0].mtime_ns != 0
    (lines,) = resolve_inputs([f"{url}/c/a.jsonl.gz"]).sources
    assert len(read_all(lines).good) == 1
    with pytest.raises(ConfigError, match="no such file"):
        resolve_inputs([f"{url}/c/b.tar"])
    handler.ranges = False
    with pytest.raises(OSError, match="whole files"):
        read_all(resolve_inputs([f"{url}/c/00000.tar"]).sources[0])
