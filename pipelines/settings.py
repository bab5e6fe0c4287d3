"""Validating configurations, so that every problem is told at once and in the user's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from tokkit.errors import ConfigError, UsageError

Config = TypeVar("Config", bound=BaseModel)


def validated(kind: type[Config], where: str, options: Mapping[str, object]) -> Config:
    """Build a configuration from options.

    Args:
        kind: the pydantic model.
        where: the command or file that the options came from.
        options: values by field name; None means "not given".

    Raises:
        ConfigError: with one line for each field that is missing, unknown or invalid.
    """
    given = {key: value for key, value in options.items() if value is not None}
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        raise ConfigError(where, [_line(e) for e in error.errors()]) from None


def _line(error: Mapping[str, object]) -> str:
    location = error["loc"]
    key = ".".join(str(part) for part in location) if isinstance(location, tuple) else str(location)
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if error["type"] in ("missing", "extra_forbidden") or error["input"] is None else f" (got {error['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def from_yaml(path: Path) -> dict[str, Any]:
    """Options from a YAML file.

    Raises:
        UsageError: it cannot be read, or is not a mapping of option names.
    """
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"{path} is not a mapping of option names to values")
    return content


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """``KEY=VALUE`` texts as a mapping; values are read as YAML (numbers, lists, true, text).

    Raises:
        ConfigError: with one line for each that is not of this form.
    """
    found: dict[str, Any] = {}
    problems = []
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            if not equals or not key:
                raise ValueError
            found[key.strip()] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError):
            problems.append(f"{text!r} is not KEY=VALUE")
    if problems:
        raise ConfigError("--set", problems)
    return found
