"""JSON lines and plain text: lines to documents, cuts, gzip damage."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import assert_census_agrees, assert_same_for_all_cuts, read_all, source_of

from tokkit.documents import Text
from tokkit.sources.lines import line_start, read_lines

HYPOTHESIS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def jsonl(path: Path, *lines: object) -> Path:
    encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    data = b"".join(line + b"\n" for line in encoded)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json.gz"])
def test_documents(tmp_path: Path, name: str) -> None:
    records = [
        {"id": 7, "text": "α\r\n β ", "meta": {"lang": "el", "score": float("nan")}},
        {"content": "b"},
        {"raw_content": "c"},
    ]
    result = read_all(source_of("jsonl", jsonl(tmp_path / name, *records)))
    first, second, third = result.documents
    assert first.segments == (Text("α\r\n β "),)
    assert (first.id, first.locator, first.pair) == ("7", f"{name}@0", False)
    assert first.metadata == {"id": 7, "meta": {"lang": "el", "score": None}}
    offset = len(json.dumps(records[0])) + 1
    assert (second.id, second.locator, second.segments) == (f"{name}@{offset}", f"{name}@{offset}", (Text("b"),))
    assert third.segments == (Text("c"),)
    assert_census_agrees(result)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "unclosed', "json-invalid"),
        (b"{'text': 'single'}", "json-invalid"),
        (b'{"text": "raw \x00 nul"}', "json-invalid"),
        (b"[" * 100_000, "json-invalid"),
        (b'{"n": ' + b"9" * 5000 + b"}", "json-invalid"),
        (b'["a list"]', "not-an-object"),
        (b'"a string"', "not-an-object"),
        (b"null", "not-an-object"),
        (b'{"txt": "wrong key"}', "no-text"),
        (b'{"text": null}', "text-not-a-string"),
        (b'{"text": 17}', "text-not-a-string"),
        (b'{"text": NaN}', "text-not-a-string"),
        (b'{"text": ""}', "empty-document"),
        (b'{"text": "a", "text": "b"}', "json-repeated-key"),
        (b'{"text": "bad \xff"}', "text-not-utf8"),
        ("{'text': 'a'}".encode("utf-16"), "text-not-utf8"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_bad_lines_are_rejected_and_reading_goes_on(tmp_path: Path, line: bytes, reason: str, suffix: str) -> None:
    result = read_all(source_of("jsonl", jsonl(tmp_path / f"a{suffix}", {"text": "before"}, line, {"text": "after"})))
    assert result.failures == {f"a{suffix}@19": reason}
    assert [document.segments for document in result.good] == [(Text("before"),), (Text("after"),)]
    assert_census_agrees(result)


def test_a_key_that_comes_twice_further_down_is_let_be(tmp_path: Path) -> None:
    result = read_all(source_of("jsonl", jsonl(tmp_path / "a.jsonl", b'{"m": {"a": 1, "a": 2}, "text": "t"}')))
    assert result.good[0].metadata == {"m": {"a": 2}}


def test_lone_surrogates_stay_in_the_text_and_leave_names_printable(tmp_path: Path) -> None:
    (document,) = read_all(
        source_of("jsonl", jsonl(tmp_path / "a.jsonl", {"id": "\ud83d", "text": "x\ud83d", "m": ["\ud83d"]}))
    ).good
    assert document.segments == (Text("x\ud83d"),)
    assert document.id == "\\ud83d"
    assert document.metadata == {"id": "\\ud83d", "m": ["\\ud83d"]}


def test_the_text_field_is_the_first_that_holds_text(tmp_path: Path) -> None:
    (document,) = read_all(source_of("jsonl", jsonl(tmp_path / "a.jsonl", {"text": None, "content": "c"}))).good
    assert document.segments == (Text("c"),)
    assert document.metadata == {"text": None}


def test_bom_blank_lines_crlf_and_no_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n \t\n\n{"text": "b"}')
    result = assert_same_for_all_cuts(source_of("jsonl", path), [1, 5])
    assert [(document.locator, document.segments) for document in result.documents] == [
        ("a.jsonl@3", (Text("a"),)),
        ("a.jsonl@24", (Text("b"),)),
    ]
    assert_census_agrees(result)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_nothing_in_it(tmp_path: Path, data: bytes, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(gzip.compress(data) if suffix.endswith("gz") else data)
    result = read_all(source_of("jsonl", path), 1)
    assert (result.documents, result.damage, result.units > 0) == ([], [], True)
    assert_census_agrees(result)


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_a_line_too_long_is_rejected_without_being_held(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.lines.LineSplitter.__init__.__defaults__", (0, 1000))
    monkeypatch.setattr("tokkit.sources.lines.read_lines.__defaults__", (1000,))
    lines = ({"text": "a"}, {"text": "b" * 5000}, {"text": "c"})
    result = read_all(source_of("jsonl", jsonl(tmp_path / f"a{suffix}", *lines)))
    assert list(result.failures.values()) == ["line-too-long"]
    assert [document.segments for document in result.good] == [(Text("a"),), (Text("c"),)]
    assert_census_agrees(result)


LINES = st.lists(
    st.one_of(st.text(max_size=30).map(lambda t: json.dumps({"text": t}).encode()), st.binary(max_size=12), st.just(b" \t")),
    max_size=25,
)


@HYPOTHESIS
@given(LINES, st.booleans(), st.integers(1, 90))
def test_any_cut_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], newline: bool, unit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("j") / "a.jsonl"
    path.write_bytes(b"\n".join(lines) + b"\n" * newline)
    source = source_of("jsonl", path)
    result = assert_same_for_all_cuts(source, [unit_bytes, 1])
    units = list(source.units(unit_bytes))
    assert sum(unit.bytes for unit in units) == source.files[0].size
    assert_census_agrees(result)
    zipped = path.with_name("a.jsonl.gz")
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    packed = read_all(source_of("jsonl", zipped))
    assert [document.hash for document in packed.documents] == [document.hash for document in result.documents]
    assert_census_agrees(packed)


@HYPOTHESIS
@given(st.lists(st.sampled_from([b"\n", b"x", b" "]), max_size=40).map(b"".join), st.integers(0, 45))
def test_line_starts(data: bytes, offset: int) -> None:
    starts = [0, *(place + 1 for place, byte in enumerate(data) if byte == 10), len(data)]
    expected = min((start for start in starts if start >= offset), default=len(data))
    assert line_start(io.BytesIO(data), offset, len(data)) == min(expected, len(data))
    found = [(start, line) for start, line in read_lines(io.BytesIO(data), 0, len(data)) if start]
    assert all(line is not None and data[start : start + len(line)] == line and line.strip() for start, line in found)


# --- gzip ------------------------------------------------------------------------------------------------------------


def gzip_file(path: Path, count: int = 400) -> bytes:
    noise = [zlib.crc32(b"%d" % n) for n in range(count)]
    jsonl(path, *({"text": f"document {n} {noise[n]:x}{noise[-n]:x}"} for n in range(count)))
    return path.read_bytes()


def test_several_members_and_zero_padding_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    parts = [b'{"text": "a"}\n{"te', b'xt": "b"}\n', b"", b'{"text": "c"}']
    path.write_bytes(b"".join(map(gzip.compress, parts)) + bytes(40_000))
    result = read_all(source_of("jsonl", path))
    assert [document.segments for document in result.documents] == [(Text(text),) for text in "abc"]
    assert not result.damage
    assert_census_agrees(result)


def test_every_truncation_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip_file(path)
    whole = [document.hash for document in read_all(source_of("jsonl", path)).documents]
    for length in range(0, len(data), 61):
        path.write_bytes(data[:length])
        result = read_all(source_of("jsonl", path))
        assert [document.hash for document in result.documents] == whole[: len(result.documents)]
        assert not result.failures
        assert [(damage.reason, damage.stop) for damage in result.damage] == [("gzip-truncated", length)]
        assert result.counted is None


def test_every_overwritten_byte_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip_file(path, 60)
    for place in range(10, len(data), 7):  # behind the header, where a changed time or name is no damage
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        result = read_all(source_of("jsonl", path))
        (damage,) = result.damage
        assert damage.reason in ("gzip-damaged", "gzip-truncated", "gzip-trailing-garbage")
        assert result.counted is None


def test_documents_before_a_damage_are_all_given(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = bytearray(gzip_file(path, 4000))
    data[-8] ^= 1  # the checksum: everything was decompressed, but cannot be trusted
    path.write_bytes(data)
    result = read_all(source_of("jsonl", path))
    assert len(result.documents) == 4000
    assert [damage.reason for damage in result.damage] == ["gzip-damaged"]


def test_a_damage_is_placed_near_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip_file(path, 20_000)
    path.write_bytes(data[: len(data) - 100])
    (damage,) = read_all(source_of("jsonl", path)).damage
    assert len(data) - 40_000 < damage.start < damage.stop == len(data) - 100


def test_trailing_garbage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    data = gzip_file(path, 5)
    path.write_bytes(data + b"garbage")
    result = read_all(source_of("jsonl", path))
    assert len(result.good) == 5
    assert [(d.reason, d.start, d.stop) for d in result.damage] == [("gzip-trailing-garbage", len(data), len(data) + 7)]
    assert result.counted is None


def test_a_bomb_of_one_line_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tracemalloc

    monkeypatch.setattr("tokkit.sources.lines.LineSplitter.__init__.__defaults__", (0, 1 << 20))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"a" * (100 << 20), 9))
    tracemalloc.start()
    result = read_all(source_of("jsonl", path), census=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert list(result.failures.values()) == ["line-too-long"]
    assert peak < 8 << 20


# --- plain text ------------------------------------------------------------------------------------------------------


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_bytes("\ufeffline\r\n\r\n \tend\r".encode())
    (tmp_path / "b.md").write_bytes(b"# title\n")
    result = read_all(source_of("text", tmp_path / "sub" / "a.txt", tmp_path / "b.md", root=tmp_path))
    assert [(d.id, d.locator, d.segments) for d in result.documents] == [
        ("b.md", "b.md", (Text("# title\n"),)),
        ("sub/a.txt", "sub/a.txt", (Text("line\r\n\r\n \tend\r"),)),
    ]
    assert_census_agrees(result)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty-document"),
        (b"\xef\xbb\xbf", "empty-document"),
        (b"Sch\xf6n", "text-not-utf8"),
        (b"x" * 11, "text-too-large"),
    ],
)
def test_text_that_is_rejected(tmp_path: Path, data: bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.text.MAX_ITEM_BYTES", 10)
    (tmp_path / "a.txt").write_bytes(data)
    result = read_all(source_of("text", tmp_path / "a.txt"))
    assert result.failures == {"a.txt": reason}
    assert_census_agrees(result)


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "count"), [("books_en", 374), ("news_26lang", 2730), ("guides_29lang_markdown", 292)])
def test_real_jsonl(shared_data: Path, name: str, count: int) -> None:
    path = shared_data / "text" / f"{name}.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        records = [json.loads(line) for line in stream]
    result = read_all(source_of("jsonl", path))
    assert [(d.id, d.segments, d.metadata["meta"]) for d in result.good] == [
        (r["id"], (Text(r["text"]),), r["meta"]) for r in records
    ]
    assert len(records) == len(result.documents) == count
    assert_census_agrees(result)


def test_real_jsonl_unpacked_and_cut(shared_data: Path, tmp_path: Path) -> None:
    packed = shared_data / "text" / "news_26lang.jsonl.gz"
    (tmp_path / "news.jsonl").write_bytes(gzip.decompress(packed.read_bytes()))
    result = assert_same_for_all_cuts(source_of("jsonl", tmp_path / "news.jsonl"), [500_000])
    assert [d.hash for d in result.documents] == [d.hash for d in read_all(source_of("jsonl", packed), census=False).documents]


def test_real_text(shared_data: Path) -> None:
    path = shared_data / "text" / "botchan.txt"
    (document,) = read_all(source_of("text", path)).good
    (segment,) = document.segments
    assert isinstance(segment, Text)
    assert segment.text.encode("utf-8-sig") == path.read_bytes()


BAD_LINES = {
    "bad_lines": (8, {"json-invalid": 3, "no-text": 1, "text-not-a-string": 3, "not-an-object": 2, "json-repeated-key": 1}, []),
    "bad_utf8_lines": (2, {"text-not-utf8": 2}, []),
    "nul_and_controls": (2, {"json-invalid": 1}, []),
    "utf8_bom_crlf": (20, {}, []),
    "duplicates": (5, {}, []),
    "no_spaces_200kB": (1, {}, []),
    "mmc4_cut_last_line": (0, {"no-text": 2, "json-invalid": 1}, []),
    "cut": (72, {}, ["gzip-truncated"]),
    "plain_named": (0, {}, ["gzip-invalid"]),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_real_bad_lines(shared_data: Path, name: str) -> None:
    good, failures, damage = BAD_LINES[name]
    folder = shared_data / "bad" / "text"
    (path,) = [path for path in folder.iterdir() if path.name in (f"{name}.jsonl", f"{name}.jsonl.gz")]
    result = assert_same_for_all_cuts(source_of("jsonl", path), [1, 400])
    assert len(result.good) == good
    assert result.reasons == failures
    assert [d.reason for d in result.damage] == damage
    if not damage:
        assert_census_agrees(result)
    else:
        assert result.counted is None


def test_real_bad_text(shared_data: Path) -> None:
    folder = shared_data / "bad" / "text"
    result = read_all(source_of("text", *sorted(folder.glob("*.txt"))))
    assert result.failures == {
        "latin1.txt": "text-not-utf8",
        "shift_jis.txt": "text-not-utf8",
        "cp1251.txt": "text-not-utf8",
        "utf16_bom.txt": "text-not-utf8",
        "empty.txt": "empty-document",
    }
    assert {document.id for document in result.good} == {"mojibake.txt", "one_line_1MB.txt", "blank_only.txt"}


def test_counting_a_large_gzip_gives_signs_of_life(tmp_path: Path) -> None:
    """48 MB of text in one unit: at least one sign in every few of them, also within one long line."""
    path, signs = tmp_path / "a.jsonl.gz", [0]
    line = json.dumps({"text": "x" * 1000}) + "\n"
    path.write_bytes(gzip.compress((line * 24_000 + json.dumps({"text": "y" * (24 << 20)})).encode(), 1))
    source = source_of("jsonl", path)
    (unit,) = source.units(1 << 20)

    def alive() -> None:
        signs[0] += 1

    assert source.census(unit, alive).documents == 24_001
    assert 9 <= signs[0] <= 100
