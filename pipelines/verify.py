"""``tokkit verify``: whether an output directory agrees with itself, in every respect that can be told from its files.

Checksums of every file; token files against their indexes and document tables; every id against the vocabulary, every span
against the ids in it, every document against the grammar of :mod:`tokkit.interleave`; every document there exactly once; the
outcomes of commit records, reject lists and manifest against one another and against the sources' own counts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tokkit.documents import Outcome
from tokkit.errors import DataError, MalformedSequence, TokkitError, VerificationError
from tokkit.interleave import ImageCodes, Layout, Part, TextCodes, decode
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.finish import add_counts, add_nested, folder_digest, shard_files
from tokkit.pipelines.ledger import CommitRecord, Ledger
from tokkit.pipelines.progress import Progress
from tokkit.shards.manifest import Manifest, load_manifest
from tokkit.shards.native import TokenShards
from tokkit.shards.spans import SpanTable
from tokkit.storage import fingerprint_of, is_attempt, read_json, sha256_file
from tokkit.vocabulary import MODALITIES, UnifiedVocabulary

DECODE_AT_MOST = 2000  # documents a split that are parsed token by token; all are checked span by span
BLOCK = 1 << 22  # tokens looked at in one go
SHOWN = 50  # problems kept


class VerifyConfig(BaseModel):
    """``directory`` is checked; ``checksums`` False leaves reading every byte out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    checksums: bool = True
    decode_at_most: int = Field(default=DECODE_AT_MOST, ge=0)


@dataclass
class VerifyResult:
    """What was looked at, by kind, and what was found wrong (at most 50 are kept; ``problem_count`` has them all)."""

    checked: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    @property
    def ok(self) -> bool:
        return self.problem_count == 0

    def look(self, what: str, count: int = 1) -> None:
        self.checked[what] = self.checked.get(what, 0) + count

    def problem(self, message: str) -> None:
        self.problem_count += 1
        if len(self.problems) < SHOWN:
            self.problems.append(message)


def verify(config: VerifyConfig, progress: Progress) -> VerifyResult:
    """Check a finished directory.

    Raises:
        DataError: it is not finished, or its manifest cannot be read: there is nothing to check against.
    """
    result = VerifyResult()
    manifest = load_manifest(config.directory)
    try:
        _fingerprints(config.directory, manifest, result)
    except TokkitError as error:
        result.problem(str(error))
    _files(config, manifest, result, progress)
    if result.ok:  # what follows reads the files that were just found to be whole
        try:
            vocabulary = UnifiedVocabulary.load(config.directory / "vocabulary.json")
            records = _records(config.directory, manifest)
            rows = Counter[tuple[str, int]]()
            seen: set[tuple[str, str]] = set()
            for split in manifest.splits:
                shards = TokenShards(config.directory, manifest, split)
                _documents(shards, vocabulary, result, progress)
                _parse(shards, vocabulary, manifest, config.decode_at_most, result, progress)
                _once(shards, rows, seen, result)
            _outcomes(config.directory, manifest, records, rows, result)
            _packs(config, result, progress)
        except TokkitError as error:
            result.problem(str(error))
    return result


def _fingerprints(directory: Path, manifest: Manifest, result: VerifyResult) -> None:
    config = read_json(directory / CONFIG)
    for kind in ("semantic", "numeric"):
        if config.get(f"{kind}_fingerprint") != getattr(manifest, f"{kind}_fingerprint"):
            result.problem(f"{CONFIG} and manifest.json have different {kind} fingerprints")
        for name, components in ((CONFIG, config.get(kind)), ("manifest.json", getattr(manifest, kind))):
            if fingerprint_of(components) != getattr(manifest, f"{kind}_fingerprint"):
                result.problem(f"{name}: its {kind} components are not those of the fingerprint")
    vocabulary = UnifiedVocabulary.load(directory / "vocabulary.json")
    if (vocabulary.fingerprint, vocabulary.size) != (manifest.vocabulary_fingerprint, manifest.vocabulary_size):
        result.problem("vocabulary.json is not the vocabulary that manifest.json names")
    result.look("fingerprints", 3)


