"""The unified vocabulary: blocks, tables, markers, both readings of Chameleon's sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from released_tokenizers import chameleon, drop, letters, write

from tokkit.errors import DataError, VocabularyError
from tokkit.released_vocabularies import released_vocabulary
from tokkit.vocabulary import MARKERS, Block, UnifiedVocabulary


def chameleon_file(path: Path, codes: int = 8192, size: int = 65536, shuffle: bool = False) -> Path:
    """A tokenizer file named as Chameleon's: special ids first, pictures before the text, 65,536 ids in all."""
    return write(chameleon(codes, size, shuffle), path)


def test_built_new_lays_the_blocks_one_after_another() -> None:
    vocabulary = UnifiedVocabulary.build(1000, [512, 512], [1024] * 4, max_grid=64)
    assert vocabulary.encode("text", [0, 999]).tolist() == [0, 999]
    assert [vocabulary.marker(name) for name in MARKERS] == list(range(1000, 1000 + len(MARKERS)))
    begin = 1000 + len(MARKERS) + 64
    assert vocabulary.encode("image", [0, 511], 1).tolist() == [begin + 512, begin + 1023]
    assert vocabulary.encode("audio", 7, 3) == begin + 1024 + 3 * 1024 + 7
    assert vocabulary.size % 128 == 0
    assert vocabulary.size - (begin + 1024 + 4096) < 128
    assert vocabulary.dtype == np.uint16


def test_the_paper_reading_of_chameleon_is_65536_ids_with_the_pictures_inside(tmp_path: Path) -> None:
    vocabulary = released_vocabulary(chameleon_file(tmp_path / "text_tokenizer.json")).vocabulary
    assert vocabulary.size == 65536
    assert vocabulary.dtype == np.uint16
    assert vocabulary.encode("image", [0, 8191]).tolist() == [4, 8195]
    assert (vocabulary.marker("begin_document"), vocabulary.marker("padding"), vocabulary.marker("end_document")) == (0, 1, 2)
    assert (vocabulary.marker("end_image"), vocabulary.marker("begin_image")) == (8196, 8197)
    assert vocabulary.encode("text", [3, 8198, 65535]).tolist() == [3, 8198, 65535]
    assert vocabulary.claimed.tolist() == [0, 1, 2, *range(4, 8198)]
    for claimed in (0, 4, 8195, 8196):
        with pytest.raises(VocabularyError, match=f"text id {claimed} is"):
            vocabulary.encode("text", [8198, claimed])
    with pytest.raises(VocabularyError, match="row_end"):
        vocabulary.marker("row_end")


def test_the_common_reading_of_chameleon_is_65536_text_ids_and_8192_codes_behind() -> None:
    vocabulary = UnifiedVocabulary.build(65536, [8192])
    assert vocabulary.encode("text", 65535) == 65535
    codes = vocabulary.encode("image", [0, 8191])
    assert codes[0] > 65535
    assert codes[1] == codes[0] + 8191
    assert vocabulary.dtype == np.int32


def test_names_decide_the_table_not_their_order(tmp_path: Path) -> None:
    path = chameleon_file(tmp_path / "t.json", codes=300, size=1000, shuffle=True)
    names = json.loads(path.read_text())["model"]["vocab"]
    vocabulary = released_vocabulary(path).vocabulary
    codes = np.arange(300)
    ids = vocabulary.encode("image", codes)
    assert ids.tolist() == [names[f"IMGIMG{letters(c)}Z"] for c in codes]
    assert not np.array_equal(ids, np.sort(ids))
    assert vocabulary.codes(ids).tolist() == codes.tolist()


@pytest.mark.parametrize("damage", ["code", "marker", "json", "missing"])
def test_a_file_that_is_not_chameleons_is_refused(tmp_path: Path, damage: str) -> None:
    path = chameleon_file(tmp_path / "t.json", codes=30, size=200)
    entry = json.loads(path.read_text())
    if damage == "code":
        drop(entry, "IMGIMGBHZ")
    elif damage == "marker":
        drop(entry, "<eoss>")
    path.write_text("{" if damage == "json" else json.dumps(entry))
    with pytest.raises(DataError):
        released_vocabulary(tmp_path / "none.json" if damage == "missing" else path)


