"""An image tokenizer on disk (:mod:`tokkit.tokenizers.folder`)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tokkit.errors import DataError
from tokkit.tokenizers.folder import CONFIG_FILE, IMAGE_FORMAT, FolderFormat
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.tokenizers.image.model import ImageTokenizer, fingerprint

FOLDER = FolderFormat(IMAGE_FORMAT, 1, "an image tokenizer", ImageTokenizerConfig)


def save_image_tokenizer(tokenizer: ImageTokenizer, folder: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, the configuration last. Same tokenizer, same bytes."""
    weights = tokenizer.weights()
    FOLDER.write(folder, tokenizer.config, fingerprint(tokenizer.config, weights), weights)


def read_image_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> ImageTokenizer:
    """Read a tokenizer, ready for ``encode`` and ``decode``.

    Raises:
        DataError: a file is missing, damaged or of another format, or the two do not belong together.
    """
    folder = Path(folder)
    written, config = FOLDER.read_config(folder)
    weights = FOLDER.read_weights(folder, expected_weights(config, folder / CONFIG_FILE))
    FOLDER.check_fingerprint(folder, written, fingerprint(config, weights))
    with torch.random.fork_rng(devices=[]):
        tokenizer = ImageTokenizer(config)
    tokenizer.load_state_dict(weights, strict=False)  # names were compared above
    return tokenizer.to(device).eval().requires_grad_(False)


def expected_weights(config: ImageTokenizerConfig, where: str | Path) -> dict[str, Tensor]:
    """The weights that a configuration asks for, without memory for them: it may claim any size.

    Raises:
        DataError: no network can be like that.
    """
    try:
        with torch.device("meta"):
            return ImageTokenizer(config).state_dict()
    except (RuntimeError, OverflowError) as error:
        raise DataError(f"{where}: no network can have these sizes ({str(error).splitlines()[0]})") from None
