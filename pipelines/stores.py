"""The picture stores of a run (``--images``): found, indexed once, and what they came to."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokkit.errors import BudgetExceeded, DataError
from tokkit.pipelines.progress import Progress
from tokkit.shards.manifest import DamageEntry, StoreTotals

if TYPE_CHECKING:
    from tokkit.pipelines.output import Output
    from tokkit.sources.base import Source
    from tokkit.sources.stores.lookup import PictureStores

FOLDER = "stores"
SHOWN = 10  # damaged places that are logged


def picture_stores(typed: Sequence[str], out: Path) -> PictureStores | None:
    """The stores that a run names; their index lies under ``out``. None where it names none.

    Raises:
        ConfigError: what is wrong with them, all of it.
    """
    if not typed:
        return None
    from tokkit.sources.stores.kinds import resolve_stores
    from tokkit.sources.stores.lookup import PictureStores

    return PictureStores(resolve_stores(typed), out / "run" / FOLDER)


def index_stores(stores: PictureStores, progress: Progress, *, strict: bool = False) -> None:
    """Index the stores, unless they are, and tell what cannot be read of them.

    Raises:
        BudgetExceeded: with ``strict``, where anything cannot.
    """
    total = sum(store.bytes for store in stores.stores)
    with progress.task("images", total=total / 1e6, unit="MB") as task:
        new = stores.build(lambda size: task.advance(size / 1e6))
    damage = [
        (f"{store.name}/{found.locator}: {found.reason}: {found.message}")
        for store, summary in zip(stores.stores, stores.summaries(), strict=True)
        for found in summary.damage
    ]
    if strict and damage:
        raise BudgetExceeded(f"--strict stops at the first damage: {damage[0]}")
    if new:
        for line in damage[:SHOWN]:
            progress.log(f"damaged: {line}")
        if len(damage) > SHOWN:
            progress.log(f"damaged: {len(damage) - SHOWN} more places, all of them in manifest.json")


def placed_sources(sources: Mapping[str, Source], out: Path) -> dict[str, Source]:
    """The sources for workers that have another folder of the output, on another machine: they look for the index in it."""
    from tokkit.sources.stores.lookup import PictureStores

    placed = dict(sources)
    for name, source in sources.items():
        stores = source.options.stores
        if stores is not None:
            placed[name] = copy.copy(source)
            placed[name].options = replace(source.options, stores=PictureStores(stores.stores, out / "run" / FOLDER))
    return placed


def bring_index(sources: Iterable[Source], output: Output) -> None:
    """Have the stores' index here, which another process made, unless it is.

    Raises:
        TransientError: the output's store did not give it.
    """
    stores = next((source.options.stores for source in sources if source.options.stores is not None), None)
    if stores is None:
        return
    try:
        stores.summaries()
    except DataError:
        output.pull(f"run/{FOLDER}/")


def store_totals(stores: PictureStores | None, found: Mapping[str, int]) -> list[StoreTotals]:
    """What the manifest says of the stores.

    Args:
        found: pictures by the store that they were found in.
    """
    if stores is None:
        return []
    return [
        StoreTotals(
            name=store.name,
            kind=store.kind,
            files=len(store.files),
            bytes=store.bytes,
            entries=summary.entries,
            failed=summary.failed,
            found=found.get(store.name, 0),
            damage=[
                DamageEntry(file=d.locator, start=d.start, stop=d.stop, reason=d.reason, message=d.message)
                for d in summary.damage
            ],
        )
        for store, summary in zip(stores.stores, stores.summaries(), strict=True)
    ]
