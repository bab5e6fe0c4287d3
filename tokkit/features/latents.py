"""Continuous latents of our own image tokenizers: what their quantizer would round, one vector at each place of the grid."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from tokkit.errors import UsageError
from tokkit.features.base import FeatureOptions, Grid, Prepared, RunOptions, View
from tokkit.features.encoder import TowerEncoder
from tokkit.features.preprocessing import normalised
from tokkit.features.resamplers import LearnedResampler
from tokkit.features.tilings import Size
from tokkit.features.towers import LatentTower
from tokkit.media.transforms import Preprocessing
from tokkit.tokenizers.folder import IMAGE_FORMAT, format_of
from tokkit.tokenizers.image import load_image_tokenizer

FOREIGN = ("keep_cls", "layers", "merger", "pad_square", "padding", "pooled", "precision", "tokens")


@dataclass(frozen=True, eq=False)
class LatentPreparer:
    """A tokenizer's own preprocessing. Picklable; needs no model.

    Attributes:
        preprocessing: the tokenizer's.
        levels: float32 ``[3, 256]``: what each byte enters the network as.
    """

    preprocessing: Preprocessing
    levels: NDArray[np.float32]
    tiling: str = "none"

    def grid(self, width: int, height: int) -> Grid | None:
        """A tokenizer takes the whole picture."""
        return None

    def sizes(self, width: int, height: int) -> list[Size]:
        """One square."""
        return [(self.preprocessing.size, self.preprocessing.size)]

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        """An RGB or RGBA picture to its one view."""
        if not isinstance(media, Image.Image):
            raise TypeError(f"expected a picture, not {type(media).__name__}")
        view = View(normalised(self.preprocessing.apply(media), self.levels))
        return Prepared((view,), media.width, media.height)


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds one of our image tokenizers."""
    return format_of(folder) == IMAGE_FORMAT


def latent_encoder(
    folder: Path, options: FeatureOptions, device: torch.device, resampler: LearnedResampler | None, run: RunOptions
) -> TowerEncoder:
    """An encoder for the latents of the tokenizer in a folder; UsageError for options that it does not have."""
    asked = [name for name in FOREIGN if getattr(options, name) != FeatureOptions.model_fields[name].default]
    if options.tiling not in (None, "none"):
        asked.append("tiling")
    if asked:
        raise UsageError(f"{folder}: the latents of an image tokenizer have no {', '.join(asked)}")
    tokenizer = load_image_tokenizer(folder, device)
    about: dict[str, Any] = {
        "name": tokenizer.config.name,
        "licence": tokenizer.config.licence,
        "family": "tokkit-image-tokenizer",
        "weights": tokenizer.fingerprint,
        "layers": [],
    }
    preparer = LatentPreparer(tokenizer.config.preprocessing, tokenizer._normalized.cpu().numpy())
    encoder = tokenizer.encoder
    if run.precision == "fp16":
        encoder = encoder.half()
        if device.type == "cuda":
            encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return TowerEncoder(LatentTower(tokenizer, encoder), preparer, options, about, resampler, run)
