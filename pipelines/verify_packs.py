"""Verification of packing plans: records, files, and whether a plan holds every document of its split once, or says why not.

Pieces are read in blocks. Whether the pieces of each document lie end to end from its first token to its last is asked for
``DOCUMENTS`` documents at a time, all pieces being gone through for each: to every position p belongs a pseudo-random number
f(p), a piece from a to b adds f(a) - f(b), and pieces that lie end to end, in whatever order, add up to f(0) - f(length).
Anything else adds up to that with a probability of about 2**-64.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tokkit.errors import FingerprintMismatch, TokkitError
from tokkit.packing.account import account
from tokkit.packing.cuts import first_wrong_cut
from tokkit.packing.gather import TokenFiles, gather_rows
from tokkit.packing.rows import FOLDER as ROWS
from tokkit.packing.rows import cu_seqlens, load_rows
from tokkit.packing.split import aligned
from tokkit.packing.store import RECORD, StoredPlan, load_plan
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.pipelines.progress import Progress
from tokkit.shards.native import TokenShards
from tokkit.storage import digest_of, is_attempt, pretty_json, read_json

DOCUMENTS = 1 << 20  # documents asked about at a time
PIECES = 1 << 20  # pieces read at a time
ROW_BYTES = 32 << 20


def check_packs(
    directory: Path, shards: dict[str, TokenShards], checksums: bool, result: VerifyResult, progress: Progress
) -> None:
    """Check all plans of an output."""
    folder = directory / "packs"
    plans = []
    for named in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not named.is_dir():
            result.problem(Code.EXTRA_FILE, f"packs/{named.name}", "is no packing plan")
            continue
        for split in shards:
            if not (named / split).is_dir():
                result.problem(Code.PACK, f"packs/{named.name}", f"has no plan of split {split}")
        for path in sorted(p for p in named.iterdir() if not is_attempt(p)):
            if path.name in shards and path.is_dir():
                plans.append(path)
            else:
                result.problem(Code.EXTRA_FILE, f"packs/{named.name}/{path.name}", "is no plan of a split")
    with progress.task("packing plans", total=len(plans), unit="plans") as task:
        for path in plans:
            name = f"packs/{path.parent.name}/{path.name}"
            try:
                _plan(path, shards[path.name], checksums, name, result)
            except (TokkitError, OSError, ValueError) as error:
                message = str(error).replace(f"{directory}/", "").removeprefix(f"{name}/").removeprefix(f"{name} ")
                result.problem(Code.PACK, name, message)
            result.look("packing plans")
            task.advance()


def _plan(folder: Path, shards: TokenShards, checksums: bool, name: str, result: VerifyResult) -> None:
    _record(folder / RECORD, name, result)
    plan = load_plan(folder, shards=shards.fingerprint, checksums=checksums)
    record = plan.record
    if (record.name, record.split) != (folder.parent.name, folder.name):
        raise FingerprintMismatch(f"{RECORD} is of the plan {record.name}/{record.split}")
    known = {RECORD, ROWS, *record.files}
    for path in sorted(folder.iterdir()):
        if path.name not in known and not is_attempt(path):
            result.problem(Code.EXTRA_FILE, f"{name}/{path.name}", f"{RECORD} does not name it")
    for problem in _contents(plan, shards):
        result.problem(Code.PACK, name, problem)
        return
    _rows(plan, shards, checksums, f"{name}/{ROWS}", result)


def _rows(plan: StoredPlan, shards: TokenShards, checksums: bool, name: str, result: VerifyResult) -> None:
    """Whether materialised rows, where there are any, are what the plan makes of the shards."""
    rows = load_rows(plan, checksums=checksums)
    if rows is None:
        return
    _record(plan.folder / ROWS / "rows.json", name, result)
    for path in sorted((plan.folder / ROWS).iterdir()):
        if path.name not in {"rows.json", *rows.record.files}:
            result.problem(Code.EXTRA_FILE, f"{name}/{path.name}", "rows.json does not name it")
    if rows.record.dtype != shards.dtype.name:
        result.problem(Code.PACK, name, f"has {rows.record.dtype} tokens, the shards {shards.dtype}")
        return
    files, seq_len = TokenFiles.of(shards), plan.record.seq_len
    block = np.empty((max(1, ROW_BYTES // (seq_len * shards.dtype.itemsize)), seq_len), dtype=shards.dtype)
    for first in range(0, plan.num_packs, len(block)):
        out = block[: plan.num_packs - first]
        gather_rows(files, plan, first, out, rows.record.pad_id)
        if not np.array_equal(out, rows.tokens[first : first + len(out)]):
            result.problem(Code.PACK, name, "holds other tokens than the plan's documents have")
            break
    if not np.array_equal(cu_seqlens(plan), rows.cu_seqlens):
        result.problem(Code.PACK, name, "its segment borders are not the plan's")
    result.look("packed rows", plan.num_packs)


def _record(path: Path, name: str, result: VerifyResult) -> None:
    """Whether a record is what was written: its digest, and its every character."""
    entry = read_json(path)
    if (
        not isinstance(entry, dict)
        or entry.get("digest") != digest_of(entry)
        or path.read_bytes() != pretty_json(entry).encode()
    ):
        result.problem(Code.PACK, name, f"{path.name} was changed since it was written: its digest is not that of its content")


def _contents(plan: StoredPlan, shards: TokenShards) -> Iterator[str]:
    """What is wrong with a plan; each check relies on those before it."""
    yield from _packs(plan)
    yield from _pieces(plan, shards)
    tokens, fullest, longest = _fill(plan)
    if longest > plan.record.seq_len:
        yield f"a pack of {longest} places, in sequences of {plan.record.seq_len}"
    left_out, total = plan.left_out(), shards.num_documents
    left = np.sort(left_out.document)
    if left.size and (int(left[0]) < 0 or int(left[-1]) >= total or (np.diff(left) == 0).any()):
        yield "it leaves out documents that are not there, or one twice"
    if not np.array_equal(left_out.length, shards.lengths[left_out.document]):
        yield "it leaves out documents of other lengths than they have"
    cut = 0
    for low in range(0, total, DOCUMENTS):
        lengths = shards.lengths[low : low + DOCUMENTS]
        out = np.zeros(len(lengths), dtype=bool)
        out[left[(left >= low) & (left < low + len(lengths))] - low] = True
        whole, number = _covered(plan, low, lengths)
        wrong = np.flatnonzero(np.where(out, number > 0, ~whole))
        cut += int((number > 1).sum())
        if wrong.size:
            yield f"document {low + int(wrong[0])} is neither packed whole, once, nor left out"
    yield from _cuts(plan, shards)
    left_tokens = int(left_out.length.sum())
    padding = plan.num_packs * plan.record.seq_len - tokens
    expected = total, total - len(left), cut, len(left), tokens, left_tokens, padding, fullest
    names = [
        "documents",
        "packed_documents",
        "cut_documents",
        "left_out_documents",
        "tokens",
        "left_out_tokens",
        "padding",
        "max_pieces",
    ]
    stated = tuple(getattr(plan.record.counts, name) for name in names)
    if expected != stated:
        yield f"its counts ({', '.join(names)}) are {stated}, its pieces come to {expected}"
    if plan.record.by_source:  # plans of earlier versions have none
        cost = account(plan.pieces, plan.pack_offsets, plan.record.seq_len, left_out, shards)
        for what in ("by_source", "by_modality"):
            if getattr(cost, what) != getattr(plan.record, what):
                yield f"its counts {what.replace('_', ' ')} are not those of its pieces"


def _blocks(plan: StoredPlan) -> Iterator[npt.NDArray[np.int64]]:
    """The borders of ``PIECES`` packs at a time."""
    for first in range(0, plan.num_packs, PIECES):
        yield np.asarray(plan.pack_offsets[first : first + PIECES + 1])


def _packs(plan: StoredPlan) -> Iterator[str]:
    for edges in _blocks(plan):
        if (np.diff(edges) < 1).any() or edges[0] < 0 or edges[-1] > plan.record.counts.pieces:
            yield "its packs are not runs of its pieces"
            return


def _pieces(plan: StoredPlan, shards: TokenShards) -> Iterator[str]:
    for first in range(0, plan.record.counts.pieces, PIECES):
        part = plan.pieces.take(slice(first, first + PIECES))
        document, start, length = np.asarray(part.document), np.asarray(part.start), np.asarray(part.length, dtype=np.int64)
        if int(document.min()) < 0 or int(document.max()) >= shards.num_documents:
            yield "it names documents that are not there"
            return
        if (start < 0).any() or (length < 1).any() or (start + length > shards.lengths[document]).any():
            yield "it reaches beyond the end of a document"
            return


def _cuts(plan: StoredPlan, shards: TokenShards) -> Iterator[str]:
    """Whether a document is cut where it must not be: in a picture, or in a sound between the tokens of a frame."""
    for first in range(0, plan.record.counts.pieces, PIECES):
        part = plan.pieces.take(slice(first, first + PIECES))
        later = np.flatnonzero(np.asarray(part.start) > 0)
        if later.size:  # else spans need not be read
            document, start = np.asarray(part.document)[later], np.asarray(part.start)[later]
            wrong = first_wrong_cut(document, start, shards.spans)
            if wrong >= 0:
                yield f"document {document[wrong]} is cut at token {start[wrong]}, inside of what must stay together"
                return


def _fill(plan: StoredPlan) -> tuple[int, int, int]:
    """Tokens in all packs, pieces of the fullest, places that those of the longest take."""
    tokens = fullest = longest = 0
    for edges in _blocks(plan):
        lengths = np.asarray(plan.pieces.length[edges[0] : edges[-1]])
        tokens += int(lengths.sum(dtype=np.int64))
        places = np.add.reduceat(aligned(lengths, plan.record.align).astype(np.int64), edges[:-1] - edges[0])
        fullest, longest = max(fullest, int(np.diff(edges).max())), max(longest, int(places.max()))
    return tokens, fullest, longest


def _covered(plan: StoredPlan, low: int, lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Of the documents from ``low`` on: whether their pieces lie end to end over the whole of each, and how many these are."""
    sums, number = np.zeros(len(lengths), dtype=np.uint64), np.zeros(len(lengths), dtype=np.int64)
    for first in range(0, plan.record.counts.pieces, PIECES):
        part = plan.pieces.take(slice(first, first + PIECES))
        mine = np.flatnonzero((part.document >= low) & (part.document < low + len(lengths)))
        document, start = np.asarray(part.document)[mine] - low, np.asarray(part.start)[mine]
        np.add.at(sums, document, _noise(start) - _noise(start + np.asarray(part.length, dtype=np.int64)[mine]))
        np.add.at(number, document, 1)
    return (number > 0) & (sums == _noise(np.zeros_like(lengths)) - _noise(lengths)), number


def _noise(position: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A pseudo-random number for each position (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    x = (position.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
