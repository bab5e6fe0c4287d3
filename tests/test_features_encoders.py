"""Features equal a direct forward of the saved model on the processor's own pixels; slots and neighbours change nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_models import picture, save

from tokkit.errors import DataError, UsageError
from tokkit.features import load_feature_encoder
from tokkit.features.base import FeatureEncoder, FeatureOptions, ItemFeatures

SHAPES = [(28, 28), (97, 31), (31, 98), (64, 131), (60, 60)]
Saved = Callable[[str], tuple[Path, Any, Any]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """A small model by name: its folder, the model, its processor. Each is made once."""
    made: dict[str, tuple[Path, Any, Any]] = {}

    def get(name: str) -> tuple[Path, Any, Any]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = (folder, *save(name, folder))
        return made[name]

    return get


def encoder(folder: Path, **options: Any) -> FeatureEncoder:
    return load_feature_encoder(folder, FeatureOptions(**options))


def features(ours: FeatureEncoder, *shapes: tuple[int, int], batch_size: int = 4) -> list[ItemFeatures]:
    return ours.encode([ours.prepare(picture(*shape)) for shape in shapes], batch_size)


def close(found: Any, expected: Any) -> None:
    expected = np.asarray(expected.detach() if isinstance(expected, torch.Tensor) else expected)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert np.abs(expected).max() > 0.01


def tower_of(model: Any, name: str) -> Any:
    return model if name in ("clip-vision", "dinov2", "dinov2-registers") else model.vision_model


@pytest.mark.parametrize(
    ("name", "specials", "usual"),
    [
        ("clip", 1, -2),
        ("clip-vision", 1, -2),
        ("siglip", 0, "final"),
        ("dinov2", 1, "final"),
        ("dinov2-registers", 4, "final"),
        ("blip2", 1, "final"),
    ],
)
@torch.no_grad()
def test_patches_of_each_layer(saved: Saved, name: str, specials: int, usual: Any) -> None:
    folder, model, processor = saved(name)
    pixels = torch.stack([torch.as_tensor(np.asarray(processor(picture(*s))["pixel_values"][0])) for s in SHAPES[:4]])
    direct = tower_of(model, name)(pixels, output_hidden_states=True)
    states = dict(enumerate(direct.hidden_states)) | {"final": direct.last_hidden_state}
    assert len(states) == 6
    states |= {number: states[5 + number] for number in range(-5, 0)}
    for layer in dict.fromkeys((usual, 0, 2, 4, -1, -3, "final")):
        for keep in (False, True) if layer in (0, usual) else (True,):
            ours = encoder(folder, layers=(layer,), keep_cls=keep if specials else None)
            expected = states[layer][:, 0 if keep else specials :]
            for item, state in zip(features(ours, *SHAPES[:4]), expected, strict=True):
                close(item.features, state)
                rows = 16 if not keep else 16 + specials
                assert item.features.shape == (rows, ours.dim)
                assert (item.grid, item.tiles) == ((4, 4), ((specials if keep else 0, 4, 4),))
    [several] = features(encoder(folder, layers=(1, -2, "final"), keep_cls=False if specials else None), SHAPES[1])
    close(several.features, torch.cat([states[1][1], states[-2][1], states["final"][1]], dim=-1)[specials:])
    [two] = features(encoder(folder, layers=(-2, 1), keep_cls=False if specials else None), SHAPES[1])
    close(two.features, torch.cat([states[-2][1], states[1][1]], dim=-1)[specials:])
    kept = name == "blip2"
    [plain] = features(encoder(folder), SHAPES[1])
    close(plain.features, states[usual][1, 0 if kept else specials :])


@torch.no_grad()
def test_naflex(saved: Saved) -> None:
    folder, model, processor = saved("siglip2")
    ours = encoder(folder, pooled="pooled")
    for shape, item in zip(SHAPES, features(ours, *SHAPES, batch_size=3), strict=True):
        inputs = processor(picture(*shape), return_tensors="pt")
        direct = model.vision_model(**inputs)
        rows, columns = inputs["spatial_shapes"][0].tolist()
        close(item.features, direct.last_hidden_state[0, : rows * columns])
        close(item.pooled, direct.pooler_output[0])
        assert item.grid == (rows, columns)
        assert ours.tokens_of(*shape) == rows * columns
    [middle] = features(encoder(folder, layers=(2,)), SHAPES[2])
    inputs = processor(picture(*SHAPES[2]), return_tensors="pt")
    close(middle.features, model.vision_model(**inputs, output_hidden_states=True).hidden_states[2][0, : len(middle.features)])


@torch.no_grad()
def test_qwen2_vl_before_and_after_its_merger(saved: Saved) -> None:
    folder, model, processor = saved("qwen2-vl")
    after, before = encoder(folder), encoder(folder, merger="before")
    first = encoder(folder, merger="before", layers=(1, "final"))
    assert (after.dim, before.dim, first.dim) == (24, 16, 32)
    for shape in SHAPES:
        inputs = processor(picture(*shape), return_tensors="pt")
        direct = model.model.visual(inputs["pixel_values"], grid_thw=inputs["image_grid_thw"], output_hidden_states=True)
        [merged], [unmerged], [layered] = (features(e, shape) for e in (after, before, first))
        close(merged.features, direct.pooler_output)
        close(unmerged.features, direct.last_hidden_state)
        close(layered.features, torch.cat([direct.hidden_states[1], direct.last_hidden_state], dim=-1))
        t, rows, columns = inputs["image_grid_thw"][0].tolist()
        assert merged.thw == unmerged.thw == (t, rows, columns)
        assert merged.grid == (rows // 2, columns // 2)
        assert unmerged.grid is None  # block by block, as the merger takes them
        assert after.tokens_of(*shape) == len(merged.features) == rows * columns // 4
        assert before.tokens_of(*shape) == len(unmerged.features)


@torch.no_grad()
def test_llama_vision_takes_several_layers_and_all_tiles(saved: Saved) -> None:
    folder, model, processor = saved("mllama")
    ours = encoder(folder)
    assert ours.dim == 48
    shapes = [*SHAPES, (200, 20)]
    for shape, item in zip(shapes, features(ours, *shapes, batch_size=9), strict=True):
        inputs = processor(picture(*shape), return_tensors="pt")
        tiles = inputs.pop("num_tiles")[0][0]
        direct = model.model.vision_model(**inputs).last_hidden_state[0, 0, :tiles]
        close(item.features, direct.flatten(0, 1))
        assert item.extra == {"aspect_ratio_id": inputs["aspect_ratio_ids"][0, 0].item(), "tiles": tiles}
        assert item.tiles == tuple((17 * tile + 1, 4, 4) for tile in range(tiles))
        assert ours.tokens_of(*shape) == len(item.features) == 17 * tiles
    [without] = features(encoder(folder, keep_cls=False), SHAPES[1])
    assert np.array_equal(without.features, features(ours, SHAPES[1])[0].features.reshape(-1, 17, 48)[:, 1:].reshape(-1, 48))


@torch.no_grad()
def test_anyres_is_packed_as_llava_next_packs(saved: Saved) -> None:
    """The newline, put in at our positions, gives LLaVA-NeXT's own sequence of projected features."""
    folder, model, processor = saved("llava-next")
    ours = encoder(folder)
    inner = model.model
    for shape, item in zip(SHAPES, features(ours, *SHAPES, batch_size=3), strict=True):
        inputs = processor(picture(*shape), return_tensors="pt")
        theirs = inner.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], vision_feature_layer=-2, vision_feature_select_strategy="default"
        )
        packed = getattr(theirs, "pooler_output", theirs)[0]
        projected = inner.multi_modal_projector(torch.from_numpy(item.features)).numpy()
        assert item.newlines is not None
        newline = inner.image_newline.numpy()
        found = np.insert(projected, item.newlines, newline, axis=0)
        close(found, packed)
        assert ours.tokens_of(*shape) == len(item.features)
        base, raster = item.tiles
        assert base == (0, 4, 4)
        assert raster[0] == 16
        assert len(item.newlines) == raster[1]
        assert 16 + raster[1] * raster[2] == len(item.features)
    [flat] = features(encoder(folder, merge="flat"), SHAPES[3])
    [padded] = features(encoder(folder, merge="spatial"), SHAPES[3])
    assert flat.newlines is None
    assert len(flat.features) == len(padded.features) == 16 * len(flat.tiles)
    assert np.array_equal(np.sort(flat.features, axis=0), np.sort(padded.features, axis=0))


