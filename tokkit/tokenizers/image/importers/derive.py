"""The configuration of a network in the VQGAN family, read off the names and shapes of its weights.

All names here are ours (:mod:`tokkit.tokenizers.image.importers.layout`). Everything that changes codes shows in names and
shapes, except: 32 groups and an epsilon of 1e-6 in every GroupNorm (all of the family have that), the comparison of vectors,
and the preprocessing; the last two are the layout's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from pydantic import ValidationError

from tokkit.tokenizers.image.config import CnnArchitecture
from tokkit.tokenizers.image.quantizer_config import VqQuantizer

Shapes = Mapping[str, tuple[int, ...]]


class CannotDerive(Exception):  # noqa: N818 - it says what is wrong
    """Names and shapes that no configuration has.

    Attributes:
        name: the weight that the problem is with, by our name; empty where it is with several.
        problem: what is wrong, to stand after the name.
    """

    def __init__(self, problem: str, name: str = "") -> None:
        self.problem = problem
        self.name = name
        super().__init__(f"{name} {problem}".strip())


def derive_architecture(shapes: Shapes) -> CnnArchitecture:
    """The network that has these weights.

    Raises:
        CannotDerive: a weight that decides is missing, or two of them contradict each other.
    """
    channels, inputs = _shape(shapes, "encoder.conv_in.weight", 4)[:2]
    if inputs != 3:
        raise CannotDerive(f"takes {inputs} channels, not the 3 of a colour picture", "encoder.conv_in.weight")
    levels = _count(shapes, "encoder.levels.", "the encoder's levels")
    has_decoder = any(name.startswith("decoder.") for name in shapes)
    attention, encoder_blocks = _levels(shapes, "encoder", levels)
    decoder_blocks = 0
    if has_decoder:
        decoder_attention, decoder_blocks = _levels(shapes, "decoder", levels)
        if decoder_attention[::-1] != attention:
            raise CannotDerive(
                f"attention in the encoder's levels {_on(attention)} and the decoder's {_on(decoder_attention[::-1])}"
            )
    blocks, middle_attention = _middle(shapes, "encoder")
    if has_decoder and _middle(shapes, "decoder") != (blocks, middle_attention):
        raise CannotDerive("the middle of the encoder and that of the decoder are not alike")
    try:
        return CnnArchitecture(
            channels=channels,
            multipliers=_multipliers(shapes, channels, levels),
            encoder_blocks=encoder_blocks,
            decoder_blocks=decoder_blocks,
            attention=attention,
            middle_blocks=blocks,
            middle_attention=middle_attention,
            z_channels=_shape(shapes, "encoder.conv_out.weight", 4)[0],
            projection_kernel=_shape(shapes, "quant_conv.weight", 4)[-1],  # type: ignore[arg-type] # checked by the model
        )
    except ValidationError as error:
        raise CannotDerive("; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())) from None


def derive_quantizer(shapes: Shapes, normalize: bool) -> VqQuantizer:
    """The codebook that has these weights; its training options are the defaults.

    Raises:
        CannotDerive: there is no codebook.
    """
    size, dim = _shape(shapes, "quantizer.codebook", 2)
    try:
        return VqQuantizer(codebook_size=size, codebook_dim=dim, normalize=normalize, rotation_trick=dim > 1)
    except ValidationError as error:
        raise CannotDerive("; ".join(str(e["msg"]).removeprefix("Value error, ") for e in error.errors())) from None


def _shape(shapes: Shapes, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in shapes:
        raise CannotDerive("is missing", name)
    if len(shapes[name]) != dimensions:
        raise CannotDerive(f"has the shape {list(shapes[name])}, of {len(shapes[name])} dimensions and not {dimensions}", name)
    return shapes[name]


def _count(names: Collection[str], prefix: str, what: str) -> int:
    """How many there are of ``PREFIX0.``, ``PREFIX1.``, ...; their numbers must go up from 0 without a gap."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    found = {int(match[1]) for name in names if (match := pattern.match(name))}
    if found != set(range(len(found))):
        raise CannotDerive(f"{what} are numbered {', '.join(map(str, sorted(found)))}, not from 0 without a gap")
    return len(found)


def _levels(shapes: Shapes, side: str, levels: int) -> tuple[tuple[bool, ...], int]:
    """(Whether each level has attention, residual blocks in a level), of encoder or decoder."""
    found = _count(shapes, f"{side}.levels.", f"the {side}'s levels")
    if found != levels or not levels:
        raise CannotDerive(f"the {side} has {found} levels, the encoder {levels}")
    blocks = {_count(shapes, f"{side}.levels.{i}.blocks.", f"residual blocks of the {side}") for i in range(levels)}
    if len(blocks) != 1 or 0 in blocks:
        raise CannotDerive(f"the {side}'s levels have {', '.join(map(str, sorted(blocks)))} residual blocks, not equally many")
    count = blocks.pop()
    attentions = [_count(shapes, f"{side}.levels.{i}.attentions.", f"attention blocks of the {side}") for i in range(levels)]
    uneven = [n for n in attentions if n not in (0, count)]
    if uneven:
        raise CannotDerive(f"a level of the {side} has {uneven[0]} attention blocks for {count} residual blocks")
    return tuple(n > 0 for n in attentions), count


def _middle(shapes: Shapes, side: str) -> tuple[int, bool]:
    """(Residual blocks, whether attention follows the first), of the lowest resolution's middle."""
    total = _count(shapes, f"{side}.middle.", f"blocks of the {side}'s middle")
    attention = [i for i in range(total) if f"{side}.middle.{i}.q.weight" in shapes]
    if attention not in ([], [1]):
        raise CannotDerive(f"attention stands at {attention} of the {side}'s middle, not after its first block")
    return total - len(attention), bool(attention)


def _multipliers(shapes: Shapes, channels: int, levels: int) -> tuple[int, ...]:
    widths = [_shape(shapes, f"encoder.levels.{i}.blocks.0.conv2.weight", 4)[0] for i in range(levels)]
    uneven = [width for width in widths if width % channels]
    if uneven:
        raise CannotDerive(f"a level is {uneven[0]} channels wide, which is no multiple of the first convolution's {channels}")
    return tuple(width // channels for width in widths)


def _on(attention: tuple[bool, ...]) -> str:
    return str([i for i, there in enumerate(attention) if there])
