"""Compressed tars: what a plain tar gives, from a stream, whatever the order of its members and however the stream ends."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import JPEG, Result, assert_census_agrees, read_all, samples, source_of, tar_bytes, write_parquet

from tokkit.errors import FingerprintMismatch
from tokkit.pipelines.plan import check_unchanged
from tokkit.sources import tarstream
from tokkit.sources.resolve import resolve_inputs
from tokkit.sources.tarstream import BOMB_RATIO


def zstd(data: bytes) -> bytes:
    return pa.compress(data, "zstd", asbytes=True)


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "a.tar.gz": gzip.compress, "a.tgz": gzip.compress, "a.tar.zst": zstd, "a.tar.bz2": bz2.compress,
}  # fmt: skip


def both(folder: Path, tar: bytes, name: str = "a.tar.gz") -> tuple[Result, Result]:
    """A tar read plain and compressed, the latter's locators as if it was plain."""
    (folder / "plain").mkdir(exist_ok=True)
    (folder / "plain" / "a.tar").write_bytes(tar)
    (folder / name).write_bytes(PACKED[name](tar))
    return read_all(source_of("webdataset", folder / "plain" / "a.tar")), read_all(source_of("webdataset", folder / name))


def identity(result: Result, name: str) -> list[tuple[object, ...]]:
    return [(str(where).replace(name, "a.tar", 1), *rest) for where, *rest in result.identity]


def assert_same(plain: Result, packed: Result, name: str = "a.tar.gz") -> None:
    assert identity(packed, name) == plain.identity
    assert [d.reason for d in packed.damage] == [d.reason for d in plain.damage]
    assert (packed.counted, packed.counted_items) == (plain.counted, plain.counted_items)


@pytest.mark.parametrize("name", PACKED)
def test_it_is_read_as_the_plain_tar_is(tmp_path: Path, name: str) -> None:
    rows = [{"key": f"{number:09d}", "status": "success" if number < 40 else "failed_to_download"} for number in range(45)]
    for folder in (tmp_path, tmp_path / "plain"):
        folder.mkdir(exist_ok=True)
        write_parquet(folder / "a.parquet", {key: [row[key] for row in rows] for key in ("key", "status")})
    plain, packed = both(tmp_path, tar_bytes(samples(40, 5000)), name)
    assert_same(plain, packed, name)
    assert packed.units == 1
    assert packed.reasons == {"failed-to-download": 5}
    assert_census_agrees(packed)
    (source,) = resolve_inputs([str(tmp_path / name)]).sources
    assert source.format == "webdataset"
    resolved = resolve_inputs([str(tmp_path)])
    assert sorted(file.name for source in resolved.sources for file in source.files) == [name, "plain/a.tar"]
    (unit,) = source.units(1000)
    check_unchanged(source, unit)
    write_parquet(tmp_path / "a.parquet", {"key": ["other"], "status": ["success"]})
    with pytest.raises(FingerprintMismatch, match=r"a\.parquet"):
        check_unchanged(source, unit)


def test_every_broken_tar_comes_to_the_same_compressed(shared_data: Path, tmp_path: Path) -> None:
    tars = sorted((shared_data / "bad" / "tar").glob("*.tar"))
    assert len(tars) > 15
    for path in tars:
        for name in ("a.tar.gz", "a.tar.zst"):
            plain, packed = both(tmp_path, path.read_bytes(), name)
            if path.name == "zero_bytes.tar" and name.endswith("zst"):
                continue  # nothing compresses to nothing
            assert_same(plain, packed, name)


members = st.lists(
    st.tuples(st.sampled_from("abcde"), st.sampled_from(["jpg", "txt", "json", "png"]), st.integers(0, 3000)), max_size=24
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=members,
    held=st.sampled_from([0, 1500, 4000, 1 << 20]),
    format_=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_any_order_of_members(
    tmp_path_factory: pytest.TempPathFactory, found: list[tuple[str, str, int]], held: int, format_: int
) -> None:
    folder = tmp_path_factory.mktemp("t")
    content = {"txt": b"words ", "json": b'{"caption": "c"}', "jpg": JPEG, "png": JPEG}
    listed = [(f"{key * 60}/{key}.{end}", content[end] + (b" " if end == "json" else b"x") * size) for key, end, size in found]
    before, tarstream.HELD_BYTES = tarstream.HELD_BYTES, held
    try:
        assert_same(*both(folder, tar_bytes(listed, format_)))
    finally:
        tarstream.HELD_BYTES = before


def test_columns_one_behind_another_are_read_in_passes_and_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = random.Random(0)
    pictures = [(f"{n:03d}.jpg", JPEG + noise.randbytes(500_000)) for n in range(60)]  # 30 MB
    captions = [(f"{n:03d}.txt", f"caption {n}".encode()) for n in range(60)]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes([*pictures, *captions]), 1))
    monkeypatch.setattr(tarstream, "HELD_BYTES", 5 << 20)
    passes = []
    init = tarstream.StreamView.__init__
    monkeypatch.setattr(tarstream.StreamView, "__init__", lambda *a, **k: (passes.append(1), init(*a, **k))[1])
    source = source_of("webdataset", path)
    (unit,) = source.units(1)
    tracemalloc.start()
    count = 0
    for document in source.read(unit):
        assert document.failure is None  # type: ignore[union-attr]
        assert len(document.segments) == 2  # type: ignore[union-attr]
        count += 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 60
    assert 6 <= len(passes) <= 8
    assert peak < 12 << 20
    assert source.census(unit).documents == 60


