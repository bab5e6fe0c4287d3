"""Plans and rows on disk, and the job that makes them."""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import packing_corpus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tokkit.errors import DataError, FingerprintMismatch, UsageError, VerificationError, VocabularyError
from tokkit.packing import gather
from tokkit.packing.gather import TokenFiles, gather_packs, gather_rows
from tokkit.packing.plan import PackPlan, plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.rows import load_rows, read_rows, write_rows
from tokkit.packing.split import LeftOut, Pieces
from tokkit.packing.store import ARRAYS, PlanCounts, StoredPlan, load_plan, pack_folder, save_plan
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.shards.native import open_shards
from tokkit.vocabulary import UnifiedVocabulary

DOCUMENTS = packing_corpus.random_documents(60, seed=1)
PAD = packing_corpus.VOCABULARY.marker("padding")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return packing_corpus.write_directory(tmp_path / "out", {"train": DOCUMENTS, "val": DOCUMENTS[:5]})


def run(directory: Path, **options: object) -> dict[str, dict[str, object]]:
    result = pack(PackConfig.model_validate({"directory": directory, "seq_len": 64, **options}), SilentProgress())
    return {split: vars(entry) for split, entry in result.splits.items()}


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def made_plan() -> PackPlan:
    lengths = np.array([len(ids) for ids, _ in DOCUMENTS])
    return plan_packs(lengths, packing_corpus.span_table(DOCUMENTS), 48)


# ---- plans


def test_round_trip(tmp_path: Path) -> None:
    plan = made_plan()
    assert plan.left_out.by_reason(), "the test needs documents that are left out"
    stored = save_plan(plan, tmp_path, "p", "train", "f" * 64)
    again = load_plan(tmp_path / "packs" / "p" / "train", shards="f" * 64, checksums=True)
    assert again.record == stored.record
    assert np.array_equal(again.pack_offsets, plan.pack_offsets)
    for key in Pieces.__dataclass_fields__:
        array = getattr(again.pieces, key)
        assert isinstance(array.base, np.memmap)
        assert array.dtype == getattr(plan.pieces, key).dtype
        assert np.array_equal(array, getattr(plan.pieces, key))
    for key in LeftOut.__dataclass_fields__:
        assert np.array_equal(getattr(again.left_out(), key), getattr(plan.left_out, key))
    counts = again.record.counts
    assert counts.documents == counts.packed_documents + counts.left_out_documents == len(DOCUMENTS)
    assert counts.tokens + counts.left_out_tokens == sum(len(ids) for ids, _ in DOCUMENTS)
    assert counts.tokens + counts.padding == counts.packs * 48


def test_empty_plan_round_trip(tmp_path: Path) -> None:
    save_plan(plan_packs(np.zeros(0, dtype=np.int64), None, 8), tmp_path, "p", "val", "f")
    stored = load_plan(pack_folder(tmp_path, "p", "val"), checksums=True)
    assert (stored.num_packs, len(stored.pieces), len(stored.left_out())) == (0, 0, 0)


def test_existing_plan_is_not_overwritten(tmp_path: Path) -> None:
    save_plan(made_plan(), tmp_path, "p", "train", "f")
    before = content(tmp_path)
    with pytest.raises(DataError, match="exists already"):
        save_plan(plan_packs(np.array([3]), None, 8), tmp_path, "p", "train", "f")
    assert content(tmp_path) == before


def test_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokkit.packing.store._write_left_out", full)
    with pytest.raises(OSError, match="No space"):
        save_plan(made_plan(), tmp_path, "p", "train", "f")
    assert list((tmp_path / "packs" / "p").iterdir()) == []


def test_plan_for_other_shards_is_refused(tmp_path: Path) -> None:
    stored = save_plan(made_plan(), tmp_path, "p", "train", "a" * 64)
    with pytest.raises(FingerprintMismatch, match=r"aaaa.*bbbb"):
        load_plan(stored.folder, shards="b" * 64)


@pytest.mark.parametrize("name", [*(f"{key}.npy" for key in ARRAYS), "left_out.jsonl"])
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    folder = save_plan(made_plan(), tmp_path, "p", "train", "f").folder
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(VerificationError, match=name):
        load_plan(folder, checksums=True)
    path.write_bytes(whole[:-1])
    with pytest.raises(VerificationError, match=name):
        load_plan(folder)
    path.unlink()
    with pytest.raises(VerificationError, match="missing"):
        load_plan(folder)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 99},
        {"seq_len": "many"},
        {"surprise": 1},
        {"files": {}},
        {"counts": dict.fromkeys(PlanCounts.model_fields, 0)},
    ],
)
def test_damaged_record_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    folder = save_plan(made_plan(), tmp_path, "p", "train", "f").folder
    record = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(DataError):
        load_plan(folder)


