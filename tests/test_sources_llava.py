"""LLaVA: JSON lists element by element, placeholders and pictures, roles, what is to be learnt, damage."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sources_helpers import JPEG, Result, assert_census_agrees, assert_same_for_all_cuts, read_all, source_of

from tokkit.documents import Document, Image, Text
from tokkit.sources.json_list import ListDamage, count_elements, elements
from tokkit.sources.resolve import resolve_inputs

HYPOTHESIS = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def turns(*said: str) -> list[dict[str, str]]:
    return [{"from": "gpt" if n % 2 else "human", "value": text} for n, text in enumerate(said)]


def write(path: Path, entries: list[object]) -> Path:
    path.write_text(json.dumps(entries) if path.suffix == ".json" else "".join(json.dumps(e) + "\n" for e in entries))
    return path


def read(path: Path) -> Result:
    return assert_same_for_all_cuts(source_of("llava", path), [1, 200])


def said(document: Document) -> list[tuple[str, bool]]:
    return [(s.text if isinstance(s, Text) else f"<{s.ref}>", s.loss) for s in document.segments]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("coco/a.jpg", "b.jpg", "images/c.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(JPEG + name.encode())
    return tmp_path


@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_pictures_stand_where_their_placeholders_stood(pictures: Path, name: str) -> None:
    entries: list[object] = [
        {"id": 7, "image": "coco/a.jpg", "conversations": turns("<image>\nWhat is it?", "A dog."), "model": "x"},
        {
            "images": ["b.jpg", "c.jpg"],
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "user", "value": "Make <|image|> blue"},
                {"from": "assistant", "value": "Here: <image>."},
                {"from": "user", "value": "Thanks"},
                {"from": "assistant", "value": ""},
            ],
        },
        {"id": "t", "conversations": turns("Hi", "Hello")},
    ]
    result = read(write(pictures / name, entries))
    first, second, third = result.good
    asked = "\nWhat is it?\nAssistant:"
    assert said(first) == [("User: ", False), ("<coco/a.jpg>", False), (asked, False), (" A dog.\n", True)]
    assert said(second) == [
        ("System: Be brief.\nUser: Make ", False),
        ("<b.jpg>", False),
        (" blue\nAssistant:", False),
        (" Here: ", True),
        ("<c.jpg>", True),
        (".\n", True),
        ("User: Thanks\nAssistant:", False),
        (" \n", True),
    ]
    assert [item.data for d in result.good for item in d.media] == [
        JPEG + n.encode() for n in ("coco/a.jpg", "b.jpg", "images/c.jpg")
    ]
    assert [d.id for d in result.good] == ["7", second.locator, "t"]
    assert first.metadata == {"model": "x"}
    assert said(third) == [("User: Hi\nAssistant:", False), (" Hello\n", True)]
    assert all(document.whole and not document.pair for document in result.good)
    assert_census_agrees(result)
    resolved = resolve_inputs([str(pictures)])
    assert [(s.format, [f.name for f in s.files]) for s in resolved.sources] == [("llava", [name])]
    assert resolved.ignored == []


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"conversations": turns("<image>", "a")}, "placeholder-count"),
        ({"image": "b.jpg", "conversations": turns("no place", "a")}, "placeholder-count"),
        ({"image": ["b.jpg"], "conversations": turns("<image><|image|>", "a")}, "placeholder-count"),
        ({"image": [7], "conversations": turns("<image>", "a")}, "image-not-understood"),
        ({"image": "", "conversations": turns("<image>", "a")}, "image-not-understood"),
        ({"image": {"path": "b.jpg"}, "conversations": turns("<image>", "a")}, "image-not-understood"),
        ({"conversations": []}, "no-conversation"),
        ({"conversations": "hi"}, "no-conversation"),
        ({"conversations": ["hi"]}, "turn-not-understood"),
        ({"conversations": [{"from": "human"}]}, "turn-not-understood"),
        ({"conversations": [{"from": "bing", "value": "v"}]}, "role-not-known"),
        ({"conversations": turns("only a question")}, "no-assistant-turn"),
        ({"conversations": turns("a question", "")}, "no-assistant-turn"),
        ({"text": "t"}, "no-conversation"),
        (["a list"], "not-an-object"),
        ("text", "not-an-object"),
        (None, "not-an-object"),
        (1.5, "not-an-object"),
    ],
)
@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_entries_that_are_no_conversation_are_rejected(tmp_path: Path, name: str, entry: object, reason: str) -> None:
    good = {"conversations": turns("q", "a")}
    result = read(write(tmp_path / name, [good, entry, good]))
    assert list(result.failures.values()) == [reason]
    assert len(result.good) == 2
    assert_census_agrees(result)


def test_pictures_that_are_not_there_or_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(JPEG)
    entries: list[object] = [{"image": n, "conversations": turns("<image>", "a")} for n in ("lost.jpg", "../secret.jpg")]
    result = read(write(root / "d.json", entries))
    assert result.item_failures == {"image-not-found": 1, "path-outside-source": 1}
    assert_census_agrees(result)


BROKEN = [
    (b'{"conversations": [}]', None),
    (b"{'single': 1}", "json-invalid"),
    (b'{"a": "\xff"}', "text-not-utf8"),
    (b'{"a": 1} {"b": 2}', "json-invalid"),
    (b"", "json-invalid"),
    (b'{"a": 1, "a": 2}', "json-repeated-key"),
    (b'{"a" 1}', "json-invalid"),
    (b"nonsense", "json-invalid"),
]


@pytest.mark.parametrize(("element", "reason"), BROKEN)
def test_an_element_that_cannot_be_parsed_does_not_hide_the_others(tmp_path: Path, element: bytes, reason: str | None) -> None:
    good = json.dumps({"conversations": turns('q "quoted\\" ]}', "a")}).encode()
    (tmp_path / "d.json").write_bytes(b"[" + good + b" ,\n" + element + b" , " + good + b"\n]\n")
    result = read(tmp_path / "d.json")
    if reason is None:
        assert [(d.reason, d.start) for d in result.damage] == [("json-damaged", len(good) + 3)]
        assert (len(result.good), result.counted) == (1, None)
    else:
        assert list(result.failures.values()) == [reason]
        assert len(result.good) == 2
        assert_census_agrees(result)


@pytest.mark.parametrize(
    ("data", "count", "reason"),
    [
        (b"[]", 0, None),
        (b"\xef\xbb\xbf \n[ \n]\n", 0, None),
        (b'["a",]', 1, None),
        (b'["a"] x', 1, "json-trailing-garbage"),
        (b"", 0, "json-not-a-list"),
        (b'{"a": 1}', 0, "json-not-a-list"),
        (b"[", 0, "json-truncated"),
        (b'["a", "b', 1, "json-truncated"),
        (b'["a", {"b": [', 1, "json-truncated"),
    ],
)
def test_ends_of_lists(data: bytes, count: int, reason: str | None) -> None:
    found = list(elements(io.BytesIO(data)))
    assert sum(not isinstance(each, ListDamage) for each in found) == count
    assert [each.reason for each in found if isinstance(each, ListDamage)] == ([reason] if reason else [])
    assert count_elements(io.BytesIO(data)) == (None if reason else count)


def test_every_truncation_of_a_list_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "d.json", [{"id": n, "conversations": turns("q]", 'a"}')} for n in range(4)])
    data = path.read_bytes()
    whole = read_all(source_of("llava", path)).identity
    for length in range(len(data)):
        path.write_bytes(data[:length])
        result = read_all(source_of("llava", path))
        assert result.identity == whole[: len(result.documents)]
        assert [damage.stop for damage in result.damage] == [length]
        assert result.counted is None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(['"', "\\", "],[", "}{", '\\"']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@HYPOTHESIS
@given(st.lists(VALUES, max_size=8), st.integers(1, 40), st.sampled_from([None, 1]), st.booleans())
def test_the_walk_finds_what_json_finds(values: list[object], chunk: int, indent: int | None, ascii_only: bool) -> None:
    data = json.dumps(values, indent=indent, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokkit.sources.json_list._CHUNK", chunk)
        found = list(elements(io.BytesIO(data)))
        assert count_elements(io.BytesIO(data)) == len(values)
    assert not any(isinstance(each, ListDamage) for each in found)
    assert [json.loads(each[1].decode("utf-8", "surrogatepass")) for each in found] == values  # type: ignore[index]
    assert all(data[each[0] : each[0] + len(each[1])] == each[1] for each in found)  # type: ignore[index]


@HYPOTHESIS
@given(st.binary(max_size=60), st.integers(1, 20))
def test_any_bytes_are_read_and_counted_alike(noise: bytes, chunk: int) -> None:
    data = b'[{"a": 1}, ' + noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokkit.sources.json_list._CHUNK", chunk)
        found = list(elements(io.BytesIO(data)))
        counted = count_elements(io.BytesIO(data))
    if isinstance(found[-1], ListDamage):
        assert counted is None
    else:
        assert counted in (None, len(found))


def test_a_large_list_is_read_in_little_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "d.json"
    with path.open("w") as file:
        file.write("[")
        for number in range(8_000):
            file.write("," * bool(number) + json.dumps({"id": number, "conversations": turns("q" * 500, "a" * 500)}))
        file.write("]")
    assert path.stat().st_size > 8_000_000
    source = source_of("llava", path)
    (unit,) = source.units(1)
    tracemalloc.start()
    count = sum(isinstance(found, Document) and found.failure is None for found in source.read(unit))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (count, source.census(unit).documents) == (8_000, 8_000)
    assert peak < 4 << 20


def test_an_element_too_large_ends_the_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.json_list._CHUNK", 64)
    data = json.dumps(["a", "b" * 1000, "c"]).encode()
    found = list(elements(io.BytesIO(data), 300))
    assert found[0] == (1, b'"a"')
    assert [each.reason for each in found[1:] if isinstance(each, ListDamage)] == ["json-element-too-long"]


def test_real_pictures_in_conversations(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "image_folder").glob("*/*.JPEG"))
    (tmp_path / "train").mkdir()
    for file in files:
        (tmp_path / "train" / file.name).write_bytes(file.read_bytes())
    entries: list[object] = [
        {"id": file.stem, "image": f"train/{file.name}", "conversations": turns("<image>\nWhat?", file.parent.name)}
        for file in files
    ]
    result = read(write(tmp_path / "chat.json", entries))
    assert [document.media[0].data for document in result.good] == [file.read_bytes() for file in files]
    assert len(files) == 48
    assert [document.segments[-1] for document in result.good] == [Text(f" {file.parent.name}\n") for file in files]
    assert_census_agrees(result)


def test_only_what_the_assistant_says_is_to_be_learnt_in_the_spans() -> None:
    from tokkit.pipelines.assembly import Given, join_texts

    texts = [Text("a", loss=False), Text("b", loss=False), Text("c"), Text("d"), Text("e", loss=False)]
    joined = join_texts(texts, "-")
    assert joined == ["a-b", "c-d", "e"]
    assert [isinstance(text, Given) for text in joined] == [True, False, True]


def test_what_is_given_counts_in_the_content_hash() -> None:
    def digest(*segments: Text | Image) -> str:
        return Document("i", "s", "l", segments).hash

    assert digest(Text("a")) != digest(Text("a", loss=False))
    assert digest(Image(b"a", "r")) != digest(Image(b"a", "r", loss=False))


def test_the_flag_arrives_in_the_spans_of_the_shards(tmp_path: Path) -> None:
    from shard_corpus import picture, write_tokenizers

    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.shard import ShardConfig, shard
    from tokkit.pipelines.verify import VerifyConfig, verify
    from tokkit.shards.native import open_shards

    text, image = write_tokenizers(tmp_path / "tokenizers")
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / "a.png").write_bytes(picture(1))
    (folder / "cut.png").write_bytes(picture(2)[:200])
    entries: list[object] = [
        {"id": name, "image": f"{name}.png", "conversations": turns("<image>\nWhat is it?", "Noise.", "Sure?", "Yes.")}
        for name in ("a", "cut", "lost")
    ]
    write(folder / "chat.json", entries)
    options = {"inputs": [str(folder)], "out": tmp_path / "out", "text_tokenizer": text, "image_tokenizer": image, "workers": 1}
    shard(ShardConfig.model_validate({**options, "batch_size": 2, "report_documents": 0}), SilentProgress())
    shards = open_shards(tmp_path / "out", "train")
    assert shards.num_documents == 1
    row = shards.row(0)
    assert row["id"] == "a"
    spans = [(span["modality"], span["loss"]) for span in row["spans"]]  # type: ignore[attr-defined]
    assert spans == [
        ("text", False),
        ("image", False),
        ("text", False),
        ("text", True),
        ("text", False),
        ("text", True),
    ]
    rejects = [json.loads(line) for path in (tmp_path / "out" / "rejects").iterdir() for line in path.read_text().splitlines()]
    assert {(r["id"], r["outcome"]) for r in rejects if r["level"] == "document"} == {
        ("cut", "rejected"),
        ("lost", "failed_upstream"),
    }
    result = verify(VerifyConfig.model_validate({"directory": tmp_path / "out", "reencode": 5}), SilentProgress())
    assert not result.problems
