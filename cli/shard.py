"""`tokkit shard`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session, size

EXAMPLES = examples(
    "tokkit shard corpus/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/",
    "tokkit shard 'obelics:docs/*.parquet' pairs/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/ "
    "--pair-order random --val-fraction 0.01 --pack 4096",
    "tokkit shard corpus/ --out trial/ --text-tokenizer text.model --limit 1000",
)


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("shard", epilog=EXAMPLES)(shard)


def shard(
    inputs: Annotated[list[str], typer.Argument(help="Paths, globs or folders; FORMAT:PATH names the format.")],
    out: Annotated[Path, typer.Option(help="Output directory; an unfinished one of the same run is gone on with.")],
    text_tokenizer: Annotated[Path, typer.Option(help="SentencePiece .model or Hugging Face tokenizer.json.")],
    image_tokenizer: Annotated[
        Path | None, typer.Option(help="Image tokenizer folder; without one pictures are left out.")
    ] = None,
    text_vocab_size: Annotated[int | None, typer.Option(help="Ids kept for text (the model's embedding rows).")] = None,
    image_layout: Annotated[
        str | None,
        typer.Option(show_default="plain", help="plain, rows (a marker after each row) or grid (two size tokens first)."),
    ] = None,
    pair_order: Annotated[
        str | None, typer.Option(show_default="image-first", help="image-first, text-first or random (half and half).")
    ] = None,
    text_joiner: Annotated[
        str | None, typer.Option(help="Between texts that become neighbours when a picture is left out.")
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="Field of the source to keep per document; repeat for more.")
    ] = None,
    val_fraction: Annotated[
        float | None, typer.Option(show_default="0.0", help="Share of documents held out, by content hash.")
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of every drawn choice.")] = None,
    batch_size: Annotated[int | None, typer.Option(show_default="16", help="Pictures in each call of the encoder.")] = None,
    unit_size: Annotated[
        str | None, typer.Option(show_default="64MiB", help="Input that one work unit covers, e.g. 64MiB.")
    ] = None,
    shard_tokens: Annotated[
        str | None, typer.Option(show_default="256Mi", help="Tokens after which a shard is closed, e.g. 256Mi.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default one a core.")] = None,
    device: Annotated[str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.")] = None,
    limit: Annotated[int | None, typer.Option(help="A trial over N documents that extrapolates to the whole input.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first reject.")] = False,
    max_reject_ratio: Annotated[
        float | None, typer.Option(show_default="0.5", help="Stop where more than this share is rejected.")
    ] = None,
    max_consecutive_rejects: Annotated[
        int | None, typer.Option(show_default="1000", help="Stop after so many rejects in a row.")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(show_default="67108864", help="Pictures of more pixels are rejected before decoding.")
    ] = None,
    min_side: Annotated[
        int | None, typer.Option(show_default="8", help="Pictures with a shorter side than this are rejected.")
    ] = None,
    max_aspect: Annotated[
        float | None, typer.Option(show_default="20.0", help="Pictures longer than so many times their width are rejected.")
    ] = None,
    pack: Annotated[int | None, typer.Option(metavar="SEQ_LEN", help="Also plan packed sequences of this length.")] = None,
    report_documents: Annotated[
        int | None, typer.Option(show_default="8", help="Documents that report.html shows decoded.")
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn corpora into token shards: every document exactly once, resumable, with the proof beside it."""
    with session(json=json, debug=debug, quiet=quiet, resumable=True) as run:
        from tokkit.cli.show import show_manifest, show_packs, show_summary
        from tokkit.pipelines.settings import validated
        from tokkit.pipelines.shard import ShardConfig
        from tokkit.pipelines.shard import shard as job

        bounds = {"max_pixels": max_pixels, "min_side": min_side, "max_aspect": max_aspect}
        config = validated(
            ShardConfig,
            "tokkit shard",
            {
                "inputs": inputs,
                "out": out,
                "text_tokenizer": text_tokenizer,
                "image_tokenizer": image_tokenizer,
                "text_vocab_size": text_vocab_size,
                "image_layout": image_layout,
                "pair_order": pair_order,
                "text_joiner": text_joiner,
                "metadata": metadata,
                "val_fraction": val_fraction,
                "seed": seed,
                "batch_size": batch_size,
                "unit_bytes": size(unit_size),
                "shard_tokens": size(shard_tokens),
                "workers": workers,
                "device": device,
                "limit": limit,
                "strict": strict,
                "max_reject_ratio": max_reject_ratio,
                "max_consecutive_rejects": max_consecutive_rejects,
                "image_limits": {key: value for key, value in bounds.items() if value is not None},
                "pack": pack,
                "report_documents": report_documents,
            },
        )
        result = job(config, run.progress)
        manifest = result.manifest.model_dump(mode="json")
        packs = {name: asdict(split) for name, split in result.packs.items()}
        if run.emit({"out": str(result.out), "summary": result.summary, "packs": packs, "manifest": manifest}):
            return
        show_manifest(run.console, result.manifest)
        show_packs(run.console, result.packs)
        show_summary(run.console, result.summary)
        run.console.print(f"\n{result.out}/report.html shows documents decoded back from their tokens")
