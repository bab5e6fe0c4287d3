"""The train-text job: exact models, the same bytes each time, and nothing of the input lost on the way."""

from __future__ import annotations

import gzip
import io
import json
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tokkit.errors import ConfigError, DataError
from tokkit.pipelines.progress import LineProgress, SilentProgress
from tokkit.pipelines.text_sample import LINE_CHARACTERS, BlockSample, blocks_of, sentences
from tokkit.pipelines.train_text import TrainTextConfig, TrainTextResult, train_text
from tokkit.tokenizers.text import load_text_tokenizer
from tokkit.tokenizers.text.spmodel import parse_model

WORDS = [
    "river",
    "stone",
    "morning",
    "light",
    "under",
    "seven",
    "wooden",
    "boats",
    "along",
    "quiet",
    "harbour",
    "lantern",
    "walking",
    "slowly",
    "northern",
    "wind",
]


def document(number: int) -> str:
    draw = random.Random(number)
    lines = [" ".join(draw.choices(WORDS, k=12)).capitalize() + "." for _ in range(8)]
    return "\n".join(lines) + f"\n\n\tcode_{number}(x)  # </s> <image> ▁ {number}\n"


def write_corpus(folder: Path, count: int = 120, extra: bytes = b"") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = b"".join(json.dumps({"id": str(n), "text": document(n)}).encode() + b"\n" for n in range(count))
    path = folder / "articles.jsonl"
    path.write_bytes(lines + extra)
    return path


def train(path: Path, out: Path, **options: object) -> TrainTextResult:
    config = TrainTextConfig.model_validate({"inputs": [str(path)], "out": out, "vocab_size": 400, **options})
    return train_text(config, SilentProgress())


def test_the_job_writes_an_exact_model_and_its_description(tmp_path: Path) -> None:
    result = train(write_corpus(tmp_path / "corpus"), tmp_path / "new" / "text.model", licence="CC0-1.0", held_out=0.1)
    tokenizer = load_text_tokenizer(result.out)
    assert tokenizer.lossless
    assert (tokenizer.vocab_size, tokenizer.fingerprint, tokenizer.licence) == (400, result.fingerprint, "CC0-1.0")
    for text in (document(7), document(1000), "x\ud800▁ \0"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    described = json.loads((tmp_path / "new" / "text.model.json").read_text())
    assert described["fingerprint"] == result.fingerprint
    assert described["bytes_per_token"] == result.bytes_per_token
    (source,) = result.sources
    assert source.documents == 120
    assert source.bytes == sum(len(document(n).encode()) for n in range(120))
    assert result.measured_on == "held-out"
    assert result.training_bytes + source.measured_bytes == source.bytes
    assert source.bytes_per_token is not None
    assert source.bytes_per_token > 2


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, model_type: str) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    moved = write_corpus(tmp_path / "elsewhere" / "corpus")
    written = []
    for number, path in enumerate((corpus, moved)):
        out = tmp_path / str(number) / "text.model"
        train(path, out, model_type=model_type, vocab_size=340)
        written.append((out.read_bytes(), out.with_name("text.model.json").read_bytes()))
    assert written[0] == written[1]
    assert str(tmp_path).encode() not in b"".join(written[0])


