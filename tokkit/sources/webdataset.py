"""WebDataset tars: image-caption and audio-transcript pairs, as img2dataset and audio corpora ship them.

``00000.tar`` holds ``KEY.jpg``, ``KEY.txt``, ``KEY.json`` and so on (:mod:`tokkit.sources.samples`). A sample is a pair: its
media items in the archive's order, then its text: the ``.txt``, or else the JSON's ``caption`` or ``text``. The JSON is the
document's metadata. Reading goes by the index of the headers, so a unit is a range of samples, read in place; nothing is
unpacked. A tar that is compressed as a whole is one unit (:mod:`tokkit.sources.tarstream`). ``00000.parquet`` beside the tar
adds the rows that were never downloaded (:mod:`tokkit.sources.sidecar`).
"""

from __future__ import annotations

import errno
import io
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import BinaryIO, ClassVar, cast

from tokkit.documents import Audio, Document, Image, Media, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Alive, Census, ContainerDamage, InputFile, Source, Unit, UnitReader, silent
from tokkit.sources.compressed import DAMAGE_ERRORS, is_compressed, open_decompressed
from tokkit.sources.opening import located
from tokkit.sources.samples import Sample, group_samples, lost_samples
from tokkit.sources.sidecar import SidecarReader, find_sidecar
from tokkit.sources.tarindex import Member, TarIndex, tar_index, tidy_name
from tokkit.sources.tarstream import Forward, StreamView, in_order, stream_index
from tokkit.sources.untrusted import MAX_ITEM_BYTES, decode_text, failed_document, metadata_of, parse_json, printable

MAX_SAMPLE_BYTES = 4 * MAX_ITEM_BYTES
MEDIA = {"image": Image, "audio": Audio}

ReadMember = Callable[[Member], bytes]


class WebDatasetSource(Source):
    """Tars of samples; locators are ``FILE#KEY``, or ``FILE@OFFSET`` where the key does not name one sample."""

    format: ClassVar[str] = "webdataset"

    def companions(self) -> list[InputFile]:
        """The sidecars."""
        found = (find_sidecar(file.path, file.name) for file in self.files)
        return [sidecar for sidecar in found if sidecar is not None]

    def units(self, unit_bytes: int) -> Iterator[Unit]:
        """Ranges of bytes, cut where a sample begins. A tar larger than ``unit_bytes`` has its headers read."""
        for file in self.files:
            cuts = [0]
            if file.size > unit_bytes and not is_compressed(file.name):
                for sample in group_samples(tar_index(file.path).members):
                    if sample.offset >= cuts[-1] + unit_bytes:
                        cuts.append(sample.offset)
            for start, stop in zip(cuts, [*cuts[1:], file.size], strict=True):
                yield Unit(self.name, file.name, file.path, start, stop, stop - start)

    def read(self, unit: Unit) -> UnitReader:
        """Documents of the samples that begin in the range; the last range adds the damage and the sidecar's rows."""
        return _StreamReader(unit) if is_compressed(unit.file) else _TarReader(unit)

    def census(self, unit: Unit, alive: Alive = silent) -> Census:
        """Count samples by the headers that :mod:`tarfile` finds, and media items of those whose texts can be read."""
        samples, packed = _foreign_samples(unit.path, alive), is_compressed(unit.file)
        if samples is None or (not packed and tar_index(unit.path).damage is not None):
            return Census(None)  # of a damage the last unit tells, for all
        # What is compressed is one unit, and its offsets are those of what comes out.
        counted = [sample for sample in samples if packed or unit.start <= sample.offset < unit.stop]
        items: dict[str, int] = {}
        for document in _counted(unit, counted, alive):
            for media in document.media:
                modality = "image" if isinstance(media, Image) else "audio"
                items[modality] = items.get(modality, 0) + 1
        documents = len(counted)
        sidecar = find_sidecar(unit.path, unit.file) if unit.stop >= _stamp(unit.path)[0] else None
        if sidecar is not None:
            rows = SidecarReader(unit.source, unit.file, sidecar).count(
                {sample.key for sample in samples if not sample.repeats}
            )
            if rows is None:
                return Census(None)
            documents += rows
        return Census(documents, items)


def _counted(unit: Unit, samples: list[Sample], alive: Alive) -> Iterator[Document]:
    """The documents that samples are, without their media."""
    if is_compressed(unit.file):
        for sample, data in in_order(samples, _texts_of, lambda: _foreign_members(unit.path, alive)):
            yield build_document(unit, sample, _held(data))
        return
    with located(unit.path).open("rb") as file:
        for sample in samples:
            alive()
            yield build_document(unit, sample, _reading(file, media=False))


class _TarReader(UnitReader):
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        index = tar_index(unit.path)
        samples = group_samples(index.members)
        lost = lost_samples(samples, index.damage)
        whole = [sample for sample in samples if sample.offset not in lost]
        mine = [sample for sample in whole if unit.start <= sample.offset < unit.stop]
        ends = [*(sample.offset for sample in mine[1:]), unit.stop][: len(mine)]
        with located(unit.path).open("rb") as file:
            for sample, end in zip(mine, ends, strict=True):
                document = build_document(unit, sample, _reading(file, media=True))
                self.consumed = (end - unit.start) / max(1, unit.stop - unit.start)
                yield document
        self.consumed = 1.0
        if unit.stop >= index.size:
            yield from _rest(unit, index, whole, [sample for sample in samples if sample.offset in lost], index.size)


