"""What jobs say of their inputs."""

from __future__ import annotations

from tokkit.pipelines.progress import Progress
from tokkit.sources.resolve import ResolvedInputs

SHOWN = 10  # files named; the rest are counted


def announce_ignored(resolved: ResolvedInputs, progress: Progress) -> None:
    """Say which files of the input folders are not read, and why."""
    for entry in resolved.ignored[:SHOWN]:
        progress.log(f"not read: {entry.path}: {entry.why}")
    if len(resolved.ignored) > SHOWN:
        progress.log(f"not read: {len(resolved.ignored) - SHOWN} more files")
