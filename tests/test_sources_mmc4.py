"""MMC4: where pictures stand, where they come from, lines that are no document, zip and gzip, real shards."""

from __future__ import annotations

import base64
import gzip
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import JPEG, assert_census_agrees, assert_same_for_all_cuts, read_all, source_of

from tokkit.documents import Image, Outcome, Text
from tokkit.sources.resolve import resolve_inputs

HYPOTHESIS = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


def info(place: object, **fields: object) -> dict[str, object]:
    return {"image_name": "a.jpg", "raw_url": "http://x/a.jpg", "matched_text_index": place, "matched_sim": 0.3, **fields}


def page(sentences: list[object], *infos: object, **fields: object) -> dict[str, object]:
    return {"url": "http://p", "text_list": sentences, "image_info": list(infos), "similarity_matrix": [[0.1]], **fields}


def write(path: Path, *lines: object) -> Path:
    data = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(path.stem, data)
    else:
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.jpg").write_bytes(JPEG + name.encode())
    return tmp_path


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zip"])
def test_pictures_stand_before_their_sentence_in_their_order(pictures: Path, name: str) -> None:
    infos = [info(3, image_name="c.jpg"), info(0, image_name="b.jpg"), info(3, image_name="a.jpg")]
    line = page(["zero", "", "one", "two"], *infos, could_have_url_duplicate=0)
    path = write(pictures / name, line, page(["only text"], url=None))
    first, second = (result := read_all(source_of("mmc4", path))).good
    picture = {n: Image(JPEG + n.encode(), f"{n}.jpg") for n in "abc"}
    assert first.segments == (picture["b"], Text("zero one"), picture["c"], picture["a"], Text("two"))
    assert (first.id, first.locator, first.pair) == ("http://p", f"{name}@0", False)
    assert first.metadata == {"url": "http://p", "could_have_url_duplicate": 0}
    assert second.id == second.locator == f"{name}@{len(json.dumps(line)) + 1}"
    assert_census_agrees(result)
    (source,) = resolve_inputs([str(pictures)]).sources
    assert (source.format, [file.name for file in source.files]) == ("mmc4", [name])


def test_pictures_in_base64(tmp_path: Path) -> None:
    good, bad = base64.b64encode(JPEG).decode(), "not base64!"
    line = page(["s"], info(0, image_base64=good), info(0, image_base64=bad), info(0, image_base64=None))
    (document,) = (result := read_all(source_of("mmc4", write(tmp_path / "d.jsonl", line)))).good
    assert document.media[0] == Image(JPEG, "a.jpg")
    assert [item.failure.reason if item.failure else "" for item in document.media] == [
        "",
        "image-base64-invalid",
        "image-not-found",
    ]
    assert_census_agrees(result)


def test_a_first_line_longer_than_what_is_looked_at_is_recognised(tmp_path: Path) -> None:
    line = page(["s"], info(0, image_base64=base64.b64encode(bytes(400_000)).decode()))
    (source,) = resolve_inputs([str(write(tmp_path / "d.jsonl", line))]).sources
    assert source.format == "mmc4"


@pytest.mark.parametrize(
    ("fields", "outcome", "reason"),
    [
        ({"image_name": "lost.jpg"}, Outcome.FAILED_UPSTREAM, "image-not-found"),
        ({"image_name": None}, Outcome.FAILED_UPSTREAM, "not-downloaded"),
        ({"image_name": "../../secret.jpg"}, Outcome.REJECTED, "path-outside-source"),
        ({"image_name": "/etc/passwd"}, Outcome.REJECTED, "path-outside-source"),
        ({"image_name": "link.jpg"}, Outcome.REJECTED, "path-outside-source"),
    ],
)
def test_pictures_that_are_not_there(tmp_path: Path, fields: dict[str, object], outcome: Outcome, reason: str) -> None:
    root = tmp_path / "source"
    (root / "images").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    (root / "images" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (document,) = (result := read_all(source_of("mmc4", write(root / "d.jsonl", page(["s"], info(0, **fields)))))).good
    failure = document.media[0].failure
    assert failure is not None
    assert (failure.outcome, failure.reason) == (outcome, reason)
    assert document.segments[1] == Text("s")
    assert_census_agrees(result)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text_list": [', "json-invalid"),
        (b'{"text_list": ["\xff"], "image_info": []}', "text-not-utf8"),
        (b"[]", "not-an-object"),
        ({"text": "a"}, "fields-missing"),
        ({"text_list": ["a"], "image_info": None}, "fields-missing"),
        (page(["a", None]), "text-not-a-string"),
        (page(["a"], "b.jpg"), "image-not-understood"),
        (page(["a"], info(1)), "image-not-placed"),
        (page(["a"], info(-1)), "image-not-placed"),
        (page(["a", "b"], info(True)), "image-not-placed"),
        (page(["a"], info(None)), "image-not-placed"),
        (page([]), "empty-document"),
        (page(["", ""]), "empty-document"),
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.zip"])
def test_bad_lines_are_rejected_and_reading_goes_on(tmp_path: Path, line: object, reason: str, suffix: str) -> None:
    before, after = page(["before"]), page(["after"])
    result = read_all(source_of("mmc4", write(tmp_path / f"a{suffix}", before, line, after)))
    assert result.failures == {f"a{suffix}@{len(json.dumps(before)) + 1}": reason}
    assert [document.segments for document in result.good] == [(Text("before"),), (Text("after"),)]
    assert_census_agrees(result)


def test_a_line_too_long_is_rejected_by_reading_and_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.lines.read_lines.__defaults__", (300,))
    monkeypatch.setattr("tokkit.sources.line_source.MAX_ITEM_BYTES", 300)
    path = write(tmp_path / "a.jsonl", page(["a"]), page(["b" * 400], info(0)), page(["c"]))
    result = read_all(source_of("mmc4", path))
    assert list(result.failures.values()) == ["line-too-long"]
    assert_census_agrees(result)


def test_every_truncated_zip_is_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl.zip", *(page([f"s{n}"]) for n in range(50)))
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        path.write_bytes(data[:length])
        result = read_all(source_of("mmc4", path))
        assert [(d.reason, d.stop) for d in result.damage] == [("zip-damaged", length)]
        assert not result.documents
        assert result.counted is None


def test_every_overwritten_byte_of_a_zips_content_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl.zip", *(page([f"s{n}"]) for n in range(50)))
    data = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        (member,) = archive.infolist()
    begin = 30 + len(member.filename)
    for place in range(begin, begin + member.compress_size, 11):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :])
        result = read_all(source_of("mmc4", path))
        assert [damage.reason for damage in result.damage] == ["zip-damaged"]
        assert result.counted is None


