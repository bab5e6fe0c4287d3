"""From what a person typed to sources: ``[NAME=][FORMAT:]PATH``, where PATH is a file, a folder or a glob of them.

PATH may be a URL of an object store or a web server (:mod:`tokkit.sources.remote_inputs` lists what lies there).

Folders are looked through, their files recognised (:mod:`tokkit.sources.recognise`) and gathered into one source a format.
What accompanies other files (sidecars, URL maps, picture stores) is no source of its own. Every file that was seen and is
read by nothing is named in the result, and all problems are told at once.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tokkit.errors import ConfigError, UsageError
from tokkit.sources import formats, make_source
from tokkit.sources.base import InputFile, Source, SourceOptions
from tokkit.sources.image_folder import folders_of
from tokkit.sources.opening import Location, located
from tokkit.sources.recognise import Recognition, is_sidecar, recognise
from tokkit.sources.remote import RemotePath, is_url, remembering
from tokkit.sources.remote_inputs import list_input, telling_of_stores, without_secrets
from tokkit.sources.samples import is_picture_name, is_sound_name
from tokkit.sources.seen import WITH_PICTURE_FOLDERS, IgnoredFile, ProblemError, is_output, names_pictures, picture_folders

NAMING_SOUNDS = ("audio_manifest", "lhotse", "librispeech", "common_voice")  # whose sounds lie in files of their own

if TYPE_CHECKING:
    from tokkit.sources.stores.lookup import PictureStores

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", re.DOTALL)
_FORMAT = re.compile(r"([A-Za-z][A-Za-z0-9_-]*):(?!//)(.+)", re.DOTALL)
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


# Files that speak of a folder rather than belong to the corpus in it.
OWN_NOTES = {"README", "LICENSE", "LICENCE", "COPYING", "NOTICE", "ATTRIBUTION", "CHANGELOG", "CITATION"}


@dataclass(frozen=True, slots=True)
class ResolvedInputs:
    """Sources in input order, the files that belong to none, and the picture stores that the sources ask."""

    sources: list[Source]
    ignored: list[IgnoredFile] = field(default_factory=list)
    stores: PictureStores | None = None


@dataclass(slots=True)
class _Input:
    """One INPUT, parsed, and what was found there.

    Attributes:
        root: the folder that names are relative to.
        files: the files seen.
        single: the input names one file.
    """

    typed: str
    name: str | None
    format: str | None
    root: Location
    files: list[Location]
    single: bool
    by_format: dict[str, list[InputFile]] = field(default_factory=dict)
    ignored: list[IgnoredFile] = field(default_factory=list)
    accompanying: list[str] = field(default_factory=list)


def resolve_inputs(inputs: Sequence[str], options: SourceOptions | None = None) -> ResolvedInputs:
    """Turn INPUT arguments into sources, which do as ``options`` say.

    Source names are ``NAME``, or else the folder's name; an input of several formats gives ``NAME-FORMAT`` each. Default
    names that come twice get ``-2``, ``-3`` in input order. Files of one folder that are named one by one, as a shell does with
    a glob, are one input.

    Raises:
        ConfigError: all problems together: nothing found, an unknown format, a file of no known format, a file given twice,
            a URL with a password or a query.
        TransientError: an object store or a server does not answer.
    """
    with remembering():
        return _resolved(inputs, options)


def _resolved(inputs: Sequence[str], options: SourceOptions | None) -> ResolvedInputs:
    problems: list[str] = []
    parsed: list[_Input] = []
    found: list[_Input] = []
    for typed in inputs:
        try:
            with telling_of_stores():
                parsed.append(_parse(typed))
        except (ProblemError, UsageError) as problem:
            problems.append(f"{without_secrets(typed)}: {problem}")
    for one in _gathered(parsed, problems):
        try:
            with telling_of_stores():
                found.append(_sort_files(one))
        except (ProblemError, UsageError) as problem:
            problems.append(f"{one.typed}: {problem}")
    if not inputs:
        problems.append("no input: name a file, a folder or a glob")
    problems += _given_twice(found)
    sources = _name_sources(found, problems, options)
    if problems:
        raise ConfigError("input", problems)
    for source in sources:
        if isinstance(source.root, RemotePath):
            with telling_of_stores():
                source.watched  # noqa: B018 - now, while the listings are at hand
    ignored = [file for one in found for file in one.ignored]
    return ResolvedInputs(sources, ignored, None if options is None else options.stores)


def _gathered(parsed: Sequence[_Input], problems: list[str]) -> list[_Input]:
    """Single files of one folder, with the same format prefix and no names of their own, as one input in the first's place."""
    together: dict[tuple[Location, str | None], list[_Input]] = {}
    for one in parsed:
        if one.single and one.name is None:
            together.setdefault((one.root, one.format), []).append(one)
    gathered = []
    for one in parsed:
        group = together.get((one.root, one.format), []) if one.single and one.name is None else []
        if len(group) < 2:
            gathered.append(one)
        elif one is group[0]:
            files = sorted((file for member in group for file in member.files), key=str)
            problems += [f"{a} is given twice; its documents would come twice" for a, b in pairwise(files) if a == b]
            typed = f"{one.typed} and {len(group) - 1} more"
            gathered.append(_Input(typed, None, one.format, one.root, files, False))
    return gathered


