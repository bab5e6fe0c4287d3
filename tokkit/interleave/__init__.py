"""Segments and codes -> one id sequence and its spans, and back.

A document becomes::

    begin_document  span  span ...  end_document

where a text span is the text's ids, and a media span runs from its begin marker to its end marker inclusive. The source's order
is kept; only for pairs (a picture with its caption) may the order be chosen. Image layouts:

* ``plain``: ``begin_image, h*w codes row by row, end_image``. Decoding takes the grid from the count, so it must be square or
  the one grid that the layout names (Chameleon: 1,024 codes between two markers, 1,026 tokens).
* ``rows``: as ``plain`` with ``row_end`` after every row.
* ``grid``: ``begin_image, height, width, codes, end_image`` with the two sizes out of the vocabulary's grid block.
* ``grid_rows``: both: ``begin_image, height, width, rows each with row_end, end_image``, which is how Lumina-mGPT lays out
  pictures of many shapes.
* ``bare``: as ``plain`` for pictures of any shape. The tokens alone do not tell the shape: it is in the document table, and
  :func:`decode` must be given it.
* ``emu3``: ``begin_image, H*W as text, begin_codes, rows each with row_end, frame_end, end_image``, as Emu3 was trained. The
  size is written with the text tokenizer's own digits and asterisk, one id a character (``vocabulary.spelled``).

A picture that is missing may have its place kept (:attr:`Layout.gaps`): ``begin_image, end_image`` with nothing between them,
in any layout.

Sounds run from ``begin_audio`` to ``end_audio``, in one of the orders of :mod:`tokkit.audio_layouts`. Pictures of several
codebooks are position by position, all codebooks of one in turn.

What a document is made of is in ``parts.py``; ``writing.py`` makes ids of it. ``reading.py`` is the way back, and exact: a
sequence that :func:`encode` cannot have made raises :class:`~tokkit.errors.MalformedSequence`, which names the token and what
is wrong with it.
"""

from __future__ import annotations

from tokkit.interleave.parts import (
    AudioCodes,
    AudioPiece,
    ImageCodes,
    ImageGap,
    ImageLayout,
    Layout,
    PairOrder,
    Part,
    Span,
    TextCodes,
)
from tokkit.interleave.reading import decode
from tokkit.interleave.writing import encode, lacking, order_segments, spell

__all__ = [
    "AudioCodes",
    "AudioPiece",
    "ImageCodes",
    "ImageGap",
    "ImageLayout",
    "Layout",
    "PairOrder",
    "Part",
    "Span",
    "TextCodes",
    "decode",
    "encode",
    "lacking",
    "order_segments",
    "spell",
]
