"""What an image tokenizer is, apart from its weights: the ``config.json`` beside them.

Everything that changes codes is in here: network, quantizer and preprocessing. Changing a field makes another tokenizer.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from tokkit.media.transforms import Preprocessing

# Codes are int32 everywhere, and vocabularies hold text and audio beside them.
MAX_CODEBOOK = 2**30


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


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


class FsqQuantizer(_Frozen):
    """Finite scalar quantization (Mentzer et al., arXiv:2309.15505): no codebook to learn, so none to collapse.

    Attributes:
        levels: values of each dimension; the codebook has their product. The first dimension is the least significant.
    """

    kind: Literal["fsq"] = "fsq"
    levels: tuple[Annotated[int, Field(ge=3)], ...] = Field(default=(8, 8, 8, 6, 5), min_length=1)

    @model_validator(mode="after")
    def _bounded(self) -> FsqQuantizer:
        if self.codebook_size > MAX_CODEBOOK:
            raise ValueError(f"levels give {self.codebook_size:,} codes, more than {MAX_CODEBOOK:,}")
        return self

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return prod(self.levels)

    @property
    def dim(self) -> int:
        """Channels that are quantized."""
        return len(self.levels)


class VqQuantizer(_Frozen):
    """Vector quantization with a codebook that follows the encoder by exponential moving averages (arXiv:1711.00937).

    Attributes:
        codebook_size, codebook_dim: the table; a low dimension with ``normalize`` keeps large tables in use.
        normalize: compare unit vectors, and decode from unit vectors.
        commitment_weight: of the loss that pulls the encoder to its codes.
        decay: of the moving averages.
        dead_code_share: a code that is used less than this share of the average code's use is replaced by a feature of the
            batch; 0 turns that off.
        rotation_trick: gradients through the quantizer by rotation (arXiv:2410.06424) instead of straight through.
    """

    kind: Literal["vq"] = "vq"
    codebook_size: int = Field(default=4096, ge=2, le=MAX_CODEBOOK)
    codebook_dim: PositiveInt = 8
    normalize: bool = True
    commitment_weight: float = Field(default=0.25, ge=0)
    decay: float = Field(default=0.99, gt=0, lt=1)
    dead_code_share: float = Field(default=0.03, ge=0, lt=1)
    rotation_trick: bool = True

    @model_validator(mode="after")
    def _directions(self) -> VqQuantizer:
        if self.codebook_dim < 2 and (self.normalize or self.rotation_trick):
            raise ValueError("normalize and rotation_trick need a codebook_dim of 2 or more")
        return self

    @property
    def dim(self) -> int:
        """Channels that are quantized."""
        return self.codebook_dim


QuantizerConfig = Annotated[FsqQuantizer | VqQuantizer, Field(discriminator="kind")]


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
