"""OBELICS: interleaved web documents, one parquet row each.

A row has two lists of one length, ``images`` and ``texts``; at each place exactly one of the two is set, and the order of the
places is the document's. A picture is a URL (looked up in a map of what was downloaded), a path, or a struct {bytes, path}
(:mod:`tokkit.sources.media_files`); one that is not there is a failed item, and the document goes on. ``metadata`` is a JSON
list with an object per picture, ``general_metadata`` a JSON object of the page (OmniCorpus keeps both as structs).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.documents import Document, Failure, Image, Outcome, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.alttext import with_alt_text
from tokkit.sources.base import Alive, ContainerDamage, InputFile, Unit
from tokkit.sources.media_files import FilesBelow, UrlStore, companions_of, prefix_name
from tokkit.sources.opening import Location, located
from tokkit.sources.parquet import ParquetSource, RowReader, light_leaves
from tokkit.sources.stores.lookup import Found, instead
from tokkit.sources.untrusted import MAX_ITEM_BYTES, metadata_of, parse_json, printable

_COLUMNS = ("images", "texts", "metadata", "general_metadata")
_URL = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//|(?:data|file):", re.IGNORECASE)
_MAX_ALT = 10_000
_MAX_NAME = 2048  # of a data: URL, no more is worth keeping


class ObelicsSource(ParquetSource):
    """Interleaved documents; the id is the page's URL where the row tells it."""

    format: ClassVar[str] = "obelics"

    def companions(self) -> list[InputFile]:
        """URL maps and picture tars (not the files of a picture folder, which may be millions)."""
        found = {}
        for file in self.files:
            for companion in companions_of(_prefix(file.path), PurePosixPath(file.name).parent):
                found[companion.name] = companion
        return list(found.values())

    def plan(self, schema: pa.Schema) -> RowReader:
        """Rows of this schema as interleaved documents."""
        missing = [name for name in ("images", "texts") if not is_list_of(schema, name)]
        if missing:
            raise ItemError("columns-missing", f"no list columns {' and '.join(missing)}; there are: {', '.join(schema.names)}")
        return _ObelicsRows(self, [name for name in _COLUMNS if name in schema.names])

    def first_of_prefix(self, unit: Unit) -> bool:
        """True for the one unit that answers for the damage of its prefix' companions."""
        prefix = _prefix(unit.path)
        first = next((file for file in self.files if _prefix(file.path) == prefix), None)
        return first is not None and first.name == unit.file and unit.start == 0


def _prefix(path: str) -> Location:
    where = located(path)
    return where.with_name(prefix_name(where.name))


def is_list_of(schema: pa.Schema, name: str) -> bool:
    """True for a list column of strings or, for pictures, of structs."""
    place = schema.get_field_index(name)
    kind = schema.field(place).type if place >= 0 else pa.null()
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    element = kind.value_type
    if name == "images" and pa.types.is_struct(element):
        return element.get_field_index("bytes") >= 0 or element.get_field_index("path") >= 0
    return pa.types.is_string(element) or pa.types.is_large_string(element) or pa.types.is_null(element)


