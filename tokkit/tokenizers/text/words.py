"""Texts as their words, each encoded once.

Most of a text is words that came before, and encoding them again is most of the time that a tokenizer takes. Where a tokenizer
cannot join what stands on the two sides of a *gap*, a single space between two characters that are no white space, the ids of a
text are the ids of its words one after another, each word with the space before it. So a text is cut at its gaps, known words
are looked up, and the tokenizer is asked for the others only.

Which tokenizers cut at every gap is decided here, by what their files say:

* SentencePiece BPE without normalization (:func:`cuts_sentencepiece`): merges make pieces of the vocabulary only, so where no
  piece has a space behind another character, none reaches across a gap. (Not Unigram: its sums of scores are rounded, so which
  of two segmentations is better may depend on what stands far away.)
* Byte-level BPE of a ``tokenizer.json`` (:func:`cuts_huggingface`): its pre-tokenizer cuts by one of the regular expressions of
  :data:`PATTERNS`, in which every alternative that takes a space behind something else takes only white space there, and BPE
  works within the cuts. NFC, the one normalizer allowed, never composes or reorders across a space.

The look-ahead of the expressions, ``\\s+(?!\\S)``, sees only what follows white space, and in a word white space is always
followed by something else of the word.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Any

import numpy as np

from tokkit.tokenizers.text.base import Ids, Lengths
from tokkit.tokenizers.text.spmodel import SPACE, PieceType, SpModel

MAX_WORDS = 1 << 18  # that are kept, and those of one batch; about 50 MB
MAX_WORD = 64  # characters of a word that is kept
_BPE = 2
_GAP = re.compile(r"(?<=\S)(?= \S)")

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s+(?!\S)|\s+"
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"

# GPT-2 (Radford et al. 2019)
GPT2_EXPRESSIONS = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
    rf"'(?:[sdmt]|ll|ve|re)| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|{_SPACES}",
)
# GPT-4 (cl100k), Llama 3
CL100K_EXPRESSIONS = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",
)
# Qwen 2, 2.5, 3
QWEN_EXPRESSIONS = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|{_SPACES}",
)
# GPT-4o (o200k), Llama 4
O200K_EXPRESSIONS = (
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*"
    rf"{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|{_SPACES}",
)
PATTERNS = frozenset((*GPT2_EXPRESSIONS, *CL100K_EXPRESSIONS, *QWEN_EXPRESSIONS, *O200K_EXPRESSIONS))


def cuts_sentencepiece(model: SpModel) -> bool:
    """Whether a SentencePiece model cuts at every gap."""
    crossing = (
        SPACE in piece.text.replace(" ", SPACE).lstrip(SPACE)
        for piece in model.pieces
        if piece.type in (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)
    )
    return model.lossless and model.model_type == _BPE and not model.suffix_spaces and not any(crossing)


def cuts_huggingface(config: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json``, as texts are encoded by it, cuts at every gap."""
    model, normalizer = config["model"], config.get("normalizer")
    pre_tokenizer = config.get("pre_tokenizer") or {}
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if model.get("type") != "BPE" or (normalizer is not None and normalizer.get("type") != "NFC"):
        return False
    if (
        not isinstance(steps, list)
        or not steps
        or steps[-1].get("type") != "ByteLevel"
        or steps[-1].get("add_prefix_space", True)
    ):
        return False
    if steps[-1].get("use_regex", True):
        return all(step.get("type") == "Digits" for step in steps[:-1])
    return len(steps) == 2 and _is_known_split(steps[0])


def _is_known_split(step: dict[str, Any]) -> bool:
    pattern = step.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    plain = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert", False)
    return plain and regex in PATTERNS


class WordCache:
    """Encodes texts by their words.

    Words are kept in two generations: when the younger one is full, the older one is forgotten, but for what was met again.

    Args:
        encode: gives the ids of several texts, each by itself; called with words that are not known.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Sequence[Sequence[int]]]) -> None:
        self._encode = encode
        self._young: dict[str, bytes] = {}
        self._old: dict[str, bytes] = {}
        self._lock = Lock()  # tokenizers may be used by several threads

    def encode_joined(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Ids and lengths as :meth:`~tokkit.tokenizers.text.base.TextTokenizer.encode_joined` gives them."""
        texts_of_words = [words_of(text) for text in texts]
        with self._lock:
            long = self._learn(texts_of_words)
            get = self._young.__getitem__
            rows = [b"".join(map(get, words)) for words in texts_of_words]
            for word in long:
                del self._young[word]
            if len(self._young) > MAX_WORDS // 2:
                self._young, self._old = {}, self._young
        lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // 4
        return np.frombuffer(b"".join(rows), dtype=np.int32), lengths

    def _learn(self, texts_of_words: list[list[str]]) -> list[str]:
        """Bring all words into the younger generation; returns those that are not to be kept."""
        young, old = self._young, self._old
        unknown = []
        for word in set().union(*texts_of_words):
            if word not in young:
                ids = old.get(word)
                if ids is None:
                    unknown.append(word)
                else:
                    young[word] = ids
        if not unknown:
            return []
        for word, found in zip(unknown, self._encode(unknown), strict=True):
            young[word] = array("i", found).tobytes()
        return [word for word in unknown if len(word) > MAX_WORD]


def words_of(text: str) -> list[str]:
    """A text cut at its gaps: each word but the first with the space before it; they make up the text."""
    return _GAP.split(text)
