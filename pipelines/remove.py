"""The job behind ``tokkit remove``: documents taken out of a finished output, as a new version of it.

The output that is given stays as it is. The new one is what a run would have left that had filtered these documents: their
tokens, rows and spans are gone, each has a reject line (``filtered``, reason ``removed``) in its unit's list, and commit
records, manifest and packing plans say so and add up. Shards in which nothing is removed are the same files under a second
name (hard links; copies on another disk); the others are written again, each by itself, so that the next one's documents stay
where they are. The manifest names the version that it came from.

An interrupted removal is done again by the same command, to the same bytes. Token shards and feature caches differ in how their
documents are told of and written (:class:`Kind`), and in nothing else.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

import tokkit
from tokkit.errors import DataError, TokkitError, UsageError
from tokkit.failpoints import failpoint
from tokkit.features.manifest import CacheManifest, is_cache, load_cache_manifest
from tokkit.features.store import FOLDER as FEATURES
from tokkit.packing.store import load_plan
from tokkit.pipelines import remove_shards
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.finish import add_counts, add_nested, folder_digest, split_totals
from tokkit.pipelines.ledger import CommitRecord, sorted_counts
from tokkit.pipelines.plan import INPUTS
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.remove_list import TABLE_COLUMNS, Matcher, Removed, described, read_names
from tokkit.pipelines.remove_records import reject_lines, write_records
from tokkit.pipelines.remove_shards import Rewrite
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import Manifest, RemovalEntry, RunManifest, Shard, file_entry, load_manifest
from tokkit.storage import exclusive, fingerprint_of, is_attempt, pretty_json, read_json, record_json, write_atomic

if TYPE_CHECKING:
    from tokkit.pipelines.pack import SplitResult

CLAIM = "removal.json"  # in run/: which removal the directory is of
UNMATCHED = "unmatched.txt"  # in run/: the names that stood for nothing
COPIED = ("vocabulary.json", CONFIG, f"run/{INPUTS}", "run/ignored.jsonl")

Outputs = Manifest | CacheManifest
Rows = dict[str, list[npt.NDArray[np.int64]]]  # by split and shard, the rows that are removed


class RemoveConfig(BaseModel):
    """What ``tokkit remove`` is asked for.

    Attributes:
        directory: a finished output.
        out: of the new version.
        lists: of names (:func:`tokkit.pipelines.remove_list.read_names`).
        column: of lists that are tables.
        fields: of the documents' metadata, those whose values are names.
        originals: also remove what a named duplicate is one of.
        strict: write nothing where a name stands for nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    out: Path
    lists: tuple[Path, ...] = Field(min_length=1)
    column: str | None = None
    fields: tuple[str, ...] = ("url",)
    originals: bool = False
    strict: bool = False


