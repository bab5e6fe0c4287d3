"""Byte-level BPE by kernels of our own has the library's ids, whatever the text and the merges."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_text_words import CORPUS, byte_level, texts
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokkit.tokenizers.text import HuggingFaceTokenizer, load_text_tokenizer, pairs
from tokkit.tokenizers.text.huggingface import _byte_characters
from tokkit.tokenizers.text.pairs import PairEncoder, merges_of
from tokkit.tokenizers.text.words import CL100K_EXPRESSIONS, GPT2_EXPRESSIONS, O200K_EXPRESSIONS, QWEN_EXPRESSIONS

EXPRESSIONS = {
    "gpt2": None,
    "gpt2-split": GPT2_EXPRESSIONS[0],
    "gpt2-short": GPT2_EXPRESSIONS[1],
    "cl100k": CL100K_EXPRESSIONS[0],
    "qwen": QWEN_EXPRESSIONS[0],
}
LETTERS = "".join(chr(97 + n) for n in range(26))


def loaded(tokenizer: Tokenizer, folder: Path) -> HuggingFaceTokenizer:
    """With its kernels in use from the first text on."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    found = load_text_tokenizer(folder / "tokenizer.json")
    assert isinstance(found, HuggingFaceTokenizer)
    assert found._pairs is not None
    assert found._pairs.ready()
    return found


def library(tokenizer: HuggingFaceTokenizer, given: list[str]) -> list[list[int]]:
    return [found.ids for found in tokenizer._encoder.encode_batch(given, add_special_tokens=False)]


def kernels(tokenizer: HuggingFaceTokenizer, given: list[str]) -> list[list[int]]:
    """What the kernels give; every text has to be for them."""
    assert tokenizer._pairs is not None
    assert tokenizer._pairs._tables is not None
    ids, lengths = tokenizer._pairs._tables.encode(given)
    assert (lengths >= 0).all()
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


