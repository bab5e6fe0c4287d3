"""A user's own filter or map: a function in a Python file or module that is asked about each document.

``MODULE:FUNCTION`` names a function of a module that can be imported (the current folder counts), ``FILE.py:FUNCTION`` one of
a file. It is given a :class:`~tokkit.documents.Document` and returns

* True: it is wanted;
* False, or a text that says why: it is not, and is filtered;
* another Document, which takes its place: its segments and metadata may be others, its id, source and locator not.

Of media items it may leave some out, put them elsewhere, or give them other bytes; it cannot add any, since every item of the
input has one outcome and no other item has. One that it leaves out is filtered; it stays in the document as a lost one.

What the function raises is the document's outcome, a reject with the reason ``filter-error``, as is an answer that is none of
these. Only what says nothing of the document (memory, I/O) is not.

To load a function is to run the file that it stands in, so this is done with what was named on the command line or in a recipe,
and never because a file of an output says so.
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import re
import sys
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType

import numpy as np

from tokkit.documents import Audio, Document, Failure, Image, Media, Outcome, Segment, SpecialToken, Text
from tokkit.errors import TransientError

ERROR = "filter-error"  # the reason of a document at which a function fails
EXAMPLE = "write MODULE:FUNCTION or FILE.py:FUNCTION"
SHOWN = 500  # characters of a message
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class _AnswerError(Exception):
    """What a function returned cannot be used."""


@dataclass(frozen=True)
class UserFilter:
    """A function that is asked about each document.

    Attributes:
        name: as it was named, a file without its folder.
        digest: SHA-256 (first 16 digits) of the file that it stands in; what that imports is not part of it.
        function: itself.
    """

    name: str
    digest: str
    function: Callable[[Document], object]

    def judge(self, document: Document) -> Document:
        """The document as it is wanted; with a failure where it is not.

        Raises:
            TransientError: the function ran out of memory or had an I/O error.
        """
        given = replace(document, metadata=MappingProxyType(dict(document.metadata)))
        try:
            with redirect_stdout(sys.stderr):  # standard output is for the command's result
                answer = self.function(given)
        except (TransientError, MemoryError, OSError) as error:
            where = f"{document.source}/{document.locator}"
            raise TransientError(f"the filter {self.name} failed at {where}: {_told(error)}") from error
        except (Exception, SystemExit) as error:  # whatever somebody else's function raises
            message = f"{self.name}: {_told(error)}{_place(error)}"
            return replace(document, failure=Failure(Outcome.REJECTED, ERROR, message))
        left_out = Failure(Outcome.FILTERED, f"filter {self.name}")
        if answer is given or (isinstance(answer, bool | np.bool_) and answer):
            return document
        if isinstance(answer, bool | np.bool_):
            return replace(document, failure=left_out)
        if isinstance(answer, str):
            return replace(document, failure=replace(left_out, message=answer[:SHOWN]))
        try:
            return _replaced(document, given, answer, left_out)
        except _AnswerError as error:
            return replace(document, failure=Failure(Outcome.REJECTED, ERROR, f"{self.name}: {error}"))


def check_specs(specs: Sequence[str]) -> None:
    """ValueError with what is wrong with how functions are named, as far as can be told without running anything."""
    for spec in specs:
        place, _, attribute = spec.rpartition(":")
        if not place or not attribute:
            raise ValueError(f"{spec!r} names no function: {EXAMPLE}")
        if place.endswith(".py") and not Path(place).is_file():
            raise ValueError(f"{place}: no such file")
    names = [f"{Path(place).name}:{attribute}" for place, _, attribute in (spec.rpartition(":") for spec in specs)]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"two filters are called {twice[0]}, and outcomes are counted by that name: rename one")


def load_filters(specs: Sequence[str]) -> tuple[UserFilter, ...]:
    """Load several functions; ValueError with what is wrong with the first that cannot be."""
    check_specs(specs)
    with redirect_stdout(sys.stderr):
        return tuple(map(load_filter, specs))


def load_filter(spec: str) -> UserFilter:
    """Load a function; ValueError with what is wrong with it."""
    check_specs([spec])
    place, _, attribute = spec.rpartition(":")
    if place.endswith(".py"):
        path = Path(place)
        module, source = _of_file(path)
        name = f"{path.name}:{attribute}"
    else:
        module, source = _of_module(place)
        name = spec
    function: object = module
    for part in attribute.split("."):
        if not hasattr(function, part):
            raise ValueError(f"{spec!r}: {getattr(module, '__file__', place)} has no {attribute}")
        function = getattr(function, part)
    if not callable(function):
        raise ValueError(f"{spec!r}: {attribute} is a {type(function).__name__}, not a function")
    return UserFilter(name, _digest(function, source), function)


def filter_digests(filters: Sequence[UserFilter]) -> dict[str, str]:
    """What identifies the functions, by their place in the order and their name."""
    return {f"{number}. {one.name}": one.digest for number, one in enumerate(filters, 1)}


def absolute_spec(spec: str) -> str:
    """The same function, named so that it is found from any folder where it is named by a file."""
    place, _, attribute = spec.rpartition(":")
    return f"{Path(place).resolve()}:{attribute}" if place.endswith(".py") else spec


# ---- loading


def _of_file(path: Path) -> tuple[ModuleType, bytes]:
    """Run a file as a module of its own; files beside it can be imported from it."""
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    name = f"tokkit_filter_{hashlib.sha256(source).hexdigest()[:8]}_{path.stem}"
    module = ModuleType(name)
    module.__file__ = str(path.resolve())
    sys.modules[name] = module  # dataclasses and pickle look there
    _may_import_from(str(path.resolve().parent))
    try:
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:  # whatever somebody else's module raises
        del sys.modules[name]
        raise ValueError(f"{path} cannot be loaded: {_told(error)}") from None
    return module, source


def _of_module(name: str) -> tuple[ModuleType, bytes]:
    _may_import_from(str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:
        raise ValueError(f"the module {name} cannot be imported: {_told(error)}; {EXAMPLE}") from None
    try:
        return module, Path(str(getattr(module, "__file__", ""))).read_bytes()
    except OSError:
        raise ValueError(f"the module {name} has no file, so that a change of it would not be noticed") from None


def _may_import_from(folder: str) -> None:
    """Behind everything that is installed, which a file of the same name does not hide."""
    if folder not in sys.path:
        sys.path.append(folder)


def _digest(function: object, source: bytes) -> str:
    """Of the file that was named and of that which the function is written in, where this is another."""
    digest = hashlib.sha256(source)
    try:
        written_in = Path(str(inspect.getsourcefile(inspect.unwrap(function)))).read_bytes()  # type: ignore[arg-type]
    except (TypeError, ValueError, OSError):  # an object, or something that was not written in Python
        written_in = source
    if written_in != source:
        digest.update(b"\0" + written_in)
    return digest.hexdigest()[:16]


# ---- what a function returns


def _replaced(document: Document, given: Document, answer: object, left_out: Failure) -> Document:
    """The document that a function returned in the place of another; _AnswerError where it cannot be."""
    if not isinstance(answer, Document):
        raise _AnswerError(f"it returned {type(answer).__name__}, not True, False, a reason or a Document")
    for name in ("id", "source", "locator"):
        if getattr(answer, name) != getattr(document, name):
            raise _AnswerError(f"it changed the {name}, which is how the document is known, to {getattr(answer, name)!r:.80}")
    if answer.failure is not None:
        raise _AnswerError("it set the document's failure: return False or a reason to have it filtered")
    items = [segment for segment in document.segments if isinstance(segment, Image | Audio)]
    segments = tuple(_with_lost(items, _sound(answer.segments), left_out))
    metadata = document.metadata if answer.metadata is given.metadata else _plain(answer.metadata, document.metadata)
    return replace(answer, segments=segments, metadata=metadata)


def _sound(segments: object) -> Sequence[Segment]:
    if not isinstance(segments, tuple | list):
        raise _AnswerError(f"its segments are a {type(segments).__name__}, not a tuple")
    for segment in segments:
        if isinstance(segment, Text):
            if not isinstance(segment.text, str):
                raise _AnswerError(f"the text of a segment is a {type(segment.text).__name__}")
        elif isinstance(segment, SpecialToken):
            if not isinstance(segment.name, str):
                raise _AnswerError(f"the name of a special token is a {type(segment.name).__name__}")
        elif not isinstance(segment, Image | Audio):
            raise _AnswerError(f"one of its segments is a {type(segment).__name__}, not a Text, Image or Audio")
        elif not (segment.data is None or isinstance(segment.data, bytes)) or not isinstance(segment.ref, str):
            raise _AnswerError("a media item's data are not bytes, or its ref is no text")
    return segments


def _with_lost(before: Sequence[Image | Audio], after: Sequence[Segment], left_out: Failure) -> Iterator[Segment]:
    """The segments of the answer, and the media items that it lacks, each before the next one that was kept."""
    places: defaultdict[tuple[type, str], list[int]] = defaultdict(list)
    for place, media in enumerate(before):
        places[type(media), media.ref].append(place)
    kept: list[int | None] = []
    for segment in after:
        if isinstance(segment, Media):
            own = places[type(segment), segment.ref]
            if not own:
                raise _AnswerError(f"it added a media item ({segment.ref!r:.80}): only those of the document can be in it")
            kept.append(own.pop(0))
        else:
            kept.append(None)
    lost = sorted(place for own in places.values() for place in own)

    def lost_before(end: int) -> Iterator[Image | Audio]:
        while lost and lost[0] < end:
            media = before[lost.pop(0)]
            yield media if media.failure is not None else replace(media, data=None, failure=left_out)

    for segment, own_place in zip(after, kept, strict=True):
        if own_place is not None:
            yield from lost_before(own_place)
        yield segment
    yield from lost_before(len(before))


def _plain(metadata: object, before: Mapping[str, object]) -> dict[str, object]:
    """Metadata that can be written down: what a function put there must be what JSON has."""
    if not isinstance(metadata, Mapping) or not all(isinstance(key, str) for key in metadata):
        raise _AnswerError("its metadata are no mapping of names to values")
    for key, value in metadata.items():
        if key not in before or value is not before[key]:
            try:
                json.dumps(value, sort_keys=True)
            except (TypeError, ValueError, RecursionError) as error:
                raise _AnswerError(f"its metadata {key!r} are nothing that JSON has: {_told(error)}") from None
    return dict(metadata)


def _told(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # an exception of somebody else's that cannot even be printed
        text = ""
    text = _ADDRESS.sub(" at 0x...", text)  # it is another in each process, and rejects are part of the output
    return f"{type(error).__name__}: {text}"[:SHOWN] if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Where in somebody else's code an error came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(last.filename).name}, line {last.lineno})" if last.filename != __file__ else ""