@dataclass(frozen=True)
class RemoveResult:
    """What :func:`remove` did.

    Attributes:
        out: the new version.
        removal: what it says of itself.
        elsewhere: names that stood for documents which were not committed anyway, by outcome.
        kept_originals: of the names of duplicates, those whose originals are still there.
        unmatched: names that stood for nothing, in order.
        packs: packing plans made anew, by name and split.
    """

    out: Path
    removal: RemovalEntry
    elsewhere: dict[str, int]
    kept_originals: int
    unmatched: list[str]
    packs: dict[str, dict[str, SplitResult]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        packs = {name: {split: asdict(plan) for split, plan in plans.items()} for name, plans in self.packs.items()}
        removal = self.removal.model_dump(mode="json")
        told = {"elsewhere": self.elsewhere, "kept_originals": self.kept_originals, "unmatched": self.unmatched}
        return {"out": str(self.out), "removal": removal, **told, "packs": packs}


@dataclass(frozen=True)
class Kind:
    """What differs between the products.

    Attributes:
        folder: of the shards.
        tables: a shard's documents with :data:`~tokkit.pipelines.remove_list.TABLE_COLUMNS`, table by table.
        rewrite: a shard without some documents (:func:`~tokkit.pipelines.remove_shards.write_split`).
    """

    folder: str
    tables: Callable[[Path, str, Shard], Iterator[pa.Table]]
    rewrite: Rewrite


def _kind(manifest: Outputs) -> Kind:
    if isinstance(manifest, Manifest):
        token_tables = partial(remove_shards.tables, columns=list(TABLE_COLUMNS))
        return Kind(remove_shards.FOLDER, token_tables, partial(remove_shards.rewrite_tokens, np.dtype(manifest.dtype)))
    from tokkit.pipelines import remove_features

    return Kind(FEATURES, remove_features.tables, remove_features.rewrite_features)


@dataclass
class _Found:
    """What the names stand for."""

    rows: Rows
    removed: list[Removed]
    elsewhere: Counter[str]
    kept_originals: int
    unmatched: list[str]


def remove(config: RemoveConfig, progress: Progress) -> RemoveResult:
    """Write a version of a finished output that lacks the named documents.

    Raises:
        DataError: the output is not finished or damaged, a list cannot be read, no name stands for a committed document, or,
            with ``strict``, one stands for none.
        UsageError: ``out`` holds something else, or another process is writing it.
        VerificationError: a file that has to be written anew is not what the manifest says.
    """
    before = load_cache_manifest(config.directory) if is_cache(config.directory) else load_manifest(config.directory)
    if config.out.resolve() == config.directory.resolve():
        raise UsageError(f"--out is {config.directory} itself; the new version needs a directory of its own")
    names = read_names(config.lists, config.column)
    found = _find(config, before, names, progress)
    removal = RemovalEntry(
        of=before.digest,
        names=len(names),
        names_digest=fingerprint_of([sorted(names), sorted(config.fields), config.originals]),
        documents=len(found.removed),
        tokens=sum(document.tokens for document in found.removed),
        items=sorted_counts(Counter(modality for document in found.removed for modality, _ in document.items)),
    )
    with _claimed(config, removal) as finished:
        if finished:
            progress.log(f"{config.out} is complete already")
        else:
            _write(config, before, found, removal, progress)
        packs = _pack(config, progress)
        _report(config, progress)
        write_atomic(config.out / "run" / UNMATCHED, "".join(f"{name}\n" for name in found.unmatched))
    return RemoveResult(config.out, removal, sorted_counts(found.elsewhere), found.kept_originals, found.unmatched, packs)


# ---- what the names stand for


def _find(config: RemoveConfig, manifest: Outputs, names: set[str], progress: Progress) -> _Found:
    duplicates, elsewhere = _not_committed(config.directory, manifest, names)
    more = {name for originals in duplicates.values() for name in originals} if config.originals else set()
    matcher = Matcher(names | more, config.fields)
    read = _kind(manifest).tables
    rows: Rows = {}
    removed: list[Removed] = []
    total = sum(split.documents for split in manifest.splits.values())
    with progress.task("find", total=total, unit="documents") as task:
        for split, entry in manifest.splits.items():
            rows[split] = []
            for shard in entry.shards:
                mine = []
                at = 0
                for table in read(config.directory, split, shard):
                    hit = matcher.rows(table)
                    removed += described(table, hit, split)
                    mine.append(hit + at)
                    at += table.num_rows
                    task.advance(table.num_rows)
                rows[split].append(np.concatenate([np.zeros(0, dtype=np.int64), *mine]))
    unmatched = sorted(names - matcher.found - elsewhere.keys())
    if config.strict and unmatched:
        raise DataError(f"--strict: {_some(unmatched)} stand for no document of {config.directory}")
    if not removed:
        told = f", {len(elsewhere):,} of documents that were not committed" if elsewhere else ""
        raise DataError(f"none of {len(names):,} names is that of a document in {config.directory}{told}: nothing to remove")
    gone = {f"{document.source}/{document.locator}" for document in removed}
    kept = sum(not originals <= gone for originals in duplicates.values())
    return _Found(rows, removed, Counter(elsewhere[n] for n in elsewhere.keys() - matcher.found), kept, unmatched)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:5]))
    return f"{shown} and {len(names) - 5:,} more" if len(names) > 5 else shown


