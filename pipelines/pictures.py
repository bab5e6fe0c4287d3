"""The pictures of any inputs, for jobs that want pictures and nothing else.

Besides what every job reads (:func:`tokkit.sources.resolve.resolve_inputs`), an input may be a picture file, a folder of
picture files (folders below included, whatever else lies in them, but no tars or parquets: those are corpora), or a glob.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tokkit.documents import Image
from tokkit.errors import ConfigError, TransientError
from tokkit.media.images import DEFAULT_LIMITS, ImageLimits
from tokkit.pipelines.inputs import announce_ignored
from tokkit.pipelines.progress import Progress
from tokkit.sources import TARS
from tokkit.sources.base import Source
from tokkit.sources.resolve import resolve_inputs
from tokkit.sources.samples import is_picture_name
from tokkit.training.items import Reject
from tokkit.training.pictures import Picture, pictures_of

CORPUS_SUFFIXES = (*TARS, ".parquet", ".warc", ".warc.gz", ".arc", ".arc.gz")

# Sources' units and picture files are taken in orders drawn from this, so that the first pictures are of all kinds.
ORDER_SEED = 0


@dataclass(frozen=True)
class PictureInputs:
    """Where pictures come from: sources, and picture files by the name that they are told of by."""

    sources: list[Source] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)

    def pictures(self, limits: ImageLimits = DEFAULT_LIMITS) -> Iterator[Picture | Reject]:
        """All pictures, in an order that depends on names only.

        Raises:
            TransientError: a file cannot be read for reasons of the surroundings.
        """
        yield from pictures_of(self.sources, ORDER_SEED)
        for name in sorted(self.files, key=_draw):
            try:
                with self.files[name].open("rb") as file:
                    data = file.read(limits.max_bytes + 1)  # one more than may be is enough to refuse it
            except OSError as error:
                raise TransientError(f"{self.files[name]} cannot be read: {error.strerror}") from error
            yield Picture(name, Image(data, name))


def find_pictures(inputs: Sequence[str], progress: Progress) -> PictureInputs:
    """Resolve inputs; says which files of them are not read.

    Raises:
        ConfigError: an input that is not there, holds nothing that can be read, or names a file again.
    """
    files: dict[str, Path] = {}
    rest, problems = [], []
    owners: set[Path] = set()
    for typed in inputs:
        found = _picture_files(typed)
        if not found:
            rest.append(typed)
        for name, path in found:
            real = path.resolve()
            if real in owners:
                problems.append(f"{typed}: {path} is named by an earlier input already")
                break
            owners.add(real)
            files[_free(name, files)] = path
    if problems:
        raise ConfigError("input", problems)
    resolved = resolve_inputs(rest) if rest or not inputs else None
    if resolved is not None:
        announce_ignored(resolved, progress)
    return PictureInputs(resolved.sources if resolved is not None else [], files)


def _picture_files(typed: str) -> list[tuple[str, Path]]:
    """(name, path) of the picture files that an input stands for; none where it is something else."""
    path = Path(typed)
    if path.exists():
        return _below(path)
    matches = sorted(glob.glob(typed, recursive=True)) if glob.has_magic(typed) else []  # noqa: PTH207 - may be absolute
    parts = [_below(Path(match)) for match in matches]
    return [found for part in parts for found in part] if all(parts) else []


def _below(path: Path) -> list[tuple[str, Path]]:
    if path.is_file():
        return [(f"{path.resolve().parent.name}/{path.name}", path)] if is_picture_name(path.name) else []
    found = []
    for here, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            file = Path(here, name)
            if name.lower().endswith(CORPUS_SUFFIXES):
                return []
            if not name.startswith(".") and is_picture_name(name) and file.is_file():
                found.append((f"{path.resolve().name}/{file.relative_to(path).as_posix()}", file))
    return found


def _free(name: str, taken: dict[str, Path]) -> str:
    """``name``, or with a number behind it where two inputs' folders have one name."""
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _draw(name: str) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
