"""Shards in a released model's own ids: its file read as it is, its text tokenizer kept from its own markers, its layout."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign import architecture_of, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from released_tokenizers import chameleon, drop, emu3, write
from shard_corpus import picture, snapshot
from sources_helpers import tar_bytes
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tokkit.cli.main import app
from tokkit.errors import (
    ConfigError,
    DataError,
    FingerprintMismatch,
    ItemError,
    MalformedSequence,
    UsageError,
    VocabularyError,
)
from tokkit.interleave import ImageCodes, Layout, Part, TextCodes, decode, encode, lacking
from tokkit.pipelines import prepare as preparation
from tokkit.pipelines.decoding import DecodedImage, DecodedText, DocumentDecoder
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.released_vocabularies import released_vocabulary
from tokkit.shards.manifest import load_manifest
from tokkit.shards.native import open_shards
from tokkit.sources.resolve import resolve_inputs
from tokkit.tokenizers.text import HuggingFaceTokenizer, load_text_tokenizer
from tokkit.vocabulary import MARKERS, UnifiedVocabulary

SILENT = SilentProgress()
CODES = 64
FORMS = ("added", "vocab", "merges", "words")
MAKES: dict[str, Callable[[], dict[str, Any]]] = {
    **{f"chameleon-{form}": lambda form=form: chameleon(CODES, form=form) for form in FORMS},
    "emu3": lambda: emu3(CODES),
}
HOSTILE = [
    "IMGIMGAZ",
    "IMGIMGBZIMGIMGGDZ",
    "IMGIMG",
    "<racm3:break>",
    "<eoss>",
    "<s>",
    "</s><pad>",
    "<sentinel:0>",
    "<reserved08706>",
    "<|visual token 000001|>",
    "<|image start|>32*32<|image token|>",
    "<|extra_200|>",
    "<|endoftext|>",
    "\ufdd04\ufdd1",
    " ",
    "32*32",
    "The quick brown fox",
    "Weiß 日本語",
    "\ud800",
    "\n\t  ",
]


# ---- reading the file


def test_emu3s_ids_are_the_files(tmp_path: Path) -> None:
    path = write(emu3(32768, 184622), tmp_path / "tokenizer.json")
    found = released_vocabulary(path)
    vocabulary = found.vocabulary
    assert (found.scheme.name, vocabulary.origin, vocabulary.size, vocabulary.dtype) == ("emu3", "emu3", 184622, np.int32)
    assert vocabulary.encode("image", [0, 32767]).tolist() == [151854, 184621]
    markers = {"padding": 151643, "begin_image": 151852, "begin_codes": 151851, "end_image": 151853, "row_end": 151846}
    markers |= {"frame_end": 151847, "begin_document": 151849, "end_document": 151850}
    assert vocabulary.markers == markers
    names = json.loads(path.read_text())["model"]["vocab"]
    assert vocabulary.spelled == {c: names[c] for c in "0123456789*"}
    vocabulary.save(tmp_path / "vocabulary.json")
    again = UnifiedVocabulary.load(tmp_path / "vocabulary.json")
    assert again.to_json() == vocabulary.to_json()
    assert again.fingerprint == vocabulary.fingerprint
    assert again.spelled == vocabulary.spelled


def test_a_built_vocabulary_is_as_ever() -> None:
    vocabulary = UnifiedVocabulary.build(100, [50])
    assert set(vocabulary.markers) == set(MARKERS)
    assert "spelled" not in vocabulary.to_json()
    assert not len(vocabulary.claimed)


def test_what_is_spelled_must_be_text() -> None:
    released = UnifiedVocabulary.build(100, [50])
    with pytest.raises(VocabularyError, match="'7' is spelled with id 120"):
        UnifiedVocabulary(released.size, released.blocks, released.markers, origin="test", spelled={"7": 120})


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    config = chameleon(CODES)
    for name in ("IMGIMGDZ", "IMGIMGBCZ", "IMGIMGBDZ", "<eoss>", "<pad>"):
        drop(config, name)
    vocab = config["model"]["vocab"]
    vocab["IMGIMGAABZ"] = len(vocab) + 100
    vocab["again"] = vocab["IMGIMGEZ"]
    config["added_tokens"][0] |= {"id": 9999}
    with pytest.raises(DataError) as caught:
        released_vocabulary(write(config, tmp_path / "t.json"))
    message = str(caught.value)
    assert "6 problems in what should be the vocabulary of Chameleon" in message
    for line in (
        "<s> has two ids, 0 and 9999",
        "IMGIMGBZ and IMGIMGAABZ both name code 1",
        "no names for code 3, codes 12 to 13",
        "end_image: no token <eoss>",
        "padding: no token <pad>",
        "IMGIMGEZ and again both have id",
    ):
        assert f"\n  - {line}" in message, line


def test_long_lists_are_cut_short(tmp_path: Path) -> None:
    config = emu3(CODES)
    for number in range(0, CODES, 2):
        drop(config, f"<|visual token {number:06d}|>")
    drop(config, "7")
    with pytest.raises(DataError) as caught:
        released_vocabulary(write(config, tmp_path / "t.json"))
    assert "no names for code 0, code 2, code 4" in str(caught.value)
    assert "25 more like these" in str(caught.value)
    assert "no token '7', which sizes are written with" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}',
            "no tokens named as image codes; known are Chameleon",
        ),
        ('{"model": {"vocab": {"IMGIMGAZ": 0, "<|visual token 000000|>": 1}}}', "in the ways of several models"),
        ('{"model": {"vocab": {"IMGIMGAZ": "x"}}}', "the id of 'IMGIMGAZ' is 'x'"),
        ('{"model": {"vocab": {"IMGIMGAZ": -1}}}', "the id of 'IMGIMGAZ' is -1"),
        ('{"model": {"vocab": {}}}', "it has no tokens"),
        ('{"model": {}}', "not a Hugging Face tokenizer.json"),
        ('{"model": {"vocab": 3}}', "not a Hugging Face tokenizer.json"),
        ("[]", "has no 'model'"),
        ("\x00\xff", "not JSON"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "t.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        released_vocabulary(tmp_path / "t.json")


# ---- text is text


class Made:
    """A file, the library's tokenizer of it, its vocabulary, and ours that is kept from the vocabulary's ids."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        self.path = write(config, folder / "tokenizer.json")
        self.library = Tokenizer.from_file(str(self.path))
        self.vocabulary = released_vocabulary(self.path).vocabulary
        tokenizer = load_text_tokenizer(self.path, self.vocabulary.claimed)
        assert isinstance(tokenizer, HuggingFaceTokenizer)
        self.text = tokenizer


