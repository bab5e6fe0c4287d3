"""A parsed page as a small tree of our own: elements with the attributes that matter, and strings.

The parser is resiliparse's (HTML5, never fails). Two things make any HTML5 parser expensive on purpose: formatting elements
that are never closed are opened again in every paragraph, so nodes grow with the product of the two; and attributes of one
tag are compared with one another. Both are counted before parsing, and a page that goes too far is refused.

Reading goes over the parser's tree once; text within ``script``, ``style`` and the like is left behind there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokkit.errors import ItemError, TokkitError

if TYPE_CHECKING:
    from resiliparse.parse.html.node import Node

MAX_NODES = 500_000
"""Elements that a page may come to: in all about 600 MB while it is read."""

MAX_ATTRIBUTES = 4096
"""Attributes that one tag may have."""

# fmt: off
NEVER_READ = frozenset((
    "script", "style", "template", "svg", "annotation", "annotation-xml", "iframe", "object", "embed",
    "applet", "canvas", "audio", "video", "button", "select", "textarea", "input", "datalist", "dialog", "map", "param",
    "track", "link", "frameset", "noframes",
))
_WANTED = frozenset((
    "class", "id", "role", "hidden", "style", "aria-hidden", "aria-modal", "href", "lang", "alt", "width", "height",
    "src", "srcset", "data-src", "data-original", "data-lazy-src", "data-lazy", "data-srcset", "data-lazy-srcset",
    "data-original-src", "data-actualsrc", "data-hi-res-src", "data-full-src", "data-img-src", "start", "value",
))
_FORMATTING = frozenset(("a", "b", "big", "code", "em", "font", "i", "nobr", "s", "small", "strike", "strong", "tt", "u"))
_CLOSED_BY_THE_NEXT = frozenset(("a", "nobr"))
# fmt: on
_TAG = re.compile(r"<(/?)([a-zA-Z][^\s/>]*)([^>]*)>?")
_LONG_TAG = 1 << 14


@dataclass(eq=False, slots=True)
class Element:
    """An element: its tag in lower case, its attributes as far as they matter, and its children."""

    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    children: list[Element | str] = field(default_factory=list)
    parent: Element | None = field(default=None, repr=False)

    def get(self, name: str) -> str:
        """An attribute, empty where it is not there."""
        return self.attributes.get(name, "")

    def elements(self) -> Iterator[Element]:
        """This element and all below it, in document order."""
        waiting = [self]
        while waiting:
            element = waiting.pop()
            yield element
            waiting.extend(child for child in reversed(element.children) if isinstance(child, Element))

    def text(self) -> str:
        """All text below, as it stands."""
        found: list[str] = []
        waiting: list[Element | str] = [self]
        while waiting:
            item = waiting.pop()
            if isinstance(item, str):
                found.append(item)
            else:
                waiting.extend(reversed(item.children))
        return "".join(found)


def parse_html(text: str) -> Element:
    """The page's ``html`` element.

    Raises:
        ItemError: ``html-too-tangled``: more than ``MAX_NODES`` elements, or ``MAX_ATTRIBUTES`` attributes in one tag;
            ``html-parser-failed``: a fault of the parser.
        TokkitError: resiliparse is not installed.
    """
    check_bounds(text)
    require_parser()
    from resiliparse.parse.html import HTMLTree

    try:
        return _copy(HTMLTree.parse(text).document)  # type: ignore[arg-type]
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what a fault in compiled Rust comes as, and no Exception
            raise
        raise ItemError("html-parser-failed", str(error)[:500]) from None


def require_parser() -> None:
    """Raise a TokkitError that says what to install where the parser is missing."""
    try:
        import resiliparse.parse.html  # noqa: F401
    except ImportError as error:
        raise TokkitError(f'web archives need resiliparse ({error}): pip install "tokkit[warc]"') from None


def check_bounds(text: str) -> None:
    """Count what parsing would come to, roughly and from above; raises ItemError ``html-too-tangled``."""
    nodes = 0
    again = 0  # formatting elements that the next paragraph opens again: of equal ones at most three
    unclosed: dict[str, list[str]] = {}
    for tag in _TAG.finditer(text):
        closing, name, rest = tag[1], tag[2].lower(), tag[3]
        nodes += 1 + again
        if nodes > MAX_NODES:
            raise ItemError("html-too-tangled", f"parsing would make more than {MAX_NODES} elements")
        if len(rest) > _LONG_TAG and len(rest.split(None, MAX_ATTRIBUTES)) + rest.count("=") > MAX_ATTRIBUTES:
            raise ItemError("html-too-tangled", f"a tag has more than {MAX_ATTRIBUTES} attributes")
        if name not in _FORMATTING:
            continue
        same = unclosed.setdefault(name, [])
        if closing:
            if same:
                same.pop()
                again -= 1
        elif same.count(rest) < 3 and not (same and name in _CLOSED_BY_THE_NEXT):
            same.append(rest)
            again += 1


def _copy(root: Node) -> Element:
    from resiliparse.parse.html.node import ElementNode, TextNode

    top = Element("#document")
    waiting: list[tuple[Node, Element]] = [(root, top)]
    while waiting:
        node, here = waiting.pop()
        child = node.first_child
        while child is not None:
            if isinstance(child, TextNode):
                here.children.append(child.value or "")
            elif isinstance(child, ElementNode):
                tag = child.tag or ""
                if tag not in NEVER_READ:
                    names = child.attrs
                    wanted = {name: child.getattr(name) or "" for name in names if name in _WANTED} if names else {}
                    element = Element(tag, wanted, [], here)
                    here.children.append(element)
                    waiting.append((child, element))
            child = child.next
    return top
