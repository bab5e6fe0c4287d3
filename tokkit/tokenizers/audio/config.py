"""What an audio tokenizer is, apart from its weights: the ``config.json`` beside them.

Everything that changes codes is in here: network, quantizer, rate, channels, segments. Changing a field makes another
tokenizer.
"""

from __future__ import annotations

from math import prod
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from tokkit.tokenizers.image.quantizer_config import FsqQuantizer, ResidualFsqQuantizer


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SeanetArchitecture(_Frozen):
    """EnCodec's convolutional encoder and decoder with an LSTM between (Défossez et al., arXiv:2210.13438).

    Attributes:
        channels: of the waveform.
        dimension: channels between encoder and quantizer.
        filters: width at the waveform's rate; every downsampling doubles it.
        ratios: upsampling factors of the decoder, from the lowest rate; the encoder goes the other way.
        residual_layers: residual blocks before each downsampling.
        kernel_size, last_kernel_size, residual_kernel_size: of the first, the last and the residual convolutions.
        dilation_base: dilation of the j-th residual block is ``dilation_base ** j``.
        compress: by how much the residual blocks are narrower inside.
        lstm: layers of the LSTM; 0: none.
        causal: no output depends on what comes after its frame.
        norm: what follows every convolution: nothing, or a group norm over time. Weight norm is fused into the weights.
        padding: what stands before and behind the waveform: its mirror image, or zeros.
        true_skip: the residual blocks' other path is the identity; else a convolution.
        trim_right_ratio: share of a transposed convolution's surplus that is cut off at the end, where causal.
    """

    kind: Literal["seanet"] = "seanet"
    channels: Literal[1, 2] = 1
    dimension: PositiveInt = 128
    filters: PositiveInt = 32
    ratios: tuple[PositiveInt, ...] = (8, 5, 4, 2)
    residual_layers: PositiveInt = 1
    kernel_size: PositiveInt = 7
    last_kernel_size: PositiveInt = 7
    residual_kernel_size: PositiveInt = 3
    dilation_base: PositiveInt = 2
    compress: PositiveInt = 2
    lstm: int = Field(default=2, ge=0)
    causal: bool = True
    norm: Literal["none", "time_group_norm"] = "none"
    padding: Literal["reflect", "constant"] = "reflect"
    true_skip: bool = False
    trim_right_ratio: float = Field(default=1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> SeanetArchitecture:
        if not self.ratios:
            raise ValueError("ratios needs at least one factor")
        if self.filters % self.compress:
            raise ValueError(f"compress {self.compress} does not divide the width {self.filters}")
        if self.causal and self.norm == "time_group_norm":
            raise ValueError("a group norm over time sees what comes later: it cannot be causal")
        if not self.causal and self.trim_right_ratio != 1:
            raise ValueError("trim_right_ratio is for causal networks")
        return self

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return prod(self.ratios)


class ResidualQuantizer(_Frozen):
    """Residual vector quantization: each book is a table of vectors for what the books before it left over.

    Attributes:
        codebooks: tables.
        codebook_size: vectors in each.
    """

    kind: Literal["residual-vq"] = "residual-vq"
    codebooks: PositiveInt = 32
    codebook_size: int = Field(default=1024, ge=2)

    @model_validator(mode="after")
    def _a_power_of_two(self) -> ResidualQuantizer:
        if self.codebook_size & (self.codebook_size - 1):
            raise ValueError(f"codebook_size {self.codebook_size} is no power of two")
        return self


# The grids are those of pictures: one code a frame, or several that are finer each.
AudioQuantizer = Annotated[ResidualQuantizer | FsqQuantizer | ResidualFsqQuantizer, Field(discriminator="kind")]
GRIDS = (FsqQuantizer, ResidualFsqQuantizer)


class AudioTokenizerConfig(_Frozen):
    """An audio tokenizer.

    Attributes:
        name: the preset or checkpoint it comes from.
        architecture, quantizer: what maps waveforms to codes.
        sample_rate: samples per second.
        normalize: each segment (or the whole) is divided by its loudness, which is stored beside the codes.
        segment: samples of one segment; None: a clip is one piece.
        overlap: share of a segment that the next one begins in.
        licence: of the weights, where one is known; goes into the manifests of everything made with them.
        origin: how the weights came about, for people.
    """

    name: str
    architecture: SeanetArchitecture = SeanetArchitecture()
    quantizer: AudioQuantizer = ResidualQuantizer()
    sample_rate: PositiveInt
    normalize: bool = False
    segment: PositiveInt | None = None
    overlap: float = Field(default=0.01, ge=0, lt=1)
    licence: str | None = None
    origin: str = ""

    @model_validator(mode="after")
    def _whole(self) -> AudioTokenizerConfig:
        whole = self.segment is None
        if whole and self.normalize:
            raise ValueError("normalize without segments would need the whole clip before its first frame")
        if whole and self.architecture.norm != "none":
            raise ValueError("a group norm over time needs segments: else a clip's codes take memory without bound")
        if isinstance(self.quantizer, GRIDS) and self.architecture.dimension != self.quantizer.dim:
            raise ValueError(
                f"architecture.dimension is {self.architecture.dimension} and must be {self.quantizer.dim}, as many as "
                "quantizer.levels"
            )
        return self

    @property
    def channels(self) -> int:
        """Channels of every waveform."""
        return self.architecture.channels

    @property
    def hop(self) -> int:
        """Samples per frame."""
        return self.architecture.hop

    @property
    def stride(self) -> int | None:
        """Samples from the start of one segment to that of the next."""
        return None if self.segment is None else max(1, int((1 - self.overlap) * self.segment))

    def segments(self, samples: int) -> list[tuple[int, int]]:
        """(Start, end) of each segment of a clip; where there are no segments, one for all of it."""
        if self.segment is None or self.stride is None:
            return [(0, samples)]
        return [(start, min(start + self.segment, samples)) for start in range(0, samples, self.stride)]

    def frames(self, samples: int) -> int:
        """Frames that a clip of so many samples is encoded to."""
        return sum(-(-(end - start) // self.hop) for start, end in self.segments(samples))

    def identity(self) -> dict[str, Any]:
        """The configuration as plain JSON values: what a fingerprint covers."""
        return self.model_dump(mode="json")
