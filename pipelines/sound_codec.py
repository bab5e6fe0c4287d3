"""The jobs ``tokkit encode`` and ``tokkit decode`` for sounds: files to codes, and back to WAV.

Codes are int32 [books, frames] (all books; a lower bandwidth is the first ones). ``FILE.json`` beside them tells for each clip
how many samples it had, and the scales where the tokenizer stores loudness: decoding needs both. On a CPU every file is
streamed through decoder, resampler and encoder, so that its length costs no memory; elsewhere files share batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokkit.errors import DataError, ItemError, UsageError
from tokkit.media.audio import audio_packages, load_audio, stream_audio
from tokkit.pipelines.code_files import Unused, output_names, reading, sidecar_of, writer
from tokkit.pipelines.codec import DecodeConfig, DecodeResult, EncodeConfig
from tokkit.pipelines.prepare import resolve_device
from tokkit.pipelines.progress import Progress
from tokkit.sources.samples import modality_of_suffix
from tokkit.storage import pretty_json, read_json, replacing, write_atomic
from tokkit.tokenizers.audio import load_audio_tokenizer
from tokkit.tokenizers.audio.base import AudioCode, AudioTokenizer


@dataclass
class EncodeSoundsResult:
    """``sounds`` were encoded to ``out``; ``rejects`` could not be, ``ignored`` are no sounds by their names."""

    out: str
    fingerprint: str
    sounds: int = 0
    rejects: list[Unused] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


class Clip(BaseModel):
    """What decoding a clip takes besides its codes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    samples: int = Field(ge=1)
    scales: list[float] | None = None


