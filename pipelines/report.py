"""``report.html``: one page that shows what a directory holds, with some documents decoded back from their tokens.

Everything on it is a function of the shards (no times), so the page is the same whoever makes it. It stands alone: pictures and
sounds are embedded, nothing is loaded from elsewhere. A sound is there to be heard, as one channel and no longer than
:data:`LONGEST_SOUND`, and as its spectrogram; all sounds together are at most :data:`MOST_SOUND_BYTES`.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from jinja2 import Environment, StrictUndefined
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from tokkit.documents import Outcome
from tokkit.failpoints import failpoint
from tokkit.metrics.audio import HOP
from tokkit.pipelines.decoding import DecodedAudio, DecodedDocument, DecodedGap, DecodedImage, DecodedText, DocumentDecoder
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.sound_page import BYTES_OF_SAMPLE, sound_uri, spectrogram
from tokkit.pipelines.threads import one_thread
from tokkit.places import Place
from tokkit.shards.manifest import Manifest, load_manifest
from tokkit.shards.spans import SpanTable
from tokkit.storage import read_json, write_atomic
from tokkit.vocabulary import MODALITIES

NAME = "report.html"
LONGEST_TEXT = 1500  # characters of one text that the page shows
MOST_PARTS = 24  # parts of one document
LONGEST_SOUND = 10.0  # seconds of one sound
MOST_SOUND_BYTES = 4 << 20  # of the sounds of the page, as WAV


class ReportConfig(BaseModel):
    """``documents`` of ``directory`` are shown decoded, spread over its sources."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    documents: int = Field(default=8, ge=0)


@dataclass(frozen=True)
class _Part:
    """What the page shows of a part: text, an embedded picture, or a sound to hear and see; ``note`` stands beside it."""

    text: str | None
    image: str | None
    note: str
    sound: str | None = None
    spectrogram: str | None = None


@dataclass(frozen=True)
class _Shown:
    title: str
    tokens: int
    parts: list[_Part]
    more: int


def write_report(config: ReportConfig, progress: Progress, place: Place | None = None) -> Path:
    """Write ``report.html`` into a finished directory; ``place`` is where its shards lie, if not there.

    Raises:
        DataError, UsageError: the directory is damaged, or its tokenizers are gone.
    """
    manifest = load_manifest(config.directory)
    documents = _decoded(config, progress, place) if config.documents else []
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["thousands"] = lambda n: f"{n:,}"
    environment.filters["percent"] = lambda x: f"{100 * x:.2f} %"
    template = environment.from_string((files(__package__) / "templates" / "report.html.j2").read_text("utf-8"))
    page = template.render(
        manifest=manifest,
        outcomes=_used_outcomes(manifest),
        kinds=sorted({kind for split in manifest.splits.values() for kind in split.tokens_by_kind}),
        reasons=_reasons(manifest),
        packs=_packs(config.directory),
        documents=documents,
    )
    path = config.directory / NAME
    failpoint("in-report")
    write_atomic(path, page.encode("utf-8", "backslashreplace"))
    return path


def _decoded(config: ReportConfig, progress: Progress, place: Place | None) -> list[_Shown]:
    decoder = DocumentDecoder(config.directory, place=place)
    chosen = choose_documents(decoder, config.documents)
    documents = []
    room = _Room(MOST_SOUND_BYTES)
    with progress.task("report", total=len(chosen), unit="documents") as task, one_thread():
        for split, number in chosen:
            documents.append(_shown(decoder.decode(split, number, LONGEST_SOUND), room))
            task.advance()
    return documents