@pytest.mark.parametrize("names", [[], ["a.jsonl", "b.jsonl"]])
def test_a_zip_of_other_than_one_file_is_damage(tmp_path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "d.jsonl.zip", "w") as archive:
        for name in names:
            archive.writestr(name, json.dumps(page(["a"])))
    result = read_all(source_of("mmc4", tmp_path / "d.jsonl.zip"))
    assert [damage.reason for damage in result.damage] == ["zip-not-one-file"]
    assert result.counted is None


@HYPOTHESIS
@given(
    st.lists(st.lists(st.integers(-1, 3), max_size=4), max_size=10),
    st.lists(st.text(max_size=20), min_size=1, max_size=4),
    st.integers(1, 700),
)
def test_any_cut_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, places: list[list[int]], sentences: list[str], unit_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("m") / "d.jsonl"
    write(path, *(page(list(sentences), *map(info, each)) for each in places))
    source = source_of("mmc4", path)
    result = assert_same_for_all_cuts(source, [unit_bytes, 1])
    assert sum(unit.bytes for unit in source.units(unit_bytes)) == source.files[0].size
    assert len(result.documents) == len(places)
    assert_census_agrees(result)


# --- real data -------------------------------------------------------------------------------------------------------


REAL = {"mmc4_ff_shard_151_part": (68, 275, 0), "image_processing_lesson": (9, 99, 97), "opensource_guide": (27, 221, 72)}


@pytest.mark.parametrize("name", REAL)
def test_real_mmc4(shared_data: Path, name: str) -> None:
    path = shared_data / "interleaved_mmc4" / f"{name}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    result = assert_same_for_all_cuts(source_of("mmc4", path), [1, 50_000])
    there = [(path.parent / "images" / i["image_name"]).is_file() for row in rows for i in row["image_info"]]
    assert (len(rows), len(there), sum(there)) == REAL[name]
    assert len(result.good) == len(rows)
    assert result.items["image"] == len(there)
    assert result.item_failures == ({"image-not-found": there.count(False)} if False in there else {})
    assert_census_agrees(result)
    for document, row in zip(result.good, rows, strict=True):
        expected = []
        for place, sentence in enumerate(row["text_list"]):
            names = [f"\0{i['image_name']}\0" for i in row["image_info"] if i["matched_text_index"] == place]
            expected.append("".join(names) + sentence)
        found = "".join(f"\0{s.ref}\0" if isinstance(s, Image) else s.text for s in document.segments)
        assert found == " ".join(expected).replace(" \0", "\0")
        for item in document.media:
            file = path.parent / "images" / item.ref
            assert item.data == (file.read_bytes() if file.is_file() else None)


def test_the_real_folder_is_one_source_and_its_pictures_are_not_listed(shared_data: Path) -> None:
    resolved = resolve_inputs([str(shared_data / "interleaved_mmc4")])
    assert [(source.format, len(source.files)) for source in resolved.sources] == [("mmc4", 3)]
    assert resolved.ignored == []


def test_the_real_shard_that_broke_off(shared_data: Path) -> None:
    result = assert_same_for_all_cuts(source_of("mmc4", shared_data / "bad" / "text" / "mmc4_cut_last_line.jsonl"), [1])
    assert len(result.good) == 2
    assert list(result.failures.values()) == ["json-invalid"]
    assert_census_agrees(result)
