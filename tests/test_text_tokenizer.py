"""SentencePiece tokenizers: nothing is lost, and nothing that a text contains becomes a control symbol."""

from __future__ import annotations

import gzip
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from tokkit.errors import DataError, VocabularyError
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_text import TrainTextConfig, train_model
from tokkit.tokenizers.text import SentencePieceTokenizer, TextTokenizer, load_text_tokenizer
from tokkit.tokenizers.text.base import PROBES
from tokkit.tokenizers.text.spmodel import PieceType, parse_model

CORPUS = [
    "The quick brown fox jumps over the lazy dog.\n\n  def f(x):\n      return x  # code\n",
    "the <image> tag, the </s> tag and the <unk> tag are text here, 1234567890\ttabbed\r\n",
    "Съешь ещё этих мягких французских булок, да выпей чаю. 日本語のテキスト、もう一度日本語。 שלום",
] * 40
ADVERSARIAL = ["<s>", "</s>", "<unk>", "<pad>", "<image>", "<0x41>", "<|im_end|>", "[INST]", " ⁇ ", "▁</s>▁", "<s></s>" * 50]
TRICKY = [
    " ",
    "  ",
    "\t",
    "\n",
    "\0",
    "▁",
    "▁▁ ▁",
    "▅",
    "⁇",
    "\ufeff",
    "\ud800",
    "\udfff",
    "\ud83d\ude00",
    "e\u0301",
    "\u202e",
    "👨‍👩‍👧",
]

texts = st.lists(
    st.one_of(st.text(st.characters(), max_size=30), st.sampled_from(TRICKY + ADVERSARIAL), st.sampled_from(CORPUS)), max_size=6
).map("".join)


def library_model(**options: object) -> bytes:
    """A model as SentencePiece's own defaults make it, but for ``options``."""
    model = io.BytesIO()
    given_options = {"vocab_size": 500, "model_type": "bpe", "hard_vocab_limit": False, "minloglevel": 2, **options}
    sentencepiece.SentencePieceTrainer.Train(sentence_iterator=iter(CORPUS), model_writer=model, **given_options)
    return model.getvalue()


@pytest.fixture(scope="session", params=["bpe", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    path = tmp_path_factory.mktemp("spm") / f"{request.param}.model"
    config = TrainTextConfig(inputs=["-"], out=path, vocab_size=360, model_type=request.param, character_coverage=0.98)
    path.write_bytes(train_model(CORPUS, config, SilentProgress()))
    return load_text_tokenizer(path)


@settings(deadline=None, max_examples=300)
@given(texts)
def test_every_string_comes_back(tokenizer: TextTokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert not len(ids) or (ids.min() >= 3 and ids.max() < tokenizer.vocab_size)  # 0 to 2 are the control symbols


def test_every_kind_of_character_comes_back(tokenizer: TextTokenizer) -> None:
    for start in range(0, 0x110000, 0x4000):
        text = "".join(map(chr, range(start, start + 0x4000, 7 if start >= 0x10000 else 1)))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.lossless
    assert tokenizer.unknown_id is None


@settings(deadline=None, max_examples=50)
@given(st.lists(texts, max_size=5))
def test_a_batch_is_its_texts_one_by_one(tokenizer: TextTokenizer, batch: list[str]) -> None:
    together = tokenizer.encode_batch(batch)
    assert [ids.tolist() for ids in together] == [tokenizer.encode(text).tolist() for text in batch]


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_any_ids_decode_to_a_string(tokenizer: TextTokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30))
    assert isinstance(tokenizer.decode(ids), str)
    assert tokenizer.decode(np.array(ids, dtype=np.uint16)) == tokenizer.decode(ids)


def test_bytes_cut_within_a_character_do_not_harm_the_rest(tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("a\ud800b\U0001f98ac")
    whole = tokenizer.decode(ids[:-2])  # ends within the four bytes of the fox
    assert whole.startswith("a\ud800b\ufffd")


def test_adversarial_texts_are_text(tokenizer: TextTokenizer) -> None:
    for text in ADVERSARIAL:
        ids = tokenizer.encode(text)
        assert ids.min() >= 3
        assert tokenizer.decode(ids) == text


def test_ids_outside_are_refused(tokenizer: TextTokenizer) -> None:
    for ids in ([0, tokenizer.vocab_size], [-1]):
        with pytest.raises(VocabularyError, match=rf"id {ids[-1]} at {len(ids) - 1}"):
            tokenizer.decode(ids)
    with pytest.raises(VocabularyError):
        tokenizer.decode(np.zeros((2, 2), dtype=np.int64))
    assert tokenizer.decode([]) == ""


def test_it_can_be_sent_to_another_process(tokenizer: TextTokenizer) -> None:
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy.fingerprint == tokenizer.fingerprint
    assert copy.encode(CORPUS[0]).tolist() == tokenizer.encode(CORPUS[0]).tolist()


def test_the_reader_of_models_agrees_with_the_library(tokenizer: TextTokenizer) -> None:
    library = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer.path))
    model = parse_model(tokenizer.path.read_bytes(), "it")
    assert len(model.pieces) == library.vocab_size() == tokenizer.vocab_size
    for number, piece in enumerate(model.pieces):
        assert piece.text == library.id_to_piece(number)
        assert piece.score == pytest.approx(library.get_score(number))
        assert (piece.type is PieceType.BYTE) == library.is_byte(number)
        assert (piece.type is PieceType.CONTROL) == library.is_control(number)
    assert len(model.byte_ids) == 256


def test_fingerprints_are_of_what_decides_the_ids(tmp_path: Path) -> None:
    def fingerprint(**options: object) -> str:
        return parse_model(library_model(**options), "it").fingerprint

    assert fingerprint() == fingerprint(num_threads=3, self_test_sample_size=1)
    different = [
        fingerprint(),
        fingerprint(vocab_size=200),
        fingerprint(add_dummy_prefix=False),
        fingerprint(byte_fallback=True),
    ]
    assert len(set(different)) == 4


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalization_rule_name": "identity", "byte_fallback": True},
        {"normalization_rule_name": "identity", "byte_fallback": True, "add_dummy_prefix": False},
        {"normalization_rule_name": "identity", "byte_fallback": True, "remove_extra_whitespaces": False},
        {"normalization_rule_name": "identity", "add_dummy_prefix": False, "remove_extra_whitespaces": False},
        {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "byte_fallback": True},
    ],
)
def test_a_foreign_model_is_found_out_and_still_works(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "foreign.model"
    path.write_bytes(library_model(**options))
    tokenizer = load_text_tokenizer(path)
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert not tokenizer.lossless
    assert any(library.decode(library.encode(probe)) != probe for probe in PROBES[:-1])
    for text in ["the lazy dog", "  日本語  ▁ \n x", *ADVERSARIAL]:
        assert tokenizer.encode(text).tolist() == library.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(text))
    assert isinstance(tokenizer.decode(tokenizer.encode("lone \ud800 surrogate")), str)
    assert tokenizer.unknown_id == 0


