"""Tables of text: csv and tsv, parquet, and JSON lines in zstd."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import assert_census_agrees, assert_same_for_all_cuts, read_all, source_of, write_parquet

from tokkit.documents import Text
from tokkit.sources.resolve import resolve_inputs

HYPOTHESIS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


# --- csv -------------------------------------------------------------------------------------------------------------


def table(path: Path, heading: list[str], rows: list[list[str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, "excel-tab" if path.suffix == ".tsv" else "excel")
        writer.writerow(heading)
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_rows_are_documents(tmp_path: Path, name: str) -> None:
    rows = [["7", 'say "hi",\r\nthen\tgo', "el"], ["", "β", ""], ["9", " plain ", "x"]]
    path = table(tmp_path / name, ["id", "text", "lang"], rows)
    result = assert_same_for_all_cuts(source_of("csv", path), [1])
    assert [d.segments for d in result.good] == [(Text(row[1]),) for row in rows]
    data = path.read_bytes()
    places = [int(d.locator.partition("@")[2]) for d in result.good]
    assert [d.id for d in result.good] == ["7", f"{name}@{places[1]}", "9"]
    assert places[0] == data.index(b"\r\n") + 2
    assert data[places[2] :].startswith(b"9")
    assert result.good[0].metadata == {"id": "7", "lang": "el"}
    assert_census_agrees(result)
    assert [source.format for source in resolve_inputs([str(tmp_path)]).sources] == ["csv"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b'1,"a"b', "csv-invalid"),
        (b"1", "csv-field-count"),
        (b"1,a,b", "csv-field-count"),
        (b"1,a\0b", "csv-nul"),
        (b"\0,a", "csv-nul"),
        (b"1,\xff", "text-not-utf8"),
        (b"1,", "empty-document"),
    ],
)
def test_rows_that_are_rejected(tmp_path: Path, row: bytes, reason: str) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfid,text\n0,before\n\n" + row + b"\n2,after")
    result = assert_same_for_all_cuts(source_of("csv", tmp_path / "t.csv"), [1])
    assert result.failures == {"t.csv@21": reason}
    assert [d.segments for d in result.good] == [(Text("before"),), (Text("after"),)]
    assert_census_agrees(result)


def test_a_quote_that_is_never_closed_is_damage(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'id,text\n0,good\n1,"open\n2,lost\n')
    result = read_all(source_of("csv", tmp_path / "t.csv"))
    assert [(d.reason, d.start, d.stop) for d in result.damage] == [("csv-quote-unclosed", 15, 30)]
    assert (len(result.good), result.counted) == (1, None)


def test_fields_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "t.csv", ["text"], [["a" * 200_000], ["b" * 500_000]])
    assert [len(d.segments[0].text) for d in read_all(source_of("csv", path)).good] == [200_000, 500_000]  # type: ignore[union-attr]
    monkeypatch.setattr("tokkit.sources.csv_table.MAX_ITEM_BYTES", 300_000)
    result = read_all(source_of("csv", path))
    assert [damage.reason for damage in result.damage] == ["csv-quote-unclosed"]
    assert (len(result.good), result.counted) == (1, None)


@pytest.mark.parametrize("data", [b"", b"a,b\n1,2\n", b"text,text\n1,2\n", b'"open\n'])
def test_a_heading_without_the_column_is_damage(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.csv").write_bytes(data)
    result = read_all(source_of("csv", tmp_path / "t.csv"))
    assert len(result.damage) == 1
    assert (result.documents, result.counted) == ([], None)


@HYPOTHESIS
@given(st.lists(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=12), min_size=2, max_size=2), max_size=12))
def test_what_the_csv_module_writes_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: list[list[str]]) -> None:
    path = table(tmp_path_factory.mktemp("c") / "t.csv", ["a", "content"], rows)
    result = read_all(source_of("csv", path))
    assert len(result.documents) == len(rows)
    assert [d.segments for d in result.good] == [(Text(b),) for a, b in rows if b and "\0" not in a + b]
    assert_census_agrees(result)


@HYPOTHESIS
@given(st.lists(st.sampled_from([b'"', b",", b"\n", b"a", b"\r", b"\xff", b"\0"]), max_size=30))
def test_any_bytes_are_read_and_counted_alike(tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("c") / "t.csv"
    path.write_bytes(b"id,text\n" + b"".join(parts))
    result = read_all(source_of("csv", path))
    assert result.counted == (None if result.damage else len(result.documents))


# --- parquet ---------------------------------------------------------------------------------------------------------


def test_parquet_of_text(tmp_path: Path) -> None:
    columns = {
        "text": ["a", "", None, "d\r\n "],
        "id": ["x", None, "z", ""],
        "score": [0.5, None, float("nan"), 1.0],
        "url": list("abcd"),
    }
    result = assert_same_for_all_cuts(source_of("text_parquet", write_parquet(tmp_path / "t.parquet", columns)), [1])
    assert [(d.id, d.locator, d.segments) for d in result.good] == [
        ("x", "t.parquet:0", (Text("a"),)),
        ("t.parquet:3", "t.parquet:3", (Text("d\r\n "),)),
    ]
    assert result.failures == {"t.parquet:1": "empty-document", "t.parquet:2": "text-not-a-string"}
    assert result.good[0].metadata == {"id": "x", "score": 0.5, "url": "a"}
    assert_census_agrees(result)
    assert [source.format for source in resolve_inputs([str(tmp_path)]).sources] == ["text_parquet"]


@pytest.mark.parametrize(
    ("columns", "format_name"),
    [
        ({"content": ["a"]}, "text_parquet"),
        ({"raw_content": pa.array(["a"], pa.large_string())}, "text_parquet"),
        ({"text": pa.array(["a"]).dictionary_encode()}, "text_parquet"),
        ({"text": ["a"], "jpg": [b"1"]}, None),
        ({"text": [1]}, None),
        ({"TEXT": ["a"], "URL": ["u"]}, None),
        ({"text": ["a"], "image": pa.array([{"bytes": b"1", "path": None}])}, "hf_parquet"),
    ],
)
def test_which_parquet_is_text(tmp_path: Path, columns: dict[str, object], format_name: str | None) -> None:
    from tokkit.sources.recognise import recognise

    path = write_parquet(tmp_path / "t.parquet", columns)
    assert recognise(path).format == format_name
    if format_name == "text_parquet":
        (document,) = read_all(source_of("text_parquet", path)).good
        assert document.segments == (Text("a"),)


def test_parquet_rows_that_are_not_utf8_and_files_of_other_columns(tmp_path: Path) -> None:
    values = pa.array([b"good", b"\xff", b"good"])
    strings = pa.StringArray.from_buffers(3, values.buffers()[1], values.buffers()[2])
    result = read_all(source_of("text_parquet", write_parquet(tmp_path / "t.parquet", {"text": strings})))
    assert result.failures == {"t.parquet:1": "text-not-utf8"}
    assert_census_agrees(result)
    other = read_all(source_of("text_parquet", write_parquet(tmp_path / "u.parquet", {"label": ["a"]})))
    assert [damage.reason for damage in other.damage] == ["columns-missing"]
    assert other.counted is None


def test_real_texts_as_tables_and_zstd(shared_data: Path, tmp_path: Path) -> None:
    packed = shared_data / "text" / "news_26lang.jsonl.gz"
    lines = gzip.decompress(packed.read_bytes())
    rows = [json.loads(line) for line in lines.splitlines()]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "n.parquet", row_group_size=200)
    table(tmp_path / "n.csv", ["id", "text"], [[row["id"], row["text"]] for row in rows])
    (tmp_path / "n.jsonl.zst").write_bytes(zstd(lines))
    assert len(rows) == 2730
    for format_name, name in (("text_parquet", "n.parquet"), ("csv", "n.csv"), ("jsonl", "n.jsonl.zst")):
        result = assert_same_for_all_cuts(source_of(format_name, tmp_path / name), [300_000])
        assert [(d.id, d.segments) for d in result.good] == [(row["id"], (Text(row["text"]),)) for row in rows]
        assert_census_agrees(result)


# --- zstd ------------------------------------------------------------------------------------------------------------


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def lines_of(count: int) -> bytes:
    import hashlib

    texts = ({"text": f"{n} {hashlib.sha256(bytes([n % 256, n // 256])).hexdigest()}"} for n in range(count))
    return b"".join(json.dumps(each).encode() + b"\n" for each in texts)


def test_several_frames_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.zst"
    path.write_bytes(zstd(b'{"text": "a"}\n{"te') + zstd(b'xt": "b"}\n') + zstd(b'{"text": "c"}'))
    result = read_all(source_of("jsonl", path))
    assert [document.segments for document in result.documents] == [(Text(text),) for text in "abc"]
    assert_census_agrees(result)
    assert [source.format for source in resolve_inputs([str(tmp_path)]).sources] == ["jsonl"]


def test_every_truncation_of_zstd_is_told(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.zst"
    data = zstd(lines_of(6000))
    path.write_bytes(data)
    whole = [document.hash for document in read_all(source_of("jsonl", path)).documents]
    assert len(whole) == 6000
    found = []
    for length in [*range(0, len(data), 9973), len(data) - 1]:
        path.write_bytes(data[:length])
        result = read_all(source_of("jsonl", path))
        found.append(len(result.documents))
        assert [document.hash for document in result.documents] == whole[: found[-1]]
        assert [(damage.reason, damage.stop) for damage in result.damage] == [("zstd-truncated", length)]
        assert result.counted is None
    assert found[-1] > 4000


@pytest.mark.parametrize("noise", [b"garbage", b"{}\n"])
def test_what_is_no_zstd_is_told(tmp_path: Path, noise: bytes) -> None:
    path = tmp_path / "d.jsonl.zst"
    for data in (noise, zstd(lines_of(3)) + noise):
        path.write_bytes(data)
        result = read_all(source_of("jsonl", path))
        assert [damage.reason for damage in result.damage] in (["zstd-damaged"], ["zstd-truncated"])
        assert result.counted is None


def test_a_list_of_pictures_is_no_table_of_texts_unless_it_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("URL,caption\nhttps://example.org/1.jpg,a cat\n")
    (tmp_path / "texts.csv").write_text("url,text\nhttps://example.org/1,a page\n")
    found = resolve_inputs([str(tmp_path)])
    assert [file.name for source in found.sources for file in source.files] == ["texts.csv"]
    assert ["a list of pictures to download" in entry.why for entry in found.ignored] == [True]
    (source,) = resolve_inputs([f"csv:{tmp_path / 'list.csv'}"]).sources
    assert source.format == "csv"