def _files(config: VerifyConfig, manifest: Manifest, result: VerifyResult, progress: Progress) -> None:
    files = dict(shard_files(manifest.splits))
    with progress.task("checksums", total=sum(f.bytes for f in files.values()) / 1e6, unit="MB") as task:
        for name, file in files.items():
            path = config.directory / name
            if not path.is_file():
                result.problem(f"{name} is missing")
            elif path.stat().st_size != file.bytes:
                result.problem(f"{name} has {path.stat().st_size} bytes, the manifest says {file.bytes}")
            elif config.checksums and sha256_file(path) != file.sha256:
                result.problem(f"{name} is damaged: its SHA-256 is not the manifest's")
            result.look("shard files")
            task.advance(file.bytes / 1e6)
    for path in (config.directory / "tokens").rglob("*"):
        name = path.relative_to(config.directory).as_posix()
        if path.is_file() and name not in files:
            result.problem(f"{name} is not in the manifest")
    ledger = Ledger(config.directory)
    for folder, digest in ((ledger.commits, manifest.commits), (ledger.rejects, manifest.rejects)):
        if not folder.is_dir() or folder_digest(folder) != digest:
            result.problem(f"the files of {folder.name}/ are not those of the finished run")
        result.look("ledger folders")


def _records(directory: Path, manifest: Manifest) -> list[CommitRecord]:
    ledger = Ledger(directory)
    records = [ledger.read(index) for index in range(manifest.units)]
    missing = [str(i) for i, record in enumerate(records) if record is None]
    if missing:
        raise VerificationError(f"no commit record of unit {', '.join(missing[:10])}")
    return [record for record in records if record is not None]


# ---- tokens against spans and vocabulary


def _documents(shards: TokenShards, vocabulary: UnifiedVocabulary, result: VerifyResult, progress: Progress) -> None:
    """Check every document's ids against its spans, in blocks of documents."""
    spans, lengths = shards.spans, shards.lengths
    ends = np.cumsum(lengths)
    table_lengths = [t.column("tokens").to_numpy() for t in shards.tables(["tokens"])]
    if table_lengths and not np.array_equal(np.concatenate(table_lengths), lengths):
        result.problem(f"{shards.split}: the .idx and the .parquet disagree about token counts")
        return
    with progress.task(f"tokens of {shards.split}", total=shards.num_tokens, unit="tokens") as task:
        first = 0
        while first < len(lengths):
            start = int(ends[first - 1]) if first else 0
            last = min(max(int(np.searchsorted(ends, start + BLOCK)), first + 1), len(lengths))
            ids = np.concatenate([shards.tokens(d) for d in range(first, last)])
            for problem in _span_problems(ids, lengths[first:last], spans, first, vocabulary):
                result.problem(f"{shards.split}: {problem}")
            result.look("documents", last - first)
            result.look("tokens", len(ids))
            task.advance(len(ids))
            first = last


def _span_problems(
    ids: np.ndarray, lengths: np.ndarray, spans: SpanTable, first: int, vocabulary: UnifiedVocabulary
) -> Iterator[str]:
    """Whether documents ``first``... are: begin marker, spans end to end, end marker, with ids of each span's modality."""
    offsets = spans.offsets[first : first + len(lengths) + 1]
    rows = slice(int(offsets[0]), int(offsets[-1]))
    counts = np.diff(offsets)
    begins = np.cumsum(lengths) - lengths
    document = np.repeat(np.arange(len(lengths)), counts)
    start, length, modality = spans.start[rows], spans.length[rows], spans.modality[rows]
    # Spans tile the document between its markers: each begins where the one before ended.
    previous = np.concatenate([[1], start[:-1] + length[:-1]]) if len(start) else start
    is_first = np.concatenate([[True], document[1:] != document[:-1]]) if len(start) else np.zeros(0, bool)
    wrong = np.flatnonzero(start != np.where(is_first, 1, previous))
    covered = np.bincount(document, weights=length, minlength=len(lengths)).astype(np.int64) + 2
    for d in np.unique(np.concatenate([document[wrong], np.flatnonzero(covered != lengths)])):
        yield f"document {first + int(d)}: its spans do not cover its tokens end to end"
        return
    owner = vocabulary.owners(ids)
    # What each token must belong to: -10 - m stands for "a marker or size within a span of modality m".
    expected = np.full(len(ids), -1, dtype=np.int16)
    inside = np.repeat(begins[document] + start, length) + _ranges(length)
    expected[inside] = np.repeat(modality.astype(np.int16), length)
    kinds = np.full(len(vocabulary.blocks) + 3, -1, dtype=np.int16)  # by owner + 3
    for index, block in enumerate(vocabulary.blocks):
        kinds[index + 3] = MODALITIES.index(block.modality) if block.modality in MODALITIES else -1
    found = kinds[owner + 3]
    allowed = (found == expected) | ((found == -1) & (expected != MODALITIES.index("text")) & (owner >= -1))
    bad = np.flatnonzero(~allowed)
    if bad.size:
        d = int(np.searchsorted(begins, bad[0], side="right")) - 1
        what = vocabulary.describe(int(ids[bad[0]]))
        yield f"document {first + d}, token {int(bad[0] - begins[d])}: {what} where its spans have something else"
    for name, at in (("begin_document", begins), ("end_document", begins + lengths - 1)):
        off = np.flatnonzero(ids[at] != vocabulary.marker(name))
        if off.size:
            yield f"document {first + int(off[0])}: no {name} where it should be"


