"""A unified vocabulary as a Hugging Face tokenizer: the text tokenizer's file, and a token for each id besides.

Ids are never guessed here either: the library numbers added tokens one after another behind the model's, so every id has a
name, unused ones too, and :func:`check_ids` asks the loaded tokenizer for each of them.

=====================  ====================================  ==========================================================
id                     name                                  of a released model
=====================  ====================================  ==========================================================
marker                 ``<|begin_image|>``                   its own
grid size of n         ``<|grid_n|>``                        (has none)
code n of an image     ``<|image_n|>``                       its own
code n of codebook k   ``<|audio_k_n|>``                     its own
pad of codebook k      ``<|audio_pad_k|>``                   (has none)
unused id n            ``<|unused_n|>``                      its own
=====================  ====================================  ==========================================================

All of these are special tokens. Where the text tokenizer has a token of such a name, all new ones begin ``<|tokkit_``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tokenizers import Tokenizer

from tokkit.errors import DataError
from tokkit.vocabulary import GRID, UnifiedVocabulary

Config = dict[str, Any]
BOS, EOS, PAD = "begin_document", "end_document", "padding"


def unify(config: Config, vocabulary: UnifiedVocabulary, text_size: int) -> Config:
    """A text tokenizer's file with a token for each id of the vocabulary.

    Args:
        config: the file's content; its ids are below ``text_size``.
    """
    model = _without_holes(config["model"], text_size if vocabulary.embedded else 0)
    names = _model_names(model)
    added = {int(token["id"]): token for token in config["added_tokens"]}
    if vocabulary.embedded:
        by_id = {n: name for name, n in names.items()}
        found = {n: by_id[n] for n in vocabulary.claimed.tolist() if n not in added and n in by_id}
    else:
        found = token_names(vocabulary, text_size, {*names, *(str(token["content"]) for token in added.values())})
    new = {n: _special(n, name) for n, name in found.items()}
    return {**config, "model": model, "added_tokens": [token for _, token in sorted((added | new).items())]}


def token_names(vocabulary: UnifiedVocabulary, first: int, taken: Iterable[str] = ()) -> dict[int, str]:
    """The names of the ids from ``first`` on of a vocabulary that was built, none of them one of ``taken``."""
    found = {n: f"unused_{n}" for n in range(first, vocabulary.size)}
    for block in vocabulary.blocks:
        if block.modality == "text":
            continue
        many = len(vocabulary.codebooks(block.modality)) > 1
        head = f"{block.modality}_{block.codebook}_" if many else f"{block.modality}_"
        shift = 1 if block.modality == GRID else 0  # code n stands for a side of n + 1
        found |= {n: f"{head}{code + shift}" for code, n in enumerate(block.ids.tolist())}
    found |= {n: name for name, n in vocabulary.markers.items()}
    used = set(taken)
    head = "" if used.isdisjoint(f"<|{name}|>" for name in found.values()) else "tokkit_"
    return {n: f"<|{head}{name}|>" for n, name in found.items()}


def tokenizer_config(names: dict[str, str]) -> Config:
    """The content of ``tokenizer_config.json``, by the names of markers.

    With ``split_special_tokens`` a text is text, whatever it spells.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens(names),
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def special_tokens(names: dict[str, str]) -> Config:
    """The content of ``special_tokens_map.json``, by the names of markers."""
    roles = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    found: Config = {role: names[marker] for role, marker in roles.items() if marker in names}
    others = [name for marker, name in names.items() if marker not in roles.values()]
    return {**found, "additional_special_tokens": others}


def marker_names(tokenizer: Tokenizer, vocabulary: UnifiedVocabulary) -> dict[str, str]:
    """What each marker is called, in the order of ids."""
    by_id = sorted(vocabulary.markers.items(), key=lambda item: item[1])
    return {marker: str(tokenizer.id_to_token(n)) for marker, n in by_id}


def check_ids(tokenizer: Tokenizer, config: Config, vocabulary: UnifiedVocabulary) -> None:
    """Raise DataError where a loaded tokenizer has other ids than its file and the vocabulary say."""
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    if not vocabulary.embedded and size != vocabulary.size:
        raise DataError(f"the exported tokenizer has {size:,} ids, the vocabulary {vocabulary.size:,}")
    for token in config["added_tokens"]:
        found = tokenizer.token_to_id(token["content"])
        if found != token["id"]:
            raise DataError(f"the exported tokenizer gives {token['content']!r} the id {found}, not {token['id']}")
    special = {token["id"] for token in config["added_tokens"] if token["special"]}
    text = vocabulary.blocks[vocabulary.block_index("text")]
    missing = [n for n in vocabulary.claimed.tolist() if n not in special]
    if not vocabulary.embedded:
        missing = [n for n in range(text.size, vocabulary.size) if n not in special]
    if missing:
        raise DataError(
            f"{len(missing):,} ids of the vocabulary have no special token, {missing[0]} "
            f"({vocabulary.describe(missing[0])}) the first of them"
        )


def embedding(vocabulary: UnifiedVocabulary, text_size: int) -> Config:
    """What a text model's embedding becomes: how many rows it keeps, how many come, and what for."""
    kept = vocabulary.size if vocabulary.embedded else vocabulary.block("text").size
    parts: list[tuple[str, int, int]] = []
    if not vocabulary.embedded:
        parts.append(("markers", min(vocabulary.markers.values()), len(vocabulary.markers)))
        media = [block for block in vocabulary.blocks if block.modality != "text"]
        parts += [("grid sizes" if b.modality == GRID else b.name, int(b.ids[0]), b.size) for b in media]
        used = kept + sum(rows for _, _, rows in parts)
        parts += [("unused", used, vocabulary.size - used)] if used < vocabulary.size else []
    return {
        "rows": vocabulary.size,
        "text_tokenizer_ids": text_size,
        "rows_of_the_text_model": kept,
        "new_rows": vocabulary.size - kept,
        "new": [{"what": what, "first": first, "rows": rows} for what, first, rows in parts],
    }


def _without_holes(model: Config, size: int) -> Config:
    """The model with a name for each id below its highest: the library numbers added tokens by how many there are."""
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab or max(vocab.values()) + 1 == len(vocab):
        return model
    used = set(vocab.values())
    return {**model, "vocab": {**vocab, **{f"<|unused_{n}|>": n for n in range(max(used)) if n not in used}}}


def _model_names(model: Config) -> dict[str, int]:
    vocab = model.get("vocab") or {}
    return dict(vocab) if isinstance(vocab, dict) else {str(entry[0]): n for n, entry in enumerate(vocab)}


def _special(number: int, content: str) -> Config:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": content, **flags}
