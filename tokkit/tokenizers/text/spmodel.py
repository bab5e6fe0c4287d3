"""SentencePiece model files, read and adjusted without the protobuf package (which tokkit does not depend on).

A ``.model`` is the protobuf message ``ModelProto`` of SentencePiece's ``sentencepiece_model.proto``: field 1 the pieces
(1 piece, 2 score, 3 type), 2 the trainer's options, 3 the normalizer's, 5 the denormalizer's. Only the fields that decide the
ids are read; everything else is carried along. Wire format: https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple

from tokkit.errors import DataError

SPACE = "\u2581"  # SentencePiece writes a space so
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
# A user-defined symbol of this look is a marker (<image>, <|im_start|>, [INST], {eos}), not a spelling of plain text.
_MARKER = re.compile(r"\s*([<\[{|(\uff5c\u3010].*[^\W_].*[>\]}|)\uff5c\u3011])\s*", re.DOTALL)


class PieceType(IntEnum):
    """``SentencePiece.Type`` of the format."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary: its text, score, type, and where in the file the type's byte is (None: left out)."""

    text: str
    score: float
    type: PieceType
    type_at: int | None


@dataclass(frozen=True)
class SpModel:
    """What a model file says.

    Attributes:
        data: the file.
        pieces: by id.
        model_type: 1 unigram, 2 BPE, 3 word, 4 character.
        byte_fallback, suffix_spaces: the trainer's options of that name (``treat_whitespace_as_suffix``).
        charsmap: the normalizer's compiled rules; empty for identity.
        dummy_prefix, strip_spaces, escape_spaces: the normalizer's options.
        denormalizes: whether decoding applies rules of its own.
        unknown_surface: what the unknown piece decodes to.
        threads_at: where in the file the byte of ``num_threads`` is.
    """

    data: bytes
    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    suffix_spaces: bool
    charsmap: bytes
    dummy_prefix: bool
    strip_spaces: bool
    escape_spaces: bool
    denormalizes: bool
    unknown_surface: str
    threads_at: int | None

    @property
    def lossless(self) -> bool:
        """Identity normalization, every byte in the vocabulary, no space added or taken away."""
        keeps = self.escape_spaces and not (self.charsmap or self.dummy_prefix or self.strip_spaces)
        has_bytes = self.byte_fallback and len(self.byte_ids) == 256 and self.model_type in (1, 2)
        return keeps and has_bytes and not self.denormalizes

    @property
    def byte_ids(self) -> dict[int, int]:
        """Byte -> id of its fallback piece."""
        found = {}
        for number, piece in enumerate(self.pieces):
            match = _BYTE_PIECE.fullmatch(piece.text) if piece.type is PieceType.BYTE else None
            if match:
                found[int(match.group(1), 16)] = number
        return found

    @property
    def controls(self) -> list[int]:
        """Ids of control symbols (``<s>``, ``</s>``)."""
        return [n for n, piece in enumerate(self.pieces) if piece.type is PieceType.CONTROL]

    @property
    def markers(self) -> list[int]:
        """Ids of user-defined symbols that look like markers: SentencePiece would let text yield them."""
        found = (n for n, piece in enumerate(self.pieces) if piece.type is PieceType.USER_DEFINED)
        return [n for n in found if _MARKER.fullmatch(self.pieces[n].text)]

    def without_markers(self) -> bytes:
        """The file with :attr:`markers` made ``UNUSED``: ids stay as they are, but no text yields these."""
        patched = bytearray(self.data)
        for number in self.markers:
            place = self.pieces[number].type_at
            if place is not None:  # user-defined is not the default, so its type is always written
                patched[place] = PieceType.UNUSED
        return bytes(patched)

    def with_one_thread(self) -> bytes:
        """The file as if trained with one thread: BPE's pieces do not depend on it, and then neither do the bytes."""
        patched = bytearray(self.data)
        if self.threads_at is not None:
            patched[self.threads_at] = 1
        return bytes(patched)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the pieces and options that decide the ids; not of the trainer's other options."""
        digest = hashlib.sha256(b"tokkit sentencepiece 1\n")
        for text, score, kind, _ in self.pieces:
            body = text.encode("utf-8", "surrogatepass")
            digest.update(struct.pack("<Ifi", len(body), score, kind) + body)
        flags = (self.byte_fallback, self.suffix_spaces, self.dummy_prefix, self.strip_spaces, self.escape_spaces)
        digest.update(struct.pack("<i5?", self.model_type, *flags) + self.charsmap)
        return digest.hexdigest()