def test_the_number_of_threads_does_not_change_bpe(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    train(corpus, tmp_path / "one.model", threads=1)
    train(corpus, tmp_path / "four.model", threads=4)
    assert (tmp_path / "one.model").read_bytes() == (tmp_path / "four.model").read_bytes()
    assert (tmp_path / "one.model.json").read_bytes() == (tmp_path / "four.model.json").read_bytes()


def test_what_cannot_be_read_is_counted_and_told(tmp_path: Path) -> None:
    broken = b'{"id": "x"\n{"title": "no text"}\n[1]\n{"text": ""}\n'
    corpus = write_corpus(tmp_path / "corpus", extra=broken)
    (tmp_path / "corpus" / "cut.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes())[:500])
    said = io.StringIO()
    config = TrainTextConfig(inputs=[str(tmp_path / "corpus")], out=tmp_path / "text.model", vocab_size=400)
    (source,) = train_text(config, LineProgress(said)).sources
    assert sum(source.failures.values()) == 4
    assert len(source.failures) >= 3
    assert source.damages == 1
    assert "4 documents could not be read" in said.getvalue()
    assert "cut.jsonl.gz" in said.getvalue()
    assert json.loads((tmp_path / "text.model.json").read_text())["sources"][0]["failures"] == source.failures


def test_a_vocabulary_that_does_not_fit_is_told_what_would(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", count=20)
    with pytest.raises(ConfigError, match=r"vocab_size: 50000 is too large .* at most \d+ is possible") as caught:
        train(corpus, tmp_path / "text.model", vocab_size=50000)
    assert not list(tmp_path.glob("text*"))
    most = int(str(caught.value).split("at most ")[1].split()[0])
    assert train(corpus, tmp_path / "text.model", vocab_size=most).vocab_size == most
    with pytest.raises(ConfigError, match=r"vocab_size: 300 is too small .* need"):
        train(corpus, tmp_path / "small.model", vocab_size=300, character_coverage=1.0)


def test_no_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": ""}\n')
    with pytest.raises(DataError, match="no text"):
        train(tmp_path / "a.jsonl", tmp_path / "text.model")


def test_a_single_document_is_trained_and_measured_on(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("".join(document(n) for n in range(60)))
    for seed in range(4):  # half of these draw the document for measuring
        result = train(tmp_path / "a.txt", tmp_path / "text.model", held_out=0.5, seed=seed)
        assert result.measured_on == "training"


def test_configurations_are_checked() -> None:
    for bad in ({"out": "text.bin"}, {"vocab_size": 10}, {"model_type": "word"}, {"inputs": []}, {"vocabsize": 500}):
        with pytest.raises(ValidationError):
            TrainTextConfig.model_validate({"inputs": ["x"], "out": "text.model", **bad})


def test_more_text_than_allowed_is_sampled_by_content(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "a", count=300)
    lines = corpus.read_bytes().splitlines(keepends=True)
    (tmp_path / "b").mkdir()
    turned = tmp_path / "b" / "articles.jsonl"
    turned.write_bytes(b"".join(reversed(lines)))
    said = io.StringIO()
    config = TrainTextConfig(inputs=[str(corpus)], out=tmp_path / "1.model", vocab_size=400, max_bytes=100_000)
    first = train_text(config, LineProgress(said))
    assert 90_000 < first.training_bytes <= 100_000 < first.available_bytes
    assert "a sample of" in said.getvalue()
    second = train(turned, tmp_path / "2.model", max_bytes=100_000)
    assert (second.training_bytes, second.fingerprint) == (first.training_bytes, first.fingerprint)
    assert train(corpus, tmp_path / "3.model", max_bytes=100_000, seed=1).fingerprint != first.fingerprint


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(1, 40), max_size=40), st.randoms())
def test_a_sample_is_the_lowest_draws_that_fit(sizes: list[int], chance: random.Random) -> None:
    offers = [(n / 40, size) for n, size in enumerate(sizes)]
    chance.shuffle(offers)
    sample = BlockSample(100)
    for draw, size in offers:
        sample.add(draw, "x" * size, 0)
    expected, total = [], 0
    for _, size in sorted(offers):
        if (total := total + size) > 100:
            break
        expected.append(size)
    assert sorted(len(text) for _, text in sample.blocks()) == sorted(expected)
    assert (sample.bytes, sample.offered) == (sum(expected), sum(size for _, size in offers))


@settings(deadline=None)
@given(st.text(st.sampled_from("ab \n\t\0é▁▅\ud800"), max_size=400), st.integers(4, 200))
def test_nothing_but_three_characters_is_kept_from_the_trainer(text: str, block_bytes: int) -> None:
    assert "".join(blocks_of(text, block_bytes)) == text
    kept = "".join(c for c in text if c not in "▁▅\ud800")
    assert "".join(sentences(text)) == kept
    assert all(sentence and "\n" not in sentence.rstrip("\n") for sentence in sentences(text))


def test_long_lines_are_cut_at_spaces() -> None:
    parts = list(sentences("some words " * 3000 + "x" * 10000))
    assert max(map(len, parts)) <= LINE_CHARACTERS
    assert all(part.startswith((" ", "x", "s")) for part in parts)
    assert not any(part.endswith("wor") for part in parts)


def test_tabs_and_nul_do_not_cost_a_line(tmp_path: Path) -> None:
    """SentencePiece's trainer says it skips some lines; words that stand in such lines only must be learned all the same."""
    for odd in ("\t", "\0", "▅", "▁", "\ud800", "\ufeff"):
        lines = [json.dumps({"text": f"plain words {n} and more of them"}) for n in range(20)]
        lines += [json.dumps({"text": f"xylophone{odd}zigzag xylophone zigzag {n}"}) for n in range(60)]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        out = train(tmp_path / "a.jsonl", tmp_path / "text.model", vocab_size=320, held_out=0).out
        pieces = {piece.text.strip("▁") for piece in parse_model(out.read_bytes(), "it").pieces}
        assert {"xylophone", "zigzag"} <= pieces, repr(odd)


@pytest.mark.slow
def test_real_text_comes_back(tmp_path: Path, shared_data: Path) -> None:
    result = train(shared_data / "text", tmp_path / "text.model", vocab_size=32000)
    assert result.bytes_per_token > 3.9
    assert sum(source.documents for source in result.sources) == 3398
    tokenizer = load_text_tokenizer(result.out)
    for path in sorted((shared_data / "text").glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            documents = [json.loads(line)["text"] for line in lines]
        assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(documents)] == documents
