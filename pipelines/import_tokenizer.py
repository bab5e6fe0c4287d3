"""The job ``tokkit import``: somebody's released checkpoint in, an image tokenizer's folder out, with the same codes.

Writes ``config.json`` and ``model.safetensors``, read back and compared, and ``import.json``: where they came from and which
names of the file were not needed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from tokkit.errors import DataError, UsageError
from tokkit.hub import fetch, may_be_named, name_of
from tokkit.pipelines.progress import Progress
from tokkit.storage import pretty_json, sha256_file, write_atomic
from tokkit.tokenizers.folder import CONFIG_FILE
from tokkit.tokenizers.image.importers.load import Imported, import_image_tokenizer
from tokkit.tokenizers.image.storage import read_image_tokenizer

RECORD_FILE = "import.json"
SHOWN = 10  # dropped names that are logged


class ImportConfig(BaseModel):
    """Options of the job.

    Attributes:
        checkpoint: file as released, the folder of a Hugging Face model, or its name on the hub.
        out: folder of the tokenizer; made if absent.
        layout: ``auto``, ``taming``, ``chameleon``, ``chameleon-hf``, ``llamagen`` or ``janus``.
        yaml: configuration file to hold the weights against; if not given, one that lies beside them.
        weights: entry of the file, where it has several (``model``, ``ema``).
        size: side that pictures are brought to; if not given, the configuration file's or the layout's.
        name, licence: of the tokenizer; if not given, by the layout.
        unsafe_pickle: unpickle anything, which runs whatever code the file asks for.
        allow_download: whether what is named on the hub may be fetched from there.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: Path
    out: Path
    layout: str = "auto"
    yaml: Path | None = None
    weights: str | None = None
    size: int | None = Field(default=None, ge=1, le=8192)
    name: str | None = Field(default=None, min_length=1)
    licence: str | None = Field(default=None, min_length=1)
    unsafe_pickle: bool = False
    allow_download: bool = False

    @cached_property
    def found(self) -> Path:
        """Where the checkpoint is; what is named on the hub is fetched, when this is first asked for.

        Raises:
            UsageError: it may not be fetched, or the hub does not have it.
            TransientError: the hub did not give it.
        """
        if not may_be_named(self.checkpoint):
            return self.checkpoint
        return fetch(str(self.checkpoint), self.allow_download, "fetching needs pip install huggingface_hub")


@dataclass(frozen=True)
class ImportResult:
    """What came of it.

    Attributes:
        out: the tokenizer's folder; ``fingerprint`` is its identity.
        name, licence: of the tokenizer.
        layout: whose names the file uses; ``weights`` is the entry that they lay under, empty at the top.
        described_by: name of the configuration file that agrees with the weights; None where there was none.
        has_decoder: whether codes can be turned back into pictures.
        parameters: numbers in the network and the codebook.
        grid: rows and columns of codes of one picture.
        config: what was derived: architecture, quantizer, preprocessing.
        dropped: names in the file that are not the tokenizer's.
    """

    out: str
    fingerprint: str
    name: str
    licence: str | None
    layout: str
    weights: str
    described_by: str | None
    has_decoder: bool
    parameters: int
    grid: tuple[int, int]
    config: dict[str, Any]
    dropped: tuple[str, ...]


def import_tokenizer(config: ImportConfig, progress: Progress) -> ImportResult:
    """Import a checkpoint.

    Raises:
        UsageError: a file that is not there, a layout that cannot be told, or an ``out`` that holds another tokenizer.
        DataError: not such a checkpoint, damaged, or refused.
        ConfigError: the configuration file contradicts the weights.
    """
    imported = import_image_tokenizer(
        config.found,
        layout=config.layout,
        yaml=config.yaml,
        weights=config.weights,
        size=config.size,
        name=config.name,
        licence=config.licence,
        unsafe_pickle=config.unsafe_pickle,
    )
    result = _result(config, imported)
    _tell(result, progress)
    _check_out(config.out, result.fingerprint)
    imported.tokenizer.save(config.out)
    if read_image_tokenizer(config.out).fingerprint != result.fingerprint:
        raise DataError(f"{config.out}: what was written is not what was read")
    write_record(config, asdict(result))
    return result


def write_record(config: ImportConfig, result: dict[str, Any]) -> None:
    """Write ``import.json``: what came of it, and of which checkpoint."""
    found = config.found
    of = {"checkpoint": name_of(config.checkpoint, found), "sha256": sha256_file(found) if found.is_file() else None}
    told = {name: value for name, value in result.items() if name != "out"}
    write_atomic(config.out / RECORD_FILE, pretty_json(told | of))


def _result(config: ImportConfig, imported: Imported) -> ImportResult:
    tokenizer = imported.tokenizer
    described = tokenizer.config.model_dump(mode="json")
    return ImportResult(
        out=str(config.out),
        fingerprint=tokenizer.fingerprint,
        name=tokenizer.config.name,
        licence=tokenizer.config.licence,
        layout=imported.layout,
        weights=imported.weights,
        described_by=imported.described_by.name if imported.described_by is not None else None,
        has_decoder=tokenizer.has_decoder,
        parameters=sum(tensor.numel() for tensor in tokenizer.state_dict().values()),
        grid=tokenizer.grid,
        config={key: described[key] for key in ("architecture", "quantizer", "preprocessing")},
        dropped=imported.dropped,
    )


def _tell(result: ImportResult, progress: Progress) -> None:
    agreed = f", as {result.described_by} has it" if result.described_by else ""
    where = f" (weights under {result.weights})" if result.weights else ""
    progress.log(f"layout {result.layout}{where}; configuration derived from names and shapes{agreed}")
    for name in result.dropped[:SHOWN]:
        progress.log(f"not needed: {name}")
    if len(result.dropped) > SHOWN:
        progress.log(f"not needed: {len(result.dropped) - SHOWN} more names (all are in {RECORD_FILE})")
    if not result.has_decoder:
        progress.log("the file holds no decoder: this tokenizer encodes only")


def _check_out(out: Path, fingerprint: str) -> None:
    """Importing the same again is no harm; anything else is not overwritten."""
    if (out / CONFIG_FILE).exists() and read_image_tokenizer(out).fingerprint != fingerprint:
        raise UsageError(f"{out} holds another tokenizer; name another folder, or remove it")
