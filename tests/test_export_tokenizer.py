"""The exported Hugging Face tokenizer: ids and texts as ours, whatever a text contains, and a name for every id."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import packing_corpus
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_tokenizers import chameleon, emu3, write
from test_text_tokenizer import ADVERSARIAL, CORPUS, TRICKY, library_model
from test_text_tokenizer_huggingface import byte_level, split_byte_level, unigram
from tokenizers import Tokenizer
from typer.testing import CliRunner

from tokkit.cli.main import app
from tokkit.errors import DataError, UsageError, VerificationError
from tokkit.interleave import AudioCodes, ImageCodes, Layout, TextCodes, encode
from tokkit.pipelines.export import ExportConfig, export
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.train_text import TrainTextConfig, train_model
from tokkit.released_vocabularies import released_vocabulary
from tokkit.shards.manifest import LayoutEntry, TokenizerEntry, load_manifest
from tokkit.storage import sha256_file
from tokkit.tokenizers.text import TextTokenizer, load_text_tokenizer
from tokkit.tokenizers.text.base import without_surrogates
from tokkit.tokenizers.text.convert import _ways, tie_test
from tokkit.vocabulary import UnifiedVocabulary

SILENT = SilentProgress()
KINDS = ["bpe", "unigram", "byte-level", "split-byte-level"]
RUNS = [*CORPUS[:3], "    " * 9 + "x" * 40 + "\n" * 20, "haha" * 9 + "=" * 50, "a aa aaa aaaa aaaaa abab ababab"] * 40
NAMES = ["<|image_3|>", "<|begin_image|>", "<|audio_1_2|>", "<|grid_5|>", "<|unused_400|>", "<|image_3|><|end_image|>"]

texts = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.text("ab =\n▁", max_size=40),
        st.sampled_from([*map(without_surrogates, TRICKY), *ADVERSARIAL, *NAMES]),
        st.sampled_from(RUNS[:6]),
    ),
    max_size=6,
).map("".join)


@dataclass(frozen=True)
class Exported:
    """An output, and its tokenizer: ours, the exported one, and where that is."""

    directory: Path
    path: Path
    vocabulary: UnifiedVocabulary
    ours: TextTokenizer
    theirs: Tokenizer
    out: Path


def write_output(
    directory: Path, path: Path, vocabulary: UnifiedVocabulary, documents: list[str], layout: Layout | None = None
) -> Path:
    """An output whose documents are these texts, each with a picture behind it."""
    ours = load_text_tokenizer(path, vocabulary.claimed)
    rng = np.random.default_rng(0)
    encoded = []
    for text in documents:
        parts = [TextCodes(ours.encode(text)), ImageCodes(rng.integers(0, 64, (1, 2, 2)).astype(np.int32))]
        if not vocabulary.embedded:
            parts.append(AudioCodes(rng.integers(0, 16, (2, 3)).astype(np.int32), 16_000, 1))
        encoded.append(encode(parts, vocabulary, layout or Layout()))
    packing_corpus.write_directory(directory, {"train": encoded}, vocabulary=vocabulary)
    entry = TokenizerEntry(kind=ours.kind, name="text", fingerprint=ours.fingerprint, licence="CC0-1.0", lossless=ours.lossless)
    manifest = load_manifest(directory)
    manifest = manifest.model_copy(update={"tokenizers": {"text": entry}, "layout": LayoutEntry.of(layout or Layout())})
    (directory / "manifest.json").write_text(manifest.model_dump_json())
    return directory


def made(folder: Path, kind: str) -> Path:
    """A tokenizer of this kind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("tokenizer.json" if "byte-level" in kind else f"{kind}.model")
    if kind in ("bpe", "unigram"):
        config = TrainTextConfig(inputs=["-"], out=path, vocab_size=360, model_type=kind, character_coverage=0.98)
        path.write_bytes(train_model(RUNS, config, SILENT))
    else:
        (byte_level if kind == "byte-level" else split_byte_level)().save(str(path))
    return path


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp(request.param)
    path = made(folder / "text", request.param)
    size = load_text_tokenizer(path).vocab_size
    vocabulary = UnifiedVocabulary.build(size + 50, image_codebooks=[64], audio_codebooks=[16, 16])
    directory = write_output(folder / "shards", path, vocabulary, RUNS[:6])
    out = folder / "out"
    export(ExportConfig(directory=directory, out=out, format="hf-tokenizer", text_tokenizer=path), SILENT)
    return Exported(directory, path, vocabulary, load_text_tokenizer(path), loaded(out), out)


