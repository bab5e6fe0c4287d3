"""What the jobs that train tokenizers share around their runs: processes and threads, what a folder holds, what is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image as PILImage

from tokkit.errors import ConfigError, DataError, FingerprintMismatch, UsageError
from tokkit.pipelines.progress import Progress, SilentProgress
from tokkit.pipelines.training_config import TrainingConfig
from tokkit.pipelines.training_page import write_training_page
from tokkit.pipelines.training_run import RunOptions, checkpoints, differing
from tokkit.storage import pretty_json, read_json, replacing, write_atomic
from tokkit.tokenizers.folder import CONFIG_FILE
from tokkit.training.engine import World
from tokkit.training.engine.world import joined

RESULT_FILE = "training.json"
SAMPLES_FILE = "samples.png"

Result = TypeVar("Result")


def device_of(config: TrainingConfig) -> str:
    """Where to train. Raises UsageError where a GPU is asked for and there is none."""
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UsageError("--device cuda: torch sees no GPU here")
    return config.device or ("cuda" if available else "cpu")


def together(device: str, progress: Progress, run: Callable[[World, Progress], Result]) -> Result:
    """Run with the processes that train together; only the first one tells of it. Threads are as before afterwards."""
    before = torch.get_num_threads()
    with joined(device) as world:
        try:
            return run(world, progress if world.main else SilentProgress())
        finally:
            torch.set_num_threads(before)


def threads_of(config: TrainingConfig, world: World) -> list[int]:
    """Numbers of threads to choose from."""
    return [config.threads] if config.threads else [1] if world.size > 1 else [os.cpu_count() or 1, 1]


def computing(device: str, threads: list[int]) -> str:
    """What a run computes on, for its first line."""
    if device != "cpu":
        return "the GPU"
    return "1 thread" if threads == [1] else f"{' or '.join(map(str, threads))} threads"


def check_parts(config: TrainingConfig, batch_size: int, world: World) -> None:
    """Raise UsageError where a batch cannot be dealt out evenly."""
    parts = world.size * config.accumulate
    if batch_size % parts:
        raise UsageError(f"--batch-size {batch_size} is no multiple of {parts}, its parts (processes times accumulate)")


def run_options(
    config: TrainingConfig, batch_size: int, threads: list[int], identity: Mapping[str, Any], data: str
) -> RunOptions:
    """How long a run goes on and what it writes."""
    return RunOptions(
        out=config.out,
        max_steps=config.max_steps,
        max_seconds=config.max_minutes * 60 if config.max_minutes else None,
        batch_size=batch_size,
        identity=identity,
        data=data,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        keep_last=config.keep_last,
        resume=config.resume,
        threads=threads,
        tensorboard=config.tensorboard,
    )


def check_unchanged(where: str, sections: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Weights that are gone on from fit one network: (found, wanted) by section must be equal.

    Raises:
        ConfigError: they are not; every difference is listed.
    """
    problems = [
        f"{section}{'.' if section else ''}{key}: is {found.get(key)!r} in the weights that are gone on from, and cannot "
        f"become {wanted.get(key)!r}"
        for section, (found, wanted) in sections.items()
        for key in sorted(found.keys() | wanted.keys())
        if found.get(key) != wanted.get(key)
    ]
    if problems:
        raise ConfigError(where, problems)


# ---- what a folder holds


def finished(config: TrainingConfig, identity: Mapping[str, Any], kind: Callable[..., Result]) -> Result | None:
    """The result in ``out`` where the run is finished and ``resume`` was given; None where it may begin or go on.

    Args:
        identity: options that the weights depend on.
        kind: of the result; its sequences are tuples.

    Raises:
        UsageError: ``out`` holds something else.
        FingerprintMismatch: it holds the result of other options.
        DataError: its record is damaged.
    """
    out = config.out
    if (out / CONFIG_FILE).exists():
        if not config.resume:
            raise UsageError(f"{out} holds a tokenizer already; name another folder, or remove it")
        if not (out / RESULT_FILE).exists():
            raise UsageError(f"{out} holds a tokenizer that this job did not make; name another folder")
        return _result(out, identity, kind)
    if checkpoints(out) and not config.resume:
        raise UsageError(f"{out} holds an unfinished run; give --resume to go on with it, or remove it")
    return None


def _result(out: Path, identity: Mapping[str, Any], kind: Callable[..., Result]) -> Result:
    path = out / RESULT_FILE
    described = read_json(path)
    try:
        differences = differing(identity, described["options"])
        figures = described["result"].items()
        result = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in figures})
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is not the result of this job ({error})") from None
    if differences:
        raise FingerprintMismatch(f"{out} holds the tokenizer of another run: {'; '.join(differences)}")
    return result


def write_result(out: Path, title: str, options: Mapping[str, Any], result: Any, drawn: PILImage.Image | None) -> None:
    """The record of a finished run beside its tokenizer: samples.png, training.json, training.html."""
    if drawn is not None:
        with replacing(out / SAMPLES_FILE) as temporary:
            drawn.save(temporary, format="png")
    write_atomic(out / RESULT_FILE, pretty_json({"options": options, "result": asdict(result)}))
    write_training_page(out, title, options, asdict(result))