def test_what_lies_together_is_gone_through_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tgz"
    path.write_bytes(gzip.compress(tar_bytes(samples(300, 20_000))))
    monkeypatch.setattr(tarstream, "HELD_BYTES", 100_000)
    pulled = []
    advance = tarstream.StreamView._advance
    monkeypatch.setattr(tarstream.StreamView, "_advance", lambda view, wanted: (pulled.append(view), advance(view, wanted))[1])
    assert len(read_all(source_of("webdataset", path), census=False).good) == 300
    assert len(set(map(id, pulled))) == 2


def test_signs_of_life_while_a_stream_is_gone_through(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes([("a.jpg", random.Random(0).randbytes(20 << 20)), ("a.txt", b"a")]), 1))
    source = source_of("webdataset", path)
    (unit,) = source.units(1)
    signs = []
    reader = source.read(unit)
    reader.alive = lambda: signs.append(1)
    assert len(list(reader)) == 1
    assert len(signs) > 2 * 20
    signs.clear()
    source.census(unit, lambda: signs.append(1))
    assert len(signs) > 2 * 5


# ---- streams that break


@pytest.mark.parametrize("name", PACKED)
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_stream_that_ends_too_early(tmp_path: Path, name: str, share: float) -> None:
    noise = random.Random(1)
    listed = [m for n in range(60) for m in ((f"{n:03d}.jpg", noise.randbytes(30_000)), (f"{n:03d}.txt", b"a caption"))]
    whole = PACKED[name](tar_bytes(listed))
    path = tmp_path / name
    path.write_bytes(whole[: int(len(whole) * share)])
    result = read_all(source_of("webdataset", path))
    kind = {"zst": "zstd", "bz2": "bzip2"}.get(name.rpartition(".")[2], "gzip")
    (damage,) = result.damage
    assert damage.reason == f"{kind}-truncated"
    assert damage.stop == path.stat().st_size
    assert result.counted is None
    assert [document.id for document in result.good] == [f"{n:03d}" for n in range(len(result.good))]
    assert not result.failures
    assert len(result.good) >= int(60 * share) - (32 if kind == "bzip2" else 4 if share < 0.99 else 2)  # bzip2: 900 kB a block
    assert damage.start >= len(result.good) * 30_000 - (300_000 if kind == "gzip" else 1_200_000)


def test_a_wrong_checksum_and_what_follows_the_end(tmp_path: Path) -> None:
    good = gzip.compress(tar_bytes(samples(20)))
    path = tmp_path / "a.tar.gz"
    for data, reason in {
        good[:-8] + bytes([good[-8] ^ 1]) + good[-7:]: "gzip-damaged",
        good + b"and more": "gzip-trailing-garbage",
        good + good: "tar-data-behind-end",
        b"not gzip at all": "gzip-invalid",
        b"": "gzip-truncated",
    }.items():
        path.write_bytes(data)
        result = read_all(source_of("webdataset", path))
        assert [damage.reason for damage in result.damage] == [reason]
        assert len(result.good) == (20 if len(data) > 100 else 0)
        assert result.counted is None
    path.write_bytes(good + b"\0" * 1000)  # padding
    result = read_all(source_of("webdataset", path))
    assert (len(result.good), result.damage) == (20, [])
    parts = tar_bytes(samples(20))
    path.write_bytes(gzip.compress(parts[:9999]) + gzip.compress(parts[9999:]))  # as pigz and cat write them
    result = read_all(source_of("webdataset", path))
    assert (len(result.good), result.damage, result.counted) == (20, [], 20)


