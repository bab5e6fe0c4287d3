"""Which format a file is of: by its name, then by a cheap look at its schema or its first lines.

A file that is plainly meant to be of a format, but is damaged, counts as that format: reading it records the damage. A file
that is understood and is of no known format is told apart with the reason.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from tokkit.sources import FORMATS, LINES, TARS
from tokkit.sources.compressed import peek
from tokkit.sources.lhotse_recordings import supervisions_beside
from tokkit.sources.opening import Location, for_arrow
from tokkit.sources.plugins import installed_formats

_PEEK = 1 << 18
_ADDRESSES = ("url", "image_url", "img_url")
_TEXT_FIELDS = ("text", "content", "raw_content")


@dataclass(frozen=True, slots=True)
class Recognition:
    """What a file is.

    Attributes:
        format: a known format, or None.
        why: for people, where there is none: what the file is, or what to do.
        damaged_parquet: its name says parquet, its content does not: the format is that of its neighbours.
    """

    format: str | None
    why: str = ""
    damaged_parquet: bool = False


def recognise(path: Location) -> Recognition:
    """The format of a file; raises OSError where it cannot be read for reasons of the surroundings.

    Formats of installed packages go by the name alone, and only where tokkit's own do not know the file.
    """
    found = _recognise_own(path)
    if found.format is None and not found.damaged_parquet:
        for name, entry in installed_formats().items():
            if path.name.lower().endswith(entry.suffixes):
                return Recognition(name)
    return found


def _recognise_own(path: Location) -> Recognition:
    name = path.name.lower()
    if name.endswith(TARS):
        return Recognition("webdataset")
    if name.endswith((".tar.xz", ".txz", ".tbz2", ".tar.lz4")):
        return Recognition(None, "a tar compressed in a way, or named in a way, that is not read: decompress it first")
    if name.endswith((".wat", ".wat.gz")):
        return Recognition(None, "a WAT file: metadata of another archive, no documents")
    if name.endswith(".zst") and not name.endswith(LINES):
        return Recognition(None, "compressed with zstd, which is read of JSON lines only: recompress it")
    if name.endswith(".parquet"):
        return _recognise_parquet(path)
    if name.endswith(LINES):
        return _recognise_lines(path)
    if name.endswith((".csv", ".tsv")):
        return _recognise_table(path)
    if name.endswith(".json"):
        return _recognise_json(path)
    if name.endswith(".trans.txt"):
        return Recognition("librispeech")
    for format_name, entry in FORMATS.items():
        if name.endswith(entry.suffixes):
            return Recognition(format_name)
    return Recognition(None, "no known format has files with this ending")


def is_sidecar(path: Location) -> str:
    """What a file accompanies, where it is no source of its own; empty for a file that stands for itself."""
    name = path.name
    if name.endswith(".parquet") and (accompanied := _tar_with(path)):
        return accompanied
    if name.endswith("_stats.json"):
        tar = path.with_name(name.removesuffix("_stats.json") + ".tar")
        return tar.name if tar.is_file() else ""
    if name.lower().endswith(LINES) and (spoken := supervisions_beside(path)) is not None:
        return spoken.name
    if name.endswith("_url_map.jsonl"):
        return name.removesuffix("_url_map.jsonl") + "*.parquet"
    if name.endswith("_images.tar"):
        url_map = path.with_name(name.removesuffix("_images.tar") + "_url_map.jsonl")
        return url_map.name if url_map.is_file() else ""
    return ""


def _tar_with(parquet: Location) -> str:
    """The tar that a parquet is the sidecar of; empty where it is none."""
    from tokkit.sources.sidecar import find_sidecar

    for suffix in TARS:
        tar = parquet.with_suffix(suffix)
        if tar.is_file() and find_sidecar(str(tar), tar.name) is not None:
            return tar.name
    return ""


def _recognise_parquet(path: Location) -> Recognition:
    import pyarrow.parquet as pq

    from tokkit.sources.hf_parquet import media_columns, sample_columns
    from tokkit.sources.img2dataset import is_img2dataset
    from tokkit.sources.obelics import is_list_of
    from tokkit.sources.parquet import UNREADABLE, is_damage, names_problem, tidy_message
    from tokkit.sources.text_parquet import is_text

    try:
        with for_arrow(str(path)) as given:
            schema = pq.read_schema(given)
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        return Recognition(None, f"cannot be read: {tidy_message(error, str(path), path.name)}", damaged_parquet=True)
    problem = names_problem(schema)
    if problem:
        return Recognition(None, problem)
    if is_list_of(schema, "images") and is_list_of(schema, "texts"):
        return Recognition("obelics")
    if media_columns(schema):
        return Recognition("hf_parquet")
    if decoded := sample_columns(schema):
        why = f"the column {decoded[0]} holds samples and no sound files; write it with their bytes, as the Audio feature does"
        return Recognition(None, why)
    if is_img2dataset(schema):
        return Recognition("img2dataset")
    if is_text(schema):
        return Recognition("text_parquet")
    names = ", ".join(schema.names[:12])
    return Recognition(
        None, f"no lists images and texts, no column {{bytes, path}} of media, no table of text; its columns are: {names}"
    )


def _recognise_table(path: Location) -> Recognition:
    from tokkit.sources.common_voice import is_common_voice
    from tokkit.sources.csv_table import TEXT_COLUMNS, heading_of, text_column

    heading = heading_of(peek(path, _PEEK) or b"", path.name)
    name_is_tsv = path.name.lower().endswith(".tsv")
    if "caption" in heading and any(name.lower() in _ADDRESSES for name in heading):
        return Recognition(None, "a list of pictures to download, with captions; csv:PATH reads the captions as texts")
    if name_is_tsv and is_common_voice(heading):
        return Recognition("common_voice")
    if text_column(heading) is not None:
        return Recognition("csv")
    return Recognition(None, f"no one column {', '.join(TEXT_COLUMNS)}; its columns are: {', '.join(heading)[:200]}")


def _recognise_json(path: Location) -> Recognition:
    head = (peek(path, _PEEK) or b"").removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"[") and b'"conversations"' in head:
        return Recognition("llava")
    return Recognition(None, "a JSON file that is no list of conversations")


def _recognise_lines(path: Location) -> Recognition:
    """JSON lines are text documents, unless the first objects say that they are something else."""
    from tokkit.sources.lhotse import is_lhotse

    head = peek(path, _PEEK)
    if head is None:
        return Recognition("jsonl")  # not compressed as its name says, or damaged: reading will say so
    objects = 0
    for line in head.splitlines()[:64]:
        try:
            fields = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(fields, dict):
            continue
        objects += 1
        if "audio_filepath" in fields:
            return Recognition("audio_manifest")
        if is_lhotse(fields):
            return Recognition("lhotse")
        if "conversations" in fields:
            return Recognition("llava")
        if "text_list" in fields and "image_info" in fields:
            return Recognition("mmc4")
        if any(field in fields for field in _TEXT_FIELDS):
            return Recognition("jsonl")
    if not objects and b'"matched_text_index"' in head and b'"image_info"' in head:
        return Recognition("mmc4")  # the first line, with its pictures in it, is longer than what was looked at
    if objects:
        return Recognition(None, f"no line has a field {', '.join(_TEXT_FIELDS[:-1])} or {_TEXT_FIELDS[-1]}")
    return Recognition("jsonl")
