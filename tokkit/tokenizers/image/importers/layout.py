"""Whose names a checkpoint uses, and what they are called here.

Two families of names are in use. taming-transformers' (``encoder.down.I.block.J``, ``decoder.up.I``, ``mid.block_1``) are also
Chameleon's; its decoder levels count from the highest resolution. LlamaGen's (``encoder.conv_blocks.I.res.J``, ``mid.0``) are
also Janus's; its decoder levels count from the lowest, as ours do. The network behind both is the same.

What the names do not tell is in :data:`LAYOUTS`: whether vectors are compared raw or as unit vectors, the preprocessing that
the model was made with, and the licence of the released weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tokkit.errors import DataError, UsageError
from tokkit.media.transforms import BoxHalving, Preprocessing, ShortestSide
from tokkit.tokenizers.image.importers.container import Checkpoint

Family = Literal["taming", "llamagen"]

CHAMELEON_LICENCE = "Chameleon Research License (non-commercial research only)"

_ADM = Preprocessing(size=256, resize=BoxHalving(filter="bicubic"), background="dropped")
_CHAMELEON = Preprocessing(size=512, resize=ShortestSide(filter="lanczos"), background="white-truncated")


@dataclass(frozen=True)
class Layout:
    """A released family of checkpoints.

    Attributes:
        name: for ``--layout``.
        family: of names.
        part: what the names of the image tokenizer begin with inside a larger model's file.
        normalize: vectors are compared, and decoded from, as unit vectors.
        preprocessing: which picture the network is given; the size is the usual one.
        licence: of the released weights.
        encoder_only: as transformers keeps it: a file without a decoder is complete.
    """

    name: str
    family: Family
    part: str
    normalize: bool
    preprocessing: Preprocessing
    licence: str
    encoder_only: bool = False


LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        # taming's own loader resizes with OpenCV's bilinear filter, without antialiasing and differently by build; pictures
        # for its tokenizers are commonly cut by ADM's rule, which is also what its reference codes are made with.
        Layout("taming", "taming", "", False, _ADM, "MIT"),
        Layout("chameleon", "taming", "", False, _CHAMELEON, CHAMELEON_LICENCE),
        # The same weights in transformers' format; the preprocessing is the released model's, to give the same codes.
        Layout("chameleon-hf", "taming", "model.vqmodel.", False, _CHAMELEON, CHAMELEON_LICENCE, encoder_only=True),
        Layout("llamagen", "llamagen", "", True, _ADM, "MIT"),
        Layout("janus", "llamagen", "gen_vision_model.", True, _ADM.model_copy(update={"size": 384}), "DeepSeek Model License"),
    )
}

# Only training needs these.
_NOT_OF_THE_TOKENIZER = re.compile(r"(loss|discriminator)\.|colorize$|quantize\.codebook_used$|n_averaged$")

# Put before or into names by wrappers (data parallelism, torch.compile).
_WRAPPERS = {"module", "_orig_mod"}

_LIGHTNING = {"pytorch-lightning_version", "global_step", "epoch"}


@dataclass(frozen=True)
class Named:
    """The names of a checkpoint, sorted out.

    Attributes:
        own: the tokenizer's, bare of wrappers and prefixes, to the checkpoint's.
        dropped: the checkpoint's names that are not the tokenizer's.
    """

    own: dict[str, str]
    dropped: tuple[str, ...]


def choose_layout(checkpoint: Checkpoint, wanted: str) -> Layout:
    """The layout of a checkpoint: the one asked for, or with ``auto`` the only one that it can be.

    Raises:
        UsageError: no such layout, or the file could be taming's or Chameleon's, which have one set of names.
        DataError: the names are nobody's that we know.
    """
    if wanted != "auto":
        if wanted not in LAYOUTS:
            raise UsageError(f"no layout {wanted!r}; there are {', '.join(LAYOUTS)}")
        return LAYOUTS[wanted]
    bare = [_bare(name) for name in checkpoint.names]
    for layout in LAYOUTS.values():
        if layout.part and any(name.startswith(layout.part) for name in bare):
            return layout
    if any(name.startswith("encoder.conv_blocks.") for name in bare):
        return LAYOUTS["llamagen"]
    if not any(name.startswith("encoder.down.") for name in bare):
        raise DataError(
            f"{checkpoint.path}: no image tokenizer that can be imported: no name begins with encoder.down. (taming, "
            "Chameleon), encoder.conv_blocks. (LlamaGen), model.vqmodel. (Chameleon in transformers) or gen_vision_model. "
            f"(Janus); there is {', '.join(sorted(bare)[:4])} ..."
        )
    trained = bool(_LIGHTNING & set(checkpoint.beside)) or any(name.startswith("loss.") for name in bare)
    chameleon = checkpoint.path.name == "vqgan.ckpt"
    if trained == chameleon:
        raise UsageError(
            f"{checkpoint.path}: has the names that taming and Chameleon share, and is not plainly one of them (a trainer's "
            "file is taming's, vqgan.ckpt is Chameleon's); say --layout taming or --layout chameleon: preprocessing and "
            "licence differ"
        )
    return LAYOUTS["chameleon" if chameleon else "taming"]


def sort_names(checkpoint: Checkpoint, layout: Layout) -> Named:
    """Tell the tokenizer's names from the others.

    Raises:
        DataError: two names of the file come to the same one, or none is the tokenizer's.
    """
    bare = {name: _bare(name) for name in checkpoint.names}
    inside = bool(layout.part) and any(b.startswith(layout.part) for b in bare.values())
    own: dict[str, str] = {}
    dropped = list(checkpoint.beside)
    for name, plain in bare.items():
        if inside and not plain.startswith(layout.part):
            dropped.append(name)
            continue
        plain = plain.removeprefix(layout.part) if inside else plain
        if _NOT_OF_THE_TOKENIZER.match(plain):
            dropped.append(name)
        elif plain in own:
            raise DataError(f"{checkpoint.path}: {name} and {own[plain]} are the same name with and without a wrapper")
        else:
            own[plain] = name
    if not own:
        raise DataError(f"{checkpoint.path}: no weights of an image tokenizer among {len(bare)} tensors")
    return Named(own, tuple(sorted(dropped)))


def _bare(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


# ---- renaming

# Theirs to ours, as prefixes. {i} and {j} stay, {r} counts levels from the other end, {m} steps over the middle's attention.
_SHARED = (("quantize.embedding.weight", "quantizer.codebook"),)
_TABLES: dict[Family, tuple[tuple[str, str], ...]] = {
    "taming": (
        ("encoder.down.{i}.block.{j}.", "encoder.levels.{i}.blocks.{j}."),
        ("encoder.down.{i}.attn.{j}.", "encoder.levels.{i}.attentions.{j}."),
        ("encoder.down.{i}.downsample.", "encoder.levels.{i}.resample."),
        ("encoder.mid.attn_1.", "encoder.middle.1."),
        ("encoder.mid.block_{m}.", "encoder.middle.{m}."),
        ("decoder.up.{r}.block.{j}.", "decoder.levels.{r}.blocks.{j}."),
        ("decoder.up.{r}.attn.{j}.", "decoder.levels.{r}.attentions.{j}."),
        ("decoder.up.{r}.upsample.", "decoder.levels.{r}.resample."),
        ("decoder.mid.attn_1.", "decoder.middle.1."),
        ("decoder.mid.block_{m}.", "decoder.middle.{m}."),
        *_SHARED,
    ),
    "llamagen": (
        ("encoder.conv_blocks.{i}.res.{j}.", "encoder.levels.{i}.blocks.{j}."),
        ("encoder.conv_blocks.{i}.attn.{j}.", "encoder.levels.{i}.attentions.{j}."),
        ("encoder.conv_blocks.{i}.downsample.", "encoder.levels.{i}.resample."),
        ("encoder.mid.{i}.", "encoder.middle.{i}."),
        ("decoder.conv_blocks.{i}.res.{j}.", "decoder.levels.{i}.blocks.{j}."),
        ("decoder.conv_blocks.{i}.attn.{j}.", "decoder.levels.{i}.attentions.{j}."),
        ("decoder.conv_blocks.{i}.upsample.", "decoder.levels.{i}.resample."),
        ("decoder.mid.{i}.", "decoder.middle.{i}."),
        *_SHARED,
    ),
}
_SHORTCUT = {True: (".nin_shortcut.", ".shortcut."), False: (".shortcut.", ".nin_shortcut.")}


class Renaming:
    """A family's names to ours (:meth:`ours`) and back (:meth:`theirs`), for one checkpoint.

    Args:
        family: of names.
        names: the checkpoint's, bare: they tell how many levels the decoder has, and whether the middle has attention.
    """

    def __init__(self, family: Family, names: Iterable[str]) -> None:
        names = list(names)
        self._table = _TABLES[family]
        found = {int(match[1]) for name in names if (match := re.match(r"decoder\.up\.(\d+)\.", name))}
        self._levels = max(found, default=-1) + 1
        self._attention = {side: any(n.startswith(f"{side}.mid.attn_1.") for n in names) for side in ("encoder", "decoder")}

    def ours(self, name: str) -> str:
        """A bare name of the checkpoint's as ours; what no rule knows stays as it is."""
        return self._translate(name, True)

    def theirs(self, name: str) -> str:
        """A name of ours as the checkpoint has it, or would."""
        return self._translate(name, False)

    def _translate(self, name: str, forward: bool) -> str:
        for theirs, ours in self._table:
            source, target = (theirs, ours) if forward else (ours, theirs)
            match = re.match(re.sub(r"\\{(\w)\\}", r"(?P<\1>\\d+)", re.escape(source)), name)
            if match is None or (".attn_1." in theirs and not self._attention[name.split(".")[0]]):
                continue
            numbers = {key: self._number(key, int(value), name, forward) for key, value in match.groupdict().items()}
            rest = name[match.end() :]
            return self._shortcut(target.format_map(numbers) + rest, forward)
        return name

    def _shortcut(self, name: str, forward: bool) -> str:
        before, after = _SHORTCUT[forward]
        return name.replace(before, after)

    def _number(self, key: str, value: int, name: str, forward: bool) -> int:
        if key == "r":
            return self._levels - 1 - value
        if key == "m":
            attention = self._attention[name.split(".")[0]]
            if forward:  # blocks count from 1, and attention stands after the first
                return value - 1 + (attention and value > 1)
            return value + 1 - (attention and value > 1)
        return value


def rename(names: Mapping[str, str], renaming: Renaming) -> dict[str, str]:
    """Our names to the checkpoint's, of bare names to the checkpoint's."""
    return {renaming.ours(bare): original for bare, original in names.items()}
