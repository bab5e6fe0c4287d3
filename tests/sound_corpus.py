"""A small corpus of sounds with transcripts, good and bad, and tiny audio tokenizers of the real architecture."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from audio_models import imported, model_of, small_48k
from sources_helpers import tar_bytes

from tokkit.tokenizers.audio import save_audio_tokenizer

RATE = 16000
KINDS = {"wav": ("WAV", "PCM_16"), "flac": ("FLAC", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS")}

# What becomes of the clips that are not fine, by key: its reason.
BAD = {
    "004": "audio-truncated",
    "007": "audio-not-finite",
    "010": "audio-empty",
    "013": "audio-unrecognised",
}
CLIPS = 16


def tone(seed: int, samples: int, channels: int = 1) -> np.ndarray:
    """A tone that slides, and some noise; float32 [samples, channels]."""
    rng = np.random.default_rng(seed)
    time = np.arange(samples)[:, None] / RATE
    pitch = rng.uniform(100, 2000, channels) * (1 + time)
    return (0.4 * np.sin(2 * np.pi * pitch * time) + 0.05 * rng.standard_normal((samples, channels))).astype(np.float32)


def encoded(samples: np.ndarray, kind: str, rate: int = RATE, subtype: str | None = None) -> bytes:
    buffer = io.BytesIO()
    name, usual = KINDS[kind]
    soundfile.write(buffer, samples, rate, format=name, subtype=subtype or usual)
    return buffer.getvalue()


@cache  # an Ogg has a random serial number
def clip(number: int) -> tuple[str, bytes]:
    """Suffix and bytes of a clip; of several formats, lengths and channel counts, some of them bad."""
    kind = list(KINDS)[number % 4]
    data = encoded(tone(number, 700 + 531 * number, 1 + number % 3 // 2), kind, (RATE, 22050, 44100)[number % 3])
    reason = BAD.get(f"{number:03d}")
    if reason == "audio-truncated":
        data = data[:-100]
    elif reason == "audio-not-finite":
        samples = tone(number, 2_000)
        samples[1_500] = np.nan
        kind, data = "wav", encoded(samples, "wav", subtype="FLOAT")
    elif reason == "audio-empty":
        kind, data = "wav", encoded(np.zeros((0, 1), dtype=np.float32), "wav")
    elif reason == "audio-unrecognised":
        data = b"<html>not found</html>"
    elif number == 14:
        kind, data = "wav", encoded(tone(number, 900, 8), "wav")
    elif number == 15:
        kind, data = "wav", encoded(np.zeros((1_200, 1), dtype=np.float32), "wav")
    return kind, data


def write_sounds(folder: Path) -> dict[str, str]:
    """A WebDataset tar of clips and transcripts; the transcripts of the good ones by key."""
    folder.mkdir(parents=True)
    members, good = [], {}
    for number in range(CLIPS):
        key, (suffix, data) = f"{number:03d}", clip(number)
        said = f"Clip number {number} says <audio> and\tnothing else"
        members += [(f"{key}.{suffix}", data), (f"{key}.txt", said.encode())]
        members.append((f"{key}.json", json.dumps({"n": number}).encode()))
        if key not in BAD:
            good[key] = said
    (folder / "00000.tar").write_bytes(tar_bytes(members))
    return good


def write_audio_tokenizers(folder: Path) -> tuple[Path, Path]:
    """A 24 kHz mono one of four codebooks, and a 48 kHz stereo one that works in segments and has scales."""
    (folder / "tmp").mkdir(parents=True)
    save_audio_tokenizer(imported(model_of(books=4, bins=32), folder / "tmp"), folder / "mono")
    save_audio_tokenizer(imported(small_48k(books=2, bins=16), folder / "tmp", "stereo.th"), folder / "stereo")
    return folder / "mono", folder / "stereo"
