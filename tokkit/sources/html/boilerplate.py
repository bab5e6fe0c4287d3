"""What of a page is not its content.

An element is left out, with all that is in it, where one of these holds. In the order in which they are looked at:

1. **Hidden**: ``hidden``, ``aria-hidden="true"``, ``display: none`` or ``visibility: hidden`` in its own style.
2. **Landmarks**: ``nav``, ``footer``, ``aside``, ``menu``; a ``header`` that is the page's, not that of an ``article``,
   ``main`` or ``section``; the roles navigation, banner, contentinfo, complementary, search, menu, menubar, toolbar,
   tablist, dialog, alertdialog and form. Dialogs that cover the page (``aria-modal``).
3. **Names**: a word of its class or id says so (``cookie``, ``breadcrumbs``, ``sidebar``, ``share``, ``newsletter``...,
   :data:`NAMES`). Names are cut into words at signs and capitals, so that ``heading`` is no ``ad``.
4. **Link lists**: a list, table, paragraph or division of three links or more whose text is for two thirds or more within
   them, and that has no more than 200 letters beside them (what has more is looked into instead). Links that lead past
   something (``skip``, ``jump``).
5. **Forms** that hold less than half of the page's text (a page may lie within one form as a whole).

Rules 2 to 5 leave alone whatever holds ``main`` or ``article``, and 3 whatever holds more than half of the page's text: pages
name their bodies oddly. ``html``, ``body``, ``main`` and ``article`` are never left out for their names or links; nor is a
caption (``figcaption``, ``caption``) or anything in it, nor a ``figure`` for its links. Buttons, fields, scripts and
embedded things are not read at all (:data:`~tokkit.sources.html.dom.NEVER_READ`).
"""

from __future__ import annotations

import re

from tokkit.sources.html.dom import Element

# fmt: off
ROLES = frozenset((
    "navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar", "tablist", "dialog",
    "alertdialog", "form",
))
NAMES = frozenset((
    "nav", "navbar", "navigation", "navbox", "navlinks", "menu", "submenu", "menubar", "breadcrumb", "breadcrumbs", "sidebar",
    "footer", "masthead", "topbar", "cookie", "cookies", "consent", "gdpr", "ccpa", "ad", "ads", "advert", "adverts",
    "advertisement", "adsense", "sponsor", "sponsored", "promo", "popup", "modal", "share", "sharing", "sharebar", "social",
    "subscribe", "newsletter", "signup", "login", "pagination", "pager", "skip", "skiplink", "noprint", "sitenav", "toc",
    "tagcloud", "related", "recommended", "recommendations", "trackback", "trackbacks", "respond", "editsection", "catlinks",
    "printfooter", "paywall",
))
_HIDDEN_NAMES = frozenset(("sr-only", "visually-hidden", "visuallyhidden", "screen-reader-text", "assistive-text"))
# fmt: on
_PAST = frozenset(("skip", "skiplink", "jump"))
_LANDMARKS = frozenset(("nav", "footer", "aside", "menu"))
_OWN_HEADER = frozenset(("article", "main", "section"))
_CONTENT = frozenset(("main", "article"))
_ROOTS = frozenset(("#document", "html", "body", "main", "article"))
_CAPTIONS = frozenset(("figcaption", "caption"))
_LISTS = frozenset(("ul", "ol", "dl", "div", "section", "table", "tbody", "td", "p", "center", "span"))
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_INVISIBLE = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
LINK_SHARE = 2 / 3
MIN_LINKS = 3
MAX_BESIDE = 200  # letters


class Boilerplate:
    """Judges the elements of one page. Measures all of them once, on construction."""

    def __init__(self, page: Element) -> None:
        self._letters: dict[Element, int] = {}
        self._linked: dict[Element, int] = {}
        self._links: dict[Element, int] = {}
        self._content: set[Element] = set()
        self._within: set[Element] = set()  # an article or the like
        self._captions: set[Element] = set()  # captions and what is in them
        elements = list(page.elements())
        for element in elements:
            if element.parent is not None and (element.parent.tag in _OWN_HEADER or element.parent in self._within):
                self._within.add(element)
            if element.tag in _CAPTIONS or element.parent in self._captions:
                self._captions.add(element)
        for element in reversed(elements):  # children before parents
            self._measure(element)
        self._half = self._letters[page] / 2

    def is_left_out(self, element: Element) -> bool:
        """Whether the element, of which no ancestor is left out, is not content."""
        if is_hidden(element):
            return True
        if element.tag in _ROOTS or element in self._captions or element in self._content:
            return False
        if self._is_landmark(element) or (self._letters[element] <= self._half and _is_named(element)):
            return True
        if element.tag == "form":
            return self._letters[element] <= self._half
        return self._is_link_list(element)

    def _is_landmark(self, element: Element) -> bool:
        if element.tag in _LANDMARKS or element.get("role").lower() in ROLES or element.get("aria-modal") == "true":
            return True
        return element.tag == "header" and element not in self._within

    def _measure(self, element: Element) -> None:
        inside = [child for child in element.children if isinstance(child, Element)]
        own = sum(len("".join(child.split())) for child in element.children if isinstance(child, str))
        letters = own + sum(self._letters[child] for child in inside)
        self._letters[element] = letters
        is_link = element.tag == "a" and "href" in element.attributes
        self._linked[element] = letters if is_link else sum(self._linked[child] for child in inside)
        self._links[element] = 1 if is_link else sum(self._links[child] for child in inside)
        if any(child.tag in _CONTENT or child in self._content for child in inside):
            self._content.add(element)

    def _is_link_list(self, element: Element) -> bool:
        return (
            element.tag in _LISTS
            and self._links[element] >= MIN_LINKS
            and self._letters[element] > 0
            and self._linked[element] >= LINK_SHARE * self._letters[element]
            and self._letters[element] - self._linked[element] <= MAX_BESIDE
        )


def is_hidden(element: Element) -> bool:
    """Whether the element says of itself that it is not shown."""
    attributes = element.attributes
    if not attributes:
        return False
    if "hidden" in attributes or attributes.get("aria-hidden", "").lower() == "true":
        return element.tag != "img" or "hidden" in attributes  # decoration to a screen reader, but a picture to the eye
    if "style" in attributes and _INVISIBLE.search(attributes["style"]):
        return True
    return not _HIDDEN_NAMES.isdisjoint(attributes.get("class", "").lower().split())


def _is_named(element: Element) -> bool:
    if not ("class" in element.attributes or "id" in element.attributes) or element.tag == "img":
        return False
    named = f"{element.get('class')} {element.get('id')}"
    names = _PAST if element.tag == "a" else NAMES
    return any(word.lower() in names for word in _WORDS.findall(named[:1000]))