def test_missing_or_cut_record_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_plan(tmp_path / "packs" / "p" / "train")
    folder = save_plan(made_plan(), tmp_path, "p", "train", "f").folder
    text = (folder / "plan.json").read_text()
    (folder / "plan.json").write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match="damaged"):
        load_plan(folder)


def test_offsets_that_do_not_span_the_pieces_are_refused(tmp_path: Path) -> None:
    folder = save_plan(made_plan(), tmp_path, "p", "train", "f").folder
    offsets = np.load(folder / "pack_offsets.npy")
    for change in (offsets + 1, offsets - 1):
        np.save(folder / "pack_offsets.npy", change)
        with pytest.raises(DataError, match="span"):
            load_plan(folder)


# ---- rows


@pytest.mark.parametrize("vocabulary", [packing_corpus.VOCABULARY, packing_corpus.WIDE_VOCABULARY], ids=["uint16", "int32"])
@pytest.mark.parametrize("block", [1, 3 * 64 * 4, 1 << 20])
def test_rows_are_the_documents(
    tmp_path: Path, vocabulary: UnifiedVocabulary, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokkit.packing.rows.BLOCK_BYTES", block)
    documents = packing_corpus.random_documents(60, seed=2, vocabulary=vocabulary)
    packing_corpus.write_directory(tmp_path, {"train": documents}, vocabulary=vocabulary)
    shards = open_shards(tmp_path, "train")
    plan = save_plan(plan_packs(shards.lengths, shards.spans, 64), tmp_path, "p", "train", shards.fingerprint)
    told: list[int] = []
    pad = vocabulary.marker("padding")
    rows = write_rows(plan, TokenFiles.of(shards), shards.dtype, pad, told.append)
    assert sum(told) == plan.num_packs == len(rows.tokens)
    assert rows.tokens.dtype == vocabulary.dtype
    for p in range(plan.num_packs):
        pieces = plan.pack(p)
        expected = [documents[d][0][s : s + n] for d, s, n in zip(pieces.document, pieces.start, pieces.length, strict=True)]
        row = np.concatenate([*expected, np.full(64 - pieces.length.sum(), pad)])
        assert np.array_equal(rows.tokens[p], row)
        borders = rows.cu_seqlens[plan.pack_offsets[p] + p : plan.pack_offsets[p + 1] + p + 1]
        assert borders.tolist() == np.cumsum([0, *pieces.length]).tolist()
    assert np.array_equal(np.fromfile(plan.folder / "rows" / "rows.bin", vocabulary.dtype), rows.tokens.ravel())


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.lists(st.integers(0, 30) | st.integers(0, 400), max_size=6), min_size=1, max_size=5),
    st.integers(1, 40) | st.integers(1, 700),
    st.booleans(),
)
def test_gather_from_several_files(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[int]], seq_len: int, streamed: bool
) -> None:
    lengths = np.array([n for file in files for n in file], dtype=np.int64)
    counts = [len(file) for file in files]
    maps = [np.arange(sum(file), dtype=np.uint16) + 1000 * (f + 1) for f, file in enumerate(files)]
    offset = np.concatenate([np.cumsum(file) - file if file else np.zeros(0) for file in files]).astype(np.int64)
    source = TokenFiles(maps, np.repeat(np.arange(len(files), dtype=np.int32), counts), offset, lengths)
    plan = plan_packs(lengths, packing_corpus.span_table([(np.zeros(n), []) for n in lengths]), seq_len)
    stored = save_plan(plan, tmp_path_factory.mktemp("gather"), "p", "train", "f")
    out = np.full((plan.num_packs, seq_len), 9, dtype=np.uint16)
    with patch.object(gather, "STREAMED", 0 if streamed else 1 << 60):  # past the caches, or into them
        gather_rows(source, stored, 0, out, 7)
    for p in range(plan.num_packs):
        pieces = plan.pack(p)
        parts = [
            maps[source.file[d]][offset[d] + s : offset[d] + s + n]
            for d, s, n in zip(pieces.document, pieces.start, pieces.length, strict=True)
        ]
        row = np.concatenate(parts)
        assert np.array_equal(out[p], np.concatenate([row, np.full(seq_len - len(row), 7)]))


