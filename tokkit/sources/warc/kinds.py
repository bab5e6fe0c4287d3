"""Which records are documents, by their headers alone: the one rule that reading and counting share.

* A ``response`` whose HTTP header declares HTML (``text/html``, ``application/xhtml+xml``) is a page, whatever its status; so
  is one that declares nothing, where neither the archive has identified it (``WARC-Identified-Payload-Type``): what it is, its
  first bytes tell when it is read. A ``resource`` is a page where the record declares HTML.
* A ``conversion`` to ``text/plain`` is a text (WET).
* Everything else is no document: pictures, styles and scripts, ``revisit`` (the page is where it refers to), ``request``,
  ``metadata`` (WAT), ``warcinfo``, ``dns`` and ``continuation``.
"""

from __future__ import annotations

from enum import StrEnum

HTML_TYPES = frozenset(("text/html", "application/xhtml+xml"))


class Kind(StrEnum):
    """What a record is."""

    PAGE = "page"
    TEXT = "text"
    OTHER = "other"


def essence(content_type: str) -> str:
    """``text/HTML; charset=x`` -> ``text/html``; so is ``text/html charset=x``, which some servers write."""
    return next(iter(content_type.partition(";")[0].split()), "").lower()


def is_http(content_type: str) -> bool:
    """Whether a record's block is an HTTP message, by the record's ``Content-Type``."""
    return essence(content_type) == "application/http"


def kind_of(record_type: str, declared: str, identified: str) -> Kind:
    """What a record is.

    Args:
        record_type: ``WARC-Type``, in lower case.
        declared: the payload's type: the HTTP header's for an HTTP message, else the record's ``Content-Type``.
        identified: ``WARC-Identified-Payload-Type``.
    """
    if record_type == "response":
        kind = essence(declared) or essence(identified)
        return Kind.PAGE if kind in HTML_TYPES or not kind else Kind.OTHER
    if record_type == "resource":
        return Kind.PAGE if essence(declared) in HTML_TYPES else Kind.OTHER
    if record_type == "conversion":
        return Kind.TEXT if essence(declared) == "text/plain" else Kind.OTHER
    return Kind.OTHER