@pytest.fixture(scope="session", params=MAKES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(MAKES[request.param](), tmp_path_factory.mktemp(request.param))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(), max_size=6)), max_size=8))
def test_no_text_yields_a_claimed_id_and_all_comes_back(made: Made, parts: list[str]) -> None:
    text = "".join(parts)
    ids = made.text.encode(text)
    assert not np.isin(ids, made.vocabulary.claimed).any()
    assert made.vocabulary.encode("text", ids).tolist() == ids.tolist()
    assert made.text.decode(ids) == text
    assert made.text.lossless


def test_the_library_would_yield_them(tmp_path: Path) -> None:
    """So that the test above tests something; without merges, names that are merely in the vocabulary are out of reach."""
    for name, make in MAKES.items():
        made = Made(make(), tmp_path / name)
        texts = [text for text in HOSTILE if text != "\ud800"]
        found = {n for text in texts for n in made.library.encode(text, add_special_tokens=False).ids}
        assert (len(found & set(made.vocabulary.claimed.tolist())) >= 2) is (name != "chameleon-vocab"), name
        if name in ("chameleon-merges", "chameleon-words"):  # and ours too, were it not told of the vocabulary
            with pytest.raises(VocabularyError, match="is image code 1, not text"):
                made.vocabulary.encode("text", load_text_tokenizer(made.path).encode("IMGIMGBZ"))


def test_other_text_has_the_models_own_ids(made: Made) -> None:
    for text in ["The quick brown fox jumps", "1234 times.\n\tA picture of 32*32", "Weiß 日本語", "IMG IMGIM", ""]:
        expected = made.library.encode(text, add_special_tokens=False).ids
        assert made.text.encode(text).tolist() == expected
        # and in a text that needs a second look, everything but the offending name is as it was
        ids = made.text.encode(f"{text}\tIMGIMGAZ\t{text}").tolist()
        assert ids[: len(expected)] == expected
        assert ids[len(ids) - len(expected) :] == expected


