"""The text towers of CLIP and SigLIP: texts to embeddings in the space that they share with pictures, for retrieval.

Each text is cut or padded to the tower's own length, so every batch has one shape. Names of special tokens in a text are text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokkit.errors import DataError, UsageError
from tokkit.features.checkpoints import licence_of, load_part, quiet, read_config, resolve, weights_digest
from tokkit.features.slots import steady
from tokkit.features.towers import unit_length
from tokkit.hub import name_of
from tokkit.storage import fingerprint_of

CODE_VERSION = 1
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "spiece.model", "tokenizer.model")


class TextEncoder:
    """A text tower with its tokenizer (:func:`load_text_encoder`).

    Attributes:
        dim: of an embedding.
        length: tokens of a text, special ones included; what is longer is cut.
    """

    def __init__(self, model: Any, tokenizer: Any, length: int, dim: int, about: dict[str, Any], *, masked: bool) -> None:
        self._model, self._tokenizer, self._about, self._masked = model, tokenizer, about, masked
        self.length, self.dim = length, dim
        self._device = next(model.parameters()).device
        self._steady: dict[int, int] = {}
        identity = {key: value for key, value in about.items() if key not in ("name", "licence")}
        self.fingerprint = fingerprint_of({**identity, "code": CODE_VERSION, "length": length})

    def describe(self) -> dict[str, Any]:
        """For a manifest, as JSON."""
        return {**self._about, "dim": self.dim, "length": self.length, "fingerprint": self.fingerprint}

    def truncated(self, texts: Sequence[str]) -> NDArray[np.bool_]:
        """Which texts are longer than the tower takes."""
        found = self._tokenizer(list(texts), split_special_tokens=True)["input_ids"]
        return np.array([len(ids) > self.length for ids in found], bool)

    @torch.no_grad()
    def encode(self, texts: Sequence[str], batch_size: int) -> NDArray[np.float32]:
        """float32 ``[texts, dim]``, of length 1, in batches of fixed shape as :class:`TowerEncoder` has them."""
        out = np.empty((len(texts), self.dim), np.float32)
        if batch_size not in self._steady:
            ids = torch.randint(1, 40, (1, self.length), generator=torch.Generator().manual_seed(0))
            self._steady[batch_size] = steady(
                lambda n: [self._embedded(ids.repeat(n, 1), torch.ones_like(ids).repeat(n, 1))], batch_size
            )
        batch_size = self._steady[batch_size]
        for start in range(0, len(texts), batch_size):
            chunk = list(texts[start : start + batch_size])
            found = self._tokenizer(
                chunk + [""] * (batch_size - len(chunk)),
                padding="max_length",
                truncation=True,
                max_length=self.length,
                split_special_tokens=True,
                return_attention_mask=True,
                return_tensors="pt",
            )
            out[start : start + len(chunk)] = self._embedded(found["input_ids"], found["attention_mask"])[: len(chunk)].numpy()
        return out

    def _embedded(self, ids: Tensor, mask: Tensor) -> Tensor:
        inputs = {"input_ids": ids.to(self._device)} | ({"attention_mask": mask.to(self._device)} if self._masked else {})
        with torch.autocast(self._device.type, enabled=False):
            output = self._model(**inputs)
        vectors = output.text_embeds if hasattr(output, "text_embeds") else output.pooler_output
        return unit_length(vectors).cpu()


def load_text_encoder(source: str | Path, *, device: str | torch.device = "cpu", allow_download: bool = False) -> TextEncoder:
    """The text tower of a CLIP or SigLIP folder, with the folder's own tokenizer.

    Raises:
        UsageError: no such folder, or its model has no text tower that is known here.
        DataError: a file is missing or damaged.
    """
    folder = resolve(source, allow_download)
    config = read_config(folder)
    import transformers

    kinds = {
        "clip": transformers.CLIPTextModelWithProjection,
        "siglip": transformers.SiglipTextModel,
        "siglip2": transformers.Siglip2TextModel,
    }
    if config.model_type not in kinds:
        raise UsageError(f"{source}: a {config.model_type} model has no text tower for retrieval; known are {', '.join(kinds)}")
    text = config.text_config
    model = load_part(folder, kinds[config.model_type], text)
    digest = weights_digest(model)
    clip = config.model_type == "clip"
    tokenizer, tokenizer_digest = _tokenizer(folder)
    about = {
        "name": name_of(source, folder),
        "licence": licence_of(folder),
        "family": f"{config.model_type}-text",
        "weights": digest,
        "tokenizer": tokenizer_digest,
    }
    dim = text.projection_dim if clip else getattr(text, "projection_size", None) or text.hidden_size
    # CLIP masks padding, which stands behind the end that it is read off at; SigLIP was trained to see its padding.
    return TextEncoder(model.to(device), tokenizer, text.max_position_embeddings, dim, about, masked=clip)


def _tokenizer(folder: Path) -> tuple[Any, str]:
    """The tokenizer of a folder, and the SHA-256 of its files. transformers makes an empty one where there are none."""
    from transformers import AutoTokenizer

    files = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not any(path.suffix == ".model" or path.name in ("tokenizer.json", "vocab.json") for path in files):
        raise DataError(f"{folder}: has no tokenizer; a text tower needs the one that it was trained with")
    try:
        with quiet():
            found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever the tokenizer's files hold
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{folder}: its tokenizer cannot be read: {reason}") from None
    if found.pad_token_id is None:
        raise DataError(f"{folder}: its tokenizer names no padding token")
    return found, fingerprint_of({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files})
