"""Amounts of work: what workers report while they are at it, and what a run's summary adds up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

STAGES = ("read", "filter", "decode", "encode", "text", "write", "count")


@dataclass(slots=True)
class Work:
    """Amounts of work, and seconds by stage; what progress reports and the run's summary add up."""

    documents: int = 0
    images: int = 0
    kinds: Counter[str] = field(default_factory=Counter)  # tokens by modality; ``marker`` for the documents' ends
    bytes: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    at: str = ""  # locator of the document read last
    encoder_seconds: float = 0.0  # that an encoder process was busy
    encoder_batches: int = 0
    encoder_fill: float = 0.0  # how full its queue was (0 to 1) when each of these was taken, summed up
    sounds: int = 0

    @property
    def tokens(self) -> int:
        return self.kinds.total()

    def take(self) -> Work:
        """What has gathered since the last call."""
        taken = Work(self.documents, self.images, self.kinds, self.bytes, self.seconds, self.at, sounds=self.sounds)
        self.documents = self.images = self.sounds = 0
        self.kinds, self.bytes, self.seconds = Counter(), 0.0, {}
        return taken

    def add(self, other: Work) -> None:
        self.documents += other.documents
        self.images += other.images
        self.sounds += other.sounds
        self.kinds.update(other.kinds)
        self.bytes += other.bytes
        self.encoder_seconds += other.encoder_seconds
        self.encoder_batches += other.encoder_batches
        self.encoder_fill += other.encoder_fill
        for stage, seconds in other.seconds.items():
            self.spend(stage, seconds)

    def without(self, lost: Work) -> Work:
        """The amounts less those of ``lost``; the seconds stay, since they were spent."""
        rest = Work(self.documents - lost.documents, self.images - lost.images, self.kinds - lost.kinds)
        rest.bytes, rest.seconds, rest.at = self.bytes - lost.bytes, dict(self.seconds), self.at
        rest.encoder_seconds, rest.encoder_batches = self.encoder_seconds, self.encoder_batches
        rest.encoder_fill, rest.sounds = self.encoder_fill, self.sounds - lost.sounds
        return rest

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


Report = Callable[[Work], None]
