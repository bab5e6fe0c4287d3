"""Files of codes: what `tokkit encode` and `tokkit decode` share, be it about pictures or about sounds.

Arrays lie in a ``.npz`` under the name of what they were made from, or, of one, in a ``.npy``; the same codes give the same
bytes. Beside ``FILE`` lies ``FILE.json``: which tokenizer they belong to, and which files could not be encoded.
"""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from tokkit.errors import DataError

Codes = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Unused:
    """A file that gave no codes, and why."""

    file: str
    reason: str
    message: str


@contextmanager
def writer(out: Path, temporary: Path) -> Iterator[Callable[[str, Codes], None]]:
    """What files an array under a name: into a zip as NumPy's, its times fixed, or as the whole file."""
    if out.suffix == ".npz":
        with zipfile.ZipFile(temporary, "w") as archive:
            yield lambda name, codes: _write_member(archive, name, codes)
    else:
        with temporary.open("wb") as file:
            yield lambda name, codes: np.lib.format.write_array(file, codes, allow_pickle=False)


def _write_member(archive: zipfile.ZipFile, name: str, codes: Codes) -> None:
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as member:
        np.lib.format.write_array(member, codes, allow_pickle=False)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """For as little as is read of the codes: what fails elsewhere, such as writing a picture, is not the file's fault."""
    try:
        yield
    except Exception as error:  # NumPy, zipfile and zlib report damage by many exception types
        raise DataError(f"{path}: damaged, or no file of codes ({error})") from None


def output_names(path: Path, names: list[str], suffix: str) -> dict[str, str]:
    """For each name one with another suffix: without the old one, unless two would be one.

    Raises:
        DataError: no names, or one that leads out of the folder.
    """
    unsafe = [name for name in names if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or not name]
    if unsafe:
        raise DataError(f"{path}: {unsafe[0]!r} is no name of a file below a folder")
    if not names:
        raise DataError(f"{path}: holds no codes")
    bare = {name: str(PurePosixPath(name).with_suffix("")) for name in names}
    count = Counter(bare.values()) + Counter(name for name in names if bare[name] != name)  # a.jpg.png must not be a.jpg
    return {name: f"{bare[name] if count[bare[name]] == 1 else name}{suffix}" for name in names}


def sidecar_of(path: Path) -> Path:
    """``FILE.json`` beside ``FILE``."""
    return path.with_name(f"{path.name}.json")
