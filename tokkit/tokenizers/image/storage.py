"""An image tokenizer on disk: a folder with ``config.json`` and ``model.safetensors``.

``config.json`` is ``{"format", "version", "fingerprint", "config"}``. It is written last and names the fingerprint of
configuration and weights together, so a folder that was half written, damaged or pieced together from two is noticed when it
is loaded. Pickles are never read: a tokenizer comes from strangers.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tokkit.errors import DataError
from tokkit.storage import pretty_json, write_atomic
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer, fingerprint

FORMAT = "tokkit-image-tokenizer"
VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"


def save_image_tokenizer(tokenizer: ImageTokenizer, folder: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, the configuration last. Same tokenizer, same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = tokenizer.weights()
    described = {
        "format": FORMAT,
        "version": VERSION,
        "fingerprint": fingerprint(tokenizer.config, weights),
        "config": tokenizer.config.model_dump(mode="json"),
    }
    write_atomic(folder / WEIGHTS_FILE, save(weights))
    write_atomic(folder / CONFIG_FILE, pretty_json(described))


def read_image_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """Read a tokenizer, ready for ``encode`` and ``decode``.

    Raises:
        DataError: a file is missing, damaged or of another format, or the two do not belong together.
    """
    folder = Path(folder)
    described, config = _read_config(folder / CONFIG_FILE)
    weights = _read_weights(folder / WEIGHTS_FILE)
    _check_names(folder / WEIGHTS_FILE, _shapes(folder / CONFIG_FILE, config), weights)
    if fingerprint(config, weights) != described.get("fingerprint"):
        raise DataError(
            f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} do not belong together or were altered: the fingerprint of both is "
            f"{fingerprint(config, weights)}, the one written down is {described.get('fingerprint')}"
        )
    with torch.random.fork_rng(devices=[]):
        tokenizer = ImageTokenizer(config)
    tokenizer.load_state_dict(weights, strict=False)  # names were compared above
    return tokenizer.to(device).eval().requires_grad_(False)


def _read_config(path: Path) -> tuple[dict[str, object], ImageTokenizerConfig]:
    if not path.parent.is_dir():
        raise DataError(f"{path.parent}: no such folder; an image tokenizer is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    try:
        described = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path.parent}: has no {CONFIG_FILE}, so it is no image tokenizer") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error})") from None
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        raise DataError(f"{path}: not the configuration of an image tokenizer (its format is not {FORMAT!r})")
    if described.get("version") != VERSION:
        raise DataError(f"{path}: format version {described.get('version')}, this tokkit reads {VERSION}")
    try:
        return described, ImageTokenizerConfig.model_validate(described.get("config"))
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {problems}") from None


def _shapes(path: Path, config: ImageTokenizerConfig) -> dict[str, Tensor]:
    """The weights that a configuration asks for, without memory for them: it may claim any size."""
    try:
        with torch.device("meta"):
            return ImageTokenizer(config).state_dict()
    except (RuntimeError, OverflowError) as error:
        raise DataError(f"{path}: no network can have these sizes ({str(error).splitlines()[0]})") from None


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path.parent}: has no {WEIGHTS_FILE} (weights are read from safetensors only, never from pickles)")
    try:
        return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise DataError(f"{path}: damaged, or not a safetensors file ({error})") from None


def _check_names(path: Path, expected: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    problems = [f"missing {name}" for name in expected.keys() - found.keys()]
    problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
    for name in expected.keys() & found.keys():
        want, have = expected[name], found[name]
        if (want.dtype, want.shape) != (have.dtype, have.shape):
            problems.append(f"{name} is {have.dtype} {list(have.shape)}, not {want.dtype} {list(want.shape)}")
    if problems:
        listed = "; ".join(sorted(problems)[:8])
        raise DataError(f"{path}: does not fit its {CONFIG_FILE} ({len(problems)} differences: {listed})")