def loaded(out: Path) -> Tokenizer:
    theirs = Tokenizer.from_file(str(out / "tokenizer.json"))
    theirs.encode_special_tokens = True
    return theirs


def check(exported: Exported, text: str) -> None:
    ours = exported.ours.encode(text).tolist()
    theirs = exported.theirs.encode(text, add_special_tokens=False).ids
    assert theirs == ours or tie_test(exported.ours)(ours, theirs)
    assert exported.theirs.decode(ours, skip_special_tokens=False) == text


@settings(deadline=None, max_examples=300)
@given(texts)
def test_ids_and_texts_are_ours(exported: Exported, text: str) -> None:
    check(exported, text)


def test_a_text_gives_no_marker(exported: Exported) -> None:
    for name in [*ADVERSARIAL, *NAMES, "<|padding|>"]:
        check(exported, name)
        check(exported, f"x{name} {name}")
    exported.theirs.encode_special_tokens = False  # then it does, for templates of chats
    try:
        found = exported.theirs.encode("<|begin_image|><|image_3|>", add_special_tokens=False).ids
    finally:
        exported.theirs.encode_special_tokens = True
    assert found == [exported.vocabulary.marker("begin_image"), int(exported.vocabulary.encode("image", 3))]


def test_every_id_has_a_name(exported: Exported) -> None:
    vocabulary, theirs = exported.vocabulary, exported.theirs
    assert theirs.get_vocab_size() == vocabulary.size
    names = [theirs.id_to_token(n) for n in range(vocabulary.size)]
    assert [theirs.token_to_id(name) for name in names] == list(range(vocabulary.size))
    assert [names[n] for n in vocabulary.encode("image", [0, 63])] == ["<|image_0|>", "<|image_63|>"]
    assert names[int(vocabulary.encode("audio", 5, codebook=1))] == "<|audio_1_5|>"
    assert names[int(vocabulary.encode("grid", 0))] == "<|grid_1|>"
    assert {name: names[n] for name, n in vocabulary.markers.items()} == {n: f"<|{n}|>" for n in vocabulary.markers}
    first = exported.ours.vocab_size
    assert names[first] == f"<|unused_{first}|>"  # the text model's padding


def test_a_document_is_its_text_between_names(exported: Exported) -> None:
    from tokkit.shards.native import open_shards

    ids = open_shards(exported.directory, "train").tokens(0).tolist()
    told = exported.theirs.decode(ids, skip_special_tokens=False)
    assert told.startswith("<|begin_document|>" + RUNS[0] + "<|begin_image|><|image_")
    assert told.endswith("<|end_audio|><|end_document|>")
    assert exported.theirs.decode(ids) == RUNS[0]


def test_the_record_says_what_was_compared(exported: Exported) -> None:
    record = json.loads((exported.out / "export.json").read_text())
    assert record["proof"]["documents"] == 6
    assert record["proof"]["texts"] > 2000
    assert record["tokenizers"]["text"]["licence"] == "CC0-1.0"
    files = {path.name for path in exported.out.iterdir()} - {"export.json"}
    assert record["files"].keys() == files
    assert all(entry["sha256"] == sha256_file(exported.out / name) for name, entry in record["files"].items())
    figures = json.loads((exported.out / "embedding.json").read_text())
    text = exported.ours.vocab_size
    assert (figures["text_tokenizer_ids"], figures["rows_of_the_text_model"]) == (text, text + 50)
    assert figures["new_rows"] == exported.vocabulary.size - text - 50 == sum(part["rows"] for part in figures["new"])
    starts = [part["first"] for part in figures["new"]]
    assert starts == sorted(starts)
    assert starts[0] == text + 50


@pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="transformers is not installed")
def test_transformers_loads_it(exported: Exported) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported.out)
    assert len(tokenizer) == exported.vocabulary.size
    for text in [*RUNS[:6], *ADVERSARIAL, *NAMES]:
        ids = tokenizer(text)["input_ids"]
        assert ids == exported.ours.encode(text).tolist()
        assert tokenizer.decode(ids) == text
    markers = exported.vocabulary.markers
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (markers["begin_document"], markers["end_document"])
    assert tokenizer(["a", "a b c d e"], padding=True)["input_ids"][0][-1] == markers["padding"]
    assert tokenizer("<|end_image|>", split_special_tokens=False)["input_ids"] == [markers["end_image"]]


@pytest.mark.parametrize("form", ["added", "vocab", "merges", "emu3"])
def test_a_released_models_ids_keep_their_names(tmp_path: Path, form: str) -> None:
    path = write(emu3(64) if form == "emu3" else chameleon(64, form=form), tmp_path / "model" / "tokenizer.json")
    vocabulary = released_vocabulary(path).vocabulary
    hostile = ["IMGIMGAZ and <eoss>", "<racm3:break>IMGIMGBZ", "<|visual token 000001|>", "</s> plain"]
    documents = ["The quick brown fox", "plain text", *(hostile if form != "vocab" else [])]
    directory = write_output(tmp_path / "shards", path, vocabulary, documents)
    config = ExportConfig(directory=directory, out=tmp_path / "out", format="hf-tokenizer", text_tokenizer=path)
    export(config, SILENT)
    ours, theirs = load_text_tokenizer(path, vocabulary.claimed), loaded(tmp_path / "out")
    original = Tokenizer.from_file(str(path))
    assert [theirs.id_to_token(n) for n in range(vocabulary.size)] == [original.id_to_token(n) for n in range(vocabulary.size)]
    for text in [*documents, *hostile]:
        assert theirs.encode(text, add_special_tokens=False).ids == ours.encode(text).tolist()
        assert not set(theirs.encode(text, add_special_tokens=False).ids) & set(vocabulary.claimed.tolist())
    figures = json.loads((tmp_path / "out" / "embedding.json").read_text())
    assert (figures["rows"], figures["new_rows"], figures["new"]) == (vocabulary.size, 0, [])


def test_documents_of_any_layout_are_compared(exported: Exported, tmp_path: Path) -> None:
    layout = Layout(audio="book_major")
    directory = write_output(tmp_path / "shards", exported.path, exported.vocabulary, RUNS[:3], layout)
    config = ExportConfig(directory=directory, out=tmp_path / "out", format="hf-tokenizer", text_tokenizer=exported.path)
    assert export(config, SILENT).record["proof"]["documents"] == 3  # type: ignore[index]