def test_a_name_is_written_as_by_a_model_that_never_had_it(tmp_path: Path) -> None:
    """Not cut at some place: the best ids that are left, so the merges below the name are still used."""
    made = Made(chameleon(CODES, form="merges"), tmp_path)
    names = json.loads(made.path.read_text())["model"]["vocab"]
    assert made.text.encode("IMGIMGAZ").tolist() == [names["IMGIMGA"], names["Z"]]
    assert made.text.encode("<eoss>").tolist() == [names["<eoss"], names[">"]]


def test_text_that_is_built_on_a_name_keeps_the_models_id(tmp_path: Path) -> None:
    """A merge may go through a code's token to one that is text; only what ends as the code is written otherwise."""
    config = chameleon(CODES, form="merges")
    vocab = config["model"]["vocab"]
    vocab["IMGIMGBZx"] = len(vocab)
    config["model"]["merges"].append(["IMGIMGBZ", "x"])
    del config["pre_tokenizer"]["pretokenizers"][1]  # it would cut behind the name
    made = Made(config, tmp_path)
    assert made.text.encode("IMGIMGBZx").tolist() == [vocab["IMGIMGBZx"]]
    text = "IMGIMGBZx\tIMGIMGBZ"
    ids = made.text.encode(text)
    assert not np.isin(ids, made.vocabulary.claimed).any()
    assert made.text.decode(ids) == text


