"""Memory of `tokkit shard --pack` over millions of documents: the sum of PSS over all its processes, at its peak.

    python benchmarks/shard_memory.py [--documents 2000000] [--workers 2] [--characters 300] [--dedup documents,texts]

Documents of drawn words, about --characters long, one in a hundred a copy of an earlier one, go to gzipped and plain jsonl
files; a byte-level tokenizer is trained on some of them. Then `tokkit shard --pack 4096` runs in processes of its own, and
twice a second the proportional set size (/proc/PID/smaps_rollup: shared pages divided by who shares them) of all of them is
added up.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

FILES = 20


def main() -> int:
    """Make the corpus, run, print the peak."""
    options = parse()
    with tempfile.TemporaryDirectory(dir=options.keep) as name:
        folder = Path(name)
        size = write_corpus(folder / "corpus", options)
        train_tokenizer(folder / "corpus" / "00000.jsonl", folder / "tokenizer.json")
        command = [sys.executable, "-m", "tokkit.cli.main", "shard", str(folder / "corpus"), "--out", str(folder / "out")]
        command += ["--text-tokenizer", str(folder / "tokenizer.json"), "--workers", str(options.workers), "--pack", "4096"]
        command += [f"--dedup={what}" for what in options.dedup.split(",") if what]
        begin = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        peak, parts = watch(process)
        seconds = time.monotonic() - begin
        if process.returncode:
            print(process.stderr.read() if process.stderr else "", file=sys.stderr)
            return 1
        manifest = json.loads((folder / "out" / "manifest.json").read_text())
        tokens = sum(split["tokens"] for split in manifest["splits"].values())
        print(f"{options.documents:,} documents, {size / 1e6:,.0f} MB of text, {tokens:,} tokens, {manifest['documents']}")
        print(f"{options.workers} workers: {seconds:,.0f} s; peak of the sum of PSS {peak / 2**20:,.0f} MB, of which")
        for command_line, pss in parts:
            print(f"  {pss / 2**20:8,.0f} MB  {command_line[-100:]}")
    return 0


def parse() -> argparse.Namespace:
    """Options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=2_000_000)
    parser.add_argument("--characters", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--dedup", default="")
    parser.add_argument("--keep", type=Path, help="a folder for the corpus and the output while it runs")
    return parser.parse_args()


def write_corpus(folder: Path, options: argparse.Namespace) -> int:
    """Write the files, every fourth one gzipped; returns bytes of text."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    words = np.array(["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), n)) for n in rng.integers(2, 11, 50_000)])
    size, number, earlier = 0, 0, "the first"
    for file in range(FILES):
        name = f"{file:05d}.jsonl" + (".gz" if file % 4 == 3 else "")
        with gzip.open(folder / name, "wt", 1) if name.endswith("gz") else (folder / name).open("w") as stream:
            for _ in range(options.documents // FILES):
                count = int(rng.integers(1, options.characters // 3))
                text = earlier if number % 100 == 99 else " ".join(words[rng.zipf(1.3, count) % len(words)])
                earlier = text if number % 100 == 50 else earlier
                stream.write(json.dumps({"id": f"d{number}", "text": text, "url": f"https://example.org/{number}"}) + "\n")
                size += len(text)
                number += 1
    return size


def train_tokenizer(documents: Path, out: Path) -> None:
    """Byte-level BPE of 16,000 ids."""
    from itertools import islice

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=16_000, initial_alphabet=alphabet, show_progress=False)
    with documents.open() as file:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in islice(file, 5000)), trainer)
    tokenizer.save(str(out))


# ---- memory


def watch(process: subprocess.Popen[str]) -> tuple[int, list[tuple[str, int]]]:
    """Peak of the sum of PSS over a process and all below it, in bytes, and what each had then."""
    peak, parts = 0, []
    while process.poll() is None:
        now = [(command_line(pid), pss(pid)) for pid in family(process.pid)]
        total = sum(size for _, size in now)
        if total > peak:
            peak, parts = total, now
        time.sleep(0.5)
    return peak, parts


def family(root: int) -> list[int]:
    """A process and all its descendants."""
    parents = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            try:
                parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 for a process that is gone."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def command_line(pid: int) -> str:
    """What a process was started with."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