def _ranges(lengths: np.ndarray) -> np.ndarray:
    """0..n-1 for each n, one after another."""
    ends = np.cumsum(lengths)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)


def _parse(
    shards: TokenShards,
    vocabulary: UnifiedVocabulary,
    manifest: Manifest,
    at_most: int,
    result: VerifyResult,
    progress: Progress,
) -> None:
    """Parse documents (all, or evenly spread ones) with the grammar that decoding uses."""
    layout = Layout(manifest.layout.image, manifest.layout.image_grid)  # type: ignore[arg-type]
    count = shards.num_documents
    chosen = np.unique(np.linspace(0, max(count - 1, 0), min(count, at_most)).astype(np.int64))
    with progress.task(f"grammar of {shards.split}", total=len(chosen), unit="documents") as task:
        for number in chosen:
            try:
                parts = decode(shards.tokens(int(number)), vocabulary, layout)
            except MalformedSequence as error:
                result.problem(f"{shards.split}: document {number}: {error}")
            else:
                if _shapes_of(parts) != _shapes_in(shards.row(int(number))):
                    result.problem(f"{shards.split}: document {number}: its spans state other shapes than its tokens have")
            result.look("documents parsed")
            task.advance()


def _shapes_of(parts: Sequence[Part]) -> list[tuple[int, ...]]:
    """Codebooks, and of pictures the grid, of the media that tokens decode to."""
    return [p.codes.shape if isinstance(p, ImageCodes) else p.codes.shape[:1] for p in parts if not isinstance(p, TextCodes)]


def _shapes_in(row: dict[str, Any]) -> list[tuple[int, ...]]:
    """The same as a document's row states it."""
    media = [span for span in row["spans"] if span["modality"] != "text"]
    return [
        (s["codebooks"], s["grid_height"], s["grid_width"]) if s["modality"] == "image" else (s["codebooks"],) for s in media
    ]


# ---- every document once, and the sums


def _once(shards: TokenShards, rows: Counter[tuple[str, int]], seen: set[tuple[str, str]], result: VerifyResult) -> None:
    for table in shards.tables(["source", "locator", "unit", "split"]):
        names = table.to_pydict()
        rows.update((shards.split, unit) for unit in names["unit"])
        for split in set(names["split"]) - {shards.split}:
            result.problem(f"{shards.split}: a document of split {split!r}")
        for key in zip(names["source"], names["locator"], strict=True):
            if key in seen:
                result.problem(f"{key[0]}/{key[1]} is there more than once")
            seen.add(key)