class _StreamReader(UnitReader):
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def __iter__(self) -> Iterator[Document | ContainerDamage]:
        unit = self._unit
        size = located(unit.path).stat().st_size
        with located(unit.path).open("rb") as file:
            view = StreamView(file, unit.file, self.alive)
            index = stream_index(view)
        samples = group_samples(index.members)
        lost = lost_samples(samples, index.damage)
        whole = [sample for sample in samples if sample.offset not in lost]
        for number, (sample, data) in enumerate(in_order(whole, _members_of, lambda: self._members(index)), 1):
            document = build_document(unit, sample, _held(data))
            self.consumed = number / len(whole)
            yield document
        self.consumed = 1.0
        yield from _rest(unit, index, whole, [sample for sample in samples if sample.offset in lost], size, view.place)

    def _members(self, index: TarIndex) -> Iterator[tuple[int, Callable[[], bytes]]]:
        unit = self._unit
        with located(unit.path).open("rb") as file:
            view = StreamView(file, unit.file, self.alive)
            for member in index.members:

                def read(member: Member = member) -> bytes:
                    data = view.at(member.data, member.size)
                    if len(data) != member.size:
                        raise OSError(errno.EIO, "shorter than when it was indexed; did something write to it?", unit.path)
                    return data

                yield member.offset, read


def _members_of(sample: Sample) -> list[Member]:
    """What is read of a sample: nothing of one that is rejected for what its headers say."""
    if sample.problem is not None:
        return []
    try:
        _check_sizes(sample)
    except ItemError:
        return []
    return list(sample.fields.values())


def _texts_of(sample: Sample) -> list[Member]:
    return [member for member in _members_of(sample) if _is_text(member)]


def _is_text(member: Member) -> bool:
    return member.name.lower().endswith((".txt", ".json"))


def _same(offset: int) -> int:
    return offset


def _rest(
    unit: Unit,
    index: TarIndex,
    whole: list[Sample],
    lost: list[Sample],
    size: int,
    place: Callable[[int], int] = _same,
) -> Iterator[Document | ContainerDamage]:
    """What follows the last sample: the damage, and what the sidecar knows beyond the tar.

    Args:
        size: of the file.
        place: from an offset in the tar to one in the file.
    """
    if index.damage is not None:
        start, message = index.damage.start, index.damage.message
        if lost:
            start = min(start, lost[0].offset)
            named = ", ".join(repr(sample.key) for sample in lost[:8]) + (", ..." if len(lost) > 8 else "")
            message += f"; not taken for whole: {named}"
        yield ContainerDamage(unit.file, min(place(start), size), size, index.damage.reason, printable(message))
    sidecar = find_sidecar(unit.path, unit.file)
    if sidecar is not None:
        in_tar = {sample.key for sample in whole if not sample.repeats}
        yield from SidecarReader(unit.source, unit.file, sidecar).lacking(in_tar)


def build_document(unit: Unit, sample: Sample, read: ReadMember) -> Document:
    """The document that a sample is, or the failure that stands for it."""
    locator = f"{unit.file}@{sample.offset}" if sample.repeats else f"{unit.file}#{printable(sample.key)}"
    try:
        if sample.problem is not None:
            raise ItemError(*sample.problem)
        _check_sizes(sample)
        fields = _json_of(sample, read)
        text = _text_of(sample, fields, read)
        if not sample.media:
            raise ItemError("no-media", f"no picture or sound among the members: {', '.join(sample.fields)}")
        media: list[Media] = [MEDIA[modality](read(member), printable(member.name)) for modality, member in sample.media]
    except ItemError as error:
        return failed_document(unit.source, locator, error.reason, error.message, id=printable(sample.key), pair=True)
    return Document(
        id=printable(sample.key),
        source=unit.source,
        locator=locator,
        segments=(*media, *([Text(text)] if text else [])),  # type: ignore[arg-type]
        pair=True,
        metadata=metadata_of(fields),
    )


def _check_sizes(sample: Sample) -> None:
    for member in sample.fields.values():
        if member.size > MAX_ITEM_BYTES:
            message = f"the member {member.name!r} has {member.size} bytes; at most {MAX_ITEM_BYTES} are read"
            raise ItemError("member-too-large", message)
    total = sum(member.size for member in sample.fields.values())
    if total > MAX_SAMPLE_BYTES:
        raise ItemError("sample-too-large", f"{total} bytes in one sample; at most {MAX_SAMPLE_BYTES} are read")


