"""``report.html`` of a feature cache: one page that shows what it holds. No times or hosts: it is the same
whoever makes it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined

from tokkit.documents import Outcome
from tokkit.failpoints import failpoint
from tokkit.features.manifest import CacheManifest, load_cache_manifest
from tokkit.features.store import FeatureCache
from tokkit.places import Place
from tokkit.storage import canonical_json, write_atomic

NAME = "report.html"
MOST_LENGTHS = 24  # different token counts that the page lists


def write_features_report(directory: Path, place: Place | None = None) -> Path:
    """Write ``report.html`` into a finished directory; ``place`` is where its shards lie, if not there.

    Raises:
        DataError: the directory is damaged.
    """
    manifest = load_cache_manifest(directory)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = lambda n: f"{n:,}"
    environment.filters["megabytes"] = lambda n: f"{n / 1e6:,.1f}"
    environment.filters["share"] = lambda x: f"{100 * x:.3g} %"
    template = environment.from_string((files(__package__) / "templates" / "features.html.j2").read_text("utf-8"))
    page = template.render(
        manifest=manifest,
        outcomes=_outcomes(manifest),
        reasons=_reasons(manifest),
        lengths=_lengths(directory, manifest, place),
        encoder=[(name, canonical_json(value)) for name, value in sorted(manifest.encoder.items())],
    )
    failpoint("in-report")
    write_atomic(directory / NAME, page.encode("utf-8", "backslashreplace"))
    return directory / NAME


def _outcomes(manifest: CacheManifest) -> list[str]:
    seen = {o for s in manifest.sources for counts in [s.documents, *s.items.values()] for o in counts}
    return [outcome.value for outcome in Outcome if outcome.value in seen]


def _reasons(manifest: CacheManifest) -> list[tuple[str, int]]:
    total: dict[str, int] = {}
    for source in manifest.sources:
        for reason, count in source.reasons.items():
            total[reason] = total.get(reason, 0) + count
    return sorted(total.items(), key=lambda entry: (-entry[1], entry[0]))


def _lengths(directory: Path, manifest: CacheManifest, place: Place | None) -> list[tuple[int, int]]:
    """How many items have so many tokens: the most frequent counts."""
    found = [FeatureCache(directory, manifest, split, place).lengths for split in manifest.splits]
    values, counts = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]), return_counts=True)
    listed = sorted(zip(values.tolist(), counts.tolist(), strict=True), key=lambda entry: (-entry[1], entry[0]))
    return sorted(listed[:MOST_LENGTHS])
