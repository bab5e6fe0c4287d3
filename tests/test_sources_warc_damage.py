"""Damaged web archives: everything before a damage and behind it is read, and the damage is told with its bytes."""

from __future__ import annotations

import gzip
import random
import zlib
from pathlib import Path

import pytest
from sources_helpers import Result, assert_same_for_all_cuts, source_of
from test_sources_warc import SITE, crawl
from warc_helpers import arc, http, page, png, read, record, response, write

from tokkit.documents import Document
from tokkit.sources.warc import census, views
from tokkit.sources.warc import members as members_module

pytest.importorskip("resiliparse")


def kinds(found: Result) -> list[tuple[int, int, str]]:
    return [(d.start, d.stop, d.reason) for d in found.damage]


def members(records: list[bytes]) -> list[bytes]:
    return [gzip.compress(part, 6, mtime=0) for part in records]


def numbers(found: Result) -> list[int]:
    """Which pages of :func:`crawl` were read, whole."""
    for item in (item for document in found.good for item in document.media):
        assert item.data is not None or item.failure.reason == "not-downloaded"
    return [int(str(d.metadata["url"]).rpartition("/")[2].removesuffix(".html")) for d in found.good]


# --- the broken files beside the real ones ---------------------------------------------------------------------------

# From MANIFEST.jsonl and from the bytes themselves (offsets of gzip members and of record headers), written down before any
# of them was read: documents, failures of documents by reason, and the stretches that are no records.
EXPECTED: dict[str, tuple[int, dict[str, int], list[tuple[int, int, str]]]] = {
    # "first response claims 5000 bytes more than it has": the response at 1197; the next record begins at 2567.
    "content_length_too_big.warc": (0, {}, [(1197, 2567, "warc-wrong-length")]),
    # "cut in the middle of a record": the member at 83293 has no end. Before it one of the responses is HTML.
    "cut_in_middle.warc.gz": (1, {}, [(83293, 180000, "gzip-truncated")]),
    # "HTML named .warc.gz"
    "html_named.warc.gz": (0, {}, [(0, 1635, "warc-invalid-header")]),
    # "junk between gzip members": bytes 3816 to 4016; before it one HTML response, behind it three of JSON.
    "junk_between_members.warc.gz": (1, {}, [(3816, 4016, "gzip-trailing-garbage")]),
    # All records in one gzip member, which other readers refuse: nothing is damaged. One HTML response of two is a 302.
    "warcio-example-bad.warc.gz.bad": (2, {"http-status-302": 1}, []),
    "warcio-example-bad-non-chunked.warc.gz": (1, {}, []),
    # The response at 1197 claims 973 bytes, where the same record in warcio-example.warc has 975; the next begins at 2566.
    "warcio-example-trunc.warc": (0, {}, [(1197, 2566, "warc-wrong-length")]),
    # "empty file"
    "zero_bytes.warc.gz": (0, {}, [(0, 0, "warc-empty")]),
}


def test_every_broken_file_comes_to_what_its_manifest_says(shared_data: Path) -> None:
    folder = shared_data / "bad" / "warc"
    assert {path.name for path in folder.iterdir()} == set(EXPECTED)
    for name, (documents, failures, damage) in EXPECTED.items():
        found = read(folder / name)
        assert (len(found.documents), dict(found.reasons), kinds(found)) == (documents, failures, damage), name
        assert found.counted in (None, documents), name
        assert (found.counted is None) == bool(damage), name


# --- cut short -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_wherever_an_archive_is_cut_short_it_is_told(tmp_path: Path, layout: str) -> None:
    """Cut anywhere but between two records: those before the cut, and a damage from the record that is cut to the end."""
    records = crawl(3)
    whole = write(tmp_path / "whole", records, layout).read_bytes()
    parts = members(records) if layout == "members" else records
    edges = [0]
    for part in parts:
        edges.append(edges[-1] + len(part))
    path = tmp_path / "cut.warc"
    rng = random.Random(3)
    for size in sorted({*rng.sample(range(1, len(whole)), 60), len(whole) - 1, len(whole) - 3, 1, 2, 5}):
        path.write_bytes(whole[:size])
        found = read(path)
        if layout == "stream":
            assert found.damage[-1].stop == size
            assert found.damage[-1].reason in ("gzip-truncated", "warc-invalid-header")
            assert numbers(found) == [0, 1, 2][: len(found.good)]
            continue
        begun = max(edge for edge in edges if edge <= size)
        before = sum(
            b"WARC-Type: response" in part and b"text/html" in part
            for part, edge in zip(records, edges, strict=False)
            if edge < begun
        )
        if size in edges:
            assert found.damage == []
        elif layout == "plain" and any(0 < edge - size < 4 for edge in edges):
            # Only line ends are missing: the record is whole, and the end is told. Of the first, not even that can be known.
            assert found.damage[-1].stop == size
            before = len(found.good)
        else:
            assert len(found.damage) == 1
            assert (found.damage[0].start, found.damage[0].stop) == (begun, size)
        assert numbers(found) == [0, 1, 2][:before]
        assert found.damage == [] or found.counted is None or layout == "plain"


