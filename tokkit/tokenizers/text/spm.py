"""SentencePiece models, made exact.

SentencePiece itself loses three things even under identity normalization: a U+2581 in the text comes back as a space (it is
the character that it writes spaces with), lone surrogates cannot be passed to it, and decoding goes through rules of its own.
Here, for models that allow it (``SpModel.lossless``), the text is cut at these characters, they are written as byte-fallback
pieces (their UTF-8 bytes, surrogates as ``surrogatepass`` writes them), and decoding joins the bytes of the pieces from a
table: a normal piece's U+2581 is a space, a byte piece its byte. Other models go through the library both ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from tokkit.errors import DataError
from tokkit.ragged import split_rows
from tokkit.tokenizers.text.base import (
    Ids,
    Lengths,
    TextTokenizer,
    is_plain_utf8,
    joined,
    licence_beside,
    text_of_bytes,
    without_surrogates,
)
from tokkit.tokenizers.text.spmodel import SPACE, PieceType, SpModel, parse_model
from tokkit.tokenizers.text.words import WordCache, cuts_sentencepiece

_NOT_CARRIED = re.compile("[\u2581\ud800-\udfff]+")


class SentencePieceTokenizer(TextTokenizer):
    """A SentencePiece ``.model``.

    ``lossless`` is read off the file's normalizer and trainer options and confirmed on probe strings. User-defined symbols that
    look like markers (``<image>``, ``[INST]``) are not matched in text; others (runs of spaces, digits) are.

    Raises:
        DataError: the file cannot be read as a SentencePiece model.
    """

    kind = "sentencepiece"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from None
        model = parse_model(data, str(path))
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model.without_markers())
        except (RuntimeError, OSError) as error:
            raise DataError(f"{path} cannot be loaded by SentencePiece: {error}") from None
        self.name = path.stem
        self.vocab_size = len(model.pieces)
        self.fingerprint = model.fingerprint
        self.licence = licence_beside(path)
        self._exact = model.lossless
        self._bytes = _bytes_table(model) if self._exact else []
        self._byte_ids = model.byte_ids
        self._words = WordCache(self._by_library) if cuts_sentencepiece(model) else None
        self._special = {model.pieces[n].text: n for n in (*model.controls, *model.markers)}
        self.lossless = self._exact and self._passes_probes()
        unknown = [n for n, piece in enumerate(model.pieces) if piece.type is PieceType.UNKNOWN]
        self.unknown_id = unknown[0] if unknown and not self._exact else None

    def encode_joined(self, texts: Sequence[str]) -> tuple[Ids, Lengths]:
        """Encode several texts on one thread."""
        given = list(texts) if self._exact else [without_surrogates(text) for text in texts]
        odd = {n for n, text in enumerate(given) if self._exact and not _is_carried(text)}
        plain = [text for n, text in enumerate(given) if n not in odd] if odd else given
        ids, lengths = joined(self._by_library(plain)) if self._words is None else self._words.encode_joined(plain)
        if not odd:
            return ids, lengths
        rows = iter(split_rows(ids, lengths))
        return joined([self._encode_odd(text) if n in odd else next(rows) for n, text in enumerate(given)])

    @property
    def special_ids(self) -> dict[str, int]:
        """Control symbols, and user-defined ones that look like markers."""
        return self._special

    def _by_library(self, texts: Sequence[str]) -> list[list[int]]:
        """The library's ids, on one thread."""
        found: list[list[int]] = self._processor.Encode(list(texts), out_type=int, num_threads=1)
        return found

    def _encode_odd(self, text: str) -> list[int]:
        ids: list[int] = []
        place = 0
        for match in _NOT_CARRIED.finditer(text):
            ids += self._processor.Encode(text[place : match.start()], out_type=int)
            ids += [self._byte_ids[byte] for byte in match.group().encode("utf-8", "surrogatepass")]
            place = match.end()
        return ids + self._processor.Encode(text[place:], out_type=int)

    def decode(self, ids: Sequence[int] | Ids) -> str:
        """The text of ids; control symbols give nothing."""
        checked = self._checked(ids)
        if self._exact:
            table = self._bytes
            return text_of_bytes(b"".join([table[number] for number in checked]))
        text: str = self._processor.Decode(checked)
        return text


def _is_carried(text: str) -> bool:
    return text.isascii() or (SPACE not in text and is_plain_utf8(text))


def _bytes_table(model: SpModel) -> list[bytes]:
    """What each id stands for, UTF-8."""
    table = []
    of_byte = {number: byte for byte, number in model.byte_ids.items()}
    for number, piece in enumerate(model.pieces):
        if piece.type is PieceType.BYTE:
            table.append(bytes([of_byte[number]]))
        elif piece.type is PieceType.CONTROL:
            table.append(b"")
        elif piece.type is PieceType.UNKNOWN:
            table.append(model.unknown_surface.encode())
        else:
            table.append(piece.text.replace(SPACE, " ").encode("utf-8", "surrogatepass"))
    return table
