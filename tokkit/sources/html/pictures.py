"""Which picture an element shows, where it may be found, and which pictures are none.

A picture has candidates, best first: what a lazy loader would put in (``data-src`` and its relatives), ``src``, then the
entries of ``srcset`` and of the ``<source>`` elements of its ``<picture>``, largest first. All are absolute, resolved against
``<base>`` and the page. The first one is the picture's URL; the others are looked for where that one is not to be had.

No picture of the content is: what its attributes size at 2 pixels or less in width or height, or a ``data:`` URI of less than
200 bytes (a placeholder). A picture of class ``emoji``, ``smiley``, ``latex`` or the like is its alternative text.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import quote, unquote_to_bytes, urljoin, urlsplit, urlunsplit

from tokkit.sources.html.dom import Element
from tokkit.sources.untrusted import printable

# fmt: off
LAZY = (
    "data-src", "data-original", "data-lazy-src", "data-lazy", "data-original-src", "data-actualsrc", "data-hi-res-src",
    "data-full-src", "data-img-src",
)
_SRCSETS = ("data-srcset", "data-lazy-srcset", "srcset")
_TEXT_CLASSES = frozenset((
    "emoji", "smiley", "wp-smiley", "emoticon", "latex", "mwe-math-fallback-image-inline", "mwe-math-fallback-image-display",
    "tex",
))
# fmt: on
MAX_URL = 4096
MAX_CANDIDATES = 16
MAX_DATA_BYTES = 16 << 20
MIN_DATA_BYTES = 200
MIN_DECLARED = 3  # pixels
MAX_ALT = 10_000
_KEPT = "%/:=&?~#+!$,;'@()*[]|^{}\\`\"<> "  # of a URL: ASCII that is left as it is
_SHOWN = 64  # characters of a data: URI
_SIZE = re.compile(r"\s*(\d{1,6})(?:\.\d+)?\s*(?:px)?\s*")
_BETWEEN = " \t\r\n\f,"
_DATA = re.compile(r"data:([^,]{0,200}),(.*)", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as a page names it.

    Attributes:
        urls: where it may be found, best first; empty where the page holds its bytes, or names nothing that is a URL.
        shown: how to name it to people: the first URL, or the beginning of what stands there.
        alt: its alternative text, whitespace collapsed.
        data: its bytes, where the page holds them.
    """

    urls: tuple[str, ...]
    shown: str
    alt: str = ""
    data: bytes | None = None


def picture_of(element: Element, base: str) -> Picture | None:
    """The picture that an ``img`` shows, or None where it is no picture of the content."""
    if any(_declared(element.get(side)) < MIN_DECLARED for side in ("width", "height")):
        return None
    named = _candidates(element)
    alt = " ".join(element.get("alt")[:MAX_ALT].split())
    urls: dict[str, None] = {}
    embedded: bytes | None = None
    for candidate in named:
        if candidate[:5].lower() == "data:":
            if embedded is None and len(data := _data_of(candidate)) >= MIN_DATA_BYTES:
                embedded = data
            continue
        url = absolute(candidate, base)
        if url is not None and len(urls) < MAX_CANDIDATES:
            urls[url] = None
    if urls:  # an embedded picture beside a URL is a preview of it
        return Picture(tuple(urls), next(iter(urls)), alt)
    if embedded is not None:
        shown = next(name for name in named if name[:5].lower() == "data:")
        return Picture((), f"{printable(shown[:_SHOWN])}... ({len(embedded)} bytes)", alt, embedded)
    wrong = next((name for name in named if name[:5].lower() != "data:"), "")
    return Picture((), printable(wrong[:MAX_URL]), alt) if wrong else None


def text_instead(element: Element) -> str | None:
    """The alternative text of a picture that stands for a sign or a formula; None for any other."""
    names = set(element.get("class").lower().split())
    return element.get("alt")[:MAX_ALT] if names & _TEXT_CLASSES else None