@settings(deadline=None, max_examples=60)
@given(
    text=st.integers(1, 3000),
    images=st.lists(st.integers(1, 400), max_size=3),
    audio=st.lists(st.integers(1, 400), max_size=3),
    data=st.data(),
)
def test_every_id_belongs_to_one_thing_and_comes_back(
    text: int, images: list[int], audio: list[int], data: st.DataObject
) -> None:
    vocabulary = UnifiedVocabulary.build(text, images, audio, max_grid=8)
    claimed = np.concatenate([b.ids for b in vocabulary.blocks] + [np.array(list(vocabulary.markers.values()))])
    assert len(np.unique(claimed)) == len(claimed)
    for index, block in enumerate(vocabulary.blocks):
        ids = vocabulary.encode(block.modality, np.arange(block.size), block.codebook)
        assert (vocabulary.owners(ids) == index).all()
        assert vocabulary.codes(ids).tolist() == list(range(block.size))
        outside = data.draw(st.sampled_from([-1, block.size, block.size + 7]))
        with pytest.raises(VocabularyError, match=f"code {outside} is outside"):
            block.encode([0, outside])


@pytest.mark.parametrize("source", ["built", "chameleon"])
def test_save_and_load(tmp_path: Path, source: str) -> None:
    if source == "built":
        vocabulary = UnifiedVocabulary.build(700, [65536], [1024, 1024])
    else:
        vocabulary = released_vocabulary(chameleon_file(tmp_path / "t.json", codes=300, size=1000, shuffle=True)).vocabulary
    vocabulary.save(tmp_path / "vocabulary.json")
    again = UnifiedVocabulary.load(tmp_path / "vocabulary.json")
    assert again.fingerprint == vocabulary.fingerprint
    assert again.to_json() == vocabulary.to_json()
    codes = np.arange(min(300, again.block("image").size))
    assert again.encode("image", codes).tolist() == vocabulary.encode("image", codes).tolist()


def test_the_fingerprint_is_of_what_decides_ids() -> None:
    one = UnifiedVocabulary.build(700, [512])
    assert one.fingerprint == UnifiedVocabulary.build(700, [512]).fingerprint
    assert one.fingerprint != UnifiedVocabulary.build(701, [512]).fingerprint
    assert one.fingerprint != UnifiedVocabulary.build(700, [513]).fingerprint


def test_contradictions_are_refused() -> None:
    text, markers = Block("text", 0, 10, start=0), {"begin_document": 10}
    with pytest.raises(VocabularyError, match="claimed twice"):
        UnifiedVocabulary(20, [text, Block("image", 0, 5, start=9)], markers, origin="test")
    with pytest.raises(VocabularyError, match="claimed twice"):
        UnifiedVocabulary(20, [text], {"begin_document": 3}, origin="test")
    with pytest.raises(VocabularyError, match="outside"):
        UnifiedVocabulary(20, [text, Block("image", 0, 5, start=16)], markers, origin="test")
    table = np.array([12, 12], dtype=np.int32)
    with pytest.raises(VocabularyError, match="claimed twice"):
        UnifiedVocabulary(20, [text, Block("image", 0, 2, table=table)], markers, origin="test")
    with pytest.raises(VocabularyError, match="text block"):
        UnifiedVocabulary(20, [Block("image", 0, 5, start=0)], markers, origin="test")


@pytest.mark.parametrize("content", ["", "[]", '{"format": "other"}', '{"format": "tokkit-vocabulary", "version": 9}'])
def test_a_damaged_file_is_a_data_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "vocabulary.json").write_text(content)
    with pytest.raises(DataError):
        UnifiedVocabulary.load(tmp_path / "vocabulary.json")


def test_ids_are_described_for_people() -> None:
    vocabulary = UnifiedVocabulary.build(100, [50, 50])
    assert vocabulary.describe(3) == "text code 3"
    assert vocabulary.describe(vocabulary.marker("end_image")) == "marker end_image"
    assert vocabulary.describe(int(vocabulary.encode("image", 4, 1))) == "image code 4 of codebook 1"
    assert vocabulary.describe(vocabulary.size - 1) == "an unused id"
    assert "outside" in vocabulary.describe(vocabulary.size)
    assert vocabulary.owners([-1, vocabulary.size, vocabulary.size - 1]).tolist() == [-3, -3, -2]
