"""Audio manifests as NeMo has them: one JSON object a line with ``audio_filepath``, ``duration``, ``offset`` and ``text``.

A line is a pair of a sound and its transcript, or a sound alone where there is no text. The sound is the file from ``offset``
(0 where there is none) for ``duration`` seconds (to its end where there is none), as NeMo's own loader reads it; a file that
ends more than a moment before that is rejected, so a duration that is wrong, or a file that was cut, is found out. Paths are
relative to the manifest's folder, else to the source's root. All other fields are metadata.
"""

from __future__ import annotations

from typing import ClassVar

from tokkit.documents import Document, Segment, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Unit
from tokkit.sources.line_source import LineDocument, LineSource, fields_of
from tokkit.sources.opening import located
from tokkit.sources.sounds import SoundFiles, seconds_of, transcript_of
from tokkit.sources.untrusted import failed_document, metadata_of

PATH = "audio_filepath"
_FIELDS = (PATH, "offset", "duration", "text")


class AudioManifestSource(LineSource):
    """Sounds with transcripts, one a line."""

    format: ClassVar[str] = "audio_manifest"
    counts_media: ClassVar[bool] = True

    def line_reader(self, *, media: bool) -> LineDocument:
        """A line as a pair."""
        files = SoundFiles(self.root, media=media)

        def document(unit: Unit, offset: int, line: bytes | None) -> Document:
            locator = f"{unit.file}@{offset}"
            try:
                fields = fields_of(line)
                name = fields.get(PATH)
                if not isinstance(name, str) or not name:
                    raise ItemError("audio-not-named", f"{PATH} is no path")
                start, seconds = seconds_of(fields, "offset"), seconds_of(fields, "duration")
                text = transcript_of(fields, "text")
            except ItemError as error:
                return failed_document(unit.source, locator, error.reason, error.message, pair=True)
            sound = files.sound((located(unit.path).parent,), name, start or 0.0, seconds)
            segments: tuple[Segment, ...] = (sound, Text(text)) if text else (sound,)
            kept = {key: value for key, value in fields.items() if key not in (PATH, "text")}
            return Document(locator, unit.source, locator, segments, pair=True, metadata=metadata_of(kept))

        return document
