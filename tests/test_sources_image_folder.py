"""Folders of pictures: captions beside them, metadata rows, what is taken for such a folder, real folders."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from sources_helpers import JPEG, Result, assert_census_agrees, assert_same_for_all_cuts, read_all, samples, tar_bytes

from tokkit.documents import Image, Outcome, Text
from tokkit.errors import ConfigError
from tokkit.sources.base import Source
from tokkit.sources.resolve import resolve_inputs


def folder(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def only_source(*inputs: object) -> Source:
    (source,) = resolve_inputs([str(each) for each in inputs]).sources
    assert source.format == "image_folder"
    return source


def read(root: Path, prefix: str = "") -> Result:
    return assert_same_for_all_cuts(only_source(f"{prefix}{root}"), [1, 100])


def jpeg(number: int) -> bytes:
    return JPEG + bytes([number])


def test_class_folders_and_captions(tmp_path: Path) -> None:
    files: dict[str, bytes | str] = {
        "dog/b.jpg": jpeg(1),
        "dog/a.PNG": jpeg(2),
        "dog/a.txt": "a dog\n",
        "cat/x/c.webp": jpeg(3),
        "top.jpeg": jpeg(4),
        "top.txt": "",
        "dog/.hidden.jpg": jpeg(5),
        "dog/README.md": "notes",
    }
    result = read(folder(tmp_path / "pics", files))
    assert {d.locator: (d.id, d.segments, d.metadata) for d in result.documents} == {
        "top.jpeg": ("top.jpeg", (Image(jpeg(4), "top.jpeg"),), {}),
        "cat/x/c.webp": ("cat/x/c.webp", (Image(jpeg(3), "c.webp"),), {"label": "x"}),
        "dog/a.PNG": ("dog/a.PNG", (Image(jpeg(2), "a.PNG"), Text("a dog\n")), {"label": "dog"}),
        "dog/b.jpg": ("dog/b.jpg", (Image(jpeg(1), "b.jpg"),), {"label": "dog"}),
    }
    assert all(document.pair for document in result.documents)
    assert_census_agrees(result)


ROWS = [
    {"file_name": "dog/a.jpg", "text": "from the row", "licence": "CC0"},
    {"file_name": "./dog/b.jpg", "caption": "other", "label": "poodle"},
    {"file_name": "dog/gone.jpg", "text": "lost"},
    {"file_name": "../outside.jpg", "text": "outside"},
]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
@pytest.mark.parametrize("within", [False, True])
def test_metadata_rows(tmp_path: Path, name: str, within: bool) -> None:
    rows = [{**row, "file_name": row["file_name"].replace("dog/", "" if within else "dog/")} for row in ROWS]
    root = folder(tmp_path / "pics", {"dog/a.jpg": jpeg(1), "dog/b.jpg": jpeg(2), "dog/c.jpg": jpeg(3), "eel/d.jpg": jpeg(4)})
    (tmp_path / "pics" / "extra").mkdir()
    path = root / "dog" / name if within else root / name
    if name.endswith("csv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file_name", "text", "caption", "licence", "label"], restval="")
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = read(root)
    texts = {d.locator: [s.text for s in d.segments if isinstance(s, Text)] for d in result.good}
    if name.endswith("jsonl"):
        assert texts == {"dog/a.jpg": ["from the row"], "dog/b.jpg": ["other"], "dog/c.jpg": [], "eel/d.jpg": []}
        first, second, third, fourth = (d.metadata for d in sorted(result.good, key=lambda d: d.locator))
        assert first == {"label": "dog", "licence": "CC0", "text": "from the row"}
        assert second["label"] == "poodle"
        assert (third, fourth) == ({"label": "dog"}, {"label": "eel"})
    gone = [d for d in result.documents if d.failure is not None]
    above = "dog/" if within else ""
    assert {d.locator for d in gone} == {"dog/gone.jpg", f"{above}../outside.jpg"}
    assert {(d.failure.outcome, d.failure.reason) for d in gone if d.failure} == {(Outcome.FAILED_UPSTREAM, "image-not-found")}
    assert_census_agrees(result)
    assert [file.name for file in only_source(root).companions()] == [path.relative_to(root).as_posix()]


def test_an_empty_csv_field_does_not_hide_the_other_caption(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", {"a.jpg": jpeg(1), "metadata.csv": 'file_name,text,caption\r\na.jpg,,"one, ""two"""\r\n'})
    assert read(root).good[0].segments[1:] == (Text('one, "two"'),)


