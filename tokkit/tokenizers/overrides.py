"""``--set section.field=value``: a tokenizer's configuration with some of its fields replaced, whatever its modality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from tokkit.errors import ConfigError

Config = TypeVar("Config", bound=BaseModel)

KIND = "quantizer.kind"


def amended(base: Config, where: str, overrides: Mapping[str, object], quantizers: TypeAdapter[Any]) -> Config:
    """A configuration with some of its fields replaced.

    Args:
        base: where it starts from.
        where: names it in messages.
        overrides: ``"section.field"``, or ``"field"``, to value; text is read as YAML, so that ``8`` is a number and
            ``[8, 5, 5, 5]`` a list. Another ``quantizer.kind`` starts from that kind's defaults.
        quantizers: the kinds that there are, told apart by ``kind``.

    Raises:
        ConfigError: unknown keys or impossible values, all of them.
    """
    tree: dict[str, Any] = base.model_dump(mode="json")
    problems: list[str] = []
    # the kind goes first: it decides which other keys there are
    for key in sorted(overrides, key=lambda k: (k != KIND, k)):
        problem = _replace(tree, key, _value(overrides[key]), quantizers)
        if problem:
            problems.append(problem)
    try:
        config = type(base).model_validate(tree)
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


def _replace(tree: dict[str, Any], key: str, value: object, quantizers: TypeAdapter[Any]) -> str | None:
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
    if key == KIND and value != node["kind"]:
        try:
            defaults = quantizers.validate_python({"kind": value})
        except ValidationError:
            return f"{key}: {json.dumps(value, default=str)} is not one of {', '.join(_kinds(quantizers))}"
        tree["quantizer"] = defaults.model_dump(mode="json")
        return None
    node[last] = value
    return None


def _kinds(quantizers: TypeAdapter[Any]) -> list[str]:
    return list(quantizers.core_schema["choices"])


def _location(parts: tuple[int | str, ...]) -> str:
    return ".".join(str(p) for p in parts) or "the whole"
