"""Text tokenizers as a Hugging Face ``tokenizer.json`` that gives their ids to plain text.

A ``tokenizer.json`` is taken as texts are encoded by it here (:mod:`tokkit.tokenizers.text.huggingface`). A SentencePiece model
is written anew, where it is lossless. Its pieces are kept with spaces in them for U+2581, so that no normalizer is needed
and a U+2581 of the text is a character like any other that has no piece: three bytes.

* BPE: SentencePiece joins the two neighbours whose piece has the highest score, the leftmost ones first; the library joins the
  pair of lowest rank. So every way to put a piece together from two others becomes a merge, by the piece's score. Two ways to
  one piece have one score there and two ranks here; that matters only where they compete for the token between them (``aba`` of
  ``ab``, ``a`` and of ``a``, ``ba`` in ``ab a ba``), and :func:`_ways` puts the one first that is leftmost then.
* Unigram: the scores are taken over. SentencePiece adds them up in single precision and the library in double, so that of two
  ways to write a text which are as good as each other it may take another (:func:`tie_test`; seen in one of 1,000 documents).
  The library finds every piece in a text, those of bytes and control symbols too: these get a score that is never the best.

Nothing here is taken on trust: :mod:`tokkit.pipelines.export_tokenizer` compares the two before it lets a file out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tokkit.errors import UsageError
from tokkit.tokenizers.text.base import TextTokenizer
from tokkit.tokenizers.text.huggingface import HuggingFaceTokenizer
from tokkit.tokenizers.text.spmodel import SPACE, PieceType, SpModel, parse_model
from tokkit.tokenizers.text.words import cuts_sentencepiece

_UNIGRAM = 1
_NO_TEXT = (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.UNUSED, PieceType.BYTE)
_WORDS = " *[^ ]+| +"  # no piece of a model that cuts at gaps has a space behind another character

Config = dict[str, Any]


def tokenizer_json(tokenizer: TextTokenizer) -> Config:
    """The content of a ``tokenizer.json`` with the tokenizer's ids, and no more than these.

    Added tokens that no text yields are ``special`` in it, so that the library leaves them out of texts where its
    ``encode_special_tokens`` is set.

    Raises:
        UsageError: a SentencePiece model that is not lossless.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizer.plain_config()
    model = _model_of(tokenizer)
    if not model.lossless:
        raise UsageError(
            f"{tokenizer.path} cannot be written as a tokenizer.json: it normalizes text, adds spaces or has no byte fallback. "
            f"Models by `tokkit train-text` can; of others take the tokenizer.json that was published beside them"
        )
    return _of_unigram(model) if model.model_type == _UNIGRAM else _of_bpe(model)


def tie_test(tokenizer: TextTokenizer) -> Callable[[Sequence[int], Sequence[int]], bool]:
    """What tells whether two ways to write a text are as good as each other, to the precision that a Unigram model of
    SentencePiece adds up with; never, for all other tokenizers."""
    model = _model_of(tokenizer) if tokenizer.kind == "sentencepiece" else None
    if model is None or model.model_type != _UNIGRAM:
        return lambda ours, theirs: False
    pieces = model.pieces

    def is_tie(ours: Sequence[int], theirs: Sequence[int]) -> bool:
        if any(pieces[n].type not in (PieceType.NORMAL, PieceType.BYTE) for n in theirs):
            return False
        ours_sum, theirs_sum = (math.fsum(pieces[n].score for n in ids) for ids in (ours, theirs))
        return abs(ours_sum - theirs_sum) <= 4 * float(np.spacing(np.float32(abs(ours_sum))))

    return is_tie


def _model_of(tokenizer: TextTokenizer) -> SpModel:
    """The model's file, its marker-like symbols made unused, as texts are encoded by it."""
    model = parse_model(tokenizer.path.read_bytes(), str(tokenizer.path))
    return parse_model(model.without_markers(), str(tokenizer.path))


def _of_bpe(model: SpModel) -> Config:
    pieces = _spelled(model)
    merged = sorted(
        (n for n, piece in enumerate(model.pieces) if piece.type is PieceType.NORMAL and len(pieces[n]) > 1),
        key=lambda n: (-model.pieces[n].score, n),
    )
    known = {text for text, piece in zip(pieces, model.pieces, strict=True) if piece.type is PieceType.NORMAL}
    kind = {
        "type": "BPE",
        "dropout": None,
        "unk_token": next((p.text for p in model.pieces if p.type is PieceType.UNKNOWN), None),
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": {text: n for n, text in enumerate(pieces)},
        "merges": [[left, right] for n in merged for left, right in _ways(pieces[n], known)],
    }
    return _config(model, kind, _WORDS if cuts_sentencepiece(model) else None)


def _ways(piece: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """The pairs of pieces that make up a piece, in the order in which they are to be tried.

    Cut ``k`` competes with cut ``len - k`` where the right part of one is the left part of the other. As ``x y z`` with
    ``x + y == y + z`` the first is the leftmost one: its cut is a period of the piece. Where both are, the piece is a repeated
    word, and as runs are joined from the left their longer parts stand on the left.
    """
    length = len(piece)
    cuts = [k for k in range(length - 1, 0, -1) if piece[:k] in known and piece[k:] in known]
    first = [k for k in cuts if piece[k:] == piece[: length - k] and (2 * k >= length or piece[length - k :] != piece[:k])]
    for k in [*first, *(k for k in cuts if k not in first)]:
        yield piece[:k], piece[k:]


def _of_unigram(model: SpModel) -> Config:
    pieces = _spelled(model)
    kinds = [piece.type for piece in model.pieces]
    names = {text for text, kind in zip(pieces, kinds, strict=True) if kind in _NO_TEXT}
    single = {text for text, kind in zip(pieces, kinds, strict=True) if kind not in _NO_TEXT and len(text) == 1}
    lowest = min((piece.score for piece in model.pieces), default=0.0)
    never = (lowest - 1) * (max(map(len, names), default=0) + 1)  # worse than such a name's characters one by one
    vocab = [
        [text, never if kind in _NO_TEXT else piece.score]
        for text, kind, piece in zip(pieces, kinds, model.pieces, strict=True)
    ]
    unknown = next((n for n, kind in enumerate(kinds) if kind is PieceType.UNKNOWN), None)
    # A name with a character that has no piece would be better than that character: so texts are cut there.
    odd = sorted({c for name in names for c in name} - single)
    escaped = "".join(f"\\x{{{ord(c):x}}}" for c in odd)
    return _config(
        model, {"type": "Unigram", "unk_id": unknown, "byte_fallback": True, "vocab": vocab}, f"[{escaped}]" if odd else None
    )


def _config(model: SpModel, kind: Config, cut: str | None) -> Config:
    """The file around a model; ``cut`` is a regular expression of what is a text of its own."""
    added = [
        _added(n, piece.text.replace(SPACE, " "), special=piece.type is not PieceType.USER_DEFINED)
        for n, piece in enumerate(model.pieces)
        if piece.type in (PieceType.UNKNOWN, PieceType.CONTROL, PieceType.USER_DEFINED, PieceType.UNUSED)
    ]
    split = {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": split if cut is not None else None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": kind,
    }


def _spelled(model: SpModel) -> list[str]:
    """Each piece as text; bytes, control symbols and unused pieces by name."""
    return [piece.text.replace(SPACE, " ") for piece in model.pieces]


def _added(number: int, content: str, *, special: bool) -> Config:
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": special,
    }
