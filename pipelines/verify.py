"""``tokkit verify``: whether an output directory agrees with itself, in every respect that can be told from its files.

Every file is there and has its checksum; the files are of one run; token files, indexes and document tables agree; every id
is in the range that its span asks for, every span fits its document, documents can be decoded; every document is there exactly
once and in its order; the outcomes of shards, commit records, reject lists, manifest and sources' own counts add up; packing
plans hold every document whole. With ``reencode`` a sample of documents is encoded again from the input and compared.

What the manifest vouches for by checksum is checked again by content, so that a writer's fault is found too. A shard that is
damaged is not read further; everything else is, so that all problems are told of at once. Memory does not grow with the number
of documents (:mod:`tokkit.pipelines.verify_tokens`, :mod:`~tokkit.pipelines.verify_once`), but where there are packing plans:
these are compared with the documents' lengths, 8 bytes each.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import TokkitError, UsageError
from tokkit.features.manifest import is_cache
from tokkit.pipelines.findings import Agreement, Code, Problem, VerifyResult
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.reencode import NOT_ENCODED_AGAIN
from tokkit.pipelines.reencode_tokens import TokenReencoder
from tokkit.pipelines.verify_files import (
    SUFFIXES,
    check_files,
    check_fingerprints,
    check_folder,
    check_vocabulary,
    read_manifest,
)
from tokkit.pipelines.verify_once import Once
from tokkit.pipelines.verify_originals import check_originals
from tokkit.pipelines.verify_outcomes import LINES, REJECTED, Records, check_sums, check_units, read_records
from tokkit.pipelines.verify_packs import check_packs
from tokkit.pipelines.verify_read import DocumentReader
from tokkit.pipelines.verify_tokens import REFERENCE, TokensChecker, UnitSums
from tokkit.shards.manifest import Manifest
from tokkit.shards.native import TokenShards
from tokkit.vocabulary import UnifiedVocabulary

__all__ = ["Agreement", "Code", "Problem", "VerifyConfig", "VerifyResult", "verify"]

PARSE_AT_MOST = 2000  # documents a split that are also parsed one by one; all are checked by their spans


class VerifyConfig(BaseModel):
    """What to check.

    Attributes:
        directory: the output of ``tokkit shard`` or ``tokkit features``.
        checksums: False leaves reading every byte out; everything else is done all the same.
        decode_at_most: documents of each split, evenly spread, that are also parsed with the decoder's grammar.
        reencode: documents that are read from the input and encoded again; 0 for none.
        seed: chooses these.
        text_tokenizer, image_tokenizer, audio_tokenizer, encoder: where they are now, if not where the run had them.
        filters: the user's own functions, in the run's order, where documents went through any.
        inputs: where sources are now, if not where the run had them: ``NAME=FOLDER``, or ``FOLDER`` where there is one source.
        images: where picture stores are now, all of them in the run's order, if not where the run had them.
        device: to encode on: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    checksums: bool = True
    decode_at_most: int = Field(default=PARSE_AT_MOST, ge=0)
    reencode: int = Field(default=0, ge=0)
    seed: int = Field(default=0, ge=0)
    text_tokenizer: Path | None = None
    image_tokenizer: Path | None = None
    audio_tokenizer: Path | None = None
    encoder: str | None = None
    filters: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    images: tuple[str, ...] = ()
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")


def verify(config: VerifyConfig, progress: Progress) -> VerifyResult:
    """Check a directory; every problem is in the result.

    Raises:
        DataError: it holds no output of tokkit's.
        UsageError: with ``reencode``: an input or a tokenizer is not where it was, or is another.
    """
    cache = is_cache(config.directory)
    others = ("image_tokenizer", "audio_tokenizer") if cache else ("encoder",)
    if given := [f"--{name.replace('_', '-')}" for name in others if getattr(config, name) is not None]:
        kind = "is a feature cache" if cache else "holds token shards"
        raise UsageError(f"{given[0]}: {config.directory} {kind}, which have no such part")
    if cache:
        from tokkit.pipelines.verify_features import verify_cache

        return verify_cache(config, progress)
    result = VerifyResult()
    manifest = read_manifest(config.directory, result)
    if manifest is None:
        return result
    vocabulary = check_vocabulary(config.directory, manifest, result)
    again = TokenReencoder(config, manifest, vocabulary, progress) if config.reencode and vocabulary is not None else None
    damaged = check_files(config.directory, manifest, config.checksums, result, progress)
    check_fingerprints(config.directory, manifest, result)
    expected = sum(n for n in manifest.documents.values() if n > 0)
    with Once(expected) as once:
        records = read_records(config.directory, manifest, once, result)
        check_folder(config.directory / "commits", {f"{i:05d}.json" for i in range(manifest.units)}, manifest.commits, result)
        check_folder(config.directory / "rejects", records.lists, manifest.rejects, result, records.unknown)
        check_sums(manifest, records, result)
        whole = _shards(config, manifest, vocabulary, records, damaged, once, result, progress)
        _repeated(config.directory, manifest, once, result)
    if whole and records.complete and not result.problem_count:

        def names(split: str) -> Iterator[pa.Table]:
            return TokenShards(config.directory, manifest, split).tables(["source", "locator"])

        check_originals(config.directory, manifest, names, result)
    if whole:
        _packs(config, manifest, result, progress)
    elif (config.directory / "packs").exists():
        result.skipped.append("packing plans: the shards that they are of are damaged")
    if again is not None and whole and records.complete:
        again.run(records, result, progress)
    elif config.reencode:
        result.skipped.append(NOT_ENCODED_AGAIN)
    return result


