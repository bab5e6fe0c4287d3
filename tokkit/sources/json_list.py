"""The elements of a JSON file that is one list, one after another, in memory for the largest of them.

The walk knows strings and brackets and no more: an element is what stands between two commas of the list, whether it can be
parsed or not, so one that cannot be parsed does not hide those behind it. Where brackets do not close the list has no end that
could be relied on, and what follows is told as damage.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from tokkit.sources.base import Alive, silent
from tokkit.sources.untrusted import MAX_ITEM_BYTES

_CHUNK = 1 << 20
_BOM = b"\xef\xbb\xbf"
_STRINGS = rb'(?:"(?:[^"\\]++|\\.)*+"[^"{}\[\]%s]*+)*+'
_BETWEEN = re.compile(rb'[^"{}\[\],]*+' + _STRINGS % b",", re.DOTALL)  # up to the next bracket or comma of the list
_INSIDE = re.compile(rb'[^"{}\[\]]*+' + _STRINGS % b"", re.DOTALL)  # of an element: up to the next bracket
_CLOSES = {ord("}"): ord("{"), ord("]"): ord("[")}


@dataclass(frozen=True, slots=True)
class ListDamage:
    """The list cannot be read on from byte ``start``."""

    start: int
    reason: str
    message: str


def elements(file: BinaryIO, limit: int = MAX_ITEM_BYTES) -> Iterator[tuple[int, bytes] | ListDamage]:
    """Pairs of (offset, bytes) of the list's elements, ended by a damage if there is one; a comma before the end is none."""
    buffer = file.read(_CHUNK)
    place = len(buffer) - len(buffer.removeprefix(_BOM).lstrip())
    if buffer[place : place + 1] != b"[":
        yield ListDamage(0, "json-not-a-list", "the file does not begin with a list")
        return
    base = 0  # offset of buffer[0]
    place += 1
    begin = place  # of the element
    open_brackets = bytearray(b"[")
    while True:
        match = (_BETWEEN if len(open_brackets) == 1 else _INSIDE).match(buffer, place)
        place = match.end() if match is not None else place
        if place == len(buffer) or buffer[place] == ord('"'):  # the string goes on behind what is here
            if len(buffer) - begin > limit:
                yield ListDamage(base + begin, "json-element-too-long", f"an element of more than {limit} bytes")
                return
            more = file.read(max(_CHUNK, len(buffer) - begin))
            if not more:
                yield ListDamage(base + begin, "json-truncated", "the file ends before the list does")
                return
            buffer, base, place, begin = buffer[begin:] + more, base + begin, place - begin, 0
            continue
        character = buffer[place]
        if character == ord(","):
            yield _element(buffer, base, begin, place)
            begin = place + 1
        elif character not in _CLOSES:
            open_brackets.append(character)
        elif open_brackets.pop() != _CLOSES[character]:
            yield ListDamage(base + begin, "json-damaged", f"the bracket at byte {base + place} closes another kind")
            return
        elif not open_brackets:
            break
        place += 1
    if buffer[begin:place].strip():
        yield _element(buffer, base, begin, place)
    begin, buffer = base + place + 1, buffer[place + 1 :]
    while buffer:
        if buffer.strip():
            yield ListDamage(begin, "json-trailing-garbage", "something follows the list")
            return
        buffer = file.read(_CHUNK)


def _element(buffer: bytes, base: int, begin: int, end: int) -> tuple[int, bytes]:
    found = buffer[begin:end]
    return base + begin + len(found) - len(found.lstrip()), found.strip()


_ESCAPE = re.compile(rb"\\.", re.DOTALL)
_TOKEN = re.compile(rb"[\[\]{},]|[^\s\[\]{},]+")


def count_elements(file: BinaryIO, alive: Alive = silent) -> int | None:
    """How many elements the list has, by its commas: strings are cut out, then brackets counted. None for no whole list."""
    nesting, commas, blank, in_string, begun = b"", 0, True, False, False
    carry, first = b"", True
    while chunk := file.read(_CHUNK):
        alive()
        data = carry + (chunk.removeprefix(_BOM) if first else chunk)
        first = False
        odd = (len(data) - len(data.rstrip(b"\\"))) % 2
        data, carry = (data[:-1], b"\\") if odd else (data, b"")
        for number, part in enumerate(_ESCAPE.sub(b"\0", data).split(b'"')):
            if number:
                in_string, blank = not in_string, False
            if in_string:
                continue
            if b"\0" in part:
                return None
            for token in _TOKEN.findall(part):
                if not nesting and (begun or token != b"["):
                    return None
                begun = True
                if token in (b"[", b"{"):
                    nesting, blank = nesting + token, not nesting
                elif token in (b"]", b"}"):
                    if nesting[-1:] + token not in (b"[]", b"{}"):
                        return None
                    nesting = nesting[:-1]
                elif token == b"," and len(nesting) == 1:
                    commas, blank = commas + 1, True
                elif token != b",":
                    blank = False
    return None if nesting or in_string or carry or not begun else commas + (not blank)
