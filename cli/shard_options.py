"""Options of `tokkit shard` alone: which documents and items are kept, and what they become.

What every job over units has is in :mod:`tokkit.cli.run_options`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.run_options import IN_AND_OUT, KEPT, RUN

# The groups that help shows options in, besides those of every job over units.
TOKENS = "Tokens and their order"
BESIDES = "What is made besides"

# ---- input and output

Recipe = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="Options under a name (text, captions, chameleon) or from a YAML file; --set and flags win over them.",
        rich_help_panel=IN_AND_OUT,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Set any option of the job, e.g. image_limits.max_bytes=1000000.",
        rich_help_panel=IN_AND_OUT,
    ),
]
PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        help="Print all options as they come together, as YAML, and do nothing else.",
        rich_help_panel=IN_AND_OUT,
    ),
]
AltText = Annotated[
    str | None,
    typer.Option(
        show_default="none",
        help="Alternative text of pictures (web archives, OBELICS) as text of the document: none, before or after them.",
        rich_help_panel=IN_AND_OUT,
    ),
]
Images = Annotated[
    list[str] | None,
    typer.Option(
        metavar="STORE",
        help="Where pictures are that documents name by URL or path and that do not lie beside them: a folder, tars, the "
        "output of img2dataset or a WARC; KIND:PATH names the kind. Repeat for more, asked in order.",
        rich_help_panel=IN_AND_OUT,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="A trial over N documents that extrapolates to the whole input.", rich_help_panel=IN_AND_OUT),
]

# ---- tokens and their order

TextTokenizer = Annotated[
    Path | None,
    typer.Option(
        help="SentencePiece .model or Hugging Face tokenizer.json; required unless --vocabulary-from brings its own.",
        rich_help_panel=TOKENS,
    ),
]
VocabularyFrom = Annotated[
    Path | None,
    typer.Option(
        help="tokenizer.json of Chameleon or Emu3: text, pictures and markers then have that model's own token ids, "
        "so that shards continue its training.",
        rich_help_panel=TOKENS,
    ),
]
ImageTokenizer = Annotated[
    Path | None, typer.Option(help="Image tokenizer folder; without one pictures are left out.", rich_help_panel=TOKENS)
]
AudioTokenizer = Annotated[
    Path | None, typer.Option(help="Audio tokenizer folder; without one sounds are left out.", rich_help_panel=TOKENS)
]
TextVocabSize = Annotated[
    int | None, typer.Option(help="Ids kept for text (the model's embedding rows).", rich_help_panel=TOKENS)
]
TextEngine = Annotated[
    str | None,
    typer.Option(
        show_default="library",
        help="gigatoken: far faster for a tokenizer.json; checked against its library.",
        rich_help_panel=TOKENS,
    ),
]
ImageLayout = Annotated[
    str | None,
    typer.Option(
        show_default="plain, or the layout of --vocabulary-from",
        help="plain, rows (a marker after each row), grid (two size tokens first), grid_rows (both; the default with "
        "several shapes), emu3 (the size in digits, then rows) or bare (shapes in the document table only).",
        rich_help_panel=TOKENS,
    ),
]
ResolutionPolicy = Annotated[
    str | None,
    typer.Option(
        show_default="crop",
        help="crop: each picture to the tokenizer's square; bucket: to the size of a list whose aspect ratio is nearest; "
        "native: its own size and shape, within bounds.",
        rich_help_panel=TOKENS,
    ),
]
Buckets = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHxHEIGHT,...",
        help="Sizes of --resolution-policy bucket; by default some of about the area of the tokenizer's square.",
        rich_help_panel=TOKENS,
    ),
]
MinArea = Annotated[
    str | None,
    typer.Option(
        help="With native: smaller pictures are enlarged to this, pixels or WIDTHxHEIGHT; default a quarter of the "
        "tokenizer's side, squared.",
        rich_help_panel=TOKENS,
    ),
]
MaxArea = Annotated[
    str | None,
    typer.Option(
        help="With native: larger pictures are reduced to this; default twice the tokenizer's side, squared.",
        rich_help_panel=TOKENS,
    ),
]
AudioLayout = Annotated[
    str | None,
    typer.Option(
        show_default="flat",
        help="flat (frame by frame), book_major (codebook by codebook) or delay (each codebook some steps late).",
        rich_help_panel=TOKENS,
    ),
]
AudioDelays = Annotated[
    str | None,
    typer.Option(
        metavar="N,N,...",
        show_default="0,1,2,...",
        help="With --audio-layout delay: steps that each codebook is late, e.g. 0,1,1,1.",
        rich_help_panel=TOKENS,
    ),
]
AudioBooks = Annotated[
    int | None,
    typer.Option(show_default="all", help="Codebooks of a sound that are kept, coarsest first.", rich_help_panel=TOKENS),
]
PairOrder = Annotated[
    str | None,
    typer.Option(show_default="image-first", help="image-first, text-first or random (half and half).", rich_help_panel=TOKENS),
]
TextJoiner = Annotated[
    str | None,
    typer.Option(help="Between texts that become neighbours when a picture is left out.", rich_help_panel=TOKENS),
]
Seed = Annotated[int | None, typer.Option(show_default="0", help="Of every drawn choice.", rich_help_panel=TOKENS)]
AudioBatchSize = Annotated[
    int | None,
    typer.Option(show_default="1, 8 on a GPU", help="Sounds in each call of the audio tokenizer.", rich_help_panel=RUN),
]

# ---- what is kept

MissingImage = Annotated[
    str | None,
    typer.Option(
        show_default="drop-image",
        help="Of a document with a picture that is not to be had: drop-image goes on without it, drop-document leaves the "
        "document out, keep-marker keeps the picture's begin and end markers in its place.",
        rich_help_panel=KEPT,
    ),
]
FixText = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND",
        help="Repair texts first of all (ftfy): encoding (mojibake), html (entities), controls, line-breaks, width, "
        "ligatures, quotes, nfc or nfkc; repeat for more.",
        rich_help_panel=KEPT,
    ),
]
Filters = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="MODULE:FUNCTION",
        help="A function of yours, also FILE.py:FUNCTION, that is given each document and returns True, False, a reason "
        "or another document; repeat for more.",
        rich_help_panel=KEPT,
    ),
]
MinCharacters = Annotated[
    int | None,
    typer.Option(
        help="Filter documents with fewer characters (code points after --fix-text) in all of their texts.",
        rich_help_panel=KEPT,
    ),
]
MaxCharacters = Annotated[int | None, typer.Option(help="Filter documents with more characters.", rich_help_panel=KEPT)]
MinImages = Annotated[
    int | None,
    typer.Option(help="Filter documents with fewer pictures that are there and within their bounds.", rich_help_panel=KEPT),
]
MaxImages = Annotated[int | None, typer.Option(help="Filter documents with more such pictures.", rich_help_panel=KEPT)]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="CONDITION",
        help="Keep documents that satisfy it, e.g. 'similarity >= 0.28' or 'language in en, de'; repeat for more.",
        rich_help_panel=KEPT,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option(
        "--metadata", "--keep-meta", help="Field of the source to keep per document; repeat for more.", rich_help_panel=KEPT
    ),
]
Dedup = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KIND",
        help="Leave out what comes again: documents (same content), texts, images (same bytes) or near-images "
        "(nearly the same looks); repeat for more.",
        rich_help_panel=KEPT,
    ),
]
NearDistance = Annotated[
    int | None,
    typer.Option(show_default="4", help="Bits of 64 in which near-images may differ, 0 to 16.", rich_help_panel=KEPT),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(show_default="67108864", help="Pictures of more pixels are rejected before decoding.", rich_help_panel=KEPT),
]
MinPixels = Annotated[int | None, typer.Option(show_default="1", help="Filter pictures of fewer pixels.", rich_help_panel=KEPT)]
MinSide = Annotated[
    int | None,
    typer.Option(show_default="8", help="Filter pictures whose shorter side is below this.", rich_help_panel=KEPT),
]
MaxSide = Annotated[int | None, typer.Option(help="Filter pictures whose longer side is above this.", rich_help_panel=KEPT)]
MaxAspect = Annotated[
    float | None,
    typer.Option(show_default="20.0", help="Filter pictures longer than so many times their width.", rich_help_panel=KEPT),
]
MinSeconds = Annotated[
    float | None, typer.Option(show_default="0.0", help="Filter sounds shorter than this.", rich_help_panel=KEPT)
]
MaxSeconds = Annotated[float | None, typer.Option(help="Filter sounds longer than this.", rich_help_panel=KEPT)]

# ---- what is made besides

Pack = Annotated[
    int | None, typer.Option(metavar="SEQ_LEN", help="Also plan packed sequences of this length.", rich_help_panel=BESIDES)
]
PackTooLong = Annotated[
    str | None,
    typer.Option(
        show_default="error",
        help="What becomes of documents with a picture, or a sound that is not cut, longer than --pack: error, or leave-out "
        "(of the plan).",
        rich_help_panel=BESIDES,
    ),
]
ReportDocuments = Annotated[
    int | None, typer.Option(show_default="8", help="Documents that report.html shows decoded.", rich_help_panel=BESIDES)
]
