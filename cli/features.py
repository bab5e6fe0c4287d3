"""`tokkit features`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session
from tokkit.cli.run_options import (
    IN_AND_OUT,
    KEPT,
    RUN,
    Acceleration,
    ChatTemplate,
    EncoderProcesses,
    Inputs,
    MaxConsecutiveRejects,
    MaxRejectRatio,
    Out,
    Scratch,
    ShardCount,
    Strict,
    ValFraction,
    Workers,
)

EXAMPLES = examples(
    "tokkit features pairs/ --out features/ --encoder clip-vit-large-patch14-336/ --text-tokenizer vicuna/tokenizer.model",
    "tokkit features conversations.json --out features/ --encoder clip-vit-large-patch14-336/ --text-tokenizer vicuna/ "
    "--tiling anyres --dtype bf16",
    "tokkit features 'obelics:docs/*.parquet' --out features/ --encoder siglip/ --text-tokenizer llama/tokenizer.json "
    "--missing-image keep-marker --dtype int8",
    "tokkit features pairs/ --out trial/ --encoder clip/ --text-tokenizer text.model --limit 1000",
    "tokkit features pairs/ --out pooled/ --encoder clip/ --text-tokenizer text.model --pooled projected --no-tokens",
)

FEATURES = "Features"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("features", epilog=EXAMPLES)(features)


def features(
    inputs: Inputs = None,
    out: Out = None,
    scratch: Scratch = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="The frozen encoder: a folder as transformers writes it, or an image tokenizer's.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    text_tokenizer: Annotated[
        Path | None,
        typer.Option(help="The language model's own: SentencePiece .model or tokenizer.json.", rich_help_panel=FEATURES),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layer",
            metavar="N",
            help="Hidden state to take, e.g. -2, or final; repeat to put several side by side.",
            rich_help_panel=FEATURES,
        ),
    ] = None,
    tiling: Annotated[
        str | None,
        typer.Option(help="none, anyres, internvl, native or llama; default the model's own.", rich_help_panel=FEATURES),
    ] = None,
    keep_cls: Annotated[
        bool, typer.Option("--keep-cls", help="Keep the class token before each view.", rich_help_panel=FEATURES)
    ] = False,
    pooled: Annotated[
        str | None,
        typer.Option(help="Also the whole item's embedding: pooled or projected; default none.", rich_help_panel=FEATURES),
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Features of the patches.", rich_help_panel=FEATURES)
    ] = True,
    dtype: Annotated[
        str | None,
        typer.Option(
            show_default="fp16", help="Stored form: fp16, bf16, or int8 with a scale a token.", rich_help_panel=FEATURES
        ),
    ] = None,
    allow_download: Annotated[
        bool, typer.Option("--allow-download", help="Fetch an encoder that is named on the hub.", rich_help_panel=FEATURES)
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set any option of the job, e.g. options.merge=flat.", rich_help_panel=IN_AND_OUT
        ),
    ] = None,
    pair_order: Annotated[
        str | None,
        typer.Option(show_default="image-first", help="image-first, text-first or random.", rich_help_panel=IN_AND_OUT),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE", help="Where pictures are that lie elsewhere; repeat for more.", rich_help_panel=IN_AND_OUT
        ),
    ] = None,
    chat_template: ChatTemplate = None,
    missing_image: Annotated[
        str | None,
        typer.Option(
            show_default="drop-image",
            help="drop-image, drop-document or keep-marker (its place is kept).",
            rich_help_panel=KEPT,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option("--filter", metavar="MODULE:FUNCTION", help="A function of yours; repeat for more.", rich_help_panel=KEPT),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="Keep documents that satisfy it; repeat for more.", rich_help_panel=KEPT),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(help="Field of the source to keep per document; repeat for more.", rich_help_panel=KEPT)
    ] = None,
    dedup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND", help="Leave out what comes again: documents, texts, images or near-images.", rich_help_panel=KEPT
        ),
    ] = None,
    val_fraction: ValFraction = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of every drawn choice.", rich_help_panel=KEPT)] = None,
    batch_size: Annotated[
        int | None, typer.Option(show_default="16", help="Views in each call of the encoder.", rich_help_panel=RUN)
    ] = None,
    unit_size: Annotated[
        str | None, typer.Option(show_default="64MiB", help="Input that one work unit covers.", rich_help_panel=RUN)
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(show_default="1GiB", help="Features after which a shard is closed.", rich_help_panel=RUN)
    ] = None,
    workers: Workers = None,
    device: Annotated[
        str | None,
        typer.Option(show_default="auto", help="auto, cpu, cuda (all GPUs of the machine) or cuda:N.", rich_help_panel=RUN),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            show_default="fp32", help="Of the encoder's network: fp32, tf32 or fp16 (fast modes).", rich_help_panel=RUN
        ),
    ] = None,
    acceleration: Acceleration = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            show_default="0.98",
            help="1 less the relative error that a fast mode may bring to fp32's features; else it is refused.",
            rich_help_panel=RUN,
        ),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(
            show_default="auto",
            help="in-worker: each worker loads the encoder; process: encoder processes encode for all workers; auto: a process "
            "for each GPU, in the workers on a CPU.",
            rich_help_panel=RUN,
        ),
    ] = None,
    encoder_processes: EncoderProcesses = None,
    limit: Annotated[
        int | None,
        typer.Option(help="A trial over N documents that tells the size of the whole.", rich_help_panel=IN_AND_OUT),
    ] = None,
    strict: Strict = False,
    max_reject_ratio: MaxRejectRatio = None,
    max_consecutive_rejects: MaxConsecutiveRejects = None,
    shard_index: Annotated[
        int | None,
        typer.Option(help="Do only a part of the units, counted from 0; then `tokkit finish`.", rich_help_panel=RUN),
    ] = None,
    shard_count: ShardCount = None,
    lease_seconds: Annotated[
        float | None,
        typer.Option(show_default="60.0", help="Without a sign for so long, a process is dead to others.", rich_help_panel=RUN),
    ] = None,
    stall_seconds: Annotated[
        float | None,
        typer.Option(show_default="300.0", help="Without progress for so long, a worker is replaced.", rich_help_panel=RUN),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Cache a frozen encoder's features with the text beside them: every document exactly once, resumable."""
    with session(json=json, debug=debug, quiet=quiet, resumable=True) as run:
        from tokkit.cli.show import show_features, show_summary, show_warnings
        from tokkit.pipelines.features import FeaturesConfig, features_part
        from tokkit.pipelines.features import features as job
        from tokkit.pipelines.lacking import warnings_of
        from tokkit.pipelines.recipe import merged, nested
        from tokkit.pipelines.settings import assignments, validated

        options = {
            "layers": None if layers is None else [layer if layer == "final" else _number(layer) for layer in layers],
            "tiling": tiling,
            "keep_cls": keep_cls or None,
            "pooled": pooled,
            "tokens": None if tokens else False,
        }
        flags = {
            "inputs": inputs or None,
            "out": out,
            "scratch": scratch,
            "encoder": encoder,
            "text_tokenizer": text_tokenizer,
            "dtype": dtype,
            "allow_download": allow_download or None,
            "options": {key: value for key, value in options.items() if value is not None} or None,
            "pair_order": pair_order,
            "images": images,
            "chat_template": chat_template,
            "missing_image": missing_image,
            "filters": filters,
            "where": where,
            "metadata": metadata,
            "dedup": dedup,
            "val_fraction": val_fraction,
            "seed": seed,
            "batch_size": batch_size,
            "unit_bytes": unit_size,
            "shard_bytes": shard_size,
            "workers": workers,
            "device": device,
            "precision": precision,
            "acceleration": acceleration,
            "min_agreement": min_agreement,
            "encoders": encoders,
            "encoder_processes": encoder_processes,
            "limit": limit,
            "strict": strict or None,
            "max_reject_ratio": max_reject_ratio,
            "max_consecutive_rejects": max_consecutive_rejects,
            "shard_index": shard_index,
            "shard_count": shard_count,
            "lease_seconds": lease_seconds,
            "stall_seconds": stall_seconds,
        }
        given = {key: value for key, value in flags.items() if value is not None}
        config = validated(FeaturesConfig, "tokkit features", merged(nested(assignments(set_ or [])), given))
        if config.shard_count is not None:
            part = features_part(config, run.progress)
            if run.emit({"out": str(part.out), "committed": part.committed, "units": part.units, "summary": part.summary}):
                return
            run.console.print(f"{part.committed} of {part.units} units are committed; once all are: tokkit finish {part.out}")
            return
        result = job(config, run.progress)
        manifest, warnings = result.manifest.model_dump(mode="json"), warnings_of(result.manifest)
        if run.emit({"out": str(result.out), "summary": result.summary, "manifest": manifest, "warnings": warnings}):
            return
        show_features(run.console, result.manifest)
        show_summary(run.console, result.summary)
        show_warnings(run.console, result.manifest)
        run.console.print(f"\n{result.out}/report.html shows what it holds; tokkit verify {result.out} checks it")


def _number(text: str) -> int | str:
    """A layer's number; what is none is left for the options to refuse."""
    try:
        return int(text)
    except ValueError:
        return text
