"""What a source is: corpora in, documents out.

A source is a list of input files of one format. It cuts itself into *units* (a range of one file each) without reading more
than an index, reads a unit as a stream of documents, and counts a unit by other means than reading it, so that the pipeline's
sums can be checked against something.

Rules for every source:

* ``read`` yields every document of the range exactly once, in file order. What cannot become a document still counts: it is
  yielded with a ``failure``. Where the container itself is damaged the reader yields a :class:`ContainerDamage` with the byte
  range that could not be read, and ends or goes on behind it; it never ends quietly.
* ``read`` raises ``OSError`` only for the surroundings (a disk that fails); bytes at fault are yielded, never raised.
* Documents depend on the input's bytes and on the source's name only: not on how the file was cut into units, on absolute
  paths, or on modification times.
* Names found inside files are never used as paths unless they resolve to a place below the source's root.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar, Literal

from tokkit.chat_templates import PLAIN, ChatTemplate
from tokkit.documents import Document
from tokkit.sources.opening import Location, relative_name, state_of

if TYPE_CHECKING:
    from tokkit.sources.stores.lookup import PictureStores

Alive = Callable[[], None]


def silent() -> None:
    """Where nobody waits for a sign of life."""


AltText = Literal["none", "before", "after"]


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """What a run asks of its sources.

    Attributes:
        alt_text: whether the alternative text of a picture in an interleaved document stands there as text, before or after it.
        stores: asked for pictures that do not lie beside the corpus, where a run has any.
        chat_template: how conversations are written down.
    """

    alt_text: AltText = "none"
    stores: PictureStores | None = None
    chat_template: ChatTemplate = PLAIN


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file of the input.

    Attributes:
        name: path relative to the source's root, with forward slashes: stable between machines, used in locators.
        path: where it lies: a path, or a URL (:func:`~tokkit.sources.opening.located` takes both).
        size: bytes; 0 for a folder, whose own size says nothing.
        mtime_ns: modification time, or a number made of what an object store has for it: to notice a change between a run
            and its resumption (never part of the output).
    """

    name: str
    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Location, root: Location) -> InputFile:
        """Describe ``path`` below ``root``; raises OSError where it cannot be read."""
        return cls(relative_name(path, root), str(path), *state_of(path))


@dataclass(frozen=True, slots=True)
class Unit:
    """A range of one input file: what one attempt reads, encodes and commits.

    Attributes:
        source: name of the source in this run.
        file: the file's name (see :class:`InputFile`).
        path: where the file lies.
        start, stop: the range, in whatever the format counts (bytes, row groups, or 0 and 1 for the whole file); opaque to
            everything but the source.
        bytes: bytes of the file that the range covers: for balancing, progress and extrapolation.
    """

    source: str
    file: str
    path: str
    start: int
    stop: int
    bytes: int


@dataclass(frozen=True, slots=True)
class ContainerDamage:
    """A stretch of a container that could not be read, and everything in it with it.

    Attributes:
        locator: the file's name.
        start, stop: byte range in the file; ``stop`` is the file's end where the reader could not find its way again.
        reason: slug (``tar-truncated``, ``gzip-truncated``, ``parquet-unreadable``).
        message: what was found, for a person.
    """

    locator: str
    start: int
    stop: int
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Census:
    """A count of a unit taken by other means than reading its documents (tar headers, parquet metadata, line counts).

    Attributes:
        documents: documents in the range, upstream failures included; None where damage makes it unknowable.
        items: media items by modality, in documents that are not failures themselves; absent where it cannot be known cheaply.
        others: by kind, what else is in the range and is no document (a web archive's requests, styles, revisits...).
    """

    documents: int | None
    items: dict[str, int] = field(default_factory=dict)
    others: dict[str, int] = field(default_factory=dict)


class UnitReader(ABC):
    """A stream over one unit.

    Attributes:
        consumed: 0 to 1, the share of the unit that the documents yielded so far cover.
        alive: set by who reads; called at least once in a few megabytes where it takes long to the next document.
    """

    consumed: float = 0.0
    alive: Alive = staticmethod(silent)

    @abstractmethod
    def __iter__(self) -> Iterator[Document | ContainerDamage]: ...


class Source(ABC):
    """Input files of one format. Instances are picklable and hold no open files: workers get a copy.

    Args:
        name: the source's name in this run; part of every locator's document, so unique in a run.
        root: the folder that file names are relative to, of this machine or of an object store.
        files: the files that hold documents, sorted by name.

    Attributes:
        options: set by :func:`tokkit.sources.make_source`.
    """

    format: ClassVar[str]
    options: SourceOptions = SourceOptions()

    def __init__(self, name: str, root: Location, files: Sequence[InputFile]) -> None:
        self.name = name
        self.root = root
        self.files = list(files)

    @cached_property
    def file_of(self) -> dict[str, InputFile]:
        """The files by name."""
        return {file.name: file for file in self.files}

    def companions(self) -> list[InputFile]:
        """Other files that documents are made from (sidecars, picture stores): watched for changes like ``files``."""
        return []

    @cached_property
    def watched(self) -> list[InputFile]:
        """The companions as they were when this was first asked for; a run asks when it is planned."""
        return self.companions()

    def contents(self) -> list[InputFile]:
        """What lies in ``files`` that are folders, summed up in one entry a folder that changes when any of it does.

        Compared before a run goes on, not with each unit: to ask for it looks at every file.
        """
        return []

    @abstractmethod
    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Cut the files, in order, into ranges of about ``unit_bytes``; a file that cannot be cut is one unit."""

    @abstractmethod
    def read(self, unit: Unit) -> UnitReader:
        """Stream the documents of a unit."""

    @abstractmethod
    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count the unit's documents and media items, apart from ``read``.

        ``alive`` is called at every step, at least once in a few megabytes: a worker that gives no sign for minutes is taken to
        hang, and killed. It costs next to nothing.
        """
