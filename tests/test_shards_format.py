"""The token shards' files: Megatron's index by hand, content-named payloads, span tables, what damage does."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_rows import Row, append

from tokkit.errors import DataError
from tokkit.interleave import Span
from tokkit.shards.megatron import index_bytes, read_index
from tokkit.shards.native import ShardWriter, map_tokens
from tokkit.shards.spans import SpanTable, span_from_dict
from tokkit.storage import create_if_absent, is_attempt, replacing, sha256_file

UINT16, INT32 = np.dtype(np.uint16), np.dtype(np.int32)


def row(name: str, ids: np.ndarray) -> Row:
    length = len(ids)
    spans = (Span("text", 1, 2), Span("image", 3, length - 4, 1, 4, 4, item_hash="ab")) if length > 6 else ()
    return Row(name, ids, spans, '{"k": 1}' if length % 2 else None)


def write(directory: Path, lengths: list[int], dtype: np.dtype = UINT16, name: str | None = "00000") -> dict[str, object]:
    rng = np.random.default_rng(0)
    with ShardWriter(directory, dtype) as writer:
        append(writer, [row(str(i), rng.integers(0, 60000, length)) for i, length in enumerate(lengths)])
        return dict(writer.finish(name, prefix="00007-"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 70000), max_size=40), st.sampled_from([UINT16, INT32]))
def test_the_index_is_megatrons_byte_for_byte(lengths: list[int], dtype: np.dtype) -> None:
    data = index_bytes(np.array(lengths, dtype=np.int64), dtype)
    count = len(lengths)
    assert data[:9] == b"MMIDIDX\x00\x00"
    assert struct.unpack_from("<QBQQ", data, 9) == (1, 8 if dtype == UINT16 else 4, count, count + 1)
    assert list(struct.unpack_from(f"<{count}i", data, 34)) == lengths
    offsets = [sum(lengths[:i]) * dtype.itemsize for i in range(count)]
    assert list(struct.unpack_from(f"<{count}q", data, 34 + 4 * count)) == offsets
    assert list(struct.unpack_from(f"<{count + 1}q", data, 34 + 12 * count)) == list(range(count + 1))
    assert len(data) == 34 + 12 * count + 8 * (count + 1)


def test_a_written_shard_reads_back(tmp_path: Path) -> None:
    lengths = [9, 1, 300, 2, 12]
    write(tmp_path, lengths, INT32)
    dtype, read, pointers = read_index(tmp_path / "00000.idx")
    assert dtype == INT32
    assert read.tolist() == lengths
    tokens = map_tokens(tmp_path / "00000.bin", INT32)
    rng = np.random.default_rng(0)
    for length, pointer in zip(lengths, pointers, strict=True):
        assert tokens[pointer // 4 : pointer // 4 + length].tolist() == rng.integers(0, 60000, length).tolist()
    table = pq.read_table(tmp_path / "00000.parquet")
    assert table.column("tokens").to_pylist() == lengths
    assert table.column("metadata").to_pylist() == ['{"k": 1}', '{"k": 1}', None, None, None]
    spans = SpanTable.from_columns([table.column("spans")])
    assert spans.offsets.tolist() == [0, 2, 2, 4, 4, 6]
    assert spans.modality.tolist() == [0, 1] * 3
    assert spans.length.tolist() == [2, 5, 2, 296, 2, 8]
    assert span_from_dict(table.column("spans").to_pylist()[0][1]) == Span("image", 3, 5, 1, 4, 4, item_hash="ab")


def test_the_bytes_depend_on_the_content_alone(tmp_path: Path) -> None:
    """Documents a hundred at a time, or taken over in other pieces from another shard: the same files, to the byte."""
    lengths = [(i * 37) % 90 + 1 for i in range(9000)]
    first = write(tmp_path, lengths)
    table = pq.read_table(tmp_path / "00000.parquet")
    tokens = map_tokens(tmp_path / "00000.bin", UINT16)
    ends = np.cumsum(lengths)
    with ShardWriter(tmp_path, UINT16) as writer:
        begin = 0
        for end in (1, 2, 4000, 8999, 9000):
            writer.extend(tokens[ends[begin] - lengths[begin] : ends[end - 1]], table.slice(begin, end - begin))
            begin = end
        second = writer.finish("again")
    for suffix in ("bin", "idx", "parquet"):
        assert first[suffix].sha256 == second[suffix].sha256  # type: ignore[attr-defined]
        assert sha256_file(tmp_path / f"again.{suffix}") == second[suffix].sha256
    assert pq.ParquetFile(tmp_path / "again.parquet").num_row_groups == 2


def test_payloads_are_named_by_content_and_attempts_leave_nothing(tmp_path: Path) -> None:
    names = {f.name for _ in range(2) for f in write(tmp_path, [5, 9], name=None).values()}  # type: ignore[attr-defined]
    assert {p.name for p in tmp_path.iterdir()} == names
    assert all(n.startswith("00007-") for n in names)
    with pytest.raises(RuntimeError), ShardWriter(tmp_path, UINT16) as writer:
        append(writer, [row("x", np.arange(9))])
        raise RuntimeError
    assert {p.name for p in tmp_path.iterdir()} == names


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    write(tmp_path, [])
    assert read_index(tmp_path / "00000.idx")[1].tolist() == []
    assert len(map_tokens(tmp_path / "00000.bin", UINT16)) == 0
    assert SpanTable.from_columns([pq.read_table(tmp_path / "00000.parquet").column("spans")]).offsets.tolist() == [0]


def test_a_name_with_a_lone_surrogate_can_be_written(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, UINT16) as writer:
        append(writer, [Row("a\ud800", np.arange(3))])
        writer.finish("x")
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == ["a\\ud800"]


@pytest.mark.parametrize("keep", [0, 8, 33, 60, -1])
def test_a_damaged_index_is_refused(tmp_path: Path, keep: int) -> None:
    write(tmp_path, [9, 1, 300])
    path = tmp_path / "00000.idx"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError):
        read_index(path)


def test_half_a_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"123")
    with pytest.raises(DataError, match="whole number"):
        map_tokens(tmp_path / "x.bin", UINT16)


def test_a_document_too_long_for_the_index_is_refused() -> None:
    with pytest.raises(ValueError, match="at most"):
        index_bytes(np.array([2**31]), INT32)


def test_create_if_absent_has_one_winner_and_leaves_no_trace_of_the_loser(tmp_path: Path) -> None:
    path = tmp_path / "commit.json"
    assert create_if_absent(path, "first")
    assert not create_if_absent(path, "second")
    assert path.read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["commit.json"]


def test_replacing_keeps_the_old_content_until_the_new_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        assert is_attempt(temporary)
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
