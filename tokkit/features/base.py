"""What a frozen feature encoder is: media in, features out, and what is needed to lay them out again.

    picture or clip --prepare--> Prepared (views of fixed shape) --encode--> ItemFeatures

A picture becomes one *view* or several (a base view and tiles); a clip becomes one view for each window of 30 s. ``prepare`` is
work for the CPU; ``encode`` fills batches of one fixed shape with the views of all items it is given, pads the last, and puts
the features of an item together again. So an item's features depend on the item and on the batch size, not on its slot or its
neighbours.

This module is light: importing it loads NumPy and pydantic, not torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from tokkit.precision import Acceleration, Precision

Modality = Literal["image", "audio"]
ViewKind = Literal["whole", "base", "tile", "thumbnail", "window"]
Tiling = Literal["none", "anyres", "internvl", "native", "llama"]
Merge = Literal["flat", "spatial", "spatial_unpad"]
Layer = int | Literal["final"]
Grid = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One input of the encoder.

    Attributes:
        pixels: float32, normalised: ``[3, H, W]`` of a picture, ``[bins, frames]`` of a clip's log-mel spectrogram.
        kind: ``whole`` picture; ``base`` or ``thumbnail`` (the whole picture, made small) and ``tile``; ``window`` of a clip.
        row, column: of a tile in the grid of tiles; of a window, its number as column.
    """

    pixels: NDArray[np.float32]
    kind: ViewKind = "whole"
    row: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An item as its encoder takes it; picklable.

    Attributes:
        views: in the order in which their features stand.
        width, height: of the picture as it came, in pixels; of a clip, its samples and 1.
        tiles: rows and columns of the grid of tiles, where the picture was cut into tiles.
        valid: valid frames of the encoder's output, of a clip.
    """

    views: tuple[View, ...]
    width: int
    height: int
    tiles: Grid | None = None
    valid: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ItemFeatures:
    """The features of one picture or clip.

    Attributes:
        features: ``[tokens, dim]``: float32 as an encoder makes them; as read back from a cache also float16, or bfloat16 as
            uint16. ``[0, dim]`` where only the pooled embedding was asked for.
        grid: rows and columns of the tokens of the whole item, where they are one raster; else None.
        tiles: for each run of tokens that is one raster, in order: ``(first token, rows, columns)``. These are the views, or
            base view and merged tiles where tiles were merged into one raster (LLaVA-NeXT's ``spatial``). ``first token`` is
            that of the raster itself: tokens that belong to no raster (a class token) stand before it.
        newlines: int32 positions at which a learned newline embedding goes: before feature ``p``, or after the last where ``p``
            is the number of tokens. They count features, not newlines. None where the layout has none.
        thw: frames, rows and columns of patches before merging (Qwen2-VL's ``grid_thw``).
        valid: number of valid frames, of a clip; tokens beyond it (with ``padding="keep"``) are those of silence.
        pooled: ``[dim']``, the embedding of the whole item (of the base view), where it was asked for.
        extra: further facts by name that a model wants beside its features (Llama 3.2's ``aspect_ratio_id`` and ``tiles``).
    """

    features: NDArray[Any]
    grid: Grid | None = None
    tiles: tuple[tuple[int, int, int], ...] = ()
    newlines: NDArray[np.int32] | None = None
    thw: tuple[int, int, int] | None = None
    valid: int | None = None
    pooled: NDArray[Any] | None = None
    extra: Mapping[str, int] = field(default_factory=dict)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AveragePooling(_Part):
    """Means over squares of ``size`` by ``size`` tokens of a raster; the last row and column of squares may be smaller."""

    kind: Literal["average"] = "average"
    size: int = Field(default=2, ge=2, le=64)


class PixelShuffle(_Part):
    """``factor`` by ``factor`` tokens side by side become one of ``factor ** 2`` times the dimension (InternVL's order)."""

    kind: Literal["pixel-shuffle"] = "pixel-shuffle"
    factor: int = Field(default=2, ge=2, le=16)


class FrameStacking(_Part):
    """``frames`` consecutive frames become one of ``frames`` times the dimension; the last is filled up with zeros."""

    kind: Literal["frames"] = "frames"
    frames: int = Field(default=2, ge=2, le=64)


class Resampler(_Part):
    """A learned resampler: a view's tokens become as many as it has queries (64 for Flamingo's Perceiver, 32 for a Q-Former).

    Attributes:
        path: folder with the checkpoint: ``config.json`` and ``model.safetensors``.
    """

    kind: Literal["resampler"] = "resampler"
    path: Path


Reduction = Annotated[AveragePooling | PixelShuffle | FrameStacking | Resampler, Field(discriminator="kind")]


class FeatureOptions(_Part):
    """What is taken of an encoder. All of it decides the features, so all of it is in the fingerprint.

    Attributes:
        layers: hidden states to take, side by side in one vector where there are several. Numbers are those of transformers'
            ``hidden_states``: 0 is what enters the first block, -1 what leaves the last (after the final normalisation for
            Whisper, before it for the others); ``"final"`` is the model's own last hidden state. None: what the family is used
            with (-2 for CLIP, as LLaVA does; a LLaVA or Llama 3.2 model's own list; ``"final"`` for the others).
        keep_cls: keep the class token (and register tokens) before each view's raster. None: as the family is used, kept for
            BLIP-2 and Llama 3.2 and not for the others.
        merger: of Qwen2-VL: features before or after its 2 by 2 merger.
        tokens: store features of the patches. Without, only ``pooled``.
        pooled: also the embedding of the whole picture: as the tower pools it, or projected into the space that pictures and
            texts share, with length 1.
        tiling: how a picture becomes views. None: what the model does itself (``native`` for Qwen2-VL, ``llama`` for Llama 3.2,
            ``anyres`` for LLaVA-NeXT, else ``none``).
        pinpoints: of ``anyres``: possible sizes in pixels, (height, width). None: those of the preprocessor's configuration,
            else LLaVA-NeXT's.
        merge: of ``anyres``: tokens view by view (``flat``), or tiles merged into one raster with a newline after each row
            (``spatial``), without the rows or columns that are nothing but padding (``spatial_unpad``, LLaVA-NeXT's).
        min_tiles, max_tiles, thumbnail: of ``internvl``. How many ``llama`` has is the model's own matter.
        min_pixels, max_pixels: of ``native``; None: those of the preprocessor's configuration.
        pad_square: pad a picture to a square with the mean colour before anything else, as LLaVA-1.5 does.
        padding: of audio: a clip is padded with silence to windows of 30 seconds, since the encoder takes nothing else;
            ``trim`` keeps the frames that are the clip's, ``keep`` all 1,500 of each window.
        reductions: applied to each view in this order.
        precision: of the encoder's weights and activations; features come out as float32 in any case.
    """

    layers: tuple[Layer, ...] | None = Field(default=None, min_length=1)
    keep_cls: bool | None = None
    merger: Literal["before", "after"] = "after"
    tokens: bool = True
    pooled: Literal["none", "pooled", "projected"] = "none"
    tiling: Tiling | None = None
    pinpoints: tuple[Grid, ...] | None = Field(default=None, min_length=1)
    merge: Merge = "spatial_unpad"
    min_tiles: int = Field(default=1, ge=1, le=256)
    max_tiles: int = Field(default=12, ge=1, le=256)
    thumbnail: bool = True
    min_pixels: int | None = Field(default=None, ge=1)
    max_pixels: int | None = Field(default=None, ge=1)
    pad_square: bool = False
    padding: Literal["trim", "keep"] = "trim"
    reductions: tuple[Reduction, ...] = ()
    precision: Literal["float32", "bfloat16", "float16"] = "float32"

    @model_validator(mode="after")
    def _consistent(self) -> FeatureOptions:
        if not self.tokens and self.pooled == "none":
            raise ValueError("tokens=false stores nothing unless pooled is asked for")
        if self.min_tiles > self.max_tiles:
            raise ValueError(f"min_tiles {self.min_tiles} is more than max_tiles {self.max_tiles}")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} is more than max_pixels {self.max_pixels}")
        return self


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the network is run. None of it is meant to change the features, so none of it is in the fingerprint.

    Attributes:
        precision: of the arithmetic (:mod:`tokkit.precision`); other than fp32 only for features that are to be float32's.
        acceleration: ``compile``: each block goes through ``torch.compile``, once for each shape, without autotuning;
            ``graphs``: each shape's launches are recorded once as a CUDA graph and replayed.
    """

    precision: Precision = "fp32"
    acceleration: Acceleration = "none"


class FeatureEncoder(Protocol):
    """A frozen encoder, ready to use (:func:`tokkit.features.load_feature_encoder`).

    Attributes:
        modality: what it takes.
        dim: of a token's features, after reductions.
        pooled_dim: of the pooled embedding, or None where there is none.
        sample_rate: of the waveforms it takes, in Hz; None for pictures.
        fingerprint: SHA-256 (hex) over the weights that are used, preprocessing and options.
    """

    @property
    def modality(self) -> Modality: ...

    @property
    def dim(self) -> int: ...

    @property
    def pooled_dim(self) -> int | None: ...

    @property
    def sample_rate(self) -> int | None: ...

    @property
    def fingerprint(self) -> str: ...

    def describe(self) -> dict[str, Any]:
        """For a manifest, as JSON: model, layers, preprocessing, tiling, reductions, dimension, licence, fingerprint."""
        ...

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        """An RGB or RGBA picture, or a mono waveform float32 ``[samples]`` at ``sample_rate``, to views.

        Raises:
            ItemError: this item cannot be encoded, now or ever (a picture of a shape that the model does not take).
        """
        ...

    def encode(self, items: Sequence[Prepared], batch_size: int) -> list[ItemFeatures]:
        """Features of each item, in order, float32. The model sees batches of exactly ``batch_size`` views."""
        ...

    def tokens_of(self, width: int, height: int = 1) -> int:
        """How many tokens a picture of this size comes to (a clip of ``width`` samples), without running anything."""
        ...
