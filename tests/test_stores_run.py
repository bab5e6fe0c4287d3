"""`tokkit shard --images` and `--missing-image` through whole jobs, from a list of URLs to verified shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_corpus import picture, snapshot, write_tokenizers
from sources_helpers import tar_bytes, write_parquet
from stores_helpers import downloaded
from test_cli import run as command
from warc_helpers import page, png, response, write

from tokkit.errors import BudgetExceeded, ConfigError, FingerprintMismatch, UsageError
from tokkit.pipelines.decoding import DecodedGap, DecodedImage, DecodedText, DocumentDecoder
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.remove import RemoveConfig, remove
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard, shard_part
from tokkit.pipelines.urls import UrlsConfig, list_urls
from tokkit.pipelines.verify import VerifyConfig, verify

SILENT = SilentProgress()
SITE = "https://example.org"
FAR = "http://pictures.example.net"
KIND = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_tokenizers(tmp_path_factory.mktemp("tokenizers"))


Run = Callable[..., ShardResult]


@pytest.fixture(scope="module")
def settings_of(tokenizers: tuple[Path, Path]) -> Callable[..., ShardConfig]:
    text, image = tokenizers

    def made(inputs: Path, out: Path, **options: object) -> ShardConfig:
        settings = {"inputs": [str(inputs)], "out": out, "text_tokenizer": text, "image_tokenizer": image, "workers": 0}
        settings |= {"batch_size": 4, "report_documents": 3}
        images = options.pop("images", ())
        return ShardConfig.model_validate(settings | {"images": [str(one) for one in images]} | options)  # type: ignore[attr-defined]

    return made


@pytest.fixture(scope="module")
def run(settings_of: Callable[..., ShardConfig]) -> Run:
    """Run and verify, documents encoded again included."""

    def ran(inputs: Path, out: Path, **options: object) -> ShardResult:
        result = shard(settings_of(inputs, out, **options), SILENT)
        assert verify(VerifyConfig(directory=out, reencode=50), SILENT).problems == []
        return result

    return ran


def said(out: Path, number: int) -> list[object]:
    """A document: its texts, and of pictures the hash of what they were made from, or None for a place that is kept."""
    decoder = DocumentDecoder(out)
    document = decoder.decode("train", number)
    spans = [span["item_hash"] for span in document.row["spans"] if span["modality"] == "image"]  # type: ignore[attr-defined]
    hashes = iter(spans)
    found: list[object] = []
    for part in document.parts:
        if isinstance(part, DecodedText):
            found.append(part.text)
        else:
            assert isinstance(part, DecodedImage | DecodedGap)
            given = next(hashes)
            assert bool(given) == isinstance(part, DecodedImage)
            found.append(given or None)
    return found


def hash_of(data: bytes) -> str:
    from tokkit.documents import Image

    return Image(data, "").hash


# ---- the whole circle


PAGES = 7


def crawl() -> list[bytes]:
    """Pages with a picture in the archive and one that is elsewhere; of page 3 that one cannot be downloaded."""
    made = []
    for n in range(PAGES):
        html = (
            f"<p>Page {n} begins.</p><img src='/{n}.png'><p>It goes on.</p><img src='{FAR}/{n}.png' alt='far'><p>It ends.</p>"
        )
        made += [response(f"{SITE}/{n}.html", page(html)), response(f"{SITE}/{n}.png", png(colour=n), "image/png")]
    return made


def far(number: int) -> bytes:
    return picture(100 + number)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("resiliparse")
    return write(tmp_path_factory.mktemp("crawl") / "a.warc.gz", crawl())


def fetched(urls: list[str], folder: Path, form: str) -> Path:
    """What img2dataset would make of a list of these URLs."""
    numbers = {url: int(url.rpartition("/")[2].removesuffix(".png")) for url in urls}
    return downloaded(folder, {url: None if number == 3 else far(number) for url, number in numbers.items()}, form)


@pytest.mark.parametrize("form", ["tar", "parquet", "files"])
def test_from_a_crawl_to_a_list_to_a_download_and_back(run: Run, archive: Path, tmp_path: Path, form: str) -> None:
    list_urls(UrlsConfig(inputs=[str(archive)], out=tmp_path / "urls.parquet", workers=0), SILENT)
    urls = pq.read_table(tmp_path / "urls.parquet").column("url").to_pylist()
    assert sorted(urls) == [f"{FAR}/{n}.png" for n in range(PAGES)]
    store = fetched(urls, tmp_path / "pictures", form)
    out = tmp_path / "out"
    manifest = run(archive, out, images=[store], unit_bytes=2000).manifest
    assert manifest.units > 2
    source = manifest.sources[0]
    assert source.items == {"image": {"committed": 2 * PAGES - 1, "failed_upstream": 1}}
    assert source.reasons == {"item/failed_upstream/failed-to-download": 1}
    assert source.images_from == {"pictures": PAGES - 1}
    (stated,) = manifest.stores
    assert (stated.name, stated.kind, stated.entries, stated.failed, stated.found, stated.damage) == (
        "pictures", "img2dataset", PAGES - 1, 1, PAGES - 1, []
    )  # fmt: skip
    for n in range(PAGES):
        near = ["It goes on.", hash_of(far(n)), "It ends."] if n != 3 else ["It goes on.\n\nIt ends."]
        assert said(out, n) == [f"Page {n} begins.", hash_of(png(colour=n)), *near]
    assert "pictures (img2dataset)" in (out / "report.html").read_text()
    lines = [json.loads(line) for path in (out / "rejects").iterdir() for line in path.read_text().splitlines()]
    assert [(line["ref"], line["message"]) for line in lines] == [(f"{FAR}/3.png", "HTTP Error 404: Not Found")]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_list_of_what_is_still_missing_after_a_download(archive: Path, tmp_path: Path, workers: int) -> None:
    """What failed is listed again, what is there is not."""
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES - 1)], tmp_path / "pictures", "tar")
    config = UrlsConfig(inputs=[str(archive)], out=tmp_path / "urls.parquet", images=[str(store)], workers=workers)
    assert list_urls(config, SILENT).missing == 2
    urls = pq.read_table(tmp_path / "urls.parquet").column("url").to_pylist()
    assert sorted(urls) == [f"{FAR}/3.png", f"{FAR}/{PAGES - 1}.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"pictures", "urls.parquet"}


def test_without_the_store_they_are_missing_and_with_another_they_are_not_in_it(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    reasons = run(archive, tmp_path / "none").manifest.sources[0].reasons
    assert reasons == {"item/failed_upstream/not-downloaded": PAGES}
    store = downloaded(tmp_path / "d", {f"{FAR}/0.png": far(0)})
    source = run(archive, tmp_path / "out", images=[store]).manifest.sources[0]
    assert source.reasons == {"item/failed_upstream/not-in-store": PAGES - 1}
    assert source.images_from == {"d": 1}


# ---- workers, resuming, changes


def test_workers_and_resuming_change_no_byte(settings_of: Callable[..., ShardConfig], archive: Path, tmp_path: Path) -> None:
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    options = {"images": [store], "unit_bytes": 2000, "missing_image": "keep-marker"}
    shard(settings_of(archive, tmp_path / "one", **options), SILENT)
    clean = snapshot(tmp_path / "one")
    shard(settings_of(archive, tmp_path / "two", **options, workers=2), SILENT)
    assert snapshot(tmp_path / "two") == clean
    shard_part(settings_of(archive, tmp_path / "parts", **options, shard_index=1, shard_count=3), SILENT)
    # the index of a run that was killed while it was made is made again
    (tmp_path / "parts" / "run" / "stores" / "stores.json").unlink()
    shard(settings_of(archive, tmp_path / "parts", **options), SILENT)
    assert snapshot(tmp_path / "parts") == clean


@pytest.mark.parametrize("how", ["touched", "removed", "new", "other store", "other option"])
def test_a_store_that_is_another_between_two_runs(
    settings_of: Callable[..., ShardConfig], archive: Path, tmp_path: Path, how: str
) -> None:
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    options: dict[str, object] = {"images": [store], "unit_bytes": 2000}
    shard_part(settings_of(archive, tmp_path / "out", **options, shard_index=0, shard_count=3), SILENT)
    before = snapshot(tmp_path / "out")
    says = {"touched": "changed", "removed": "gone", "new": "new"}
    if how == "touched":
        os.utime(store / "00000.tar")
    elif how == "removed":
        (store / "00000.tar").unlink()
    elif how == "new":
        (store / "00007.tar").write_bytes((store / "00000.tar").read_bytes())
    elif how == "other store":
        options["images"] = [f"tar:{store}"]
    else:
        options["missing_image"] = "drop-document"
    match = (
        f"{says[how]}: --images pictures/0000[07].tar"
        if how in says
        else rf"- {'images' if how == 'other store' else 'missing_image'}: "
    )
    with pytest.raises(FingerprintMismatch, match=match):
        shard(settings_of(archive, tmp_path / "out", **options), SILENT)
    assert snapshot(tmp_path / "out") == before


def test_a_store_that_changes_while_a_run_is_under_way(
    settings_of: Callable[..., ShardConfig], archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tokkit.sources.warc.source import WarcSource

    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    real = WarcSource.census

    def census(self: WarcSource, *arguments: object) -> object:
        for path in store.iterdir():
            os.utime(path)
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(WarcSource, "census", census)
    with pytest.raises(FingerprintMismatch, match=r"\.tar has changed"):
        shard(settings_of(archive, tmp_path / "out", images=[store]), SILENT)
    assert not list((tmp_path / "out" / "commits").iterdir())


def test_damage_of_a_store_is_in_the_manifest_and_stops_a_strict_run(
    settings_of: Callable[..., ShardConfig], run: Run, archive: Path, tmp_path: Path
) -> None:
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    path = store / "00001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    (damage,) = run(archive, tmp_path / "out", images=[store]).manifest.stores[0].damage
    assert (damage.file, damage.reason) == ("00001.tar", "tar-truncated")
    with pytest.raises(BudgetExceeded, match=r"pictures/00001\.tar: tar-truncated"):
        shard(settings_of(archive, tmp_path / "strict", images=[store], strict=True), SILENT)


def test_verify_finds_a_count_of_pictures_from_stores_that_was_changed(run: Run, archive: Path, tmp_path: Path) -> None:
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    run(archive, tmp_path / "out", images=[store], missing_image="keep-marker")
    path = tmp_path / "out" / "manifest.json"
    for where, key in (("stores", "found"), ("sources", "kept_markers")):
        original = path.read_text()
        entry = json.loads(original)
        entry[where][0][key] += 1
        path.write_text(json.dumps(entry))
        told = " ".join(p.message for p in verify(VerifyConfig(directory=tmp_path / "out"), SILENT).problems)
        assert {"found": "images from", "kept_markers": "kept markers"}[key] in told
        path.write_text(original)


def test_documents_are_encoded_again_where_the_index_is_gone_or_the_store_has_moved(
    run: Run, archive: Path, tmp_path: Path
) -> None:
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    out = tmp_path / "out"
    run(archive, out, images=[store])
    for path in (out / "run" / "stores").iterdir():
        path.unlink()
    assert verify(VerifyConfig(directory=out, reencode=50), SILENT).problems == []
    store.rename(tmp_path / "moved")
    with pytest.raises(ConfigError, match="no such file"):
        verify(VerifyConfig(directory=out, reencode=50), SILENT)
    moved = VerifyConfig(directory=out, reencode=50, images=(f"pictures={tmp_path / 'moved'}",))
    assert verify(moved, SILENT).problems == []
    (out / "run" / "job.json").unlink()
    with pytest.raises(UsageError):
        verify(VerifyConfig(directory=out, reencode=50), SILENT)


# ---- other sources


@pytest.mark.parametrize("kind", ["folder", "tar", "warc", "img2dataset"])
def test_interleaved_tables_name_pictures_by_url(run: Run, tmp_path: Path, kind: str) -> None:
    urls = [f"{FAR}/{n}.png" for n in range(4)]
    rows = {"images": [[u, None] for u in urls], "texts": [[None, f"Text {n}."] for n in range(4)]}
    (tmp_path / "docs").mkdir()
    write_parquet(tmp_path / "docs" / "d.parquet", rows)
    store = tmp_path / "store"
    if kind == "folder":
        (store / "pictures.example.net").mkdir(parents=True)
        for n in range(3):
            (store / "pictures.example.net" / f"{n}.png").write_bytes(far(n))
    elif kind == "tar":
        store.mkdir()
        (store / "p.tar").write_bytes(tar_bytes([(f"pictures.example.net/{n}.png", far(n)) for n in range(3)]))
    elif kind == "warc":
        store.mkdir()
        write(store / "p.warc.gz", [response(f"{FAR}/{n}.png", far(n), "image/png") for n in range(3)])
    else:
        downloaded(store, {f"{FAR}/{n}.png": far(n) for n in range(3)})
    manifest = run(tmp_path / "docs", tmp_path / "out", images=[store]).manifest
    assert manifest.stores[0].kind == kind
    assert manifest.sources[0].images_from == {"store": 3}
    assert manifest.sources[0].reasons == {"item/failed_upstream/not-in-store": 1}
    assert [said(tmp_path / "out", n) for n in range(4)] == [
        *([hash_of(far(n)), f"Text {n}."] for n in range(3)),
        ["Text 3."],
    ]


def test_paths_and_what_lies_beside_the_corpus_goes_first(run: Run, tmp_path: Path) -> None:
    docs, store = tmp_path / "docs", tmp_path / "store"
    docs.mkdir()
    (store / "images").mkdir(parents=True)
    (docs / "images").mkdir()
    names = ["images/a.png", "images/b.png", "../secret.png", "images/c.png"]
    (docs / "images" / "a.png").write_bytes(far(0))
    (store / "images" / "a.png").write_bytes(far(9))
    (store / "images" / "b.png").write_bytes(far(1))
    (tmp_path / "secret.png").write_bytes(far(2))
    write_parquet(docs / "d.parquet", {"images": [[n, None] for n in names], "texts": [[None, "t"]] * 4})
    source = run(docs, tmp_path / "out", images=[store]).manifest.sources[0]
    assert source.images_from == {"store": 1}
    assert source.reasons == {"item/failed_upstream/not-in-store": 1, "item/rejected/path-outside-source": 1}
    assert [said(tmp_path / "out", n) for n in range(4)] == [[hash_of(far(0)), "t"], [hash_of(far(1)), "t"], ["t"], ["t"]]


def test_mmc4_llava_and_tables_of_pairs(run: Run, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    info = [{"image_name": f"{n}.png", "raw_url": f"{FAR}/{n}.png", "matched_text_index": 0} for n in range(3)]
    (docs / "m.jsonl").write_text(json.dumps({"text_list": ["s"], "image_info": info, "url": "u"}) + "\n")
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "This."}]
    (docs / "l.json").write_text(json.dumps([{"id": "1", "image": f"{n}.png", "conversations": turns} for n in (1, 2)]))
    pairs = pa.array([{"bytes": None, "path": f"{n}.png"} for n in (1, 2)], KIND)
    pq.write_table(pa.table({"image": pairs, "caption": ["x", "y"]}), docs / "p.parquet")
    (tmp_path / "names").mkdir()
    (tmp_path / "names" / "1.png").write_bytes(far(1))
    urls = downloaded(tmp_path / "urls", {f"{FAR}/0.png": far(0)})
    manifest = run(docs, tmp_path / "out", images=[urls, tmp_path / "names"]).manifest
    by_format = {source.format: source for source in manifest.sources}
    assert by_format["mmc4"].images_from == {"names": 1, "urls": 1}
    assert by_format["mmc4"].items == {"image": {"committed": 2, "failed_upstream": 1}}
    for name in ("llava", "hf_parquet"):
        assert by_format[name].images_from == {"names": 1}
        assert by_format[name].documents == {"committed": 1, "failed_upstream": 1}
        assert by_format[name].reasons["document/failed_upstream/not-in-store"] == 1


# ---- what becomes of a document whose picture is missing


def table(folder: Path) -> Path:
    """Documents: all there; one missing; one broken; two missing; one of only a picture; text."""
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.png").write_bytes(picture(1))
    (folder / "images" / "broken.png").write_bytes(picture(2)[:60])
    rows: list[list[str]] = [
        ["one", "<a>", "two"],
        ["one", "<gone>", "two", "<a>"],
        ["one", "<broken>", "two"],
        ["one", "<gone>", "<gone>", "two"],
        ["<gone>"],
        ["only text"],
    ]
    is_picture = [[part.startswith("<") for part in row] for row in rows]
    images = [
        [f"images/{p[1:-1]}.png" if i else None for p, i in zip(r, s, strict=True)]
        for r, s in zip(rows, is_picture, strict=True)
    ]
    texts = [[None if i else p for p, i in zip(r, s, strict=True)] for r, s in zip(rows, is_picture, strict=True)]
    strings = pa.list_(pa.string())
    write_parquet(folder / "d.parquet", {"images": pa.array(images, strings), "texts": pa.array(texts, strings)})
    return folder


A = hash_of(picture(1))


def test_documents_go_on_without_the_picture(run: Run, tmp_path: Path) -> None:
    result = run(table(tmp_path / "docs"), tmp_path / "out", text_joiner="|")
    assert [said(tmp_path / "out", n) for n in range(5)] == [
        ["one", A, "two"], ["one|two", A], ["one|two"], ["one|two"], ["only text"]
    ]  # fmt: skip
    assert result.manifest.sources[0].kept_markers == 0


def test_documents_with_a_missing_picture_are_dropped(run: Run, tmp_path: Path) -> None:
    source = run(table(tmp_path / "docs"), tmp_path / "out", missing_image="drop-document").manifest.sources[0]
    assert [said(tmp_path / "out", n) for n in range(2)] == [["one", A, "two"], ["only text"]]
    assert source.documents == {"committed": 2, "failed_upstream": 3, "rejected": 1}
    assert source.items == {"image": {"committed": 1, "failed_upstream": 5, "rejected": 1}}
    assert source.reasons == {
        "document/failed_upstream/image-not-found": 3,
        "document/rejected/image-truncated": 1,
        "item/failed_upstream/document-not-committed": 1,
        "item/failed_upstream/image-not-found": 4,
        "item/rejected/image-truncated": 1,
    }


@pytest.mark.parametrize("layout", ["plain", "rows", "grid"])
def test_the_places_of_missing_pictures_are_kept(run: Run, tmp_path: Path, layout: str) -> None:
    options = {"missing_image": "keep-marker", "image_layout": layout, "pack": 64}
    result = run(table(tmp_path / "docs"), tmp_path / "out", **options)
    assert [said(tmp_path / "out", n) for n in range(5)] == [
        ["one", A, "two"],
        ["one", None, "two", A],
        ["one", None, "two"],
        ["one", None, None, "two"],
        ["only text"],
    ]
    source = result.manifest.sources[0]
    assert source.kept_markers == 4
    assert source.items == {"image": {"committed": 2, "failed_upstream": 4, "rejected": 1}}
    assert source.documents == {"committed": 5, "failed_upstream": 1}
    spans = DocumentDecoder(tmp_path / "out").shards["train"].row(1)["spans"]
    (gap,) = [span for span in spans if span["modality"] == "image" and not span["codebooks"]]  # type: ignore[attr-defined]
    assert (gap["length"], gap["loss"], gap["item_hash"], gap["grid_height"]) == (2, False, "", 0)


def test_kept_places_are_found_wanting_where_they_were_not_kept(run: Run, tmp_path: Path) -> None:
    """What the manifest says of gaps decides whether a picture without codes is right."""
    out = tmp_path / "out"
    run(table(tmp_path / "docs"), out, missing_image="keep-marker")
    entry = json.loads((out / "manifest.json").read_text())
    entry["layout"]["gaps"] = False
    (out / "manifest.json").write_text(json.dumps(entry))
    told = {problem.code.value for problem in verify(VerifyConfig(directory=out), SILENT).problems}
    assert {"span", "grammar"} <= {code.replace("_", "-") for code in told}


def test_a_document_with_a_kept_place_can_be_removed(run: Run, tmp_path: Path) -> None:
    run(table(tmp_path / "docs"), tmp_path / "out", missing_image="keep-marker")
    (tmp_path / "list").write_text("d.parquet:1\n")
    remove(RemoveConfig(directory=tmp_path / "out", out=tmp_path / "less", lists=(tmp_path / "list",)), SILENT)
    assert verify(VerifyConfig(directory=tmp_path / "less"), SILENT).problems == []
    manifest = json.loads((tmp_path / "less" / "manifest.json").read_text())
    assert manifest["sources"][0]["kept_markers"] == 3


@pytest.mark.parametrize("missing", ["drop-image", "drop-document", "keep-marker"])
def test_duplicates_of_documents_that_are_not_committed_are_kept(run: Run, tmp_path: Path, missing: str) -> None:
    """The first of two with the same text lacks a picture: where it is dropped, the second is no duplicate of it."""
    docs = tmp_path / "docs"
    (docs / "images").mkdir(parents=True)
    (docs / "images" / "broken.png").write_bytes(picture(2)[:60])
    (docs / "images" / "a.png").write_bytes(picture(1))
    texts = [[None, "the same text"], [None, "the same text"], [None, "the same text"]]
    images = [["images/gone.png", None], ["images/broken.png", None], ["images/a.png", None]]
    write_parquet(docs / "d.parquet", {"images": images, "texts": texts})
    source = run(docs, tmp_path / "out", dedup=["texts"], missing_image=missing).manifest.sources[0]
    if missing == "drop-document":
        assert source.documents == {"committed": 1, "failed_upstream": 1, "rejected": 1}
        assert said(tmp_path / "out", 0) == [A, "the same text"]
    else:
        assert source.documents == {"committed": 1, "duplicate": 2}


def test_duplicates_of_conversations_that_lack_a_picture_are_kept(run: Run, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "broken.png").write_bytes(picture(2)[:60])
    (docs / "a.png").write_bytes(picture(1))
    turns = [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": "This."}]
    entries = [{"id": str(n), "image": name, "conversations": turns} for n, name in enumerate(["broken.png", "a.png"])]
    (docs / "l.json").write_text(json.dumps(entries))
    source = run(docs, tmp_path / "out", dedup=["texts"]).manifest.sources[0]
    assert source.documents == {"committed": 1, "rejected": 1}


def test_without_an_image_tokenizer_there_are_no_markers(settings_of: Callable[..., ShardConfig], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without --image-tokenizer"):
        settings_of(tmp_path, tmp_path / "out", image_tokenizer=None, missing_image="keep-marker")


def test_the_command(capfd: pytest.CaptureFixture[str], tokenizers: tuple[Path, Path], archive: Path, tmp_path: Path) -> None:
    store = fetched([f"{FAR}/{n}.png" for n in range(PAGES)], tmp_path / "pictures", "tar")
    options = ["--text-tokenizer", tokenizers[0], "--image-tokenizer", tokenizers[1], "--workers", 0]
    options += ["--images", f"img2dataset:{store}", "--missing-image", "drop-document"]
    code, out, errors = command(capfd, "shard", archive, "--out", tmp_path / "out", *options)
    assert code == 0, errors
    assert "pictures (img2dataset)" in out
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["documents"]["failed_upstream"] == 1
    code, _, errors = command(capfd, "shard", archive, "--out", tmp_path / "b", *options, "--images", tmp_path / "no")
    assert code == 2
    assert "no such file or folder" in errors
    code, _, errors = command(capfd, "verify", tmp_path / "out", "--images", store)
    assert (code, "--images: only with --reencode" in errors) == (2, True)
