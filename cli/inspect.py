"""`tokkit inspect`."""

from __future__ import annotations

import unicodedata
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit inspect shards/",
    "tokkit inspect shards/ --document 0 --out look/",
    "tokkit inspect shards/ --document val:3",
    "tokkit inspect shards/ --document 00000.tar#000000017 --json",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect", epilog=EXAMPLES)(inspect)


def harmless(text: str) -> str:
    """Untrusted text for a terminal: control characters (which could move the cursor or worse) and surrogates as escapes."""
    return "".join(c if c in "\n\t" or (unicodedata.category(c) not in ("Cc", "Cs")) else ascii(c)[1:-1] for c in text)


def inspect(
    directory: Annotated[str, typer.Argument(help="Output directory of `tokkit shard` or `tokkit features`, or its URL.")],
    document: Annotated[
        str | None, typer.Option(help="Decode this document: a number, SPLIT:NUMBER, an id or a locator.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the document there, as Markdown, PNG and WAV.")] = None,
    text_tokenizer: Annotated[Path | None, typer.Option(help="Where it is now, if it was moved.")] = None,
    image_tokenizer: Annotated[Path | None, typer.Option(help="Where it is now, if it was moved.")] = None,
    audio_tokenizer: Annotated[Path | None, typer.Option(help="Where it is now, if it was moved.")] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Show what a directory holds, or bring one document back from its tokens (of a feature cache: its text and features)."""
    with session(json=json, debug=debug, quiet=quiet) as run:
        from tokkit.cli.show import show_features, show_manifest
        from tokkit.errors import UsageError
        from tokkit.features.manifest import is_cache, load_cache_manifest
        from tokkit.pipelines.inspect import InspectConfig, inspect_document
        from tokkit.pipelines.output import described
        from tokkit.shards.manifest import load_manifest

        if document is None and out is not None:
            raise UsageError("--out needs --document: which document is to be written there?")
        with described(directory) as (folder, place):
            if document is None:
                if is_cache(folder):
                    cached = load_cache_manifest(folder)
                    if not run.emit(cached.model_dump(mode="json")):
                        show_features(run.console, cached)
                    return
                manifest = load_manifest(folder)
                if not run.emit(manifest.model_dump(mode="json")):
                    show_manifest(run.console, manifest)
                return
            config = InspectConfig(
                directory=folder,
                document=document,
                out=out,
                text_tokenizer=text_tokenizer,
                image_tokenizer=image_tokenizer,
                audio_tokenizer=audio_tokenizer,
            )
            found = inspect_document(config, run.progress, place)
        if run.emit(asdict(found)):
            return
        row = found.row
        run.console.print(
            f"{found.split}:{found.number}  {row['source']}/{row['locator']}  {row['tokens']:,} tokens", style="bold"
        )
        for part in found.parts:
            if part.text is not None:
                run.console.print(harmless(part.text), markup=False)
            else:
                shape = " x ".join(map(str, part.shape or ()))
                what = "codes" if part.detail is None else "features"
                told = [f"{what} {shape}" if shape else "", part.detail, part.file]
                said = ", ".join(filter(None, told))
                run.console.print(f"[{part.kind}{': ' + said if said else ''}]", style="cyan", markup=False)
