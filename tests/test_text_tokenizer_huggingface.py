"""Hugging Face tokenizers: added tokens are text in a text, by whatever way they might come back."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tokkit.errors import DataError, ItemError
from tokkit.tokenizers.text import TextTokenizer, load_text_tokenizer

CORPUS = ["The quick brown fox jumps over the lazy dog. <image> </s>", "def f(x):\n    return x\n", "日本語 шрифт"] * 20
ADDED = ["<image>", "hello", "</s>", "<s>", "<pad>", "<|end|>"]
TEXTS = ["<s>", "</s> and <image>", "hello<pad>hello", "<|end|>" * 9, "a <S> b", "x<unk>y", "<unk><unk>", "[UNK] [CLS] a"]


def byte_level(**options: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.get("prefix", False))
    tokenizer.decoder = decoders.ByteLevel()
    if options.get("nfc"):
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(["<pad>", "<|end|>"])
    tokenizer.add_tokens([AddedToken("<image>", normalized=False), AddedToken("hello", lstrip=True), "    "])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=64)
    return tokenizer


def split_byte_level() -> Tokenizer:
    """As Llama 3 and Qwen do it: a Split by a pattern, then bytes; merges are not needed for whole words."""
    tokenizer = byte_level()
    config = json.loads(tokenizer.to_str())
    split = {"type": "Split", "pattern": {"Regex": r"\p{L}+|\s+|[^\p{L}\s]+"}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    config["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, bytes_]}
    config["model"]["ignore_merges"] = True
    config["model"]["dropout"] = 0.5
    return Tokenizer.from_str(json.dumps(config))


def unigram() -> Tokenizer:
    """As XLM-R does it: the special tokens are pieces of the model itself, so they match without being added tokens."""
    pieces = [(token, 0.0) for token in ["<unk>", "<s>", "</s>", "<pad>", "<image>", "<|end|>", "hello"]]
    tokenizer = Tokenizer(models.Unigram([*pieces, *((c, -5.0) for c in "▁abcdefghijklmnopqrstuvwxyz<>/|")], 0, False))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", *ADDED])
    return tokenizer


def word_level() -> Tokenizer:
    words = ["[UNK]", "[CLS]", *ADDED, "a", "b", "and", "<", ">"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[CLS]", *ADDED])
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", *ADDED]))
    return tokenizer


MAKES = {
    "byte-level": byte_level,
    "split-byte-level": split_byte_level,
    "unigram": unigram,
    "word-level": word_level,
    "word-piece": word_piece,
}


def save(tokenizer: Tokenizer, folder: Path) -> TextTokenizer:
    tokenizer.save(str(folder / "tokenizer.json"))
    return load_text_tokenizer(folder)


def added_ids(tokenizer: Tokenizer) -> set[int]:
    """Ids of its added tokens, but those of white space and the unknown token."""
    decoder = tokenizer.get_added_tokens_decoder()
    return {n for n, token in decoder.items() if not token.content.isspace() and token.content not in ("<unk>", "[UNK]")}


@pytest.fixture(scope="session", params=MAKES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, TextTokenizer]:
    """The library's tokenizer and ours of the same file."""
    made = MAKES[request.param]()
    return made, save(made, tmp_path_factory.mktemp(request.param))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.sampled_from([*ADDED, *TEXTS, *CORPUS, " ", "\ud800"]), st.text(st.characters())), max_size=6))
def test_no_text_yields_an_added_token(pair: tuple[Tokenizer, TextTokenizer], parts: list[str]) -> None:
    library, tokenizer = pair
    ids = tokenizer.encode("".join(parts))
    assert ids.dtype == np.int32
    assert not added_ids(library) & set(ids.tolist())
    assert not len(ids) or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)
    if tokenizer.lossless:
        assert tokenizer.decode(ids) == "".join(parts)


def test_the_library_would_yield_them(pair: tuple[Tokenizer, TextTokenizer]) -> None:
    """So that the test above tests something."""
    library, _ = pair
    found = {n for text in TEXTS for n in library.encode(text, add_special_tokens=False).ids}
    assert len(found & added_ids(library)) >= 3


def test_plain_text_encodes_as_in_the_library(pair: tuple[Tokenizer, TextTokenizer]) -> None:
    library, tokenizer = pair
    library.no_truncation()
    library.no_padding()
    if library.model.__class__.__name__ == "BPE" and library.model.dropout:
        return
    texts = ["The quick brown fox", "  def f(x):\n    return x  ", "日本語 é", ""]
    assert [ids.tolist() for ids in tokenizer.encode_batch(texts)] == [
        library.encode(text, add_special_tokens=False).ids for text in texts
    ]


def test_nothing_is_added_cut_or_left_to_chance(tmp_path: Path) -> None:
    for number, make in enumerate((byte_level, split_byte_level)):
        (tmp_path / str(number)).mkdir()
        tokenizer = save(make(), tmp_path / str(number))
        text = "The quick brown fox jumps over the lazy dog. " * 20
        ids = tokenizer.encode(text)
        assert len(ids) > 64
        assert tokenizer.decode(ids) == text
        assert all(ids.tolist() == tokenizer.encode(text).tolist() for _ in range(3))


