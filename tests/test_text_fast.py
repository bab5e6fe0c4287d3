"""`--text-engine gigatoken`: the library's ids or an error, whatever the text holds."""

from __future__ import annotations

import gzip
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shard_corpus import snapshot

pytest.importorskip("gigatoken", reason="the extra 'fast' is not installed")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tokkit.errors import FingerprintMismatch, UsageError
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.tokenizers.text import HuggingFaceTokenizer, load_text_tokenizer
from tokkit.tokenizers.text.fast import CHECKED_FIRST, EngineMismatchError, GigatokenTokenizer

WORDS = "the quick brown fox jumps over a lazy dog while seven pictures of documents line up <image> twice"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tokenizer.json"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|endoftext|>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [" ".join(np.random.default_rng(n).permutation(WORDS.split())) for n in range(200)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def both(model: Path) -> tuple[HuggingFaceTokenizer, GigatokenTokenizer]:
    fast = load_text_tokenizer(model, engine="gigatoken")
    assert isinstance(fast, GigatokenTokenizer)
    fast._until_rare = 0  # its own ids are what is looked at
    return HuggingFaceTokenizer(model), fast


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(
        st.one_of(
            st.text(max_size=60),
            st.text(alphabet="<image>|endoftx \n\ud800\udfffé한", max_size=40),
            st.lists(st.sampled_from([*WORDS.split(), "<|endoftext|>", " ", "\n\n", "\x00"]), max_size=30).map("".join),
        ),
        max_size=8,
    )
)
def test_the_ids_are_the_librarys(both: tuple[HuggingFaceTokenizer, GigatokenTokenizer], texts: list[str]) -> None:
    library, fast = both
    expected = library.encode_batch(texts)
    found = fast.encode_batch(texts)
    assert [ids.tolist() for ids in found] == [ids.tolist() for ids in expected]
    assert all(ids.dtype == np.int32 for ids in found)


def test_real_text_in_many_languages(shared_data: Path, both: tuple[HuggingFaceTokenizer, GigatokenTokenizer]) -> None:
    library, fast = both
    with gzip.open(shared_data / "text" / "news_26lang.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"][:2000] for line in file][::9]
    assert len(texts) > 100
    for found, expected in zip(fast.encode_batch(texts), library.encode_batch(texts), strict=True):
        assert np.array_equal(found, expected)


def test_it_is_the_same_tokenizer(model: Path, both: tuple[HuggingFaceTokenizer, GigatokenTokenizer]) -> None:
    library, fast = both
    assert fast.fingerprint == library.fingerprint
    assert (fast.vocab_size, fast.lossless, fast.kind) == (library.vocab_size, library.lossless, library.kind)
    again = pickle.loads(pickle.dumps(fast))
    assert again.encode(WORDS).tolist() == library.encode(WORDS).tolist()


class Wrong:
    """An engine that is wrong about one text."""

    def __init__(self, right: object, bad: str) -> None:
        self.right, self.bad = right, bad

    def encode(self, text: str) -> object:
        return self.right.encode(text + "!" if text == self.bad else text)  # type: ignore[attr-defined]


def test_a_difference_stops_it_at_once_and_later(model: Path) -> None:
    first = GigatokenTokenizer(model)
    first._fast = Wrong(first._fast, "seven documents")
    with pytest.raises(EngineMismatchError, match=r"at token \d+ .* begins 'seven documents'"):
        first.encode_batch(["the fox", "seven documents"])

    later = GigatokenTokenizer(model)
    later.encode_batch(["the fox"] * CHECKED_FIRST)
    texts = [f"document {n}" for n in range(3000)]
    for text in texts:
        later._fast = Wrong(first._fast.right, text)
        try:
            later.encode_batch([text])
        except EngineMismatchError:
            break
    else:
        pytest.fail("of 3,000 wrong texts none was noticed")


def test_other_files_are_refused(tmp_path: Path, model: Path) -> None:
    (tmp_path / "text.model").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"is for a Hugging Face tokenizer\.json"):
        load_text_tokenizer(tmp_path / "text.model", engine="gigatoken")
    config = json.loads(model.read_text())
    config["model"] = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    config["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not know"):
        load_text_tokenizer(tmp_path / "tokenizer.json", engine="gigatoken")


def test_a_run_has_the_same_tokens_and_says_what_made_them(model: Path, tmp_path: Path) -> None:
    lines = [json.dumps({"id": f"d{n}", "text": f"{WORDS} {n} <image>\ud800"}) for n in range(600)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))

    def run(engine: str, out: str) -> ShardConfig:
        config = ShardConfig(
            inputs=[str(tmp_path / "a.jsonl")],
            out=tmp_path / out,
            text_tokenizer=model,
            text_engine=engine,  # type: ignore[arg-type]
            workers=0,
            report_documents=0,
        )
        shard(config, SilentProgress())
        return config

    run("library", "slow")
    run("gigatoken", "fast")
    slow, fast = snapshot(tmp_path / "slow"), snapshot(tmp_path / "fast")
    differ = {name for name in slow if slow[name] != fast[name]}
    assert not {name for name in differ if name.startswith(("tokens/", "rejects/", "vocabulary"))}
    manifest = json.loads((tmp_path / "fast" / "manifest.json").read_text())
    assert "gigatoken" in manifest["numeric"]["packages"]
    with pytest.raises(FingerprintMismatch, match="gigatoken"):
        run("gigatoken", "slow")
    checked = verify(VerifyConfig(directory=tmp_path / "fast", reencode=20), SilentProgress())
    assert checked.problems == []
    assert checked.reencoded is not None
    assert (checked.reencoded.exact, checked.reencoded.differences) == (20, [])
