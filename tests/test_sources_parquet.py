"""OBELICS and Hugging Face parquet: rows to documents, item failures, paths that must not be followed, damage."""

from __future__ import annotations

import errno
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import (
    JPEG,
    assert_census_agrees,
    assert_same_for_all_cuts,
    read_all,
    source_of,
    tar_bytes,
    write_parquet,
)

from tokkit.documents import Audio, Failure, Image, Outcome, Text
from tokkit.sources.parquet import is_damage
from tokkit.sources.resolve import resolve_inputs

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
HYPOTHESIS = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def obelics(path: Path, rows: list[dict[str, object]], kind: pa.DataType | None = None, rows_per_group: int = 2) -> Path:
    element = kind or pa.string()
    columns = {
        "images": pa.array([row.get("images") for row in rows], pa.list_(element)),
        "metadata": pa.array([row.get("metadata") for row in rows], pa.string()),
        "general_metadata": pa.array([row.get("general_metadata") for row in rows], pa.string()),
        "texts": pa.array([row.get("texts") for row in rows], pa.list_(pa.string())),
    }
    return write_parquet(path, columns, rows_per_group)


def page(number: int, *references: object) -> dict[str, object]:
    """A text, then each picture followed by a text."""
    images: list[object] = [None]
    texts: list[object] = [f"page {number}"]
    for place, reference in enumerate(references):
        images += [reference, None]
        texts += [None, f"text {place}"]
    general = json.dumps({"url": f"http://page/{number}", "warc_filename": "w"})
    return {"images": images, "texts": texts, "metadata": json.dumps([None] * len(images)), "general_metadata": general}


# --- OBELICS ---------------------------------------------------------------------------------------------------------


def test_interleaved_pictures_from_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPEG)
    result = read_all(source_of("obelics", obelics(tmp_path / "d.parquet", [page(0, "images/a.jpg"), page(1)])))
    first, second = result.documents
    assert first.segments == (Text("page 0"), Image(JPEG, "images/a.jpg"), Text("text 0"))
    assert (first.id, first.locator, first.pair) == ("http://page/0", "d.parquet:0", False)
    assert first.metadata == {"url": "http://page/0", "warc_filename": "w"}
    assert second.locator == "d.parquet:1"
    assert_census_agrees(result)


def test_the_id_falls_back_to_the_pictures_page_and_to_the_locator(tmp_path: Path) -> None:
    rows = [
        {"images": [None], "texts": ["a"], "metadata": json.dumps([None, {"document_url": "http://p"}])},
        {"images": [None], "texts": ["b"]},
    ]
    result = read_all(source_of("obelics", obelics(tmp_path / "d.parquet", rows)))
    assert [document.id for document in result.documents] == ["http://p", "d.parquet:1"]
    assert_census_agrees(result)


def item_failure(tmp_path: Path, reference: object, kind: pa.DataType | None = None) -> Failure | None:
    result = read_all(source_of("obelics", obelics(tmp_path / "d-00000-of-00001.parquet", [page(0, reference)], kind)))
    (document,) = result.good
    assert [segment.text for segment in document.segments if isinstance(segment, Text)] == ["page 0", "text 0"]
    assert_census_agrees(result)
    return document.media[0].failure


@pytest.mark.parametrize(
    "reference",
    [
        "../secret.jpg",
        "images/../../secret.jpg",
        "/etc/passwd",
        "file:///etc/passwd",
        "file:/etc/passwd",
        "link.jpg",
        "linked/secret.jpg",
    ],
)
def test_paths_out_of_the_source_are_rejected(tmp_path: Path, reference: str) -> None:
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (root / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "linked").symlink_to(tmp_path)
    failure = item_failure(root, reference)
    assert failure is not None
    assert (failure.outcome, failure.reason) == (Outcome.REJECTED, "path-outside-source")