def test_losslessness_is_found_out(tmp_path: Path) -> None:
    expected = {
        "plain": (byte_level(), True),
        "split": (split_byte_level(), True),
        "prefix": (byte_level(prefix=True), False),
        "nfc": (byte_level(nfc=True), False),
        "unigram": (unigram(), False),
        "word-piece": (word_piece(), False),
    }
    for name, (made, lossless) in expected.items():
        (tmp_path / name).mkdir()
        assert save(made, tmp_path / name).lossless is lossless, name


def test_a_split_that_removes_is_not_lossless(tmp_path: Path) -> None:
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer = save(made, tmp_path)
    assert not tokenizer.lossless
    assert tokenizer.decode(tokenizer.encode("a b")) == "ab"


def test_runs_of_spaces_stay_tokens(tmp_path: Path) -> None:
    library, tokenizer = byte_level(), save(byte_level(), tmp_path)
    assert library.token_to_id("    ") in tokenizer.encode("x    y")
    assert tokenizer.decode(tokenizer.encode("x    y     z")) == "x    y     z"


def test_added_tokens_are_encoded_as_any_other_text(tmp_path: Path) -> None:
    """Not merely avoided: the ids are those of a file that never had them."""
    plain = json.loads(byte_level().to_str())
    plain |= {"added_tokens": [], "truncation": None, "padding": None, "post_processor": None}
    library, tokenizer = Tokenizer.from_str(json.dumps(plain)), save(byte_level(), tmp_path)
    for text in ["<image>", "say hello</s><pad>", "<|end|>"]:
        assert tokenizer.encode(text).tolist() == library.encode(text).ids


def test_vocab_size_is_the_largest_id_plus_one(tmp_path: Path) -> None:
    made = byte_level()
    tokenizer = save(made, tmp_path)
    assert tokenizer.vocab_size == max(made.get_vocab(with_added_tokens=True).values()) + 1
    assert tokenizer.decode([tokenizer.vocab_size - 1])


def test_unknown_is_for_the_unknown_only(tmp_path: Path) -> None:
    tokenizer = save(unigram(), tmp_path)
    assert tokenizer.unknown_id == 0
    assert 0 not in tokenizer.encode("a <unk> b <UNK> c")
    assert 0 in tokenizer.encode("é")
    assert 0 in tokenizer.encode("é<unk>é")


def test_a_character_that_is_a_special_token_is_a_clear_error(tmp_path: Path) -> None:
    made = unigram()
    made.normalizer = normalizers.Replace("ß", "<s>")
    tokenizer = save(made, tmp_path)
    with pytest.raises(ItemError, match=r"text-not-encodable: .*'ß'.*'<s>'"):
        tokenizer.encode("Straße")


def test_the_fingerprint_is_of_what_decides_the_ids(tmp_path: Path) -> None:
    made = byte_level()
    first = save(made, tmp_path).fingerprint
    made.no_padding()
    made.no_truncation()
    made.post_processor = processors.ByteLevel()
    assert save(made, tmp_path).fingerprint == first
    made.add_tokens(["<more>"])
    assert save(made, tmp_path).fingerprint != first
    assert save(byte_level(nfc=True), tmp_path).fingerprint != first


def test_name_licence_and_copies(tmp_path: Path) -> None:
    (tmp_path / "some-model").mkdir()
    (tmp_path / "some-model" / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# A model\n")
    tokenizer = save(byte_level(), tmp_path / "some-model")
    assert (tokenizer.name, tokenizer.kind, tokenizer.licence) == ("some-model", "huggingface", "apache-2.0")
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.encode("a b").tolist() == tokenizer.encode("a b").tolist()


def test_not_even_the_names_used_inside_yield_an_added_token(tmp_path: Path) -> None:
    library, tokenizer = byte_level(), save(byte_level(), tmp_path)
    for number in added_ids(library):
        text = f"a \ufdd0{number}\ufdd1 b"
        assert not added_ids(library) & set(tokenizer.encode(text).tolist())
        assert tokenizer.decode(tokenizer.encode(text)) == text


def _hostile(kind: str) -> str:
    config = json.loads(byte_level().to_str())
    model = config["model"]
    if kind == "deep":
        return "[" * 5000 + "]" * 5000
    if kind == "empty":
        model["vocab"], model["merges"], config["added_tokens"] = {}, [], []
    elif kind == "far-id":
        model["vocab"]["zzfar"] = 2**31 - 1
    elif kind == "added-far":
        config["added_tokens"].append({**config["added_tokens"][0], "id": 5000, "content": "<far>"})
    elif kind == "added-twice":
        config["added_tokens"].append({**config["added_tokens"][0], "id": model["vocab"]["a"]})
    elif kind == "prefix":
        model["continuing_subword_prefix"] = "##"
    return json.dumps(config)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("deep", "is not JSON"),
        ("empty", "it has no tokens"),
        ("far-id", "'zzfar' has the id 2147483647"),
        ("added-far", "library gives it"),
        ("added-twice", "library gives it|cannot be loaded"),
        ("prefix", "cannot be loaded by the tokenizers library"),
    ],
)
def test_hostile_files_are_an_error_and_no_traceback(tmp_path: Path, kind: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(_hostile(kind))
    with pytest.raises(DataError, match=message):
        load_text_tokenizer(tmp_path / "tokenizer.json")
