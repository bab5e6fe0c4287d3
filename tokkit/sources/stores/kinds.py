"""Picture stores as people name them: ``[NAME=][KIND:]PATH``, where PATH is a folder, a file or a glob.

=============  ============================================================  =============================
kind           what it is                                                    pictures are found by
=============  ============================================================  =============================
``folder``     picture files below a folder                                  path below it
``tar``        tars of picture files                                         member name
``img2dataset``  what img2dataset wrote: tars (with the ``.parquet`` beside  URL
               them, or the ``.json`` in them), parquet, or files
``warc``       web archives (WARC, ARC; plain or gzip)                       URL
=============  ============================================================  =============================

A URL is looked for in folders and tars, too: under ``HOST/PATH``, as ``wget --force-directories`` lays files out.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tokkit.errors import ConfigError
from tokkit.sources.base import InputFile
from tokkit.sources.remote import is_url
from tokkit.sources.samples import is_picture_name
from tokkit.sources.seen import is_output

StoreKind = Literal["folder", "tar", "img2dataset", "warc"]
KINDS: tuple[str, ...] = get_args(StoreKind)
ARCHIVES = (".warc", ".warc.gz", ".arc", ".arc.gz")
OF_KIND: dict[str, tuple[str, ...]] = {"tar": (".tar",), "img2dataset": (".tar", ".parquet"), "warc": ARCHIVES}

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)
_KIND = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Store:
    """A picture store.

    Attributes:
        name: unique in a run.
        kind: see the module's docstring.
        root: the folder that its files' names are relative to.
        files: its files, sorted by name; of a folder one entry that stands for all: their bytes, and the newest time of any
            file or folder there.
    """

    name: str
    kind: StoreKind
    root: Path
    files: tuple[InputFile, ...]

    @property
    def bytes(self) -> int:
        """Of all of its files."""
        return sum(file.size for file in self.files)


class _ProblemError(Exception):
    """One store is wrong; gathered into the ConfigError."""


def resolve_stores(typed: Sequence[str]) -> tuple[Store, ...]:
    """The stores that people named, in their order.

    Raises:
        ConfigError: all problems together: nothing there, an unknown kind, a store of which the kind cannot be told.
    """
    stores: list[Store] = []
    problems = []
    for one in typed:
        try:
            stores.append(_resolve(one, {store.name for store in stores}))
        except (_ProblemError, OSError) as problem:
            problems.append(f"{one}: {problem}")
    if problems:
        raise ConfigError("--images", problems)
    return tuple(stores)


def _resolve(typed: str, taken: set[str]) -> Store:
    name = kind = None
    rest = typed
    if not _there(rest) and (named := _NAMED.fullmatch(rest)):
        name, rest = named[1], named[2]
    if is_url(rest) or is_url(rest.partition(":")[2]):
        raise _ProblemError("a URL; picture stores lie on a local disk, or one that is mounted, and are named by their path")
    if not _there(rest) and (prefixed := _KIND.fullmatch(rest)):
        kind, rest = prefixed[1], prefixed[2]
        if kind not in KINDS:
            raise _ProblemError(f"there is no kind of store {kind!r}; known are {', '.join(KINDS)}")
    rest = os.path.expanduser(rest)  # noqa: PTH111 - a glob is no Path
    root, paths = _listed(rest)
    kind = kind or _recognise(rest, paths)
    files = (_whole(root),) if kind == "folder" else tuple(_files(root, paths, kind))
    if name is not None and name in taken:
        raise _ProblemError(f"the name {name!r} is taken by an earlier store")
    wanted, number = name or root.name or "root", 1
    while wanted in taken:
        number += 1
        wanted = f"{name or root.name}-{number}"
    return Store(wanted, kind, root, files)  # type: ignore[arg-type]


def _there(text: str) -> bool:
    try:
        return os.path.lexists(text) or (glob.has_magic(text) and bool(glob.glob(text, recursive=True)))  # noqa: PTH207
    except ValueError:  # NUL
        return False


def _listed(text: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files there, sorted; hidden ones are left out."""
    if os.path.lexists(text):
        path = Path(os.path.abspath(text))  # noqa: PTH100 - unlike resolve(), keeps symbolic links as typed
        return (path, list(_below(path))) if path.is_dir() else (path.parent, [path])
    matches = sorted(glob.glob(text, recursive=True)) if glob.has_magic(text) else []  # noqa: PTH207 - takes absolute patterns
    if not matches:
        raise _ProblemError("no such file or folder" if not glob.has_magic(text) else "the pattern matches nothing")
    found = [Path(os.path.abspath(match)) for match in matches]  # noqa: PTH100
    parts = Path(os.path.abspath(text)).parts  # noqa: PTH100
    fixed = Path(*parts[: next(place for place, part in enumerate(parts) if glob.has_magic(part))])
    files = [file for path in found for file in (_below(path) if path.is_dir() else [path])]
    return fixed, sorted(dict.fromkeys(files))


