"""The document: what every source yields and everything downstream takes.

A document is an ordered tuple of segments: text, pictures and sounds as they stood in the source. Media segments carry the
encoded bytes as found (JPEG, WAV...), untrusted and undecoded, or a :class:`Failure` that says why there are none.

The document's identity is its *locator* (where it was found, unique in a run) and its *content hash* (what it says); the hash
decides the split and every seeded choice, so that neither depends on file names, order or workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property


class Outcome(StrEnum):
    """What became of a document or a media item; every one has exactly one."""

    COMMITTED = "committed"
    FILTERED = "filtered"
    DUPLICATE = "duplicate"
    REJECTED = "rejected"
    FAILED_UPSTREAM = "failed_upstream"


@dataclass(frozen=True, slots=True)
class Original:
    """What a duplicate is one of: a committed document, or the media item ``item`` (counted from 0) of one."""

    source: str
    locator: str
    item: int | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a document or a media item is not committed.

    Attributes:
        outcome: any but ``COMMITTED``.
        reason: a short slug that outcomes are counted by (``image-truncated``, ``failed-to-download``).
        message: what was found, for a person.
        of: of a duplicate that the run found, what it is one of.
    """

    outcome: Outcome
    reason: str
    message: str = ""
    of: Original | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A run of text, exactly as in the source (any Unicode, lone surrogates included).

    Attributes:
        loss: whether a trainer should learn to predict it; False for what is only given, such as a question.
        continues: whether its ids are those that it has behind the text before it, which is only given; else it is encoded by
            itself.
    """

    text: str
    loss: bool = True
    continues: bool = False


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token of the text tokenizer, by its name (``<|im_end|>``): its own id, which no text has.

    Attributes:
        loss: as in :class:`Text`.
    """

    name: str
    loss: bool = True


@dataclass(frozen=True)
class Media:
    """A media item: encoded bytes, or the failure that stands in their place.

    Attributes:
        data: the encoded file as found, or None where ``failure`` says why there is none.
        ref: how the source names the item (member, path, URL): for ledgers and people, never opened as a path.
        failure: set exactly where ``data`` is None.
        alt: what the source says of it where it cannot be shown (alternative text); no part of what the document says.
        loss: as in :class:`Text`.
        store: the picture store of ``--images`` that it was found in, if it was in one.
    """

    data: bytes | None
    ref: str
    failure: Failure | None = None
    alt: str = ""
    loss: bool = True
    store: str = ""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.failure is None):
            raise ValueError("a media item has either data or a failure")

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex, first 32 digits) of the encoded bytes; of the reference where there are none."""
        body = b"data" + self.data if self.data is not None else b"ref" + self.ref.encode("utf-8", "surrogatepass")
        return hashlib.sha256(self._part + body).hexdigest()[:32]

    @property
    def _part(self) -> bytes:
        """What part of the file it is; nothing where it is all of it."""
        return b""


class Image(Media):
    """A picture."""


@dataclass(frozen=True)
class Audio(Media):
    """A sound: a file, or a segment of one.

    Attributes:
        start: seconds into the file at which it begins.
        seconds: how long it is; None to the end of the file.
    """

    start: float = 0.0
    seconds: float | None = None

    @property
    def _part(self) -> bytes:
        return b"" if not self.start and self.seconds is None else f"segment {self.start!r} {self.seconds!r} ".encode()


Segment = Text | SpecialToken | Image | Audio

MODALITY_OF = {Text: "text", SpecialToken: "text", Image: "image", Audio: "audio"}


def modality_of(segment: Segment) -> str:
    """``text``, ``image`` or ``audio``."""
    return MODALITY_OF[type(segment)]


@dataclass(frozen=True)
class Document:
    """One document of a source.

    Attributes:
        id: the source's own identifier where it has one, else the locator.
        source: name of the source in this run.
        locator: where it was found: ``FILE#KEY`` or ``FILE:ROW``, the file relative to the source's root. Unique in a run.
        segments: what it says, in the source's order.
        pair: a media item with its caption or transcript: the order may be chosen (``--pair-order``), and without its media
            item the document is nothing (in an interleaved document a lost item is left out and recorded).
        metadata: the source's other fields, JSON-compatible; ``--metadata`` selects what goes into the shards.
        whole: without any one of its media items the document is nothing, though it is no pair (a conversation).
        failure: set where the source knows that there is no document to read (a row that was never downloaded, a line that is
            not JSON); such a document still counts and still gets its outcome.
    """

    id: str
    source: str
    locator: str
    segments: tuple[Segment, ...]
    pair: bool = False
    metadata: Mapping[str, object] = field(default_factory=dict)
    failure: Failure | None = None
    whole: bool = False

    @property
    def media(self) -> tuple[Media, ...]:
        """The media items, in order."""
        return tuple(s for s in self.segments if isinstance(s, Media))

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex, first 32 digits) of the segments in order: kind, length and bytes of each; no names, no metadata.

        What is only given is of another kind than what is to be learnt.
        """
        digest = hashlib.sha256()
        for segment in self.segments:
            kind, body = _said(segment)
            kind = kind if segment.loss else f"given-{kind}"
            digest.update(b"%b:%d:%b" % (kind.encode("ascii"), len(body), body))
        return digest.hexdigest()[:32]

    def draw(self, *what: object) -> float:
        """A number in [0, 1) that depends only on the content hash and on ``what`` (a seed and the choice's name)."""
        digest = hashlib.sha256("\x1f".join([self.hash, *map(str, what)]).encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64


def _said(segment: Segment) -> tuple[str, bytes]:
    """The kind of a segment, and what it says."""
    if isinstance(segment, SpecialToken):
        return "special", segment.name.encode("utf-8", "surrogatepass")
    if isinstance(segment, Text):
        return "text", segment.text.encode("utf-8", "surrogatepass")
    return modality_of(segment), segment.hash.encode("ascii")
