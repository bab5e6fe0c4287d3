"""Sounds as rows of ids: three orders that are exact, two reductions that say what they lose, and the literature's figures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.audio_layouts import collapse, expand, first_books, tokens_of
from tokkit.errors import MalformedSequence, VocabularyError
from tokkit.interleave import AudioCodes, Layout, decode, encode
from tokkit.vocabulary import AUDIO_PAD, UnifiedVocabulary

BOOKS = 4
VOCABULARY = UnifiedVocabulary.build(50, [8], [16, 16, 16, 9], audio_pads=True)
MOSHI = (0, 1, 1, 1)
LAYOUTS = {
    "flat": Layout(audio="flat"),
    "book_major": Layout(audio="book_major"),
    "delay": Layout(audio="delay"),
    "moshi": Layout(audio="delay", audio_delays=MOSHI),
    "odd": Layout(audio="delay", audio_delays=(2, 0, 5, 1)),
}


def sound(books: int, frames: int, seed: int = 0) -> AudioCodes:
    codes = np.random.default_rng(seed).integers(0, 9, (books, frames)).astype(np.int32)
    return AudioCodes(codes, 24000, frames * 320, "hash", (0.25, 0.5))


def ids(k: int, *codes: int) -> list[int]:
    return VOCABULARY.encode("audio", list(codes), k).tolist()


def pads(*books: int) -> list[int]:
    return VOCABULARY.encode(AUDIO_PAD, list(books)).tolist()


def body(codes: list[list[int]], layout: Layout) -> list[int]:
    found, _ = encode([AudioCodes(np.array(codes, dtype=np.int32))], VOCABULARY, layout)
    return found[2:-2].tolist()


def test_the_order_of_each_layout() -> None:
    codes = [[1, 2, 3], [4, 5, 6]]
    assert body(codes, LAYOUTS["flat"]) == ids(0, 1) + ids(1, 4) + ids(0, 2) + ids(1, 5) + ids(0, 3) + ids(1, 6)
    assert body(codes, LAYOUTS["book_major"]) == ids(0, 1, 2, 3) + ids(1, 4, 5, 6)
    late = [*ids(0, 1), *pads(1), *ids(0, 2), *ids(1, 4), *ids(0, 3), *ids(1, 5), *pads(0), *ids(1, 6)]
    assert body(codes, LAYOUTS["delay"]) == late
    three = [[1, 2], [3, 4], [5, 6]]
    moshi = [*ids(0, 1), *pads(1, 2), *ids(0, 2), *ids(1, 3), *ids(2, 5), *pads(0), *ids(1, 4), *ids(2, 6)]
    assert body(three, LAYOUTS["moshi"]) == moshi


@settings(deadline=None, max_examples=200)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, BOOKS), st.integers(1, 9), st.integers(0, 99))
def test_every_layout_comes_back_bit_for_bit(name: str, books: int, frames: int, seed: int) -> None:
    layout, written = LAYOUTS[name], sound(books, frames, seed)
    found, (span,) = encode([written], VOCABULARY, layout)
    assert span.length == len(found) - 2 == tokens_of(layout.audio, layout.audio_delays, books, frames) + 2
    assert (span.codebooks, span.samples, span.sample_rate, span.scales) == (books, frames * 320, 24000, (0.25, 0.5))
    (back,) = decode(found, VOCABULARY, layout)
    assert isinstance(back, AudioCodes)
    assert back.codes.dtype == np.int32
    assert np.array_equal(back.codes, written.codes)


@settings(deadline=None, max_examples=500)
@given(st.data(), st.sampled_from(sorted(LAYOUTS)), st.integers(1, BOOKS), st.integers(1, 4))
def test_no_damage_passes_for_another_sound(data: st.DataObject, name: str, books: int, frames: int) -> None:
    layout = LAYOUTS[name]
    row = encode([sound(books, frames)], VOCABULARY, layout)[0].tolist()
    audio = [b.ids for b in VOCABULARY.blocks if b.modality in ("audio", AUDIO_PAD)]
    likely = np.concatenate(audio).tolist()
    for _ in range(data.draw(st.integers(1, 3))):
        at, change = data.draw(st.integers(0, len(row) - 1)), data.draw(st.sampled_from(["drop", "put", "set", "cut"]))
        token = data.draw(st.sampled_from(likely))
        if change == "drop":
            del row[at]
        elif change == "cut":
            del row[at:]
        elif change == "put":
            row.insert(at, token)
        else:
            row[at] = token
        if not row:
            break
    try:
        back = decode(np.array(row, dtype=np.int64), VOCABULARY, layout)
    except MalformedSequence as error:
        assert 0 <= error.position <= len(row)
    else:
        assert encode(back, VOCABULARY, layout)[0].tolist() == row


@pytest.mark.parametrize(
    ("layout", "row", "position", "problem"),
    [
        ("flat", [*ids(0, 1), *ids(1, 2), *ids(0, 1)], 5, "expected audio codebook 1, found marker end_audio"),
        ("flat", pads(0), 2, "expected audio code in the sound that begins at token 1, found audio_pad code 0"),
        ("book_major", [*ids(0, 1, 2), *ids(1, 3)], 5, "expected audio codebook 1, found marker end_audio"),
        ("book_major", [*ids(0, 1), *ids(1, 3, 4)], 4, "expected no further audio code, found audio code 4 of codebook 1"),
        ("book_major", ids(1, 3), 2, "expected audio codebook 0, found audio code 3 of codebook 1"),
        ("delay", [*ids(0, 1), *ids(1, 2)], 4, "expected a frame of every codebook, found marker end_audio"),
        ("delay", [*ids(0, 1), *ids(1, 2), *ids(0, 1), *ids(1, 1)], 3, "expected pad of audio codebook 1"),
        ("moshi", [*ids(0, 1), *pads(1, 2), *ids(0, 2)], 5, "expected pad of audio codebook 0"),
    ],
)
def test_what_is_wrong_with_a_sound_is_told_with_its_place(layout: str, row: list[int], position: int, problem: str) -> None:
    marker = VOCABULARY.marker
    whole = [marker("begin_document"), marker("begin_audio"), *row, marker("end_audio"), marker("end_document")]
    with pytest.raises(MalformedSequence) as caught:
        decode(whole, VOCABULARY, LAYOUTS[layout])
    assert caught.value.position == position
    assert caught.value.problem.startswith(problem)


def test_what_a_layout_needs_and_is_not_there_is_told() -> None:
    without = UnifiedVocabulary.build(50, [], [16, 16])
    with pytest.raises(VocabularyError, match="no audio_pad codebook"):
        encode([sound(2, 3)], without, Layout(audio="delay"))
    with pytest.raises(VocabularyError, match="delays of 1"):
        encode([sound(2, 3)], VOCABULARY, Layout(audio="delay", audio_delays=(0,)))
    with pytest.raises(VocabularyError, match="5 codebooks"):
        encode([sound(5, 3)], VOCABULARY, Layout())


def test_pads_stand_behind_all_codes_and_change_no_other_id() -> None:
    plain, padded = UnifiedVocabulary.build(50, [8], [16, 16]), UnifiedVocabulary.build(50, [8], [16, 16], audio_pads=True)
    for one, other in zip(plain.blocks, padded.blocks, strict=False):
        assert np.array_equal(one.ids, other.ids)
    assert padded.block(AUDIO_PAD).ids.tolist() == [
        int(padded.block("audio", 1).ids[-1]) + 1,
        int(padded.block("audio", 1).ids[-1]) + 2,
    ]


# ---- what loses something


def test_the_first_books_are_a_slice() -> None:
    codes = sound(4, 7).codes
    assert np.array_equal(first_books(codes, 2), codes[:2])
    for count in (0, 5):
        with pytest.raises(ValueError, match="of 4 codebooks"):
            first_books(codes, count)


@settings(deadline=None)
@given(st.integers(1, 3), st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_what_is_collapsed_says_what_it_lost(books: int, row: list[int]) -> None:
    codes = np.array([[(value + k) % 3 for value in row] for k in range(books)], dtype=np.int32)
    collapsed = collapse(codes)
    assert not (collapsed.codes[:, 1:] == collapsed.codes[:, :-1]).all(axis=0).any()
    assert np.array_equal(expand(collapsed), codes)
    assert collapsed.lost == sum(a == b for a, b in pairwise(row))


# ---- the literature's figures


@pytest.mark.parametrize(
    ("what", "rate", "hop", "books", "seconds", "tokens"),
    [
        ("50 Hz of one book (16 kHz, hop 320)", 16000, 320, 1, 30, 1500),
        ("EnCodec 24 kHz at 6 kbps: 75 Hz of 8 books", 24000, 320, 8, 30, 18000),
        ("EnCodec 24 kHz at 1.5 kbps: 75 Hz of 2 books", 24000, 320, 2, 30, 4500),
        ("MusicGen: 50 Hz of 4 books (32 kHz, hop 640)", 32000, 640, 4, 30, 6000),
        ("Mimi: 12.5 Hz of 8 books (24 kHz, hop 1920)", 24000, 1920, 8, 30, 3000),
    ],
)
def test_tokens_of_thirty_seconds(what: str, rate: int, hop: int, books: int, seconds: int, tokens: int) -> None:
    frames = -(-rate * seconds // hop)
    vocabulary = UnifiedVocabulary.build(50, [], [2] * books, audio_pads=True)
    codes = np.random.default_rng(0).integers(0, 2, (books, frames)).astype(np.int32)
    for layout in (Layout(audio="flat"), Layout(audio="book_major")):
        assert len(encode([AudioCodes(codes)], vocabulary, layout)[0]) - 4 == tokens, what
    # MusicGen's delays make T + K - 1 steps of K ids.
    assert len(encode([AudioCodes(codes)], vocabulary, Layout(audio="delay"))[0]) - 4 == tokens + books * (books - 1), what


def test_bits_a_second_of_encodec_are_those_of_its_paper() -> None:
    assert 75 * 8 * np.log2(1024) == 6000
    assert 75 * 2 * np.log2(1024) == 1500