def test_a_llava_models_own_layers(saved: Saved, tmp_path: Path) -> None:
    folder, _, _ = saved("llava-next")
    for number, (layer, told) in enumerate(((-3, [2]), ([-2, 1], [3, 1]))):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        entry = json.loads((copy / "config.json").read_text()) | {"vision_feature_layer": layer}
        (copy / "config.json").write_text(json.dumps(entry))
        assert encoder(copy).describe()["layers"] == told
        assert encoder(copy, layers=(1,)).describe()["layers"] == [1]
    full = json.loads((folder / "config.json").read_text()) | {"vision_feature_select_strategy": "full"}
    (copy / "config.json").write_text(json.dumps(full))
    assert encoder(copy, tiling="none").tokens_of(28, 28) == 17
    assert encoder(copy, tiling="none", keep_cls=False).tokens_of(28, 28) == 16


@torch.no_grad()
def test_internvl_views_and_pixel_shuffle(saved: Saved) -> None:
    from transformers.models.internvl.modeling_internvl import InternVLModel

    folder, _, _ = saved("siglip")
    plain = encoder(folder, tiling="internvl", max_tiles=6)
    ours = encoder(folder, tiling="internvl", max_tiles=6, reductions=[{"kind": "pixel-shuffle", "factor": 2}])
    for shape in SHAPES:
        [before], [after] = features(plain, shape), features(ours, shape)
        views = torch.from_numpy(before.features).unflatten(0, (-1, 4, 4))
        theirs = InternVLModel.pixel_shuffle(None, views, 0.5)
        assert np.array_equal(after.features, theirs.flatten(0, 2).numpy())
        assert after.tiles == tuple((4 * view, 2, 2) for view in range(len(views)))
        assert ours.tokens_of(*shape) == len(after.features)
    assert ours.dim == 64


