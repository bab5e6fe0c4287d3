"""Web archives: which records are documents, pictures, layouts, cuts; against fastwarc and a scanner of the tests' own."""

from __future__ import annotations

import gzip
import random
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from sources_helpers import assert_same_for_all_cuts, read_all, source_of
from warc_helpers import DATE, arc, digest, http, page, png, read, record, response, scan, stored, write

from tokkit.documents import Document, Image, Outcome, Text
from tokkit.sources.base import SourceOptions
from tokkit.sources.recognise import recognise
from tokkit.sources.resolve import resolve_inputs
from tokkit.sources.warc import views

pytest.importorskip("resiliparse")

SITE = "https://example.org"


def said(document: Document) -> list[str]:
    """Texts as they are, pictures by their names."""
    return [part.text if isinstance(part, Text) else f"<{part.ref.rpartition('/')[2]}>" for part in document.segments]


def crawl(pages: int = 6, filler: int = 0) -> list[bytes]:
    """Records as a crawler writes them: pages with a picture each, requests, metadata, styles."""
    rng = random.Random(1)
    made = [record("warcinfo", "", b"software: test\r\n", "application/warc-fields")]
    for number in range(pages):
        url = f"{SITE}/{number}.html"
        padding = "".join(rng.choices("abcdefgh ", k=filler))
        made += [
            record("request", url, b"GET / HTTP/1.1\r\n\r\n", "application/http; msgtype=request"),
            response(
                url, page(f"<p>Page {number} begins.</p><img src='/{number}.png' alt='No. {number}'><p>It ends. {padding}</p>")
            ),
            record("metadata", url, b"fetchTimeMs: 1\r\n", "application/warc-fields"),
            response(f"{SITE}/{number}.png", png(colour=number), "image/png"),
            response(f"{SITE}/{number}.css", "p {}", "text/css"),
        ]
    return made


# --- records and documents -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_a_crawl_is_read_alike_however_it_is_compressed(tmp_path: Path, layout: str) -> None:
    found = read(write(tmp_path / "a.warc", crawl(), layout))
    assert found.damage == []
    assert [said(d) for d in found.documents] == [[f"Page {n} begins.", f"<{n}.png>", "It ends."] for n in range(6)]
    assert [d.media[0].data for d in found.documents] == [png(colour=n) for n in range(6)]
    assert [d.media[0].alt for d in found.documents] == [f"No. {n}" for n in range(6)]
    assert_census_agrees_on_documents(found)
    first = found.documents[0]
    assert first.id == first.metadata["record_id"] != first.locator
    assert first.metadata == {
        "url": f"{SITE}/0.html",
        "date": DATE,
        "record_id": first.id,
        "content_type": "text/html",
        "charset": "utf-8",
        "title": "T",
    }


def assert_census_agrees_on_documents(found) -> None:
    assert found.counted == len(found.documents)
    assert not found.counted_items  # pictures are not counted: that would take parsing


def test_what_is_no_document_is_counted_apart(tmp_path: Path) -> None:
    source = source_of("warc", write(tmp_path / "a.warc.gz", crawl(4)))
    census = source.census(next(source.units(1 << 40)))
    assert census.documents == 4
    assert census.others == {"metadata": 4, "request": 4, "response": 8, "warcinfo": 1}


def test_counting_gives_signs_of_life(tmp_path: Path) -> None:
    big = response(f"{SITE}/film", bytes(5 << 20), "video/mp4")
    for layout in ("plain", "members", "stream"):
        source = source_of("warc", write(tmp_path / layout, [*crawl(1), big, *crawl(2)[6:]], layout))
        signs: list[int] = []
        assert source.census(next(source.units(1 << 40)), lambda signs=signs: signs.append(1)).documents == 2
        assert len(signs) >= 5


