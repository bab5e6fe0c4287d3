"""Interleaving: what is written comes back, and every malformed sequence is told where it goes wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.documents import Audio, Document, Image, Text
from tokkit.errors import MalformedSequence, VocabularyError
from tokkit.interleave import AudioCodes, ImageCodes, Layout, Part, TextCodes, decode, encode, order_segments
from tokkit.vocabulary import UnifiedVocabulary

VOCABULARY = UnifiedVocabulary.build(50, [20, 30], [16, 16, 16], max_grid=32)
SINGLE = UnifiedVocabulary.build(50, [20])


def text(*codes: int) -> TextCodes:
    return TextCodes(np.array(codes, dtype=np.int32))


def image(height: int, width: int, count: int = 2, seed: int = 0) -> ImageCodes:
    codes = np.random.default_rng(seed).integers(0, 20, (count, height, width))
    return ImageCodes(codes.astype(np.int32), "hash")


def same(one: Part, other: Part) -> bool:
    return type(one) is type(other) and np.array_equal(one.codes, other.codes)


@st.composite
def parts(draw: st.DrawFn, square: bool) -> list[Part]:
    found: list[Part] = []
    for kind in draw(st.lists(st.sampled_from("tia"), max_size=6)):
        if kind == "t":
            if found and isinstance(found[-1], TextCodes):
                continue  # adjacent texts come back as one
            found.append(text(*draw(st.lists(st.integers(0, 49), min_size=1, max_size=8))))
        elif kind == "i":
            height = draw(st.integers(1, 5))
            found.append(image(height, height if square else draw(st.integers(1, 5)), seed=draw(st.integers(0, 99))))
        else:
            frames, count = draw(st.integers(1, 6)), draw(st.integers(1, 3))
            codes = np.random.default_rng(draw(st.integers(0, 99))).integers(0, 16, (count, frames))
            found.append(AudioCodes(codes.astype(np.int32), 24000, frames * 320, "sound"))
    return found


@settings(deadline=None, max_examples=150)
@given(st.data(), st.sampled_from(["plain", "rows", "grid", "grid_rows"]))
def test_what_is_written_comes_back_and_spans_tile_the_document(data: st.DataObject, layout_name: str) -> None:
    layout = Layout(layout_name)  # type: ignore[arg-type]
    written = data.draw(parts(square=layout_name == "plain"))
    ids, spans = encode(written, VOCABULARY, layout)
    back = decode(ids, VOCABULARY, layout)
    assert len(back) == len(written) == len(spans)
    assert all(same(a, b) for a, b in zip(written, back, strict=True))
    position = 1
    for span, part in zip(spans, written, strict=True):
        assert span.start == position
        position += span.length
        piece = decode(ids[span.start : position], VOCABULARY, layout, whole=False)
        assert len(piece) == 1
        assert same(piece[0], part)
        if isinstance(part, ImageCodes):
            assert (span.codebooks, span.grid_height, span.grid_width) == part.codes.shape
    assert position == len(ids) - 1


@settings(deadline=None, max_examples=300)
@given(st.data(), st.sampled_from(["plain", "rows", "grid", "grid_rows"]))
def test_no_damage_passes_for_another_document(data: st.DataObject, layout_name: str) -> None:
    """Whatever is done to a sequence, it is either refused at a place in it, or is exactly what writing its parts gives."""
    layout = Layout(layout_name)  # type: ignore[arg-type]
    ids = list(encode(data.draw(parts(square=layout_name == "plain")), VOCABULARY, layout)[0])
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(ids) - 1, 0)))
        change = data.draw(st.sampled_from(["drop", "put", "set", "cut"]))
        token = data.draw(st.integers(-1, VOCABULARY.size))
        if change == "drop":
            del ids[at : at + 1]
        elif change == "cut":
            del ids[at:]
        elif change == "put":
            ids.insert(at, token)
        elif ids:
            ids[at] = token
    try:
        back = decode(np.array(ids, dtype=np.int64), VOCABULARY, layout)
    except MalformedSequence as error:
        assert 0 <= error.position <= len(ids)
        assert str(error).startswith(f"token {error.position}: ")
    else:
        assert encode(back, VOCABULARY, layout)[0].tolist() == ids


def build(*tokens: str | int) -> list[int]:
    return [SINGLE.marker(t) if isinstance(t, str) else t for t in tokens]


def img(*codes: int) -> list[int]:
    return SINGLE.encode("image", np.array(codes)).tolist()


@pytest.mark.parametrize(
    ("ids", "position", "problem"),
    [
        ([], 0, "expected marker begin_document, the sequence ends"),
        (build(1, 2), 0, "expected marker begin_document, found text code 1"),
        (build("begin_document", 1), 2, "expected marker end_document, the sequence ends"),
        (build("begin_document", "end_document", 3), 2, "expected nothing after end_document, found text code 3"),
        (
            build("begin_document", "begin_image", *img(1, 2, 3), "end_image", "end_document"),
            5,
            "expected a square number of positions in the image that begins at token 1 (it has 3), found marker end_image",
        ),
        (
            build("begin_document", "begin_image", *img(1, 2, 3, 4), "end_document"),
            6,
            "expected image code or end_image of the image that begins at token 1, found marker end_document",
        ),
        (
            build("begin_document", "begin_image", *img(1), 7, *img(1), "end_image", "end_document"),
            3,
            "expected image code or end_image of the image that begins at token 1, found text code 7",
        ),
        (
            build("begin_document", "end_image", "end_document"),
            1,
            "expected text, the begin of an image or sound, or end_document, found marker end_image",
        ),
        (build("begin_document", SINGLE.size, "end_document"), 1, f"id {SINGLE.size} is outside of the vocabulary"),
        (build("begin_document", *img(4), "end_document"), 1, "expected text, the begin of an image or sound"),
        (build("begin_document", "padding", "end_document"), 1, "found marker padding"),
    ],
)
def test_what_is_wrong_is_said_exactly(ids: list[int], position: int, problem: str) -> None:
    with pytest.raises(MalformedSequence) as caught:
        decode(np.array(ids, dtype=np.int64), SINGLE, Layout())
    assert caught.value.position == position
    assert problem in caught.value.problem


def test_one_grid_that_is_not_square() -> None:
    layout = Layout("plain", (2, 3))
    part = image(2, 3, count=1)
    ids, _ = encode([part], SINGLE, layout)
    assert same(decode(ids, SINGLE, layout)[0], part)
    with pytest.raises(VocabularyError, match="2 x 3"):
        encode([image(3, 2, count=1)], SINGLE, layout)
    short = np.delete(ids, 3)
    with pytest.raises(MalformedSequence, match=r"2 x 3 = 6 positions .* \(it has 5\)"):
        decode(short, SINGLE, layout)


def test_what_the_layout_cannot_decode_is_not_written() -> None:
    with pytest.raises(VocabularyError, match="square"):
        encode([image(2, 3, count=1)], SINGLE, Layout())
    with pytest.raises(VocabularyError, match="codebooks"):
        encode([image(2, 2, count=2)], SINGLE, Layout())
    with pytest.raises(VocabularyError, match="code 50 is outside"):
        encode([text(50)], SINGLE, Layout())
    with pytest.raises(VocabularyError, match="outside"):
        encode([image(129, 2, count=1)], SINGLE, Layout("grid"))


def test_chameleons_picture_is_1026_tokens() -> None:
    vocabulary = UnifiedVocabulary.build(65536, [8192])
    ids, spans = encode([ImageCodes(np.zeros((32, 32), np.int32))], vocabulary, Layout())
    assert spans[0].length == 1026
    assert len(ids) == 1028


def pair(number: int) -> Document:
    segments = (Image(f"picture {number}".encode(), "p.jpg"), Text(f"caption {number}"))
    return Document(f"d{number}", "s", f"l{number}", segments, pair=True)


def test_pair_order() -> None:
    documents = [pair(i) for i in range(400)]
    first = [isinstance(order_segments(d, "random", 7)[0], Image) for d in documents]
    assert 150 < sum(first) < 250
    assert first == [isinstance(order_segments(d, "random", 7)[0], Image) for d in documents]
    assert first != [isinstance(order_segments(d, "random", 8)[0], Image) for d in documents]
    assert all(isinstance(order_segments(d, "image-first", 7)[0], Image) for d in documents)
    assert all(isinstance(order_segments(d, "text-first", 7)[0], Text) for d in documents)


def test_only_pairs_are_reordered_and_several_pictures_keep_their_order() -> None:
    segments = (Text("a"), Image(b"1", "1"), Text("b"), Audio(b"2", "2"))
    document = Document("d", "s", "l", segments)
    assert order_segments(document, "image-first", 0) == segments
    both = Document("d", "s", "l", (Text("a"), Image(b"1", "1"), Image(b"2", "2")), pair=True)
    assert [getattr(s, "ref", "text") for s in order_segments(both, "image-first", 0)] == ["1", "2", "text"]


def test_the_content_hash_is_of_what_the_document_says() -> None:
    def document(*segments: Text | Image | Audio, **other: object) -> str:
        return Document("i", "s", "l", segments, **other).hash  # type: ignore[arg-type]

    base = document(Text("ab"), Image(b"x", "one"))
    assert base == document(Text("ab"), Image(b"x", "two"), metadata={"k": 1})
    others = [
        document(Text("a"), Text("b"), Image(b"x", "one")),
        document(Image(b"x", "one"), Text("ab")),
        document(Text("ab"), Audio(b"x", "one")),
        document(Text("ab"), Image(b"y", "one")),
        document(Text("ab\ud800"), Image(b"x", "one")),
    ]
    assert len({base, *others}) == 6
