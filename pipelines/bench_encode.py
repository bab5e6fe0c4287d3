"""The job ``tokkit bench encode``: how fast pictures become codes on this machine, and which stage sets the pace.

    decode    JPEG bytes -> pixels of the tokenizer's size, on one core; times the cores that would do it
    copy      encoding with the pictures coming from memory, batch after batch, as a run does
    network   the same with the pictures on the device already: what is left when nothing has to be copied
    one       a plain loop, one picture at a time: what a script does

Rates are pictures a second, the best of several rounds. The share of the peak is the network's arithmetic against products of
large matrices, measured in the same run (:mod:`tokkit.metrics.throughput`).
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image as PILImage
from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import ItemError, UsageError
from tokkit.media.images import decode_image
from tokkit.metrics.throughput import matmul_peak, operations, wait_for
from tokkit.pipelines.prepare import resolve_device
from tokkit.pipelines.progress import Progress
from tokkit.precision import Acceleration, Precision
from tokkit.sources.resolve import resolve_inputs
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.bulk import BulkEncoder, BulkOptions, Pixels
from tokkit.tokenizers.image.model import ImageTokenizer
from tokkit.training.pictures import Picture, pictures_of

TAKEN = 64  # pictures of the input that are looked at
AHEAD = 2  # batches that are asked for before the first is waited for
DRAWN_QUALITY = 90  # of the JPEG pictures that are drawn where no input is given


class BenchEncodeConfig(BaseModel):
    """Options of the job.

    Attributes:
        tokenizer: folder of an image tokenizer.
        inputs: pictures to decode, as for every job; without them 512-pixel JPEG pictures are drawn.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        precision, acceleration: see :mod:`tokkit.tokenizers.image.bulk`.
        batch_size: pictures of every call of the network.
        size: side of the pictures; the tokenizer's own if not given.
        seconds: that each stage is measured for, at least one round.
        cores: that would decode; None takes all there are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: Path
    inputs: tuple[str, ...] = ()
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    precision: Precision = "fp32"
    acceleration: Acceleration = "none"
    batch_size: int = Field(default=16, ge=1, le=4096)
    size: int | None = Field(default=None, ge=1, le=8192)
    seconds: float = Field(default=3.0, ge=0)
    cores: int | None = Field(default=None, ge=1)


@dataclass(frozen=True)
class EncodeRates:
    """What was measured.

    Attributes:
        device: its name.
        size, batch_size, precision, acceleration: that were measured.
        network, copied, one: pictures a second (see the module).
        decode: pictures a second of one core; ``cores`` would do it.
        gflop: arithmetic of a picture's way through the network, in 10^9 operations.
        peak: of products of large matrices, in 10^12 operations a second; ``share`` of it is what the network reaches.
        agreement: share of plain float32's codes that this mode keeps; None for that mode itself.
        memory_mb: of the device at most, in MB; None on a CPU.
        bound_by: the slowest stage: ``decode``, ``copy`` or ``network``; ``rate`` is its pictures a second.
    """

    device: str
    size: int
    batch_size: int
    precision: Precision
    acceleration: Acceleration
    network: float
    copied: float
    one: float
    decode: float
    cores: int
    gflop: float
    peak: float
    share: float
    agreement: float | None
    memory_mb: float | None
    bound_by: str
    rate: float


def bench_encode(config: BenchEncodeConfig, progress: Progress) -> EncodeRates:
    """Measure.

    Raises:
        UsageError: no picture in the input, or a device that cannot do what the options ask for.
        DataError: no tokenizer.
    """
    tokenizer = load_image_tokenizer(config.tokenizer, resolve_device(config.device))
    found = _of_inputs(config) if config.inputs else drawn_pictures()
    size = config.size or tokenizer.config.preprocessing.size
    if size % tokenizer.downsample:
        raise UsageError(f"--size {size} is no multiple of the tokenizer's downsampling factor {tokenizer.downsample}")
    preprocessing = tokenizer.config.preprocessing.model_copy(update={"size": size})
    progress.log(f"{len(found)} pictures, {np.mean([len(data) for data in found]) / 1000:.0f} kB each in the mean")
    pixels: list[Pixels] = []

    def decode() -> int:
        pixels[:] = [preprocessing.apply(decode_image(data)) for data in found]
        return len(found)

    decoded = best_rate(decode, config.seconds)
    options = BulkOptions(config.precision, config.acceleration)
    return measure_encoder(tokenizer, pixels, config.batch_size, options, config.seconds, decoded, config.cores)


