"""Whose names a checkpoint uses, and what they are called here: as encodec does.

encodec's ``.th`` and audiocraft's ``best_state`` have the names that we have. transformers calls the list of layers ``layers``,
has one ``conv`` where encodec has a wrapper in a wrapper, and says ``conv`` of transposed convolutions too: they are those that
stand by themselves in the decoder, between its first and its last layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from tokkit.errors import DataError, UsageError
from tokkit.tokenizers.image.importers.container import Checkpoint


@dataclass(frozen=True)
class Layout:
    """A family of checkpoints.

    Attributes:
        name: for ``--layout``.
        licence: of the released weights.
    """

    name: str
    licence: str | None


ENCODEC = Layout("encodec", "CC-BY-NC 4.0 (encodec 0.1.1)")
HUGGING_FACE = Layout("encodec-hf", None)  # the models there have licences of their own
AUDIOCRAFT = Layout("audiocraft", "CC-BY-NC 4.0")
LAYOUTS = {layout.name: layout for layout in (ENCODEC, HUGGING_FACE, AUDIOCRAFT)}

AUDIOCRAFT_CONFIG = "xp.cfg"

# Inside a larger model of transformers' (MusicGen).
_PART = "audio_encoder."
_WRAPPERS = {"module", "_orig_mod"}

# What only training needs of a codebook.
_STATISTICS = re.compile(r"quantizer\.vq\.layers\.\d+\._codebook\.(cluster_size|embed_avg|inited)$")


def is_audio(checkpoint: Checkpoint) -> bool:
    """Whether the names are an EnCodec model's."""
    names = {_bare(name) for name in checkpoint.names}
    starts = tuple(name.removeprefix(_PART) for name in names)
    return any(n.startswith(("encoder.model.", "encoder.layers.")) for n in starts) and any(
        n.startswith(("quantizer.vq.layers.", "quantizer.layers.")) for n in starts
    )


def choose_layout(checkpoint: Checkpoint, wanted: str) -> Layout:
    """The layout of a checkpoint: the one asked for, or with ``auto`` the one whose names it has.

    Raises:
        UsageError: no such layout.
        DataError: the names are nobody's that we know.
    """
    if wanted != "auto":
        if wanted not in LAYOUTS:
            raise UsageError(f"no layout {wanted!r} of audio tokenizers; there are {', '.join(LAYOUTS)}")
        return LAYOUTS[wanted]
    names = [_bare(name).removeprefix(_PART) for name in checkpoint.names]
    if any(name.startswith("encoder.layers.") for name in names):
        return HUGGING_FACE
    if any(name.startswith("encoder.model.") for name in names):
        return AUDIOCRAFT if AUDIOCRAFT_CONFIG in checkpoint.texts else ENCODEC
    raise DataError(
        f"{checkpoint.path}: no EnCodec model: no name begins with encoder.model. (encodec, audiocraft) or encoder.layers. "
        f"(transformers); there is {', '.join(sorted(names)[:4])} ..."
    )


@dataclass(frozen=True)
class Named:
    """The names of a checkpoint, sorted out.

    Attributes:
        own: encodec's to the checkpoint's.
        dropped: the checkpoint's names that the tokenizer does not need.
    """

    own: dict[str, str]
    dropped: tuple[str, ...]


def sort_names(checkpoint: Checkpoint, layout: Layout) -> Named:
    """The names by what encodec calls them.

    Raises:
        DataError: two names of the file come to the same one.
    """
    bare = {name: _bare(name) for name in checkpoint.names}
    inside = any(plain.startswith(_PART) for plain in bare.values())
    last = _last_layer(bare.values())
    own: dict[str, str] = {}
    dropped = list(checkpoint.beside)
    for name, plain in bare.items():
        if inside and not plain.startswith(_PART):
            dropped.append(name)
            continue
        ours = plain.removeprefix(_PART)
        ours = _from_transformers(ours, last) if layout is HUGGING_FACE else ours
        if _STATISTICS.match(ours) and not ours.endswith("inited"):
            dropped.append(name)
        elif ours in own:
            raise DataError(f"{checkpoint.path}: {name} and {own[ours]} are both {ours}")
        else:
            own[ours] = name
    return Named(own, tuple(sorted(dropped)))


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _last_layer(names: Iterable[str]) -> int:
    numbers = [int(match[1]) for name in names if (match := re.search(r"(?:^|\.)decoder\.layers\.(\d+)\.", name))]
    return max(numbers, default=0)


def _from_transformers(name: str, last: int) -> str:
    name = re.sub(r"^quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
    match = re.match(r"(encoder|decoder)\.layers\.(\d+)\.(.*)$", name)
    if match is None:
        return name
    side, number, rest = match[1], int(match[2]), match[3]
    kind = "convtr" if side == "decoder" and 0 < number < last and rest.startswith(("conv.", "norm.")) else "conv"
    rest = re.sub(r"(^|\.)conv\.", rf"\1{kind}.{kind}.", rest)
    rest = re.sub(r"(^|\.)norm\.", rf"\1{kind}.norm.", rest)
    return f"{side}.model.{number}.{rest}"
