"""``manifest.json``: what an output directory holds, where it came from, and that it adds up.

It is written last: a directory without one is not finished. Everything in it is a function of inputs, options and numeric
environment; times and hosts are under ``run/``.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokkit.errors import DataError, UsageError
from tokkit.interleave import Layout
from tokkit.storage import read_json, sha256_file

FORMAT = "tokkit-shards"
VERSION = 1
NAME = "manifest.json"

REMOVED = "removed"
"""The reason of a document that was committed, and taken out of the finished output."""

Counts = dict[str, int]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShardFile(_Model):
    """One file: its name within its folder, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


class Shard(_Model):
    """One shard of a split: ``files`` by suffix (``bin``, ``idx``, ``parquet``)."""

    documents: int
    tokens: int
    files: dict[str, ShardFile]


class Split(_Model):
    """What a split holds; ``tokens_by_kind`` adds up to ``tokens``: each modality's spans, and ``marker`` for document ends."""

    documents: int
    tokens: int
    tokens_by_kind: Counts
    shards: list[Shard]


class SourceTotals(_Model):
    """One source: its files, and what became of every document and media item in it (counts by outcome).

    ``counted_documents`` and ``counted_items`` were taken apart from the pipeline (None where damage makes it unknowable);
    ``counted_others`` is what is in the files and is no document, by kind (requests and styles of a web archive).
    ``images_from`` are its pictures that were found in a store, by store; ``kept_markers`` the missing ones whose place is
    marked.
    """

    name: str
    format: str
    files: int
    bytes: int
    units: int
    documents: Counts
    items: dict[str, Counts]
    reasons: Counts
    container_errors: int
    counted_documents: int | None
    counted_items: dict[str, int]
    counted_others: dict[str, int] = Field(default_factory=dict)
    images_from: Counts = Field(default_factory=dict)
    kept_markers: int = 0


class DamageEntry(_Model):
    """A stretch of a file that could not be read."""

    file: str
    start: int
    stop: int
    reason: str
    message: str


class StoreTotals(_Model):
    """A picture store: its files, what its index knows of them, and how many pictures of documents were found in it.

    ``entries`` may be had, ``failed`` were never downloaded (img2dataset says why of each); a folder is not indexed.
    """

    name: str
    kind: str
    files: int
    bytes: int
    entries: int
    failed: int
    found: int
    damage: list[DamageEntry]


class TokenizerEntry(_Model):
    """A tokenizer that was used: enough to find it again and to know what its licence asks."""

    kind: str
    name: str
    fingerprint: str
    licence: str | None
    lossless: bool | None = None
    detail: dict[str, object] = Field(default_factory=dict)


class LayoutEntry(_Model):
    """How media are laid out between their markers (:class:`tokkit.interleave.Layout`)."""

    image: str
    image_grid: tuple[int, int] | None
    gaps: bool = False
    audio: str = "flat"
    audio_delays: tuple[int, ...] = ()

    @property
    def layout(self) -> Layout:
        """What decoding takes."""
        return Layout(self.image, self.image_grid, self.gaps, self.audio, self.audio_delays)  # type: ignore[arg-type]

    @classmethod
    def of(cls, layout: Layout) -> LayoutEntry:
        """What is written down of a layout."""
        return cls(**asdict(layout))


class EnvironmentEntry(_Model):
    """A numeric environment: its fingerprint and components, and how many work units were encoded in it."""

    fingerprint: str
    numeric: dict[str, object]
    units: int


class AgreementEntry(_Model):
    """Documents that were committed in one numeric environment, encoded again in another, and compared.

    Attributes:
        committed_in, encoded_again_in: fingerprints of the two.
        units: work units that the documents are from.
        documents, equal_documents: compared, and those of them that are equal in every respect.
        tokens, equal_tokens: of these documents; at the same place.
        codes, equal_codes: tokens that are codes of media.
        lowest: the smallest share of equal tokens in one document.
    """

    committed_in: str
    encoded_again_in: str
    units: int
    documents: int
    equal_documents: int
    tokens: int
    equal_tokens: int
    codes: int
    equal_codes: int
    lowest: float

    def told(self) -> str:
        """In words."""
        codes = f", {self.equal_codes:,} of {self.codes:,} media codes" if self.codes else ""
        documents = f"{self.equal_documents:,} of {self.documents:,} documents from {self.units:,} units are equal"
        pair = f"{self.committed_in[:12]} (committed) and {self.encoded_again_in[:12]} (encoded again)"
        return f"{pair}: {documents}, {self.equal_tokens:,} of {self.tokens:,} tokens{codes}"


