"""The parquet that img2dataset writes beside each tar: one row per input URL, with what became of it.

Rows whose ``status`` is not ``success`` were never downloaded and are in no tar: they are the documents that the corpus was
meant to have, and count as failed upstream. A row that claims success, but whose key the tar does not hold, is a loss too.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.documents import Document, Outcome
from tokkit.sources import TARS
from tokkit.sources.base import ContainerDamage, InputFile
from tokkit.sources.opening import Location, for_arrow, located
from tokkit.sources.parquet import UNREADABLE, is_damage, names_problem, rows_of, tidy_message
from tokkit.sources.untrusted import failed_document, metadata_of, printable, slug

_SUCCESS = "success"


def tar_stem(name: str) -> str:
    """The name of a tar, compressed or not, without its ending."""
    ending = next((suffix for suffix in TARS if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(ending)]


def sidecar_of(tar: Location) -> Location:
    """Where the sidecar of a tar lies, if there is one."""
    return tar.with_name(tar_stem(tar.name) + ".parquet")


def find_sidecar(tar_path: str, tar_name: str) -> InputFile | None:
    """The sidecar of a tar, if there is one: the same name with ``.parquet``, with columns key and status, or unreadable."""
    path = sidecar_of(located(tar_path))
    if not path.is_file():
        return None
    stat = path.stat()
    name = PurePosixPath(tar_name).with_name(path.name).as_posix()
    file = InputFile(name, str(path), stat.st_size, stat.st_mtime_ns)
    try:
        with for_arrow(str(path)) as given:
            names = set(pq.read_schema(given).names)
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        return file
    return file if {"key", "status"} <= names else None


@dataclass(frozen=True, slots=True)
class SidecarReader:
    """What the sidecar knows of documents that the tar lacks.

    Attributes:
        source, tar: names of the source and of the tar, for locators.
        file: the sidecar.
    """

    source: str
    tar: str
    file: InputFile

    def lacking(self, in_tar: Set[str]) -> Iterator[Document | ContainerDamage]:
        """A failed document for each row that is not in the tar, in row order, or what is wrong with the sidecar.

        A row that reports a failure, though the tar has its key, is passed over: the tar's sample is that document.
        """
        seen: set[str] = set()
        row = 0
        try:
            with for_arrow(self.file.path) as given, pq.ParquetFile(given, buffer_size=1 << 20) as parquet:
                _check_names(parquet.schema_arrow)
                for batch in parquet.iter_batches(batch_size=1024, use_threads=False):
                    columns = zip(*(batch.column(c).cast(pa.string()).to_pylist() for c in ("key", "status")), strict=True)
                    for place, (key, status) in enumerate(columns):
                        if key not in in_tar:
                            repeated = key is None or key in seen
                            yield self._failed(batch.slice(place, 1), row + place, key, status, repeated)
                        if key is not None:
                            seen.add(key)
                    row += batch.num_rows
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            message = f"rows from {row} on cannot be read: {tidy_message(error, self.file.path, self.file.name)}"
            yield ContainerDamage(self.file.name, 0, self.file.size, "sidecar-unreadable", message)

    def _failed(self, row: pa.RecordBatch, number: int, key: str | None, status: str | None, repeated: bool) -> Document:
        locator = f"{self.file.name}:{number}" if repeated else f"{self.tar}#{printable(key or '')}"
        fields = next(rows_of(row))
        metadata = metadata_of(fields) if isinstance(fields, dict) else {}
        if status == _SUCCESS:
            reason, outcome = "missing-from-tar", Outcome.REJECTED
            message = "downloaded according to the sidecar, but not in the tar"
        else:
            reason, outcome = slug(status or "no-status"), Outcome.FAILED_UPSTREAM
            message = str(metadata.get("error_message") or "")
        return failed_document(
            self.source,
            locator,
            reason,
            message,
            outcome=outcome,
            id=printable(key) if key is not None else None,
            pair=True,
            metadata=metadata,
        )

    def count(self, in_tar: Set[str]) -> int | None:
        """How many documents :meth:`lacking` yields, counted by column; None where the sidecar cannot be read."""
        try:
            with for_arrow(self.file.path) as given, pq.ParquetFile(given) as parquet:
                _check_names(parquet.schema_arrow)
                keys = parquet.read(["key"], use_threads=False).column("key").cast(pa.string())
        except UNREADABLE as error:
            if not is_damage(error):
                raise
            return None
        known = pc.is_in(keys, value_set=pa.array(sorted(in_tar), pa.string()))
        return len(keys) - (pc.sum(known).as_py() or 0)


def _check_names(schema: pa.Schema) -> None:
    problem = names_problem(schema)
    if problem:
        raise pa.ArrowInvalid(problem)
