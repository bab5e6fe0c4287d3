"""The two fingerprints of a run.

*Semantic*: everything that is meant to decide the output: the tokenizers with their weights and preprocessing, the vocabulary,
the layout and the options, and the version of tokkit's own encoding. An output directory belongs to one semantic fingerprint.

*Numeric*: everything that is not meant to, but may, by rounding: versions of the decoders and of torch, the device, the
precision and the batch shape. It is recorded with every unit, and one output does not mix two unless it is told to
(:mod:`tokkit.pipelines.mixed`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokkit.errors import DataError, FingerprintMismatch, UsageError
from tokkit.media.audio import audio_packages
from tokkit.storage import create_if_absent, fingerprint_of, is_attempt, pretty_json, read_json

if TYPE_CHECKING:
    import torch

    from tokkit.precision import Acceleration, Precision

# Raised whenever tokkit itself would write other bytes for the same input and options.
CODE_VERSION = 2

NAME = "config.json"
TEXT_ENGINES = ("gigatoken",)  # packages that may encode text in the library's place
TEXT_PACKAGES = ("numpy", "pyarrow", "sentencepiece", "tokenizers")
PACKAGES = (*TEXT_PACKAGES, "pillow", "torch", "vector-quantize-pytorch")


def numeric_environment(
    device: torch.device | None,
    batch_size: int,
    text_engine: str = "library",
    more_packages: Iterable[str] = (),
    precision: Precision = "fp32",
    acceleration: Acceleration = "none",
    sounds: bool = False,
    audio_batch_size: int = 1,
) -> dict[str, object]:
    """What rounding may depend on, on this machine, and what reading may.

    Args:
        device: that media are encoded on; None where none are: then neither it nor what decodes them matters, and nothing of
            it is loaded.
        more_packages: those whose versions may change what the sources' documents are.
        precision, acceleration: of the network that encodes (:mod:`tokkit.tokenizers.image.bulk`).
        sounds: whether sounds are encoded, so that what decodes and resamples them matters.
        audio_batch_size: of sounds; 1 encodes each by itself.

    Raises:
        UsageError: a package that sounds need is not installed.
    """
    engine = (*(() if text_engine == "library" else (text_engine,)), *sorted(more_packages))
    if device is None:
        return {"packages": {p: version(p).split("+")[0] for p in (*TEXT_PACKAGES, *engine)}}
    import torch
    from PIL import features

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    found: dict[str, object] = {
        "device": name,
        "precision": precision,
        **({} if acceleration == "none" else {"acceleration": acceleration}),
        "batch_size": batch_size,
        **({} if audio_batch_size == 1 else {"audio_batch_size": audio_batch_size}),
        "threads": 1 if device.type == "cpu" else None,
        "packages": {p: version(p).split("+")[0] for p in sorted((*PACKAGES, *engine))},
        "decoders": {c: features.version(c) for c in ("jpg", "zlib", "webp", "avif", "libtiff", "jpg_2000")},
    }
    return found | ({"sounds": _sound_packages()} if sounds else {})


def _sound_packages() -> dict[str, str]:
    """Versions of what turns a sound's bytes into codes; encodec only where it is installed."""
    with suppress(PackageNotFoundError):
        return audio_packages() | {"encodec": version("encodec")}
    return audio_packages()


def claim_directory(
    out: Path, semantic: Mapping[str, object], numeric: Mapping[str, object], *, allow_mixed: bool = False
) -> bool:
    """Make ``out`` this configuration's, or check that it is.

    Args:
        allow_mixed: another numeric environment is no reason to refuse.

    Returns:
        True where the directory was new.

    Raises:
        FingerprintMismatch: it belongs to another configuration; the message names what differs.
        UsageError: it holds something else.
    """
    path = out / NAME
    if not path.exists():
        if out.exists() and (not out.is_dir() or any(p.name != "run" and not is_attempt(p) for p in out.iterdir())):
            raise UsageError(f"{out} is not empty and holds no tokkit output; name another --out")
        (out / "run").mkdir(parents=True, exist_ok=True)
        entry = {
            "format": "tokkit-config",
            "version": 1,
            "semantic_fingerprint": fingerprint_of(semantic),
            "semantic": semantic,
            "numeric_fingerprint": fingerprint_of(numeric),
            "numeric": numeric,
        }
        if create_if_absent(path, pretty_json(entry)):
            return True
    before = claimed(path)
    for kind, now in (("semantic", semantic), ("numeric", numeric)):
        if before[f"{kind}_fingerprint"] != fingerprint_of(now):
            listed = "\n".join(f"  - {line}" for line in differences(before[kind], now))
            about, way = "configuration", ""
            if kind == "numeric":
                about, way = "numeric environment", "; with --allow-mixed both go into one, and their agreement is measured"
                if allow_mixed:
                    continue
            raise FingerprintMismatch(
                f"{out} was made with another {about}; mixing the two would not be one data set:\n{listed}\n"
                f"run with the same as before, or write to another --out{way}"
            )
    return False


def claimed(path: Path) -> dict[str, Any]:
    """What a directory's ``config.json`` says of the run that it belongs to; DataError where it is none."""
    entry = read_json(path)
    needed = {f"{kind}{what}" for kind in ("semantic", "numeric") for what in ("", "_fingerprint")}
    if not isinstance(entry, dict) or not needed <= entry.keys():
        raise DataError(f"{path} is damaged: it does not say which run the directory belongs to")
    return entry


def differences(before: Mapping[str, object], after: Mapping[str, object], prefix: str = "") -> list[str]:
    """The entries in which two nested mappings differ, one line each: ``key: before -> after``."""
    lines: list[str] = []
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key), after.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            lines += differences(old, new, f"{prefix}{key}.")
        elif fingerprint_of(old) != fingerprint_of(new):
            lines.append(f"{prefix}{key}: {_shown(old)} -> {_shown(new)}")
    return lines


def _shown(value: object) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 72 else text[:69] + "..."
