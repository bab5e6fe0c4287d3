"""One pass over a page, in document order: what is not boilerplate, as text and pictures.

Document order is reading order in all but pages that are arranged by style sheets against it; these cannot be told without
laying the page out. A caption stands where the page has it, beside its picture. ``noscript`` is read for its pictures only:
it repeats what a script would load, so a picture that has just been met is not met again.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokkit.sources.html.boilerplate import Boilerplate
from tokkit.sources.html.dom import Element, parse_html
from tokkit.sources.html.flow import Flow
from tokkit.sources.html.pictures import Picture, base_of, picture_of, text_instead

# fmt: off
_PARAGRAPHS = frozenset((
    "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "figure", "figcaption", "caption", "pre",
    "listing", "xmp", "plaintext", "hr", "hgroup", "details", "dir",
))
_BLOCKS = frozenset((
    "div", "section", "article", "main", "header", "footer", "aside", "nav", "address", "li", "dt", "dd", "tr", "thead",
    "tbody", "tfoot", "center", "fieldset", "legend", "form", "summary", "body", "html", "menu", "search", "option", "optgroup",
    "rt",
))
# fmt: on
_VERBATIM = frozenset(("pre", "listing", "xmp", "plaintext"))
_PICTURES = frozenset(("img", "amp-img"))
_LISTS = frozenset(("ul", "ol", "dir", "menu"))
_CELLS = frozenset(("td", "th"))
_NO_TEXT = frozenset(("table", "tbody", "thead", "tfoot", "tr", "ul", "ol", "dl", "head", "picture", "html"))
_NOT_DATA = (_PARAGRAPHS | _BLOCKS | _PICTURES | {"picture"}) - {"caption", "tr", "thead", "tbody", "tfoot", "rt"}
MAX_TITLE = 1000


@dataclass(frozen=True, slots=True)
class PageContent:
    """What a page says.

    Attributes:
        parts: texts and pictures in reading order; texts are not empty and have no whitespace at their ends.
        title: the ``<title>``, empty where there is none.
        language: the ``lang`` attribute of the page, empty where there is none.
    """

    parts: tuple[str | Picture, ...]
    title: str
    language: str


def read_page(html: str, url: str) -> PageContent:
    """The content of the page ``html`` that was found at ``url``.

    Raises:
        ItemError: ``html-too-tangled``.
        TokkitError: resiliparse is not installed.
    """
    page = parse_html(html)
    title = language = ""
    body = page
    for element in page.elements():
        if element.tag == "html":
            language = language or element.get("lang")[:64]
        elif element.tag == "title" and not title:
            title = " ".join(element.text()[: 4 * MAX_TITLE].split())[:MAX_TITLE]
        elif element.tag == "body":
            body = element
            break
    return PageContent(tuple(_Walk(body, base_of(page, url)).run()), title, language)


class _Walk:
    def __init__(self, body: Element, base: str) -> None:
        self._body, self._base = body, base
        self._boilerplate = Boilerplate(body)
        self._flow = Flow()
        self._lists: list[int | None] = []  # of each list we are in, the number of its next item; None without numbers
        self._layout: list[bool] = []  # of each table we are in, whether it is there for the layout

    def run(self) -> list[str | Picture]:
        """Walk without recursion: pages may be nested more deeply than Python allows."""
        waiting: list[tuple[Element | str, bool]] = [(self._body, False)]
        while waiting:
            item, leaving = waiting.pop()
            if isinstance(item, str):
                self._flow.text(item)
            elif leaving:
                self._leave(item)
            elif self._enter(item):
                waiting.append((item, True))
                silent = item.tag in _NO_TEXT
                waiting.extend((child, False) for child in reversed(item.children) if not (silent and isinstance(child, str)))
        return self._flow.finish()

    def _enter(self, element: Element) -> bool:
        """Begin an element; False where what is in it is not walked."""
        tag, flow = element.tag, self._flow
        if tag == "head" or self._boilerplate.is_left_out(element):
            return False
        if tag in _PICTURES:
            self._picture(element)
            return False
        if tag == "noscript":
            self._no_script(element)
            return False
        if tag == "br":
            flow.newline()
            return False
        if tag in _CELLS:
            flow.block(1) if self._layout and self._layout[-1] else flow.tab()
            return True
        self._edge(tag)
        if tag in _VERBATIM:
            self._verbatim(element)
            return False
        if tag in _LISTS:
            self._lists.append(_number(element.get("start"), 1) if tag == "ol" else None)
        elif tag == "table":
            self._layout.append(_is_layout(element))
        elif tag == "li":
            self._item(element)
        return True

    def _leave(self, element: Element) -> None:
        tag = element.tag
        if tag in _LISTS:
            self._lists.pop()
        elif tag == "table":
            self._layout.pop()
        elif tag in _CELLS and self._layout and self._layout[-1]:
            self._flow.block(1)
        self._edge(tag)

    def _edge(self, tag: str) -> None:
        if tag in _PARAGRAPHS:
            within = bool(self._lists) and tag in _LISTS  # a list within a list is no paragraph of its own
            self._flow.block(1 if within else 2)
        elif tag in _BLOCKS:
            self._flow.block(1)

    def _item(self, element: Element) -> None:
        number = self._lists[-1] if self._lists else None
        if number is not None:
            number = _number(element.get("value"), number)
            self._lists[-1] = number + 1
        self._flow.bullet("  " * max(0, len(self._lists) - 1) + ("- " if number is None else f"{number}. "))

    def _picture(self, element: Element) -> None:
        instead = text_instead(element)
        if instead is not None:
            self._flow.text(instead)
            return
        picture = picture_of(element, self._base)
        if picture is not None:
            self._flow.picture(picture)

    def _no_script(self, element: Element) -> None:
        for inner in element.elements():
            if inner.tag in _PICTURES:
                picture, last = picture_of(inner, self._base), self._flow.last_picture()
                known = last is not None and picture is not None and bool(set(picture.urls) & set(last.urls))
                if picture is not None and not known:
                    self._flow.picture(picture)

    def _verbatim(self, element: Element) -> None:
        """Text as it stands; pictures in it, which are rare, come behind it."""
        self._flow.verbatim(element.text())
        self._edge(element.tag)
        for inner in element.elements():
            if inner.tag in _PICTURES:
                self._picture(inner)


def _is_layout(table: Element) -> bool:
    """Whether a table's cells hold blocks or pictures."""
    inside = False
    waiting = [(table, False)]
    while waiting:
        element, inside = waiting.pop()
        for child in element.children:
            if isinstance(child, Element):
                if inside and child.tag in _NOT_DATA:
                    return True
                waiting.append((child, inside or child.tag in _CELLS))
    return False


def _number(text: str, default: int) -> int:
    digits = text.strip().removeprefix("-")
    return int(text) if digits.isascii() and digits.isdigit() and len(digits) < 9 else default