class SoundCodesFile(BaseModel):
    """The content of ``FILE.json``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["tokkit-audio-codes"] = "tokkit-audio-codes"
    version: Literal[1] = 1
    tokenizer: str
    fingerprint: str
    licence: str | None
    sample_rate: int
    channels: int
    codebook_size: int
    codebooks: int
    packages: dict[str, str]
    clips: dict[str, Clip]
    rejects: list[dict[str, str]]
    ignored: list[str]


# ---- encoding


def encode_sounds(config: EncodeConfig, progress: Progress) -> EncodeSoundsResult:
    """Encode a sound, or all sounds of a folder.

    Raises:
        UsageError: an input or output that cannot be what was meant, or a package that is not installed.
        DataError: no sound could be encoded (the message says why the first could not).
    """
    root, files, ignored = _sounds(config.input)
    if config.out.suffix not in (".npy", ".npz"):
        raise UsageError(f"--out {config.out}: name a .npz, or a .npy for one sound")
    if config.out.suffix == ".npy" and config.input.is_dir():
        raise UsageError(f"--out {config.out}: a .npy holds one sound's codes; name a .npz for those of {config.input}")
    device = resolve_device(config.device)
    tokenizer = load_audio_tokenizer(config.tokenizer, device)
    result = EncodeSoundsResult(str(config.out), tokenizer.fingerprint, ignored=ignored)
    batch = 1 if str(device).startswith("cpu") else config.batch_size
    clips: dict[str, Clip] = {}
    sidecar = sidecar_of(config.out)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sidecar.unlink(missing_ok=True)  # it would describe codes that are about to be replaced
    with replacing(config.out) as temporary, progress.task("encode", total=len(files), unit="sounds") as task:
        with writer(config.out, temporary) as write:
            for start in range(0, len(files), batch):
                names = files[start : start + batch]
                for name, code in _encoded(tokenizer, root, names, result):
                    write(name, code.codes)
                    scales = None if code.scales is None else [float(scale) for scale in code.scales]
                    clips[name] = Clip(samples=code.samples, scales=scales)
                task.advance(len(names))
        if not clips:
            first = result.rejects[0]
            raise DataError(f"{config.input}: no sound could be encoded; {first.file}: {first.reason}: {first.message}")
    result.sounds = len(clips)
    described = _described(tokenizer, clips, result)
    write_atomic(sidecar, pretty_json(described.model_dump(mode="json")))
    return result


def _sounds(path: Path) -> tuple[Path, list[str], list[str]]:
    """(Folder, names of sounds in it, names of other files), in name order."""
    if path.is_file():
        return path.parent, [path.name], []
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder")
    names = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
    files = [name for name in names if modality_of_suffix(name.lower()) == "audio"]
    if not files:
        raise UsageError(f"{path}: no sounds in it ({len(names)} other files)")
    return path, files, [name for name in names if modality_of_suffix(name.lower()) != "audio"]


def _encoded(
    tokenizer: AudioTokenizer, root: Path, names: list[str], result: EncodeSoundsResult
) -> Iterator[tuple[str, AudioCode]]:
    """(Name, codes) of those that could be read; the others are recorded in the result."""
    rate, channels = tokenizer.sample_rate, tokenizer.channels
    if len(names) == 1:
        with _recorded(names[0], result):
            data = _bytes(root, names[0])
            yield names[0], tokenizer.encode_stream(stream_audio(data, rate, channels))
        return
    waves = {}
    for name in names:
        with _recorded(name, result):
            waves[name] = load_audio(_bytes(root, name), rate, channels)
    yield from zip(waves, tokenizer.encode(list(waves.values()), batch_size=len(names)), strict=True)


def _bytes(root: Path, name: str) -> bytes:
    name.encode()
    return (root / name).read_bytes()


@contextmanager
def _recorded(name: str, result: EncodeSoundsResult) -> Iterator[None]:
    try:
        yield
    except ItemError as error:
        result.rejects.append(Unused(name, error.reason, error.message))
    except UnicodeEncodeError:
        result.rejects.append(Unused(name, "file-name", "the name is not UTF-8, and codes are filed by it"))
    except OSError as error:
        result.rejects.append(Unused(name, "unreadable", error.strerror or str(error)))


def _described(tokenizer: AudioTokenizer, clips: dict[str, Clip], result: EncodeSoundsResult) -> SoundCodesFile:
    return SoundCodesFile(
        tokenizer=tokenizer.config.name,
        fingerprint=result.fingerprint,
        licence=tokenizer.licence,
        sample_rate=tokenizer.sample_rate,
        channels=tokenizer.channels,
        codebook_size=tokenizer.codebook_size,
        codebooks=tokenizer.codebooks,
        packages=audio_packages(),
        clips=clips,
        rejects=[asdict(unused) for unused in result.rejects],
        ignored=result.ignored,
    )


# ---- decoding


def decode_sounds(config: DecodeConfig, progress: Progress) -> DecodeResult:
    """Turn codes back into sounds: WAV of 16 bits.

    Raises:
        UsageError: no such file.
        DataError: damaged codes, codes out of range, or codes of another tokenizer.
    """
    tokenizer = load_audio_tokenizer(config.tokenizer, resolve_device(config.device))
    clips = _clips(config, tokenizer)
    with reading(config.codes):
        found = np.load(config.codes, allow_pickle=False)
    stored = {next(iter(clips)): found} if isinstance(found, np.ndarray) and len(clips) == 1 else found
    if isinstance(stored, np.ndarray) or set(stored) != set(clips):
        raise DataError(f"{config.codes}: not the codes that {sidecar_of(config.codes).name} describes")
    files = output_names(config.codes, list(clips), ".wav")
    with progress.task("decode", total=len(files), unit="sounds") as task:
        for name, file in files.items():
            with reading(config.codes):
                codes = stored[name]
            clip = clips[name]
            scales = None if clip.scales is None else np.array(clip.scales, dtype=np.float32)
            _write_wav(config, config.out / file, tokenizer, name, AudioCode(codes, scales, clip.samples))
            task.advance()
    return DecodeResult(str(config.out), files)


def _clips(config: DecodeConfig, tokenizer: AudioTokenizer) -> dict[str, Clip]:
    if not config.codes.is_file():
        raise UsageError(f"{config.codes}: no such file")
    sidecar = sidecar_of(config.codes)
    if not sidecar.is_file():
        raise UsageError(f"{sidecar} is not there: the lengths of the sounds are in it, which decoding needs")
    try:
        described = SoundCodesFile.model_validate(read_json(sidecar))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{sidecar} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if described.fingerprint != tokenizer.fingerprint:
        raise DataError(
            f"{config.codes}: the codes of another tokenizer ({described.tokenizer}, fingerprint "
            f"{described.fingerprint[:12]}, not {tokenizer.fingerprint[:12]})"
        )
    return described.clips


def _write_wav(config: DecodeConfig, path: Path, tokenizer: AudioTokenizer, name: str, code: AudioCode) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"samplerate": tokenizer.sample_rate, "channels": tokenizer.channels, "format": "WAV", "subtype": "PCM_16"}
    try:
        with replacing(path) as temporary, soundfile.SoundFile(temporary, "w", **options) as file:
            for piece in tokenizer.decode_stream(code):
                file.write(np.rint(piece.T.clip(-1, 1) * 32767).astype(np.int16))
    except ValueError as error:
        raise DataError(f"{config.codes}: {name}: {error}") from None
