"""A user's own functions: how they are found, what they may answer, and what becomes of everything else that they do."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkit.documents import Audio, Document, Failure, Image, Outcome, Segment, Text
from tokkit.errors import TransientError
from tokkit.filters import UserFilter, absolute_spec, filter_digests, load_filter, load_filters

LOST = Failure(Outcome.FAILED_UPSTREAM, "failed-to-download", "404")
SEGMENTS: tuple[Segment, ...] = (
    Text("one"),
    Image(b"a", "a.jpg"),
    Text("two"),
    Image(None, "gone.jpg", LOST),
    Audio(b"b", "b.wav"),
    Image(b"a", "a.jpg"),
)
DOCUMENT = Document("the id", "web", "f#1", SEGMENTS, metadata={"score": 1, "when": object()})


def asked(function: Callable[[Document], object], document: Document = DOCUMENT) -> Document:
    return UserFilter("mine:keep", "0" * 16, function).judge(document)


# ---- answers


@pytest.mark.parametrize("answer", [True, np.True_])
def test_true_keeps_the_document_as_it_is(answer: object) -> None:
    assert asked(lambda document: answer) is DOCUMENT
    assert asked(lambda document: document) is DOCUMENT


@pytest.mark.parametrize(
    ("answer", "message"), [(False, ""), (np.False_, ""), ("too dull", "too dull"), ("", ""), ("x" * 900, "x" * 500)]
)
def test_false_or_a_reason_filters_it(answer: object, message: str) -> None:
    found = asked(lambda document: answer)
    assert found.failure == Failure(Outcome.FILTERED, "filter mine:keep", message)
    assert found.segments == SEGMENTS


def test_another_document_takes_its_place() -> None:
    def shout(document: Document) -> Document:
        segments = [replace(s, text=s.text.upper()) if isinstance(s, Text) else s for s in document.segments]
        return replace(document, segments=segments, metadata={**document.metadata, "score": 0.5, "new": ["a", None]})

    found = asked(shout)
    assert found.failure is None
    assert [s.text for s in found.segments if isinstance(s, Text)] == ["ONE", "TWO"]
    assert found.media == DOCUMENT.media
    assert found.metadata == {**DOCUMENT.metadata, "score": 0.5, "new": ["a", None]}
    assert found.hash != DOCUMENT.hash


def test_a_media_item_that_is_left_out_stays_as_a_lost_one_in_its_place() -> None:
    found = asked(lambda document: replace(document, segments=(Text("new"), document.segments[4])))
    assert [type(s).__name__ for s in found.segments] == ["Text", "Image", "Image", "Audio", "Image"]
    left_out = Failure(Outcome.FILTERED, "filter mine:keep")
    assert [m.failure for m in found.media] == [left_out, LOST, None, left_out]


def test_a_media_item_may_get_other_bytes_and_another_place() -> None:
    def turn(document: Document) -> Document:
        return replace(document, segments=tuple(replace(m, data=b"new", failure=None) for m in reversed(document.media)))

    found = asked(turn)
    assert found.failure is None
    assert [m.data for m in found.media] == [b"new"] * 4


@given(st.permutations(SEGMENTS).flatmap(lambda s: st.integers(0, len(s)).map(lambda n: s[:n])))
def test_every_media_item_is_still_there_once(kept: list[Segment]) -> None:
    found = asked(lambda document: replace(document, segments=tuple(kept)))
    assert found.failure is None
    assert Counter((type(m), m.ref) for m in found.media) == Counter((type(m), m.ref) for m in DOCUMENT.media)
    assert [s for s in found.segments if isinstance(s, Text)] == [s for s in kept if isinstance(s, Text)]
    assert [m for m in found.media if m.failure is None] == [s for s in kept if not isinstance(s, Text) and s.failure is None]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda document: None, "it returned NoneType, not True, False, a reason or a Document"),
        (lambda document: 1, "it returned int"),
        (lambda document: replace(document, id="x"), "it changed the id"),
        (lambda document: replace(document, locator="x"), "it changed the locator"),
        (lambda document: replace(document, source="x"), "it changed the source"),
        (lambda document: replace(document, failure=LOST), "it set the document's failure"),
        (lambda document: replace(document, segments=None), "its segments are a NoneType"),
        (lambda document: replace(document, segments=("text",)), "one of its segments is a str"),
        (lambda document: replace(document, segments=(Text(b"x"),)), "the text of a segment is a bytes"),
        (lambda document: replace(document, segments=(Image(b"c", "c.jpg"),)), r"it added a media item \('c.jpg'\)"),
        (lambda document: replace(document, segments=(*SEGMENTS, SEGMENTS[1])), r"it added a media item \('a.jpg'\)"),
        (lambda document: replace(document, segments=(Image("c", "a.jpg"),)), "a media item's data are not bytes"),
        (lambda document: replace(document, metadata=[]), "its metadata are no mapping"),
        (lambda document: replace(document, metadata={1: 2}), "its metadata are no mapping"),
        (lambda document: replace(document, metadata={"a": np.float32(1)}), "its metadata 'a' are nothing that JSON has"),
        (lambda document: document.metadata.update(a=1), "AttributeError: 'mappingproxy' object has no attribute 'update'"),
        (lambda document: document.nothing, "AttributeError: 'Document' object has no attribute 'nothing'"),
        (lambda document: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda document: sys.exit(3), "SystemExit: 3"),
        (lambda document: without_end(document), "RecursionError"),
    ],
)
def test_what_fails_is_the_document_s_reject(function: Callable[[Document], object], message: str) -> None:
    found = asked(function)
    assert found.failure is not None
    assert (found.failure.outcome, found.failure.reason) == (Outcome.REJECTED, "filter-error")
    assert re.match(f"mine:keep: {message}", found.failure.message), found.failure.message
    assert found.segments == SEGMENTS


def without_end(document: Document) -> object:
    return without_end(document)


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error"), TimeoutError("slow")])
def test_what_says_nothing_of_the_document_is_no_reject(error: Exception) -> None:
    def fail(document: Document) -> bool:
        raise error

    with pytest.raises(TransientError, match=f"the filter mine:keep failed at web/f#1: {type(error).__name__}"):
        asked(fail)


# ---- where they are


def test_of_a_file_and_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it_0a.py").write_text("LEAST = 3\n")
    (tmp_path / "clean.py").write_text(
        "from beside_it_0a import LEAST\ndef keep(document): return len(document.segments) > LEAST\n"
    )
    spec = f"{tmp_path}/clean.py:keep"
    found = load_filter(spec)
    assert found.name == "clean.py:keep"
    assert found.judge(DOCUMENT) is DOCUMENT
    assert filter_digests([found]) == {"1. clean.py:keep": found.digest}
    assert load_filter(spec).digest == found.digest
    (tmp_path / "clean.py").write_text("def keep(document): return False\n")
    again = load_filter(spec)
    assert again.digest != found.digest
    assert again.judge(DOCUMENT).failure is not None
    assert str(tmp_path) not in again.name


def test_of_a_module_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "filters_0b").mkdir()
    (tmp_path / "filters_0b" / "__init__.py").write_text("from filters_0b.inner import Rule\nrule = Rule()\nkeep = rule.keep\n")
    (tmp_path / "filters_0b" / "inner.py").write_text("class Rule:\n    def keep(self, document): return 'dull'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    for spec in ("filters_0b:keep", "filters_0b:rule.keep"):
        found = load_filter(spec)
        assert found.name == spec
        assert found.judge(DOCUMENT).failure == Failure(Outcome.FILTERED, f"filter {spec}", "dull")
        assert absolute_spec(spec) == spec
    (tmp_path / "filters_0b" / "inner.py").write_text("class Rule:\n    def keep(self, document): return 'other'\n")
    assert load_filter("filters_0b:keep").digest != found.digest  # the file that it is written in, not only the named one
    assert absolute_spec("a.py:keep") == f"{tmp_path}/a.py:keep"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("keep", "'keep' names no function: write MODULE:FUNCTION"),
        (":keep", "names no function"),
        ("a.py:", "names no function"),
        ("missing.py:keep", "missing.py: no such file"),
        ("a.py:other", "a.py has no other"),
        ("a.py:NUMBER", "NUMBER is a int, not a function"),
        ("broken.py:keep", r"broken.py cannot be loaded: SyntaxError"),
        ("leaves.py:keep", r"leaves.py cannot be loaded: SystemExit: 3"),
        ("no_such_module_0c:keep", "the module no_such_module_0c cannot be imported: ModuleNotFoundError"),
        ("sys:exit", "the module sys has no file"),
    ],
)
def test_what_cannot_be_loaded_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    (tmp_path / "a.py").write_text("NUMBER = 3\ndef keep(document): return True\n")
    (tmp_path / "broken.py").write_text("def keep(\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_filter(spec)


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "clean.py").write_text(f"def keep(document): return {folder!r}\n")
    with pytest.raises(ValueError, match=r"two filters are called clean\.py:keep"):
        load_filters([f"{tmp_path}/one/clean.py:keep", f"{tmp_path}/two/clean.py:keep"])


def test_what_a_function_prints_is_not_the_command_s_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.py").write_text("print('loaded')\ndef keep(document):\n    print('asked')\n    return True\n")
    (loud,) = load_filters([f"{tmp_path}/loud.py:keep"])
    assert loud.judge(DOCUMENT) is DOCUMENT
    assert capsys.readouterr() == ("", "loaded\nasked\n")


def test_an_error_says_where_and_is_the_same_in_each_process(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def deeper():\n    raise ValueError(object())\ndef keep(document): return deeper()\n")
    failure = load_filter(f"{tmp_path}/bad.py:keep").judge(DOCUMENT).failure
    assert failure is not None
    assert failure.message == "bad.py:keep: ValueError: <object object at 0x...> (bad.py, line 2)"
