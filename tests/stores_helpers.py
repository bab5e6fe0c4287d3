"""Picture stores made for tests: what img2dataset writes, as tars, parquet or files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from sources_helpers import tar_bytes

from tokkit.sources.stores.kinds import resolve_stores
from tokkit.sources.stores.lookup import PictureStores

FAILED = "HTTP Error 404: Not Found"


def downloaded(
    folder: Path, pictures: Mapping[str, bytes | None], form: str = "tar", per_file: int = 3, *, table: bool = True
) -> Path:
    """What img2dataset leaves behind: pictures by URL, None where the download failed.

    Args:
        form: ``tar`` (its webdataset), ``parquet`` or ``files``.
        table: tars have their .parquet beside them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = list(pictures.items())
    for shard, first in enumerate(range(0, len(entries), per_file)):
        rows, members = [], []
        for number, (url, data) in enumerate(entries[first : first + per_file]):
            key = f"{shard:05d}{number:04d}"
            row = {
                "url": url,
                "caption": "c",
                "key": key,
                "status": "success" if data is not None else "failed_to_download",
                "error_message": None if data is not None else FAILED,
            }
            rows.append(row)
            if data is not None:
                members += [(f"{key}.jpg", data), (f"{key}.txt", b"c"), (f"{key}.json", json.dumps(row).encode())]
        name = folder / f"{shard:05d}"
        if form == "parquet":
            data = [d for _, d in entries[first : first + per_file]]
            columns = pa.Table.from_pylist(rows).append_column("jpg", pa.array(data, pa.binary()))
            pq.write_table(columns, name.with_suffix(".parquet"), row_group_size=2)
            continue
        if table or form == "files":
            pq.write_table(pa.Table.from_pylist(rows), name.with_suffix(".parquet"))
        if form == "tar":
            name.with_suffix(".tar").write_bytes(tar_bytes(members))
        else:
            name.mkdir()
            for member, data in members:
                (name / member).write_bytes(data)
    return folder


def opened(index: Path, *typed: object) -> PictureStores:
    """The stores, indexed."""
    stores = PictureStores(resolve_stores([str(one) for one in typed]), index)
    stores.build()
    return stores