class CalibrationEntry(_Model):
    """How far a fast mode of encoding agrees with float32, on pictures of the run's own.

    Attributes:
        numeric: fingerprint of the environment that it was measured in.
        precision, acceleration: the mode (:mod:`tokkit.tokenizers.image.bulk`).
        pictures, codes, equal_codes: that were encoded both ways; codes in all, and those that are equal.
        overflowed: pictures that float16 could not hold, and that were encoded in float32 therefore.
    """

    numeric: str
    precision: str
    acceleration: str
    pictures: int
    codes: int
    equal_codes: int
    overflowed: int

    @property
    def seen(self) -> int:
        """Pictures that were compared."""
        return self.pictures

    @property
    def agreement(self) -> float:
        """Share of equal codes; 1 where there was no picture."""
        return self.equal_codes / self.codes if self.codes else 1.0

    def told(self) -> str:
        """In words."""
        mode = self.precision + ("" if self.acceleration == "none" else f" with {self.acceleration}")
        if not self.pictures:
            return f"{mode} was not compared with fp32: the documents that were looked at hold no picture"
        counted = f"{self.equal_codes:,} of {self.codes:,}, {self.pictures} pictures"
        return f"{mode} keeps {self.agreement:.2%} of fp32's codes ({counted})"


class FeatureCalibrationEntry(_Model):
    """How far a fast mode of encoding agrees with float32's features, on items of the run's own.

    Attributes:
        numeric, precision, acceleration: as for codes.
        items, tokens: that were encoded both ways; an item's pooled embedding is a token too.
        error: relative error: root mean square of the difference over that of float32's features; of all tokens together.
        worst_error: that of the worst item.
        cosine: the least between a token and float32's.
        overflowed: items that float16 could not hold, and that were encoded in float32 therefore.
    """

    numeric: str
    precision: str
    acceleration: str
    items: int
    tokens: int
    error: float
    worst_error: float
    cosine: float
    overflowed: int

    @property
    def seen(self) -> int:
        """Items that were compared."""
        return self.items

    @property
    def agreement(self) -> float:
        """1 less the relative error; 1 where there was no item."""
        return 1.0 - self.error

    def told(self) -> str:
        """In words."""
        mode = self.precision + ("" if self.acceleration == "none" else f" with {self.acceleration}")
        if not self.items:
            return f"{mode} was not compared with fp32: the documents that were looked at hold nothing to encode"
        return (
            f"{mode} is within {self.error:.2%} of fp32's features (the worst of {self.items} items {self.worst_error:.2%}, "
            f"the least cosine of {self.tokens:,} tokens {self.cosine:.6f}): agreement {self.agreement:.4f}"
        )


AnyCalibration = CalibrationEntry | FeatureCalibrationEntry


class Mixed(_Model):
    """What an output that several numeric environments share says of them: each with its units, and how far they agree."""

    environments: list[EnvironmentEntry]
    agreements: list[AgreementEntry]


class RemovalEntry(_Model):
    """Documents that were taken out of a finished output (``tokkit remove``).

    Attributes:
        of: the digest of the manifest of the version that they were in.
        names: how many names were asked for.
        names_digest: identifies them, and how documents were found by them.
        documents, tokens: that were removed; ``items`` are the media items in them, by modality.
    """

    of: str
    names: int
    names_digest: str
    documents: int
    tokens: int
    items: Counts