def test_absolute_paths_are_rejected_even_within_the_source(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(JPEG)
    failure = item_failure(tmp_path, str(tmp_path / "a.jpg"))
    assert failure is not None
    assert failure.reason == "path-outside-source"


@pytest.mark.parametrize(
    "reference", ["a.jpg", "n/" * 3000 + "a.jpg", "n" * 5000, "a\0b.jpg", "images", "loop", "", "d.parquet/a"]
)
def test_files_that_are_not_there(tmp_path: Path, reference: str) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    failure = item_failure(tmp_path, reference)
    assert failure is not None
    assert (failure.outcome, failure.reason) == (Outcome.FAILED_UPSTREAM, "image-not-found")
    assert str(tmp_path) not in failure.message


@pytest.mark.parametrize("reference", ["http://x/a.jpg", "//x/a.jpg", "data:image/png;base64,AAAA"])
def test_urls_without_a_map_were_not_downloaded(tmp_path: Path, reference: str) -> None:
    failure = item_failure(tmp_path, reference)
    assert failure is not None
    assert (failure.outcome, failure.reason) == (Outcome.FAILED_UPSTREAM, "not-downloaded")


URL_MAP = [
    {"url": "http://x/a.jpg", "file": None, "status": "failed_to_resize"},
    {"url": "http://x/a.jpg", "file": "a.jpg", "status": "success"},
    {"url": "http://x/a.jpg", "file": None, "status": "failed_to_download"},
    {"url": "http://x/late.jpg", "file": None, "status": "failed_to_download"},
    {"url": "http://x/lost.jpg", "file": "lost.jpg", "status": "success"},
    {"url": "http://x/out.jpg", "file": "../../../etc/passwd", "status": "success"},
]
BY_MAP = ["http://x/a.jpg", "http://x/late.jpg", "http://x/lost.jpg", "http://x/out.jpg", "http://x/unknown.jpg"]


@pytest.mark.parametrize("store", ["tar", "d_images", "images"])
def test_urls_by_map(tmp_path: Path, store: str) -> None:
    (tmp_path / "d_url_map.jsonl").write_text("\n".join(map(json.dumps, URL_MAP)))
    if store == "tar":
        (tmp_path / "d_images.tar").write_bytes(tar_bytes([("./a.jpg", JPEG)]))
    else:
        (tmp_path / store).mkdir()
        (tmp_path / store / "a.jpg").write_bytes(JPEG)
    files = [obelics(tmp_path / f"d-0000{n}-of-00002.parquet", [page(n, *BY_MAP)]) for n in (0, 1)]
    source = source_of("obelics", *files)
    assert [file.name for file in source.companions()] == ["d_url_map.jsonl", *(["d_images.tar"] if store == "tar" else [])]
    result = read_all(source)
    for document in result.documents:
        reasons = [item.failure.reason if item.failure else "" for item in document.media]
        out = "image-not-found" if store == "tar" else "path-outside-source"
        assert reasons == ["", "failed-to-download", "image-not-found", out, "not-downloaded"]
        assert document.media[0].data == JPEG
    assert not result.damage
    assert_census_agrees(result)


def test_damaged_companions_are_told_once(tmp_path: Path) -> None:
    entries = [json.dumps(URL_MAP[1]), "{broken", json.dumps(["no entry"])]
    (tmp_path / "d_url_map.jsonl").write_text("\n".join(entries))
    (tmp_path / "d_images.tar").write_bytes(tar_bytes([("a.jpg", JPEG), ("b.jpg", JPEG)])[:1500])
    files = [obelics(tmp_path / f"d-0000{n}-of-00002.parquet", [page(n, BY_MAP[0])] * 5) for n in (0, 1)]
    result = assert_same_for_all_cuts(source_of("obelics", *files), [1])
    assert Counter((damage.locator, damage.reason) for damage in result.damage) == {
        ("d_url_map.jsonl", "url-map-entry-unreadable"): 2,
        ("d_images.tar", "tar-truncated"): 1,
    }
    assert all(document.media[0].data == JPEG for document in result.documents)


def test_inline_pictures(tmp_path: Path) -> None:
    row = page(0, {"bytes": JPEG, "path": "a.jpg"}, {"bytes": JPEG, "path": None}, {"bytes": None, "path": None})
    result = read_all(source_of("obelics", obelics(tmp_path / "d.parquet", [row], STRUCT)))
    (document,) = result.good
    assert document.media[:2] == (Image(JPEG, "a.jpg"), Image(JPEG, "images[3]"))
    assert result.item_failures == {"not-downloaded": 1}
    assert_census_agrees(result)


PICTURE = pa.struct([("aesthetic_prob", pa.float64()), ("bytes", pa.int64()), ("img_url_sha", pa.string())])
PAGE = pa.struct([("domain", pa.list_(pa.string())), ("fluency_prob", pa.float64()), ("id", pa.int64()), ("url", pa.string())])


def omnicorpus(path: Path, rows: list[dict[str, object]]) -> Path:
    columns = {
        "general_metadata": pa.array([row["page"] for row in rows], PAGE),
        "images": pa.array([row["images"] for row in rows], pa.list_(pa.string())),
        "texts": pa.array([row["texts"] for row in rows], pa.list_(pa.string())),
        "metadata": pa.array([row["pictures"] for row in rows], pa.list_(PICTURE)),
    }
    return write_parquet(path, columns)


def test_omnicorpus_with_its_metadata_as_structs(tmp_path: Path) -> None:
    (tmp_path / "d_images").mkdir()
    (tmp_path / "d_images" / "a.jpg").write_bytes(JPEG)
    (tmp_path / "d_url_map.jsonl").write_text(json.dumps({"url": "http://x/a.jpg", "file": "a.jpg", "status": "success"}))
    info = {"aesthetic_prob": 0.4, "bytes": 1234, "img_url_sha": "s"}
    told = {"domain": ["p", "org"], "fluency_prob": 0.9, "id": 5, "url": "http://p.org/1"}
    rows: list[dict[str, object]] = [
        {"page": told, "images": [None, "http://x/a.jpg"], "texts": ["t", None], "pictures": [None, info]},
        {"page": None, "images": ["http://x/b.jpg", None], "texts": [None, "u"], "pictures": None},
        {"page": told, "images": [None], "texts": ["v", "w"], "pictures": [None]},
        {"page": {**told, "url": None}, "images": [None], "texts": ["x"], "pictures": [None]},
    ]
    path = omnicorpus(tmp_path / "d.parquet", rows)
    result = read_all(source_of("obelics", path))
    first, second, third = result.good
    assert first.segments == (Text("t"), Image(JPEG, "http://x/a.jpg"))
    assert (first.id, first.metadata) == ("http://p.org/1", told)
    assert [d.id for d in (second, third)] == ["d.parquet:1", "d.parquet:3"]
    assert result.item_failures == {"not-downloaded": 1}
    assert result.failures == {"d.parquet:2": "uneven-lists"}
    assert result.counted == 4
    whole = omnicorpus(tmp_path / "e.parquet", [rows[0], rows[1], rows[3]])
    assert_census_agrees(assert_same_for_all_cuts(source_of("obelics", whole), [1]))
    assert [source.format for source in resolve_inputs([str(path)]).sources] == ["obelics"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"images": ["a.jpg"], "texts": ["a"]}, "text-and-image-in-one-place"),
        ({"images": [None, None], "texts": ["a", None]}, "empty-place"),
        ({"images": [None], "texts": ["a", "b"]}, "uneven-lists"),
        ({"images": None, "texts": ["a"]}, "uneven-lists"),
        ({"images": [], "texts": []}, "empty-document"),
        ({"images": None, "texts": None}, "empty-document"),
        ({"images": [None], "texts": [""]}, "empty-document"),
        ({"images": [None], "texts": ["a"], "metadata": "{"}, "metadata-invalid"),
        ({"images": [None], "texts": ["a"], "metadata": '"a"'}, "metadata-invalid"),
        ({"images": [None], "texts": ["a"], "general_metadata": "[]"}, "metadata-invalid"),
    ],
)
def test_malformed_rows_are_rejected_and_reading_goes_on(tmp_path: Path, row: dict[str, object], reason: str) -> None:
    result = read_all(source_of("obelics", obelics(tmp_path / "d.parquet", [page(0), row, page(2)])))
    assert result.failures == {"d.parquet:1": reason}
    assert [document.locator for document in result.good] == ["d.parquet:0", "d.parquet:2"]
    assert result.counted == 3


