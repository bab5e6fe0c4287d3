"""A ``tokenizer.json`` through gigatoken, many times as fast as the tokenizers library, and checked against it all the time.

gigatoken promises equal ids but does not have them for every model, so nothing is taken on trust. Asked for by name
(``--text-engine gigatoken``), it is given the file as texts are encoded by it (no added tokens: see
:mod:`tokkit.tokenizers.text.huggingface`), and the library itself encodes

* every text that is odd: lone surrogates, or ids that no text may have;
* the first ``CHECKED_FIRST`` texts of every process, and of all others those whose CRC-32 is a multiple of ``CHECKED_ONE_IN``.

The first difference is an error that stops the run; no text is ever left with ids that were seen to differ. Which texts are
checked depends on the texts alone beyond the first ones, and the ids do not depend on it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokkit.errors import TokkitError, UsageError
from tokkit.ragged import split_rows
from tokkit.tokenizers.text.base import Ids, Lengths, is_plain_utf8, joined
from tokkit.tokenizers.text.huggingface import HuggingFaceTokenizer

CHECKED_FIRST = 256
CHECKED_ONE_IN = 256


class EngineMismatchError(TokkitError):
    """A fast engine gave other ids than the library."""


class GigatokenTokenizer(HuggingFaceTokenizer):
    """A ``tokenizer.json`` with ids by gigatoken.

    Args:
        path: the file.
        reserved: ids that no text may have, besides those of added tokens.

    Raises:
        DataError: the file cannot be read as a tokenizer.
        UsageError: gigatoken is not installed, or does not know this kind of model.
    """

    def __init__(self, path: Path, reserved: Collection[int] = ()) -> None:
        self._fast: Any = None  # the probes of super() are for the library
        super().__init__(path, reserved)
        self._pairs = None  # what it is checked against is the library
        self._fast = _load(json.dumps(self._encoding), path)
        self._until_rare = CHECKED_FIRST

    def encode_joined(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Encode several texts.

        Raises:
            ItemError: the tokenizer has no ids for one of the texts but such as no text may have, or none at all.
            EngineMismatchError: gigatoken's ids differ from the library's.
        """
        if self._fast is None:
            return super().encode_joined(texts)
        odd = {n for n, text in enumerate(texts) if not is_plain_utf8(text)}
        given = [text for n, text in enumerate(texts) if n not in odd] if odd else texts
        found = [self._fast.encode(text) for text in given]  # one by one: its batches load awkward and pandas to be returned
        ids, lengths = joined(found)
        if not odd and self._is_clean(ids):
            checked = [n for n, text in enumerate(texts) if self._is_checked(text)]
            for n, right in zip(checked, self._checks([texts[n] for n in checked]), strict=True):
                self._compare(texts[n], found[n], right)
            return ids, lengths
        return joined(self._one_by_one(texts, odd, found))

    def _one_by_one(self, texts: Sequence[str], odd: set[int], found: Sequence[Ids]) -> list[Ids]:
        """The rows of a batch some of whose texts are for the library alone."""
        plain = iter(found)
        rows: list[Ids | None] = [None if n in odd else next(plain) for n in range(len(texts))]
        trusted = [row is not None and self._is_clean(row) for row in rows]
        slow = [n for n, text in enumerate(texts) if not trusted[n] or self._is_checked(text)]
        for n, right in zip(slow, self._checks([texts[n] for n in slow]), strict=True):
            if trusted[n]:
                self._compare(texts[n], rows[n], right)
            rows[n] = right
        return [row for row in rows if row is not None]

    def _checks(self, texts: Sequence[str]) -> list[Ids]:
        """What the library says."""
        return split_rows(*super().encode_joined(texts))

    def _compare(self, text: str, found: Ids | None, right: Ids) -> None:
        if found is not None and not np.array_equal(found, right):
            raise EngineMismatchError(_difference(self.path, text, found, right))

    def _is_checked(self, text: str) -> bool:
        if self._until_rare > 0:
            self._until_rare -= 1
            return True
        return zlib.crc32(text.encode("utf-8", "surrogatepass")) % CHECKED_ONE_IN == 0


def _load(config: str, path: Path) -> Any:
    try:
        from gigatoken import Tokenizer
    except ImportError:
        raise UsageError("--text-engine gigatoken: it is not installed; pip install 'tokkit[fast]'") from None
    try:
        return Tokenizer.from_json(config)
    except Exception as error:  # it raises several kinds for what it does not know
        raise UsageError(f"--text-engine gigatoken does not know {path}: {error}; leave the option out") from None


def _difference(path: Path, text: str, found: Ids, right: Ids) -> str:
    common = min(len(found), len(right))
    differ = np.flatnonzero(found[:common] != right[:common])
    at = int(differ[0]) if differ.size else common
    theirs, ours = (ids[at] if at < len(ids) else "none" for ids in (found, right))
    return (
        f"gigatoken gives other ids than the library for {path}: at token {at} {theirs}, not {ours}, in a text that begins "
        f"{text[:80]!r}. Run without --text-engine; units committed so far were not seen to differ, but start over to be sure"
    )
