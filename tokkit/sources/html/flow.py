"""Plain text from a page, as a browser would lay it out, and pictures in their places.

* Whitespace collapses to one space; at the edges of lines, paragraphs and pictures there is none. A no-break space stays one
  between two words; several, or one beside other whitespace, are there for the looks and collapse with it.
* ``br`` is a newline. A block (division, list item, table row...) stands on lines of its own, a paragraph (also heading, list,
  table, quotation, caption, ``pre``) has an empty line before and behind it.
* List items begin with ``- `` or their number, two spaces further in for each list within a list.
* Cells of a row are told apart by a tab. A table whose cells hold blocks or pictures is there for the layout: its cells are
  blocks one below another.
* ``pre`` stands as it is.
"""

from __future__ import annotations

import re

from tokkit.sources.html.pictures import Picture

_SPACE = re.compile(r"[ \t\n\r\f\xa0]+")
_SPACES = " \xa0"


def _one_space(run: re.Match[str]) -> str:
    return "\xa0" if run[0] == "\xa0" else " "


class Flow:
    """Takes text, breaks and pictures in order, and gives texts and pictures."""

    def __init__(self) -> None:
        self.parts: list[str | Picture] = []
        self._line: list[str] = []
        self._breaks = 0  # newlines that are due before the next text
        self._space = False  # a space is due before the next text
        self._bullet = ""  # due before the next text: of a list item that has said nothing so far
        self._fresh = True  # nothing since the beginning or the last picture

    def text(self, text: str) -> None:
        """Text in which whitespace collapses."""
        if not text:
            return
        tidy = _SPACE.sub(_one_space, text)
        if tidy[0] in _SPACES:
            self._space, tidy = True, tidy[1:]
        if not tidy:
            return
        trailing = tidy[-1] in _SPACES
        self._write(tidy[:-1] if trailing else tidy)
        self._space = trailing

    def verbatim(self, text: str) -> None:
        """Text that stands as it is, between breaks."""
        tidy = text.replace("\r\n", "\n").replace("\r", "\n").strip("\n")
        if tidy.strip():
            self._space = False
            self._write(tidy)

    def newline(self) -> None:
        """A line break that counts, however many there are."""
        self._breaks = min(self._breaks + 1, 2)
        self._space = False

    def block(self, lines: int) -> None:
        """The edge of a block: at least ``lines`` newlines between what is before and what is behind."""
        self._breaks = max(self._breaks, lines)
        self._space = False

    def bullet(self, sign: str) -> None:
        """What the next text begins with: the sign or number of a list item."""
        self._bullet = sign

    def tab(self) -> None:
        """The border between two cells."""
        if not self._fresh and not self._breaks:
            self._line.append("\t")
        self._space = False

    def picture(self, picture: Picture) -> None:
        """A picture in its place."""
        self._flush()
        self.parts.append(picture)

    def finish(self) -> list[str | Picture]:
        """Everything, texts without whitespace at their ends; none is empty."""
        self._flush()
        return self.parts

    def last_picture(self) -> Picture | None:
        """The picture that nothing has followed yet, or None."""
        last = self.parts[-1] if self.parts else None
        return last if self._fresh and isinstance(last, Picture) else None

    def _write(self, text: str) -> None:
        if not self._fresh:
            if self._breaks:
                while self._line and self._line[-1] == "\t":  # empty cells at the end of a row
                    self._line.pop()
                self._line.append("\n" * self._breaks)
            elif self._space and self._line[-1] != "\t":
                self._line.append(" ")
        self._line.append(self._bullet + text)
        self._breaks, self._space, self._fresh, self._bullet = 0, False, False, ""

    def _flush(self) -> None:
        text = "".join(self._line).strip()
        if text:
            self.parts.append(text)
        self._line, self._breaks, self._space, self._fresh, self._bullet = [], 0, False, True, ""
