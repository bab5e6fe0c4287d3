"""Formats of other packages: what installed distributions offer under the entry point group ``tokkit.sources``.

    [project.entry-points."tokkit.sources"]
    myformat = "mypackage.tokkit_format:FORMAT"

where ``FORMAT`` is a :class:`~tokkit.sources.Format` that names a subclass of :class:`~tokkit.sources.base.Source`. The entry
point's name is the format's name. A package whose entry cannot be used is told of by name, rather than left out quietly.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from tokkit.errors import UsageError
from tokkit.sources import FORMATS, Format
from tokkit.sources.base import Source

GROUP = "tokkit.sources"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


@lru_cache(maxsize=1)
def installed_formats() -> Mapping[str, Format]:
    """Formats by name; their modules are imported, their sources' modules not.

    Raises:
        UsageError: an entry cannot be loaded, is no Format, or has a name that is taken.
    """
    found: dict[str, Format] = {}
    owners: dict[str, str] = {}
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value)):
        if owners.get(entry.name) == entry.value:
            continue  # the same distribution, found twice on the path
        if _NAME.fullmatch(entry.name) is None:
            raise _broken(entry, "its name is not of letters, digits, _ and -")
        if entry.name in FORMATS or entry.name in found:
            raise _broken(entry, f"the name {entry.name!r} is taken by {owners.get(entry.name, 'tokkit itself')}")
        try:
            loaded = entry.load()
        except Exception as error:  # whatever somebody else's module raises
            raise _broken(entry, f"{type(error).__name__}: {error}") from error
        if not isinstance(loaded, Format):
            raise _broken(entry, f"it is a {type(loaded).__name__}, not a tokkit.sources.Format")
        found[entry.name], owners[entry.name] = loaded, entry.value
    return found


def installed_class(name: str) -> type[Source]:
    """The class that reads the installed format ``name``.

    Raises:
        UsageError: it cannot be imported, or is no source of that format.
    """
    entry = next(entry for entry in entry_points(group=GROUP) if entry.name == name)
    given = installed_formats()[name]
    try:
        found = getattr(importlib.import_module(given.module), given.attribute)
    except Exception as error:  # whatever somebody else's module raises
        raise _broken(entry, f"{given.module}.{given.attribute}: {type(error).__name__}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Source)) or getattr(found, "format", None) != name:
        raise _broken(entry, f"{given.module}.{given.attribute} is no Source whose format is {name!r}")
    return found


def _broken(entry: EntryPoint, why: str) -> UsageError:
    package = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
    return UsageError(
        f"the format {entry.name!r} of the installed package {package} ({entry.value}) cannot be used: {why}. "
        f"Update or uninstall that package"
    )
