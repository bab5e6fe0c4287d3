"""A packing plan on disk: ``packs/NAME/SPLIT/`` in a directory of token shards.

::

    plan.json             format, settings, the shards' fingerprint, counts, efficiency, bounds, and the other files' checksums
    pack_offsets.npy      int64 [P + 1]   pack p is the pieces pack_offsets[p]:pack_offsets[p + 1]
    piece_document.npy    int64 [N]       number of the document in its split
    piece_start.npy       int64 [N]       first token within the document
    piece_length.npy      int32 [N]       tokens
    left_out.jsonl        a line for each document in no pack: document, length, reason, needs (the seq_len it would need)
    rows/                 the sequences themselves, where asked for (:mod:`tokkit.packing.rows`)

The arrays are plain ``.npy`` files and are memory-mapped. A folder is written under a temporary name, fsynced and renamed: it
is there whole or not at all, and the same plan always gives the same bytes. It names the shards it was made for by their
fingerprint and is refused for any others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from types import SimpleNamespace
from typing import Any, TypeVar

import numba as nb
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tokkit.errors import DataError, FingerprintMismatch, VerificationError
from tokkit.packing.plan import ALGORITHM, PackPlan
from tokkit.packing.policy import SplitPolicy
from tokkit.packing.split import REASONS, LeftOut, Pieces, Reason
from tokkit.storage import attempt_name, fsync, read_json, record_json, sha256_file

FORMAT = "tokkit-packs"
VERSION = 1
RECORD = "plan.json"
LEFT_OUT = "left_out.jsonl"
ARRAYS = {"pack_offsets": np.int64, "piece_document": np.int64, "piece_start": np.int64, "piece_length": np.int32}


class Model(BaseModel):
    """A record on disk: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredFile(Model):
    """One file of a folder: size, SHA-256 and, for an array, its dtype and shape."""

    bytes: int
    sha256: str
    dtype: str | None = None
    shape: list[int] | None = None


class PlanCounts(Model):
    """What a plan holds; ``documents = packed_documents + left_out_documents``.

    Attributes:
        tokens: in packs; ``padding`` is what the packs' places hold beside them.
        max_pieces: pieces of the fullest pack.
    """

    documents: int
    packed_documents: int
    cut_documents: int
    left_out_documents: int
    tokens: int
    left_out_tokens: int
    padding: int
    pieces: int
    packs: int
    max_pieces: int


class SourceCounts(Model):
    """What a plan makes of one source's documents (:mod:`tokkit.packing.account`); the sums are those of :class:`PlanCounts`.

    Attributes:
        cuts: places at which its documents were cut.
        padding: its part of the padding, by its share of each sequence.
    """

    documents: int
    cut_documents: int
    cuts: int
    left_out_documents: int
    tokens: int
    left_out_tokens: int
    padding: int


class ModalityCounts(Model):
    """What a plan makes of the spans of one modality: ``spans`` in all, ``tokens`` of those in packs.

    Attributes:
        cut_spans: those of more than one piece.
        frame_cuts: places at which sounds were cut, between their frames; written where there are any.
    """

    spans: int
    tokens: int
    cut_spans: int
    frame_cuts: int = 0
    left_out_spans: int
    left_out_tokens: int


class PlanBounds(Model):
    """Lower bounds on the number of packs (:class:`tokkit.packing.plan.Bounds`)."""

    volume: int
    martello_toth: int


class PlanRecord(Model):
    """The content of ``plan.json``; ``shards`` is the fingerprint of the token shards, ``left_out`` counts by reason.
    ``by_source`` and ``by_modality`` are empty where they were not asked for, the latter too where nothing was cut or left out;
    ``align`` and ``mixing`` are written where they were asked for.

    ``digest`` is the SHA-256 of the rest (:func:`tokkit.storage.digest_of`), set where the record is written.
    """

    format: str
    version: int
    name: str
    split: str
    seq_len: int
    policy: SplitPolicy
    max_documents: int | None = None
    align: int = Field(default=1, ge=1)
    mixing: float = Field(default=0.0, ge=0, le=1)
    algorithm: str
    algorithm_version: int
    shards: str
    counts: PlanCounts
    left_out: dict[Reason, int]
    efficiency: float
    bounds: PlanBounds
    by_source: dict[str, SourceCounts] = Field(default_factory=dict)
    by_modality: dict[str, ModalityCounts] = Field(default_factory=dict)
    files: dict[str, StoredFile]
    digest: str = ""