def absolute_input(typed: str) -> str:
    """The same INPUT, from any working directory."""
    name, format_name, rest = _split(typed)
    if not _SCHEME.match(rest):
        rest = os.path.expanduser(rest)  # noqa: PTH111 - a glob is no Path
        if _is_there(rest):
            rest = os.path.abspath(rest)  # noqa: PTH100 - unlike resolve(), keeps symbolic links as typed
        elif not os.path.isabs(rest):  # noqa: PTH117
            rest = os.path.join(glob.escape(str(Path.cwd())), rest)  # noqa: PTH118
    return f"{name}=" * (name is not None) + f"{format_name}:" * (format_name is not None) + rest


def _split(typed: str) -> tuple[str | None, str | None, str]:
    """``[NAME=][FORMAT:]PATH`` in three."""
    name = format_name = None
    rest = typed
    if not _exists(rest) and (named := _NAMED.fullmatch(rest)):
        name, rest = named[1], named[2]
    if not _exists(rest) and (prefixed := _FORMAT.fullmatch(rest)):
        format_name, rest = prefixed[1], prefixed[2]
    return name, format_name, rest


def _parse(typed: str) -> _Input:
    """Split the prefixes off and list the files. What exists as a path, with whatever characters, is a path."""
    name, format_name, rest = _split(typed)
    if format_name is not None and format_name not in formats():
        raise ProblemError(f"there is no format {format_name!r}; known are {', '.join(formats())}")
    if is_url(rest) and (found := list_input(rest)) is not None:
        return _Input(typed, name, format_name, found.root, [*found.files], found.single, ignored=found.ignored)
    rest = _local(rest)
    if _is_there(rest):
        path = Path(os.path.abspath(rest))  # noqa: PTH100 - unlike resolve(), keeps symbolic links as typed
        if path.is_dir():
            files, ignored = _walk(path)
            return _Input(typed, name, format_name, path, [*files], False, ignored=ignored)
        return _Input(typed, name, format_name, path.parent, [path], True)
    if not glob.has_magic(rest):
        raise ProblemError("no such file or folder")
    root, files, ignored = _glob(rest)
    return _Input(typed, name, format_name, root, [*files], False, ignored=ignored)


def _is_there(text: str) -> bool:
    try:
        return os.path.lexists(text)  # a dangling link is there, and is told of as such
    except ValueError:  # NUL
        return False


def _exists(text: str) -> bool:
    if _SCHEME.match(text):
        return True
    return _is_there(text) or (glob.has_magic(text) and bool(_matches(text)))


def _matches(pattern: str) -> list[str]:
    return sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern


def _local(text: str) -> str:
    """A ``file://`` URL as a path."""
    scheme = _SCHEME.match(text)
    if scheme is None:
        return os.path.expanduser(text)  # noqa: PTH111 - a glob is no Path
    parts = urlsplit(text)
    if parts.netloc not in ("", "localhost"):
        raise ProblemError(f"a file URL on another machine ({parts.netloc}); write file:///path")
    return unquote(parts.path)


def _glob(pattern: str) -> tuple[Path, list[Path], list[IgnoredFile]]:
    """The fixed folder of a pattern, and the files that it matches, those in matched folders included."""
    matches = _matches(pattern)
    if not matches:
        raise ProblemError("the pattern matches nothing")
    parts = Path(os.path.abspath(pattern)).parts  # noqa: PTH100
    fixed = next(place for place, part in enumerate(parts) if glob.has_magic(part))
    files: dict[Path, None] = {}
    ignored: list[IgnoredFile] = []
    for match in matches:
        path = Path(os.path.abspath(match))  # noqa: PTH100
        if path.is_dir():
            if "**" not in pattern:  # with ** the folder's files are matches themselves
                below, skipped = _walk(path)
                files.update(dict.fromkeys(below))
                ignored += skipped
        else:
            files[path] = None
    return Path(*parts[:fixed]), list(files), ignored


def _walk(folder: Path) -> tuple[list[Path], list[IgnoredFile]]:
    """Files below a folder, sorted, hidden ones left out; picture folders beside interleaved documents are not entered."""
    files: list[Path] = []
    ignored: list[IgnoredFile] = []
    for here, folders, names in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not is_output(Path(here, name))]
        stores = picture_folders(Path(here), folders, names)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in stores)
        links = [Path(here, name) for name in folders if Path(here, name).is_symlink()]
        ignored += [IgnoredFile(str(link), "a symbolic link to a folder: name it as an input") for link in links]
        files += [Path(here, name) for name in sorted(names) if not name.startswith(".")]
    return files, ignored


def _raise(error: OSError) -> None:
    raise error


def _in_picture_folder(path: Location, homes: set[Location]) -> bool:
    return any(names_pictures(parent.name) and parent.parent in homes for parent in path.parents)


def _sort_files(one: _Input) -> _Input:
    """Recognise the files of an input and gather them by format."""
    damaged: list[InputFile] = []
    for path in one.files:
        accompanied = "" if one.single and one.format else is_sidecar(path)
        if accompanied:
            one.accompanying.append(f"{path.name} goes with {accompanied}")
            continue
        try:
            file = InputFile.of(path, one.root)
            verdict = _verdict(one, path)
        except FileNotFoundError:
            one.ignored.append(IgnoredFile(str(path), "a symbolic link that leads nowhere"))
            continue
        if verdict.format is not None:
            one.by_format.setdefault(verdict.format, []).append(file)
        elif verdict.damaged_parquet:
            damaged.append(file)
        else:
            one.ignored.append(IgnoredFile(str(path), verdict.why))
    if damaged:  # of the neighbours' format: reading them records the damage
        neighbours = [name for name in one.by_format if name in ("obelics", "hf_parquet", "text_parquet")]
        one.by_format.setdefault(neighbours[0] if len(neighbours) == 1 else "hf_parquet", []).extend(damaged)
    homes = {located(file.path).parent for name in WITH_PICTURE_FOLDERS for file in one.by_format.get(name, ())}
    one.ignored = [file for file in one.ignored if not _in_picture_folder(located(file.path), homes)]
    above = {located(file.path).parent for file in one.by_format.get("llava", ())}  # whose pictures may be in any folder below
    one.ignored = [f for f in one.ignored if not (is_picture_name(f.path) and above.intersection(located(f.path).parents))]
    above = {located(file.path).parent for name in NAMING_SOUNDS for file in one.by_format.get(name, ())}
    one.ignored = [_told_of_sound(file, above) for file in one.ignored]
    if one.format == "image_folder" or (one.format is None and not one.single):
        _take_image_folders(one)
    if not one.by_format:
        raise ProblemError(_nothing_found(one))
    return one


