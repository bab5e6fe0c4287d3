"""Documents back from their tokens: text through the text tokenizer, pictures and sounds through their tokenizers' decoders.

Used by ``tokkit inspect`` and the report. The tokenizers are found where the run had them (``run/job.json``) or named anew, and
must have the fingerprints that the manifest names: codes read with other weights would be another picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tokkit.errors import DataError, UsageError
from tokkit.interleave import ImageCodes, ImageGap, TextCodes, decode
from tokkit.places import Place
from tokkit.shards.manifest import Manifest, TokenizerEntry, load_manifest
from tokkit.shards.native import TokenShards, open_shards
from tokkit.shards.spans import picture_grids
from tokkit.storage import read_json
from tokkit.vocabulary import UnifiedVocabulary

if TYPE_CHECKING:
    from tokkit.tokenizers.audio.base import AudioTokenizer
    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.text import TextTokenizer


@dataclass(frozen=True, eq=False)
class DecodedText:
    text: str
    tokens: int


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """A picture as uint8 [H, W, 3], or None where there is no decoder; its codes int32 [K, h, w]."""

    pixels: npt.NDArray[np.uint8] | None
    codes: npt.NDArray[np.int32]
    tokens: int


@dataclass(frozen=True, eq=False)
class DecodedAudio:
    """A sound as float32 [channels, n] at ``sample_rate``, or None where there is no decoder; its codes int32 [K, T].

    ``length`` is that of the whole sound in samples, where only its beginning was asked for.
    """

    codes: npt.NDArray[np.int32]
    tokens: int
    samples: npt.NDArray[np.float32] | None = None
    sample_rate: int = 0
    length: int = 0


@dataclass(frozen=True, eq=False)
class DecodedGap:
    """The place of a picture that is missing."""

    tokens: int = 2


DecodedPart = DecodedText | DecodedImage | DecodedAudio | DecodedGap


@dataclass(frozen=True, eq=False)
class DecodedDocument:
    """A document's row and its parts in order."""

    split: str
    number: int
    row: dict[str, object]
    parts: list[DecodedPart]

    @property
    def text(self) -> str:
        """All of its text, one after another."""
        return "".join(p.text for p in self.parts if isinstance(p, DecodedText))


class DocumentDecoder:
    """Reads documents of a finished directory.

    Args:
        directory: of the output.
        text_tokenizer, image_tokenizer, audio_tokenizer: where they are now, if not where the run had them.
        place: where the shards lie, if not in the directory.

    Raises:
        DataError: the directory is not finished or damaged, or a tokenizer is not the one that was used.
        UsageError: a tokenizer is no longer where it was.
    """

    def __init__(
        self,
        directory: Path,
        text_tokenizer: Path | None = None,
        image_tokenizer: Path | None = None,
        audio_tokenizer: Path | None = None,
        *,
        place: Place | None = None,
    ) -> None:
        self.directory = directory
        self.manifest: Manifest = load_manifest(directory)
        self.vocabulary = UnifiedVocabulary.load(directory / "vocabulary.json")
        self.layout = self.manifest.layout.layout
        self.shards: dict[str, TokenShards] = {name: open_shards(directory, name, place) for name in self.manifest.splits}
        self._text = self._load_text(text_tokenizer)
        self._image = self._load_image(image_tokenizer)
        self._audio = self._load_audio(audio_tokenizer)

    def decode(self, split: str, number: int, sound_seconds: float | None = None) -> DecodedDocument:
        """Document ``number`` of a split.

        Args:
            sound_seconds: of a longer sound only the beginning is decoded.

        Raises:
            MalformedSequence: its tokens are not a document.
        """
        shards = self.shards[split]
        parts: list[DecodedPart] = []
        row = shards.row(number)
        spans = cast("list[dict[str, Any]]", row["spans"])
        sounds = iter([span for span in spans if span["modality"] == "audio"])
        for part in decode(shards.tokens(number), self.vocabulary, self.layout, grids=picture_grids(spans)):
            if isinstance(part, TextCodes):
                parts.append(DecodedText(self._text.decode_named(part.codes), len(part.codes)))
            elif isinstance(part, ImageCodes):
                parts.append(DecodedImage(self._pixels(part.codes), part.codes, part.codes.size))
            elif isinstance(part, ImageGap):
                parts.append(DecodedGap())
            else:
                parts.append(self._sound(part.codes, next(sounds, {}), sound_seconds))
        return DecodedDocument(split, number, row, parts)

    def find(self, name: str) -> tuple[str, int]:
        """The document called ``name``; see :func:`find_document`."""
        counts = {split: shards.num_documents for split, shards in self.shards.items()}
        return find_document(name, self.directory, counts, lambda split: self.shards[split].tables(["id", "locator"]))

    # ---- tokenizers

    def _load_text(self, given: Path | None) -> TextTokenizer:
        from tokkit.tokenizers.text import load_text_tokenizer

        path = recorded_tokenizer(self.directory, "text", given)
        tokenizer = load_text_tokenizer(path)
        same_tokenizer(self.manifest.tokenizers["text"], tokenizer.fingerprint, path)
        return tokenizer

    def _load_image(self, given: Path | None) -> ImageTokenizer | None:
        if "image" not in self.manifest.tokenizers:
            return None
        from tokkit.tokenizers.image import load_image_tokenizer

        path = recorded_tokenizer(self.directory, "image", given)
        tokenizer = load_image_tokenizer(path, device="cpu")
        same_tokenizer(self.manifest.tokenizers["image"], tokenizer.fingerprint, path)
        return tokenizer

    def _load_audio(self, given: Path | None) -> AudioTokenizer | None:
        if "audio" not in self.manifest.tokenizers:
            return None
        from tokkit.tokenizers.audio import load_audio_tokenizer

        path = recorded_tokenizer(self.directory, "audio", given)
        tokenizer = load_audio_tokenizer(path, device="cpu")
        same_tokenizer(self.manifest.tokenizers["audio"], tokenizer.fingerprint, path)
        return tokenizer

    def _sound(self, codes: npt.NDArray[np.int32], span: dict[str, Any], seconds: float | None) -> DecodedAudio:
        if self._audio is None:
            return DecodedAudio(codes, codes.size)
        from tokkit.tokenizers.audio.base import AudioCode

        scales = np.array(span["scales"], dtype=np.float32) if span.get("scales") else None
        length, rate = span.get("samples", 0), self._audio.sample_rate
        wanted = length if seconds is None else min(length, max(1, round(seconds * rate)))
        pieces, found = [], 0
        for piece in self._audio.decode_stream(AudioCode(codes, scales, length)):
            pieces.append(piece)
            found += piece.shape[1]
            if found >= wanted:
                break
        return DecodedAudio(codes, codes.size, np.concatenate(pieces, axis=1)[:, :wanted], rate, length)

    def _pixels(self, codes: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8] | None:
        if self._image is None or not self._image.has_decoder:
            return None
        import torch

        one = codes[None] if self._image.codebooks > 1 else codes
        return self._image.decode(torch.from_numpy(one.astype(np.int64))).cpu().numpy()[0]


