"""MMC4: interleaved web documents, one JSON object a line, plain, gzip, or a zip of one file as the corpus is shipped.

A line has ``text_list``, the page's sentences, and ``image_info``, its pictures, each with ``matched_text_index``: the sentence
that it goes with. A picture stands before its sentence, which is how OpenFlamingo was trained on MMC4 (its data loader writes
``<image>`` in front of the matched sentence); pictures of one sentence keep the order of ``image_info``, and sentences with no
picture between them become one text with a space between each two, as there. The picture itself is ``image_base64`` where the
line has it (OpenFlamingo's form), else the file ``images/IMAGE_NAME`` beside the jsonl; one that is not there is a failed item,
and the document goes on. The similarity matrix and the entries of ``image_info`` are left out of the metadata.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import ClassVar

from tokkit.documents import Document, Failure, Image, Outcome, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Unit
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.media_files import FilesBelow
from tokkit.sources.opening import located
from tokkit.sources.stores.lookup import PictureStores, instead
from tokkit.sources.untrusted import failed_document, metadata_of, printable

FIELDS = ("text_list", "image_info")
PICTURE_FOLDER = "images"
_MAX_NAME = 2048


class Mmc4Source(LineSource):
    """Interleaved documents; the id is the page's URL."""

    format: ClassVar[str] = "mmc4"
    counts_media: ClassVar[bool] = True

    def line_reader(self, *, media: bool) -> LineDocument:
        """A line as an interleaved document."""
        return _Lines(FilesBelow(self.root) if media else None, self.options.stores).document


class _Lines:
    """Makes documents of lines; without ``files`` the pictures are empty, and only their number and places are told."""

    def __init__(self, files: FilesBelow | None, stores: PictureStores | None = None) -> None:
        self._files, self._stores = files, stores

    def document(self, unit: Unit, offset: int, line: bytes | None) -> Document:
        """The document that a line is, or the failure that stands for it."""
        locator = f"{unit.file}@{offset}"
        try:
            fields = fields_of(line)
            sentences, pictures = _parts(fields)
            segments: list[Segment] = []
            run: list[str] = []  # sentences with no picture between them
            for place, sentence in enumerate(sentences):
                if place in pictures:
                    segments += _joined(run)
                    segments += [self._picture(unit, number, picture) for number, picture in pictures[place]]
                    run = []
                run.append(sentence)
            segments += _joined(run)
            if not segments:
                raise ItemError("empty-document", "no text in any sentence and no picture")
        except ItemError as error:
            return failed_document(unit.source, locator, error.reason, error.message)
        url = fields.get("url")
        others = {name: value for name, value in fields.items() if name not in (*FIELDS, "similarity_matrix")}
        identifier = printable(url) if isinstance(url, str) and url else locator
        return Document(identifier, unit.source, locator, tuple(segments), metadata=metadata_of(others))

    def _picture(self, unit: Unit, number: int, picture: Mapping[str, object]) -> Image:
        name, inline = picture.get("image_name"), picture.get("image_base64")
        named = next((n for n in (name, picture.get("raw_url")) if isinstance(n, str) and n), f"image_info[{number}]")
        ref = printable(named[:_MAX_NAME])
        if self._files is None:
            return Image(b"", ref)
        if isinstance(inline, str) and inline:
            try:
                return Image(base64.b64decode(inline, validate=True), ref)
            except (binascii.Error, ValueError) as error:
                return Image(None, ref, Failure(Outcome.REJECTED, "image-base64-invalid", str(error)))
        url = picture.get("raw_url")
        urls = (url,) if isinstance(url, str) and url else ()
        found: bytes | Failure = Failure(Outcome.FAILED_UPSTREAM, "not-downloaded", "no image_base64, no image_name")
        if not isinstance(name, str) or not name:
            name = ""
        else:
            found = self._files.read(located(unit.path).parent / PICTURE_FOLDER, name, "image")
        found, store = instead(self._stores, found, urls=urls, name=name)
        return Image(None, ref, found) if isinstance(found, Failure) else Image(found, ref, store=store)


def _joined(sentences: list[str]) -> list[Text]:
    text = " ".join(sentence for sentence in sentences if sentence)
    return [Text(text)] if text else []


def _parts(fields: Mapping[str, object]) -> tuple[list[str], dict[int, list[tuple[int, Mapping[str, object]]]]]:
    """The sentences, and the numbered entries of ``image_info`` by the sentence that they stand before.

    Raises:
        ItemError: ``fields-missing``, ``text-not-a-string``, ``image-not-understood``, or ``image-not-placed`` where a picture
            names no sentence: where it stood cannot be known, and what is left would pass for the page in its order.
    """
    sentences, infos = fields.get("text_list"), fields.get("image_info")
    if not isinstance(sentences, list) or not isinstance(infos, list):
        lacking = [name for name in FIELDS if not isinstance(fields.get(name), list)]
        raise ItemError("fields-missing", f"no list {' and no list '.join(lacking)}")
    for place, sentence in enumerate(sentences):
        if not isinstance(sentence, str):
            raise ItemError("text-not-a-string", f"entry {place} of text_list is a {type(sentence).__name__}")
    pictures: dict[int, list[tuple[int, Mapping[str, object]]]] = {}
    for number, info in enumerate(infos):
        if not isinstance(info, dict):
            raise ItemError("image-not-understood", f"entry {number} of image_info is a {type(info).__name__}")
        match = info.get("matched_text_index")
        if not isinstance(match, int) or isinstance(match, bool) or not 0 <= match < len(sentences):
            told = f"entry {number} of image_info goes with sentence {str(match)[:40]!r} of {len(sentences)}"
            raise ItemError("image-not-placed", told)
        pictures.setdefault(match, []).append((number, info))
    return sentences, pictures
