"""What an image tokenizer is, apart from its weights: the ``config.json`` beside them.

Everything that changes codes is in here: network, quantizer and preprocessing. Changing a field makes another tokenizer.
"""

from __future__ import annotations

from math import isfinite
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from tokkit.media.transforms import Preprocessing
from tokkit.tokenizers.image.quantizer_config import QuantizerConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class CnnArchitecture(_Frozen):
    """A convolutional encoder and decoder in the VQGAN family (Esser et al., arXiv:2012.09841).

    Attributes:
        channels: width at the first level; level i has ``channels * multipliers[i]``.
        multipliers: one per level; each level but the last halves the resolution.
        encoder_blocks, decoder_blocks: residual blocks in a level. ``decoder_blocks`` 0 stands for a tokenizer without a
            decoder (and without the projection before it): it encodes only.
        attention: for each level, whether self-attention follows every residual block.
        middle_blocks: residual blocks at the lowest resolution, on top of the last level's.
        middle_attention: self-attention after the first middle block.
        patch: 1: the first convolution sees full resolution. p > 1: pixels are first rearranged into p x p patches
            (PixelUnshuffle), and put back at the end; much cheaper on a CPU.
        z_channels: channels between the network and the quantizer's projection.
        projection_kernel: side of the convolutions before and after the quantizer.
        norm_groups: groups of every GroupNorm; divides every width.
        norm_eps: its epsilon.
    """

    kind: Literal["cnn"] = "cnn"
    channels: PositiveInt = 128
    multipliers: tuple[PositiveInt, ...] = (1, 1, 2, 2, 4)
    encoder_blocks: PositiveInt = 2
    decoder_blocks: int = Field(default=3, ge=0)
    attention: tuple[bool, ...] = (False, False, False, False, False)
    middle_blocks: int = Field(default=2, ge=0)
    middle_attention: bool = False
    patch: PositiveInt = 1
    z_channels: PositiveInt = 256
    projection_kernel: Literal[1, 3] = 1
    norm_groups: PositiveInt = 32
    norm_eps: float = Field(default=1e-6, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> CnnArchitecture:
        if not self.multipliers:
            raise ValueError("multipliers needs at least one level")
        if len(self.attention) != len(self.multipliers):
            raise ValueError(f"attention has {len(self.attention)} entries for {len(self.multipliers)} levels")
        uneven = [w for w in self.widths if w % self.norm_groups]
        if uneven:
            raise ValueError(f"norm_groups {self.norm_groups} does not divide the width {uneven[0]}")
        if self.middle_attention and not self.middle_blocks:
            raise ValueError("middle_attention stands after the first middle block, and middle_blocks is 0")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * m for m in self.multipliers)

    @property
    def has_decoder(self) -> bool:
        """Whether codes can be turned back into pixels."""
        return self.decoder_blocks > 0

    @property
    def downsample(self) -> int:
        """Pixels of input per side of one code."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class ImageTokenizerConfig(_Frozen):
    """An image tokenizer.

    Attributes:
        name: the preset or checkpoint it comes from.
        architecture, quantizer, preprocessing: what maps pixels to codes.
        licence: of the weights, where one is known; goes into the manifests of everything made with them.
        origin: how the weights came about, for people.
    """

    name: str
    architecture: CnnArchitecture
    quantizer: QuantizerConfig
    preprocessing: Preprocessing
    licence: str | None = None
    origin: str = ""

    @model_validator(mode="after")
    def _divisible(self) -> ImageTokenizerConfig:
        size, factor = self.preprocessing.size, self.architecture.downsample
        if size % factor:
            raise ValueError(f"preprocessing.size {size} is no multiple of the downsampling factor {factor}")
        return self

    @model_validator(mode="after")
    def _normalizable(self) -> ImageTokenizerConfig:
        mean, std = self.preprocessing.mean, self.preprocessing.std
        if not all(map(isfinite, (*mean, *std))) or 0 in std:
            raise ValueError(f"preprocessing.mean {mean} and preprocessing.std {std} must be finite, std not 0")
        return self

    def identity(self) -> dict[str, Any]:
        """The configuration as plain JSON values, without what only training looks at: what a fingerprint covers."""
        return self.model_dump(mode="json", exclude={"quantizer": set(self.quantizer.TRAINING)})