def recorded_tokenizer(directory: Path, kind: str, given: Path | None) -> Path:
    """Where a tokenizer is: as given, or else where the run had it; UsageError where that is gone."""
    if given is not None:
        return given
    job = directory / "run" / "job.json"
    recorded = read_json(job).get(f"{kind}_tokenizer") if job.exists() else None
    if recorded is None or not Path(recorded).exists():
        raise UsageError(f"the {kind} tokenizer is no longer where the run had it; name it with --{kind}-tokenizer")
    return Path(recorded)


def same_tokenizer(entry: TokenizerEntry, fingerprint: str, path: Path) -> None:
    """Raise DataError where a tokenizer is not the one that the manifest names."""
    if entry.fingerprint != fingerprint:
        raise DataError(
            f"{path} is not the tokenizer these shards were made with "
            f"(fingerprint {fingerprint[:12]}, not {entry.fingerprint[:12]})"
        )


def find_document(
    name: str, directory: Path, counts: Mapping[str, int], tables: Callable[[str], Iterator[pa.Table]]
) -> tuple[str, int]:
    """The document called ``name``: ``NUMBER`` (of the first split), ``SPLIT:NUMBER``, an id or a locator.

    Args:
        counts: documents by split.
        tables: ids and locators of a split, in order.

    Raises:
        UsageError: there is no such document, or there are several of that id.
    """
    split, _, number = name.rpartition(":")
    split = split or next(iter(counts), "")
    if split in counts and number.isascii() and number.isdigit():
        if int(number) >= counts[split]:
            raise UsageError(f"document {number} of split {split!r}, which has {counts[split]}")
        return split, int(number)
    found = []
    for split in counts:
        first = 0
        for table in tables(split):
            pairs = zip(table.column("id").to_pylist(), table.column("locator").to_pylist(), strict=True)
            found += [(split, first + place) for place, names in enumerate(pairs) if name in names]
            first += table.num_rows
    if not found:
        raise UsageError(f"no document {name!r} in {directory}: give a number, SPLIT:NUMBER, an id or a locator")
    if len(found) > 1:
        listed = ", ".join(f"{s}:{n}" for s, n in found[:5])
        raise UsageError(f"{len(found)} documents are called {name!r}; name one by its place: {listed}")
    return found[0]