def _below(folder: Path) -> Iterator[Path]:
    for here, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and not is_output(Path(here, name)))
        yield from (Path(here, name) for name in sorted(names) if not name.startswith("."))


def _raise(error: OSError) -> None:
    raise error


def _recognise(text: str, paths: Sequence[Path]) -> str:
    """The kind of a store by what is there."""
    tars = [path for path in paths if path.name.lower().endswith(".tar")]
    tables = [path for path in paths if path.name.lower().endswith(".parquet")]
    archives = [path for path in paths if path.name.lower().endswith(ARCHIVES)]
    found: list[str] = []
    if any(map(_is_download_table, tables)) or any(map(_is_download_tar, tars[:1])):
        return "img2dataset"  # whatever else: its files lie beside its tables in one of its forms
    found += ["tar"] * bool(tars) + ["warc"] * bool(archives)
    if any(is_picture_name(path.name) for path in paths):
        found.append("folder")
    if len(found) > 1:
        raise _ProblemError(
            f"what is there could be a store of several kinds: name it, as {found[0]}:{text} or {found[-1]}:{text}"
        )
    if found == ["folder"] and not Path(text).is_dir():
        raise _ProblemError("a store of picture files is a folder: name that")
    if not found:
        if Path(text).is_dir():
            return "folder"  # of files without endings, or an empty one, of which nothing is found
        raise _ProblemError(f"no store of pictures is told by this name; name its kind, one of {', '.join(KINDS)}")
    return found[0]


def _is_download_table(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return {"url", "key", "status"} <= set(pq.read_schema(path).names)
    except (pa.ArrowException, OSError):
        return False


def _is_download_tar(path: Path) -> bool:
    """Whether the first object in a tar says what img2dataset says of a sample."""
    from tokkit.errors import ItemError
    from tokkit.sources.tarindex import tar_index
    from tokkit.sources.untrusted import parse_json

    first = next((member for member in tar_index(str(path)).members[:64] if member.name.endswith(".json")), None)
    if first is None or first.size > 1 << 20:
        return False
    with path.open("rb") as file:
        file.seek(first.data)
        try:
            fields = parse_json(file.read(first.size))
        except ItemError:
            return False
    return isinstance(fields, dict) and {"url", "key", "status"} <= fields.keys()


def _files(root: Path, paths: Sequence[Path], kind: str) -> Iterator[InputFile]:
    suffixes = OF_KIND[kind]
    wanted = [path for path in paths if path.name.lower().endswith(suffixes)] or (
        list(paths) if kind == "warc" and len(paths) == 1 else []
    )
    if kind == "img2dataset":  # a tar that is named by itself brings its table
        known = set(wanted)
        beside = [path.with_suffix(".parquet") for path in wanted if path.suffix.lower() == ".tar"]
        wanted += [path for path in beside if path not in known and path.is_file() and _is_download_table(path)]
    if not wanted:
        raise _ProblemError(f"there are no files {' or '.join(suffixes)}, of which a store of the kind {kind} is made")
    found = [InputFile.of(path, root) for path in wanted]
    yield from sorted(found, key=lambda file: file.name)


def _whole(root: Path) -> InputFile:
    """A folder as one file: the bytes of all that is in it, and the newest time; output that lies in it is none of it."""
    if not root.is_dir():
        raise _ProblemError("not a folder")
    size = newest = 0
    waiting = [str(root)]
    while waiting:
        here = waiting.pop()
        newest = max(newest, Path(here).stat().st_mtime_ns)
        with os.scandir(here) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    waiting += [entry.path] * (not is_output(Path(entry.path)))
                else:
                    stat = entry.stat(follow_symlinks=False)
                    size, newest = size + stat.st_size, max(newest, stat.st_mtime_ns)
    return InputFile(".", str(root), size, newest)