@nb.njit(cache=True, nogil=True)
def _count(pack_offsets: npt.NDArray[np.int64], packs: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> int:
    """Fill ``offsets`` with where the pieces of each pack begin among all; returns their number, or -1 for a damaged plan."""
    total = offsets[0] = 0
    for n in range(packs.size):
        size = pack_offsets[packs[n] + 1] - pack_offsets[packs[n]]
        if size < 0 or pack_offsets[packs[n]] < 0 or pack_offsets[packs[n] + 1] > pack_offsets[-1]:
            return -1
        total += size
        offsets[n + 1] = total
    return int(total)


@nb.njit(cache=True, nogil=True)
def _take(
    pack_offsets: npt.NDArray[np.int64],
    packs: npt.NDArray[np.int64],
    document: npt.NDArray[np.int64],
    start: npt.NDArray[np.int64],
    length: npt.NDArray[np.int32],
    documents: npt.NDArray[np.int64],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
) -> None:
    """Copy the pieces of packs one after another."""
    at = 0
    for n in range(packs.size):
        for i in range(pack_offsets[packs[n]], pack_offsets[packs[n] + 1]):
            documents[at], starts[at], lengths[at] = document[i], start[i], length[i]
            at += 1


@dataclass(frozen=True, eq=False)
class StoredPlan:
    """A plan that was read back; its arrays are memory maps.

    Attributes:
        folder: ``packs/NAME/SPLIT``.
        record: ``plan.json``.
        pack_offsets, pieces: as in :class:`tokkit.packing.plan.PackPlan`.
    """

    folder: Path
    record: PlanRecord
    pack_offsets: npt.NDArray[np.int64]
    pieces: Pieces

    @property
    def num_packs(self) -> int:
        return len(self.pack_offsets) - 1

    def pack(self, index: int) -> Pieces:
        """The pieces of a pack, in order (views of the memory maps)."""
        return self.pieces.take(slice(int(self.pack_offsets[index]), int(self.pack_offsets[index + 1])))

    def packs(self, indices: npt.NDArray[np.int64]) -> tuple[Pieces, npt.NDArray[np.int64]]:
        """The pieces of several packs one after another, and int64 [R + 1] where each begins among them."""
        offsets = np.empty(len(indices) + 1, dtype=np.int64)
        total = _count(self.pack_offsets, indices, offsets)
        if total < 0:
            raise DataError(f"{self.folder / 'pack_offsets.npy'} is damaged: its numbers go down")
        pieces = Pieces(np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int32))
        stored = self.pieces.document, self.pieces.start, self.pieces.length
        _take(self.pack_offsets, indices, *stored, pieces.document, pieces.start, pieces.length)
        return pieces, offsets

    def left_out(self) -> LeftOut:
        """Read ``left_out.jsonl``.

        Raises:
            DataError: it is missing or damaged.
        """
        return _read_left_out(self.folder / LEFT_OUT)


def pack_folder(directory: Path, name: str, split: str) -> Path:
    """Where the plan ``name`` of a split lies."""
    return directory / "packs" / name / split


@contextmanager
def committed_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary sibling to write files into; on success it is fsynced and renamed to ``folder``, else removed.

    Raises:
        DataError: ``folder`` exists (also where another process made it meanwhile).
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = attempt_name(folder)
    temporary.mkdir()
    try:
        yield temporary
        for path in temporary.iterdir():
            fsync(path)
        fsync(temporary)
        try:
            temporary.rename(folder)
        except OSError as error:
            if folder.exists():
                raise DataError(f"{folder} exists already") from error
            raise
        fsync(folder.parent)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)


