"""Hugging Face ``tokenizer.json`` files, made safe.

The library looks for added tokens (``<image>``, ``</s>``) in every text before the model sees it. Here encoding goes through a
copy of the file without them (and without truncation, padding, post-processor and BPE dropout), so that they are text like any
other. Three ways back in remain, and each result is checked against them: a model that holds the special token's spelling in
its own vocabulary (Unigram, WordLevel, ``ignore_merges``), a normalizer that makes one out of something else, and the name
of the unknown token itself. There the text is cut within the offending place and encoded in parts.

Ids that a released model's vocabulary claims for markers and image codes (``reserved``) may stand in the model's own vocabulary
with the merges that lead to them (``IMGIMGAZ``). A text that yields one is encoded anew by a copy of the model without these
tokens, as if the model had never had them; where no other ids spell the same, that is the text's fault, and an ItemError.

Added tokens of nothing but white space (runs of spaces in GPT-NeoX and Phi) are no markers: they stay.

Byte-level BPE without a normalizer is decoded by a table of our own, id -> bytes, which also carries lone surrogates; all other
kinds decode through the library. The byte <-> character map is the one of GPT-2 (Radford et al. 2019).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tokkit.errors import DataError, ItemError
from tokkit.ragged import split_rows
from tokkit.storage import fingerprint_of
from tokkit.tokenizers.text.base import (
    SURROGATES,
    Ids,
    Lengths,
    TextTokenizer,
    check_highest,
    is_plain_utf8,
    joined,
    licence_beside,
    text_of_bytes,
    without_surrogates,
)
from tokkit.tokenizers.text.pairs import PairEncoder, merges_of
from tokkit.tokenizers.text.words import WordCache, cuts_huggingface

# The library's one switch for its thread pool; every worker process encodes for itself, so more threads only fight.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tokenizers import Tokenizer

_SEMANTIC = ("normalizer", "pre_tokenizer", "model")
_CUTTING = ("ByteLevel", "Split", "Digits", "Punctuation")  # pre-tokenizers that only cut, unless they remove
_MOST_PROBES = 256  # of added tokens: a released model has tens of thousands, named alike


class HuggingFaceTokenizer(TextTokenizer):
    """A ``tokenizer.json``. ``lossless`` is what probe strings say, the added tokens' spellings among them.

    Args:
        path: the file.
        reserved: ids that no text may have, besides those of added tokens.

    Raises:
        DataError: the file cannot be read as a tokenizer.
    """

    kind = "huggingface"

    def __init__(self, path: Path, reserved: Collection[int] = ()) -> None:
        super().__init__(path)
        config = self._config()
        self.name = path.parent.resolve().name if path.name == "tokenizer.json" else path.stem
        self._full = _build(config, path)
        self._added = {int(token["id"]): str(token["content"]) for token in config["added_tokens"]}
        self._encoding = _for_encoding(config)
        self._encoder = _build(self._encoding, path)
        self._words = WordCache(self._by_library) if cuts_huggingface(self._encoding) else None
        vocabulary = self._full.get_vocab(with_added_tokens=True)
        check_highest(vocabulary, path)
        _check_added(config["added_tokens"], self._full, path)
        self.vocab_size = max(vocabulary.values()) + 1
        self._forbidden = np.zeros(self.vocab_size, dtype=bool)
        self._forbidden[[n for n in self._added if not self._is_text(n)]] = True
        self.unknown_id, self._unknown = self._unknown_of(config["model"])
        self._reserved = frozenset(int(n) for n in reserved)
        self._forbidden[list(self._reserved)] = True
        if self.unknown_id in self._reserved:
            self.unknown_id, self._unknown = None, ""
        self.fingerprint = fingerprint_of(_semantics(config))
        self.licence = licence_beside(path)
        self._table, self._byte_ids = _byte_level_table(config, vocabulary, self._added)
        if not self._reserved.isdisjoint(self._byte_ids.values()):
            self._table, self._byte_ids = None, {}
        merges = merges_of(self._encoding, self._byte_ids)
        self._pairs = None if merges is None else PairEncoder(self._encoding, merges, self._byte_ids, self._by_words)
        try:
            self.lossless = self._passes_probes(_spread(list(self._added.values())))
        except ItemError:  # a probe cannot be encoded at all; a text like it will say so
            self.lossless = False
        if self.lossless:
            self.unknown_id = None

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, tuple(sorted(self._reserved)))

    def _config(self) -> dict[str, Any]:
        return _read(self.path)

    @cached_property
    def continuing(self) -> TextTokenizer:
        """The same without the space that Metaspace puts before the first text of a sequence only."""
        first = any(step.get("prepend_scheme") == "first" for step in _pre_tokenizers(self._encoding))
        return _ContinuingTokenizer(self.path, self._reserved) if first else self

    @cached_property
    def _careful(self) -> Tokenizer:
        """For texts that may hold what is no text: the encoder, without the reserved tokens."""
        if not self._reserved:
            return self._encoder
        return _build(_without(self._encoding, self._reserved), self.path)

    @cached_property
    def special_ids(self) -> dict[str, int]:
        """Added tokens that no text has, but for those that are reserved."""
        return {
            name: number for number, name in self._added.items() if self._forbidden[number] and number not in self._reserved
        }

    def _is_text(self, number: int) -> bool:
        """Whether plain text may yield this added token: white space, or a single character of the model's own."""
        content = self._added[number]
        if content.isspace():
            return self._encoder.token_to_id(content) == number
        return len(content) == 1 and number in self._encoder.encode(content, add_special_tokens=False).ids

    def _unknown_of(self, model: dict[str, Any]) -> tuple[int | None, str]:
        number, content = model.get("unk_id"), model.get("unk_token")
        if isinstance(number, int):
            content = self._full.id_to_token(number)
        elif isinstance(content, str):
            number = self._full.token_to_id(content)
        if number is None or content is None:
            return None, ""
        self._forbidden[number] = False  # what has no other id may have this one
        return number, content

    def encode_joined(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Encode several texts.

        Raises:
            ItemError: the tokenizer has no ids for one of the texts but such as no text may have, or none at all.
        """
        odd = [n for n, text in enumerate(texts) if not is_plain_utf8(text)]
        given = [without_surrogates(text) for text in texts] if odd else texts
        ids, lengths = self._by_words(given) if self._pairs is None else self._pairs.encode_joined(given)
        again = set(odd) if self._byte_ids else set()
        if not again and self._is_clean(ids):
            return ids, lengths
        rows: list[Sequence[int] | Ids] = list(split_rows(ids, lengths))
        for n, row in enumerate(rows):
            if n in again:
                rows[n] = self._encode_odd(texts[n])
            elif not self._is_clean(np.asarray(row)):
                rows[n] = self._encode_slowly(given[n])
        return joined(rows)

    def _by_words(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """The library's ids of texts without surrogates, word by word where that gives the same."""
        return joined(self._by_library(texts)) if self._words is None else self._words.encode_joined(texts)

    def _by_library(self, texts: Sequence[str]) -> list[list[int]]:
        """The library's ids of texts without surrogates."""
        try:
            return [found.ids for found in self._encoder.encode_batch_fast(texts, add_special_tokens=False)]
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises plain Exception, and on its own faults a BaseException
            raise self._unencodable(str(error)) from None

    def _unencodable(self, why: str) -> ItemError:
        return ItemError("text-not-encodable", f"{self.path.name}: {why}")

    def _is_clean(self, ids: Ids) -> bool:
        """Whether no id needs a second look: a special one, or the unknown one, which may be real or spelled out."""
        return not self._forbidden[ids].any() and not (self.unknown_id is not None and (ids == self.unknown_id).any())

    def _encode_odd(self, text: str) -> list[int]:
        """Text with lone surrogates, which become the tokens of their bytes."""
        ids: list[int] = []
        place = 0
        for match in SURROGATES.finditer(text):
            ids += self._encode_slowly(text[place : match.start()])
            ids += [self._byte_ids[byte] for byte in match.group().encode("utf-8", "surrogatepass")]
            place = match.end()
        return ids + self._encode_slowly(text[place:])

    def _encode_slowly(self, text: str) -> list[int]:
        """Encode a text that may yield ids which no text may have."""
        if not self._reserved:
            return self._encode_cut(text, self._encoder)
        plain = self._encoder.encode(text, add_special_tokens=False).ids
        taken = next((n for n in plain if n in self._reserved), None)
        if taken is None:
            return self._encode_cut(text, self._encoder)
        try:
            other = self._careful.encode(text, add_special_tokens=False).ids
        except Exception:  # the library raises plain Exception; here it has no ids for what is left
            other = []
        if self._spelling(other) != self._spelling(plain):
            raise self._unencodable(
                f"{self._full.id_to_token(taken)!r} can only be written as the id {taken}, which is no text"
            )
        return self._encode_cut(text, self._careful)

    def _spelling(self, ids: Sequence[int]) -> str:
        """What ids spell; of tokenizers that put spaces between their tokens, without these."""
        return (
            self.decode(ids) if self._table is not None else "".join(self._full.decode(ids, skip_special_tokens=False).split())
        )

    def _encode_cut(self, text: str, encoder: Tokenizer) -> list[int]:
        """Encode; where that gives a special token, cut the text within its spelling and encode the parts."""
        found = encoder.encode(text, add_special_tokens=False)
        cuts = set()
        for number, (start, stop) in zip(found.ids, found.offsets, strict=True):
            spelled = number == self.unknown_id and self._spells_unknown(text[start:stop])
            if not spelled and not self._forbidden[number]:
                continue
            if stop - start < 2:
                name = self._full.id_to_token(number)
                raise self._unencodable(f"{text[start:stop]!r} has the id {number} of {name!r}, which no text may have")
            at = text.find(self._unknown, start, stop) if spelled else -1
            cuts.add(at + len(self._unknown) // 2 if at >= 0 else (start + stop) // 2)
        if not cuts:
            return list(found.ids)
        return [n for a, b in pairwise([0, *sorted(cuts), len(text)]) for n in self._encode_cut(text[a:b], encoder)]

    def _spells_unknown(self, span: str) -> bool:
        normalizer = self._encoder.normalizer
        normal = span if normalizer is None else normalizer.normalize_str(span)
        return len(self._unknown) > 1 and (self._unknown in span or self._unknown in normal)

    def plain_config(self) -> dict[str, Any]:
        """The content of a ``tokenizer.json`` that gives these ids to texts, as far as the library itself can.

        Nothing is added to texts, cut or left to chance. Added tokens but white space are ``special``, so that the library's
        ``encode_special_tokens`` keeps them out of texts; no merge leads to an id that no text may have.
        """
        config = _read(self.path)
        kept = [t for t in config["added_tokens"] if _is_blank(t) or self._forbidden[int(t["id"])]]
        added = [{**t, "special": not _is_blank(t)} for t in kept]
        gone = {name for name, n in self._encoder.get_vocab().items() if self._forbidden[n] and len(name) > 1}
        model = dict(self._encoding["model"])
        if model.get("merges") and model.get("type") == "BPE":
            prefix = model.get("continuing_subword_prefix") or ""
            model["merges"] = [m for m in model["merges"] if not gone & _tokens_of_merge(m, prefix)]
        return {**self._encoding, "model": model, "added_tokens": added}

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids; special tokens give their spelling."""
        checked = self._checked(ids)
        if self._table is not None:
            table = self._table
            return text_of_bytes(b"".join([table[number] for number in checked]))
        return self._full.decode(checked, skip_special_tokens=False)


class _ContinuingTokenizer(HuggingFaceTokenizer):
    """See :attr:`HuggingFaceTokenizer.continuing`."""

    def _config(self) -> dict[str, Any]:
        config = _read(self.path)
        for step in _pre_tokenizers(config):
            if step.get("prepend_scheme") == "first":
                step["prepend_scheme"] = "never"
        return config


def _pre_tokenizers(config: dict[str, Any]) -> list[dict[str, Any]]:
    """The steps of a file's pre-tokenizer."""
    whole = config.get("pre_tokenizer") or {}
    return list(whole.get("pretokenizers", [whole]))


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model"), dict):
        raise DataError(f"{path} is not a Hugging Face tokenizer.json: it has no 'model'")
    if not isinstance(config.setdefault("added_tokens", []), list):
        raise DataError(f"{path} is not a Hugging Face tokenizer.json: its 'added_tokens' are no list")
    return config


def _build(config: dict[str, Any], path: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str(json.dumps(config))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises plain Exception, and on its own faults a BaseException
        raise DataError(f"{path} cannot be loaded by the tokenizers library: {error}") from None


def _check_added(tokens: list[Any], loaded: Tokenizer, path: Path) -> None:
    """Raise DataError where the library gives an added token another id than the file says: which was meant is not known."""
    for token in tokens:
        found = loaded.token_to_id(str(token["content"]))
        if found != int(token["id"]):
            raise DataError(
                f"{path} is damaged: the added token {token['content']!r} has the id {token['id']} there, and the tokenizers "
                f"library gives it {found}"
            )


def _is_blank(token: dict[str, Any]) -> bool:
    return str(token["content"]).isspace() and not token.get("special", False)


def _for_encoding(config: dict[str, Any]) -> dict[str, Any]:
    """The file as texts are encoded by it: no added tokens but white space, nothing added, cut, padded or left to chance."""
    model = {**config["model"], "dropout": None} if "dropout" in config["model"] else config["model"]
    kept = []
    if any(_is_blank(token) for token in config["added_tokens"]):
        # The library numbers those that its model lacks one after another, so none of them may be missing.
        base = _base_vocabulary(model)
        extra = [token for token in config["added_tokens"] if _is_blank(token) or token["content"] not in base]
        kept = [token if _is_blank(token) else _unmatched(token) for token in extra]
    return {**config, "added_tokens": kept, "model": model, "truncation": None, "padding": None, "post_processor": None}


def _unmatched(token: dict[str, Any]) -> dict[str, Any]:
    """The added token under a name that no sane text holds; where one does, the check after encoding sees it."""
    return {**token, "content": _unmatchable(token["id"]), "normalized": False}


def _without(config: dict[str, Any], reserved: Collection[int]) -> dict[str, Any]:
    """The file with its model's tokens of these ids under names that no sane text holds, and without merges that need them.

    Tokens of one character stay where they are built from characters: what else could write them? The check after encoding
    sees them.
    """
    model = dict(config["model"])
    vocabulary = model.get("vocab") or {}
    if not isinstance(vocabulary, dict):  # Unigram: [piece, score] by id
        model["vocab"] = [[_unmatchable(n), e[1]] if n in reserved else e for n, e in enumerate(vocabulary)]
        return {**config, "model": model}
    shortest = 2 if model.get("type") == "BPE" else 0
    gone = {name for name, number in vocabulary.items() if number in reserved and len(name) >= shortest}
    model["vocab"] = {_unmatchable(n) if name in gone else name: n for name, n in vocabulary.items()}
    if model.get("merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [m for m in model["merges"] if not gone & _tokens_of_merge(m, prefix)]
    return {**config, "model": model}


def _unmatchable(number: int) -> str:
    return f"\ufdd0{number}\ufdd1"


def _tokens_of_merge(merge: str | list[str], prefix: str) -> set[str]:
    """The two tokens that a merge joins and the one it makes."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return {left, right, left + right.removeprefix(prefix)}


def _spread(entries: list[str]) -> list[str]:
    """At most :data:`_MOST_PROBES` of the entries, evenly spread, the first and the last among them."""
    if len(entries) <= _MOST_PROBES:
        return entries
    return [entries[int(n)] for n in np.linspace(0, len(entries) - 1, _MOST_PROBES)]


def _base_vocabulary(model: dict[str, Any]) -> set[str]:
    vocabulary = model.get("vocab") or {}
    return set(vocabulary) if isinstance(vocabulary, dict) else {str(entry[0]) for entry in vocabulary}


def _semantics(config: dict[str, Any]) -> dict[str, object]:
    added = sorted((int(token["id"]), str(token["content"])) for token in config["added_tokens"])
    plain = _for_encoding(config)
    return {"tokkit": "huggingface 1", "added": added, **{key: plain.get(key) for key in _SEMANTIC}}


def _byte_characters() -> dict[str, int]:
    """GPT-2's characters for the 256 bytes: printable Latin-1 stands for itself, the rest follows from U+0100 on."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in own]
    return {**{chr(byte): byte for byte in own}, **{chr(0x100 + n): byte for n, byte in enumerate(others)}}


def _byte_level_table(
    config: dict[str, Any], vocabulary: dict[str, int], added: dict[int, str]
) -> tuple[list[bytes] | None, dict[int, int]]:
    """What each id stands for and the id of each byte, or None and nothing where it is not plain byte-level BPE."""
    characters = _byte_characters()
    model, steps = config["model"], _steps(config.get("pre_tokenizer"), "pretokenizers")
    byte_level = [step for step in steps if step.get("type") == "ByteLevel"]
    plain = (
        config.get("normalizer") is None
        and model.get("type") == "BPE"
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and len(byte_level) == 1
        and not byte_level[0].get("add_prefix_space", True)
        and all(step.get("type") in _CUTTING and step.get("behavior") != "Removed" for step in steps)
        and [step.get("type") for step in _steps(config.get("decoder"), "decoders")] == ["ByteLevel"]
        and all(c in vocabulary and vocabulary[c] not in added for c in characters)
    )
    if not plain:
        return None, {}
    table = [b""] * (max(vocabulary.values()) + 1)
    as_latin = {ord(c): chr(byte) for c, byte in characters.items()}
    for token, number in vocabulary.items():
        if number in added or not characters.keys() >= set(token):
            table[number] = added.get(number, token).encode("utf-8", "surrogatepass")
        else:
            table[number] = token.translate(as_latin).encode("latin-1")
    return table, {byte: vocabulary[c] for c, byte in characters.items()}


def _steps(part: dict[str, Any] | None, plural: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    steps: list[dict[str, Any]] = part.get(plural, []) if part.get("type") == "Sequence" else [part]
    return steps