class RunManifest(_Model):
    """What the manifest of every product says of its run.

    Attributes:
        semantic: fingerprint of everything that decides the output, and its components.
        numeric: fingerprint of the numeric environment that began the run, and its components.
        calibrations: how far a fast mode of encoding agrees with float32, where one was used.
        mixed: where others took part (``--allow-mixed``), all of them; each unit's commit record names its own.
        trial: where the run was one of ``--limit N``, how much of the input it saw; such a directory is a sample.
        stores: the picture stores of ``--images``.
        ignored: files of the input folders that belong to no source, counted by why (each is in ``run/ignored.jsonl``).
        commits, rejects: SHA-256 over the names and checksums of those folders' files.
        files: the files beside the manifest that it vouches for (such as ``config.json``), by name.
        digest: SHA-256 of all of the above (:func:`tokkit.storage.digest_of`); set where the manifest is written.
    """

    format: str
    version: int
    tokkit: str
    semantic: dict[str, object]
    semantic_fingerprint: str
    numeric: dict[str, object]
    numeric_fingerprint: str
    calibrations: list[AnyCalibration] = Field(default_factory=list)
    mixed: Mixed | None = None
    tokenizers: dict[str, TokenizerEntry]
    trial: dict[str, object] | None
    sources: list[SourceTotals]
    stores: list[StoreTotals] = Field(default_factory=list)
    ignored: Counts
    units: int
    documents: Counts
    items: dict[str, Counts]
    container_errors: int
    splits: dict[str, Split]
    commits: str
    rejects: str
    files: dict[str, ShardFile] = Field(default_factory=dict)
    digest: str = ""


class Manifest(RunManifest):
    """The content of ``manifest.json`` beside token shards.

    Attributes:
        vocabulary_origin: ``built``, or the released model whose ids these are.
        removals: what was taken out of it since the run, version by version; its documents are ``filtered`` as ``removed``.
    """

    format: Annotated[str, Field(pattern=f"^{FORMAT}$")] = FORMAT
    version: int = VERSION
    dtype: str
    vocabulary_size: int
    vocabulary_fingerprint: str
    vocabulary_origin: str = "built"
    layout: LayoutEntry
    removals: list[RemovalEntry] = Field(default_factory=list)


def file_entry(path: Path) -> ShardFile:
    """A file as it is now."""
    return ShardFile(name=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))


def product_of(directory: Path) -> str | None:
    """Which product a directory holds, or is to hold once its run is finished, as its fingerprint has it: ``features``; None
    of token shards, and of what is no output."""
    for name in (NAME, "config.json"):
        try:
            semantic = read_json(directory / name).get("semantic")
            return semantic.get("product") if isinstance(semantic, dict) else None
        except (DataError, OSError, AttributeError):
            continue  # what is wrong with it is told by whoever reads it for what it says
    return None


def unfinished(directory: Path) -> DataError:
    """What to say of a directory in which a run has begun, and that has no manifest."""
    command = "tokkit features" if product_of(directory) == "features" else "tokkit shard"
    return DataError(f"{directory} is not finished: run the same `{command}` command again to complete it")


def refuse_url(directory: Path) -> None:
    """Say of a URL that it is one: what reads an output maps its files, which must lie on a disk.

    Raises:
        UsageError: ``directory`` is a URL that was taken for a path.
    """
    found = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+([^/].*)", str(directory))
    if found is not None:
        raise UsageError(
            f"{found[1]}://{found[2]} is in an object store, and files are mapped from a disk here: download it first (for S3 "
            f"by `aws s3 sync`), all but run/. A URL is taken by `tokkit verify`, `inspect`, `pack` and `finish`, and by --out "
            f"of what makes it"
        )


def load_manifest(directory: Path) -> Manifest:
    """Read ``manifest.json``.

    Raises:
        DataError: there is none (with what to do), or it is damaged or of another version.
    """
    path = directory / NAME
    if not path.exists():
        if (directory / "run").is_dir():
            raise unfinished(directory)
        refuse_url(directory)
        raise DataError(f"{directory} holds no token shards (no {NAME})")
    entry = read_json(path)
    if isinstance(entry, dict) and entry.get("format") == "tokkit-features":
        raise DataError(
            f"{directory} holds a feature cache, not token shards; tokkit verify and tokkit export take it, and "
            f"tokkit.data.features reads it"
        )
    if isinstance(entry, dict) and entry.get("format") == FORMAT and entry.get("version") != VERSION:
        raise DataError(f"{path} has format version {entry.get('version')}; this tokkit reads version {VERSION}")
    try:
        return Manifest.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
