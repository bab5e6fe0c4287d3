"""lhotse: cuts, recordings, and supervisions with their recordings; one JSON object a line.

A cut (``MonoCut``, or a ``MultiCut`` of all channels) is a stretch of a recording: its sound, with the texts of its
supervisions in the order of their beginnings, a space between each two. A recording is a sound without a text. A supervision
is a stretch of the recording that it names, with its text; the recordings are in the manifest beside
(:mod:`tokkit.sources.lhotse_recordings`), which then is no source of its own, as pictures beside a corpus are none.

The sound is the recording's file (a source of type ``file``), relative to the manifest's folder, else to the source's root;
what lhotse would fetch, run, mix or change (``url``, ``command``, ``MixedCut``, transforms) is rejected by name. A channel can
be taken only where its file has no other.

The id, the recording's id, language, speaker and custom fields are metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from tokkit.documents import Audio, Document, Failure, Outcome, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.base import InputFile, Unit
from tokkit.sources.lhotse_recordings import load_recordings, recordings_beside
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.opening import Location, located
from tokkit.sources.sounds import SoundFiles, seconds_of, transcript_of
from tokkit.sources.untrusted import failed_document, metadata_of, printable

_SUPERVISION = {"id", "recording_id", "start", "duration"}
_RECORDING = {"id", "sources", "sampling_rate", "num_samples"}


class LhotseSource(LineSource):
    """Cuts, recordings or supervisions."""

    format: ClassVar[str] = "lhotse"
    counts_media: ClassVar[bool] = True

    def companions(self) -> list[InputFile]:
        """The manifests of the recordings that supervisions speak of."""
        found = (recordings_beside(located(file.path)) for file in self.files)
        return [InputFile.of(path, self.root) for path in found if path is not None]

    def line_reader(self, *, media: bool) -> LineDocument:
        """A line as a pair of a sound and its text, or as a sound."""
        return _Lines(SoundFiles(self.root, media=media)).document


def is_lhotse(fields: Mapping[str, object]) -> bool:
    """Whether an object is a cut, a recording or a supervision."""
    cut = str(fields.get("type", "")).endswith("Cut") and "id" in fields
    return cut or fields.keys() >= _RECORDING or fields.keys() >= _SUPERVISION


class _Lines:
    def __init__(self, files: SoundFiles) -> None:
        self._files = files
        self._beside: dict[str, Location | None] = {}  # by the path of the supervisions

    def document(self, unit: Unit, offset: int, line: bytes | None) -> Document:
        """The document that a line is, or the failure that stands for it."""
        locator = f"{unit.file}@{offset}"
        try:
            fields = fields_of(line)
            if not is_lhotse(fields):
                raise ItemError("cut-not-understood", "neither a cut nor a recording nor a supervision")
            spoken: list[dict[str, object]] = []
            if "sources" in fields:
                sound = self._recording(unit, fields, 0.0, None, None)
            elif "type" in fields:
                spoken = _supervisions(fields)
                sound = self._cut(unit, fields)
            else:
                spoken = [fields]
                sound = self._supervised(unit, fields)
            text = " ".join(said for said in (transcript_of(one, "text") for one in spoken) if said)
        except ItemError as error:
            return failed_document(unit.source, locator, error.reason, error.message, pair=True)
        segments: tuple[Segment, ...] = (sound, Text(text)) if text else (sound,)
        identifier = printable(str(fields["id"])) or locator
        return Document(identifier, unit.source, locator, segments, pair=True, metadata=_metadata(fields, spoken))

    def _cut(self, unit: Unit, fields: Mapping[str, object]) -> Audio:
        kind = fields["type"]
        if kind not in ("MonoCut", "MultiCut"):
            raise ItemError("cut-not-understood", f"a {printable(str(kind)[:40])}; only MonoCut and MultiCut are read")
        recording = fields.get("recording")
        if not isinstance(recording, dict):
            raise ItemError("cut-not-understood", "a cut without its recording")
        return self._stretch(unit, fields, recording)

    def _supervised(self, unit: Unit, fields: Mapping[str, object]) -> Audio:
        """A supervision's stretch of its recording; a recording that is not there is the item's failure, not the document's."""
        identifier = fields["recording_id"]
        if not isinstance(identifier, str):
            raise ItemError("cut-not-understood", "a supervision whose recording_id is no text")
        if unit.path not in self._beside:
            self._beside[unit.path] = recordings_beside(located(unit.path))
        manifest = self._beside[unit.path]
        try:
            if manifest is None:
                message = f"no manifest of recordings beside {unit.file}; its name would have recordings for supervisions"
                raise ItemError("recording-not-found", message)
            recording = load_recordings(manifest).find(identifier)
        except ItemError as error:
            failure = Failure(Outcome.FAILED_UPSTREAM, error.reason, error.message)
            return Audio(None, printable(identifier[:2048]), failure)
        return self._stretch(unit, fields, recording)

    def _stretch(self, unit: Unit, fields: Mapping[str, object], recording: Mapping[str, object]) -> Audio:
        start, seconds = seconds_of(fields, "start"), seconds_of(fields, "duration")
        if start is None or not seconds:
            raise ItemError("time-not-understood", "a cut or a supervision without a start, or without a duration")
        whole = seconds_of(recording, "duration")
        if not start and whole is not None and abs(whole - seconds) < 1e-6:
            seconds = None  # it is the file
        return self._recording(unit, recording, start, seconds, fields.get("channel", 0))

    def _recording(
        self, unit: Unit, recording: Mapping[str, object], start: float, seconds: float | None, channel: object
    ) -> Audio:
        """The sound of a recording; ``channel`` is a channel, a list of channels, or None for whatever there is."""
        if recording.get("transforms"):
            raise ItemError("cut-not-understood", "a recording that is to be transformed (speed, volume...)")
        source = _source_of(recording, channel)
        kind, name = source.get("type"), source.get("source")
        if kind != "file" or not isinstance(name, str) or not name:
            raise ItemError("cut-not-understood", f"a source of the type {printable(str(kind)[:40])}; only file is read")
        return self._files.sound((located(unit.path).parent,), name, start, seconds)