def test_every_page_has_an_outcome(tmp_path: Path) -> None:
    text = page("<p>Words.</p>")
    cases = {
        "good": response(f"{SITE}/good", text),
        "xhtml": response(f"{SITE}/xhtml", text, "application/xhtml+xml"),
        "no-type": response(f"{SITE}/no-type", text, None),
        "resource": record("resource", f"{SITE}/resource", text.encode(), "text/html"),
        "http-status-404": response(f"{SITE}/404", text, status=404),
        "http-status-302": response(f"{SITE}/302", text, "text/html", 302, ("Location", "/good")),
        "http-status-206": response(f"{SITE}/206", text, status=206),
        "empty-payload": response(f"{SITE}/empty", " \n"),
        "not-html": response(f"{SITE}/picture", png(), "text/html"),
        "not-html ": response(f"{SITE}/unknown", b"just words", None),
        "no-main-content": response(f"{SITE}/nav", page("<nav><a href='/'>Home</a></nav>")),
        "http-invalid": record("response", f"{SITE}/x", b"<html>no http", "application/http; msgtype=response"),
    }
    found = read(write(tmp_path / "a.warc.gz", cases.values()))
    outcome = {name: d.failure for name, d in zip(cases, found.documents, strict=True)}
    assert {name for name, failure in outcome.items() if failure is None} == {"good", "xhtml", "no-type", "resource"}
    wrong = {name: failure for name, failure in outcome.items() if failure is not None}
    assert {name: failure.reason for name, failure in wrong.items()} == {name: name.strip() for name in wrong}
    rejected = {name for name, failure in wrong.items() if failure.outcome == Outcome.REJECTED}
    assert rejected == {"http-invalid"}
    assert {failure.outcome for name, failure in wrong.items() if name not in rejected} == {Outcome.FILTERED}
    assert_census_agrees_on_documents(found)


def test_texts_of_conversion_records(tmp_path: Path) -> None:
    records = [
        record("warcinfo", "", b"x: y\r\n", "application/warc-fields"),
        record("conversion", f"{SITE}/a", "Grüße\n".encode(), "text/plain", ("WARC-Identified-Content-Language", "deu,eng")),
        record("conversion", f"{SITE}/b", b"\xff\xfe", "text/plain"),
        record("conversion", f"{SITE}/c", b"", "text/plain"),
        record("conversion", f"{SITE}/d", png(), "image/png"),
        response(f"{SITE}/e", page("<p>A page.</p>")),
    ]
    path = write(tmp_path / "a.warc.wet.gz", records)
    assert recognise(path).format == "wet"
    found = read(path, kind="wet")
    assert [said(d) for d in found.good] == [["Grüße\n"]]
    assert found.good[0].metadata["languages"] == ["deu", "eng"]
    assert sorted(found.failures.values()) == ["empty-payload", "text-not-utf8"]
    assert_census_agrees_on_documents(found)
    both = read(path, kind="warc")
    assert [said(d) for d in both.good] == [["Grüße\n"], ["A page."]]
    assert_census_agrees_on_documents(both)


def test_arc_files(tmp_path: Path) -> None:
    records = arc(
        [
            (f"{SITE}/a b.html", "text/html", http(page("<p>One.</p><img src='/p.png'>").encode(), "text/html")),
            (f"{SITE}/p.png", "image/png", http(png(), "image/png")),
            ("dns:example.org", "text/dns", b"20140216050221\nexample.org. 1 IN A 1.2.3.4\n"),
            (f"{SITE}/old", "text/html", b"<html><p>Before there were headers.</p></html>"),
            (f"{SITE}/gone", "text/html", http(b"<p>x", "text/html", 404)),
        ]
    )
    for layout in ("plain", "members", "stream"):
        path = write(tmp_path / f"{layout}.arc", records, layout)
        assert recognise(path).format == "warc"
        found = read(path)
        assert found.damage == []
        assert [said(d) for d in found.good] == [["One.", "<p.png>"], ["Before there were headers."]]
        assert found.good[0].media[0].data == png()
        assert found.good[0].metadata["date"] == "2014-02-16T05:02:21Z"
        assert found.reasons == {"http-status-404": 1}
        assert_census_agrees_on_documents(found)


