"""Repairing text that went through a wrong decoding on its way, with ftfy: ``cafÃ©`` was ``café`` once.

Each kind of repair is chosen by itself, so that nothing is changed that was not asked for:

* ``encoding``: UTF-8 that was read as another encoding (mojibake), Windows-1252 that was read as Latin-1, surrogate pairs;
* ``html``: entities (``&amp;``) in a text without any tag;
* ``controls``: terminal escapes, control characters (but for tab, newline, form feed and carriage return) and byte order marks
  are removed;
* ``line-breaks``: CRLF, CR, U+2028, U+2029 and U+0085 become LF;
* ``width``: full-width and half-width letters become ordinary ones; ``ligatures``: ``ﬁ`` becomes ``fi``;
* ``quotes``: curly quotes become straight ones;
* ``nfc`` or ``nfkc``: that normalization form.

Only ``encoding`` undoes a fault of the transport, and hardly ever changes a text that has none; all others change what somebody
may have meant. Text in which no kind that was chosen can find anything (ASCII without entities, say) is not handed to ftfy.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any, Literal, get_args

from tokkit.errors import UsageError

Repair = Literal["encoding", "html", "controls", "line-breaks", "width", "ligatures", "quotes", "nfc", "nfkc"]
REPAIRS: tuple[Repair, ...] = get_args(Repair)
PACKAGE = "ftfy"

# Bounds, so that a text that was made for it cannot take forever: ftfy by itself goes on for as long as anything changes, which
# is a step for each character of a long row of "Â", or for each "amp;" of "&amp;amp;amp;...".
LAYERS = 4  # times that a text can have been spoilt, one upon the other
LONGEST = 8192  # characters that are looked at together

# What a kind may change in a text of nothing but ASCII, as a class of characters; the other kinds change nothing in it.
_IN_ASCII = {"html": "&", "controls": r"\x00-\x08\x0b\x0e-\x1f\x7f", "line-breaks": r"\r"}


def normal_repairs(kinds: Sequence[Repair]) -> list[Repair]:
    """The kinds in one order, each once; ValueError where two contradict each other."""
    if {"nfc", "nfkc"} <= set(kinds):
        raise ValueError("nfc and nfkc are two normalization forms: choose one")
    return [kind for kind in REPAIRS if kind in kinds]


def repair_versions(kinds: Sequence[Repair]) -> dict[str, str]:
    """What else decides how texts are repaired: the versions of ftfy and, for a normalization form, of Python's Unicode tables.

    Raises:
        UsageError: ftfy is not installed.
    """
    _ftfy()
    found = {PACKAGE: version(PACKAGE)}
    return found | ({"unicode": unicodedata.unidata_version} if {"nfc", "nfkc"} & set(kinds) else {})


class TextRepair:
    """Repairs texts.

    Args:
        kinds: of :data:`REPAIRS`, at least one.

    Raises:
        UsageError: ftfy is not installed.
    """

    def __init__(self, kinds: Sequence[Repair]) -> None:
        ftfy = _ftfy()
        chosen = set(kinds)
        form: Literal["NFC", "NFKC"] | None = "NFKC" if "nfkc" in chosen else "NFC" if "nfc" in chosen else None
        self._unescape: Callable[[str], str] | None = ftfy.fixes.unescape_html if "html" in chosen else None
        # One step of what ftfy otherwise does without a bound. It is no public name: pyproject.toml bounds the version.
        self._decode_again: Any = ftfy._fix_encoding_one_step_and_explain if "encoding" in chosen else None
        self._fix = ftfy.fix_text_segment
        self._config = ftfy.TextFixerConfig(
            unescape_html=False,  # these two below, in bounded steps
            fix_encoding=False,
            remove_terminal_escapes="controls" in chosen,
            fix_c1_controls="encoding" in chosen,
            fix_surrogates="encoding" in chosen,
            fix_latin_ligatures="ligatures" in chosen,
            fix_character_width="width" in chosen,
            uncurl_quotes="quotes" in chosen,
            fix_line_breaks="line-breaks" in chosen,
            remove_control_chars="controls" in chosen,
            normalization=form,
            explain=False,
        )
        self._encoding = self._config._replace(fix_encoding=True)
        changed = "".join(characters for kind, characters in _IN_ASCII.items() if kind in chosen)
        self._changed_in_ascii = re.compile(f"[{changed}]").search if changed else None

    def __call__(self, text: str) -> str:
        """The text, repaired; the same string where there is nothing to repair."""
        if text.isascii() and (self._changed_in_ascii is None or self._changed_in_ascii(text) is None):
            return text
        repaired = self._repaired(text)
        return text if repaired == text else repaired

    def _repaired(self, text: str) -> str:
        unescape = None if "<" in text else self._unescape
        return "".join(self._line(segment, unescape) for segment in _segments(text))

    def _line(self, text: str, unescape: Callable[[str], str] | None) -> str:
        """As ftfy mends a line, but for the bound on the steps."""
        for _ in range(LAYERS):
            before = text
            if unescape is not None:
                text = unescape(text)
            text = self._fix(self._decoded(text), self._config)
            if text == before:
                break
        return text

    def _decoded(self, text: str) -> str:
        for _ in range(LAYERS if self._decode_again is not None else 0):
            before = text
            text, _how = self._decode_again(text, self._encoding)
            if text == before:
                break
        return text


def _segments(text: str) -> Iterator[str]:
    """The text in pieces that are repaired each by itself: its lines, and where one is very long, parts of it."""
    for line in re.findall(r".*\n|.+", text):
        start = 0
        while len(line) - start > LONGEST:
            end = line.rfind(" ", start, start + LONGEST) + 1 or start + LONGEST
            yield line[start:end]
            start = end
        yield line[start:]


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise UsageError(f"--fix-text needs the package ftfy ({error}); install it with: pip install 'tokkit[text]'") from None
    return ftfy