@torch.no_grad()
def test_average_pooling_and_frames(saved: Saved) -> None:
    from tokkit.features.reductions import average, stack

    folder, _, _ = saved("clip")
    [plain] = features(encoder(folder), SHAPES[1])
    [pooled] = features(encoder(folder, reductions=[{"kind": "average", "size": 2}]), SHAPES[1])
    blocks = plain.features.reshape(2, 2, 2, 2, 16).mean(axis=(1, 3))
    close(pooled.features, blocks.reshape(4, 16))
    [kept] = features(encoder(folder, keep_cls=True, reductions=[{"kind": "average", "size": 3}]), SHAPES[1])
    assert kept.features.shape == (5, 16)  # the class token, and 2 x 2 of which the last are narrower
    tokens = torch.arange(2 * 5 * 3.0).reshape(1, 2, 5, 3)
    assert torch.equal(average(tokens, 4)[0, 0, 1], tokens[0, :, 4].mean(0))
    stacked = stack(tokens, 2)
    assert stacked.shape == (1, 2, 3, 6)
    assert torch.equal(stacked[0, 1, 2], torch.cat([tokens[0, 1, 4], torch.zeros(3)]))


@torch.no_grad()
def test_q_former_and_perceiver(saved: Saved) -> None:
    folder, model, processor = saved("blip2")
    ours = encoder(folder, reductions=[{"kind": "resampler", "path": folder}])
    assert (ours.dim, ours.tokens_of(28, 28)) == (20, 32)
    pixels = torch.as_tensor(np.asarray(processor(picture(60, 60))["pixel_values"]))
    [item] = features(ours, (60, 60))
    embeds = model.vision_model(pixels).last_hidden_state
    queries = model.qformer(query_embeds=model.query_tokens, encoder_hidden_states=embeds).last_hidden_state
    close(item.features, queries[0])
    assert item.tiles == ((0, 1, 32),)

    other, flamingo, _ = saved("idefics")
    clip, _, _ = saved("clip")
    [plain] = features(encoder(clip), (60, 60))
    [resampled] = features(encoder(clip, reductions=[{"kind": "resampler", "path": other}]), (60, 60))
    close(resampled.features, flamingo.model.perceiver_resampler(torch.from_numpy(plain.features)[None])[0])
    assert resampled.features.shape == (64, 16)


