"""Bytes of a page to text.

In this order: a byte order mark; a declared encoding of several bytes a character that decodes without an error; UTF-8, where
the bytes are UTF-8 (text of another encoding is almost never UTF-8 by chance, and servers often declare Latin-1 for
everything); the declared encoding; the one that resiliparse detects. What is declared is the HTTP header's charset, else the
one of a ``<meta>`` or XML declaration in the first 8 KB. A name counts only where it is one that browsers know.

Bytes that the encoding does not know become U+FFFD; their number is told, so that it can be seen in the metadata.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_HEAD = 8192
_META = re.compile(rb"""<meta[^>]{0,1000}?charset\s*=\s*["']?\s*([A-Za-z0-9._:-]{2,40})""", re.IGNORECASE)
_XML = re.compile(rb"""<\?xml[^>]{0,200}?encoding\s*=\s*["']([A-Za-z0-9._:-]{2,40})""", re.IGNORECASE)
_CHARSET = re.compile(r"""charset\s*=\s*["']?\s*([A-Za-z0-9._:-]{2,40})""", re.IGNORECASE)
_SUPERSETS = {"gbk": "gb18030", "gb2312": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs"}
_MULTI_BYTE = {"gb18030", "cp932", "cp949", "big5hkscs", "euc_jp", "iso2022_jp"}
_DETECT = 1 << 17


@dataclass(frozen=True, slots=True)
class Decoded:
    """A page's text, the encoding that it was read as, and how many characters of it are U+FFFD for bytes that were not."""

    text: str
    encoding: str
    errors: int


def decode_page(data: bytes, content_type: str = "") -> Decoded:
    """Decode a page; ``content_type`` is the HTTP header, if any."""
    for mark, name in _BOMS:
        if data.startswith(mark):
            return _decoded(data[len(mark) :], name)
    declared = declared_encoding(data, content_type)
    if declared in _MULTI_BYTE and (text := _strict(data, declared)) is not None:
        return Decoded(text, declared, 0)
    if declared not in ("utf-16-le", "utf-16-be") and (text := _strict(data, "utf-8")) is not None:
        return Decoded(text, "utf-8", 0)
    return _decoded(data, declared or _detected(data))


def declared_encoding(data: bytes, content_type: str) -> str | None:
    """The Python name of the encoding that the header or the page declares, or None."""
    header = _CHARSET.search(content_type)
    names = [header[1]] if header else []
    names += [found[1].decode("ascii") for pattern in (_META, _XML) if (found := pattern.search(data[:_HEAD]))]
    for place, name in enumerate(names):
        known = _python_name(name)
        if known is not None:
            # A page that was read as far as its <meta> is no UTF-16, whatever that says.
            return "utf-8" if known.startswith("utf-16") and (place > 0 or header is None) else known
    return None


def _python_name(label: str) -> str | None:
    """A label as browsers understand it, or None."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    mapped = map_encoding_to_html5(label, fallback_utf8=False)
    if mapped is None:
        return None
    try:
        name = codecs.lookup(mapped).name
    except LookupError:
        return None
    return _SUPERSETS.get(name, name)


def _detected(data: bytes) -> str:
    from resiliparse.parse.encoding import detect_encoding

    found = detect_encoding(data, max_len=_DETECT)
    return (_python_name(found) if found else None) or "cp1252"


def _strict(data: bytes, name: str) -> str | None:
    try:
        return data.decode(name)
    except UnicodeDecodeError:
        return None


def _decoded(data: bytes, name: str) -> Decoded:
    text = data.decode(name, "replace")
    errors = text.count("\ufffd")
    if errors and "\ufffd".encode() in data:  # the page itself may say U+FFFD
        errors = max(0, errors - data.count("\ufffd".encode()))
    return Decoded(text, name, errors)
