"""Formats of samples one by one: mosaicml-streaming's MDS, and WebDataset."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokkit.shards.exports.part import Part
from tokkit.storage import fsync, replacing, sha256_file

SHARD_BYTES = 64 << 20  # of an MDS shard, about
RANGE = 256  # sequences whose fields are asked for at once

Sample = dict[str, str | npt.NDArray[np.generic]]


def _samples(part: Part) -> Iterator[tuple[int, Sample]]:
    """Number and fields of each sequence of a part."""
    tokens, ends = part.tokens, part.ends
    names = part.table() if part.table is not None else None
    loss = part.loss() if part.fields is None else None
    for first in range(0, len(part.lengths), RANGE):
        last = min(first + RANGE, len(part.lengths))
        begin = int(ends[first - 1]) if first else 0
        fields = part.fields(first, last) if part.fields is not None else {}
        for number in range(first, last):
            stop = int(ends[number])
            start = stop - int(part.lengths[number])
            sample: Sample = {}
            if names is not None:
                sample |= {key: names.column(key)[number].as_py() for key in names.column_names}
            sample["input_ids"] = tokens[start:stop].astype(np.int32)
            sample |= {key: values[start - begin : stop - begin] for key, values in fields.items()}
            if loss is not None:
                sample["learnt"] = loss[start:stop].astype(np.uint8)
            yield number, sample


# ---- MDS


@dataclass
class _Shard:
    """Samples of one MDS file that is not yet written."""

    samples: list[bytes]
    bytes: int = 0


def write_mds(parts: Iterator[Part], folder: Path) -> Iterator[tuple[Part | None, list[Path]]]:
    """``shard.NNNNN.mds`` of about 64 MiB and ``index.json``; ``input_ids`` and the packed row's fields are ndarrays of one
    dimension (of fixed size where all sequences are equally long), names are strings."""
    shards: list[dict[str, object]] = []
    waiting = _Shard([])
    columns: dict[str, str] = {}
    for part in parts:
        written: list[Path] = []
        fixed = int(part.lengths[0]) if part.table is None and len(part.lengths) else None
        for _, sample in _samples(part):
            columns = columns or {name: _encoding(sample[name], fixed) for name in sorted(sample)}
            data = _mds_sample(sample, columns)
            if waiting.samples and waiting.bytes + len(data) > SHARD_BYTES:
                written.append(_write_shard(waiting, columns, folder, shards))
                waiting = _Shard([])
            waiting.samples.append(data)
            waiting.bytes += len(data)
        yield part, written
    last = [_write_shard(waiting, columns, folder, shards)] if waiting.samples else []
    index = folder / "index.json"
    with replacing(index) as temporary:
        temporary.write_text(json.dumps({"version": 2, "shards": shards}, sort_keys=True), encoding="ascii")
    yield None, [*last, index]


def _encoding(value: str | npt.NDArray[np.generic], fixed: int | None) -> str:
    if isinstance(value, str):
        return "str"
    return f"ndarray:{value.dtype.name}" + (f":{fixed}" if fixed is not None else "")


def _mds_sample(sample: Sample, columns: dict[str, str]) -> bytes:
    """Sizes of the columns that vary, then all values, in the order of the names."""
    sizes, values = [], []
    for name, encoding in columns.items():
        value = sample[name]
        if isinstance(value, str):
            data = value.encode("utf-8", "backslashreplace")
        elif encoding.count(":") == 2:
            data = value.astype(value.dtype.newbyteorder("<")).tobytes()
        else:
            # One dimension, and how many bytes its length takes; a column of arrays may have any.
            width = next(w for w in (1, 2, 4, 8) if len(value) < 1 << (8 * w))
            head = bytes([1 << 2 | (width.bit_length() - 1)]) + len(value).to_bytes(width, "little")
            data = head + value.astype(value.dtype.newbyteorder("<")).tobytes()
        if _size_of(encoding) is None:
            sizes.append(len(data))
        values.append(data)
    return np.array(sizes, "<u4").tobytes() + b"".join(values)


def _size_of(encoding: str) -> int | None:
    """Bytes of a column's value; None where they vary."""
    _, _, rest = encoding.partition(":")
    dtype, _, length = rest.partition(":")
    return np.dtype(dtype).itemsize * int(length) if length else None


def _write_shard(shard: _Shard, columns: dict[str, str], folder: Path, shards: list[dict[str, object]]) -> Path:
    name = f"shard.{len(shards):05d}.mds"
    described: dict[str, object] = {
        "column_encodings": list(columns.values()),
        "column_names": list(columns),
        "column_sizes": [_size_of(encoding) for encoding in columns.values()],
        "compression": None,
        "format": "mds",
        "hashes": ["sha256"],
        "size_limit": SHARD_BYTES,
        "version": 2,
    }
    config = json.dumps(described, sort_keys=True).encode("ascii")
    count = len(shard.samples)
    begin = 4 + 4 * (count + 1) + len(config)
    offsets = begin + np.cumsum([0, *map(len, shard.samples)])
    path = folder / name
    with replacing(path) as temporary, temporary.open("xb") as file:
        file.write(np.array([count], "<u4").tobytes() + offsets.astype("<u4").tobytes() + config)
        for sample in shard.samples:
            file.write(sample)
    raw = {"basename": name, "bytes": path.stat().st_size, "hashes": {"sha256": sha256_file(path)}}
    shards.append({**described, "raw_data": raw, "samples": count, "zip_data": None})
    return path


# ---- WebDataset


def write_webdataset(part: Part, folder: Path) -> list[Path]:
    """``.tar`` of samples: ``KEY.input_ids.npy``, a packed row's fields alike, and ``KEY.json`` with a document's names."""
    path = folder / f"{part.name}.tar"
    with replacing(path) as temporary, tarfile.open(temporary, "x:", format=tarfile.USTAR_FORMAT) as tar:
        for number, sample in _samples(part):
            key = f"{part.name}{number:09d}"
            names = {name: value for name, value in sample.items() if isinstance(value, str)}
            if names:
                _add(tar, f"{key}.json", json.dumps(names).encode("ascii"))
            for name, value in sample.items():
                if not isinstance(value, str):
                    buffer = io.BytesIO()
                    np.save(buffer, value, allow_pickle=False)
                    _add(tar, f"{key}.{name}.npy", buffer.getvalue())
    fsync(path)
    return [path]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no time, no owner: the same bytes each time
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