def stored_file(path: Path, array: np.ndarray | None = None) -> StoredFile:
    """Describe a file that was just written, and the array in it."""
    shape, dtype = (list(array.shape), array.dtype.name) if array is not None else (None, None)
    return StoredFile(bytes=path.stat().st_size, sha256=sha256_file(path), dtype=dtype, shape=shape)


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """``np.save``, but that on a full disk its error says so (given a file, NumPy tells only how many items were written)."""
    with path.open("wb") as file:
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def save_plan(
    plan: PackPlan,
    directory: Path,
    name: str,
    split: str,
    shards: str,
    by_source: dict[str, SourceCounts] | None = None,
    by_modality: dict[str, ModalityCounts] | None = None,
) -> StoredPlan:
    """Write a plan.

    Args:
        directory: of the token shards.
        name, split: it becomes ``packs/NAME/SPLIT``, which must not exist.
        shards: fingerprint of the token shards that the plan was made for.
        by_source, by_modality: what it costs (:mod:`tokkit.packing.account`).

    Raises:
        DataError: the folder exists.
    """
    folder = pack_folder(directory, name, split)
    arrays = {
        "pack_offsets": plan.pack_offsets,
        "piece_document": plan.pieces.document,
        "piece_start": plan.pieces.start,
        "piece_length": plan.pieces.length,
    }
    with committed_folder(folder) as temporary:
        files = {}
        for key, dtype in ARRAYS.items():
            array = np.ascontiguousarray(arrays[key], dtype=dtype)
            path = temporary / f"{key}.npy"
            save_array(path, array)
            files[path.name] = stored_file(path, array)
        _write_left_out(temporary / LEFT_OUT, plan.left_out)
        files[LEFT_OUT] = stored_file(temporary / LEFT_OUT)
        record = _record(plan, name, split, shards, files)
        record = record.model_copy(update={"by_source": by_source or {}, "by_modality": by_modality or {}})
        entry = record.model_dump(mode="json")
        for key, usual in (("align", 1), ("mixing", 0)):
            if entry[key] == usual:
                del entry[key]
        for counts in entry["by_modality"].values():
            if not counts["frame_cuts"]:
                del counts["frame_cuts"]
        (temporary / RECORD).write_text(record_json(entry))
    return load_plan(folder)


def _record(plan: PackPlan, name: str, split: str, shards: str, files: dict[str, StoredFile]) -> PlanRecord:
    left_out = len(plan.left_out)
    counts = PlanCounts(
        documents=plan.num_documents,
        packed_documents=plan.num_documents - left_out,
        cut_documents=plan.num_cut_documents,
        left_out_documents=left_out,
        tokens=plan.num_tokens,
        left_out_tokens=plan.left_out.num_tokens,
        padding=plan.num_packs * plan.seq_len - plan.num_tokens,
        pieces=len(plan.pieces),
        packs=plan.num_packs,
        max_pieces=plan.max_pieces,
    )
    return PlanRecord(
        format=FORMAT,
        version=VERSION,
        name=name,
        split=split,
        seq_len=plan.seq_len,
        policy=plan.policy,
        max_documents=plan.max_documents,
        align=plan.align,
        mixing=plan.mixing,
        algorithm=ALGORITHM,
        algorithm_version=plan.algorithm_version,
        shards=shards,
        counts=counts,
        left_out={Reason(reason): n for reason, n in plan.left_out.by_reason().items()},
        efficiency=plan.efficiency,
        bounds=PlanBounds(volume=plan.bounds.volume, martello_toth=plan.bounds.martello_toth),
        files=files,
    )


def load_plan(folder: Path, *, shards: str | None = None, checksums: bool = False) -> StoredPlan:
    """Read a plan.

    Args:
        folder: ``packs/NAME/SPLIT``.
        shards: fingerprint of the token shards at hand; a plan for others is refused.
        checksums: also compare every file's SHA-256 (reads everything once).

    Raises:
        DataError: there is none, or it is of another format version, or its arrays are not what ``plan.json`` says.
        VerificationError: a file's size or checksum differs.
        FingerprintMismatch: it was made for other shards.
    """
    record = read_record(folder / RECORD, PlanRecord, FORMAT, VERSION)
    if shards is not None and record.shards != shards:
        raise FingerprintMismatch(
            f"{folder} was made for other token shards (fingerprint {record.shards[:16]}, these have {shards[:16]}): the "
            f"shards were written anew since; remove the folder and pack again, or pack under another name"
        )
    check_files(folder, record.files, checksums=checksums)
    missing = [f"{key}.npy" for key in ARRAYS if f"{key}.npy" not in record.files]
    if missing:
        raise DataError(f"{folder / RECORD} is damaged: it does not list {', '.join(missing)}")
    arrays = {key: map_array(folder / f"{key}.npy", record.files[f"{key}.npy"], dtype) for key, dtype in ARRAYS.items()}
    plan = StoredPlan(
        folder,
        record,
        arrays["pack_offsets"],
        Pieces(arrays["piece_document"], arrays["piece_start"], arrays["piece_length"]),
    )
    _check_shapes(plan)
    return plan


