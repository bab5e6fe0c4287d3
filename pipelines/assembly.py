"""A document while its media are on the way: slots that wait for codes, and what the document becomes with what was lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from PIL import Image

from tokkit.documents import Audio, Document, Failure, Media, Outcome, SpecialToken, Text
from tokkit.documents import Image as Picture
from tokkit.errors import ItemError, UnwantedItem
from tokkit.interleave import AudioCodes, ImageCodes, ImageGap
from tokkit.media.images import ImageLimits, decode_image
from tokkit.vocabulary import Ids

MissingImage = Literal["drop-image", "drop-document", "keep-marker"]


@dataclass(eq=False, slots=True)
class Slot:
    """A media item on its way: codes once they are known, or the failure that stands in their place."""

    media: Media
    failure: Failure | None = None
    codes: Ids | None = None
    sound: AudioCodes | None = None

    @property
    def done(self) -> bool:
        """Whether nothing more is to come of it."""
        return self.failure is not None or self.codes is not None or self.sound is not None

    @property
    def missing(self) -> bool:
        """Whether it is a picture that was not to be had, or could not be read."""
        lost = self.failure is not None and self.failure.outcome in (Outcome.FAILED_UPSTREAM, Outcome.REJECTED)
        return lost and isinstance(self.media, Picture)


@dataclass(eq=False, slots=True)
class Pending:
    """A document whose pictures are being encoded, if it has any."""

    document: Document
    segments: Sequence[Text | SpecialToken | Slot]
    slots: Sequence[Slot] = ()
    characters: int = field(init=False)  # of its texts
    bytes: int = field(init=False)  # of its encoded media

    def __post_init__(self) -> None:
        self.bytes = sum(len(slot.media.data or b"") for slot in self.slots)
        self.characters = sum(len(segment.text) for segment in self.segments if isinstance(segment, Text))

    def ready(self) -> bool:
        return not self.slots or all(slot.done for slot in self.slots)


def verdict(document: Document, slots: list[Slot], missing: MissingImage = "drop-image") -> Failure | None:
    """Whether a document can be written with what became of its media; None if so.

    A pair is nothing without its media, nor is a conversation without the pictures that it is about. Any other document goes on
    without a lost item, unless nothing else is in it, or ``missing`` asks for documents whose pictures are all there.
    """
    failures = [s.failure for s in slots if s.failure is not None]
    if (document.pair or document.whole) and failures:
        return failures[0]
    if missing == "drop-document":
        lost = next((s.failure for s in slots if s.missing), None)
        if lost is not None:
            return lost
    if any(isinstance(s, Text) and s.text for s in document.segments) or len(failures) < len(slots):
        return None
    if failures:
        # Where an item is a duplicate, that is why nothing is left: but for it the document would have been committed.
        cause = next((f for f in failures if f.of is not None), failures[0])
        return Failure(cause.outcome, "nothing-left", f"no text, and no media item of {len(slots)} is usable", cause.of)
    return Failure(Outcome.REJECTED, "empty-document", "no text and no media items")


def open_picture(slot: Slot, image_tokenizer: bool, limits: ImageLimits) -> Image.Image | None:
    """The decoded picture of a slot that has not failed so far, or None with the slot's failure set.

    Args:
        image_tokenizer: whether the run has one.
        limits: bounds on pictures.
    """
    if not image_tokenizer:
        slot.failure = Failure(Outcome.FILTERED, "no-image-tokenizer", "this run has no image tokenizer")
    else:
        assert slot.media.data is not None
        try:
            return decode_image(slot.media.data, limits)
        except ItemError as error:
            slot.failure = failure_of(error)
    return None


Made = TypeVar("Made")


def made_of_sound(slot: Slot, make: Callable[[Audio], Made] | None) -> Made | None:
    """What is made of a slot's sound, or None with the slot's failure set.

    Args:
        make: may raise ItemError; None where the run has no audio tokenizer.
    """
    assert isinstance(slot.media, Audio)
    if make is None:
        slot.failure = Failure(Outcome.FILTERED, "no-audio-tokenizer", "this run has no audio tokenizer")
        return None
    try:
        return make(slot.media)
    except ItemError as error:
        slot.failure = failure_of(error)
        return None


def failure_of(error: ItemError) -> Failure:
    """What becomes of a media item that cannot be used."""
    outcome = Outcome.FILTERED if isinstance(error, UnwantedItem) else Outcome.REJECTED
    return Failure(outcome, error.reason, error.message)


class Given(str):
    """A text that is not to be learnt."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A text that is to be learnt, and the one before it, which is not; their ids are those of both together."""

    given: str
    text: str


Joined = str | Answer | SpecialToken | Slot


def join_texts(
    segments: Sequence[Text | SpecialToken | Slot], joiner: str, missing: MissingImage = "drop-image"
) -> list[Joined]:
    """Texts as strings and media with codes, in order; texts with nothing left between them become one, with ``joiner``.

    A missing picture of which the markers are kept stands between them. A text that is not to be learnt becomes a
    :class:`Given`, and stays apart from one that is, unless that one continues it.
    """
    joined: list[Joined] = []
    for segment in segments:
        if isinstance(segment, Slot):
            if segment.failure is None or (missing == "keep-marker" and segment.missing):
                joined.append(segment)
        elif isinstance(segment, SpecialToken):
            joined.append(segment)
        elif segment.loss and segment.continues and joined and isinstance(joined[-1], Given):
            joined[-1] = Answer(joined[-1], segment.text)
        elif not segment.loss:
            if joined and isinstance(joined[-1], Given):
                joined[-1] = Given(joined[-1] + joiner + segment.text)
            else:
                joined.append(Given(segment.text))
        elif joined and type(before := joined[-1]) is str:
            joined[-1] = before + joiner + segment.text
        else:
            joined.append(segment.text)
    return joined


def codes_of(slot: Slot) -> ImageCodes | AudioCodes | ImageGap:
    """A slot's codes as a part of the sequence, or the place that is kept for a missing picture."""
    if slot.missing:
        return ImageGap()
    if slot.sound is not None:
        return slot.sound
    assert slot.codes is not None
    return ImageCodes(slot.codes, slot.media.hash, slot.media.loss)


def with_document(failure: Failure | None) -> Failure | None:
    """What becomes of a sound item in a document that is not committed: the document's outcome."""
    if failure is None:
        return None
    return Failure(failure.outcome, "document-not-committed", f"the document is not: {failure.reason}", failure.of)
