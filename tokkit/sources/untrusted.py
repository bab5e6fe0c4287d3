"""What every format does with bytes it did not write: decode text, parse JSON, name things, within bounds.

Problems are raised as :class:`~tokkit.errors.ItemError`, whose reason is the slug that the reject is counted by.
"""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Mapping

from tokkit.documents import Document, Failure, Outcome
from tokkit.errors import ItemError

MAX_ITEM_BYTES = 256 * 2**20
"""Largest text, line, picture or sound that is read into memory."""

MAX_JSON_DEPTH = 64
"""Levels of nesting in a JSON value: what walks one later does so by recursion."""

_BOM = b"\xef\xbb\xbf"


def slug(text: str) -> str:
    """``failed_to_download`` -> ``failed-to-download``: a reason that outcomes can be counted by."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:64] or "unknown"


def printable(text: str) -> str:
    """``text`` with lone surrogates written as escapes, so that any file format can hold it (names and ids, never content)."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def decode_text(data: bytes) -> str:
    """UTF-8 bytes as text, without the byte order mark.

    Raises:
        ItemError: ``text-not-utf8``.
    """
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ItemError("text-not-utf8", not_utf8_message(error)) from None


def not_utf8_message(error: UnicodeDecodeError) -> str:
    """Say where text stops being UTF-8, and guess at UTF-16 from its byte order mark."""
    hint = ", it looks like UTF-16" if error.object[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
    return f"byte 0x{error.object[error.start]:02x} at {error.start} is not UTF-8 ({error.reason}){hint}"


def parse_json(data: bytes | str) -> object:
    """One JSON value; NaN and the infinities, which JSON does not know, become null.

    Raises:
        ItemError: ``text-not-utf8``, ``json-invalid``, or ``json-repeated-key`` where the outermost object names a key twice
            (which of the two was meant cannot be known).
    """
    text = decode_text(data) if isinstance(data, bytes) else data
    try:
        value = _decoded(text)
    except RecursionError:
        raise ItemError("json-invalid", "nested too deeply") from None
    except ValueError as error:
        raise ItemError("json-invalid", str(error)) from None
    if _is_nested(value) and text.count("[") + text.count("{") > MAX_JSON_DEPTH:
        _check_depth(value)
    if isinstance(value, _Repeated):
        raise ItemError("json-repeated-key", f"the key {printable(value.key)!r} comes twice")
    return value


class _Repeated(dict[str, object]):
    """An object that names ``key`` more than once."""

    key: str


def _object(items: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(items)
    if len(found) == len(items):
        return found
    keys = [key for key, _ in items]
    repeated = _Repeated(found)
    repeated.key = next(key for key in keys if keys.count(key) > 1)
    return repeated


_JSON = json.JSONDecoder(object_pairs_hook=_object, parse_constant=lambda _: None)
_scan: Callable[[str, int], tuple[object, int]] = _JSON.scan_once  # type: ignore[attr-defined]


def _decoded(text: str) -> object:
    """The value of a text; one that begins with its object and ends with it is not looked at for white space around it."""
    if text[:1] == "{":
        try:
            value, end = _scan(text, 0)
        except StopIteration:  # what is wrong, the decoder tells
            return _JSON.decode(text)
        if end == len(text):
            return value
    return _JSON.decode(text)


def _is_nested(value: object) -> bool:
    """Whether a value has more than one level; most records have not, and need no second look at their text."""
    if isinstance(value, dict):
        for inner in value.values():  # noqa: SIM110 - a generator takes twice as long
            if isinstance(inner, (dict, list)):
                return True
        return False
    return isinstance(value, list)


def _check_depth(value: object) -> None:
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        if children and depth > MAX_JSON_DEPTH:
            raise ItemError("json-invalid", f"nested more than {MAX_JSON_DEPTH} levels deep")
        waiting.extend((child, depth + 1) for child in children)


def json_safe(value: object) -> object:
    """``value`` as JSON can hold it: dates and decimals as text, no binary, no infinities, no lone surrogates."""
    kind = type(value)  # most values are of these types themselves, which is cheaper to ask
    if kind is str:
        return printable(value)  # type: ignore[arg-type]
    if value is None or kind is int or kind is bool:
        return value
    if kind is dict:
        return metadata_of(value)  # type: ignore[arg-type]
    if kind is list:
        return [json_safe(item) for item in value]  # type: ignore[attr-defined]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes | bytearray | memoryview):
        return None
    if isinstance(value, Mapping):
        return metadata_of(value)
    if isinstance(value, tuple):
        return [json_safe(item) for item in value]
    if isinstance(value, bool | int):
        return value
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return printable(str(value))


def metadata_of(fields: Mapping[str, object]) -> dict[str, object]:
    """Fields of a record as a document's metadata."""
    found: dict[str, object] = {}
    for key, value in fields.items():
        name = key if type(key) is str else str(key)
        plain = type(value) is str and value.isascii()  # as most are: they need no call
        found[name if name.isascii() else printable(name)] = value if plain else json_safe(value)
    return found


def failed_document(
    source: str,
    locator: str,
    reason: str,
    message: str,
    *,
    outcome: Outcome = Outcome.REJECTED,
    id: str | None = None,  # noqa: A002 - the document's own field
    pair: bool = False,
    metadata: Mapping[str, object] | None = None,
) -> Document:
    """A document that counts, but that there is nothing to read of."""
    return Document(
        id=locator if id is None else id,
        source=source,
        locator=locator,
        segments=(),
        pair=pair,
        metadata=metadata or {},
        failure=Failure(outcome, reason, printable(message)),
    )
