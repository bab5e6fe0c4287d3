"""``manifest.json`` of a feature cache: what it holds, of which encoder, and that it adds up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokkit.errors import DataError
from tokkit.features.precision import StoredDtype
from tokkit.shards.manifest import NAME, RemovalEntry, RunManifest, product_of, refuse_url, unfinished
from tokkit.storage import read_json

FORMAT = "tokkit-features"
VERSION = 1


class FeatureTotals(BaseModel):
    """What a split holds of features.

    Attributes:
        items, missing: with features, and those of which only the place is kept.
        tokens, bytes: of features; the bytes are those of the ``.bin`` files.
        error, worst_error: relative root mean square error of the stored form: the mean over the items, and the largest.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    items: int
    missing: int
    tokens: int
    bytes: int
    error: float
    worst_error: float


class CacheManifest(RunManifest):
    """The content of ``manifest.json`` beside features. ``tokens`` of a split are text ids and feature tokens, apart by kind.

    Attributes:
        dtype: the stored form (:mod:`tokkit.features.precision`).
        dim, pooled_dim: of a token's features, and of the pooled embedding where there is one.
        text_vocab_size: every text id is below it.
        encoder: what the encoder says of itself: model, layers, preprocessing, tiling, licence.
        features: by split.
        removals: as of token shards.
    """

    format: Annotated[str, Field(pattern=f"^{FORMAT}$")] = FORMAT
    version: int = VERSION
    dtype: StoredDtype
    dim: int
    pooled_dim: int | None
    modality: str
    text_vocab_size: int
    encoder: dict[str, object]
    features: dict[str, FeatureTotals]
    removals: list[RemovalEntry] = Field(default_factory=list)


def is_cache(directory: Path) -> bool:
    """Whether a directory is, or is to become, a feature cache rather than token shards."""
    return product_of(directory) == "features"


def load_cache_manifest(directory: Path) -> CacheManifest:
    """Read ``manifest.json``.

    Raises:
        DataError: there is none (with what to do), or it is damaged, of another version or of token shards.
    """
    path = directory / NAME
    if not path.exists():
        if (directory / "run").is_dir():
            raise unfinished(directory)
        refuse_url(directory)
        raise DataError(f"{directory} holds no feature cache (no {NAME})")
    entry = read_json(path)
    if isinstance(entry, dict):
        if entry.get("format") == "tokkit-shards":
            raise DataError(f"{directory} holds token shards, not a feature cache")
        if entry.get("format") == FORMAT and entry.get("version") != VERSION:
            raise DataError(f"{path} has format version {entry.get('version')}; this tokkit reads version {VERSION}")
    try:
        return CacheManifest.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