@pytest.fixture(scope="module", params=EXPRESSIONS)
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    return loaded(byte_level(EXPRESSIONS[request.param]), tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    return loaded(byte_level(None), tmp_path_factory.mktemp("pairs"))


@settings(deadline=None)
@given(given_texts=st.lists(texts, max_size=6))
def test_any_text(tokenizer: HuggingFaceTokenizer, given_texts: list[str]) -> None:
    plain = [text.encode("utf-8", "replace").decode() for text in given_texts]
    assert [ids.tolist() for ids in tokenizer.encode_batch(plain)] == library(tokenizer, plain)


@pytest.fixture(scope="module", params=["gpt2", "cl100k", "qwen"])
def bordered(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    """Merges any two bytes, so that another border between pieces gives other ids."""
    characters = list(_byte_characters())
    merges = [(one, two) for one in characters for two in characters]
    tokenizer = model_of([*map("".join, merges)], merges, whole=False)
    tokenizer.pre_tokenizer = byte_level(EXPRESSIONS[request.param]).pre_tokenizer
    return loaded(tokenizer, tmp_path_factory.mktemp("pairs"))


CUT = "sStTrReEvVlLmMdDxX19\u00e9\u0663\u0301.!\u201c \n\r\t\u00a0\u3000\u65e5" + 4 * "'"


@settings(deadline=None, max_examples=300)
@given(given_texts=st.lists(st.one_of(texts, st.text(CUT, max_size=60)), max_size=12))
def test_borders_between_pieces(bordered: HuggingFaceTokenizer, given_texts: list[str]) -> None:
    plain = [text.encode("utf-8", "replace").decode() for text in given_texts]
    assert [ids.tolist() for ids in bordered.encode_batch(plain)] == library(bordered, plain)


def test_contractions_and_line_ends(bordered: HuggingFaceTokenizer) -> None:
    ends = ["s", "t", "re", "ve", "m", "ll", "d", "r", "v", "l", "re'll", "le", "x", ""]
    some = [
        f"{before}'{end}{after}" for before in ("", "a", " ", "1", "''") for end in ends for after in ("", "b", "9", " ", "!")
    ]
    some += [text.upper() for text in some]
    blanks = [" ", "\t", "\n", "\r\n", "\u3000"]
    runs = [a + b + c for a in blanks for b in ["", *blanks] for c in ["", *blanks]]
    some += [f"{before}{run}{after}" for run in runs for before in ("", "a", "1", "!") for after in ("", "b", "2", ".", ".\n")]
    some += [f"{before}{'7' * n}{after}" for n in range(9) for before in ("", "a", " ") for after in ("", "b", ".")]
    assert kernels(bordered, some) == library(bordered, some)


CONTEXTS = ("{0}", "a{0}b", "'{0}b", "a '{0}", "1{0}2", " {0} {0}\n", "\n{0}{0}\r\n ", "\u00e9{0}.{0}1")


def test_characters_in_every_context(bordered: HuggingFaceTokenizer) -> None:
    """Those of the first planes' alphabets, all kinds of white space and digits, and some of everything else."""
    points = [*range(0x600), *range(0x1680, 0x1690), *range(0x1E90, 0x1F00), *range(0x2000, 0x2200), *range(0x2FF0, 0x3040)]
    points += [*range(0x180B, 0x1810), *range(0xFB00, 0xFB10), *range(0xFE00, 0xFE10), 0xFEFF, *range(0x3400, 0x30000, 997)]
    assert_all_equal(bordered, points)


@pytest.mark.slow
def test_all_characters(bordered: HuggingFaceTokenizer) -> None:
    """Those of all planes that have any, and a sample of where none are or they have no kind."""
    assert_all_equal(bordered, [*range(0x32400), *range(0x32400, 0x110000, 51), *range(0xE0000, 0xE0200)])


def assert_all_equal(tokenizer: HuggingFaceTokenizer, points: list[int] | range) -> None:
    characters = [chr(n) for n in points if not 0xD800 <= n < 0xE000]
    for first in range(0, len(characters), 20_000):
        some = [" ".join(c.format(char) for c in CONTEXTS) for char in characters[first : first + 20_000]]
        assert [ids.tolist() for ids in tokenizer.encode_batch(some)] == library(tokenizer, some)


def test_what_folds_to_a_contraction_is_for_the_library(tmp_path: Path) -> None:
    tokenizer = loaded(byte_level(CL100K_EXPRESSIONS[0]), tmp_path / "t")
    assert tokenizer._pairs is not None
    assert tokenizer._pairs._tables is not None
    odd = ["it'\u017f so", "fine", "a'\ufb05b", "l'\u00e9t\u00e9", "IT'S 'LL"]
    _, lengths = tokenizer._pairs._tables.encode(odd)
    assert (lengths < 0).tolist() == [True, False, True, False, False]
    assert [ids.tolist() for ids in tokenizer.encode_batch(odd)] == library(tokenizer, odd)


# ---- merges


def model_of(tokens: list[str], merges: list[tuple[str, str]], *, whole: bool) -> Tokenizer:
    vocabulary = {c: n for n, c in enumerate(_byte_characters())}
    for token in tokens:
        vocabulary.setdefault(token, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=whole))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@st.composite
def merge_lists(draw: st.DrawFn) -> list[tuple[str, str]]:
    """Merges of a few letters in any order, so also such as can never be reached, that compete, or that come twice."""
    parts = ["a", "b", "c"]
    found = []
    for _ in range(draw(st.integers(1, 14))):
        pair = draw(st.sampled_from(parts)), draw(st.sampled_from(parts))
        found.append(pair)
        if len("".join(pair)) < 12:
            parts.append("".join(pair))
    order = draw(st.permutations(found))
    return [*order, *draw(st.lists(st.sampled_from(found), max_size=2))]


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(merges=merge_lists(), whole=st.booleans(), given_texts=st.lists(st.text("abc ", max_size=130), min_size=1, max_size=8))
def test_any_merges(tmp_path: Path, merges: list[tuple[str, str]], whole: bool, given_texts: list[str]) -> None:
    """Pieces on both sides of the length at which another way of merging is taken."""
    whole_tokens = ["abc", "cab" * 30] if whole else []
    tokenizer = loaded(model_of([*map("".join, merges), *whole_tokens], merges, whole=whole), tmp_path / "t")
    given_texts = [*given_texts, "abc", "cab" * 30, *(text.replace(" ", "") * 2 for text in given_texts)]
    assert kernels(tokenizer, given_texts) == library(tokenizer, given_texts)
    assert kernels(tokenizer, given_texts) == library(tokenizer, given_texts)  # and as they are remembered


def test_long_pieces(gpt2: HuggingFaceTokenizer) -> None:
    chance = random.Random(0)
    words = " ".join(CORPUS[:4]).split()
    for length in (47, 48, 49, 50, 300, 5000):
        some = "".join(chance.choice(words) for _ in range(length))
        pieces = [some[:length], "the" * length, "a" * length, " " * length, "\u65e5\u672c" * length, "." * length]
        assert kernels(gpt2, pieces) == library(gpt2, pieces)


def test_a_piece_that_is_too_long_is_for_the_library(gpt2: HuggingFaceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "LONGEST", 50)
    given_texts = ["short", "x" * 51, "", "the " + "y" * 60 + " end", "x" * 50]
    assert gpt2._pairs is not None
    assert gpt2._pairs._tables is not None
    _, lengths = gpt2._pairs._tables.encode(given_texts)
    assert (lengths < 0).tolist() == [False, True, False, True, False]
    assert [ids.tolist() for ids in gpt2.encode_batch(given_texts)] == library(gpt2, given_texts)


@pytest.mark.parametrize("room", [2, 64])
def test_what_is_remembered_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(pairs, "REMEMBERED", room)
    tokenizer = loaded(byte_level(None), tmp_path / "t")
    assert tokenizer._pairs is not None
    tables = tokenizer._pairs._tables
    assert tables is not None
    chance = random.Random(room)
    for _ in range(60):
        some = ["".join(chance.choice(LETTERS[:4]) for _ in range(3)) + " " + chance.choice(CORPUS) for _ in range(5)]
        assert kernels(tokenizer, some) == library(tokenizer, some)
    assert tables._lines.shape == (room, 8)
    assert (tables._lines[:, 0] != 0).all()


def test_what_is_remembered_is_told_apart(gpt2: HuggingFaceTokenizer) -> None:
    """Pieces that are alike but for one byte, for their length, for zeros at their end; and those of just too many bytes."""
    pieces = [letter * n for n in range(1, 30) for letter in "ab"]
    pieces += (
        ["x" * n + "y" + "x" * (23 - n) for n in range(24)]
        + [f"{'!' * n}\0" for n in range(26)]
        + ["\0" * n for n in range(26)]
    )
    for _ in range(2):
        assert kernels(gpt2, pieces) == library(gpt2, pieces)
        assert kernels(gpt2, pieces[::-1]) == library(gpt2, pieces[::-1])


def test_every_token_that_is_taken_whole_is_there(tmp_path: Path) -> None:
    """However many there are, some of them longer than what is remembered."""
    names = [a + b + c for a in LETTERS for b in LETTERS for c in LETTERS] + [LETTERS[n:] * 3 for n in range(20)]
    tokenizer = loaded(model_of(names, [], whole=True), tmp_path / "t")
    for _ in range(2):
        assert kernels(tokenizer, names) == library(tokenizer, names) == [[256 + n] for n in range(len(names))]


def test_the_table_of_tokens_grows_until_each_has_its_place() -> None:
    from tokkit.tokenizers.text import pair_kernels

    names = [f"{n:05d}".encode() for n in range(3000)]
    arena, ends = np.frombuffer(b"".join(names), dtype=np.uint8), np.cumsum([5] * 3000)
    ids = np.arange(3000, dtype=np.int32)
    slots = np.zeros((2048, 3), dtype=np.uint64)
    assert not pair_kernels.put_tokens(slots, arena, ends, ids)
    slots = np.zeros((1 << 14, 3), dtype=np.uint64)
    assert pair_kernels.put_tokens(slots, arena, ends, ids)

    def found(name: bytes) -> int:
        data = np.frombuffer(name, dtype=np.uint8)
        key = np.uint64(pair_kernels.hash_of(data, 0, len(data)))
        return int(pair_kernels.find_token(slots, arena, data, 0, len(data), key))

    assert [int(slots[found(name), 2]) for name in names] == list(range(3000))
    assert found(b"99999") < 0


# ---- when they are used


def test_kernels_are_used_once_that_is_worthwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "WORTHWHILE", 1500)
    path = tmp_path / "tokenizer.json"
    byte_level(None).save(str(path))
    tokenizer = HuggingFaceTokenizer(path)
    found = [tokenizer.encode_batch([text]) for text in CORPUS]
    assert tokenizer._pairs is not None
    assert tokenizer._pairs.thread is not None
    tokenizer._pairs.thread.join()
    assert tokenizer._pairs._tables is not None
    assert [row.tolist() for (row,) in found] == library(tokenizer, CORPUS)
    assert [ids.tolist() for ids in tokenizer.encode_batch(CORPUS)] == library(tokenizer, CORPUS)
    odd = ["lone \ud800 surrogate", "fine", "\udfff"]
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(odd)] == odd


