"""Audio tokenizers: waveforms to codes and back.

Importing this package, ``base``, ``config`` or ``presets`` does not import torch; the rest does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tokkit.tokenizers.audio.base import AudioTokenizer


def load_audio_tokenizer(folder: str | Path, device: str | torch.device = "cpu") -> AudioTokenizer:
    """Read an audio tokenizer from its folder, ready for ``encode`` and ``decode``.

    Raises:
        tokkit.errors.DataError: a file is missing, damaged or of another format, or the two do not belong together.
        tokkit.errors.UsageError: the encodec package is not installed.
    """
    from tokkit.tokenizers.audio.storage import read_audio_tokenizer

    return read_audio_tokenizer(folder, device)


def is_audio_tokenizer(folder: str | Path) -> bool:
    """Whether a folder says that it holds an audio tokenizer; nothing else of it is looked at."""
    from tokkit.tokenizers.folder import AUDIO_FORMAT, format_of

    return format_of(Path(folder)) == AUDIO_FORMAT


def save_audio_tokenizer(tokenizer: AudioTokenizer, folder: str | Path) -> None:
    """Write an audio tokenizer as ``config.json`` and ``model.safetensors``; same tokenizer, same bytes."""
    from tokkit.tokenizers.audio.storage import write_audio_tokenizer

    write_audio_tokenizer(tokenizer, folder)
