"""Recipes: options of ``tokkit shard`` under a name, and how they come together with what is typed.

A recipe is a YAML mapping of the job's options (fields of :class:`~tokkit.pipelines.shard.ShardConfig`); ``run/job.json`` of an
output is one, too. Two entries are its own: ``about`` says what it is for, and ``needs`` names options that whoever uses it
must give. ``--set KEY=VALUE`` wins over the recipe, and a flag over both. Nested options (``image_limits``) are merged key by
key, and may be written with a dot. Paths are taken from where the command is run, as if they had been typed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from tokkit.errors import ConfigError, UsageError
from tokkit.pipelines.settings import assignments, from_yaml, lines_of
from tokkit.pipelines.shard import ShardConfig

FOLDER = "recipes"
SUFFIX = ".yaml"
COMMAND = "tokkit shard"
STAND_INS = {"inputs": ["-"], "out": ".", "text_tokenizer": "."}  # for what is missing, so that the rest can be validated


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read.

    Attributes:
        name: as it was asked for.
        about: what it is for.
        needs: options that must be given beside it.
        options: by field of the configuration, nested.
    """

    name: str = ""
    about: str = ""
    needs: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def recipe_names() -> list[str]:
    """The recipes that come with tokkit."""
    folder = files(__package__) / FOLDER
    return sorted(entry.name.removesuffix(SUFFIX) for entry in folder.iterdir() if entry.name.endswith(SUFFIX))


def load_recipe(name: str) -> Recipe:
    """Read a recipe: one that comes with tokkit, by its name, or a file, by its path.

    Raises:
        UsageError: there is none of that name, or the file is not one.
    """
    if name in recipe_names():
        path = Path(str(files(__package__) / FOLDER / f"{name}{SUFFIX}"))
    else:
        path = Path(name)
        if not path.is_file():
            raise UsageError(
                f"--recipe {name}: there is no such file, and no recipe of that name; known: {', '.join(recipe_names())}"
            )
    options = from_yaml(path)
    about, needs = options.pop("about", ""), options.pop("needs", [])
    known = list(ShardConfig.model_fields)
    if not isinstance(about, str) or not isinstance(needs, list) or not all(name in known for name in needs):
        raise UsageError(f"{path}: `about` is a text, and `needs` a list of options")
    return Recipe(name, about, tuple(needs), nested(options))


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which each layer wins over those before it; mappings are merged key by key."""
    found: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = found.get(key)
            found[key] = merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return found


def nested(options: Mapping[str, Any]) -> dict[str, Any]:
    """``{"a.b": 1}`` as ``{"a": {"b": 1}}``."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        *path, last = key.split(".")
        entry: dict[str, Any] = {last: value}
        for part in reversed(path):
            entry = {part: entry}
        found = merged(found, entry)
    return found


@dataclass(frozen=True)
class Resolved:
    """Options of a run, from a recipe, ``--set`` and flags.

    Attributes:
        config: None where something is missing.
        options: all of them as plain values, defaults included.
        missing: options that must be given still.
        needs: those of them that the recipe needs.
    """

    config: ShardConfig | None
    options: dict[str, Any]
    missing: list[str]
    needs: list[str]

    def as_yaml(self) -> str:
        """The options as a recipe."""
        head = f"# still to be given: {', '.join(self.missing)}\n" if self.missing else ""
        options = {"needs": self.needs, **self.options} if self.needs else self.options
        return head + yaml.safe_dump(options, sort_keys=False, allow_unicode=True, width=120)


def resolve(recipe: Recipe, sets: Sequence[str], flags: Mapping[str, Any], *, incomplete: bool = False) -> Resolved:
    """Bring the layers together, and validate what comes of them.

    Args:
        flags: what was typed; None is "not given".
        incomplete: do not mind what is missing, as long as what is there is right.

    Raises:
        ConfigError: with one line for each option that is unknown, wrong or missing.
    """
    typed = {key: value for key, value in flags.items() if value is not None}
    layers = merged(recipe.options, nested(assignments(sets)), typed)
    given = {
        key: value for key, value in layers.items() if value is not None
    }  # None: the default, which a layer may go back to
    lacking = needs = [name for name in recipe.needs if name not in given]
    problems: list[str] = []
    # Options may be wrong without an image tokenizer; where the recipe needs one, that it lacks is all there is to tell.
    whole = given | ({"image_tokenizer": Path()} if "image_tokenizer" in lacking else {})
    try:
        config = ShardConfig.model_validate(whole)
    except ValidationError as error:
        missing = [str(entry["loc"][0]) for entry in error.errors() if entry["type"] == "missing"]
        fine = missing if incomplete else ["text_tokenizer"] if "vocabulary_from" in lacking else []  # it brings its own
        problems = lines_of(error, ShardConfig, fine)
        if incomplete and not problems:
            config = ShardConfig.model_validate(whole | {name: STAND_INS[name] for name in missing})
        missing = [name for name in missing if name != "text_tokenizer" or "vocabulary_from" not in lacking]
        lacking = [*missing, *(name for name in lacking if name not in missing)]
        needed = lacking[len(missing) :]
    else:
        needed = lacking
    if not incomplete:
        problems += [f"{name}: the recipe needs it; give --{name.replace('_', '-')}" for name in needed]
    if problems:
        raise ConfigError(COMMAND + (f" --recipe {recipe.name}" if recipe.name else ""), problems)
    options = config.model_dump(mode="json") | dict.fromkeys(lacking)
    if "vocabulary_from" in lacking and "text_tokenizer" not in given:
        options["text_tokenizer"] = None
    return Resolved(None if lacking else config, options, lacking, needs)