def _told_of_sound(file: IgnoredFile, manifests: set[Location]) -> IgnoredFile:
    """A sound below a folder of manifests is read where one names it, and not by itself."""
    if is_sound_name(file.path) and manifests.intersection(located(file.path).parents):
        return IgnoredFile(file.path, "a sound beside a manifest, which is read where that names it")
    return file


def _take_image_folders(one: _Input) -> None:
    """Take the input for folders of pictures, where that was asked for or where nothing else than they is in it.

    A picture that lies beside a corpus stays what it is: a file that is not read.
    """
    if one.format is None and not any(is_picture_name(located(file.path).name) for file in one.ignored):
        return
    folders, used = folders_of(one.files)
    read = {located(file.path) for files in one.by_format.values() for file in files}
    if one.format is None and (not folders or not read <= used):
        return
    rest = [path for path in sorted(read - used, key=str) if one.format]
    one.by_format = {"image_folder": [InputFile.of(folder, one.root) for folder in folders]} if folders else {}
    one.ignored = [file for file in one.ignored if located(file.path) not in used]
    one.ignored += [IgnoredFile(str(path), "image_folder reads whole folders: name the folder") for path in rest]


def _verdict(one: _Input, path: Location) -> Recognition:
    try:
        str(path).encode("utf-8")
    except UnicodeEncodeError:
        return Recognition(None, "the file's name is not UTF-8: rename it")
    if not path.is_file():
        return Recognition(None, "not a regular file")
    if one.format is None:
        if not one.single and path.stem.upper() in OWN_NOTES and path.suffix.lower() in ("", ".txt", ".md"):
            return Recognition(None, "the folder's own notes: name the file or its format to read it")
        return recognise(path)
    if one.single or path.name.lower().endswith(formats()[one.format].suffixes):
        return Recognition(one.format)
    return Recognition(None, f"not a file of the format {one.format}")


def _nothing_found(one: _Input) -> str:
    known = "; ".join(f"{name}: {entry.description}" for name, entry in formats().items())
    if one.single and one.ignored:
        return f"{one.ignored[0].why}. Name the format (FORMAT:PATH) if you know better. Known formats: {known}"
    if one.accompanying and not one.ignored:
        return f"nothing to read on its own: {one.accompanying[0]}; name that instead"
    if not one.files and not one.ignored:
        return "the folder has no files"
    seen = "; ".join(f"{located(file.path).name}: {file.why}" for file in one.ignored[:3])
    return f"none of the {len(one.files)} files there is of a known format ({seen}). Known formats: {known}"


def _given_twice(found: Sequence[_Input]) -> Iterator[str]:
    """Every document exactly once: a file that is named twice, by two inputs or through a link, is a mistake."""
    owner: dict[str, tuple[int, str, str]] = {}
    for number, one in enumerate(found):
        for file in (file for files in one.by_format.values() for file in files):
            real = file.path if is_url(file.path) else os.path.realpath(file.path)
            first = owner.setdefault(real, (number, file.path, one.typed))
            if first[:2] != (number, file.path):
                yield f"{one.typed}: {file.path} is already read as {first[1]} ({first[2]}); its documents would come twice"
                break


def _name_sources(found: Sequence[_Input], problems: list[str], options: SourceOptions | None) -> list[Source]:
    taken: set[str] = set()
    sources = []
    for one in found:
        base = one.name or one.root.name or "root"
        for format_name in (name for name in formats() if name in one.by_format):
            wanted = base if len(one.by_format) == 1 else f"{base}-{format_name}"
            if one.name is not None and wanted in taken:
                problems.append(f"{one.typed}: the name {wanted!r} is taken by an earlier input")
                continue
            name, number = wanted, 1
            while name in taken:
                number += 1
                name = f"{wanted}-{number}"
            taken.add(name)
            sources.append(make_source(format_name, name, one.root, one.by_format[format_name], options))
    return sources
