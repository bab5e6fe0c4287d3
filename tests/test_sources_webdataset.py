"""WebDataset tars: grouping, units, damage, sidecars; against tarfile, webdataset and pyarrow."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import (
    JPEG,
    assert_census_agrees,
    assert_same_for_all_cuts,
    read_all,
    samples,
    source_of,
    tar_bytes,
    write_parquet,
)

from tokkit.documents import Audio, Image, Outcome, Text
from tokkit.sources.tarindex import tar_index

HYPOTHESIS = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.write_bytes(tar_bytes(members))
    return path


def read_tar(path: Path, unit_bytes: int = 1 << 30):
    return read_all(source_of("webdataset", path), unit_bytes)


# --- what a sample becomes -------------------------------------------------------------------------------------------


def test_a_pair(tmp_path: Path) -> None:
    fields = b'{"caption": "unused", "score": NaN, "n": 3}'
    result = read_tar(write(tmp_path / "a.tar", [("x/1.json", fields), ("x/1.txt", "Grüße\r\n".encode()), ("x/1.JPG", JPEG)]))
    (document,) = result.documents
    assert (document.id, document.locator, document.pair) == ("x/1", "a.tar#x/1", True)
    assert document.segments == (Image(JPEG, "x/1.JPG"), Text("Grüße\r\n"))
    assert document.metadata == {"caption": "unused", "score": None, "n": 3}
    assert_census_agrees(result)


def test_audio_and_text_from_json(tmp_path: Path) -> None:
    members = [("1.mp3", b"sound"), ("1.json", b'{"text": "hello", "speaker": 4}')]
    (document,) = read_tar(write(tmp_path / "a.tar", members)).documents
    assert document.segments == (Audio(b"sound", "1.mp3"), Text("hello"))


def test_several_media_keep_the_tar_order(tmp_path: Path) -> None:
    members = [("1.seg.png", b"s"), ("1.txt", b"t"), ("1.jpg", b"j"), ("1.cls", b"7")]
    (document,) = read_tar(write(tmp_path / "a.tar", members)).documents
    assert document.segments == (Image(b"s", "1.seg.png"), Image(b"j", "1.jpg"), Text("t"))


@pytest.mark.parametrize("caption", [None, b""])
def test_no_text_is_only_the_picture(tmp_path: Path, caption: bytes | None) -> None:
    members = [("1.jpg", JPEG)] + ([("1.txt", caption)] if caption is not None else [])
    (document,) = read_tar(write(tmp_path / "a.tar", members)).documents
    assert document.segments == (Image(JPEG, "1.jpg"),)
    assert document.pair


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("1.txt", b"alone")], "no-media"),
        ([("1.mp4", b"film"), ("1.txt", b"x")], "no-media"),
        ([("1.jpg", JPEG), ("1.txt", b"Sch\xf6n")], "text-not-utf8"),
        ([("1.jpg", JPEG), ("1.txt", b"good"), ("1.json", b'{"a": ')], "json-invalid"),
        ([("1.jpg", JPEG), ("1.json", b"[1]")], "json-invalid"),
        ([("1.jpg", JPEG), ("1.json", b"[" * 100_000)], "json-invalid"),
        ([("1.jpg", JPEG), ("1.json", b'{"caption": "\xff"}')], "text-not-utf8"),
        ([("1.jpg", JPEG), ("1.en.txt", b"a"), ("1.fr.txt", b"b")], "several-texts"),
        ([("../1.jpg", JPEG), ("../1.txt", b"a")], "unsafe-name"),
        ([("/etc/1.jpg", JPEG)], "unsafe-name"),
        ([("README", b"no extension")], "not-a-sample"),
    ],
)
def test_what_is_no_sample_is_rejected(tmp_path: Path, members: list[tuple[str, bytes]], reason: str) -> None:
    result = read_tar(write(tmp_path / "a.tar", [*members, *samples(2)]))
    assert list(result.failures.values()) == [reason]
    assert len(result.good) == 2
    assert result.documents[0].failure is not None
    assert result.documents[0].failure.outcome is Outcome.REJECTED
    assert_census_agrees(result)


def test_member_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.webdataset.MAX_ITEM_BYTES", 5000)
    result = read_tar(write(tmp_path / "a.tar", [("big.jpg", bytes(5001)), ("fits.jpg", bytes(5000))]))
    assert result.failures == {"a.tar#big": "member-too-large"}
    assert [document.id for document in result.good] == ["fits"]


def test_links_devices_and_folders_are_never_followed(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind in [
            ("d", tarfile.DIRTYPE),
            ("1.jpg", tarfile.SYMTYPE),
            ("2.jpg", tarfile.LNKTYPE),
            ("3.jpg", tarfile.CHRTYPE),
            ("4.jpg", tarfile.FIFOTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            info.size = 700 if kind == tarfile.SYMTYPE else 0  # a claim: links have no data
            tar.addfile(info)
        info = tarfile.TarInfo("5.jpg")
        info.size = len(JPEG)
        tar.addfile(info, io.BytesIO(JPEG))
    (tmp_path / "a.tar").write_bytes(buffer.getvalue())
    result = read_tar(tmp_path / "a.tar")
    assert set(result.failures) == {f"a.tar#{n}" for n in "1234"}
    assert set(result.failures.values()) == {"not-a-regular-file"}
    assert [document.id for document in result.good] == ["5"]
    assert_census_agrees(result)


def test_desktop_leftovers_are_ignored(tmp_path: Path) -> None:
    members = [("._1.jpg", b"apple"), ("1.jpg", JPEG), ("._1.txt", b"apple"), ("1.txt", b"a"), ("__MACOSX/1.jpg", b"x")]
    result = read_tar(write(tmp_path / "a.tar", members))
    assert [document.segments for document in result.documents] == [(Image(JPEG, "1.jpg"), Text("a"))]
    assert_census_agrees(result)


# --- keys that come again --------------------------------------------------------------------------------------------


def test_repeated_keys_are_rejected_under_their_own_locator(tmp_path: Path) -> None:
    result = read_tar(write(tmp_path / "a.tar", [*samples(3), *samples(2)]))
    assert len(result.good) == 3
    assert set(result.failures.values()) == {"duplicate-key"}
    assert all(re.fullmatch(r"a\.tar@\d+", locator) for locator in result.failures)
    assert_census_agrees(result)


def test_adjacent_repetition_is_no_larger_sample(tmp_path: Path) -> None:
    result = read_tar(write(tmp_path / "a.tar", [("1.jpg", b"a"), ("1.txt", b"a"), ("1.jpg", b"b"), ("1.txt", b"b")]))
    assert result.good[0].segments == (Image(b"a", "1.jpg"), Text("a"))
    assert list(result.failures.values()) == ["duplicate-key"]


def test_scattered_members_are_brought_together(tmp_path: Path) -> None:
    columns = sorted(samples(5), key=lambda member: member[0].rpartition(".")[2])
    whole = read_tar(write(tmp_path / "a.tar", samples(5)))
    (tmp_path / "b").mkdir()
    scattered = assert_same_for_all_cuts(source_of("webdataset", write(tmp_path / "b" / "a.tar", columns)), [512, 3000])
    assert scattered.identity == whole.identity
    assert_census_agrees(scattered)


# --- units -----------------------------------------------------------------------------------------------------------


@HYPOTHESIS
@given(
    st.lists(
        st.tuples(st.sampled_from("abcde"), st.sampled_from(["jpg", "txt", "json", "wav", "png"]), st.integers(0, 2000)),
        max_size=30,
    ),
    st.integers(1, 6000),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
)
def test_any_order_of_members_reads_the_same_in_any_cut(
    tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str, int]], unit_bytes: int, format_: int
) -> None:
    path = tmp_path_factory.mktemp("t") / "a.tar"
    contents = {"json": b'{"x": 1}', "txt": b"a caption"}
    path.write_bytes(tar_bytes([(f"{k}.{e}", contents.get(e, b"d" * n)) for k, e, n in members], format_))
    result = assert_same_for_all_cuts(source_of("webdataset", path), [unit_bytes])
    assert not result.damage
    assert_census_agrees(result)
    read = sum(len(d.segments) for d in result.good) + sum("json" in str(d.metadata) for d in result.good)
    assert {d.id for d in result.documents} == {k for k, _, _ in members}
    assert read <= len(members)


def test_a_sample_is_never_cut(tmp_path: Path) -> None:
    source = source_of("webdataset", write(tmp_path / "a.tar", samples(20)))
    units = list(source.units(1))
    assert len(units) == 20
    assert [unit.start for unit in units[1:]] == [unit.stop for unit in units[:-1]]
    assert sum(unit.bytes for unit in units) == source.files[0].size


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, format_: int) -> None:
    names = ["d" * 150 + "/" + "k" * 120, "日本語/写真", "./plain"]
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([(f"{name}.jpg", JPEG) for name in names], format_))
    result = assert_same_for_all_cuts(source_of("webdataset", path), [1])
    assert [document.id for document in result.good] == [names[0], names[1], "plain"]
    assert_census_agrees(result)


def test_the_index_agrees_with_tarfile(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("n" * 300 + ".jpg", b"1"), *samples(4)])
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset, m.offset_data, m.size) for m in tar]
    assert [(m.name, m.offset, m.data, m.size) for m in tar_index(str(path)).members] == expected


def test_base_256_sizes(tmp_path: Path) -> None:
    data = bytearray(tar_bytes([("1.jpg", b"x" * 600)], tarfile.GNU_FORMAT))
    data[124:136] = b"\x80" + (600).to_bytes(11, "big")
    data[148:156] = b" " * 8
    data[148:156] = b"%06o\0 " % sum(data[:512])
    (tmp_path / "a.tar").write_bytes(data)
    assert read_tar(tmp_path / "a.tar").good[0].segments == (Image(b"x" * 600, "1.jpg"),)


# --- damage ----------------------------------------------------------------------------------------------------------


def test_every_truncation_is_told_and_yields_only_whole_samples(tmp_path: Path) -> None:
    """Cut anywhere: never an exception, always a damage, and no sample that is not exactly as in the whole archive."""
    data = tar_bytes(samples(4, size=100))
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    source = source_of("webdataset", path)
    whole = [document.hash for document in read_all(source).documents]
    with tarfile.open(path) as tar:
        ends = [member.offset_data + member.size for member in tar if member.name.endswith(".json")]
        end_blocks = ((ends[-1] + 511) // 512) * 512
    for length in range(0, end_blocks + 1024, 64):
        path.write_bytes(data[:length])
        for unit_bytes in (1 << 30, 1):
            result = read_all(source_of("webdataset", path), unit_bytes)
            intact = sum(end <= length for end in ends)
            read = len(result.documents)
            assert read == intact or (read, intact) == (0, 1)  # an only sample has nothing to be compared with
            assert [document.hash for document in result.documents] == whole[:read]
            (damage,) = result.damage
            assert damage.stop == length
            assert damage.start >= (ends[len(result.documents) - 1] if result.documents else 0)
            assert result.counted is None


def test_a_truncated_scattered_archive_yields_no_picture_without_its_caption(tmp_path: Path) -> None:
    columns = sorted(samples(4), key=lambda member: ["jpg", "json", "txt"].index(member[0].rpartition(".")[2]))
    data = tar_bytes(columns)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        cut = tar.getmember("000000002.txt").offset
    (tmp_path / "a.tar").write_bytes(data[:cut])
    result = assert_same_for_all_cuts(source_of("webdataset", tmp_path / "a.tar"), [1])
    assert [document.id for document in result.documents] == ["000000000", "000000001"]
    assert "'000000002', '000000003'" in result.damage[0].message


@HYPOTHESIS
@given(st.one_of(st.binary(max_size=300), st.integers(1, 3000).map(bytes)), st.integers(0, 9000), st.integers(0, 600))
def test_overwritten_bytes_never_raise(tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int, cut: int) -> None:
    data = bytearray(tar_bytes([("n" * 150 + ".jpg", b"1"), *samples(3, size=50)]))
    data[place : place + len(noise)] = noise
    path = tmp_path_factory.mktemp("t") / "a.tar"
    path.write_bytes(data[: len(data) - cut] if cut else data)
    result = assert_same_for_all_cuts(source_of("webdataset", path), [1000])
    if result.damage:  # of malformed pax records tarfile thinks nothing, though the size may stand there
        assert result.counted is None or result.counted >= len(result.documents)
    else:
        assert_census_agrees(result)


@pytest.mark.parametrize(
    ("change", "reason", "documents", "start"),
    [
        (lambda data: b"", "tar-empty", 0, 0),
        (lambda data: gzip.compress(data), "tar-compressed", 0, 0),
        (lambda data: b"<html>" + bytes(2000), "tar-invalid-header", 0, 0),
        (lambda data: data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512), "tar-no-end", 3, None),
        (lambda data: data + data, "tar-data-behind-end", 3, 10240),
        (lambda data: data + b"x", "tar-data-behind-end", 3, 10240),
    ],
)
def test_damage_is_named(tmp_path: Path, change, reason: str, documents: int, start: int | None) -> None:
    data = change(tar_bytes(samples(3, size=100)))
    (tmp_path / "a.tar").write_bytes(data)
    result = assert_same_for_all_cuts(source_of("webdataset", tmp_path / "a.tar"), [1])
    (damage,) = result.damage
    assert (damage.locator, damage.reason, damage.stop) == ("a.tar", reason, len(data))
    assert start is None or damage.start == start
    assert len(result.good) == documents
    assert result.counted is None


def test_a_missing_end_leaves_a_last_sample_that_lacks_its_caption_out(tmp_path: Path) -> None:
    data = tar_bytes([*samples(2), ("zzz.jpg", JPEG)])
    (tmp_path / "a.tar").write_bytes(data.rstrip(b"\0") + bytes(-len(data.rstrip(b"\0")) % 512))
    result = read_tar(tmp_path / "a.tar")
    assert len(result.documents) == 2
    assert "'zzz'" in result.damage[0].message
    assert result.damage[0].start < result.damage[0].stop


# --- sidecars --------------------------------------------------------------------------------------------------------


def write_sidecar(path: Path) -> Path:
    columns = {
        "key": ["000000000", "000000001", "000000002", "000000007", None, "000000007"],
        "status": ["success", "failed_to_download", "success", "failed_to_download", "failed_to_resize", "success"],
        "error_message": [None, "late", None, "HTTP Error 404", "too small", None],
        "url": [f"http://x/{n}" for n in range(6)],
    }
    return write_parquet(path, columns)


def test_sidecar_rows_become_failures(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "00000.parquet")
    source = source_of("webdataset", write(tmp_path / "00000.tar", samples(2)))
    assert [file.name for file in source.companions()] == ["00000.parquet"]
    result = assert_same_for_all_cuts(source, [1, 3000])
    assert result.failures == {
        "00000.tar#000000002": "missing-from-tar",
        "00000.tar#000000007": "failed-to-download",
        "00000.parquet:4": "failed-to-resize",
        "00000.parquet:5": "missing-from-tar",
    }
    failed = next(document for document in result.documents if document.id == "000000007")
    assert failed.failure is not None
    assert (failed.failure.outcome, failed.failure.message) == (Outcome.FAILED_UPSTREAM, "HTTP Error 404")
    assert failed.metadata["url"] == "http://x/3"
    assert len(result.good) == 2
    assert_census_agrees(result)


def test_what_a_truncated_tar_lost_is_named_by_its_sidecar(tmp_path: Path) -> None:
    write_sidecar(tmp_path / "00000.parquet")
    (tmp_path / "00000.tar").write_bytes(tar_bytes(samples(3))[:-12_000])
    result = read_tar(tmp_path / "00000.tar")
    assert len(result.damage) == 1
    assert "00000.tar#000000002" in result.failures


@pytest.mark.parametrize("content", [b"", b"PAR1 not really"])
def test_unreadable_sidecar_is_damage(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "00000.parquet").write_bytes(content)
    result = read_tar(write(tmp_path / "00000.tar", samples(2)))
    assert len(result.good) == 2
    (damage,) = result.damage
    assert (damage.locator, damage.start, damage.stop, damage.reason) == (
        "00000.parquet",
        0,
        len(content),
        "sidecar-unreadable",
    )
    assert str(tmp_path) not in damage.message
    assert result.counted is None


def test_another_parquet_beside_the_tar_is_no_sidecar(tmp_path: Path) -> None:
    write_parquet(tmp_path / "00000.parquet", {"caption": ["a"]})
    source = source_of("webdataset", write(tmp_path / "00000.tar", samples(2)))
    assert source.companions() == []
    assert len(read_all(source).documents) == 2


# --- real data -------------------------------------------------------------------------------------------------------


def foreign_samples(path: Path) -> dict[str, dict[str, bytes]]:
    """Samples as the webdataset library groups them."""
    webdataset = pytest.importorskip("webdataset")
    dataset = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return {sample["__key__"]: sample for sample in dataset}


def test_real_img2dataset_shards(shared_data: Path) -> None:
    tars = sorted((shared_data / "images_webdataset").glob("*.tar"))
    result = assert_same_for_all_cuts(source_of("webdataset", *tars), [300_000])
    assert (len(result.good), len(result.documents)) == (920, 936)
    assert_census_agrees(result)
    statuses = Counter(s for tar in tars for s in pq.read_table(tar.with_suffix(".parquet"))["status"].to_pylist())
    assert statuses == {"success": len(result.good), "failed_to_download": result.reasons["failed-to-download"]}
    by_locator = {document.locator: document for document in result.good}
    for tar in tars:
        for key, sample in foreign_samples(tar).items():
            document = by_locator.pop(f"{tar.name}#{key}")
            assert document.segments == (Image(sample["jpg"], f"{key}.jpg"), Text(sample["txt"].decode()))
            assert document.metadata == json.loads(sample["json"])
    assert not by_locator


def test_real_audio_shards(shared_data: Path) -> None:
    tars = sorted((shared_data / "audio_webdataset").glob("*.tar"))
    result = assert_same_for_all_cuts(source_of("webdataset", *tars), [50_000])
    assert len(result.good) == len(result.documents) == 86
    assert result.items == {"audio": 86}
    assert_census_agrees(result)
    texts = [sample["txt"].decode() for tar in tars for sample in foreign_samples(tar).values()]
    assert [document.segments[1] for document in result.good] == [Text(text) for text in texts]


BAD_TARS = {
    "good": (6, {}, None),
    "truncated_mid_member": (3, {}, ("tar-truncated", 16896, 22528)),
    "no_end_blocks": (6, {}, ("tar-no-end", 36352, 36352)),
    "path_traversal": (2, {"unsafe-name": 3}, None),
    "links": (2, {"not-a-regular-file": 2}, None),
    "missing_caption": (6, {}, None),
    "missing_image": (5, {"no-media": 1}, None),
    "wrong_json": (4, {"json-invalid": 2}, None),
    "duplicate_keys": (3, {"duplicate-key": 2}, None),
    "interleaved_members": (6, {}, None),
    "dotted_and_nested_names": (2, {}, None),
    "macos_dotfiles": (3, {}, None),
    "non_utf8_captions": (3, {"text-not-utf8": 3}, None),
    "zero_bytes": (0, {}, ("tar-empty", 0, 0)),
    "empty_valid": (0, {}, None),
    "html_named": (0, {}, ("tar-invalid-header", 0, 1635)),
    "gzip_named": (0, {}, ("tar-compressed", 0, 17971)),
    "mixed_48_samples_8_bad": (48, {}, None),
}


@pytest.mark.parametrize("name", BAD_TARS)
def test_real_bad_tars(shared_data: Path, name: str) -> None:
    good, failures, damage = BAD_TARS[name]
    result = assert_same_for_all_cuts(source_of("webdataset", shared_data / "bad" / "tar" / f"{name}.tar"), [1, 4000])
    assert len(result.good) == good
    assert result.reasons == failures
    assert [(d.reason, d.start, d.stop) for d in result.damage] == ([damage] if damage else [])
    if damage is None:
        assert_census_agrees(result)
    else:
        assert result.counted is None


def test_every_bad_tar_has_its_expectation(shared_data: Path) -> None:
    assert {path.stem for path in (shared_data / "bad" / "tar").glob("*.tar")} == set(BAD_TARS)


def test_scattered_real_tar_equals_the_good_one(shared_data: Path) -> None:
    folder = shared_data / "bad" / "tar"
    good, scattered = (read_all(source_of("webdataset", folder / f"{name}.tar")) for name in ("good", "interleaved_members"))
    assert [document.hash for document in scattered.good] == [document.hash for document in good.good]


def test_counting_gives_signs_of_life(tmp_path: Path) -> None:
    """While the headers are listed, and while the texts are read; the list is not made again for another unit of the tar."""
    path, signs = tmp_path / "0.tar", [0]
    path.write_bytes(tar_bytes(samples(40)))
    source = source_of("webdataset", path)
    first, *others = source.units(20_000)

    def alive() -> None:
        signs[0] += 1

    counted = [source.census(first, alive).documents]
    assert signs[0] >= 3 * 40 + counted[0]  # type: ignore[operator]
    signs[0] = 0
    counted += [source.census(unit, alive).documents for unit in others]
    assert sum(counted) == 40  # type: ignore[arg-type]
    assert signs[0] == sum(counted[1:])  # type: ignore[arg-type]
