"""Weights of measuring networks, from files that the user names; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokkit.errors import DataError
from tokkit.storage import sha256_file


@dataclass(frozen=True)
class WeightFile:
    """A file of tensors by name, and the SHA-256 (hex) of its bytes: figures are comparable where this is the same."""

    path: Path
    tensors: Mapping[str, Tensor]
    sha256: str


def read_weight_file(path: Path) -> WeightFile:
    """Read a ``.safetensors`` file, or one written by ``torch.save`` (a plain mapping of tensors; no other pickles).

    Raises:
        DataError: it is missing, damaged, or holds something else.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path}: damaged, or not a file of weights ({error})") from None
    except Exception as error:  # torch reports damage and forbidden pickles by many exception types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged, or not a plain file of tensors ({reason})") from None
    if not isinstance(found, Mapping):
        raise DataError(f"{path}: holds a {type(found).__name__}, not tensors by name")
    tensors = {str(name): value for name, value in found.items() if isinstance(value, Tensor)}
    return WeightFile(path, tensors, sha256_file(path))


def fill(module: nn.Module, file: WeightFile, names: Mapping[str, str]) -> None:
    """Copy tensors of a file into a module, as float32.

    Args:
        names: name in the module to name in the file; every one must be there, with the module's shape.

    Raises:
        DataError: naming what is missing or of another shape.
    """
    state = module.state_dict()
    problems = []
    for ours, theirs in names.items():
        if theirs not in file.tensors:
            problems.append(f"no {theirs}")
        elif file.tensors[theirs].shape != state[ours].shape:
            problems.append(f"{theirs} is {list(file.tensors[theirs].shape)}, not {list(state[ours].shape)}")
        else:
            state[ours].copy_(file.tensors[theirs])
    if problems:
        raise DataError(f"{file.path}: not the weights of this network ({len(problems)} problems: {'; '.join(problems[:4])})")
