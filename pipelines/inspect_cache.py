"""``tokkit inspect --document`` on a feature cache: a document's text with the places of its media, and their features.

A frozen encoder has no way back to the picture, so what is shown of an item is what the index says of it; with ``--out`` its
features are written as ``features-N.npy`` (float32), and the text beside them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tokkit.features.manifest import load_cache_manifest
from tokkit.features.store import FeatureCache, ItemEntry
from tokkit.pipelines.decoding import find_document, recorded_tokenizer, same_tokenizer
from tokkit.pipelines.inspect import InspectConfig, InspectedDocument, InspectedPart
from tokkit.pipelines.progress import Progress
from tokkit.places import Place
from tokkit.storage import replacing, write_atomic


def inspect_cached(config: InspectConfig, progress: Progress, place: Place | None = None) -> InspectedDocument:
    """Show one document; with ``out`` also write it there. ``place`` is where the shards lie, if not in the directory.

    Raises:
        UsageError: there is no such document, or the text tokenizer is gone.
        DataError: the cache is not finished or damaged, or was made with another text tokenizer.
    """
    from tokkit.tokenizers.text import load_text_tokenizer

    manifest = load_cache_manifest(config.directory)
    caches = {split: FeatureCache(config.directory, manifest, split, place) for split in manifest.splits}
    path = recorded_tokenizer(config.directory, "text", config.text_tokenizer)
    tokenizer = load_text_tokenizer(path)
    same_tokenizer(manifest.tokenizers["text"], tokenizer.fingerprint, path)
    counts = {split: cache.num_documents for split, cache in caches.items()}
    split, number = find_document(
        config.document, config.directory, counts, lambda split: caches[split].document_tables(["id", "source", "locator"])
    )
    cache = caches[split]
    document = cache.document(number)
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
    parts: list[InspectedPart] = []
    markdown: list[str] = []
    at = 0

    def text(until: int) -> None:
        nonlocal at
        if until > at:
            said = tokenizer.decode(document.ids[at:until])
            parts.append(InspectedPart("text", until - at, text=said))
            markdown.append(said)
            at = until

    for nth, item in enumerate(document.items):
        entry = cache.entry(item)
        text(entry.position)
        if not entry.length and cache.pooled(item) is None:
            parts.append(InspectedPart(f"missing {entry.modality}", 0))
            markdown.append(f"[{_article(entry.modality)} that is missing]")
            continue
        name = None
        if config.out is not None:
            name = f"features-{nth}.npy"
            with replacing(config.out / name) as temporary, temporary.open("wb") as file:
                np.save(file, cache.dense(item), allow_pickle=False)
        shape = (entry.length, cache.dim)
        parts.append(InspectedPart(entry.modality, entry.length, shape=shape, file=name, detail=_told(entry)))
        markdown.append(f"[{_article(entry.modality)}: {entry.length} x {cache.dim} features{f', {name}' if name else ''}]")
    text(len(document.ids))
    if config.out is not None:
        write_atomic(config.out / "document.md", "\n\n".join(markdown).encode("utf-8", "backslashreplace"))
        progress.log(f"wrote {config.out}/document.md and the features of {len(document.items)} items")
    return InspectedDocument(split, number, _row(cache, number), parts)


def _row(cache: FeatureCache, number: int) -> dict[str, Any]:
    """A document's row; ``tokens`` are its text ids and features."""
    first = 0
    for table in cache.document_tables():
        if number < first + table.num_rows:
            row = table.slice(number - first, 1).to_pylist()[0]
            return {**row, "tokens": row["tokens"] + row["features"]}
        first += table.num_rows
    raise IndexError(number)


def _article(modality: str) -> str:
    return {"image": "a picture", "audio": "a sound"}.get(modality, f"a {modality}")


def _told(entry: ItemEntry) -> str:
    """What the index says of an item, in a few words."""
    said = [f"of {entry.width} samples" if entry.modality == "audio" else f"of {entry.width} x {entry.height} pixels"]
    if entry.grid is not None:
        said.append(f"grid {entry.grid[0]} x {entry.grid[1]}")
    if len(entry.tiles) > 1:
        said.append(f"{len(entry.tiles)} views")
    if entry.thw is not None:
        said.append("frames, rows and columns " + " x ".join(map(str, entry.thw)))
    if entry.valid is not None:
        said.append(f"{entry.valid} valid frames")
    if entry.error:
        said.append(f"stored within {entry.error:.2g} of their size")
    return ", ".join(said)
