"""What a configuration file says of a checkpoint, against what the weights say themselves.

The weights decide; the file is evidence that they are what it is thought to describe. Three forms are read: taming's and
Chameleon's yaml (``model.params.ddconfig``, ``n_embed``, ``embed_dim``), and transformers' ``config.json`` (``vq_config``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tokkit.errors import ConfigError, DataError, UsageError
from tokkit.tokenizers.image.config import CnnArchitecture
from tokkit.tokenizers.image.quantizer_config import VqQuantizer

# transformers' names for taming's.
_TRANSFORMERS = {
    "base_channels": "ch",
    "channel_multiplier": "ch_mult",
    "latent_channels": "z_channels",
    "double_latent": "double_z",
    "num_embeddings": "n_embed",
}

# Classes that quantize to the nearest vector. Others (GumbelVQ) may share names and mean something else by them.
_NEAREST = {"VQModel", "VQNoDiscModel", "VQSegmentationModel", "EMAVQ", "VQModelInterface"}


class Described:
    """A configuration file's entries under taming's names.

    Args:
        path: of the file.

    Raises:
        UsageError: it cannot be read.
        DataError: it is of none of the known forms.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = _read(path)
        model = content.get("model")
        params = model.get("params") if isinstance(model, dict) else None
        self.target: str | None = None
        if isinstance(params, dict) and isinstance(params.get("ddconfig"), dict):
            self.entries: dict[str, Any] = params["ddconfig"] | {
                k: v for k, v in params.items() if k in ("n_embed", "embed_dim")
            }
            self.target = model.get("target") if isinstance(model, dict) else None
        elif isinstance(content.get("vq_config"), dict):
            self.entries = {_TRANSFORMERS.get(key, key): value for key, value in content["vq_config"].items()}
        else:
            raise DataError(f"{path}: has neither model.params.ddconfig (taming, Chameleon) nor vq_config (transformers)")

    @property
    def resolution(self) -> int | None:
        """The nominal side of the pictures."""
        value = self.entries.get("resolution")
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def compare(self, architecture: CnnArchitecture, quantizer: VqQuantizer) -> None:
        """Hold it against what was derived.

        Raises:
            ConfigError: they differ; every difference is listed.
        """
        problems = [
            f"{key}: {self.entries[key]!r} here, {found!r} by the weights"
            for key, found in _derived(architecture, quantizer).items()
            if key in self.entries and _plain(self.entries[key]) != found
        ]
        problems += self._attention(architecture)
        if self.target is not None and str(self.target).rpartition(".")[2] not in _NEAREST:
            problems.append(f"target: {self.target!r} is not one that quantizes to the nearest vector of a codebook")
        if problems:
            raise ConfigError(str(self.path), problems)

    def _attention(self, architecture: CnnArchitecture) -> list[str]:
        """taming puts attention where the nominal resolution has come down to one of a list."""
        if "attn_resolutions" not in self.entries:
            return []
        wanted = self.entries["attn_resolutions"] or []
        if self.resolution is None or not isinstance(wanted, (list, tuple)):
            return [f"attn_resolutions: {wanted!r} with the resolution {self.entries.get('resolution')!r} says nothing"]
        sides = [self.resolution // 2**level for level in range(len(architecture.multipliers))]
        found = [side for side, there in zip(sides, architecture.attention, strict=True) if there]
        expected = [side for side in sides if side in wanted]
        return [] if found == expected else [f"attn_resolutions: {wanted!r} here, {found!r} by the weights"]


def beside(checkpoint: Path, transformers: bool) -> Path | None:
    """The configuration file beside a checkpoint: ``config.json`` of transformers, else ``NAME.yaml`` or ``project.yaml``."""
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    names = ["config.json"] if transformers else [f"{checkpoint.stem}.yaml", "project.yaml"]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def _derived(architecture: CnnArchitecture, quantizer: VqQuantizer) -> dict[str, object]:
    derived: dict[str, object] = {
        "ch": architecture.channels,
        "ch_mult": list(architecture.multipliers),
        "num_res_blocks": architecture.encoder_blocks,
        "z_channels": architecture.z_channels,
        "embed_dim": quantizer.codebook_dim,
        "n_embed": quantizer.codebook_size,
        "in_channels": 3,
        "double_z": False,
        "resamp_with_conv": True,
        "attn_type": "vanilla" if architecture.middle_attention or any(architecture.attention) else "none",
    }
    if architecture.has_decoder:
        derived |= {"out_ch": 3, "num_res_blocks": architecture.decoder_blocks - 1}
        if architecture.encoder_blocks != architecture.decoder_blocks - 1:
            derived["num_res_blocks"] = [architecture.encoder_blocks, architecture.decoder_blocks]
    return derived


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return "none" if value is None else value


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not a mapping")
    return content