def test_an_archive_that_lacks_its_last_line_ends_is_told_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.warc"
    path.write_bytes(response(f"{SITE}/0.html", page("<p>x</p><img src=0.png>")).removesuffix(b"\r\n\r\n"))
    found = read(path)
    assert numbers(found) == [0]
    assert kinds(found) == [(path.stat().st_size, path.stat().st_size, "warc-no-end")]


@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_an_archive_that_has_become_shorter_since_it_was_cut_comes_to_an_end(tmp_path: Path, layout: str) -> None:
    """The run will stop over it (the file has changed); reading must only not go on for ever."""
    path = write(tmp_path / "a.warc", crawl(4), layout)
    source = source_of("warc", path)
    units = list(source.units(500))
    path.write_bytes(path.read_bytes()[:700])
    for unit in units:
        assert len(list(source.read(unit))) < 20
        source.census(unit)


def test_zeros_behind_an_archive_are_padding(tmp_path: Path) -> None:
    for layout in ("members", "stream"):
        path = write(tmp_path / layout, crawl(2), layout)
        path.write_bytes(path.read_bytes() + bytes(100_000))
        found = read(path)
        assert found.damage == []
        assert found.counted == len(found.documents) == 2


# --- damaged in the middle -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "junk", [b"JUNK" * 50, b"\r\n\r\n\x00", b"WARC/1.0\r\n", b"\x1f\x8b\x08junk", b"HTTP/1.1 200 OK\r\n\r\n<html>"]
)
@pytest.mark.parametrize("layout", ["plain", "members"])
def test_garbage_between_records(tmp_path: Path, layout: str, junk: bytes) -> None:
    records = crawl(3)
    parts = members(records) if layout == "members" else records
    path = tmp_path / "a.warc"
    before = b"".join(parts[:6])
    path.write_bytes(before + junk + b"".join(parts[6:]))
    source = source_of("warc", path)
    found = assert_same_for_all_cuts(source, [400, 1000, 3000])
    assert numbers(found) == [0, 1, 2]
    if layout == "plain" and junk == b"\r\n\r\n\x00":
        before, junk = before + junk[:4], junk[4:]  # line ends between two records are none
    assert [(d.start, d.stop) for d in found.damage] == [(len(before), len(before) + len(junk))]


@pytest.mark.parametrize("difference", [-1, -30, 5, 7, 5000, 10**9, 10**15, 10**30])
@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_a_wrong_length_costs_that_record_only(tmp_path: Path, layout: str, difference: int) -> None:
    records = crawl(4)
    block = http(page("<p>wrong</p>").encode())
    url = f"{SITE}/9.html"
    wrong = record("response", url, block, "application/http; msgtype=response", length=len(block) + difference)
    path = write(tmp_path / "a.warc", [*records[:11], wrong, *records[11:]], layout)
    found = assert_same_for_all_cuts(source_of("warc", path), [700, 2000])
    assert numbers(found) == [0, 1, 2, 3]
    assert len(found.damage) == 1
    assert found.damage[0].reason in ("warc-wrong-length", "warc-invalid-header")
    if layout != "stream":
        parts = members([*records[:11], wrong]) if layout == "members" else [*records[:11], wrong]
        stop = sum(map(len, parts))
        assert (found.damage[0].start, found.damage[0].stop) == (stop - len(parts[-1]), stop)


@pytest.mark.parametrize("layout", ["plain", "members", "stream"])
def test_a_length_that_counts_the_closing_line_ends_costs_nothing(tmp_path: Path, layout: str) -> None:
    """As careless writers do."""
    block = http(page("<p>right</p>").encode())
    for more in (1, 2, 4):
        claimed = len(block) + more
        careless = record("response", f"{SITE}/9.html", block, "application/http; msgtype=response", length=claimed)
        found = read(write(tmp_path / "a.warc", [*crawl(1), careless, *crawl(2)[6:]], layout))
        assert numbers(found) == [0, 9, 1]
        assert found.damage == []
        assert found.counted == 3


