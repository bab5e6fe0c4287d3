"""Packing: time of a plan and how full its sequences are, against peers on the same lengths in the same run.

    python benchmarks/packing.py [--documents 1000000 10000000] [--seq-len 8192] [--peer-documents 1000000] ...

Lengths are lognormal (median 700, sigma 1.1, clipped to the sequence: reference (a)) or have 0 to 5 pictures of 1,026 tokens
besides (reference (b); b2 and b4 with twice and four times as many). What no plan can be faster than stands beside ours:
NumPy's ``bincount`` of the lengths, and the counting sort alone. Peers: best-fit-decreasing one document at a time in plain
Python (a bit set held in one integer finds the bin), LightBinPack (C++), binpacking (least full bin first; few documents, for
its time is quadratic) and TRL's ``pack_dataset``, the last three where they are installed. TRL moves tokens while it packs,
so beside it stands our plan *and* the gathering of its rows. Last, with their spans, documents of more and more pictures: whole
documents against ``fill``, and against the most that any cutting can reach without cutting a picture. Times are CPU seconds of
one thread, best of three (peers: one).
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from tokkit.packing.gather import TokenFiles, gather_rows
from tokkit.packing.kernels import best_fit_decreasing, histogram, list_packs, order_by_length, pack_items
from tokkit.packing.plan import plan_packs
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.store import save_plan
from tokkit.packing.stream import StreamPacker
from tokkit.shards.spans import SpanTable


@dataclass(frozen=True)
class Measured:
    """One line of the table."""

    what: str
    documents: int
    seconds: float
    efficiency: float | None

    def line(self, reference: Measured | None) -> str:
        rate = self.documents / self.seconds
        full = f"{100 * self.efficiency:9.4f} %" if self.efficiency is not None else " " * 11
        ratio = f"{reference.documents / reference.seconds / rate:10.1f}x" if reference else " " * 11
        return f"  {self.what:<58}{self.seconds * 1000:12.2f} ms{rate / 1e6:10.3f} M docs/s {full} {ratio}"


def lengths_of(kind: str, documents: int, seq_len: int) -> np.ndarray:
    """int64 [documents] lengths of reference (a) or (b)."""
    rng = np.random.default_rng(0)
    text = rng.lognormal(np.log(700 if kind == "a" else 200), 1.1, documents).astype(np.int64)
    if kind != "a":
        factor = int(kind[1:] or 1)
        text += factor * 1026 * rng.choice([0, 1, 2, 3, 5], documents, p=[0.2, 0.5, 0.15, 0.1, 0.05])
    return np.clip(text, 1, seq_len)


def tokens_of(lengths: np.ndarray) -> np.ndarray:
    """uint16 tokens of these documents: written, because untouched zeros would all be one page of memory, in cache."""
    return np.random.default_rng(1).integers(0, 1 << 16, int(lengths.sum()), dtype=np.uint16)


def cpu(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Least CPU time of some calls, and the last result."""
    best, result = float("inf"), None
    for _ in range(repeats):
        begin = time.process_time()
        result = function()
        best = min(best, time.process_time() - begin)
    return best, result


