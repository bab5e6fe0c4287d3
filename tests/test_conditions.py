"""Conditions: what they say of a document, and that a run keeps the documents that satisfy them and accounts for the others."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shard_corpus import picture, write_tokenizers
from sources_helpers import tar_bytes

from tokkit.conditions import parse_condition, parse_conditions, unwanted
from tokkit.documents import Document, Image, Text
from tokkit.errors import ConfigError
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.settings import validated
from tokkit.pipelines.shard import ShardConfig, shard
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.native import open_shards


def document(**metadata: object) -> Document:
    segments = (Text("twelve chars"), Image(b"x", "a.jpg"), Text("!"))
    return Document("the id", "web", "f#1", segments, metadata=metadata)


@pytest.mark.parametrize(
    ("condition", "metadata", "wanted"),
    [
        ("similarity >= 0.28", {"similarity": 0.28}, True),
        ("similarity >= 0.28", {"similarity": 0.27}, False),
        ("similarity>=0.28", {"similarity": "0.3"}, True),  # a number that the source has as text
        ("similarity >= 0.28", {"similarity": "high"}, False),
        ("similarity >= 0.28", {"similarity": True}, False),
        ("similarity >= 0.28", {"similarity": [1]}, False),
        ("similarity >= 0.28", {}, False),
        ("similarity >= 0.28 or null", {}, True),
        ("similarity >= 0.28 or null", {"similarity": None}, True),
        ("similarity >= 0.28 or null", {"similarity": 0.1}, False),
        ("width < 1e3", {"width": 999}, True),
        ("width > -5", {"width": -5}, False),
        ("language in en, de", {"language": "de"}, True),
        ("language in (en, de)", {"language": "fr"}, False),
        ("language not in [en, de]", {"language": "fr"}, True),
        ("language not in en, de", {}, False),
        ("language != de", {"language": "en"}, True),
        ("language != de", {}, False),
        ("language = en", {"language": "EN"}, False),
        ('license == "CC BY, 4.0"', {"license": "CC BY, 4.0"}, True),
        ('license in "CC BY, 4.0", MIT', {"license": "CC BY, 4.0"}, True),
        ("size in 1, 2.0", {"size": 2}, True),
        ('size == "2"', {"size": 2}, False),
        ('size == "2"', {"size": "2"}, True),
        ("nsfw == false", {"nsfw": False}, True),
        ("nsfw == false", {"nsfw": 0}, False),
        ("nsfw == null", {}, True),
        ("nsfw in null, false", {"nsfw": None}, True),
        ("nsfw != null", {"nsfw": None}, False),
        ("nsfw != null", {"nsfw": 1}, True),
        ("url matches ^https://[a-z]+\\.org/", {"url": "https://example.org/1"}, True),
        ("url matches ^https://[a-z]+\\.org/", {"url": "http://example.org/1"}, False),
        ("page.url.host == here", {"page": {"url": {"host": "here"}}}, True),
        ("page.url.host == here", {"page": {"url": "here"}}, False),
        ("page.url == flat", {"page.url": "flat", "page": {"url": "deep"}}, True),
        ("document.characters <= 13", {}, True),
        ("document.characters < 13", {}, False),
        ("document.images == 1", {}, True),
        ("document.sounds > 0", {}, False),
        ("document.source in web, other", {}, True),
        ("document.id == the id", {}, True),
    ],
)
def test_what_a_condition_says(condition: str, metadata: dict[str, object], wanted: bool) -> None:
    failure = unwanted(document(**metadata), parse_conditions([condition]))
    assert (failure is None) == wanted
    if failure is not None:
        assert failure.outcome == "filtered"
        assert failure.reason == f"where {condition}"
        assert failure.message.startswith(parse_condition(condition).field)


def test_all_must_hold_and_the_first_that_does_not_is_told() -> None:
    conditions = parse_conditions(["width >= 10", "height >= 10"])
    assert unwanted(document(width=10, height=10), conditions) is None
    assert unwanted(document(width=1, height=1), conditions).reason == "where width >= 10"  # type: ignore[union-attr]
    assert unwanted(document(width=10, height=1), conditions).message == "height is 1"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("", "is not FIELD OPERATOR VALUE"),
        ("similarity", "is not FIELD OPERATOR VALUE"),
        ("similarity >=", "is not FIELD OPERATOR VALUE"),
        (">= 3", "is not FIELD OPERATOR VALUE"),
        ("width < wide", "'wide' is not a number"),
        ("width < nan", "'nan' is not a number"),
        ("width in ()", "is an empty list"),
        ("url matches (", "not a regular expression"),
        ("document.words > 3", r"there is no document\.words, only document\.characters"),
    ],
)
def test_what_is_no_condition(condition: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_condition(condition)


@given(text=st.text(max_size=30), value=st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)))
def test_anything_is_a_condition_or_a_value_error_and_judges_anything(text: str, value: object) -> None:
    for written in (text, f"a == {text}", f"a in {text}", f"a < {text}", f"a matches {text}"):
        try:
            condition = parse_condition(written)
        except ValueError:
            continue
        failure = condition.failure(document(a=value))
        assert failure is None or failure.reason == f"where {written.strip()}"


@given(value=st.floats(allow_nan=False, allow_infinity=False), bound=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_compare_as_numbers(value: float, bound: float) -> None:
    holds = {
        operator: unwanted(document(a=value), parse_conditions([f"a {operator} {bound!r}"])) is None
        for operator in ("<", "<=", ">", ">=", "==", "!=")
    }
    assert holds == {
        "<": value < bound,
        "<=": value <= bound,
        ">": value > bound,
        ">=": value >= bound,
        "==": value == bound,
        "!=": value != bound,
    }


# ---- runs


def test_a_run_keeps_what_satisfies_and_accounts_for_the_rest(tmp_path: Path) -> None:
    text, image = write_tokenizers(tmp_path / "tokenizers")
    members: list[tuple[str, bytes]] = []
    for n in range(8):
        members += [
            (f"{n:03d}.jpg", picture(n)),
            (f"{n:03d}.txt", b"a caption"),
            (f"{n:03d}.json", json.dumps({"similarity": n / 8} if n != 5 else {}).encode()),
        ]
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "00000.tar").write_bytes(tar_bytes(members))
    config = validated(
        ShardConfig,
        "test",
        {
            "inputs": [str(tmp_path / "pairs")],
            "out": tmp_path / "out",
            "text_tokenizer": text,
            "image_tokenizer": image,
            "where": ["similarity >= 0.25"],
            "workers": 0,
            "report_documents": 0,
        },
    )
    manifest = shard(config, SilentProgress()).manifest
    assert manifest.documents == {"committed": 5, "filtered": 3}
    assert manifest.items == {"image": {"committed": 5, "filtered": 3}}
    assert manifest.sources[0].reasons["document/filtered/where similarity >= 0.25"] == 3
    assert manifest.semantic["where"] == ["similarity >= 0.25"]
    rejects = [json.loads(line) for line in (tmp_path / "out" / "rejects" / "00000.jsonl").read_text().splitlines()]
    told = {r["locator"]: r["message"] for r in rejects if r["level"] == "document"}
    assert told == {
        "00000.tar#000": "similarity is 0.0",
        "00000.tar#001": "similarity is 0.125",
        "00000.tar#005": "similarity is missing or null",
    }
    assert not verify(VerifyConfig(directory=tmp_path / "out"), SilentProgress()).problems


@pytest.mark.parametrize("dedup", [["documents"], ["texts"]])
def test_what_is_filtered_is_nobodys_original(tmp_path: Path, dedup: list[str]) -> None:
    text, _ = write_tokenizers(tmp_path / "tokenizers")
    entries = [("de", "the same"), ("en", "the same"), ("en", "the same"), ("de", "another"), ("en", "a third")]
    lines = [json.dumps({"id": f"d{n}", "text": said, "language": language}) for n, (language, said) in enumerate(entries)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    config = ShardConfig.model_validate(
        {
            "inputs": [str(tmp_path / "texts.jsonl")],
            "out": tmp_path / "out",
            "text_tokenizer": text,
            "where": ["language == en"],
            "dedup": dedup,
            "workers": 0,
            "report_documents": 0,
        }
    )
    manifest = shard(config, SilentProgress()).manifest
    assert manifest.documents == {"committed": 2, "duplicate": 1, "filtered": 2}
    shards = open_shards(tmp_path / "out", "train")
    assert Counter(str(shards.row(n)["id"]) for n in range(shards.num_documents)) == {"d1": 1, "d4": 1}
    assert not verify(VerifyConfig(directory=tmp_path / "out"), SilentProgress()).problems


def test_every_wrong_condition_is_told_before_anything_is_done(tmp_path: Path) -> None:
    options = {"inputs": ["x"], "out": tmp_path / "out", "text_tokenizer": "t", "where": ["width <"], "batch_size": 0}
    with pytest.raises(ConfigError) as told:
        validated(ShardConfig, "tokkit shard", options)
    assert "'width <' is not FIELD OPERATOR VALUE" in str(told.value)
    assert "batch_size" in str(told.value)
