"""Documents in batches come to what each comes to by itself."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokkit.errors import VocabularyError
from tokkit.interleave import ImageCodes, Layout, Part, TextCodes, encode
from tokkit.sequences import Sequences, Spans, encode_documents, encode_texts
from tokkit.shards.native import document_table
from tokkit.shards.spans import span_to_dict
from tokkit.vocabulary import UnifiedVocabulary

VOCABULARY = UnifiedVocabulary.build(50, [16])
LAYOUT = Layout("rows")

codes = st.lists(st.integers(0, 49), max_size=12).map(lambda ids: np.array(ids, dtype=np.int32))
pictures = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(
    lambda sides: ImageCodes(np.arange(sides[0] * sides[1], dtype=np.int32).reshape(sides), "hash")
)
documents = st.lists(st.lists(st.one_of(codes.map(TextCodes), pictures), max_size=4), max_size=6)


def rows(sequences: Sequences) -> list[list[dict[str, object]]]:
    """The spans as they are stored."""
    number = len(sequences.lengths)
    plain = ["x"] * number
    columns = dict.fromkeys(("id", "source", "locator", "split", "hash", "metadata"), plain)
    table = document_table(columns | {"unit": [0] * number, "tokens": sequences.lengths}, sequences.spans)
    return table.column("spans").to_pylist()


@given(batch=documents)
def test_a_batch_is_its_documents_one_after_another(batch: list[list[Part]]) -> None:
    together = encode_documents(batch, VOCABULARY, LAYOUT)
    alone = [encode(parts, VOCABULARY, LAYOUT) for parts in batch]
    assert [ids.tolist() for ids in together.split()] == [ids.tolist() for ids, _ in alone]
    assert rows(together) == [[span_to_dict(span) for span in spans] for _, spans in alone]
    expected: Counter[str] = Counter()
    for ids, spans in alone:
        expected["marker"] += len(ids) - sum(span.length for span in spans)
        for span in spans:
            expected[span.modality] += span.length
    assert +together.kinds() == +expected


@given(texts=st.lists(codes, max_size=8))
def test_texts_need_no_objects_to_come_to_the_same(texts: list[np.ndarray]) -> None:
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    fast = encode_texts(np.concatenate([np.zeros(0, dtype=np.int32), *texts]), lengths, VOCABULARY)
    plain = encode_documents([[TextCodes(text)] for text in texts], VOCABULARY, LAYOUT)
    assert fast.ids.tolist() == plain.ids.tolist()
    assert fast.ids.dtype == np.int32
    assert fast.lengths.tolist() == plain.lengths.tolist()
    assert rows(fast) == rows(plain)
    assert fast.kinds() == plain.kinds()


@given(batch=documents, chosen=st.lists(st.booleans(), min_size=6, max_size=6))
def test_kinds_of_a_part_of_a_batch(batch: list[list[Part]], chosen: list[bool]) -> None:
    mask = np.array(chosen[: len(batch)], dtype=bool)
    part = [parts for parts, wanted in zip(batch, mask, strict=True) if wanted]
    assert +encode_documents(batch, VOCABULARY, LAYOUT).kinds(mask) == +encode_documents(part, VOCABULARY, LAYOUT).kinds()


def test_an_id_that_is_no_text_is_refused() -> None:
    with pytest.raises(VocabularyError, match="code 50 is outside"):
        encode_texts(np.array([1, 50], dtype=np.int32), np.array([2]), VOCABULARY)


def test_no_documents_are_no_rows() -> None:
    assert rows(encode_documents([], VOCABULARY, LAYOUT)) == []
    assert Spans.of([]).counts.tolist() == []