def test_names_that_are_taken_are_not_given_again(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens(["<|image_7|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    path = tmp_path / "tokenizer.json"
    vocabulary = UnifiedVocabulary.build(load_text_tokenizer(path).vocab_size, image_codebooks=[64], audio_codebooks=[16, 16])
    directory = write_output(tmp_path / "shards", path, vocabulary, RUNS[:2])
    export(ExportConfig(directory=directory, out=tmp_path / "out", format="hf-tokenizer", text_tokenizer=path), SILENT)
    assert loaded(tmp_path / "out").token_to_id("<|tokkit_image_7|>") == int(vocabulary.encode("image", 7))


def test_of_two_ways_to_a_piece_the_leftmost_one_is_first() -> None:
    """``x y z`` with ``x + y == y + z``: SentencePiece joins ``x y``."""
    for length in range(2, 8):
        for letters in product("ab", repeat=length):
            piece = "".join(letters)
            known = {piece[a:b] for a in range(length) for b in range(a + 1, length + 1)}
            ways = list(_ways(piece, known))
            assert sorted(ways) == sorted((piece[:k], piece[k:]) for k in range(1, length))
            for x, y in ways:
                other = (y, piece[len(y) :])
                runs = other[1] == x  # of one word: both ways round are the leftmost one in some run
                if piece.startswith(y) and other != (x, y) and not runs:
                    assert ways.index((x, y)) < ways.index(other), piece


# ---- what is refused


def test_a_difference_is_refused(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tokkit.pipelines.export_tokenizer as job

    right = job.tokenizer_json

    def wrong(tokenizer: TextTokenizer) -> dict[str, object]:
        config = right(tokenizer)
        if config["model"]["type"] == "BPE":
            config["model"]["merges"] = config["model"]["merges"][:-9]
        else:
            config["model"]["vocab"] = [[text, -99.0 if len(text) > 1 else score] for text, score in config["model"]["vocab"]]
        return config

    monkeypatch.setattr(job, "tokenizer_json", wrong)
    config = ExportConfig(
        directory=exported.directory, out=tmp_path / "out", format="hf-tokenizer", text_tokenizer=exported.path
    )
    with pytest.raises(VerificationError, match=r"has other ids than tokkit for .* at token \d+ .* Nothing is written"):
        export(config, SILENT)
    assert not list(tmp_path.iterdir())


def test_a_model_that_has_special_tokens_as_pieces_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    unigram().save(str(path))
    vocabulary = UnifiedVocabulary.build(load_text_tokenizer(path).vocab_size, image_codebooks=[64], audio_codebooks=[16, 16])
    directory = write_output(tmp_path / "shards", path, vocabulary, ["a word"])
    config = ExportConfig(directory=directory, out=tmp_path / "out", format="hf-tokenizer", text_tokenizer=path)
    with pytest.raises(VerificationError, match="other ids than tokkit for a made-up text"):
        export(config, SILENT)


def test_what_cannot_be_written_says_why(exported: Exported, tmp_path: Path) -> None:
    def asked(**options: object) -> ExportConfig:
        given_options = {"directory": exported.directory, "out": tmp_path / "out", "format": "hf-tokenizer", **options}
        return ExportConfig(**given_options)  # type: ignore[arg-type]

    with pytest.raises(UsageError, match="no longer where the run had it; name it with --text-tokenizer"):
        export(asked(), SILENT)
    with pytest.raises(UsageError, match="leave out --pack"):
        export(asked(pack="any", text_tokenizer=exported.path), SILENT)
    other = tmp_path / "other.model"
    other.write_bytes(library_model())
    with pytest.raises(DataError, match="is not the tokenizer these shards were made with"):
        export(asked(text_tokenizer=other), SILENT)
    vocabulary = UnifiedVocabulary.build(load_text_tokenizer(other).vocab_size, image_codebooks=[64], audio_codebooks=[16, 16])
    directory = write_output(tmp_path / "shards", other, vocabulary, ["a word"])
    with pytest.raises(UsageError, match=r"it normalizes text, adds spaces or has no byte fallback\. Models by"):
        export(asked(directory=directory, text_tokenizer=other), SILENT)
    assert not (tmp_path / "out").exists()


def test_the_command(exported: Exported, tmp_path: Path) -> None:
    command = ["export", str(exported.directory), "--format", "hf-tokenizer", "--out", str(tmp_path / "out"), "--quiet"]
    command += ["--text-tokenizer", str(exported.path)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "equal to tokkit's on " in told.output
    assert "of the text model" in told.output
    again = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert again["written"] is False
    assert again["embedding"]["rows"] == exported.vocabulary.size