def test_a_row_outside_of_the_source_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "outside.jpg").write_bytes(jpeg(9))
    row = json.dumps({"file_name": "../outside.jpg", "text": "t"})
    result = read(folder(tmp_path / "p", {"a.jpg": jpeg(1), "metadata.jsonl": row}))
    assert result.failures == {"../outside.jpg": "image-not-found"}
    assert [document.media[0].data for document in result.good] == [jpeg(1)]
    assert_census_agrees(result)


@pytest.mark.parametrize(
    ("name", "content", "lost"),
    [
        (
            "metadata.jsonl",
            b'{"file_name": "a.jpg"}\n{broken\n["list"]\n{"text": "x"}\n{"file_name": "a.jpg"}\n',
            4,
        ),
        ("metadata.csv", b"file_name,text\na.jpg,t\nb.jpg\na.jpg,again\n", 2),
        ("metadata.csv", b'file_name,text\na.jpg,t\nb.jpg,"open\n', 1),
        ("metadata.csv", b"\xff\xfe", 1),
    ],
)
def test_rows_that_are_none_are_told_once(tmp_path: Path, name: str, content: bytes, lost: int) -> None:
    root = folder(tmp_path / "p", {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "x/c.jpg": jpeg(3), name: content})
    result = read(root, "image_folder:")
    assert [d.reason for d in result.damage] == ["metadata-row-unreadable"] * lost
    assert len(result.good) == 3
    assert result.counted in (None, 3)


def test_captions_that_are_not_text_reject_the_picture(tmp_path: Path) -> None:
    rows = json.dumps({"file_name": "b.jpg", "text": 7}) + "\n" + json.dumps({"file_name": "a.jpg", "text": "unused"})
    files = {"a.jpg": jpeg(1), "a.txt": b"\xff", "b.jpg": jpeg(2), "c.jpg": jpeg(3), "metadata.jsonl": rows}
    result = read(folder(tmp_path / "p", files))
    assert result.failures == {"a.jpg": "text-not-utf8", "b.jpg": "text-not-a-string"}
    assert_census_agrees(result)


def test_pictures_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokkit.sources.image_folder.MAX_ITEM_BYTES", 100)
    result = read(folder(tmp_path / "p", {"a.jpg": b"x" * 101, "b.jpg": b"x" * 100}))
    assert result.item_failures == {"image-too-large": 1}
    assert_census_agrees(result)


