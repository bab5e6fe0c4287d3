"""Parquet as Hugging Face datasets write it: a media column {bytes, path} and a text column, one pair a row.

Columns are recognised by the schema. Every struct column with a binary field ``bytes`` is media: a sound where the dataset's
own feature metadata says Audio or, without it, where the column's name or a field ``sampling_rate`` does; else a picture. The
text is the first there is of ``caption``, ``text``, ``sentence``, ``transcription``, ``transcript``, ``captions``,
``normalized_text``, ``raw_text``; of a list, its first entry. All other columns are metadata, but for binary ones. What a sound
is says its file: a ``sampling_rate`` beside it is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tokkit.documents import Audio, Document, Failure, Image, Media, Outcome, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Unit
from tokkit.sources.media_files import FilesBelow
from tokkit.sources.opening import located
from tokkit.sources.parquet import ParquetSource, RowReader, has_binary, light_leaves
from tokkit.sources.stores.lookup import instead
from tokkit.sources.untrusted import MAX_ITEM_BYTES, metadata_of, printable

TEXT_COLUMNS = ("caption", "text", "sentence", "transcription", "transcript", "captions", "normalized_text", "raw_text")
ID_COLUMNS = ("id", "__key__", "key", "image_id")
_AUDIO_NAMES = ("audio", "speech", "sound", "wav", "mp3", "flac")


class HfParquetSource(ParquetSource):
    """Pairs of media and text."""

    format: ClassVar[str] = "hf_parquet"

    def plan(self, schema: pa.Schema) -> RowReader:
        """Rows of this schema as pairs."""
        media = media_columns(schema)
        if not media:
            raise ItemError(
                "columns-missing", f"no image or audio column {{bytes, path}}; there are: {', '.join(schema.names)}"
            )
        return _PairRows(self, schema, media)


def media_columns(schema: pa.Schema) -> dict[str, str]:
    """Modality (``image``, ``audio``) by name of each media column."""
    declared = _declared_features(schema)
    return {field.name: _modality(field, declared.get(field.name)) for field in schema if _holds_media(field.type)}


def sample_columns(schema: pa.Schema) -> list[str]:
    """Columns of sounds that were decoded: {array, sampling_rate}, and no bytes of a file."""
    found = ((field.name, field.type) for field in schema if pa.types.is_struct(field.type) and not _holds_media(field.type))
    return [name for name, kind in found if min(kind.get_field_index("array"), kind.get_field_index("sampling_rate")) >= 0]


def text_column(schema: pa.Schema) -> str | None:
    """The column that holds the caption or transcript."""
    return next((name for name in TEXT_COLUMNS if name in schema.names and _holds_text(schema.field(name).type)), None)


def _holds_media(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return False
    place = kind.get_field_index("bytes")
    return place >= 0 and has_binary(kind.field(place).type)


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _declared_features(schema: pa.Schema) -> dict[str, str]:
    """Feature types by column from the ``huggingface`` metadata; nothing where there is none or it cannot be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: str(feature["_type"]) for name, feature in features.items() if "_type" in feature}
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # a hint only: the column's name decides without it


def _modality(field: pa.Field, declared: str | None) -> str:
    if declared in ("Audio", "Image"):
        return declared.lower()
    named = any(part in field.name.lower() for part in _AUDIO_NAMES)
    return "audio" if named or field.type.get_field_index("sampling_rate") >= 0 else "image"


class _PairRows(RowReader):
    pair = True

    def __init__(self, source: HfParquetSource, schema: pa.Schema, media: dict[str, str]) -> None:
        self._media = media
        self._text = text_column(schema)
        self._id = next((name for name in ID_COLUMNS if name in schema.names), None)
        self._others = [field.name for field in schema if not has_binary(field.type)]
        self.columns = [name for name in schema.names if name in media or name in self._others]
        self._folder = source.root
        self._files = FilesBelow(source.root)
        self._stores = source.options.stores

    def document(self, unit: Unit, locator: str, row: Mapping[str, object]) -> Document:
        media = [item for name, modality in self._media.items() if (item := self._item(unit, row[name], name, modality))]
        if not media:
            raise ItemError("no-media", f"{' and '.join(self._media)} null")
        text = _first_text(row[self._text]) if self._text is not None else ""
        given = row[self._id] if self._id is not None else None
        identifier = printable(str(given)) if isinstance(given, str | int) and given != "" else locator
        others = metadata_of({name: row[name] for name in self._others if name != self._text})
        segments = (*media, *([Text(text)] if text else []))
        return Document(identifier, unit.source, locator, segments, pair=True, metadata=others)  # type: ignore[arg-type]

    def _item(self, unit: Unit, value: object, column: str, modality: str) -> Media | None:
        if not isinstance(value, Mapping):
            return None
        make = Image if modality == "image" else Audio
        data, path = value.get("bytes"), value.get("path")
        name = printable(path) if isinstance(path, str) and path else column
        if isinstance(data, bytes):
            if len(data) > MAX_ITEM_BYTES:
                return make(None, name, Failure(Outcome.REJECTED, f"{modality}-too-large", f"{len(data)} bytes"))
            return make(data, name)
        if not isinstance(path, str) or not path:
            return make(None, name, Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", "neither bytes nor a path"))
        found, store = self._files.read(located(unit.path).parent, path, modality), ""
        if modality == "image":
            urls = (path,) if path.startswith(("http://", "https://")) else ()
            found, store = instead(self._stores, found, urls=urls, name="" if urls else path)
        return make(None, name, found) if isinstance(found, Failure) else make(found, name, store=store)

    def count_items(self, parquet: pq.ParquetFile, group: int, alive: Alive) -> dict[str, int] | None:
        """Media values that are not null; None where some row's text cannot be read, for then the row is no document."""
        leaves = [leaf for name in self._media for leaf in light_leaves(parquet, name)]
        table = parquet.read_row_group(group, columns=[*leaves, *self._others], use_threads=False)
        try:
            table.validate(full=True)
        except pa.ArrowInvalid:
            return None
        items: dict[str, int] = {}
        for name, modality in self._media.items():
            count = pc.sum(table.column(name).is_valid()).as_py() or 0
            items[modality] = items.get(modality, 0) + count
        return {modality: count for modality, count in items.items() if count}


def _first_text(value: object) -> str:
    if isinstance(value, list):
        value = next((item for item in value if item is not None), None)
    return value if isinstance(value, str) else ""
