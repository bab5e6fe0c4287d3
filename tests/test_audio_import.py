"""Importing EnCodec models from encodec's, transformers' and audiocraft's files: the codes that they give there, or why not."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from audio_models import fill, fused, signals, small_24k, small_32k, small_48k, theirs, ties
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import ConfigError, DataError, UsageError
from tokkit.tokenizers.audio import load_audio_tokenizer
from tokkit.tokenizers.audio.importers.load import Imported, import_audio_tokenizer
from tokkit.tokenizers.audio.model import EncodecTokenizer

Weights = dict[str, Tensor]


def _same(model: Any, tokenizer: EncodecTokenizer) -> None:
    """Equal codes, one clip at a time, and equal sound."""
    clips = signals(tokenizer.sample_rate, tokenizer.channels)
    for name in ("noise-1", "noise-2241", "sweep"):
        codes, _ = theirs(model, clips[name])
        (code,) = tokenizer.encode([clips[name]], exact=True)
        assert np.array_equal(code.codes, codes), name
    assert len(np.unique(code.codes)) > 10
    with torch.no_grad():
        expected = model.decode(model.encode(torch.from_numpy(clips["sweep"]).unsqueeze(0)))[0, :, : code.samples].numpy()
    assert np.allclose(tokenizer.decode(code), expected, atol=1e-5)


def _th(folder: Path, weights: Weights, **beside: Any) -> Path:
    path = folder / "encodec.th"
    torch.save({"state_dict": weights, **beside} if beside else weights, path)
    return path


# ---- transformers' names, written down apart from the importer's renaming


def _transformers_names(model: Any, parametrized: bool) -> Weights:
    last = max(int(n.split(".")[2]) for n in model.state_dict() if n.startswith("decoder.model."))
    found = {}
    for name, tensor in model.state_dict().items():
        new = name.replace(".model.", ".layers.").replace("conv.conv.", "conv.").replace("convtr.convtr.", "conv.")
        new = new.replace(".conv.norm.", ".norm.").replace(".convtr.norm.", ".norm.")
        new = new.replace("quantizer.vq.layers.", "quantizer.layers.").replace("._codebook.", ".codebook.")
        if parametrized:
            new = new.replace("weight_g", "parametrizations.weight.original0").replace(
                "weight_v", "parametrizations.weight.original1"
            )
        found[new] = tensor.contiguous().clone()
    assert len(found) == len(model.state_dict())
    assert last > 0
    return found


def _transformers_config(model: Any, **changed: Any) -> dict[str, Any]:
    segments, wide = model.normalize, model.encoder.ratios[0] == 4
    return {
        "model_type": "encodec",
        "sampling_rate": model.sample_rate,
        "audio_channels": model.channels,
        "normalize": model.normalize,
        "chunk_length_s": 1.0 if segments else None,
        "overlap": 0.01 if segments else None,
        "hidden_size": 16,
        "num_filters": 4,
        "num_residual_layers": 1,
        "upsampling_ratios": [8, 5, 4, 4] if wide else [8, 5, 4, 2],
        "norm_type": "time_group_norm" if segments else "weight_norm",
        "kernel_size": 7,
        "last_kernel_size": 7,
        "residual_kernel_size": 3,
        "dilation_growth_rate": 2,
        "use_causal_conv": not segments and not wide,
        "pad_mode": "constant" if wide else "reflect",
        "compress": 2,
        "num_lstm_layers": 2,
        "trim_right_ratio": 1.0,
        "codebook_size": 64,
        "codebook_dim": 16,
        "use_conv_shortcut": not wide,
    } | changed


def _transformers_folder(folder: Path, model: Any, parametrized: bool = False, part: str = "", **changed: Any) -> Path:
    config = _transformers_config(model, **changed)
    (folder / "config.json").write_text(json.dumps({"audio_encoder": config} if part else config))
    weights = {part + name: tensor for name, tensor in _transformers_names(model, parametrized).items()}
    save_file(weights | ({"text_encoder.weight": torch.ones(2)} if part else {}), folder / "model.safetensors")
    return folder


# ---- audiocraft's


def _xp_cfg(**changed: Any) -> str:
    tree: dict[str, Any] = {
        "sample_rate": 32000,
        "channels": 1,
        "compression_model": "encodec",
        "encodec": {
            "autoencoder": "seanet",
            "quantizer": "rvq",
            "sample_rate": "${sample_rate}",
            "channels": "${channels}",
            "causal": False,
            "renormalize": False,
        },
        "seanet": {
            "dimension": 16,
            "channels": "${channels}",
            "causal": "${encodec.causal}",
            "n_filters": 4,
            "n_residual_layers": 1,
            "ratios": [8, 5, 4, 4],
            "activation": "ELU",
            "activation_params": {"alpha": 1.0},
            "norm": "weight_norm",
            "kernel_size": 7,
            "residual_kernel_size": 3,
            "last_kernel_size": 7,
            "dilation_base": 2,
            "pad_mode": "constant",
            "true_skip": True,
            "compress": 2,
            "lstm": 2,
            "decoder": {"trim_right_ratio": 1.0, "final_activation": None},
            "encoder": {},
        },
        "rvq": {"n_q": 4, "bins": 64},
        "slurm": {"gpus": "${oc.env:GPUS}"},
    }
    for key, value in changed.items():
        section, name = key.split("__")
        tree[section][name] = value
    return yaml.safe_dump(tree)


def _audiocraft(folder: Path, model: Any, **changed: Any) -> Path:
    path = folder / "compression_state_dict.bin"
    torch.save({"best_state": model.state_dict(), "xp.cfg": _xp_cfg(**changed), "exported": True, "version": "1"}, path)
    return path


# ---- the codes that they give


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("kind", [small_24k, small_48k])
def test_encodecs_own_files(tmp_path: Path, kind: Callable[[], Any], prefix: str) -> None:
    model = kind()
    weights = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    found = import_audio_tokenizer(_th(tmp_path, weights, epoch=3) if prefix else _th(tmp_path, weights))
    assert (found.layout, found.weights) == ("encodec", "state_dict" if prefix else "")
    assert found.tokenizer.config.licence == "CC-BY-NC 4.0 (encodec 0.1.1)"
    assert all("cluster_size" in name or "embed_avg" in name or name == "epoch" for name in found.dropped)
    _same(model, found.tokenizer)


@pytest.mark.parametrize("parametrized", [False, True])
@pytest.mark.parametrize("part", ["", "audio_encoder."])
@pytest.mark.parametrize("kind", [small_24k, small_48k, small_32k])
def test_transformers_folders(tmp_path: Path, kind: Callable[[], Any], part: str, parametrized: bool) -> None:
    model = kind()
    found = import_audio_tokenizer(_transformers_folder(tmp_path, model, parametrized, part))
    assert found.layout == "encodec-hf"
    assert found.tokenizer.licence is None
    assert ("text_encoder.weight" in found.dropped) == bool(part)
    _same(model, found.tokenizer)


def test_audiocrafts_files(tmp_path: Path) -> None:
    model = small_32k()
    found = import_audio_tokenizer(_audiocraft(tmp_path, model), licence="MIT", name="mine")
    config = found.tokenizer.config
    assert (found.layout, found.weights, config.name, config.licence) == ("audiocraft", "best_state", "mine", "MIT")
    assert (config.sample_rate, config.architecture.padding, config.architecture.causal) == (32000, "constant", False)
    _same(model, found.tokenizer)


def test_the_same_model_in_three_layouts_is_one(tmp_path: Path) -> None:
    model = small_32k()
    parts = [tmp_path / name for name in "ab"]
    for part in parts:
        part.mkdir()
    one = import_audio_tokenizer(_audiocraft(parts[0], model)).tokenizer
    two = import_audio_tokenizer(_transformers_folder(parts[1], model)).tokenizer
    for name, tensor in one.weights().items():
        assert torch.equal(tensor, two.weights()[name]), name
    assert one.config.architecture == two.config.architecture


def test_weights_without_weight_norm_are_taken_as_they_are(tmp_path: Path) -> None:
    model = small_24k()
    _same(model, import_audio_tokenizer(_th(tmp_path, fused(model).state_dict())).tokenizer)


TRANSFORMERS: dict[str, dict[str, Any]] = {
    "24k": {"target_bandwidths": [4.5]},
    "48k": {
        "target_bandwidths": [9.0],
        "sampling_rate": 48000,
        "audio_channels": 2,
        "normalize": True,
        "chunk_length_s": 1.0,
        "overlap": 0.01,
        "use_causal_conv": False,
        "norm_type": "time_group_norm",
    },
    "32k": {
        "target_bandwidths": [2.2],
        "sampling_rate": 32000,
        "upsampling_ratios": [8, 5, 4, 4],
        "use_causal_conv": False,
        "use_conv_shortcut": False,
    },
}


@pytest.mark.parametrize("kind", TRANSFORMERS)
def test_codes_are_those_of_transformers_own_model(tmp_path: Path, kind: str) -> None:
    """The package's model is the go-between for filling the codebooks only: what is compared is transformers' own output."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    options = {"num_filters": 4, "hidden_size": 16, "codebook_size": 64, "codebook_dim": 16} | TRANSFORMERS[kind]
    model = transformers.EncodecModel(transformers.EncodecConfig(**options)).eval()
    for name, tensor in model.named_parameters():
        if name.endswith(".original0"):
            tensor.data *= 0.7 + 0.6 * torch.rand_like(tensor)
    for layer in model.quantizer.layers:
        layer.codebook.inited.fill_(1)
        layer.codebook.embed.normal_()
    model.save_pretrained(tmp_path)
    tokenizer = import_audio_tokenizer(tmp_path).tokenizer
    fill(tokenizer.network)
    for ours, layer in zip(tokenizer.network.quantizer.vq.layers, model.quantizer.layers, strict=True):
        layer.codebook.embed.copy_(ours._codebook.embed)
    model.save_pretrained(tmp_path)
    tokenizer = import_audio_tokenizer(tmp_path).tokenizer
    clips = signals(tokenizer.sample_rate, tokenizer.channels)
    seen: set[int] = set()
    for name in ("noise-1921", "noise-9601", "sweep", "long-sweep"):
        (code,) = tokenizer.encode([clips[name]], exact=True)
        with torch.no_grad():
            encoded = model.encode(torch.from_numpy(clips[name]).unsqueeze(0))
        first = 0
        for chunk, (start, end) in enumerate(tokenizer.config.segments(code.samples)):
            frames = -(-(end - start) // tokenizer.hop)  # transformers fills the last chunk up with code 0
            expected = encoded.audio_codes[chunk, 0, :, :frames].numpy().astype(np.int32)
            segment = code.codes[:, first : first + frames]
            if not np.array_equal(expected, segment):
                assert tokenizer.config.segment is None
                assert ties(tokenizer.network, clips[name], expected, segment) <= 1
            first += frames
        assert first == code.codes.shape[1]
        seen |= set(np.unique(code.codes).tolist())
    assert len(seen) > 30


# ---- refusals


def _drop(name: str) -> Callable[[Weights], object]:
    return lambda weights: weights.pop(name)


def _put(name: str, tensor: Tensor) -> Callable[[Weights], object]:
    return lambda weights: weights.update({name: tensor})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (_drop("encoder.model.0.conv.conv.weight_g"), "one part of a normalised weight"),
        (_drop("decoder.model.3.convtr.convtr.bias"), "decoder.model.3.convtr.convtr.bias is missing"),
        (_put("encoder.model.99.extra", torch.ones(3)), "encoder.model.99.extra is not known"),
        (_put("encoder.model.0.conv.conv.bias", torch.ones(9)), "has the shape .9., not .4."),
        (_put("encoder.model.0.conv.conv.bias", torch.full((4,), torch.nan)), "not finite"),
        (_put("encoder.model.0.conv.conv.bias", torch.ones(4, dtype=torch.int64)), "no floating point"),
        (_put("encoder.model.0.conv.conv.weight_g", torch.ones(7, 1, 1)), "lengths"),
        (_put("quantizer.vq.layers.2._codebook.inited", torch.zeros(1)), "codebook 2 was never initialised"),
        (_put("quantizer.vq.layers.3._codebook.embed", torch.zeros(64, 16)), r"never initialised \(all zero\): 3"),
        (_put("quantizer.vq.layers.3._codebook.embed", torch.ones(32, 16)), "not of one size"),
        (_drop("quantizer.vq.layers.4._codebook.embed"), "numbered"),
    ],
)
def test_weights_that_make_no_tokenizer(tmp_path: Path, change: Callable[[Weights], object], problem: str) -> None:
    weights = dict(small_24k().state_dict())
    change(weights)
    with pytest.raises(DataError, match=problem):
        import_audio_tokenizer(_th(tmp_path, weights))


