"""Verification, first part: whether the files are there, whole, and those of one run.

The manifest vouches for every file of the result but two kinds: packing plans, which have records of their own
(:mod:`tokkit.pipelines.verify_packs`), and ``report.html``, which is for people and can be made again. It vouches for itself
with a digest. ``run/`` is not the result and is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import get_args

from tokkit.audio_layouts import AudioLayout
from tokkit.errors import DataError, TokkitError
from tokkit.interleave import ImageLayout
from tokkit.pipelines.findings import Code, VerifyResult
from tokkit.pipelines.fingerprint import NAME as CONFIG
from tokkit.pipelines.finish import folder_digest, shard_files
from tokkit.pipelines.progress import Progress
from tokkit.shards.manifest import NAME as MANIFEST
from tokkit.shards.manifest import Manifest, RunManifest, ShardFile, load_manifest
from tokkit.storage import digest_of, fingerprint_of, is_attempt, pretty_json, read_json, sha256_file
from tokkit.vocabulary import UnifiedVocabulary

VOCABULARY = "vocabulary.json"
SUFFIXES = ("bin", "idx", "parquet")


def read_manifest(directory: Path, result: VerifyResult) -> Manifest | None:
    """The manifest, or None with the problem that there is none to go by.

    Raises:
        DataError: the directory holds nothing of tokkit's.
    """
    path = directory / MANIFEST
    if not path.exists():
        if not any((directory / name).exists() for name in (CONFIG, "tokens", "run")):
            return load_manifest(directory)  # says so
        result.problem(Code.UNFINISHED, MANIFEST, "not there: the run is not finished, or the file was lost")
        return None
    try:
        manifest = load_manifest(directory)
        text = path.read_bytes()
    except (TokkitError, OSError) as error:
        result.problem(Code.MANIFEST, MANIFEST, _without(directory, str(error)))
        return None
    check_digest(path, text, result)
    wrong = list(_contradictions(manifest))
    for problem in wrong:
        result.problem(Code.MANIFEST, MANIFEST, problem)
    result.look("manifest")
    return None if wrong else manifest


def check_digest(path: Path, text: bytes, result: VerifyResult) -> None:
    """Whether a manifest is, character by character, what was written."""
    entry = read_json(path)
    if entry.get("digest") != digest_of(entry):
        result.problem(Code.MANIFEST, MANIFEST, "was changed since it was written: its digest is not that of its content")
    elif text != pretty_json(entry).encode():
        result.problem(Code.MANIFEST, MANIFEST, "was changed since it was written: the same values in other characters")


def _contradictions(manifest: Manifest) -> Iterator[str]:
    """What a manifest says that no run can have written, and that would lead later checks astray."""
    if manifest.dtype not in ("uint16", "int32"):
        yield f"tokens of dtype {manifest.dtype!r}"
    if manifest.layout.image not in get_args(ImageLayout):
        yield f"an image layout {manifest.layout.image!r}"
    if manifest.layout.audio not in get_args(AudioLayout):
        yield f"an audio layout {manifest.layout.audio!r}"
    if manifest.units < 0:
        yield f"{manifest.units} work units"
    for name, split in manifest.splits.items():
        if name not in ("train", "val"):
            yield f"a split {name!r}"
        for number, shard in enumerate(split.shards):
            expected = {suffix: f"{number:05d}.{suffix}" for suffix in SUFFIXES}
            if {suffix: file.name for suffix, file in shard.files.items()} != expected:
                yield f"shard {number} of {name} has other files than {', '.join(expected.values())}"
            if shard.documents < 0 or shard.tokens < 0:
                yield f"shard {number} of {name} has {shard.documents} documents and {shard.tokens} tokens"
    for name in (CONFIG, VOCABULARY):
        if name not in manifest.files:
            yield f"no checksum of {name}"


def check_files(
    directory: Path,
    manifest: RunManifest,
    checksums: bool,
    result: VerifyResult,
    progress: Progress,
    folder: str = "tokens",
) -> set[str]:
    """Compare sizes and (``checksums``) contents of the files that the manifest names; its shards are in ``folder``.

    Returns:
        the names, relative to ``directory``, of those that are not whole.
    """
    files: dict[str, ShardFile] = {**manifest.files, **dict(shard_files(manifest.splits, folder))}
    damaged = set()
    with progress.task("checksums", total=sum(f.bytes for f in files.values()) / 1e6, unit="MB") as task:
        for name, file in files.items():
            problem = file_problem(directory / name, file.bytes, file.sha256 if checksums else None)
            if problem is not None:
                damaged.add(name)
                result.problem(problem[0], name, problem[1])
            result.look("files")
            task.advance(file.bytes / 1e6)
    shards = directory / folder
    for path in sorted(shards.rglob("*")) if shards.is_dir() else []:
        name = path.relative_to(directory).as_posix()
        if name not in files and not (path.is_dir() and path.parent == shards and path.name in manifest.splits):
            result.problem(Code.EXTRA_FILE, name, "is not in the manifest")
    return damaged


def file_problem(path: Path, size: int, sha256: str | None) -> tuple[Code, str] | None:
    """What is wrong with one file: missing, of another size, of other content; None where nothing is."""
    try:
        if not path.is_file():
            return Code.MISSING_FILE, "missing"
        found = path.stat().st_size
        if found != size:
            return Code.SIZE, f"has {found:,} bytes, {size:,} were written"
        if sha256 is not None and sha256_file(path) != sha256:
            return Code.CHECKSUM, "is damaged: its SHA-256 is not that of what was written"
    except OSError as error:
        return Code.UNREADABLE, error.strerror or str(error)
    return None


def check_fingerprints(directory: Path, manifest: RunManifest, result: VerifyResult) -> None:
    """Compare both fingerprints with their components, in the manifest and in ``config.json``."""
    try:
        config = read_json(directory / CONFIG)
    except (DataError, OSError):
        config = None
    if not isinstance(config, Mapping):
        if (directory / CONFIG).exists():
            result.problem(Code.UNREADABLE, CONFIG, "is not a JSON object")
        config = {}
    for kind in ("semantic", "numeric"):
        stated = getattr(manifest, f"{kind}_fingerprint")
        if fingerprint_of(getattr(manifest, kind)) != stated:
            result.problem(Code.FINGERPRINT, MANIFEST, f"its {kind} components are not those of its {kind} fingerprint")
        if config and config.get(f"{kind}_fingerprint") != stated:
            result.problem(Code.FINGERPRINT, CONFIG, f"has another {kind} fingerprint than {MANIFEST}: it is of another run")
        elif config and fingerprint_of(config.get(kind)) != stated:
            result.problem(Code.FINGERPRINT, CONFIG, f"its {kind} components are not those of its {kind} fingerprint")
    for problem in _mixed_contradictions(manifest):
        result.problem(Code.FINGERPRINT, MANIFEST, problem)
    result.look("fingerprints", 2 if manifest.mixed is None else 1 + len(manifest.mixed.environments))


def environments_of(manifest: RunManifest) -> dict[str, int]:
    """The numeric environments that took part, and how many units were encoded in each."""
    if manifest.mixed is None:
        return {manifest.numeric_fingerprint: manifest.units}
    return {environment.fingerprint: environment.units for environment in manifest.mixed.environments}


def _mixed_contradictions(manifest: RunManifest) -> Iterator[str]:
    """What cannot be true of environments that share an output."""
    if manifest.mixed is None:
        return
    units = environments_of(manifest)
    for environment in manifest.mixed.environments:
        if fingerprint_of(environment.numeric) != environment.fingerprint:
            yield f"the components of numeric environment {environment.fingerprint[:12]} are not those of its fingerprint"
    if manifest.numeric_fingerprint not in units:
        yield "the numeric environment that began the run is not among those that took part"
    compared = set()
    for agreement in manifest.mixed.agreements:
        pair = {agreement.committed_in, agreement.encoded_again_in}
        compared |= pair
        if not pair <= units.keys():
            yield f"environments were compared that did not take part: {agreement.told()}"
        counts = [(agreement.equal_documents, agreement.documents), (agreement.equal_tokens, agreement.tokens)]
        counts += [(agreement.equal_codes, agreement.codes), (agreement.codes, agreement.tokens)]
        if any(not 0 <= part <= whole for part, whole in counts):
            yield f"more is equal than was compared: {agreement.told()}"
    at_work = {name for name, count in units.items() if count}
    if len(at_work) > 1 and at_work - compared:
        yield f"numeric environment {min(at_work - compared)[:12]} was not compared with any other"


def check_vocabulary(directory: Path, manifest: Manifest, result: VerifyResult) -> UnifiedVocabulary | None:
    """The vocabulary, if it is the one that the manifest names."""
    path = directory / VOCABULARY
    if not path.is_file():
        return None  # told of as a missing file
    try:
        vocabulary = UnifiedVocabulary.load(path)
        fingerprint = vocabulary.fingerprint
    except (TokkitError, ValueError, OverflowError, AttributeError, IndexError, OSError) as error:
        result.problem(Code.VOCABULARY, VOCABULARY, f"cannot be read: {_without(directory, str(error))}")
        return None
    result.look("vocabulary")
    if (fingerprint, vocabulary.size, vocabulary.dtype.name) != (
        manifest.vocabulary_fingerprint,
        manifest.vocabulary_size,
        manifest.dtype,
    ):
        result.problem(
            Code.VOCABULARY,
            VOCABULARY,
            f"is another vocabulary ({vocabulary.size:,} ids, {fingerprint[:12]}) than the one the tokens were written with "
            f"({manifest.vocabulary_size:,} ids, {manifest.vocabulary_fingerprint[:12]})",
        )
        return None
    return vocabulary


def check_folder(folder: Path, expected: set[str], digest: str, result: VerifyResult, unknown: Set[str] = frozenset()) -> None:
    """Compare a folder's names with those that records name (``unknown``: may be there), and its digest with the manifest's.

    The digest is told of only where nothing about a single file says more.
    """
    if not folder.is_dir():
        if expected or digest != _EMPTY:
            result.problem(Code.MISSING_FILE, f"{folder.name}/", "the folder is missing")
        return
    before = result.problem_count
    found = {path.name for path in folder.iterdir() if not is_attempt(path)}
    for name in sorted(expected - found):
        if not any(p.where == f"{folder.name}/{name}" for p in result.problems):
            result.problem(Code.MISSING_FILE, f"{folder.name}/{name}", "missing")
    for name in sorted(found - expected - unknown):
        result.problem(Code.EXTRA_FILE, f"{folder.name}/{name}", "no record names it")
    result.look("record folders")
    told = before < result.problem_count or any(p.where.startswith(f"{folder.name}/") for p in result.problems)
    if not told and folder_digest(folder) != digest:
        result.problem(Code.CHECKSUM, f"{folder.name}/", "its files are not those of the finished run")


def _without(directory: Path, message: str) -> str:
    """A message with paths as they are called within the directory."""
    return message.replace(f"{directory}/", "")


_EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # SHA-256 of nothing: a folder without files