def test_alternative_text_is_text_only_where_it_is_asked_for(tmp_path: Path) -> None:
    body = "<p>Before.</p><img src=a.png alt='A cat.'><p>A cat. It sleeps.</p><img src=b.png alt='A dog.'><p>After.</p>"
    path = write(tmp_path / "a.warc", [response(f"{SITE}/x", page(body))], "plain")
    shown = {}
    for where in ("none", "before", "after"):
        resolved = resolve_inputs([str(path)], SourceOptions(alt_text=where))
        shown[where] = said(read_all(resolved.sources[0]).documents[0])
    assert shown["none"] == ["Before.", "<a.png>", "A cat. It sleeps.", "<b.png>", "After."]
    assert shown["before"] == ["Before.", "<a.png>", "A cat. It sleeps.", "A dog.", "<b.png>", "After."]
    assert shown["after"] == ["Before.", "<a.png>", "A cat. It sleeps.", "<b.png>", "A dog.", "After."]


# --- names -----------------------------------------------------------------------------------------------------------


def test_recognition_by_name_and_by_prefix(tmp_path: Path) -> None:
    for name in ("a.warc", "b.warc.gz", "c.arc", "d.ARC.GZ"):
        write(tmp_path / name, crawl(1), "plain")
    for name in ("e.warc.wet.gz", "f.wet.gz", "g.wet"):
        write(tmp_path / name, [record("conversion", SITE, b"x", "text/plain")])
    write(tmp_path / "h.warc.wat.gz", [record("metadata", SITE, b"{}", "application/json")])
    write(tmp_path / "i.archive", crawl(1))
    found = resolve_inputs([str(tmp_path)])
    files = {source.format: [file.name for file in source.files] for source in found.sources}
    assert files == {"warc": ["a.warc", "b.warc.gz", "c.arc", "d.ARC.GZ"], "wet": ["e.warc.wet.gz", "f.wet.gz", "g.wet"]}
    assert {Path(i.path).name: i.why.partition(":")[0] for i in found.ignored} == {
        "h.warc.wat.gz": "a WAT file",
        "i.archive": "no known format has files with this ending",
    }
    named = resolve_inputs([f"warc:{tmp_path / 'i.archive'}", f"wet:{tmp_path / 'a.warc'}"])
    assert [(s.format, len(read_all(s).documents)) for s in named.sources] == [("warc", 1), ("wet", 0)]


def test_what_to_install_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from tokkit.errors import TokkitError

    path = write(tmp_path / "a.warc", crawl(1), "plain")
    monkeypatch.setitem(sys.modules, "resiliparse.parse.html", None)
    with pytest.raises(TokkitError, match=r"tokkit\[warc\]"):
        resolve_inputs([str(path)])


# --- pictures --------------------------------------------------------------------------------------------------------


def revisit(url: str, *fields: tuple[str, str]) -> bytes:
    profile = ("WARC-Profile", "http://netpreserve.org/warc/1.0/revisit/identical-payload-digest")
    return record("revisit", url, http(b"", "image/png"), "application/http; msgtype=response", profile, *fields)