def _source_of(recording: Mapping[str, object], channel: object) -> Mapping[str, object]:
    """The one file that holds what is asked for, and nothing else."""
    sources = recording.get("sources")
    if not isinstance(sources, list) or not sources or not all(isinstance(source, dict) for source in sources):
        raise ItemError("cut-not-understood", "a recording without sources")
    if channel is None:
        if len(sources) > 1:
            raise ItemError("cut-not-understood", f"a recording of {len(sources)} files, one for some of its channels each")
        return sources[0]
    wanted = channel if isinstance(channel, list) else [channel]
    found = [source for source in sources if source.get("channels", wanted) == wanted]
    if len(found) != 1:
        there = "; ".join(str(source.get("channels")) for source in sources)
        raise ItemError(
            "cut-not-understood", f"no file of channel {printable(str(channel)[:40])} alone; there are {there[:80]}"
        )
    return found[0]


def _supervisions(fields: Mapping[str, object]) -> list[dict[str, object]]:
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


def _metadata(fields: Mapping[str, object], spoken: list[dict[str, object]]) -> dict[str, object]:
    recording = fields.get("recording")
    identifier = recording.get("id") if isinstance(recording, dict) else fields.get("recording_id")
    found: dict[str, object] = {} if identifier is None else {"recording_id": identifier}
    for name in ("language", "speaker", "gender"):
        values = list(dict.fromkeys(str(one[name]) for one in spoken if one.get(name)))
        if values:
            found[name] = values[0] if len(values) == 1 else values
    custom = fields.get("custom")
    return metadata_of((custom if isinstance(custom, dict) else {}) | found)