def _check_shapes(plan: StoredPlan) -> None:
    counts, offsets, pieces = plan.record.counts, plan.pack_offsets, plan.pieces
    expected: dict[str, tuple[np.ndarray, int]] = {
        "pack_offsets": (offsets, counts.packs + 1),
        "piece_document": (pieces.document, counts.pieces),
        "piece_start": (pieces.start, counts.pieces),
        "piece_length": (pieces.length, counts.pieces),
    }
    for key, (array, size) in expected.items():
        if array.shape != (size,):
            raise DataError(f"{plan.folder / key}.npy has shape {array.shape}; {RECORD} counts {size} entries")
    if offsets[0] != 0 or offsets[-1] != counts.pieces:
        raise DataError(f"{plan.folder / 'pack_offsets.npy'} does not span the {counts.pieces} pieces")


RecordModel = TypeVar("RecordModel", bound=BaseModel)


def read_record(path: Path, kind: type[RecordModel], format_name: str, version: int) -> RecordModel:
    """Read and check a JSON record.

    Raises:
        DataError: missing, damaged, of another format or of a version that this code does not read.
    """
    entry = read_json(path)
    if not isinstance(entry, dict) or entry.get("format") != format_name:
        raise DataError(f"{path} is not a {format_name} record")
    if entry.get("version") != version:
        raise DataError(f"{path} has format version {entry.get('version')}; this tokkit reads version {version}")
    try:
        return kind.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{path} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def check_files(folder: Path, files: dict[str, StoredFile], *, checksums: bool) -> None:
    """Compare sizes and, on request, checksums with a record.

    Raises:
        VerificationError: a file is missing or differs.
    """
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise VerificationError(f"{path} is missing")
        if path.stat().st_size != expected.bytes:
            raise VerificationError(f"{path} has {path.stat().st_size} bytes, not {expected.bytes}: it is damaged or cut short")
        if checksums and sha256_file(path) != expected.sha256:
            raise VerificationError(f"{path} is damaged: its SHA-256 is not the one that was written down")


def map_array(path: Path, expected: StoredFile, dtype: npt.DTypeLike) -> np.ndarray:
    """Memory-map a ``.npy`` file (an empty array is read).

    Raises:
        DataError: not such a file, or of another dtype or shape than ``expected``.
    """
    empty = expected.shape is not None and 0 in expected.shape
    try:
        array = np.load(path, mmap_mode=None if empty else "r", allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:  # a damaged header is parsed as Python text
        raise DataError(f"{path} is not a readable .npy file: {error}") from None
    if array.dtype != np.dtype(dtype) or list(array.shape) != expected.shape:
        raise DataError(f"{path} holds {array.dtype} {list(array.shape)}, not {np.dtype(dtype)} {expected.shape}")
    return array.view(np.ndarray)  # still the memory map, without memmap's slow slicing


def _write_left_out(path: Path, left_out: LeftOut) -> None:
    columns = zip(
        left_out.document.tolist(), left_out.length.tolist(), left_out.reason.tolist(), left_out.needs.tolist(), strict=True
    )
    with path.open("w", encoding="ascii") as file:
        for document, length, reason, needs in columns:
            entry = {"document": document, "length": length, "reason": REASONS[reason].value, "needs": needs}
            file.write(json.dumps(entry) + "\n")


def _read_left_out(path: Path) -> LeftOut:
    numbers = {reason.value: i for i, reason in enumerate(REASONS)}
    try:
        entries = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
        return LeftOut(
            np.array([e["document"] for e in entries], dtype=np.int64),
            np.array([e["length"] for e in entries], dtype=np.int64),
            np.array([numbers[e["reason"]] for e in entries], dtype=np.uint8),
            np.array([e["needs"] for e in entries], dtype=np.int64),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read: {error!r}") from None
