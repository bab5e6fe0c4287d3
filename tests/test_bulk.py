"""Encoding in bulk: the codes of ``encode``, whatever the slot, the precision kept, and nothing made of an overflow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.errors import UsageError
from tokkit.metrics.throughput import matmul_peak, operations
from tokkit.precision import arithmetic
from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import configure
from tokkit.training.image_task import fresh_tokenizer

BATCH = 4


def tokenizer(preset: str = "vq-tiny") -> ImageTokenizer:
    return fresh_tokenizer(configure(preset, {}, 32), 0).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vq() -> ImageTokenizer:
    return tokenizer()


def pictures(count: int, side: int = 32, seed: int = 0) -> list[np.ndarray]:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, side // 8, side // 8, 3), dtype=np.uint8)
    return list(coarse.repeat(8, axis=1).repeat(8, axis=2))


@pytest.mark.parametrize("preset", ["vq-tiny", "fsq-tiny", "residual-vq-tiny"])
def test_float32_codes_are_those_of_the_tokenizer(preset: str) -> None:
    model = tokenizer(preset)
    taken = pictures(BATCH)
    bulk = BulkEncoder(model, BATCH)
    np.testing.assert_array_equal(bulk.encode_padded(taken, BATCH), model.encode_padded(taken, BATCH))
    np.testing.assert_array_equal(bulk.encode_padded(taken[:1], BATCH), model.encode_padded(taken[:1], BATCH))


@settings(deadline=None, max_examples=30)
@given(order=st.permutations(range(6)), precision=st.sampled_from(["fp32", "fp16"]))
def test_a_picture_has_the_same_codes_in_every_slot_beside_whatever(
    vq: ImageTokenizer, order: list[int], precision: str
) -> None:
    taken = pictures(6)
    bulk = BulkEncoder(vq, BATCH, BulkOptions(precision))
    alone = [bulk.encode_padded([picture], BATCH)[0] for picture in taken]
    for start in (0, BATCH):
        chosen = order[start : start + BATCH]
        for index, codes in zip(chosen, bulk.encode_padded([taken[i] for i in chosen], BATCH), strict=True):
            np.testing.assert_array_equal(codes, alone[index])


def test_batches_under_way_keep_their_codes_whichever_is_asked_for_first(vq: ImageTokenizer) -> None:
    """Of two shapes, in turn: a place that is taken again does not change what an earlier batch was."""
    bulk = BulkEncoder(vq, BATCH)
    batches = [pictures(BATCH, 32 if i % 2 else 48, seed=i) for i in range(8)]
    pending = [bulk.begin(batch) for batch in batches]
    for batch, one in reversed(list(zip(batches, pending, strict=True))):
        np.testing.assert_array_equal(one.codes(), vq.encode_padded(batch, BATCH))
        np.testing.assert_array_equal(one.codes(), one.codes())


def test_float16_is_measured_to_agree_and_is_not_float32(vq: ImageTokenizer) -> None:
    taken = pictures(BATCH)
    half, full = (BulkEncoder(vq, BATCH, BulkOptions(p)) for p in ("fp16", "fp32"))
    assert (half.encode_padded(taken, BATCH) == full.encode_padded(taken, BATCH)).mean() > 0.95
    values = vq.normalize(torch.from_numpy(np.stack(taken)))
    assert half._encoder(values.half()).dtype == torch.float16
    assert next(vq.encoder.parameters()).dtype == torch.float32  # the tokenizer is as it was
    assert half.overflowed == 0


def test_a_picture_whose_features_overflow_gets_its_float32_codes() -> None:
    """One picture is too bright for float16 in a network with large weights; its neighbours stay as they are."""
    model = tokenizer()
    last = [m for m in model.encoder.modules() if isinstance(m, torch.nn.Conv2d)][-1]
    black = np.zeros((32, 32, 3), dtype=np.uint8)
    taken = [black, *pictures(BATCH - 1)]
    with torch.no_grad():
        seen = torch.stack([model.encoder(model.normalize(torch.from_numpy(p[None]))).abs().max() for p in taken])
        low, high = seen.sort().values[-2:]
        last.weight *= 65504 / ((low + high) / 2)
        assert last.bias is not None
        last.bias *= 65504 / ((low + high) / 2)
    half = BulkEncoder(model, BATCH, BulkOptions("fp16"))
    codes, exact = half.encode_padded(taken, BATCH), model.encode_padded(taken, BATCH)
    assert half.overflowed == 1
    loudest = int(seen.argmax())
    np.testing.assert_array_equal(codes[loudest], exact[loudest])
    for index, picture in enumerate(taken):
        np.testing.assert_array_equal(half.encode_padded([picture], BATCH)[0], codes[index])


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_compiled(vq: ImageTokenizer, precision: str) -> None:
    taken = pictures(BATCH)
    compiled = BulkEncoder(vq, BATCH, BulkOptions(precision, "compile"))
    codes = compiled.encode_padded(taken, BATCH)
    assert (codes == vq.encode_padded(taken, BATCH)).mean() > 0.95
    np.testing.assert_array_equal(compiled.encode_padded(taken[2:3], BATCH)[0], codes[2])


def test_what_the_device_cannot_do_is_told(vq: ImageTokenizer) -> None:
    with pytest.raises(UsageError, match="tf32 needs an NVIDIA GPU"):
        BulkEncoder(vq, BATCH, BulkOptions("tf32"))
    with pytest.raises(UsageError, match="graphs needs an NVIDIA GPU"):
        BulkEncoder(vq, BATCH, BulkOptions("fp32", "graphs"))
    bulk = BulkEncoder(vq, BATCH)
    for wrong in ([], pictures(BATCH + 1), [*pictures(1), *pictures(1, 48)]):
        with pytest.raises(ValueError, match="of one size"):
            bulk.begin(wrong)
    with pytest.raises(ValueError, match="set up for batches of 4"):
        bulk.encode_padded(pictures(2), 2)


@pytest.mark.parametrize("before", [True, False])
def test_the_switches_of_torch_are_as_they_were(before: bool) -> None:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    kept = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    try:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before, before, before
        for precision, tf32 in (("fp32", False), ("tf32", True), ("fp16", False)):
            with pytest.raises(RuntimeError), arithmetic(precision):
                assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic) == (tf32, tf32, False, True)
                raise RuntimeError
            assert (cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark) == (before, before, before)
    finally:
        cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = kept


def test_encode_switches_tf32_off(vq: ImageTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN would use it for float32 convolutions unless told not to."""
    seen = []
    forward = vq.encoder.forward

    def looking(x: torch.Tensor) -> torch.Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(x)

    monkeypatch.setattr(vq.encoder, "forward", looking)
    assert torch.backends.cudnn.allow_tf32
    vq.encode(torch.from_numpy(pictures(1)[0][None]))
    BulkEncoder(vq, BATCH).encode_padded(pictures(1), BATCH)
    assert seen == [False, False]


def test_figures_of_a_peak(vq: ImageTokenizer) -> None:
    left, right = torch.zeros(8, 16), torch.zeros(16, 4)
    assert operations(lambda: left @ right) == 2 * 8 * 16 * 4
    conv = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert operations(lambda: conv(torch.zeros(2, 3, 8, 8))) == 2 * (2 * 8 * 8) * 5 * 3 * 9
    assert matmul_peak(torch.device("cpu"), "fp32", seconds=0.0) > 1e6