def test_where_pictures_are_found(tmp_path: Path) -> None:
    pictures = [png(colour=n) for n in range(8)]
    body = "".join(
        f"<img src='{name}'>" for name in ("plain", "moved", "twice", "seen", "same", "other", "none", "loop", "gone")
    )
    records = [
        response(f"{SITE}/d/page", page(f"<base href='{SITE}/i/'>{body}<img src='HTTPS://EXAMPLE.org:443/i/plain#x'>")),
        response(f"{SITE}/i/plain", pictures[0], "image/png"),
        response(f"{SITE}/i/moved", b"", "text/html", 301, ("Location", "there")),
        response(f"{SITE}/i/there", pictures[1], "image/png"),
        response(f"{SITE}/i/twice", b"broken", "image/png", 500),
        response(f"{SITE}/i/twice", pictures[2], "image/png"),
        response(f"{SITE}/i/twice", pictures[7], "image/png"),
        revisit(f"{SITE}/i/seen", ("WARC-Refers-To-Target-URI", f"{SITE}/old/seen"), ("WARC-Refers-To-Date", DATE)),
        response(f"{SITE}/old/seen", pictures[3], "image/png"),
        revisit(f"{SITE}/i/same", ("WARC-Payload-Digest", digest(pictures[4]))),
        response(f"{SITE}/elsewhere", pictures[4], "image/png"),
        revisit(f"{SITE}/i/other", ("WARC-Refers-To-Target-URI", f"{SITE}/x"), ("WARC-Refers-To-Date", DATE)),
        response(f"{SITE}/i/loop", b"", None, 302, ("Location", "loop2")),
        response(f"{SITE}/i/loop2", b"", None, 302, ("Location", "loop")),
    ]
    expected = [pictures[0], pictures[1], pictures[2], pictures[3], pictures[4], None, None, None, None, pictures[0]]
    for layout in ("plain", "members", "stream"):
        found = read(write(tmp_path / layout, records, layout)).good[0]
        assert [item.data for item in found.media] == expected
        failures = [item.failure for item in found.media if item.failure is not None]
        assert {(f.outcome, f.reason) for f in failures} == {(Outcome.FAILED_UPSTREAM, "not-downloaded")}
        assert "a revisit of a capture that is not in" in failures[0].message
        assert "lead nowhere" in failures[2].message


def test_a_missing_picture_is_what_it_is_in_obelics(tmp_path: Path) -> None:
    from sources_helpers import write_parquet

    archive = read(write(tmp_path / "a.warc", [response(SITE, page("<p>x</p><img src='/gone.png'>"))], "plain"))
    table = read_all(
        source_of("obelics", write_parquet(tmp_path / "a.parquet", {"images": [[f"{SITE}/gone.png"]], "texts": [[None]]}))
    )
    mine, theirs = archive.good[0].media[0], table.good[0].media[0]
    assert (mine.ref, mine.failure.outcome, mine.failure.reason) == (theirs.ref, theirs.failure.outcome, theirs.failure.reason)


def test_urls_are_the_same_however_they_are_spelled(tmp_path: Path) -> None:
    names = [
        "/b\u00fccher/\u00e9 t.png?q=\u00fc",
        "/%c3%a9.png",
        "HTTP://Example.ORG:80/plain.png",
        "http://b\u00fccher.example/x.png",
    ]
    kept = [f"{SITE}/b%C3%BCcher/%C3%A9%20t.png?q=%C3%BC", f"{SITE}/\u00e9.png", "https://example.org/plain.png"]
    kept.append("http://xn--bcher-kva.example/x.png")
    pictures = [response(url, png(colour=n), "image/png") for n, url in enumerate(kept)]
    body = "".join(f'<img src="{name}">' for name in names)
    found = read(write(tmp_path / "a.warc.gz", [response(f"{SITE}/", page(body)), *pictures])).good[0]
    assert [item.data for item in found.media] == [png(colour=n) for n in range(4)]
    assert all(item.ref.isascii() for item in found.media)


def test_a_revisit_is_not_taken_for_another_capture(tmp_path: Path) -> None:
    """The archive has the URL that it refers to, but of another day and with other bytes."""
    other = ("WARC-Refers-To-Target-URI", f"{SITE}/q.png")
    for more in (("WARC-Refers-To-Date", "1999-01-01T00:00:00Z"), ("WARC-Payload-Digest", digest(b"other"))):
        records = [
            response(f"{SITE}/page", page("<p>x</p><img src='/p.png'>")),
            revisit(f"{SITE}/p.png", other, more),
            response(f"{SITE}/q.png", png(), "image/png"),
        ]
        found = read(write(tmp_path / "a.warc.gz", records)).good[0]
        assert found.media[0].failure.reason == "not-downloaded"