def test_a_row_that_is_not_utf8_is_rejected_alone(tmp_path: Path) -> None:
    texts = pa.array([[b"good"], [b"bad \xff"], [b"good"]], pa.list_(pa.binary()))
    offsets, values = texts.offsets, texts.values
    strings = pa.StringArray.from_buffers(len(values), values.buffers()[1], values.buffers()[2])
    columns = {"images": pa.array([[None]] * 3, pa.list_(pa.string())), "texts": pa.ListArray.from_arrays(offsets, strings)}
    result = read_all(source_of("obelics", write_parquet(tmp_path / "d.parquet", columns)))
    assert result.failures == {"d.parquet:1": "text-not-utf8"}
    assert len(result.good) == 2
    assert result.counted == 3


@HYPOTHESIS
@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.integers(1, 5), st.integers(1, 4000))
def test_any_cut_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, pictures: list[int], rows: int, unit_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("o")
    pages = [
        page(n, *({"bytes": JPEG + bytes([n, k]), "path": None} for k in range(count))) for n, count in enumerate(pictures)
    ]
    source = source_of("obelics", obelics(folder / "d.parquet", pages, STRUCT, rows))
    result = assert_same_for_all_cuts(source, [unit_bytes, 1])
    assert [document.locator for document in result.good] == [f"d.parquet:{n}" for n in range(len(pictures))]
    assert result.items["image"] == sum(pictures)
    assert_census_agrees(result)


