"""A tokenizer with a network on disk: a folder with ``config.json`` and ``model.safetensors``.

``config.json`` is ``{"format", "version", "fingerprint", "config"}``. It is written last and names the fingerprint of
configuration and weights together, so a folder that was half written, damaged or pieced together from two is noticed when it
is loaded. Pickles are never read: a tokenizer comes from strangers.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from tokkit.errors import DataError
from tokkit.storage import canonical_json, pretty_json, write_atomic

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

IMAGE_FORMAT = "tokkit-image-tokenizer"
AUDIO_FORMAT = "tokkit-audio-tokenizer"

Config = TypeVar("Config", bound=BaseModel)


def format_of(folder: Path) -> str | None:
    """What a folder's ``config.json`` says it is; None where there is no such file, or it says nothing."""
    try:
        described = json.loads((folder / CONFIG_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    found = described.get("format") if isinstance(described, dict) else None
    return found if isinstance(found, str) else None


def fingerprint_of_weights(identity: dict[str, Any], weights: dict[str, Tensor]) -> str:
    """SHA-256 (hex) over a configuration's identity as canonical JSON, and each tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    digest.update(canonical_json(identity).encode("ascii"))
    for name in sorted(weights):
        tensor = weights[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class FolderFormat(Generic[Config]):
    """The folders of one kind of tokenizer.

    Attributes:
        name: what ``config.json`` calls the format.
        version: of the format.
        kind: for messages, with its article: ``an audio tokenizer``.
        config: the model of its configuration.
    """

    name: str
    version: int
    kind: str
    config: type[Config]

    def write(self, folder: str | Path, config: Config, fingerprint: str, weights: dict[str, Tensor]) -> None:
        """Write a tokenizer; each file appears whole or not at all, the configuration last. Same tokenizer, same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        described = {
            "format": self.name,
            "version": self.version,
            "fingerprint": fingerprint,
            "config": config.model_dump(mode="json"),
        }
        write_atomic(folder / WEIGHTS_FILE, save(weights))
        write_atomic(folder / CONFIG_FILE, pretty_json(described))

    def read_config(self, folder: Path) -> tuple[str, Config]:
        """(Fingerprint written down, configuration).

        Raises:
            DataError: missing, damaged or of another format.
        """
        path = folder / CONFIG_FILE
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; {self.kind} is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
        try:
            described = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise DataError(f"{folder}: has no {CONFIG_FILE}, so it is not {self.kind}") from None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}: not JSON ({error})") from None
        if not isinstance(described, dict) or described.get("format") != self.name:
            raise DataError(f"{path}: not the configuration of {self.kind} (its format is not {self.name!r})")
        if described.get("version") != self.version:
            raise DataError(f"{path}: format version {described.get('version')}, this tokkit reads {self.version}")
        try:
            return str(described.get("fingerprint")), self.config.model_validate(described.get("config"))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise DataError(f"{path}: {problems}") from None

    def read_weights(self, folder: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors, whose names, dtypes and shapes must be those expected.

        Raises:
            DataError: missing, damaged, or others.
        """
        path = folder / WEIGHTS_FILE
        if not path.is_file():
            raise DataError(f"{folder}: has no {WEIGHTS_FILE} (weights are read from safetensors only, never from pickles)")
        try:
            found = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise DataError(f"{path}: damaged, or not a safetensors file ({error})") from None
        problems = [f"missing {name}" for name in expected.keys() - found.keys()]
        problems += [f"unexpected {name}" for name in found.keys() - expected.keys()]
        for name in expected.keys() & found.keys():
            want, have = expected[name], found[name]
            if (want.dtype, want.shape) != (have.dtype, have.shape):
                problems.append(f"{name} is {have.dtype} {list(have.shape)}, not {want.dtype} {list(want.shape)}")
        if problems:
            listed = "; ".join(sorted(problems)[:8])
            raise DataError(f"{path}: does not fit its {CONFIG_FILE} ({len(problems)} differences: {listed})")
        return found

    def check_fingerprint(self, folder: Path, written: str, found: str) -> None:
        """The two files must belong together.

        Raises:
            DataError: they do not.
        """
        if written != found:
            raise DataError(
                f"{folder}: {CONFIG_FILE} and {WEIGHTS_FILE} do not belong together or were altered: the fingerprint of both "
                f"is {found}, the one written down is {written}"
            )
