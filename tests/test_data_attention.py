"""Attention over packed sequences is attention over each document by itself."""

from __future__ import annotations

import packing_corpus
import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from tokkit.data.attention import dense_mask, flash_attention_kwargs, mask_mod, thd, varlen, with_dense_fields
from tokkit.data.packed import PackedDataset, Row, collate
from tokkit.pipelines.pack import PackConfig, pack
from tokkit.pipelines.progress import SilentProgress

L, HEADS, WIDTH = 128, 2, 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> PackedDataset:
    documents = packing_corpus.random_documents(70, seed=11)
    directory = packing_corpus.write_directory(tmp_path_factory.mktemp("attention"), {"train": documents})
    pack(PackConfig(directory=directory, seq_len=L), SilentProgress())
    return PackedDataset(directory, f"seq{L}-overlong", seed=3)


@pytest.fixture(scope="module")
def batch(dataset: PackedDataset) -> Row:
    # Among them one with padding, so that it is seen that nothing attends to it.
    rows = sorted((dataset[n] for n in range(len(dataset))), key=lambda row: int((row["segment_ids"] == 0).sum()))
    assert (rows[-1]["segment_ids"] == 0).any()
    return collate([rows[0], rows[len(rows) // 2], rows[-1]])


@pytest.fixture(scope="module")
def qkv(batch: Row) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shape = (batch["input_ids"].shape[0], HEADS, L, WIDTH)
    return tuple(torch.randn(shape, dtype=torch.float64) for _ in range(3))


@pytest.fixture(scope="module")
def alone(batch: Row, qkv: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Causal attention over each segment by itself, put together again."""
    out = torch.full_like(qkv[0], torch.nan)
    for b in range(out.shape[0]):
        segments = batch["segment_ids"][b]
        for number in segments.unique().tolist():
            here = (segments == number).nonzero()[:, 0]
            assert torch.equal(here, torch.arange(int(here[0]), int(here[-1]) + 1))
            q, k, v = (x[b : b + 1, :, here] for x in qkv)
            out[b : b + 1, :, here] = scaled_dot_product_attention(q, k, v, is_causal=True)
    return out


def test_sdpa_with_the_dense_mask(batch: Row, qkv: tuple[torch.Tensor, ...], alone: torch.Tensor) -> None:
    found = scaled_dot_product_attention(*qkv, attn_mask=dense_mask(batch))
    torch.testing.assert_close(found, alone)
    assert not torch.allclose(scaled_dot_product_attention(*qkv, is_causal=True), alone)


def test_flex_attention(batch: Row, qkv: tuple[torch.Tensor, ...], alone: torch.Tensor) -> None:
    mask = create_block_mask(mask_mod(batch), B=qkv[0].shape[0], H=None, Q_LEN=L, KV_LEN=L, device="cpu")
    q, k, v = (x.float() for x in qkv)
    torch.testing.assert_close(flex_attention(q, k, v, block_mask=mask), alone.float(), rtol=1e-4, atol=1e-5)


def test_varlen_borders_are_the_segments(batch: Row, qkv: tuple[torch.Tensor, ...], alone: torch.Tensor) -> None:
    borders = varlen(batch)
    assert borders.cu_seqlens.dtype == torch.int32
    assert type(borders.max_seqlen) is int
    assert borders.cu_seqlens[0] == 0
    assert borders.cu_seqlens[-1] == batch["input_ids"].numel()
    assert borders.max_seqlen == int(borders.cu_seqlens.diff().max())
    flat = [x.transpose(1, 2).reshape(-1, HEADS, WIDTH) for x in qkv]  # [B * L, H, W], as the kernels take them
    parts = []
    for first, last in zip(borders.cu_seqlens[:-1].tolist(), borders.cu_seqlens[1:].tolist(), strict=True):
        q, k, v = (x[first:last].transpose(0, 1)[None] for x in flat)
        parts.append(scaled_dot_product_attention(q, k, v, is_causal=True)[0].transpose(0, 1))
    torch.testing.assert_close(torch.cat(parts).view(-1, L, HEADS, WIDTH).transpose(1, 2), alone)


def test_the_names_that_others_take(batch: Row) -> None:
    borders, kwargs, packed = varlen(batch), flash_attention_kwargs(batch), thd(batch)
    for key in ("cu_seq_lens_q", "cu_seq_lens_k"):
        assert torch.equal(kwargs[key], borders.cu_seqlens)
    assert kwargs["max_length_q"] == kwargs["max_length_k"] == borders.max_seqlen
    assert kwargs["seq_idx"].shape == (1, batch["input_ids"].numel())
    assert torch.equal(kwargs["seq_idx"][0].long().bincount(), borders.cu_seqlens.diff().long())
    assert set(packed) == {"qkv_format", "cu_seqlens_q", "cu_seqlens_kv", "max_seqlen_q", "max_seqlen_kv"}
    assert packed["qkv_format"] == "thd"
    assert torch.equal(packed["cu_seqlens_kv"], borders.cu_seqlens)


def test_the_rows_of_cu_seqlens_say_the_same(dataset: PackedDataset) -> None:
    fields = PackedDataset(dataset.directory, dataset.name, seed=3, cu_seqlens=True)
    batch = collate([fields[n] for n in range(4)])
    rows = [row + n * L for n, row in enumerate(batch["cu_seqlens"].long())]
    assert torch.equal(torch.cat(rows).unique(), varlen(batch).cu_seqlens.long())


def test_dense_fields_are_made_from_the_borders(dataset: PackedDataset) -> None:
    lean = PackedDataset(dataset.directory, dataset.name, seed=3, dense=False)
    everything = PackedDataset(dataset.directory, dataset.name, seed=3, cu_seqlens=True, modality_ids=False)
    numbers = range(len(lean))
    batch, expected = collate([lean[n] for n in numbers]), collate([everything[n] for n in numbers])
    assert batch.keys() == {"input_ids", "cu_seqlens", "num_segments"}
    found = with_dense_fields(batch)
    assert found.keys() == expected.keys() - {"num_loss_tokens"}
    for name, values in found.items():
        assert torch.equal(values, expected[name]), name
        assert values.dtype == expected[name].dtype
    for more in ({"labels": "hf"}, {"loss_on": {"text"}}):
        with pytest.raises(ValueError, match="dense"):
            PackedDataset(dataset.directory, dataset.name, dense=False, **more)  # type: ignore[arg-type]
    given = packing_corpus.random_documents(20, seed=1, given=0.5)
    path = packing_corpus.write_directory(dataset.directory.parent / "given", {"train": given})
    pack(PackConfig(directory=path, seq_len=L), SilentProgress())
    with pytest.raises(ValueError, match="only given"):
        PackedDataset(path, dataset.name, dense=False)