def test_picture_payloads_are_decoded_and_bounded(tmp_path: Path) -> None:
    picture = png(200, 200)
    zipped = ("Content-Encoding", "gzip")
    records = [
        response(f"{SITE}/page", page("<p>x</p><img src='/a'><img src='/b'><img src='/c'>")),
        response(f"{SITE}/a", gzip.compress(picture), "image/png", 200, zipped),
        response(f"{SITE}/b", gzip.compress(picture)[:-40], "image/png", 200, zipped),
        response(f"{SITE}/c", gzip.compress(bytes(300 << 20), 9), "image/png", 200, zipped),
    ]
    media = read(write(tmp_path / "a.warc.gz", records)).good[0].media
    assert media[0].data == picture
    assert [item.failure.reason for item in media[1:]] == ["payload-truncated", "image-too-large"]


def test_urls_whose_hashes_are_equal_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokkit.sources.warc.pictures as module

    monkeypatch.setattr(module, "_hash", lambda key: 7)
    found = read(write(tmp_path / "a.warc.gz", crawl(4)))
    assert [d.media[0].data for d in found.documents] == [png(colour=n) for n in range(4)]


# --- cuts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["plain", "members"])
def test_ranges_come_to_the_whole(tmp_path: Path, layout: str) -> None:
    source = source_of("warc", write(tmp_path / "a.warc", crawl(120, 8000), layout))
    size = source.files[0].size
    cuts = [1 << 17, (1 << 17) + 1, 200_001, size // 2, size - 1, 999_999]
    whole = assert_same_for_all_cuts(source, cuts)
    assert len(whole.documents) == 120
    assert max(read_all(source, cut, census=False).units for cut in cuts) >= 4
    for cut in cuts:
        units = list(source.units(cut))
        assert [unit.start for unit in units] == [0, *(unit.stop for unit in units[:-1])]
        assert units[-1].stop == size


def test_a_small_file_of_members_is_cut_only_where_the_rest_proves_it(tmp_path: Path) -> None:
    """A chain of members that reaches the end of the file is proof as well."""
    source = source_of("warc", write(tmp_path / "a.warc.gz", crawl(8)))
    assert len(list(source.units(1000))) > 3
    assert_same_for_all_cuts(source, [1, 500, 1000, 2000])


def test_a_file_that_is_one_stream_is_one_unit(tmp_path: Path) -> None:
    source = source_of("warc", write(tmp_path / "a.warc.gz", crawl(40), "stream"))
    assert len(list(source.units(100))) == 1


@pytest.mark.parametrize("layout", ["stored", "deflated"])
def test_an_archive_within_an_archive_is_never_cut_or_read(tmp_path: Path, layout: str) -> None:
    """A crawled .warc.gz lies in the outer file as it is: its members look like records, and are none of this archive."""
    inner = b"".join(gzip.compress(part, mtime=0) for part in crawl(300, 600))
    assert len(inner) > 3 * 65535
    pack = stored if layout == "stored" else lambda data: gzip.compress(data, 6, mtime=0)
    outer = [
        *map(gzip.compress, crawl(3)),
        pack(response(f"{SITE}/crawl.warc.gz", inner, "application/gzip")),
        *map(gzip.compress, crawl(3, 50)),
    ]
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join(outer))
    if layout == "stored":
        assert inner[:60000] in path.read_bytes()
    whole = assert_same_for_all_cuts(source_of("warc", path), [1000, 30_000, 70_000, 100_000, 140_000])
    assert whole.damage == []
    assert len(whole.documents) == 6