@pytest.mark.parametrize(
    "header", [b"", b"Content-Length: x\r\n", b"Content-Length: -5\r\n", b"Content-Length: 1e3\r\n", b"X: " + b"y" * 70_000]
)
def test_a_header_that_is_none(tmp_path: Path, header: bytes) -> None:
    bad = b"WARC/1.0\r\nWARC-Type: response\r\n" + header + b"\r\n\r\nblock\r\n\r\n"
    for layout in ("plain", "members", "stream"):
        found = read(write(tmp_path / layout, [*crawl(1), bad, *crawl(2)[6:]], layout))
        assert numbers(found) == [0, 1]
        assert [d.reason for d in found.damage] == ["warc-invalid-header"]


def test_a_flipped_bit_costs_its_member_only(tmp_path: Path) -> None:
    """The checksum of a gzip member tells of it; where it strikes nothing that matters to it, nothing changes."""
    parts = members(crawl(4, 300))
    path, clean = tmp_path / "a.warc.gz", b"".join(parts)
    rng = random.Random(5)
    for _ in range(150):
        place = rng.randrange(len(clean))
        data = bytearray(clean)
        data[place] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        found = read(path)
        begin = 0
        for number, part in enumerate(parts):  # noqa: B007
            if begin + len(part) > place:
                break
            begin += len(part)
        inside = place - begin
        if not found.damage:
            assert inside < 10  # of the gzip header: time, flags, system
            assert numbers(found) == [0, 1, 2, 3]
            continue
        assert len(found.damage) == 1
        assert (found.damage[0].start, found.damage[0].stop) == (begin, begin + len(parts[number]))
        struck = [n for n in range(4) if number == 2 + 5 * n]
        assert numbers(found) == [n for n in range(4) if n not in struck]


def test_a_stream_goes_on_behind_a_damage_where_another_member_begins(tmp_path: Path) -> None:
    first, second = gzip.compress(b"".join(crawl(3))), gzip.compress(b"".join(crawl(3)[6:]))
    path = tmp_path / "a.warc.gz"
    path.write_bytes(first[:-200] + second)
    found = read(path)
    assert numbers(found)[-2:] == [1, 2]
    assert [d.reason for d in found.damage] == ["gzip-damaged"]
    assert found.damage[0].stop == len(first) - 200


def test_the_first_member_may_be_the_damaged_one(tmp_path: Path) -> None:
    parts = members(crawl(3))
    for data in (b"", b"garbage", parts[0][:20], b"\x1f\x8b\x08" + parts[0][30:], bytes(50)):
        path = tmp_path / "a.warc.gz"
        path.write_bytes(data + b"".join(parts[1:]))
        found = assert_same_for_all_cuts(source_of("warc", path), [1000])
        assert numbers(found) == [0, 1, 2]
        assert [(d.start, d.stop) for d in found.damage] == ([(0, len(data))] if data.strip(b"\0") else [])


def test_damaged_arc(tmp_path: Path) -> None:
    made = arc([(f"{SITE}/{n}.html", "text/html", http(page(f"<p>{n}</p><img src={n}.png>").encode())) for n in range(4)])
    wrong = made[2].replace(b"text/html 1", b"text/html 9", 1)
    assert wrong != made[2]
    for layout in ("plain", "members", "stream"):
        found = read(write(tmp_path / layout, [*made[:2], wrong, *made[3:]], layout))
        assert numbers(found) == [0, 2, 3]
        assert [d.reason for d in found.damage] == ["warc-wrong-length"]
    path = tmp_path / "cut.arc"
    path.write_bytes(b"".join(made)[:-20])
    assert numbers(read(path)) == [0, 1, 2]
    assert [d.reason for d in read(path).damage] == ["warc-truncated"]


# --- bombs -----------------------------------------------------------------------------------------------------------


def bomb(megabytes: int, begin: bytes = b"", end: bytes = b"") -> bytes:
    machine, parts = zlib.compressobj(9, wbits=31), []
    parts.append(machine.compress(begin))
    for _ in range(megabytes):
        parts.append(machine.compress(bytes(1 << 20)))
    return b"".join([*parts, machine.compress(end), machine.flush()])


