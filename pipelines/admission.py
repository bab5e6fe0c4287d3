"""What a document must be to take part, decided before any of its media is decoded and before duplicates are looked for.

In this order: its texts are repaired (``--fix-text``), the user's own functions are asked (``--filter``), and what comes of
that is held against the bounds: characters, conditions (``--where``), and the number of its pictures. Every pass over the input
asks here, so that all decide about the same document: the index for duplicates, the one that encodes, the comparison of two
numeric environments and ``tokkit verify --reencode``. A single picture's bounds are looked at where it is opened
(:mod:`tokkit.pipelines.assembly`), from its header, and so come to the same in every pass, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from tokkit.conditions import parse_conditions, unwanted
from tokkit.documents import Document, Failure, Image, Outcome, Text
from tokkit.errors import FingerprintMismatch
from tokkit.filters import filter_digests, load_filters
from tokkit.media.images import is_wanted
from tokkit.repair import TextRepair

if TYPE_CHECKING:
    from tokkit.pipelines.shard import ShardConfig


class Admission:
    """Decides about documents, one after another, in one process.

    Args:
        config: of the run.
        digests: of the user's functions as the run began (:func:`~tokkit.filters.filter_digests`); None takes any.

    Raises:
        FingerprintMismatch: a function cannot be loaded any more, or is another.
        UsageError: a package is missing.
    """

    def __init__(self, config: ShardConfig, digests: Mapping[str, str] | None = None) -> None:
        self._config = config
        self._repair = TextRepair(config.fix_text) if config.fix_text else None
        try:
            self._filters = load_filters(config.filters)
        except ValueError as error:
            raise FingerprintMismatch(f"--filter: {error}") from None
        found = filter_digests(self._filters)
        if digests is not None and found != digests:
            changed = next(key for key in found.keys() | digests.keys() if found.get(key) != digests.get(key))
            raise FingerprintMismatch(
                f"the filter {changed.partition(' ')[2]} has changed since the run began: restore it and run the same command "
                f"again, or write to another --out"
            )
        self._conditions = parse_conditions(config.where)
        self._characters = (config.min_characters, config.max_characters)
        self._images = (config.min_images, config.max_images)
        self._bounded = any(bound is not None for bound in (*self._characters, *self._images))
        self.idle = not (self._repair or self._filters or self._conditions or self._bounded)

    def admit(self, document: Document) -> Document:
        """The document as it is to be, with a failure where it is not wanted; one that has a failure stays as it is.

        Raises:
            TransientError: a function of the user's ran out of memory or had an I/O error.
        """
        if self.idle or document.failure is not None:
            return document
        if self._repair is not None:
            document = _repaired(document, self._repair)
        for user in self._filters:
            document = user.judge(document)
            if document.failure is not None:
                return document
        failure = self._unwanted(document)
        return document if failure is None else replace(document, failure=failure)

    def _unwanted(self, document: Document) -> Failure | None:
        if not self._bounded:
            return unwanted(document, self._conditions)
        return self._by_length(document) or unwanted(document, self._conditions) or self._by_images(document)

    def _by_length(self, document: Document) -> Failure | None:
        least, most = self._characters
        if least is None and most is None:
            return None
        found = sum(len(segment.text) for segment in document.segments if isinstance(segment, Text))
        return _outside(found, least, most, "text-too-short", "text-too-long", "characters")

    def _by_images(self, document: Document) -> Failure | None:
        """By the pictures that are there and, as far as their headers tell, within the bounds of a picture."""
        least, most = self._images
        if least is None and most is None:
            return None
        limits = self._config.image_limits
        data = [media.data for media in document.media if isinstance(media, Image)]
        found = sum(one is not None and is_wanted(one, limits) for one in data)
        return _outside(found, least, most, "too-few-images", "too-many-images", f"usable of {len(data):,} pictures")


def _repaired(document: Document, repair: TextRepair) -> Document:
    """The document with its texts repaired; itself where there is nothing to repair."""
    segments, changed = [], False
    for segment in document.segments:
        if isinstance(segment, Text) and (text := repair(segment.text)) is not segment.text:
            segment, changed = replace(segment, text=text), True
        segments.append(segment)
    return replace(document, segments=tuple(segments)) if changed else document


def _outside(found: int, least: int | None, most: int | None, below: str, above: str, what: str) -> Failure | None:
    if least is not None and found < least:
        return Failure(Outcome.FILTERED, below, f"{found:,} {what}, fewer than {least:,}")
    if most is not None and found > most:
        return Failure(Outcome.FILTERED, above, f"{found:,} {what}, more than {most:,}")
    return None