def test_a_foreign_model_of_the_right_make_is_lossless(tmp_path: Path) -> None:
    path = tmp_path / "foreign.model"
    options = {"add_dummy_prefix": False, "remove_extra_whitespaces": False, "byte_fallback": True}
    path.write_bytes(library_model(normalization_rule_name="identity", **options))
    assert load_text_tokenizer(path).lossless


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_marker_symbols_of_a_foreign_model_are_not_matched_in_text(tmp_path: Path, model_type: str) -> None:
    markers, plain = ["<image>", "<|im_start|>", "[INST]"], ["\n\n\n", "▁▁▁▁", "hello"]
    path = tmp_path / "marked.model"
    path.write_bytes(
        library_model(
            user_defined_symbols=markers + plain,
            model_type=model_type,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            byte_fallback=True,
        )
    )
    library = sentencepiece.SentencePieceProcessor(model_file=str(path))
    tokenizer = SentencePieceTokenizer(path)
    for marker in markers:
        text = f"an {marker} in{marker}a text"
        number = library.piece_to_id(marker)
        assert number in library.encode(text)
        assert number not in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.decode([number]) == marker
    for text, symbol in [("a\n\n\nb", "\n\n\n"), ("a    b", "▁▁▁▁"), ("say hello!", "hello")]:
        assert library.piece_to_id(symbol) in tokenizer.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_what_is_no_tokenizer_is_a_clear_error(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    def write(name: str, data: bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        return path

    whole = tokenizer.path.read_bytes()
    cases = {
        "does not exist": tmp_path / "nothing.model",
        "not a SentencePiece model": write("a.model", b"\x0a\xff\xff\xff\xff\xff"),
        "it has no pieces": write("empty.model", b""),
        "or it is damaged": write("cut.model", whole[: len(whole) // 2]),
        "tiktoken ranks": write("ranks.model", b"IQ== 0\nIg== 1\n"),
        "by its name": write("x.bin", whole),
        "is not JSON": write("b.json", b"{"),
        "has no 'model'": write("c.json", b'{"vocab": {}}'),
        "cannot be loaded by the tokenizers library": write("d.json", b'{"model": {"type": "Nothing"}}'),
        "holds no tokenizer.json and no .model; its vocab.json": write("folder/vocab.json", b"{}").parent,
    }
    for message, path in cases.items():
        with pytest.raises(DataError, match=message):
            load_text_tokenizer(path)


def test_a_folder_with_one_model_is_enough(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    (tmp_path / "text.model").write_bytes(tokenizer.path.read_bytes())
    (tmp_path / "text.model.json").write_text(json.dumps({"licence": "CC0-1.0"}))
    found = load_text_tokenizer(tmp_path)
    assert found.fingerprint == tokenizer.fingerprint
    assert found.licence == "CC0-1.0"
    (tmp_path / "other.model").write_bytes(b"")
    with pytest.raises(DataError, match=r"other\.model, text\.model"):
        load_text_tokenizer(tmp_path)


def test_every_document_of_the_real_corpora_comes_back(tokenizer: TextTokenizer, shared_data: Path) -> None:
    for path in sorted((shared_data / "text").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents = [json.loads(line)["text"] for line in lines][::25]
        for text, ids in zip(documents, tokenizer.encode_batch(documents), strict=True):
            assert tokenizer.decode(ids) == text
