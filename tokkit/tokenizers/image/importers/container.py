"""Opening checkpoint files of strangers: which tensors are in there, under which names.

Three kinds of file: what ``torch.save`` wrote (a pickle), safetensors, and the folder or index of a sharded Hugging Face model
of either kind. A pickle is read by torch's restricted reader, which makes tensors and plain containers and runs nothing;
``argparse.Namespace``, a holder of attributes that training scripts store their flags in, is allowed besides. Whatever else a
pickle asks for is refused by name, unless the caller vouches for the file with ``unsafe_pickle``.
"""

from __future__ import annotations

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tokkit.errors import DataError, UsageError

# Where released files keep the weights, in the order of preference; an EMA copy is taken only if asked for.
CONTAINERS = ("state_dict", "model", "best_state")

# What a folder of Hugging Face's is entered by, in the order of preference.
FOLDER_FILES = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")

Reader = Callable[[Iterable[str]], dict[str, Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint.

    Attributes:
        path: as given.
        weights: the entry that the tensors lie under; empty where they lie at the top.
        names: of the tensors.
        beside: names of everything else in the file: entries beside the weights, and what is no tensor among them.
        read: the tensors of some names; a safetensors file is not read before.
        texts: the entries beside the weights that are text (audiocraft keeps its configuration in one).
    """

    path: Path
    weights: str
    names: tuple[str, ...]
    beside: tuple[str, ...]
    read: Reader
    texts: Mapping[str, str] = field(default_factory=dict)


def open_checkpoint(path: Path, weights: str | None = None, unsafe_pickle: bool = False) -> Checkpoint:
    """Open a checkpoint.

    Args:
        path: a file, or the folder of a Hugging Face model.
        weights: the entry to take the tensors from, for example ``ema``; if not given, ``state_dict`` or ``model``.
        unsafe_pickle: unpickle any class. This runs whatever code the file asks for.

    Raises:
        UsageError: no such file, or no such entry.
        DataError: not a checkpoint, damaged, or a pickle of more than tensors.
    """
    file = _entry_file(path)
    if file.name.endswith(".index.json"):
        return _from_index(path, file, weights, unsafe_pickle)
    if _is_safetensors(file):
        if weights:
            raise UsageError(f"{file} is a safetensors file: it has no entry {weights!r}, only tensors")
        return _from_safetensors(path, [file])
    return _from_pickle(path, file, weights, unsafe_pickle)


def _entry_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder")
    found = next((path / name for name in FOLDER_FILES if (path / name).is_file()), None)
    if found is None:
        raise UsageError(f"{path} is a folder without {', '.join(FOLDER_FILES)}; name the checkpoint's file")
    return found


def _is_safetensors(file: Path) -> bool:
    return file.suffix == ".safetensors"


# ---- safetensors


def _from_safetensors(path: Path, files: list[Path]) -> Checkpoint:
    holder: dict[str, Path] = {}
    for file in files:
        for name in _read_safetensors(file, None):
            if name in holder:
                raise DataError(f"{path}: {name} is both in {holder[name].name} and in {file.name}")
            holder[name] = file

    def read(names: Iterable[str]) -> dict[str, Tensor]:
        wanted = set(names)
        found: dict[str, Tensor] = {}
        for file in files:
            found |= _read_safetensors(file, [name for name in wanted if holder[name] == file])
        return found

    return Checkpoint(path, "", tuple(sorted(holder)), (), read)


def _read_safetensors(file: Path, names: list[str] | None) -> dict[str, Any]:
    """Tensors by name, or with None all names."""
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return dict.fromkeys(opened.keys()) if names is None else {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{file}: damaged, or not a safetensors file ({error})") from None


def _from_index(path: Path, index: Path, weights: str | None, unsafe_pickle: bool) -> Checkpoint:
    try:
        files = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index}: not the index of a sharded model ({type(error).__name__}: {error})") from None
    if not all(isinstance(name, str) and Path(name).name == name for name in files):
        raise DataError(f"{index}: names files outside of its folder")
    absent = [name for name in files if not (index.parent / name).is_file()]
    if absent:
        raise DataError(f"{index}: names files that are not beside it: {', '.join(absent)}")
    parts = [index.parent / name for name in files]
    if all(_is_safetensors(part) for part in parts):
        return _from_safetensors(path, parts)
    tensors: dict[str, Tensor] = {}
    for part in parts:
        opened = _from_pickle(path, part, weights, unsafe_pickle)
        tensors |= opened.read(opened.names)
    return Checkpoint(path, weights or "", tuple(tensors), (), lambda names: {name: tensors[name] for name in names})


# ---- pickles


def _from_pickle(path: Path, file: Path, weights: str | None, unsafe_pickle: bool) -> Checkpoint:
    content = _unpickle(file, unsafe_pickle)
    if not isinstance(content, Mapping):
        raise DataError(f"{file}: holds {_article(content)}, not a dictionary of weights")
    entry, tensors = _weights(file, content, weights)
    named = {str(name): value for name, value in tensors.items()}
    names = tuple(name for name, value in named.items() if isinstance(value, Tensor))
    beside = [str(key) for key in content if entry and key != entry]
    beside += [name for name, value in named.items() if not isinstance(value, Tensor)]
    texts = {str(key): value for key, value in content.items() if isinstance(value, str)}
    return Checkpoint(path, entry, names, tuple(beside), lambda wanted: {name: named[name] for name in wanted}, texts)


def _weights(file: Path, content: Mapping[Any, Any], wanted: str | None) -> tuple[str, Mapping[Any, Any]]:
    """The entry that holds the weights, and its content."""
    holders = [str(key) for key, value in content.items() if isinstance(value, Mapping) and _has_tensors(value)]
    if wanted is not None:
        if wanted not in holders:
            raise UsageError(f"{file}: has no weights under {wanted!r}; there are {', '.join(holders) or 'none'}")
        return wanted, content[wanted]
    entry = next((name for name in CONTAINERS if name in holders), None)
    if entry is not None:
        return entry, content[entry]
    if _has_tensors(content):
        return "", content
    raise DataError(f"{file}: no weights under {' or '.join(CONTAINERS)}; there is {', '.join(map(str, content)) or 'nothing'}")


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(item, Tensor) for item in value.values())


def _article(content: object) -> str:
    return f"a {type(content).__name__}"


def _unpickle(file: Path, unsafe_pickle: bool) -> Any:
    mmap = zipfile.is_zipfile(file)  # torch's present format; the older one cannot be mapped
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # torch tells refusal and damage by the same exception types
        refused = _refused(file, error)
        if refused is None:
            raise DataError(f"{file}: damaged, or not a checkpoint ({_first_line(error)})") from error
    if not unsafe_pickle:
        raise DataError(
            f"{file}: holds more than weights ({refused}), and reading that would run whatever code the file asks for. "
            "If you trust where it comes from, --unsafe-pickle reads it all the same"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=False, mmap=mmap, pickle_module=_forgiving_pickle())
    except Exception as error:  # anything can come out of a pickle
        raise DataError(f"{file}: cannot be unpickled ({_first_line(error)})") from error


def _refused(file: Path, error: Exception) -> str | None:
    """What the restricted reader would not make, for people; None where the file is merely damaged."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    try:
        found = set(torch.serialization.get_unsafe_globals_in_checkpoint(file)) - {"argparse.Namespace"}
    except Exception:  # the older format, or damage: what follows tells them apart
        found = set()
    if found:
        return ", ".join(sorted(found))
    lines = [line.strip() for line in str(error).splitlines()]
    asked = [line for line in lines if "GLOBAL" in line or "REDUCE" in line]
    if zipfile.is_zipfile(file):  # in any other file an unknown opcode is more likely damage
        asked += [line for line in lines if "Unsupported operand" in line]
    return asked[0][:200] if asked else None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error).strip() else ''}"


class _Absent:
    """Stands for an object of a class that is not installed: keeps nothing, and is never a weight."""

    def __new__(cls, *args: object, **kwargs: object) -> _Absent:
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def __setitem__(self, key: object, value: object) -> None:
        pass


class _Forgiving(pickle.Unpickler):
    """Python's own, except that a class which is not installed (a trainer's callback) does not stop it."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except (ImportError, AttributeError):
            return _Absent


def _forgiving_pickle() -> Any:
    module = ModuleType("tokkit_forgiving_pickle")

    def load(file: IO[bytes], **options: Any) -> Any:
        return _Forgiving(file, **options).load()

    vars(module).update(Unpickler=_Forgiving, load=load)
    return module