@pytest.mark.parametrize(
    ("field", "value"), [("document", 10_000), ("document", -1), ("start", -1), ("start", 10_000), ("length", 10_000)]
)
def test_copying_never_leaves_the_files(directory: Path, field: str, value: int) -> None:
    shards = open_shards(directory, "train")
    pieces = {"document": np.array([0]), "start": np.array([0]), "length": np.array([1], dtype=np.int32)}
    pieces[field] = np.array([value], dtype=pieces[field].dtype)
    with pytest.raises(DataError):
        TokenFiles.of(shards).addresses(Pieces(**pieces))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("document", 10_000),
        ("document", -1),
        ("start", -1),
        ("start", 10_000),
        ("length", 10_000),
        ("length", 0),
        ("length", -1),
    ],
)
def test_batches_never_leave_the_files(directory: Path, field: str, value: int) -> None:
    shards = open_shards(directory, "train")
    plan = save_plan(plan_packs(shards.lengths, shards.spans, 64), directory, "p", "train", shards.fingerprint)
    most = plan.record.counts.max_pieces
    out, borders, numbers = (np.empty(shape, dtype=np.int32) for shape in ((3, 64), (3, most + 2), 3))

    def read(plan: StoredPlan, packs: list[int]) -> None:
        gather_packs(TokenFiles.of(shards), plan, np.array(packs), PAD, out, borders, numbers)

    read(plan, [0, 1, 2])
    columns = {key: np.array(getattr(plan.pieces, key)) for key in ("document", "start", "length")}
    columns[field][0] = value
    damaged = replace(plan, pieces=Pieces(**columns))
    read(damaged, [1, 2, 3])
    for packs in ([0, 1, 2], [2, 1, 0]):
        with pytest.raises(DataError):
            read(damaged, packs)
    for packs in ([0, 1, plan.num_packs], [-1, 0, 1]):
        with pytest.raises(IndexError, match="pack"):
            read(plan, packs)
    for place, offset in ((1, len(plan.pieces) + 1), (1, 0), (0, -1), (1, most + 1)):
        offsets = np.array(plan.pack_offsets)
        offsets[place] = offset
        with pytest.raises(DataError, match="damaged"):
            read(replace(plan, pack_offsets=offsets), [0, 1, 2])


def test_short_token_file_is_found_before_copying(directory: Path) -> None:
    shards = open_shards(directory, "train")
    plan = save_plan(plan_packs(shards.lengths, shards.spans, 64), directory, "p", "train", shards.fingerprint)
    path = directory / "tokens" / "train" / shards.shards[-1].files["bin"].name
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match="shorter"):
        write_rows(plan, TokenFiles.of(shards), shards.dtype, PAD)
    assert not (plan.folder / "rows").exists()


def test_damaged_rows_are_refused(directory: Path) -> None:
    run(directory, name="p", materialize=True)
    plan = load_plan(pack_folder(directory, "p", "train"))
    path = plan.folder / "rows" / "rows.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-2] + b"\xff\xff")
    assert load_rows(plan) is not None
    with pytest.raises(VerificationError, match=r"rows\.bin"):
        load_rows(plan, checksums=True)
    path.write_bytes(whole[:-2])
    with pytest.raises(VerificationError, match=r"rows\.bin"):
        load_rows(plan)


def test_rows_of_another_plan_are_refused(directory: Path) -> None:
    run(directory, name="p", materialize=True)
    folder = pack_folder(directory, "p", "train")
    record = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps(record))  # the same content in other bytes
    with pytest.raises(FingerprintMismatch, match="another plan"):
        load_rows(load_plan(folder))


def test_rows_are_read_within_bounds(directory: Path) -> None:
    run(directory, name="p", materialize=True)
    plan = load_plan(pack_folder(directory, "p", "train"))
    rows = load_rows(plan)
    assert rows is not None
    most = plan.record.counts.max_pieces
    out, borders, numbers = (np.empty(shape, dtype=np.int32) for shape in ((2, 64), (2, most + 2), 2))
    read_rows(plan, rows, np.array([1, 0]), out, borders, numbers)
    assert np.array_equal(out, rows.tokens[[1, 0]])
    assert numbers.tolist() == np.diff(plan.pack_offsets)[[1, 0]].tolist()
    for packs in ([0, plan.num_packs], [-1, 0]):
        with pytest.raises(IndexError, match="pack"):
            read_rows(plan, rows, np.array(packs), out, borders, numbers)
    for offset in (-5, 0, most + 1, len(rows.cu_seqlens)):
        offsets = np.array(plan.pack_offsets)
        offsets[1] = offset
        with pytest.raises(DataError, match="cu_seqlens"):
            read_rows(replace(plan, pack_offsets=offsets), rows, np.array([0, 2]), out, borders, numbers)


def test_padding_id_must_fit(directory: Path) -> None:
    shards = open_shards(directory, "train")
    plan = save_plan(plan_packs(shards.lengths, shards.spans, 64), directory, "p", "train", shards.fingerprint)
    with pytest.raises(ValueError, match="does not fit"):
        write_rows(plan, TokenFiles.of(shards), shards.dtype, 1 << 16)


# ---- the job


