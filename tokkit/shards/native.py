"""Token shards on disk: ``NAME.bin``, ``NAME.idx`` and ``NAME.parquet``.

* ``.bin``: bare token ids, little endian, uint16 where the vocabulary fits, else int32, documents one after another.
* ``.idx``: Megatron's index, one sequence a document (:mod:`tokkit.shards.megatron`).
* ``.parquet``: one row a document (:data:`DOCUMENT_SCHEMA`), its spans included.

A finished directory keeps them under ``tokens/train/`` and ``tokens/val/``, listed in ``manifest.json``: what is trained on and
what is held out never share a file. A unit's payload (``run/payloads``) is a ``.bin`` and a ``.parquet`` of the same form.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from tokkit.errors import DataError
from tokkit.failpoints import failpoint
from tokkit.places import Place, parquet, read_part
from tokkit.sequences import Column, Spans
from tokkit.shards.manifest import Manifest, ShardFile, load_manifest
from tokkit.shards.megatron import index_bytes, read_index
from tokkit.shards.spans import SPAN_TYPE, SpanTable, spans_column
from tokkit.sources.remote import RemotePath
from tokkit.storage import attempt_name, fsync, sha256_file
from tokkit.vocabulary import Ids

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("locator", pa.string(), nullable=False),
        pa.field("unit", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("hash", pa.string(), nullable=False),
        pa.field("metadata", pa.string()),
        pa.field("spans", pa.list_(pa.field("item", SPAN_TYPE, nullable=False)), nullable=False),
    ],
    metadata={"tokkit": "documents", "version": "1"},
)
ROW_GROUP = 8192
WRITE_BYTES = 1 << 20  # tokens are written and hashed in pieces of about so much


def document_table(columns: Mapping[str, Column], spans: Spans) -> pa.Table:
    """Documents as a table of :data:`DOCUMENT_SCHEMA`.

    Args:
        columns: the values of all documents by the schema's names, but for the spans: ``id``, ``source``, ``locator`` and
            ``hash`` as in :class:`tokkit.documents.Document`, ``unit`` (number of the work unit that it was read in), ``split``
            (``train`` or ``val``), ``tokens`` (their number, document markers included) and ``metadata`` (the asked-for
            fields as a JSON object, or None).
        spans: of all documents.
    """
    arrays = []
    for field in list(DOCUMENT_SCHEMA)[:-1]:
        values = columns[field.name]
        try:
            arrays.append(pa.array(values, type=field.type))
        except UnicodeEncodeError:
            escaped = [value if value is None else _utf8(value) for value in values]  # type: ignore[arg-type]
            arrays.append(pa.array(escaped, type=field.type))
    return pa.Table.from_arrays([*arrays, spans_column(spans)], schema=DOCUMENT_SCHEMA)


def _utf8(text: str) -> str:
    """Parquet text is UTF-8: a lone surrogate in a name is written as an escape (in tokens it survives as it is)."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


