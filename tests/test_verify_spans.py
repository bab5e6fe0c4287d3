"""Tokens against their spans: what an encoder writes passes, and any id in a wrong place is found."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.interleave import AudioCodes, ImageCodes, Layout, Part, Span, TextCodes, encode
from tokkit.pipelines.findings import ADVICE, Code
from tokkit.pipelines.verify_once import Once
from tokkit.pipelines.verify_spans import Finding, SpanChecker, SpanColumns
from tokkit.shards.spans import SPAN_TYPE, span_to_dict
from tokkit.vocabulary import AUDIO_PAD, MARKERS, Block, UnifiedVocabulary

HASH = "0123456789abcdef" * 2
CODES = 5


def vocabulary(image_books: int, audio_books: int) -> UnifiedVocabulary:
    """30 ids of text, every marker, grid sizes to 9, and codebooks of five codes; the digits of a size are text."""
    markers = {name: 30 + i for i, name in enumerate([*MARKERS, "begin_codes", "frame_end"])}
    position = 30 + len(markers)
    blocks = [Block("text", 0, 30, start=0), Block("grid", 0, 9, start=position)]
    for modality, count in (("image", image_books), ("audio", audio_books)):
        for book in range(count):
            blocks.append(Block(modality, book, CODES, start=position + 9 + CODES * (len(blocks) - 2)))
    blocks.append(Block(AUDIO_PAD, 0, audio_books, start=position + 9 + CODES * (len(blocks) - 2)))
    spelled = {character: i for i, character in enumerate("0123456789*")}
    return UnifiedVocabulary(128, blocks, markers, origin="test", spelled=spelled)


@st.composite
def documents(draw: st.DrawFn) -> tuple[UnifiedVocabulary, Layout, list[list[Part]]]:
    books, sounds = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    image = draw(st.sampled_from(["plain", "rows", "grid", "emu3"]))
    audio = draw(st.sampled_from(["flat", "book_major", "delay"]))
    delays = draw(st.sampled_from([(), (0, 1, 1), (2, 0, 3)])) if audio == "delay" else ()
    layout = Layout(image, audio=audio, audio_delays=delays)
    codes = st.integers(0, CODES - 1)

    def array(*shape: int) -> np.ndarray:
        size = int(np.prod(shape))
        return np.array(draw(st.lists(codes, min_size=size, max_size=size)), dtype=np.int32).reshape(shape)

    found = []
    for _ in range(draw(st.integers(1, 3))):
        parts: list[Part] = []
        for kind in draw(st.lists(st.sampled_from(["text", "image", "audio"]), max_size=4)):
            if kind == "text":
                parts.append(TextCodes(np.array(draw(st.lists(st.integers(0, 29), min_size=1, max_size=5)), dtype=np.int32)))
            elif kind == "image":
                height = draw(st.integers(1, 3))
                width = height if layout.image == "plain" else draw(st.integers(1, 3))
                parts.append(ImageCodes(array(books, height, width), HASH))
            else:
                parts.append(AudioCodes(array(draw(st.integers(1, sounds)), draw(st.integers(1, 3))), 16000, 7, HASH))
        found.append(parts)
    return vocabulary(books, sounds), layout, found


def columns(spans: list[list[Span]]) -> SpanColumns:
    return SpanColumns.of(pa.array([[span_to_dict(s) for s in own] for own in spans], pa.list_(SPAN_TYPE)))


def found(words: UnifiedVocabulary, layout: Layout, ids: list[np.ndarray], spans: list[list[Span]]) -> list[Finding]:
    lengths = np.array([len(own) for own in ids], dtype=np.int64)
    return list(SpanChecker(words, layout).check(np.concatenate(ids), lengths, columns(spans)))


@given(documents())
@settings(deadline=None)
def test_what_encoding_writes_passes(made: tuple[UnifiedVocabulary, Layout, list[list[Part]]]) -> None:
    words, layout, parts = made
    pairs = [encode(own, words, layout) for own in parts]
    assert found(words, layout, [ids for ids, _ in pairs], [spans for _, spans in pairs]) == []


@given(documents(), st.data())
@settings(deadline=None, max_examples=200)
def test_an_id_in_a_wrong_place_is_found_in_its_document_only(
    made: tuple[UnifiedVocabulary, Layout, list[list[Part]]], data: st.DataObject
) -> None:
    """Any id but one of the same codebook; where only one id will do, any other."""
    words, layout, parts = made
    pairs = [encode(own, words, layout) for own in parts]
    document = data.draw(st.integers(0, len(parts) - 1))
    ids, spans = pairs[document]
    place = data.draw(st.integers(0, len(ids) - 1))
    token = data.draw(st.integers(-3, words.size + 3))
    before, after = (int(words.owners([t])[0]) for t in (ids[place], token))
    within = next((s for s in spans if s.start <= place < s.start + s.length), None)
    free = within is not None and (within.modality == "text" or words.blocks[before].modality == within.modality != "text")
    allowed = token == ids[place] or (before >= 0 and free and before == after)
    ids[place] = token
    problems = found(words, layout, [own for own, _ in pairs], [own for _, own in pairs])
    assert [p.document for p in problems] == ([] if allowed else [document])


@given(documents(), st.data())
@settings(deadline=None, max_examples=200)
def test_a_span_that_says_something_else_is_found(
    made: tuple[UnifiedVocabulary, Layout, list[list[Part]]], data: st.DataObject
) -> None:
    words, layout, parts = made
    pairs = [encode(own, words, layout) for own in parts]
    chosen = [(d, i) for d, (_, spans) in enumerate(pairs) for i in range(len(spans))]
    if not chosen:
        return
    document, number = data.draw(st.sampled_from(chosen))
    spans = pairs[document][1]
    row = span_to_dict(spans[number])
    names = ["modality", "start", "length", "codebooks", "grid_height", "grid_width", "item_hash"]
    name = data.draw(st.sampled_from(names))
    values = {"modality": st.sampled_from(["text", "image", "audio", "video"]), "item_hash": st.sampled_from(["", HASH, "x"])}
    value = data.draw(values.get(name, st.integers(-3, 40)))
    harmless = value == row[name] or (row["modality"] == "audio" and name.startswith("grid"))
    if row["modality"] == "audio" and name == "codebooks":
        frames = row["length"] - 2  # type: ignore[operator]
        harmless |= frames == 1 and value == 1
    spans[number] = Span(**(row | {name: value}))  # type: ignore[arg-type]
    problems = found(words, layout, [own for own, _ in pairs], [own for _, own in pairs])
    assert [p.document for p in problems] == ([] if harmless else [document])
    assert {p.code for p in problems} <= {Code.SPAN, Code.ID_RANGE}


def test_a_sound_of_pads_alone_is_found() -> None:
    words, layout = vocabulary(1, 2), Layout(audio="delay")
    pads = words.encode(AUDIO_PAD, [0, 1])
    ends = [words.marker(name) for name in ("begin_document", "begin_audio", "end_audio", "end_document")]
    ids = np.array([*ends[:2], *pads, *ends[2:]], dtype=np.int32)
    (problem,) = found(words, layout, [ids], [[Span("audio", 1, 4, 2, samples=1, sample_rate=16000, item_hash=HASH)]])
    assert (problem.code, problem.message.partition(": ")[2]) == (Code.SPAN, "a sound of 2 codebooks in 4 tokens")


# ---- names that come twice


@pytest.mark.parametrize("partitions", [1, 7])
def test_keys_that_come_twice_are_found_whatever_file_they_are_in(monkeypatch: pytest.MonkeyPatch, partitions: int) -> None:
    from tokkit.pipelines import verify_once

    monkeypatch.setattr(verify_once, "PARTITION", 1000 // partitions)
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 5000, 1000)
    with Once(1000) as once:
        for first in range(0, 1000, 90):
            part = keys[first : first + 90]
            once.add([str(k).encode() for k in part], first + np.arange(len(part)))
        once.add([], np.zeros(0, dtype=np.int64))
        found = sorted(once.repeated())
        assert once.count == 1000
    expected = [np.flatnonzero(keys == k).tolist() for k in np.unique(keys) if (keys == k).sum() > 1]
    assert found == sorted(expected)
    assert len(found) > 20


# ---- the codes


def test_every_code_is_explained_in_the_documentation() -> None:
    from pathlib import Path

    assert set(ADVICE) == set(Code)
    page = (Path(__file__).parent.parent / "docs" / "verify.md").read_text()
    for code, advice in ADVICE.items():
        row = next((line for line in page.splitlines() if line.startswith(f"| `{code}` |")), "")
        assert advice.meaning.split(":")[0].rstrip(".") in row.replace("`", ""), code
