"""Reading models as transformers writes them: a folder with ``config.json`` and weights, or a name on the hub.

Only the part that is wanted is filled with weights, and every parameter of it must be found: transformers itself would fill the
rest with random numbers and go on. Pickled weights are read by torch's restricted reader.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.errors import DataError, UsageError
from tokkit.hub import fetch, may_be_named

HINT = "encoders need transformers: pip install 'tokkit[features]'"


def resolve(source: str | Path, allow_download: bool) -> Path:
    """The folder that a source names; a name on the hub is fetched into its cache, only where that is allowed.

    Raises:
        UsageError: neither a folder, nor may it be downloaded.
        TransientError: the hub did not give it.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(f"{source}: an encoder is a folder with config.json and its weights, not a file")
    if not may_be_named(source):
        raise UsageError(f"{source}: no such folder")
    return fetch(str(source), allow_download, HINT)


def read_config(folder: Path) -> Any:
    """A model's configuration. DataError where it is missing or of a model that transformers does not have."""
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: has no config.json, so it is no model")
    try:
        from huggingface_hub.errors import StrictDataclassError
        from transformers import AutoConfig
    except ImportError:
        raise UsageError(HINT) from None
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError, AttributeError, RecursionError, StrictDataclassError) as error:
        raise DataError(f"{folder}: config.json cannot be read: {' '.join(str(error).split())[:300]}") from None


def load_part(folder: Path, kind: Any, config: Any, key_mapping: Mapping[str, str] | None = None) -> Any:
    """A model class, in float32, filled from a folder's weights; they may be part of a larger model's.

    Args:
        kind: transformers model class.
        config: of this part.
        key_mapping: regular expressions of names in the file, and what they are in this part.

    Raises:
        DataError: parameters are missing, of another shape, or the file is damaged.
    """
    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            model, info = kind.from_pretrained(
                folder,
                config=config,
                key_mapping=dict(key_mapping) if key_mapping else None,
                dtype=torch.float32,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, TypeError, ZeroDivisionError) as error:
        raise DataError(
            f"{folder}: its weights cannot be read as a {kind.__name__}: {str(error).strip().splitlines()[0]}"
        ) from None
    except Exception as error:  # safetensors and pickle raise their own, which share no base
        if type(error).__name__ not in ("SafetensorError", "UnpicklingError"):
            raise
        raise DataError(f"{folder}: its weights are damaged ({error})") from None
    lost = sorted(info["missing_keys"]) + sorted(str(name) for name in info["mismatched_keys"])
    if lost:
        raise DataError(f"{folder}: has no weights, or of another shape, for {len(lost)} parameters: {', '.join(lost[:5])}")
    return model.eval().requires_grad_(False)


def tensors_under(folder: Path, prefix: str, *, keep_prefix: bool = False) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors whose names begin with ``prefix``, float32; nothing else is read.

    Args:
        keep_prefix: leave names as they are.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, Tensor] = {}
    index = folder / "model.safetensors.index.json"
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values())) if index.is_file() else ["model.safetensors"]
        for path in [folder / Path(name).name for name in names]:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118 - not a mapping
                    if key.startswith(prefix):
                        found[key if keep_prefix else key[len(prefix) :]] = file.get_tensor(key).float()
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: its weights cannot be read: {error}") from None
    return found


def fill(module: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load tensors into a module strictly; DataError names what is missing or does not fit."""
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise DataError(f"{where}: weights do not fit: {' '.join(str(error).split())[:400]}") from None


def weights_digest(module: nn.Module) -> str:
    """SHA-256 (hex) over each parameter's and buffer's name, dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def licence_of(folder: Path) -> str | None:
    """What the model's README says between its first two ``---`` lines, or None."""
    import yaml

    try:
        parts = (folder / "README.md").read_text(encoding="utf-8").split("---", 2)
        told = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    if not isinstance(told, dict):
        return None
    named = told.get("license_name") if told.get("license") == "other" else told.get("license")
    return str(named) if named else None


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without its reports and progress bars: what matters of them is checked."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
