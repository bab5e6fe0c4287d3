"""Sources: corpora in, documents out; one module a format.

This is the registry. Format modules are imported when they are first asked for, so that naming the formats costs nothing.
:func:`tokkit.sources.resolve.resolve_inputs` turns what a person typed into sources.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from typing import NamedTuple

from tokkit.sources.base import InputFile, Source, SourceOptions
from tokkit.sources.opening import Location


class Format(NamedTuple):
    """One entry of the registry.

    Attributes:
        module, attribute: where its :class:`~tokkit.sources.base.Source` lies.
        suffixes: endings of its files' names, lower case.
        description: one line for ``--help``.
        packages: those whose version may change what its documents are.
    """

    module: str
    attribute: str
    suffixes: tuple[str, ...]
    description: str
    packages: tuple[str, ...] = ()


# JSON lines, of which the first ones tell what they are.
LINES = (".json.gz", *(f".{name}{packed}" for name in ("jsonl", "ndjson") for packed in ("", ".gz", ".zip", ".zst")))

TARS = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.bz2")

FORMATS: dict[str, Format] = {
    "webdataset": Format(
        "tokkit.sources.webdataset",
        "WebDatasetSource",
        TARS,
        "tars of KEY.jpg or KEY.wav with KEY.txt and KEY.json (img2dataset, WebDataset), plain or compressed (.tar.gz, .tgz, "
        ".tar.zst, .tar.bz2), with their .parquet beside them",
    ),
    "obelics": Format(
        "tokkit.sources.obelics",
        "ObelicsSource",
        (".parquet",),
        "parquet of interleaved documents: columns images and texts, pictures inline, as paths, or as URLs with a map",
    ),
    "hf_parquet": Format(
        "tokkit.sources.hf_parquet",
        "HfParquetSource",
        (".parquet",),
        "parquet with an image or audio column {bytes, path} and a caption or transcript (Hugging Face datasets)",
    ),
    "img2dataset": Format(
        "tokkit.sources.img2dataset",
        "Img2datasetSource",
        (".parquet",),
        "parquet of img2dataset: key, status and the picture in a binary column (jpg, png, webp); its tars are webdataset",
    ),
    "mmc4": Format(
        "tokkit.sources.mmc4",
        "Mmc4Source",
        LINES,
        "interleaved documents, one JSON object a line with text_list and image_info; pictures in images/ or in base64",
    ),
    "llava": Format(
        "tokkit.sources.llava",
        "LlavaSource",
        (".json", *LINES),
        "conversations about pictures: a JSON list or JSON lines with conversations and image (LLaVA, Lumina-mGPT)",
    ),
    "audio_manifest": Format(
        "tokkit.sources.audio_manifest",
        "AudioManifestSource",
        LINES,
        "sounds with transcripts, one JSON object a line with audio_filepath, duration, offset and text (NeMo)",
    ),
    "lhotse": Format(
        "tokkit.sources.lhotse",
        "LhotseSource",
        LINES,
        "cuts with their supervisions, recordings, or supervisions and the recordings beside them, one JSON object a line "
        "(lhotse)",
    ),
    "librispeech": Format(
        "tokkit.sources.librispeech",
        "LibriSpeechSource",
        (".trans.txt",),
        "folders of ID.flac with transcripts in SPEAKER-CHAPTER.trans.txt (LibriSpeech)",
    ),
    "common_voice": Format(
        "tokkit.sources.common_voice",
        "CommonVoiceSource",
        (".tsv",),
        "tables of sounds with columns path and sentence, and their folder clips/ (Common Voice)",
    ),
    "image_folder": Format(
        "tokkit.sources.image_folder",
        "ImageFolderSource",
        (),  # told by the whole folder, not by a file in it
        "folders of picture files, with NAME.txt, metadata.jsonl or metadata.csv (file_name, text or caption) beside them",
    ),
    "jsonl": Format(
        "tokkit.sources.jsonl",
        "JsonlSource",
        LINES,
        "text documents, one JSON object a line with a field text, content or raw_content; plain, gzip, zstd or zip",
    ),
    "text_parquet": Format(
        "tokkit.sources.text_parquet",
        "TextParquetSource",
        (".parquet",),
        "parquet of text documents: a string column text, content or raw_content, and nothing binary",
    ),
    "csv": Format(
        "tokkit.sources.csv_table",
        "CsvSource",
        (".csv", ".tsv"),
        "tables of text documents, one a row, with a column text, content or caption named in the first row",
    ),
    "warc": Format(
        "tokkit.sources.warc.source",
        "WarcSource",
        (".warc", ".warc.gz", ".arc", ".arc.gz"),
        "web archives (WARC, ARC; plain or gzip): each HTML page a document of text and the pictures in the same file",
        packages=("resiliparse",),
    ),
    "wet": Format(
        "tokkit.sources.warc.source",
        "WetSource",
        (".wet", ".wet.gz"),
        "texts of web pages as Common Crawl extracts them (WET)",
    ),
    "text": Format("tokkit.sources.text", "TextSource", (".txt", ".md"), "plain UTF-8 text, one document a file"),
}


def formats() -> dict[str, Format]:
    """All formats by name: tokkit's own, and those of installed packages (:mod:`tokkit.sources.plugins`).

    Raises:
        UsageError: an installed package offers a format that cannot be used.
    """
    from tokkit.sources.plugins import installed_formats

    return {**FORMATS, **installed_formats()}


def known_formats() -> dict[str, str]:
    """Names of the formats that can be read, each with one line that says what it is."""
    return {name: entry.description for name, entry in formats().items()}


def source_class(name: str) -> type[Source]:
    """The class that reads format ``name``; raises KeyError for a name that :func:`known_formats` does not give."""
    if name not in FORMATS and name in formats():
        from tokkit.sources.plugins import installed_class

        return installed_class(name)
    entry = FORMATS[name]
    found: type[Source] = getattr(importlib.import_module(entry.module), entry.attribute)
    return found


def packages_of(names: Collection[str]) -> set[str]:
    """Packages whose version may change what documents of these formats are."""
    known = FORMATS if FORMATS.keys() >= set(names) else formats()
    return {package for name in names for package in known[name].packages}


def make_source(
    format_name: str, name: str, root: Location, files: Sequence[InputFile], options: SourceOptions | None = None
) -> Source:
    """A source called ``name`` over ``files``, which lie below ``root``."""
    source = source_class(format_name)(name, root, sorted(files, key=lambda file: file.name))
    if options is not None:
        source.options = options
    return source
