"""The choice of quantizers, as configurations: what each needs to be built and trained. Free of torch.

Every one has ``codebook_size`` (codes in a codebook), ``codebooks`` (codes at each position: more than one where the quantizer
is residual) and ``dim`` (channels that are quantized). ``TRAINING`` names the fields that only training looks at: they are no
part of a tokenizer's fingerprint, because the same weights give the same codes whatever they are.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

# Codes are int32 everywhere, and vocabularies hold text and audio beside them.
MAX_CODEBOOK = 2**24

# Codes of one picture grow with it; nobody uses more.
MAX_CODEBOOKS = 64

Levels = Annotated[tuple[Annotated[int, Field(ge=3)], ...], Field(min_length=1)]


class _Quantizer(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    TRAINING: ClassVar[frozenset[str]] = frozenset()


class _Finite(_Quantizer):
    levels: Levels = (8, 8, 8, 6, 5)

    @model_validator(mode="after")
    def _bounded(self) -> _Finite:
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


class FsqQuantizer(_Finite):
    """Finite scalar quantization (Mentzer et al., arXiv:2309.15505): no codebook to learn, so none to collapse.

    Attributes:
        levels: values of each dimension; the codebook has their product. The first dimension is the least significant.
    """

    kind: Literal["fsq"] = "fsq"

    codebooks: ClassVar[int] = 1


class ResidualFsqQuantizer(_Finite):
    """Finite scalar quantization of what the codebooks before have left over, each on a grid finer by the number of levels.

    Attributes:
        levels: values of each dimension of every codebook.
        codebooks: codes at each position.
    """

    kind: Literal["residual-fsq"] = "residual-fsq"
    levels: Levels = (5, 5, 5, 5)
    codebooks: int = Field(default=2, ge=2, le=MAX_CODEBOOKS)


class _Table(_Quantizer):
    """What quantizers with a learned table of vectors share.

    Attributes:
        codebook_size, codebook_dim: the table.
        commitment_weight: of the loss that pulls the encoder to its codes.
        update: ``ema``: the table follows the encoder by exponential moving averages; ``gradient``: by the optimiser, with a
            loss of weight 1 that pulls codes to what they stand for.
        decay: of the moving averages.
        dead_code_share: a code that is used less than this share of the average code's use is replaced by a feature of the
            batch; 0 turns that off.
        start: what the table is made of in the first step: ``features`` of the batch, or their ``kmeans`` centres, which
            takes a batch of at least ``codebook_size`` vectors.
        rotation_trick: gradients through the quantizer by rotation (arXiv:2410.06424) instead of straight through.
        entropy_weight: of the loss that makes single codes certain and all codes together varied; 0 for none. It moves the
            encoder, and the table where that is updated by ``gradient``.
        diversity: weight of the second of these within it.
        temperature: squared distance at which a vector is taken to stand for several codes in that loss.
    """

    TRAINING: ClassVar[frozenset[str]] = frozenset(
        {"commitment_weight", "update", "decay", "dead_code_share", "start", "rotation_trick"}
        | {"entropy_weight", "diversity", "temperature"}
    )

    codebook_size: int = Field(default=4096, ge=2, le=MAX_CODEBOOK)
    codebook_dim: PositiveInt = 8
    commitment_weight: float = Field(default=0.25, ge=0)
    update: Literal["ema", "gradient"] = "ema"
    decay: float = Field(default=0.99, gt=0, lt=1)
    dead_code_share: float = Field(default=0.03, ge=0, lt=1)
    start: Literal["features", "kmeans"] = "features"
    rotation_trick: bool = True
    entropy_weight: float = Field(default=0.0, ge=0)
    diversity: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.01, gt=0)

    @model_validator(mode="after")
    def _directions(self) -> _Table:
        if self.codebook_dim < 2 and self.rotation_trick:
            raise ValueError("rotation_trick needs a codebook_dim of 2 or more")
        return self

    @property
    def dim(self) -> int:
        """Channels that are quantized."""
        return self.codebook_dim


class VqQuantizer(_Table):
    """Vector quantization (arXiv:1711.00937).

    Attributes:
        normalize: compare unit vectors, and decode from unit vectors (arXiv:2110.04627); with a low ``codebook_dim`` this
            keeps large tables in use.
    """

    kind: Literal["vq"] = "vq"
    normalize: bool = True

    codebooks: ClassVar[int] = 1

    @model_validator(mode="after")
    def _unit(self) -> VqQuantizer:
        if self.codebook_dim < 2 and self.normalize:
            raise ValueError("normalize needs a codebook_dim of 2 or more")
        return self


class ResidualVqQuantizer(_Table):
    """Vector quantization of what the codebooks before have left over (SoundStream, arXiv:2107.03312, algorithm 1).

    Attributes:
        codebooks: tables, and codes at each position.
    """

    kind: Literal["residual-vq"] = "residual-vq"
    codebook_size: int = Field(default=1024, ge=2, le=MAX_CODEBOOK)
    codebooks: int = Field(default=4, ge=2, le=MAX_CODEBOOKS)

    normalize: ClassVar[bool] = False  # what is left over has a length that matters


class SimVqQuantizer(_Quantizer):
    """Vectors that are never learned one by one: a frozen random table through one learned linear map (arXiv:2411.02038).

    Attributes:
        codebook_size, codebook_dim: the table.
        commitment_weight: of the loss that pulls the encoder to its codes; the one that pulls codes has weight 1.
        rotation_trick: as in :class:`VqQuantizer`.
    """

    TRAINING: ClassVar[frozenset[str]] = frozenset({"commitment_weight", "rotation_trick"})

    kind: Literal["simvq"] = "simvq"
    codebook_size: int = Field(default=4096, ge=2, le=MAX_CODEBOOK)
    codebook_dim: int = Field(default=32, ge=2)
    commitment_weight: float = Field(default=0.25, ge=0)
    rotation_trick: bool = True

    codebooks: ClassVar[int] = 1
    normalize: ClassVar[bool] = False

    @property
    def dim(self) -> int:
        """Channels that are quantized."""
        return self.codebook_dim


class LfqQuantizer(_Quantizer):
    """Lookup-free quantization: a code is the signs of the channels (arXiv:2310.05737).

    Attributes:
        bits: channels, and bits of a code; the first is the most significant.
        spherical: binary spherical quantization (arXiv:2406.07548): unit vectors, quantized to corners on the unit sphere.
        commitment_weight: of the loss that pulls the encoder to its codes.
        entropy_weight: of the loss that makes single codes certain and all codes together varied.
        diversity: weight of the second of these within it.
        temperature: softness with which a vector is taken to stand for several codes in that loss.
        entropy_group: bits of which the joint distribution is looked at; codes of more bits are taken group by group
            (memory grows with 2 to this power).
    """

    TRAINING: ClassVar[frozenset[str]] = frozenset(
        {"commitment_weight", "entropy_weight", "diversity", "temperature", "entropy_group"}
    )

    kind: Literal["lfq"] = "lfq"
    bits: int = Field(default=12, ge=1, le=24)
    spherical: bool = False
    commitment_weight: float = Field(default=0.25, ge=0)
    entropy_weight: float = Field(default=0.1, ge=0)
    diversity: float = Field(default=1.0, ge=0)
    temperature: float = Field(default=0.01, gt=0)
    entropy_group: int = Field(default=9, ge=1, le=14)

    codebooks: ClassVar[int] = 1

    @property
    def codebook_size(self) -> int:
        """Number of codes."""
        return 2**self.bits

    @property
    def dim(self) -> int:
        """Channels that are quantized."""
        return self.bits


QuantizerConfig = Annotated[
    FsqQuantizer | ResidualFsqQuantizer | VqQuantizer | ResidualVqQuantizer | SimVqQuantizer | LfqQuantizer,
    Field(discriminator="kind"),
]
