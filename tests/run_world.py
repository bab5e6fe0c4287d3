"""The run that most tests disturb: the generated corpus with its tokenizers, done in this process or as the command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from shard_corpus import Corpus, snapshot, write_corpus, write_tokenizers

from tokkit.failpoints import VARIABLE
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.shard import PartResult, ShardConfig, ShardResult, shard, shard_part

SILENT = SilentProgress()


class World:
    """The generated corpus and its tokenizers, and how to run the job over them: here, or as the command."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus: Corpus = write_corpus(folder / "corpus")
        self.text, self.image = write_tokenizers(folder / "tokenizers")
        self.inputs = [str(self.corpus.folder / name) for name in ("pairs", "documents", "texts", "audio")]
        self.unit_bytes, self.shard_tokens = 6000, 1500

    def config(self, out: Path, **options: object) -> ShardConfig:
        settings: dict[str, object] = {
            "inputs": self.inputs,
            "out": out,
            "text_tokenizer": self.text,
            "image_tokenizer": self.image,
            "workers": 0,
            "unit_bytes": self.unit_bytes,
            "shard_tokens": self.shard_tokens,
            "batch_size": 4,
            "val_fraction": 0.2,
            "pair_order": "random",
            "report_documents": 3,
            "pack": 128,
        }
        return ShardConfig.model_validate(settings | options)

    def result(self, out: Path, **options: object) -> ShardResult:
        """Run in this process."""
        return shard(self.config(out, **options), SILENT)

    def run(self, out: Path, **options: object) -> dict[str, str]:
        """Run in this process; what came of it."""
        self.result(out, **options)
        return snapshot(out)

    def part(self, out: Path, index: int, count: int) -> PartResult:
        return shard_part(self.config(out, shard_index=index, shard_count=count), SILENT)

    def command(self, out: Path, workers: int, *more: object) -> list[str]:
        options = ["--out", out, "--text-tokenizer", self.text, "--image-tokenizer", self.image, "--workers", workers]
        options += ["--unit-size", self.unit_bytes, "--shard-tokens", self.shard_tokens]
        options += ["--batch-size", 4, "--val-fraction", 0.2]
        options += ["--pair-order", "random", "--report-documents", 3, "--pack", 128, "--quiet", *more]
        return [sys.executable, "-m", "tokkit.cli.main", "shard", *self.inputs, *map(str, options)]

    def start(self, out: Path, workers: int, *more: object, point: str = "") -> subprocess.Popen[str]:
        environment = {**os.environ, VARIABLE: point}
        return subprocess.Popen(
            self.command(out, workers, *more),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )


def ended(process: subprocess.Popen[str], seconds: float = 300) -> tuple[int, str]:
    _, errors = process.communicate(timeout=seconds)
    return process.returncode, errors


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """The worker processes of a running command."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(c) for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
    except OSError:
        return []


def wait_for(condition: Callable[[], object], seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)
