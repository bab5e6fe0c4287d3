"""Text only: `tokkit shard` against datatrove's tokenizer pipeline, on the same documents with the same tokenizer.json.

    python benchmarks/shard_text.py [--data DIR_OF_JSONL_GZ] [--documents 50000] [--characters 3000] [--rounds 3]

Documents of about --characters (3,000, which is what web pages come to once their text is extracted) are cut from the jsonl
files of --data (without it: drawn words) and written to one jsonl file; a byte-level BPE tokenizer of 32,000 ids is trained on
a part of them. Then, turn by turn, each in a fresh process with one worker and one thread:

* datatrove: JsonlReader -> DocumentTokenizer without shuffling, which writes the ids and where documents end;
* tokkit shard, with all it does besides: checksums, document table, census, commit records, coalescing, manifest;
* tokkit shard --text-engine gigatoken.

The figure is documents per CPU-second (user and system time of the process and its children) of the best round. The ids of all
three are compared, document by document. datatrove and gigatoken come with `pip install -e '.[bench,fast]'`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import tempfile
from itertools import islice
from pathlib import Path

import numpy as np

SIDES = ("datatrove", "tokkit", "tokkit-gigatoken")
END = "<|endoftext|>"


def main() -> int:
    """Run all sides, compare their ids, print a table; returns 1 where ids differ."""
    options = parse()
    if options.side:
        run_side(options.side, options.folder)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count, size = write_documents(options, folder / "documents.jsonl")
        train_tokenizer(folder / "documents.jsonl", folder / "tokenizer.json")
        best = dict.fromkeys(SIDES, float("inf"))
        for number in range(options.rounds):
            for side in SIDES:
                (folder / "out" / side).parent.mkdir(exist_ok=True)
                subprocess.run(["rm", "-rf", str(folder / "out" / side)], check=True)
                best[side] = min(best[side], measured(side, folder))
            print(f"round {number + 1} of {options.rounds} done", file=sys.stderr)
        found = {side: read_ids(side, folder / "out" / side) for side in SIDES}
    tokens = sum(map(len, found["datatrove"]))
    print(f"{count:,} documents, {size / 1e6:.1f} MB of text, {tokens:,} tokens; one worker, one thread, CPU time")
    print(f"  {'':<20}{'CPU s':>8}{'documents/s':>14}{'of datatrove':>14}{'ids equal':>12}")
    same = True
    for side in SIDES:
        equal = sum(np.array_equal(a, b) for a, b in zip(found[side], found["datatrove"], strict=True))
        same &= equal == count
        rate = count / best[side]
        times = best["datatrove"] / best[side]
        print(f"  {side:<20}{best[side]:8.2f}{rate:14,.0f}{times:13.2f}x{100 * equal / count:10.2f} %")
    return 0 if same else 1


def parse() -> argparse.Namespace:
    """Options; ``--side`` is for the processes that this script starts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of .jsonl.gz with a field text")
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--characters", type=int, default=3000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


# ---- what goes in


def write_documents(options: argparse.Namespace, path: Path) -> tuple[int, int]:
    """(Documents, bytes of text); every document is another one."""
    size = 0
    with path.open("w", encoding="utf-8") as file:
        for number, text in enumerate(islice(pieces(options.data, options.characters), options.documents)):
            file.write(json.dumps({"id": f"d{number}", "text": text}, ensure_ascii=False) + "\n")
            size += len(text.encode())
    if number + 1 < options.documents:
        raise SystemExit(f"--data holds only {number + 1} documents of {options.characters} characters")
    return number + 1, size


def pieces(data: Path | None, characters: int):  # type: ignore[no-untyped-def]
    """Texts of about so many characters; the corpus is gone through again at another offset when it is used up."""
    if data is None:
        rng = np.random.default_rng(0)
        words = ["".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), n)) for n in rng.integers(2, 11, 5000)]
        while True:
            yield " ".join(words[int(n)] for n in rng.zipf(1.3, 17 * characters // 100) % len(words))
    texts = []
    for path in sorted(data.glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            texts += [json.loads(line)["text"] for line in file]
    for offset in (0, 8, 4, 12, 2, 6, 10, 14, 1, 3, 5, 7, 9, 11, 13, 15):
        for text in texts:
            for start in range(offset * characters // 16, len(text), characters):
                yield text[start : start + characters]


def train_tokenizer(documents: Path, out: Path) -> None:
    """Byte-level BPE of 32,000 ids on every tenth document."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with documents.open(encoding="utf-8") as file:
        tokenizer.train_from_iterator((json.loads(line)["text"] for line in islice(file, 0, None, 10)), trainer)
    tokenizer.save(str(out))


# ---- the sides


def measured(side: str, folder: Path) -> float:
    """CPU seconds of one side in a process of its own, children included."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    # Bytecode is kept for every side alike: what an installer did not compile the first round does.
    environment |= {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(folder / "bytecode")}
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_side(side: str, folder: Path) -> None:
    """One side's whole job."""
    out = folder / "out" / side
    if side == "datatrove":
        from datatrove.executor import LocalPipelineExecutor
        from datatrove.pipeline.readers import JsonlReader
        from datatrove.pipeline.tokens import DocumentTokenizer

        reader = JsonlReader(str(folder), glob_pattern="documents.jsonl")
        writer = DocumentTokenizer(
            output_folder=str(out),
            tokenizer_name_or_path=str(folder / "tokenizer.json"),
            eos_token=END,
            shuffle_documents=False,
        )
        LocalPipelineExecutor([reader, writer], tasks=1, workers=1, logging_dir=str(out / "logs")).run()
        return
    from tokkit.pipelines.progress import SilentProgress
    from tokkit.pipelines.shard import ShardConfig, shard

    config = ShardConfig(
        inputs=[str(folder / "documents.jsonl")],
        out=out,
        text_tokenizer=folder / "tokenizer.json",
        text_engine="gigatoken" if side == "tokkit-gigatoken" else "library",
        workers=1,
        report_documents=0,
    )
    shard(config, SilentProgress())


def read_ids(side: str, out: Path) -> list[np.ndarray]:
    """Each document's text ids, in the order of the input."""
    if side == "datatrove":
        path = next(p for p in sorted(out.rglob("*.ds")) if "logs" not in p.parts)
        ends = np.fromfile(f"{path}.index", dtype=np.uint64).astype(np.int64)
        ids = np.fromfile(path, dtype=np.uint16)
        return [ids[a : b - 1] for a, b in zip([0, *ends[:-1]], ends, strict=True)]  # the last is the end symbol
    from tokkit.shards.native import open_shards

    shards = open_shards(out, "train")
    return [np.asarray(shards.tokens(n))[1:-1] for n in range(shards.num_documents)]  # without the document's markers


if __name__ == "__main__":
    sys.exit(main())