@torch.no_grad()
def test_embeddings_for_retrieval(saved: Saved) -> None:
    for name in ("clip", "siglip"):
        folder, model, processor = saved(name)
        pixels = torch.as_tensor(np.asarray(processor(picture(97, 31))["pixel_values"]))
        theirs = model.get_image_features(pixels)
        theirs = getattr(theirs, "pooler_output", theirs)[0]
        ours = encoder(folder, tokens=False, pooled="projected")
        [item] = features(ours, (97, 31))
        close(item.pooled, theirs / theirs.norm())
        assert item.features.shape == (0, ours.dim)
        assert ours.tokens_of(97, 31) == 0
        assert ours.pooled_dim == len(theirs)
        [both] = features(encoder(folder, pooled="pooled"), (97, 31))
        close(both.pooled, tower_of(model, name)(pixels).pooler_output[0])
        assert len(both.features) == 16
    folder, model, processor = saved("dinov2")
    [item] = features(encoder(folder, pooled="pooled"), (97, 31))
    pixels = torch.as_tensor(np.asarray(processor(picture(97, 31))["pixel_values"]))
    close(item.pooled, model(pixels).pooler_output[0])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip", {"pooled": "projected"}),
        ("siglip", {"reductions": [{"kind": "pixel-shuffle"}]}),
        ("siglip2", {}),
        ("dinov2", {}),
        ("blip2", {}),
        ("qwen2-vl", {}),
        ("mllama", {}),
        ("llava-next", {}),
    ],
)
def test_slot_and_neighbours_change_nothing(saved: Saved, name: str, options: dict[str, Any]) -> None:
    folder, _, _ = saved(name)
    ours = encoder(folder, **options)
    batch = 8 if name == "mllama" else 4
    [alone] = features(ours, (64, 131), batch_size=batch)
    for before in range(5):
        for other in ((97, 31), (64, 131)):
            items = features(ours, *[other] * before, (64, 131), (28, 28), batch_size=batch)
            assert np.array_equal(items[before].features, alone.features), before
            if alone.pooled is not None:
                assert np.array_equal(items[before].pooled, alone.pooled)


def test_blocks_that_nobody_needs_are_not_run(saved: Saved) -> None:
    folder, _, _ = saved("clip")
    for options, blocks in (
        ({}, 3),
        ({"layers": (0,)}, 1),
        ({"layers": (1, 2)}, 2),
        ({"layers": (-1,)}, 4),
        ({"pooled": "pooled"}, 4),
    ):
        assert len(encoder(folder, **options).tower.model.encoder.layers) == blocks  # type: ignore[attr-defined]


