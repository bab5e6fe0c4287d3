"""A record as a document: a page's text and pictures, or a conversion's text; or the failure that stands for it.

Every page and every text counts, whatever becomes of it: pages that answer with another status than 200 or 203
(``http-status-404``...), have no payload (``empty-payload``), are no HTML after all (``not-html``), or nothing is left of once
boilerplate is left out (``no-main-content``) are filtered; those that cannot be read are rejected.
"""

from __future__ import annotations

from tokkit.documents import Document, Failure, Image, Outcome, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.alttext import with_alt_text
from tokkit.sources.base import SourceOptions
from tokkit.sources.html.charset import decode_page
from tokkit.sources.html.pictures import MAX_URL, Picture
from tokkit.sources.html.walk import read_page
from tokkit.sources.stores.lookup import Found, instead
from tokkit.sources.untrusted import MAX_ITEM_BYTES, decode_text, printable
from tokkit.sources.warc.http import HttpHead, parse_http, payload_of
from tokkit.sources.warc.kinds import Kind, essence, is_http, kind_of
from tokkit.sources.warc.pictures import PictureStore
from tokkit.sources.warc.walk import Record

MAX_PAGE_BYTES = 16 << 20
MAX_PICTURE_BYTES = 2 * MAX_ITEM_BYTES  # of all pictures of one page
_MAX_REF = 2048
_GOOD = frozenset((200, 203))
_LOOKS = 1024
_HTML = tuple(b"<" + tag for tag in b"!doctype html|html|head|body|title|p|div|h1|table|script|!--|?xml".split(b"|"))
_BINARY = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"%PDF-", b"PK\x03\x04", b"\x1f\x8b", b"RIFF")


class _FilteredError(Exception):
    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message


def http_of(record: Record) -> HttpHead | None:
    """The HTTP header of a record's block, where it has one."""
    if record.header.arc or is_http(record.header.content_type) or not record.header.content_type:
        return parse_http(record.opening)
    return None


def kind_of_record(record: Record) -> Kind:
    """What a record is (:mod:`tokkit.sources.warc.kinds`)."""
    header, head = record.header, http_of(record)
    if head is not None:
        declared = head.content_type or (header.content_type if header.arc else "")
    elif is_http(header.content_type) or (header.type == "response" and not header.content_type):
        declared = ""
    else:
        declared = header.content_type or "unknown"
    return kind_of(header.type, declared, header.fields.get("warc-identified-payload-type", ""))


