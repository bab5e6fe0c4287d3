"""`tokkit train-text`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session, size

EXAMPLES = examples(
    "tokkit train-text corpus/text/ --out text.model --vocab-size 32000",
    "tokkit train-text 'jsonl:web/*.jsonl.gz' --out text.model --model-type unigram --max-size 1GB",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("train-text", epilog=EXAMPLES)(train_text)


def train_text(
    inputs: Annotated[list[str], typer.Argument(help="Paths, globs, folders or URLs of text; FORMAT:PATH names the format.")],
    out: Annotated[Path, typer.Option(help="The model file to write; FILE.model.json beside it says how it was made.")],
    vocab_size: Annotated[int | None, typer.Option(show_default="65536", help="Number of ids.")] = None,
    model_type: Annotated[str | None, typer.Option(show_default="bpe", help="bpe or unigram.")] = None,
    max_size: Annotated[
        str | None, typer.Option(show_default="200MB", help="Text to train on at most, e.g. 200MB; beyond it a sample.")
    ] = None,
    character_coverage: Annotated[
        float | None,
        typer.Option(show_default="0.9995", help="Share of characters with pieces of their own; the rest are bytes."),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of the sample.")] = None,
    threads: Annotated[int | None, typer.Option(show_default="1", help="Cores to use.")] = None,
    held_out: Annotated[
        float | None, typer.Option(show_default="0.02", help="Share of the documents that is only measured on.")
    ] = None,
    licence: Annotated[str | None, typer.Option(help="Of the model, noted in the manifests of shards made with it.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train a lossless SentencePiece tokenizer: any text comes back exactly."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.pipelines.settings import validated
        from tokkit.pipelines.train_text import TrainTextConfig
        from tokkit.pipelines.train_text import train_text as job

        options = {
            "inputs": inputs,
            "out": out,
            "vocab_size": vocab_size,
            "model_type": model_type,
            "max_bytes": size(max_size),
            "character_coverage": character_coverage,
            "seed": seed,
            "threads": threads,
            "held_out": held_out,
            "licence": licence,
        }
        result = job(validated(TrainTextConfig, "tokkit train-text", options), run.progress)
        if not run.emit(asdict(result)):
            run.console.print(f"{result.out}: {result.vocab_size:,} ids, {result.bytes_per_token:.2f} bytes a token")
