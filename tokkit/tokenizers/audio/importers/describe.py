"""What a configuration says of an EnCodec checkpoint, held against what its weights say themselves.

transformers' ``config.json`` lies beside the weights, audiocraft's ``xp.cfg`` inside the file. encodec's own ``.th`` says
nothing: its two released models are told apart by channels and norm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tokkit.errors import ConfigError, DataError, UsageError
from tokkit.storage import read_json

_NORMS = {"weight_norm": "none", "none": "none", "time_group_norm": "time_group_norm"}


@dataclass(frozen=True)
class Described:
    """A configuration in our terms.

    Attributes:
        where: it stands, for messages.
        architecture, quantizer: fields that it names.
        rest: the other fields of an :class:`~tokkit.tokenizers.audio.config.AudioTokenizerConfig`.
    """

    where: str
    architecture: Mapping[str, Any]
    quantizer: Mapping[str, Any]
    rest: Mapping[str, Any]

    def check(self, architecture: Mapping[str, Any], quantizer: Mapping[str, Any]) -> None:
        """Hold it against what was derived from the weights.

        Raises:
            ConfigError: they contradict each other; every difference is listed.
        """
        problems = []
        for section, said, found in (
            ("network", self.architecture, architecture),
            ("quantizer", self.quantizer, quantizer),
        ):
            for key in said.keys() & found.keys():
                if said[key] != found[key]:
                    problems.append(f"{section} {key}: {said[key]}, and the weights have {found[key]}")
        if problems:
            raise ConfigError(self.where, sorted(problems))


def of_encodec(architecture: Mapping[str, Any]) -> Described:
    """A model of encodec's: mono with weight norm is the causal one of 24 kHz, group norm the one of 48 kHz in segments."""
    if architecture["norm"] == "none":
        rest: dict[str, Any] = {"sample_rate": 24000}
        return Described("encodec", {"causal": True, "padding": "reflect", "channels": 1}, {}, rest)
    rest = {"sample_rate": 48000, "normalize": True, "segment": 48000}
    return Described("encodec", {"causal": False, "padding": "reflect", "channels": 2}, {}, rest)


def beside(path: Path) -> Path:
    """The ``config.json`` of a model of transformers'.

    Raises:
        UsageError: there is none.
    """
    found = (path if path.is_dir() else path.parent) / "config.json"
    if not found.is_file():
        raise UsageError(f"{path}: a model of transformers' layout needs the config.json beside it: it tells rate and padding")
    return found


def of_transformers(path: Path) -> Described:
    """transformers' ``config.json``, of EnCodec or of a model that holds one.

    Raises:
        DataError: it is not one.
    """
    content = read_json(path)
    said = content.get("audio_encoder", content) if isinstance(content, dict) else None
    if not isinstance(said, dict) or said.get("model_type") != "encodec":
        raise DataError(f"{path}: not the configuration of an EnCodec model (its model_type is not encodec)")
    try:
        rate = int(said["sampling_rate"])
        chunk = said.get("chunk_length_s")
        if said.get("codebook_dim") not in (None, said["hidden_size"]):
            raise DataError(f"{path}: codebooks of {said['codebook_dim']} dimensions for features of {said['hidden_size']}")
        architecture = {
            "channels": said["audio_channels"],
            "dimension": said["hidden_size"],
            "filters": said["num_filters"],
            "ratios": tuple(said["upsampling_ratios"]),
            "residual_layers": said["num_residual_layers"],
            "kernel_size": said["kernel_size"],
            "last_kernel_size": said["last_kernel_size"],
            "residual_kernel_size": said["residual_kernel_size"],
            "dilation_base": said["dilation_growth_rate"],
            "compress": said["compress"],
            "lstm": said["num_lstm_layers"],
            "causal": said["use_causal_conv"],
            "norm": _NORMS.get(said["norm_type"], said["norm_type"]),
            "padding": said["pad_mode"],
            "true_skip": not said["use_conv_shortcut"],
            "trim_right_ratio": said["trim_right_ratio"],
        }
        rest = {
            "sample_rate": rate,
            "normalize": said["normalize"],
            "segment": int(chunk * rate) if chunk is not None else None,
            "overlap": said["overlap"] if said.get("overlap") is not None else 0.0,
        }
        return Described(str(path), architecture, {"codebook_size": said["codebook_size"]}, rest)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not the configuration of an EnCodec model ({type(error).__name__}: {error})") from None


def of_audiocraft(text: str, where: str) -> Described:
    """audiocraft's ``xp.cfg``.

    Raises:
        DataError: it is not one, or asks for what EnCodec here does not have.
    """
    try:
        content = yaml.safe_load(text)
        tree = _resolved(content, content, 0)
        seanet, encodec, rvq = tree["seanet"], tree["encodec"], tree["rvq"]
        unknown = [
            f"{key}: {value}"
            for key, value, usual in (
                ("compression_model", tree.get("compression_model", "encodec"), ("encodec",)),
                ("encodec.autoencoder", encodec["autoencoder"], ("seanet",)),
                ("encodec.quantizer", encodec["quantizer"], ("rvq",)),
                ("encodec.renormalize", encodec["renormalize"], (False,)),
                ("seanet.activation", seanet["activation"], ("ELU",)),
                ("seanet.activation_params", seanet["activation_params"], ({"alpha": 1.0},)),
                ("seanet.encoder", seanet.get("encoder") or {}, ({},)),
                ("seanet.decoder.final_activation", seanet["decoder"].get("final_activation"), (None,)),
            )
            if value not in usual
        ]
        if unknown:
            raise DataError(f"{where}: a model that cannot be imported ({'; '.join(unknown)})")
        architecture = {
            "channels": seanet["channels"],
            "dimension": seanet["dimension"],
            "filters": seanet["n_filters"],
            "ratios": tuple(seanet["ratios"]),
            "residual_layers": seanet["n_residual_layers"],
            "kernel_size": seanet["kernel_size"],
            "last_kernel_size": seanet["last_kernel_size"],
            "residual_kernel_size": seanet["residual_kernel_size"],
            "dilation_base": seanet["dilation_base"],
            "compress": seanet["compress"],
            "lstm": seanet["lstm"],
            "causal": seanet["causal"],
            "norm": _NORMS.get(seanet["norm"], seanet["norm"]),
            "padding": seanet["pad_mode"],
            "true_skip": seanet["true_skip"],
            "trim_right_ratio": seanet["decoder"].get("trim_right_ratio", 1.0),
        }
        quantizer = {"codebooks": rvq["n_q"], "codebook_size": rvq["bins"]}
        return Described(where, architecture, quantizer, {"sample_rate": int(encodec["sample_rate"])})
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        raise DataError(f"{where}: not the configuration of an EnCodec model ({type(error).__name__}: {error})") from None


def _resolved(value: Any, tree: Any, depth: int) -> Any:
    """A value with every ``${a.b}`` looked up in the whole configuration."""
    if depth > 20:
        raise ValueError("entries that refer to each other without end")
    if isinstance(value, dict):
        return {key: _resolved(inner, tree, depth + 1) for key, inner in value.items()}
    if isinstance(value, list):
        return [_resolved(inner, tree, depth + 1) for inner in value]
    match = re.fullmatch(r"\$\{([\w.]+)\}", value) if isinstance(value, str) else None
    if match is None:
        return value
    node = tree
    for part in match[1].split("."):
        if not isinstance(node, dict) or part not in node:
            return value  # an entry that nobody here asks for
        node = node[part]
    return _resolved(node, tree, depth + 1)