def test_batches_are_halved_until_slots_agree(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that treats the last slot of a batch of more than two otherwise, as some do at the end of a tensor."""
    from tokkit.features.towers import PatchTower

    run, seen = PatchTower.run, []

    def uneven(self: PatchTower, units: Any, slots: int) -> Any:
        out = run(self, units, slots)
        seen.append(slots)
        if slots > 2:
            out.tokens[-1, 3, 5] += 1e-6
        return out

    folder, _, _ = saved("clip")
    expected = features(encoder(folder), *SHAPES, batch_size=2)
    monkeypatch.setattr(PatchTower, "run", uneven)
    ours = encoder(folder)
    for _ in range(2):
        found = features(ours, *SHAPES, batch_size=8)
        assert all(np.array_equal(a.features, b.features) for a, b in zip(found, expected, strict=True))
    assert seen == [8, 4, 2] + [2] * 6  # looked for once


@pytest.mark.parametrize(("name", "batch"), [("siglip2", 8), ("mllama", 32)])
def test_the_size_of_batches_does_not_depend_on_the_first_item(
    saved: Saved, name: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot that differs only at its end, where small pictures have nothing but padding."""
    folder, _, _ = saved(name)
    ours: Any = encoder(folder)
    run = type(ours.tower).run

    def uneven(self: Any, units: Any, slots: int) -> Any:
        out = run(self, units, slots)
        if slots > 2 and len(units) == slots:
            filled = sum(len(tokens) for tokens in out.tokens[-1])
            if filled == {"siglip2": 20, "mllama": 4 * 17}[name]:
                out.tokens[-1][-1][-1, 0] += 1e-6
        return out

    monkeypatch.setattr(type(ours.tower), "run", uneven)
    features(ours, (28, 28), batch_size=batch)
    assert list(ours._steady.values()) == [2]


def test_a_model_of_odd_sizes_is_the_same_in_every_slot(tmp_path: Path) -> None:
    """Nothing in it is a multiple of a vector: without halving, the last slot differs on CPUs with wide vectors."""
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    torch.manual_seed(0)
    odd = {"hidden_size": 200, "intermediate_size": 333, "num_hidden_layers": 4, "num_attention_heads": 5}
    SiglipVisionModel(SiglipVisionConfig(**odd, image_size=70, patch_size=14)).save_pretrained(tmp_path)
    SiglipImageProcessorPil(size={"height": 70, "width": 70}).save_pretrained(tmp_path)
    ours = encoder(tmp_path, pooled="pooled")
    [alone] = features(ours, (64, 131), batch_size=8)
    for before in range(8):
        items = features(ours, *[(97, 31)] * before, (64, 131), batch_size=8)
        assert np.array_equal(items[before].features, alone.features), before
        assert np.array_equal(items[before].pooled, alone.pooled), before


def test_latents_are_what_the_quantizer_rounds(tmp_path: Path) -> None:
    from tokkit.tokenizers.image.config import ImageTokenizerConfig
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import PRESETS

    preset = next(iter(PRESETS.values()))
    dump = (preset() if callable(preset) else preset).model_dump()
    dump["preprocessing"]["size"] = 32  # so that it runs in no time
    config = ImageTokenizerConfig.model_validate(dump)
    torch.manual_seed(3)
    tokenizer = ImageTokenizer(config).eval()
    tokenizer.save(tmp_path / "vq")
    ours = encoder(tmp_path / "vq")
    pixels = torch.from_numpy(config.preprocessing.apply(picture(97, 31))[None])
    with torch.no_grad():
        codes = tokenizer.encode(pixels)[0]
        [item] = features(ours, (97, 31), batch_size=1)
        assert item.grid == tuple(codes.shape)
        latents = torch.from_numpy(item.features).reshape(1, *codes.shape, ours.dim).permute(0, 3, 1, 2)
        assert torch.equal(tokenizer.quantizer.codes_from_features(latents)[0].int(), codes)
    assert ours.tokens_of(500, 20) == codes.numel()
    with pytest.raises(UsageError, match="layers, pooled"):
        encoder(tmp_path / "vq", layers=(1,), pooled="pooled")


def test_the_fingerprint_is_of_what_decides_the_features(saved: Saved, tmp_path: Path) -> None:
    folder, _, _ = saved("clip")
    ours = encoder(folder)
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert encoder(copy).fingerprint == ours.fingerprint
    assert encoder(folder, layers=(3,)).fingerprint == ours.fingerprint  # of four blocks: the same as -2
    others = [
        encoder(folder, layers=(2,)),
        encoder(folder, keep_cls=True),
        encoder(folder, pooled="pooled"),
        encoder(folder, pad_square=True),
        encoder(folder, reductions=[{"kind": "average"}]),
        encoder(folder, tiling="anyres", pinpoints=((56, 56),)),
        encoder(folder, precision="bfloat16"),
        encoder(saved("clip-vision")[0]),
    ]
    assert len({e.fingerprint for e in [ours, *others]}) == 9
    (copy / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    told = encoder(copy).describe()
    assert (told["licence"], told["name"], told["family"], told["layers"]) == ("mit", "elsewhere", "clip", [3])
    assert told["fingerprint"] == ours.fingerprint
    assert ours.describe()["licence"] is None
    assert str(folder) not in json.dumps(told)


def test_half_precision_comes_out_as_float32(saved: Saved) -> None:
    folder, _, _ = saved("clip")
    [exact], [rounded] = (features(encoder(folder, precision=p), (60, 60)) for p in ("float32", "bfloat16"))
    assert rounded.features.dtype == np.float32
    assert 0 < np.abs(exact.features - rounded.features).max() < 0.2


def test_weights_that_are_missing_damaged_or_too_large(saved: Saved, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder, _, _ = saved("clip")
    for what in ("missing", "shape", "damaged", "gone", "config", "no-model"):
        copy = tmp_path / what
        shutil.copytree(folder, copy)
        weights = load_file(copy / "model.safetensors")
        key = "vision_model.encoder.layers.1.mlp.fc1.weight"
        if what == "missing":
            del weights[key]
        elif what == "shape":
            weights[key] = weights[key][:3].clone()
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        if what == "damaged":
            (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:1000])
        elif what == "gone":
            (copy / "model.safetensors").unlink()
        elif what == "config":
            (copy / "config.json").write_text("{")
        elif what == "no-model":
            (copy / "config.json").unlink()
        with pytest.raises(DataError, match=r"weights|config\.json"):
            encoder(copy)
    told = json.loads((folder / "config.json").read_text())
    for number, vision in enumerate(
        (3, told["vision_config"] | {"patch_size": 0}, told["vision_config"] | {"hidden_size": "a"})
    ):
        copy = tmp_path / f"config-{number}"
        shutil.copytree(folder, copy)
        (copy / "config.json").write_text(json.dumps(told | {"vision_config": vision}))
        with pytest.raises(DataError, match=r"config-\d: (config\.json|its weights) cannot be read"):
            encoder(copy)
    other = tmp_path / "size"
    shutil.copytree(folder, other)
    text = (other / "preprocessor_config.json").read_text().replace("28", "56")
    (other / "preprocessor_config.json").write_text(text)
    with pytest.raises(DataError, match="56 x 56, its model takes 28 x 28"):
        encoder(other)


def test_weights_in_several_files_or_pickled(saved: Saved, tmp_path: Path) -> None:
    """Pickles are read by the restricted reader: what would run code is refused."""
    folder, model, _ = saved("blip2")
    step = {"kind": "resampler", "path": folder}
    [expected] = features(encoder(folder, reductions=[step]), SHAPES[1])
    shutil.copytree(folder, tmp_path / "parts")
    (tmp_path / "parts" / "model.safetensors").unlink()
    model.save_pretrained(tmp_path / "parts", max_shard_size="30KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 2
    [found] = features(encoder(tmp_path / "parts", reductions=[step | {"path": tmp_path / "parts"}]), SHAPES[1])
    assert np.array_equal(found.features, expected.features)

    folder, model, _ = saved("clip")
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert encoder(tmp_path / "old").fingerprint == encoder(folder).fingerprint
    torch.save({"a": Hostile(tmp_path / "ran")}, tmp_path / "old" / "pytorch_model.bin")
    with pytest.raises(DataError, match="weights"):
        encoder(tmp_path / "old")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "now", "released"),
    [
        ("llava-next", "vision_tower.", ("vision_tower.vision_model.", "model.vision_tower.")),
        ("qwen2-vl", "visual.", ("model.visual.",)),
        ("mllama", "vision_model.", ("model.vision_model.",)),
        ("blip2", "vision_model.", ("model.vision_model.",)),
        ("clip-vision", "", ("vision_model.",)),
        ("whisper", "model.encoder.", ("encoder.",)),
    ],
)
def test_names_of_parameters_as_they_were_released(
    saved: Saved, tmp_path: Path, name: str, now: str, released: tuple[str, ...]
) -> None:
    from safetensors.torch import load_file, save_file

    folder, _, _ = saved(name)
    expected = encoder(folder).fingerprint
    weights = load_file(folder / "model.safetensors")
    assert any(key.startswith(now) for key in weights)
    for number, prefix in enumerate(released):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        renamed = {prefix + key.removeprefix(now) if key.startswith(now) else key: value for key, value in weights.items()}
        save_file(renamed, copy / "model.safetensors", {"format": "pt"})
        assert encoder(copy).fingerprint == expected, prefix


def test_a_name_on_the_hub(saved: Saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched only where that is allowed; the manifest names the revision. Pickles are fetched only where nothing else is."""
    import huggingface_hub

    from tokkit.errors import TransientError

    folder, model, _ = saved("clip")
    snapshot = tmp_path / "snapshots" / "0a1b"
    shutil.copytree(folder, snapshot)
    asked: list[Any] = []

    def fetch(name: str, **how: Any) -> str:
        asked.append((name, how))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(UsageError, match="only where that is allowed"):
        load_feature_encoder("some/clip")
    assert not asked
    assert load_feature_encoder("some/clip", allow_download=True).describe()["name"] == "some/clip@0a1b"
    assert [name for name, _ in asked] == ["some/clip"]
    assert not any("bin" in pattern for pattern in asked[0][1]["allow_patterns"])
    (snapshot / "model.safetensors").unlink()
    torch.save(model.state_dict(), snapshot / "pytorch_model.bin")
    load_feature_encoder("some/clip", allow_download=True)
    assert asked[-1] == ("some/clip", {"revision": "0a1b", "allow_patterns": ["pytorch_model*.bin"]})

    def fail(name: str, **how: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(TransientError, match="no route to host"):
        load_feature_encoder("some/clip", allow_download=True)


class Hostile:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("clip", {"layers": (9,)}, "layer 9"),
        ("clip", {"layers": (-7,)}, "layer -7"),
        ("clip", {"merger": "before"}, "only Qwen2-VL"),
        ("clip", {"reductions": [{"kind": "pixel-shuffle", "factor": 3}]}, "does not divide"),
        ("clip", {"keep_cls": True, "reductions": [{"kind": "pixel-shuffle"}]}, "class token"),
        ("llava-next", {"keep_cls": True}, "merged raster"),
        ("siglip", {"keep_cls": True}, "no class token"),
        ("dinov2", {"pooled": "projected"}, "pictures and texts share"),
        ("qwen2-vl", {"layers": (1,)}, "merger takes the last"),
        ("qwen2-vl", {"merger": "before", "reductions": [{"kind": "average"}]}, "its own order"),
        ("qwen2-vl", {"reductions": [{"kind": "pixel-shuffle"}]}, "differ with the picture"),
        ("mllama", {"layers": (1,)}, "its own list"),
        ("whisper", {"tiling": "anyres"}, "not cut into tiles"),
        ("idefics", {}, "no encoder is known"),
    ],
)
def test_options_that_a_model_does_not_have(saved: Saved, name: str, options: dict[str, Any], message: str) -> None:
    folder, _, _ = saved(name)
    with pytest.raises(UsageError, match=message):
        encoder(folder, **options)


def test_sources_that_are_none(saved: Saved, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_feature_encoder(tmp_path / "nothing")
    with pytest.raises(UsageError, match="only where that is allowed"):
        load_feature_encoder("openai/clip-vit-large-patch14-336")
    blip2, clip = saved("blip2")[0], saved("clip")[0]
    with pytest.raises(UsageError, match="no resampler"):
        encoder(clip, reductions=[{"kind": "resampler", "path": clip}])
    with pytest.raises(UsageError, match="the last of the reductions"):
        encoder(blip2, reductions=[{"kind": "resampler", "path": blip2}, {"kind": "average"}])
    with pytest.raises(UsageError, match="takes features of 16"):
        encoder(clip, layers=(1, 2), reductions=[{"kind": "resampler", "path": blip2}])