# --- Hugging Face ----------------------------------------------------------------------------------------------------


def media(*values: tuple[bytes | None, str | None] | None) -> pa.Array:
    return pa.array([None if value is None else {"bytes": value[0], "path": value[1]} for value in values], STRUCT)


def test_hugging_face_pairs(tmp_path: Path) -> None:
    columns = {
        "id": [7, None, 9],
        "image": media((JPEG, "a.jpg"), (JPEG, None), None),
        "caption": ["one", "", "three"],
        "licence": ["CC0", None, "CC0"],
        "raw": pa.array([b"1", b"2", b"3"]),
        "when": pa.array([1, 2, 3], pa.timestamp("ns")),
    }
    result = read_all(source_of("hf_parquet", write_parquet(tmp_path / "t.parquet", columns)))
    first, second, third = result.documents
    assert first.segments == (Image(JPEG, "a.jpg"), Text("one"))
    assert (first.id, first.locator, first.pair) == ("7", "t.parquet:0", True)
    assert first.metadata == {"id": 7, "licence": "CC0", "when": "1970-01-01 00:00:00.000000001"}
    assert second.segments == (Image(JPEG, "image"),)
    assert second.id == "t.parquet:1"
    assert third.failure is not None
    assert third.failure.reason == "no-media"
    assert_census_agrees(result)


def test_audio_is_told_by_the_declared_feature_or_by_the_name(tmp_path: Path) -> None:
    declared = {"huggingface": json.dumps({"info": {"features": {"clip": {"_type": "Audio"}}}})}
    declared_path = write_parquet(tmp_path / "a.parquet", {"clip": media((b"s", None)), "sentence": ["x"]}, metadata=declared)
    named_path = write_parquet(tmp_path / "b.parquet", {"audio": media((b"s", None)), "transcription": ["x"]})
    result = read_all(source_of("hf_parquet", declared_path, named_path))
    assert [document.segments for document in result.good] == [
        (Audio(b"s", "clip"), Text("x")),
        (Audio(b"s", "audio"), Text("x")),
    ]
    assert_census_agrees(result)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"text": ["t"], "caption": ["c"]}, "c"),
        ({"captions": [["first", "second"]]}, "first"),
        ({"captions": [[None, "second"]]}, "second"),
        ({"captions": [[]]}, None),
        ({"label": ["l"]}, None),
    ],
)
def test_the_text_column(tmp_path: Path, columns: dict[str, list[object]], text: str | None) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": media((JPEG, None)), **columns})
    (document,) = read_all(source_of("hf_parquet", path)).good
    assert [segment.text for segment in document.segments if isinstance(segment, Text)] == ([text] if text else [])


