"""Random numbers that belong to a place in a run and not to its history: a resumed run draws what it would have drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_of(*what: int) -> int:
    """A seed for torch's generator from several numbers."""
    return int.from_bytes(hashlib.sha256(repr(what).encode()).digest()[:8], "big") >> 1


@contextmanager
def seeded(*what: int) -> Iterator[None]:
    """Torch's generator started from some numbers; the caller's is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*what))
        yield
