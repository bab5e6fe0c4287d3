"""Importing checkpoints that are generated here in other projects' layouts: equal codes, and refusals that say why."""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from foreign import architecture_of, llamagen_names, spread, taming_file, taming_names, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from tokkit.errors import ConfigError, DataError, UsageError
from tokkit.pipelines.import_tokenizer import ImportConfig, import_tokenizer
from tokkit.pipelines.progress import SilentProgress
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.importers.load import import_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer


def same(theirs: ImageTokenizer, ours: ImageTokenizer, side: int = 32) -> None:
    """Equal codes and, where there is a decoder, equal pictures."""
    pixels = torch.randint(0, 256, (2, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    codes = ours.encode(pixels)
    with torch.no_grad():
        features = [t.quant_conv(t.encoder(t.normalize(pixels))) for t in (theirs, ours)]
    assert torch.equal(*features)  # also where so few codes are there that all pictures get the same
    assert features[0].std() > 0
    assert torch.equal(theirs.encode(pixels), codes)
    if theirs.has_decoder:
        assert torch.equal(theirs.decode(codes), ours.decode(codes))


# ---- layouts


@settings(max_examples=15, deadline=None)
@given(
    st.data(),
    st.sampled_from(["taming", "llamagen"]),
    st.lists(st.integers(1, 3), min_size=1, max_size=5).map(tuple),
    st.integers(1, 3),
    st.sampled_from([1, 3]),
    st.sampled_from(["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]),
)
def test_any_shape_of_network_in_any_layout(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    family: str,
    multipliers: tuple[int, ...],
    blocks: int,
    kernel: int,
    prefix: str,
) -> None:
    attention = data.draw(st.tuples(*[st.booleans()] * len(multipliers)))
    middle = data.draw(st.booleans())
    z, dim, codes = (data.draw(st.sampled_from(choice)) for choice in ([16, 48], [1, 4, 32], [2, 70]))
    normalize = family == "llamagen"
    if normalize and dim == 1:
        dim = 3
    architecture = architecture_of(multipliers, blocks, attention, middle, z, kernel)
    ours = tokenizer_of(architecture, codes, dim, normalize)
    names = taming_names(ours) if family == "taming" else llamagen_names(ours)
    path = tmp_path_factory.mktemp("generated") / "some.pt"
    torch.save({"state_dict": {prefix + name: tensor for name, tensor in names.items()}}, path)
    found = import_image_tokenizer(path, layout=family)
    assert found.tokenizer.config.architecture == architecture
    assert found.tokenizer.config.quantizer == ours.config.quantizer
    same(found.tokenizer, ours)


def test_wrappers_inside_names(tmp_path: Path) -> None:
    """torch.compile of one submodule, under data parallelism."""
    ours = tokenizer_of(architecture_of())
    names = {f"module.{n.replace('encoder.', 'encoder._orig_mod.')}": t for n, t in taming_names(ours).items()}
    same(import_image_tokenizer(taming_file(tmp_path / "last.ckpt", names)).tokenizer, ours)


def test_a_name_with_and_without_its_wrapper_is_refused(tmp_path: Path) -> None:
    names = taming_names(tokenizer_of(architecture_of()))
    names["module.quant_conv.weight"] = names["quant_conv.weight"] + 1
    with pytest.raises(DataError, match=r"quant_conv\.weight"):
        import_image_tokenizer(taming_file(tmp_path / "last.ckpt", names))


def test_llamagens_trainer_file(tmp_path: Path) -> None:
    """Flags as a Namespace, optimisers, a discriminator, an EMA copy: the model is taken, the copy only if asked for."""
    ours = tokenizer_of(architecture_of((1, 2, 2), attention=(False, False, True)), normalize=True)
    ema = tokenizer_of(ours.config.architecture, normalize=True, seed=5)
    content = {"ema": llamagen_names(ema), "model": llamagen_names(ours), "optimizer": {"state": {}}, "steps": 7}
    content["args"] = argparse.Namespace(vq_model="VQ-16", lr=1e-4)
    content["discriminator"] = {"main.0.weight": torch.zeros(3)}
    path = tmp_path / "vq_ds4.pt"
    torch.save(content, path)
    found = import_image_tokenizer(path)
    assert (found.layout, found.weights) == ("llamagen", "model")
    assert found.dropped == ("args", "discriminator", "ema", "optimizer", "quantize.codebook_used", "steps")
    assert (found.tokenizer.config.licence, found.tokenizer.config.preprocessing.resize.kind) == ("MIT", "box-halving")
    same(found.tokenizer, ours)
    same(import_image_tokenizer(path, weights="ema").tokenizer, ema)
    with pytest.raises(UsageError, match="ema, model, discriminator"):
        import_image_tokenizer(path, weights="state_dict")


def test_layouts_that_share_names_are_told_apart_by_the_file(tmp_path: Path) -> None:
    names = taming_names(tokenizer_of(architecture_of()))
    assert import_image_tokenizer(taming_file(tmp_path / "last.ckpt", names)).layout == "taming"
    torch.save({"state_dict": names}, tmp_path / "vqgan.ckpt")
    chameleon = import_image_tokenizer(tmp_path / "vqgan.ckpt").tokenizer.config
    assert "non-commercial" in str(chameleon.licence)
    assert (chameleon.preprocessing.size, chameleon.preprocessing.background) == (512, "white-truncated")
    torch.save({"state_dict": names}, tmp_path / "some.pt")
    for unclear in (tmp_path / "some.pt", taming_file(tmp_path / "vqgan.ckpt", names)):
        with pytest.raises(UsageError, match="--layout taming or --layout chameleon"):
            import_image_tokenizer(unclear)
    assert import_image_tokenizer(tmp_path / "some.pt", layout="chameleon", licence="mine").tokenizer.config.licence == "mine"


def test_janus_among_a_larger_models_weights(tmp_path: Path) -> None:
    ours = tokenizer_of(architecture_of((1, 2), attention=(False, True)), normalize=True)
    names = {f"gen_vision_model.{name}": tensor for name, tensor in llamagen_names(ours).items()}
    names |= {"language_model.lm_head.weight": torch.zeros(3), "vision_model.encoder.conv_in.weight": torch.zeros(3)}
    save_file(names, tmp_path / "model.safetensors")
    found = import_image_tokenizer(tmp_path)
    assert (found.layout, found.tokenizer.config.preprocessing.size) == ("janus", 384)
    assert set(found.dropped) == {
        "gen_vision_model.quantize.codebook_used",
        "language_model.lm_head.weight",
        "vision_model.encoder.conv_in.weight",
    }
    same(found.tokenizer, ours)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_files(tmp_path: Path, kind: str) -> None:
    ours = tokenizer_of(architecture_of((1, 2), attention=(False, True)), normalize=True)
    names = {f"gen_vision_model.{name}": tensor for name, tensor in llamagen_names(ours).items()}
    halves: list[dict[str, Tensor]] = [dict(list(names.items())[i::2]) for i in range(2)]
    stem, save = ("model", save_file) if kind == "safetensors" else ("pytorch_model", torch.save)
    files = [f"{stem}-{i + 1:05d}-of-00002.{kind}" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        save(half, tmp_path / file)
    index = {"weight_map": {name: file for file, half in zip(files, halves, strict=True) for name in half}}
    (tmp_path / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    same(import_image_tokenizer(tmp_path).tokenizer, ours)
    (tmp_path / files[1]).unlink()
    with pytest.raises(DataError, match=files[1]):
        import_image_tokenizer(tmp_path)


def test_an_encoder_without_a_decoder(tmp_path: Path) -> None:
    """As transformers keeps Chameleon: it encodes, says so where it cannot decode, and is saved and loaded all the same."""
    whole = tokenizer_of(architecture_of((1, 1, 2)))
    names = {f"model.vqmodel.{n}": t for n, t in taming_names(whole).items() if not n.startswith("decoder.")}
    save_file(names | {"lm_head.weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    out = tmp_path / "out"
    result = import_tokenizer(ImportConfig(checkpoint=tmp_path, out=out, size=64), SilentProgress())
    assert not result.has_decoder
    assert result.dropped == ("lm_head.weight", "model.vqmodel.post_quant_conv.bias", "model.vqmodel.post_quant_conv.weight")
    loaded = load_image_tokenizer(out)
    same(loaded, whole)
    with pytest.raises(UsageError, match="no decoder"):
        loaded.decode(torch.zeros(1, 4, 4, dtype=torch.int32))


def test_the_codes_are_those_of_transformers_chameleon(tmp_path: Path) -> None:
    """Against the library's own model with random weights, saved as the library saves it."""
    pytest.importorskip("transformers")
    from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
    from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE

    config = ChameleonVQVAEConfig(
        embed_dim=16,
        num_embeddings=50,
        latent_channels=32,
        resolution=64,
        base_channels=32,
        channel_multiplier=[1, 2, 2],
        num_res_blocks=2,
        attn_resolutions=[32],
    )
    torch.manual_seed(0)
    reference = ChameleonVQVAE(config).eval()
    with torch.no_grad():
        features = reference.quant_conv(reference.encoder(torch.rand(2, 3, 64, 64) * 2 - 1))
        reference.quantize.embedding.weight.copy_(spread(features, 50))
    save_file({f"model.vqmodel.{n}": t.contiguous() for n, t in reference.state_dict().items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"vq_config": config.to_dict()}))
    found = import_image_tokenizer(tmp_path)
    assert found.described_by == tmp_path / "config.json"
    assert found.tokenizer.config.preprocessing.size == 64
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = reference.encode(found.tokenizer.normalize(pixels)).image_tokens
    assert wanted.unique().numel() > 5
    assert torch.equal(found.tokenizer.encode(pixels).flatten(), wanted.flatten().to(torch.int32))


# ---- configuration files


def project(ours: ImageTokenizer, **changes: object) -> dict[str, Any]:
    """taming's yaml for a tokenizer."""
    architecture, quantizer = ours.config.architecture, ours.config.quantizer
    sides = [64 // 2**i for i, there in enumerate(architecture.attention) if there]
    dd = {
        "double_z": False,
        "z_channels": architecture.z_channels,
        "resolution": 64,
        "in_channels": 3,
        "out_ch": 3,
        "ch": architecture.channels,
        "ch_mult": list(architecture.multipliers),
        "num_res_blocks": architecture.encoder_blocks,
        "attn_resolutions": sides,
        "dropout": 0.0,
    }
    params = {"embed_dim": quantizer.dim, "n_embed": ours.codebook_size}
    for key, value in changes.items():
        (params if key in params else dd)[key] = value
    return {"model": {"target": "taming.models.vqgan.VQModel", "params": {**params, "ddconfig": dd}}}


def test_a_yaml_that_agrees(tmp_path: Path) -> None:
    ours = tokenizer_of(architecture_of((1, 2, 2), 2, (False, True, False)))
    path = taming_file(tmp_path / "last.ckpt", taming_names(ours))
    (tmp_path / "last.yaml").write_text(yaml.safe_dump(project(ours)))
    found = import_image_tokenizer(path)
    assert found.described_by == tmp_path / "last.yaml"
    assert found.tokenizer.config.preprocessing.size == 64
    assert import_image_tokenizer(path, size=128).tokenizer.config.preprocessing.size == 128


def test_every_contradiction_of_a_yaml_is_told_at_once(tmp_path: Path) -> None:
    ours = tokenizer_of(architecture_of((1, 2, 2), 2, (False, True, False)))
    path = taming_file(tmp_path / "last.ckpt", taming_names(ours))
    wrong = {"ch": 64, "ch_mult": [1, 2, 4], "num_res_blocks": 3, "attn_resolutions": [16], "z_channels": 9, "double_z": True}
    wrong |= {"embed_dim": 4, "n_embed": 65, "in_channels": 1, "out_ch": 1}
    content = project(ours, **wrong)
    content["model"]["target"] = "taming.models.vqgan.GumbelVQ"
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        import_image_tokenizer(path, yaml=tmp_path / "other.yaml")
    assert {problem.partition(":")[0] for problem in caught.value.problems} == {*wrong, "target"}
    for key, value in wrong.items():
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(project(ours, **{key: value})))
        with pytest.raises(ConfigError, match=f"1 problem.*\n  - {key}:"):
            import_image_tokenizer(path, yaml=tmp_path / "other.yaml")


@pytest.mark.parametrize("text", ["[1, 2]", "model: {params: {}}", "a: [", "\x00"])
def test_a_yaml_of_another_kind(tmp_path: Path, text: str) -> None:
    path = taming_file(tmp_path / "last.ckpt", taming_names(tokenizer_of(architecture_of())))
    (tmp_path / "other.yaml").write_text(text)
    with pytest.raises(DataError, match=r"other\.yaml"):
        import_image_tokenizer(path, yaml=tmp_path / "other.yaml")
    with pytest.raises(UsageError, match=r"absent\.yaml"):
        import_image_tokenizer(path, yaml=tmp_path / "absent.yaml")


# ---- what is no such checkpoint


def remove(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda names: names.__delitem__(name)


def put(name: str, *shape: int, fill: float = 0.0) -> Callable[[dict[str, Tensor]], None]:
    return lambda names: names.update({name: torch.full(shape, fill)})


def shift_levels(names: dict[str, Tensor]) -> None:
    for name in [n for n in names if n.startswith("encoder.down.1.")]:
        names[name.replace("down.1.", "down.2.")] = names.pop(name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("encoder.down.0.block.0.conv1.bias"), r"encoder\.down\.0\.block\.0\.conv1\.bias is missing"),
        (remove("decoder.up.1.block.1.norm2.weight"), r"decoder\.up\.1\.block\.1\.norm2\.weight is missing"),
        (remove("encoder.mid.attn_1.k.weight"), r"encoder\.mid\.attn_1\.k\.weight is missing"),
        (remove("decoder.mid.block_2.conv1.weight"), r"decoder\.mid\.block_2\.conv1\.weight is missing"),
        (remove("encoder.down.1.block.0.nin_shortcut.bias"), r"encoder\.down\.1\.block\.0\.nin_shortcut\.bias is missing"),
        (remove("encoder.down.0.downsample.conv.weight"), r"encoder\.down\.0\.downsample\.conv\.weight is missing"),
        (remove("quantize.embedding.weight"), r"quantize\.embedding\.weight is missing"),
        (remove("encoder.conv_in.weight"), r"encoder\.conv_in\.weight is missing"),
        (remove("quant_conv.weight"), r"quant_conv\.weight is missing"),
        (put("quantize.quant_resi.0.weight", 4), r"quantize\.quant_resi\.0\.weight is not known"),
        (put("model_ema.decay", 4), r"model_ema\.decay is not known"),
        (put("encoder.conv_in.weight", 32, 1, 3, 3), "takes 1 channels"),
        (put("encoder.conv_in.weight", 32, 3, 5, 5), r"encoder\.conv_in\.weight has the shape"),
        (put("quant_conv.weight", 8, 32, 2, 2), "not a taming"),
        (put("quantize.embedding.weight", 64, 9), r"quant_conv\.(weight|bias) has the shape"),
        (put("quantize.embedding.weight", 64), "of 1 dimensions"),
        (put("quant_conv.bias", 8, fill=float("nan")), r"quant_conv\.bias holds values that are not finite"),
        (put("encoder.down.0.attn.0.q.weight", 32, 32, 1, 1), r"attention in the encoder's levels \[0\]"),
        (put("encoder.down.0.block.2.conv1.weight", 1), "are numbered 0, 2"),
        (put("decoder.up.0.block.2.conv1.weight", 1), "not equally many"),
        (shift_levels, "the encoder's levels are numbered 0, 2"),
    ],
)
def test_weights_that_make_no_tokenizer(tmp_path: Path, change: Callable[[dict[str, Tensor]], None], message: str) -> None:
    names = taming_names(tokenizer_of(architecture_of()))
    change(names)
    path = taming_file(tmp_path / "last.ckpt", names)
    with pytest.raises(DataError, match=message) as caught:
        import_image_tokenizer(path)
    assert str(path) in str(caught.value)


def test_no_decoder_where_there_should_be_one(tmp_path: Path) -> None:
    names = taming_names(tokenizer_of(architecture_of()))
    kept = {name: tensor for name, tensor in names.items() if not name.startswith("decoder.")}
    with pytest.raises(DataError, match="no decoder weights"):
        import_image_tokenizer(taming_file(tmp_path / "last.ckpt", kept))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 damaged", b"\x80\x02}q\x00."])
def test_files_that_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    for name in ("a.ckpt", "a.safetensors", "a.safetensors.index.json"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=r"a\.(ckpt|safetensors)") as caught:
            import_image_tokenizer(tmp_path / name)
        assert "--unsafe-pickle" not in str(caught.value)


def test_files_without_an_image_tokenizer(tmp_path: Path) -> None:
    torch.save({"state_dict": {"transformer.h.0.weight": torch.zeros(3)}}, tmp_path / "gpt.pt")
    with pytest.raises(DataError, match=r"transformer\.h\.0\.weight"):
        import_image_tokenizer(tmp_path / "gpt.pt")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    with pytest.raises(DataError, match="a list"):
        import_image_tokenizer(tmp_path / "list.pt")
    torch.save({"weights": {"a": 1}, "steps": 2}, tmp_path / "none.pt")
    with pytest.raises(DataError, match="weights, steps"):
        import_image_tokenizer(tmp_path / "none.pt")
    with pytest.raises(UsageError, match="no layout 'maskgit'"):
        import_image_tokenizer(tmp_path / "gpt.pt", layout="maskgit")
    with pytest.raises(UsageError, match="no such file"):
        import_image_tokenizer(tmp_path / "absent.pt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        import_image_tokenizer(tmp_path / "empty")


def test_an_index_may_not_name_files_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/x.safetensors"}}))
    with pytest.raises(DataError, match="outside"):
        import_image_tokenizer(tmp_path)


# ---- pickles


class Malicious:
    """Unpickling it makes a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path, zipped: bool) -> None:
    names = taming_names(tokenizer_of(architecture_of()))
    mark = tmp_path / "it-ran"
    content = {"epoch": 1, "state_dict": names, "callbacks": Malicious(mark)}
    torch.save(content, tmp_path / "last.ckpt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=r"mkdir[\s\S]*--unsafe-pickle"):
        import_image_tokenizer(tmp_path / "last.ckpt")
    assert not mark.exists()
    import_image_tokenizer(tmp_path / "last.ckpt", unsafe_pickle=True)
    assert mark.exists()


def test_a_trainers_classes_need_not_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = tokenizer_of(architecture_of())
    module = types.ModuleType("some_trainer")

    class Callback:
        def __init__(self) -> None:
            self.best = 0.1

    Callback.__module__, Callback.__qualname__ = "some_trainer", "Callback"
    module.Callback = Callback  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "some_trainer", module)
    path = taming_file(tmp_path / "last.ckpt", taming_names(ours), callbacks={Callback: Callback()})
    monkeypatch.delitem(sys.modules, "some_trainer")
    with pytest.raises(DataError, match=r"some_trainer\.Callback[\s\S]*--unsafe-pickle"):
        import_image_tokenizer(path)
    same(import_image_tokenizer(path, unsafe_pickle=True).tokenizer, ours)


def test_half_precision_weights_are_their_values_in_float32(tmp_path: Path) -> None:
    ours = tokenizer_of(architecture_of())
    names = {name: tensor.to(torch.bfloat16) for name, tensor in taming_names(ours).items()}
    ours.load_state_dict({name: tensor.to(torch.bfloat16).float() for name, tensor in ours.state_dict().items()})
    same(import_image_tokenizer(taming_file(tmp_path / "last.ckpt", names)).tokenizer, ours)


# ---- the job


def test_the_job_writes_what_it_read(tmp_path: Path) -> None:
    ours = tokenizer_of(architecture_of((1, 2), attention=(False, True)), normalize=True)
    torch.save({"model": llamagen_names(ours)}, tmp_path / "vq.pt")
    config = ImportConfig(checkpoint=tmp_path / "vq.pt", out=tmp_path / "out", size=32)
    result = import_tokenizer(config, SilentProgress())
    same(load_image_tokenizer(tmp_path / "out"), ours)
    record = json.loads((tmp_path / "out" / "import.json").read_text())
    assert (record["checkpoint"], record["fingerprint"], record["layout"]) == ("vq.pt", result.fingerprint, "llamagen")
    assert record["dropped"] == ["quantize.codebook_used"]
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert import_tokenizer(config, SilentProgress()) == result
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(UsageError, match="another tokenizer"):
        import_tokenizer(config.model_copy(update={"size": 64}), SilentProgress())
    with pytest.raises(UsageError, match="no multiple"):
        import_tokenizer(config.model_copy(update={"size": 33, "out": tmp_path / "o"}), SilentProgress())


def test_tokenizers_that_were_written_before_stay_what_they_were() -> None:
    """The fields that imports needed are values of old fields: no fingerprint changed."""
    from tokkit.tokenizers.image.presets import configure

    described = configure("fsq-tiny").model_dump(mode="json")
    assert described["preprocessing"] == {
        "size": 128,
        "resize": {"kind": "shortest-side", "filter": "lanczos"},
        "background": [255, 255, 255],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
    }


def test_shards_of_an_imported_tokenizer_carry_its_licence(tmp_path: Path) -> None:
    """Also where it cannot decode: the report then shows no pictures."""
    from shard_corpus import write_corpus, write_tokenizers

    from tokkit.pipelines.shard import ShardConfig, shard
    from tokkit.pipelines.verify import VerifyConfig, verify
    from tokkit.shards.native import open_shards

    corpus = write_corpus(tmp_path / "corpus").folder
    text, _ = write_tokenizers(tmp_path / "tokenizers")
    whole = tokenizer_of(architecture_of((1, 1, 2)), codes=50)
    torch.save({"state_dict": taming_names(whole)}, tmp_path / "vqgan.ckpt")
    names = {f"model.vqmodel.{n}": t for n, t in taming_names(whole).items() if not n.startswith("decoder.")}
    save_file(names, tmp_path / "model.safetensors")
    tokens = []
    for checkpoint in ("vqgan.ckpt", "model.safetensors"):
        vq, out = tmp_path / f"vq-{checkpoint}", tmp_path / f"shards-{checkpoint}"
        import_tokenizer(ImportConfig(checkpoint=tmp_path / checkpoint, out=vq, size=32), SilentProgress())
        inputs = [str(corpus / "pairs")]
        config = ShardConfig.model_validate(
            {"inputs": inputs, "out": out, "text_tokenizer": text, "image_tokenizer": vq, "workers": 0, "batch_size": 4}
        )
        manifest = shard(config, SilentProgress()).manifest
        assert manifest.tokenizers["image"].licence == "Chameleon Research License (non-commercial research only)"
        assert manifest.tokenizers["image"].detail["grid"] == [8, 8]
        assert manifest.items["image"]["committed"] > 10
        verify(VerifyConfig(directory=out), SilentProgress())
        page = (out / "report.html").read_text()
        assert ("data:image/png" in page) == (checkpoint == "vqgan.ckpt")
        shards = open_shards(out, "train")
        tokens.append([np.array(shards.tokens(i)) for i in range(shards.num_documents)])
    assert all(np.array_equal(a, b) for a, b in zip(*tokens, strict=True))