def test_a_path_without_bytes_is_read_below_the_source_only(tmp_path: Path) -> None:
    (tmp_path / "there.jpg").write_bytes(JPEG)
    values = media((None, "there.jpg"), (None, "missing.jpg"), (None, "../../etc/passwd"), (None, None))
    result = read_all(
        source_of("hf_parquet", write_parquet(tmp_path / "t.parquet", {"image": values, "caption": list("abcd")}))
    )
    assert result.good[0].media == (Image(JPEG, "there.jpg"),)
    assert result.item_failures == {"image-not-found": 1, "path-outside-source": 1, "not-downloaded": 1}
    assert_census_agrees(result)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_every_truncated_parquet_is_damage(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"image": media((JPEG, None), (JPEG, None)), "caption": ["a", "b"]})
    data = path.read_bytes()
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        result = read_all(source_of("hf_parquet", path), 1)
        assert not result.documents
        assert [(d.locator, d.start, d.stop, d.reason) for d in result.damage] == [
            ("t.parquet", 0, length, "parquet-unreadable")
        ]
        assert str(tmp_path) not in result.damage[0].message
        assert result.counted is None


def test_a_broken_row_group_is_damage_and_the_next_is_read(tmp_path: Path) -> None:
    values = media(*[(bytes([n]) * 3000, None) for n in range(6)])
    path = write_parquet(tmp_path / "t.parquet", {"image": values, "caption": list("abcdef")})
    column = pq.read_metadata(path).row_group(1).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + 12] = b"\xff" * 12
    path.write_bytes(data)
    result = assert_same_for_all_cuts(source_of("hf_parquet", path), [1])
    assert [document.locator for document in result.good] == [f"t.parquet:{n}" for n in (0, 1, 4, 5)]
    (damage,) = result.damage
    assert damage.start <= start < damage.stop
    assert "rows 2 to 3" in damage.message


@HYPOTHESIS
@given(st.binary(min_size=1, max_size=40), st.floats(0, 1))
def test_overwritten_bytes_never_raise(tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: float) -> None:
    path = tmp_path_factory.mktemp("p") / "t.parquet"
    write_parquet(path, {"image": media(*[(JPEG * 20, None)] * 6), "caption": list("abcdef")})
    data = bytearray(path.read_bytes())
    start = int(place * (pq.read_metadata(path).serialized_size and len(data) - pq.read_metadata(path).serialized_size - 8))
    data[start : start + len(noise)] = noise[: len(data) - start]
    path.write_bytes(data)
    read_all(source_of("hf_parquet", path), 1)


