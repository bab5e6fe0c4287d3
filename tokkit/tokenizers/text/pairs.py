"""Byte-level BPE by kernels of our own, with the ids of the tokenizers library.

The library takes microseconds for each word; where a ``tokenizer.json`` says nothing but "cut by this expression, then merge by
this list", a kernel that works on bytes does the same many times as fast (:mod:`tokkit.tokenizers.text.pair_kernels`). Which
files say that is decided here (:func:`merges_of`): a byte-level BPE model in which every byte has a token, without prefixes,
suffixes, dropout, normalizer and tokens that are looked for in the text, and one of the expressions of :data:`_KINDS`.

What a letter, a number and white space is, is the library's to say: it is asked about each character once, when that is first
met. A text that has an odd contraction or a piece of more than :data:`LONGEST` bytes goes to the library whole.

Compiling the kernels takes seconds where this machine has not done so before. So it is not begun before :data:`WORTHWHILE`
characters have been encoded, and is done by a thread while the library goes on: a process that compiles gives signs of life.
Ids are the same before and after; they are compared on texts that are made to find a difference, and with any difference the
kernels are left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Regex, pre_tokenizers

from tokkit.ragged import split_rows
from tokkit.tokenizers.text.base import PROBES, Ids, Lengths, is_plain_utf8, joined
from tokkit.tokenizers.text.words import CL100K_EXPRESSIONS, GPT2_EXPRESSIONS, QWEN_EXPRESSIONS

LONGEST = 1 << 20  # bytes of a piece
WORTHWHILE = 1 << 22
REMEMBERED = 1 << 18  # pieces, of 64 bytes each; a power of two
_LONGEST_TOKEN = 0xFFFF  # bytes, of which the table of tokens can tell
_ASCII = "".join(map(chr, range(128)))

_Encode = Callable[[Sequence[str]], tuple[Ids, Lengths]]


class Merges(NamedTuple):
    """What a file says.

    Attributes:
        style: which expression (:data:`~tokkit.tokenizers.text.pair_kernels.GPT2` or ``CL100K``).
        digits: digits of a number at most, where the expression bounds them.
        whole: a piece that is a token is that token, whatever the merges make of it (``ignore_merges``).
    """

    style: int
    digits: int
    whole: bool


# Pairs of style and digits by expression; as in pair_kernels, which is not imported before it is made use of.
_KINDS = {
    **dict.fromkeys(GPT2_EXPRESSIONS, (0, 0)),
    **dict.fromkeys(CL100K_EXPRESSIONS, (1, 3)),
    **dict.fromkeys(QWEN_EXPRESSIONS, (1, 1)),
}


def merges_of(config: dict[str, Any], byte_ids: dict[int, int]) -> Merges | None:
    """What a ``tokenizer.json`` says, as texts are encoded by it; None where it says more than the kernels know.

    Args:
        byte_ids: the id of each byte, if the file is of byte-level BPE with all of them.
    """
    model = config["model"]
    plain = (
        len(byte_ids) == 256
        and model.get("type") == "BPE"
        and config.get("normalizer") is None
        and not config.get("added_tokens")
        and not model.get("dropout")
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and len(set(model["vocab"].values())) == len(model["vocab"])
        and max(map(len, model["vocab"])) <= _LONGEST_TOKEN
    )
    kind = _kind_of(config.get("pre_tokenizer") or {}) if plain else None
    return None if kind is None else Merges(*kind, whole=bool(model.get("ignore_merges")))


def _kind_of(pre_tokenizer: dict[str, Any]) -> tuple[int, int] | None:
    steps = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not isinstance(steps, list) or not steps:
        return None
    *before, last = steps
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space", True):
        return None
    if last.get("use_regex", True):
        return None if before else _KINDS[next(iter(GPT2_EXPRESSIONS))]
    if len(before) != 1:
        return None
    (step,) = before
    pattern = step.get("pattern")
    known = step.get("type") == "Split" and step.get("behavior") == "Isolated" and not step.get("invert", False)
    return _KINDS.get(pattern.get("Regex", "")) if known and isinstance(pattern, dict) else None


class PairEncoder:
    """Encodes texts by the kernels, once that is worthwhile.

    Args:
        config: as for :func:`merges_of`, which gave ``merges``.
        byte_ids: the id of each byte.
        otherwise: gives the library's ids of several texts; for those that are not for the kernels.
    """

    def __init__(self, config: dict[str, Any], merges: Merges, byte_ids: dict[int, int], otherwise: _Encode) -> None:
        self._model, self._merges, self._byte_ids, self._otherwise = config["model"], merges, byte_ids, otherwise
        self._until = WORTHWHILE
        self.thread: Thread | None = None  # that makes them ready
        self._tables: _Tables | None = None
        self._lock = Lock()  # tokenizers may be used by several threads

    def encode_joined(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Ids and lengths as :meth:`~tokkit.tokenizers.text.base.TextTokenizer.encode_joined` gives them."""
        tables = self._tables
        if tables is None:
            self._begin(sum(map(len, texts)))
            return self._otherwise(texts)
        with self._lock:
            ids, lengths = tables.encode(texts)
        left = np.flatnonzero(lengths < 0).tolist()
        if not left:
            return ids, lengths
        lengths[left] = 0
        rows = split_rows(ids, lengths)
        for n, row in zip(left, split_rows(*self._otherwise([texts[n] for n in left])), strict=True):
            rows[n] = row
        return joined(rows)

    def _begin(self, characters: int) -> None:
        """Have the kernels made ready, once enough was encoded."""
        with self._lock:
            self._until -= characters
            if self._until <= 0 and self.thread is None:
                self.thread = Thread(target=self.ready, name="tokkit-merges")
                self.thread.start()

    def ready(self) -> bool:
        """Have the kernels compiled and the tables filled, and see that they give the library's ids; False where not."""
        if self._tables is None:
            try:
                tables = _Tables(self._model, self._merges, self._byte_ids)
            except (ImportError, MemoryError, OSError, RuntimeError):  # no room, or no place where numba may keep what it makes
                return False
            probes = [text for text in PROBES if is_plain_utf8(text)]
            ids, lengths = tables.encode(probes)
            right = [row for row, n in zip(split_rows(*self._otherwise(probes)), lengths, strict=True) if n >= 0]
            if np.array_equal(ids, joined(right)[0]):
                self._tables = tables
        return self._tables is not None


