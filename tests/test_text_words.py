"""Texts encoded by their words have the ids that the libraries give for the whole text."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokkit.tokenizers.text import load_text_tokenizer
from tokkit.tokenizers.text.base import TextTokenizer
from tokkit.tokenizers.text.spmodel import parse_model
from tokkit.tokenizers.text.words import MAX_WORD, PATTERNS, WordCache, cuts_huggingface, cuts_sentencepiece, words_of

CORPUS = [
    "The quick brown fox doesn't jump over the lazy dog; it's 12,345 (or 3.14) times as WELL-KNOWN...",
    "def f(x):\n    return x  # two  spaces\n\n\ttabs\u00a0and no-break\u3000spaces\r\n",
    "日本語 の 文章 шрифт и буквы, naïve café — e\u0301 \u1e9b\u0323 नमस्ते दुनिया ٣٫١٤ ½",
    "We'LL see: they'RE 'quoted' '' \"x\" 1st 2nd a1b2 http://example.com/a?b=c&d=%20 🙂🙃 👨‍👩‍👧",
] * 8

# What pre-tokenizers treat in special ways, and white space of every kind, some of it such only to one library or the other.
ALPHABET = (
    " \n\t\r\u00a0\u0085\u2003\u2028\u3000\u180e\u200b\ufeff\x1c\x1f'sStTrREdlm019½٣aZéßſK\u0301\u0338日한ा🙂.,;-_/()\u2581<>"
)

texts = st.one_of(
    st.text(alphabet=ALPHABET, max_size=40),
    st.text(max_size=40),
    st.lists(st.sampled_from([*" ".join(CORPUS[:4]).split(" "), " ", "\n", "  "]), max_size=20).map(" ".join),
)


def byte_level(pattern: str | None, **options: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        cut: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        cut = [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if options.get("digits"):
        cut.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = cut[0] if len(cut) == 1 else pre_tokenizers.Sequence(cut)
    if options.get("nfc"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False))
    if options.get("blanks"):
        tokenizer.add_tokens(["  ", "    ", "\n\n"])
    return tokenizer


MAKES: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": lambda: byte_level(None),
    "gpt2-digits": lambda: byte_level(None, digits=True),
    "gpt2-blanks": lambda: byte_level(None, blanks=True),
    "nfc": lambda: byte_level(sorted(PATTERNS)[0], nfc=True),
    **{f"pattern-{n}": (lambda pattern=pattern: byte_level(pattern)) for n, pattern in enumerate(sorted(PATTERNS))},
}


@pytest.fixture(scope="module", params=MAKES)
def huggingface(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    MAKES[request.param]().save(str(path))
    tokenizer = load_text_tokenizer(path)
    assert tokenizer._words is not None  # type: ignore[attr-defined]
    return tokenizer


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    return trained(tmp_path_factory.mktemp("spm"), "bpe")


def trained(folder: Path, model_type: str, **options: Any) -> TextTokenizer:
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(CORPUS),
        model_prefix=str(folder / model_type),
        vocab_size=500,
        hard_vocab_limit=False,
        model_type=model_type,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        num_threads=1,
        minloglevel=2,
        **options,
    )
    return load_text_tokenizer(folder / f"{model_type}.model")


@settings(deadline=None)
@given(texts=st.lists(texts, max_size=6))
def test_byte_level_bpe(huggingface: TextTokenizer, texts: list[str]) -> None:
    plain = [text.encode("utf-8", "replace").decode() for text in texts]
    library = huggingface._encoder.encode_batch(plain, add_special_tokens=False)  # type: ignore[attr-defined]
    assert [ids.tolist() for ids in huggingface.encode_batch(plain)] == [found.ids for found in library]


@settings(deadline=None)
@given(texts=st.lists(texts, max_size=6))
def test_sentencepiece_bpe(bpe: TextTokenizer, texts: list[str]) -> None:
    assert bpe._words is not None  # type: ignore[attr-defined]
    plain = [text.encode("utf-8", "replace").decode().replace("\u2581", "_") for text in texts]
    library = bpe._processor.Encode(plain, out_type=int)  # type: ignore[attr-defined]
    assert [ids.tolist() for ids in bpe.encode_batch(plain)] == library


def test_real_text_in_many_languages(shared_data: Path, huggingface: TextTokenizer, bpe: TextTokenizer) -> None:
    with gzip.open(shared_data / "text" / "news_26lang.jsonl.gz", "rt", encoding="utf-8") as file:
        found = [json.loads(line)["text"][:3000].replace("\u2581", "_") for line in file][::17]
    with gzip.open(shared_data / "text" / "guides_29lang_markdown.jsonl.gz", "rt", encoding="utf-8") as file:
        found += [json.loads(line)["text"][:3000].replace("\u2581", "_") for line in file][::9]
    assert len(found) > 150
    library = huggingface._encoder.encode_batch(found, add_special_tokens=False)  # type: ignore[attr-defined]
    assert [ids.tolist() for ids in huggingface.encode_batch(found)] == [one.ids for one in library]
    assert [ids.tolist() for ids in bpe.encode_batch(found)] == bpe._processor.Encode(found, out_type=int)  # type: ignore[attr-defined]


@given(text=texts)
def test_words_make_up_the_text_and_are_cut_at_gaps_only(text: str) -> None:
    words = words_of(text)
    assert "".join(words) == text
    place = len(words[0])
    for word in words[1:]:
        assert word[0] == " "
        assert not word[1].isspace()
        assert not text[place - 1].isspace()
        place += len(word)
    gaps = sum(
        text[n] == " " and not text[n - 1].isspace() and not text[n + 1].isspace() for n in range(1, max(1, len(text) - 1))
    )
    assert len(words) == gaps + 1


def test_which_files_cut_at_every_gap(tmp_path: Path) -> None:
    def cuts(tokenizer: Tokenizer) -> bool:
        return cuts_huggingface(json.loads(tokenizer.to_str()))

    assert cuts(byte_level(None))
    assert not cuts(byte_level(r"\s+|\S+ ?"))
    prefixed = byte_level(None)
    prefixed.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    whole = byte_level(None)
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    folded = byte_level(None)
    folded.normalizer = normalizers.NFKC()
    for tokenizer in (prefixed, whole, folded, Tokenizer(models.WordPiece({"[UNK]": 0}))):
        assert not cuts(tokenizer)


def test_which_models_cut_at_every_gap(tmp_path: Path) -> None:
    def cuts(tokenizer: TextTokenizer) -> bool:
        return cuts_sentencepiece(parse_model(tokenizer.path.read_bytes(), "it"))

    assert cuts(trained(tmp_path, "bpe"))
    assert not cuts(trained(tmp_path, "unigram"))
    (tmp_path / "crossing").mkdir()
    crossing = trained(tmp_path / "crossing", "bpe", split_by_whitespace=False)
    assert not cuts(crossing)
    assert any("\u2581" in piece.text.lstrip("\u2581") for piece in parse_model(crossing.path.read_bytes(), "it").pieces)
    (tmp_path / "defined").mkdir()
    assert not cuts(trained(tmp_path / "defined", "bpe", user_defined_symbols=["ham and eggs"]))


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def encode(words: list[str]) -> list[list[int]]:
        asked.extend(words)
        return [[ord(c) for c in word] for word in words]

    monkeypatch.setattr("tokkit.tokenizers.text.words.MAX_WORDS", 10)
    cache = WordCache(encode)  # type: ignore[arg-type]
    for first in range(0, 100, 3):
        text = " ".join(map(str, range(first, first + 6))) + " " + "x" * (MAX_WORD + 1)
        ids, lengths = cache.encode_joined([text, "y"])
        assert "".join(map(chr, ids[: lengths[0]])) == text
        assert lengths.tolist() == [len(text), 1]
        kept = [*cache._young, *cache._old]
        assert len(kept) <= 10 + len(set(text.split()) | {"y"})
        assert max(map(len, kept)) <= MAX_WORD
        assert asked.count("y") == 1  # what comes again and again is never forgotten
    asked.clear()
    cache.encode_joined(["y", "y z"])
    assert asked == [" z"]  # what is known is not asked for again
