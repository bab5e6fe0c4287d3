"""What plan and end of a run need by the number of units and of documents: memory, seconds and bytes.

    python benchmarks/scale_plan.py [--units 500 2000 8000] [--large 8 32 128] [--documents 5000]

Each size is three commands in processes of their own, whose peak memory the system tells: `tokkit shard` for a part that
holds no unit (it resolves the inputs and plans), `tokkit shard` for all units without the end, and `tokkit finish` (it
accounts, coalesces and writes the manifest). Once with ``--units`` units of four documents, once with ``--large`` units of
``--documents``; the text is short, so that what is measured is what units and documents cost beside their content. Printed is
what each further unit adds, between the two largest sizes, and what ``--target`` units come to at that.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

NOT_THERE = 1 << 30  # a part that holds no unit


@dataclass(frozen=True)
class Measured:
    """One size: peak memory in MB and seconds of plan, encoding and end, and the files and bytes left."""

    units: int
    documents: int
    plan_mb: float
    plan_seconds: float
    encode_seconds: float
    finish_mb: float
    finish_seconds: float
    run_bytes: int
    files: int


def main() -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--units", type=int, nargs="+", default=[500, 2000, 8000])
    parser.add_argument("--large", type=int, nargs="*", default=[8, 32, 128])
    parser.add_argument("--documents", type=int, default=5000)
    parser.add_argument("--target", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        text = text_tokenizer(folder)
        for documents, sizes in ((4, options.units), (options.documents, options.large)):
            found = [measure(folder / f"{documents}-{n}", text, n, documents, options.workers) for n in sizes]
            show(found)
            for before, last in pairwise(found[-2:]):
                print(f"each further unit of {documents:,} documents, and {options.target:,} of them:")
                for name in ("plan_mb", "finish_mb", "run_bytes", "plan_seconds", "finish_seconds"):
                    told(name, (getattr(last, name) - getattr(before, name)) / (last.units - before.units), options.target)


def told(name: str, each: float, target: int) -> None:
    """A line: what one adds, and what ``target`` add."""
    if name.endswith("_mb"):
        print(f"  {name[:-3]:<16}{1e6 * each:12,.0f} bytes of memory   {each * target / 1e3:12,.1f} GB")
    elif name.endswith("_seconds"):
        print(f"  {name[:-8]:<16}{1e6 * each:12,.0f} microseconds      {each * target / 3600:12,.2f} hours")
    else:
        print(f"  {'output':<16}{each:12,.0f} bytes on disk     {each * target / 1e9:12,.1f} GB")


def show(found: list[Measured]) -> None:
    """A line for each size."""
    print("     units  documents    plan MB   plan s  encode s  finish MB  finish s   output MB   files")
    for one in found:
        print(
            f"{one.units:10,} {one.documents:10,} {one.plan_mb:10,.0f} {one.plan_seconds:8.1f} {one.encode_seconds:9.1f} "
            f"{one.finish_mb:10,.0f} {one.finish_seconds:9.1f} {one.run_bytes / 1e6:11,.1f} {one.files:7,}"
        )


def text_tokenizer(folder: Path) -> Path:
    """A small one, of the words that the documents have."""
    (folder / "words").mkdir()
    lines = [f"document number {n} says that {n % 97} is not {n % 89}" for n in range(400)]
    (folder / "words" / "a.txt").write_text("\n".join(lines))
    command = [*TOKKIT, "train-text", str(folder / "words"), "--out", str(folder / "text.model"), "--vocab-size", "300"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "text.model"


TOKKIT = [sys.executable, "-m", "tokkit.cli.main"]


def measure(folder: Path, text: Path, units: int, documents: int, workers: int) -> Measured:
    """One size: ``units`` files of so many documents."""
    (folder / "in").mkdir(parents=True)
    for unit in range(units):
        lines = (
            json.dumps({"text": f"document number {n} of {unit} says that {n % 97} is not {unit % 89}"})
            for n in range(documents)
        )
        (folder / "in" / f"{unit:07d}.jsonl").write_text("\n".join(lines) + "\n")
    out = folder / "out"
    job = [
        *TOKKIT,
        "shard",
        str(folder / "in"),
        "--out",
        str(out),
        "--text-tokenizer",
        str(text),
        "--unit-size",
        "1GiB",
        "--json",
    ]
    job += ["--workers", str(workers), "--set", "report_documents=0"]
    plan = timed([*job, "--shard-index", str(NOT_THERE - 1), "--shard-count", str(NOT_THERE)])
    encode = timed([*job, "--shard-index", "0", "--shard-count", "1"])
    finish = timed([*TOKKIT, "finish", str(out)])
    found = [path for path in out.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in found)
    return Measured(units, units * documents, plan[0], plan[1], encode[1], finish[0], finish[1], size, len(found))


def timed(command: list[str]) -> tuple[float, float]:
    """(Peak memory in MB, seconds) of a command."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} left with {process.returncode}")
    return usage.ru_maxrss / 1024, time.perf_counter() - begin


if __name__ == "__main__":
    main()
