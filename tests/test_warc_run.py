"""Web archives through whole jobs: `tokkit shard` accounts for every record, `tokkit urls` lists what is missing."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from shard_corpus import snapshot, write_tokenizers
from sources_helpers import write_parquet
from test_cli import run as command
from test_sources_warc import SITE, crawl
from warc_helpers import page, response, write

from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.pipelines import url_list
from tokkit.pipelines.decoding import DecodedText, DocumentDecoder
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.url_list import write_list
from tokkit.pipelines.urls import UrlsConfig, UrlsResult, is_downloadable, list_urls
from tokkit.pipelines.verify import VerifyConfig, verify

pytest.importorskip("resiliparse")

SILENT = SilentProgress()


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_tokenizers(tmp_path_factory.mktemp("tokenizers"))


def run(tokenizers: tuple[Path, Path], archive: Path, out: Path, **options: object) -> ShardResult:
    text, image = tokenizers
    settings = {"inputs": [str(archive)], "out": out, "text_tokenizer": text, "image_tokenizer": image, "workers": 0}
    return shard(ShardConfig.model_validate(settings | {"batch_size": 4, "report_documents": 1} | options), SILENT)


# --- shard -----------------------------------------------------------------------------------------------------------


def test_every_record_is_accounted_for(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    extra = [
        response(f"{SITE}/gone", page("<p>Gone.</p>"), "text/html", 404),
        response(f"{SITE}/lacks", page("<p>Its picture is nowhere.</p><img src='/nowhere.png'>")),
    ]
    archive = write(tmp_path / "a.warc.gz", [*crawl(12), *extra])
    result = run(tokenizers, archive, tmp_path / "out", unit_bytes=3000)
    assert result.manifest.units > 2
    source = result.manifest.sources[0]
    assert source.documents == {"committed": 13, "filtered": 1}
    assert source.counted_documents == 14
    assert source.items == {"image": {"committed": 12, "failed_upstream": 1}}
    assert source.reasons == {"document/filtered/http-status-404": 1, "item/failed_upstream/not-downloaded": 1}
    assert source.counted_others == {"metadata": 12, "request": 12, "response": 24, "warcinfo": 1}
    assert "24 response" in (tmp_path / "out" / "report.html").read_text()
    verified = verify(VerifyConfig(directory=tmp_path / "out", reencode=5), SILENT)
    assert verified.problems == []
    again = json.loads((tmp_path / "out" / "manifest.json").read_text())
    again["sources"][0]["counted_others"]["request"] = 13
    (tmp_path / "out" / "manifest.json").write_text(json.dumps(again))
    assert "counted others" in " ".join(p.message for p in verify(VerifyConfig(directory=tmp_path / "out"), SILENT).problems)


def test_a_damaged_archive_gives_what_is_sound_in_it(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    archive = write(tmp_path / "a.warc.gz", crawl(6))
    data = bytearray(archive.read_bytes())
    data[len(data) // 2] ^= 0xFF
    archive.write_bytes(data[:-30])
    result = run(tokenizers, archive, tmp_path / "out")
    assert result.manifest.container_errors == 2
    assert 4 <= result.manifest.documents["committed"] <= 6
    assert verify(VerifyConfig(directory=tmp_path / "out"), SILENT).problems == []


@pytest.mark.slow
def test_workers_change_no_byte_and_alternative_text_is_another_run(tokenizers: tuple[Path, Path], tmp_path: Path) -> None:
    archive = write(tmp_path / "a.warc.gz", crawl(8))
    run(tokenizers, archive, tmp_path / "one", unit_bytes=3000)
    run(tokenizers, archive, tmp_path / "two", unit_bytes=3000, workers=2)
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")
    with pytest.raises(FingerprintMismatch, match="alt_text"):
        run(tokenizers, archive, tmp_path / "one", unit_bytes=3000, alt_text="after")
    told = run(tokenizers, archive, tmp_path / "three", alt_text="after")
    parts = DocumentDecoder(told.out).decode("train", 0).parts
    assert [part.text for part in parts if isinstance(part, DecodedText)] == [
        "Page 0 begins.",
        "No. 0\n\nIt ends.",
    ]
    assert verify(VerifyConfig(directory=told.out, reencode=3), SILENT).problems == []


# --- urls ------------------------------------------------------------------------------------------------------------


def urls(inputs: list[Path], out: Path, **options: object) -> tuple[UrlsResult, list[dict[str, str]]]:
    settings = {"inputs": [str(path) for path in inputs], "out": out, "workers": 0}
    result = list_urls(UrlsConfig.model_validate(settings | options), SILENT)
    return result, pq.read_table(out).to_pylist()


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """An archive and an OBELICS table that name some of the same missing pictures."""
    folder = tmp_path_factory.mktemp("urls")
    pages = [
        page(
            f"<p>Page {n}</p><img src='/there.png'><img src='/{n % 7}.jpg' alt='{'Seven' if n > 7 else ''}'><img src='http://[x'>"
        )
        for n in range(21)
    ]
    archive = [response(f"{SITE}/{n}.html", html) for n, html in enumerate(pages)]
    (folder / "web").mkdir()
    write(folder / "web" / "a.warc.gz", [*archive, response(f"{SITE}/there.png", b"picture", "image/png")])
    rows = {
        "images": [[f"{SITE}/0.jpg", None], [f"{SITE}/only.jpg", None], ["lost.jpg", None]],
        "texts": [[None, "a"], [None, "b"], [None, "c"]],
        "metadata": [json.dumps([{"alt_text": alt, "document_url": f"http://page/{alt}"}, None]) for alt in ("x", "y", "z")],
    }
    (folder / "table").mkdir()
    write_parquet(folder / "table" / "a.parquet", rows)
    return [folder / "web", folder / "table"]


def test_missing_pictures_are_listed_once_each(corpora: list[Path], tmp_path: Path) -> None:
    result, rows = urls(corpora, tmp_path / "urls.parquet")
    assert {row["url"] for row in rows} == {f"{SITE}/{n}.jpg" for n in range(7)} | {f"{SITE}/only.jpg"}
    assert len(rows) == result.urls == 8
    assert (result.documents, result.pictures, result.missing, result.nameless) == (24, 66, 23, 1)
    found = {row["url"]: row for row in rows}
    # the first page that names it, and the first caption that is not empty
    assert found[f"{SITE}/3.jpg"] == {"url": f"{SITE}/3.jpg", "caption": "Seven", "page_url": f"{SITE}/3.html"}
    assert found[f"{SITE}/only.jpg"] == {"url": f"{SITE}/only.jpg", "caption": "y", "page_url": "http://page/y"}
    assert [row["url"] for row in rows] != sorted(row["url"] for row in rows)


def test_the_list_depends_on_the_input_only(corpora: list[Path], tmp_path: Path) -> None:
    urls(corpora, tmp_path / "a.parquet")
    urls(corpora, tmp_path / "b.parquet", workers=2, unit_bytes=1000)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "b.parquet"]  # nothing in between is left


def test_memory_decides_only_how_rows_are_brought_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(2)
    rows = [(f"http://h/{rng.randrange(3000)}", rng.choice(("", f"c{n}")), f"http://p/{n}") for n in range(9000)]
    expected: dict[str, list[str]] = {}
    for url, caption, where in rows:
        known = expected.setdefault(url, ["", where])
        known[0] = known[0] or caption
    read = {}
    monkeypatch.setattr(url_list, "ROW_GROUP", 100)
    for memory in (1 << 30, 400_000, 5_000):
        folder = tmp_path / str(memory)
        folder.mkdir()
        files = [folder / f"unit-{n}.jsonl" for n in range(3)]
        for n, path in enumerate(files):
            path.write_text("".join(json.dumps(row) + "\n" for row in rows[3000 * n : 3000 * n + 3000]))
        out, ticks, largest = folder / "out.parquet", [], []
        merged = url_list._merged

        def watched(paths, merged=merged, largest=largest):
            largest.append(sum(path.stat().st_size for path in paths))
            return merged(paths)

        monkeypatch.setattr(url_list, "_merged", watched)
        count = write_list(files, out, folder, memory, ticks.append)
        monkeypatch.setattr(url_list, "_merged", merged)
        assert count == sum(ticks) == len(expected)
        assert max(largest) * url_list._BYTES_PER_BYTE <= memory
        read[memory] = out.read_bytes()
        assert {row["url"]: [row["caption"], row["page_url"]] for row in pq.read_table(out).to_pylist()} == expected
    assert len(set(read.values())) == 1


def test_damage_is_told_and_what_is_left_is_listed(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.warc.gz", [response(f"{SITE}/{n}", page(f"<p>x</p><img src='{n}.png'>")) for n in range(4)])
    archive.write_bytes(archive.read_bytes()[:-10])
    result, rows = urls([archive], tmp_path / "out.parquet")
    assert (result.damaged, result.urls, len(rows)) == (1, 3, 3)


def test_a_corpus_that_lacks_nothing_gives_an_empty_list(tmp_path: Path) -> None:
    result, rows = urls([write(tmp_path / "a.warc", crawl(2), "plain")], tmp_path / "out.parquet")
    assert (result.urls, rows) == (0, [])
    assert pq.read_schema(tmp_path / "out.parquet").names == ["url", "caption", "page_url"]


@pytest.mark.parametrize(
    ("reference", "good"),
    [
        ("http://h/x", True),
        ("HTTPS://h.org/x y", True),
        ("ftp://h/x", False),
        ("data:image/png;base64,xx", False),
        ("x/y.png", False),
        ("http:///x", False),
        ("http://[x", False),
        ("http://h/" + "x" * 3000, False),
    ],
)
def test_what_can_be_downloaded(reference: str, good: bool) -> None:
    assert is_downloadable(reference) is good


def test_the_command(capfd: pytest.CaptureFixture[str], corpora: list[Path], tmp_path: Path) -> None:
    code, out, errors = command(capfd, "urls", *corpora, "--out", tmp_path / "u.parquet", "--workers", 0, "--json")
    assert code == 0, errors
    assert json.loads(out)["urls"] == 8
    code, out, _ = command(capfd, "urls", corpora[0], "--out", tmp_path / "u.parquet", "--workers", 0)
    assert "7 URLs of 21 missing pictures" in out
    code, _, errors = command(capfd, "urls", corpora[0], "--out", tmp_path / "no" / "u.parquet")
    assert code == 2
    assert "cannot be written to" in errors
    with pytest.raises(UsageError):
        list_urls(UrlsConfig(inputs=[str(corpora[0])], out=tmp_path), SILENT)
