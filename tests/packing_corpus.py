"""Finished directories of token shards for the packing tests, written with the project's own writers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from shard_rows import Row, append

from tokkit.interleave import AudioCodes, ImageCodes, Layout, Part, Span, TextCodes, encode
from tokkit.shards.manifest import LayoutEntry, Manifest, Shard, Split
from tokkit.shards.native import ShardWriter
from tokkit.shards.spans import SpanTable
from tokkit.storage import write_atomic
from tokkit.vocabulary import MODALITIES, UnifiedVocabulary

VOCABULARY = UnifiedVocabulary.build(500, image_codebooks=[64], audio_codebooks=[16])
WIDE_VOCABULARY = UnifiedVocabulary.build(70_000, image_codebooks=[64], audio_codebooks=[16])

Encoded = tuple[np.ndarray, list[Span]]


def random_documents(
    count: int, seed: int = 0, *, longest_text: int = 60, vocabulary: UnifiedVocabulary = VOCABULARY, given: float = 0.0
) -> list[Encoded]:
    """Interleaved documents: text, pictures of 4 to 49 codes, sounds of up to 12; ``given`` is the share not to be learnt."""
    rng = np.random.default_rng(seed)
    documents = []
    for _ in range(count):
        parts: list[Part] = []
        for _ in range(rng.integers(0, 6)):
            kind = rng.integers(0, 4)
            if kind <= 1:
                ids = rng.integers(0, vocabulary.block("text").size, rng.integers(1, longest_text))
                parts.append(TextCodes(ids.astype(np.int32)))
            elif kind == 2:
                side = rng.integers(2, 8)
                parts.append(ImageCodes(rng.integers(0, 64, (1, side, side)).astype(np.int32)))
            else:
                parts.append(AudioCodes(rng.integers(0, 16, (1, rng.integers(1, 13))).astype(np.int32), 16_000, 1))
        if given:
            parts = [
                part if isinstance(part, AudioCodes) else replace(part, loss=bool(rng.random() >= given)) for part in parts
            ]
        documents.append(encode(parts, vocabulary, Layout()))
    return documents


def span_table(documents: Sequence[Encoded]) -> SpanTable:
    """The spans of documents as the shards give them."""
    flat = [s for _, spans in documents for s in spans]
    return SpanTable(
        np.cumsum([0, *(len(spans) for _, spans in documents)]),
        np.array([s.start for s in flat], dtype=np.int64),
        np.array([s.length for s in flat], dtype=np.int64),
        np.array([MODALITIES.index(s.modality) for s in flat], dtype=np.uint8),
    )


def write_directory(
    directory: Path,
    splits: dict[str, Sequence[Encoded]],
    *,
    per_shard: int = 7,
    vocabulary: UnifiedVocabulary = VOCABULARY,
    layout: Layout | None = None,
) -> Path:
    """A directory as ``tokkit shard`` leaves it, ``per_shard`` documents a shard."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = {split: _write_split(directory, split, documents, per_shard, vocabulary) for split, documents in splits.items()}
    manifest = Manifest(
        tokkit="0",
        dtype=vocabulary.dtype.name,
        vocabulary_size=vocabulary.size,
        vocabulary_fingerprint=vocabulary.fingerprint,
        layout=LayoutEntry.of(layout or Layout()),
        semantic={},
        semantic_fingerprint="",
        numeric={},
        numeric_fingerprint="",
        tokenizers={},
        trial=None,
        sources=[],
        ignored={},
        units=0,
        documents={},
        items={},
        container_errors=0,
        splits=entries,
        commits="",
        rejects="",
    )
    write_atomic(directory / "manifest.json", manifest.model_dump_json())
    vocabulary.save(directory / "vocabulary.json")
    return directory


def _write_split(
    directory: Path, split: str, documents: Sequence[Encoded], per_shard: int, vocabulary: UnifiedVocabulary
) -> Split:
    folder = directory / "tokens" / split
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, len(documents), per_shard):
        with ShardWriter(folder, vocabulary.dtype) as writer:
            part = enumerate(documents[first : first + per_shard], first)
            append(writer, [Row(f"{split}-{number}", ids, spans) for number, (ids, spans) in part], split)
            files = writer.finish(f"{first // per_shard:05d}")
            shards.append(Shard(documents=writer.documents, tokens=writer.tokens, files=files))
    tokens = sum(len(ids) for ids, _ in documents)
    return Split(documents=len(documents), tokens=tokens, tokens_by_kind={}, shards=shards)