def _json_of(sample: Sample, read: ReadMember) -> dict[str, object]:
    """The sample's fields. A JSON that cannot be read rejects the sample: its licence or its caption may be in there."""
    member = sample.fields.get("json")
    if member is None:
        return {}
    try:
        fields = parse_json(read(member))
    except ItemError as error:
        reason = error.reason if error.reason == "text-not-utf8" else "json-invalid"
        raise ItemError(reason, f"{member.name}: {error.message}") from None
    if not isinstance(fields, dict):
        raise ItemError("json-invalid", f"{member.name}: not a JSON object")
    return fields


def _text_of(sample: Sample, fields: dict[str, object], read: ReadMember) -> str:
    texts = [member for extension, member in sample.fields.items() if extension.rpartition(".")[2] == "txt"]
    chosen = sample.fields.get("txt") or (texts[0] if len(texts) == 1 else None)
    if chosen is not None:
        try:
            return decode_text(read(chosen))
        except ItemError as error:
            raise ItemError(error.reason, f"{chosen.name}: {error.message}") from None
    if texts:
        raise ItemError("several-texts", f"which is the caption: {', '.join(member.name for member in texts)}?")
    found = (fields.get(name) for name in ("caption", "text"))
    return next((text for text in found if isinstance(text, str) and text), "")


def _reading(file: BinaryIO, media: bool) -> ReadMember:
    """A function that reads a member; with ``media`` False, only those whose content decides what a sample is."""

    def read(member: Member) -> bytes:
        if not media and not _is_text(member):
            return b""
        file.seek(member.data)
        data = file.read(member.size)
        if len(data) != member.size:
            raise OSError(errno.EIO, "shorter than when it was indexed; did something write to it?", file.name)
        return data

    return read


def _held(data: Mapping[int, bytes]) -> ReadMember:
    """A function that gives what was read of a sample before."""
    return lambda member: data.get(member.offset, b"")


def _stamp(path: str) -> tuple[int, int]:
    stat = located(path).stat()
    return stat.st_size, stat.st_mtime_ns


def _foreign_samples(path: str, alive: Alive) -> list[Sample] | None:
    """The samples as the standard library's reader lists the members; None where the tar is damaged or ends early.

    The last two tars are remembered until they change, for their other units.
    """
    stamp = (path, *_stamp(path))
    if stamp not in _listed:
        while len(_listed) > 1:
            del _listed[next(iter(_listed))]
        _listed[stamp] = _list_samples(path, stamp[1], alive)
    return _listed[stamp]


_listed: dict[tuple[str, int, int], list[Sample] | None] = {}  # by path, size and modification time


def _list_samples(path: str, size: int, alive: Alive) -> list[Sample] | None:
    members = []
    packed = is_compressed(path)
    try:
        with _foreign_tar(path, alive) as (tar, stream):
            for info in tar:
                alive()
                if info.size < 0:
                    return None
                kind = _foreign_kind(info)
                name = tidy_name(info.name)
                members.append(Member(name, kind, info.offset, info.offset_data, info.size))
            # tarfile ends quietly where there is no further header, whatever the reason
            stream.seek(tar.offset)
            rest = 0
            while chunk := stream.read(1 << 20):
                alive()
                rest += len(chunk)
                if any(chunk):
                    return None
    except (tarfile.TarError, ValueError, OverflowError):  # the last two of numbers in a header that no file could have
        return None
    except DAMAGE_ERRORS as error:
        if not packed or (isinstance(error, OSError) and error.errno is not None):
            raise
        return None
    return group_samples(members) if rest >= 1024 else None


def _foreign_kind(info: tarfile.TarInfo) -> str:
    """As :attr:`Member.kind`; a type that nobody knows is a file, as the standard says."""
    if info.isdir():
        return "folder"
    sparse = info.issparse() or any(key.startswith("GNU.sparse.") for key in info.pax_headers)
    known = info.type in tarfile.SUPPORTED_TYPES
    return "file" if (info.isfile() or not known) and not sparse else "other"


class _NoFurther:
    """A file for :mod:`tarfile`, which reads in one piece what a header claims, and goes to wherever one points."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size

    def tell(self) -> int:
        return self._file.tell()

    def read(self, size: int = -1, /) -> bytes:
        return self._file.read(self._size if size < 0 else min(size, self._size))

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET and offset > self._size:  # an error of the system's, where it is far enough
            raise tarfile.ReadError("unexpected end of data")
        return self._file.seek(offset, whence)


@contextmanager
def _foreign_tar(path: str, alive: Alive) -> Iterator[tuple[tarfile.TarFile, BinaryIO]]:
    """The tar as the standard library reads it, and the bytes that it reads."""
    size = located(path).stat().st_size
    with open_decompressed(path, path) as opened:
        stream = cast("BinaryIO", Forward(opened, size, alive) if is_compressed(path) else _NoFurther(opened, size))
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="backslashreplace") as tar:
            yield tar, stream


def _foreign_members(path: str, alive: Alive) -> Iterator[tuple[int, Callable[[], bytes]]]:
    with _foreign_tar(path, alive) as (tar, _):
        for info in tar:

            def read(info: tarfile.TarInfo = info) -> bytes:
                found = tar.extractfile(info)
                return b"" if found is None else found.read(info.size)

            yield info.offset, read