def parse_model(data: bytes, name: str) -> SpModel:
    """Read a model file.

    Raises:
        DataError: it is not a SentencePiece model, or damaged; the message calls it ``name``.
    """
    hint = f"{name} is not a SentencePiece model"
    if re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?\n", data):
        raise DataError(f"{hint} but tiktoken ranks: name the tokenizer.json that lies beside it, or convert it")
    try:
        model = _parse(data)
    except (ValueError, IndexError, struct.error) as error:
        raise DataError(f"{hint}, or it is damaged: {error}") from None
    if not model.pieces:
        raise DataError(f"{hint}: it has no pieces")
    return model


def _parse(data: bytes) -> SpModel:
    pieces: list[Piece] = []
    model = SpModel(data, (), 1, False, False, b"", True, True, True, False, " \u2047 ", None)
    for number, start, stop in _fields(data, 0, len(data)):
        if number == 1:
            pieces.append(_piece(data, start, stop))
        elif number == 2:
            model = _with_trainer(model, start, stop)
        elif number == 3:
            model = _with_normalizer(model, start, stop)
        elif number == 5:
            rules = any(n == 2 and e > s for n, s, e in _fields(data, start, stop))
            model = replace(model, denormalizes=rules)
    return replace(model, pieces=tuple(pieces))


def _piece(data: bytes, start: int, stop: int) -> Piece:
    text, score, kind, place = "", 0.0, PieceType.NORMAL, None
    for number, begin, end in _fields(data, start, stop):
        if number == 1:
            text = data[begin:end].decode("utf-8", "surrogatepass")
        elif number == 2:
            (score,) = struct.unpack("<f", data[begin:end])
        elif number == 3:
            kind, place = PieceType(_varint(data, begin)[0]), begin
    return Piece(text, score, kind, place)


def _with_trainer(model: SpModel, start: int, stop: int) -> SpModel:
    for number, begin, end in _fields(model.data, start, stop):
        if number == 3:
            model = replace(model, model_type=_varint(model.data, begin)[0])
        elif number == 16 and end - begin == 1:
            model = replace(model, threads_at=begin)
        elif number == 24:
            model = replace(model, suffix_spaces=bool(model.data[begin]))
        elif number == 35:
            model = replace(model, byte_fallback=bool(model.data[begin]))
        elif number == 44:
            model = replace(model, unknown_surface=model.data[begin:end].decode())
    return model


def _with_normalizer(model: SpModel, start: int, stop: int) -> SpModel:
    for number, begin, end in _fields(model.data, start, stop):
        if number == 2:
            model = replace(model, charsmap=model.data[begin:end])
        elif number == 3:
            model = replace(model, dummy_prefix=bool(model.data[begin]))
        elif number == 4:
            model = replace(model, strip_spaces=bool(model.data[begin]))
        elif number == 5:
            model = replace(model, escape_spaces=bool(model.data[begin]))
    return model


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The value and the place behind it."""
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return value, place
        if shift > 63:
            raise ValueError(f"a number at byte {place} that does not end")


def _fields(data: bytes, place: int, stop: int) -> Iterator[tuple[int, int, int]]:
    """Field number and the range of its content, for each field of the message in ``data[place:stop]``."""
    while place < stop:
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            end = _varint(data, place)[1]
        elif wire in (1, 5):
            end = place + (8 if wire == 1 else 4)
        elif wire == 2:
            length, place = _varint(data, place)
            end = place + length
        else:
            raise ValueError(f"wire type {wire} before byte {place}")
        if number == 0 or end > stop:
            raise ValueError(f"a field before byte {place} reaches beyond its message")
        yield number, place, end
        place = end
