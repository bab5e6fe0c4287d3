"""Validating configurations, so that every problem is told at once and in the user's words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ValidationError

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
        raise ConfigError(where, lines_of(error, kind)) from None


def lines_of(error: ValidationError, kind: type[BaseModel], missing_is_fine: Collection[str] = ()) -> list[str]:
    """A line for each thing that is wrong, but for what may be missing."""
    errors = [entry for entry in error.errors() if entry["type"] != "missing" or entry["loc"][0] not in missing_is_fine]
    return [_line(entry) + _meant(entry, kind) for entry in errors]


def _meant(error: Mapping[str, Any], kind: type[BaseModel]) -> str:
    """For an option that is unknown: which one may have been meant."""
    if error["type"] != "extra_forbidden" or len(error["loc"]) != 1:
        return ""
    given = str(error["loc"][0]).replace("-", "_")
    close = get_close_matches(given, kind.model_fields)
    akin = [name for name in close if name.partition("_")[0] == given.partition("_")[0]]  # a name's first word counts for more
    return f"; did you mean {(akin or close)[0]}?" if close else ""


def _line(error: Mapping[str, object]) -> str:
    location = error["loc"]
    key = ".".join(str(part) for part in location) if isinstance(location, tuple) else str(location)
    message = str(error["msg"]).removeprefix("Value error, ")
    shown = "" if error["type"] in ("missing", "extra_forbidden") or error["input"] is None else f" (got {error['input']!r})"
    return f"{key}: {message}{shown}" if key else message


def parsed_size(value: object) -> object:
    """``64MB``, ``1GiB``, ``500k`` or a plain number as a number (of bytes, or tokens); what is no text is left as it is.

    Raises:
        ValueError: a text that is none of these.
    """
    if not isinstance(value, str):
        return value
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
    number = value.strip().lower().removesuffix("b")
    digits = number.rstrip("kmgti")
    try:
        return int(float(digits) * units[number[len(digits) :].strip()])
    except (ValueError, KeyError, OverflowError):
        raise ValueError("not a size; write for example 64MB, 1GiB or a number") from None


Size = Annotated[int, BeforeValidator(parsed_size)]


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
