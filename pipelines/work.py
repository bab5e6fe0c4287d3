"""Amounts of work: what workers report while they are at it, and what a run's summary adds up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

STAGES = ("read", "decode", "encode", "text", "write", "count")


@dataclass(slots=True)
class Work:
    """Amounts of work, and seconds by stage; what progress reports and the run's summary add up."""

    documents: int = 0
    images: int = 0
    tokens: int = 0
    bytes: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    at: str = ""  # locator of the document read last

    def take(self) -> Work:
        """What has gathered since the last call."""
        taken = Work(self.documents, self.images, self.tokens, self.bytes, self.seconds, self.at)
        self.documents = self.images = self.tokens = 0
        self.bytes, self.seconds = 0.0, {}
        return taken

    def add(self, other: Work) -> None:
        self.documents += other.documents
        self.images += other.images
        self.tokens += other.tokens
        self.bytes += other.bytes
        for stage, seconds in other.seconds.items():
            self.spend(stage, seconds)

    def spend(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


Report = Callable[[Work], None]