def turn_by_turn(functions: list[Callable[[], Any]], rounds: int) -> list[float]:
    """Least CPU time of each, called in turn: what disturbs the machine for a while disturbs all."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for n, function in enumerate(functions):
            begin = time.process_time()
            function()
            best[n] = min(best[n], time.process_time() - begin)
    return best


def plain_python(lengths: np.ndarray, seq_len: int) -> list[list[int]]:
    """Best-fit-decreasing, one document at a time: bins by residual, and the occupied residuals as bits of one integer."""
    open_bins: list[list[list[int]]] = [[] for _ in range(seq_len + 1)]
    bins: list[list[int]] = []
    occupied = 0
    order = np.argsort(-lengths, kind="stable")
    for document, length in zip(order.tolist(), lengths[order].tolist(), strict=True):
        above = occupied >> length
        if above:
            room = length + (above & -above).bit_length() - 1
            chosen = open_bins[room].pop()
            if not open_bins[room]:
                occupied ^= 1 << room
        else:
            room, chosen = seq_len, []
            bins.append(chosen)
        chosen.append(document)
        room -= length
        if room:
            if not open_bins[room]:
                occupied |= 1 << room
            open_bins[room].append(chosen)
    return bins


def peers(lengths: np.ndarray, seq_len: int) -> list[Measured]:
    """Peers that plan only, on all documents."""
    total = int(lengths.sum())
    seconds, bins = cpu(lambda: plain_python(lengths, seq_len), 1)
    found = [Measured("plain Python, document by document: plan", len(lengths), seconds, total / (len(bins) * seq_len))]
    if importlib.util.find_spec("lightbinpack"):
        from lightbinpack import obfd

        listed = lengths.tolist()
        seconds, bins = cpu(lambda: obfd(listed, seq_len), 1)
        found.append(Measured("LightBinPack obfd (C++): plan", len(lengths), seconds, total / (len(bins) * seq_len)))
    if importlib.util.find_spec("binpacking"):
        import binpacking

        some = dict(enumerate(lengths[:20_000].tolist()))
        seconds, bins = cpu(lambda: binpacking.to_constant_volume(some, seq_len), 1)
        efficiency = sum(some.values()) / (len(bins) * seq_len)
        found.append(Measured("binpacking to_constant_volume: plan", len(some), seconds, efficiency))
    return found


def floors(lengths: np.ndarray, seq_len: int) -> None:
    """Print what planning is measured by: a histogram, a counting sort, and with it the documents of every pack."""
    short, digits = lengths.astype(np.int32), lengths.astype(np.uint16)
    counts = np.bincount(lengths, minlength=seq_len + 1)
    calls = {
        "numpy bincount": lambda: np.bincount(lengths, minlength=seq_len + 1),
        "numpy argsort of uint16 (stable: a radix sort)": lambda: np.argsort(digits, kind="stable"),
        "counting sort of the lengths": lambda: order_by_length(short, histogram(short, seq_len)),
        "tokkit: sort + plan + the documents of every pack": lambda: list_packs(short, histogram(short, seq_len), seq_len),
        "tokkit: sort + plan + the pack of every document": lambda: pack_items(short, seq_len),
    }
    found = dict(zip(calls, turn_by_turn(list(calls.values()), 5), strict=True))
    for what, seconds in found.items():
        print(Measured(what, len(lengths), seconds, None).line(None))
    bincount, _, sort, ids, _ = found.values()
    print(f"    documents of every pack: {sort / ids:.2f} of the counting sort, {bincount / ids:.2f} of bincount")
    plan_seconds, _ = cpu(lambda: best_fit_decreasing(counts.astype(np.int64), seq_len), 3)
    print(Measured("tokkit: best-fit-decreasing on the histogram alone", len(lengths), plan_seconds, None).line(None))


def trl_peers(lengths: np.ndarray, seq_len: int) -> list[Measured]:
    """TRL on these documents, in one table and in the batches that it ships with."""
    if not importlib.util.find_spec("trl"):
        print("  (trl is not installed)")
        return []
    import datasets
    import pyarrow as pa
    from trl import pack_dataset

    datasets.disable_caching()
    datasets.disable_progress_bars()
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int64())
    column = pa.LargeListArray.from_arrays(offsets, pa.array(tokens_of(lengths)))
    dataset = datasets.Dataset(pa.table({"input_ids": column}))
    found = []
    for name, batch in (("one table", len(lengths)), ("as shipped, batches of 1000", 1000)):
        options = {"batch_size": batch, "keep_in_memory": True}
        seconds, packed = cpu(lambda options=options: pack_dataset(dataset, seq_len, "bfd", options), 1)
        efficiency = int(lengths.sum()) / (len(packed) * seq_len)
        found.append(Measured(f"TRL pack_dataset bfd, {name}: plan + copy", len(lengths), seconds, efficiency))
    return found


def with_copy(lengths: np.ndarray, seq_len: int) -> Measured:
    """Our plan, and its rows gathered from memory into a reused block."""
    tokens = tokens_of(lengths)
    files = TokenFiles([tokens], np.zeros(len(lengths), dtype=np.int32), np.cumsum(lengths) - lengths, lengths)
    with tempfile.TemporaryDirectory() as folder:
        stored = save_plan(plan_packs(lengths, None, seq_len), Path(folder), "bench", "train", "bench")
        block = np.empty((2048, seq_len), dtype=np.uint16)

        def gather() -> None:
            for first in range(0, stored.num_packs, len(block)):
                gather_rows(files, stored, first, block[: stored.num_packs - first], 0)

        gather()  # compiles
        plan_seconds, plan = cpu(lambda: plan_packs(lengths, None, seq_len), 3)
        other = block.copy()
        copy_seconds, seconds = turn_by_turn([gather, lambda: np.copyto(other, block)], 8)
    rate = stored.num_packs * seq_len * tokens.itemsize / copy_seconds / 1e9
    copied = block.nbytes / seconds / 1e9
    print(f"  gather alone: {rate:.2f} GB/s, {rate / copied:.2f} of a plain copy of a block ({copied:.2f} GB/s)")
    return Measured("tokkit: plan + rows gathered", len(lengths), plan_seconds + copy_seconds, plan.efficiency)


def whole(lengths: np.ndarray, seq_len: int) -> Measured:
    """Print what a plan and streams come to; returns the plan."""
    seconds, plan = cpu(lambda: plan_packs(lengths, None, seq_len), 3)
    ours = Measured("tokkit plan_packs: plan, numbered, every document in it", len(lengths), seconds, plan.efficiency)
    print(ours.line(None))
    for window, carry in ((1000, 64), (16384, 256)):

        def stream(window: int = window, carry: int = carry) -> float:
            packer = StreamPacker(seq_len, window=window, carry=carry)
            packer.push(lengths)
            packer.flush()
            return packer.efficiency

        stream()  # compiles
        seconds, full = cpu(stream, 3)
        what = f"tokkit StreamPacker: windows of {window:,}, {carry} packs carried"
        print(Measured(what, len(lengths), seconds, full).line(ours))
    print(f"  {plan.num_packs:,} packs; at least {plan.bounds.martello_toth:,} are needed (Martello-Toth L2)")
    return ours


def interleaved(documents: int, factor: int) -> tuple[np.ndarray, SpanTable, int]:
    """Lengths and spans of documents with ``factor`` times 0 to 5 pictures of 1,026 tokens in a text, and all pictures."""
    rng = np.random.default_rng(0)
    texts = np.maximum(rng.lognormal(np.log(200), 1.1, documents).astype(np.int64), 1)
    pictures = factor * rng.choice([0, 1, 2, 3, 5], documents, p=[0.2, 0.5, 0.15, 0.1, 0.05])
    offsets, lengths = [0], []
    spans: list[tuple[int, int, int]] = []
    for text, number in zip(texts.tolist(), pictures.tolist(), strict=True):
        position = 1
        for part, size in enumerate(np.diff(np.linspace(0, text, number + 2).astype(int)).tolist()):
            if size:
                spans.append((position, size, 0))
                position += size
            if part < number:
                spans.append((position, 1026, 1))
                position += 1026
        offsets.append(len(spans))
        lengths.append(position + 1)
    flat = np.array(spans, dtype=np.int64)
    table = SpanTable(np.array(offsets), flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].astype(np.uint8))
    return np.array(lengths, dtype=np.int64), table, int(pictures.sum())


def fill_table(documents: int) -> None:
    """Whole documents, ``fill`` and the bound, for more and more pictures and several lengths."""
    print(f"{documents:,} documents with pictures of 1,026 tokens (0, 1, 2, 3, 5 times the factor)")
    print(
        f"  {'factor':<8}{'seq_len':>8}{'whole':>10}{'fill':>10}{'at most':>10}{'cut, whole':>12}{'cut, fill':>11}{'CPU':>10}"
    )
    for factor in (1, 2, 3, 4):
        lengths, spans, pictures = interleaved(documents, factor)
        for seq_len in (4096, 8192, 16384):
            whole = plan_packs(lengths, spans, seq_len)
            plan_packs(lengths, spans, seq_len, SplitPolicy.FILL)
            seconds, filled = cpu(
                lambda lengths=lengths, spans=spans, n=seq_len: plan_packs(lengths, spans, n, SplitPolicy.FILL), 2
            )
            most = int(lengths.sum()) / (max(whole.bounds.volume, -(-pictures // (seq_len // 1026))) * seq_len)
            shares = [f"{100 * share:.2f} %" for share in (whole.efficiency, filled.efficiency, most)]
            cuts = [f"{100 * plan.num_cut_documents / documents:.1f} %" for plan in (whole, filled)]
            print(
                f"  {factor:<8}{seq_len:>8,}{shares[0]:>10}{shares[1]:>10}{shares[2]:>10}{cuts[0]:>12}{cuts[1]:>11}"
                f"{seconds * 1000:>7.0f} ms"
            )


def number(least: int) -> Callable[[str], int]:
    """Of an option: a whole number that is no less."""

    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=number(1), nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--peer-documents", type=number(0), default=1_000_000, help="peers are left out where there are more")
    parser.add_argument("--seq-len", type=number(2), default=8192)
    parser.add_argument(
        "--trl-documents",
        type=number(0),
        default=100_000,
        help="that rows are made of, by us and by TRL, which moves tokens and so gets fewer documents; 0 leaves this out",
    )
    parser.add_argument(
        "--fill-documents", type=number(0), default=50_000, help="of the table of --split fill; 0 leaves it out"
    )
    options = parser.parse_args()
    seq_len = options.seq_len
    plan_packs(np.ones(8, dtype=np.int64), None, seq_len)  # compiles, or loads the compiled kernels
    for documents in options.documents:
        for kind in ("a", "b", "b2", "b4"):
            lengths = lengths_of(kind, documents, seq_len)
            print(f"({kind}) {len(lengths):,} documents, mean {lengths.mean():.0f} tokens, sequences of {seq_len:,}")
            floors(lengths, seq_len)
            ours = whole(lengths, seq_len)
            for peer in peers(lengths, seq_len) if documents <= options.peer_documents else []:
                print(peer.line(ours))
            if not options.trl_documents:
                continue
            some = lengths[: options.trl_documents]
            print(f"({kind}) {len(some):,} of them, tokens moved too")
            moved = with_copy(some, seq_len)
            print(moved.line(None))
            for peer in trl_peers(some, seq_len) if documents <= options.peer_documents else []:
                print(peer.line(moved))
    if options.fill_documents:
        fill_table(options.fill_documents)


if __name__ == "__main__":
    main()
