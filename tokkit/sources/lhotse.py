"""lhotse: cuts and recordings, one JSON object a line.

A cut (``MonoCut``) is a stretch of a recording: its sound, with the texts of its supervisions in the order of their beginnings,
a space between each two. A recording is a sound without a text. The sound is the recording's file (a source of type ``file``),
relative to the manifest's folder, else to the source's root; what lhotse would fetch, run, mix or change (``url``, ``command``,
``MixedCut``, transforms) is rejected by name. A channel can be taken only where there is no other.

The id, the recording's id, language, speaker and custom fields are metadata.
"""

from __future__ import annotations

from typing import ClassVar

from tokkit.documents import Audio, Document, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Unit
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.opening import located
from tokkit.sources.sounds import SoundFiles, seconds_of, transcript_of
from tokkit.sources.untrusted import failed_document, metadata_of, printable


class LhotseSource(LineSource):
    """Cuts, or recordings."""

    format: ClassVar[str] = "lhotse"
    counts_media: ClassVar[bool] = True

    def line_reader(self, *, media: bool) -> LineDocument:
        """A line as a pair of a sound and its text, or as a sound."""
        return _Lines(SoundFiles(self.root, media=media)).document


def is_lhotse(fields: dict[str, object]) -> bool:
    """Whether an object is a cut or a recording."""
    cut = str(fields.get("type", "")).endswith("Cut") and "id" in fields
    return cut or {"id", "sources", "sampling_rate", "num_samples"} <= fields.keys()


class _Lines:
    def __init__(self, files: SoundFiles) -> None:
        self._files = files

    def document(self, unit: Unit, offset: int, line: bytes | None) -> Document:
        """The document that a line is, or the failure that stands for it."""
        locator = f"{unit.file}@{offset}"
        try:
            fields = fields_of(line)
            if not is_lhotse(fields):
                raise ItemError("cut-not-understood", "neither a cut nor a recording")
            cut = "sources" not in fields
            sound = self._cut(unit, fields) if cut else self._recording(unit, fields, 0.0, None)
            spoken = _supervisions(fields) if cut else []
            text = " ".join(said for said in (transcript_of(one, "text") for one in spoken) if said)
        except ItemError as error:
            return failed_document(unit.source, locator, error.reason, error.message, pair=True)
        segments: tuple[Segment, ...] = (sound, Text(text)) if text else (sound,)
        identifier = printable(str(fields["id"])) or locator
        return Document(identifier, unit.source, locator, segments, pair=True, metadata=_metadata(fields, spoken))

    def _cut(self, unit: Unit, fields: dict[str, object]) -> Audio:
        if fields["type"] != "MonoCut":
            raise ItemError("cut-not-understood", f"a {printable(str(fields['type'])[:40])}; only MonoCut is read")
        recording = fields.get("recording")
        if not isinstance(recording, dict):
            raise ItemError("cut-not-understood", "a cut without its recording")
        start, seconds = seconds_of(fields, "start"), seconds_of(fields, "duration")
        if start is None or not seconds:
            raise ItemError("time-not-understood", "a cut without a start, or without a duration")
        whole = seconds_of(recording, "duration")
        if not start and whole is not None and abs(whole - seconds) < 1e-6:
            seconds = None  # it is the file
        return self._recording(unit, recording, start, seconds)

    def _recording(self, unit: Unit, recording: dict[str, object], start: float, seconds: float | None) -> Audio:
        sources = recording.get("sources")
        if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
            raise ItemError("cut-not-understood", "not one source of the recording's channels")
        if recording.get("transforms"):
            raise ItemError("cut-not-understood", "a recording that is to be transformed (speed, volume...)")
        kind, name = sources[0].get("type"), sources[0].get("source")
        if kind != "file" or not isinstance(name, str) or not name:
            raise ItemError("cut-not-understood", f"a source of the type {printable(str(kind)[:40])}; only file is read")
        channels = sources[0].get("channels")
        if seconds is not None and isinstance(channels, list) and len(channels) > 1:
            raise ItemError("cut-not-understood", f"one channel of a recording of {len(channels)}")
        return self._files.sound((located(unit.path).parent,), name, start, seconds)


def _supervisions(fields: dict[str, object]) -> list[dict[str, object]]:
    """By their beginnings."""
    found = fields.get("supervisions") or []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ItemError("cut-not-understood", "supervisions that are no list of objects")
    return sorted(found, key=_begin)


def _begin(supervision: dict[str, object]) -> float:
    start = supervision.get("start", 0)  # a supervision may begin before its cut
    if isinstance(start, bool) or not isinstance(start, int | float):
        raise ItemError("time-not-understood", "a supervision without a start")
    return float(start)


def _metadata(fields: dict[str, object], spoken: list[dict[str, object]]) -> dict[str, object]:
    recording = fields.get("recording")
    found: dict[str, object] = {"recording_id": recording.get("id")} if isinstance(recording, dict) else {}
    for name in ("language", "speaker"):
        values = list(dict.fromkeys(str(one[name]) for one in spoken if one.get(name)))
        if values:
            found[name] = values[0] if len(values) == 1 else values
    custom = fields.get("custom")
    return metadata_of((custom if isinstance(custom, dict) else {}) | found)
