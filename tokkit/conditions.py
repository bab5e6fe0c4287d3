"""Conditions on documents: which of them are wanted, by what their source says of them and by how long they are.

A condition is ``FIELD OPERATOR VALUE``::

    similarity >= 0.28          numbers are compared as numbers, also where the source has them as text
    language in en, de, fr      one of these; ``not in`` is the opposite
    license == "CC BY 4.0"      texts are compared exactly; quotes are for what looks like a number and for spaces at the ends
    url matches ^https://[^/]*\\.org/
    punsafe < 0.5 or null       also where the field is missing or null

FIELD is a name of the document's metadata; where there is no such name, ``a.b`` is the field ``b`` of the object ``a``. Of the
document itself: ``document.characters`` (of all its texts), ``document.images``, ``document.sounds``, ``document.source``,
``document.id``. As in SQL, a field that is missing or null satisfies nothing but ``== null`` and ``or null``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import ge, gt, le, lt

from tokkit.documents import Audio, Document, Failure, Image, Outcome, Text

_CONDITION = re.compile(r"\s*([^\s=<>!]+)\s*(==|!=|<=|>=|=|<|>|not\s+in\b|in\b|matches\b)\s*(.*?)\s*", re.DOTALL)
_OR_NULL = re.compile(r"\s+or\s+null\s*\Z")
_ORDERS: Mapping[str, Callable[[float, float], bool]] = {"<": lt, "<=": le, ">": gt, ">=": ge}
_QUOTED = re.compile(r"\"([^\"]*)\"|'([^']*)'")

Value = float | str | bool | None

OF_DOCUMENT: Mapping[str, Callable[[Document], object]] = {
    "document.characters": lambda document: sum(len(s.text) for s in document.segments if isinstance(s, Text)),
    "document.images": lambda document: sum(isinstance(s, Image) for s in document.segments),
    "document.sounds": lambda document: sum(isinstance(s, Audio) for s in document.segments),
    "document.source": lambda document: document.source,
    "document.id": lambda document: document.id,
}


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        text: as it was written.
        field, operator: see the module's docstring; ``=`` is ``==``.
        values: what the field is compared with; several only for ``in`` and ``not in``.
        or_null: whether a field that is missing or null is fine.
    """

    text: str
    field: str
    operator: str
    values: tuple[Value, ...]
    or_null: bool

    def failure(self, document: Document) -> Failure | None:
        """Why the document is not wanted; None if it is."""
        found = self._field_of(document)
        if self._holds(found) if found is not None else self._takes_null:
            return None
        shown = "missing or null" if found is None else repr(found)[:80]
        return Failure(Outcome.FILTERED, f"where {self.text}", f"{self.field} is {shown}")

    def _field_of(self, document: Document) -> object:
        if self.field in OF_DOCUMENT:
            return OF_DOCUMENT[self.field](document)
        found: object = document.metadata
        if self.field in document.metadata:
            return document.metadata[self.field]
        for name in self.field.split("."):
            if not isinstance(found, Mapping) or name not in found:
                return None
            found = found[name]
        return found

    @property
    def _takes_null(self) -> bool:
        return self.or_null or (self.operator in ("==", "in") and None in self.values)

    def _holds(self, found: object) -> bool:
        if self.operator in ("==", "in"):
            return any(_equal(found, value) for value in self.values)
        if self.operator in ("!=", "not in"):
            return not any(_equal(found, value) for value in self.values)
        (value,) = self.values
        if self.operator == "matches":
            return isinstance(found, str | int | float) and _pattern(str(value)).search(str(found)) is not None
        number = _number(found)
        if number is None or not isinstance(value, float):
            return False
        return _ORDERS[self.operator](number, value)


def parse_condition(text: str) -> Condition:
    """Read a condition; ValueError with what is wrong with it."""
    tidy = text.strip()
    or_null = _OR_NULL.search(tidy) is not None
    match = _CONDITION.fullmatch(_OR_NULL.sub("", tidy))
    if match is None or not match[3]:
        raise ValueError(f"{tidy!r} is not FIELD OPERATOR VALUE, for example: similarity >= 0.28")
    field, operator, written = match[1], " ".join(match[2].split()), match[3]
    operator = "==" if operator == "=" else operator
    if field.startswith("document.") and field not in OF_DOCUMENT:
        raise ValueError(f"{tidy!r}: there is no {field}, only {', '.join(OF_DOCUMENT)}")
    values = _values(written, operator)
    if operator in _ORDERS and not isinstance(values[0], float):
        raise ValueError(f"{tidy!r}: {written!r} is not a number")
    if operator == "matches":
        try:
            _pattern(written)
        except re.error as error:
            raise ValueError(f"{tidy!r}: not a regular expression: {error}") from None
    return Condition(tidy, field, operator, values, or_null)


def parse_conditions(texts: Sequence[str]) -> tuple[Condition, ...]:
    """Read several; ValueError with what is wrong with the first that is no condition."""
    return tuple(map(parse_condition, texts))


def unwanted(document: Document, conditions: Sequence[Condition]) -> Failure | None:
    """The first condition that a document fails, as its failure; None if it satisfies all."""
    for condition in conditions:
        failure = condition.failure(document)
        if failure is not None:
            return failure
    return None


def _values(written: str, operator: str) -> tuple[Value, ...]:
    if operator == "matches":
        return (written,)
    if operator not in ("in", "not in"):
        return (_value(written),)
    inner = written[1:-1] if written[0] + written[-1] in ("()", "[]") else written
    values = tuple(_value(part.strip()) for part in re.findall(r"\s*((?:\"[^\"]*\"|'[^']*'|[^,])+)", inner))
    if not values:
        raise ValueError(f"{written!r} is an empty list")
    return values


def _value(written: str) -> Value:
    quoted = _QUOTED.fullmatch(written)
    if quoted is not None:
        return quoted[1] if quoted[1] is not None else quoted[2]
    if written in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[written]
    number = _number(written)
    return written if number is None else number


def _number(value: object) -> float | None:
    """A number, or a text that is one; None for anything else, infinities and NaN included."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _equal(found: object, value: Value) -> bool:
    if value is None or isinstance(value, bool):
        return found is value
    if isinstance(value, float):
        return _number(found) == value
    return isinstance(found, str) and found == value


@lru_cache(maxsize=64)
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)