def base_of(page: Element, url: str) -> str:
    """What relative URLs are relative to."""
    for element in page.elements():
        if element.tag == "base" and "href" in element.attributes:
            return absolute(element.get("href"), url) or url
    return url


def absolute(reference: str, base: str) -> str | None:
    """An absolute http(s) URL without fragment, or None for what is none (or longer than ``MAX_URL``)."""
    tidy = re.sub(r"[\t\r\n]", "", reference.strip())
    if not tidy or len(tidy) > MAX_URL:
        return None
    try:
        url = urljoin(base, tidy)
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https", "file", "ftp") or (parts.scheme.startswith("http") and not parts.hostname):
            return None
    except ValueError:
        return None
    return _ascii(url.partition("#")[0])


def _ascii(url: str) -> str | None:
    """A URL as browsers ask for it: its host by IDNA, all else that is not ASCII, and spaces, in percent signs and UTF-8."""
    if not url.isascii():
        parts = urlsplit(url)
        try:
            host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode("ascii")
        except UnicodeError:
            return None
        rest = (quote(part.encode("utf-8", "replace"), safe=_KEPT) for part in (parts.path, parts.query))
        url = urlunsplit((parts.scheme, host, *rest, ""))
    return url.replace(" ", "%20")


def _candidates(element: Element) -> list[str]:
    found = [element.get(name).strip() for name in LAZY if element.get(name).strip()]
    if element.get("src").strip():
        found.append(element.get("src").strip())
    sized: list[tuple[float, str]] = []
    for holder in (element, *_sources(element)):
        for name in _SRCSETS:
            if holder.get(name):
                sized += _entries(holder.get(name))
    sized.sort(key=lambda entry: -entry[0])  # stable: of equal ones the first
    return [name for name in found + [url for _, url in sized] if not re.match(r"(?:about|javascript|blob):", name, re.I)]


def _sources(element: Element) -> list[Element]:
    """The ``<source>`` elements of the ``<picture>`` around an ``img``."""
    parent = element.parent
    if parent is None or parent.tag != "picture":
        return []
    return [child for child in parent.children if isinstance(child, Element) and child.tag == "source"]


def _entries(srcset: str) -> list[tuple[float, str]]:
    """(width or density, URL) of each entry of a ``srcset``; densities count as less than any width."""
    found: list[tuple[float, str]] = []
    rest = srcset[: MAX_URL * MAX_CANDIDATES].lstrip(_BETWEEN)
    while rest and len(found) < 4 * MAX_CANDIDATES:
        url, *behind = rest.split(None, 1)
        rest = behind[0] if behind else ""
        size = None
        if not url.endswith(","):  # a comma at the URL's end is none of it: nothing is said of this entry
            how, _, rest = rest.partition(",")
            size = re.match(r"\s*(\d{1,6}(?:\.\d{1,3})?)([wx])", how)
        found.append((float(size[1]) / (1 if size[2] == "w" else 1000) if size else 0.0, url.rstrip(",")))
        rest = rest.lstrip(_BETWEEN)
    return found


def _declared(size: str) -> float:
    """A width or height attribute in pixels; infinite where it says nothing (percentages included)."""
    found = _SIZE.fullmatch(size)
    return float(found[1]) if found else float("inf")


def _data_of(uri: str) -> bytes:
    """The bytes of a ``data:`` URI, empty where there are none or too many."""
    found = _DATA.match(uri) if len(uri) <= 2 * MAX_DATA_BYTES else None
    if found is None:
        return b""
    kind, body = found[1].lower(), found[2]
    if "svg" in kind:
        return b""
    raw = unquote_to_bytes(body)
    if kind.rstrip().endswith(";base64"):
        try:
            raw = base64.b64decode(re.sub(rb"\s", b"", raw) + b"==")
        except (binascii.Error, ValueError):
            return b""
    return raw if len(raw) <= MAX_DATA_BYTES else b""
