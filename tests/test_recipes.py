"""Recipes: options of `tokkit shard` under a name, what wins over what, and that everything wrong is told at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from shard_corpus import snapshot, write_corpus, write_tokenizers

from tokkit.cli.main import app
from tokkit.errors import ConfigError, UsageError
from tokkit.pipelines.recipe import Recipe, load_recipe, merged, recipe_names, resolve
from tokkit.pipelines.shard import ShardConfig

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {"vocabulary_from": Path(), "text_tokenizer": Path(), "image_tokenizer": Path(), "inputs": ["-"], "out": Path("o")}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Corpus, text model, image tokenizer."""
    folder = tmp_path_factory.mktemp("recipes")
    return write_corpus(folder / "corpus").folder, *write_tokenizers(folder / "tokenizers")


def run(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of `tokkit shard`."""
    with pytest.raises(SystemExit) as caught:
        app(["shard", *map(str, arguments)])
    out, err = capfd.readouterr()
    return int(caught.value.code or 0), out, err


def test_every_recipe_that_comes_along_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    names = recipe_names()
    assert names == sorted(path.stem for path in (ROOT / "pipelines" / "recipes").glob("*.yaml"))
    assert {"text", "captions", "chameleon"} <= set(names)
    page, help_text = (ROOT / "docs" / "recipes.md").read_text(), (ROOT / "cli" / "shard.py").read_text()
    for name in names:
        recipe = load_recipe(name)
        assert len(recipe.about) > 20
        config = resolve(recipe, [], NEEDED).config
        assert config is not None
        assert recipe.options
        assert f"`{name}`" in page
        assert name in help_text
        code, output, errors = run(capfd, "--recipe", name, "--print-config")
        assert code == 0, errors
        assert "still to be given: inputs, out" in output


def test_what_the_recipe_says_is_what_is_done(
    capfd: pytest.CaptureFixture[str], made: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The same bytes as with the options typed; and run/job.json, as a recipe, gives them again."""
    corpus, text, image = made
    (tmp_path / "mine.yaml").write_text(
        f"inputs: [{corpus / 'pairs'}, {corpus / 'texts'}]\ntext_tokenizer: {text}\nimage_tokenizer: {image}\n"
        "pair_order: random\nimage_limits: {min_side: 9}\nval_fraction: 0.5\nunit_bytes: 6k\npack: 128\n"
        "batch_size: 4\nworkers: 0\n"
    )
    code, _, errors = run(
        capfd,
        "--recipe",
        tmp_path / "mine.yaml",
        "--set",
        "val_fraction=0.4",
        "--val-fraction",
        0.2,
        "--out",
        tmp_path / "one",
        "-q",
    )
    assert code == 0, errors
    typed: list[object] = [corpus / "pairs", corpus / "texts", "--text-tokenizer", text, "--image-tokenizer", image]
    typed += ["--pair-order", "random", "--min-side", 9, "--val-fraction", 0.2, "--unit-size", 6000, "--pack", 128]
    code, _, errors = run(capfd, *typed, "--batch-size", 4, "--workers", 0, "--out", tmp_path / "two", "-q")
    assert code == 0, errors
    code, _, errors = run(capfd, "--recipe", tmp_path / "one" / "run" / "job.json", "--out", tmp_path / "three", "-q")
    assert code == 0, errors
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two") == snapshot(tmp_path / "three")
    job = json.loads((tmp_path / "one" / "run" / "job.json").read_text())
    assert (job["val_fraction"], job["image_limits"]["min_side"], job["unit_bytes"]) == (0.2, 9, 6000)


def test_flags_win_over_set_and_set_over_the_recipe(capfd: pytest.CaptureFixture[str]) -> None:
    sets = ["--set", "max_reject_ratio=0.7", "--set", "image_limits.min_side=32", "--set", "pack=null", "--set", "seed=5"]
    code, output, errors = run(capfd, "--recipe", "captions", *sets, "--seed", 9, "--max-aspect", 7, "--print-config")
    assert code == 0, errors
    options = yaml.safe_load(output)
    assert options["max_reject_ratio"] == 0.7
    assert (options["image_limits"]["min_side"], options["image_limits"]["max_aspect"]) == (32, 7.0)
    assert options["image_limits"]["max_bytes"] == 64 * 2**20
    assert (options["pack"], options["seed"], options["dedup"]) == (None, 9, ["images"])
    assert list(options) == ["needs", *(name for name, field in ShardConfig.model_fields.items() if not field.exclude)]
    assert options.pop("needs") == ["image_tokenizer"]


def test_what_is_printed_is_a_recipe(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, output, _ = run(capfd, "--recipe", "captions", "--seed", 3, "--print-config")
    (tmp_path / "again.yaml").write_text(output)
    _, again, errors = run(capfd, "--recipe", tmp_path / "again.yaml", "--print-config")
    lines = [text.splitlines() for text in (output, again)]
    assert lines[0][1:] == lines[1][1:], errors
    code, as_json, _ = run(capfd, "--recipe", "captions", "--print-config", "--json")
    assert code == 0
    assert json.loads(as_json)["missing"] == ["inputs", "out", "text_tokenizer", "image_tokenizer"]


def test_everything_that_is_wrong_is_told_at_once(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "needs: [image_tokenizer]\nunit_size: 3\nval_fraction: 2\nimage_limits: {min_side: x, least: 3}\ndedup: [all]\n"
    )
    code, output, errors = run(capfd, "x", "--recipe", path, "--set", "workers=-1", "--shard-tokens", "7parsecs")
    assert (code, output) == (2, "")
    told = [line.removeprefix("  - ").split(": ")[0] for line in errors.splitlines()[1:]]
    expected = {"out", "text_tokenizer", "image_tokenizer", "unit_size", "val_fraction", "dedup.0", "workers", "shard_tokens"}
    assert expected | {"image_limits.min_side", "image_limits.least"} == set(told)
    assert "did you mean unit_bytes?" in errors
    assert "10 problems" in errors
    assert "Traceback" not in errors
    code, _, errors = run(capfd, "--recipe", path, "--print-config")  # what is wrong is wrong there too, what is missing is not
    assert code == 2
    assert "7 problems" not in errors
    assert "out:" not in errors
    assert "val_fraction" in errors


def test_a_released_models_recipe_does_not_ask_for_a_text_tokenizer() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(load_recipe("chameleon"), [], {"inputs": ["x"], "out": Path("o")})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["vocabulary_from", "image_tokenizer"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file, and no recipe of that name; known: captions, chameleon, text"),
        ("a: [", "is not YAML"),
        ("- a", "not a mapping"),
        ("about: [3]", "`about` is a text"),
        ("needs: [nothing]", "`needs` a list of options"),
        ("needs: [{a: 1}]", "`needs` a list of options"),
        ("a.b: 1\na: 3", "a: "),
        ("'': 3", "Extra"),
        ("'..': 3", "Extra"),
    ],
)
def test_what_is_no_recipe_is_told(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, problem: str
) -> None:
    path = tmp_path / "r.yaml"
    if content is not None:
        path.write_text(content)
    code, output, errors = run(capfd, "--recipe", path, "--print-config")
    assert (code, output) == (2, "")
    assert problem in errors
    assert "Traceback" not in errors


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        load_recipe(str(tmp_path))


TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3), max_leaves=12
)
MAPPINGS = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


def leaves(tree: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if not isinstance(tree, dict):
        return {path: tree}
    return {at: leaf for key, value in tree.items() for at, leaf in leaves(value, (*path, key)).items()}


@given(MAPPINGS, MAPPINGS)
def test_merging_takes_every_leaf_of_the_last_layer_and_loses_none_of_the_first(first: dict, last: dict) -> None:
    found, above = leaves(merged(first, last)), leaves(last)
    for path, leaf in above.items():
        assert found[path] == leaf
    for path, leaf in leaves(first).items():
        hidden = any(path[: len(p)] == p or p[: len(path)] == path for p in above)
        assert hidden or found[path] == leaf
    assert merged(first, {}) == merged({}, first) == first
    assert resolve(Recipe(), [], NEEDED).config is not None
