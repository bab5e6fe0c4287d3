"""LibriSpeech folders: ``SPEAKER-CHAPTER.trans.txt`` with a line ``ID TRANSCRIPT`` for each ``ID.flac`` beside it.

Multilingual LibriSpeech, LibriTTS' cousins and other corpora of this shape ship wav, mp3, ogg or opus instead; the first ending
that is there is taken. The id is the utterance's, ``speaker`` and ``chapter`` are its first two parts.
"""

from __future__ import annotations

from typing import ClassVar

from tokkit.documents import Document, Text
from tokkit.errors import ItemError
from tokkit.sources.base import Unit
from tokkit.sources.line_source import LineDocument, LineSource
from tokkit.sources.media_files import is_there
from tokkit.sources.opening import located
from tokkit.sources.sounds import SoundFiles
from tokkit.sources.untrusted import MAX_ITEM_BYTES, decode_text, failed_document, printable

SUFFIX = ".trans.txt"
ENDINGS = ("flac", "wav", "mp3", "ogg", "opus")


class LibriSpeechSource(LineSource):
    """Sounds with transcripts, one a line of a chapter's transcript."""

    format: ClassVar[str] = "librispeech"
    counts_media: ClassVar[bool] = True

    def line_reader(self, *, media: bool) -> LineDocument:
        """A line as a pair."""
        files = SoundFiles(self.root, media=media)

        def document(unit: Unit, offset: int, line: bytes | None) -> Document:
            locator = f"{unit.file}@{offset}"
            try:
                if line is None:
                    raise ItemError("line-too-long", f"more than {MAX_ITEM_BYTES} bytes in one line")
                name, _, text = decode_text(line).strip().partition(" ")
                if not text or "/" in name:
                    raise ItemError("line-not-understood", "no id and transcript")
            except ItemError as error:
                return failed_document(unit.source, locator, error.reason, error.message, pair=True)
            folder = located(unit.path).parent
            ending = next((e for e in ENDINGS if media and is_there(folder / f"{name}.{e}")), ENDINGS[0])
            sound = files.sound((folder,), f"{name}.{ending}")
            parts = name.split("-")
            metadata: dict[str, object] = {"speaker": parts[0], "chapter": parts[1]} if len(parts) == 3 else {}
            return Document(printable(name), unit.source, locator, (sound, Text(text)), pair=True, metadata=metadata)

        return document
