"""img2dataset's parquet is read as its tars are: the same pairs, and the same outcome for what was never downloaded."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shard_corpus import picture, write_tokenizers
from sources_helpers import assert_census_agrees, assert_same_for_all_cuts, read_all, source_of
from stores_helpers import FAILED, downloaded

from tokkit.documents import Document, Outcome, Text
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.sources.resolve import resolve_inputs

PICTURES = {f"https://e.example/{n}.jpg": None if n in (2, 5) else picture(n) for n in range(8)}


def outcome_of(document: Document) -> tuple[str, str, tuple[Outcome, str] | None]:
    """Id, content and why it is none."""
    failure = document.failure
    return document.id, document.hash, None if failure is None else (failure.outcome, failure.reason)


def table(path: Path, rows: list[dict[str, object]], column: str = "jpg") -> Path:
    schema = pa.schema([(name, pa.binary() if name == column else pa.string()) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=2)
    return path


def row(**fields: object) -> dict[str, object]:
    plain = {"key": "0", "status": "success", "error_message": None, "caption": "a caption", "url": "u", "jpg": b"picture"}
    return plain | fields


def test_both_forms_give_the_same_documents(tmp_path: Path) -> None:
    (tars,) = resolve_inputs([str(downloaded(tmp_path / "tar", PICTURES))]).sources
    (tables,) = resolve_inputs([str(downloaded(tmp_path / "parquet", PICTURES, "parquet"))]).sources
    assert (tars.format, tables.format) == ("webdataset", "img2dataset")
    found = [sorted(map(outcome_of, read_all(source).documents)) for source in (tars, tables)]
    assert found[0] == found[1]
    assert [reason for _, _, reason in found[1] if reason] == [(Outcome.FAILED_UPSTREAM, "failed-to-download")] * 2
    (first, *_) = read_all(tables).good
    given = {"url": "https://e.example/0.jpg", "caption": "c", "key": "000000000", "status": "success", "error_message": None}
    assert first.metadata == given
    assert all(d.pair and d.segments[1:] == (Text("c"),) for d in read_all(tables).good)
    lost = [d.failure.message for d in read_all(tables).documents if d.failure is not None]
    assert lost == [FAILED, FAILED]


def test_any_cut_reads_the_same_and_the_count_agrees(tmp_path: Path) -> None:
    (tables,) = resolve_inputs([str(downloaded(tmp_path, PICTURES, "parquet", per_file=7))]).sources
    whole = assert_same_for_all_cuts(tables, [1, 500, 3000])
    assert_census_agrees(whole)
    assert whole.counted_items == {"image": 6}
    assert read_all(tables, 1).units > whole.units


@pytest.mark.parametrize(
    ("fields", "text"),
    [({"txt": "from txt"}, "from txt"), ({"txt": ""}, "a caption"), ({"caption": None}, None), ({}, "a caption")],
)
def test_which_text_is_taken(tmp_path: Path, fields: dict[str, object], text: str | None) -> None:
    (document,) = read_all(source_of("img2dataset", table(tmp_path / "a.parquet", [row(**fields)]))).good
    assert [s.text for s in document.segments if isinstance(s, Text)] == ([] if text is None else [text])
    assert "txt" not in document.metadata


def test_rows_without_a_picture_and_odd_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.img2dataset.MAX_ITEM_BYTES", 100)
    rows = [
        row(jpg=None),
        row(jpg=None, status="failed_to_resize", error_message="broken"),
        row(jpg=None, status=None, key=None),
        row(jpg=b"x" * 101, key="big"),
        row(key=None),
        row(key="0"),  # a key that comes again: rows are told apart by their number
    ]
    result = read_all(source_of("img2dataset", table(tmp_path / "a.parquet", rows)))
    assert_census_agrees(result)
    assert result.failures == {
        "a.parquet:0": "missing-from-table",
        "a.parquet:1": "failed-to-resize",
        "a.parquet:2": "no-status",
    }
    outcomes = [d.failure.outcome for d in result.documents if d.failure is not None]
    assert outcomes == [Outcome.REJECTED, Outcome.FAILED_UPSTREAM, Outcome.FAILED_UPSTREAM]
    assert result.item_failures == {"image-too-large": 1}
    assert [d.id for d in result.good] == ["big", "a.parquet:4", "0"]


@pytest.mark.parametrize("column", ["png", "webp", "jpg"])
def test_it_is_recognised_whatever_the_encoding(tmp_path: Path, column: str) -> None:
    fields = {name: value for name, value in row().items() if name != "jpg"} | {column: b"picture"}
    table(tmp_path / "00000.parquet", [fields], column)
    (source,) = resolve_inputs([str(tmp_path)]).sources
    assert source.format == "img2dataset"
    (document,) = read_all(source).good
    assert document.media[0].ref == column


def test_another_table_is_none(tmp_path: Path) -> None:
    for number, gone in enumerate(("key", "status", "jpg")):
        path = table(tmp_path / f"{number}.parquet", [{name: v for name, v in row().items() if name != gone}])
        result = read_all(source_of("img2dataset", path), census=False)
        assert [damage.reason for damage in result.damage] == ["columns-missing"]


def test_a_run_over_it_adds_up(tmp_path: Path) -> None:
    text, image = write_tokenizers(tmp_path / "tokenizers")
    folder = downloaded(tmp_path / "pictures", PICTURES, "parquet")
    options = {"text_tokenizer": text, "image_tokenizer": image, "workers": 0, "report_documents": 0, "where": ["caption == c"]}
    result = shard(ShardConfig(inputs=[str(folder)], out=tmp_path / "out", **options), SilentProgress())  # type: ignore[arg-type]
    (source,) = result.manifest.sources
    assert source.documents == {"committed": 6, "failed_upstream": 2}
    assert source.items == {"image": {"committed": 6}}
    assert (source.counted_documents, source.counted_items) == (8, {"image": 6})
    assert source.reasons == {"document/failed_upstream/failed-to-download": 2}
