"""`tokkit export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit export shards/ --format megatron --pack seq4096-overlong --out megatron/",
    "tokkit export shards/ --format ds --out nanotron/",
    "tokkit export shards/ --format parquet --pack seq4096-overlong --out hf/",
    "tokkit export shards/ --format hf-tokenizer --out tokenizer/",
    "tokkit export features/ --format safetensors --out st/",
    "tokkit export pooled/ --format clip-retrieval --text-encoder clip/ --out retrieval/",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("export", epilog=EXAMPLES)(export)


def export(
    directory: Annotated[Path, typer.Argument(help="Finished output directory of `tokkit shard` or `tokkit features`.")],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="megatron (.bin, .idx), ds (datatrove, nanotron), olmo (headerless .npy), mds (mosaicml-streaming), parquet "
            "or arrow (tables), datasets (what Hugging Face datasets maps as it lies), webdataset (tars), or hf-tokenizer (the "
            "vocabulary, for Transformers). Of a feature cache: webdataset, safetensors or clip-retrieval.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder to be made.")],
    pack: Annotated[
        str | None, typer.Option(metavar="NAME", help="Export the sequences of this packing plan instead of documents.")
    ] = None,
    text_tokenizer: Annotated[
        Path | None, typer.Option(help="Where it is now, if it was moved (for hf-tokenizer, and captions of clip-retrieval).")
    ] = None,
    text_encoder: Annotated[
        Path | None, typer.Option(help="Folder of CLIP or SigLIP, whose text embeddings clip-retrieval gets besides.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Write shards in another trainer's format; where its tokens are the same bytes, as hard links."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.cli.show import show_export
        from tokkit.pipelines.export import ExportConfig
        from tokkit.pipelines.export import export as job

        towers = {"text_tokenizer": text_tokenizer, "text_encoder": text_encoder}
        result = job(ExportConfig(directory=directory, out=out, format=format_, pack=pack, **towers), run.progress)
        if not run.emit({"out": str(result.out), "written": result.written, **result.record}):
            show_export(run.console, result.out, result.record, written=result.written)