def _not_committed(directory: Path, manifest: RunManifest, names: set[str]) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Of names of documents that were not committed: what the duplicates are duplicates of, and the outcome of each."""
    duplicates: dict[str, set[str]] = defaultdict(set)
    elsewhere: dict[str, str] = {}
    for unit in range(manifest.units):
        path = directory / "rejects" / f"{unit:05d}.jsonl"
        for entry in reject_lines(path):
            if entry.get("level") != "document":
                continue
            source, locator = entry["source"], entry["locator"]
            for name in {entry.get("id"), locator, f"{source}/{locator}"} & names:
                elsewhere.setdefault(name, entry["outcome"])
                if entry.get("of") is not None:
                    duplicates[name].add(f"{entry['of']['source']}/{entry['of']['locator']}")
    return duplicates, elsewhere


# ---- the directory


@contextmanager
def _claimed(config: RemoveConfig, removal: RemovalEntry) -> Iterator[bool]:
    """Hold ``out`` for this removal, alone; True where it is done already."""
    out, claim = config.out, config.out / "run" / CLAIM
    entry = {"format": "tokkit-removal", **removal.model_dump(mode="json")}
    if not claim.exists() and out.exists() and (not out.is_dir() or any(path.name != "run" for path in out.iterdir())):
        raise UsageError(f"{out} is not empty and holds no removal that was begun; name another --out")
    claim.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(claim.with_name("removal.lock")))
        except BlockingIOError:
            raise UsageError(f"another process is writing {out}; wait for it to end") from None
        if claim.exists() and read_json(claim) != entry:
            raise UsageError(f"{out} is another removal (see {claim}); name another --out")
        write_atomic(claim, pretty_json(entry))
        yield (out / MANIFEST).exists()


def _write(config: RemoveConfig, before: Outputs, found: _Found, removal: RemovalEntry, progress: Progress) -> None:
    """Everything but packing plans and report."""
    directory, out = config.directory, config.out
    for name in COPIED:
        if (directory / name).exists():
            write_atomic(out / name, (directory / name).read_bytes())
    job = directory / "run" / "job.json"
    if job.exists():
        write_atomic(out / "run" / job.name, pretty_json({**read_json(job), "out": str(out.resolve())}))
    records = write_records(directory, out, before, found.removed)
    tokens = sum(split.tokens for split in before.splits.values())
    splits, kind = {}, _kind(before)
    with progress.task("remove", total=tokens, unit="tokens") as task:
        for name, split in before.splits.items():
            source, target = (base / kind.folder / name for base in (directory, out))
            shards = remove_shards.write_split(source, target, split, found.rows[name], kind.rewrite, task)
            splits[name] = split_totals(name, records, shards)
    by_source: dict[str, list[CommitRecord]] = defaultdict(list)
    for record in records:
        by_source[record.unit.source].append(record)
    sources = [
        source.model_copy(
            update={
                "documents": add_counts(r.documents for r in by_source[source.name]),
                "items": add_nested(r.items for r in by_source[source.name]),
                "reasons": add_counts(r.reasons for r in by_source[source.name]),
                "kept_markers": sum(r.kept_markers for r in by_source[source.name]),
            }
        )
        for source in before.sources
    ]
    manifest = before.model_copy(
        update={
            "tokkit": tokkit.__version__,
            "sources": sources,
            "documents": add_counts(s.documents for s in sources),
            "items": add_nested(s.items for s in sources),
            "splits": splits,
            "commits": folder_digest(out / "commits"),
            "rejects": folder_digest(out / "rejects"),
            "files": {name: file_entry(out / name) for name in before.files},
            "removals": [*before.removals, removal],
        }
    )
    if isinstance(manifest, CacheManifest):
        from tokkit.pipelines.features_shards import feature_totals

        totals = {name: feature_totals(out, name, split) for name, split in splits.items()}
        manifest = manifest.model_copy(update={"features": totals})
    failpoint("before-manifest")
    write_atomic(out / MANIFEST, record_json(manifest.model_dump(mode="json")))


# ---- what is made from shards


def _pack(config: RemoveConfig, progress: Progress) -> dict[str, dict[str, SplitResult]]:
    """The packing plans of the old version, made for the new one."""
    from tokkit.packing.policy import TooLong
    from tokkit.pipelines.pack import PackConfig, pack

    made = {}
    for folder in sorted(path for path in (config.directory / "packs").glob("*") if not is_attempt(path)):
        stored = next((path for path in sorted(folder.iterdir()) if path.is_dir() and not is_attempt(path)), None)
        if stored is None:
            continue
        record = load_plan(stored).record
        plan = PackConfig(
            directory=config.out,
            seq_len=record.seq_len,
            name=folder.name,
            split_policy=record.policy,
            max_documents=record.max_documents,
            align=record.align,
            mixing=record.mixing,
            too_long=TooLong.LEAVE_OUT,  # what it left out was agreed to when it was made
            materialize=(stored / "rows").is_dir(),
        )
        made[folder.name] = pack(plan, progress).splits
    return made


def _report(config: RemoveConfig, progress: Progress) -> None:
    """A report of the new version, where the old one has one; without decoded documents where its tokenizers are gone."""
    from tokkit.pipelines.report import ReportConfig, write_report

    if not (config.directory / "report.html").exists():
        return
    if is_cache(config.out):
        from tokkit.pipelines.features_report import write_features_report

        write_features_report(config.out)
        return
    job = config.out / "run" / "job.json"
    shown = int(read_json(job).get("report_documents", 0)) if job.exists() else 0
    try:
        write_report(ReportConfig(directory=config.out, documents=shown), progress)
    except TokkitError as error:
        progress.log(f"report.html shows no decoded documents: {error}")
        write_report(ReportConfig(directory=config.out, documents=0), progress)
