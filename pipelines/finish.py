"""The end of a run: account for every document, coalesce the units' payloads into shards, write the manifest.

Everything here is a function of the commit records and payloads, and every file is replaced atomically, so an end that is cut
short is simply done again. The manifest is written last; only then are the payloads removed.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.errors import VerificationError
from tokkit.failpoints import failpoint
from tokkit.pipelines.again import payload_paths
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.output import Output
from tokkit.pipelines.plan import Plan
from tokkit.pipelines.progress import Progress, Task
from tokkit.shards.manifest import Counts, Shard, ShardFile, SourceTotals, Split
from tokkit.shards.native import ShardWriter, map_tokens
from tokkit.storage import is_attempt, remove_attempts, replacing, sha256_file
from tokkit.vocabulary import Ids

SPLITS = ("train", "val")


def account(plan: Plan, records: Sequence[CommitRecord]) -> list[SourceTotals]:
    """Add up what became of every document and item, source by source, and check it against the sources' own counts.

    Raises:
        VerificationError: a unit's outcomes do not add up to what its source counted; nothing is written then.
    """
    problems = [p for record in records for p in _imbalance(record)]
    if problems:
        listed = "\n".join(f"  - {p}" for p in problems[:20])
        raise VerificationError(
            f"documents or media items are unaccounted for; this is a fault in tokkit or in a source:\n{listed}"
        )
    totals = []
    for name, source in plan.sources.items():
        mine = [r for r in records if r.unit.source == name]
        counted = [r.counted_documents for r in mine]
        totals.append(
            SourceTotals(
                name=name,
                format=source.format,
                files=len(source.files),
                bytes=sum(f.size for f in source.files)
                or sum(p.unit.bytes for p in plan.units if p.unit.source == source.name),
                units=len(mine),
                documents=add_counts(r.documents for r in mine),
                items=add_nested(r.items for r in mine),
                reasons=add_counts(r.reasons for r in mine),
                container_errors=sum(r.container_errors for r in mine),
                counted_documents=None if None in counted else sum(c for c in counted if c is not None),
                counted_items=add_counts(r.counted_items for r in mine),
                counted_others=add_counts(r.counted_others for r in mine),
                images_from=add_counts(r.images_from for r in mine),
                kept_markers=sum(r.kept_markers for r in mine),
            )
        )
    return totals


def _imbalance(record: CommitRecord) -> Iterator[str]:
    if record.container_errors:
        return  # what lies in the damage cannot be told apart by document; its byte range is recorded
    where = f"{record.unit.source}/{record.unit.file} [{record.unit.start}:{record.unit.stop}]"
    found = sum(record.documents.values())
    if record.counted_documents is not None and record.counted_documents != found:
        yield f"{where}: {record.counted_documents} documents counted, {found} with an outcome"
    for modality, counted in record.counted_items.items():
        items = sum(record.items.get(modality, {}).values())
        if items != counted and record.counted_documents is not None:
            yield f"{where}: {counted} {modality} items counted, {items} with an outcome"


def add_counts(counts: Iterable[Counts]) -> Counts:
    """The sum of several counts, keys sorted."""
    total: Counter[str] = Counter()
    for entry in counts:
        total.update(entry)
    return {key: total[key] for key in sorted(total)}


def add_nested(counts: Iterable[dict[str, Counts]]) -> dict[str, Counts]:
    """The sum of several counts by kind."""
    entries = list(counts)
    kinds = sorted({kind for entry in entries for kind in entry})
    return {kind: add_counts(entry[kind] for entry in entries if kind in entry) for kind in kinds}


def coalesce(
    output: Output, ledger: Ledger, records: Sequence[CommitRecord], dtype: np.dtype, shard_tokens: int, progress: Progress
) -> dict[str, Split]:
    """Write ``tokens/SPLIT/NNNNN.*`` from the units' payloads, in unit order, about ``shard_tokens`` tokens a shard.

    A shard goes into the output as it is closed, so what is on this machine's disk of an output in a store is one.

    Raises:
        VerificationError: a payload is not what its commit record says.
    """
    total = sum(s.tokens for r in records for s in r.splits.values())
    splits: dict[str, Split] = {}
    with progress.task("coalesce", total=total, unit="tokens") as task:
        for split in SPLITS:
            mine = [r for r in records if split in r.splits]
            if not mine:
                continue
            directory = output.folder / "tokens" / split
            directory.mkdir(parents=True, exist_ok=True)
            remove_attempts(directory)
            shards = _write_shards(directory, _blocks(ledger, mine, split, dtype), dtype, shard_tokens, task, output)
            remove_others(directory, {f.name for shard in shards for f in shard.files.values()})
            splits[split] = split_totals(split, mine, shards)
    return splits


def split_totals(split: str, records: Iterable[CommitRecord], shards: list[Shard]) -> Split:
    """What records add up to for a split, and the shards that hold it."""
    counts = [record.splits[split] for record in records if split in record.splits]
    return Split(
        documents=sum(c.documents for c in counts),
        tokens=sum(c.tokens for c in counts),
        tokens_by_kind=add_counts(c.tokens_by_kind for c in counts),
        shards=shards,
    )


@dataclass(frozen=True, eq=False)
class _Block:
    """Documents that stand together in a payload: their tokens and their rows."""

    tokens: Ids
    table: pa.Table


def _blocks(ledger: Ledger, records: Sequence[CommitRecord], split: str, dtype: np.dtype) -> Iterator[_Block]:
    """The documents of a split in output order, in runs that are contiguous in their payload."""
    for record in records:
        bin_path, parquet_path = payload_paths(ledger, record)
        if split == SPLITS[0]:  # once a payload
            for suffix in ("bin", "parquet"):
                check_payload(ledger, record, suffix)
        table = pq.read_table(parquet_path)
        if not table.num_rows:
            continue
        tokens = map_tokens(bin_path, dtype)
        ends = np.cumsum(table.column("tokens").to_numpy())
        wanted = pc.equal(table.column("split"), split).to_numpy().astype(np.int8)
        edges = np.flatnonzero(np.diff(wanted, prepend=0, append=0))
        for first, last in zip(edges[::2], edges[1::2], strict=True):
            begin = int(ends[first - 1]) if first else 0
            yield _Block(tokens[begin : int(ends[last - 1])], table.slice(first, last - first))


def check_payload(ledger: Ledger, record: CommitRecord, suffix: str) -> None:
    """A payload's file is still what was committed.

    Raises:
        VerificationError: with what to do.
    """
    file = record.payload[suffix]
    path = ledger.payload(file)
    if sha256_file(path) != file.sha256:
        raise VerificationError(
            f"{path} has changed since it was committed (a failing disk?); remove "
            f"commits/{record.unit.index:05d}.json and run the same command again to redo that unit"
        )


def _write_shards(
    directory: Path, blocks: Iterator[_Block], dtype: np.dtype, shard_tokens: int, task: Task, output: Output
) -> list[Shard]:
    """Fill shards one after another; a shard is closed by the document that brings it to ``shard_tokens``."""
    shards: list[Shard] = []
    writer: ShardWriter | None = None

    def close(current: ShardWriter) -> None:
        failpoint("in-coalesce")
        files = current.finish(f"{len(shards):05d}")
        output.give(*(directory / file.name for file in files.values()))
        shards.append(Shard(documents=current.documents, tokens=current.tokens, files=files))

    try:
        for block in blocks:
            ends = np.cumsum(block.table.column("tokens").to_numpy())
            row = position = 0
            while row < block.table.num_rows:
                writer = writer or ShardWriter(directory, dtype)
                room = shard_tokens - writer.tokens
                last = min(int(np.searchsorted(ends, position + room)) + 1, block.table.num_rows)
                end = int(ends[last - 1])
                writer.extend(block.tokens[position:end], block.table.slice(row, last - row))
                task.advance(end - position)
                row, position = last, end
                if writer.tokens >= shard_tokens:
                    close(writer)
                    writer = None
        if writer is not None:
            close(writer)
            writer = None
    finally:
        if writer is not None:
            writer.__exit__(None, None, None)
    return shards


def remove_others(directory: Path, keep: set[str]) -> None:
    """Remove what an end that was cut short left behind."""
    for path in directory.iterdir():
        if path.name not in keep:
            path.unlink()


def publish_rejects(ledger: Ledger, records: Sequence[CommitRecord]) -> None:
    """Give each unit that has reject lines its ``rejects/NNNNN.jsonl``."""
    keep = set()
    for record in records:
        file = record.payload["rejects"]
        if file.bytes:
            target = ledger.rejects / f"{record.unit.index:05d}.jsonl"
            keep.add(target.name)
            check_payload(ledger, record, "rejects")
            failpoint("in-rejects")
            with (
                replacing(target) as temporary,
                ledger.payload(file).open("rb") as source,
                temporary.open("xb") as copy,
            ):
                shutil.copyfileobj(source, copy)
    remove_others(ledger.rejects, keep)


def folder_digest(directory: Path) -> str:
    """SHA-256 over the names and contents of a folder's files, in name order."""
    digest = hashlib.sha256()
    for path in sorted(p for p in directory.iterdir() if not is_attempt(p)):
        digest.update(f"{path.name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def extrapolate(records: Sequence[CommitRecord]) -> dict[str, object]:
    """What the whole input would come to, from a trial's records.

    Each unit that was read is scaled by the share of it that was read. A unit of which nothing was read counts, byte for byte,
    as the read units of its source do, or, where there are none, as those of all sources.
    """
    by_source: dict[str, list[CommitRecord]] = {}
    for record in records:
        by_source.setdefault(record.unit.source, []).append(record)
    read = {name: _scaled(r for r in mine if r.consumed > 0) for name, mine in by_source.items()}
    everything = np.sum(list(read.values()), axis=0)
    whole = np.zeros(4)
    for name, mine in by_source.items():
        basis = read[name] if read[name][0] else everything
        whole += basis * sum(r.unit.bytes for r in mine) / max(basis[0], 1)
    return {
        "documents_read": sum(sum(r.documents.values()) for r in records),
        "input_bytes_read": round(sum(r.unit.bytes * r.consumed for r in records)),
        "input_bytes": sum(r.unit.bytes for r in records),
        "estimated_documents": round(whole[1]),
        "estimated_tokens": round(whole[2]),
        "estimated_output_bytes": round(whole[3]),
    }


def _scaled(records: Iterable[CommitRecord]) -> npt.NDArray[np.float64]:
    """Of units that were read in part: bytes, documents, tokens and output bytes that they would have as a whole."""
    total = np.zeros(4)
    for r in records:
        documents, tokens = sum(r.documents.values()), sum(s.tokens for s in r.splits.values())
        output = sum(f.bytes for f in r.payload.values())
        total += [r.unit.bytes, documents / r.consumed, tokens / r.consumed, output / r.consumed]
    return total


def shard_files(splits: dict[str, Split], folder: str = "tokens") -> Iterator[tuple[str, ShardFile]]:
    """Every shard file with its path relative to the output directory."""
    for name, split in splits.items():
        for shard in split.shards:
            for file in shard.files.values():
                yield f"{folder}/{name}/{file.name}", file