def test_a_small_job_compiles_nothing(tmp_path: Path) -> None:
    byte_level(None).save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
    tokenizer.encode_batch(CORPUS)
    assert tokenizer._pairs is not None
    assert tokenizer._pairs.thread is None


def test_with_any_difference_they_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "WORTHWHILE", 10)
    put = pairs._pair_table

    def wrong(model: dict) -> tuple[np.ndarray, np.ndarray]:
        keys, values = put(model)
        values[:, 0] = values[:, 0].max() - values[:, 0]
        return keys, values

    monkeypatch.setattr(pairs, "_pair_table", wrong)
    byte_level(None).save(str(tmp_path / "tokenizer.json"))
    tokenizer = HuggingFaceTokenizer(tmp_path / "tokenizer.json")
    for _ in range(2):
        assert [ids.tolist() for ids in tokenizer.encode_batch(CORPUS)] == library(tokenizer, CORPUS)
        assert tokenizer._pairs is not None
        assert tokenizer._pairs.thread is not None
        tokenizer._pairs.thread.join()
    assert tokenizer._pairs._tables is None


def test_which_files_are_for_the_kernels(tmp_path: Path) -> None:
    def is_known(tokenizer: Tokenizer) -> bool:
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return HuggingFaceTokenizer(tmp_path / "tokenizer.json")._pairs is not None

    assert all(is_known(byte_level(expression)) for expression in EXPRESSIONS.values())
    assert is_known(model_of(["ab"], [("a", "b")], whole=True))
    normal, prefixed, uncut, several = (byte_level(None) for _ in range(4))
    normal.normalizer = normalizers.NFC()
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    uncut.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    removed = pre_tokenizers.Split(Regex(GPT2_EXPRESSIONS[0]), "removed")
    several.pre_tokenizer = pre_tokenizers.Sequence([removed, pre_tokenizers.ByteLevel(False, use_regex=False)])
    for other in (normal, prefixed, uncut, several, byte_level(O200K_EXPRESSIONS[0])):
        assert not is_known(other)
    assert not is_known(byte_level(None, digits=True))
    assert not is_known(byte_level(None, blanks=True))
    assert not is_known(byte_level(r"\s+|\S+"))
    config = json.loads(byte_level(None).to_str())
    bytes_of = {byte: config["model"]["vocab"][c] for c, byte in _byte_characters().items()}
    assert merges_of(config, bytes_of) is not None
    assert merges_of(config, {}) is None
    for field, value in (("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>"), ("dropout", 0.1)):
        assert merges_of({**config, "model": {**config["model"], field: value}}, bytes_of) is None
    twice = {**config["model"]["vocab"], "zzzz": 300}
    assert merges_of({**config, "model": {**config["model"], "vocab": twice}}, bytes_of) is None