def test_a_picture_beside_a_corpus_is_not_read(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", {"00000.tar": tar_bytes(samples(1)), "cover.jpg": JPEG, "cover.txt": "c"})
    resolved = resolve_inputs([str(root)])
    assert {source.format for source in resolved.sources} == {"webdataset", "text"}
    assert [Path(file.path).name for file in resolved.ignored] == ["cover.jpg"]
    named = resolve_inputs([f"image_folder:{root}"])
    assert [(s.format, [f.name for f in s.files]) for s in named.sources] == [("image_folder", ["."])]
    assert [Path(file.path).name for file in named.ignored] == ["00000.tar"]


def test_a_text_that_is_no_caption_keeps_a_folder_of_texts(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", {"a.jpg": JPEG, "a.txt": "caption", "essay.txt": "e"})
    assert [source.format for source in resolve_inputs([str(root)]).sources] == ["text"]


def test_whole_folders_or_nothing(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", {"a.jpg": jpeg(1), "b.jpg": jpeg(2), "x/c.jpg": jpeg(3)})
    for inputs in ([f"{root}/a.jpg"], [f"image_folder:{root}/a*.jpg"], [f"image_folder:{root}/a.jpg"]):
        with pytest.raises(ConfigError):
            resolve_inputs(inputs)
    assert [f.name for f in only_source(f"{root}/*.jpg").files] == ["."]
    assert [f.name for f in only_source(f"image_folder:{root}/x").files] == ["."]
    assert [f.name for f in only_source(f"{root}/*").files] == [".", "x"]


def test_names_and_links(tmp_path: Path) -> None:
    root = folder(tmp_path / "p", {"ä b.jpg": jpeg(1), "folder.jpg/in.jpg": jpeg(2)})
    (root / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.jpg")).write_bytes(jpeg(3))
    resolved = resolve_inputs([str(root)])
    result = read_all(resolved.sources[0])
    assert [document.locator for document in result.good] == ["ä b.jpg", "folder.jpg/in.jpg"]
    assert {file.why for file in resolved.ignored} == {
        "a symbolic link that leads nowhere",
        "the file's name is not UTF-8: rename it",
    }
    assert_census_agrees(result)


# --- real data -------------------------------------------------------------------------------------------------------


def test_real_class_folders(shared_data: Path) -> None:
    root = shared_data / "image_folder"
    resolved = resolve_inputs([str(root)])
    assert [Path(file.path).name for file in resolved.ignored] == ["ATTRIBUTION.txt"]
    result = read(root)
    files = sorted(path for path in root.rglob("*") if path.is_file() and path.suffix != ".txt")
    assert len(files) == len(result.good) == 75
    assert {d.locator: d.media[0].data for d in result.good} == {f.relative_to(root).as_posix(): f.read_bytes() for f in files}
    assert {d.metadata["label"] for d in result.good} == {p.name for p in root.iterdir()}
    assert_census_agrees(result)


def test_real_flat_folder(shared_data: Path) -> None:
    root = shared_data / "image_formats"
    result = read(root)
    names = sorted(os.listdir(root))  # noqa: PTH208
    assert [document.locator for document in result.good] == names
    assert resolve_inputs([str(root)]).ignored == []
    assert_census_agrees(result)


def test_a_folder_without_folders_is_encoded_again(tmp_path: Path) -> None:
    from shard_corpus import picture, write_tokenizers

    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.shard import ShardConfig, shard
    from tokkit.pipelines.verify import VerifyConfig, verify

    text, image = write_tokenizers(tmp_path / "tokenizers")
    root = folder(tmp_path / "p", {"a.png": picture(1), "b.png": picture(2)})
    options = {"inputs": [str(root)], "out": tmp_path / "out", "text_tokenizer": text, "image_tokenizer": image, "workers": 0}
    shard(ShardConfig.model_validate({**options, "report_documents": 0}), SilentProgress())
    result = verify(VerifyConfig.model_validate({"directory": tmp_path / "out", "reencode": 5}), SilentProgress())
    assert not result.problems
    assert result.reencoded is not None
    assert result.reencoded.documents == 2


def test_a_run_over_a_folder_notices_what_changes_and_adds_up(tmp_path: Path) -> None:
    from shard_corpus import picture, write_tokenizers

    from tokkit.errors import FingerprintMismatch
    from tokkit.pipelines.plan import check_unchanged
    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.shard import ShardConfig, shard
    from tokkit.pipelines.verify import VerifyConfig, verify
    from tokkit.shards.native import open_shards

    text, image = write_tokenizers(tmp_path / "tokenizers")
    rows = "".join(json.dumps({"file_name": name, "text": name}) + "\n" for name in ("a.png", "x/b.png", "lost.png"))
    files: dict[str, bytes | str] = {"a.png": picture(1), "x/b.png": picture(2), "x/c.png": b"none", "metadata.jsonl": rows}
    root = folder(tmp_path / "p", files)
    options = {"inputs": [str(root)], "out": tmp_path / "out", "text_tokenizer": text, "image_tokenizer": image, "workers": 1}
    shard(ShardConfig.model_validate({**options, "batch_size": 2, "report_documents": 0}), SilentProgress())
    shards = open_shards(tmp_path / "out", "train")
    assert [shards.row(n)["locator"] for n in range(shards.num_documents)] == ["a.png", "x/b.png"]
    result = verify(VerifyConfig.model_validate({"directory": tmp_path / "out", "reencode": 5}), SilentProgress())
    assert not result.problems
    source = only_source(root)
    (unit, *_) = source.units(1 << 30)
    check_unchanged(source, unit)
    (root / "metadata.jsonl").write_text(rows + rows)
    with pytest.raises(FingerprintMismatch):
        check_unchanged(source, unit)


def _rewritten(path: Path, content: bytes | None = None, later_ns: int = 0) -> None:
    """Other bytes and another time in the same file, so that its folder stays as it is."""
    before = path.stat()
    with path.open("r+b") as file:
        if content is not None:
            file.truncate()
            file.write(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + later_ns))


@pytest.mark.parametrize("change", ["longer", "same size", "touched", "caption", "its own file is back"])
def test_a_picture_that_changed_between_two_runs_is_noticed(tmp_path: Path, change: str) -> None:
    from tokkit.errors import FingerprintMismatch
    from tokkit.pipelines.plan import make_plan
    from tokkit.pipelines.progress import SilentProgress

    files: dict[str, bytes | str] = {"x/a.png": jpeg(1), "x/a.txt": "one", "x/b.png": jpeg(2), "x/notes.txt": "of nobody"}
    root = folder(tmp_path / "p", files)
    run = tmp_path / "run"
    run.mkdir()

    def planned() -> int:
        resolved = resolve_inputs([f"image_folder:{root}"])
        return len(make_plan(resolved, run, unit_bytes=1 << 20, limit=None, progress=SilentProgress()).units)

    assert planned() == 1
    folder_state = (root / "x").stat().st_mtime_ns
    path = root / "x" / ("a.txt" if change == "caption" else "b.png")
    if change == "longer":
        _rewritten(path, jpeg(2) + b"more")
        told = rf"changed: p/x: pictures or captions in it \({2 * len(jpeg(1)) + 3} -> {2 * len(jpeg(1)) + 7} bytes\)"
    else:
        content = {"same size": jpeg(3), "caption": b"two", "its own file is back": jpeg(2)}.get(change)
        _rewritten(path, content, later_ns=0 if change == "its own file is back" else 1)
        told = r"changed: p/x: pictures or captions in it \(another modification time\)"
    assert (root / "x").stat().st_mtime_ns == folder_state
    if change == "its own file is back":
        _rewritten(root / "x" / "notes.txt", b"of anybody", later_ns=5)  # belongs to no picture
        assert planned() == 1
        return
    with pytest.raises(FingerprintMismatch, match=told) as caught:
        planned()
    assert str(caught.value).count("changed: ") == 1


def test_a_folder_that_is_new_or_gone_is_told_once(tmp_path: Path) -> None:
    from tokkit.errors import FingerprintMismatch
    from tokkit.pipelines.plan import make_plan
    from tokkit.pipelines.progress import SilentProgress

    root = folder(tmp_path / "p", {"x/a.png": jpeg(1), "y/a.png": jpeg(2)})
    make_plan(resolve_inputs([str(root)]), tmp_path, unit_bytes=1, limit=None, progress=SilentProgress())
    (root / "y").rename(root / "z")
    with pytest.raises(FingerprintMismatch) as caught:
        make_plan(resolve_inputs([str(root)]), tmp_path, unit_bytes=1, limit=None, progress=SilentProgress())
    assert [line for line in str(caught.value).splitlines() if line.startswith("  - ")] == ["  - gone: p/y", "  - new: p/z"]


def test_an_output_that_was_begun_before_contents_were_listed_is_gone_on_with(tmp_path: Path) -> None:
    from tokkit.pipelines.plan import make_plan
    from tokkit.pipelines.progress import SilentProgress

    root = folder(tmp_path / "p", {"a.png": jpeg(1), "b.png": jpeg(2)})
    resolved = resolve_inputs([f"image_folder:{root}"])
    first = make_plan(resolved, tmp_path, unit_bytes=1, limit=None, progress=SilentProgress())
    lines = (tmp_path / "inputs.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if not json.loads(line).get("contents")]
    assert len(kept) == len(lines) - 1
    (tmp_path / "inputs.jsonl").write_text("".join(kept))
    assert make_plan(resolved, tmp_path, unit_bytes=1, limit=None, progress=SilentProgress()).units == first.units
