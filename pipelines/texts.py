"""The texts of documents as ids, each with whether it is to be learnt.

Texts, special tokens and media come as :func:`~tokkit.pipelines.assembly.join_texts` leaves them. All texts of a batch go to
the tokenizer at once. What is alike to a trainer and has no media between it becomes one stretch, and so one span.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tokkit.documents import SpecialToken
from tokkit.errors import ItemError
from tokkit.interleave import TextCodes
from tokkit.pipelines.assembly import Answer, Given, Joined, Slot
from tokkit.ragged import split_rows
from tokkit.tokenizers.text import TextTokenizer
from tokkit.vocabulary import Ids


def texts_of(document: Sequence[Joined]) -> list[str]:
    """What the tokenizer is asked for: every text; of an answer what stands before it, and both together."""
    found: list[str] = []
    for part in document:
        if isinstance(part, str):
            found.append(part)
        elif isinstance(part, Answer):
            found += [part.given, part.given + part.text]
    return found


def encode_texts_of(documents: Sequence[Sequence[Joined]], tokenizer: TextTokenizer) -> list[list[TextCodes | Slot]]:
    """The documents with their texts encoded.

    Raises:
        ItemError: a text has no ids, or a special token is none of the tokenizer's.
    """
    if tokenizer.continuing is not tokenizer and any(isinstance(part, SpecialToken) for d in documents for part in d):
        return [list(_stretches(document, iter(_behind(document, tokenizer)), tokenizer)) for document in documents]
    texts = [text for document in documents for text in texts_of(document)]
    rows = iter(split_rows(*tokenizer.encode_joined(texts)) if texts else ())
    return [list(_stretches(document, rows, tokenizer)) for document in documents]


def _behind(document: Sequence[Joined], tokenizer: TextTokenizer) -> list[Ids]:
    """The ids of a document's texts, by a tokenizer for which it matters whether a text is the first of a conversation."""
    if not any(isinstance(part, SpecialToken) for part in document):
        return tokenizer.encode_batch(texts_of(document))
    first, others = texts_of(document[:1]), texts_of(document[1:])
    return [*tokenizer.encode_batch(first), *tokenizer.continuing.encode_batch(others)]


def _stretches(document: Sequence[Joined], rows: Iterator[Ids], tokenizer: TextTokenizer) -> Iterator[TextCodes | Slot]:
    run: list[Ids] = []
    learn = True

    def close() -> Iterator[TextCodes]:
        if run:
            yield TextCodes(run[0] if len(run) == 1 else np.concatenate(run), learn)
            run.clear()

    for part in document:
        if isinstance(part, Slot):
            yield from close()
            yield part
            continue
        for ids, loss in _codes(part, rows, tokenizer):
            if loss != learn:
                yield from close()
                learn = loss
            run.append(ids)
    yield from close()


def _codes(part: str | Answer | SpecialToken, rows: Iterator[Ids], tokenizer: TextTokenizer) -> Iterator[tuple[Ids, bool]]:
    """The ids of a text or special token, in stretches with whether they are to be learnt."""
    if isinstance(part, SpecialToken):
        number = tokenizer.special_ids.get(part.name)
        if number is None:
            raise ItemError("special-token-not-known", f"{part.name!r} is no special token of the text tokenizer")
        yield np.array([number], dtype=np.int32), part.loss
    elif isinstance(part, Answer):
        given, both = next(rows), next(rows)
        shorter = min(len(given), len(both))
        differing = np.flatnonzero(given[:shorter] != both[:shorter])
        border = int(differing[0]) if differing.size else shorter
        yield both[:border], False
        yield both[border:], True
    else:
        yield next(rows), not isinstance(part, Given)