class PageReader:
    """Makes documents of the records of one archive."""

    def __init__(self, source: str, file: str, path: str, options: SourceOptions) -> None:
        self._source, self._file = source, file
        self._alt_text, self._stores = options.alt_text, options.stores
        self._store = PictureStore(path, file)

    def close(self) -> None:
        """Close the archive that pictures are read from."""
        self._store.close()

    def document(self, record: Record, kind: Kind) -> Document:
        """The document of a page or text."""
        locator = f"{self._file}@{record.place}"
        metadata = _metadata(record)
        segments: tuple[Segment, ...] = ()
        failure: Failure | None = None
        try:
            segments = (_text(record),) if kind is Kind.TEXT else self._page(record, metadata)
        except _FilteredError as error:
            failure = Failure(Outcome.FILTERED, error.reason, printable(error.message))
        except ItemError as error:
            failure = Failure(Outcome.REJECTED, error.reason, printable(error.message))
        identifier = record.header.fields.get("warc-record-id", "").removeprefix("<").removesuffix(">")
        return Document(identifier[:_MAX_REF] or locator, self._source, locator, segments, False, metadata, failure)

    def _page(self, record: Record, metadata: dict[str, object]) -> tuple[Segment, ...]:
        header, head = record.header, http_of(record)
        if head is not None and head.status not in _GOOD:
            raise _FilteredError(f"http-status-{head.status}", f"the server answered {head.status}")
        if record.block is None:
            raise ItemError("page-too-large", f"{header.length} bytes; at most {MAX_PAGE_BYTES} are read")
        if head is None and is_http(header.content_type):
            raise ItemError("http-invalid", f"the record is no HTTP response: it begins with {record.block[:24]!r}")
        payload = record.block
        if head is not None:
            payload = payload_of(head, record.block, MAX_PAGE_BYTES, truncated="warc-truncated" in header.fields)
        content_type = head.content_type if head is not None and head.content_type else header.content_type
        if not payload.strip():
            raise _FilteredError("empty-payload", "the page has no bytes")
        _check_is_html(payload, declared=bool(head is None or head.content_type))
        decoded = decode_page(payload, content_type)
        content = read_page(decoded.text, header.url)
        metadata["charset"] = decoded.encoding
        if decoded.errors:
            metadata["charset_errors"] = decoded.errors
        if content.title:
            metadata["title"] = printable(content.title)
        if content.language and "languages" not in metadata:
            metadata["languages"] = [printable(content.language)]
        if not content.parts:
            raise _FilteredError("no-main-content", "nothing is left of the page without its boilerplate")
        return with_alt_text(self._segments(content.parts), self._alt_text)

    def _segments(self, parts: tuple[str | Picture, ...]) -> list[Segment]:
        found: list[Segment] = []
        known: dict[tuple[str, ...], Found] = {}
        left = MAX_PICTURE_BYTES
        for part in parts:
            if isinstance(part, str):
                found.append(Text(part))
                continue
            new = part.urls not in known
            data, store = self._picture(part, known)
            if isinstance(data, bytes) and new:
                if len(data) > left:
                    message = f"the pictures of the page come to more than {MAX_PICTURE_BYTES} bytes"
                    data = Failure(Outcome.REJECTED, "image-too-large", message)
                    known[part.urls] = data, ""
                else:
                    left -= len(data)
            name, alt = part.shown[:MAX_URL], printable(part.alt)
            found.append(
                Image(None, name, data, alt) if isinstance(data, Failure) else Image(data, name, None, alt, store=store)
            )
        return found

    def _picture(self, picture: Picture, known: dict[tuple[str, ...], Found]) -> Found:
        if picture.data is not None:
            return picture.data, ""
        if not picture.urls:
            return Failure(Outcome.REJECTED, "image-url-invalid", "what the page names is no URL"), ""
        if picture.urls not in known:
            known[picture.urls] = instead(self._stores, self._store.read(picture.urls), urls=picture.urls)
        return known[picture.urls]


def _check_is_html(payload: bytes, *, declared: bool) -> None:
    """Bytes that declare nothing must look like HTML, those that declare HTML must not be something else."""
    opening = payload[:_LOOKS].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if payload.startswith(_BINARY):
        raise _FilteredError("not-html", f"the page begins with {payload[:8]!r}")
    if not declared and not opening.startswith(_HTML):
        raise _FilteredError("not-html", "neither the server nor the first bytes say that it is HTML")


def _text(record: Record) -> Text:
    if record.block is None:
        raise ItemError("page-too-large", f"{record.header.length} bytes; at most {MAX_PAGE_BYTES} are read")
    text = decode_text(record.block)
    if not text.strip():
        raise _FilteredError("empty-payload", "the text is empty")
    return Text(text)


def _metadata(record: Record) -> dict[str, object]:
    """What a record says of itself."""
    header, head = record.header, http_of(record)
    fields = header.fields
    found: dict[str, object] = {}
    if header.url:
        found["url"] = header.url
    for name, field in (("date", "warc-date"), ("record_id", "warc-record-id"), ("truncated", "warc-truncated")):
        if field in fields:
            found[name] = fields[field].removeprefix("<").removesuffix(">")
    kind = essence((head.content_type if head is not None else "") or header.content_type)
    if kind and not is_http(kind):
        found["content_type"] = kind
    if languages := fields.get("warc-identified-content-language"):
        found["languages"] = [language.strip() for language in languages.split(",") if language.strip()]
    return found
