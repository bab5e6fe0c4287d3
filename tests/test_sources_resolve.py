"""From what a person typed to sources: recognition, names, companions, and all problems at once."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from sources_helpers import JPEG, samples, tar_bytes, write_parquet
from test_sources_parquet import media, obelics, page

from tokkit.errors import ConfigError, UsageError
from tokkit.sources import FORMATS, known_formats, source_class
from tokkit.sources.base import Source
from tokkit.sources.resolve import ResolvedInputs, resolve_inputs


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A folder ``corpus`` with something of everything."""
    root = tmp_path / "corpus"
    for folder in ("pairs", "docs/images", "hf", "text", ".hidden"):
        (root / folder).mkdir(parents=True)
    (root / "pairs" / "00000.tar").write_bytes(tar_bytes(samples(2)))
    write_parquet(root / "pairs" / "00000.parquet", {"key": ["a"], "status": ["late"]})
    (root / "pairs" / "00000_stats.json").write_text("{}")
    obelics(root / "docs" / "d-00000-of-00001.parquet", [page(0, "images/a.jpg")])
    (root / "docs" / "images" / "a.jpg").write_bytes(JPEG)
    (root / "docs" / "d_url_map.jsonl").write_text('{"url": "http://x"}')
    (root / "docs" / "d_images.tar").write_bytes(tar_bytes([("a.jpg", JPEG)]))
    write_parquet(root / "hf" / "train.parquet", {"image": media((JPEG, None)), "caption": ["a"]})
    (root / "text" / "a.jsonl").write_text('{"text": "a"}\n')
    (root / "text" / "b.txt").write_text("b")
    (root / ".hidden" / "c.txt").write_text("hidden")
    (root / "text" / ".d.txt").write_text("hidden")
    (root / "picture.jpg").write_bytes(JPEG)
    return root


def seen(resolved: ResolvedInputs) -> dict[str, tuple[str, list[str]]]:
    return {source.name: (source.format, [file.name for file in source.files]) for source in resolved.sources}


