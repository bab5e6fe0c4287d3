"""A small deterministic stand-in for a frozen encoder, and a corpus's run with it, also as a process of its own.

Pictures are cut into 8 by 8 squares of pixels after a resize to 32 by 32, and each square is projected by a fixed matrix; a
picture that is wider than high is also seen as two tiles, so that items differ in length.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokkit.errors import ItemError
from tokkit.features.base import ItemFeatures, Prepared, View
from tokkit.pipelines.features import FeaturesConfig, features
from tokkit.pipelines.progress import SilentProgress

DIM = 12
MATRIX = np.random.default_rng(5).normal(size=(192, DIM)).astype(np.float32) / 14
FIRST = ("base", "tile", "tile")


class Double:
    """See the module's docstring; ``scale`` multiplies the features, and ``modality`` may be the other."""

    modality: Any = "image"
    dim = DIM
    pooled_dim = DIM
    sample_rate = None

    def __init__(self, scale: float = 1.0) -> None:
        self._scale = scale

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(f"double {self._scale}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        return {"model": "double", "licence": "none", "dim": DIM, "fingerprint": self.fingerprint}

    def prepare(self, media: Image.Image | NDArray[np.float32]) -> Prepared:
        assert isinstance(media, Image.Image)
        if media.width == 13:
            raise ItemError("image-shape", "a width of 13 brings bad luck")
        picture = media.convert("RGB")
        boxes = [(0, 0, *picture.size)]
        if media.width > media.height:
            half = media.width // 2
            boxes += [(0, 0, half, media.height), (half, 0, media.width, media.height)]
        views = [np.asarray(picture.crop(box).resize((32, 32)), dtype=np.float32).transpose(2, 0, 1) / 255 for box in boxes]
        tiles = (1, 2) if len(views) > 1 else None
        made = tuple(View(pixels, FIRST[n], 0, max(0, n - 1)) for n, pixels in enumerate(views))  # type: ignore[arg-type]
        return Prepared(made, media.width, media.height, tiles)

    def encode(self, items: Sequence[Prepared], batch_size: int) -> list[ItemFeatures]:
        return [self._one(item) for item in items]

    def _one(self, item: Prepared) -> ItemFeatures:
        rasters = []
        for view in item.views:
            squares = view.pixels.reshape(3, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4).reshape(16, 192)
            rasters.append((squares @ MATRIX) * np.float32(self._scale))
        tokens = np.concatenate(rasters)
        tiles = tuple((16 * n, 4, 4) for n in range(len(rasters)))
        newlines = np.array([20, 24], dtype=np.int32) if len(rasters) > 1 else None
        grid = (4, 4) if len(rasters) == 1 else None
        return ItemFeatures(tokens, grid, tiles, newlines, pooled=tokens.mean(axis=0), extra={"views": len(rasters)})

    def tokens_of(self, width: int, height: int = 1) -> int:
        return 48 if width > height else 16


class DoubleConfig(FeaturesConfig):
    """A run with the stand-in; ``encoder`` is its scale."""

    def load_encoder(self, device: str) -> Any:
        return Double(float(self.encoder))


def options(corpus: Path, text: Path, out: Path) -> dict[str, Any]:
    """The options that runs over the generated corpus share."""
    return {
        "inputs": [str(corpus / name) for name in ("pairs", "documents", "texts", "audio")],
        "out": out,
        "text_tokenizer": text,
        "encoder": "1",
        "workers": 0,
        "unit_bytes": 6000,
        "shard_bytes": 6000,
        "batch_size": 4,
        "val_fraction": 0.2,
        "pair_order": "random",
        "device": "cpu",
    }


if __name__ == "__main__":
    features(DoubleConfig.model_validate(options(*map(Path, sys.argv[1:4])) | {"workers": int(sys.argv[4])}), SilentProgress())
