"""Named configurations to train from, and the overrides of ``--set``.

* ``fsq-tiny``: a small convolutional network on 4x4 patches (PixelUnshuffle), one code per 8x8 pixels, FSQ. Made for CPUs:
  minutes on two cores. FSQ has no codebook that could collapse, so it is the one to begin with.
* ``vq-tiny``: the same network with a learned codebook of 4,096 unit vectors in 8 dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from tokkit.errors import ConfigError, UsageError
from tokkit.media.transforms import Preprocessing
from tokkit.tokenizers.image.config import (
    CnnArchitecture,
    FsqQuantizer,
    ImageTokenizerConfig,
    QuantizerConfig,
    VqQuantizer,
)

_TINY = CnnArchitecture(
    channels=32,
    multipliers=(1, 2),
    encoder_blocks=1,
    decoder_blocks=1,
    attention=(False, False),
    middle_blocks=0,
    middle_attention=False,
    patch=4,
    z_channels=64,
    norm_groups=8,
)

PRESETS: dict[str, ImageTokenizerConfig] = {
    "fsq-tiny": ImageTokenizerConfig(
        name="fsq-tiny",
        architecture=_TINY,
        quantizer=FsqQuantizer(levels=(8, 8, 8, 6, 5)),
        preprocessing=Preprocessing(size=128),
    ),
    "vq-tiny": ImageTokenizerConfig(
        name="vq-tiny",
        architecture=_TINY,
        quantizer=VqQuantizer(codebook_size=4096, codebook_dim=8),
        preprocessing=Preprocessing(size=128),
    ),
}


def configure(
    preset: str, overrides: Mapping[str, object] | None = None, resolution: int | None = None
) -> ImageTokenizerConfig:
    """A preset with some of its fields replaced.

    Args:
        preset: a name in :data:`PRESETS`.
        overrides: ``"section.field"`` to value; text is read as YAML, so that ``8`` is a number and ``[8, 5, 5, 5]`` a list.
            Another ``quantizer.kind`` starts from that kind's defaults.
        resolution: short for ``preprocessing.size``.

    Raises:
        UsageError: no such preset.
        ConfigError: unknown keys or impossible values, all of them.
    """
    if preset not in PRESETS:
        raise UsageError(f"no image tokenizer preset {preset!r}; there are {', '.join(PRESETS)}")
    wanted = dict(overrides or {})
    if resolution is not None:
        wanted.setdefault("preprocessing.size", resolution)
    tree: dict[str, Any] = PRESETS[preset].model_dump(mode="json")
    where = f"preset {preset}"
    problems: list[str] = []
    # the kind goes first: it decides which other keys there are
    for key in sorted(wanted, key=lambda k: (k != "quantizer.kind", k)):
        problem = _replace(tree, key, _value(wanted[key]))
        if problem:
            problems.append(problem)
    try:
        config = ImageTokenizerConfig.model_validate(tree)
    except ValidationError as error:
        problems += [f"{_location(e['loc'])}: {e['msg']}" for e in error.errors()]
    if problems:
        raise ConfigError(where, problems)
    return config


def _value(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return value


def _replace(tree: dict[str, Any], key: str, value: object) -> str | None:
    """Put a value at a dotted key that is there already; returns what is wrong, if something is."""
    *path, last = key.split(".")
    node: Any = tree
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        known = ", ".join(sorted(node)) if isinstance(node, dict) else ", ".join(sorted(tree))
        return f"{key}: no such key (there are {known})"
    if isinstance(node[last], dict):
        return f"{key}: is a section; set one of its keys ({', '.join(sorted(node[last]))})"
    if key == "quantizer.kind" and value != node["kind"]:
        try:
            defaults = TypeAdapter(QuantizerConfig).validate_python({"kind": value})
        except ValidationError:
            return f"{key}: {json.dumps(value, default=str)} is not one of fsq, vq"
        tree["quantizer"] = defaults.model_dump(mode="json")
        return None
    node[last] = value
    return None


def _location(parts: tuple[int | str, ...]) -> str:
    return ".".join(str(p) for p in parts) or "the whole"