def measure_encoder(
    tokenizer: ImageTokenizer,
    pixels: list[Pixels],
    batch_size: int,
    options: BulkOptions,
    seconds: float,
    decode: float,
    cores: int | None = None,
) -> EncodeRates:
    """Measure a tokenizer on its device with pictures ``[H, W, 3]`` of one size; ``decode`` is a core's rate."""
    device = tokenizer.device
    batch = (pixels * -(-batch_size // len(pixels)))[:batch_size]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    encoder = BulkEncoder(tokenizer, batch_size, options)
    codes = encoder.encode_padded(batch, batch_size)  # and everything is warm
    exact = tokenizer.encode_padded(batch, batch_size)
    plain = options == BulkOptions()
    resident = torch.from_numpy(np.stack(batch)).to(device)

    def network() -> int:
        for _ in range(AHEAD):
            encoder.encode_resident(resident)
        wait_for(device)
        return AHEAD * batch_size

    def copied() -> int:
        pending = [encoder.begin(batch) for _ in range(2 * AHEAD)]
        for one in pending:
            one.codes()
        return len(pending) * batch_size

    def one() -> int:
        tokenizer.encode(torch.from_numpy(batch[0][None])).cpu()
        return 1

    alone, with_copies, single = (best_rate(stage, seconds) for stage in (network, copied, one))
    memory = torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else None
    work = operations(lambda: tokenizer.encode(resident[:1]))
    peak = matmul_peak(device, options.precision, min(seconds, 1.0))
    cores = cores or os.cpu_count() or 1
    rates = {"decode": decode * cores, "copy": with_copies, "network": alone}
    bound = "network" if with_copies > 0.95 * alone else "copy"
    bound = "decode" if rates["decode"] < rates[bound] else bound
    return EncodeRates(
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        size=pixels[0].shape[0],
        batch_size=batch_size,
        precision=options.precision,
        acceleration=options.acceleration,
        network=alone,
        copied=with_copies,
        one=single,
        decode=decode,
        cores=cores,
        gflop=work / 1e9,
        peak=peak / 1e12,
        share=alone * work / peak,
        agreement=None if plain else float((codes == exact).mean()),
        memory_mb=memory,
        bound_by=bound,
        rate=min(rates["decode"], with_copies),
    )


def best_rate(work: Callable[[], int], seconds: float) -> float:
    """Things a second that ``work``, which says how many it did, does in its best round; at least one round."""
    best, end = 0.0, time.perf_counter() + seconds
    while best == 0.0 or time.perf_counter() < end:
        begin = time.perf_counter()
        done = work()
        best = max(best, done / (time.perf_counter() - begin))
    return best


def _of_inputs(config: BenchEncodeConfig) -> list[bytes]:
    """The first pictures of the inputs that can be decoded."""
    inputs = resolve_inputs(list(config.inputs))
    found = list(islice(_decodable(pictures_of(inputs.sources, 0)), TAKEN))
    if not found:
        raise UsageError(f"no picture in {', '.join(config.inputs)} that can be decoded")
    return found


def _decodable(pictures: Iterator[object]) -> Iterator[bytes]:
    for picture in pictures:
        data = picture.media.data if isinstance(picture, Picture) else None
        if data is None:
            continue
        try:
            decode_image(data)
        except ItemError:
            continue
        yield data


def drawn_pictures(count: int = 16, side: int = 512) -> list[bytes]:
    """JPEG pictures of coarse and fine noise, about as long as photographs of their size."""
    random, found = np.random.default_rng(0), []
    for _ in range(count):
        coarse = PILImage.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side))
        noisy = np.asarray(coarse, dtype=np.int16) + random.integers(-12, 13, (side, side, 1))
        data = io.BytesIO()
        PILImage.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(data, "jpeg", quality=DRAWN_QUALITY)
        found.append(data.getvalue())
    return found