def choose_documents(decoder: DocumentDecoder, count: int) -> list[tuple[str, int]]:
    """``count`` documents, turn by turn from each source, spread over its documents; those with pictures first."""
    by_source: dict[tuple[bool, str], list[tuple[str, npt.NDArray[np.int64]]]] = {}
    for split, shards in decoder.shards.items():
        first = 0
        for table in shards.tables(["source", "spans"]):
            for key, rows in _rows_by_source(table).items():
                by_source.setdefault(key, []).append((split, rows + first))
            first += table.num_rows
    turns = -(-count // max(len(by_source), 1))
    spread = [_evenly(found, turns) for _, found in sorted(by_source.items(), key=lambda item: item[0])]
    picked = [found[turn] for turn in range(turns) for found in spread if turn < len(found)]
    return picked[:count]


def _rows_by_source(table: pa.Table) -> dict[tuple[bool, str], npt.NDArray[np.int64]]:
    """Row numbers by (has no media, source)."""
    sources = table.column("source").combine_chunks().dictionary_encode()
    spans = SpanTable.from_columns([table.column("spans")])
    document = np.repeat(np.arange(table.num_rows), np.diff(spans.offsets))
    media = np.bincount(document, weights=spans.modality != MODALITIES.index("text"), minlength=table.num_rows) > 0
    codes = sources.indices.to_numpy()
    found = {
        (no_media, name): np.flatnonzero((codes == code) & (media != no_media))
        for code, name in enumerate(sources.dictionary.to_pylist())
        for no_media in (False, True)
    }
    return {key: rows for key, rows in found.items() if len(rows)}


def _evenly(found: list[tuple[str, npt.NDArray[np.int64]]], count: int) -> list[tuple[str, int]]:
    """At most ``count`` of the (split, document number) that stand one after another in ``found``, evenly spread."""
    ends = np.cumsum([len(rows) for _, rows in found])
    chosen = np.unique(np.linspace(0, int(ends[-1]) - 1, min(count, int(ends[-1]))).astype(np.int64))
    places = np.searchsorted(ends, chosen, side="right")
    return [(found[p][0], int(found[p][1][c - (ends[p - 1] if p else 0)])) for p, c in zip(places, chosen, strict=True)]


def data_uri(pixels: np.ndarray) -> str:
    """uint8 [H, W, 3] as an embedded PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass
class _Room:
    """Bytes that the page has left for sounds."""

    left: int

    def take(self, size: int) -> bool:
        """Whether there is room for so many, which then are gone."""
        fits = size <= self.left
        self.left -= size if fits else 0
        return fits


def _heard(part: DecodedAudio, room: _Room) -> _Part:
    """A sound as one channel."""
    books, frames = part.codes.shape
    note = f"{frames:,} frames x {books} = {part.tokens:,} codes"
    if part.samples is None:
        return _Part(None, None, note)
    rate, mono = part.sample_rate, part.samples.mean(axis=0)
    note = f"{part.length / rate:.2f} s at {rate:,} Hz, {note}"
    if part.length > len(mono):
        note += f"; the first {len(mono) / rate:.0f} s of it"
    picture = data_uri(spectrogram(mono, rate, len(mono) // HOP + 1))
    if not room.take(BYTES_OF_SAMPLE * len(mono)):
        return _Part(None, None, note + "; not to be heard here, since the page has sounds enough", spectrogram=picture)
    return _Part(None, None, note, sound_uri(mono, rate), picture)


def _shown(document: DecodedDocument, room: _Room) -> _Shown:
    parts = []
    for part in document.parts[:MOST_PARTS]:
        if isinstance(part, DecodedText):
            text, cut = part.text[:LONGEST_TEXT], len(part.text) > LONGEST_TEXT
            parts.append(_Part(text + ("…" if cut else ""), None, f"{part.tokens:,} tokens"))
        elif isinstance(part, DecodedImage):
            books, *sides = part.codes.shape
            grid = " x ".join(map(str, [*sides, books] if books > 1 else sides))
            image = None if part.pixels is None else data_uri(part.pixels)
            parts.append(_Part(None, image, f"{grid} = {part.tokens:,} codes"))
        elif isinstance(part, DecodedGap):
            parts.append(_Part(None, None, "a picture that is missing"))
        else:
            parts.append(_heard(part, room))
    title = f"{document.row['source']}/{document.row['locator']}"
    return _Shown(title, int(str(document.row["tokens"])), parts, max(0, len(document.parts) - MOST_PARTS))


def _used_outcomes(manifest: Manifest) -> list[str]:
    seen = {o for s in manifest.sources for counts in [s.documents, *s.items.values()] for o in counts}
    return [outcome.value for outcome in Outcome if outcome.value in seen]


def _reasons(manifest: Manifest) -> list[tuple[str, int]]:
    total: dict[str, int] = {}
    for source in manifest.sources:
        for reason, count in source.reasons.items():
            total[reason] = total.get(reason, 0) + count
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def _packs(directory: Path) -> list[tuple[str, dict[str, object]]]:
    """The packing plans beside the shards: (name/split, plan.json)."""
    found = sorted((directory / "packs").glob("*/*/plan.json")) if (directory / "packs").is_dir() else []
    return [(f"{path.parent.parent.name}/{path.parent.name}", {"by_source": {}, **read_json(path)}) for path in found]
