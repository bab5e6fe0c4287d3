"""Image tokenizers: pixels to a grid of codes and back.

Importing this package, ``config`` or ``presets`` does not import torch; the rest does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tokkit.tokenizers.image.model import ImageTokenizer


def load_image_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """Read an image tokenizer from its folder, ready for ``encode`` and ``decode``.

    Raises:
        tokkit.errors.DataError: a file is missing, damaged or of another format, or the two do not belong together.
    """
    from tokkit.tokenizers.image.storage import read_image_tokenizer

    return read_image_tokenizer(folder, device)
