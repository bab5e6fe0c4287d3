"""``tokkit inspect --document``: a document back from its tokens, as text, PNG and WAV files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict

from tokkit.features.manifest import is_cache
from tokkit.pipelines.decoding import DecodedAudio, DecodedGap, DecodedImage, DecodedText, DocumentDecoder
from tokkit.pipelines.progress import Progress
from tokkit.pipelines.sound_page import write_pcm
from tokkit.places import Place
from tokkit.storage import replacing, write_atomic


class InspectConfig(BaseModel):
    """Which document to bring back, and where to.

    Attributes:
        directory: of the output.
        document: ``NUMBER``, ``SPLIT:NUMBER``, an id or a locator.
        out: folder for ``document.md``, ``image-N.png`` and ``audio-N.wav``; None writes nothing.
        text_tokenizer, image_tokenizer, audio_tokenizer: where they are now, if not where the run had them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    directory: Path
    document: str
    out: Path | None = None
    text_tokenizer: Path | None = None
    image_tokenizer: Path | None = None
    audio_tokenizer: Path | None = None


@dataclass(frozen=True)
class InspectedPart:
    """One part of a document: its kind, its tokens, its text or its codes' shape, and the file it was written to.

    ``detail`` is what else a feature cache says of an item, whose ``shape`` is that of its features.
    """

    kind: str
    tokens: int
    text: str | None = None
    shape: tuple[int, ...] | None = None
    file: str | None = None
    detail: str | None = None


@dataclass(frozen=True)
class InspectedDocument:
    """A document's row in the shards and its decoded parts."""

    split: str
    number: int
    row: dict[str, object]
    parts: list[InspectedPart]


def inspect_document(config: InspectConfig, progress: Progress, place: Place | None = None) -> InspectedDocument:
    """Decode one document; with ``out`` also write it there. Of a feature cache: :mod:`tokkit.pipelines.inspect_cache`.

    Args:
        place: where the shards lie, if not in the directory.

    Raises:
        UsageError: there is no such document, or a tokenizer is gone.
        DataError, MalformedSequence: the shards are damaged.
    """
    if is_cache(config.directory):
        from tokkit.pipelines.inspect_cache import inspect_cached

        return inspect_cached(config, progress, place)
    tokenizers = config.text_tokenizer, config.image_tokenizer, config.audio_tokenizer
    decoder = DocumentDecoder(config.directory, *tokenizers, place=place)
    document = decoder.decode(*decoder.find(config.document))
    if config.out is not None:
        config.out.mkdir(parents=True, exist_ok=True)
    parts: list[InspectedPart] = []
    markdown: list[str] = []
    pictures = sounds = 0
    for part in document.parts:
        if isinstance(part, DecodedText):
            parts.append(InspectedPart("text", part.tokens, text=part.text))
            markdown.append(part.text)
        elif isinstance(part, DecodedImage):
            name = None
            if config.out is not None and part.pixels is not None:
                name = f"image-{pictures}.png"
                write_png(config.out / name, part.pixels)
            pictures += 1
            parts.append(InspectedPart("image", part.tokens, shape=part.codes.shape, file=name))
            markdown.append(f"![]({name})" if name else f"[a picture of {part.tokens} codes]")
        elif isinstance(part, DecodedGap):
            parts.append(InspectedPart("missing image", part.tokens))
            markdown.append("[a picture that is missing]")
        elif isinstance(part, DecodedAudio):
            name = None
            if config.out is not None and part.samples is not None:
                name = f"audio-{sounds}.wav"
                write_wav(config.out / name, part.samples, part.sample_rate)
            sounds += 1
            parts.append(InspectedPart("audio", part.tokens, shape=part.codes.shape, file=name))
            markdown.append(f"[a sound of {part.tokens} codes]({name})" if name else f"[a sound of {part.tokens} codes]")
    if config.out is not None:
        write_atomic(config.out / "document.md", "\n\n".join(markdown).encode("utf-8", "backslashreplace"))
        told = [f"{n} {what}" + ("" if n == 1 else "s") for n, what in ((pictures, "picture"), (sounds, "sound")) if n]
        progress.log(f"wrote {config.out}/document.md" + "".join(f" and {one}" for one in told))
    return InspectedDocument(document.split, document.number, document.row, parts)


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG."""
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


def write_wav(path: Path, samples: np.ndarray, sample_rate: int) -> None:
    """Write float32 [channels, n] as 16-bit WAV; what is beyond full scale is clipped."""
    with replacing(path) as temporary, temporary.open("xb") as file:
        write_pcm(file, samples, sample_rate)