class ShardWriter:
    """Writes one shard's files under attempt-unique names; they get their names only in :meth:`finish`.

    Used as a context manager: an exception, or leaving without ``finish``, removes what was written.

    Args:
        directory: exists.
        dtype: of the tokens.
        index: also write the ``.idx``.
    """

    def __init__(self, directory: Path, dtype: np.dtype, *, index: bool = True) -> None:
        self._directory, self._dtype, self._with_index = directory, dtype, index
        base = directory / "shard"
        self._temporary = {suffix: attempt_name(base.with_suffix(f".{suffix}")) for suffix in ("bin", "idx", "parquet")}
        self._bin = self._temporary["bin"].open("xb")
        self._digest = hashlib.sha256()
        try:
            self._parquet = pq.ParquetWriter(
                self._temporary["parquet"], DOCUMENT_SCHEMA, compression="zstd", store_schema=True, write_statistics=True
            )
        except OSError:  # its first bytes do not fit on the disk
            self._bin.close()
            self._remove_temporary()
            raise
        self._ids: list[bytes] = []
        self._waiting = 0  # bytes in _ids
        self._tables: list[pa.Table] = []
        self._lengths: list[npt.NDArray[np.int64]] = []
        self.documents = 0
        self.tokens = 0

    def extend(self, ids: npt.NDArray[np.integer], table: pa.Table) -> None:
        """Append documents: their tokens one after another, and their rows (of :func:`document_table` or another shard)."""
        self._tables.append(table)
        self._write_tokens(ids)
        self._lengths.append(table.column("tokens").to_numpy())
        self.documents += table.num_rows
        self._write_groups(ROW_GROUP)

    def finish(self, name: str | None = None, *, prefix: str = "") -> dict[str, ShardFile]:
        """Close and fsync the files and give them their names.

        Args:
            name: without suffix; None names each file ``PREFIX`` and ``SHA256[:16]`` of its content, so that every attempt
                at the same content ends at the same name.
            prefix: for the names by content.

        Returns:
            by suffix, what was written.
        """
        self._write_groups(1)
        self._flush_tokens()
        self._bin.close()
        self._parquet.close()
        suffixes = ["bin", "parquet"]
        if self._with_index:
            lengths = np.concatenate([np.zeros(0, dtype=np.int64), *self._lengths])
            self._temporary["idx"].write_bytes(index_bytes(lengths, self._dtype))
            suffixes.insert(1, "idx")
        files = {}
        for suffix in suffixes:
            temporary = self._temporary[suffix]
            fsync(temporary)
            digest = self._digest.hexdigest() if suffix == "bin" else sha256_file(temporary)
            target = self._directory / f"{name or prefix + digest[:16]}.{suffix}"
            files[suffix] = ShardFile(name=target.name, bytes=temporary.stat().st_size, sha256=digest)
            failpoint("before-payload-rename")
            temporary.replace(target)
        fsync(self._directory)
        return files

    def _write_tokens(self, ids: npt.NDArray[np.integer]) -> None:
        data = ids.astype(self._dtype.newbyteorder("<"), copy=False).tobytes()
        self._ids.append(data)
        self._waiting += len(data)
        self.tokens += len(ids)
        if self._waiting >= WRITE_BYTES:
            self._flush_tokens()

    def _flush_tokens(self) -> None:
        data = b"".join(self._ids)
        self._ids, self._waiting = [], 0
        self._bin.write(data)
        self._digest.update(data)

    def _write_groups(self, at_least: int) -> None:
        """Write row groups of exactly ROW_GROUP rows (the bytes do not depend on how rows arrived), at the end what is left."""
        waiting = sum(t.num_rows for t in self._tables)
        if waiting < at_least or not waiting:
            return
        table = pa.concat_tables(self._tables).combine_chunks()
        whole = table.num_rows if at_least < ROW_GROUP else table.num_rows - table.num_rows % ROW_GROUP
        self._parquet.write_table(table.slice(0, whole), row_group_size=ROW_GROUP)
        self._tables = [table.slice(whole)] if whole < table.num_rows else []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        # On a full disk closing fails as writing did; what was written must go all the same.
        for file in (self._bin, self._parquet):
            with suppress(OSError, ValueError):
                file.close()
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        for temporary in self._temporary.values():
            temporary.unlink(missing_ok=True)


def map_tokens(path: Path, dtype: np.dtype) -> Ids:
    """A token file as a read-only memory map (an empty file as an empty array)."""
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise DataError(f"{path} has {size} bytes, which is not a whole number of {dtype} tokens")
    little = dtype.newbyteorder("<")
    # As a plain array: slicing a memmap object is slow, and the array keeps the map alive.
    return np.memmap(path, dtype=little, mode="r").view(np.ndarray) if size else np.zeros(0, dtype=little)


