"""What a run left out only because nothing was named that takes it, and what to name: told where the run ends.

Such a run is no failure (a mixed corpus may be wanted for its texts alone), and every document has its outcome and reason; but
nobody is to find an output without sounds, or one that is empty, and wonder.
"""

from __future__ import annotations

from tokkit.documents import Outcome
from tokkit.pipelines.finish import add_counts
from tokkit.shards.manifest import Counts, RunManifest

_NAMES = {"image": ("picture", "pictures"), "audio": ("sound", "sounds")}
_OTHER = {"image": "audio", "audio": "image"}


def lacking(reasons: Counts, documents: Counts) -> list[str]:
    """Warnings, one a line of text; none where nothing was left out that way.

    Args:
        reasons: of documents and items that were not committed, by ``level/outcome/reason``.
        documents: by outcome.
    """
    found = []
    for modality, (one, many) in _NAMES.items():
        for what in ("tokenizer", "encoder"):
            reason = f"{Outcome.FILTERED}/no-{modality}-{what}"
            items, with_them = reasons.get(f"item/{reason}", 0), reasons.get(f"document/{reason}", 0)
            if items:
                left = f"{items:,} {one if items == 1 else many} left out" + _documents(with_them, items)
                found.append(f"{left}: {_remedy(modality, what)}")
    if documents and not documents.get(Outcome.COMMITTED):
        found.append("no document was committed" + (": see above" if found else ": see the reasons"))
    return found


def warnings_of(manifest: RunManifest) -> list[str]:
    """The same of a finished output."""
    return lacking(add_counts(source.reasons for source in manifest.sources), manifest.documents)


def _documents(count: int, items: int) -> str:
    if not count:
        return ""
    return f", and {count:,} {'document' if count == 1 else 'documents'} with {'it' if items == 1 else 'them'}"


def _remedy(modality: str, what: str) -> str:
    many = _NAMES[modality][1]
    if what == "tokenizer":
        return f"this run has no {modality} tokenizer; to have them, name one with --{modality}-tokenizer and another --out"
    other = _NAMES[_OTHER[modality]][1]
    return f"this run's encoder takes {other}; to have them, name one for {many} with --encoder and another --out"