# ---- real texts


def test_real_text_in_many_languages(shared_data: Path, tokenizer: HuggingFaceTokenizer) -> None:
    found = []
    for name, step in (("news_26lang.jsonl.gz", 17), ("guides_29lang_markdown.jsonl.gz", 9)):
        with gzip.open(shared_data / "text" / name, "rt", encoding="utf-8") as file:
            found += [json.loads(line)["text"][:3000] for line in file][::step]
    assert len(found) > 150
    assert [ids.tolist() for ids in tokenizer.encode_batch(found)] == library(tokenizer, found)


def test_several_threads(gpt2: HuggingFaceTokenizer) -> None:
    from concurrent.futures import ThreadPoolExecutor

    some = [[f"{text} {n}" for text in CORPUS] for n in range(40)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(gpt2.encode_batch, some))
    for given_texts, rows in zip(some, found, strict=True):
        assert [ids.tolist() for ids in rows] == library(gpt2, given_texts)


def test_it_is_what_the_tokenizer_uses(gpt2: HuggingFaceTokenizer) -> None:
    assert isinstance(gpt2._pairs, PairEncoder)
    ids, _ = gpt2._pairs.encode_joined(CORPUS)
    assert ids.tolist() == [n for row in library(gpt2, CORPUS) for n in row]
