"""The interface of text tokenizers, and what its implementations share: probe strings, decoding of bytes, licences."""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import yaml

from tokkit.errors import DataError, VocabularyError
from tokkit.ragged import split_rows

Ids = np.ndarray
Lengths = np.ndarray

SURROGATES = re.compile("[\ud800-\udfff]")
_SURROGATE_BYTES = re.compile(rb"(\xed[\xa0-\xbf][\x80-\xbf])")
_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---\s*$", re.DOTALL | re.MULTILINE)

# Strings that some tokenizer does not give back: each broke at least one widely used tokenizer.json or .model.
PROBES: tuple[str, ...] = (
    "",
    "plain",
    " a",
    "a ",
    " ",
    "  two   three    four",
    "tab\tnew\nline\r\n\n\n  indented\n\ttabbed",
    "".join(map(chr, range(0x20))) + "\x7f\x80\x85\xa0",
    "\ufeffbyte order mark\ufeff",
    "\u2581lower\u2581 one \u2581eighth\u2581",
    "\u0120byte-level\u010a\u0100 \u2047 \u2585 \ufffd \ufffe\uffff \u2028\u2029\u200b\u200d",
    "e\u0301 \u00e9 A\u030a \u212b \ufb01 \uff21 \u1e9b\u0323 \u1100\u1161",
    "Do n't , stop . It 's we 've !  ?",
    "UPPER lower \u0130\u0131 \u1e9e\u00df",
    "0123456789 3.14 \u0663\u096b\u00bd",
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u202eabc\u202c",
    "\u65e5\u672c\u8a9e\u3000\u4e2d\u6587 \ud55c\uad6d\uc5b4 \u0e44\u0e17\u0e22 \u0939\u093f\u0928\u094d\u0926\u0940",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1ef\U0001f1f5 \u2764\ufe0f \U0010ffff",
    "<s></s><unk><pad><image><|endoftext|>[CLS][MASK]<0x41>",
    "\ud800 lone \udfff surrogates \ud83d\ude00",
)


class TextTokenizer(ABC):
    """Text to ids and back. Instances are picklable (they are loaded anew from their path) and thread-safe.

    Attributes:
        name: for people; the file's or folder's name.
        kind: ``sentencepiece`` or ``huggingface``.
        vocab_size: every id is in [0, vocab_size).
        fingerprint: SHA-256 (hex) of what decides the ids; the same for two files that encode alike for a known reason.
        lossless: whether ``decode(encode(x)) == x`` for every Python string.
        licence: as the files beside the tokenizer state it; None where they do not.
        unknown_id: the one special id that text may yield, for what a lossy tokenizer cannot write; None where there is none.
    """

    name: str
    kind: str
    vocab_size: int
    fingerprint: str
    lossless: bool
    licence: str | None
    unknown_id: int | None

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path,)

    def encode(self, text: str) -> Ids:
        """The text's ids, int32, shape [n]; no begin or end symbols, nothing truncated."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Encode several texts, each as :meth:`encode` would; faster than one by one."""
        return split_rows(*self.encode_joined(texts))

    @abstractmethod
    def encode_joined(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Encode several texts: int32 [T], the ids of all one after another, and int64 [N], how many each text has."""

    @property
    @abstractmethod
    def special_ids(self) -> dict[str, int]:
        """The ids of special tokens by name (``</s>``, ``<|im_end|>``): those that no text has."""

    @property
    def continuing(self) -> TextTokenizer:
        """What encodes texts behind a special token: itself, unless only the first text gets a space before it."""
        return self

    def decode_named(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids, as :meth:`decode`, with the names of special tokens where these stand."""
        values = np.asarray(ids)
        names = {number: name for name, number in self.special_ids.items()}
        places = np.flatnonzero(np.isin(values, list(names))).tolist()
        borders = [0, *(place + more for place in places for more in (0, 1)), len(values)]
        pieces = [self.decode(values[a:b]) for a, b in zip(borders[::2], borders[1::2], strict=True)]
        found = [pieces[0]]
        for place, piece in zip(places, pieces[1:], strict=True):
            found += [names[int(values[place])], piece]
        return "".join(found)

    @abstractmethod
    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids. Ids of special symbols give what the library gives for them.

        Bytes that are not UTF-8 (ids cut or made up in the middle of a character) become U+FFFD.

        Raises:
            VocabularyError: an id outside of [0, vocab_size).
        """

    def _checked(self, ids: Sequence[int] | Ids) -> list[int]:
        values = np.asarray(ids)
        if values.size == 0:
            return []
        if values.ndim != 1 or values.dtype.kind not in "iu":
            raise VocabularyError(f"{self.name}: text ids are one row of integers, not {values.dtype} of shape {values.shape}")
        outside = (values < 0) | (values >= self.vocab_size)
        if outside.any():
            place = int(outside.argmax())
            raise VocabularyError(f"{self.name}: id {values[place]} at {place} is outside of [0, {self.vocab_size})")
        return values.tolist()

    def _passes_probes(self, extra: Sequence[str] = ()) -> bool:
        probes = [*PROBES, *extra, *(f"a {text} b" for text in extra)]
        return all(self.decode(ids) == probe for probe, ids in zip(probes, self.encode_batch(probes), strict=True))


def check_highest(vocabulary: Mapping[str, int], path: Path) -> None:
    """Raise DataError for a vocabulary without tokens, or of ids so high that tables by id would fill the memory."""
    if not vocabulary:
        raise DataError(f"{path} is damaged: it has no tokens")
    name = max(vocabulary, key=lambda token: vocabulary[token])
    if vocabulary[name] > 4 * len(vocabulary) + (1 << 20):
        raise DataError(f"{path} is damaged: it has {len(vocabulary)} tokens, and {name!r} has the id {vocabulary[name]}")


def joined(rows: Sequence[Sequence[int] | Ids]) -> tuple[Ids, Lengths]:
    """Rows of ids as :meth:`TextTokenizer.encode_joined` gives them."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    if any(isinstance(row, np.ndarray) for row in rows):
        return np.concatenate([np.asarray(row, dtype=np.int32) for row in rows]), lengths
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum())), lengths


def is_plain_utf8(text: str) -> bool:
    """Whether the text has no lone surrogates, so that a library written in C++ or Rust can take it."""
    if text.isascii():
        return True
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate."""
    return text if is_plain_utf8(text) else SURROGATES.sub("\ufffd", text)


def text_of_bytes(data: bytes) -> str:
    """UTF-8, with surrogates as Python's ``surrogatepass`` writes them, and U+FFFD for what is neither."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        parts = _SURROGATE_BYTES.split(data)
        return "".join(p.decode("utf-8", "surrogatepass" if i % 2 else "replace") for i, p in enumerate(parts))


def licence_beside(path: Path) -> str | None:
    """The licence that ``PATH.json`` (as train-text writes it) or a README's front matter states."""
    sidecar = path.with_name(path.name + ".json")
    readme = path.parent / "README.md"
    stated: object = None
    try:
        if sidecar.is_file():
            found = json.loads(sidecar.read_bytes())
            stated = found.get("licence") if isinstance(found, dict) else None
        elif readme.is_file():
            matter = _FRONT_MATTER.search(readme.read_text(encoding="utf-8", errors="replace"))
            found = yaml.safe_load(matter.group(1)) if matter else None
            stated = found.get("license") if isinstance(found, dict) else None
    except (ValueError, yaml.YAMLError):
        return None  # a file that merely lies beside: what it does not say clearly, it does not say
    return stated if isinstance(stated, str) and stated else None
