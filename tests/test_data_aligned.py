"""Aligned batches: every token moved and none lost, attention unchanged, and the argument contract of Megatron's THD."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import packing_corpus
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from tokkit.data.aligned import AlignedCollator, align
from tokkit.data.attention import dense_mask, flash_attention_kwargs, thd, varlen, with_dense_fields
from tokkit.data.loader import PackedLoader
from tokkit.data.packed import IGNORED, PackedDataset, Row, collate
from tokkit.errors import UsageError
from tokkit.packing.plan import plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.store import save_plan
from tokkit.pipelines.findings import VerifyResult
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.verify_packs import check_packs
from tokkit.shards.native import open_shards

L, MULTIPLE = 128, 8
NAME = f"seq{L}-overlong-align{MULTIPLE}"
FILLED = f"seq{L}-fill-align{MULTIPLE}-mixing0.5"
DOCUMENTS = packing_corpus.random_documents(70, seed=12, given=0.3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = packing_corpus.write_directory(tmp_path_factory.mktemp("aligned"), {"train": DOCUMENTS})
    pack(PackConfig(directory=path, seq_len=L, align=MULTIPLE), SilentProgress())
    pack(PackConfig(directory=path, seq_len=L), SilentProgress())
    filled = PackConfig(directory=path, seq_len=L, align=MULTIPLE, mixing=0.5, split_policy=SplitPolicy.FILL)
    assert pack(filled, SilentProgress()).name == FILLED
    return path


@pytest.fixture(scope="module", params=[NAME, FILLED])
def dataset(directory: Path, request: pytest.FixtureRequest) -> PackedDataset:
    return PackedDataset(directory, request.param, seed=1, labels="shifted", cu_seqlens=True, images=True)


@pytest.fixture(scope="module")
def batches(dataset: PackedDataset) -> tuple[Row, dict[str, Any]]:
    """All rows as they are, and aligned."""
    rows = [dataset[n] for n in range(len(dataset))]
    return collate(rows), AlignedCollator.of(dataset)(rows)


def places(length: int, multiple: int) -> int:
    return -(-length // multiple) * multiple


@settings(deadline=None, max_examples=100)
@given(st.lists(st.integers(1, 64), max_size=80), st.sampled_from([1, 2, 4, 16, 64]), st.floats(0, 1))
def test_a_plan_leaves_the_room(lengths: list[int], multiple: int, mixing: float) -> None:
    plan = plan_packs(np.array(lengths, dtype=np.int64), None, 64, align=multiple, mixing=mixing)
    assert sorted(plan.pieces.document.tolist()) == list(range(len(lengths)))
    assert plan.pieces.length.tolist() == [lengths[d] for d in plan.pieces.document]
    used = [sum(places(n, multiple) for n in plan.pack(k).length.tolist()) for k in range(plan.num_packs)]
    assert max(used, default=0) <= 64
    assert plan.bounds.volume <= plan.bounds.martello_toth <= plan.num_packs
    assert plan.bounds.volume == -(-sum(used) // 64)
    if multiple == 64:
        assert plan.num_packs == len(lengths)


def test_every_token_is_moved(dataset: PackedDataset, batches: tuple[Row, dict[str, Any]]) -> None:
    before, after = batches
    for row in range(len(dataset)):
        at = 0
        borders = before["cu_seqlens"][row].tolist()
        for k in range(int(before["num_segments"][row])):
            old = slice(borders[k], borders[k + 1])
            length = borders[k + 1] - borders[k]
            new, tail = slice(at, at + length), slice(at + length, at + places(length, MULTIPLE))
            assert at % MULTIPLE == 0
            for name in ("input_ids", "segment_ids", "position_ids", "loss_mask", "labels", "modality_ids"):
                assert torch.equal(after[name][row, new], before[name][row, old]), name
                assert after[name].dtype == before[name].dtype
            size = tail.stop - tail.start
            assert (after["input_ids"][row, tail] == dataset.pad_id).all()
            assert (after["segment_ids"][row, tail] == k + 1).all()
            assert after["position_ids"][row, tail].tolist() == list(range(length, length + size))
            assert (after["labels"][row, tail] == IGNORED).all()
            assert not after["loss_mask"][row, tail].any()
            assert not after["modality_ids"][row, tail].any()
            at = tail.stop
            assert int(after["cu_seqlens"][row, k + 1]) == at
        assert after["position_ids"][row, at:].tolist() == list(range(L - at))
        for name in ("segment_ids", "loss_mask", "modality_ids"):
            assert not after[name][row, at:].any()
        assert (after["cu_seqlens"][row, k + 2 :] == L).all()
    assert any(places(n, MULTIPLE) > n for n in before["cu_seqlens"].diff().flatten().tolist())
    assert torch.equal(after["num_loss_tokens"], before["num_loss_tokens"])
    images = [
        (int(r), int(s), int(n)) for r, s, n in zip(*(after[f"images_{x}"] for x in ("row", "start", "length")), strict=True)
    ]
    begin = [
        before["input_ids"][r, s : s + n]
        for r, s, n in zip(*(before[f"images_{x}"] for x in ("row", "start", "length")), strict=True)
    ]
    assert images
    for (row, start, length), expected in zip(images, begin, strict=True):
        assert torch.equal(after["input_ids"][row, start : start + length], expected)


def test_attention_of_every_document_is_what_it_was(batches: tuple[Row, dict[str, Any]]) -> None:
    before, after = batches
    torch.manual_seed(0)
    table = torch.randn(packing_corpus.VOCABULARY.size, 8, dtype=torch.float64)

    def attended(batch: Row) -> torch.Tensor:
        q = table[batch["input_ids"].long()] + batch["position_ids"][..., None] / 7
        return scaled_dot_product_attention(q[:, None], q[:, None], q[:, None], attn_mask=dense_mask(batch))[:, 0]

    inside_before = before["segment_ids"] > 0
    ends = after["cu_seqlens"].long().gather(1, after["segment_ids"].long().clamp(min=1))
    lengths = before["cu_seqlens"].long().diff().gather(1, (after["segment_ids"].long() - 1).clamp(min=0))
    inside_after = (after["segment_ids"] > 0) & (after["position_ids"] < lengths) & (ends > 0)
    torch.testing.assert_close(attended(after)[inside_after], attended(before)[inside_before])


def test_the_contract_of_thd(batches: tuple[Row, dict[str, Any]]) -> None:
    before, after = batches
    found = thd(after)
    padded, real = found["cu_seqlens_q_padded"], found["cu_seqlens_q"]
    assert padded.dtype == real.dtype == torch.int32
    assert (padded % MULTIPLE == 0).all()
    assert (int(padded[0]), int(padded[-1])) == (0, after["input_ids"].numel())
    assert (real.diff() <= padded.diff()).all()
    assert len(real) == len(padded)
    segments = [n for row in range(len(before["input_ids"])) for n in lengths_of(before, after, row)]
    assert real.diff().tolist() == [n for n, _ in segments]
    assert padded.diff().tolist() == [n for _, n in segments]
    assert type(found["max_seqlen_q"]) is int
    assert found["max_seqlen_q"] == found["max_seqlen_kv"] == int(padded.diff().max())
    assert torch.equal(varlen(after).cu_seqlens, padded)  # for kernels that know of one kind of borders
    assert torch.equal(flash_attention_kwargs(after)["seq_idx"][0].long().bincount(), padded.diff().long())
    assert set(thd(before)) == set(found) - {"cu_seqlens_q_padded", "cu_seqlens_kv_padded"}


def lengths_of(before: Row, after: Row, row: int) -> list[tuple[int, int]]:
    """Length and places of each segment of a row; what is behind the last one is a segment too."""
    number = int(before["num_segments"][row])
    found = [(n, places(n, MULTIPLE)) for n in before["cu_seqlens"][row].diff()[:number].tolist()]
    rest = L - sum(n for _, n in found)
    return found + [(rest, rest)] * (rest > 0)


def test_megatron_takes_it(batches: tuple[Row, dict[str, Any]]) -> None:
    """Its parameters, and the rotary embedding of each rank of context parallelism."""
    pytest.importorskip("megatron.core")
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_bshd, _apply_rotary_pos_emb_thd
    from megatron.core.packed_seq_params import PackedSeqParams
    from megatron.core.utils import get_thd_batch_on_this_cp_rank

    _, after = batches
    params = PackedSeqParams(**thd(after))
    flat = {"tokens": after["input_ids"].reshape(1, -1)}
    longest = torch.tensor([params.max_seqlen_q])
    _, theirs = get_thd_batch_on_this_cp_rank(flat, params.cu_seqlens_q, params.cu_seqlens_q_padded, longest, 1, 0)
    assert vars(theirs) == vars(params)

    torch.manual_seed(0)
    tokens = torch.randn(after["input_ids"].numel(), 2, 16)
    positions = after["position_ids"].flatten().long()
    freqs = torch.outer(torch.arange(params.max_seqlen_q), 1.0 / 100 ** (torch.arange(8) / 8))
    freqs = torch.cat([freqs, freqs], 1)[:, None, None]
    expected = _apply_rotary_pos_emb_bshd(tokens[:, None], freqs[positions])[:, 0]
    for size in (1, 2, MULTIPLE // 2):
        for rank in range(size):
            group = SimpleNamespace(size=lambda size=size: size, rank=lambda rank=rank: rank)
            mine = chunks(params.cu_seqlens_q_padded, rank, size)
            found = _apply_rotary_pos_emb_thd(tokens[mine], params.cu_seqlens_q_padded, freqs, cp_group=group)
            torch.testing.assert_close(found, expected[mine])


def chunks(borders: torch.Tensor, rank: int, size: int) -> torch.Tensor:
    """The tokens of a rank: of each segment, cut into 2 * size parts, one from the front and its mirror image."""
    mine = []
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        parts = torch.arange(first, last).chunk(2 * size)
        assert len({len(part) for part in parts}) == 1
        assert len(parts) == 2 * size
        mine += [parts[rank], parts[2 * size - 1 - rank]]
    return torch.cat(mine)


def test_lean_rows_are_made_dense_first(directory: Path) -> None:
    packing_corpus.write_directory(directory / "plain", {"train": packing_corpus.random_documents(30, seed=2)})
    pack(PackConfig(directory=directory / "plain", seq_len=L, align=MULTIPLE), SilentProgress())
    lean = PackedDataset(directory / "plain", NAME, dense=False)
    dense = PackedDataset(directory / "plain", NAME, cu_seqlens=True, modality_ids=False)
    found, expected = (align(collate([d[n] for n in range(3)]), MULTIPLE, d.pad_id) for d in (lean, dense))
    for name, values in found.items():
        assert torch.equal(torch.as_tensor(values), torch.as_tensor(expected[name])), name
    assert torch.equal(with_dense_fields(found)["loss_mask"], found["loss_mask"])  # not made anew of the moved borders


def test_it_is_a_collate_function(dataset: PackedDataset, batches: tuple[Row, dict[str, Any]]) -> None:
    collator = pickle.loads(pickle.dumps(AlignedCollator.of(dataset)))
    assert collator == AlignedCollator(MULTIPLE, dataset.pad_id)
    loader = PackedLoader(dataset, batch_size=2, workers=1, collate_fn=collator, epochs=1)
    first = next(iter(loader))
    assert torch.equal(first["input_ids"], batches[1]["input_ids"][:2])
    assert type(first["max_seqlen"]) is int


def test_rows_without_the_room_are_refused(directory: Path, dataset: PackedDataset) -> None:
    usual = PackedDataset(directory, f"seq{L}-overlong", cu_seqlens=True)
    assert usual.align == 1
    batch = collate([usual[n] for n in range(len(usual))])
    with pytest.raises(UsageError, match="--align 16"):
        align(batch, 16, usual.pad_id)
    with pytest.raises(UsageError, match="parts of 3"):
        align(batch, 3, usual.pad_id)


def test_verify_counts_the_places(directory: Path) -> None:
    shards = open_shards(directory, "train")
    plan = plan_packs(shards.lengths, shards.spans, L)
    save_plan(replace(plan, align=MULTIPLE), directory, "without-room", "train", shards.fingerprint)
    result = VerifyResult()
    check_packs(directory, {"train": shards}, True, result, SilentProgress())
    about = {problem.where: problem.message for problem in result.problems if "splits" not in problem.message}
    assert set(about) == {"packs/without-room/train"}
    assert "places, in sequences of 128" in about["packs/without-room/train"]
