"""The jobs ``tokkit encode`` and ``tokkit decode``: pictures to files of codes, and back.

Codes are int32 [rows, columns], or [K, rows, columns] where the tokenizer has K > 1 codebooks, in a ``.npz`` under each
picture's name, or, of one picture, in a ``.npy``. Beside ``FILE`` lies ``FILE.json``: which tokenizer the codes belong to, and
which files could not be encoded, with the reason. Every call of the tokenizer has the same batch shape (a batch that is not
full is padded), or, where pictures are encoded in several sizes (:mod:`tokkit.media.resolutions`), that of its size, so a
picture's codes do not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokkit.errors import DataError, ItemError, UsageError
from tokkit.media.images import DEFAULT_LIMITS, decode_image
from tokkit.media.resolutions import Fitting, Policy
from tokkit.pipelines.code_files import Codes, Unused, output_names, reading, sidecar_of, writer
from tokkit.pipelines.prepare import resolve_device
from tokkit.pipelines.progress import Progress, Task
from tokkit.pipelines.resolution import Area, BucketList, check_options, fitting_of, semantic_entry
from tokkit.sources.samples import is_picture_name
from tokkit.storage import pretty_json, read_json, replacing, write_atomic
from tokkit.tokenizers.image import load_image_tokenizer
from tokkit.tokenizers.image.model import ImageTokenizer

Item = TypeVar("Item")

SHAPES = 64  # of pictures that wait for others of their shape


class EncodeConfig(BaseModel):
    """Options of :func:`encode_pictures`.

    Attributes:
        tokenizer: folder of the image tokenizer.
        input: a picture, or a folder whose pictures (by their file names' suffixes) are taken, folders below included.
        out: ``.npz``, or ``.npy`` for one picture.
        batch_size: pictures in each call of the encoder.
        device: auto, cpu, cuda or cuda:N.
        resolution_policy, buckets, min_area, max_area: of pictures, as in ``tokkit shard``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: Path
    input: Path
    out: Path
    batch_size: int = Field(default=16, ge=1)
    device: str = "auto"
    resolution_policy: Policy = "crop"
    buckets: BucketList | None = None
    min_area: Area | None = None
    max_area: Area | None = None

    @model_validator(mode="after")
    def _of_one_policy(self) -> EncodeConfig:
        check_options(self)
        return self


class DecodeConfig(BaseModel):
    """Options of :func:`decode_pictures`.

    Attributes:
        tokenizer: folder of the image tokenizer that the codes belong to.
        codes: ``.npz`` or ``.npy`` of codes.
        out: folder for the pictures, as PNG; made if absent.
        batch_size: pictures in each call of the decoder.
        device: auto, cpu, cuda or cuda:N.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokenizer: Path
    codes: Path
    out: Path
    batch_size: int = Field(default=16, ge=1)
    device: str = "auto"


@dataclass
class EncodeResult:
    """``pictures`` were encoded to ``out``; ``rejects`` could not be, ``ignored`` are no pictures by their names."""

    out: str
    fingerprint: str
    pictures: int = 0
    rejects: list[Unused] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class DecodeResult:
    """``files`` were written below ``out``: names there, by the names of the codes."""

    out: str
    files: dict[str, str]


class CodesFile(BaseModel):
    """The content of ``FILE.json``.

    ``grid`` is every picture's; null where ``resolution`` says which sizes there are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal["tokkit-image-codes"] = "tokkit-image-codes"
    version: Literal[1] = 1
    tokenizer: str
    fingerprint: str
    licence: str | None
    codebook_size: int
    codebooks: int = 1
    size: int
    grid: tuple[int, int] | None
    resolution: dict[str, Any] | None = None
    pictures: int
    rejects: list[dict[str, str]]
    ignored: list[str]


# ---- encoding


def encode_pictures(config: EncodeConfig, progress: Progress) -> EncodeResult:
    """Encode a picture, or all pictures of a folder.

    A folder's pictures go through the encoder ``batch_size`` at a time, a single picture alone.

    Raises:
        UsageError: an input or output that cannot be what was meant.
        DataError: no picture could be encoded (the message says why the first could not).
    """
    root, files, ignored = _pictures(config.input)
    _check_out(config)
    tokenizer = load_image_tokenizer(config.tokenizer, resolve_device(config.device))
    fitting = fitting_of(config, tokenizer.config.preprocessing, tokenizer.downsample)
    result = EncodeResult(str(config.out), tokenizer.fingerprint, ignored=ignored)
    batch = config.batch_size if config.input.is_dir() else 1
    sidecar = sidecar_of(config.out)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sidecar.unlink(missing_ok=True)  # it would describe codes that are about to be replaced
    with replacing(config.out) as temporary, progress.task("encode", total=len(files), unit="pictures") as task:
        with writer(config.out, temporary) as write:
            for names, codes in _encoded(tokenizer, _inputs(fitting, root, files, result, task), batch):
                for name, grid in zip(names, codes, strict=True):
                    write(name, grid)
                result.pictures += len(names)
                task.advance(len(names))
        if not result.pictures:
            first = result.rejects[0]
            raise DataError(f"{config.input}: no picture could be encoded; {first.file}: {first.reason}: {first.message}")
    described = _described(tokenizer, fitting, result)
    write_atomic(
        sidecar, pretty_json(described.model_dump(mode="json", exclude=None if described.resolution else {"resolution"}))
    )
    return result


def _pictures(path: Path) -> tuple[Path, list[str], list[str]]:
    """(Folder, names of pictures in it, names of other files), in name order."""
    if path.is_file():
        return path.parent, [path.name], []
    if not path.is_dir():
        raise UsageError(f"{path}: no such file or folder")
    names = sorted(found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file())
    files = [name for name in names if is_picture_name(name)]
    if not files:
        raise UsageError(f"{path}: no pictures in it ({len(names)} other files)")
    return path, files, [name for name in names if not is_picture_name(name)]


def _check_out(config: EncodeConfig) -> None:
    if config.out.suffix not in (".npy", ".npz"):
        raise UsageError(f"--out {config.out}: name a .npz, or a .npy for one picture")
    if config.out.suffix == ".npy" and config.input.is_dir():
        raise UsageError(f"--out {config.out}: a .npy holds one picture's codes; name a .npz for those of {config.input}")


def _inputs(
    fitting: Fitting, root: Path, files: list[str], result: EncodeResult, task: Task
) -> Iterator[tuple[str, npt.NDArray[np.uint8]]]:
    """(Name, preprocessed pixels) of each picture; those that have none are recorded in the result."""
    for name in files:
        try:
            name.encode()
            picture = decode_image((root / name).read_bytes(), DEFAULT_LIMITS)
            yield name, fitting.apply(picture)
            continue
        except ItemError as error:
            unused = Unused(name, error.reason, error.message)
        except OSError as error:
            unused = Unused(name, "unreadable", error.strerror or str(error))
        except UnicodeEncodeError:
            unused = Unused(name, "file-name", "the name is not UTF-8, and codes are filed by it")
        result.rejects.append(unused)
        task.advance()


def _encoded(
    tokenizer: ImageTokenizer, inputs: Iterable[tuple[str, npt.NDArray[np.uint8]]], batch: int
) -> Iterator[tuple[list[str], Codes]]:
    """(Names, codes int32 [n, (K,) rows, columns]) of batches of one shape; what pads the last one is left out again."""
    for group in _alike(inputs, batch):
        yield [name for name, _ in group], tokenizer.encode_padded([picture for _, picture in group], batch)


def _alike(
    inputs: Iterable[tuple[str, npt.NDArray[np.uint8]]], batch: int
) -> Iterator[list[tuple[str, npt.NDArray[np.uint8]]]]:
    """Groups of one shape: full ones as they fill up, and the rest in the end; so many shapes wait at most."""
    waiting: dict[tuple[int, ...], list[tuple[str, npt.NDArray[np.uint8]]]] = {}
    for name, pixels in inputs:
        group = waiting.setdefault(pixels.shape, [])
        group.append((name, pixels))
        if len(group) == batch:
            yield waiting.pop(pixels.shape)
        elif len(waiting) > SHAPES:
            yield waiting.pop(next(iter(waiting)))  # of the one that has waited longest
    yield from waiting.values()


def _described(tokenizer: ImageTokenizer, fitting: Fitting, result: EncodeResult) -> CodesFile:
    resolution = semantic_entry(fitting)
    return CodesFile(
        tokenizer=tokenizer.config.name,
        fingerprint=result.fingerprint,
        licence=tokenizer.config.licence,
        codebook_size=tokenizer.codebook_size,
        codebooks=tokenizer.codebooks,
        size=tokenizer.config.preprocessing.size,
        grid=None if resolution else tokenizer.grid,
        resolution=resolution or None,
        pictures=result.pictures,
        rejects=[asdict(unused) for unused in result.rejects],
        ignored=result.ignored,
    )


# ---- decoding


def decode_pictures(config: DecodeConfig, progress: Progress) -> DecodeResult:
    """Turn codes back into pictures.

    Raises:
        UsageError: no such file, or a tokenizer without a decoder.
        DataError: damaged codes, codes out of range, or codes of another tokenizer.
    """
    tokenizer = load_image_tokenizer(config.tokenizer, resolve_device(config.device))
    if not tokenizer.has_decoder:
        raise UsageError(f"{config.tokenizer} encodes only: the checkpoint it was imported from holds no decoder")
    _check_fingerprint(config, tokenizer.fingerprint, progress)
    with _opened(config.codes, dimensions=2 if tokenizer.codebooks == 1 else 3) as (stored, read):
        files = output_names(config.codes, stored, ".png")
        with progress.task("decode", total=len(files), unit="pictures") as task:
            checked = ((name, _checked(config.codes, name, read(name), tokenizer)) for name in files)
            for names, pixels in _decoded(tokenizer, checked, config.batch_size if len(files) > 1 else 1):
                for name, picture in zip(names, pixels, strict=True):
                    _write_png(config.out / files[name], picture)
                task.advance(len(names))
    return DecodeResult(str(config.out), files)


def _check_fingerprint(config: DecodeConfig, fingerprint: str, progress: Progress) -> None:
    sidecar = sidecar_of(config.codes)
    if not sidecar.exists():
        progress.log(f"{sidecar.name} is not there: whether the codes are this tokenizer's is not checked")
        return
    try:
        described = CodesFile.model_validate(read_json(sidecar))
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{sidecar} is damaged: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None
    if described.fingerprint != fingerprint:
        raise DataError(
            f"{config.codes}: the codes of another tokenizer ({described.tokenizer}, fingerprint "
            f"{described.fingerprint[:12]}, not {fingerprint[:12]})"
        )


@contextmanager
def _opened(path: Path, dimensions: int) -> Iterator[tuple[list[str], Callable[[str], object]]]:
    """Names, and what reads the array of a name. One picture's codes have so many dimensions."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file")
    with reading(path):
        found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        one = found.ndim <= dimensions
        grids = {path.stem: found} if one else {f"{path.stem}-{i}": grid for i, grid in enumerate(found)}
        yield list(grids), grids.__getitem__
        return

    def read(name: str) -> object:
        with reading(path):
            return found[name]

    with found:
        yield list(found), read


def _checked(path: Path, name: str, codes: object, tokenizer: ImageTokenizer) -> Codes:
    if not isinstance(codes, np.ndarray):
        raise DataError(f"{path}: {name} is no array")
    K, codebook_size = tokenizer.codebooks, tokenizer.codebook_size
    fits = codes.ndim == 2 if K == 1 else codes.ndim == 3 and len(codes) == K
    if not fits or codes.size == 0 or not np.issubdtype(codes.dtype, np.integer):
        expected = "[rows, columns]" if K == 1 else f"[{K}, rows, columns]"
        raise DataError(f"{path}: {name} is {codes.dtype} {list(codes.shape)}, not integers {expected}")
    low, high = int(codes.min()), int(codes.max())
    if low < 0 or high >= codebook_size:
        raise DataError(f"{path}: {name} has the code {low if low < 0 else high}; the tokenizer's are 0 to {codebook_size - 1}")
    return codes.astype(np.int32)


def _decoded(
    tokenizer: ImageTokenizer, codes: Iterable[tuple[str, Codes]], batch: int
) -> Iterator[tuple[list[str], npt.NDArray[np.uint8]]]:
    """(Names, pixels uint8 [n, H, W, 3]) of batches; neighbours of one shape share a batch."""
    for _, alike in groupby(codes, key=lambda item: item[1].shape):
        for group in _groups(alike, batch):
            grids = np.zeros((batch, *group[0][1].shape), dtype=np.int32)
            grids[: len(group)] = [grid for _, grid in group]
            pixels = tokenizer.decode(torch.from_numpy(grids)).cpu().numpy()
            yield [name for name, _ in group], pixels[: len(group)]


def _write_png(path: Path, pixels: npt.NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


# ---- both


def _groups(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    iterator = iter(items)
    while group := list(islice(iterator, size)):
        yield group
