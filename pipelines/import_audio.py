"""The job ``tokkit import`` for sound: a released EnCodec model in, an audio tokenizer's folder out, with the same codes.

Writes ``config.json`` and ``model.safetensors``, read back and compared, and ``import.json``: where they came from and which
names of the file were not needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokkit.errors import DataError, UsageError
from tokkit.pipelines.import_tokenizer import RECORD_FILE, ImportConfig, write_record
from tokkit.pipelines.progress import Progress
from tokkit.tokenizers.audio.importers.layout import LAYOUTS
from tokkit.tokenizers.audio.importers.load import Imported, holds_audio_tokenizer, import_audio_tokenizer
from tokkit.tokenizers.audio.storage import read_audio_tokenizer, write_audio_tokenizer
from tokkit.tokenizers.folder import CONFIG_FILE


@dataclass(frozen=True)
class AudioImportResult:
    """What came of it.

    Attributes:
        out: the tokenizer's folder; ``fingerprint`` is its identity.
        name, licence: of the tokenizer.
        layout: whose names the file uses; ``weights`` is the entry that they lay under, empty at the top.
        described_by: the configuration that agrees with the weights.
        parameters: numbers in the network and the codebooks.
        sample_rate, channels: of waveforms; ``frame_rate`` frames a second have ``codebooks`` codes of ``codebook_size`` each.
        config: what was derived.
        dropped: names in the file that the tokenizer does not need.
    """

    out: str
    fingerprint: str
    name: str
    licence: str | None
    layout: str
    weights: str
    described_by: str
    parameters: int
    sample_rate: int
    channels: int
    frame_rate: float
    codebooks: int
    codebook_size: int
    config: dict[str, Any]
    dropped: tuple[str, ...]


def is_audio(config: ImportConfig) -> bool:
    """Whether a checkpoint is an audio tokenizer's, by the layout that was named or by the names in it.

    Raises:
        UsageError, DataError: the file is not there, damaged or refused.
    """
    if config.layout != "auto":
        return config.layout in LAYOUTS
    return holds_audio_tokenizer(config.found, config.weights, config.unsafe_pickle)


def import_audio(config: ImportConfig, progress: Progress) -> AudioImportResult:
    """Import a checkpoint.

    Raises:
        UsageError: a file that is not there, an option that is for pictures, or an ``out`` that holds another tokenizer.
        DataError: not such a checkpoint, damaged, refused, or with empty codebooks.
        ConfigError: the configuration beside or in it contradicts the weights.
    """
    for option, value in (("--yaml", config.yaml), ("--size", config.size)):
        if value is not None:
            raise UsageError(f"{option} is for image tokenizers, and {config.checkpoint} is an EnCodec model")
    imported = import_audio_tokenizer(
        config.found,
        layout=config.layout,
        weights=config.weights,
        name=config.name,
        licence=config.licence,
        unsafe_pickle=config.unsafe_pickle,
    )
    result = _result(config, imported)
    progress.log(f"layout {result.layout}; the network is derived from names and shapes, as {result.described_by} has it")
    if result.dropped:
        progress.log(f"not needed: {len(result.dropped)} names (all are in {RECORD_FILE})")
    if (config.out / CONFIG_FILE).exists() and read_audio_tokenizer(config.out).fingerprint != result.fingerprint:
        raise UsageError(f"{config.out} holds another tokenizer; name another folder, or remove it")
    write_audio_tokenizer(imported.tokenizer, config.out)
    if read_audio_tokenizer(config.out).fingerprint != result.fingerprint:
        raise DataError(f"{config.out}: what was written is not what was read")
    write_record(config, asdict(result))
    return result


def _result(config: ImportConfig, imported: Imported) -> AudioImportResult:
    tokenizer = imported.tokenizer
    described = tokenizer.config.model_dump(mode="json")
    return AudioImportResult(
        out=str(config.out),
        fingerprint=tokenizer.fingerprint,
        name=tokenizer.config.name,
        licence=tokenizer.licence,
        layout=imported.layout,
        weights=imported.weights,
        described_by=Path(imported.described_by).name,
        parameters=sum(tensor.numel() for tensor in tokenizer.shapes().values()),
        sample_rate=tokenizer.sample_rate,
        channels=tokenizer.channels,
        frame_rate=tokenizer.frame_rate,
        codebooks=tokenizer.codebooks,
        codebook_size=tokenizer.codebook_size,
        config={key: value for key, value in described.items() if key not in ("name", "licence", "origin")},
        dropped=imported.dropped,
    )
