"""Group the members of a tar into samples, as WebDataset does, but without losing what does not fit.

The key of ``a/b.seg.png`` is ``a/b`` (up to the first dot of the base name), its extension ``seg.png``. WebDataset's readers
take adjacent members of one key for a sample, so a tar written column by column (all pictures, then all captions) falls
apart into halves there. Here:

* a *fragment* is a run of adjacent members of one key in which no extension comes twice;
* a later fragment of the same key completes its sample if it brings only extensions that the sample lacks; otherwise it is
  another sample that repeats the key, and is rejected as such.

The grouping depends on the whole archive only, never on how it is cut into units; a sample belongs to the unit in which
its first member begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from tokkit.sources.tarindex import Member, TarDamage

# fmt: off
IMAGE_SUFFIXES = frozenset((
    "jpg", "jpeg", "jfif", "jpe", "png", "apng", "webp", "gif", "bmp", "dib", "tif", "tiff", "avif", "avifs", "jp2",
    "j2k", "jpf", "jpx", "jpc", "mpo", "ico", "qoi", "ppm", "pgm", "pbm", "pnm", "dds", "heic", "heif",
))
AUDIO_SUFFIXES = frozenset((
    "wav", "wave", "flac", "mp3", "ogg", "oga", "opus", "m4a", "aac", "aif", "aiff", "aifc", "au", "snd", "sph", "caf",
    "wma", "amr", "w64", "rf64",
))
# fmt: on

_KEY = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)


@dataclass(slots=True)
class Sample:
    """Members that belong together.

    Attributes:
        key: the part of their names that they share; the whole name where a member has no extension.
        offset: of its first member.
        fields: extension (lower case) -> member, in the archive's order.
        problem: reason and message where the grouping itself says that this is no sample.
        scattered: its members are not adjacent.
    """

    key: str
    offset: int
    fields: dict[str, Member] = field(default_factory=dict)
    problem: tuple[str, str] | None = None
    repeats: bool = False
    scattered: bool = False

    @property
    def media(self) -> list[tuple[str, Member]]:
        """Modality (``image``, ``audio``) and member of each media item."""
        found = ((modality_of_suffix(extension), member) for extension, member in self.fields.items())
        return [(modality, member) for modality, member in found if modality is not None]


def modality_of_suffix(extension: str) -> str | None:
    """``image``, ``audio`` or None, by the last part of an extension: ``seg.png`` is a picture."""
    suffix = extension.rpartition(".")[2]
    if suffix in IMAGE_SUFFIXES:
        return "image"
    return "audio" if suffix in AUDIO_SUFFIXES else None


def is_picture_name(name: str) -> bool:
    """Whether a file is a picture by its name's last suffix."""
    return PurePosixPath(name).suffix.removeprefix(".").lower() in IMAGE_SUFFIXES


def is_sound_name(name: str) -> bool:
    """Whether a file is a sound by its name's last suffix."""
    return PurePosixPath(name).suffix.removeprefix(".").lower() in AUDIO_SUFFIXES


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension of a member's name, or None where there is no extension."""
    match = _KEY.fullmatch(name)
    return (match[1], match[2].lower()) if match else None


def group_samples(members: Iterable[Member]) -> list[Sample]:
    """All samples of an archive, by the offset of their first member."""
    samples: list[Sample] = []
    by_key: dict[str, Sample] = {}
    fragment: Sample | None = None
    for member in members:
        if _is_ignored(member):
            continue
        key, extension = split_name(member.name) or (member.name, "")
        if not extension:
            problem = ("not-a-sample", f"the member {member.name!r} has no extension, so it belongs to no sample")
            samples.append(Sample(member.name, member.offset, {"": member}, problem, repeats=True))
            continue
        if fragment is None or fragment.key != key or extension in fragment.fields:
            _close(fragment, by_key, samples)
            fragment = Sample(key, member.offset)
        fragment.fields[extension] = member
    _close(fragment, by_key, samples)
    for sample in samples:
        sample.problem = sample.problem or _problem(sample)
    return sorted(samples, key=lambda sample: sample.offset)


def lost_samples(samples: list[Sample], damage: TarDamage | None) -> set[int]:
    """Offsets of the samples that go on, or may go on, behind the damage, and so must not be taken for whole.

    A sample of the member that is cut short is lost. Where the damage does not say which member follows, the last sample is
    whole only if it has every extension that the first sample has (an only sample has nothing to be compared with, and is
    lost). In an archive of scattered samples that goes for all of them.
    """
    if damage is None or damage.behind_end or not samples:
        return set()
    cut = split_name(damage.member) if damage.member is not None else None
    if any(sample.scattered for sample in samples):
        suspects = samples
    elif cut is not None and samples[-1].key != cut[0]:
        suspects = []
    else:
        suspects = samples[-1:]
    wanted = samples[0].fields.keys()
    return {
        sample.offset
        for sample in suspects
        if (cut is not None and sample.key == cut[0]) or len(samples) == 1 or not wanted <= sample.fields.keys()
    }


def _close(fragment: Sample | None, by_key: dict[str, Sample], samples: list[Sample]) -> None:
    """File a finished fragment: a new sample, the completion of an earlier one, or a repetition."""
    if fragment is None:
        return
    earlier = by_key.setdefault(fragment.key, fragment)
    if earlier is fragment:
        samples.append(fragment)
    elif earlier.fields.keys().isdisjoint(fragment.fields):
        earlier.fields.update(fragment.fields)
        earlier.scattered = True
    else:
        message = f"the key {fragment.key!r} comes again; its first sample begins at byte {earlier.offset}"
        fragment.problem = ("duplicate-key", message)
        fragment.repeats = True
        samples.append(fragment)


def _is_ignored(member: Member) -> bool:
    """Folders, and what desktop systems leave in archives (``._x``, ``.DS_Store``, ``__MACOSX/``)."""
    parts = member.name.split("/")
    return member.kind == "folder" or parts[-1].startswith(".") or not parts[-1] or "__MACOSX" in parts[:-1]


def _problem(sample: Sample) -> tuple[str, str] | None:
    for member in sample.fields.values():
        if member.kind != "file":
            return "not-a-regular-file", f"the member {member.name!r} is a {member.kind}, which is never followed"
    if sample.key.startswith("/") or ".." in sample.key.split("/"):
        return "unsafe-name", f"the key {sample.key!r} climbs out of the archive"
    return None
