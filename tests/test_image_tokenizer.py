"""Image tokenizers: quantizers, codes that depend on the item only, and the folder on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokkit.errors import ConfigError, DataError, UsageError, VocabularyError
from tokkit.metrics.codebook import CodebookWindow
from tokkit.metrics.reconstruction import psnr
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.config import FsqQuantizer, ImageTokenizerConfig, VqQuantizer
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import PRESETS, configure
from tokkit.tokenizers.image.quantizers import FiniteScalarQuantizer, VectorQuantizer
from tokkit.training.image_trainer import fresh_tokenizer

SMALL = {"architecture.channels": 16, "architecture.z_channels": 16}


def small(preset: str = "fsq-tiny", **overrides: object) -> ImageTokenizer:
    tokenizer = fresh_tokenizer(configure(preset, SMALL | {k.replace("__", "."): v for k, v in overrides.items()}, 32), 0)
    # random weights use a handful of codes; a wider last layer spreads them
    with torch.no_grad():
        tokenizer.quant_conv.weight.mul_(30)
    return tokenizer.eval()


def pixels(count: int, size: int = 32, seed: int = 0) -> Tensor:
    coarse = np.random.default_rng(seed).integers(0, 256, (count, size // 4, size // 4, 3), dtype=np.uint8)
    return torch.from_numpy(coarse.repeat(4, axis=1).repeat(4, axis=2))


# ---- quantizers


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5), (3, 4, 7, 16, 64), (3,)])
def test_fsq_round_trip_of_all_codes(levels: tuple[int, ...]) -> None:
    quantizer = FiniteScalarQuantizer(FsqQuantizer(levels=levels))
    codes = torch.arange(quantizer.codebook_size).view(1, -1, 1)
    features = quantizer.features_from_codes(codes)
    assert features.shape == (1, len(levels), codes.shape[1], 1)
    assert features.abs().max() <= 1
    assert torch.equal(quantizer._codes_from_quantized(features), codes)
    assert len(torch.unique(features.flatten(2), dim=2)[0, 0]) == quantizer.codebook_size


@pytest.mark.parametrize("levels", [(8, 5, 5, 5), (8, 8, 8, 5, 5, 5)])
def test_fsq_agrees_with_the_library(levels: tuple[int, ...]) -> None:
    from vector_quantize_pytorch import FSQ

    peer = FSQ(list(levels)).eval()
    quantizer = FiniteScalarQuantizer(FsqQuantizer(levels=levels))
    quantizer.start_training(64)
    features = torch.randn(3, len(levels), 8, 8, generator=torch.Generator().manual_seed(0)) * 2
    expected_features, expected_codes = peer(features)
    codes = quantizer.codes_from_features(features)
    assert torch.equal(codes, expected_codes.long())
    assert torch.equal(quantizer(features).codes, codes)
    assert torch.allclose(quantizer.features_from_codes(codes), expected_features, atol=1e-6)


def test_fsq_codes_of_half_precision_features_are_those_of_the_same_values_in_float32() -> None:
    quantizer = FiniteScalarQuantizer(FsqQuantizer(levels=(8, 8, 8, 5, 5, 5)))
    features = torch.randn(2, 6, 16, 16, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    assert torch.equal(quantizer.codes_from_features(features), quantizer.codes_from_features(features.float()))


def vq(**options: object) -> VectorQuantizer:
    torch.manual_seed(0)
    quantizer = VectorQuantizer(VqQuantizer(**options))
    quantizer.codebook.mul_(torch.rand(quantizer.codebook_size, 1) + 0.5)
    return quantizer


@pytest.mark.parametrize("normalize", [True, False])
def test_vq_lookup_is_the_brute_force_one(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.tokenizers.image.quantizers.LOOKUP_ELEMENTS", 7 * 500)  # chunks that do not divide the item
    quantizer = vq(codebook_size=500, codebook_dim=4, normalize=normalize)
    features = torch.randn(3, 4, 5, 7)
    rows, table = features.permute(0, 2, 3, 1).double(), quantizer.codebook.double()
    if normalize:
        rows, table = torch.nn.functional.normalize(rows, dim=-1), torch.nn.functional.normalize(table, dim=-1)
    expected = (rows[..., None, :] - table).square().sum(-1).argmin(-1)
    assert torch.equal(quantizer.codes_from_features(features), expected)


@pytest.mark.parametrize("normalize", [True, False])
def test_vq_lookup_is_the_librarys(normalize: bool) -> None:
    quantizer = vq(codebook_size=300, codebook_dim=8, normalize=normalize)
    quantizer.start_training(1, seed_codebook=False)
    assert quantizer.learner is not None
    features = torch.randn(2, 8, 6, 6)
    rows = features.permute(0, 2, 3, 1).flatten(1, 2)
    expected_rows, expected_codes, _ = quantizer.learner.vq.eval()(rows)
    codes = quantizer.codes_from_features(features)
    assert torch.equal(codes.flatten(1), expected_codes)
    assert torch.allclose(quantizer.features_from_codes(codes).permute(0, 2, 3, 1).flatten(1, 2), expected_rows, atol=1e-6)


def test_vq_round_trip_of_more_codes_than_16_bits_hold() -> None:
    quantizer = vq(codebook_size=70_000, codebook_dim=8, normalize=True)
    codes = torch.cat([torch.arange(0, 70_000, 701), torch.tensor([32_767, 32_768, 65_535, 65_536, 69_999])]).view(1, 1, -1)
    assert torch.equal(quantizer.codes_from_features(quantizer.features_from_codes(codes)), codes)


def test_of_equally_near_entries_the_lowest_is_taken() -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4)
    quantizer.codebook.copy_(quantizer.codebook[:8].repeat(8, 1))
    assert quantizer.codes_from_features(torch.randn(2, 4, 9, 9)).max() < 8


@pytest.mark.parametrize("bad", [-1, 300, 2**31])
def test_codes_out_of_range_are_an_error(bad: int) -> None:
    quantizers = [vq(codebook_size=300, codebook_dim=4), FiniteScalarQuantizer(FsqQuantizer(levels=(5, 6, 10)))]
    for quantizer in quantizers:
        assert quantizer.codebook_size == 300
        with pytest.raises(VocabularyError, match=str(bad)):
            quantizer.features_from_codes(torch.tensor([[[0, bad]]]))


def test_vq_training_starts_from_data_and_revives_dead_codes() -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4)
    quantizer.start_training(2 * 64)
    generator = torch.Generator().manual_seed(0)
    narrow = (
        torch.randn(2, 4, 8, 8, generator=generator) * 0.05 + 1
    )  # all in one direction: a random codebook would use few codes
    first = quantizer(narrow)
    assert len(torch.unique(first.codes)) > 32
    for _ in range(600):  # now the features move elsewhere
        moved = torch.randn(2, 4, 8, 8, generator=generator)
        last = quantizer(moved)
    assert len(torch.unique(torch.cat([quantizer.codes_from_features(moved), last.codes]))) > 45
    assert set(last.losses) == {"commitment"}


def test_a_revived_code_is_given_time_to_be_used() -> None:
    quantizer = vq(codebook_size=64, codebook_dim=4)
    quantizer.start_training(4)
    generator = torch.Generator().manual_seed(0)
    replaced = 0
    for _ in range(500):  # a step has 4 vectors for 64 codes, so most go unused in it
        before = quantizer.codebook.clone()
        used = quantizer(torch.randn(1, 4, 2, 2, generator=generator)).codes.unique()
        moved = (quantizer.codebook - before).norm(dim=1) > 1e-4
        moved[used] = False
        replaced += int(moved.sum())
    assert replaced < 3 * 64


def test_vq_gradients_reach_the_encoder() -> None:
    for rotation in (True, False):
        quantizer = vq(codebook_size=64, codebook_dim=4, rotation_trick=rotation)
        quantizer.start_training(64)
        features = torch.randn(1, 4, 8, 8, requires_grad=True)
        quantizer(features).features.square().sum().backward()
        assert features.grad is not None
        assert features.grad.abs().sum() > 0


# ---- the tokenizer


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_shapes_and_types(preset: str) -> None:
    tokenizer = small(preset)
    codes = tokenizer.encode(pixels(3))
    assert (codes.dtype, tuple(codes.shape)) == (torch.int32, (3, *tokenizer.grid))
    assert tokenizer.grid == (4, 4)
    assert tokenizer.downsample == 8
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codebook_size
    assert len(torch.unique(codes)) > 8
    decoded = tokenizer.decode(codes)
    assert (decoded.dtype, tuple(decoded.shape)) == (torch.uint8, (3, 32, 32, 3))
    assert not codes.requires_grad
    assert not decoded.requires_grad


@pytest.mark.parametrize("preset", sorted(PRESETS))
@settings(deadline=None, max_examples=12)
@given(order=st.permutations(range(6)), strangers=st.integers(0, 10**6))
def test_an_items_codes_are_the_same_in_every_slot_whatever_its_neighbours(
    preset: str, order: list[int], strangers: int
) -> None:
    tokenizer = small(preset)
    items = pixels(6)
    codes = tokenizer.encode(items)
    assert torch.equal(tokenizer.encode(items[order]), codes[order])
    batch = pixels(6, seed=strangers)
    slot = order[0]
    batch[slot] = items[0]
    assert torch.equal(tokenizer.encode(batch)[slot], codes[0])


def test_codes_of_all_slots_agree_with_attention_and_full_resolution_stem() -> None:
    overrides = {
        "architecture.patch": 1,
        "architecture.multipliers": [1, 1, 2],
        "architecture.attention": [False, False, True],
        "architecture.middle_blocks": 2,
        "architecture.middle_attention": True,
        "architecture.projection_kernel": 3,
        "architecture.encoder_blocks": 2,
        "architecture.decoder_blocks": 3,
    }
    tokenizer = fresh_tokenizer(configure("vq-tiny", SMALL | overrides, 32), 0)
    assert tokenizer.downsample == 4
    codes = tokenizer.encode(pixels(1).repeat(5, 1, 1, 1))
    assert tuple(codes.shape) == (5, 8, 8)
    assert (codes == codes[:1]).all()
    assert tuple(tokenizer.decode(codes).shape) == (5, 32, 32, 3)


def test_encoding_ignores_autocast_and_training_mode() -> None:
    tokenizer = small()
    expected = tokenizer.encode(pixels(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(tokenizer.train().encode(pixels(2)), expected)


def test_bytes_enter_the_network_as_the_preprocessing_says() -> None:
    tokenizer = small()
    every_byte = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    normalized = tokenizer.normalize(every_byte)
    expected = (torch.arange(256, dtype=torch.float64) / 255 * 2 - 1).float().view(16, 16)
    assert torch.equal(normalized[0, 0], expected)
    assert torch.equal(tokenizer.denormalize(normalized), every_byte)


def test_wrong_inputs_are_told() -> None:
    tokenizer = small()
    with pytest.raises(ValueError, match="uint8"):
        tokenizer.encode(pixels(1).float())
    with pytest.raises(ValueError, match="multiple"):
        tokenizer.encode(pixels(1)[:, :30])
    with pytest.raises(ValueError, match="codes"):
        tokenizer.decode(torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(VocabularyError):
        tokenizer.decode(torch.full((1, 4, 4), tokenizer.codebook_size))


# ---- configuration


def test_overrides_are_checked_all_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        configure("fsq-tiny", {"architecture.chanels": 3, "quantizer.levels": "[8, 2]", "nothing": 1, "architecture": "x"}, 130)
    text = str(caught.value)
    assert len(caught.value.problems) >= 4
    for part in ("architecture.chanels", "quantizer.fsq.levels", "nothing", "architecture: is a section"):
        assert part in text
    with pytest.raises(ConfigError, match="multiple"):
        configure("fsq-tiny", {}, 130)
    with pytest.raises(ConfigError, match="norm_groups"):
        configure("fsq-tiny", {"architecture.channels": "30"})
    with pytest.raises(UsageError, match="fsq-tiny"):
        configure("fsq-huge")


def test_overrides_are_read_as_yaml_and_can_change_the_quantizer() -> None:
    config = configure("fsq-tiny", {"quantizer.levels": "[7, 5, 5]", "preprocessing.resize.filter": "box"}, 64)
    assert config.quantizer == FsqQuantizer(levels=(7, 5, 5))
    assert (config.preprocessing.size, config.preprocessing.resize.filter) == (64, "box")
    changed = configure("fsq-tiny", {"quantizer.codebook_size": "256", "quantizer.kind": "vq"})
    assert changed.quantizer == VqQuantizer(codebook_size=256)


# ---- on disk


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_what_is_saved_is_what_is_loaded(preset: str, tmp_path: Path) -> None:
    tokenizer = small(preset)
    tokenizer.quantizer.start_training(64)
    tokenizer.save(tmp_path / "t")
    loaded = load_image_tokenizer(tmp_path / "t")
    assert loaded.config == tokenizer.config
    assert loaded.fingerprint == tokenizer.fingerprint
    assert torch.equal(loaded.encode(pixels(4)), tokenizer.encode(pixels(4)))
    loaded.save(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "t" / name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "t").iterdir()) == ["config.json", "model.safetensors"]


def test_loading_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    small().save(tmp_path)
    before = torch.random.get_rng_state()
    load_image_tokenizer(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_fingerprint_sees_weights_and_preprocessing() -> None:
    tokenizer = small()
    first = tokenizer.fingerprint
    other = ImageTokenizer(ImageTokenizerConfig.model_validate(tokenizer.config.model_dump() | {"licence": "CC0"}))
    other.load_state_dict(tokenizer.state_dict())
    assert other.fingerprint != first
    with torch.no_grad():
        tokenizer.quant_conv.bias[0] += 1e-6
    assert tokenizer.fingerprint != first


def test_damaged_folders_are_told(tmp_path: Path) -> None:
    def broken(name: str, data: bytes | None) -> str:
        folder = tmp_path / "t"
        small().save(folder)
        (folder / name).unlink() if data is None else (folder / name).write_bytes(data)
        with pytest.raises(DataError) as caught:
            load_image_tokenizer(folder)
        return str(caught.value)

    small().save(tmp_path / "good")
    weights = (tmp_path / "good" / "model.safetensors").read_bytes()
    described = json.loads((tmp_path / "good" / "config.json").read_text())
    assert "no config.json" in broken("config.json", None)
    assert "safetensors only" in broken("model.safetensors", None)
    assert "not JSON" in broken("config.json", b"{")
    assert "not the configuration" in broken("config.json", b"{}")
    assert "version 9" in broken("config.json", json.dumps(described | {"version": 9}).encode())
    assert "damaged" in broken("model.safetensors", weights[:-10])
    flipped = weights[:-1] + bytes([weights[-1] ^ 1])
    assert "do not belong together" in broken("model.safetensors", flipped)
    described["config"]["architecture"]["z_channels"] = 8
    assert "conv_out" in broken("config.json", json.dumps(described).encode())
    described["config"]["architecture"]["width"] = 8
    assert "architecture.width" in broken("config.json", json.dumps(described).encode())
    with pytest.raises(DataError, match="no such folder"):
        load_image_tokenizer(tmp_path / "absent")


def test_pickles_are_never_read(tmp_path: Path) -> None:
    tokenizer = small()
    tokenizer.save(tmp_path)
    torch.save(tokenizer.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="safetensors"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="never from pickles"):
        load_image_tokenizer(tmp_path)


# ---- metrics


def test_psnr() -> None:
    a = torch.full((2, 4, 4, 3), 100, dtype=torch.uint8)
    b = a.clone()
    b[0] += 10
    assert psnr(a, b).tolist() == pytest.approx([20 * np.log10(25.5), 120.0])
    with pytest.raises(ValueError, match="uint8"):
        psnr(a.float(), b.float())


def test_codebook_window_forgets_old_batches() -> None:
    window = CodebookWindow(8, window=4)
    assert (window.usage, window.perplexity) == (0, 0)
    window.add(np.array([[0, 0], [0, 0]]))
    assert (window.usage, window.perplexity) == (1 / 8, pytest.approx(1))
    window.add(np.array([1, 2, 3, 4], dtype=np.int32))
    assert (window.usage, window.perplexity) == (4 / 8, pytest.approx(4))
