"""``tokkit demo``: the whole way on a corpus drawn on the spot.

Draws the sample corpus, trains a text and an image tokenizer on it, turns it into packed token shards, verifies them, and
leaves a page that shows documents decoded back from their tokens. Nothing is downloaded.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import UsageError, VerificationError
from tokkit.pipelines.progress import Progress, duration
from tokkit.pipelines.sample_corpus import write_sample_corpus
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.train_text import TrainTextConfig, train_text
from tokkit.pipelines.train_vq import TrainVQConfig, TrainVQResult, train_vq
from tokkit.pipelines.verify import VerifyConfig, VerifyResult, verify
from tokkit.storage import write_atomic

MARKER = "tokkit-demo.txt"
SEQ_LEN = 2048


class DemoConfig(BaseModel):
    """``out`` is made, or made anew where an earlier demo wrote it; training ends after ``train_seconds``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    train_seconds: float = Field(default=70.0, gt=0)
    workers: int | None = Field(default=None, ge=1)
    vocab_size: int = Field(default=2048, ge=300)


@dataclass(frozen=True)
class DemoResult:
    """What the steps came to."""

    vq: TrainVQResult
    shards: ShardResult
    verified: VerifyResult
    report: Path
    seconds: float


def demo(config: DemoConfig, progress: Progress) -> DemoResult:
    """Run all steps.

    Raises:
        UsageError: ``out`` holds something that no demo wrote.
        VerificationError: the shards do not agree with themselves.
    """
    begin = time.monotonic()
    out = config.out
    _make_room(out)
    progress.log("1/5 drawing a sample corpus: pictures with captions, illustrated documents, sounds, text; some of it broken")
    write_sample_corpus(out / "corpus", progress=progress)
    progress.log("2/5 training a text tokenizer")
    corpus = [str(out / "corpus" / name) for name in ("text", "documents", "images")]
    train_text(TrainTextConfig(inputs=corpus, out=out / "text.model", vocab_size=config.vocab_size), progress)
    progress.log(f"3/5 training an image tokenizer, {config.train_seconds:.0f} s")
    pictures = tuple(str(out / "corpus" / name) for name in ("images", "documents"))
    trained = train_vq(
        TrainVQConfig(
            inputs=pictures,
            out=out / "vq",
            preset="fsq-tiny",
            resolution=64,
            max_minutes=config.train_seconds / 60,
        ),
        progress,
    )
    progress.log("4/5 sharding the corpus")
    sharded = shard(
        ShardConfig(
            inputs=[str(out / "corpus" / name) for name in ("images", "documents", "audio", "text")],
            out=out / "shards",
            text_tokenizer=out / "text.model",
            image_tokenizer=out / "vq",
            pair_order="random",
            val_fraction=0.05,
            unit_bytes=1 << 20,
            workers=config.workers,
            pack=SEQ_LEN,
        ),
        progress,
    )
    progress.log("5/5 verifying")
    verified = verify(VerifyConfig(directory=out / "shards"), progress)
    if not verified.ok:
        raise VerificationError(f"{out / 'shards'} does not agree with itself: {verified.problems[0]}")
    seconds = time.monotonic() - begin
    progress.log(f"done in {duration(seconds)}")
    return DemoResult(trained, sharded, verified, out / "shards" / "report.html", seconds)


def _make_room(out: Path) -> None:
    """An empty folder with the demo's marker; an earlier demo's is removed, anything else is left alone."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out} is not empty, and no demo wrote it; name another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / MARKER, "Written by `tokkit demo`, which removes this folder when it is run again.\n")
