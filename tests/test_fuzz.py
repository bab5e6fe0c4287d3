"""Every format and the decoding of pictures under mutated input: a moment of each, and among the slow tests a minute of each.

The seeds are fixed, so that these fail for a change and not by chance; ``tests/fuzz_sources.py`` looks further. How long a
slow test takes is ``TOKKIT_FUZZ_SECONDS``.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import signal
import struct
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz_sources import Report, case, fuzz, one, seeds_of
from fuzz_targets import TARGETS, Files, Finding, Target
from shard_corpus import picture
from sources_helpers import read_all, source_of
from warc_helpers import record, response

from tokkit.sources.parquet_footer import group_places
from tokkit.sources.recognise import recognise

pytest.importorskip("resiliparse")

CASES = 5000  # at most, so that a faster machine does not come to other cases
SECONDS = float(os.environ.get("TOKKIT_FUZZ_SECONDS", "60"))


def assert_nothing_found(report: Report) -> None:
    told = [f"{kind} ({report.counts[kind]} times)\n" + "\n".join(found) for kind, found in report.findings.items()]
    assert not told, "\n\n".join(told)


@pytest.mark.parametrize("name", TARGETS)
def test_a_moment_of_each(name: str, tmp_path: Path) -> None:
    """A hundred cases: the seeds as they are, and the first changed ones."""
    report = fuzz(TARGETS[name], 2.0, seed=0, out=tmp_path / "findings", at_most=100)
    assert_nothing_found(report)
    assert report.cases >= 10
    assert sum(report.outcomes.values()) == report.cases


# What are kinds of one format has its minute together.
FORMATS = [
    ("obelics", "hf_parquet", "img2dataset", "text_parquet"),
    ("tar", "tar.gz"),
    ("jsonl", "jsonl.gz", "jsonl.zst", "jsonl.zip"),
    ("mmc4", "llava_list", "llava_lines"),
    ("csv", "tsv"),
    ("nemo", "lhotse", "lhotse_supervisions", "librispeech", "common_voice", "hf_audio"),
    ("warc", "warc.gz", "warc.gz_stream", "wet", "arc"),
    ("text", "image_folder"),
    ("gif", "tiff", "avif", "others"),
]
SHARES = {name: len(kinds) for kinds in FORMATS for name in kinds}


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_a_minute_of_each(name: str, tmp_path: Path) -> None:
    report = fuzz(TARGETS[name], SECONDS / SHARES.get(name, 1), seed=1, out=tmp_path / "findings", at_most=CASES)
    assert_nothing_found(report)
    assert len(report.outcomes) > 1


# ---- the fuzzing itself


def test_a_case_is_the_same_each_time_and_differs_from_others() -> None:
    target = TARGETS["tar"]
    first = [case(target, 5, number) for number in range(40)]
    assert first == [case(target, 5, number) for number in range(40)]
    assert first[20:] != [case(target, 6, number) for number in range(20, 40)]
    assert len({str(sorted(files.items())) for files in first}) > 30


def _bad(folder: Path) -> str:
    """As a library may: over some bytes it raises, hangs, dies, or takes all memory."""
    match (folder / "a").read_bytes():
        case b"raises":
            raise KeyError("x")
        case b"wrong":
            raise Finding("3 counted, 4 read")
        case b"dies":
            os.kill(os.getpid(), signal.SIGSEGV)
        case b"leaves":
            os._exit(3)
        case b"memory":
            assert bytearray(b"x" * (600 << 20))
        case b"hangs":
            while True:
                pass
    return "documents"


def _files(*contents: bytes) -> list[Files]:
    return [{"a": content} for content in contents]


def test_what_goes_wrong_is_found_and_the_other_cases_are_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fuzz_sources.CPU_SECONDS", 6)
    contents = (b"fine", b"raises", b"dies", b"leaves", b"fine", b"hangs", b"memory", b"wrong", b"fine")
    target = Target("own", _bad, lambda: _files(*contents), ("a",))
    monkeypatch.setitem(TARGETS, "own", target)
    report = fuzz(target, 60.0, seed=0, out=tmp_path, at_most=len(contents))
    assert report.cases == len(contents)
    assert report.outcomes == {"documents": 3, "finding": 3, "died": 3}
    raised = next(kind for kind in report.findings if kind.startswith("KeyError at test_fuzz.py"))
    died = {"died: SIGSEGV", "died: exit code 3", "died: more than 6 s of processor time"}
    assert set(report.findings) == {raised, "memory", " counted,  read", *died}
    assert (tmp_path / "own-0-2" / "a").read_bytes() == b"dies"
    assert "own:0:7" in report.findings[" counted,  read"][0]


# ---- what was found once


def found(name: str, files: Files, tmp_path: Path) -> str:
    entry = one(TARGETS[name], files, tmp_path / "case")
    assert "kind" not in entry, entry["message"]
    return str(entry["outcome"])


def tar_header(name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, **fields: bytes) -> bytes:
    """One member; ``size`` gives the header another one than the data has."""
    info = tarfile.TarInfo(name)
    info.size, info.type = len(data), kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    if "size" in fields:
        block[124:136] = fields["size"]
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data.ljust(-(-len(data) // 512) * 512, b"\0")


def pax(text: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    record = b" " + text + b"\n"
    length = len(record) + len(str(len(record) + 2))
    return tar_header("pax", str(length).encode() + record, kind)


END = bytes(1024)
PAIRS = [tar_header(f"{n}.{suffix}") for n in range(4) for suffix in ("jpg", "txt")]
LONG = "d" * 120 + ".jpg"

STRANGE_TARS = {
    "a size that no file has": ([*PAIRS, tar_header("4.jpg", size=b"\x80" + bytes(3) + b"\x7f" + bytes(7))], "damage"),
    "a negative size": ([*PAIRS, tar_header("4.jpg", size=b"\xff" * 12)], "damage"),
    "an extension as large as memory": (
        [*PAIRS, tar_header("L", kind=b"L", size=b"\x80" + bytes(4) + b"\x7f" + bytes(6))],
        "damage",
    ),
    "a pax record of a wrong length": ([*PAIRS, tar_header("x", b"99 path=a.jpg\n", b"x"), *PAIRS], "damage"),
    "a part of what a sparse file says": ([*PAIRS, pax(b"GNU.sparse.size=1"), tar_header("4.jpg")], "failure"),
    "sparse files all at once": ([pax(b"GNU.sparse.major=1", b"g"), *PAIRS], "damage"),
    "one name for all": ([pax(b"path=a.jpg", b"g"), *PAIRS], "damage"),
    "a type that nobody knows": ([*PAIRS, tar_header("4.jpg", kind=b"V")], "documents"),
    "two long names": ([tar_header("L", name, b"L") for name in (b"a.jpg\0", b"b.jpg\0")] + PAIRS, "damage"),
    "two pax headers": ([pax(b"path=a.jpg"), pax(b"path=b.jpg"), *PAIRS], "damage"),
    "two kinds of names": ([tar_header("L", b"a.jpg\0", b"L"), pax(b"path=b.jpg"), *PAIRS], "damage"),
    "two kinds of names, the pax header first": ([pax(b"path=b.jpg"), tar_header("L", b"a.jpg\0", b"L"), *PAIRS], "damage"),
    "a long name behind its length": ([tar_header("L", LONG.encode(), b"L", size=b"00000000005\0"), *PAIRS], "damage"),
    "a long name without its last zero": ([tar_header("L", LONG.encode(), b"L"), tar_header("4.jpg"), *PAIRS], "documents"),
}


@pytest.mark.parametrize("what", STRANGE_TARS)
def test_tars_that_readers_take_differently_are_told_or_counted_alike(tmp_path: Path, what: str) -> None:
    """What the count took for one thing and the reading for another stopped whole runs."""
    blocks, outcome = STRANGE_TARS[what]
    assert found("tar", {"a.tar": b"".join(blocks) + END}, tmp_path) == outcome


def parquet(table: pa.Table, rows: int = 2) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, row_group_size=rows)
    return out.getvalue()


def in_the_footer(data: bytes, old: bytes, new: bytes) -> bytes:
    length = struct.unpack("<I", data[-8:-4])[0]
    footer = data[-8 - length : -8]
    assert old in footer
    footer = footer.replace(old, new)
    return data[: -8 - length] + footer + struct.pack("<I", len(footer)) + data[-4:]


def test_columns_of_one_name(tmp_path: Path) -> None:
    texts = pa.array(["a", "b", "c"])
    twice = pa.table([texts, texts], ["text", "text"])
    assert found("text_parquet", {"a.parquet": parquet(twice)}, tmp_path) == "damage"
    (tmp_path / "a.parquet").write_bytes(parquet(twice))
    assert recognise(tmp_path / "a.parquet").why == "several columns are called text"
    pictures = pa.array([{"bytes": b"x", "path": "x"}] * 3)
    assert found("hf_parquet", {"a.parquet": parquet(pa.table([pictures, pictures], ["image", "image"]))}, tmp_path) == "damage"
    sidecar = parquet(pa.table([texts, texts, texts], ["key", "status", "status"]))
    assert found("tar", {"a.tar": b"".join(PAIRS) + END, "a.parquet": sidecar}, tmp_path) == "damage"


def test_a_columns_name_that_is_not_utf8(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b"], "other": ["a", "b"]})
    data = in_the_footer(parquet(table), b"other", b"\xff\xff\xff\xff\xff")
    assert found("text_parquet", {"a.parquet": data}, tmp_path) == "damage"


def test_a_footer_over_which_arrow_ends_the_process(tmp_path: Path) -> None:
    """A histogram of three entries where there can be two, in the statistics of a column that nobody asked for."""
    data = parquet(pa.table({"text": ["a", None, "b"]}), 3)
    target = TARGETS["text_parquet"]
    files: Files = {"a.parquet": in_the_footer(data, b"\x26\x02\x04", b"\x36\x02\x04\x00")}
    report = in_a_process(target, files)
    assert_nothing_found(report)
    assert report.cases == 1


def in_a_process(target: Target, files: Files) -> Report:
    own = dataclasses.replace(target, name="own", seeds=lambda: [files])
    TARGETS["own"] = own
    seeds_of.cache_clear()
    try:
        return fuzz(own, 30.0, seed=0, at_most=1)
    finally:
        del TARGETS["own"]
        seeds_of.cache_clear()


def test_places_of_row_groups_are_those_that_arrow_tells(tmp_path: Path) -> None:
    columns = {"a": ["x" * n for n in range(50)], "b": [[{"c": n, "d": None}] * (n % 3) for n in range(50)], "e": [1.5] * 50}
    for codec in ("snappy", "none", "zstd"):
        path = tmp_path / f"{codec}.parquet"
        pq.write_table(pa.table(columns), path, row_group_size=7, compression=codec, use_dictionary=["a"])
        metadata = pq.read_metadata(path)
        assert len(group_places(str(path))) == metadata.num_row_groups == 8
        for number, place in enumerate(group_places(str(path))):
            group = metadata.row_group(number)
            chunks = [group.column(n) for n in range(group.num_columns)]
            starts = [c.dictionary_page_offset if c.has_dictionary_page else c.data_page_offset for c in chunks]
            sizes = [c.total_compressed_size for c in chunks]
            stop = max(start + size for start, size in zip(starts, sizes, strict=True))
            assert (place.start, place.stop, place.bytes) == (min(starts), stop, sum(sizes))


@pytest.mark.parametrize("given", [0, 1, 3], ids=["none", "fewer", "more"])
def test_rows_that_arrow_leaves_out_without_a_word_are_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: int
) -> None:
    """Over some damaged pages Arrow gives fewer rows than the group has, and no error."""
    original = pq.ParquetFile.iter_batches

    def other_rows(self: pq.ParquetFile, size: int, groups: list[int], columns: list[str], use_threads: bool) -> object:
        if groups != [1]:
            return original(self, size, groups, columns, use_threads=use_threads)
        return [pa.record_batch({"text": [f"other {n}" for n in range(given)]})]

    (tmp_path / "a.parquet").write_bytes(parquet(pa.table({"text": [f"text {n}" for n in range(6)]})))
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", other_rows)
    result = read_all(source_of("text_parquet", tmp_path / "a.parquet"))
    rows = [int(document.locator.rpartition(":")[2]) for document in result.documents]
    assert rows == [0, 1, *range(2, 2 + min(given, 2)), 4, 5]
    (damage,) = result.damage
    assert damage.reason == "parquet-unreadable"
    told = {0: "rows 2 to 3 cannot be read: fewer", 1: "rows 3 to 3 cannot be read: fewer", 3: "behind row 3: more"}
    assert damage.message.startswith(told[given])
    assert 0 < damage.start < damage.stop < (tmp_path / "a.parquet").stat().st_size


def test_a_media_columns_texts_are_looked_at_when_it_is_counted(tmp_path: Path) -> None:
    """Paths that are not UTF-8 and metadata that is no text make rows fail, which the count has to know."""
    bad = pa.array([b"\xff.png", b"b.png"]).view(pa.string())
    pictures = pa.StructArray.from_arrays([pa.array([b"x", b"y"]), bad], ["bytes", "path"])
    assert found("hf_parquet", {"a.parquet": parquet(pa.table({"image": pictures}))}, tmp_path) == "failure"
    lists = pa.ListArray.from_arrays([0, 1, 2], pictures)
    texts = pa.array([[None], [None]], pa.list_(pa.string()))
    assert found("obelics", {"a.parquet": parquet(pa.table({"images": lists, "texts": texts}))}, tmp_path) == "failure"
    images = pa.array([["a.png"], ["b.png"]])
    columns = {"images": images, "texts": texts, "metadata": pa.array([b"[null]", None])}
    assert found("obelics", {"a.parquet": parquet(pa.table(columns))}, tmp_path) == "failure"


def zipped(name: str = "a.jsonl", data: bytes = b'{"text": "x"}\n' * 9) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


@pytest.mark.parametrize("field", range(0, 24, 2))
@pytest.mark.parametrize("number", [0xFFFF, 0x7FFF, 0])
def test_numbers_in_the_directory_of_a_zip(tmp_path: Path, field: int, number: int) -> None:
    """Sizes and offsets outside of the file were an error of the disk, which stops a run for ever."""
    data = zipped()
    place = len(data) - 22 + field if field < 22 else data.index(b"PK\1\2") + 42
    changed = data[:place] + struct.pack("<H", number) + data[place + 2 :]
    assert found("jsonl.zip", {"a.jsonl.zip": changed}, tmp_path) in ("damage", "documents")


def test_a_zip_whose_file_has_no_name(tmp_path: Path) -> None:
    data = zipped("QQ").replace(b"\x02\0\0\0", bytes(4)).replace(b"QQ", b"")
    place = data.index(b"PK\1\2")
    end = struct.pack("<II", len(data) - 22 - place, place)
    assert found("jsonl.zip", {"a.jsonl.zip": data[:-10] + end + data[-2:]}, tmp_path) == "damage"


def test_of_two_zips_in_one_file_the_first_is_not_lost_in_silence(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zip").write_bytes(zipped() + zipped())
    result = read_all(source_of("jsonl", tmp_path / "a.jsonl.zip"))
    assert [(d.reason, d.start) for d in result.damage] == [("zip-not-one-file", 0)]
    assert result.documents == []
    assert result.counted is None


@pytest.mark.parametrize(
    "declared", [b"\xa0text/plain", b"text/html\r\n charset=utf-8", b"\r\n image/png", b"text/html charset=x"]
)
def test_what_a_record_is_reading_and_counting_agree_upon(tmp_path: Path, declared: bytes) -> None:
    """Bytes that one took for spaces and the other did not, and fields that go on in the next line."""
    given = b"Content-Type:" + declared
    answer = response("http://e.example/", b"<p>text", "text/html").replace(b"Content-Type: text/html", given)
    length = len(answer.partition(b"\r\n\r\n")[2]) - 4
    answer = re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % length, answer, count=1)
    text = record("conversion", "http://e.example/", b"text", "text/plain").replace(b"Content-Type: text/plain", given)
    for name in ("warc", "wet"):
        assert found(name, {"a.warc": answer + text}, tmp_path / name) == "documents"


@pytest.mark.parametrize("name", ["", ".", "/", "..", "\0", "a" * 5000 + ".png"])
def test_rows_of_a_picture_folder_that_name_no_file(tmp_path: Path, name: str) -> None:
    row = json.dumps({"file_name": name, "text": "x"}).encode()
    files = {"0.png": picture(0), "metadata.jsonl": row}
    assert found("image_folder", files, tmp_path) in ("failure", "damage", "documents")