class TokenShards:
    """All shards of one split of a finished directory, as one list of documents.

    Attributes:
        directory: of the output.
        split: ``train`` or ``val``.
        manifest: the directory's.
        dtype: of the tokens.
        lengths: int64 [D], tokens of each document.
        fingerprint: SHA-256 over the shards' checksums: identifies the content that a packing plan was made for.

    Args:
        place: where the shards lie, if not in the directory; of those in an object store only what is asked for is read.
    """

    def __init__(self, directory: Path, manifest: Manifest, split: str, place: Place | None = None) -> None:
        self.directory, self.manifest, self.split = directory, manifest, split
        self.dtype = np.dtype(manifest.dtype)
        self.shards = manifest.splits[split].shards
        self._base: Place = (place or directory) / "tokens" / split
        parts = []
        for shard in self.shards:
            dtype, lengths, _ = read_index(self._base / shard.files["idx"].name)
            if dtype != self.dtype or len(lengths) != shard.documents:
                raise DataError(f"{self._base / shard.files['idx'].name} does not agree with manifest.json")
            parts.append(lengths)
        self.lengths = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        self._first = np.cumsum([0, *(s.documents for s in self.shards)])
        digest = hashlib.sha256()
        for shard in self.shards:
            for suffix in ("bin", "parquet"):
                digest.update(shard.files[suffix].sha256.encode("ascii"))
        self.fingerprint = digest.hexdigest()
        self._group: tuple[int, int, pa.Table] | None = None  # the row group that was read last

    @property
    def num_documents(self) -> int:
        return len(self.lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())

    @cached_property
    def maps(self) -> list[Ids]:
        """The token files, one read-only memory map each; opened anew in each process. Not of shards in an object store."""
        assert isinstance(self._base, Path)
        return [map_tokens(self._base / s.files["bin"].name, self.dtype) for s in self.shards]

    @cached_property
    def placement(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """int32 [D] which of :attr:`maps` a document is in, int64 [D] its first token there."""
        counts = np.diff(self._first)
        ends = np.cumsum(self.lengths)
        begin_of_file = np.concatenate([[0], ends])[self._first[:-1]]
        file = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        return file, ends - self.lengths - begin_of_file[file]

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "maps"} | {"_group": None}

    def tokens(self, document: int, start: int = 0, stop: int | None = None) -> Ids:
        """A document's tokens, or a part of them: a read-only view of the memory map, where there is one."""
        length = int(self.lengths[document])
        stop = length if stop is None else stop
        if not 0 <= start <= stop <= length:
            raise IndexError(f"tokens {start}:{stop} of document {document}, which has {length}")
        file, first = self.placement
        offset = int(first[document])
        if isinstance(self._base, RemotePath):
            path, size = self._base / self.shards[file[document]].files["bin"].name, self.dtype.itemsize
            data = read_part(path, (offset + start) * size, (stop - start) * size)
            return np.frombuffer(data, self.dtype.newbyteorder("<"))
        return self.maps[file[document]][offset + start : offset + stop]

    @cached_property
    def sources(self) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Names of the sources, in the manifest's order and then as they come, and int32 [D] the number of each document's."""
        names = {source.name: n for n, source in enumerate(self.manifest.sources)}
        found = [np.zeros(0, dtype=np.int32)]
        for table in self.tables(["source"]):
            for chunk in table.column("source").dictionary_encode().chunks:
                own = [names.setdefault(name, len(names)) for name in chunk.dictionary.to_pylist()]
                found.append(np.array(own, dtype=np.int32)[chunk.indices.to_numpy()])
        return list(names), np.concatenate(found)

    @cached_property
    def spans(self) -> SpanTable:
        """The spans of all documents."""
        return SpanTable.from_columns([t.column("spans") for t in self.tables(["spans"])], self.manifest.layout.audio)

    def all_learnt(self) -> bool:
        """Whether no span is only given (``loss`` false anywhere): told by the document tables' statistics alone.

        Raises:
            DataError: a document table cannot be read.
        """
        for shard in self.shards:
            with parquet(self._base / shard.files["parquet"].name) as source:
                metadata = pq.read_metadata(source)
            names = [metadata.schema.column(n).path for n in range(metadata.num_columns)]
            column = next(n for n, name in enumerate(names) if name.startswith("spans.") and name.endswith(".loss"))
            for group in range(metadata.num_row_groups):
                chunk = metadata.row_group(group).column(column)
                told = chunk.statistics
                if chunk.num_values and (told is None or (told.has_min_max and not told.min)):
                    return False
        return True

    def tables(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The document tables, shard by shard."""
        for shard in self.shards:
            with parquet(self._base / shard.files["parquet"].name) as source:
                table = pq.read_table(source, columns=columns)
            yield table

    def row(self, document: int) -> dict[str, object]:
        """A document's row of the table."""
        if not 0 <= document < self.num_documents:
            raise IndexError(f"document {document} of {self.num_documents}")
        shard = int(np.searchsorted(self._first, document, side="right")) - 1
        group, row = divmod(document - int(self._first[shard]), ROW_GROUP)  # every group but the last has ROW_GROUP rows
        if self._group is None or self._group[:2] != (shard, group):
            with parquet(self._base / self.shards[shard].files["parquet"].name) as source, pq.ParquetFile(source) as file:
                self._group = shard, group, file.read_row_group(group)
        return self._group[2].slice(row, 1).to_pylist()[0]


def open_shards(directory: Path, split: str = "train", place: Place | None = None) -> TokenShards:
    """The shards of one split of a finished output directory; ``place`` is where they lie, if not there.

    Raises:
        DataError: the directory is not finished or damaged, or has no such split.
    """
    manifest = load_manifest(directory)
    if split not in manifest.splits:
        raise DataError(f"{directory} has no split {split!r}, only {', '.join(manifest.splits) or 'none'}")
    return TokenShards(directory, manifest, split, place)