def test_a_plain_archive_within_an_archive(tmp_path: Path) -> None:
    inner = b"".join(crawl(50))
    records = [*crawl(3), response(f"{SITE}/x.warc", inner, "application/warc"), *crawl(3, 50)]
    for layout in ("plain", "members", "stream"):
        whole = assert_same_for_all_cuts(source_of("warc", write(tmp_path / layout, records, layout)), [500, 5000])
        assert len(whole.documents) == 6
        assert whole.damage == []


def test_several_records_in_one_member(tmp_path: Path) -> None:
    """As some writers do now and then; a file that begins like that is taken for one stream."""
    records = crawl(6)
    packed = [gzip.compress(part) for part in (*records[:4], b"".join(records[4:9]), *records[9:20], b"".join(records[20:]))]
    path = tmp_path / "a.warc.gz"
    for parts in (packed, packed[::-1][:1] + packed[:-1]):
        path.write_bytes(b"".join(parts))
        whole = assert_same_for_all_cuts(source_of("warc", path), [600, 2000])
        assert sorted(said(d)[0] for d in whole.documents) == [f"Page {n} begins." for n in range(6)]
        assert whole.damage == []
        assert whole.counted == 6


def test_any_bytes_of_a_stream_can_be_had_again_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(9)
    plain = b"".join(rng.randbytes(3) * rng.randrange(1, 400) for _ in range(16_000))
    assert len(plain) > 8 << 20
    edges = sorted(rng.sample(range(len(plain)), 3))
    packed = b"".join(gzip.compress(plain[a:b]) for a, b in pairwise([0, *edges, len(plain)]))
    path = tmp_path / "x.gz"
    path.write_bytes(b"before" + packed)
    monkeypatch.setattr(views, "_SPACING", 1 << 18)
    monkeypatch.setattr(views, "CHECKPOINTS", 10)
    with path.open("rb") as file:
        view = views.GzipView(file, 6, path.stat().st_size)
        for _ in range(300):
            offset, size = rng.randrange(len(plain) + 1000), rng.choice((0, 1, 100, 5000, 1 << 20, 5 << 20))
            assert view.at(offset, size) == plain[offset : offset + size]
            assert len(view._checkpoints) <= 10
            assert len(view._window) <= 4 << 20
            place = view.place(offset)
            assert 6 <= place <= view.place(offset, end=True) <= path.stat().st_size
        assert view.reaches(len(plain))
        assert not view.reaches(len(plain) + 1)
        assert view.damage is None
        starts = [entry[0] for entry in view._checkpoints]
        assert starts[-1] > len(plain) // 2


# --- real archives ---------------------------------------------------------------------------------------------------


def _kinds(path: Path) -> Counter[str]:
    """How many records should be documents, by a scanner and a rule of the test's own."""
    found: Counter[str] = Counter()
    for kind, _, status, content_type in scan(path):
        html = re.match(r"text/html|application/xhtml", content_type or "")
        undeclared = status is not None and content_type.startswith("application/http")
        if (kind in ("response", "resource") and html) or (kind == "response" and undeclared):
            found["page" if status in (None, 200) else f"http-status-{status}"] += 1
        elif kind == "conversion":
            found["text"] += 1
        else:
            found["other"] += 1
    return found


def test_real_archives_are_counted_as_two_other_scanners_count_them(shared_data: Path) -> None:
    fastwarc = pytest.importorskip("fastwarc.warc")
    seen = 0
    for path in sorted((shared_data / "warc").iterdir()):
        if ".arc" in path.name or ".wat" in path.name:
            continue
        source = source_of("wet" if ".wet" in path.name else "warc", path)
        found, scanned = read_all(source), _kinds(path)
        assert found.damage == []
        assert_census_agrees_on_documents(found)
        assert len(found.documents) == sum(scanned.values()) - scanned["other"], path.name
        by_status = {reason: count for reason, count in found.reasons.items() if reason.startswith("http-status")}
        assert by_status == {kind: count for kind, count in scanned.items() if kind.startswith("http-status")}, path.name
        others = source.census(next(source.units(1 << 40))).others
        with path.open("rb") as file:
            listed = Counter(str(r.record_type).rpartition(".")[2] for r in fastwarc.ArchiveIterator(file, parse_http=False))
        assert sum(listed.values()) == len(found.documents) + sum(others.values()), path.name
        for kind in ("request", "metadata", "revisit", "warcinfo"):
            assert listed[kind] == others.get(kind, 0), (path.name, kind)
        seen += len(found.documents)
    assert seen == 194


