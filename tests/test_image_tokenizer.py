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
from tokkit.metrics.codebook import CodebookWindow, count_codes, perplexity, usage
from tokkit.metrics.reconstruction import psnr
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.presets import PRESETS, configure, learning_rate
from tokkit.tokenizers.image.quantizer_config import FsqQuantizer, VqQuantizer
from tokkit.training.image_task import fresh_tokenizer

TINY = sorted(name for name in PRESETS if name.endswith("-tiny"))
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


# ---- the tokenizer


@pytest.mark.parametrize("preset", TINY)
def test_shapes_and_types(preset: str) -> None:
    tokenizer = small(preset)
    codes = tokenizer.encode(pixels(3))
    books = () if tokenizer.codebooks == 1 else (tokenizer.codebooks,)
    assert (codes.dtype, tuple(codes.shape)) == (torch.int32, (3, *books, *tokenizer.grid))
    assert tokenizer.grid == (4, 4)
    assert tokenizer.downsample == 8
    assert codes.min() >= 0
    assert codes.max() < tokenizer.codebook_size
    assert len(torch.unique(codes)) > 8
    decoded = tokenizer.decode(codes)
    assert (decoded.dtype, tuple(decoded.shape)) == (torch.uint8, (3, 32, 32, 3))
    assert not codes.requires_grad
    assert not decoded.requires_grad


@pytest.mark.parametrize("preset", TINY)
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


# ---- presets

# Numbers in the network and the codebook, measured on the reference implementations with the same shape.
REFERENCE_SIZES = {"vq-f16-16k": 71_883_403, "vq-f8-16k": 70_109_835, "chameleon-512": 68.7e6}


def test_the_large_presets_have_the_size_and_codes_of_what_they_are_named_after() -> None:
    codes = {}
    for name in sorted(set(PRESETS) - set(TINY)):
        with torch.device("meta"):
            tokenizer = ImageTokenizer(PRESETS[name])
        codes[name] = (tokenizer.grid[0] * tokenizer.grid[1], tokenizer.codebook_size)
        size = sum(p.numel() for p in tokenizer.parameters()) + getattr(tokenizer.quantizer, "codebook", torch.empty(0)).numel()
        if name in REFERENCE_SIZES:
            assert size == pytest.approx(REFERENCE_SIZES[name], rel=1e-3 if name == "chameleon-512" else 0)
        assert learning_rate(name) < learning_rate("fsq-tiny")
    assert codes == {
        "vq-f16-16k": (256, 16384),
        "vq-f8-16k": (1024, 16384),
        "chameleon-512": (1024, 8192),
        "f8-256": (1024, 8192),
        "fsq-f16-64k": (256, 64000),
        "fsq-f16-15k": (256, 15360),
        "vqganplus-f16-4k": (256, 4096),
    }


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(set(PRESETS) - set(TINY)))
def test_a_large_preset_trains_a_step_and_encodes(preset: str) -> None:
    tokenizer = fresh_tokenizer(configure(preset, {}, 64), 0)
    side = 64 // tokenizer.downsample
    tokenizer.quantizer.start_training(2 * side * side)
    pictures = tokenizer.normalize(pixels(2, 64))
    output = tokenizer(pictures)
    (output.reconstruction - pictures).square().mean().backward()
    assert tokenizer.quant_conv.weight.grad is not None
    assert tokenizer.quant_conv.weight.grad.abs().sum() > 0
    codes = tokenizer.encode(pixels(2, 64))
    assert tuple(codes.shape) == (2, side, side)
    assert tuple(tokenizer.decode(codes).shape) == (2, 64, 64, 3)


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
    with pytest.raises(ConfigError, match="is not one of fsq, residual-fsq, vq, residual-vq, simvq, lfq"):
        configure("fsq-tiny", {"quantizer.kind": "gumbel"})


# ---- on disk


@pytest.mark.parametrize("preset", TINY)
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


def test_the_fingerprint_does_not_see_how_the_weights_were_trained() -> None:
    tokenizer = small("vq-tiny")
    described = tokenizer.config.model_dump()
    described["quantizer"] |= {"decay": 0.9, "dead_code_share": 0.0, "update": "gradient"}
    other = ImageTokenizer(ImageTokenizerConfig.model_validate(described))
    other.load_state_dict(tokenizer.state_dict())
    assert other.fingerprint == tokenizer.fingerprint
    described["quantizer"] |= {"normalize": False}
    another = ImageTokenizer(ImageTokenizerConfig.model_validate(described))
    another.load_state_dict(tokenizer.state_dict())
    assert another.fingerprint != tokenizer.fingerprint


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


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("quantizer", {"kind": "vq", "codebook_size": 2**24, "codebook_dim": 2**20}, "quantizer.codebook"),
        ("architecture", {"z_channels": 2**62}, "these sizes"),
        ("architecture", {"norm_eps": float("inf")}, "norm_eps"),
        ("preprocessing", {"mean": [float("nan"), 0, 0]}, "finite"),
        ("preprocessing", {"std": [1, 1, 0]}, "std not 0"),
    ],
)
def test_a_configuration_that_claims_the_impossible_is_told(
    tmp_path: Path, section: str, values: dict[str, object], message: str
) -> None:
    """Told, and before memory is taken for it."""
    small().save(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())
    described["config"][section] = values if "kind" in values else described["config"][section] | values
    (tmp_path / "config.json").write_text(json.dumps(described))
    with pytest.raises(DataError, match=message):
        load_image_tokenizer(tmp_path)


def test_a_deep_configuration_is_told(tmp_path: Path) -> None:
    small().save(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="not JSON"):
        load_image_tokenizer(tmp_path)


@pytest.mark.parametrize("key", ["quantizer.temperature", "architecture.norm_eps", "preprocessing.std"])
def test_overrides_without_end_are_told(key: str) -> None:
    value = "[.inf, 1, 1]" if key.startswith("pre") else ".inf"
    with pytest.raises(ConfigError, match="finite"):
        configure("lfq-tiny", {key: value})


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


def test_codebooks_are_counted_by_themselves() -> None:
    codes = np.array([[[[0, 1]], [[3, 3]]], [[[0, 1]], [[3, 3]]]])  # 2 pictures of 2 codebooks
    counts = count_codes(codes, 4, 2)
    assert counts.tolist() == [[2, 2, 0, 0], [0, 0, 0, 4]]
    assert (usage(counts), perplexity(counts)) == (3 / 8, pytest.approx((2 + 1) / 2))
    window = CodebookWindow(4, window=2, codebooks=2)
    for _ in range(3):
        window.add(codes)
    assert window.counts.tolist() == [[2, 2, 0, 0], [0, 0, 0, 4]]


def test_codebook_window_forgets_old_batches() -> None:
    window = CodebookWindow(8, window=4)
    assert (window.usage, window.perplexity) == (0, 0)
    window.add(np.array([[0, 0], [0, 0]]))
    assert (window.usage, window.perplexity) == (1 / 8, pytest.approx(1))
    window.add(np.array([1, 2, 3, 4], dtype=np.int32))
    assert (window.usage, window.perplexity) == (4 / 8, pytest.approx(4))
