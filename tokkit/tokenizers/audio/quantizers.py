"""From features to codes and back: encodec's residual tables, or a grid that is computed (FSQ, residual FSQ).

A grid is that of image tokenizers (:mod:`tokkit.tokenizers.image.quantizers`), laid over what the encoder gives: each channel
has a centre and a width, that of its values' deviation, which training measures. So the levels are all in use whatever the
encoder's scale, and the grid's middle is where most sounds are. The encoder's last convolution gives as many channels as there
are levels, the decoder's first takes them. A sound is to the grid a picture of one row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from tokkit.tokenizers.audio.config import GRIDS, AudioTokenizerConfig
from tokkit.tokenizers.audio.encodec_package import import_encodec
from tokkit.tokenizers.image.quantizers import GridQuantizer
from tokkit.tokenizers.image.quantizers import build_quantizer as build_grid

CODEBOOKS = "codebooks"
GRID = "grid"

# Deviation of what is squashed: tanh of a normal variable of this deviation comes nearest to every level equally often; of what
# comes back, times GAIN, to the deviation that went in.
SPREAD = 0.9
GAIN = 1.5


def build_quantizer(config: AudioTokenizerConfig) -> nn.Module:
    """The module that a network holds: the package's ``ResidualVectorQuantizer``, tables empty, or a grid."""
    quantizer = config.quantizer
    if isinstance(quantizer, GRIDS):
        grid = build_grid(quantizer)
        assert isinstance(grid, GridQuantizer)
        return LaidGrid(grid)
    module: nn.Module = import_encodec().quantization.vq.ResidualVectorQuantizer(
        dimension=config.architecture.dimension, n_q=quantizer.codebooks, bins=quantizer.codebook_size
    )
    return module


def codebooks_of(module: nn.Module) -> Codebooks:
    """What inference and files ask of the module of :func:`build_quantizer`."""
    return module if isinstance(module, LaidGrid) else Tables(module)


class Codebooks(ABC):
    """The quantizing side of an audio tokenizer. Features are float ``[B, D, t]``, codes int64 ``[B, K, t]``."""

    @abstractmethod
    def codes(self, features: Tensor) -> Tensor:
        """Codes of all books, without gradients."""

    @abstractmethod
    def features(self, codes: Tensor) -> Tensor:
        """float32 features of all, or of the first, books."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The weights, by their names in the tokenizer's file."""

    @abstractmethod
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take the weights of :meth:`tensors`; others are left alone."""

    @abstractmethod
    def empty(self) -> list[int]:
        """Books that were never trained."""


class Tables(Codebooks):
    """encodec's ``ResidualVectorQuantizer``."""

    def __init__(self, module: Any) -> None:
        self._module = module

    @property
    def books(self) -> list[Any]:
        """The package's codebooks, coarsest first."""
        return [layer._codebook for layer in self._module.vq.layers]

    def codes(self, features: Tensor) -> Tensor:
        codes: Tensor = self._module.vq.encode(features)
        return codes.transpose(0, 1)

    def features(self, codes: Tensor) -> Tensor:
        features: Tensor = self._module.vq.decode(codes.transpose(0, 1))
        return features

    def tensors(self) -> dict[str, Tensor]:
        vectors = [book.embed for book in self.books]
        if vectors[0].is_meta:  # where only shapes are asked for; to stack there loads torch's compiler
            return {CODEBOOKS: torch.empty((len(vectors), *vectors[0].shape), device="meta")}
        return {CODEBOOKS: torch.stack(vectors)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        for book, vectors in zip(self.books, tensors[CODEBOOKS], strict=True):
            book.embed.copy_(vectors)
            book.embed_avg.copy_(vectors)
            book.inited.fill_(1)

    def empty(self) -> list[int]:
        return [k for k, book in enumerate(self.books) if not bool(book.embed.any())]


class LaidGrid(nn.Module, Codebooks):
    """A computed quantizer of image tokenizers, and where it lies.

    Attributes:
        grid: the quantizer.
        place: float32 ``[2, D]``: centre and width of each channel; widths are 0 until they were measured.
    """

    place: Tensor

    def __init__(self, grid: GridQuantizer) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("place", torch.zeros(2, grid.dim))

    def onto(self, features: Tensor) -> Tensor:
        """``[B, D, t]`` as the grid takes it, ``[B, D, 1, t]``."""
        centre, width = self.place.unsqueeze(-1)
        return ((features.float() - centre) / width).unsqueeze(2) + self.grid.middle

    def off(self, values: Tensor) -> Tensor:
        """Values of the grid ``[B, D, 1, t]`` as features ``[B, D, t]``."""
        centre, width = self.place.unsqueeze(-1)
        return (values - self.grid.squashed(self.grid.middle)).squeeze(2) * (GAIN * width) + centre

    def codes(self, features: Tensor) -> Tensor:
        codes = self.grid.codes_from_features(self.onto(features))
        return codes.squeeze(2) if self.grid.codebooks > 1 else codes  # the one row is where the one book would be

    def features(self, codes: Tensor) -> Tensor:
        return self.off(self.grid.features_from_codes(codes.unsqueeze(2) if self.grid.codebooks > 1 else codes))

    def tensors(self) -> dict[str, Tensor]:
        return {GRID: self.place}

    def load(self, tensors: dict[str, Tensor]) -> None:
        self.place.copy_(tensors[GRID])

    def empty(self) -> list[int]:
        return [] if bool((self.place[1] > 0).all()) else list(range(self.grid.codebooks))