def test_a_unigram_model_takes_its_next_best_pieces(tmp_path: Path) -> None:
    names = ["<s>", "<pad>", "</s>", "<eoss>", "<racm3:break>", *(f"IMGIMG{letter}Z" for letter in "ABCD")]
    pieces = [
        ("<unk>", 0.0),
        *((name, -1.0) for name in names),
        ("IMG", -2.0),
        *((c, -9.0) for c in "▁ABCDZIMG<>/:abcdekmoprs3"),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    made = Made(json.loads(tokenizer.to_str()), tmp_path)
    assert made.library.encode("IMGIMGBZ").tokens == ["IMGIMGBZ"]
    found = made.text.encode("a IMGIMGBZ</s> b")
    assert [made.library.id_to_token(int(n)) for n in found] == [*"a▁", "IMG", "IMG", *"BZ</s>▁b"]
    assert made.text.decode(found) == "a IMGIMGBZ</s> b"


def test_a_copy_in_another_process_is_kept_from_them_as_well(tmp_path: Path) -> None:
    import pickle

    made = Made(chameleon(CODES, form="words"), tmp_path)
    copy = pickle.loads(pickle.dumps(made.text))
    assert copy.encode("IMGIMGAZ").tolist() == made.text.encode("IMGIMGAZ").tolist()


def word_level(unknown: bool) -> Tokenizer:
    """Whole words only: what is no word cannot be written, or only as unknown."""
    words = ["<s>", "<pad>", "</s>", "<eoss>", "<racm3:break>", "IMGIMGAZ", "IMGIMGBZ", "fine", *(["<unk>"] if unknown else [])]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("unknown", [True, False])
def test_what_can_only_be_written_as_a_claimed_id_is_the_texts_fault(tmp_path: Path, unknown: bool) -> None:
    made = Made(json.loads(word_level(unknown).to_str()), tmp_path)
    assert made.text.encode("fine fine").tolist() == [7, 7]
    with pytest.raises(ItemError, match=r"text-not-encodable: tokenizer.json: 'IMGIMGAZ' can only be written as the id 5"):
        made.text.encode_batch(["fine", "fine IMGIMGAZ"])


def test_a_character_that_is_claimed_is_the_texts_fault(tmp_path: Path) -> None:
    config = chameleon(CODES)
    config["normalizer"] = json.loads(normalizers.Replace("ß", "¤").__getstate__())
    made = Made(config, tmp_path)
    names = json.loads(made.path.read_text())["model"]["vocab"]
    text = load_text_tokenizer(made.path, [*made.vocabulary.claimed, names["Z"]])
    with pytest.raises(ItemError, match=r"'Z' has the id \d+ of 'Z', which no text may have"):
        text.encode("Zebra")
    assert text.decode(text.encode("zebra")) == "zebra"


def test_sentencepiece_cannot_be_kept_from_ids(tmp_path: Path) -> None:
    (tmp_path / "t.model").write_bytes(b"\n")
    with pytest.raises(DataError, match=r"needs a Hugging Face tokenizer\.json"):
        load_text_tokenizer(tmp_path / "t.model", [3])


# ---- Emu3's layout

EMU3 = UnifiedVocabulary(
    200,
    [*UnifiedVocabulary.build(50, [20], max_grid=1).blocks],
    {**UnifiedVocabulary.build(50, [20], max_grid=1).markers, "begin_codes": 90, "frame_end": 91},
    origin="emu3",
    spelled={c: 10 + n for n, c in enumerate("0123456789*")},
)
LAYOUT = Layout("emu3")


def grid(height: int, width: int, seed: int = 0) -> ImageCodes:
    return ImageCodes(np.random.default_rng(seed).integers(0, 20, (1, height, width)).astype(np.int32), "hash")


def test_emu3s_picture_is_as_its_processor_writes_it() -> None:
    ids, spans = encode([grid(2, 12)], EMU3, LAYOUT)
    codes = EMU3.encode("image", grid(2, 12).codes[0])
    size = [EMU3.spelled[c] for c in "2*12"]
    end = EMU3.marker("row_end")
    expected = [EMU3.marker("begin_image"), *size, 90, *codes[0], end, *codes[1], end, 91, EMU3.marker("end_image")]
    assert ids[1:-1].tolist() == expected
    assert (spans[0].length, spans[0].grid_height, spans[0].grid_width) == (len(expected), 2, 12)


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 9))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(shapes, st.lists(st.integers(0, 49), min_size=1, max_size=6)), max_size=5), st.data())
def test_emu3s_layout_comes_back_and_no_damage_passes(kinds: list[Any], data: st.DataObject) -> None:
    parts: list[Part] = []
    for kind in kinds:
        if isinstance(kind, tuple):
            parts.append(grid(*kind))
        elif not (parts and isinstance(parts[-1], TextCodes)):
            parts.append(TextCodes(np.array(kind, dtype=np.int32)))
    ids, _ = encode(parts, EMU3, LAYOUT)
    back = decode(ids, EMU3, LAYOUT)
    assert [type(p) for p in back] == [type(p) for p in parts]
    assert all(np.array_equal(a.codes, b.codes) for a, b in zip(parts, back, strict=True))
    damaged = ids.tolist()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(damaged) - 1, 0)))
        change = data.draw(st.sampled_from(["drop", "put", "set", "cut"]))
        token = data.draw(st.one_of(st.sampled_from([*EMU3.spelled.values(), 90, 91]), st.integers(-1, EMU3.size)))
        if change == "put":
            damaged.insert(at, token)
        elif change == "set" and damaged:
            damaged[at] = token
        else:
            del damaged[at : at + 1 if change == "drop" else None]
    try:
        back = decode(np.array(damaged, dtype=np.int64), EMU3, LAYOUT)
    except MalformedSequence as error:
        assert 0 <= error.position <= len(damaged)
    else:
        assert encode(back, EMU3, LAYOUT)[0].tolist() == damaged


def test_ids_that_would_fill_the_memory_and_keys_that_come_twice_are_refused(tmp_path: Path) -> None:
    config = chameleon(codes=16)
    config["added_tokens"].append({**config["added_tokens"][0], "id": 2**31 - 1, "content": "<far>"})
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match="'<far>' has the id 2147483647"):
        released_vocabulary(path)
    text = json.dumps(chameleon(codes=16, form="words"))
    path.write_text(text.replace('"IMGIMGBZ":', '"IMGIMGBZ": 400, "IMGIMGBZ":', 1))
    with pytest.raises(DataError, match="the key 'IMGIMGBZ' comes twice"):
        released_vocabulary(path)