def test_real_archives_are_the_same_for_all_cuts(shared_data: Path) -> None:
    for name in ("iana-2014.warc.gz", "made-textbook.warc.gz", "warcio-example.warc"):
        source = source_of("warc", shared_data / "warc" / name)
        assert_same_for_all_cuts(source, [20_000, 150_001])
        assert len(list(source.units(2_000))) > 1


def test_real_pictures_are_the_payloads_that_the_archive_has_digests_of(shared_data: Path) -> None:
    """Against ``WARC-Payload-Digest``, which whoever wrote the archive computed."""
    path = shared_data / "warc" / "made-textbook.warc.gz"
    digests = {
        found[0]: found[1]
        for part in gzip.decompress(path.read_bytes()).split(b"WARC/1.0\r\n")
        if (found := re.findall(rb"(?:Target-URI|Payload-Digest): (\S+)", part)) and b"msgtype=response" in part
    }
    assert len(digests) == 45
    media = [item for d in read(path).good for item in d.media]
    assert len(media) == 35
    for item in media:
        assert digests[item.ref.encode()].decode() == digest(item.data or b"")


# Every paragraph of three pages by its first words, and every picture, in the order in which a person reads them. Captions
# follow their pictures; these pages repeat each caption as a paragraph. Navigation and footer are not part of the text.
LABELS = {
    "m59915": """
Thinking Ahead
<OSC_Astro_21_00_CarinaNeb.jpg>
We see a close-up
We see a close-up
There are countless suns
Bruno was tried for
We’ve discussed stars as
Do planets orbit other
""",
    "m59826": """
Earth’s Crust
Learning Objectives
By the end of
- Denote the primary
- Explain the theory
- Describe the difference
- Describe the relationship
- Explain the various
Let us now examine
Composition of the Crust
Earth’s crust is largely
<OSC_Astro_08_02_Igneous.jpg>
This is a lava
This is a lava
Two other kinds of
There is a fourth
A block of quartzite
Plate Tectonics
Geology is the study
Plate tectonics is an
Earth’s crust and upper
<OSC_Astro_08_02_Plates.jpg>
This map shows the
This map shows the
The US Geological Survey
As the plates slowly
Alfred Wegener: Catching
When studying maps or
<OSC_Astro_08_02_Wegner.jpg>
Wegener proposed a
Wegener proposed a
Born in Berlin
Wegener first conceived
Wegener’s suggestion was
Wegener was disappointed
Critics of science
See how the drift
Rift and Subduction
Plates pull apart
<OSC_Astro_08_02_RiftZone.jpg>
Rift and subduction zones are
Rift and subduction zones are
From a knowledge
As new crust is
All along the subduction
Fault Zones and Mountain
Along much of
One of the most
<OSC_Astro_08_02_Andreas.jpg>
We see part of
We see part of
Unfortunately for us
For example, the part
Fault Zones and Plate
Solution The speed
Check Your Learning
Answer:
The difference in time
When two continental
Once a mountain range
<OSC_Astro_08_02_Mountains.jpg>
The Torres del
The Torres del
Volcanoes
Volcanoes mark locations
Other volcanic activity
Not all volcanic
Key Concepts and
Terrestrial rocks can
""",
    "m59887": """
The Solar Interior
Learning Objectives
By the end of
- Describe the state
- Understand the energy
- Explain how energy
- Describe the structure
Fusion of protons
The computer program
The Sun Is a
The Sun is so
<OSC_Astro_16_03_Gas.jpg>
The particles in
The particles in
More particles within
The Sun Is Stable
The Sun, like the
The mutual gravitational
<OSC_Astro_16_03_Hydro.jpg>
In the interior of
In the interior of
The Sun maintains its
The Sun Is Not
As everyone who
The outward flow
Heat Transfer in
Since the nuclear
Stellar convection occurs
<OSC_Astro_16_03_Rising.jpg>
Rising convection currents
Rising convection currents
Unless convection occurs
A particular quantity
<OSC_Astro_16_03_Photon.jpg>
A photon moving
A photon moving
<OSC_Astro_16_03_Path.jpg>
(a) Because photons
(a) Because photons
See this simulation
Heat Transfer and
The three ways
Conduction is heat
Convection is heat
Radiation is the
Model Stars
Scientists use the
schematically illustrates the
<OSC_Astro_16_03_Interior.jpg>
Energy is generated
Energy is generated
shows how the temperature
<OSC_Astro_16_03_Scale.jpg>
Diagrams showing how
Diagrams showing how
Key Concepts and
Even though we
""",
}


