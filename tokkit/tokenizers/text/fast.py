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
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tokkit.errors import TokkitError, UsageError
from tokkit.tokenizers.text.base import Ids, is_plain_utf8
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
        self._fast = _load(json.dumps(self._encoding), path)
        self._until_rare = CHECKED_FIRST

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Encode several texts; int32 each.

        Raises:
            ItemError: the tokenizer has no ids for one of the texts but such as no text may have, or none at all.
            EngineMismatchError: gigatoken's ids differ from the library's.
        """
        if self._fast is None:
            return super().encode_batch(texts)
        plain = [n for n, text in enumerate(texts) if is_plain_utf8(text)]
        rows: list[Ids | None] = [None] * len(texts)
        everything, offsets = _arrays(self._fast.encode_batch([texts[n] for n in plain], parallel=False))
        clean = self._is_clean(everything)
        for n, (first, stop) in zip(plain, pairwise(offsets), strict=True):
            ids = everything[first:stop]
            if clean or self._is_clean(ids):
                rows[n] = ids
        slow = [n for n, row in enumerate(rows) if row is None or self._is_checked(texts[n])]
        right = super().encode_batch([texts[n] for n in slow]) if slow else []
        for n, ids in zip(slow, right, strict=True):
            found = rows[n]
            if found is not None and not np.array_equal(found, ids):
                raise EngineMismatchError(_difference(self.path, texts[n], found, ids))
            rows[n] = ids
        return [row for row in rows if row is not None]

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


def _arrays(found: Any) -> tuple[Ids, list[int]]:
    """Ids int32 of all texts one after another, and where each begins and the last ends, from gigatoken's array of lists."""
    layout = found.layout
    return np.asarray(layout.content.data).astype(np.int32), np.asarray(layout.offsets).tolist()


def _difference(path: Path, text: str, found: Ids, right: Ids) -> str:
    common = min(len(found), len(right))
    differ = np.flatnonzero(found[:common] != right[:common])
    at = int(differ[0]) if differ.size else common
    theirs, ours = (ids[at] if at < len(ids) else "none" for ids in (found, right))
    return (
        f"gigatoken gives other ids than the library for {path}: at token {at} {theirs}, not {ours}, in a text that begins "
        f"{text[:80]!r}. Run without --text-engine; units committed so far were not seen to differ, but start over to be sure"
    )