def _outcomes(
    directory: Path,
    manifest: Manifest,
    records: list[CommitRecord],
    rows: Counter[tuple[str, int]],
    result: VerifyResult,
) -> None:
    for record in records:
        index = record.unit.index
        for split, counts in record.splits.items():
            if rows[split, index] != counts.documents:
                result.problem(f"unit {index}: {rows[split, index]} documents in {split}, its commit says {counts.documents}")
        if sum(c.documents for c in record.splits.values()) != record.documents.get(Outcome.COMMITTED, 0):
            result.problem(f"unit {index}: its splits do not add up to what it committed")
        found = sum(record.documents.values())
        if record.counted_documents not in (None, found) and not record.container_errors:
            result.problem(f"unit {index}: {record.counted_documents} documents counted, {found} with an outcome")
        if (lines := _reject_lines(directory, index)) != record.reasons:
            result.problem(f"unit {index}: its reject list has {sum(lines.values())} entries that are not its commit's")
        path = directory / "rejects" / f"{index:05d}.jsonl"
        if path.exists() and sha256_file(path) != record.payload["rejects"].sha256:
            result.problem(f"unit {index}: its reject list is not the one it committed")
        result.look("units")
    sums = {
        "documents": (add_counts(r.documents for r in records), manifest.documents),
        "media items": (add_nested(r.items for r in records), manifest.items),
        "sources' documents": (add_counts(s.documents for s in manifest.sources), manifest.documents),
    }
    for what, (added, stated) in sums.items():
        if added != stated:
            result.problem(f"{what}: the commit records add up to {added}, the manifest says {stated}")
    for source in manifest.sources:
        mine = [r for r in records if r.unit.source == source.name]
        added_up = (
            add_counts(r.documents for r in mine),
            add_nested(r.items for r in mine),
            add_counts(r.reasons for r in mine),
            add_counts(r.counted_items for r in mine),
            sum(r.container_errors for r in mine),
            len(mine),
        )
        if added_up != (
            source.documents,
            source.items,
            source.reasons,
            source.counted_items,
            source.container_errors,
            source.units,
        ):
            result.problem(f"source {source.name}: the commit records add up to other figures than the manifest's")
    if sum(r.container_errors for r in records) != manifest.container_errors:
        result.problem("container errors: the commit records add up to another number than the manifest's")
    for name, whole in manifest.splits.items():
        theirs = [r.splits[name] for r in records if name in r.splits]
        if (
            sum(s.documents for s in theirs),
            sum(s.tokens for s in theirs),
            add_counts(s.tokens_by_kind for s in theirs),
        ) != (whole.documents, whole.tokens, whole.tokens_by_kind):
            result.problem(f"split {name}: the commit records add up to other figures than the manifest's")
        if sum(whole.tokens_by_kind.values()) != whole.tokens or sum(s.tokens for s in whole.shards) != whole.tokens:
            result.problem(f"split {name}: tokens by kind or by shard do not add up to {whole.tokens}")


def _reject_lines(directory: Path, unit: int) -> dict[str, int]:
    path = directory / "rejects" / f"{unit:05d}.jsonl"
    counts: Counter[str] = Counter()
    if path.exists():
        for line in path.read_text(encoding="ascii").splitlines():
            try:
                entry = json.loads(line)
                middle = "" if entry["level"] == "container" else f"{entry['outcome']}/"
                counts[f"{entry['level']}/{middle}{entry['reason']}"] += 1
            except (ValueError, KeyError) as error:
                raise DataError(f"{path} is damaged: {error!r}") from None
    return dict(sorted(counts.items()))


def _packs(config: VerifyConfig, result: VerifyResult, progress: Progress) -> None:
    folder = config.directory / "packs"
    if not folder.is_dir():
        return
    from tokkit.packing.store import load_plan

    manifest = load_manifest(config.directory)
    for named in sorted(p for p in folder.iterdir() if p.is_dir()):
        for split in manifest.splits:
            if not (named / split).is_dir():
                result.problem(f"pack {named.name}: no plan of split {split}")
    for path in sorted(p for p in folder.glob("*/*") if p.is_dir() and not is_attempt(p)):
        shards = TokenShards(config.directory, manifest, path.name)
        plan = load_plan(path, shards=shards.fingerprint, checksums=config.checksums)
        name, counts = f"{path.parent.name}/{path.name}", plan.record.counts
        documents = np.asarray(plan.pieces.document)
        if documents.size and not 0 <= int(documents.min()) <= int(documents.max()) < shards.num_documents:
            result.problem(f"pack {name}: it names documents that are not there")
            continue
        used = np.zeros(shards.num_documents, dtype=np.int64)
        np.add.at(used, documents, plan.pieces.length)
        whole = np.flatnonzero(used == shards.lengths)
        if len(whole) != counts.packed_documents or counts.packed_documents + counts.left_out_documents != counts.documents:
            result.problem(f"pack {name}: not every document is packed whole or left out")
        result.look("packing plans")
