"""What a run makes of its documents: the part of the job that differs between token shards and feature caches.

Inputs, plan, leases, workers, ledger, accounts, rejects and the order in which all of it happens are the same for every product
(:mod:`tokkit.pipelines.shard`, :mod:`~tokkit.pipelines.completion`); a product says what a unit's documents become, how the
payloads of all units are put together, and what the fingerprints cover.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from tokkit.pipelines.calibration import Calibration
    from tokkit.pipelines.completion import Run
    from tokkit.pipelines.duplicates import DuplicateTable
    from tokkit.pipelines.encoder import Serves
    from tokkit.pipelines.ledger import CommitRecord
    from tokkit.pipelines.pack import SplitResult
    from tokkit.pipelines.prepare import Setup
    from tokkit.pipelines.shard import ShardConfig
    from tokkit.pipelines.unit import UnitJob
    from tokkit.shards.manifest import RunManifest, Split
    from tokkit.sources.resolve import ResolvedInputs


EncoderField = Literal["encoders", "sound_encoders"]  # of a unit's job


@dataclass(frozen=True)
class EncoderKind:
    """A kind of encoder processes.

    Attributes:
        load: gives what encodes, on a device; picklable.
        batch_size: items of the batches that each call of it has.
    """

    load: Callable[[str], Serves]
    batch_size: int


class Product(Protocol):
    """A product; each method is a function of what it is given, and what it writes appears whole or not at all."""

    def prepare(self, config: ShardConfig, resolved: ResolvedInputs, filters: dict[str, str] | None) -> Setup:
        """Load once what encodes, to know both fingerprints; ``filters`` are the digests of functions not to be loaded."""

    def begin(self, out: Path, setup: Setup) -> None:
        """Write what belongs to the output as a whole and is known before the first unit."""

    def job(self, run: Run, duplicates: DuplicateTable | None) -> UnitJob:
        """What workers do with a unit: its payload, and the counts of its commit record."""

    def encoders(self, run: Run) -> dict[EncoderField, EncoderKind]:
        """What may be encoded by processes for all workers, by the field of the job that says where these are."""

    def calibration(self, run: Run) -> Calibration | None:
        """How far what encodes agrees with plain float32; None where it is that itself, or nothing is encoded."""

    def coalesce(self, run: Run, records: list[CommitRecord]) -> dict[str, Split]:
        """Write the shards of each split from the units' payloads, in unit order.

        Raises:
            VerificationError: a payload is not what its commit record says.
        """

    def manifest(self, run: Run, common: Mapping[str, Any]) -> RunManifest:
        """The manifest, from what is the same for all products (the fields of ``RunManifest``)."""

    def pack(self, run: Run) -> dict[str, SplitResult]:
        """Plans of packed sequences, where such are asked for."""

    def report(self, run: Run) -> None:
        """Write ``report.html``, unless it is there."""
