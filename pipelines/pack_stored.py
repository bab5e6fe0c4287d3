"""``tokkit pack`` on an output in an object store: the plan is made here and uploaded; the shards are read where they lie.

A plan's files go up before its record does, and one without a record is none, so a command that was killed leaves nothing that
could be taken for a plan. One process at a time packs an output, by a lease there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from tokkit.errors import UsageError
from tokkit.failpoints import failpoint
from tokkit.object_store import ObjectStore, in_threads, object_store
from tokkit.packing.store import RECORD
from tokkit.pipelines.object_leases import StoredLeases
from tokkit.pipelines.output import TRANSFERS, described
from tokkit.pipelines.pack import AdviseConfig, AdviseResult, PackConfig, PackResult, advise_seq_len, pack
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.settings import validated

LEASE, LEASE_SECONDS = "pack", 60.0


def pack_stored(url: str, options: Mapping[str, object], progress: Progress, scratch: Path | None = None) -> PackResult:
    """Make sure that every split of an output in a store has the plan that is asked for.

    Args:
        options: those of :class:`~tokkit.pipelines.pack.PackConfig`, but for the directory.
        scratch: folder on this machine's disk to work in.

    Raises:
        UsageError: rows are asked for, which are written from files only.
        As :func:`tokkit.pipelines.pack.pack`.
    """
    store = object_store(url)
    with described(url, scratch) as (folder, place):
        config = validated(PackConfig, "tokkit pack", {**options, "directory": folder})
        if config.materialize:
            raise UsageError(
                f"{url}: --materialize writes rows beside shards that are files: plan without it, or download the output first"
            )
        waiting = f"waiting for {{}}, which packs {url}"
        with (
            StoredLeases(store, LEASE_SECONDS) as leases,
            leases.hold(LEASE, lambda holder: progress.log(waiting.format(holder))),
        ):
            base = f"packs/{config.plan_name}"
            _fetch(store, folder, base)
            found = pack(config, progress, place)
            for split, result in found.splits.items():
                if result.written:
                    _put(store, folder, f"{base}/{split}")
        splits = {name: replace(split, folder=f"{store.url}/{base}/{name}") for name, split in found.splits.items()}
        return PackResult(found.name, splits)


def advise_stored(url: str, options: Mapping[str, object], progress: Progress, scratch: Path | None = None) -> AdviseResult:
    """Say what sequence lengths would come to; as :func:`pack_stored`."""
    with described(url, scratch) as (folder, place):
        return advise_seq_len(validated(AdviseConfig, "tokkit pack", {**options, "directory": folder}), progress, place)


def _fetch(store: ObjectStore, folder: Path, base: str) -> None:
    """Have the splits' plans of that name here that are there whole; of rows nothing."""
    files = [PurePosixPath(name) for name in store.listed(base)]
    whole = {file.parent for file in files if file.name == RECORD}
    in_threads(lambda file: store.download(str(file), folder / file), (f for f in files if f.parent in whole), TRANSFERS)


def _put(store: ObjectStore, folder: Path, plan: str) -> None:
    names = sorted(path.name for path in (folder / plan).iterdir() if path.is_file() and path.name != RECORD)
    in_threads(lambda name: store.upload(f"{plan}/{name}", folder / plan / name), names, TRANSFERS)
    failpoint("before-plan-record")
    store.upload(f"{plan}/{RECORD}", folder / plan / RECORD)