def test_a_file_of_other_columns_is_damage(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", {"img": [b"1"], "text": ["a"]})
    for format_name in ("hf_parquet", "obelics"):
        result = read_all(source_of(format_name, path))
        assert [damage.reason for damage in result.damage] == ["columns-missing"]
        assert result.counted is None


def test_errors_of_the_disk_are_not_damage() -> None:
    assert not is_damage(OSError(errno.EIO, "Input/output error"))
    assert is_damage(OSError("Corrupt snappy compressed data."))
    assert is_damage(pa.ArrowInvalid("magic"))


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_obelics(shared_data: Path) -> None:
    files = sorted((shared_data / "interleaved_obelics").glob("*.parquet"))
    result = assert_same_for_all_cuts(source_of("obelics", *files), [1, 20_000])
    tables = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    assert len(result.good) == len(tables) == 167
    assert result.items == {"image": sum(image is not None for row in tables for image in row["images"])} == {"image": 548}
    assert result.item_failures == {"failed-to-download": 9}
    assert_census_agrees(result)
    for document, row in zip(result.good, tables, strict=True):
        expected = [text if image is None else image for image, text in zip(row["images"], row["texts"], strict=True)]
        assert [segment.text if isinstance(segment, Text) else segment.ref for segment in document.segments] == expected
        assert document.id == json.loads(row["general_metadata"])["url"]


def test_real_obelics_pictures_are_those_of_the_map(shared_data: Path) -> None:
    import hashlib

    folder = shared_data / "interleaved_obelics"
    lines = (folder / "anthropology_url_map.jsonl").read_text().splitlines()
    hashes = {entry["url"]: entry.get("sha256") for entry in map(json.loads, lines)}
    result = read_all(source_of("obelics", *sorted(folder.glob("anthropology*.parquet"))))
    for item in (item for document in result.good for item in document.media):
        assert (hashlib.sha256(item.data).hexdigest() if item.data is not None else None) == hashes[item.ref]


def test_real_inline_obelics(shared_data: Path) -> None:
    (path,) = (shared_data / "interleaved_obelics_inline").glob("*.parquet")
    result = assert_same_for_all_cuts(source_of("obelics", path), [1])
    rows = pq.read_table(path).to_pylist()
    assert len(result.good) == len(rows) == 25
    expected = [image["bytes"] for row in rows for image in row["images"] if image is not None]
    assert [item.data for document in result.good for item in document.media] == expected
    assert len(expected) == 99
    assert_census_agrees(result)


def test_real_hugging_face(shared_data: Path) -> None:
    files = sorted((shared_data / "hf_parquet").glob("*.parquet"))
    result = assert_same_for_all_cuts(source_of("hf_parquet", *files), [1])
    rows = pa.concat_tables([pq.read_table(file) for file in files]).to_pylist()
    assert len(result.good) == len(rows) == 30
    for document, row in zip(result.good, rows, strict=True):
        assert document.segments == (Image(row["image"]["bytes"], row["image"]["path"]), Text(row["caption"]))
        assert document.metadata["license"] == row["license"]
    assert_census_agrees(result)


BAD_HF = {
    "good": (8, {}, {}, []),
    "truncated": (0, {}, {}, [("parquet-unreadable", 0, 32531)]),
    "zero_bytes": (0, {}, {}, [("parquet-unreadable", 0, 0)]),
    "html_named": (0, {}, {}, [("parquet-unreadable", 0, 1635)]),
    "null_and_bad_images": (7, {"no-media": 1}, {"image-not-found": 1, "path-outside-source": 1}, []),
    "missing_column": (0, {}, {}, [("columns-missing", 4, None)]),
    "no_rows": (0, {}, {}, []),
}


@pytest.mark.parametrize("name", BAD_HF)
def test_real_bad_parquet(shared_data: Path, name: str) -> None:
    good, failures, items, damage = BAD_HF[name]
    result = assert_same_for_all_cuts(source_of("hf_parquet", shared_data / "bad" / "parquet" / f"{name}.parquet"), [1])
    assert len(result.good) == good
    assert result.reasons == failures
    assert result.item_failures == items
    assert [(d.reason, d.start) for d in result.damage] == [(reason, start) for reason, start, _ in damage]
    if not damage:
        assert_census_agrees(result)


def test_real_uneven_obelics(shared_data: Path) -> None:
    path = shared_data / "bad" / "parquet" / "obelics_uneven_lists.parquet"
    result = read_all(source_of("obelics", path))
    assert result.failures == {
        f"{path.name}:1": "uneven-lists",
        f"{path.name}:2": "metadata-invalid",
        f"{path.name}:3": "text-and-image-in-one-place",
        f"{path.name}:4": "empty-document",
        f"{path.name}:5": "empty-document",
    }
    assert [document.locator for document in result.good] == [f"{path.name}:{row}" for row in (0, 6, 7)]
    assert result.item_failures == {"image-not-found": 3, "path-outside-source": 1}
    assert result.counted == 8
    assert {file.stem for file in path.parent.glob("*.parquet")} == {*BAD_HF, path.stem}


@pytest.mark.parametrize("format_name", ["hf_parquet", "obelics"])
def test_counting_gives_signs_of_life(tmp_path: Path, format_name: str) -> None:
    """At least one a row group."""
    path, signs = tmp_path / "0.parquet", [0]
    if format_name == "obelics":
        strings = pa.list_(pa.string())
        columns = {"images": pa.array([[None, "a.png"]] * 20, strings), "texts": pa.array([["t", None]] * 20, strings)}
        write_parquet(path, columns | {"general_metadata": pa.array(["{}"] * 20)})
    else:
        media = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        write_parquet(path, {"image": pa.array([{"bytes": b"x", "path": "a.png"}] * 20, media), "text": ["t"] * 20})
    source = source_of(format_name, path)
    (unit,) = source.units(1 << 30)

    def alive() -> None:
        signs[0] += 1

    census = source.census(unit, alive)
    assert (census.documents, census.items) == (20, {"image": 20})
    assert signs[0] >= 10