@pytest.mark.parametrize(
    ("size", "codes", "position", "problem"),
    [
        ("02*3", 6, 2, "expected the image's height, written in digits, found text code 10"),
        ("2*", 6, 4, "expected the image's width, written in digits, found marker begin_codes"),
        ("2", 6, 3, "expected a digit or the asterisk in the size of the image, found marker begin_codes"),
        ("2*3*", 6, 5, "expected a digit or begin_codes in the size of the image, found text code 20"),
        ("2*4", 6, 9, "expected 2 rows of 4 positions in the image that begins at token 1, found marker row_end"),
        ("2*2", 6, 8, "expected 2 rows of 2 positions in the image that begins at token 1, found image code"),
        ("1*3", 6, 10, "expected frame_end after 1 rows of the image that begins at token 1, found image code"),
        ("3*3", 6, 14, "expected 3 rows of 3 positions in the image that begins at token 1, found marker frame_end"),
        ("99999*3", 6, 3, "expected the image's height, with as many codes behind it, found text code 19"),
    ],
)
def test_what_is_wrong_with_a_picture_is_said_exactly(size: str, codes: int, position: int, problem: str) -> None:
    one = EMU3.encode("image", np.arange(codes)).reshape(-1, 3)
    rows = [token for row in one for token in [*row, EMU3.marker("row_end")]]
    body = [EMU3.marker("begin_image"), *(EMU3.spelled[c] for c in size), 90, *rows, 91, EMU3.marker("end_image")]
    with pytest.raises(MalformedSequence) as caught:
        decode([EMU3.marker("begin_document"), *body, EMU3.marker("end_document")], EMU3, LAYOUT)
    assert caught.value.position == position
    assert problem in caught.value.problem


def test_a_layout_says_what_it_lacks() -> None:
    assert lacking(EMU3, "emu3") == lacking(EMU3, "grid") == lacking(EMU3, "plain") == []
    assert lacking(UnifiedVocabulary.build(50, [20]), "emu3") == [
        "marker begin_codes",
        "marker frame_end",
        "ids of digits and the asterisk",
    ]
    with pytest.raises(VocabularyError):
        encode([grid(2, 2)], UnifiedVocabulary.build(50, [20]), LAYOUT)


# ---- whole runs

CAPTIONS = [f"Caption {n}: {HOSTILE[n % 18]} and {HOSTILE[(7 * n) % 18]}{HOSTILE[(5 * n) % 18]}\r\n" for n in range(18)]


class World:
    """Pairs and texts full of names that are none, an image tokenizer of 64 codes and a grid of 4 x 4, and models' files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        members = [
            (f"{n:03d}.{extension}", content)
            for n, caption in enumerate(CAPTIONS)
            for extension, content in (("png", picture(n)), ("txt", caption.encode()))
        ]
        (folder / "pairs").mkdir(parents=True)
        (folder / "pairs" / "0.tar").write_bytes(tar_bytes(members))
        (folder / "texts").mkdir()
        lines = [json.dumps({"id": f"t{n}", "text": "".join(HOSTILE[n:] + HOSTILE[:n])}) for n in range(len(HOSTILE))]
        (folder / "texts" / "0.jsonl").write_text("\n".join(lines))
        self.image = folder / "vq"
        tokenizer_of(architecture_of((1, 1, 1, 1)), codes=CODES, size=32).save(self.image)
        for name, make in MAKES.items():
            write(make(), folder / name / "tokenizer.json")

    def config(self, model: str, out: str | Path, **options: object) -> ShardConfig:
        settings: dict[str, object] = {
            "inputs": [str(self.folder / "pairs"), str(self.folder / "texts")],
            "out": self.folder / out,
            "vocabulary_from": self.folder / model / "tokenizer.json",
            "image_tokenizer": self.image,
            "workers": 1,
            "batch_size": 4,
            "unit_bytes": 20_000,
            "report_documents": 4,
        }
        return validated(ShardConfig, "tokkit shard", settings | options)

    def run(self, model: str, out: str | Path, **options: object) -> ShardResult:
        return shard(self.config(model, out, **options), SILENT)

    def done(self, model: str) -> Path:
        """A finished run with a model's file; not to be changed."""
        out = self.folder / f"out-{model}"
        if not out.exists():
            self.run(model, out, pack=256)
        return out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("released"))