class _Tables:
    """What the kernels work with."""

    def __init__(self, model: dict[str, Any], merges: Merges, byte_ids: dict[int, int]) -> None:
        from tokkit.tokenizers.text import pair_kernels

        self._kernels, self._merges = pair_kernels, merges
        self._byte_ids = np.array([byte_ids[byte] for byte in range(256)], dtype=np.int32)
        self._classes = np.zeros(0x110000, dtype=np.uint8)
        self._learn(_ASCII)
        self._keys, self._values = _pair_table(model)
        self._lines = np.zeros((REMEMBERED, pair_kernels.WORDS), dtype=np.uint64)
        arena, lengths, ids = _tokens(model, byte_ids) if merges.whole else (b"", [], [])
        self._arena = np.frombuffer(arena, dtype=np.uint8)
        self._longest_token = max(lengths, default=0)
        numbers, ends = np.array(ids, dtype=np.int32), np.cumsum(lengths, dtype=np.int64)
        self._slots = np.zeros((1 << (4 * len(ids)).bit_length(), 3), dtype=np.uint64)
        while not pair_kernels.put_tokens(self._slots, self._arena, ends, numbers):
            self._slots = np.zeros((2 * len(self._slots), 3), dtype=np.uint64)  # one found no place within the steps

    def encode(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Ids, and the length of each text's; -1 for one that is not for the kernels."""
        rows = [text.encode() for text in texts]
        ends = np.cumsum(np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)))
        data = np.frombuffer(b"".join(rows), dtype=np.uint8)
        out, lengths = np.empty(len(data), dtype=np.int32), np.zeros(len(rows), dtype=np.int64)
        done = filled = 0
        while done < len(rows):
            done, filled, point = self._kernels.encode_pieces(
                data,
                ends,
                done,
                self._classes,
                self._merges.style,
                self._merges.digits,
                self._byte_ids,
                self._keys,
                self._values,
                self._lines,
                self._slots,
                self._arena,
                self._longest_token,
                LONGEST,
                out,
                filled,
                lengths,
            )
            if point >= 0:
                self._learn(texts[done])
        return out[:filled].copy(), lengths

    def _learn(self, text: str) -> None:
        """Ask the library for the classes of a text's characters."""
        kernels, classes = self._kernels, self._classes
        characters = set(text)
        asked = "".join(sorted(characters))
        kinds = {kernels.LETTER: r"\p{L}", kernels.NUMBER: r"\p{N}", kernels.SPACE: r"\s"}
        classes[[ord(c) for c in characters]] = kernels.OTHER
        for kind, expression in kinds.items():
            rest = pre_tokenizers.Split(Regex(expression), "removed").pre_tokenize_str(asked)
            found = characters - set("".join(piece for piece, _ in rest))
            classes[[ord(c) for c in found]] = kind


def _pair_table(model: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """The table of merges: keys uint64 [size], values int32 [size, 2] (rank and result)."""
    from tokkit.tokenizers.text import pair_kernels

    vocabulary = model["vocab"]
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    size = 1 << (2 * len(pairs) + 2).bit_length()
    keys = np.full(size, 0xFFFFFFFFFFFFFFFF, dtype=np.uint64)
    values = np.zeros((size, 2), dtype=np.int32)
    lefts = np.array([vocabulary[left] for left, _ in pairs], dtype=np.int32)
    rights = np.array([vocabulary[right] for _, right in pairs], dtype=np.int32)
    made = np.array([vocabulary[left + right] for left, right in pairs], dtype=np.int32)
    pair_kernels.put_pairs(keys, values, lefts, rights, made)
    return keys, values


def _tokens(model: dict[str, Any], byte_ids: dict[int, int]) -> tuple[bytes, list[int], list[int]]:
    """The tokens that a piece may be: their bytes one behind another, how many each has, and their ids."""
    byte_of = {number: byte for byte, number in byte_ids.items()}
    characters = {name: byte_of[number] for name, number in model["vocab"].items() if number in byte_of}
    names = [(name, number) for name, number in model["vocab"].items() if len(name) > 1 and characters.keys() >= set(name)]
    pieces = [bytes(characters[c] for c in name) for name, _ in names]
    return b"".join(pieces), [len(piece) for piece in pieces], [number for _, number in names]
