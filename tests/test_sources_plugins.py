"""Formats of installed packages: found, read, and told of by name where they are broken."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sources_helpers import read_all

from tokkit.documents import Text
from tokkit.errors import UsageError
from tokkit.sources import known_formats, source_class
from tokkit.sources.plugins import installed_formats
from tokkit.sources.resolve import resolve_inputs

READER = """
from tokkit.sources.jsonl import JsonlSource
from tokkit.sources.text import TextSource

class Upper(TextSource):
    format = "shout"

class Other(TextSource):
    format = "other"
"""

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution with one entry point on the path: its name, the entry, and the module that it names."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    installed_formats.cache_clear()

    def put(package: str, entry: str, module: str) -> None:
        folder = site / f"{package}-1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n")
        (folder / "entry_points.txt").write_text(f"[tokkit.sources]\n{entry}\n")
        (site / f"{package}_format.py").write_text(f"from tokkit.sources import Format\n{module}\n")
        (site / f"{package}_reader.py").write_text(READER)

    yield put
    installed_formats.cache_clear()
    for name in [name for name, module in sys.modules.items() if str(site) in str(getattr(module, "__file__", ""))]:
        del sys.modules[name]


def format_line(package: str, attribute: str = "Upper", suffix: str = ".shout") -> str:
    return f"FORMAT = Format('{package}_reader', '{attribute}', ('{suffix}',), 'shouted text')"


def test_an_installed_format_is_known_recognised_and_read(install: Install, tmp_path: Path) -> None:
    install("loud", "shout = loud_format:FORMAT", format_line("loud"))
    assert known_formats()["shout"] == "shouted text"
    assert source_class("shout").__module__ == "loud_reader"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.shout").write_text("HEY")
    (folder / "b.txt").write_text("hey")
    for typed in (f"{folder}", f"shout:{folder}"):
        sources = {source.format: source for source in resolve_inputs([typed]).sources}
        (document,) = read_all(sources["shout"]).good
        assert (document.locator, document.segments) == ("a.shout", (Text("HEY"),))
    assert set(sources) == {"shout"}


def test_tokkits_own_formats_come_first(install: Install, tmp_path: Path) -> None:
    install("loud", "shout = loud_format:FORMAT", format_line("loud", suffix=".json"))
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "t"}\n')
    (folder / "b.json").write_text('{"no": "list"}')
    found = {source.format: [file.name for file in source.files] for source in resolve_inputs([str(folder)]).sources}
    assert found == {"jsonl": ["a.jsonl"], "shout": ["b.json"]}


@pytest.mark.parametrize(
    ("entry", "module", "why"),
    [
        ("shout = bad_missing:FORMAT", "", "ModuleNotFoundError"),
        ("shout = bad_format:FORMAT", "", "AttributeError"),
        ("shout = bad_format:FORMAT", "1 / 0", "ZeroDivisionError"),
        ("shout = bad_format:FORMAT", "FORMAT = ('a', 'b')", "not a tokkit.sources.Format"),
        ("text = bad_format:FORMAT", format_line("bad"), "taken by tokkit itself"),
        ("a.b = bad_format:FORMAT", format_line("bad"), "letters"),
    ],
)
def test_a_broken_package_is_named(install: Install, tmp_path: Path, entry: str, module: str, why: str) -> None:
    install("bad", entry, module)
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(UsageError, match=r"installed package bad 1\.2") as caught:
        resolve_inputs([str(tmp_path / "a.txt")])
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "why"), [("Missing", "AttributeError"), ("JsonlSource", "no Source whose format"), ("Other", "no Source")]
)
def test_a_format_whose_source_is_none_is_named(install: Install, tmp_path: Path, attribute: str, why: str) -> None:
    install("bad", "shout = bad_format:FORMAT", format_line("bad", attribute))
    (tmp_path / "a.shout").write_text("a")
    with pytest.raises(UsageError, match=r"installed package bad 1\.2") as caught:
        resolve_inputs([str(tmp_path / "a.shout")])
    assert why in str(caught.value)


def test_two_packages_of_one_name(install: Install) -> None:
    install("one", "shout = one_format:FORMAT", format_line("one"))
    install("two", "shout = two_format:FORMAT", format_line("two"))
    with pytest.raises(UsageError, match=r"two 1\.2.*taken by one_format:FORMAT"):
        known_formats()