def test_files_that_are_no_encodec(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no EnCodec model"):
        import_audio_tokenizer(_th(tmp_path, {"weight": torch.ones(3)}))
    with pytest.raises(UsageError, match="no such file"):
        import_audio_tokenizer(tmp_path / "absent.th")
    with pytest.raises(UsageError, match="no layout 'opus'"):
        import_audio_tokenizer(_th(tmp_path, small_24k().state_dict()), layout="opus")
    (tmp_path / "broken.th").write_bytes((tmp_path / "encodec.th").read_bytes()[:3000])
    with pytest.raises(DataError, match="damaged"):
        import_audio_tokenizer(tmp_path / "broken.th")


class _Runs:
    """What a pickle may do to whoever loads it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "ran"
    path = tmp_path / "evil.th"
    torch.save({"state_dict": small_24k().state_dict(), "hook": _Runs(trace)}, path)
    with pytest.raises(DataError, match="holds more than weights"):
        import_audio_tokenizer(path)
    assert not trace.exists()


def test_a_configuration_that_contradicts_the_weights(tmp_path: Path) -> None:
    folder = _transformers_folder(tmp_path, small_24k(), num_filters=32, codebook_size=1024)
    with pytest.raises(ConfigError) as caught:
        import_audio_tokenizer(folder)
    assert caught.value.problems == [
        "network filters: 32, and the weights have 4",
        "quantizer codebook_size: 1024, and the weights have 64",
    ]
    stereo = {"encoder.model.0.conv.conv.weight_v": torch.randn(4, 2, 7)}
    with pytest.raises(ConfigError, match="channels: 1, and the weights have 2"):
        import_audio_tokenizer(_th(tmp_path, small_24k().state_dict() | stereo))


def test_a_configuration_that_is_missing_or_none(tmp_path: Path) -> None:
    folder = _transformers_folder(tmp_path, small_24k())
    config = (folder / "config.json").read_text()
    for text, problem in (
        (config.replace('"encodec"', '"mimi"'), "model_type is not encodec"),
        (re.sub(r'"num_filters": 4, ', "", config), "KeyError"),
        (config.replace('"codebook_dim": 16', '"codebook_dim": 8'), "8 dimensions"),
        (config.replace('"reflect"', '"replicate"'), "padding"),
        ("{", "damaged"),
    ):
        (folder / "config.json").write_text(text)
        with pytest.raises(DataError, match=problem):
            import_audio_tokenizer(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match="it tells rate and padding"):
        import_audio_tokenizer(folder)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"encodec__renormalize": True}, "encodec.renormalize: True"),
        ({"seanet__activation": "ReLU"}, "seanet.activation: ReLU"),
        ({"encodec__quantizer": "no_quant"}, "no_quant"),
        ({"seanet__encoder": {"n_filters": 8}}, "seanet.encoder"),
        ({"seanet__channels": "${seanet.channels}"}, "without end"),
    ],
)
def test_audiocraft_models_that_cannot_be_imported(tmp_path: Path, changed: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        import_audio_tokenizer(_audiocraft(tmp_path, small_32k(), **changed))


def test_audiocraft_without_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no xp\.cfg"):
        import_audio_tokenizer(_th(tmp_path, small_24k().state_dict()), layout="audiocraft")


# ---- the command


def test_the_command(tmp_path: Path) -> None:
    path = _th(tmp_path, small_24k().state_dict())
    out = tmp_path / "tokenizer"
    done = CliRunner().invoke(app, ["import", str(path), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    tokenizer = load_audio_tokenizer(out)
    assert result["fingerprint"] == tokenizer.fingerprint
    assert (result["frame_rate"], result["codebooks"], result["sample_rate"]) == (75, 6, 24000)
    record = json.loads((out / "import.json").read_text())
    assert (record["checkpoint"], record["layout"]) == ("encodec.th", "encodec")
    again = CliRunner().invoke(app, ["import", str(path), "--out", str(out), "--layout", "encodec"])
    assert again.exit_code == 0
    assert "6 x 64 codes" in " ".join(again.stdout.split())
    other = tmp_path / "other"
    other.mkdir()
    changed = _th(other, small_24k(seed=1).state_dict())
    refused = CliRunner().invoke(app, ["import", str(changed), "--out", str(out)])
    assert refused.exit_code == 2
    assert "another tokenizer" in refused.stderr
    for option in (["--size", "256"], ["--yaml", str(path)]):
        refused = CliRunner().invoke(app, ["import", str(path), "--out", str(tmp_path / "new"), *option])
        assert refused.exit_code == 2
        assert "image tokenizers" in refused.stderr


def test_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fetched only where that is allowed; the record names the revision."""
    huggingface_hub = pytest.importorskip("huggingface_hub")
    asked: list[str] = []

    def fetch(name: str, **how: Any) -> str:
        asked.append(name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "0a1b"
    folder.mkdir()
    _transformers_folder(folder, small_24k(), False, "")
    command = ["import", "some/encodec", "--out", "out"]
    refused = CliRunner().invoke(app, command)
    assert (refused.exit_code, asked) == (2, [])
    assert "--allow-download" in " ".join(refused.stderr.split())
    assert CliRunner().invoke(app, [*command, "--allow-download"]).exit_code == 0
    assert asked == ["some/encodec"]
    assert json.loads(Path("out/import.json").read_text())["checkpoint"] == "some/encodec@0a1b"
    assert load_audio_tokenizer("out").fingerprint == import_audio_tokenizer(folder).tokenizer.fingerprint

    def fail(name: str, **how: Any) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    failed = CliRunner().invoke(app, [*command, "--allow-download"])
    assert failed.exit_code == 75
    assert "no route to host" in failed.stderr


def test_what_an_import_tells(tmp_path: Path) -> None:
    found = import_audio_tokenizer(_th(tmp_path, small_48k().state_dict()))
    assert isinstance(found, Imported)
    assert (found.tokenizer.config.segment, found.tokenizer.config.normalize) == (48000, True)
    assert found.tokenizer.config.name == "encodec-48k"
