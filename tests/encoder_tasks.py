"""A tokenizer and a task for the encoder's tests: small, quick to load, and they misbehave where they are told to."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from engine_tasks import misbehave

from tokkit.documents import Image
from tokkit.errors import DataError
from tokkit.pipelines.assembly import Slot
from tokkit.pipelines.batching import BatchEncoder, Codes, ImageBatcher, LocalEncoder, Pixels
from tokkit.pipelines.encoder import Endpoint
from tokkit.pipelines.encoder_client import RemoteEncoder
from tokkit.pipelines.plan import PlannedUnit
from tokkit.pipelines.work import Report, Work

BATCH = 4


def paint(number: int) -> Pixels:
    """A picture that says its number."""
    return np.frombuffer(number.to_bytes(12, "little"), dtype=np.uint8).reshape(2, 2, 3).copy()


@dataclass
class Numbers:
    """A tokenizer whose codes ``[n, 1, 1]`` are the pictures' numbers; picklable, and its own loader.

    Attributes:
        folder: for marks, and a file with the process ids that loaded it.
        faults: by a picture's number, what happens; ``once:`` before it for the first time only, ``encoder:`` only in an
            encoder process.
        seconds: that a batch takes.
        loading: what happens while it is loaded.
    """

    folder: Path
    faults: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    loading: str = ""
    in_encoder: bool = False

    def __call__(self) -> Numbers:
        with (self.folder / "encoders").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self.loading == "data":
            raise DataError("no tokenizer at all")
        if self.loading:
            misbehave(self.loading)
        self.in_encoder = True
        return self

    def encode_padded(self, pictures: Sequence[Pixels], batch_size: int) -> Codes:
        numbers = [int.from_bytes(picture.tobytes(), "little") for picture in pictures]
        assert len(numbers) <= batch_size
        for number in numbers:
            self._fault(number, self.faults.get(number, ""))
        time.sleep(self.seconds)
        return np.array(numbers, dtype=np.int32).reshape(-1, 1, 1)

    def _fault(self, number: int, how: str) -> None:
        if how.startswith("encoder:") and not self.in_encoder:
            return
        how, mark = how.removeprefix("encoder:"), self.folder / f"encoded-{number}"
        if how.startswith("once:"):
            if mark.exists():
                return
            mark.touch()
        how = how.removeprefix("once:")
        if how == "memory":
            import torch

            raise torch.OutOfMemoryError("not a byte is left")
        if how == "fault":
            raise IndexError("a fault in the program")
        if how:
            misbehave(how)


def numbers_on(tokenizer: Numbers, device: str) -> Numbers:
    """Loads a tokenizer, on whatever device."""
    return tokenizer()


@dataclass
class Gallery:
    """Units of ``documents`` pictures each; the result is their codes, in order.

    Attributes:
        dies: pictures at which the worker dies by SIGKILL, the first time.
    """

    tokenizer: Numbers
    endpoint: Endpoint | None = None
    documents: int = 20
    dies: tuple[int, ...] = ()

    def open(self) -> GalleryWork:
        return GalleryWork(self)

    @contextmanager
    def placed(self, encoders: Mapping[str, tuple[Endpoint, ...]]) -> Iterator[Gallery]:
        """As workers on another machine do it, with the encoder there."""
        yield replace(self, endpoint=encoders["encoders"][0])


@dataclass
class GalleryWork:
    task: Gallery

    def process(self, planned: PlannedUnit, report: Report) -> list[int]:
        return self._go(planned, report, range(self.task.documents))

    def probe(self, planned: PlannedUnit, report: Report, first: int, last: int) -> int:
        wanted = range(first, min(last, self.task.documents))
        self._go(planned, report, wanted)
        return len(wanted)

    def _go(self, planned: PlannedUnit, report: Report, wanted: range) -> list[int]:
        encoder: BatchEncoder = LocalEncoder(self.task.tokenizer, BATCH)
        if self.task.endpoint is not None:
            encoder = RemoteEncoder(self.task.endpoint, lambda: report(Work()))
        batcher, slots = ImageBatcher(encoder, BATCH), []
        poison = {p.position for p in planned.poison}
        for position in wanted:
            if position not in poison:
                slots.append(Slot(Image(b"", "")))
                batcher.add(position, slots[-1], paint(number := 1000 * planned.index + position))
                mark = self.task.tokenizer.folder / f"worker-{number}"
                if number in self.task.dies and not mark.exists():
                    mark.touch()
                    misbehave("SIGKILL")
            report(Work(documents=1, at=f"{planned.unit.file}#{position}"))
            if batcher.full():
                batcher.run()
        while batcher.oldest is not None:
            batcher.run()
        while batcher.receive():
            report(Work())
        batcher.close()
        return [int(slot.codes.item()) for slot in slots if slot.codes is not None]


# ---- what comes of it


def everything(count: int, documents: int = 20) -> dict[int, list[int]]:
    """The codes of all pictures, by unit."""
    return {index: [1000 * index + i for i in range(documents)] for index in range(count)}


def loads(folder: Path) -> int:
    """How often :class:`Numbers` was loaded."""
    return len((folder / "encoders").read_text().splitlines())
