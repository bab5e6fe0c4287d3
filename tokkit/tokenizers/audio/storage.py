"""An audio tokenizer on disk (:mod:`tokkit.tokenizers.folder`): fused weights, and all codebooks as one tensor."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tokkit.errors import DataError
from tokkit.tokenizers.audio.base import AudioTokenizer
from tokkit.tokenizers.audio.config import AudioTokenizerConfig
from tokkit.tokenizers.audio.model import EncodecTokenizer
from tokkit.tokenizers.folder import AUDIO_FORMAT, CONFIG_FILE, FolderFormat, fingerprint_of_weights

FOLDER = FolderFormat(AUDIO_FORMAT, 1, "an audio tokenizer", AudioTokenizerConfig)


def write_audio_tokenizer(tokenizer: AudioTokenizer, folder: str | Path) -> None:
    """Write a tokenizer; each file appears whole or not at all, the configuration last. Same tokenizer, same bytes.

    Raises:
        DataError: codebooks that were never trained.
    """
    if not isinstance(tokenizer, EncodecTokenizer):
        raise TypeError(f"no way to store a {type(tokenizer).__name__}")
    tokenizer.check_books()
    weights = tokenizer.weights()
    FOLDER.write(folder, tokenizer.config, fingerprint_of_weights(tokenizer.config.identity(), weights), weights)


def read_audio_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> EncodecTokenizer:
    """Read a tokenizer, ready for ``encode`` and ``decode``.

    Raises:
        DataError: a file is missing, damaged or of another format, or the two do not belong together.
        UsageError: the encodec package is not installed.
    """
    folder = Path(folder)
    written, config = FOLDER.read_config(folder)
    weights = FOLDER.read_weights(folder, expected_weights(config, str(folder / CONFIG_FILE)))
    FOLDER.check_fingerprint(folder, written, fingerprint_of_weights(config.identity(), weights))
    with torch.random.fork_rng(devices=[]):
        tokenizer = EncodecTokenizer(config)
    tokenizer.load_weights(weights)
    return tokenizer.to(device)


def expected_weights(config: AudioTokenizerConfig, where: str) -> dict[str, Tensor]:
    """The weights that a configuration asks for, without memory for them: it may claim any size.

    Raises:
        DataError: no network can be like that.
    """
    try:
        with torch.device("meta"):
            return EncodecTokenizer(config).shapes()
    except (RuntimeError, OverflowError, MemoryError) as error:
        raise DataError(f"{where}: no network can have these sizes ({str(error).splitlines()[0]})") from None
