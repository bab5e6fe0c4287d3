"""From features to codes and back: see :mod:`tokkit.tokenizers.image.quantizers.base`."""

from __future__ import annotations

from tokkit.tokenizers.image.quantizer_config import (
    FsqQuantizer,
    LfqQuantizer,
    QuantizerConfig,
    ResidualFsqQuantizer,
    SimVqQuantizer,
)
from tokkit.tokenizers.image.quantizers.base import LEARNER, Quantized, Quantizer
from tokkit.tokenizers.image.quantizers.finite import (
    FiniteScalarQuantizer,
    GridQuantizer,
    ResidualFiniteScalarQuantizer,
)
from tokkit.tokenizers.image.quantizers.lookup_free import LookupFreeQuantizer
from tokkit.tokenizers.image.quantizers.table import SimVectorQuantizer, VectorQuantizer

__all__ = [
    "LEARNER",
    "FiniteScalarQuantizer",
    "GridQuantizer",
    "LookupFreeQuantizer",
    "Quantized",
    "Quantizer",
    "ResidualFiniteScalarQuantizer",
    "SimVectorQuantizer",
    "VectorQuantizer",
    "build_quantizer",
]


def build_quantizer(config: QuantizerConfig) -> Quantizer:
    """The module for a configuration."""
    if isinstance(config, FsqQuantizer):
        return FiniteScalarQuantizer(config)
    if isinstance(config, ResidualFsqQuantizer):
        return ResidualFiniteScalarQuantizer(config)
    if isinstance(config, LfqQuantizer):
        return LookupFreeQuantizer(config)
    if isinstance(config, SimVqQuantizer):
        return SimVectorQuantizer(config)
    return VectorQuantizer(config)