def problems(*inputs: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        resolve_inputs(inputs)
    assert isinstance(caught.value, UsageError)
    return caught.value.problems


def test_a_folder_of_everything(corpus: Path) -> None:
    resolved = resolve_inputs([str(corpus)])
    assert seen(resolved) == {
        "corpus-webdataset": ("webdataset", ["pairs/00000.tar"]),
        "corpus-obelics": ("obelics", ["docs/d-00000-of-00001.parquet"]),
        "corpus-hf_parquet": ("hf_parquet", ["hf/train.parquet"]),
        "corpus-jsonl": ("jsonl", ["text/a.jsonl"]),
        "corpus-text": ("text", ["text/b.txt"]),
    }
    assert [Path(file.path).name for file in resolved.ignored] == ["picture.jpg"]
    assert all(source.root == corpus for source in resolved.sources)


@pytest.mark.parametrize("pattern", ["*", "**", "**/*", "docs/*", "d*"])
def test_globs_leave_companions_alone(corpus: Path, pattern: str) -> None:
    resolved = resolve_inputs([str(corpus / pattern)])
    names = {Path(file.path).name for source in resolved.sources for file in source.files}
    assert "d-00000-of-00001.parquet" in names
    assert not names & {"00000.parquet", "d_images.tar", "d_url_map.jsonl"}
    assert {Path(file.path).name for file in resolved.ignored} <= {"picture.jpg"}


def test_names_and_roots(corpus: Path) -> None:
    inputs = ["pairs", "pics=hf/*.parquet", "text/a.jsonl", "text/*.txt", f"file://{corpus}/docs"]
    here = Path.cwd()
    os.chdir(corpus)
    try:
        resolved = resolve_inputs(inputs)
    finally:
        os.chdir(here)
    assert seen(resolved) == {
        "pairs": ("webdataset", ["00000.tar"]),
        "pics": ("hf_parquet", ["train.parquet"]),
        "text": ("jsonl", ["a.jsonl"]),
        "text-2": ("text", ["b.txt"]),
        "docs": ("obelics", ["d-00000-of-00001.parquet"]),
    }
    assert all(source.root.is_absolute() for source in resolved.sources)


def test_prefixes_force_a_format(corpus: Path) -> None:
    (corpus / "lines.data").write_text('{"text": "a"}\n')
    resolved = resolve_inputs([f"x=jsonl:{corpus}/lines.data", f"jsonl:{corpus}/text", f"hf_parquet:{corpus}/hf/*"])
    assert seen(resolved) == {
        "x": ("jsonl", ["lines.data"]),
        "text": ("jsonl", ["a.jsonl"]),
        "hf": ("hf_parquet", ["train.parquet"]),
    }
    assert [Path(file.path).name for file in resolved.ignored] == ["b.txt"]


def test_paths_with_equals_signs_and_colons_are_paths(tmp_path: Path) -> None:
    for folder in ("lang=en", "text:x"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.txt").write_text("a")
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        resolved = resolve_inputs(["lang=en/*.txt", "text:x"])
    finally:
        os.chdir(here)
    assert seen(resolved) == {"lang=en": ("text", ["a.txt"]), "text:x": ("text", ["a.txt"])}


def test_all_problems_are_told_at_once(corpus: Path) -> None:
    found = problems(
        f"{corpus}/nowhere",
        f"{corpus}/no*where",
        f"parket:{corpus}/hf",
        "nosuch://bucket/x.tar",
        "https://user:secret@host/x.tar",
        f"{corpus}/picture.jpg",
        f"{corpus}/pairs/00000.parquet",
        f"{corpus}/pairs",
    )
    expected = [
        "no such file",
        "matches nothing",
        "no format 'parket'",
        "no kind of URL",
        "https://...@host/x.tar: a URL with credentials",
        "no known format",
        "00000.tar",
    ]
    assert len(found) == len(expected)
    for problem, part in zip(found, expected, strict=True):
        assert part in problem


def test_no_input_and_empty_folder(tmp_path: Path) -> None:
    assert "no input" in problems()[0]
    assert "no files" in problems(str(tmp_path))[0]


def test_a_file_given_twice_is_refused(corpus: Path) -> None:
    (corpus / "link").symlink_to(corpus / "hf")
    for other in (f"{corpus}/hf/train.parquet", f"{corpus}/link"):
        assert "twice" in problems(f"{corpus}/hf", other)[0]


def test_a_name_given_twice_is_refused(corpus: Path) -> None:
    assert "'x' is taken" in problems(f"x={corpus}/hf", f"x={corpus}/docs")[0]


def test_damaged_files_keep_the_format_of_their_name_or_neighbours(tmp_path: Path) -> None:
    obelics(tmp_path / "a.parquet", [page(0)])
    (tmp_path / "b.parquet").write_bytes(b"PAR1")
    (tmp_path / "c.tar").write_bytes(b"<html>")
    (tmp_path / "d.jsonl.gz").write_bytes(b"plain")
    (tmp_path / "e.jsonl").write_bytes(b"{broken\n")
    resolved = resolve_inputs([str(tmp_path)])
    formats = {Path(file.path).name: source.format for source in resolved.sources for file in source.files}
    assert formats == {
        "a.parquet": "obelics",
        "b.parquet": "obelics",
        "c.tar": "webdataset",
        "d.jsonl.gz": "jsonl",
        "e.jsonl": "jsonl",
    }
    assert seen(resolve_inputs([str(tmp_path / "b.parquet")])) == {tmp_path.name: ("hf_parquet", ["b.parquet"])}


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("m.json", json.dumps([{"a": 1}]), "conversations"),
        ("m.jsonl", json.dumps({"label": 1}), "no line has a field"),
        ("m.tar.xz", "x", "decompress"),
        ("m.txt.zst", "x", "zstd"),
        ("m.csv", "a,b\n1,2\n", "its columns are: a, b"),
    ],
)
def test_what_is_not_read_says_why(tmp_path: Path, name: str, content: str, why: str) -> None:
    (tmp_path / name).write_text(content)
    (tmp_path / "a.txt").write_text("a")
    assert why in problems(str(tmp_path / name))[0]
    (ignored,) = resolve_inputs([str(tmp_path)]).ignored
    assert why in ignored.why


def test_a_parquet_of_other_columns_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "t.parquet", {"img": [b"1"], "text": ["a"]})
    assert "img, text" in problems(str(tmp_path / "t.parquet"))[0]


def test_links_and_special_files(tmp_path: Path, corpus: Path) -> None:
    folder = tmp_path / "links"
    folder.mkdir()
    (folder / "to_file.txt").symlink_to(corpus / "text" / "b.txt")
    (folder / "dangling.txt").symlink_to(corpus / "nowhere")
    (folder / "to_folder").symlink_to(corpus)
    os.mkfifo(folder / "pipe.txt")
    resolved = resolve_inputs([str(folder)])
    assert seen(resolved) == {"links": ("text", ["to_file.txt"])}
    assert {Path(file.path).name for file in resolved.ignored} == {"dangling.txt", "to_folder", "pipe.txt"}


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xff.txt")).write_text("b")
    resolved = resolve_inputs([str(tmp_path)])
    assert [file.why for file in resolved.ignored] == ["the file's name is not UTF-8: rename it"]