def test_job_packs_every_split(directory: Path) -> None:
    result = run(directory)
    assert set(result) == {"train", "val"}
    train = result["train"]
    assert train["folder"] == str(directory / "packs" / "seq64-overlong" / "train")
    assert train["written"]
    assert not train["materialized"]
    assert train["documents"] == len(DOCUMENTS)
    assert train["efficiency"] == train["tokens"] / (64 * train["packs"])
    assert train["bound_volume"] <= train["bound_martello_toth"] <= train["packs"]
    assert json.loads(json.dumps(result)) == result
    shards = open_shards(directory, "val")
    assert load_plan(Path(str(result["val"]["folder"])), shards=shards.fingerprint).record.counts.documents == 5


def test_job_again_changes_nothing(directory: Path) -> None:
    first = run(directory, materialize=True)
    before = content(directory / "packs")
    times = {p: p.stat().st_mtime_ns for p in (directory / "packs").rglob("*")}
    second = run(directory, materialize=True)
    assert content(directory / "packs") == before
    assert {p: p.stat().st_mtime_ns for p in (directory / "packs").rglob("*")} == times
    assert all(not entry["written"] for entry in second.values())
    assert {s: {**e, "written": True} for s, e in second.items()} == first


def test_job_gives_the_same_bytes_elsewhere(directory: Path, tmp_path: Path) -> None:
    other = packing_corpus.write_directory(tmp_path / "other", {"train": DOCUMENTS, "val": DOCUMENTS[:5]})
    run(directory, materialize=True)
    run(other, materialize=True)
    assert content(directory / "packs") == content(other / "packs")


def test_rows_can_be_added_later(directory: Path) -> None:
    run(directory)
    before = content(directory / "packs")
    result = run(directory, materialize=True)
    after = content(directory / "packs")
    assert result["train"]["written"]
    assert result["train"]["materialized"]
    assert {k: v for k, v in after.items() if "rows" not in k} == before
    assert run(directory)["train"]["materialized"]


@pytest.mark.parametrize("other", [{"seq_len": 65}, {"split_policy": "never"}])
def test_a_name_that_is_taken_is_refused(directory: Path, other: dict[str, object]) -> None:
    run(directory, name="mine")
    before = content(directory)
    with pytest.raises(FingerprintMismatch, match=r"another plan of that name.*64 there|overlong there"):
        run(directory, name="mine", **other)
    assert content(directory) == before


def test_a_plan_for_shards_that_have_changed_is_refused(directory: Path) -> None:
    run(directory)
    packing_corpus.write_directory(directory, {"train": DOCUMENTS[1:], "val": DOCUMENTS[:5]})
    before = content(directory)
    with pytest.raises(FingerprintMismatch, match="other token shards"):
        run(directory)
    assert content(directory) == before


def test_what_a_killed_run_left_is_removed(directory: Path) -> None:
    leftovers = [directory / "packs" / "seq64-overlong" / "train.tmp-1-ab"]
    run(directory)
    leftovers.append(directory / "packs" / "seq64-overlong" / "train" / "rows.tmp-1-ab")
    for path in leftovers:
        path.mkdir()
        (path / "rows.bin").write_bytes(b"half")
    run(directory, materialize=True)
    assert not any(path.exists() for path in leftovers)


def test_two_processes_do_not_pack_at_once(directory: Path) -> None:
    (directory / "run").mkdir()
    fd = os.open(directory / "run" / "pack.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match="another process"):
        run(directory)
    os.close(fd)
    run(directory)


def test_unfinished_directory_is_refused(directory: Path) -> None:
    (directory / "manifest.json").unlink()
    (directory / "run").mkdir()
    with pytest.raises(DataError, match="not finished"):
        run(directory)


def test_rows_need_a_padding_marker(directory: Path) -> None:
    vocabulary = packing_corpus.VOCABULARY
    markers = {k: v for k, v in vocabulary.markers.items() if k != "padding"}
    UnifiedVocabulary(vocabulary.size, vocabulary.blocks, markers, origin="x").save(directory / "vocabulary.json")
    with pytest.raises(VocabularyError, match="padding"):
        run(directory, materialize=True)


@pytest.mark.parametrize(
    "options",
    [{"seq_len": 1}, {"seq_len": 1 << 25}, {"name": "../up"}, {"name": ""}, {"split_policy": "sometimes"}, {"sequence": 3}],
)
def test_wrong_options(directory: Path, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        run(directory, **options)


def test_default_name_tells_the_policy(directory: Path) -> None:
    run(directory, split_policy="never")
    assert (directory / "packs" / "seq64-never" / "train" / "plan.json").exists()
    record = load_plan(pack_folder(directory, "seq64-never", "train")).record
    assert record.policy is SplitPolicy.NEVER
    assert record.counts.cut_documents == 0
