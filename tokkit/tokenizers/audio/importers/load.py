"""A released EnCodec checkpoint to an :class:`~tokkit.tokenizers.audio.model.EncodecTokenizer` with the same codes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from tokkit.errors import DataError
from tokkit.tokenizers.audio.config import AudioTokenizerConfig
from tokkit.tokenizers.audio.importers.derive import CannotDerive, derive, fuse
from tokkit.tokenizers.audio.importers.describe import Described, beside, of_audiocraft, of_encodec, of_transformers
from tokkit.tokenizers.audio.importers.layout import (
    AUDIOCRAFT,
    AUDIOCRAFT_CONFIG,
    ENCODEC,
    Layout,
    choose_layout,
    is_audio,
    sort_names,
)
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.tokenizers.audio.quantizers import CODEBOOKS
from tokkit.tokenizers.audio.storage import expected_weights
from tokkit.tokenizers.image.importers.container import Checkpoint, open_checkpoint

SHOWN = 8  # differences that a message lists

_BOOK = re.compile(r"quantizer\.vq\.layers\.(\d+)\._codebook\.(embed|inited)$")


@dataclass(frozen=True)
class Imported:
    """What a checkpoint came to.

    Attributes:
        tokenizer: ready for ``encode`` and ``decode``.
        layout: name of the layout.
        weights: the entry that the weights lay under; empty where they lay at the top.
        described_by: the configuration that agrees with it.
        dropped: names in the file that the tokenizer does not need.
    """

    tokenizer: EncodecTokenizer
    layout: str
    weights: str
    described_by: str
    dropped: tuple[str, ...]


def holds_audio_tokenizer(path: Path, weights: str | None = None, unsafe_pickle: bool = False) -> bool:
    """Whether a checkpoint has an EnCodec model's names; it is opened for that.

    Raises:
        UsageError, DataError: as :func:`tokkit.tokenizers.image.importers.container.open_checkpoint`.
    """
    return is_audio(open_checkpoint(path, weights, unsafe_pickle))


def import_audio_tokenizer(
    path: Path,
    *,
    layout: str = "auto",
    weights: str | None = None,
    name: str | None = None,
    licence: str | None = None,
    unsafe_pickle: bool = False,
) -> Imported:
    """Read a checkpoint as it was released.

    Args:
        path: the file, or the folder of a Hugging Face model.
        layout: a name in ``LAYOUTS``, or ``auto``.
        weights: the entry to read, where the file has several.
        name: of the tokenizer; if not given, made from layout and rate.
        licence: of the weights, where it is not that of the layout's released ones.
        unsafe_pickle: unpickle anything in the file, which runs whatever code it asks for.

    Raises:
        UsageError: a file that is not there, a layout that there is not, or encodec is not installed.
        DataError: not such a checkpoint, damaged, refused, with empty codebooks, or weights that make no tokenizer.
        ConfigError: the configuration contradicts the weights; every difference is listed.
    """
    checkpoint = open_checkpoint(path, weights, unsafe_pickle)
    chosen = choose_layout(checkpoint, layout)
    named = sort_names(checkpoint, chosen)
    found = checkpoint.read(named.own.values())
    try:
        tensors = fuse({ours: found[original] for ours, original in named.own.items()})
        architecture, quantizer = derive({ours: tuple(tensor.shape) for ours, tensor in tensors.items()})
    except CannotDerive as error:
        raise DataError(f"{path}: not an EnCodec model of the layout {chosen.name}: {error}") from None
    described = _described(checkpoint, chosen, architecture)
    described.check(architecture, quantizer)
    config = _configure(path, chosen, described, architecture, quantizer, name, licence)
    tokenizer = _load(path, config, tensors)
    return Imported(tokenizer, chosen.name, checkpoint.weights, described.where, named.dropped)


def _described(checkpoint: Checkpoint, layout: Layout, architecture: Mapping[str, Any]) -> Described:
    if layout is ENCODEC:
        return of_encodec(architecture)
    if layout is AUDIOCRAFT:
        text = checkpoint.texts.get(AUDIOCRAFT_CONFIG)
        if text is None:
            raise DataError(
                f"{checkpoint.path}: has no {AUDIOCRAFT_CONFIG}, which tells an audiocraft model's rate and padding"
            )
        return of_audiocraft(text, f"{checkpoint.path} ({AUDIOCRAFT_CONFIG})")
    return of_transformers(beside(checkpoint.path))


def _configure(
    path: Path,
    layout: Layout,
    described: Described,
    architecture: Mapping[str, Any],
    quantizer: Mapping[str, Any],
    name: str | None,
    licence: str | None,
) -> AudioTokenizerConfig:
    rate = described.rest["sample_rate"]
    try:
        return AudioTokenizerConfig.model_validate(
            {
                "name": name or f"{layout.name}-{rate // 1000}k",
                "architecture": {**described.architecture, **architecture},
                "quantizer": {"kind": "residual-vq", **quantizer},
                **described.rest,
                "licence": licence or layout.licence,
                "origin": f"imported from a checkpoint of the layout {layout.name}",
            }
        )
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise DataError(f"{path}: {problems}") from None


def _load(path: Path, config: AudioTokenizerConfig, tensors: Mapping[str, Tensor]) -> EncodecTokenizer:
    """Build the network and put every weight in its place; none may be left over and none be missing."""
    weights = _with_books(path, config, tensors)
    expected = expected_weights(config, str(path))
    problems = [f"{name} is missing" for name in expected.keys() - weights.keys()]
    problems += [f"{name} is not known" for name in weights.keys() - expected.keys()]
    for name in expected.keys() & weights.keys():
        want, have = expected[name].shape, weights[name].shape
        if want != have:
            problems.append(f"{name} has the shape {list(have)}, not {list(want)}")
        elif not weights[name].is_floating_point():
            problems.append(f"{name} is {weights[name].dtype}, no floating point")
        elif not bool(torch.isfinite(weights[name]).all()):
            problems.append(f"{name} holds values that are not finite")
    if problems:
        listed = "; ".join(sorted(problems)[:SHOWN])
        raise DataError(f"{path}: does not fit its layout ({len(problems)} differences: {listed})")
    with torch.random.fork_rng(devices=[]):
        tokenizer = EncodecTokenizer(config)
    tokenizer.load_weights({name: tensor.to(torch.float32) for name, tensor in weights.items()})
    return tokenizer


def _with_books(path: Path, config: AudioTokenizerConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with all codebooks as one tensor."""
    rest = {name: tensor for name, tensor in tensors.items() if not _BOOK.match(name)}
    vectors = {}
    for name, tensor in tensors.items():
        match = _BOOK.match(name)
        if match is None:
            continue
        if match[2] == "inited" and not bool(tensor.any()):
            raise DataError(f"{path}: codebook {match[1]} was never initialised (inited is 0): every sound would get one code")
        if match[2] == "embed":
            vectors[int(match[1])] = tensor
    if sorted(vectors) != list(range(config.quantizer.codebooks)):
        raise DataError(f"{path}: its codebooks are numbered {sorted(vectors)}")
    return rest | {CODEBOOKS: torch.stack([vectors[k] for k in sorted(vectors)])}
