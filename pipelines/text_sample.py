"""Text to train a tokenizer on: a sample of bounded size, and the lines that SentencePiece's trainer is given."""

from __future__ import annotations

import heapq
import math
import re
from collections.abc import Iterator

LINE_CHARACTERS = 4096

_LINES = re.compile(r"[^\n]*\n+|[^\n]+")
# The trainer takes U+2581 for a space, skips any line with U+2585 (its mark for unknown), and cannot be given surrogates.
_NOT_TRAINABLE = re.compile("[\u2581\u2585\ud800-\udfff]+")


class BlockSample:
    """The blocks of text with the lowest draws that fit into ``max_bytes``; which these are does not depend on their order."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = self.offered = 0
        self._heap: list[tuple[float, int, int, str, int]] = []  # -draw, -arrival, bytes, text, source
        self._arrivals = 0
        self._limit = (math.inf, 0)  # the lowest draw given up so far: nothing above it may come in again

    def add(self, draw: float, text: str, source: int) -> None:
        """Offer a block of a source."""
        size = len(text.encode("utf-8", "surrogatepass"))
        self._arrivals += 1
        self.offered += size
        if (draw, self._arrivals) >= self._limit:
            return
        heapq.heappush(self._heap, (-draw, -self._arrivals, size, text, source))
        self.bytes += size
        while self.bytes > self.max_bytes:
            least, arrival, freed, _, _ = heapq.heappop(self._heap)
            self.bytes -= freed
            self._limit = (-least, -arrival)

    def blocks(self) -> Iterator[tuple[int, str]]:
        """Source and text of each block kept, in order of arrival."""
        for _, _, _, text, source in sorted(self._heap, key=lambda entry: -entry[1]):
            yield source, text


def blocks_of(text: str, block_bytes: int) -> Iterator[str]:
    """The text in parts of at most so many bytes, cut at line starts or spaces where there are any."""
    start = 0
    while start < len(text):
        stop = min(start + block_bytes // 4, len(text))
        if stop < len(text):
            cut = text.rfind("\n", start, stop) + 1 or text.rfind(" ", start, stop)
            stop = cut if cut > start else stop
        yield text[start:stop]
        start = stop


def sentences(text: str) -> Iterator[str]:
    """What the trainer is given for a text: lines with their line breaks, long ones cut at spaces (which then lead the next).

    Only U+2581, U+2585 and lone surrogates are left out; tabs, NUL and all other characters are kept.
    """
    for match in _LINES.finditer(text):
        for part in _NOT_TRAINABLE.split(match.group()):
            start = 0
            while start < len(part):
                stop = start + LINE_CHARACTERS
                if stop < len(part):
                    cut = part.rfind(" ", start + 1, stop)
                    stop = cut if cut > start else stop
                yield part[start:stop]
                start = stop
