"""Where a training of image tokenizers has its pictures from: all decoded and held, or read again while it goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokkit.errors import UsageError
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.train_vq_config import TrainVQConfig
from tokkit.pipelines.training_data import REJECTS_FILE, StreamedRejects, counted, parts_of, workers_of, write_rejects
from tokkit.sources.base import Source
from tokkit.tokenizers.image.config import ImageTokenizerConfig
from tokkit.training.augmentation import Augmentation, BatchMaker
from tokkit.training.engine import World
from tokkit.training.image_task import Batches
from tokkit.training.items import Reject
from tokkit.training.pictures import Picture, read_pictures
from tokkit.training.prefetching import Prefetched
from tokkit.training.streaming import PictureStream, Recipe, held_out_of

# Held-out pictures beyond this many say little more and cost time.
MAX_VALIDATION = 256
SHOWN = 8


@dataclass(frozen=True)
class TrainingData:
    """What a run trains and is validated on.

    Attributes:
        batches: of training.
        held_out: uint8 ``[N, size, size, 3]``, at most 256; None without any.
        shown: some of them, or of the training's, to be drawn beside their reconstructions; None where neither is at hand.
        held_out_count: how many are kept out of the training and known.
        digest: says whether two runs train on the same.
        counted: pictures trained on so far, and rejects by reason; asked for at the end.
    """

    batches: Batches
    held_out: NDArray[np.uint8] | None
    shown: NDArray[np.uint8] | None
    held_out_count: int
    digest: str
    counted: Callable[[], tuple[int, Mapping[str, int]]]


def cached(
    config: TrainVQConfig,
    tokenizer: ImageTokenizerConfig,
    pictures: Iterable[Picture | Reject],
    world: World,
    device: str,
    progress: Progress,
) -> TrainingData:
    """Decode pictures until ``cache_mb`` are held.

    Raises:
        UsageError: there is none to train on.
    """
    augmentation = Augmentation(config.min_crop_area, config.flip)
    bound, threads = config.cache_mb * 2**20, config.threads or os.cpu_count() or 1
    with progress.task("read pictures", unit="pictures") as task:
        found = read_pictures(
            counted(pictures, task), tokenizer.preprocessing, augmentation.margin, config.val_fraction, bound, threads
        )
    progress.log(f"{found.seen} pictures read: {len(found.train)} to train on, {len(found.held_out)} held out")
    write_rejects(config.out, found.rejects, found.reasons, world, progress)
    if found.full:
        progress.log(
            f"memory for pictures is full (cache_mb {config.cache_mb}); the rest of the input is not used "
            "(--stream uses all of it)"
        )
    if not found.train:
        raise UsageError(f"no picture to train on in {', '.join(config.inputs)} ({found.seen} read; see {REJECTS_FILE})")
    made = BatchMaker(found.train, tokenizer.preprocessing.size, config.batch_size, config.seed, augmentation)
    workers = workers_of(config, device)
    batches = Prefetched(made, *parts_of(config, world), workers) if workers else made
    held_out = np.stack(found.held_out[:MAX_VALIDATION]) if found.held_out else None
    shown = held_out[:SHOWN] if held_out is not None else made.batch(0)[:SHOWN]
    return TrainingData(batches, held_out, shown, len(found.held_out), found.digest, lambda: (len(found.train), found.reasons))


def streamed(
    config: TrainVQConfig,
    tokenizer: ImageTokenizerConfig,
    sources: Sequence[Source],
    world: World,
    device: str,
    progress: Progress,
) -> TrainingData:
    """Read while training; only the held-out pictures are decoded beforehand.

    Raises:
        UsageError: there is nothing to train on.
    """
    recipe = Recipe(tokenizer.preprocessing, Augmentation(config.min_crop_area, config.flip), config.seed)
    progress.log("looking for held-out pictures")
    rejects = StreamedRejects(config.out, config.resume)
    held_out, digest = held_out_of(sources, recipe, config.val_fraction, MAX_VALIDATION, rejects.add)
    own, parts = parts_of(config, world)
    stream = PictureStream(
        sources,
        recipe,
        config.batch_size,
        val_fraction=config.val_fraction,
        own=own,
        parts=parts,
        workers=workers_of(config, device),
        rejected=rejects.add,
        block_bytes=config.block_mb * 2**20,
    )
    if not stream.units:
        raise UsageError(f"nothing to read in {', '.join(config.inputs)}")
    progress.log(f"{len(stream.units)} units to stream, {len(held_out)} pictures held out to validate on")

    def so_far() -> tuple[int, Mapping[str, int]]:
        return stream.dealt, rejects.settle() if world.main else {}

    stacked = np.stack(held_out) if held_out else None
    shown = stacked[:SHOWN] if stacked is not None else None
    return TrainingData(stream, stacked, shown, len(held_out), f"{stream.digest}-{digest}", so_far)