class _ObelicsRows(RowReader):
    pair = False

    def __init__(self, source: ObelicsSource, columns: list[str]) -> None:
        self.columns = columns
        self._source = source
        self._files = FilesBelow(source.root)
        self._store: UrlStore | None = None

    def document(self, unit: Unit, locator: str, row: Mapping[str, object]) -> Document:
        places = row_places(row)
        general, url, alts = _page(row)
        found = (self._segment(unit, locator, place, image, text) for place, (image, text) in enumerate(places))
        named = (_with_alt(segment, alts, place) for place, segment in enumerate(found))
        segments = with_alt_text(named, self._source.options.alt_text)
        kept = tuple(segment for segment in segments if not (isinstance(segment, Text) and not segment.text))
        if not kept:
            raise ItemError("empty-document", "no text and no picture at any place")
        metadata = metadata_of({**general, "url": url} if url else general)
        return Document(printable(url) if url else locator, unit.source, locator, kept, metadata=metadata)

    def _segment(self, unit: Unit, locator: str, place: int, image: object, text: object) -> Segment:
        if image is None:
            if not isinstance(text, str):
                raise ItemError("text-not-a-string", f"place {place} of texts is a {type(text).__name__}")
            return Text(text)
        reference: object = image
        if isinstance(image, Mapping):
            data, reference = image.get("bytes"), image.get("path")
            name = printable(reference) if isinstance(reference, str) and reference else f"images[{place}]"
            if isinstance(data, bytes):
                if len(data) > MAX_ITEM_BYTES:
                    return Image(None, name, Failure(Outcome.REJECTED, "image-too-large", f"{len(data)} bytes"))
                return Image(data, name)
            if reference is None:
                return Image(None, name, Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", "neither bytes nor a path"))
        if not isinstance(reference, str):
            raise ItemError("image-not-understood", f"place {place} of images is a {type(reference).__name__}")
        (found, store), name = self._found(unit, reference), printable(reference[:_MAX_NAME])
        return Image(None, name, found) if isinstance(found, Failure) else Image(found, name, store=store)

    def _found(self, unit: Unit, reference: str) -> Found:
        """What lies beside the parquet, else what the run's picture stores have."""
        found, stores = self._fetch(unit, reference), self._source.options.stores
        if _URL.match(reference) is None:
            return instead(stores, found, name=reference)
        return instead(stores, found, urls=(reference,))

    def _fetch(self, unit: Unit, reference: str) -> bytes | Failure:
        if _URL.match(reference) is None:
            folder = located(unit.path).parent
            found = self._files.read(folder, reference, "image")
            if isinstance(found, Failure) and found.reason == "image-not-found" and folder != self._source.root:
                return self._files.read(self._source.root, reference, "image")  # some corpora count from their top folder
            return found
        if reference[:5].lower() == "file:":
            return Failure(Outcome.REJECTED, "path-outside-source", "a file: URL, which is never followed")
        return self._urls(unit).read(reference, self._files)

    def _urls(self, unit: Unit) -> UrlStore:
        if self._store is None:
            self._store = UrlStore.load(_prefix(unit.path), PurePosixPath(unit.file).parent)
        return self._store

    def ends(self, unit: Unit) -> Iterator[ContainerDamage]:
        """Damage of the map and of the tar, told once a prefix."""
        if self._source.first_of_prefix(unit):
            yield from self._urls(unit).damage

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def count_items(self, parquet: pq.ParquetFile, group: int, alive: Alive) -> dict[str, int] | None:
        """Places of ``images`` that are set; None where any row is irregular, for only reading tells what becomes of it."""
        columns = [*light_leaves(parquet, "images"), *self.columns[self.columns.index("texts") :]]
        table = parquet.read_row_group(group, columns=columns, use_threads=False)
        images, texts = table.column("images"), table.column("texts")
        lengths = pc.equal(pc.list_value_length(images), pc.list_value_length(texts))
        set_images, set_texts = pc.list_flatten(images).is_valid(), pc.list_flatten(texts).is_valid()
        regular = lengths.null_count == 0 and pc.all(lengths).as_py() is not False
        if (
            not regular
            or pc.any(pc.equal(set_images, set_texts)).as_py()
            or pc.any(pc.equal(pc.list_value_length(texts), 0)).as_py()
        ):
            return None
        try:
            table.validate(full=True)
            told = [name for name in _COLUMNS[2:] if name in table.column_names]
            for values in zip(*(table.column(name) for name in told), strict=True):
                alive()
                _page({name: value.as_py() for name, value in zip(told, values, strict=True)})
        except (pa.ArrowInvalid, ItemError):
            return None
        return {"image": pc.sum(set_images).as_py() or 0}


def row_places(row: Mapping[str, object]) -> list[tuple[object, object]]:
    """The places of a row as (image, text), exactly one of which is set.

    Raises:
        ItemError: ``empty-document``, ``uneven-lists``, ``text-and-image-in-one-place``, or ``empty-place``: where neither is
            set something was lost, and what is left would pass for the whole page in its order.
    """
    images, texts = row["images"], row["texts"]
    if not images and not texts:
        raise ItemError("empty-document", "images and texts are empty")
    if not isinstance(images, list) or not isinstance(texts, list) or len(images) != len(texts):
        lengths = [len(part) if isinstance(part, list) else "no" for part in (images, texts)]
        raise ItemError("uneven-lists", f"{lengths[0]} places in images, {lengths[1]} in texts")
    for place, (image, text) in enumerate(zip(images, texts, strict=True)):
        if image is not None and text is not None:
            raise ItemError("text-and-image-in-one-place", f"place {place} has both")
        if image is None and text is None:
            raise ItemError("empty-place", f"place {place} has neither text nor image")
    return list(zip(images, texts, strict=True))


def _with_alt(segment: Segment, alts: list[str], place: int) -> Segment:
    """A picture with the alternative text that the row's metadata has at its place."""
    if not isinstance(segment, Image) or place >= len(alts) or not alts[place]:
        return segment
    return replace(segment, alt=alts[place])


def _page(row: Mapping[str, object]) -> tuple[dict[str, object], str, list[str]]:
    """The page's fields, its URL, empty where the row does not tell, and the alternative texts by place."""
    general = _json_value(row.get("general_metadata"))
    pictures = _json_value(row.get("metadata"))
    if general is not None and not isinstance(general, dict):
        raise ItemError("metadata-invalid", "general_metadata is not a JSON object")
    if pictures is not None and not isinstance(pictures, list):
        raise ItemError("metadata-invalid", "metadata is not a JSON list")
    fields: dict[str, object] = general or {}
    named = [fields.get("url"), *(picture.get("document_url") for picture in pictures or [] if isinstance(picture, dict))]
    told = [picture.get("alt_text") if isinstance(picture, dict) else None for picture in pictures or []]
    alts = [printable(" ".join(alt[:_MAX_ALT].split())) if isinstance(alt, str) else "" for alt in told]
    return fields, next((url for url in named if isinstance(url, str) and url), ""), alts


def _json_value(value: object) -> object:
    """A metadata column: JSON text, or a struct as it is; raises ItemError ``metadata-invalid``."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value)
    except ItemError as error:
        raise ItemError("metadata-invalid", f"the metadata is no JSON: {error.message}") from None
