"""Segments and codes -> one id sequence and its spans."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from tokkit import audio_layouts
from tokkit.documents import Document, Segment, Text
from tokkit.errors import VocabularyError
from tokkit.interleave.parts import (
    WITH_SIZES,
    AudioCodes,
    ImageCodes,
    ImageGap,
    ImageLayout,
    Layout,
    PairOrder,
    Part,
    Span,
    TextCodes,
)
from tokkit.vocabulary import GRID, Ids, UnifiedVocabulary


def order_segments(document: Document, pair_order: PairOrder, seed: int) -> tuple[Segment, ...]:
    """The document's segments in the order they are written: the source's own, except for pairs.

    For a pair ``random`` puts the media first in half of the documents, drawn from the document's content hash and ``seed``
    (Chameleon was trained on both orders, half and half).
    """
    if not document.pair:
        return document.segments
    media_first = pair_order == "image-first" or (pair_order == "random" and document.draw(seed, "pair-order") < 0.5)
    # sorted() is stable: several pictures of one sample keep their order.
    return tuple(sorted(document.segments, key=lambda s: isinstance(s, Text) == media_first))


def lacking(vocabulary: UnifiedVocabulary, layout: ImageLayout) -> list[str]:
    """What pictures need in a layout and the vocabulary does not have, for people; empty where nothing is lacking."""
    wanted = ["begin_image", "end_image"]
    rows = {"rows": ["row_end"], "grid_rows": ["row_end"], "emu3": ["begin_codes", "row_end", "frame_end"]}
    wanted += rows.get(layout, [])
    found = [f"marker {name}" for name in wanted if name not in vocabulary.markers]
    if layout in WITH_SIZES and not vocabulary.codebooks(GRID):
        found.append("ids of grid sizes")
    if layout == "emu3" and any(character not in vocabulary.spelled for character in "0123456789*"):
        found.append("ids of digits and the asterisk")
    return found


def encode(parts: Iterable[Part], vocabulary: UnifiedVocabulary, layout: Layout) -> tuple[Ids, list[Span]]:
    """Write a document: ids int32 [n] with its markers, and its spans in order. Empty text makes no span.

    Raises:
        VocabularyError: a code outside of its codebook, codebooks or markers that the vocabulary lacks, or a grid that the
            layout could not decode.
    """
    pieces: list[Ids] = []
    spans: list[Span] = []
    position = 1
    for part in parts:
        if isinstance(part, TextCodes):
            ids, span = vocabulary.encode("text", part.codes), Span("text", position, len(part.codes), loss=part.loss)
        elif isinstance(part, ImageCodes):
            ids = _encode_image(part, vocabulary, layout)
            count, height, width = part.codes.shape
            span = Span("image", position, len(ids), count, height, width, item_hash=part.item_hash, loss=part.loss)
        elif isinstance(part, ImageGap):
            if not layout.gaps:
                raise VocabularyError("a missing picture in a layout that keeps no places of such")
            ids = np.array([vocabulary.marker("begin_image"), vocabulary.marker("end_image")], dtype=np.int32)
            span = Span("image", position, 2, loss=False)
        else:
            ids = _encode_audio(part, vocabulary, layout)
            span = Span(
                "audio",
                position,
                len(ids),
                part.codes.shape[0],
                samples=part.samples,
                sample_rate=part.sample_rate,
                item_hash=part.item_hash,
                loss=part.loss,
                scales=part.scales,
            )
        if len(ids):
            pieces.append(ids)
            spans.append(span)
            position += len(ids)
    document = np.empty(position + 1, dtype=np.int32)
    document[0], document[-1] = vocabulary.marker("begin_document"), vocabulary.marker("end_document")
    for ids, span in zip(pieces, spans, strict=True):
        document[span.start : span.start + span.length] = ids
    return document, spans


def _one(token: int) -> Ids:
    return np.array([token], dtype=np.int32)


def _encode_image(part: ImageCodes, vocabulary: UnifiedVocabulary, layout: Layout) -> Ids:
    count, height, width = part.codes.shape
    books = vocabulary.codebooks("image")
    if count != len(books):
        raise VocabularyError(f"a picture of {count} codebooks; the vocabulary has {len(books)}")
    if height < 1 or width < 1:
        raise VocabularyError(f"a picture with an empty grid of {height} x {width}")
    body = np.stack([vocabulary.encode("image", part.codes[k], k) for k in range(count)], axis=-1)  # [h, w, K]
    head = [_one(vocabulary.marker("begin_image"))]
    tail = [_one(vocabulary.marker("end_image"))]
    if layout.image in WITH_SIZES:
        head.append(vocabulary.encode(GRID, [height - 1, width - 1]))
    elif layout.image == "emu3":
        head += [spell(f"{height}*{width}", vocabulary), _one(vocabulary.marker("begin_codes"))]
        tail.insert(0, _one(vocabulary.marker("frame_end")))
    elif layout.image == "plain" and (height, width) != layout.image_grid and (layout.image_grid or height != width):
        allowed = "square" if layout.image_grid is None else "{} x {}".format(*layout.image_grid)
        raise VocabularyError(f"a grid of {height} x {width} in the plain layout, which can only be {allowed}")
    rows = body.reshape(height, width * count)
    if layout.image in ("rows", "grid_rows", "emu3"):
        ends = np.full((height, 1), vocabulary.marker("row_end"), dtype=np.int32)
        rows = np.concatenate([rows, ends], axis=1)
    return np.concatenate([*head, rows.reshape(-1), *tail])


def spell(text: str, vocabulary: UnifiedVocabulary) -> Ids:
    """A picture's size in writing, one id a character, int32 [len(text)].

    Raises:
        VocabularyError: a character that the vocabulary has no id for.
    """
    try:
        return np.array([vocabulary.spelled[character] for character in text], dtype=np.int32)
    except KeyError as error:
        raise VocabularyError(f"this vocabulary ({vocabulary.origin}) cannot spell {error.args[0]!r}") from None


def _encode_audio(part: AudioCodes, vocabulary: UnifiedVocabulary, layout: Layout) -> Ids:
    count, frames = part.codes.shape
    books = vocabulary.codebooks("audio")
    if not 1 <= count <= len(books):
        raise VocabularyError(f"a sound of {count} codebooks; the vocabulary has {len(books)}")
    if frames < 1:
        raise VocabularyError("a sound without frames")
    if layout.audio_delays and count > len(layout.audio_delays):
        raise VocabularyError(f"a sound of {count} codebooks; the layout has delays of {len(layout.audio_delays)}")
    body = audio_layouts.write(part.codes, vocabulary, layout.audio, layout.audio_delays)
    return np.concatenate([_one(vocabulary.marker("begin_audio")), body, _one(vocabulary.marker("end_audio"))])
