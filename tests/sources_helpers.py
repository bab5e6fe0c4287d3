"""Generated corpora and small tools that the tests of the sources share."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.documents import Document, modality_of
from tokkit.sources import make_source
from tokkit.sources.base import Census, ContainerDamage, InputFile, Source

JPEG = b"\xff\xd8\xff\xe0 not really a picture \xff\xd9"


@dataclass
class Result:
    """Everything that a source yields, and the sum of its units' census."""

    documents: list[Document] = field(default_factory=list)
    damage: list[ContainerDamage] = field(default_factory=list)
    units: int = 0
    counted: int | None = 0
    counted_items: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> list[Document]:
        return [document for document in self.documents if document.failure is None]

    @property
    def failures(self) -> dict[str, str]:
        """Reason by locator."""
        return {document.locator: document.failure.reason for document in self.documents if document.failure is not None}

    @property
    def reasons(self) -> Counter[str]:
        return Counter(self.failures.values())

    @property
    def items(self) -> Counter[str]:
        return Counter(modality_of(item) for document in self.good for item in document.media)  # type: ignore[arg-type]

    @property
    def item_failures(self) -> Counter[str]:
        return Counter(item.failure.reason for document in self.good for item in document.media if item.failure is not None)

    @property
    def identity(self) -> list[tuple[object, ...]]:
        return [(d.locator, d.id, d.hash, d.failure, json.dumps(d.metadata, sort_keys=True)) for d in self.documents]


def read_all(source: Source, unit_bytes: int = 1 << 30, census: bool = True) -> Result:
    """Read a source (its pickled copy, as workers do), and check what holds of every source."""
    result = Result()
    source = pickle.loads(pickle.dumps(source))
    for unit in source.units(unit_bytes):
        result.units += 1
        reader = source.read(unit)
        before = 0.0
        for found in reader:
            assert before <= reader.consumed <= 1.0
            before = reader.consumed
            if isinstance(found, Document):
                assert found.source == source.name
                result.documents.append(found)
            else:
                assert 0 <= found.start <= found.stop
                result.damage.append(found)
        assert reader.consumed == 1.0
        if census:
            _add(result, source.census(unit))
    locators = [document.locator for document in result.documents]
    assert len(set(locators)) == len(locators)
    json.dumps([document.metadata for document in result.documents], allow_nan=False).encode("ascii")
    for document in result.documents:
        f"{document.id} {document.locator} {[item.ref for item in document.media]}".encode()
    return result


def _add(result: Result, census: Census) -> None:
    result.counted = None if census.documents is None or result.counted is None else result.counted + census.documents
    result.counted_items.update(census.items)


def source_of(format_name: str, *paths: Path, root: Path | None = None, name: str = "s") -> Source:
    """A source over ``paths``, below ``root`` (the first one's folder)."""
    root = root or paths[0].parent
    return make_source(format_name, name, root, [InputFile.of(path, root) for path in paths])


def assert_census_agrees(result: Result) -> None:
    """The count taken apart from reading equals what was read."""
    assert result.counted == len(result.documents)
    assert +result.counted_items == result.items


def assert_same_for_all_cuts(source: Source, sizes: Iterable[int]) -> Result:
    """Reading gives the same documents and damage however the files are cut; returns the uncut reading."""
    whole = read_all(source)
    for size in sizes:
        cut = read_all(source, size)
        assert cut.identity == whole.identity
        assert cut.damage == whole.damage
        assert cut.counted == whole.counted
        assert cut.counted_items == whole.counted_items
    return whole


def tar_bytes(members: Iterable[tuple[str, bytes]], format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002
    """A tar of regular files, as the standard library writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, errors="surrogateescape") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def samples(count: int, size: int = 700) -> list[tuple[str, bytes]]:
    """``count`` samples of picture, caption and fields."""
    members = []
    for number in range(count):
        key = f"{number:09d}"
        members.append((f"{key}.jpg", JPEG + bytes([number % 251]) * (size + 137 * number % 900)))
        members.append((f"{key}.txt", f"caption {number}".encode()))
        members.append((f"{key}.json", json.dumps({"key": key, "caption": f"caption {number}", "n": number}).encode()))
    return members


def write_parquet(
    path: Path, columns: Mapping[str, object], rows_per_group: int = 2, metadata: dict[str, str] | None = None
) -> Path:
    """A parquet file of Arrow arrays or lists."""
    table = pa.table(dict(columns))
    if metadata:
        table = table.replace_schema_metadata(metadata)
    pq.write_table(table, path, row_group_size=rows_per_group)
    return path