def test_the_registry() -> None:
    assert list(known_formats()) == [
        "webdataset",
        "obelics",
        "hf_parquet",
        "img2dataset",
        "mmc4",
        "llava",
        "audio_manifest",
        "lhotse",
        "librispeech",
        "common_voice",
        "image_folder",
        "jsonl",
        "text_parquet",
        "csv",
        "warc",
        "wet",
        "text",
    ]
    for name, description in known_formats().items():
        assert issubclass(source_class(name), Source)
        assert source_class(name).format == name
        assert "\n" not in description
    assert all(suffix.startswith(".") for entry in FORMATS.values() for suffix in entry.suffixes)


def test_sources_are_small_when_pickled(corpus: Path) -> None:
    for source in resolve_inputs([str(corpus)]).sources:
        list(source.units(1))
        copy = pickle.loads(pickle.dumps(source))
        assert (copy.name, copy.root, copy.files) == (source.name, source.root, source.files)
        assert len(pickle.dumps(source)) < 2000


def test_naming_formats_imports_nothing_heavy() -> None:
    code = "import sys, tokkit.sources.resolve; print([m for m in ('pyarrow', 'numpy', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_documents_do_not_depend_on_where_the_files_lie(corpus: Path, tmp_path: Path) -> None:
    from sources_helpers import read_all

    shutil.copytree(corpus, tmp_path / "moved" / "corpus")
    readings = []
    for root in (corpus, tmp_path / "moved" / "corpus"):
        results = [read_all(source) for source in resolve_inputs([str(root)]).sources]
        readings.append([(result.identity, result.damage) for result in results])
    assert readings[0] == readings[1]


def test_real_corpora(shared_data: Path) -> None:
    folders = [
        "images_webdataset",
        "interleaved_obelics",
        "interleaved_obelics_inline",
        "hf_parquet",
        "text",
        "audio_webdataset",
    ]
    resolved = resolve_inputs([str(shared_data / folder) for folder in folders])
    assert {source.name: (source.format, len(source.files)) for source in resolved.sources} == {
        "images_webdataset": ("webdataset", 4),
        "interleaved_obelics": ("obelics", 3),
        "interleaved_obelics_inline": ("obelics", 1),
        "hf_parquet": ("hf_parquet", 2),
        "text-jsonl": ("jsonl", 3),
        "text-text": ("text", 2),
        "audio_webdataset": ("webdataset", 2),
    }
    assert resolved.ignored == []


def test_a_real_folder_of_bad_files_is_wholly_accounted_for(shared_data: Path) -> None:
    from sources_helpers import read_all

    for folder in ("tar", "parquet", "text", "images", "audio", "warc"):
        root = shared_data / "bad" / folder
        files = {path.name for path in root.iterdir()}
        try:
            resolved = resolve_inputs([str(root)])
        except ConfigError:
            assert folder == "warc"
            continue
        taken = {Path(file.path).name for source in resolved.sources for file in source.files}
        if folder == "images":
            (source,) = resolved.sources
            taken = {document.locator for document in read_all(source).documents}
        assert taken | {Path(file.path).name for file in resolved.ignored} == files
        for source in resolved.sources:
            assert read_all(source, 2000).documents


def test_a_folders_own_notes_are_not_documents_unless_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a document")
    for name in ("README.md", "license.txt", "LICENSE"):
        (tmp_path / name).write_text("about this folder")
    found = resolve_inputs([str(tmp_path)])
    assert [f.name for s in found.sources for f in s.files] == ["a.txt"]
    assert {Path(f.path).name for f in found.ignored} == {"README.md", "license.txt", "LICENSE"}
    named = resolve_inputs([str(tmp_path / "README.md"), f"text:{tmp_path / '*.txt'}"])
    assert {f.name for s in named.sources for f in s.files} == {"README.md", "a.txt", "license.txt"}


def test_files_that_a_shell_expands_are_one_input_as_the_quoted_glob_is(tmp_path: Path) -> None:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for number in range(3):
        (folder / f"0000{number}.tar").write_bytes(tar_bytes(samples(2)))
        write_parquet(folder / f"0000{number}.parquet", {"key": ["000000000"], "status": ["success"]})
        (folder / f"0000{number}_stats.json").write_text("{}")
    quoted = resolve_inputs([str(folder / "*.tar")])
    for expanded in (sorted(folder.glob("*.tar")), sorted(folder.iterdir())):
        found = resolve_inputs([str(path) for path in expanded])
        assert [(s.name, s.format) for s in found.sources] == [("pairs", "webdataset")]
        assert [f.name for f in found.sources[0].files] == [f.name for f in quoted.sources[0].files]
    with pytest.raises(ConfigError, match="given twice"):
        resolve_inputs([str(folder / "00000.tar")] * 2)
