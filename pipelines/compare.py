"""Comparing a document's stored tokens and row with what encoding it again gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from tokkit.pipelines.findings import Agreement, Code, VerifyResult
from tokkit.shards.native import DOCUMENT_SCHEMA
from tokkit.vocabulary import Ids, UnifiedVocabulary

MEDIA = ("image", "audio", "video")


@dataclass(frozen=True, eq=False)
class Encoded:
    """A document's ids, and its row of the document table."""

    ids: Ids
    row: dict[str, Any]


class Tally:
    """Compares documents one by one, and adds up.

    Args:
        vocabulary: of the output.
        result: takes the problems.
    """

    def __init__(self, vocabulary: UnifiedVocabulary, result: VerifyResult) -> None:
        self._vocabulary, self._result = vocabulary, result
        self.documents = 0
        self._tokens = self._codes = self._equal = self._exact = 0
        self._lowest: tuple[float, str] = (1.0, "")

    def compare(self, name: str, stored: Encoded, again: Encoded, *, exact: bool) -> None:
        """Compare a document.

        Args:
            name: for messages.
            exact: whether both were encoded in one numeric environment, so that media codes must be equal too.
        """
        self.documents += 1
        self._exact += exact
        self._tokens += len(stored.ids)
        for column in DOCUMENT_SCHEMA.names:
            if column not in ("spans", "tokens") and stored.row[column] != again.row[column]:
                there, here = _shown(stored.row[column]), _shown(again.row[column])
                self._problem(name, f"its {column} is {there}, encoded again {here}")
        spans, spans_again = stored.row["spans"], again.row["spans"]
        for place in range(max(len(spans), len(spans_again))):
            pair = [s[place] if place < len(s) else None for s in (spans, spans_again)]
            if pair[0] != pair[1]:
                self._problem(name, f"its span {place} is {_span(pair[0])}, encoded again {_span(pair[1])}")
                break
        media = is_media(self._vocabulary, stored.ids)
        if len(stored.ids) != len(again.ids):
            shorter = min(len(stored.ids), len(again.ids))
            wrong = np.flatnonzero(stored.ids[:shorter] != again.ids[:shorter])
            at = int(wrong[0]) if wrong.size else shorter
            lengths = f"{len(stored.ids)} tokens, encoded again {len(again.ids)}"
            self._problem(name, f"has {lengths}; the first difference is at token {at}: {self._tokens_at(stored, again, at)}")
            return
        wrong = np.flatnonzero(stored.ids != again.ids)
        codes, lost = int(media.sum()), int(media[wrong].sum())
        self._codes, self._equal = self._codes + codes, self._equal + codes - lost
        if codes and 1 - lost / codes < self._lowest[0]:
            self._lowest = 1 - lost / codes, name
        # Elsewhere codes may come out otherwise, but only as codes of the same codebook.
        owners = self._vocabulary.owners(stored.ids[wrong]), self._vocabulary.owners(again.ids[wrong])
        rounding = media[wrong] & (owners[0] == owners[1])
        failed = wrong if exact else wrong[~rounding]
        if failed.size:
            at = int(failed[0])
            message = f"{failed.size} of {len(stored.ids)} tokens differ"
            self._problem(name, f"{message}, the first is token {at}: {self._tokens_at(stored, again, at)}")

    def agreement(self, units: int, read: int, differences: list[str]) -> Agreement:
        """What it all came to."""
        return Agreement(
            documents=self.documents,
            tokens=self._tokens,
            codes=self._codes,
            equal_codes=self._equal,
            lowest=self._lowest[0],
            lowest_document=self._lowest[1],
            units_read=units,
            unit_bytes=read,
            exact=self._exact,
            differences=differences,
        )

    def _tokens_at(self, stored: Encoded, again: Encoded, at: int) -> str:
        there, here = (self._vocabulary.describe(int(e.ids[at])) if at < len(e.ids) else "the end" for e in (stored, again))
        return f"{there} in the shards, {here} encoded again"

    def _problem(self, name: str, message: str) -> None:
        self._result.problem(Code.REENCODE, name, message)


def is_media(vocabulary: UnifiedVocabulary, ids: Ids) -> npt.NDArray[np.bool_]:
    """Which ids are codes of media."""
    media = [i for i, block in enumerate(vocabulary.blocks) if block.modality in MEDIA]
    return np.isin(vocabulary.owners(ids), media)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _span(span: dict[str, Any] | None) -> str:
    if span is None:
        return "not there"
    shape = f" {span['codebooks']} x {span['grid_height']} x {span['grid_width']}" if span["modality"] == "image" else ""
    source = f" of {span['item_hash'][:8]}" if span["item_hash"] else ""
    return f"{span['modality']}{shape}{source} at {span['start']}, {span['length']} tokens"