def test_reading_order_of_three_pages_labelled_by_hand(shared_data: Path) -> None:
    found = {
        d.metadata["url"].rpartition("/")[2].removesuffix(".html"): d
        for d in read(shared_data / "warc" / "made-textbook.warc.gz").good
    }
    for name, listed in LABELS.items():
        labels = listed.strip().split("\n")
        blocks = [block for part in said(found[name]) for block in part.split("\n\n")]
        assert len(blocks) == len(labels), name
        assert [block[: len(label)] for block, label in zip(blocks, labels, strict=True)] == labels


def test_every_picture_of_the_textbook_stands_where_its_page_has_it(shared_data: Path) -> None:
    """What is left of the page's source before a picture and behind it is what the document says there."""
    path = shared_data / "warc" / "made-textbook.warc.gz"
    sources = {}
    for part in gzip.decompress(path.read_bytes()).split(b"WARC/1.0\r\n"):
        if b"Content-Type: text/html" in part:
            url = re.search(rb"Target-URI: (\S+)", part)[1].decode()
            sources[url] = re.search(rb"<main>(.*)</main>", part, re.DOTALL)[1].decode()
    places = 0
    for document in read(path).good:
        source = sources[document.metadata["url"]]
        bare = [re.sub(r"<[^>]+>", " ", piece) for piece in re.split(r"<img src=\"[^\"]*\"[^>]*>", source)]
        import html

        expected = ["".join(html.unescape(piece).split()) for piece in bare]
        got, pictures = [""], []
        for part in document.segments:
            if isinstance(part, Image):
                pictures.append(part)
                got.append("")
            else:
                got[-1] += "".join(part.text.split())
        assert got == expected
        assert [item.ref.rpartition("/")[2] for item in pictures] == re.findall(r"<img src=\"/media/([^\"]+)\"", source)
        assert all(item.data for item in pictures)
        places += len(pictures)
    assert places == 35


def test_real_charsets(shared_data: Path) -> None:
    found = read(shared_data / "warc" / "cc-main-2020-mixed-charsets.warc.gz")
    assert [d.metadata["charset"] for d in found.good] == ["cp1251", "cp1252", "cp1252", "gb18030", "utf-8"]
    texts = ["".join(said(d)) for d in found.good]
    for text, words in zip(
        texts,
        ("пожарной безопасности", "Aktuelles Jahr", "Aktuelles Jahr", "中山英才网热线", "Hovenier in Oosterbeek"),
        strict=True,
    ):
        assert words in text
    assert not any("\ufffd" in text for text in texts)
