"""Repairing texts: what is broken is mended, what is not chosen stays, and the short way past ftfy changes nothing."""

from __future__ import annotations

import sys
from collections import Counter

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.errors import UsageError
from tokkit.repair import LAYERS, LONGEST, REPAIRS, Repair, TextRepair, normal_repairs, repair_versions

# One text for each kind, and what that kind alone makes of it.
OWN: dict[Repair, tuple[str, str]] = {
    "encoding": ("cafÃ© âœ” voilÃ  \ud83e\udd8a", "café ✔ voilà  🦊"),
    "html": ("R&amp;D &lt;3", "R&D <3"),
    "controls": ("a\x1b[31mb\x00c\x7f\td\n", "abc\td\n"),
    "line-breaks": ("a\r\nb\rc\u2028d", "a\nb\nc\nd"),
    "width": ("ＬＯＵＤ", "LOUD"),
    "ligatures": ("ﬁne", "fine"),
    "quotes": ("“it’s”", '"it\'s"'),
    "nfc": ("e\u0301", "é"),
    "nfkc": ("①e\u0301", "1é"),
}

SOUND = [
    "Words with <tags>, “curly quotes”, ﬁne ligatures, ＦＵＬＬ width, e\u0301 decomposed.\r\n\t\x00 &amp; more.",
    "Ægir åt ål på café – déjà vu; Ångström, naïve façade, £5 © 2024 – 20 °C, ½ ± ³ «¿qué?»",
    "Съешь же ещё этих мягких французских булок, да выпей чаю",
    "다람쥐 헌 쳇바퀴에 타고파 · 色は匂へど散りぬるを · 天地玄黃宇宙洪荒 · ترجمة · अनुवाद · τὸ θαῦμα · 🦊👩‍👩‍👧",
]

kinds_of = st.sets(st.sampled_from(REPAIRS), min_size=1).filter(lambda kinds: not {"nfc", "nfkc"} <= kinds).map(list)
pieces = st.sampled_from(
    ["&amp;", "&", "&lt;b", "<b>", "\r\n", "\r", "\x1b[0m", "\x1b", "\x00", "\x0c", "\x7f", "Ã©", "“", "ﬁ", "\u2028"]
)
texts = st.lists(st.one_of(pieces, st.text(max_size=8), st.text(st.characters(max_codepoint=127), max_size=20))).map("".join)


@pytest.mark.parametrize("kind", REPAIRS)
def test_each_kind_mends_its_own_and_nothing_else(kind: Repair) -> None:
    repair = TextRepair([kind])
    alike = {("nfc", "nfkc"), ("nfkc", "nfc"), ("nfkc", "width"), ("nfkc", "ligatures"), ("quotes", "encoding")}
    for other, (broken, mended) in OWN.items():
        if other == kind:
            assert repair(broken) == mended
        elif (kind, other) not in alike:
            assert repair(broken) is broken, (kind, other)


@pytest.mark.parametrize("text", SOUND)
def test_encoding_alone_leaves_sound_text_as_it_is(text: str) -> None:
    assert TextRepair(["encoding"])(text) is text


def as_ftfy_does(kinds: list[Repair], text: str) -> str:
    """The same by ftfy itself, which knows no bounds."""
    config = ftfy.TextFixerConfig(
        unescape_html="html" in kinds and "<" not in text,
        remove_terminal_escapes="controls" in kinds,
        fix_encoding="encoding" in kinds,
        fix_c1_controls="encoding" in kinds,
        fix_surrogates="encoding" in kinds,
        fix_latin_ligatures="ligatures" in kinds,
        fix_character_width="width" in kinds,
        uncurl_quotes="quotes" in kinds,
        fix_line_breaks="line-breaks" in kinds,
        remove_control_chars="controls" in kinds,
        normalization="NFC" if "nfc" in kinds else "NFKC" if "nfkc" in kinds else None,
    )
    return str(ftfy.fix_text(text, config))


@settings(max_examples=400)
@given(kinds=kinds_of, text=st.one_of(texts, st.text(st.characters(max_codepoint=127))))
def test_it_is_what_ftfy_does_also_of_what_is_not_handed_to_it(kinds: list[Repair], text: str) -> None:
    assert TextRepair(kinds)(text) == as_ftfy_does(kinds, text)


@pytest.mark.parametrize(
    ("kinds", "text"),
    [(["encoding"], ("Â" * 8000 + "© ") * 10), (["html"], "&" + "amp;" * 400_000), (["nfc"], "a" + "\u0301\u0316" * 200_000)],
)
def test_a_text_that_was_made_to_take_forever_does_not(kinds: list[Repair], text: str) -> None:
    """By ftfy alone the first takes hours; here it is a matter of seconds, in steps that are counted."""
    repair = TextRepair(kinds)
    steps = Counter[str]()
    decode_again, fix = repair._decode_again, repair._fix
    repair._fix = lambda *a: steps.update(["fix"]) or fix(*a)
    if decode_again is not None:
        repair._decode_again = lambda *a: steps.update(["decode"]) or decode_again(*a)
    assert len(repair(text)) <= len(text)
    segments = -(-len(text) // LONGEST)
    assert steps["fix"] <= LAYERS * segments
    assert steps["decode"] <= LAYERS**2 * segments
    if decode_again is not None:
        assert steps["decode"] > 10 * LAYERS  # it would have gone on


def test_lines_and_long_lines_are_mended_each_by_itself() -> None:
    """A very long line is cut at a space, and nothing is lost where there is none."""
    words = "cafÃ© " * 5000
    assert TextRepair(["encoding"])(words) == "café " * 5000
    whole = "x" * (3 * LONGEST) + "é\n" + "é" * (2 * LONGEST + 1)
    assert TextRepair(["encoding", "nfc"])(whole) is whole
    assert TextRepair(["encoding"])("â\x85\x93 cup") == "⅓ cup"  # U+0085 ends no line
    assert TextRepair(["html"])("&amp;\nb < c") == "&amp;\nb < c"


@given(kinds=kinds_of, text=st.text(st.characters(codec=None, categories=None), max_size=60))
def test_any_text_becomes_a_text(kinds: list[Repair], text: str) -> None:
    repaired = TextRepair(kinds)(text)
    assert isinstance(repaired, str)
    if "encoding" in kinds:
        repaired.encode()  # no lone surrogate is left


def test_kinds_have_one_order_and_one_normalization_form() -> None:
    assert normal_repairs(["nfc", "encoding", "html", "encoding"]) == ["encoding", "html", "nfc"]
    with pytest.raises(ValueError, match="two normalization forms"):
        normal_repairs(["nfkc", "nfc"])


def test_versions_are_those_of_what_decides() -> None:
    assert set(repair_versions(["encoding", "html"])) == {"ftfy"}
    assert set(repair_versions(["encoding", "nfc"])) == {"ftfy", "unicode"}


def test_without_ftfy_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)
    for ask in (TextRepair, repair_versions):
        with pytest.raises(UsageError, match=r"--fix-text needs the package ftfy .*pip install 'tokkit\[text\]'"):
            ask(["encoding"])