@pytest.mark.parametrize("model", ["chameleon-added", "chameleon-merges", "emu3"])
def test_a_run_in_a_models_own_ids(world: World, model: str) -> None:
    out = world.done(model)
    manifest = load_manifest(out)
    assert manifest.documents == {"committed": len(CAPTIONS) + len(HOSTILE)}
    assert manifest.vocabulary_origin == model.split("-")[0]
    assert verify(VerifyConfig(directory=out), SILENT).problems == []
    released = released_vocabulary(world.folder / model / "tokenizer.json")
    vocabulary, layout = released.vocabulary, Layout(released.scheme.layout, (4, 4) if model != "emu3" else None)
    assert UnifiedVocabulary.load(out / "vocabulary.json").to_json() == vocabulary.to_json()
    assert (manifest.layout.image, manifest.layout.image_grid) == (layout.image, layout.image_grid)
    assert manifest.tokenizers["text"].lossless
    shards = open_shards(out, "train")
    decoder = DocumentDecoder(out)
    said = {}
    pictures = 0
    for number in range(shards.num_documents):
        parts = decode(shards.tokens(number), vocabulary, layout)
        pictures += sum(isinstance(p, ImageCodes) and p.codes.shape == (1, 4, 4) for p in parts)
        document = decoder.decode("train", number)
        assert [isinstance(p, DecodedImage) for p in document.parts] == [isinstance(p, ImageCodes) for p in parts]
        assert all(p.pixels is not None for p in document.parts if isinstance(p, DecodedImage))
        said[str(document.row["locator"])] = "".join(p.text for p in document.parts if isinstance(p, DecodedText))
    assert pictures == len(CAPTIONS)
    assert [said[f"0.tar#{n:03d}"] for n in range(len(CAPTIONS))] == CAPTIONS
    texts = [said[key] for key in sorted((k for k in said if "jsonl" in k), key=lambda k: int(k.rsplit("@", 1)[1]))]
    assert texts == ["".join(HOSTILE[n:] + HOSTILE[:n]) for n in range(len(HOSTILE))]
    assert f"ids of {manifest.vocabulary_origin}" in (out / "report.html").read_text()


def test_the_same_bytes_with_other_workers_and_with_the_text_tokenizer_named(world: World) -> None:
    world.run("emu3", "same", workers=2, pack=256, text_tokenizer=world.folder / "emu3" / "tokenizer.json")
    assert snapshot(world.folder / "same") == snapshot(world.done("emu3"))


def test_resuming_with_another_vocabulary_is_refused(world: World) -> None:
    out = world.done("chameleon-added")
    assert world.run("chameleon-added", out).manifest == load_manifest(out)
    with pytest.raises(FingerprintMismatch) as caught:
        world.run("emu3", out)
    assert "vocabulary_from.model: chameleon -> emu3" in str(caught.value)
    with pytest.raises(FingerprintMismatch, match=r"vocabulary_from: \{.*'chameleon'.*\} -> none"):
        world.run("chameleon-added", out, vocabulary_from=None, text_tokenizer=world.folder / "chameleon-added")
    with pytest.raises(FingerprintMismatch, match=r"tokenizers\.text: "):
        world.run("chameleon-words", out)


