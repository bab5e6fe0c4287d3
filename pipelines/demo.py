"""``tokkit demo``: the whole way on a corpus drawn on the spot.

Draws the sample corpus, trains a text, an image and an audio tokenizer on it, turns it into packed token shards, verifies them,
and leaves documents decoded back from their tokens: on a page, and as files that can be looked at and listened to. Nothing is
downloaded. Where a package that sound needs is not installed that is said, and the demo goes on without sound.
"""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import UsageError, VerificationError
from tokkit.pipelines.beside import beside
from tokkit.pipelines.inspect import InspectConfig, inspect_document
from tokkit.pipelines.progress import Progress, duration
from tokkit.pipelines.sample_corpus import write_sample_corpus
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.train_codec import TrainCodecConfig, TrainCodecResult, train_codec
from tokkit.pipelines.train_text import TrainTextConfig, TrainTextResult, train_text
from tokkit.pipelines.train_vq import TrainVQConfig, TrainVQResult, train_vq
from tokkit.pipelines.verify import VerifyConfig, VerifyResult, verify
from tokkit.shards.manifest import Manifest
from tokkit.shards.native import open_shards
from tokkit.storage import write_atomic
from tokkit.vocabulary import MODALITIES

MARKER = "tokkit-demo.txt"
SEQ_LEN = 2048
PARTS = ("images", "documents", "audio", "text")


class DemoConfig(BaseModel):
    """``out`` is made, or made anew where an earlier demo wrote it; image and audio tokenizer take ``train_seconds``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    out: Path
    train_seconds: float = Field(default=70.0, gt=0)
    workers: int | None = Field(default=None, ge=1)
    vocab_size: int = Field(default=2048, ge=300)


@dataclass(frozen=True)
class DemoResult:
    """What the steps came to.

    Attributes:
        codec: None where ``no_sound`` says why there is none.
        report: the page.
        look: folders of documents brought back from their tokens, by the modality that each is an example of.
    """

    text: TrainTextResult
    vq: TrainVQResult
    codec: TrainCodecResult | None
    no_sound: str
    shards: ShardResult
    verified: VerifyResult
    report: Path
    look: dict[str, Path]
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
    corpus = {name: str(out / "corpus" / name) for name in PARTS}
    progress.log("1/5 drawing a sample corpus: pictures with captions, illustrated documents, sounds, text; some of it broken")
    write_sample_corpus(out / "corpus", progress=progress)
    progress.log("2/5 training a text tokenizer")
    text = train_text(
        TrainTextConfig(inputs=list(corpus.values()), out=out / "text.model", vocab_size=config.vocab_size), progress
    )
    no_sound = _no_sound()
    images = TrainVQConfig(
        inputs=(corpus["images"], corpus["documents"]),
        out=out / "vq",
        preset="fsq-tiny",
        resolution=64,
        max_minutes=config.train_seconds / 60,
        # With two cores one is the other's: threads that are waited for cost far more than a second one brings.
        threads=1 if not no_sound and (os.cpu_count() or 1) <= 2 else None,
    )
    sounds = TrainCodecConfig(
        inputs=(corpus["audio"],),
        out=out / "codec",
        max_minutes=config.train_seconds / 60,
        val_fraction=0.1,
        # Of the preset's own steps there would be too few in so short a time; these are too small for a second thread.
        batch_size=2,
        lr=0.005,
        threads=1,
    )
    codec = None
    if no_sound:
        progress.log(f"3/5 training an image tokenizer, {config.train_seconds:.0f} s, and none for sound: {no_sound}")
        vq = train_vq(images, progress)
    else:
        progress.log(f"3/5 training an image tokenizer, and beside it an audio tokenizer, {config.train_seconds:.0f} s")
        with beside(train_codec, sounds) as trained:
            vq = train_vq(images, progress)
            codec = trained()
    progress.log("4/5 sharding the corpus")
    sharded = shard(
        ShardConfig(
            inputs=list(corpus.values()),
            out=out / "shards",
            text_tokenizer=out / "text.model",
            image_tokenizer=out / "vq",
            audio_tokenizer=None if codec is None else out / "codec",
            pair_order="random",
            val_fraction=0.05,
            unit_bytes=1 << 20,
            workers=config.workers,
            pack=SEQ_LEN,
        ),
        progress,
    )
    progress.log("5/5 verifying, and bringing documents back from their tokens")
    verified = verify(VerifyConfig(directory=out / "shards"), progress)
    if not verified.ok:
        raise VerificationError(f"{out / 'shards'} does not agree with itself: {verified.problems[0]}")
    look = _look(out, sharded.manifest, progress)
    took = time.monotonic() - begin
    progress.log(f"done in {duration(took)}")
    return DemoResult(text, vq, codec, no_sound, sharded, verified, out / "shards" / "report.html", look, took)


def _no_sound() -> str:
    """Why there can be no audio tokenizer, with what to install; empty where there can."""
    from tokkit.media.audio import audio_packages
    from tokkit.tokenizers.audio.encodec_package import import_encodec

    try:
        audio_packages()
        import_encodec()
    except UsageError as error:
        return str(error)
    return ""


def _look(out: Path, manifest: Manifest, progress: Progress) -> dict[str, Path]:
    """Bring back the document with the most pictures and that with the most sounds, each into a folder of its own."""
    look = {}
    for modality in ("image", "audio"):
        number = _with_most(out / "shards", manifest, modality)
        if number is not None:
            look[modality] = out / "look" / modality
            inspect_document(InspectConfig(directory=out / "shards", document=number, out=look[modality]), progress)
    return look


def _with_most(directory: Path, manifest: Manifest, modality: str) -> str | None:
    """``SPLIT:NUMBER`` of the first document of those that have the most of a modality; None where none has any."""
    most, found = 0, None
    for split in manifest.splits:
        spans = open_shards(directory, split).spans
        document = np.repeat(np.arange(len(spans.offsets) - 1), np.diff(spans.offsets))
        counts = np.bincount(document[spans.modality == MODALITIES.index(modality)])
        if len(counts) and counts.max() > most:
            most, found = int(counts.max()), f"{split}:{counts.argmax()}"
    return found


def _make_room(out: Path) -> None:
    """An empty folder with the demo's marker; an earlier demo's is removed, anything else is left alone."""
    if out.exists() and any(out.iterdir()):
        if not (out / MARKER).exists():
            raise UsageError(f"{out} is not empty, and no demo wrote it; name another --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(out / MARKER, "Written by `tokkit demo`, which removes this folder when it is run again.\n")