def _shards(
    config: VerifyConfig,
    manifest: Manifest,
    vocabulary: UnifiedVocabulary | None,
    records: Records,
    damaged: set[str],
    once: Once,
    result: VerifyResult,
    progress: Progress,
) -> bool:
    """Check every shard that can be; returns whether all could be."""
    if vocabulary is None:
        result.skipped.append("tokens, spans and document tables: they cannot be read without their vocabulary")
        return False
    layout = manifest.layout.layout
    fraction = manifest.semantic.get("val_fraction")
    sums, whole = UnitSums(manifest.units), True
    for number, (split, entry) in enumerate(manifest.splits.items()):
        checker = TokensChecker(
            directory=config.directory,
            split=split,
            number=number,
            vocabulary=vocabulary,
            layout=layout,
            places=records.places,
            val_fraction=float(fraction) if isinstance(fraction, int | float) else 0.0,
            parse=_spread(sum(s.documents for s in entry.shards), config.decode_at_most),
            sums=sums,
            once=once,
            result=result,
        )
        first = 0
        with progress.task(f"tokens of {split}", total=sum(s.tokens for s in entry.shards), unit="tokens") as task:
            for index, shard in enumerate(entry.shards):
                names = {f"tokens/{split}/{index:05d}.{suffix}" for suffix in SUFFIXES}
                if names & damaged or not checker.check(index, shard, first, task):
                    result.skipped.append(f"the contents of tokens/{split}/{index:05d}: the shard is damaged")
                    whole = False
                first += shard.documents
    if whole and records.complete:
        check_units(records, sums, result)
    elif not whole:
        result.skipped.append("each unit's documents and tokens: not all shards could be counted")
    return whole


def _spread(count: int, at_most: int) -> npt.NDArray[np.int64]:
    """Numbers of documents, evenly spread over ``count``, ascending."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, at_most)).astype(np.int64))


def _repeated(directory: Path, manifest: Manifest, once: Once, result: VerifyResult) -> None:
    """Name the documents that are there, or are spoken of, more than once."""
    splits = list(manifest.splits)

    def name(reference: int) -> str:
        if reference >= REJECTED:
            unit, line = divmod(reference - REJECTED, LINES)
            return f"rejects/{unit:05d}.jsonl line {line}"
        return f"{splits[reference // REFERENCE]} document {reference % REFERENCE}"

    for references in once.repeated():
        if not result.room(Code.DUPLICATE_DOCUMENT):
            result.more(Code.DUPLICATE_DOCUMENT, 1)
            continue
        first = references[0]
        where = name(first)
        if first < REJECTED:
            split = splits[first // REFERENCE]
            row = DocumentReader(directory, split, manifest.splits[split].shards).row(first % REFERENCE)
            where = f"{where} ({row['source']}/{row['locator']})"
        result.problem(Code.DUPLICATE_DOCUMENT, where, f"is there again as {', '.join(name(r) for r in references[1:6])}")
    result.look("document names compared", once.count)


def _packs(config: VerifyConfig, manifest: Manifest, result: VerifyResult, progress: Progress) -> None:
    if not (config.directory / "packs").is_dir():
        return
    try:
        shards = {split: TokenShards(config.directory, manifest, split) for split in manifest.splits}
    except (TokkitError, OSError) as error:
        result.problem(Code.PACK, "packs/", f"cannot be checked: {error}")
        return
    check_packs(config.directory, shards, config.checksums, result, progress)