def test_bombs_are_told_and_gone_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (census, members_module, views):
        monkeypatch.setattr(module, "BOMB_BYTES", 8 << 20)
    size = 20 << 20
    fields = f"WARC-Type: response\r\nWARC-Target-URI: {SITE}/b\r\nContent-Type: application/http\r\nContent-Length: {size}"
    head = f"WARC/1.0\r\n{fields}\r\n\r\n"
    parts = members(crawl(2))
    path = tmp_path / "a.warc.gz"
    big = bomb(20, head.encode(), b"\r\n\r\n")
    path.write_bytes(b"".join(parts[:6]) + big + b"".join(parts[6:]))
    found = read(path)
    assert numbers(found) == [0, 1]
    assert [d.reason for d in found.damage] == ["gzip-bomb"]
    assert found.damage[0].stop - found.damage[0].start == len(big)
    path.write_bytes(bomb(20, b"".join(crawl(1)) + head.encode()))
    found = read(path)
    assert numbers(found) == [0]
    assert [d.reason for d in found.damage] == ["gzip-bomb"]


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br"])
def test_a_page_that_unpacks_to_too_much_is_a_reject(tmp_path: Path, coding: str) -> None:
    size = 40 << 20
    if coding == "br":
        body = pytest.importorskip("brotli").compress(bytes(size), quality=1)
    else:
        body = (gzip.compress if coding == "gzip" else zlib.compress)(bytes(size))
    found = read(write(tmp_path / "a.warc.gz", [response(SITE, body, "text/html", 200, ("Content-Encoding", coding))]))
    assert list(found.failures.values()) == ["payload-too-large"]


def test_a_page_that_is_too_large_is_a_reject_and_what_follows_is_read(tmp_path: Path) -> None:
    for layout in ("plain", "members", "stream"):
        big = response(f"{SITE}/big", page("x" * (17 << 20)))
        found = read(write(tmp_path / layout, [big, *crawl(2)], layout))
        assert list(found.failures.values()) == ["page-too-large"]
        assert len(found.good) == 2
        assert found.damage == []
        assert found.counted == 3


# --- anything --------------------------------------------------------------------------------------------------------


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few random changes: bytes, stretches left out, doubled, put elsewhere, cut off, numbers replaced."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            break
        a = rng.randrange(len(out))
        b = min(len(out), a + rng.choice((1, 2, 8, 100, 1000)))
        match rng.randrange(7):
            case 0:
                out[a] = rng.randrange(256)
            case 1:
                del out[a:b]
            case 2:
                out[a:a] = out[a:b]
            case 3:
                out[a:b] = rng.randbytes(b - a)
            case 4:
                del out[a:]
            case 5:
                out[a:a] = rng.choice(
                    (b"WARC/1.0\r\n", b"\r\n\r\n", b"\x1f\x8b\x08\x00", b"Content-Length: 99999999\r\n", b"<b a=1>", b"0\r\n")
                )
            case _:
                digits = [i for i, byte in enumerate(out[a : a + 2000], a) if 48 <= byte <= 57]
                if digits:
                    out[rng.choice(digits)] = 48 + rng.randrange(10)
    return bytes(out)


@pytest.mark.parametrize("layout", ["plain", "members", "stream", "arc"])
def test_whatever_is_changed_there_are_only_documents_failures_and_damage(tmp_path: Path, layout: str) -> None:
    records = [
        *crawl(4),
        response(
            f"{SITE}/z", gzip.compress(page("<ul><li>a<li>b</ul>").encode()), "text/html", 200, ("Content-Encoding", "gzip")
        ),
        response(f"{SITE}/c", b"5\r\n<p>ab\r\n2\r\ncd\r\n0\r\n\r\n", "text/html", 200, ("Transfer-Encoding", "chunked")),
        record(
            "revisit",
            f"{SITE}/r.png",
            http(b"", "image/png"),
            "application/http",
            ("WARC-Refers-To-Target-URI", f"{SITE}/0.png"),
        ),
        record("conversion", f"{SITE}/t", b"text", "text/plain"),
    ]
    if layout == "arc":
        records = arc([(f"{SITE}/{n}.html", "text/html", http(page(f"<p>{n}<img src=p.png>").encode())) for n in range(5)])
        records += arc([(f"{SITE}/p.png", "image/png", http(png(), "image/png"))])[1:]
    clean = write(tmp_path / "clean", records, "plain" if layout == "arc" else layout).read_bytes()
    path = tmp_path / "a.warc"
    rng = random.Random(layout)
    for _ in range(120):
        path.write_bytes(mutated(clean, rng))
        found, cut = read(path), read(path, 900)
        assert all(isinstance(document, Document) for document in found.documents)
        assert (cut.identity, cut.damage) == (found.identity, found.damage)
        if not found.damage:
            assert found.counted == cut.counted == len(found.documents)
