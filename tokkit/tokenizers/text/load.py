"""From a path to a text tokenizer."""

from __future__ import annotations

from pathlib import Path

from tokkit.errors import DataError
from tokkit.tokenizers.text.base import TextTokenizer
from tokkit.tokenizers.text.huggingface import HuggingFaceTokenizer
from tokkit.tokenizers.text.spm import SentencePieceTokenizer


def load_text_tokenizer(path: str | Path) -> TextTokenizer:
    """Load a SentencePiece ``.model``, a Hugging Face ``tokenizer.json``, or a folder that holds one of them.

    In a folder with both, ``tokenizer.json`` is taken: it knows the added tokens.

    Raises:
        DataError: there is nothing there, or nothing that is a tokenizer.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist; a text tokenizer is a SentencePiece .model or a Hugging Face tokenizer.json")
    if path.suffix == ".json":
        return HuggingFaceTokenizer(path)
    if path.suffix == ".model":
        return SentencePieceTokenizer(path)
    raise DataError(f"{path} is neither a SentencePiece .model nor a Hugging Face tokenizer.json, by its name")


def _in_folder(folder: Path) -> Path:
    whole = folder / "tokenizer.json"
    if whole.is_file():
        return whole
    models = sorted(folder.glob("*.model"))
    if len(models) == 1:
        return models[0]
    if models:
        raise DataError(f"{folder} holds several models, name one: {', '.join(model.name for model in models)}")
    hint = ""
    if (folder / "vocab.json").is_file():
        hint = "; its vocab.json alone is not enough: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
    raise DataError(f"{folder} holds no tokenizer.json and no .model{hint}")