@pytest.mark.parametrize("name", PACKED)
def test_a_flipped_bit_is_damage_or_harmless_and_never_silent(tmp_path: Path, name: str) -> None:
    noise = random.Random(2)
    listed = [m for n in range(30) for m in ((f"{n:03d}.jpg", noise.randbytes(20_000)), (f"{n:03d}.txt", b"a caption"))]
    tar = tar_bytes(listed)
    path = tmp_path / name
    whole = bytearray(PACKED[name](tar))
    path.write_bytes(whole)
    before = {document.id: document.hash for document in read_all(source_of("webdataset", path)).documents}
    for _ in range(12):
        place = noise.randrange(20, len(whole))
        spoilt = bytearray(whole)
        spoilt[place] ^= 1 << noise.randrange(8)
        path.write_bytes(spoilt)
        result = read_all(source_of("webdataset", path))
        after = {document.id: document.hash for document in result.documents}
        if name != "a.tar.zst":  # whose frames need not have a checksum
            assert result.damage or after == before


@pytest.mark.parametrize("suffix", ["txt", "jpg"])
def test_a_member_of_negative_size_is_damage(tmp_path: Path, suffix: str) -> None:
    """Python's reader takes such a header, and goes on behind it."""
    name = f"000000009.{suffix}"
    tar = bytearray(tar_bytes([*samples(3, 100), (name, b"")]))
    header = next(at for at in range(0, len(tar), 512) if tar.startswith(name.encode(), at))
    info = tarfile.TarInfo.frombuf(bytes(tar[header : header + 512]), "utf-8", "strict")
    info.size = -3
    tar[header : header + 512] = info.tobuf(tarfile.GNU_FORMAT)
    plain, packed = both(tmp_path, bytes(tar))
    assert [d.reason for d in packed.damage] == [d.reason for d in plain.damage] == ["tar-invalid-header"]
    assert identity(packed, "a.tar.gz") == plain.identity
    assert packed.counted is None


def test_bombs_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tarstream, "BOMB_BYTES", 16 << 20)
    path = tmp_path / "a.tar.gz"
    behind = io.BytesIO()
    with gzip.open(behind, "wb", 9) as file:
        file.write(tar_bytes(samples(3)))
        for _ in range(60):
            file.write(bytes(1 << 20))
    assert BOMB_RATIO * len(behind.getvalue()) < 60 << 20
    path.write_bytes(behind.getvalue())
    result = read_all(source_of("webdataset", path))
    assert [damage.reason for damage in result.damage] == ["gzip-bomb"]
    assert len(result.good) == 3
    info = tarfile.TarInfo("000000009.jpg")
    info.size = 1 << 40
    path.write_bytes(gzip.compress(tar_bytes(samples(3))[:-9216].rstrip(b"\0") + bytes(512) + info.tobuf() + bytes(1000)))
    result = read_all(source_of("webdataset", path))
    assert len(result.damage) == 1
    (unit,) = source_of("webdataset", path).units(1)
    assert source_of("webdataset", path).census(unit).documents is None


def test_an_oversized_member_is_a_reject_and_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tokkit.sources import webdataset

    monkeypatch.setattr(webdataset, "MAX_ITEM_BYTES", 1000)
    listed = [("a.jpg", JPEG), ("a.txt", b"a"), ("b.jpg", b"x" * 5000), ("b.txt", b"b"), ("c.jpg", JPEG), ("c.txt", b"c")]
    path = tmp_path / "a.tar.gz"
    path.write_bytes(gzip.compress(tar_bytes(listed)))
    result = read_all(source_of("webdataset", path))
    assert [document.id for document in result.documents] == ["a", "b", "c"]
    assert result.failures == {"a.tar.gz#b": "member-too-large"}
    assert_census_agrees(result)


def test_a_file_that_is_cut_between_two_passes_is_an_error_of_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.tar.gz"
    whole = gzip.compress(tar_bytes([(name, random.Random(0).randbytes(100_000)) for name in ("a.jpg", "b.jpg")]))
    path.write_bytes(whole)
    source = source_of("webdataset", path)
    (unit,) = source.units(1)
    documents = iter(source.read(unit))
    next(documents)
    path.write_bytes(whole[:50_000])
    with pytest.raises(OSError, match="did something write to it"):
        list(source.read(unit)) and list(documents)


def test_metadata_and_captions_are_read(tmp_path: Path) -> None:
    fields = json.dumps({"caption": "from json", "licence": "x"}).encode()
    plain, packed = both(tmp_path, tar_bytes([("k.jpg", JPEG), ("k.json", fields), ("l.jpg", JPEG), ("l.json", b"{")]))
    assert_same(plain, packed)
    assert packed.good[0].metadata == {"caption": "from json", "licence": "x"}
    assert packed.failures == {"a.tar.gz#l": "json-invalid"}
    assert packed.counted_items == {"image": 1}
