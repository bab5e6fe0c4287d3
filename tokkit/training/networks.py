"""Frozen networks that losses look through, read from folders of Hugging Face models; nothing is ever downloaded.

Both take pictures in [-1, 1], bring them to the model's own size and scale, and pass gradients to the pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tokkit.errors import DataError, UsageError
from tokkit.storage import read_json

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LAYERS = 4  # of a backbone that a discriminator looks at


class _Prepared(nn.Module):
    """Pictures in [-1, 1] to what a model was trained on."""

    _mean: Tensor
    _std: Tensor

    def __init__(self, folder: Path) -> None:
        super().__init__()
        path = folder / "preprocessor_config.json"
        described: dict[str, Any] = read_json(path) if path.exists() else {}
        mean, std = described.get("image_mean", IMAGENET_MEAN), described.get("image_std", IMAGENET_STD)
        self.register_buffer("_mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)

    def prepared(self, pictures: Tensor, side: int) -> Tensor:
        """float ``[B, 3, H, W]`` in [-1, 1] to ``[B, 3, side, side]``."""
        values = (pictures.float() / 2 + 0.5 - self._mean) / self._std
        if values.shape[-1] == side and values.shape[-2] == side:
            return values
        return functional.interpolate(values, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


class LogitDistance(_Prepared):
    """Mean squared difference of a classifier's logits (VQGAN+, arXiv:2409.16211, with a ResNet-50).

    Args:
        folder: a model for image classification: ``config.json``, ``model.safetensors``.
    """

    SIDE = 224

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.model = _loaded(folder, "AutoModelForImageClassification")

    def forward(self, original: Tensor, reconstruction: Tensor) -> Tensor:
        """Scalar; ``original`` gets no gradient."""
        with torch.no_grad():
            wanted = self._logits(original)
        return functional.mse_loss(self._logits(reconstruction), wanted)

    def _logits(self, pictures: Tensor) -> Tensor:
        logits: Tensor = self.model(pixel_values=self.prepared(pictures, self.SIDE)).logits.float()
        return logits


class FrozenBackbone(_Prepared):
    """Hidden states of a vision transformer, from four layers spread over its depth.

    Args:
        folder: a model such as DINO or DINOv2: ``config.json``, ``model.safetensors``.
        side: pixels that pictures are brought to, rounded to whole patches; the model's own if not given.
    """

    def __init__(self, folder: Path, side: int | None = None) -> None:
        super().__init__(folder)
        self.model = _loaded(folder, "AutoModel")
        config: Any = self.model.config
        try:
            self.width, depth = int(config.hidden_size), int(config.num_hidden_layers)
            patch = int(config.patch_size)
            own = config.image_size[0] if isinstance(config.image_size, list | tuple) else config.image_size
        except (AttributeError, TypeError) as error:
            raise UsageError(f"{folder}: not a vision transformer with hidden_size, patch_size and layers ({error})") from None
        self.side = max(patch, round((side or int(own)) / patch) * patch)
        self.interpolates = self.side != int(own)
        count = min(LAYERS, depth)
        self.layers = tuple(sorted({round((i + 1) * depth / count) for i in range(count)}))

    def forward(self, pictures: Tensor) -> Sequence[Tensor]:
        """``[B, tokens, width]`` of each layer."""
        options = {"interpolate_pos_encoding": True} if self.interpolates and _takes(self.model) else {}
        out = self.model(pixel_values=self.prepared(pictures, self.side), output_hidden_states=True, **options)
        return [out.hidden_states[layer] for layer in self.layers]


def _takes(model: nn.Module) -> bool:
    import inspect

    return "interpolate_pos_encoding" in inspect.signature(model.forward).parameters


def _loaded(folder: Path, kind: str) -> nn.Module:
    """A frozen model of transformers, from its folder.

    Raises:
        UsageError: transformers is not installed.
        DataError: not such a folder.
    """
    try:
        import transformers
    except ImportError:
        raise UsageError(f"{folder} is read through transformers: pip install 'tokkit[features]'") from None
    if not (folder / "config.json").is_file():
        raise DataError(f"{folder}: no folder of a Hugging Face model (it has no config.json)")
    try:
        with torch.random.fork_rng(devices=[]):
            model = getattr(transformers, kind).from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{folder}: not a model that transformers reads as {kind} ({reason})") from None
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen
