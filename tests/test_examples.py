"""The examples run as they stand, and a model that sees the features or codes learns more than one that sees another's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def figures(name: str, *options: object) -> dict[str, float]:
    """What an example prints; it leaves with 1 where shuffling makes no difference."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:] + done.stdout
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_projector", "flamingo_cross_attention", "early_fusion"])
def test_an_example_on_its_own_corpus(name: str) -> None:
    found = figures(name, "--steps", 60)
    assert found["loss"] < found["loss_shuffled"] - 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava_projector", "flamingo_cross_attention"])
def test_an_example_on_real_pictures(name: str, shared_data: Path) -> None:
    """Few pictures, each with its own text: a model that tells them apart can learn which goes with which."""
    found = figures(name, "--inputs", shared_data / "hf_parquet", "--steps", 200)
    assert found["loss"] < found["loss_shuffled"] - 0.05


def test_the_examples_are_short() -> None:
    assert all(len(path.read_text().splitlines()) < 150 for path in EXAMPLES.glob("*.py") if path.name != "small.py")
