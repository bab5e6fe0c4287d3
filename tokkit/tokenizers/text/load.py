"""From a path to a text tokenizer."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Literal

from tokkit.errors import DataError, UsageError
from tokkit.tokenizers.text.base import TextTokenizer
from tokkit.tokenizers.text.huggingface import HuggingFaceTokenizer
from tokkit.tokenizers.text.spm import SentencePieceTokenizer


def load_text_tokenizer(
    path: str | Path, reserved: Collection[int] = (), engine: Literal["library", "gigatoken"] = "library"
) -> TextTokenizer:
    """Load a SentencePiece ``.model``, a Hugging Face ``tokenizer.json``, or a folder that holds one of them.

    Args:
        path: see :func:`text_tokenizer_file`.
        reserved: ids that no text may have, because the vocabulary claims them for markers or media codes.
        engine: what encodes a ``tokenizer.json`` (:mod:`tokkit.tokenizers.text.fast`).

    Raises:
        DataError: there is nothing there, or nothing that is a tokenizer.
        UsageError: the engine is not installed, or not for this tokenizer.
    """
    path = text_tokenizer_file(path)
    stat = path.stat()
    return _loaded(path, tuple(int(n) for n in reserved), engine, (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=2)
def _loaded(path: Path, reserved: tuple[int, ...], engine: str, state: tuple[int, ...]) -> TextTokenizer:
    """The tokenizer of a file in this state; one job asks for the same one several times."""
    if engine == "gigatoken":
        if path.suffix != ".json":
            raise UsageError(f"--text-engine gigatoken is for a Hugging Face tokenizer.json, not for {path}")
        from tokkit.tokenizers.text.fast import GigatokenTokenizer

        return GigatokenTokenizer(path, reserved)
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path, reserved)
    if path.suffix == ".model" and not len(reserved):
        return SentencePieceTokenizer(path)
    if path.suffix == ".model":
        raise DataError(
            f"{path} is a SentencePiece model; a vocabulary that claims text ids needs a Hugging Face tokenizer.json"
        )
    raise DataError(f"{path} is neither a SentencePiece .model nor a Hugging Face tokenizer.json, by its name")


def text_tokenizer_file(path: str | Path) -> Path:
    """The tokenizer's file: ``path`` itself, or the one that it holds as a folder.

    In a folder with several, ``tokenizer.json`` is taken (it knows the added tokens), then Chameleon's ``text_tokenizer.json``.

    Raises:
        DataError: there is nothing there, or the folder holds no tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; a text tokenizer is a SentencePiece .model or a Hugging Face tokenizer.json")
    return path


def _in_folder(folder: Path) -> Path:
    for name in ("tokenizer.json", "text_tokenizer.json"):
        if (folder / name).is_file():
            return folder / name
    models = sorted(folder.glob("*.model"))
    if len(models) == 1:
        return models[0]
    if models:
        raise DataError(f"{folder} holds several models, name one: {', '.join(model.name for model in models)}")
    hint = ""
    if (folder / "vocab.json").is_file():
        hint = "; its vocab.json alone is not enough: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
    raise DataError(f"{folder} holds no tokenizer.json and no .model{hint}")