def test_verify_sees_what_is_wrong_in_a_picture_of_emu3(world: World, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(world.done("emu3"), out)
    vocabulary = UnifiedVocabulary.load(out / "vocabulary.json")
    shards = open_shards(out, "train")
    ids = shards.tokens(0).copy()
    span = next(s for s in shards.row(0)["spans"] if s["modality"] == "image")
    places = [span["start"] + k for k in (1, 2, 4, 8, 9, 25)]  # 4 * begin_codes code row_end frame_end
    names = [vocabulary.describe(int(ids[place])) for place in places]
    assert [name.split()[0] for name in names] == ["text", "text", "marker", "image", "marker", "marker"]
    file = next((out / "tokens" / "train").glob("*.bin"))
    for place in places:
        data = np.fromfile(file, dtype=shards.tokens(0).dtype)
        data[place] = vocabulary.spelled["7"]
        whole = file.read_bytes()
        data.tofile(file)
        result = verify(VerifyConfig(directory=out, checksums=False), SILENT)
        file.write_bytes(whole)
        assert result.problems, place
    assert verify(VerifyConfig(directory=out), SILENT).problems == []


def test_a_document_that_cannot_be_written_is_rejected_with_its_picture(world: World, tmp_path: Path) -> None:
    """Words only: `IMGIMGAZ` has no other id than the code's. The run goes on, and everything adds up."""
    config = json.loads(word_level(unknown=True).to_str())
    for number in range(2, CODES):
        name = "IMGIMG" + "".join("ABCDEFGHIJ"[int(d)] for d in str(number)) + "Z"
        config["model"]["vocab"][name] = len(config["model"]["vocab"])
    model = write(config, tmp_path / "tokenizer.json")
    texts = ["fine", "fine IMGIMGAZ", "fine fine", "IMGIMGBZ fine", "fine"]
    members = [(f"{n}.{e}", d) for n, t in enumerate(texts) for e, d in (("png", picture(n)), ("txt", t.encode()))]
    (tmp_path / "p.tar").write_bytes(tar_bytes(members))
    result = world.run("", tmp_path / "out", inputs=[str(tmp_path / "p.tar")], vocabulary_from=model)
    assert result.manifest.documents == {"committed": 3, "rejected": 2}
    assert result.manifest.items == {"image": {"committed": 3, "rejected": 2}}
    assert result.manifest.sources[0].reasons == {
        "document/rejected/text-not-encodable": 2,
        "item/rejected/document-not-committed": 2,
    }
    lines = [json.loads(line) for line in (tmp_path / "out" / "rejects" / "00000.jsonl").read_text().splitlines()]
    assert [(line["level"], line["locator"]) for line in lines] == [
        ("item", "p.tar#1"),
        ("document", "p.tar#1"),
        ("item", "p.tar#3"),
        ("document", "p.tar#3"),
    ]
    assert "'IMGIMGAZ' can only be written as the id 5" in lines[1]["message"]
    assert verify(VerifyConfig(directory=tmp_path / "out"), SILENT).problems == []


def test_chameleons_full_size(tmp_path: Path) -> None:
    """65,536 ids in uint16, the last of them used, and pictures of 1,026 tokens."""
    path = write(chameleon(8192, 65536), tmp_path / "text_tokenizer.json")
    config = json.loads(path.read_text())
    # The last id is one that text yields: it changes places with the id of a letter.
    vocab = config["model"]["vocab"]
    vocab["q"], vocab["piece65535"] = vocab["piece65535"], vocab["q"]
    write(config, path)
    tokenizer_of(architecture_of((1,)), codes=8192, size=32).save(tmp_path / "vq")
    members = [(f"{n}.{e}", d) for n in range(3) for e, d in (("png", picture(n)), ("txt", b"q IMGIMGAZ q"))]
    (tmp_path / "p.tar").write_bytes(tar_bytes(members))
    result = shard(
        ShardConfig(
            inputs=[str(tmp_path / "p.tar")],
            out=tmp_path / "out",
            vocabulary_from=tmp_path,
            image_tokenizer=tmp_path / "vq",
            workers=1,
            batch_size=1,
        ),
        SILENT,
    )
    assert (result.manifest.vocabulary_size, result.manifest.dtype) == (65536, "uint16")
    shards = open_shards(tmp_path / "out", "train")
    assert next((tmp_path / "out" / "tokens" / "train").glob("*.bin")).stat().st_size == 2 * shards.num_tokens
    ids = shards.tokens(0)
    assert ids.max() == 65535
    span = shards.row(0)["spans"][0]
    assert (span["modality"], span["start"], span["length"]) == ("image", 1, 1026)
    assert (ids[0], ids[1], ids[1026], ids[-1]) == (0, 8197, 8196, 2)
    assert ((ids[2:1026] >= 4) & (ids[2:1026] < 8196)).all()
    assert len(np.unique(ids[2:1026])) > 100
    assert verify(VerifyConfig(directory=tmp_path / "out"), SILENT).problems == []


# ---- what does not go together


def test_the_text_tokenizer_must_be_the_models(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"another file than --vocabulary-from .*leave --text-tokenizer out"):
        world.run("emu3", "x", text_tokenizer=world.folder / "chameleon-added")
    copy = tmp_path / "copy.json"
    copy.write_bytes((world.folder / "emu3" / "tokenizer.json").read_bytes())
    config = world.config("emu3", "x", text_tokenizer=copy)
    assert preparation.prepare(config, resolve_inputs(config.inputs)).vocabulary.origin == "emu3"


def test_sizes_that_disagree_are_refused_with_both(world: World, tmp_path: Path) -> None:
    other = write(chameleon(CODES + 1), tmp_path / "t.json")
    with pytest.raises(UsageError, match=r"vq has 64 codes, but .*t.json names 65 image codes of Chameleon"):
        world.run("", "x", vocabulary_from=other)
    with pytest.raises(UsageError, match="--text-vocab-size is for vocabularies that are built"):
        world.run("emu3", "x", text_vocab_size=70000)


def test_several_codebooks_are_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_codebooks", lambda image: [CODES, CODES])
    with pytest.raises(UsageError, match="has 2 codebooks; Emu3 has ids for one"):
        world.run("emu3", "x")


def test_layouts_that_the_vocabulary_cannot_write_are_refused(world: World) -> None:
    with pytest.raises(UsageError, match="rows cannot be written: the vocabulary of Chameleon has no marker row_end"):
        world.run("chameleon-added", "x", image_layout="rows")
    with pytest.raises(UsageError, match="grid cannot be written: the vocabulary of Emu3 has no ids of grid sizes"):
        world.run("emu3", "x", image_layout="grid")
    with pytest.raises(UsageError, match="emu3 cannot be written: a vocabulary that is built has no marker begin_codes"):
        world.run("", "x", vocabulary_from=None, text_tokenizer=world.folder / "emu3", image_layout="emu3")
    assert not (world.folder / "x").exists()


def test_a_tokenizer_that_joins_digits_cannot_write_emu3s_sizes(world: World, tmp_path: Path) -> None:
    config = emu3(CODES)
    vocab = config["model"]["vocab"]
    vocab["4*"] = len(vocab)
    config["model"]["merges"].insert(0, ["4", "*"])
    config["pre_tokenizer"] |= {"use_regex": False}
    with pytest.raises(
        UsageError, match=r"encodes the size '4\*4' as \[\d+, \d+\], not with one id a character \[\d+, \d+, \d+\]"
    ):
        world.run("", "x", vocabulary_from=write(config, tmp_path / "t.json"))
    other = world.config("", "x", vocabulary_from=tmp_path / "t.json", image_layout="rows")
    assert preparation.prepare(other, resolve_inputs(other.inputs)).layout == Layout("rows")


def test_without_a_text_tokenizer_there_is_one_clear_error(world: World, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        world.config("", "x", vocabulary_from=None, batch_size=0)
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0].startswith("text_tokenizer: name one; only with --vocabulary-from")
    assert caught.value.problems[0].endswith("the model has its own")
    with pytest.raises(ConfigError) as caught:
        world.config("", "x", vocabulary_from=tmp_path / "none.json")
    assert [p.split(":")[0] for p in caught.value.problems] == ["vocabulary_from"]


def test_the_command(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            app([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    out = world.folder / "command"
    model = world.folder / "emu3" / "tokenizer.json"
    base = ["shard", world.folder / "pairs", "--out", out, "--workers", 1]
    code, output, errors = run(*base, "--vocabulary-from", model, "--image-tokenizer", world.image)
    assert code == 0, errors
    assert "Ids are those of emu3" in output
    code, output, _ = run("inspect", out, "--document", 0)
    assert code == 0
    assert "[image: codes 1 x 4 x 4]" in output
    assert run("verify", out)[0] == 0
    code, output, _ = run("inspect", out, "--json")
    assert json.loads(output)["vocabulary_origin"] == "emu3"
    code, _, errors = run(*base)
    assert code == 2
    assert "only with --vocabulary-from" in errors
    code, _, errors = run(*base, "--vocabulary-from", world.image / "config.json")
    assert code == 1
    assert "it has no 'model'" in errors
