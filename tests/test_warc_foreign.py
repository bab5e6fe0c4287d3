"""Real web archives counted by warcio: records by type, and which of them are documents, by their places in the file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from sources_helpers import Result, read_all, source_of

from tokkit.sources.base import Source

pytest.importorskip("resiliparse")
archiveiterator = pytest.importorskip("warcio.archiveiterator")
exceptions = pytest.importorskip("warcio.exceptions")

HTML = ("text/html", "application/xhtml+xml")


@dataclass
class Counted:
    """What warcio finds in a file.

    Attributes:
        documents: places of the records that docs/sources.md calls pages, or, of a WET, texts.
        others: all other records by type.
        whole: whether it came to the end.
    """

    documents: list[int] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    whole: bool = False


def counted(path: Path, texts: bool) -> Counted:
    found = Counted()
    with path.open("rb") as file:
        records = archiveiterator.ArchiveIterator(file)
        try:
            for record in records:
                place = records.get_record_offset()
                if record.rec_type == "conversion" and texts:
                    is_document = essence(record.content_type) == "text/plain"
                else:
                    is_document = not texts and is_page(record)
                record.raw_stream.read()
                if is_document:
                    found.documents.append(place)
                else:
                    found.others["warcinfo" if record.rec_type == "arc_header" else record.rec_type] += 1
        except exceptions.ArchiveLoadFailed:
            return found
    found.whole = True
    return found


def is_page(record: object) -> bool:
    kind, http = record.rec_type, record.http_headers  # type: ignore[attr-defined]
    declared = essence(http.get_header("Content-Type") or "") if http is not None else essence(record.content_type)  # type: ignore[attr-defined]
    if kind == "response":
        declared = declared or essence(record.rec_headers.get_header("WARC-Identified-Payload-Type") or "")  # type: ignore[attr-defined]
        return declared in HTML or not declared
    return kind == "resource" and declared in HTML


def essence(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()


def source_at(path: Path, texts: bool) -> Source:
    return source_of("wet" if texts else "warc", path)


def places(path: Path, result: Result) -> list[int]:
    return [int(d.locator.removeprefix(f"{path.name}@").partition("+")[0]) for d in result.documents]


def test_real_archives_are_counted_alike(shared_data: Path) -> None:
    records = 0
    for path in sorted((shared_data / "warc").iterdir()):
        texts = ".wet" in path.name
        theirs, source = counted(path, texts), source_at(path, texts)
        counts = [source.census(unit) for unit in source.units(1 << 18)]
        assert theirs.whole, path.name
        assert sum((Counter(count.others) for count in counts), Counter()) == theirs.others, path.name
        assert sum(count.documents or 0 for count in counts) == len(theirs.documents), path.name
        records += len(theirs.documents) + theirs.others.total()
    assert records > 400


@pytest.mark.slow
def test_the_documents_of_real_archives_are_the_same_records(shared_data: Path) -> None:
    for path in sorted((shared_data / "warc").iterdir()):
        texts = ".wet" in path.name
        result = read_all(source_at(path, texts), 1 << 18, census=False)
        assert places(path, result) == counted(path, texts).documents, path.name
        assert not result.damage, path.name


def test_what_warcio_gets_out_of_damaged_archives_is_read_or_told(shared_data: Path) -> None:
    damaged = 0
    for path in sorted((shared_data / "bad" / "warc").iterdir()):
        theirs = counted(path, texts=False)
        result = read_all(source_at(path, texts=False), census=False)
        for place in theirs.documents:
            told = any(damage.start <= place < damage.stop for damage in result.damage)
            assert told or place in places(path, result), (path.name, place)
        damaged += bool(result.damage)
    assert damaged >= 6
