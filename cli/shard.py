"""`tokkit shard`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokkit.cli.common import Debug, Json, Quiet, examples, session

EXAMPLES = examples(
    "tokkit shard corpus/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/",
    "tokkit shard 'obelics:docs/*.parquet' pairs/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/ "
    "--pair-order random --val-fraction 0.01 --pack 4096",
    "tokkit shard corpus/ --out trial/ --text-tokenizer text.model --limit 1000",
    "tokkit shard corpus/ --out shards/ --text-tokenizer text.model --shard-index $SLURM_ARRAY_TASK_ID --shard-count 16",
    "tokkit shard corpus/ --out shards/ --vocabulary-from chameleon/text_tokenizer.json --image-tokenizer chameleon-vq/",
    "tokkit shard pairs/ --out shards/ --text-tokenizer text.model --image-tokenizer vq/ --recipe captions --val-fraction 0.01",
    "tokkit shard crawl.warc.gz --images pictures/ --missing-image drop-document --out shards/ --text-tokenizer text.model "
    "--image-tokenizer vq/",
    "tokkit shard --recipe chameleon --print-config",
)


# The groups that help shows the options in.
IN_AND_OUT = "Input and output"
TOKENS = "Tokens and their order"
KEPT = "What is kept"
RUN = "How it runs"
STOPS = "When it stops"
BESIDES = "What is made besides"


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("shard", epilog=EXAMPLES)(shard)


def shard(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(show_default=False, help="Paths, globs, folders or URLs of them; FORMAT:PATH names the format."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Output directory; an unfinished one of the same run is gone on with.", rich_help_panel=IN_AND_OUT),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Options under a name (text, captions, chameleon) or from a YAML file; --set and flags win over them.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Set any option of the job, e.g. image_limits.max_bytes=1000000.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    print_config: Annotated[
        bool,
        typer.Option(
            "--print-config",
            help="Print all options as they come together, as YAML, and do nothing else.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = False,
    text_tokenizer: Annotated[
        Path | None,
        typer.Option(
            help="SentencePiece .model or Hugging Face tokenizer.json; required unless --vocabulary-from brings its own.",
            rich_help_panel=TOKENS,
        ),
    ] = None,
    vocabulary_from: Annotated[
        Path | None,
        typer.Option(
            help="tokenizer.json of Chameleon or Emu3: text, pictures and markers then have that model's own token ids, "
            "so that shards continue its training.",
            rich_help_panel=TOKENS,
        ),
    ] = None,
    image_tokenizer: Annotated[
        Path | None, typer.Option(help="Image tokenizer folder; without one pictures are left out.", rich_help_panel=TOKENS)
    ] = None,
    audio_tokenizer: Annotated[
        Path | None, typer.Option(help="Audio tokenizer folder; without one sounds are left out.", rich_help_panel=TOKENS)
    ] = None,
    text_vocab_size: Annotated[
        int | None, typer.Option(help="Ids kept for text (the model's embedding rows).", rich_help_panel=TOKENS)
    ] = None,
    text_engine: Annotated[
        str | None,
        typer.Option(
            show_default="library",
            help="gigatoken: far faster for a tokenizer.json; checked against its library.",
            rich_help_panel=TOKENS,
        ),
    ] = None,
    image_layout: Annotated[
        str | None,
        typer.Option(
            show_default="plain, or the layout of --vocabulary-from",
            help="plain, rows (a marker after each row), grid (two size tokens first) or emu3 (the size in digits, then rows).",
            rich_help_panel=TOKENS,
        ),
    ] = None,
    audio_layout: Annotated[
        str | None,
        typer.Option(
            show_default="flat",
            help="flat (frame by frame), book_major (codebook by codebook) or delay (each codebook some steps late).",
            rich_help_panel=TOKENS,
        ),
    ] = None,
    audio_delays: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...",
            show_default="0,1,2,...",
            help="With --audio-layout delay: steps that each codebook is late, e.g. 0,1,1,1.",
            rich_help_panel=TOKENS,
        ),
    ] = None,
    audio_books: Annotated[
        int | None,
        typer.Option(show_default="all", help="Codebooks of a sound that are kept, coarsest first.", rich_help_panel=TOKENS),
    ] = None,
    pair_order: Annotated[
        str | None,
        typer.Option(
            show_default="image-first", help="image-first, text-first or random (half and half).", rich_help_panel=TOKENS
        ),
    ] = None,
    text_joiner: Annotated[
        str | None,
        typer.Option(help="Between texts that become neighbours when a picture is left out.", rich_help_panel=TOKENS),
    ] = None,
    alt_text: Annotated[
        str | None,
        typer.Option(
            show_default="none",
            help="Alternative text of pictures (web archives, OBELICS) as text of the document: none, before or after them.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STORE",
            help="Where pictures are that documents name by URL or path and that do not lie beside them: a folder, tars, the "
            "output of img2dataset or a WARC; KIND:PATH names the kind. Repeat for more, asked in order.",
            rich_help_panel=IN_AND_OUT,
        ),
    ] = None,
    missing_image: Annotated[
        str | None,
        typer.Option(
            show_default="drop-image",
            help="Of a document with a picture that is not to be had: drop-image goes on without it, drop-document leaves the "
            "document out, keep-marker keeps the picture's begin and end markers in its place.",
            rich_help_panel=KEPT,
        ),
    ] = None,
    fix_text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Repair texts first of all (ftfy): encoding (mojibake), html (entities), controls, line-breaks, width, "
            "ligatures, quotes, nfc or nfkc; repeat for more.",
            rich_help_panel=KEPT,
        ),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter",
            metavar="MODULE:FUNCTION",
            help="A function of yours, also FILE.py:FUNCTION, that is given each document and returns True, False, a reason "
            "or another document; repeat for more.",
            rich_help_panel=KEPT,
        ),
    ] = None,
    min_characters: Annotated[
        int | None,
        typer.Option(
            help="Filter documents with fewer characters (code points after --fix-text) in all of their texts.",
            rich_help_panel=KEPT,
        ),
    ] = None,
    max_characters: Annotated[
        int | None, typer.Option(help="Filter documents with more characters.", rich_help_panel=KEPT)
    ] = None,
    min_images: Annotated[
        int | None,
        typer.Option(help="Filter documents with fewer pictures that are there and within their bounds.", rich_help_panel=KEPT),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(help="Filter documents with more such pictures.", rich_help_panel=KEPT)
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="Keep documents that satisfy it, e.g. 'similarity >= 0.28' or 'language in en, de'; repeat for more.",
            rich_help_panel=KEPT,
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata", "--keep-meta", help="Field of the source to keep per document; repeat for more.", rich_help_panel=KEPT
        ),
    ] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(show_default="0.0", help="Share of documents held out, by content hash.", rich_help_panel=KEPT),
    ] = None,
    seed: Annotated[int | None, typer.Option(show_default="0", help="Of every drawn choice.", rich_help_panel=TOKENS)] = None,
    batch_size: Annotated[
        int | None, typer.Option(show_default="16", help="Pictures in each call of the encoder.", rich_help_panel=RUN)
    ] = None,
    unit_size: Annotated[
        str | None, typer.Option(show_default="64MiB", help="Input that one work unit covers, e.g. 64MiB.", rich_help_panel=RUN)
    ] = None,
    shard_tokens: Annotated[
        str | None,
        typer.Option(show_default="256Mi", help="Tokens after which a shard is closed, e.g. 256Mi.", rich_help_panel=RUN),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default one a core. 0 works in this one, for debugging.", rich_help_panel=RUN)
    ] = None,
    device: Annotated[
        str | None, typer.Option(show_default="auto", help="auto, cpu, cuda or cuda:N.", rich_help_panel=RUN)
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            show_default="fp32", help="Of the image tokenizer's network: fp32, tf32 or fp16 (fast modes).", rich_help_panel=RUN
        ),
    ] = None,
    acceleration: Annotated[
        str | None,
        typer.Option(
            show_default="none",
            help="none, compile (torch.compile) or graphs (CUDA graphs); what it rounds to is measured like a precision.",
            rich_help_panel=RUN,
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            show_default="0.98",
            help="Share of fp32's codes that a fast mode must keep on this input's pictures; else it is refused.",
            rich_help_panel=RUN,
        ),
    ] = None,
    encoders: Annotated[
        str | None,
        typer.Option(
            show_default="auto",
            help="in-worker: each worker loads the image tokenizer; process: encoder processes encode for all workers; "
            "auto: a process for each GPU, in the workers on a CPU.",
            rich_help_panel=RUN,
        ),
    ] = None,
    encoder_processes: Annotated[
        int | None, typer.Option(show_default="1", help="Encoder processes on each device.", rich_help_panel=RUN)
    ] = None,
    queue_depth: Annotated[
        int | None,
        typer.Option(
            show_default="2", help="Batches that a worker may have under way at an encoder process.", rich_help_panel=RUN
        ),
    ] = None,
    dedup: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            help="Leave out what comes again: documents (same content), texts, images (same bytes) or near-images "
            "(nearly the same looks); repeat for more.",
            rich_help_panel=KEPT,
        ),
    ] = None,
    near_distance: Annotated[
        int | None,
        typer.Option(show_default="4", help="Bits of 64 in which near-images may differ, 0 to 16.", rich_help_panel=KEPT),
    ] = None,
    dedup_memory: Annotated[
        str | None,
        typer.Option(show_default="1GiB", help="Memory for grouping; what does not fit goes to files.", rich_help_panel=RUN),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="A trial over N documents that extrapolates to the whole input.", rich_help_panel=IN_AND_OUT),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first reject.", rich_help_panel=STOPS)] = False,
    max_reject_ratio: Annotated[
        float | None,
        typer.Option(show_default="0.5", help="Stop where more than this share is rejected.", rich_help_panel=STOPS),
    ] = None,
    max_consecutive_rejects: Annotated[
        int | None, typer.Option(show_default="1000", help="Stop after so many rejects in a row.", rich_help_panel=STOPS)
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option(
            show_default="67108864", help="Pictures of more pixels are rejected before decoding.", rich_help_panel=KEPT
        ),
    ] = None,
    min_pixels: Annotated[
        int | None, typer.Option(show_default="1", help="Filter pictures of fewer pixels.", rich_help_panel=KEPT)
    ] = None,
    min_side: Annotated[
        int | None,
        typer.Option(show_default="8", help="Filter pictures whose shorter side is below this.", rich_help_panel=KEPT),
    ] = None,
    max_side: Annotated[
        int | None, typer.Option(help="Filter pictures whose longer side is above this.", rich_help_panel=KEPT)
    ] = None,
    max_aspect: Annotated[
        float | None,
        typer.Option(show_default="20.0", help="Filter pictures longer than so many times their width.", rich_help_panel=KEPT),
    ] = None,
    min_seconds: Annotated[
        float | None, typer.Option(show_default="0.0", help="Filter sounds shorter than this.", rich_help_panel=KEPT)
    ] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Filter sounds longer than this.", rich_help_panel=KEPT)] = None,
    pack: Annotated[
        int | None, typer.Option(metavar="SEQ_LEN", help="Also plan packed sequences of this length.", rich_help_panel=BESIDES)
    ] = None,
    report_documents: Annotated[
        int | None, typer.Option(show_default="8", help="Documents that report.html shows decoded.", rich_help_panel=BESIDES)
    ] = None,
    shard_index: Annotated[
        int | None,
        typer.Option(
            help="Do only a part of the units, counted from 0; then `tokkit finish` does the rest.", rich_help_panel=RUN
        ),
    ] = None,
    shard_count: Annotated[int | None, typer.Option(help="Parts that the units are dealt out to.", rich_help_panel=RUN)] = None,
    lease_seconds: Annotated[
        float | None,
        typer.Option(
            show_default="60.0",
            help="Without a sign for so long, a process is dead to others on the same --out.",
            rich_help_panel=RUN,
        ),
    ] = None,
    stall_seconds: Annotated[
        float | None,
        typer.Option(
            show_default="300.0", help="Without progress for so long, a worker is killed and replaced.", rich_help_panel=RUN
        ),
    ] = None,
    allow_mixed: Annotated[
        bool,
        typer.Option(
            "--allow-mixed",
            help="Go on with an output that was begun with other versions or another device; how far both agree is measured.",
            rich_help_panel=RUN,
        ),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn corpora into token shards: every document exactly once, resumable, with the proof beside it."""
    with session(json=json, debug=debug, quiet=quiet, resumable=True) as run:
        from tokkit.cli.show import show_manifest, show_packs, show_summary
        from tokkit.pipelines.recipe import Recipe, load_recipe, resolve
        from tokkit.pipelines.shard import shard as job
        from tokkit.pipelines.shard import shard_part

        bounds: dict[str, float | None] = {"max_pixels": max_pixels, "min_pixels": min_pixels}
        bounds |= {"min_side": min_side, "max_side": max_side, "max_aspect": max_aspect}
        lengths = {"min_seconds": min_seconds, "max_seconds": max_seconds}
        resolved = resolve(
            load_recipe(recipe) if recipe is not None else Recipe(),
            set_ or [],
            {
                "inputs": inputs or None,
                "out": out,
                "text_tokenizer": text_tokenizer,
                "vocabulary_from": vocabulary_from,
                "image_tokenizer": image_tokenizer,
                "audio_tokenizer": audio_tokenizer,
                "text_vocab_size": text_vocab_size,
                "text_engine": text_engine,
                "image_layout": image_layout,
                "audio_layout": audio_layout,
                "audio_delays": None if audio_delays is None else audio_delays.split(","),
                "audio_books": audio_books,
                "pair_order": pair_order,
                "text_joiner": text_joiner,
                "alt_text": alt_text,
                "images": images,
                "missing_image": missing_image,
                "fix_text": fix_text,
                "filters": filters,
                "min_characters": min_characters,
                "max_characters": max_characters,
                "min_images": min_images,
                "max_images": max_images,
                "where": where,
                "metadata": metadata,
                "val_fraction": val_fraction,
                "seed": seed,
                "batch_size": batch_size,
                "unit_bytes": unit_size,
                "shard_tokens": shard_tokens,
                "workers": workers,
                "device": device,
                "precision": precision,
                "acceleration": acceleration,
                "min_agreement": min_agreement,
                "encoders": encoders,
                "encoder_processes": encoder_processes,
                "queue_depth": queue_depth,
                "dedup": dedup,
                "near_distance": near_distance,
                "dedup_memory": dedup_memory,
                "limit": limit,
                "strict": strict or None,
                "max_reject_ratio": max_reject_ratio,
                "max_consecutive_rejects": max_consecutive_rejects,
                "image_limits": {key: value for key, value in bounds.items() if value is not None} or None,
                "audio_limits": {key: value for key, value in lengths.items() if value is not None} or None,
                "pack": pack,
                "report_documents": report_documents,
                "shard_index": shard_index,
                "shard_count": shard_count,
                "lease_seconds": lease_seconds,
                "stall_seconds": stall_seconds,
                "allow_mixed": allow_mixed or None,
            },
            incomplete=print_config,
        )
        if print_config:
            if not run.emit({"options": resolved.options, "missing": resolved.missing}):
                run.console.print(resolved.as_yaml(), end="", markup=False)
            return
        config = resolved.config
        assert config is not None  # only where what is missing is not minded
        if config.shard_count is not None:
            part = shard_part(config, run.progress)
            counts = {"committed": part.committed, "units": part.units}
            if run.emit(
                {"out": str(part.out), "part": [config.shard_index, config.shard_count], **counts, "summary": part.summary}
            ):
                return
            show_summary(run.console, part.summary)
            run.console.print(
                f"part {config.shard_index} of {config.shard_count}: {part.committed} of {part.units} units are committed"
            )
            run.console.print(f"once all are, `tokkit finish {part.out}` writes the shards, the manifest and the report")
            return
        result = job(config, run.progress)
        manifest = result.manifest.model_dump(mode="json")
        packs = {name: asdict(split) for name, split in result.packs.items()}
        if run.emit({"out": str(result.out), "summary": result.summary, "packs": packs, "manifest": manifest}):
            return
        show_manifest(run.console, result.manifest)
        show_packs(run.console, result.packs)
        show_summary(run.console, result.summary)
        run.console.print(f"\n{result.out}/report.html shows documents decoded back from their tokens")
