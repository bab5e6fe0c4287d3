"""A released checkpoint to an :class:`~tokkit.tokenizers.image.model.ImageTokenizer` with the same codes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from tokkit.errors import DataError, UsageError
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.importers.container import Checkpoint, open_checkpoint
from tokkit.tokenizers.image.importers.crosscheck import Described, beside
from tokkit.tokenizers.image.importers.derive import CannotDerive, Shapes, derive_architecture, derive_quantizer
from tokkit.tokenizers.image.importers.layout import Layout, Renaming, choose_layout, rename, sort_names
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.tokenizers.image.storage import expected_weights

SHOWN = 8  # differences that a message lists


@dataclass(frozen=True)
class Imported:
    """What a checkpoint came to.

    Attributes:
        tokenizer: ready for ``encode`` and, with a decoder, ``decode``.
        layout: name of the layout.
        weights: the entry that the weights lay under; empty where they lay at the top.
        described_by: the configuration file that agrees with it, if there was one.
        dropped: names in the file that are not the tokenizer's.
    """

    tokenizer: ImageTokenizer
    layout: str
    weights: str
    described_by: Path | None
    dropped: tuple[str, ...]


def import_image_tokenizer(
    path: Path,
    *,
    layout: str = "auto",
    yaml: Path | None = None,
    weights: str | None = None,
    size: int | None = None,
    name: str | None = None,
    licence: str | None = None,
    unsafe_pickle: bool = False,
) -> Imported:
    """Read a checkpoint as it was released.

    Args:
        path: the file, or the folder of a Hugging Face model.
        layout: a name in ``LAYOUTS``, or ``auto``.
        yaml: configuration file to hold it against; if not given, one that lies beside the checkpoint.
        weights: the entry to read, where the file has several (``model``, ``ema``).
        size: side of the square that pictures are brought to; if not given, the configuration file's or the layout's.
        name: of the tokenizer; if not given, made from layout, downsampling factor and number of codes.
        licence: of the weights, where it is not that of the layout's released ones.
        unsafe_pickle: unpickle anything in the file, which runs whatever code it asks for.

    Raises:
        UsageError: a file that is not there, a layout that cannot be told.
        DataError: not such a checkpoint, damaged, refused, or weights that make no tokenizer (every difference is listed).
        ConfigError: the configuration file contradicts the weights; every difference is listed.
    """
    checkpoint = open_checkpoint(path, weights, unsafe_pickle)
    chosen = choose_layout(checkpoint, layout)
    sorted_names = sort_names(checkpoint, chosen)
    renaming = Renaming(chosen.family, sorted_names.own)
    names = rename(sorted_names.own, renaming)
    dropped = list(sorted_names.dropped)
    if chosen.encoder_only and not any(ours.startswith("decoder.") for ours in names):
        dropped += [names.pop(ours) for ours in list(names) if ours.startswith("post_quant_conv.")]
    found = checkpoint.read(names.values())
    tensors = {ours: found[original] for ours, original in names.items()}
    found_yaml = yaml or beside(path, transformers=chosen.encoder_only)
    described = Described(found_yaml) if found_yaml is not None else None
    config = _configure(checkpoint, chosen, renaming, tensors, described, size, name, licence)
    tokenizer = _load(checkpoint, renaming, config, tensors)
    return Imported(tokenizer, chosen.name, checkpoint.weights, found_yaml, tuple(sorted(dropped)))


def _configure(
    checkpoint: Checkpoint,
    layout: Layout,
    renaming: Renaming,
    tensors: dict[str, Tensor],
    described: Described | None,
    size: int | None,
    name: str | None,
    licence: str | None,
) -> ImageTokenizerConfig:
    shapes: Shapes = {ours: tuple(tensor.shape) for ours, tensor in tensors.items()}
    try:
        architecture = derive_architecture(shapes)
        quantizer = derive_quantizer(shapes, layout.normalize)
    except CannotDerive as error:
        problem = f"{renaming.theirs(error.name)} {error.problem}".strip()
        raise DataError(f"{checkpoint.path}: not a {layout.name} image tokenizer: {problem}") from None
    if not architecture.has_decoder and not layout.encoder_only:
        raise DataError(f"{checkpoint.path}: not a whole {layout.name} image tokenizer: there are no decoder weights")
    if described is not None:
        described.compare(architecture, quantizer)
    side = size or (described.resolution if described is not None else None) or layout.preprocessing.size
    try:
        return ImageTokenizerConfig(
            name=name or f"{layout.name}-f{architecture.downsample}-{quantizer.codebook_size}",
            architecture=architecture,
            quantizer=quantizer,
            preprocessing=layout.preprocessing.model_copy(update={"size": side}),
            licence=licence or layout.licence,
            origin=f"imported from a {layout.name} checkpoint",
        )
    except ValidationError as error:
        problems = "; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())
        raise UsageError(f"{checkpoint.path}: {problems}") from None


def _load(
    checkpoint: Checkpoint, renaming: Renaming, config: ImageTokenizerConfig, tensors: dict[str, Tensor]
) -> ImageTokenizer:
    """Build the network and put every weight in its place; none may be left over and none be missing."""
    expected = expected_weights(config, checkpoint.path)
    problems = [f"{renaming.theirs(ours)} is missing" for ours in expected.keys() - tensors.keys()]
    problems += [f"{renaming.theirs(ours)} is not known" for ours in tensors.keys() - expected.keys()]
    for ours in expected.keys() & tensors.keys():
        want, have = expected[ours].shape, tensors[ours].shape
        if want != have:
            problems.append(f"{renaming.theirs(ours)} has the shape {list(have)}, not {list(want)}")
        elif not tensors[ours].is_floating_point():
            problems.append(f"{renaming.theirs(ours)} is {tensors[ours].dtype}, no floating point")
        elif not bool(torch.isfinite(tensors[ours]).all()):
            problems.append(f"{renaming.theirs(ours)} holds values that are not finite")
    if problems:
        listed = "; ".join(sorted(problems)[:SHOWN])
        raise DataError(f"{checkpoint.path}: does not fit its layout ({len(problems)} differences: {listed})")
    with torch.random.fork_rng(devices=[]):
        tokenizer = ImageTokenizer(config)
    tokenizer.load_state_dict({ours: tensor.to(torch.float32) for ours, tensor in tensors.items()}, strict=True)
    return tokenizer.eval().requires_grad_(False)
